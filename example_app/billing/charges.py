"""Charges: a job that fails twice before it succeeds, and shows how retries read."""

from pydantic import BaseModel

from example_app.emails import EmailProcessor, Receipt
from example_app.services import Journal, PaymentGateway
from workers_module import Backoff, Dispatcher, Job, on_worker_event, process, processor


class Charge(BaseModel):
    order: str
    cents: int
    email: str


@processor("billing", options={"attempts": 5, "backoff": Backoff.fixed("200ms")})
class ChargeProcessor:
    def __init__(self, gateway: PaymentGateway, jobs: Dispatcher, journal: Journal) -> None:
        self.gateway = gateway
        self.jobs = jobs
        self.journal = journal

    @process("charge")
    async def charge(self, job: Job[Charge]) -> str:
        paid = await self.gateway.charge(job.data.order, job.data.cents)
        receipt = Receipt(email=job.data.email, order=job.data.order)
        # The id makes the receipt's job one of a kind, even if this handler runs twice.
        await self.jobs.perform_later(EmailProcessor.receipt, receipt, job_id=f"receipt-{job.data.order}")
        return paid

    @on_worker_event("failed")
    async def failed(self, job: Job[Charge], error: Exception) -> None:
        self.journal.write(f"billing  {job.data.order} attempt {job.attempt} of {job.attempts} failed: {error}")

    @on_worker_event("completed")
    async def completed(self, job: Job[Charge], result: str) -> None:
        self.journal.write(f"billing  {job.data.order} attempt {job.attempt}: {result}")
