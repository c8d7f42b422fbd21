"""Lines that mypy and pyright must accept, with the types they must find."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Annotated, Any, assert_type

from dishka import FromDishka
from pydantic import BaseModel

from workers_module.client.handle import JobHandle
from workers_module.client.queue import Queue
from workers_module.di.decorators import (
    InjectQueue,
    Worker,
    WorkerHost,
    cron,
    interval,
    job,
    on_queue_event,
    on_worker_event,
    process,
    processor,
    timeout,
)
from workers_module.di.dispatcher import Dispatcher
from workers_module.job.job import Job
from workers_module.job.options import Dedup
from workers_module.job.retry import Backoff
from workers_module.worker.context import JobContext, JobLogger, Progress


class EmailJob(BaseModel):
    to: str


class WelcomeJob(EmailJob):
    name: str


class Sent(BaseModel):
    message_id: str


class Mailer: ...


class EmailQueue(Queue[EmailJob], name="email", options={"attempts": 3}):
    """Injected by its own type."""


@processor(EmailQueue, options={"backoff": Backoff.exponential("1m")})
class EmailProcessor:
    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    @process("welcome", singleton=True)
    async def welcome(
        self, job: Job[EmailJob], progress: FromDishka[Progress], log: FromDishka[JobLogger], ctx: JobContext
    ) -> Sent:
        await progress(50)
        log.info("%s", job.data.to)
        return Sent(message_id=job.id)

    @process()
    def count(self, job: Job[EmailJob]) -> dict[str, int]:
        return {job.data.to: 1}

    @cron("0 9 * * *", data=None)
    @process()
    async def nothing(self, job: Job[None]) -> None: ...

    @on_worker_event("completed")
    async def completed(self, job: Job[EmailJob], result: Sent) -> None: ...

    @on_queue_event("failed", queue="email")
    def failed(self, job_id: str, error: str) -> None: ...


@processor("legacy")
class Legacy(WorkerHost):
    async def process(self, job: Job[Any]) -> Any: ...


@processor("legacy2")
async def legacy(job: Job[Any]) -> None: ...


@processor("calculator")
class Calculator(Worker[int, str]):
    def perform(self, args: int, /) -> str:
        return str(args)


class AsyncCalculator(Worker[EmailJob, list[int]]):
    async def perform(self, mail: EmailJob, /) -> list[int]:
        return [len(mail.to)]


@job(queue=EmailQueue)
async def send(data: EmailJob, mailer: FromDishka[Mailer]) -> bool:
    return True


@cron("0 9 * * 1", tz="Europe/Riga", data=EmailJob(to="ada"))
@job()
def report(data: EmailJob) -> str:
    return data.to


@job()
async def by_job(job: Job[EmailJob], ctx: JobContext) -> float:
    return 1.0


@job()
async def nightly() -> int:
    return 1


@job()
def rebuild() -> str:
    return "rebuilt"


class Ticker:
    @interval("10s")
    async def tick(self, mailer: FromDishka[Mailer]) -> None: ...

    @timeout("5s")
    def warm_up(self) -> None: ...


Reports = Annotated[Queue[Any], InjectQueue("reports")]


async def dispatching(jobs: Dispatcher, mail: EmailJob, welcome: WelcomeJob, worker: EmailProcessor) -> None:
    assert_type(await jobs.perform_later(Calculator, 1), JobHandle[str])
    assert_type(await jobs.perform_later(AsyncCalculator, mail), JobHandle[list[int]])
    assert_type(await jobs.perform_later(EmailProcessor.welcome, mail, delay="5s", attempts=3), JobHandle[Sent])
    assert_type(await jobs.perform_later(worker.welcome, mail), JobHandle[Sent])
    assert_type(await jobs.perform_later(EmailProcessor.welcome, welcome), JobHandle[Sent])
    assert_type(await jobs.perform_later(EmailProcessor.count, mail), JobHandle[dict[str, int]])
    assert_type(await jobs.perform_later(worker.count, mail), JobHandle[dict[str, int]])
    assert_type(await jobs.perform_later(EmailProcessor.nothing, None), JobHandle[None])
    assert_type(await jobs.perform_later(send, mail, deduplication=Dedup.simple("x")), JobHandle[bool])
    assert_type(await jobs.perform_later(report, mail), JobHandle[str])
    assert_type(await jobs.perform_later(by_job, mail), JobHandle[float])
    assert_type(await jobs.perform_later(nightly), JobHandle[int])
    assert_type(await jobs.perform_later(rebuild, None, delay="5s"), JobHandle[str])
    assert_type(await jobs.perform_later("build_report"), JobHandle[Any])
    assert_type(await jobs.perform_later("build_report", {"a": 1}, tx=object()), JobHandle[Any])

    assert_type(await jobs.perform_now(Calculator, 1), str)
    assert_type(await jobs.perform_now(AsyncCalculator, mail), list[int])
    assert_type(await jobs.perform_now(EmailProcessor.welcome, mail), Sent)
    assert_type(await jobs.perform_now(worker.welcome, mail), Sent)
    assert_type(await jobs.perform_now(EmailProcessor.count, mail), dict[str, int])
    assert_type(await jobs.perform_now(worker.count, mail), dict[str, int])
    assert_type(await jobs.perform_now(send, mail), bool)
    assert_type(await jobs.perform_now(report, mail), str)
    assert_type(await jobs.perform_now(by_job, mail), float)
    assert_type(await jobs.perform_now(nightly), int)
    assert_type(await jobs.perform_now(rebuild), str)
    assert_type(await jobs.perform_now("build_report"), Any)

    assert_type(await jobs.run_job(Calculator, 1), str)
    assert_type(await jobs.run_job(AsyncCalculator, mail, wait="1m"), list[int])
    assert_type(await jobs.run_job(EmailProcessor.welcome, mail, wait=None, timeout="5s"), Sent)
    assert_type(await jobs.run_job(worker.welcome, mail), Sent)
    assert_type(await jobs.run_job(EmailProcessor.count, mail), dict[str, int])
    assert_type(await jobs.run_job(worker.count, mail), dict[str, int])
    assert_type(await jobs.run_job(send, mail), bool)
    assert_type(await jobs.run_job(report, mail), str)
    assert_type(await jobs.run_job(by_job, mail), float)
    assert_type(await jobs.run_job(nightly, wait="1m"), int)
    assert_type(await jobs.run_job(rebuild), str)
    assert_type(await jobs.run_job("build_report", 1), Any)
    assert_type(await jobs.perform_now(Legacy.process, {"any": "thing"}), Any)


@job()
async def summary(data: EmailJob) -> dict[str, str | int]:
    return {"to": data.to, "length": len(data.to)}


async def widening(jobs: Dispatcher, mail: EmailJob) -> dict[str, str | int]:
    """Use a result where a wider type is expected."""
    handle: JobHandle[Sent | None] = await jobs.perform_later(EmailProcessor.welcome, mail)
    wider: Job[BaseModel] = Job.fake(mail)
    counts: Mapping[str, str | int] = await jobs.run_job(EmailProcessor.count, mail)
    lengths: Sequence[str | int] = await jobs.run_job(AsyncCalculator, mail)
    message: str | Sent = await jobs.perform_now(EmailProcessor.welcome, mail)
    del handle, wider, counts, lengths, message
    return await jobs.run_job(summary, mail)


async def queueing(
    emails: EmailQueue, reports: Reports, by_name: Annotated[Queue[EmailJob], InjectQueue("email")]
) -> None:
    assert_type(await emails.add("welcome", EmailJob(to="ada"), attempts=3, delay="5s"), JobHandle[Any])
    await by_name.add("welcome", WelcomeJob(to="ada", name="Ada"))
    await reports.add("sync-data", {"source": "api"})


async def alone() -> None:
    """Call handlers in a unit test, without a container."""
    assert_type(EmailProcessor(Mailer()).count(Job.fake(EmailJob(to="x"))), dict[str, int])
    assert_type(await send(EmailJob(to="x"), Mailer()), bool)
    assert_type(Calculator().perform(1), str)
    done: Awaitable[list[int]] = AsyncCalculator().perform(EmailJob(to="x"))
    assert_type(await done, list[int])
