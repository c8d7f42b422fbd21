"""Mail: a typed queue, a processor with two named handlers, and listeners."""

from typing import Any

from dishka import FromDishka
from pydantic import BaseModel

from example_app.services import Journal, Mailer
from workers_module import Backoff, Job, JobLogger, Queue, on_worker_event, process, processor


class Welcome(BaseModel):
    email: str
    name: str


class Receipt(BaseModel):
    email: str
    order: str


class Sent(BaseModel):
    message_id: str


class EmailQueue(Queue[Welcome | Receipt], name="email", options={"attempts": 3, "backoff": Backoff.exponential("1s")}):
    """Injected by its own type; its options are defaults for every job in it."""


@processor(EmailQueue, concurrency=20)
class EmailProcessor:
    """One object per job, built by the container in a scope of its own."""

    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    @process("welcome")
    async def welcome(self, job: Job[Welcome]) -> Sent:
        return Sent(message_id=await self.mailer.send(job.data.email, f"Welcome, {job.data.name}!"))

    @process("receipt")
    async def receipt(self, job: Job[Receipt], log: FromDishka[JobLogger]) -> Sent:
        log.info("receipt for order %s", job.data.order)
        return Sent(message_id=await self.mailer.send(job.data.email, f"Your order {job.data.order}"))

    @on_worker_event("completed")
    async def completed(self, job: Job[Any], result: Sent, journal: FromDishka[Journal]) -> None:
        journal.write(f"email    {job.name} #{job.id} completed: {result.message_id} to {job.data.email}")

    @on_worker_event("failed")
    async def failed(self, job: Job[Any], error: Exception, journal: FromDishka[Journal]) -> None:
        journal.write(f"email    {job.name} #{job.id} attempt {job.attempt} of {job.attempts} failed: {error}")
