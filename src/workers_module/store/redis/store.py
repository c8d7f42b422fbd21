"""The Redis store: each call of the contract is one script."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, Final, Literal, NoReturn, assert_never
from weakref import ref

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import (
    ConfigurationError,
    IllegalMoveError,
    JobNotFoundError,
    StoreError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.events import Event, EventBatch
from workers_module.job.record import JobRecord, ParentRef
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import (
    Action,
    Added,
    Beat,
    ByIds,
    Capability,
    Child,
    Claimed,
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
    Step,
    StepReply,
    StoreInfo,
    Sweep,
    SweepReply,
    WorkerInfo,
    WorkerOrder,
)
from workers_module.store.codec import dump_worker, load_worker
from workers_module.store.planning import MAX_MOVED, check_specs, check_step
from workers_module.store.redis.address import Address
from workers_module.store.redis.asking import (
    action_args,
    add_args,
    definition_values,
    patch_args,
    renew_args,
    write_outcomes,
    write_patch,
)
from workers_module.store.redis.connect import Link, Links
from workers_module.store.redis.events import Follower
from workers_module.store.redis.faults import CutOffError, said
from workers_module.store.redis.fields import (
    FLAGS,
    Started,
    is_plain,
    read_plain,
    read_record,
    record_fields,
    spec_extras,
    to_json,
)
from workers_module.store.redis.keys import Keys, check_id, check_tags, described, glob, hash_tag, is_reserved
from workers_module.store.redis.layout import Layout
from workers_module.store.redis.peers import inspect, node_workers, warning
from workers_module.store.redis.reading import (
    CHILD_STATES,
    CODES,
    EDITED,
    read_added,
    read_problem,
    read_renewal,
    read_schedule,
    read_series,
    texts,
    to_text,
)
from workers_module.store.redis.renewer import RedisRenewer
from workers_module.store.redis.scales import QUEUE_BYTES, SAMPLE, Scales
from workers_module.store.redis.scripts import Argument, Command, Script, script
from workers_module.store.redis.servers import Servers
from workers_module.store.redis.slots import by_slot, check_parent
from workers_module.url import QueueKind

OLDEST: Final = (6, 2)
"""The oldest server this works with; a clock of the caller's needs `OLDEST_WITH_CLOCK`."""
OLDEST_WITH_CLOCK: Final = (7, 0)
MOST_CONNECTIONS: Final = 10
_LOOK_SECONDS: Final = 0.1
"""How often a server looks whose sleep is over; the longest sleeps may be longer by that."""
BLOCK_SECONDS: Final = 10.0
"""How long a worker sleeps at most before it looks again, were all markers lost."""
_SLACK_SECONDS: Final = 5.0
_SCANNED: Final = 1_000
_SLOW_SECONDS: Final = 0.1
_LISTED_SECONDS: Final = 30.0
"""How long the names of queues are remembered, when finding them took long."""
_PIECE: Final = 500
"""Jobs of one call to ``restore``, and of one look of ``verify``."""
_TO: Final[dict[type[Action], str]] = {Remove: "removed", RetryAgain: "waiting", Promote: "waiting", Fail: "failed"}
_UNKNOWN_PARENT: Final = -5
_OTHER_PARENT: Final = -7
_ACTIVE: Final = JobState.ACTIVE
_PLAIN: Final = 1
"""The handle of a job whose hash had nothing but what every job has when it was claimed: it is settled with less."""

_ADD: Final = script("add-2")
_STEP: Final = script("step-2")
_RENEW: Final = script("renew-2")
_SWEEP: Final = script("sweep-2")
_EDIT: Final = script("edit-2")
_MOVE: Final = script("move-2")
_CONFIGURE: Final = script("configure-2")
_OBLITERATE: Final = script("obliterate-2")
_SCHEDULE: Final = script("schedule-2")
_READ: Final = script("read-2")
_PUBLISH: Final = script("publish-2")
_RESTORE: Final = script("restore-2")
_VERIFY: Final = script("verify-2")
_WEIGH: Final = script("weigh-2")
_LEASE: Final = script("lease-1")
_WORKER: Final = script("worker-1")
_PASSING: Final = frozenset({_READ, _RENEW, _SWEEP, _VERIFY, _WEIGH, _WORKER})
"""Scripts after which no replica is waited for: they write nothing, or what is written again and again."""
_SPURIOUS: Final = ("UNBLOCKED", "MOVED", "ASK", "TRYAGAIN")

