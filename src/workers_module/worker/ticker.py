"""Schedules: written, caught up with, and their next slot always stored.

A schedule stores its next job ahead, so there is no loop that fires: whoever claims the job of a slot stores the next
one (`Ticker.admit`), and where that job is gone the sweep says so (`Ticker.revive`). Only what fires in each process,
past the store, has a loop here.
"""

import heapq
import json
import logging
import random
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Self, cast
from uuid import uuid4

import anyio
import anyio.abc

from workers_module.clock import Clock
from workers_module.errors import ScheduleError, StoreError
from workers_module.job.outcome import Completed, Keep, Outcome, Snooze
from workers_module.job.record import OnCrash, Token
from workers_module.job.schedule import LATE_MS, CatchUp, Schedule, restart_slot, successor
from workers_module.job.state import READY, JobState
from workers_module.store.base import (
    Claimed,
    DedupSpec,
    DropSchedule,
    FireSlot,
    JobSpec,
    PutSchedule,
    ScheduleDefinition,
    ScheduleRecord,
    Step,
    Store,
)
from workers_module.worker.handler import ScheduleSpec
from workers_module.worker.outage import Outage

_log = logging.getLogger(__name__)

_PAGE: Final = 100
_PENDING: Final = frozenset({*READY, JobState.DELAYED})
_CLOCK_QUEUE: Final = "workers.clock"
"""A queue without jobs.

A step on it tells the store's time and, unlike one on a schedule's queue, makes no late job ready.
"""
_LONGEST_SLEEP_S: Final = 60.0
UNRUN: Final = Completed(b"null", Keep(count=0))
"""How a slot ends that is not to run: no record is kept."""

Tick = Callable[[], Awaitable[None]]


