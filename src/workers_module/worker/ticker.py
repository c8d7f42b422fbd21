"""Schedules: written, caught up with, and their next slot always stored.

A schedule stores its next job ahead, so there is no loop that fires: whoever claims the job of a slot stores the next
one (`Ticker.admit`), and where that job is gone the sweep says so (`Ticker.revive`). Only what fires in each process,
past the store, has a loop here.
"""

import logging
import zlib
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from workers_module.errors import ScheduleError
from workers_module.job.outcome import Completed, Keep, Outcome, Snooze
from workers_module.job.schedule import LATE_MS, Schedule, restart_slot, successor
from workers_module.job.state import READY, JobState
from workers_module.store.base import Store
from workers_module.store.chain import Rules, rules_of, schedule_of, slot_job, slot_of
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleDefinition, ScheduleRecord
from workers_module.store.values import Claimed, DedupSpec, JobSpec
from workers_module.worker.handler import ScheduleSpec
from workers_module.worker.locks import RunLocks
from workers_module.worker.slots import definition_of, first_slot

_log = logging.getLogger(__name__)

_PAGE: Final = 100
_PENDING: Final = frozenset({*READY, JobState.DELAYED})
UNRUN: Final = Completed(b"null", Keep(count=0))
"""How a slot ends that is not to run: no record is kept."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether the job of a slot may run.

    Attributes:
        outcome: How it ends unrun, or None when it may run.
        locks: What its run holds: keep them meanwhile, release them afterwards. None when there are none.
    """

    outcome: Outcome | None = None
    locks: RunLocks | None = None


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
        return await self._store.now()

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
        queue, id, slot = record.queue, record.schedule or "", slot_of(record.id)
        found = await self._store.schedules(queue, ids=[id])
        if not found or slot is None:
            # Removed meanwhile, or added by hand under a schedule's name: this run is the last.
            return Admission()
        schedule = found[0]
        if schedule.slot == slot:
            await self._fire_next(schedule, now)
        rules = rules_of(schedule.definition)
        if record.attempts_made == 0 and record.crashes == 0:
            outcome = self._out_of_time(id, slot, rules, now)
            if outcome is not None:
                return Admission(outcome)
        names = [f"schedule.{id}"] if rules.overlap == "skip" else []
        names += [rules.lock] if rules.lock is not None else []
        if not names:
            return Admission()
        locks = RunLocks(self._store, f"{queue}:{record.id}", self._lock_ms)
        if await locks.acquire(names):
            return Admission(None, locks)
        _log.info("schedule %s: slot %d is not run, another run holds %s", id, slot, " or ".join(names))
        return Admission(UNRUN)

    def _out_of_time(self, id: str, slot: int, rules: Rules, now: int) -> Outcome | None:
        """Return what is done with a slot that is too early or too late to run, or None."""
        if now < slot:
            # Somebody made it ready by hand.
            return None
        start = slot + _jitter(id, slot, rules.jitter_ms)
        if rules.initial_delay_ms and self._started is not None:
            start = max(start, self._started + rules.initial_delay_ms)
        if now < start:
            return Snooze(start - now)
        if rules.threshold_ms is not None and now > start + rules.threshold_ms:
            _log.warning("schedule %s: slot %d is %d ms late and is not run", id, slot, now - slot)
            return UNRUN
        return None

    async def revive(self, queue: str, ids: Sequence[str], now: int) -> None:
        """Store the next slot of schedules whose current job is missing or ended, as a sweep found them."""
        for start in range(0, len(ids), _PAGE):
            for record in await self._store.schedules(queue, ids=ids[start : start + _PAGE]):
                if record.job_state is None or record.job_state.ended:
                    await self._or_report(record, self._fire_next(record, now))

    async def _put(self, spec: ScheduleSpec, now: int) -> None:
        definition = definition_of(spec, self._owner)
        schedule = schedule_of(definition)
        found = await self._store.schedules(spec.queue, ids=[spec.name])
        record = found[0] if found else None
        paused = spec.disabled
        count = 1
        if record is None or _timing(record.definition) != _timing(definition):
            slot = first_slot(schedule, now + (spec.initial_delay_ms or 0))
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
                await self._or_report(record, self._fire_next(record, now))
            elif record.job_state is JobState.DELAYED and now - record.slot > LATE_MS:
                await self._or_report(record, self._replace_late(record, now))

    async def _replace_late(self, record: ScheduleRecord, now: int) -> None:
        catch_up = rules_of(record.definition).catch_up
        if catch_up is None:
            return
        slot = restart_slot(schedule_of(record.definition), slot=record.slot, now=now, catch_up=catch_up)
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

    async def _or_report(self, record: ScheduleRecord, call: Coroutine[object, object, None]) -> None:
        """Let a schedule that cannot be read stop nothing but itself; it is reported once."""
        try:
            await call
        except ScheduleError as error:
            key = (record.queue, record.id, record.definition)
            if key not in self._broken:
                self._broken.add(key)
                _log.error("queue %s: schedule %s does not tick: %s", record.queue, record.id, error)

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


def _successor(record: ScheduleRecord, schedule: Schedule, now: int) -> int | None:
    catch_up = rules_of(record.definition).catch_up or "none"
    return successor(schedule, slot=record.slot, now=now, catch_up=catch_up)


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
