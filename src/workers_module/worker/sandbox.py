"""Runs handlers where they can do no harm to the loop that feeds them: in threads, or in children.

A runner has places; one job at a time runs in each. A job that is stopped has ``kill_after`` to close what it opened;
then its place is given up, and the next job gets a new one. The class of an error that was raised in a child is never
rebuilt by name: it comes as a `RemoteError` with the child's text and trace.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar, TypeVar, assert_never

from workers_module.errors import (
    ConfigurationError,
    JobCrashedError,
    JobTimeoutError,
    RemoteError,
    UnrecoverableRemoteError,
    WorkersError,
)
from workers_module.job.encoding import MAX_BYTES
from workers_module.job.outcome import RetryLaterError
from workers_module.job.record import JobRecord
from workers_module.job.sandbox import Sandbox
from workers_module.store.base import Store
from workers_module.store.values import Child, EditResult, Page
from workers_module.worker.handler import HandlerSpec
from workers_module.worker.inside import Handlers, Inside, OpenHandlers
from workers_module.worker.messages import (
    HEAD,
    Answer,
    Ask,
    Cancel,
    Done,
    Doubt,
    Fault,
    FromChild,
    Line,
    Order,
    ReadChildren,
    ReadJobs,
    Ready,
    SetProgress,
    Started,
    ToChild,
    frame,
    from_child,
    length_of,
)
from workers_module.worker.place import LAST_S, Errands, Gone, Place, Runner, settle

R = TypeVar("R")

_log = logging.getLogger(__name__)


def needed_sandboxes(handlers: Iterable[HandlerSpec], default: Sandbox, *, target: str | None) -> set[Sandbox]:
    """Return the sandboxes that handlers run in; `Sandbox.NONE` is none.

    Args:
        handlers: The handlers this process is to run.
        default: Where those run that say nothing, the setting.
        target: What a sandbox builds the application from: ``module:attribute``.

    Raises:
        ConfigurationError: A handler asks for a sandbox and there is no target: a line for each handler.
    """
    wanted = {spec.label: spec.sandbox or default for spec in handlers}
    sandboxed = {label: sandbox for label, sandbox in wanted.items() if sandbox is not Sandbox.NONE}
    if sandboxed and not target:
        raise ConfigurationError(
            "\n".join(
                f"{label} runs in a sandbox ({sandbox.value}), which builds the application anew: set WORKERS_APP to "
                "what makes its container, e.g. app.main:make_container, or let it run with sandbox=Sandbox.NONE"
                for label, sandbox in sandboxed.items()
            )
        )
    return set(sandboxed.values())


# --- threads --------------------------------------------------------------------------------------------------------


class ThreadRunner(Runner):
    """Runs jobs in threads, each with an event loop and a container of its own.

    Nothing can stop a thread: one that does not answer within ``kill_after`` is left to itself, and the next job gets a
    new one. What it does from then on counts for nothing; it ends when its handler does.
    """

    def __init__(
        self,
        serve: OpenHandlers,
        *,
        store: Store,
        size: int | None = None,
        kill_after_ms: int = 2_000,
        max_bytes: int = MAX_BYTES,
        capture_logging: bool = False,
    ) -> None:
        """Prepare; no thread is started before the first job.

        Args:
            serve: Builds the application; called once in each thread.
            store: Where progress goes; used in the worker's loop only.
            size: How many jobs at once, each in a thread; None for as many as there are processors.
            kill_after_ms: How long a stopped job may take to end; less than the executor's, which gives up the slot.
            max_bytes: The largest result and progress.
            capture_logging: Whether a handler's log records go to its job's log.
        """
        super().__init__(store, size, kill_after_ms, max_bytes, capture_logging=capture_logging)
        self._serve = serve

    def _make(self) -> Place:
        return _Thread(self._serve)


class _Hop:
    """The errands of a run in another thread: each is done in the worker's loop."""

    def __init__(self, errands: Errands, home: asyncio.AbstractEventLoop) -> None:
        self._errands = errands
        self._home = home

    async def progress(self, value: bytes) -> EditResult:
        return await self._at_home(self._errands.progress(value))

    async def children(self, start: int, limit: int) -> Page[Child]:
        return await self._at_home(self._errands.children(start, limit))

    async def jobs(self, queue: str, ids: Sequence[str]) -> list[JobRecord | None]:
        return await self._at_home(self._errands.jobs(queue, ids))

    async def _at_home(self, errand: Coroutine[Any, Any, R]) -> R:
        try:
            done = asyncio.run_coroutine_threadsafe(errand, self._home)
        except RuntimeError:
            errand.close()
            raise WorkersError("the worker that started this job has ended") from None
        return await asyncio.wrap_future(done)


