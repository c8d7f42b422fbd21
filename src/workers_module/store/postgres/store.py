"""The store in a Postgres schema."""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final, Literal, cast
from weakref import ref

import anyio
import asyncpg
from anyio.from_thread import start_blocking_portal

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import (
    ConfigurationError,
    IllegalMoveError,
    JobNotFoundError,
    StoreCorruptError,
    StoreUnavailableError,
)
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.base import (
    Action,
    Added,
    Beat,
    ByIds,
    Capability,
    Child,
    Counts,
    DropSchedule,
    EditResult,
    Fail,
    FireSlot,
    Held,
    JobPatch,
    JobSpec,
    LockInfo,
    Metrics,
    Order,
    Page,
    Problem,
    Promote,
    PutSchedule,
    QueuePatch,
    QueueSettings,
    RateLimit,
    Remove,
    RenewReply,
    RetryAgain,
    ScheduleRecord,
    Selection,
    Series,
    SettleCode,
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)
from workers_module.store.codec import dump_worker, load_definition, load_worker
from workers_module.store.hub import Hub
from workers_module.store.migrate import MigrateMode, MigrationStatus
from workers_module.store.planning import CRASHED, check_specs, check_step
from workers_module.store.postgres.asking import (
    action_args,
    add_args,
    held_args,
    joined,
    outcome_args,
    patch_args,
    raw,
    record_args,
    schedule_args,
    selection_args,
    settings_args,
)
from workers_module.store.postgres.connect import Address, Pool, translate
from workers_module.store.postgres.events import Cursor, EventReader
from workers_module.store.postgres.foreign import add_inside, add_inside_sync
from workers_module.store.postgres.notify import Notifier, channel_of
from workers_module.store.postgres.queries import Sql
from workers_module.store.postgres.reading import SETTLED, SHOWN, SHOWN_CODES, to_claims, to_stored
from workers_module.store.postgres.renewer import PostgresRenewer
from workers_module.store.postgres.schema import home_of, prepare, status
from workers_module.store.postgres.verifying import verify
from workers_module.url import QueueKind

SCHEMA: Final = "workers_module"
FALLBACK: Final = 1.25
"""Seconds between two looks of somebody who waits, were all notifications lost.

With a look when each wait begins and ends, and sweeps and signs of life, an idle worker asks just under once a second.
"""
_ALL: Final = 1_000_000
_CHILD_STATES: Final = ("pending", "processed", "failed", "ignored")
_EXISTING: Final[tuple[Literal["same_id", "deduplicated"] | None, ...]] = (None, "same_id", "deduplicated")
_EDITED: Final = (EditResult.OK, EditResult.MISSING, EditResult.LEASE_LOST, EditResult.WRONG_STATE)
_TO: Final[dict[type[Action], str]] = {Remove: "removed", RetryAgain: "waiting", Promote: "waiting", Fail: "failed"}


