"""The Redis store: each call of the contract is one script."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Final, Literal
from weakref import ref

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import ConfigurationError, StoreUnavailableError
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.planning import check_specs, check_step
from workers_module.store.redis import changing, queries, registry, schedules
from workers_module.store.redis.adding import add_by_slot, add_here
from workers_module.store.redis.address import Address
from workers_module.store.redis.asking import renew_args
from workers_module.store.redis.calls import Calls
from workers_module.store.redis.events import following, publish
from workers_module.store.redis.keys import Keys, check_id, check_tags
from workers_module.store.redis.layout import Layout
from workers_module.store.redis.peers import look_around
from workers_module.store.redis.reading import read_renewal, texts, to_text
from workers_module.store.redis.renewer import RedisRenewer
from workers_module.store.redis.restoring import restore
from workers_module.store.redis.scales import QUEUE_BYTES, SAMPLE, Scales
from workers_module.store.redis.scripts import script
from workers_module.store.redis.servers import Servers
from workers_module.store.redis.stepping import STEP, Stepper
from workers_module.store.redis.verifying import verify
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.values import (
    Action,
    Added,
    Beat,
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

MOST_CONNECTIONS: Final = 10
_RENEW: Final = script("renew-2")
_SWEEP: Final = script("sweep-2")
_WEIGH: Final = script("weigh-2")


class RedisStore:
    """Keeps jobs in Redis 6.2 or newer, or Valkey, as BullMQ 6 does.

    Delivery, leases and slots go by the server's clock.

    On a cluster all keys of a queue must lie in one slot: braces in the prefix (``{bull}``) put all queues into one,
    and flows across queues work; braces in a queue's name (``{mail}``) put each into its own.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://`` for one server, or any node of a cluster;
            ``redis+cluster://host1:7000,host2:7000`` for some nodes of a cluster;
            ``redis+sentinel://host1:26379,host2:26379/mymaster/0`` for what sentinels watch; both also with ``rediss``.
            What its parameters say of the options below wins over them.
        prefix: What all keys begin with.
        clock: A clock other than the server's, for tests.
        allow_eviction: Accept a server that deletes keys when its memory is full. It will lose jobs.
        connections: How many commands may be under way at once, on each server.
        queue_bytes: How much memory a queue may take before sweeps warn of it; 0 for any.
        wait_replicas: How many replicas must have a write before its call returns; else that raises
            `StoreUnavailableError`, and what cannot be repeated `StoreOutcomeUnknownError`. The write is kept.

    Example:
        ``store = RedisStore("redis://localhost:6379/0"); await store.open()``

    Raises:
        ConfigurationError: The URL or the prefix cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "bull",
        clock: Clock | None = None,
        allow_eviction: bool = False,
        connections: int = MOST_CONNECTIONS,
        queue_bytes: int = QUEUE_BYTES,
        wait_replicas: int = 0,
    ) -> None:
        self._address = Address(url)
        self._keys = Keys(prefix)
        own = clock if clock is not None and type(clock) is not Clock else None
        self._calls = Calls(self._address.place, self._keys, own)
        self._stepper = Stepper(self._calls)
        self._allow_eviction = self._address.flag("allow_eviction", allow_eviction)
        self._most = self._address.number("connections", connections)
        self._replicas = self._address.number("wait_replicas", wait_replicas)
        self._scales = Scales(self._address.number("queue_bytes", queue_bytes))
        self._layout = Layout(self._address)
        self._opening: asyncio.Lock | None = None
        self._info: StoreInfo | None = None
        if isinstance(clock, FrozenClock):
            me = ref(self._calls)

            def moved() -> None:
                calls = me()
                if calls is not None and calls.servers is not None:
                    calls.servers.interrupt()

            clock.on_change(moved)

    # life

    async def open(self) -> StoreInfo:
        """Connect and look at the server's settings; see `Store.open`."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._info is None or self._calls.servers is None or self._calls.servers.closed:
                servers = Servers(self._address, self._layout, self._most, self._replicas)
                try:
                    self._info = await look_around(
                        servers,
                        self._address,
                        self._layout,
                        self._keys,
                        own_clock=self._calls.clock is not None,
                        allow_eviction=self._allow_eviction,
                    )
                except BaseException:
                    await servers.close()
                    raise
                self._calls.begin(servers)
        return self._info

    async def close(self) -> None:
        """End sleeping calls, let the others end, and let go of every connection; see `Store.close`."""
        servers, self._calls.servers = self._calls.servers, None
        if servers is not None:
            await servers.close()

    def renewer(self) -> RedisRenewer:
        """Return a renewer with a connection of its own; see `Store.renewer`."""
        return RedisRenewer(self._address, self._layout, self._keys, self._calls.clock)

    async def now(self) -> int:
        """Return the server's clock; see `Store.now`."""
        return await self._calls.now()

    # producing

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        """Store jobs; see `Store.add`.

        Raises:
            ConfigurationError: ``tx`` is given, and Redis takes part in no other transaction. Write the job to a table
                of your own in that transaction (an outbox), and add it from there under an id of its own.
            InvalidNameError: An id or a tag that Redis needs for itself.
        """
        if tx is not None:
            raise ConfigurationError(
                "Redis takes part in no transaction of another store: leave tx= out. To add a job exactly if a "
                "transaction commits, write it to an outbox table in that transaction, and add it from there "
                "under an id of its own"
            )
        self._calls.open_servers()
        if not specs:
            return []
        check_specs(specs)
        for spec in specs:
            if spec.id is not None:
                check_id(spec.queue, spec.id)
            if spec.tags:
                check_tags(spec.queue, spec.tags)
        self._calls.listed = None
        if not self._keys.clustered:
            return await add_here(self._calls, specs, now)
        return await add_by_slot(self._calls, specs, now)

    # working

    async def step(self, req: Step) -> StepReply:
        """Settle outcomes, then claim jobs; see `Store.step`."""
        check_step(req)
        reply = await self._calls.open_servers().call(STEP, self._stepper.command(req), lasting=True)
        return self._stepper.reply(req, reply)

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Sleep until a marker wakes this worker or time does, then do ``req``; see `Store.wait`.

        The claim is sent right behind the sleep, over the same connection.
        """
        servers = self._calls.open_servers()
        check_step(req)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        name = self._keys.client_name(req.queue, req.worker)
        key = self._calls.declare(req.queue)[0]
        resume, moved = req.resume, False
        while True:
            links = await servers.at(key)
            link = links.sleeper(name)
            try:
                seconds = 0.0 if moved else self._stepper.seconds_to_sleep(req, end - loop.time())
                reply = await self._stepper.sleep(servers, links, link, req, seconds)
            except StoreUnavailableError:
                await links.forget(link)
                servers.check()
                if not link.interrupted or links.retired:
                    servers.doubt()
                    raise
                # Somebody moved the clock; what the call before may have claimed is under our token.
                moved, req = True, replace(req, resume=True)
                continue
            except BaseException:
                await links.forget(link)
                raise
            finally:
                await links.rest(name, link)
            if moved:
                moved, req = False, replace(req, resume=resume)
            if reply.jobs or loop.time() >= end:
                return reply

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Extend the leases of running jobs; see `Store.renew`."""
        if not held:
            self._calls.open_servers()
            return RenewReply()
        return read_renewal(await self._calls.call(_RENEW, queue, now, *renew_args(held, lease_ms)))

    async def sweep(self, req: Sweep) -> SweepReply:
        """Bring back abandoned jobs and tidy up; see `Store.sweep`. Now and then the queue is weighed."""
        if self._scales.wanted(req.queue):
            # Before the sweep, so that what fails here does not lose the sweep's reply.
            taken, state, number = await self._calls.call(_WEIGH, req.queue, req.now, SAMPLE)
            self._scales.note(req.queue, self._address.place, taken, to_text(state), number)
        recovered, idle, wake_at, more, now = await self._calls.call(
            _SWEEP,
            req.queue,
            req.now,
            req.interval_ms,
            req.max_crashes,
            "" if req.completed_age_ms is None else req.completed_age_ms,
            "" if req.failed_age_ms is None else req.failed_age_ms,
        )
        return SweepReply(texts(recovered), texts(idle), int(wake_at) if wake_at else None, more == 1, int(now))

    # looking

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        """Read jobs by id; see `Store.get`."""
        return await queries.get(self._calls, queue, ids, payload=payload)

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Read a piece of the list of jobs in some states; see `Store.page`."""
        return await queries.page(self._calls, queue, states, start=start, limit=limit, newest_first=newest_first)

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Count the jobs of each queue by state; see `Store.counts`."""
        return await queries.counts(self._calls, queues)

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Read a job's log, oldest line first; see `Store.logs`."""
        return await queries.logs(self._calls, queue, id, start=start, limit=limit)

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Read a job's children in the order they were added; see `Store.children`.

        Those that Node added come last, in the order of their names: BullMQ keeps none.
        """
        return await queries.children(self._calls, queue, id, start=start, limit=limit)

    async def queues(self) -> list[str]:
        """Return the names of all queues; see `Store.queues`.

        Found by going through all keys; when that takes long, the answer is kept for half a minute.
        """
        return await queries.queues(self._calls)

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Read how many jobs ended; see `Store.metrics`."""
        return await queries.metrics(self._calls, queue, minutes=minutes)

    # changing

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Change jobs in place; see `Store.edit`."""
        return await changing.edit(self._calls, queue, patches, now=now)

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Move or delete jobs; see `Store.move`. A thousand at a time: others may step in between."""
        return await changing.move(self._calls, queue, selection, action, now=now)

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Change a queue's settings and return them; see `Store.configure`."""
        return await changing.configure(self._calls, queue, patch, now=now)

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Delete a queue with everything in it; see `Store.obliterate`."""
        return await changing.obliterate(self._calls, queue, force=force, limit=limit)

    async def drop(self) -> None:
        """Delete every key under this store's prefix, whoever wrote it."""
        await changing.drop(self._calls)

    # schedules, locks, workers, events

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Read schedules; see `Store.schedules`."""
        return await schedules.read(self._calls, queue, start=start, limit=limit, ids=ids)

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Change schedules; see `Store.schedule`."""
        return await schedules.schedule(self._calls, queue, changes, now=now)

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Acquire, extend or release a named lock; see `Store.lease`."""
        return await registry.lease(self._calls, name, owner, ttl_ms, fence=fence, now=now)

    async def locks(self) -> list[LockInfo]:
        """Return the locks that are held now, by name; see `Store.locks`."""
        return await registry.locks(self._calls)

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Tell of a worker, or leave it an order; see `Store.worker`."""
        return await registry.worker(self._calls, change, now=now)

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers heard of within their time, by id, and Node's behind them; see `Store.workers`."""
        return await registry.workers(self._calls)

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Follow a queue's events; see `Store.events`. With tags the order holds among jobs with the same tags."""
        return following(self._calls, queue, after)

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Append events of the application's own; see `Store.publish`."""
        await publish(self._calls, queue, events)

    # whole queues

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Write records back, some hundred at a time; see `Store.restore`."""
        return await restore(self._calls, records, on_conflict=on_conflict)

    async def verify(self, queue: str) -> list[Problem]:
        """Check the invariants; see `Store.verify`. On a queue at work it may show what is only on its way."""
        return await verify(self._calls, queue)
