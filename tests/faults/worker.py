"""What the worker processes of the fault tests run: an application, wired and stopped as its reader would.

For each run it writes lines to ``<name>.runs``: ``start ID FENCE``, then ``end ID FENCE`` when the handler is done,
which is before the store knows, or ``cancelled ID FENCE``. ``ready``, ``stopping`` and ``bye`` tell of the process.
Its log is ``<name>.log``.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from dishka import FromDishka, Provider, Scope, make_async_container
from pydantic import BaseModel

from workers_module import Job, UnrecoverableError, WorkersModule, WorkersSettings, process, processor, run_workers

QUEUE = "mail"
NAME = "work"


class Task(BaseModel):
    """What a job does before it returns its id."""

    ms: int = 0
    """It takes so long."""
    block_ms: int = 0
    """It keeps the event loop from everything else for so long."""
    fail: bool = False
    """It fails."""
    text: str = ""
    """It is as large as this."""
    kill: bool = False
    """It kills its process."""
    forever: bool = False
    """It does not end by itself."""


class Diary:
    """The file of one process' runs."""

    def __init__(self, path: Path) -> None:
        # Unbuffered: a line is in the file before anything else happens.
        self._file = path.open("ab", buffering=0)

    def note(self, *words: object) -> None:
        """Append a line."""
        self._file.write(f"{' '.join(map(str, words))}\n".encode())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@processor(QUEUE)
class Laborer:
    """Runs tasks."""

    def __init__(self, diary: FromDishka[Diary]) -> None:
        self.diary = diary

    @process(NAME)
    async def work(self, job: Job[Task]) -> int:
        """Do what the task says, and return the fence of the run."""
        self.diary.note("start", job.id, job.fence)
        try:
            await carry_out(job.data)
        except asyncio.CancelledError:
            self.diary.note("cancelled", job.id, job.fence)
            raise
        self.diary.note("end", job.id, job.fence)
        return job.fence


async def carry_out(task: Task) -> None:
    """Do what the task says."""
    if task.kill:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.block_ms:
        time.sleep(task.block_ms / 1_000)  # noqa: ASYNC251 - that is the point
    if task.forever:
        await anyio.sleep_forever()
    await asyncio.sleep(task.ms / 1_000)
    if task.fail:
        raise UnrecoverableError("as it was told")


def main(name: str, folder: str, settings: Mapping[str, Any]) -> None:
    """Run one worker process until it is told to stop."""
    log = os.open(Path(folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True, format=form)
    logging.getLogger("workers_module.worker.report").setLevel(logging.ERROR)
    asyncio.run(_run(Diary(Path(folder) / f"{name}.runs"), settings))


async def _run(diary: Diary, settings: Mapping[str, Any]) -> None:
    module = WorkersModule.for_root(WorkersSettings(**settings), processors=[Laborer])
    own = Provider(scope=Scope.APP)
    own.provide(lambda: diary, provides=Diary)
    stopping: set[asyncio.Task[None]] = set()
    async with run_workers(make_async_container(module, own), close_container=True) as workers:

        def stop() -> None:
            # The first signal asks, the second one insists.
            diary.note("stopping")
            stopping.add(asyncio.get_running_loop().create_task(workers.stop("0s" if stopping else None)))

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        diary.note("ready")
        await workers.wait()
    diary.note("bye")
