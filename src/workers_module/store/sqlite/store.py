"""The store in a SQLite file."""

import asyncio
import os
import re
import sqlite3
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

import anyio
import anyio.to_thread

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import ConfigurationError, StoreUnavailableError
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.hub import Hub
from workers_module.store.migrate import MigrateMode, MigrationStatus, SchemaState, read_migrations
from workers_module.store.planning import check_step
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.sqlite import adding, changing, queries, registry, schedules, stepping, sweeping
from workers_module.store.sqlite.checkpoints import Checkpointer
from workers_module.store.sqlite.connect import Connection, Synchronous
from workers_module.store.sqlite.faults import translate
from workers_module.store.sqlite.foreign import run_inside, run_inside_sync
from workers_module.store.sqlite.gate import Gate
from workers_module.store.sqlite.schema import PACKAGE, prepare, state_of
from workers_module.store.sqlite.work import Ledger, Plan, Tagsets, Work
from workers_module.store.sqlite.writer import Lane, MakePlan, Served
from workers_module.store.values import (
    Action,
    Added,
    Beat,
    Capability,
    Child,
    Counts,
    EditResult,
    Held,
    JobPatch,
    JobSpec,
    LockInfo,
    Metrics,
    Order,
    Page,
    Problem,
    QueuePatch,
    QueueSettings,
    RenewReply,
    Selection,
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)
from workers_module.url import QueueKind

T = TypeVar("T")

