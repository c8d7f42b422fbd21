"""The application that the commands of these tests work on."""

import asyncio
import os
import time
from pathlib import Path

from dishka import AsyncContainer, make_async_container
from pydantic import BaseModel

from workers_module import Job, JobContext, Worker, WorkersModule, cron, job, process, processor


class Mail(BaseModel):
    to: str
    text: str = "hello"


@processor("mail", options={"attempts": 1})
class MailProcessor:
    @process("send")
    async def send(self, job: Job[Mail]) -> str:
        return f"sent to {job.data.to}"

    @process("bounce")
    async def bounce(self, job: Job[Mail]) -> str:
        raise ValueError(f"no mailbox {job.data.to}")


class SlowArgs(BaseModel):
    seconds: float = 60.0
    mark: str = ""


@processor("slow", concurrency=4)
class SlowProcessor:
    @process("nap")
    async def nap(self, job: Job[SlowArgs]) -> str:
        _mark(job.data)
        await asyncio.sleep(job.data.seconds)
        return "rested"

    @process("stubborn")
    async def stubborn(self, job: Job[SlowArgs]) -> None:
        """Goes on whatever it is told."""
        _mark(job.data)
        while True:
            try:
                await asyncio.sleep(job.data.seconds)
            except asyncio.CancelledError:
                continue

    @process("block")
    def block(self, job: Job[SlowArgs]) -> None:
        """Blocks a thread, which nothing can cancel."""
        _mark(job.data)
        time.sleep(job.data.seconds)

    @process("seize")
    async def seize(self, job: Job[SlowArgs]) -> None:
        """Blocks the event loop: nothing else in the process runs."""
        _mark(job.data)
        time.sleep(job.data.seconds)  # noqa: ASYNC251 - as careless handlers do

    @process("pid")
    async def pid(self, job: Job[SlowArgs]) -> int:
        return os.getpid()

    @process("die")
    async def die(self, job: Job[SlowArgs]) -> None:
        _mark(job.data)
        os._exit(9)


class LogWorker(Worker[Mail, str]):
    def __init__(self, context: JobContext) -> None:
        self.context = context

    async def perform(self, args: Mail, /) -> str:
        for number in range(3):
            self.context.log(f"step {number}")
            await self.context.progress(number)
        return "logged"


@job(queue="tagged", tags=("gpu",))
async def render(data: Mail) -> str:
    return data.to


class NightTasks:
    @cron("0 3 * * *", name="nightly", tz="Europe/Warsaw")
    async def clean_up(self) -> None:
        """Nothing to do."""


def make_container() -> AsyncContainer:
    return make_async_container(
        WorkersModule.for_root(processors=[MailProcessor, SlowProcessor, LogWorker, render, NightTasks])
    )


def broken() -> AsyncContainer:
    raise RuntimeError("the database has no host")


def _mark(args: SlowArgs) -> None:
    if args.mark:
        Path(args.mark).write_text(str(os.getpid()), encoding="utf-8")