class _Thread(Place):
    survives_cancel: ClassVar[bool] = True

    def __init__(self, serve: OpenHandlers) -> None:
        super().__init__()
        self._home = asyncio.get_running_loop()
        self._serve = serve
        self._ready: asyncio.Future[None] = self._home.create_future()
        self._ended: asyncio.Future[bytes] | None = None
        self._inside: Inside | None = None
        self._handlers: Handlers | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: asyncio.Queue[Inside | None] = asyncio.Queue()
        self._thread = threading.Thread(target=self._main, name="workers-sandbox", daemon=True)

    async def open(self) -> None:
        self._thread.start()
        await self._ready

    def start(self, order: Order, errands: Errands) -> "asyncio.Future[bytes]":
        ended: asyncio.Future[bytes] = self._home.create_future()
        if self._handlers is None or not self.alive:
            ended.set_exception(Gone("its thread has ended"))
            return ended
        self._ended = ended
        self._context = errands.context
        self._inside = Inside(order, self._handlers, _Hop(errands, self._home), errands.context.log)
        self._there(self._jobs.put_nowait, self._inside)
        return ended

    def cancel(self) -> None:
        if self._inside is not None:
            # A loop in a blocking handler may look at it.
            self._inside.context.cancelled = True
            self._there(self._inside.cancel)

    def doubt(self, value: bool) -> None:
        if self._inside is not None:
            self._inside.context.lease_in_doubt = value

    def leave(self) -> None:
        self.cancel()
        self._there(self._jobs.put_nowait, None)

    def kill(self) -> None:
        if not self.alive:
            return
        self.alive = False
        if self._inside is not None:
            record = self._inside.order.record
            _log.error(
                "job %s (%s.%s): its thread does not answer and is left to itself; what it does now counts for nothing",
                *(record.id, record.queue, record.name),
            )
        self.leave()
        settle(self.gone, None)

    def _there(self, call: Callable[..., object], *args: object) -> None:
        # A loop that is closed has nothing left to be told.
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *args)

    def _here(self, call: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):
            self._home.call_soon_threadsafe(call, *args)

    # in the thread

    def _main(self) -> None:
        fault: BaseException | None = None
        try:
            asyncio.run(self._live())
        except BaseException as error:
            fault = error
        self._here(self._over, fault)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self.alive:
            return
        async with self._serve() as self._handlers:
            self._here(settle, self._ready, None)
            while (inside := await self._jobs.get()) is not None:
                try:
                    raw = await inside.run()
                except GeneratorExit:
                    raise
                except BaseException as error:
                    self._here(self._finish, inside, None, error)
                else:
                    self._here(self._finish, inside, raw, None)

    # in the worker's loop

    def _finish(self, inside: Inside, raw: bytes | None, error: BaseException | None) -> None:
        if inside is not self._inside or self._ended is None:
            return
        ended, self._ended, self._inside = self._ended, None, None
        if error is not None and error is inside.context.fatal:
            self._context.fatal = inside.context.fatal
        if not ended.done():
            settle(ended, b"" if raw is None else raw, error)

    def _over(self, fault: BaseException | None) -> None:
        self.alive = False
        if fault is not None and not isinstance(fault, Exception):
            # An exit that was meant for the thread would end the worker's loop.
            fault = WorkersError(f"its thread ended with {fault!r}")
        if not self._ready.done():
            self._ready.set_exception(fault or Gone("its thread ended before it was ready"))
        elif fault is not None:
            _log.error("a thread of the sandbox ended", exc_info=fault)
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(Gone("its thread has ended"))
        settle(self.gone, None)


