"""One worker process, from the first line to the last: what ``start`` runs, here or in each of its children."""

import gc
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import anyio
import anyio.abc

from workers_module.cli import banner, logs
from workers_module.cli.ending import LEAVE_S, end_within, relax
from workers_module.cli.failures import ExitCode
from workers_module.cli.options import options
from workers_module.cli.output import messages, say
from workers_module.cli.session import Session, built, session_of, settings_of
from workers_module.cli.supervisor import SUPERVISOR
from workers_module.clock import span_ms
from workers_module.errors import ConfigurationError
from workers_module.job.events import QueueEvent, WorkerEvent, WorkerEventName
from workers_module.job.state import JobState
from workers_module.module import reach_store, run_workers
from workers_module.settings import WorkersSettings, duration_text
from workers_module.worker.handler import Listener
from workers_module.worker.health import Health, serving
from workers_module.worker.runtime import Workers

_log = logging.getLogger(__name__)

LAST_S: Final = 1.0
"""What a stopping process has, over the grace and the time to kill, before it is ended hard (reliability §5.3)."""
_STUCK: Final = "a handler does not end; the process is ended by force"
_LOOK_S: Final = 0.5
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

    async with built() as (container, _), anyio.create_task_group() as group:
        settings = await settings_of(container)
        # People get the banner; what is said while things start is in it.
        logs.configure(settings.log, level=level or ("warning" if logs.for_people(settings.log) else None))
        workers = await container.get(Workers)
        stop = _Stop(workers, settings)
        await group.start(stop.obey)
        group.start_soon(stop.follow_supervisor)
        health = Health(at_work=lambda: bool(workers.running) or stop.asked, claiming=lambda: workers.claiming)
        group.start_soon(health.turn)

        async def started(session: Session) -> None:
            gc.collect()
            gc.freeze()
            health.started = True
            if logs.for_people(settings.log) and not options().quiet:
                await _tell(session, workers, port, begun)
                logs.configure(settings.log, level=level)
            if wish.drain:
                group.start_soon(_drain, session, workers, stop)

        with _probes(health, settings) as port:
            with stop.reaching:
                await reach_store(container)
            if not stop.asked:
                session = await session_of(container, settings, has_app=True)
                health.ask_store = session.inspector.queues
                await _run(session, workers, wish, stop, started)
        _log.info("stopped")
        group.cancel_scope.cancel()
    # Tasks that ignore their cancellation would keep the event loop for ever.
    relax()
    end_within(LEAVE_S, ExitCode.DONE)
    return ExitCode.DONE


async def _run(
    session: Session, workers: Workers, wish: Wish, stop: "_Stop", started: Callable[[Session], Awaitable[None]]
) -> None:
    async with run_workers(session.container, only=wish.only, force=True, listeners=_counting(wish, stop)):
        if not workers.running and not stop.asked:
            raise ConfigurationError(
                "nothing runs here: the application has no handlers, or WORKERS_MODE is foreground_blocking; "
                "see: workers check"
            )
        await started(session)
        await workers.wait()