# --- what the store keeps of a schedule -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a schedule behaves, as far as BullMQ has no place for it: `ScheduleDefinition.extra`.

    Attributes:
        owner: The application that declares it, and may remove it; None for one that was added at run time.
        catch_up: What becomes of missed slots. None is Node's rule: the late job runs, then the next slot after now.
        overlap: Whether a run starts while the last one has not ended.
        threshold_ms: A slot later than this is ended unrun.
        initial_delay_ms: No slot before the process has run so long.
        jitter_ms: Each job starts up to so much after its slot.
        lock: The distributed lock its run holds.
        disabled: It was declared so; lets a later declaration tell that from a person's pause.
    """

    owner: str | None = None
    catch_up: CatchUp | None = None
    overlap: Literal["skip", "allow"] = "allow"
    threshold_ms: int | None = None
    initial_delay_ms: int | None = None
    jitter_ms: int | None = None
    lock: str | None = None
    disabled: bool = False

    def write(self) -> bytes:
        """Return the rules as JSON; equal rules give equal bytes."""
        values: dict[str, object] = {
            "owner": self.owner,
            "catchUp": self.catch_up,
            "overlap": self.overlap,
            "threshold": self.threshold_ms,
            "initialDelay": self.initial_delay_ms,
            "jitter": self.jitter_ms,
            "lock": self.lock,
            "disabled": self.disabled or None,
        }
        kept = {key: value for key, value in values.items() if value is not None}
        return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def read(cls, extra: bytes) -> Self:
        """Return what `write` wrote; what Node or a newer version wrote counts as far as it is understood."""
        try:
            loaded: object = json.loads(extra or b"{}")
        except ValueError:
            loaded = {}
        values = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}

        def text(key: str) -> str | None:
            value = values.get(key)
            return value if isinstance(value, str) else None

        def ms(key: str) -> int | None:
            value = values.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

        catch_up = text("catchUp")
        return cls(
            owner=text("owner"),
            catch_up=cast("CatchUp", catch_up) if catch_up in {"latest", "all", "none"} else None,
            overlap="skip" if values.get("overlap") == "skip" else "allow",
            threshold_ms=ms("threshold"),
            initial_delay_ms=ms("initialDelay"),
            jitter_ms=ms("jitter"),
            lock=text("lock"),
            disabled=values.get("disabled") is True,
        )


@lru_cache(maxsize=1_024)
def rules_of(definition: ScheduleDefinition) -> Rules:
    """Return the rules a stored schedule carries."""
    return Rules.read(definition.extra)


@lru_cache(maxsize=1_024)
def schedule_of(definition: ScheduleDefinition) -> Schedule:
    """Return the slots of a stored schedule.

    Raises:
        ScheduleError: The definition holds an expression, zone or distance that cannot be used here.
    """
    if definition.pattern is not None:
        return Schedule.cron(definition.pattern, tz=definition.tz or "UTC", start=definition.start, end=definition.end)
    if definition.every_ms is None:
        raise ScheduleError(f"schedule of {definition.name!r} has neither a pattern nor a distance")
    return Schedule.every(
        definition.every_ms, offset_ms=definition.offset_ms or None, start=definition.start, end=definition.end
    )


def definition_of(spec: ScheduleSpec, owner: str | None) -> ScheduleDefinition:
    """Return what the store keeps of a declared schedule.

    Raises:
        ScheduleError: It has no slots that the store could keep: a `@timeout`.
    """
    if spec.schedule is None:
        raise ScheduleError(f"{spec.label}: {spec.name!r} has no slots")
    schedule = spec.schedule
    rules = Rules(
        owner=owner,
        catch_up=spec.catch_up,
        overlap=spec.overlap,
        threshold_ms=spec.threshold_ms,
        initial_delay_ms=spec.initial_delay_ms,
        jitter_ms=spec.jitter_ms,
        lock=spec.lock,
        disabled=spec.disabled,
    )
    return ScheduleDefinition(
        name=spec.job_name,
        pattern=schedule.expression,
        every_ms=schedule.every_ms,
        offset_ms=schedule.offset_ms or 0,
        tz=schedule.tz if schedule.expression is not None else None,
        start=schedule.start,
        end=schedule.end,
        data=spec.data,
        opts=spec.options,
        extra=rules.write(),
    )


def slot_job(queue: str, id: str, definition: ScheduleDefinition, *, slot: int, count: int, now: int) -> JobSpec:
    """Return the job of a slot.

    Args:
        queue: The schedule's queue.
        id: The schedule's id.
        definition: What it is; name, data and options are taken from it.
        slot: The instant, in milliseconds.
        count: The number of this job, from 1.
        now: The store's clock.

    Returns:
        The job, with the options Node reads to find the next slot by itself.

    Source: wire format §7.4.
    """
    options: dict[str, Any] = json.loads(definition.opts or b"{}")
    values = {
        "pattern": definition.pattern,
        "every": definition.every_ms,
        "tz": definition.tz,
        "limit": definition.limit,
        "startDate": definition.start,
        "endDate": definition.end,
        "offset": definition.offset_ms or None,
        "count": count,
    }
    repeat = {key: value for key, value in values.items() if value is not None}
    job_id = slot_id(id, slot)
    delay = max(0, slot - now)
    options |= {"repeat": repeat, "jobId": job_id, "delay": delay, "timestamp": now, "repeatJobKey": id}
    if definition.pattern is not None:
        options["prevMillis"] = slot
    tags: list[str] = options.get("tags") or []
    on_crash: OnCrash = "fail" if options.get("onCrash") == "fail" else "retry"
    return JobSpec(
        queue=queue,
        id=job_id,
        name=definition.name,
        data=definition.data,
        opts=json.dumps(options, separators=(",", ":"), ensure_ascii=False).encode(),
        timestamp=now,
        due=slot,
        priority=options.get("priority") or 0,
        lifo=bool(options.get("lifo")),
        max_attempts=options.get("attempts") or 1,
        tags=tuple(sorted(set(tags))),
        on_crash=on_crash,
        schedule=id,
    )


def slot_id(id: str, slot: int) -> str:
    """Return the id of a slot's job."""
    return f"repeat:{id}:{slot}"


def _slot_of(job_id: str) -> int | None:
    number = job_id.rpartition(":")[2]
    return int(number) if number.isascii() and number.isdigit() else None


# --- locks a run holds ------------------------------------------------------------------------------------------------


