"""Lines that mypy and pyright must reject: each that ends in ``# error``, and no other."""

from typing import Any

from dishka import FromDishka
from pydantic import BaseModel

from workers_module.client.queue import Queue
from workers_module.di.decorators import Worker, job, on_queue_event, on_worker_event, process, processor
from workers_module.di.dispatcher import Dispatcher
from workers_module.job.job import Job


class EmailJob(BaseModel):
    to: str


class Other(BaseModel):
    n: int


class Mailer: ...


class EmailQueue(Queue[EmailJob], name="email"): ...


@processor("email")
class EmailProcessor:
    @process()
    async def welcome(self, job: Job[EmailJob], mailer: FromDishka[Mailer]) -> bool:
        return True

    @process()
    def count(self, job: Job[EmailJob]) -> int:
        return 1


class Calculator(Worker[EmailJob, int]):
    def perform(self, args: EmailJob, /) -> int:
        return 1


@job()
async def send(data: EmailJob, mailer: FromDishka[Mailer]) -> bool:
    return True


@job()
def report(data: EmailJob) -> str:
    return data.to


@job()
async def by_job(job: Job[EmailJob]) -> bool:
    return True


@job()
async def nightly() -> int:
    return 1


async def wrong_payloads(jobs: Dispatcher, emails: EmailQueue, worker: EmailProcessor) -> None:
    await jobs.perform_later(EmailProcessor.welcome, Other(n=1))  # error
    await jobs.perform_later(EmailProcessor.count, Other(n=1))  # error
    await jobs.perform_later(worker.welcome, Other(n=1))  # error
    await jobs.perform_later(Calculator, Other(n=1))  # error
    await jobs.perform_later(send, Other(n=1))  # error
    await jobs.perform_later(report, Other(n=1))  # error
    await jobs.perform_later(by_job, Other(n=1))  # error
    await jobs.perform_now(EmailProcessor.welcome, "ada")  # error
    await jobs.run_job(send, {"to": "ada"})  # error
    await jobs.perform_later(send)  # error
    await jobs.run_job(nightly, Other(n=1))  # error
    await emails.add("welcome", Other(n=1))  # error


async def wrong_results(jobs: Dispatcher, mail: EmailJob) -> None:
    a: str = await jobs.run_job(EmailProcessor.welcome, mail)  # error
    b: str = await jobs.perform_now(Calculator, mail)  # error
    c: int = await (await jobs.perform_later(report, mail)).result()  # error
    del a, b, c


async def wrong_options(jobs: Dispatcher, emails: EmailQueue, mail: EmailJob) -> None:
    await jobs.perform_later(send, mail, attemps=3)  # error
    await jobs.perform_later(send, mail, attempts="3")  # error
    await emails.add("welcome", mail, dealy="5s")  # error
    await jobs.run_job(send, mail, wait=30)  # error


class Declared:
    @process()  # error
    async def payload_first(self, data: EmailJob) -> None: ...

    @on_worker_event("compelted")  # error
    async def done(self, job: Job[Any]) -> None: ...

    @on_queue_event("ready")  # error
    async def ready(self) -> None: ...


@job(options={"attemps": 3})  # error
async def misspelt(data: EmailJob) -> None: ...


class Wrong(Worker[EmailJob, int]):
    def perform(self, args: Other, /) -> int:  # error
        return 1
