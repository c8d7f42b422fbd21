"""`Scheduler`: what an application asks of its schedules while it runs."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final

from workers_module.client.handle import JobHandle
from workers_module.client.producer import Producer
from workers_module.client.repeat import put_schedule
from workers_module.clock import to_datetime
from workers_module.di.metadata import MISSING
from workers_module.di.registry import WorkerRegistry
from workers_module.errors import ScheduleError
from workers_module.job.names import check_name
from workers_module.job.schedule import Schedule
from workers_module.store.base import Store
from workers_module.store.chain import rules_of, schedule_of, slot_job
from workers_module.store.schedules import DropSchedule, PutSchedule, ScheduleRecord
from workers_module.worker.handler import ScheduleSpec
from workers_module.worker.slots import definition_of, first_slot
from workers_module.worker.ticker import Ticker

_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """What is known about a schedule.

    Attributes:
        name: Its name.
        queue: Where its jobs go.
        job_name: What they are called.
        pattern: Its cron expression, or None.
        tz: The time zone of the expression, or None.
        every: The distance between its jobs, or None.
        after: For `timeout`: the time after the start, else None.
        is_declared: Whether it stands in the code; else it was added at run time.
        is_stored: Whether it is in the store; a declared one is from the first start of its worker.
        is_paused: Whether it makes no jobs.
        every_instance: Whether it fires in each process, past the store.
        next_run: When it fires next; None when it is paused or has ended.
        count: How many jobs it made so far.
        owner: The application that declared it, as far as that is stored; None for one added at run time.
    """

    name: str
    queue: str
    job_name: str
    pattern: str | None
    tz: str | None
    every: timedelta | None
    after: timedelta | None
    is_declared: bool
    is_stored: bool
    is_paused: bool
    every_instance: bool
    next_run: datetime | None
    count: int
    owner: str | None = None


class Scheduler:
    """Looks at schedules, starts, pauses and adds them; all by name, in any process of the application."""

    def __init__(self, store: Store, registry: WorkerRegistry, producer: Producer, *, owner: str) -> None:
        """Make the scheduler; the container does.

        Args:
            store: Where the schedules are.
            registry: Knows the declared ones.
            producer: Adds the jobs of `trigger`.
            owner: The application's id; what it declared once and no longer does is removed by `sync`.
        """
        self._store = store
        self._registry = registry
        self._producer = producer
        self._owner = owner
        self._specs = {spec.name: spec for spec in registry.schedules}

    async def names(self) -> list[str]:
        """Return the names of all schedules, declared and added, of every application that shares the store; sorted."""
        return sorted({*self._specs, *[record.id async for record in self._all()]})

    async def get(self, name: str) -> ScheduleInfo:
        """Return what is known about a schedule.

        Raises:
            ScheduleError: There is none of this name.
        """
        spec, record = await self._find(name)
        upcoming = await self._next_slots(spec, record, 1)
        schedule = _schedule(spec, record)
        is_expression = schedule is not None and schedule.expression is not None
        every_ms = None if schedule is None else schedule.every_ms
        return ScheduleInfo(
            name=name,
            queue=record.queue if record is not None else _declared(spec).queue,
            job_name=record.definition.name if record is not None else _declared(spec).job_name,
            pattern=None if schedule is None else schedule.expression,
            tz=schedule.tz if schedule is not None and is_expression else None,
            every=None if every_ms is None else timedelta(milliseconds=every_ms),
            after=None if spec is None or spec.after_ms is None else timedelta(milliseconds=spec.after_ms),
            is_declared=spec is not None,
            is_stored=record is not None,
            is_paused=record.paused if record is not None else _declared(spec).disabled,
            every_instance=spec is not None and spec.every_instance,
            next_run=to_datetime(upcoming[0]) if upcoming else None,
            count=0 if record is None else record.count,
            owner=None if record is None else rules_of(record.definition).owner,
        )

    async def next_run(self, name: str, n: int = 1) -> list[datetime]:
        """Return the next ``n`` instants at which a schedule fires, the earliest first; fewer when it ends before.

        Raises:
            ScheduleError: There is none of this name.
        """
        spec, record = await self._find(name)
        return [to_datetime(slot) for slot in await self._next_slots(spec, record, n)]

    async def trigger(self, name: str) -> JobHandle[Any]:
        """Add a job of a schedule now, beside its own times; also when it is paused.

        Raises:
            ScheduleError: There is none of this name.
        """
        spec, record = await self._find(name)
        if record is None:
            spec = _declared(spec)
            queue, job_name, data = spec.queue, spec.job_name, spec.data
        else:
            queue, job_name, data = record.queue, record.definition.name, record.definition.data
        return await self._producer.add(queue, job_name, json.loads(data))

    async def pause(self, name: str) -> None:
        """Make no more jobs of a schedule, in any process, until `resume`; one that is ready or running goes on.

        Raises:
            ScheduleError: There is none of this name, or it fires past the store.
        """
        spec, record = await self._find_stored(name, "paused")
        if record is None:
            await self._write(_declared(spec), paused=True)
        elif not record.paused:
            await self._put(record, slot=record.slot, count=record.count, paused=True)

    async def resume(self, name: str) -> None:
        """Make jobs again, from the next slot on; those of the pause are left out.

        Raises:
            ScheduleError: There is none of this name, it is declared ``disabled``, or it has no further slot.
        """
        spec, record = await self._find_stored(name, "resumed")
        if (spec is not None and spec.disabled) or (record is not None and rules_of(record.definition).disabled):
            raise ScheduleError(f"schedule {name!r} is declared disabled=True; change that where it is declared")
        if record is None:
            return await self._write(_declared(spec), paused=False)
        if not record.paused:
            return None
        now = await self._store.now()
        schedule = schedule_of(record.definition).anchored(record.slot)
        slot = record.slot if record.slot > now else schedule.next_slot(now)
        if slot is None:
            raise ScheduleError(f"schedule {name!r} has no further slot")
        return await self._put(record, slot=slot, count=record.count + 1, paused=False)

    async def add_cron(
        self, name: str, handler: object, expression: str, *, data: object = MISSING, tz: str | None = None
    ) -> ScheduleInfo:
        """Add a schedule at run time, or change one that was added so. It stays over restarts, until `delete`.

        Args:
            name: Its name.
            handler: What it runs: a reference as the `Dispatcher` takes it.
            expression: Five fields, or six with the seconds first, or ``@daily`` and its kind.
            data: The payload of its jobs.
            tz: The IANA time zone; UTC unless given.

        Raises:
            ScheduleError: The expression or the zone cannot be used, or the name is that of a declared schedule.
            UnknownJobError: No handler goes by that name, or several do.
            pydantic.ValidationError: ``data`` does not fit the handler's payload.
        """
        check_name("schedule", name)
        self._refuse_declared(name)
        target = self._registry.find(handler)
        queue, job_name = target.kind.queue, target.kind.name or target.handler.job_name
        prepared = self._producer.prepare(queue, job_name, None if data is MISSING else data)
        spec = ScheduleSpec(
            name=name,
            worker=target.handler.spec.worker,
            queue=queue,
            job_name=job_name,
            label=target.handler.spec.label,
            data=prepared.spec.data,
            options=self._registry.options_template(target.handler),
            schedule=Schedule.cron(expression, tz=tz or "UTC"),
        )
        before = await self._stored(name)
        if before is not None and before.queue != queue:
            await self._store.schedule(before.queue, [DropSchedule(id=name)])
        await put_schedule(self._store, queue, name, definition_of(spec, None))
        return await self.get(name)

    async def delete(self, name: str) -> bool:
        """Forget a schedule that was added at run time, and its pending job.

        Returns:
            False when there was none.

        Raises:
            ScheduleError: It is declared in the code, and would come back at the next start.
        """
        self._refuse_declared(name)
        record = await self._stored(name)
        if record is None:
            return False
        return (await self._store.schedule(record.queue, [DropSchedule(id=name)]))[0]

    async def sync(self) -> None:
        """Write the declared schedules, and remove those that this application declared once and no longer does.

        Workers do this at start. What was added at run time, or by other applications, stays.

        Source: StartupJS ``initWorker``.
        """
        specs = [spec for spec in self._specs.values() if spec.schedule is not None]
        ticker = Ticker(self._store, specs, owner=self._owner, declared={(one.queue, one.name) for one in specs})
        await ticker.sync(await self._store.now())

    # -- parts -----------------------------------------------------------------------------------------------------

    async def _find(self, name: str) -> tuple[ScheduleSpec | None, ScheduleRecord | None]:
        spec, record = self._specs.get(name), await self._stored(name)
        if spec is None and record is None:
            known = await self.names()
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
            raise ScheduleError(f"no schedule {name!r}; {hint}")
        return spec, record

    async def _find_stored(self, name: str, what: str) -> tuple[ScheduleSpec | None, ScheduleRecord | None]:
        spec, record = await self._find(name)
        if record is None and (spec is None or spec.every_instance or spec.schedule is None):
            raise ScheduleError(f"schedule {name!r} is not kept in the store and cannot be {what}")
        return spec, record

    async def _stored(self, name: str) -> ScheduleRecord | None:
        spec = self._specs.get(name)
        queues = [spec.queue] if spec is not None else await self._store.queues()
        for queue in queues:
            found = await self._store.schedules(queue, ids=[name])
            if found:
                return found[0]
        return None

    async def _all(self) -> AsyncIterator[ScheduleRecord]:
        for queue in await self._store.queues():
            start = 0
            while True:
                page = await self._store.schedules(queue, start=start, limit=_PAGE)
                for record in page:
                    yield record
                if len(page) < _PAGE:
                    break
                start += len(page)

    async def _next_slots(self, spec: ScheduleSpec | None, record: ScheduleRecord | None, n: int) -> list[int]:
        schedule = _schedule(spec, record)
        if schedule is None or (record.paused if record is not None else _declared(spec).disabled):
            return []
        now = await self._store.now()
        slots: list[int] = []
        if record is not None:
            schedule = schedule.anchored(record.slot)
        after = now
        if record is not None and record.slot > now:
            slots.append(record.slot)
            after = record.slot
        while len(slots) < n:
            slot = schedule.next_slot(after)
            if slot is None:
                break
            slots.append(slot)
            after = slot
        return slots[:n]

    async def _write(self, spec: ScheduleSpec, *, paused: bool) -> None:
        definition = definition_of(spec, self._owner)
        now = await self._store.now()
        slot = first_slot(schedule_of(definition), now)
        if slot is None:
            raise ScheduleError(f"schedule {spec.name!r} has no further slot")
        job = slot_job(spec.queue, spec.name, definition, slot=slot, count=1, now=now)
        change = PutSchedule(id=spec.name, definition=definition, slot=slot, job=job, paused=paused)
        await self._store.schedule(spec.queue, [change])

    async def _put(self, record: ScheduleRecord, *, slot: int, count: int, paused: bool) -> None:
        now = await self._store.now()
        job = slot_job(record.queue, record.id, record.definition, slot=slot, count=count, now=now)
        change = PutSchedule(id=record.id, definition=record.definition, slot=slot, job=job, paused=paused)
        await self._store.schedule(record.queue, [change])

    def _refuse_declared(self, name: str) -> None:
        spec = self._specs.get(name)
        if spec is not None:
            raise ScheduleError(f"schedule {name!r} is declared at {spec.label}; change it there, or pause it")


def _declared(spec: ScheduleSpec | None) -> ScheduleSpec:
    assert spec is not None, "what is not stored is declared"
    return spec


def _schedule(spec: ScheduleSpec | None, record: ScheduleRecord | None) -> Schedule | None:
    if record is not None:
        return schedule_of(record.definition)
    return None if spec is None else spec.schedule