class RunLocks:
    """The named locks of one run: its schedule's own, against overlap, and the one it was declared with.

    The owner is the job: a second start of the same job (after a crash, a retry) gets its lock at once.
    """

    __slots__ = ("_fences", "_owner", "_store", "_ttl_ms")

    def __init__(self, store: Store, owner: str, ttl_ms: int) -> None:
        self._store = store
        self._owner = owner
        self._ttl_ms = ttl_ms
        self._fences: dict[str, int] = {}

    async def acquire(self, names: Iterable[str]) -> bool:
        """Acquire all of these, or none."""
        for name in names:
            fence = await self._store.lease(name, self._owner, self._ttl_ms)
            if fence is None:
                await self.release()
                return False
            self._fences[name] = fence
        return True

    async def keep(self) -> str:
        """Extend the locks until one is lost, and return its name.

        An outage of the store is sat out as long as they hold.
        """
        outage = Outage(f"locks of {self._owner}")
        held_until = anyio.current_time() + self._ttl_ms / 1_000
        wait = self._ttl_ms / 3_000
        while True:
            await anyio.sleep(wait)
            sent = anyio.current_time()
            for name, fence in self._fences.items():
                try:
                    kept = await self._store.lease(name, self._owner, self._ttl_ms, fence=fence)
                except StoreError as error:
                    wait = min(outage.pause(error), self._ttl_ms / 10_000)
                    if anyio.current_time() >= held_until:
                        return name
                    break
                if kept is None:
                    return name
            else:
                outage.over()
                held_until = sent + self._ttl_ms / 1_000
                wait = self._ttl_ms / 3_000

    async def release(self) -> None:
        """Release what is held; what the store does not hear of ends with its time."""
        while self._fences:
            name, fence = self._fences.popitem()
            try:
                await self._store.lease(name, self._owner, 0, fence=fence)
            except StoreError as error:
                _log.warning("lock %s is not released, and ends in %d ms: %s", name, self._ttl_ms, error)


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether the job of a slot may run.

    Attributes:
        outcome: How it ends unrun, or None when it may run.
        locks: What its run holds: keep them meanwhile, release them afterwards. None when there are none.
    """

    outcome: Outcome | None = None
    locks: RunLocks | None = None


# --- the ticker -------------------------------------------------------------------------------------------------------


class Ticker:
    """Keeps the schedules of one process going; any number of processes may do the same for the same schedules."""

    def __init__(
        self,
        store: Store,
        specs: Iterable[ScheduleSpec] = (),
        *,
        owner: str,
        queues: Iterable[str] = (),
        declared: Iterable[tuple[str, str]] | None = None,
        worker: str = "worker",
        lock_ms: int = 90_000,
    ) -> None:
        """Prepare; nothing is written before `prepare`.

        Args:
            store: Where the schedules are.
            specs: The schedules that tick here, except those that fire in each process.
            owner: The application's id.
            queues: The queues consumed here: their schedules, whoever made them, are caught up with at start.
            declared: ``(queue, schedule id)`` of all schedules of the application, also of workers that do not run
            here; what
                this application owns beyond them is removed. None: those of ``specs``.
            worker: The name under which steps are made.
            lock_ms: How long the locks of a run outlive its process.
        """
        self._store = store
        self._specs = [spec for spec in specs if not spec.every_instance]
        self._owner = owner
        self._queues = tuple(dict.fromkeys((*queues, *(spec.queue for spec in self._specs))))
        self._declared = (
            frozenset(declared) if declared is not None else frozenset((s.queue, s.name) for s in self._specs)
        )
        self._worker = worker
        self._lock_ms = lock_ms
        self._started: int | None = None
        self._broken: set[tuple[str, str, ScheduleDefinition]] = set()

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues whose schedules are kept going here."""
        return self._queues

    async def prepare(self) -> None:
        """Write what is declared, remove what no longer is, and catch up with missed slots; before the first claim."""
        now = await self.now()
        self._started = now
        await self.sync(now)
        for queue in self._queues:
            await self._catch_up(queue, now)

    async def now(self) -> int:
        """Return the store's clock."""
        token = Token(f"{self._worker}-clock-{uuid4().hex}")
        reply = await self._store.step(Step(queue=_CLOCK_QUEUE, worker=self._worker, token=token))
        return reply.now

    async def sync(self, now: int) -> None:
        """Write what is declared and remove what this application owned and no longer declares. Repeatable.

        A person's pause outlives the declaration; a definition that has not changed keeps its slot.
        """
        for spec in self._specs:
            if spec.schedule is None:
                await self._put_timeout(spec)
            else:
                await self._put(spec, now)
        known = {*await self._store.queues(), *self._queues}
        for queue in sorted(known):
            stale = [
                record.id
                for record in await self._all(queue)
                if rules_of(record.definition).owner == self._owner and (queue, record.id) not in self._declared
            ]
            if stale:
                await self._store.schedule(queue, [DropSchedule(id=id) for id in stale], now=None)
                _log.info("queue %s: schedules no longer declared, removed: %s", queue, ", ".join(stale))

    async def admit(self, claimed: Claimed, now: int) -> Admission:
        """Store the next slot of the schedule whose job was claimed, and say whether this job may run.

        The stored definition decides, so that changes made at run time hold. Repeatable.

        Args:
            claimed: A job with a schedule.
            now: The store's clock, as the claim told it.

        Raises:
            ScheduleError: The stored definition cannot be used here; the next slot is not stored.
            StoreError: The store could not be asked; try again.
        """
        record = claimed.record
        queue, id, slot = record.queue, record.schedule or "", _slot_of(record.id)
        found = await self._store.schedules(queue, ids=[id])
        if not found or slot is None:
            # Removed meanwhile, or added by hand under a schedule's name: this run is the last.
            return Admission()
        schedule = found[0]
        if schedule.slot == slot:
            await self._fire_next(schedule, now)
        rules = rules_of(schedule.definition)
        jitter = _jitter(id, slot, rules.jitter_ms)
        if now < slot + jitter:
            return Admission(Snooze(slot + jitter - now))
        first_start = record.attempts_made == 0 and record.crashes == 0
        if first_start and rules.initial_delay_ms and self._started is not None:
            early = self._started + rules.initial_delay_ms - now
            if early > 0:
                return Admission(Snooze(early))
        if first_start and rules.threshold_ms is not None and now > slot + jitter + rules.threshold_ms:
            _log.warning("schedule %s: slot %d is %d ms late and is not run", id, slot, now - slot)
            return Admission(UNRUN)
        names = [f"schedule.{id}"] if rules.overlap == "skip" else []
        names += [rules.lock] if rules.lock is not None else []
        if not names:
            return Admission()
        locks = RunLocks(self._store, f"{queue}:{record.id}", self._lock_ms)
        if await locks.acquire(names):
            return Admission(None, locks)
        _log.info("schedule %s: slot %d is not run, another run holds %s", id, slot, " or ".join(names))
        return Admission(UNRUN)

    async def revive(self, queue: str, ids: Sequence[str], now: int) -> None:
        """Store the next slot of schedules whose current job is missing or ended, as a sweep found them."""
        for start in range(0, len(ids), _PAGE):
            for record in await self._store.schedules(queue, ids=ids[start : start + _PAGE]):
                if record.job_state is None or record.job_state.ended:
                    await self._fire_next_or_log(record, now)

    async def _put(self, spec: ScheduleSpec, now: int) -> None:
        definition = definition_of(spec, self._owner)
        schedule = schedule_of(definition)
        found = await self._store.schedules(spec.queue, ids=[spec.name])
        record = found[0] if found else None
        paused = spec.disabled
        count = 1
        if record is None or _timing(record.definition) != _timing(definition):
            slot = _first_slot(schedule, now + (spec.initial_delay_ms or 0))
        else:
            paused = paused or (record.paused and not rules_of(record.definition).disabled)
            if definition == record.definition and paused == record.paused:
                return
            count = record.count + 1
            slot = record.slot if record.job_state in _PENDING else _successor(record, schedule, now)
        if slot is None:
            _log.warning("schedule %s has ended and is not written: %s", spec.name, spec.label)
            return
        job = slot_job(spec.queue, spec.name, definition, slot=slot, count=count, now=now)
        change = PutSchedule(id=spec.name, definition=definition, slot=slot, job=job, paused=paused)
        await self._store.schedule(spec.queue, [change])

    async def _put_timeout(self, spec: ScheduleSpec) -> None:
        # Deduplicated, so that processes that start together bring one job between them.
        if spec.disabled:
            return
        job = JobSpec(
            queue=spec.queue,
            id=f"timeout-{uuid4().hex}",
            name=spec.job_name,
            data=spec.data,
            opts=spec.options,
            delay_ms=spec.after_ms or 0,
            dedup=DedupSpec(f"timeout.{spec.name}"),
        )
        await self._store.add([job])

    async def _catch_up(self, queue: str, now: int) -> None:
        for record in await self._all(queue):
            if record.paused:
                continue
            if record.job_state is None or record.job_state.ended:
                await self._fire_next_or_log(record, now)
            elif record.job_state is JobState.DELAYED and now - record.slot > LATE_MS:
                await self._replace_late(record, now)

    async def _replace_late(self, record: ScheduleRecord, now: int) -> None:
        catch_up = rules_of(record.definition).catch_up
        if catch_up is None:
            return
        try:
            schedule = schedule_of(record.definition)
        except ScheduleError as error:
            self._report(record, error)
            return
        slot = restart_slot(schedule, slot=record.slot, now=now, catch_up=catch_up)
        if slot is not None and slot > record.slot:
            await self._fire(record, slot, now, replace=True)
        elif slot is None and catch_up == "none":
            # It has ended while nobody ran: the late job is the last one, and it is not wanted.
            await self._store.schedule(record.queue, [DropSchedule(id=record.id)])

    async def _fire_next(self, record: ScheduleRecord, now: int) -> None:
        limit = record.definition.limit
        if record.paused or (limit is not None and record.count >= limit):
            return
        slot = _successor(record, schedule_of(record.definition), now)
        if slot is not None:
            await self._fire(record, slot, now)

    async def _fire_next_or_log(self, record: ScheduleRecord, now: int) -> None:
        try:
            await self._fire_next(record, now)
        except ScheduleError as error:
            self._report(record, error)

    async def _fire(self, record: ScheduleRecord, slot: int, now: int, *, replace: bool = False) -> None:
        job = slot_job(record.queue, record.id, record.definition, slot=slot, count=record.count + 1, now=now)
        # A refusal means that another process was faster, or that the schedule was changed: both are fine.
        change = FireSlot(id=record.id, from_slot=record.slot, slot=slot, job=job, replace=replace)
        await self._store.schedule(record.queue, [change])

    async def _all(self, queue: str) -> list[ScheduleRecord]:
        records: list[ScheduleRecord] = []
        while True:
            page = await self._store.schedules(queue, start=len(records), limit=_PAGE)
            records += page
            if len(page) < _PAGE:
                return records

    def _report(self, record: ScheduleRecord, error: ScheduleError) -> None:
        key = (record.queue, record.id, record.definition)
        if key not in self._broken:
            self._broken.add(key)
            _log.error("queue %s: schedule %s does not tick: %s", record.queue, record.id, error)


