"""The store in a Postgres schema."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Literal
from weakref import ref

import anyio

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import StoreUnavailableError
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.migrate import MigrateMode, MigrationStatus
from workers_module.store.planning import CRASHED, check_specs, check_step
from workers_module.store.postgres import changing, looking, registry, schedules
from workers_module.store.postgres.adding import Guest, read_added, tell_added
from workers_module.store.postgres.asking import add_args, held_args, outcome_args, raw
from workers_module.store.postgres.calls import ALL, FALLBACK, Calls
from workers_module.store.postgres.connect import Address, Pool
from workers_module.store.postgres.events import following, publish
from workers_module.store.postgres.fronts import Front
from workers_module.store.postgres.notify import Notifier
from workers_module.store.postgres.reading import SETTLED, to_claims
from workers_module.store.postgres.renewer import PostgresRenewer
from workers_module.store.postgres.schema import home_of, prepare, status
from workers_module.store.postgres.verifying import verify
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
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
    SettleCode,
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)
from workers_module.url import QueueKind

SCHEMA: Final = "workers_module"


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
        self._calls = Calls(self._address, clock if clock is not None and type(clock) is not Clock else None)
        self._migrate: MigrateMode = migrate
        self._listens = wakeup == "listen"
        self._guest = Guest(self._calls, listens=self._listens)
        self._fronts: dict[str, Front] = {}
        self._info: StoreInfo | None = None
        self._opening: asyncio.Task[StoreInfo] | None = None
        if isinstance(clock, FrozenClock):
            me = ref(self._calls)

            def moved() -> None:
                calls = me()
                if calls is not None:
                    calls.hub.run(calls.hub.hint_all)

            clock.on_change(moved)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> StoreInfo:
        """Do what `Store.open` says."""
        if self._info is not None:
            self._calls.check()
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
        pool = Pool(self._address)
        await pool.open()
        try:
            async with pool.connection() as connection:
                warnings = await prepare(connection, self._address, self._migrate)
                self._guest.home = await home_of(connection, self._address.schema)
                version: str = await connection.fetchval("SELECT current_setting('server_version')")
        except BaseException:
            await pool.close()
            raise
        self._calls.begin(pool)
        if self._listens:
            self._calls.notifier = Notifier(self._address, self._calls.heard)
            self._calls.notifier.start()
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
        if self._info is None or self._calls.forked:
            return
        self._info = None
        calls = self._calls
        pool, calls.pool = calls.pool, None
        notifier, calls.notifier = calls.notifier, None
        calls.hub.hint_all()
        calls.news.hint_all()
        with anyio.CancelScope(shield=True):
            if notifier is not None:
                await notifier.stop()
            if pool is not None:
                await pool.close()

    async def now(self) -> int:
        """Do what `Store.now` says."""
        pool = self._calls.check()
        if self._calls.clock is not None:
            return self._calls.clock.now_ms()
        rows = await pool.fetch(self._calls.sql.now, [])
        now: int = rows[0]["now"]
        return now

    def renewer(self) -> PostgresRenewer:
        """Do what `Store.renewer` says."""
        return PostgresRenewer(self._address, self._calls.clock)

    # --- producing ----------------------------------------------------------------------------------------------------

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Do what `Store.add` says."""
        self._calls.check()
        if not specs:
            return []
        check_specs(specs)
        if tx is not None:
            return await self._guest.add(specs, tx, now)
        calls = self._calls
        args = add_args(specs, home=None, channel=None, now=calls.instant(now))
        repeatable = all(spec.id is not None for spec in specs)
        rows = await calls.fetch(calls.sql.add, *args, repeatable=repeatable)
        added = read_added(specs, rows)
        tell_added(calls, specs, added)
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
        return self._guest.add_sync(specs, tx, notify=notify, now=now)

    # --- working ------------------------------------------------------------------------------------------------------

    async def step(self, req: Step) -> StepReply:
        """Do what `Store.step` says."""
        check_step(req)
        rate = req.rate
        front = self._fronts.setdefault(req.queue, Front())
        rows = await self._calls.fetch(
            self._calls.sql.step,
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
            *front.begin(),
            *outcome_args(req.outcomes),
            self._calls.instant(req.now),
        )
        claimed, last = rows[:-1], rows[-1]
        if req.take and not req.tags:
            front.learn(last["ready_from"], last["done_from"])
        codes: list[int] = last["codes"]
        settled = [SETTLED[code] for code in codes]
        jobs = to_claims(req.queue, req.token, claimed)
        hint: int = last["hint"]
        if hint or jobs or SettleCode.OK in settled:
            self._calls.changed(req.queue, ALL if hint and last["tagged"] else hint, len(settled))
        self._calls.told(last["news"], req.queue)
        return StepReply(settled, jobs, last["wake_at"], last["paused"], last["now"])

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Do what `Store.wait` says."""
        self._calls.check()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        with self._calls.hub.listen(req.queue, req) as ear:
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
        calls = self._calls
        rows = await calls.fetch(calls.sql.renew, queue, *held_args(held), lease_ms, calls.instant(now))
        return RenewReply(tuple(rows[0]["lost"]), tuple(rows[0]["cancelled"]))

    async def sweep(self, req: Sweep) -> SweepReply:
        """Do what `Store.sweep` says."""
        calls = self._calls
        ages = (req.completed_age_ms, req.failed_age_ms)
        now = calls.instant(req.now)
        rows = await calls.fetch(calls.sql.sweep, req.queue, req.interval_ms, req.max_crashes, *ages, CRASHED, now)
        row = rows[0]
        if row["hint"] or row["recovered"]:
            calls.changed(req.queue, ALL if row["hint"] else 0)
        calls.told(row["news"], req.queue)
        return SweepReply(tuple(row["recovered"]), tuple(row["idle"]), row["wake_at"], row["more"], row["now"])

    # --- looking ------------------------------------------------------------------------------------------------------

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Do what `Store.get` says."""
        return await looking.get(self._calls, queue, ids, payload=payload)

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Do what `Store.page` says."""
        return await looking.page(self._calls, queue, states, start=start, limit=limit, newest_first=newest_first)

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Do what `Store.counts` says."""
        return await looking.counts(self._calls, queues)

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Do what `Store.logs` says."""
        return await looking.logs(self._calls, queue, id, start=start, limit=limit)

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Do what `Store.children` says."""
        return await looking.children(self._calls, queue, id, start=start, limit=limit)

    async def queues(self) -> list[str]:
        """Do what `Store.queues` says."""
        return await looking.queues(self._calls)

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Do what `Store.metrics` says."""
        return await looking.metrics(self._calls, queue, minutes=minutes)

    # --- changing -----------------------------------------------------------------------------------------------------

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Do what `Store.edit` says."""
        return await changing.edit(self._calls, queue, patches, now=now)

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Do what `Store.move` says."""
        return await changing.move(self._calls, queue, selection, action, now=now)

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Do what `Store.configure` says."""
        return await changing.configure(self._calls, queue, patch, now=now)

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Do what `Store.obliterate` says."""
        return await changing.obliterate(self._calls, queue, force=force, limit=limit)

    async def drop(self) -> None:
        """Delete the schema with everything in it; the store can only be closed, or opened again, afterwards."""
        await self._calls.fetch(f'DROP SCHEMA IF EXISTS "{self._address.schema}" CASCADE')

    # --- schedules, locks, workers, events ----------------------------------------------------------------------------

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Do what `Store.schedules` says."""
        return await schedules.read(self._calls, queue, start=start, limit=limit, ids=ids)

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Do what `Store.schedule` says."""
        return await schedules.schedule(self._calls, queue, changes, now=now)

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Do what `Store.lease` says."""
        return await registry.lease(self._calls, name, owner, ttl_ms, fence=fence, now=now)

    async def locks(self) -> list[LockInfo]:
        """Do what `Store.locks` says."""
        return await registry.locks(self._calls)

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Do what `Store.worker` says."""
        return await registry.worker(self._calls, change, now=now)

    async def workers(self) -> list[WorkerInfo]:
        """Do what `Store.workers` says."""
        return await registry.workers(self._calls)

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Do what `Store.events` says."""
        return following(self._calls, queue, after)

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Do what `Store.publish` says."""
        await publish(self._calls, queue, events)

    # --- whole queues -------------------------------------------------------------------------------------------------

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Do what `Store.restore` says."""
        return await changing.restore(self._calls, records, on_conflict=on_conflict)

    async def verify(self, queue: str) -> list[Problem]:
        """Do what `Store.verify` says."""
        return await verify(self._calls.check(), self._address.schema, queue)
