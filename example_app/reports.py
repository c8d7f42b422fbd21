"""Reports: one class, one job; progress, a time limit per call, and a job of which only one is in flight."""

import asyncio

from pydantic import BaseModel

from example_app.services import Journal
from workers_module import Job, JobContext, Worker, job, on_worker_event, processor


class ReportArgs(BaseModel):
    title: str
    pages: int = 5


@processor("reports", concurrency=2)
class ReportWorker(Worker[ReportArgs, str]):
    """`perform` takes the payload alone; whatever else it needs is asked for in the constructor."""

    def __init__(self, context: JobContext, journal: Journal) -> None:
        self.context = context
        self.journal = journal

    async def perform(self, args: ReportArgs, /) -> str:
        for page in range(1, args.pages + 1):
            await asyncio.sleep(0.01)
            await self.context.progress(100 * page // args.pages)
        return f"{args.title}.pdf"

    @on_worker_event("progress")
    async def progressed(self, job: Job[ReportArgs], progress: int) -> None:
        self.journal.write(f"reports  {job.data.title}: {progress} %")


@job(queue="reports", singleton=True)
async def rebuild_index(job: Job[None]) -> str:
    """Asked for ten times while it runs, it still runs once: the callers share its result."""
    await asyncio.sleep(0.05)
    return f"index built by job {job.id}"
