"""One worker process, from the first line to the last: what ``start`` runs, here or in each of its children."""

import gc
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import anyio
from dishka import AsyncContainer

from workers_module.cli import banner, logs
from workers_module.cli.failures import ExitCode
from workers_module.cli.options import options
from workers_module.cli.output import messages, say, span
from workers_module.cli.session import Session, built, session_of, settings_of
from workers_module.cli.stopping import Stop
from workers_module.cli.supervisor import PROCESS
from workers_module.client.queue import JobCounts
from workers_module.clock import span_ms
from workers_module.errors import ConfigurationError
from workers_module.job.events import QueueEvent, WorkerEvent, WorkerEventName
from workers_module.job.state import JobState
from workers_module.module import run_workers
from workers_module.settings import WorkersSettings
from workers_module.worker.handler import Listener
from workers_module.worker.health import Health, serving
from workers_module.worker.runtime import Workers

LOOK_S: Final = 0.5
"""How often ``--drain`` looks whether something is left to do."""
_RUNS: Final[tuple[WorkerEventName, ...]] = ("completed", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How one worker process was asked to run.

    Attributes:
        only: Worker names in place of the setting.
        server: The web application to serve beside, or None.
        host: Where that listens.
        port: On which port.
        drain: Stop when nothing is left to do.
        max_jobs: Stop after so many runs.
        uvloop: Run on uvloop.
    """

    only: tuple[str, ...] | None = None
    server: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    drain: bool = False
    max_jobs: int | None = None
    uvloop: bool = False

    @property
    def arguments(self) -> list[str]:
        """The options that say the same to another process; settings go by the environment."""
        if self.server is not None:
            given = ["--all", self.server, "--host", self.host, "--port", str(self.port)]
        else:
            given = ["--worker="]
        if self.only is not None:
            given += ["--only", ",".join(self.only)]
        if self.drain:
            given.append("--drain")
        if self.max_jobs is not None:
            given += ["--max-jobs", str(self.max_jobs)]
        if self.uvloop:
            given += ["--loop", "uvloop"]
        return given


async def work(wish: Wish) -> int:
    """Run the workers of the application until a signal, an order, or the end of the work; returns the exit code."""
    begun = time.monotonic()
    level = "debug" if options().verbose else "error" if options().quiet else None
    stop: Stop | None = None

    with anyio.CancelScope() as whole:
        async with built() as (container, _):
            settings = await settings_of(container)
            # People get the banner; what is said while things start is in it.
            logs.configure(settings.log, level=level or ("warning" if logs.for_people(settings.log) else None))
            stop = Stop(settings, before=whole.cancel)
            with stop.obeying():
                await _work(container, settings, wish, stop, level=level, begun=begun)
    if stop is not None:
        stop.tell_end()
    return ExitCode.DONE


async def _work(
    container: AsyncContainer, settings: WorkersSettings, wish: Wish, stop: Stop, *, level: str | None, begun: float
) -> None:
    people = logs.for_people(settings.log) and not options().quiet
    workers = await container.get(Workers)
    health = Health(at_work=lambda: bool(workers.running) or stop.asked, claiming=lambda: workers.claiming)
    async with anyio.create_task_group() as group:
        group.start_soon(stop.follow_supervisor)
        group.start_soon(health.turn)
        with _probes(health, settings) as port:
            async with run_workers(container, only=wish.only, force=True, listeners=_counting(wish, stop)):
                session = await session_of(container, settings, has_app=True)
                health.ask_store = session.inspector.queues
                if not workers.running and not stop.asked:
                    raise ConfigurationError(
                        "nothing runs here: the application has no handlers, or WORKERS_MODE is foreground_blocking; "
                        "see: workers check"
                    )
                gc.collect()
                gc.freeze()
                health.started = True
                if people:
                    await _tell(session, workers, port, begun)
                    logs.configure(settings.log, level=level)
                if wish.drain:
                    group.start_soon(_drain, session, workers, stop)
                await workers.wait()
        group.cancel_scope.cancel()


@contextmanager
def _probes(health: Health, settings: WorkersSettings) -> Generator[int | None]:
    if settings.health.port is None:
        yield None
        return
    with serving(health, settings.health.host, settings.health.port) as port:
        yield port


def _counting(wish: Wish, stop: Stop) -> list[Listener]:
    """Return what stops the process after so many runs; those that run by then still end."""
    if wish.max_jobs is None:
        return []
    left = wish.max_jobs

    async def count(_: WorkerEvent | QueueEvent) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            stop.ask()

    return [Listener(label="--max-jobs", call=count, worker_event=name) for name in _RUNS]


async def _tell(session: Session, workers: Workers, port: int | None, begun: float) -> None:
    """Tell people what runs here."""
    settings, out = session.settings, messages()
    took = span((time.monotonic() - begun) * 1_000)
    if os.environ.get(PROCESS, "0") != "0":
        # The first of several processes has told what all of them run.
        say(f"pid {os.getpid()} is ready too, in {took}.")
        return
    rows = banner.worker_rows(session.registry, settings, workers.running)
    crons = await banner.crons(session.registry, session.scheduler, workers.running, await session.now())
    lines = [
        banner.head(settings, session.info),
        *banner.body(rows, crons if settings.cron else (), settings),
        f"  {banner.kept(settings)}",
    ]
    if settings.tags:
        lines.append(f"  only jobs with one of these tags: {', '.join(settings.tags)}")
    if port is not None:
        lines.append(f"  probes on http://{settings.health.host}:{port}/live, /ready and /startup")
    grace = span(span_ms(settings.shutdown_grace))
    lines.append(f"Ready in {took}. Ctrl-C stops after running jobs end ({grace}); twice, at once.")
    for line in banner.wrapped(lines, out.width) if out.is_terminal else lines:
        say(line)


async def _drain(session: Session, workers: Workers, stop: Stop) -> None:
    """Stop when nothing is ready, running or waiting for another attempt in the queues of this process."""
    queues = {
        one.kind.queue for one in session.registry.handlers if {one.spec.worker, one.kind.queue} & {*workers.running}
    }
    # Other processes may work on these queues, and nothing tells of the end of all that is ready.
    while any([await _has_work(session, queue) for queue in queues]):  # noqa: ASYNC110
        await anyio.sleep(LOOK_S)
    stop.ask()


async def _has_work(session: Session, queue: str) -> bool:
    counts = await session.inspector.counts(queue)
    # A job that moves while the pages are read may be on none of them.
    return (
        bool(counts.active)
        or await _has_ready(session, queue, counts)
        or counts != await session.inspector.counts(queue)
    )


async def _has_ready(session: Session, queue: str, counts: JobCounts) -> bool:
    wanted = {*session.settings.tags}
    states = [JobState.WAITING, JobState.PRIORITIZED] if not counts.paused else []
    if counts.delayed:
        states.append(JobState.DELAYED)
    cursor: str | None = None
    while states:
        page = await session.inspector.page(queue, states, cursor, 500)
        for job in page.items:
            is_ours = bool(wanted & {*job.tags}) if wanted else not job.tags
            # What is delayed for its first attempt is for another day; what failed once is work begun.
            if is_ours and (job.state is not JobState.DELAYED or job.record.attempts_made):
                return True
        cursor = page.cursor
        if cursor is None:
            break
    return False