_log = logging.getLogger(__name__)


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
        self._clock = clock if clock is not None and type(clock) is not Clock else None
        self._allow_eviction = self._address.flag("allow_eviction", allow_eviction)
        self._most = self._address.number("connections", connections)
        self._replicas = self._address.number("wait_replicas", wait_replicas)
        self._scales = Scales(self._address.number("queue_bytes", queue_bytes))
        self._layout = Layout(self._address)
        self._servers: Servers | None = None
        self._opening: asyncio.Lock | None = None
        self._info: StoreInfo | None = None
        self._declared: dict[str, tuple[str, ...]] = {}
        self._wake_at: dict[str, float | None] = {}
        self._listed: tuple[float, list[str]] | None = None
        self._warned: set[str] = set()
        if isinstance(clock, FrozenClock):
            me = ref(self)

            def moved() -> None:
                store = me()
                if store is not None and store._servers is not None:
                    store._servers.interrupt()

            clock.on_change(moved)

    # life

    async def open(self) -> StoreInfo:
        """Connect and look at the server's settings; see `Store.open`."""
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._info is None or self._servers is None or self._servers.closed:
                servers = Servers(self._address, self._layout, self._most, self._replicas)
                try:
                    self._info = await self._look_around(servers)
                except BaseException:
                    await servers.close()
                    raise
                self._servers = servers
        return self._info

    async def _look_around(self, servers: Servers) -> StoreInfo:
        (first, *others) = await servers.each()
        found = [await inspect(servers, first, self._keys.pattern())]
        if found[0].clustered and not self._layout.clustered:
            # Its address is that of one node only: the others are found through it.
            self._layout.clustered = True
            servers.doubt()
            (first, *others) = await servers.each()
            found = [await inspect(servers, first, self._keys.pattern())]
        found += [await inspect(servers, links, self._keys.pattern()) for links in others]
        self._keys.clustered = self._layout.clustered
        self._declared.clear()
        oldest = min(found, key=lambda one: one.speaks)
        if oldest.speaks < OLDEST:
            raise ConfigurationError(
                f"{oldest.place} is version {oldest.version}; this needs Redis 6.2, or Valkey, or newer"
            )
        if self._clock is not None and oldest.speaks < OLDEST_WITH_CLOCK:
            raise ConfigurationError(f"{oldest.place} is version {oldest.version}; a clock of your own needs Redis 7.0")
        warnings: list[str] = []
        for one in found:
            warnings += one.warnings(allow_eviction=self._allow_eviction)
        if self._keys.clustered and not hash_tag(self._keys.head):
            warnings.append(
                f"{self._address.place} is a cluster, and the key prefix has no braces: each queue's name needs them "
                f"('{{mail}}'), or put the prefix in braces ('{{{self._keys.prefix}}}')."
            )
        warnings += self._address.warnings()
        return StoreInfo(
            kind=QueueKind.REDIS,
            version=oldest.version,
            place=f"{self._address.place} (prefix {self._keys.prefix})",
            capabilities=frozenset({Capability.DURABLE, Capability.SHARED}),
            warnings=tuple(dict.fromkeys(warnings)),
        )

    async def close(self) -> None:
        """End sleeping calls, let the others end, and let go of every connection; see `Store.close`."""
        servers, self._servers = self._servers, None
        if servers is not None:
            await servers.close()

    def renewer(self) -> "RedisRenewer":
        """Return a renewer with a connection of its own; see `Store.renewer`."""
        return RedisRenewer(self._address, self._layout, self._keys, self._clock)

    def _open_servers(self) -> Servers:
        if self._servers is None:
            raise StoreError(f"{self._address.place}: this store is not open; await store.open() first")
        return self._servers

    def _instant(self, now: int | None) -> Argument:
        if now is not None:
            return now
        return "" if self._clock is None else self._clock.now_ms()

    def _declare(self, queue: str) -> tuple[str, ...]:
        keys = self._declared.get(queue)
        if keys is None:
            keys = self._declared[queue] = self._keys.declared(queue)
        return keys

    def _command(self, what: Script, queue: str, now: int | None, args: Iterable[Argument]) -> Command:
        return what.command(self._declare(queue), (self._keys.head, queue, self._instant(now), *args))

    async def _call(self, what: Script, queue: str, now: int | None, *args: Argument) -> Any:
        servers = self._open_servers()
        return await servers.call(what, self._command(what, queue, now, args), lasting=what not in _PASSING)

    async def now(self) -> int:
        """Return the server's clock; see `Store.now`."""
        if self._clock is not None:
            self._open_servers()
            return self._clock.now_ms()
        seconds, micros = await self._open_servers().ask(self._keys.locks, ("TIME",))
        return int(seconds) * 1_000 + int(micros) // 1_000

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
        self._open_servers()
        if not specs:
            return []
        check_specs(specs)
        for spec in specs:
            if spec.id is not None:
                check_id(spec.queue, spec.id)
            if spec.tags:
                check_tags(spec.queue, spec.tags)
        self._listed = None
        if not self._keys.clustered:
            return await self._add_here(specs, now)
        added: list[Added | None] = [None] * len(specs)
        stored: list[JobSpec] = []
        for batch in by_slot(self._keys, specs):
            try:
                for n, one in zip(batch.numbers, await self._add_here(batch.specs, now), strict=True):
                    added[n] = one
            except (StoreError, ConfigurationError) as error:
                if all(spec.id is not None for spec in stored):
                    raise
                raise StoreOutcomeUnknownError(
                    f"{error}. Jobs of other queues in this call have been added; give jobs ids of their own to add "
                    "them again safely"
                ) from error
            stored += batch.specs
        return [one for one in added if one is not None]

    async def _add_here(self, specs: Sequence[JobSpec], now: int | None) -> list[Added]:
        """Add jobs whose queues lie in one slot."""
        args = add_args(self._keys, specs)
        try:
            reply = await self._call(_ADD, specs[0].queue, now, *args)
        except CutOffError as error:
            if all(spec.id is not None for spec in specs):
                raise
            raise StoreOutcomeUnknownError(
                f"{error}; the jobs may or may not have been added. Give jobs ids of their own to add them again safely"
            ) from error
        if isinstance(reply[0], int):
            self._refuse_parent(specs, reply)
        return list(map(read_added, reply))

    def _refuse_parent(self, specs: Sequence[JobSpec], reply: Sequence[int]) -> None:
        spec = specs[reply[1] - 1]
        if reply[0] == _UNKNOWN_PARENT and isinstance(spec.parent, ParentRef):
            raise JobNotFoundError(spec.parent.queue, spec.parent.id)
        what = "names itself as its parent" if reply[2] else "is already the child of another job"
        raise ConfigurationError(
            f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
        )

    # working

    def _step_command(self, req: Step) -> Command:
        rate = req.rate
        args: list[Argument] = [
            req.token,
            req.worker,
            req.take,
            req.lease_ms,
            "+".join(req.tags),
            "" if rate is None else rate.max,
            "" if rate is None else rate.window_ms,
            req.metrics,
            "1" if req.resume else "",
        ]
        write_outcomes(args, req.outcomes)
        return self._command(_STEP, req.queue, req.now, args)

    def _step_reply(self, req: Step, reply: Sequence[Any]) -> StepReply:
        now, paused, wake_at, version, codes, jobs = reply
        instant = int(now)
        due = int(wake_at) if wake_at else None
        # By this machine's steady clock: what the server's says is compared with nothing but itself.
        self._wake_at[req.queue] = None if due is None else due - instant + time.monotonic() * 1_000
        if version:
            self._warn_once(version.decode())
        claimed: list[Claimed] = []
        queue, token, keys = req.queue, req.token, self._keys
        texts = iter(jobs)
        for job in texts:
            plain = isinstance(job, bytes)
            if plain:
                id = job.decode()
                record = read_plain(queue, id, next(texts), next(texts), next(texts), next(texts), instant, req.worker)
            else:
                *flat, tags, raw, start = job
                id = raw.decode()
                started = Started(int(start), instant, req.worker) if start else None
                record = read_record(keys, queue, id, tags, _ACTIVE, flat, started=started)
                # One that is asked for again is what it was.
                plain = started is None and not tags and is_plain(record, flat)
            held: Held = tuple.__new__(Held, (id, token, record.fence, _PLAIN if plain else None))
            claimed.append(tuple.__new__(Claimed, (record, held)))
        return StepReply([CODES[code] for code in codes], claimed, due, paused == 1, instant)

    def _warn_once(self, version: str) -> None:
        if version not in self._warned:
            self._warned.add(version)
            _log.warning("%s", warning(version))

    async def step(self, req: Step) -> StepReply:
        """Settle outcomes, then claim jobs; see `Store.step`."""
        check_step(req)
        reply = await self._open_servers().call(_STEP, self._step_command(req), lasting=True)
        return self._step_reply(req, reply)

    async def wait(self, req: Step, timeout: float) -> StepReply:
        """Sleep until a marker wakes this worker or time does, then do ``req``; see `Store.wait`.

        The claim is sent right behind the sleep, over the same connection.
        """
        servers = self._open_servers()
        check_step(req)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        name = self._keys.client_name(req.queue, req.worker)
        key = self._declare(req.queue)[0]
        resume, moved = req.resume, False
        while True:
            links = await servers.at(key)
            link = links.sleeper(name)
            try:
                seconds = 0.0 if moved else self._seconds_to_sleep(req, end - loop.time())
                reply = await self._sleep(servers, links, link, req, seconds)
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

    def _seconds_to_sleep(self, req: Step, seconds: float) -> float:
        """Return how long to sleep at most: not past the next moment at which time brings work."""
        return min(seconds, BLOCK_SECONDS, self._seconds_to_due(req))

    def _seconds_to_due(self, req: Step) -> float:
        due = self._wake_at.get(req.queue)
        if due is None or self._clock is not None or req.now is not None:
            return math.inf
        # One more, for the part of a millisecond that the server's clock does not show: nothing starts early.
        return (due - time.monotonic() * 1_000 + 1) / 1_000

    async def _sleep(self, servers: Servers, links: Links, link: Link, req: Step, seconds: float) -> StepReply:
        sleep: list[Command] = []
        if seconds > 0:
            keys = self._keys.markers(req.queue, req.tags)
            sleep = [("BZPOPMIN", *keys, f"{max(seconds, 0.002):.3f}")]
        if sleep and self._clock is not None:
            # A clock that is moved meanwhile must not leave a claim of an earlier time behind.
            self._check_marker(servers, links, await link.ask(sleep, seconds + _SLACK_SECONDS))
            sleep = []
        command = self._step_command(req)
        alarm = links.alarm(await link.id(), seconds) if sleep and seconds < BLOCK_SECONDS - _LOOK_SECONDS else None
        try:
            *marker, reply = await link.ask([*sleep, command], seconds + _SLACK_SECONDS)
        finally:
            if alarm is not None:
                alarm.cancel()
        self._check_marker(servers, links, marker)
        if isinstance(reply, Exception):
            reply = await servers.repeat(links, _STEP, command, reply)
        return self._step_reply(req, servers.answer(reply, links))

    def _check_marker(self, servers: Servers, links: Links, replies: Sequence[Any]) -> None:
        for reply in replies:
            # A sleep ended by force, or on a node that the queue has left: the claim behind it tells.
            if isinstance(reply, Exception) and not said(reply).startswith(_SPURIOUS):
                servers.refuse(reply, links)

    async def renew(self, queue: str, held: Sequence[Held], lease_ms: int, *, now: int | None = None) -> RenewReply:
        """Extend the leases of running jobs; see `Store.renew`."""
        if not held:
            self._open_servers()
            return RenewReply()
        return read_renewal(await self._call(_RENEW, queue, now, *renew_args(held, lease_ms)))

    async def sweep(self, req: Sweep) -> SweepReply:
        """Bring back abandoned jobs and tidy up; see `Store.sweep`. Now and then the queue is weighed."""
        if self._scales.wanted(req.queue):
            # Before the sweep, so that what fails here does not lose the sweep's reply.
            taken, state, number = await self._call(_WEIGH, req.queue, req.now, SAMPLE)
            self._scales.note(req.queue, self._address.place, taken, to_text(state), number)
        recovered, idle, wake_at, more, now = await self._call(
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
        known = [id for id in ids if not is_reserved(id)]
        found: dict[str, JobRecord] = {}
        for piece in _pieces(known):
            for row in await self._call(_READ, queue, None, "get", "" if payload else "1", *piece):
                if row:
                    record = self._record(queue, row)
                    found[record.id] = record
        self._open_servers()
        return [found.get(id) for id in ids]

    def _record(self, queue: str, row: Sequence[Any]) -> JobRecord:
        id, tags, state, due, flat = row
        return read_record(
            self._keys, queue, id.decode(), tags, JobState(state.decode()), flat, due=int(due) if due else None
        )

    async def page(
        self, queue: str, states: Sequence[JobState], *, start: int = 0, limit: int = 100, newest_first: bool = False
    ) -> Page[JobRecord]:
        """Read a piece of the list of jobs in some states; see `Store.page`."""
        total, rows = await self._call(
            _READ, queue, None, "page", start, limit, "1" if newest_first else "", *(state.value for state in states)
        )
        return Page([self._record(queue, row) for row in rows if row[4]], total)

    async def counts(self, queues: Sequence[str]) -> list[Counts]:
        """Count the jobs of each queue by state; see `Store.counts`."""
        servers = self._open_servers()
        if not queues:
            return []
        replies = [
            servers.answer(reply)
            for reply in await servers.call_all(
                _READ, [self._command(_READ, queue, None, ["counts"]) for queue in queues]
            )
        ]
        return [
            Counts(
                queue=queue,
                waiting=n[0],
                prioritized=n[1],
                delayed=n[2],
                active=n[3],
                completed=n[4],
                failed=n[5],
                waiting_children=n[6],
                paused=n[7] == 1,
            )
            for queue, n in zip(queues, replies, strict=True)
        ]

    async def logs(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[str]:
        """Read a job's log, oldest line first; see `Store.logs`."""
        if is_reserved(id):
            return Page([], 0)
        total, lines = await self._call(_READ, queue, None, "logs", id, start, limit)
        return Page([to_text(line) for line in lines], total)

    async def children(self, queue: str, id: str, *, start: int = 0, limit: int = 1_000) -> Page[Child]:
        """Read a job's children in the order they were added; see `Store.children`.

        Those that Node added come last, in the order of their names: BullMQ keeps none.
        """
        if is_reserved(id):
            return Page([], 0)
        total, rows = await self._call(_READ, queue, None, "children", id, start, limit)
        items: list[Child] = []
        for key, state, value in rows:
            owner, child = self._keys.queue_of(to_text(key)) or _foreign(to_text(key))
            what: Literal["pending", "processed", "failed", "ignored"] = CHILD_STATES[state]
            result = value if what == "processed" else None
            items.append(Child(owner, child, what, result, to_text(value) if what in {"failed", "ignored"} else None))
        return Page(items, total)

    async def queues(self) -> list[str]:
        """Return the names of all queues; see `Store.queues`.

        Found by going through all keys; when that takes long, the answer is kept for half a minute.
        """
        if self._listed is not None and time.monotonic() - self._listed[0] < _LISTED_SECONDS:
            return list(self._listed[1])
        began = time.monotonic()
        names: set[str] = set()
        for links in await self._open_servers().each():
            found_here = self._scan(links, self._keys.pattern())
            names.update([name async for key in found_here if (name := self._keys.listed(key))])
        found = sorted(names)
        took = time.monotonic() - began
        self._listed = (time.monotonic(), found) if took > _SLOW_SECONDS else None
        return list(found)

    async def _scan(self, links: Links, pattern: str) -> AsyncGenerator[str]:
        servers = self._open_servers()
        cursor: bytes = b"0"
        while True:
            (reply,) = await servers.run(links, [("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)])
            cursor, keys = servers.answer(reply, links)
            for key in keys:
                yield to_text(key)
            if cursor == b"0":
                return

    async def metrics(self, queue: str, *, minutes: int = 60) -> Metrics:
        """Read how many jobs ended; see `Store.metrics`."""
        completed, failed = await self._call(_READ, queue, None, "metrics")
        return Metrics(read_series(completed, minutes), read_series(failed, minutes))

    # changing

    async def edit(self, queue: str, patches: Sequence[JobPatch], *, now: int | None = None) -> list[EditResult]:
        """Change jobs in place; see `Store.edit`."""
        results: list[EditResult] = []
        for piece in _pieces(patches):
            args: list[Argument] = []
            for patch in piece:
                write_patch(args, patch)
            codes = await self._call(_EDIT, queue, now, *args)
            results += [EDITED[code] for code in codes]
        self._open_servers()
        return results

    async def move(self, queue: str, selection: Selection, action: Action, *, now: int | None = None) -> list[str]:
        """Move or delete jobs; see `Store.move`. A thousand at a time: others may step in between."""
        what = action_args(action)
        if isinstance(selection, ByIds):
            return await self._move_ids(queue, list(dict.fromkeys(selection.ids)), action, what, now)
        most = min(selection.limit or MAX_MOVED, MAX_MOVED)
        moved: list[str] = []
        chosen, at = 0, "1:0"
        while at and chosen < most:
            ids, number, after = await self._call(
                _MOVE,
                queue,
                now,
                *what,
                "states",
                at,
                most - chosen,
                "" if selection.older_than is None else selection.older_than,
                len(selection.states),
                *(state.value for state in selection.states),
                *selection.names,
            )
            moved += texts(ids)
            chosen += number
            at = after.decode()
        return moved

    async def _move_ids(
        self, queue: str, ids: list[str], action: Action, what: Sequence[Argument], now: int | None
    ) -> list[str]:
        self._open_servers()
        moved: list[str] = []
        known = [id for id in ids if not is_reserved(id)]
        if len(ids) == 1 and not known:
            raise JobNotFoundError(queue, ids[0])
        for piece in _pieces(known[:MAX_MOVED]):
            done, state = await self._call(_MOVE, queue, now, *what, "ids", *piece)
            if state and len(ids) == 1:
                if state == b"missing":
                    raise JobNotFoundError(queue, ids[0])
                raise IllegalMoveError(ids[0], state.decode(), _TO[type(action)])
            moved += texts(done)
        return moved

    async def configure(self, queue: str, patch: QueuePatch | None = None, *, now: int | None = None) -> QueueSettings:
        """Change a queue's settings and return them; see `Store.configure`."""
        text = ""
        if patch is not None and patch != QueuePatch():
            text = to_json(patch_args(patch))
            self._listed = None
        paused, concurrency, most, window, cap, limited = await self._call(_CONFIGURE, queue, now, text)
        rate = RateLimit(int(most), int(window or 0)) if most else None
        return QueueSettings(
            paused=paused == 1,
            concurrency=int(concurrency) if concurrency else None,
            rate=rate,
            event_cap=int(cap),
            limited_until=int(limited) if limited else None,
        )

    async def obliterate(self, queue: str, *, force: bool = False, limit: int = 1_000) -> bool:
        """Delete a queue with everything in it; see `Store.obliterate`."""
        self._listed = None
        done = await self._call(_OBLITERATE, queue, None, "1" if force else "", limit)
        if isinstance(done, bytes):
            raise IllegalMoveError(done.decode(), _ACTIVE.value, _TO[Remove])
        if done != 1:
            return False
        # What hangs on no job any more: keys of deduplication that run out by themselves, and what other clients left.
        servers, name = self._open_servers(), glob(queue)
        for owner in (name, f"{name}@*"):
            links = await servers.at(self._keys.meta(queue))
            found = [key async for key in self._scan(links, self._keys.pattern(owner, "*"))]
            for piece in _pieces(found):
                await servers.ask(piece[0], ("UNLINK", *piece))
        return True

    async def drop(self) -> None:
        """Delete every key under this store's prefix, whoever wrote it."""
        self._listed = None
        servers = self._open_servers()
        for links in await servers.each():
            found = [key async for key in self._scan(links, self._keys.pattern(suffix="*"))]
            for piece in _pieces(found):
                for reply in await servers.run(links, [("UNLINK", key) for key in piece]):
                    servers.answer(reply, links)

    # schedules, locks, workers, events

    async def schedules(
        self, queue: str, *, start: int = 0, limit: int = 100, ids: Sequence[str] | None = None
    ) -> list[ScheduleRecord]:
        """Read schedules; see `Store.schedules`."""
        if ids is None:
            rows = await self._call(_READ, queue, None, "schedules", start, limit)
        else:
            rows = await self._call(_READ, queue, None, "schedules", 0, -1, *ids)
        return [read_schedule(queue, row) for row in rows]

    async def schedule(
        self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule], *, now: int | None = None
    ) -> list[bool]:
        """Change schedules; see `Store.schedule`."""
        if not changes:
            return []
        args: list[Argument] = []
        for change in changes:
            match change:
                case PutSchedule():
                    definition = change.definition
                    args += ("put", change.id, change.slot, to_json(definition_values(definition)))
                    args += (definition.data, definition.opts, "1" if change.paused else "")
                    args += self._slot_job(queue, change.job)
                case FireSlot():
                    args += ("fire", change.id, change.from_slot, change.slot, "1" if change.replace else "")
                    args += self._slot_job(queue, change.job)
                case DropSchedule():
                    args += ("drop", change.id)
                case _:
                    assert_never(change)
        self._listed = None
        return [done == 1 for done in await self._call(_SCHEDULE, queue, now, *args)]

    def _slot_job(self, queue: str, job: JobSpec) -> tuple[Argument, ...]:
        check_tags(queue, job.tags)
        extras = spec_extras(job._replace(parent=None, dedup=None))
        return self._keys.place(queue, job.tags), job.name, job.data, job.opts, to_json(extras)

    async def lease(
        self, name: str, owner: str, ttl_ms: int, *, fence: int | None = None, now: int | None = None
    ) -> int | None:
        """Acquire, extend or release a named lock; see `Store.lease`."""
        args = (self._instant(now), name, owner, ttl_ms, "" if fence is None else fence)
        found: int = await self._open_servers().call(_LEASE, _LEASE.command([self._keys.locks], args))
        return None if found < 0 else found

    async def locks(self) -> list[LockInfo]:
        """Return the locks that are held now, by name; see `Store.locks`."""
        now, fields = await self._hash_now(self._keys.locks)
        held: list[LockInfo] = []
        for field, value in fields:
            if field.startswith("l:"):
                until, fence, owner = value.split(":", 2)
                if int(until) > now:
                    held.append(LockInfo(field[2:], owner, int(fence), int(until)))
        return sorted(held)

    async def _hash_now(self, key: str) -> tuple[int, list[tuple[str, str]]]:
        """Return a hash of ours, and what time it is."""
        flat = await self._open_servers().ask(key, ("HGETALL", key))
        now = await self.now()
        it = iter(flat)
        return now, [(to_text(field), to_text(value)) for field, value in zip(it, it, strict=False)]

    async def worker(self, change: Beat | Order, *, now: int | None = None) -> WorkerOrder | None:
        """Tell of a worker, or leave it an order; see `Store.worker`."""
        args: tuple[Argument, ...]
        match change:
            case Order(id, order):
                args = ("order", id, order)
            case Beat(info, ttl_ms):
                args = ("beat", info.id, ttl_ms, dump_worker(info))
            case _:
                assert_never(change)
        command = _WORKER.command([self._keys.workers], (self._instant(now), *args))
        left = await self._open_servers().call(_WORKER, command)
        return "drain" if left == b"drain" else "stop" if left == b"stop" else None

    async def workers(self) -> list[WorkerInfo]:
        """Return the workers heard of within their time, by id, and Node's behind them; see `Store.workers`."""
        now, fields = await self._hash_now(self._keys.workers)
        found: list[WorkerInfo] = []
        for field, value in sorted(fields):
            if field.startswith("w:"):
                until, seen, text = value.split(":", 2)
                if int(until) > now:
                    found.append(replace(load_worker(text), seen=int(seen)))
        servers = self._open_servers()
        own = tuple(found)
        for links in await servers.each():
            (reply,) = await servers.run(links, [("CLIENT", "LIST", "TYPE", "normal")])
            # Without the right to list clients, ours are all that can be told of.
            if not isinstance(reply, Exception):
                found += node_workers(self._keys, to_text(reply), now, own)
        return found

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        """Follow a queue's events; see `Store.events`. With tags the order holds among jobs with the same tags."""
        return self._following(queue, after)

    @asynccontextmanager
    async def _following(self, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
        follower = Follower(self._open_servers(), self._keys, queue, after)
        await follower.begin()
        batches = follower.batches()
        try:
            yield batches
        finally:
            await batches.aclose()

    async def publish(self, queue: str, events: Sequence[Event]) -> None:
        """Append events of the application's own; see `Store.publish`."""
        args: list[Argument] = []
        for event in events:
            texts = [str(event.type)]
            if event.job_id is not None:
                texts += ("jobId", event.job_id)
            for name, value in event.fields.items():
                texts += (name, value)
            args += (len(texts), *texts)
        self._open_servers()
        if not args:
            return
        try:
            await self._call(_PUBLISH, queue, None, *args)
        except CutOffError as error:
            raise StoreOutcomeUnknownError(f"{error}; the events may or may not have been published") from error

    # whole queues

    async def restore(self, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"] = "skip") -> int:
        """Write records back, some hundred at a time; see `Store.restore`."""
        self._open_servers()
        for record in records:
            check_id(record.queue, record.id)
            check_tags(record.queue, record.tags)
        if on_conflict == "error":
            await self._refuse_conflicts(records)
        self._listed = None
        written = 0
        for piece in self._restore_pieces(records):
            args: list[Argument] = ["1" if on_conflict == "error" else ""]
            for record in piece:
                fields = record_fields(record)
                extras: dict[str, object] = {"p": record.priority, "l": record.lifo}
                if record.parent is not None:
                    extras |= {"pq": record.parent.queue, "pid": record.parent.id, "po": FLAGS[record.policy]}
                if record.dedup is not None:
                    extras["k"] = record.dedup
                state = JobState.WAITING if record.state is _ACTIVE else record.state
                ended = record.added if record.finished is None else record.finished
                args += (
                    self._keys.place(record.queue, record.tags),
                    record.id,
                    state.value,
                    "" if record.due is None else record.due,
                    ended if record.state.ended else "",
                    to_json(extras),
                    len(fields),
                    *fields,
                )
            reply = await self._call(_RESTORE, piece[0].queue, None, *args)
            if reply[0] < 0:
                _refuse_conflict(to_text(reply[3]).removeprefix(self._keys.head).partition("@")[0], to_text(reply[2]))
            written += reply[0]
        return written

    def _restore_pieces(self, records: Sequence[JobRecord]) -> Iterator[Sequence[JobRecord]]:
        by_slot: dict[str, list[JobRecord]] = {}
        for record in records:
            slot = self._keys.slot(record.queue)
            if record.parent is not None:
                check_parent(self._keys, record.queue, record.id, record.parent.queue)
            by_slot.setdefault(slot, []).append(record)
        for together in by_slot.values():
            yield from _pieces(together)

    async def _refuse_conflicts(self, records: Sequence[JobRecord]) -> None:
        by_queue: dict[str, list[str]] = {}
        for record in records:
            ids = by_queue.setdefault(record.queue, [])
            if record.id in ids[-1:]:
                _refuse_conflict(record.queue, record.id)
            ids.append(record.id)
        for queue, ids in by_queue.items():
            if len(set(ids)) < len(ids):
                _refuse_conflict(queue, next(id for id in ids if ids.count(id) > 1))
            for one in await self.get(queue, ids, payload=False):
                if one is not None:
                    _refuse_conflict(queue, one.id)

    async def verify(self, queue: str) -> list[Problem]:
        """Check the invariants; see `Store.verify`. On a queue at work it may show what is only on its way."""
        servers = self._open_servers()
        tagsets = self._declare(queue)[1]
        problems: list[Problem] = []
        for tags in ["", *sorted(map(to_text, await servers.ask(tagsets, ("SMEMBERS", tagsets))))]:
            for state in ALL_STATES:
                start = 0
                while True:
                    number, found = await self._call(_VERIFY, queue, None, tags, state.value, start, _PIECE)
                    problems += map(read_problem, found)
                    start += _PIECE
                    if number < _PIECE:
                        break
            for piece in _pieces(await self._hanging_keys(queue, tags)):
                _, found = await self._call(_VERIFY, queue, None, tags, "keys", *chain.from_iterable(piece))
                problems += map(read_problem, found)
        return problems

    async def _hanging_keys(self, queue: str, tags: str) -> list[tuple[str, str]]:
        """Return what of a queue's keys hangs on a job; see `described`."""
        links = await self._open_servers().at(self._keys.meta(queue))
        place = f"{queue}@{tags}" if tags else queue
        start = len(f"{self._keys.head}{place}:")
        found = {key async for key in self._scan(links, self._keys.pattern(glob(place), "*"))}
        return sorted(one for key in found if (one := described(key[start:])))


def _foreign(key: str) -> tuple[str, str]:
    place, _, id = key.rpartition(":")
    return place.rpartition(":")[2], id


def _refuse_conflict(queue: str, id: str) -> NoReturn:
    raise ConfigurationError(
        f"queue {queue!r} has a job {id} already; nothing was written. "
        "Import with on_conflict='skip', or remove the job"
    )


def _pieces(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _PIECE):
        yield items[start : start + _PIECE]
