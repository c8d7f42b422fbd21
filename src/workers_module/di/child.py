"""The child process of a sandbox: builds the application, runs one job at a time, and ends with its parent.

It is started as ``python -m workers_module.di.child TARGET LINE KILL_AFTER_MS``; ``LINE`` is the number of its end of a
socket pair, over which it takes orders and answers (`worker.messages`). Standard output and error are the user's.
"""

import asyncio
import io
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from itertools import count
from types import FrameType
from typing import assert_never

from workers_module.di.target import open_handlers
from workers_module.errors import JobCancelledError, StoreError, UnrecoverableError
from workers_module.job.failure import cut, reason_of, trace_of
from workers_module.job.outcome import RetryLaterError
from workers_module.job.record import JobRecord
from workers_module.store.values import Child, EditResult, Page
from workers_module.worker.capture import capturing
from workers_module.worker.context import MAX_LINE_BYTES, JobLogger
from workers_module.worker.inside import Handlers, Inside
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
    length_of,
    to_child,
)


class Parent:
    """The line to the worker. A thread reads it, so that no handler keeps the child from ending in time."""

    def __init__(self, line: socket.socket, kill_after_ms: int) -> None:
        """Take a line.

        Args:
            line: A stream socket; messages go both ways.
            kill_after_ms: How long this process lives after the line was closed.
        """
        self._line = line
        self._kill_after = kill_after_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._sending = threading.Lock()
        self._handlers: Handlers | None = None
        self._inside: Inside | None = None
        self._orders: asyncio.Queue[Inside | None] = asyncio.Queue()
        self._asks = count(1)
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        threading.Thread(target=self._listen, name="workers-parent", daemon=True).start()

    def send(self, message: FromChild) -> None:
        """Send a message; from any thread. One that nobody can hear any more is dropped."""
        with self._sending, suppress(OSError):
            self._line.sendall(frame(message))

    async def work(self, handlers: Handlers) -> None:
        """Take orders until the line is closed."""
        self._handlers = handlers
        self.send(Ready())
        while (inside := await self._orders.get()) is not None:
            number = inside.order.number
            with capturing() if inside.order.capture_logging else nullcontext():
                try:
                    self.send(Done(number=number, result=await inside.run()))
                except GeneratorExit:
                    raise
                except BaseException as error:
                    self.send(_fault(number, error, inside))

    async def ask(self, number: int, call: SetProgress | ReadChildren | ReadJobs) -> Answer:
        """Have something done by the worker.

        Raises:
            StoreError: It could not.
        """
        ask = next(self._asks)
        answered: asyncio.Future[Answer] = self._loop.create_future()
        self._answers[ask] = answered
        try:
            self.send(Ask(number=number, ask=ask, call=call))
            answer = await answered
        finally:
            del self._answers[ask]
        if answer.error is not None:
            raise StoreError(answer.error)
        return answer

    def _listen(self) -> None:
        try:
            with suppress(OSError, EOFError):
                while True:
                    self._hear(to_child.validate_json(self._read(length_of(self._read(HEAD)))))
        finally:
            self._end()

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._line.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _hear(self, message: ToChild) -> None:
        inside = self._inside
        match message:
            case Order():
                if self._handlers is None:
                    raise ValueError("an order before the child was ready")
                outside = _Outside(self, message.number)
                self._inside = inside = Inside(message, self._handlers, outside, _FarLog(self, message.number))
                self.send(Started(number=message.number))
                self._there(self._orders.put_nowait, inside)
            case Cancel():
                if inside is not None and inside.order.number == message.number:
                    # At once, for a handler that looks at it while it blocks the loop.
                    inside.context.cancelled = True
                    self._there(inside.cancel)
            case Doubt():
                if inside is not None and inside.order.number == message.number:
                    inside.context.lease_in_doubt = message.value
            case Answer():
                self._there(self._take, message)
            case _ as never:
                assert_never(never)

    def _take(self, answer: Answer) -> None:
        asked = self._answers.get(answer.ask)
        if asked is not None and not asked.done():
            asked.set_result(answer)

    def _end(self) -> None:
        """Close what is open, as far as the time allows."""
        inside = self._inside
        if inside is not None:
            inside.context.cancelled = True
            self._there(inside.cancel)
        self._there(self._orders.put_nowait, None)
        time.sleep(self._kill_after)
        _kill_own_group()

    def _there(self, call: Callable[..., object], *args: object) -> None:
        # A loop that is closed has nothing left to be told.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)


class _Outside:
    """What one run asks of the worker."""

    def __init__(self, parent: Parent, number: int) -> None:
        self._parent = parent
        self._number = number

    async def progress(self, value: bytes) -> EditResult:
        answer = await self._parent.ask(self._number, SetProgress(value=value))
        return answer.edited or EditResult.OK

    async def children(self, start: int, limit: int) -> Page[Child]:
        answer = await self._parent.ask(self._number, ReadChildren(start=start, limit=limit))
        return Page(list(answer.children or ()), answer.total)

    async def jobs(self, queue: str, ids: Sequence[str]) -> list[JobRecord | None]:
        answer = await self._parent.ask(self._number, ReadJobs(queue=queue, ids=tuple(ids)))
        return list(answer.jobs or ())


class _FarLog(JobLogger):
    """Sends each line at once: a child that is killed has lost none."""

    __slots__ = ("_number", "_parent")

    def __init__(self, parent: Parent, number: int) -> None:
        super().__init__()
        self._parent = parent
        self._number = number

    def add_line(self, line: str) -> None:
        self._parent.send(Line(number=self._number, text=cut(line, MAX_LINE_BYTES)))


def _fault(number: int, error: BaseException, inside: Inside | None = None) -> Fault:
    fatal = inside is not None and error is inside.context.fatal
    return Fault(
        number=number,
        error_type=type(error).__name__,
        message=reason_of(error),
        trace=trace_of(error),
        unrecoverable=fatal or isinstance(error, UnrecoverableError | JobCancelledError),
        retry_ms=error.delay_ms if isinstance(error, RetryLaterError) else None,
        timed_out=inside is not None and inside.timed_out,
    )


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike `signal.SIG_IGN` it is not handed on to the processes that a handler starts."""


def _kill_own_group() -> None:
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


async def _serve(line: socket.socket, target: str, kill_after_ms: int) -> int:
    parent = Parent(line, kill_after_ms)
    is_built = False
    try:
        async with open_handlers(target) as handlers:
            is_built = True
            await parent.work(handlers)
    except Exception as error:
        if is_built:
            raise
        parent.send(_fault(0, error))
        return 1
    return 0


def main() -> None:
    """Serve the parent until it closes the line."""
    target, line, kill_after_ms = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):
        # Whoever stops a service may signal all of its processes; when this one ends is for the parent to say.
        signal.signal(number, _ignore)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A child that is killed would take what it printed with it.
        sys.stdout.reconfigure(line_buffering=True)
    with socket.socket(fileno=int(line)) as parent:
        parent.set_inheritable(False)
        status = asyncio.run(_serve(parent, target, int(kill_after_ms)))
    sys.exit(status)


if __name__ == "__main__":
    main()