def _successor(record: ScheduleRecord, schedule: Schedule, now: int) -> int | None:
    catch_up = rules_of(record.definition).catch_up or "none"
    return successor(schedule, slot=record.slot, now=now, catch_up=catch_up)


def _first_slot(schedule: Schedule, now: int) -> int | None:
    if schedule.every_ms is not None and schedule.offset_ms is None and schedule.start is None:
        # The seed's @Interval comes for the first time after one distance, not at once.
        return schedule.first_slot(now + schedule.every_ms)
    return schedule.first_slot(now)


def _timing(definition: ScheduleDefinition) -> tuple[object, ...]:
    return (
        definition.pattern,
        definition.every_ms,
        definition.offset_ms,
        definition.tz,
        definition.start,
        definition.end,
    )


def _jitter(id: str, slot: int, jitter_ms: int | None) -> int:
    # The same for every process, so that a job put off once is due when it comes back.
    return zlib.crc32(f"{id}:{slot}".encode()) % (jitter_ms + 1) if jitter_ms else 0


# --- what fires in each process ---------------------------------------------------------------------------------------


class LocalTicks:
    """Fires `every_instance` schedules and `@timeout` in this process, past the store.

    Nothing is stored and nothing is caught up with: a slot that passed while the process was busy or down is gone.
    """

    def __init__(
        self,
        specs: Iterable[ScheduleSpec],
        ticks: Mapping[str, Tick],
        *,
        store: Store,
        clock: Clock | None = None,
        lock_ms: int = 90_000,
    ) -> None:
        """Prepare; the first slots are set by `begin`.

        Args:
            specs: All schedules that tick here; those that go through the store are left aside.
            ticks: The calls, by schedule name.
            store: Where the locks are that some of them hold.
            clock: This process' clock; it judges what is past the store.
            lock_ms: How long such a lock outlives the process.
        """
        self._specs = [spec for spec in specs if spec.every_instance and not spec.disabled]
        self._ticks = ticks
        self._store = store
        self._clock = clock or Clock()
        self._lock_ms = lock_ms
        self._due: list[tuple[int, int, int]] = []
        self._schedules = [spec.schedule for spec in self._specs]
        self._running: set[int] = set()
        self._stopped = anyio.Event()

    def __bool__(self) -> bool:
        return bool(self._specs)

    @property
    def wake_at(self) -> int | None:
        """The next instant something fires, or None."""
        return self._due[0][0] if self._due else None

    def begin(self) -> None:
        """Set the first slots, counted from now."""
        now = self._clock.now_ms()
        self._due = []
        for number, spec in enumerate(self._specs):
            after = now + (spec.initial_delay_ms or 0)
            schedule = spec.schedule
            if schedule is None:
                self._push(after + (spec.after_ms or 0), number)
                continue
            slot = _first_slot(schedule, after)
            if slot is not None:
                self._schedules[number] = schedule.anchored(slot)
                self._push(slot, number)

    async def run_due(self) -> int:
        """Fire what is due in the caller's task, in order; how many fired."""
        count = 0
        while self._due and self._due[0][0] <= self._clock.now_ms():
            number = self._pop()
            if number is not None:
                await self._fire(number)
                count += 1
        return count

    def stop(self) -> None:
        """Fire no more; `run` returns when what has begun has ended."""
        self._stopped.set()

    async def run(self) -> None:
        """Fire until stopped; cancelled, what has begun is cancelled too."""
        if not self._due:
            self.begin()
        async with anyio.create_task_group() as group:
            while self._due and not self._stopped.is_set():
                wait_ms = self._due[0][0] - self._clock.now_ms()
                if wait_ms > 0:
                    # Not in one sleep, so that a clock that is set forward is noticed.
                    with anyio.move_on_after(min(wait_ms / 1_000, _LONGEST_SLEEP_S)):
                        await self._stopped.wait()
                    continue
                number = self._pop()
                if number is not None and not self._overlaps(number):
                    self._running.add(number)
                    group.start_soon(self._fire, number)

    def _pop(self) -> int | None:
        """Return what is due first, or None where its slot is too late to fire."""
        _, slot, number = heapq.heappop(self._due)
        spec, schedule, now = self._specs[number], self._schedules[number], self._clock.now_ms()
        if schedule is not None:
            following = schedule.next_slot(max(slot, now))
            if following is not None:
                self._push(following, number)
        if spec.threshold_ms is not None and now > slot + (spec.jitter_ms or 0) + spec.threshold_ms:
            return None
        return number

    def _push(self, slot: int, number: int) -> None:
        jitter = self._specs[number].jitter_ms
        at = slot + random.randrange(jitter + 1) if jitter else slot  # noqa: S311
        heapq.heappush(self._due, (at, slot, number))

    def _overlaps(self, number: int) -> bool:
        return self._specs[number].overlap == "skip" and number in self._running

    async def _fire(self, number: int) -> None:
        spec = self._specs[number]
        try:
            if spec.lock is None:
                await self._ticks[spec.name]()
            else:
                await self._fire_locked(spec, spec.lock)
        except Exception:
            _log.exception("schedule %s (%s) failed", spec.name, spec.label)
        finally:
            self._running.discard(number)

    async def _fire_locked(self, spec: ScheduleSpec, lock: str) -> None:
        locks = RunLocks(self._store, f"tick-{uuid4().hex}", self._lock_ms)
        if not await locks.acquire([lock]):
            return
        async with AsyncExitStack() as stack:
            stack.push_async_callback(_shielded, locks.release)
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(_cancel_when_lost, locks, group.cancel_scope)
            await self._ticks[spec.name]()
            group.cancel_scope.cancel()


async def _shielded(call: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(1):
        await call()


async def _cancel_when_lost(locks: RunLocks, scope: anyio.CancelScope) -> None:
    lost = await locks.keep()
    _log.warning("lock %s is lost; what it protected is cancelled", lost)
    scope.cancel()