class PostgresStore:
    """Jobs in a schema of a Postgres database, version 13 or newer.

    Delivery, leases and slots go by the server's clock.

    Args:
        url: ``postgresql://user:password@host/database``, with asyncpg's parameters.
        schema: Where the tables and functions are; made when it is not there.
        clock: A clock other than the server's, for tests.
        migrate: ``"auto"`` brings an older schema up to date when the store is opened, ``"check"`` refuses to start.
        pool_max: How many calls may be under way at once; one connection more listens, and each renewer has its own.
        wakeup: ``"listen"`` hears of new jobs at once; ``"poll"`` looks each second, for poolers that do not pass
            notifications on.
        prepare: Keep prepared statements; False for PgBouncer in its transaction mode.

    Example:
        ``store = PostgresStore("postgresql://localhost/shop"); await store.open()``

    Raises:
        ConfigurationError: The URL or the name of the schema cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = SCHEMA,
        clock: Clock | None = None,
        migrate: MigrateMode = "auto",
        pool_max: int = 4,
        wakeup: Literal["listen", "poll"] = "listen",
        prepare: bool = True,
    ) -> None:
        self._address = Address(url, schema=schema, pool_max=pool_max, prepare=prepare)
        self._schema = schema
        self._sql = Sql.of(schema)
        self._clock = clock if clock is not None and type(clock) is not Clock else None
        self._migrate: MigrateMode = migrate
        self._listens = wakeup == "listen"
        self._hub = Hub()
        self._news = Hub()
        self._pool: Pool | None = None
        self._notifier: Notifier | None = None
        self._info: StoreInfo | None = None
        self._opening: asyncio.Task[StoreInfo] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._home = ""
        self._made: set[tuple[str, str | None]] = set()
        if isinstance(clock, FrozenClock):
            me = ref(self)

            def moved() -> None:
                store = me()
                if store is not None:
                    store._hub.run(store._hub.hint_all)

            clock.on_change(moved)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> StoreInfo:
        """Do what `Store.open` says."""
        if self._info is not None:
            self._check()
            return self._info
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="open the Postgres store")
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, task: "asyncio.Task[StoreInfo]") -> None:
        self._opening = None
        if not task.cancelled():
            # Asked for here, so that it does not count as never retrieved when the caller was cancelled.
            task.exception()

    async def _open(self) -> StoreInfo:
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        pool = Pool(self._address)
        await pool.open()
        try:
            async with pool.connection() as connection:
                warnings = await prepare(connection, self._address, self._migrate)
                self._home = await home_of(connection, self._schema)
                version: str = await connection.fetchval("SELECT current_setting('server_version')")
        except BaseException:
            await pool.close()
            raise
        self._pool = pool
        if self._listens:
            self._notifier = Notifier(self._address, self._heard)
            self._notifier.start()
        self._info = StoreInfo(
            kind=QueueKind.POSTGRES,
            version=version,
            place=self._address.place,
            capabilities=frozenset(Capability),
            warnings=warnings,
        )
        return self._info

    async def migrations(self) -> MigrationStatus:
        """Return which migrations the database has; the store need not be open, and nothing is changed."""
        return await status(self._address)

    async def close(self) -> None:
        """Do what `Store.close` says."""
        if self._opening is not None:
            with suppress(Exception):
                await asyncio.shield(self._opening)
        if self._info is None or self._pid != os.getpid():
            return
        self._info = None
        pool, self._pool = self._pool, None
        notifier, self._notifier = self._notifier, None
        self._hub.hint_all()
        self._news.hint_all()
        with anyio.CancelScope(shield=True):
            if notifier is not None:
                await notifier.stop()
            if pool is not None:
                await pool.close()

    async def now(self) -> int:
        """Do what `Store.now` says."""
        pool = self._check()
        if self._clock is not None:
            return self._clock.now_ms()
        rows = await pool.fetch(self._sql.now, [])
        now: int = rows[0]["now"]
        return now

    def renewer(self) -> PostgresRenewer:
        """Do what `Store.renewer` says."""
        return PostgresRenewer(self._address, self._clock)

    def _check(self) -> Pool:
        """Refuse calls from where this store cannot work."""
        if self._info is None or self._pool is None:
            raise StoreUnavailableError(f"{self._address.place}: this store is not open; await open() first")
        if os.getpid() != self._pid:
            raise ConfigurationError(
                f"{self._address.place} was opened in process {self._pid} and this is its fork {os.getpid()}: "
                "connections do not survive a fork. Open a store of its own in each process"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError(
                f"{self._address.place} was opened on another event loop; open a store of its own on each loop"
            )
        return self._pool

    def _instant(self, now: int | None) -> int | None:
        return self._clock.now_ms() if now is None and self._clock is not None else now

    async def _fetch(self, sql: str, *args: Any, repeatable: bool = True) -> list[Any]:
        return await self._check().fetch(sql, args, repeatable=repeatable)

    # --- hints --------------------------------------------------------------------------------------------------------

    def _heard(self, queue: str | None, jobs: int) -> None:
        """Wake those who wait here for what another process did."""
        if queue is None:
            self._hub.hint_all()
            self._news.hint_all()
            return
        if jobs:
            self._hub.hint(queue, jobs)
        self._news.hint_all(queue)

    def _changed(self, queue: str, jobs: int, ended: int = 0) -> None:
        """Tell everybody that so many jobs of a queue became ready, or (0) that it has events."""
        self._heard(queue, jobs)
        if self._notifier is not None:
            self._notifier.mark(queue, jobs, ended)

    def _told(self, queues: Sequence[str], *besides: str) -> None:
        """Tell of the other queues a call has changed something in."""
        for queue in queues:
            if queue not in besides:
                self._changed(queue, _ALL)

    # --- producing ----------------------------------------------------------------------------------------------------

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Do what `Store.add` says."""
        self._check()
        if not specs:
            return []
        check_specs(specs)
        if tx is not None:
            await self._make_ready(specs)
            rows = await add_inside(tx, self._sql.add, self._foreign_args(specs, now=now), self._address.place)
            return read_added(specs, rows)
        args = add_args(specs, home=None, channel=None, now=self._instant(now))
        repeatable = all(spec.id is not None for spec in specs)
        rows = await self._fetch(self._sql.add, *args, repeatable=repeatable)
        added = read_added(specs, rows)
        self._tell_added(specs, added)
        return added

    def add_sync(
        self, specs: Sequence[JobSpec], *, tx: object, notify: bool = True, now: int | None = None
    ) -> list[Added]:
        """Store jobs inside a synchronous transaction of the application's; they exist exactly if it commits.

        Args:
            specs: As in `add`.
            tx: A psycopg connection, or a Session or Connection of SQLAlchemy; from any thread.
            notify: Wake a worker when the transaction commits; without that one looks a second or so later. A
                server that commits very much is faster without.
            now: The instant, for tests.

        Raises:
            ConfigurationError: ``tx`` is nothing this store knows, is in no transaction, or in another database.
        """
        if self._info is None:
            raise StoreUnavailableError(f"{self._address.place}: this store is not open; await open() first")
        if not specs:
            return []
        check_specs(specs)
        if new := self._new_places(specs):
            with start_blocking_portal() as portal:
                portal.call(self._make_apart, new)
            self._made.update(new)
        args = self._foreign_args(specs, now=now, notify=notify)
        return read_added(specs, add_inside_sync(tx, self._sql.add, args, self._address.place))

    def _foreign_args(self, specs: Sequence[JobSpec], *, now: int | None, notify: bool = True) -> list[Any]:
        channel = channel_of(self._schema) if notify and self._listens else None
        return add_args(specs, home=self._home, channel=channel, now=self._instant(now))

    async def _make_ready(self, specs: Sequence[JobSpec]) -> None:
        """Make queues and sets of tags now: inside the other transaction, they would keep everybody waiting for it."""
        if new := self._new_places(specs):
            await self._fetch(self._sql.make, *zip(*new, strict=True))
            self._made.update(new)

    def _new_places(self, specs: Sequence[JobSpec]) -> list[tuple[str, str | None]]:
        """Return queues and sets of tags that this store has not yet made, in one order for all."""
        return sorted({(spec.queue, joined(spec.tags)) for spec in specs} - self._made, key=str)

    async def _make_apart(self, new: Sequence[tuple[str, str | None]]) -> None:
        """Do the same from a thread that has no part in this store's loop."""
        connection = await self._address.connect("queues")
        try:
            await connection.fetch(self._sql.make, *zip(*new, strict=True))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise translate(error, self._address.place) from error
        finally:
            connection.terminate()

    def _tell_added(self, specs: Sequence[JobSpec], added: Sequence[Added]) -> None:
        ready: dict[str, int] = {}
        for spec, one in zip(specs, added, strict=True):
            # A delayed job changes how long everybody may sleep; a tagged one is for some waiter nobody knows here.
            jobs = _ALL if spec.tags or one.state not in {JobState.WAITING, JobState.PRIORITIZED} else 1
            ready[spec.queue] = ready.get(spec.queue, 0) + jobs
            if spec.parent is not None and not isinstance(spec.parent, int):
                ready[spec.parent.queue] = _ALL
        for queue, jobs in ready.items():
            self._changed(queue, jobs)

    # --- working ------------------------------------------------------------------------------------------------------

    async def step(self, req: Step) -> StepReply:
        """Do what `Store.step` says."""
        check_step(req)
        rate = req.rate
        rows = await self._fetch(
            self._sql.step,
            req.queue,
            raw(req.worker),
            req.token,
            req.take,
            req.lease_ms,
            list(req.tags) or None,
            None if rate is None else rate.max,
            None if rate is None else rate.window_ms,
            req.metrics,
            req.resume,
            *outcome_args(req.outcomes),
            self._instant(req.now),
        )
        claimed, last = rows[:-1], rows[-1]
        codes: list[int] = last["codes"]
        settled = [SETTLED[code] for code in codes]
        jobs = to_claims(req.queue, req.token, claimed)
        hint: int = last["hint"]
        if hint or jobs or SettleCode.OK in settled:
            self._changed(req.queue, _ALL if hint and last["tagged"] else hint, len(settled))
        self._told(last["news"], req.queue)
        return StepReply(settled, jobs, last["wake_at"], last["paused"], last["now"])

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Do what `Store.wait` says."""
        self._check()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        with self._hub.listen(req.queue, req) as ear:
            while True:
                reply = await self.step(req)
                left = end - loop.time()
                if reply.jobs or left <= 0:
                    return reply
                left = min(left, FALLBACK)
                if reply.wake_at is not None and req.now is None:
                    # A millisecond more: a timer may go off early, and then the job would not be due yet.
                    left = min(left, max(0.005, (reply.wake_at - reply.now + 1) / 1_000))
                await ear.wait(left)

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Do what `Store.renew` says."""
        rows = await self._fetch(self._sql.renew, queue, *held_args(held), lease_ms, self._instant(now))
        return RenewReply(tuple(rows[0]["lost"]), tuple(rows[0]["cancelled"]))

    async def sweep(self, req: Sweep) -> SweepReply:
        """Do what `Store.sweep` says."""
        ages = (req.completed_age_ms, req.failed_age_ms)
        now = self._instant(req.now)
        rows = await self._fetch(self._sql.sweep, req.queue, req.interval_ms, req.max_crashes, *ages, CRASHED, now)
        row = rows[0]
        if row["hint"] or row["recovered"]:
            self._changed(req.queue, _ALL if row["hint"] else 0)
        self._told(row["news"], req.queue)
        return SweepReply(tuple(row["recovered"]), tuple(row["idle"]), row["wake_at"], row["more"], row["now"])

    # --- looking ------------------------------------------------------------------------------------------------------

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Do what `Store.get` says."""
        sql = self._sql.get if payload else self._sql.get_without_data
        rows = await self._fetch(sql, queue, list(dict.fromkeys(ids)))
        found = {row["id"]: to_stored(queue, row) for row in rows}
        return [found.get(id_) for id_ in ids]

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Do what `Store.page` says."""
        codes = [SHOWN_CODES[state] for state in states]
        rows = await self._fetch(self._sql.page, queue, codes, start, limit, newest_first)
        return Page([to_stored(queue, row) for row in rows if row["n"] is not None], rows[0]["total"])

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Do what `Store.counts` says."""
        found: dict[str, Counts] = {}
        for row in await self._fetch(self._sql.counts, list(queues)):
            name, paused, waiting, prioritized, delayed, active, completed, failed, parked = row
            found[name] = Counts(
                queue=name,
                waiting=waiting,
                prioritized=prioritized,
                delayed=delayed,
                active=active,
                completed=completed,
                failed=failed,
                waiting_children=parked,
                paused=paused,
            )
        return [found.get(name) or Counts(queue=name) for name in queues]

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Do what `Store.logs` says."""
        rows = await self._fetch(self._sql.logs, queue, id, max(0, limit), max(0, start))
        lines = [row["line"].decode() for row in rows if row["line"] is not None]
        return Page(lines, rows[0]["total"] if rows else 0)

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Do what `Store.children` says."""
        rows = await self._fetch(self._sql.children, queue, id, max(0, limit), max(0, start))
        found = [
            Child(
                row["queue"],
                row["id"],
                _CHILD_STATES[row["state"]],
                row["value"],
                None if row["reason"] is None else row["reason"].decode("utf-8", "replace"),
            )
            for row in rows
            if row["queue"] is not None
        ]
        return Page(found, rows[0]["total"] if rows else 0)

    async def queues(self) -> list[str]:
        """Do what `Store.queues` says."""
        return sorted(row["name"] for row in await self._fetch(self._sql.queues))

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Do what `Store.metrics` says."""
        rows = await self._fetch(self._sql.metrics, queue)
        if not rows:
            return Metrics(Series(0, ()), Series(0, ()))
        now = self._instant(None)
        this = (rows[0]["now"] if now is None else now) // 60_000
        return Metrics(_series(rows, 0, this, minutes), _series(rows, 1, this, minutes))

    # --- changing -----------------------------------------------------------------------------------------------------

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Do what `Store.edit` says."""
        if not patches:
            return []
        repeatable = not any(patch.log_lines for patch in patches)
        args = patch_args(patches)
        rows = await self._fetch(self._sql.edit, queue, *args, self._instant(now), repeatable=repeatable)
        for name in rows[0]["news"]:
            self._changed(name, 0 if name == queue else _ALL)
        if any(patch.delay_ms is not None or patch.priority is not None for patch in patches):
            self._changed(queue, _ALL)
        return [_EDITED[code] for code in rows[0]["results"]]

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Do what `Store.move` says."""
        args = (*selection_args(selection), *action_args(action), self._instant(now))
        (row,) = await self._fetch(self._sql.move, queue, *args)
        refused: str | None = row["refused"]
        if refused is not None:
            assert isinstance(selection, ByIds)
            if refused == "missing":
                raise JobNotFoundError(queue, selection.ids[0])
            raise IllegalMoveError(selection.ids[0], SHOWN[int(refused)], _TO[type(action)])
        moved: list[str] = row["moved"]
        if moved:
            hint: int = row["hint"]
            self._changed(queue, _ALL if hint and row["tagged"] else hint)
        for name in row["news"]:
            self._changed(name, _ALL)
        return moved

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Do what `Store.configure` says."""
        instant = self._instant(now)
        if patch is None or patch == QueuePatch():
            rows = await self._fetch(self._sql.settings, queue, instant)
            return _settings(rows[0]) if rows else QueueSettings()
        (row,) = await self._fetch(self._sql.configure, queue, *settings_args(patch), instant)
        self._changed(queue, row["hint"])
        return _settings(row)

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Do what `Store.obliterate` says."""
        (row,) = await self._fetch(self._sql.obliterate, queue, force, limit, self._instant(None))
        if row["active"] is not None:
            raise IllegalMoveError(row["active"], JobState.ACTIVE, _TO[Remove])
        self._changed(queue, 0)
        self._told(row["news"], queue)
        empty: bool = row["empty"]
        return empty

    async def drop(self) -> None:
        """Delete the schema with everything in it; the store can only be closed, or opened again, afterwards."""
        await self._fetch(f'DROP SCHEMA IF EXISTS "{self._schema}" CASCADE')

    # --- schedules, locks, workers, events ----------------------------------------------------------------------------

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Do what `Store.schedules` says."""
        if ids is None:
            rows = await self._fetch(self._sql.schedules, queue, limit, start, None)
            return [_schedule(queue, row) for row in rows]
        rows = await self._fetch(self._sql.schedules, queue, None, 0, list(ids))
        found = {row["id"]: _schedule(queue, row) for row in rows}
        return [found[id_] for id_ in ids if id_ in found]

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Do what `Store.schedule` says."""
        if not changes:
            return []
        (row,) = await self._fetch(self._sql.schedule, queue, *schedule_args(changes), self._instant(now))
        for name in row["news"]:
            self._changed(name, _ALL)
        done: list[bool] = row["done"]
        return done

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Do what `Store.lease` says."""
        (row,) = await self._fetch(self._sql.lease, name, owner, ttl_ms, fence, self._instant(now))
        held: int | None = row["fence"]
        return held

    async def locks(self) -> list[LockInfo]:
        """Do what `Store.locks` says."""
        return [LockInfo(*row) for row in await self._fetch(self._sql.locks, self._instant(None))]

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Do what `Store.worker` says."""
        instant = self._instant(now)
        if isinstance(change, Order):
            await self._fetch(self._sql.worker, change.id, 0, None, change.order, instant)
            return None
        (row,) = await self._fetch(
            self._sql.worker, change.info.id, change.ttl_ms, dump_worker(change.info), None, instant
        )
        return cast("WorkerOrder | None", row["orders"])

    async def workers(self) -> list[WorkerInfo]:
        """Do what `Store.workers` says."""
        found: list[WorkerInfo] = []
        for row in await self._fetch(self._sql.workers, self._instant(None)):
            # What one worker tells of itself must not hide the others.
            with suppress(StoreCorruptError):
                found.append(replace(load_worker(row["body"]), seen=row["seen"]))
        return found

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Do what `Store.events` says."""
        return self._following(queue, after)

    @asynccontextmanager
    async def _following(self, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
        reader = EventReader(self._check(), self._schema, queue)
        if after is None:
            await reader.begin()
        else:
            reader.cursor = Cursor.read(after)
        batches = self._follow(reader, queue)
        try:
            yield batches
        finally:
            await batches.aclose()

    async def _follow(self, reader: EventReader, queue: str) -> AsyncGenerator[EventBatch]:
        with self._news.listen(queue) as ear:
            while True:
                self._check()
                batch = await reader.next()
                if batch is None:
                    await ear.wait(FALLBACK)
                else:
                    yield batch

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Do what `Store.publish` says."""
        if not events:
            self._check()
            return
        await self._fetch(
            self._sql.publish,
            queue,
            [str(event.type) for event in events],
            [event.job_id for event in events],
            [json.dumps(dict(event.fields)).encode() for event in events],
            repeatable=False,
        )
        self._changed(queue, 0)

    # --- whole queues -------------------------------------------------------------------------------------------------

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Do what `Store.restore` says."""
        if not records:
            return 0
        strict = on_conflict == "error"
        (row,) = await self._fetch(self._sql.restore, *record_args(records), strict, self._instant(None))
        if row["taken"] is not None:
            raise ConfigurationError(
                f"queue {row['taken_queue']!r} already has a job {row['taken']!r}; nothing was written. "
                "Skip those that exist, or remove them first"
            )
        for queue in dict.fromkeys(record.queue for record in records):
            self._changed(queue, _ALL)
        written: int = row["written"]
        return written

    async def verify(self, queue: str) -> list[Problem]:
        """Do what `Store.verify` says."""
        return await verify(self._check(), self._schema, queue)


def read_added(specs: Sequence[JobSpec], rows: Sequence[Any]) -> list[Added]:
    """Turn the rows of ``add_1`` into what became of each spec.

    Raises:
        JobNotFoundError: A parent is unknown.
        ConfigurationError: A job would have two parents, or the transaction belongs to another database.
    """
    first = rows[0]
    if first[0] == -4:
        raise ConfigurationError(
            "tx belongs to another database than this store: a transaction cannot reach over two of them"
        )
    if first[0] == -1:
        raise JobNotFoundError(first[4], first[1])
    if first[0] < 0:
        place: int = first[5]
        spec = specs[place - 1]
        what = "names itself as its parent" if first[0] == -2 else f"is already a child of {first[4]}:{first[1]}"
        raise ConfigurationError(
            f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
        )
    found = {row[0]: row for row in rows}
    return [
        Added(found[place][1], SHOWN[found[place][2]], _EXISTING[found[place][3]]) for place in range(1, len(specs) + 1)
    ]


def _series(rows: Sequence[Any], kind: int, this: int, minutes: int) -> Series:
    numbers: dict[int, int] = {row["minute"]: row["num"] for row in rows if row["kind"] == kind}
    length = max(0, min(minutes, numbers.get(-3, 0), this - numbers.get(-2, this)))
    return Series(numbers.get(-1, 0), tuple(numbers.get(this - ago, 0) for ago in range(1, length + 1)))


def _settings(row: Any) -> QueueSettings:
    rate = None
    if row["rate_max"] is not None and row["rate_ms"] is not None:
        rate = RateLimit(row["rate_max"], row["rate_ms"])
    return QueueSettings(
        paused=row["paused"],
        concurrency=row["concurrency"],
        rate=rate,
        event_cap=row["event_cap"],
        limited_until=row["limited_until"],
    )


def _schedule(queue: str, row: Any) -> ScheduleRecord:
    state = row["state"]
    if state is not None:
        state = JobState.PRIORITIZED if state == 1 and row["priority"] > 0 else SHOWN[state]
    return ScheduleRecord(
        queue=queue,
        id=row["id"],
        definition=load_definition(row["body"]),
        slot=row["slot"],
        count=row["count"],
        paused=row["paused"],
        job_state=state,
    )