class _Stop:
    """Stops the workers of this process once, or at once; and sees to it that the process ends.

    Attributes:
        asked: Whether it was told to.
        reaching: What waits for the store at the start, and not after that.
    """

    def __init__(self, workers: Workers, settings: WorkersSettings) -> None:
        self.asked = False
        self.reaching = anyio.CancelScope()
        self._workers = workers
        self._grace = settings.shutdown_grace
        self._kill_s = span_ms(settings.kill_after) / 1_000 + LAST_S
        self._wanted = anyio.Event()

    def ask(self) -> None:
        """Stop with the usual grace."""
        self.asked = True
        self.reaching.cancel()
        self._wanted.set()

    async def obey(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Stop at the first signal, or when asked; at once at the second signal. Ends when the workers have."""
        async with anyio.create_task_group() as group:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                task_status.started()
                group.start_soon(self._begin)
                async for _ in signals:
                    if not self.asked:
                        self.ask()
                        continue
                    _log.info("stopping at once: running jobs are handed back")
                    end_within(self._kill_s, ExitCode.FAILED, why=_STUCK)
                    group.start_soon(self._workers.stop, "0s")

    async def _begin(self) -> None:
        await self._wanted.wait()
        end_within(span_ms(self._grace) / 1_000 + self._kill_s, ExitCode.FAILED, why=_STUCK)
        if self._workers.busy:
            left = duration_text(self._grace)
            _log.info("stopping: %d running, %s left; once more stops at once", self._workers.busy, left)
        else:
            _log.info("stopping")
        await self._workers.stop()

    async def follow_supervisor(self) -> None:
        """Stop when the supervisor that started this process is gone."""
        supervisor = os.environ.get(SUPERVISOR)
        while supervisor is not None:
            await anyio.sleep(_LOOK_S)
            if str(os.getppid()) != supervisor:
                _log.warning("the supervisor is gone; stopping")
                self.ask()
                return


@contextmanager
def _probes(health: Health, settings: WorkersSettings) -> Generator[int | None]:
    if settings.health.port is None:
        yield None
        return
    with serving(health, settings.health.host, settings.health.port) as port:
        yield port


def _counting(wish: Wish, stop: _Stop) -> list[Listener]:
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
    rows = banner.worker_rows(session.registry, settings, workers.running)
    now = await session.now()
    lines = [
        banner.head(settings, session.info),
        *banner.worker_lines(rows, settings, out.width),
        *await banner.cron_lines(session.registry, session.scheduler, workers.running, now),
        f"  {banner.kept(settings)}",
    ]
    if settings.tags:
        lines.append(f"  only jobs with one of these tags: {', '.join(settings.tags)}")
    if port is not None:
        lines.append(f"  probes on http://{settings.health.host}:{port}/live, /ready and /startup")
    grace = duration_text(settings.shutdown_grace)
    lines.append(
        f"Ready in {(time.monotonic() - begun) * 1_000:.0f} ms. "
        f"Ctrl-C stops after running jobs end ({grace}); twice stops at once."
    )
    for line in lines:
        say(line)


async def _drain(session: Session, workers: Workers, stop: _Stop) -> None:
    """Stop when nothing is ready, running or waiting for another attempt in the queues of this process."""
    queues = {
        one.kind.queue for one in session.registry.handlers if {one.spec.worker, one.kind.queue} & {*workers.running}
    }
    # Other processes may work on these queues, and nothing tells of the end of all that is ready.
    while any([await _has_work(session, queue) for queue in queues]):  # noqa: ASYNC110
        await anyio.sleep(_LOOK_S)
    stop.ask()


async def _has_work(session: Session, queue: str) -> bool:
    counts = await session.inspector.counts(queue)
    if counts.active:
        return True
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


# --- beside a web server ---------------------------------------------------------------------------------------------


async def serve(wish: Wish) -> int:
    """Serve a web application, whose lifespan runs the workers; returns the exit code."""
    import uvicorn  # noqa: PLC0415 - not needed for workers alone

    settings = WorkersSettings()
    logs.configure(settings.log, level="debug" if options().verbose else None)
    server = uvicorn.Server(
        uvicorn.Config(
            wish.server or "",
            host=wish.host,
            port=wish.port,
            factory=_is_factory(wish.server or ""),
            log_config=None,
            timeout_graceful_shutdown=max(1, span_ms(settings.shutdown_grace) // 1_000),
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops at them and then sends them again, for whoever listened before.
        signal.signal(number, partial(_ignore, number))
    say(f"{wish.server} on http://{wish.host}:{wish.port}, with its workers")
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way to say that it could not start; the reason is in the log.
        return ExitCode.FAILED
    code = ExitCode.DONE if server.started else ExitCode.FAILED
    end_within(LEAVE_S, code)
    return code


def _ignore(*_: object) -> None: ...


def _is_factory(target: str) -> bool:
    from uvicorn.importer import ImportFromStringError, import_from_string  # noqa: PLC0415 - as above

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = import_from_string(target)
    except ImportFromStringError as error:
        raise ConfigurationError(f"{target!r}: {error}") from None
    except Exception as error:
        raise ConfigurationError(f"{target!r} cannot be imported: {type(error).__name__}: {error}") from error
    return inspect.isfunction(value) and not inspect.signature(value).parameters