# --- processes ------------------------------------------------------------------------------------------------------


class ProcessRunner(Runner):
    """Runs jobs in child processes, which are killed and replaced when a job in them is stopped.

    A child has a process group of its own; what its handlers print goes to this process's standard error. It ends when
    this process does. Over its line go JSON messages, and nothing in them becomes code.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        store: Store,
        size: int | None = None,
        kill_after_ms: int = 2_000,
        max_bytes: int = MAX_BYTES,
        capture_logging: bool = False,
    ) -> None:
        """Prepare; no child is started before the first job.

        Args:
            command: Starts a child; the number of its end of the line, and ``kill_after_ms``, are added to it.
            store: Where progress goes.
            size: How many jobs at once, each in a child; None for as many as there are processors.
            kill_after_ms: How long a stopped job may take to close what it opened before its child is killed; less than
                the executor's, which gives up the slot.
            max_bytes: The largest result and progress.
            capture_logging: Whether a handler's log records go to its job's log.

        Raises:
            ConfigurationError: This system has no process groups.
        """
        if sys.platform == "win32":
            raise ConfigurationError("sandbox 'process' needs process groups, which Windows lacks; use 'thread'")
        super().__init__(store, size, kill_after_ms, max_bytes, capture_logging=capture_logging)
        self._command = (*command,)
        self._kill_after_ms = kill_after_ms

    def _make(self) -> Place:
        return _Child(self._command, self._kill_after_ms)


class _Child(Place):
    survives_cancel: ClassVar[bool] = False

    def __init__(self, command: Sequence[str], kill_after_ms: int) -> None:
        super().__init__()
        self._command = command
        self._kill_after_ms = kill_after_ms
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[bytes] | None = None
        self._errands: Errands | None = None
        self._order: Order | None = None
        self._has_started = False
        self._has_left = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._life: asyncio.Task[None] | None = None

    async def open(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                line = theirs.fileno()
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    str(line),
                    str(self._kill_after_ms),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=2,
                    pass_fds=(line,),
                    start_new_session=True,
                )
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            self._ready.cancel()
            settle(self.gone, None)
            raise
        self._life = asyncio.create_task(self._live(self._process, reader))
        await self._ready

    def start(self, order: Order, errands: Errands) -> "asyncio.Future[bytes]":
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        if not self.alive:
            ended.set_exception(Gone("its process has ended"))
            return ended
        raw = frame(order)
        self._order, self._errands, self._ended, self._has_started = order, errands, ended, False
        self._write(raw)
        return ended

    def cancel(self) -> None:
        if self._order is not None:
            self._send(Cancel(number=self._order.number))

    def doubt(self, value: bool) -> None:
        if self._order is not None:
            self._send(Doubt(number=self._order.number, value=value))

    def leave(self) -> None:
        # The child reads the end of the line, stops what it runs, and can still answer.
        if self._writer is not None and not self._writer.is_closing() and not self._has_left:
            self._has_left = True
            self._writer.write_eof()

    def kill(self) -> None:
        self.alive = False
        process = self._process
        if process is not None and process.returncode is None:
            # With the processes that the handler started.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def _send(self, message: ToChild) -> None:
        self._write(frame(message))

    def _write(self, raw: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing() and not self._has_left:
            self._writer.write(raw)

    async def _live(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        reading = asyncio.create_task(self._read(reader))
        exited = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({reading, exited}, return_when=asyncio.FIRST_COMPLETED)
            self.alive = False
            # A line that is closed means that the child ends by itself, or is of no more use.
            await asyncio.wait({exited}, timeout=LAST_S)
            self.kill()
            await exited
            # What it sent before it died.
            await asyncio.wait({reading}, timeout=LAST_S)
        finally:
            self.kill()
            reading.cancel()
            exited.cancel()
            self._end(process.returncode)

    def _end(self, status: int | None) -> None:
        self.alive = False
        text = f"its process ended: {_status_text(status)}"
        settle(self._ready, None, Gone(text))
        order, self._order = self._order, None
        if self._ended is not None and order is not None:
            record = order.record
            attempt = f"attempt {record.attempts_made + 1} of {max(1, record.max_attempts)}"
            crash = JobCrashedError(f"{record.queue}.{record.name} ({attempt}): {text}", job_id=record.id)
            settle(self._ended, b"", crash if self._has_started else Gone(text))
        if self._writer is not None:
            self._writer.close()
        settle(self.gone, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                length = length_of(await reader.readexactly(HEAD))
                await self._hear(from_child.validate_json(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, OSError):
            return
        except ValueError as error:
            _log.error("a child of the sandbox sent what is no message, and is given up: %s", error)

    async def _hear(self, message: FromChild) -> None:
        match message:
            case Ready():
                settle(self._ready, None)
            case Fault(number=0):
                settle(self._ready, None, _remote(message, "the sandbox cannot build the application: "))
            case Started() | Line() | Ask() | Done() | Fault():
                if self._order is None or self._errands is None or message.number != self._order.number:
                    if isinstance(message, Ask):
                        self._send(Answer(ask=message.ask, error="the job has ended"))
                    return
                await self._hear_of_run(message, self._order, self._errands)
            case _ as never:
                assert_never(never)

    async def _hear_of_run(self, message: Started | Line | Ask | Done | Fault, order: Order, errands: Errands) -> None:
        match message:
            case Started():
                self._has_started = True
            case Line():
                errands.context.log.add_line(message.text)
            case Ask():
                self._send(await _answer(message, errands))
            case Done():
                self._finish(message.result, None)
            case Fault():
                if message.timed_out:
                    # A handler that was stopped may have left something behind.
                    self.kill()
                self._finish(b"", _error_of(message, order.record))
            case _ as never:
                assert_never(never)

    def _finish(self, raw: bytes, error: WorkersError | None) -> None:
        ended, self._ended, self._order, self._errands = self._ended, None, None, None
        if ended is not None:
            settle(ended, raw, error)


async def _answer(ask: Ask, errands: Errands) -> Answer:
    try:
        match ask.call:
            case SetProgress(value=value):
                return Answer(ask=ask.ask, edited=await errands.progress(value))
            case ReadChildren(start=start, limit=limit):
                page = await errands.children(start, limit)
                return Answer(ask=ask.ask, children=tuple(page.items), total=page.total)
            case ReadJobs(queue=queue, ids=ids):
                return Answer(ask=ask.ask, jobs=tuple(await errands.jobs(queue, ids)))
            case _ as never:
                assert_never(never)
    except Exception as error:
        return Answer(ask=ask.ask, error=f"{type(error).__name__}: {error}")


def _error_of(fault: Fault, record: JobRecord) -> WorkersError:
    if fault.retry_ms is not None:
        return RetryLaterError(timedelta(milliseconds=fault.retry_ms))
    if fault.timed_out:
        return JobTimeoutError(fault.message, job_id=record.id)
    return _remote(fault)


def _remote(fault: Fault, before: str = "") -> RemoteError:
    kind = UnrecoverableRemoteError if fault.unrecoverable else RemoteError
    return kind(f"{before}{fault.message}", error_type=fault.error_type, trace=fault.trace)


def _status_text(status: int | None) -> str:
    if status is None:
        return "nobody knows how"
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", as the kernel does where memory runs out" if -status == signal.SIGKILL else ""
    return f"killed by {name}{hint}"