OLDEST: Final = (3, 24, 0)
"""The first SQLite with everything this store uses."""
POLL: Final = 0.02
"""Seconds between two looks for the writes of other processes while somebody waits."""
SLOW_POLL: Final = 0.05
"""The same after `SLOW_AFTER` looks without any."""
SLOW_AFTER: Final = 3_000
_LONG: Final = 3_600.0
_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class SqliteStore:
    """Jobs in a SQLite file, shared by all processes of one machine that open it.

    The file may be the application's own: tables have a prefix, and `add` takes the application's transaction.

    Args:
        path: The file; its folder must exist.
        prefix: What the names of all tables and indexes begin with.
        create: Whether to make the file when it is not there.
        clock: The store's clock.
        synchronous: ``"full"``: what was accepted survives a power cut. ``"normal"``: the last commits may not.
        migrate: ``"auto"`` brings an older schema up to date when the store is opened, ``"check"`` refuses to start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        prefix: str = "wm_",
        create: bool = True,
        clock: Clock | None = None,
        synchronous: Synchronous = "full",
        migrate: MigrateMode = "auto",
    ) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"table prefix {prefix!r}: use letters, digits and '_', not beginning with a digit"
            )
        if os.fspath(path) in {"", ":memory:"} or os.fspath(path).startswith("file:"):
            raise ConfigurationError(
                f"SQLite path {os.fspath(path)!r}: give the path of a file; for jobs in memory use the memory store"
            )
        self._path = Path(path).absolute()
        self._prefix = prefix
        self._create = create
        self._clock = clock if clock is not None else Clock()
        self._synchronous: Synchronous = synchronous
        self._migrate: MigrateMode = migrate
        self._hub = Hub()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening: asyncio.Task[StoreInfo] | None = None
        self._info: StoreInfo | None = None
        self._writer: Lane | None = None
        self._reader: Lane | None = None
        self._checkpointer: Checkpointer | None = None
        self._ticker: Connection | None = None
        self._poller: asyncio.Task[None] | None = None
        self._news = Hub()
        if isinstance(self._clock, FrozenClock):
            self._clock.on_change(lambda: self._hub.run(self._hub.hint_all))

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> StoreInfo:
        """Do what `Store.open` says."""
        if self._info is not None:
            self._check()
            return self._info
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="open the SQLite store")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: "asyncio.Task[StoreInfo]") -> None:
        self._opening = None
        if not task.cancelled():
            # Asked for here, so that it does not count as never retrieved when the caller was cancelled.
            task.exception()

    async def _open(self) -> StoreInfo:
        if sqlite3.sqlite_version_info < OLDEST:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old: {'.'.join(map(str, OLDEST))} or newer is needed"
            )
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        writer, reader, ticker, gate, warnings = await anyio.to_thread.run_sync(self._connect)
        lane = partial(Lane, path=self._path, clock=self._clock, deliver=self._deliver)
        self._checkpointer = Checkpointer(self._path, self._prefix, synchronous=self._synchronous)
        self._writer = lane("writer", mode="write", gate=gate, connection=writer, checkpointer=self._checkpointer)
        self._reader = lane("reader", mode="read", gate=None, connection=reader)
        self._ticker = ticker
        self._info = StoreInfo(
            kind=QueueKind.SQLITE,
            version=sqlite3.sqlite_version,
            place=str(self._path),
            capabilities=frozenset(Capability) - {Capability.SERVER},
            warnings=warnings,
        )
        return self._info

    def _connect(self) -> tuple[Connection, Connection, Connection, Gate, tuple[str, ...]]:
        path = self._path
        if not path.parent.is_dir():
            raise ConfigurationError(f"SQLite file {path}: the folder {path.parent} does not exist; make it first")
        if not self._create and not path.exists():
            raise ConfigurationError(f"SQLite file {path} does not exist, and create=False; make it, or let it be made")
        opened: list[Connection] = []
        gate: Gate | None = None
        try:
            gate = Gate(path.with_name(path.name + ".lock"))
            gate.enter()
            try:
                opened.append(Connection(path, self._prefix, synchronous=self._synchronous))
                warnings = prepare(opened[0], mode=self._migrate, place=str(path))
            finally:
                gate.leave()
            opened.append(Connection(path, self._prefix, synchronous=self._synchronous))
            opened.append(Connection(path, self._prefix, synchronous=self._synchronous, busy_ms=0))
        except BaseException as error:
            for connection in opened:
                connection.close()
            if gate is not None:
                gate.close()
            if isinstance(error, sqlite3.Error):
                raise translate(error, path) from error
            if isinstance(error, OSError):
                raise StoreUnavailableError(f"SQLite file {path}: {error}") from error
            raise
        return opened[0], opened[1], opened[2], gate, warnings

    async def migrations(self) -> MigrationStatus:
        """Return which migrations the file has; the store need not be open, and nothing is changed."""
        return await anyio.to_thread.run_sync(self._migrations)

    def _migrations(self) -> MigrationStatus:
        known = read_migrations(PACKAGE)
        if not self._path.exists():
            return MigrationStatus(place=str(self._path), state=SchemaState(0, 0), known=known, exists=False)
        try:
            connection = Connection(self._path, self._prefix, synchronous=self._synchronous)
            try:
                return MigrationStatus(place=str(self._path), state=state_of(connection), known=known)
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    async def close(self) -> None:
        """Do what `Store.close` says."""
        if self._opening is not None:
            with suppress(Exception):
                await asyncio.shield(self._opening)
        if self._info is None or self._pid != os.getpid():
            return
        self._info = None
        lanes = [lane for lane in (self._writer, self._reader) if lane is not None]
        for lane in lanes:
            # Told before the first await: a cancelled close ends them as well.
            lane.stop()
        poller, self._poller = self._poller, None
        ticker, self._ticker = self._ticker, None
        checkpointer, self._checkpointer = self._checkpointer, None
        if ticker is not None:
            ticker.close()
        self._hub.hint_all()
        self._news.hint_all()
        with anyio.CancelScope(shield=True):
            if poller is not None:
                poller.cancel()
                await asyncio.wait([poller])
            for lane in lanes:
                await lane.stopped()
            if checkpointer is not None:
                checkpointer.stop()
                await anyio.to_thread.run_sync(checkpointer.join)

    async def now(self) -> int:
        """Do what `Store.now` says."""
        self._check()
        return self._clock.now_ms()

    def renewer(self) -> "SqliteRenewer":
        """Do what `Store.renewer` says."""
        return SqliteRenewer(self._path, self._prefix, self._clock, self._synchronous)

    def _check(self) -> None:
        """Refuse calls from where this store cannot work."""
        if self._info is None:
            raise StoreUnavailableError(f"SQLite store {self._path} is not open; await open() first")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"SQLite store {self._path} was opened in process {self._pid} and this is its fork {os.getpid()}: a "
                "SQLite connection does not survive a fork. Open a store of its own in each process"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                f"SQLite store {self._path} was opened on another event loop; open a store of its own on each loop"
            )

    # --- calls and their results --------------------------------------------------------------------------------------

    async def _write(self, plan: MakePlan[T], now: int | None = None) -> T:
        self._check()
        assert self._writer is not None
        return await self._writer.call(plan, now)

    async def _read(self, plan: MakePlan[T]) -> T:
        self._check()
        assert self._reader is not None
        return await self._reader.call(plan)

    def _deliver(self, served: Served) -> None:
        for call, good, value in served.results:
            if call.future.done():
                continue
            if good:
                call.future.set_result(value)
            else:
                call.future.set_exception(value)
        if served.foreign:
            self._hub.hint_all()
            self._news.hint_all()
            return
        for queue, jobs in served.hints.items():
            if jobs:
                self._hub.hint(queue, jobs)
            self._news.hint_all(queue)

    def _poll(self) -> None:
        """Look for the writes of others as long as somebody waits."""
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._polling(), name="look for writes to the SQLite file")

    async def _polling(self) -> None:
        seen: int | None = None
        quiet = 0
        while self._hub.queues() or self._news.queues():
            ticker, writer = self._ticker, self._writer
            if ticker is None or writer is None:
                break
            try:
                version = ticker.version()
            except sqlite3.Error:
                version = None
            if version is None or version != seen:
                # Commits of our own change the number as well; only the writer can tell whose they were.
                seen = version
                quiet = 0
                await writer.peek()
            quiet += 1
            await asyncio.sleep(POLL if quiet < SLOW_AFTER else SLOW_POLL)
        self._poller = None

    # --- producing ----------------------------------------------------------------------------------------------------

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Do what `Store.add` says."""
        if tx is None:
            return await self._write(lambda work: adding.add(work, specs), now)
        self._check()
        return await run_inside(tx, self._adding(specs, now), prefix=self._prefix, path=self._path)

    def add_sync(
        self, specs: Sequence[JobSpec], *, tx: object, notify: bool = True, now: int | None = None
    ) -> list[Added]:
        """Store jobs inside a synchronous transaction of the application's; they exist exactly if it commits.

        Args:
            specs: As in `add`.
            tx: A sqlite3 connection, or a Session or Connection of SQLAlchemy; from any thread.
            notify: Nothing here: whoever waits sees each commit to the file.
            now: The instant, for tests.

        Raises:
            ConfigurationError: ``tx`` is nothing this store knows, is in no transaction, or belongs to another file.
        """
        del notify
        if self._info is None:
            raise StoreUnavailableError(f"SQLite store {self._path} is not open; await open() first")
        return run_inside_sync(tx, self._adding(specs, now), prefix=self._prefix, path=self._path)

    def _adding(self, specs: Sequence[JobSpec], now: int | None) -> Callable[[], Plan[list[Added]]]:
        """Return what adds in a transaction that is not the writer's."""
        ledger = Ledger()
        work = Work(self._clock.now_ms() if now is None else now, Tagsets(), ledger)

        def plan() -> Plan[list[Added]]:
            added = yield from adding.add(work, specs)
            yield from ledger.flush()
            return added

        return plan

    # --- working ------------------------------------------------------------------------------------------------------

    async def step(self, req: Step) -> StepReply:
        """Do what `Store.step` says."""
        check_step(req)
        return await self._write(lambda work: stepping.step(work, req), req.now)

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Do what `Store.wait` says."""
        self._check()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        with self._hub.listen(req.queue, req) as ear:
            self._poll()
            while True:
                reply = await self.step(req)
                left = end - loop.time()
                if reply.jobs or left <= 0:
                    return reply
                if reply.wake_at is not None and req.now is None:
                    # A millisecond more: a timer may go off early, and then the job would not be due yet.
                    left = min(left, max(0.005, (reply.wake_at - self._clock.now_ms() + 1) / 1_000))
                await ear.wait(left)

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Do what `Store.renew` says."""
        return await self._write(lambda work: stepping.renew(work, queue, held, lease_ms), now)

    async def sweep(self, req: Sweep) -> SweepReply:
        """Do what `Store.sweep` says."""
        return await self._write(lambda work: sweeping.sweep(work, req), req.now)

    # --- looking ------------------------------------------------------------------------------------------------------

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Do what `Store.get` says."""
        return await self._read(lambda work: queries.get(work, queue, ids, payload=payload))

    async def page(
        self,
        queue: str,
        states: Sequence[JobState],
        *,
        start: int = 0,
        limit: int = 100,
        newest_first: bool = False,
    ) -> Page[JobRecord]:
        """Do what `Store.page` says."""
        return await self._read(lambda work: queries.page(work, queue, states, start, limit, newest_first=newest_first))

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Do what `Store.counts` says."""
        return await self._read(lambda work: queries.counts(work, queues))

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Do what `Store.logs` says."""
        return await self._read(lambda work: queries.logs(work, queue, id, start, limit))

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Do what `Store.children` says."""
        return await self._read(lambda work: queries.children(work, queue, id, start, limit))

    async def queues(self) -> list[str]:
        """Do what `Store.queues` says."""
        return await self._read(lambda _: queries.queues())

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Do what `Store.metrics` says."""
        return await self._read(lambda work: queries.metrics(work, queue, minutes))

    # --- changing -----------------------------------------------------------------------------------------------------

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Do what `Store.edit` says."""
        return await self._write(lambda work: changing.edit(work, queue, patches), now)

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Do what `Store.move` says."""
        return await self._write(lambda work: changing.move(work, queue, selection, action), now)

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Do what `Store.configure` says."""
        return await self._write(lambda work: changing.configure(work, queue, patch), now)

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Do what `Store.obliterate` says."""
        return await self._write(lambda work: changing.obliterate(work, queue, force=force, limit=limit))

    # --- schedules, locks, workers, events ----------------------------------------------------------------------------

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Do what `Store.schedules` says."""
        return await self._read(lambda work: schedules.read(work, queue, start, limit, ids))

    async def schedule(
        self,
        queue: str,
        changes: Sequence[PutSchedule | FireSlot | DropSchedule],
        *,
        now: int | None = None,
    ) -> list[bool]:
        """Do what `Store.schedule` says."""
        return await self._write(lambda work: schedules.schedule(work, queue, changes), now)

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Do what `Store.lease` says."""
        return await self._write(lambda work: registry.lease(work, name, owner, ttl_ms, fence), now)

    async def locks(self) -> list[LockInfo]:
        """Do what `Store.locks` says."""
        return await self._read(registry.locks)

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Do what `Store.worker` says."""
        return await self._write(lambda work: registry.worker(work, change), now)

    async def workers(self) -> list[WorkerInfo]:
        """Do what `Store.workers` says."""
        return await self._read(registry.workers)

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Do what `Store.events` says."""
        return self._following(queue, after)

    @asynccontextmanager
    async def _following(self, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
        if after is None:
            last = await self._read(lambda work: queries.newest_event(work, queue))
        elif after.isdecimal():
            self._check()
            last = int(after)
        else:
            raise ConfigurationError(
                f"{after!r} is no cursor of a SQLite store; pass the cursor of an EventBatch, or None"
            )
        batches = self._follow(queue, last)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _follow(self, queue: str, last: int) -> AsyncGenerator[EventBatch]:
        with self._news.listen(queue) as ear:
            self._poll()
            while True:
                batch = await self._read(partial(queries.events_after, name=queue, last=last))
                if batch is None:
                    await ear.wait(_LONG)
                else:
                    last = int(batch.cursor)
                    yield batch

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Do what `Store.publish` says."""

        def plan(work: Work) -> Plan[None]:
            if events:
                # A stream of events alone is no queue that is listed.
                found = yield from work.find(queue)
                if found is None:
                    found = yield from work.make(queue)
                    found.gone = 1
                found.events += [(event.type, event.job_id, dict(event.fields)) for event in events]

        await self._write(plan)

    # --- whole queues -------------------------------------------------------------------------------------------------

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Do what `Store.restore` says."""
        return await self._write(lambda work: changing.restore(work, records, on_conflict))

    async def verify(self, queue: str) -> list[Problem]:
        """Do what `Store.verify` says."""
        return await self._read(lambda work: queries.verify(work, queue))


class SqliteRenewer:
    """Renews leases over a connection of its own; blocking, and callable from one other thread."""

    def __init__(self, path: Path, prefix: str, clock: Clock, synchronous: Synchronous) -> None:
        self._path = path
        self._prefix = prefix
        self._clock = clock
        self._synchronous: Synchronous = synchronous
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._gate: Gate | None = None

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        """Do what `Store.renew` does."""
        with self._lock:
            try:
                if self._connection is None or self._gate is None:
                    self._gate = Gate(self._path.with_name(self._path.name + ".lock"))
                    self._connection = Connection(self._path, self._prefix, synchronous=self._synchronous)
                return self._renew(self._connection, self._gate, queue, held, lease_ms)
            except sqlite3.Error as error:
                raise translate(error, self._path) from error
            except OSError as error:
                raise StoreUnavailableError(f"SQLite file {self._path}: {error}") from error

    def _renew(self, connection: Connection, gate: Gate, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        gate.enter()
        try:
            connection.begin("IMMEDIATE")
            work = Work(self._clock.now_ms(), Tagsets(), Ledger())
            reply = connection.run(stepping.renew(work, queue, held, lease_ms))
            connection.raw.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise
        finally:
            gate.leave()
        return reply

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._gate is not None:
                self._gate.close()
                self._gate = None
