"""The threads on which connections live: one writes, one reads.

The writer takes everything that is queued, runs it in one transaction with a savepoint per call, commits once, and
hands all results back in one go: many callers share one sync of the disk.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from workers_module.clock import Clock
from workers_module.errors import StoreUnavailableError, WorkersError
from workers_module.store.sqlite.checkpoints import Checkpointer
from workers_module.store.sqlite.connect import Connection
from workers_module.store.sqlite.faults import translate
from workers_module.store.sqlite.gate import Gate
from workers_module.store.sqlite.work import Ledger, Plan, Tagsets, Work

T = TypeVar("T")

MOST_CALLS: Final = 256
"""Calls that share a transaction at most."""

MakePlan = Callable[[Work], Plan[T]]


class Call(NamedTuple):
    """A call on its way to a thread. Without a plan it only asks whether others have written."""

    future: "asyncio.Future[Any]"
    plan: MakePlan[Any] | None
    now: int | None


class Served(NamedTuple):
    """What a thread hands back.

    Attributes:
        results: Each call, whether it went well, and its result or error.
        hints: How many jobs became ready, by queue; the queues with new events are among them.
        foreign: Whether others have written.
    """

    results: list[tuple[Call, bool, Any]]
    hints: dict[str, int]
    foreign: bool


class Lane:
    """A thread with a connection.

    Attributes:
        transactions: How many transactions it has committed.
    """

    def __init__(
        self,
        name: str,
        *,
        path: Path,
        clock: Clock,
        mode: Literal["write", "read"],
        gate: Gate | None,
        connection: Connection,
        checkpointer: Checkpointer | None = None,
        deliver: Callable[[Served], None],
    ) -> None:
        self.transactions = 0
        self._path = path
        self._clock = clock
        self._begin: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE" if mode == "write" else "DEFERRED"
        self._writes = mode == "write"
        self._gate = gate
        self._connection = connection
        self._checkpointer = checkpointer
        self._deliver = deliver
        self._tagsets = Tagsets()
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._version = connection.version()
        self._foreign = False
        self._tidy = False
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"workers-sqlite-{name}", daemon=True)
        self._thread.start()

    async def call(self, plan: MakePlan[T], now: int | None = None) -> T:
        """Run a plan in a transaction, together with others that come at the same time.

        Cancelled before the thread came to it, the plan does not run; cancelled later, it takes effect all the same.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put(Call(future, plan, now))
        return await future

    def peek(self) -> "asyncio.Future[Any]":
        """Let the thread see whether others have written; it tells so by ``deliver``."""
        future = self._loop.create_future()
        self._calls.put(Call(future, None, None))
        return future

    def stop(self) -> None:
        """Let the thread finish what is queued, and end."""
        if not self._closing:
            self._closing = True
            self._calls.put(None)

    async def stopped(self) -> None:
        """Wait for the end of the thread."""
        await asyncio.shield(self._stopped)
        # That was the last thing the thread did.
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                calls, last = self._gather()
                if calls:
                    self._hand_back(self._serve(calls))
                    del calls
                if last:
                    break
        finally:
            self._connection.close()
            if self._gate is not None:
                self._gate.close()
            with suppress(RuntimeError):  # the loop may be gone
                self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _gather(self) -> tuple[list[Call], bool]:
        first = self._calls.get()
        if first is None:
            return [], True
        calls = [first]
        while len(calls) < MOST_CALLS:
            try:
                more = self._calls.get_nowait()
            except queue.Empty:
                break
            if more is None:
                return calls, True
            calls.append(more)
        return calls, False

    def _hand_back(self, served: Served) -> None:
        with suppress(RuntimeError):  # the loop may be gone
            self._loop.call_soon_threadsafe(self._deliver, served)

    def _serve(self, calls: list[Call]) -> Served:
        results: list[tuple[Call, bool, Any]] = []
        hints: dict[str, int] = {}
        live = [call for call in calls if not call.future.cancelled()]
        planned = [call for call in live if call.plan is not None]
        try:
            if planned:
                self._transact(planned, results, hints)
            else:
                self._look()
        except Exception as error:
            # Each its own error: an exception that several tasks raise gathers all their tracebacks.
            results = [(call, False, copy(self._told(error))) for call in planned]
            hints = {}
        results += [(call, True, None) for call in live if call.plan is None]
        foreign, self._foreign = self._foreign, False
        return Served(results, hints, foreign)

    def _transact(self, calls: list[Call], results: list[tuple[Call, bool, Any]], hints: dict[str, int]) -> None:
        connection = self._connection
        if self._gate is not None:
            self._gate.enter()
        try:
            connection.begin(self._begin)
            if self._writes:
                self._look()
            alone = len(calls) == 1 or not self._writes
            ledger = Ledger()
            for call in calls:
                self._one(call, ledger, results, hints, alone=alone)
            if connection.raw.in_transaction:
                if self._writes:
                    for told in connection.run(ledger.flush()):
                        hints.setdefault(told, 0)
                connection.raw.execute("COMMIT")
                self.transactions += 1
                if self._checkpointer is not None:
                    self._checkpointer.committed(connection.raw.total_changes)
                if self._tidy:
                    self._tidy = False
                    # The results are safe; what is not given back today will be tomorrow.
                    with suppress(sqlite3.Error):
                        connection.give_back()
        except BaseException:
            self._tagsets.clear()
            with suppress(sqlite3.Error):
                connection.rollback()
            raise
        finally:
            if self._gate is not None:
                self._gate.leave()

    def _one(
        self,
        call: Call,
        ledger: Ledger,
        results: list[tuple[Call, bool, Any]],
        hints: dict[str, int],
        *,
        alone: bool,
    ) -> None:
        connection = self._connection
        execute = connection.raw.execute
        if not alone:
            execute("SAVEPOINT wm_call")
        assert call.plan is not None
        work = Work(self._clock.now_ms() if call.now is None else call.now, self._tagsets, ledger)
        try:
            result = connection.run(call.plan(work))
        except Exception as error:
            self._tagsets.clear()
            work.undo()
            if self._writes and not connection.raw.in_transaction:
                # SQLite has undone everything, that of the calls before as well.
                raise
            if not self._writes:
                pass
            elif alone:
                connection.rollback()
            else:
                execute("ROLLBACK TO wm_call")
                execute("RELEASE wm_call")
            results.append((call, False, self._told(error)))
            return
        if not alone:
            execute("RELEASE wm_call")
        results.append((call, True, result))
        self._tidy = self._tidy or work.tidy
        for name, jobs in work.hints.items():
            hints[name] = hints.get(name, 0) + jobs

    def _look(self) -> None:
        """Note whether others have written since the last look; said with the next results, even if a commit fails."""
        version = self._connection.version()
        if version != self._version:
            self._version = version
            self._foreign = True

    def _told(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error):
            told: WorkersError = translate(error, self._path)
        elif isinstance(error, OSError):
            told = StoreUnavailableError(f"SQLite file {self._path}: {error}")
        else:
            return error
        told.__cause__ = error
        return told
