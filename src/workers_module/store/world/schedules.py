"""Schedules: chains of jobs, each of which is stored before its slot."""

from collections.abc import Iterable, Sequence
from typing import assert_never

from workers_module.job.events import EventType
from workers_module.job.state import READY, JobState
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleRecord
from workers_module.store.values import JobSpec
from workers_module.store.world.ledger import Ledger
from workers_module.store.world.shelf import Shelf
from workers_module.store.world.ties import Chain


class Schedules:
    """The schedules of all queues."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def read(self, queue: str, start: int, limit: int, ids: Sequence[str] | None) -> list[ScheduleRecord]:
        """Do what `Store.schedules` says."""
        shelf = self._ledger.shelves.get(queue)
        if shelf is None:
            return []
        if ids is not None:
            found = [shelf.schedules[id] for id in ids if id in shelf.schedules]
        else:
            found = sorted(shelf.schedules.values(), key=lambda one: (one.slot, one.id))[start : start + limit]
        return [_schedule_record(shelf, one) for one in found]

    def change(self, queue: str, changes: Iterable[PutSchedule | FireSlot | DropSchedule], now: int) -> list[bool]:
        """Do what `Store.schedule` says."""
        done: list[bool] = []
        for change in changes:
            match change:
                case PutSchedule():
                    done.append(self._put_schedule(self._ledger.listed(queue), change, now))
                case FireSlot():
                    done.append(self._fire(queue, change, now))
                case DropSchedule():
                    done.append(self._drop_schedule(queue, change.id, now))
                case _:
                    assert_never(change)
        return done

    def _put_schedule(self, shelf: Shelf, put: PutSchedule, now: int) -> bool:
        old = shelf.schedules.get(put.id)
        if old is not None and old.definition == put.definition and old.paused is put.paused:
            return False
        one = Chain(put.id, put.definition, put.slot, paused=put.paused)
        if old is not None:
            one.count = old.count
            pending = shelf.jobs.get(old.job_id)
            if pending is not None and pending.state in {*READY, JobState.DELAYED}:
                self._ledger.remove_hard(pending, now)
                one.count -= 1
        shelf.schedules[put.id] = one
        if not put.paused:
            self._add_slot(shelf, one, put.job, now)
        return True

    def _fire(self, queue: str, fire: FireSlot, now: int) -> bool:
        shelf = self._ledger.shelves.get(queue)
        one = None if shelf is None else shelf.schedules.get(fire.id)
        if shelf is None or one is None or one.paused or one.slot != fire.from_slot or fire.slot <= one.slot:
            return False
        pending = shelf.jobs.get(one.job_id)
        if fire.replace and (pending is None or pending.state is not JobState.DELAYED):
            return False
        limit = one.definition.limit
        if limit is not None and one.count - fire.replace >= limit:
            return False
        if fire.replace and pending is not None:
            self._ledger.remove_hard(pending, now)
            one.count -= 1
        one.slot = fire.slot
        self._add_slot(shelf, one, fire.job, now)
        return True

    def _add_slot(self, shelf: Shelf, one: Chain, spec: JobSpec, now: int) -> None:
        if one.job_id in shelf.jobs:
            shelf.emit(EventType.DUPLICATED, one.job_id)
            return
        one.count += 1
        self._ledger.insert(shelf, one.job_id, spec._replace(due=one.slot, schedule=one.id), now)

    def _drop_schedule(self, queue: str, id: str, now: int) -> bool:
        shelf = self._ledger.shelves.get(queue)
        one = None if shelf is None else shelf.schedules.pop(id, None)
        if shelf is None or one is None:
            return False
        pending = shelf.jobs.get(one.job_id)
        if pending is not None and pending.state is JobState.DELAYED:
            self._ledger.remove(pending, now)
        return True


def is_idle(shelf: Shelf, one: Chain) -> bool:
    """Return whether nobody will fire the next slot unless told to: the current one's job is missing or ended."""
    job = shelf.jobs.get(one.job_id)
    return job is None or job.state.ended


def _schedule_record(shelf: Shelf, one: Chain) -> ScheduleRecord:
    job = shelf.jobs.get(one.job_id)
    return ScheduleRecord(
        queue=shelf.name,
        id=one.id,
        definition=one.definition,
        slot=one.slot,
        count=one.count,
        paused=one.paused,
        job_state=None if job is None else job.state,
    )
