"""What people and producers change: jobs in place, their states, a queue's settings, whole queues."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Literal, assert_never

from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.events import Event, EventType
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef
from workers_module.job.state import READY, JobState
from workers_module.store.planning import MAX_LOG_LINES, MAX_MOVED, MOVED_TO, cut_line
from workers_module.store.values import (
    MAX_EVENTS,
    UNSET,
    Action,
    ByIds,
    ByState,
    Child,
    EditResult,
    Fail,
    JobPatch,
    JobSpec,
    Problem,
    Promote,
    QueuePatch,
    QueueSettings,
    Remove,
    RetryAgain,
    Selection,
)
from workers_module.store.world.ledger import Ledger
from workers_module.store.world.shelf import FROM_DELAYED, MANUAL, Job, Shelf
from workers_module.store.world.ties import Deps, Key


class Upkeep:
    """What is asked for from outside of the work."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def edit(self, queue: str, patches: Sequence[JobPatch], now: int) -> list[EditResult]:
        """Do what `Store.edit` says."""
        shelf = self._ledger.shelves.get(queue)
        results: list[EditResult] = []
        for patch in patches:
            job = None if shelf is None else shelf.jobs.get(patch.id)
            results.append(EditResult.MISSING if job is None else self._edit(job, patch, now))
        return results

    def _edit(self, job: Job, patch: JobPatch, now: int) -> EditResult:
        shelf = job.shelf
        active = job.state is JobState.ACTIVE
        if patch.held is not None and not (active and job.held_by(patch.held, now)):
            return EditResult.LEASE_LOST
        if (patch.cancel and not active) or (patch.delay_ms is not None and job.state is not JobState.DELAYED):
            return EditResult.WRONG_STATE
        if patch.progress is not None:
            job.progress = patch.progress
            shelf.emit(EventType.PROGRESS, job.id, patch.progress)
        if patch.data is not None:
            job.data = patch.data
        if patch.clear_logs:
            job.log = None
        if patch.log_lines or patch.keep_logs is not None:
            lines = [*(job.log or ()), *map(cut_line, patch.log_lines)]
            most = MAX_LOG_LINES if patch.keep_logs is None else min(patch.keep_logs, MAX_LOG_LINES)
            job.log = lines[max(0, len(lines) - most) :]
        if patch.priority is not None and patch.priority != job.priority:
            self._reprioritize(job, patch.priority)
        if patch.delay_ms is not None:
            shelf.leave(job)
            shelf.put_delayed(job, now + patch.delay_ms)
            shelf.emit(EventType.DELAYED, job.id, now + patch.delay_ms)
        if patch.cancel:
            job.cancelled = True
        if patch.detach:
            self._ledger.child_gone(job, now)
            job.parent = None
        return EditResult.OK

    def _reprioritize(self, job: Job, priority: int) -> None:
        if job.state not in READY:
            job.priority = priority
            return
        job.shelf.leave(job)
        job.priority = priority
        if job.lifo:
            job.shelf.put_in_front(job)
        else:
            job.shelf.put_behind(job)

    def move(self, queue: str, selection: Selection, action: Action, now: int) -> list[str]:
        """Do what `Store.move` says."""
        shelf = self._ledger.shelves.get(queue)
        if isinstance(selection, ByIds):
            chosen = self._by_ids(queue, selection, action)
        else:
            chosen = [] if shelf is None else self._by_state(shelf, selection, action)
        moved: list[str] = []
        for job in chosen:
            # An earlier one may have taken this one along.
            if job.shelf.jobs.get(job.id) is job and self._may(job, action):
                self._move(job, action, now)
                moved.append(job.id)
        by_age = isinstance(selection, ByState) and selection.older_than is not None
        if shelf is not None and moved and by_age and isinstance(action, Remove) and action.hard:
            shelf.emit(EventType.CLEANED, None, {"count": str(len(moved))})
        return moved

    def _by_ids(self, queue: str, selection: ByIds, action: Action) -> list[Job]:
        found = [self._ledger.job(ParentRef(queue, id)) for id in selection.ids]
        if len(found) == 1:
            if found[0] is None:
                raise JobNotFoundError(queue, selection.ids[0])
            if not self._may(found[0], action):
                raise IllegalMoveError(found[0].id, found[0].state, MOVED_TO[type(action)])
        return [job for job in dict.fromkeys(found) if job is not None][:MAX_MOVED]

    def _by_state(self, shelf: Shelf, selection: ByState, action: Action) -> list[Job]:
        most = min(selection.limit or MAX_MOVED, MAX_MOVED)
        chosen: list[Job] = []
        for state in dict.fromkeys(selection.states):
            for job in shelf.in_order(state):
                if len(chosen) == most:
                    return chosen
                if selection.older_than is not None and job.touched >= selection.older_than:
                    continue
                if (not selection.names or job.name in selection.names) and self._may(job, action):
                    chosen.append(job)
        return chosen

    def _may(self, job: Job, action: Action) -> bool:
        """Return whether an action takes a job in its state."""
        match action:
            case Remove(children, hard):
                if job.state is JobState.ACTIVE or _is_current(job):
                    return False
                whole = job.deps is not None and children and not hard
                return not whole or all(one.state is not JobState.ACTIVE for one in self._ledger.family(job))
            case RetryAgain():
                return job.state.ended
            case Promote():
                return job.state is JobState.DELAYED
            case Fail():
                return job.state is not JobState.ACTIVE and not job.state.ended
            case _:
                assert_never(action)

    def _move(self, job: Job, action: Action, now: int) -> None:
        shelf = job.shelf
        match action:
            case Remove(children, hard):
                if hard:
                    self._ledger.remove_hard(job, now)
                else:
                    self._ledger.remove(job, now, children=children)
            case RetryAgain(reset):
                self._retry(job, reset=reset)
            case Promote():
                shelf.leave(job)
                shelf.put_behind(job)
                shelf.emit(EventType.WAITING, job.id, FROM_DELAYED)
            case Fail(reason, trace):
                self._ledger.fail(job, reason, trace, now)
            case _:
                assert_never(action)

    def _retry(self, job: Job, *, reset: bool) -> None:
        shelf, prev = job.shelf, job.state.value
        shelf.leave(job)
        if job.state is JobState.FAILED:
            job.reason = None
        else:
            job.result = None
        job.started = None
        job.finished = None
        if reset:
            job.attempts = 0
        parent, ref = self._ledger.job(job.parent), job.ref
        if parent is not None and parent.deps is not None and ref in parent.deps.children:
            parent.deps.put(Child(ref.queue, ref.id, "pending"))
        self._ledger.queue_up(job)
        shelf.emit(EventType.WAITING, job.id, {"prev": prev})

    def configure(self, queue: str, patch: QueuePatch | None, now: int) -> QueueSettings:
        """Do what `Store.configure` says."""
        if patch is not None and patch != QueuePatch():
            shelf = self._ledger.listed(queue)
            self._ledger.touched[shelf] = None
            if patch.paused is not None and patch.paused is not shelf.paused:
                shelf.paused = patch.paused
                shelf.emit(EventType.PAUSED if patch.paused else EventType.RESUMED)
            if patch.concurrency is not UNSET:
                shelf.concurrency = patch.concurrency
            if patch.rate is not UNSET:
                shelf.rate = patch.rate
            if patch.event_cap is not None:
                shelf.keep_events(patch.event_cap)
            if patch.limit_for_ms is not None:
                shelf.rate_used = MANUAL
                shelf.rate_until = now + patch.limit_for_ms
            if patch.free_dedup is not None:
                shelf.dedup.pop(patch.free_dedup, None)
        if (found := self._ledger.shelves.get(queue)) is None:
            return QueueSettings()
        cap = found.events.maxlen
        limited = found.rate_used >= MANUAL and found.rate_until > now
        return QueueSettings(
            paused=found.paused,
            concurrency=found.concurrency,
            rate=found.rate,
            event_cap=MAX_EVENTS if cap is None else cap,
            limited_until=found.rate_until if limited else None,
        )

    def obliterate(self, queue: str, now: int, *, force: bool, limit: int) -> bool:
        """Do what `Store.obliterate` says."""
        shelf = self._ledger.shelves.get(queue)
        if shelf is None:
            return True
        if shelf.active and not force:
            raise IllegalMoveError(next(iter(shelf.active)), JobState.ACTIVE, MOVED_TO[Remove])
        self._ledger.touched[shelf] = None
        shelf.schedules.clear()
        every = chain.from_iterable(shelf.in_order(state) for state in JobState)
        for job in list(islice(every, limit)):
            if shelf.jobs.get(job.id) is job:
                self._ledger.remove_hard(job, now)
        if shelf.jobs:
            return False
        del self._ledger.shelves[queue]
        return True

    # whole queues

    def publish(self, queue: str, events: Iterable[Event]) -> None:
        """Do what `Store.publish` says."""
        shelf = self._ledger.shelf(queue)
        for event in events:
            shelf.emit(event.type, event.job_id, dict(event.fields))

    def restore(self, records: Sequence[JobRecord], on_conflict: Literal["skip", "error"], now: int) -> int:
        """Do what `Store.restore` says."""
        seen: set[ParentRef] = set()
        fresh: list[JobRecord] = []
        for record in records:
            ref = ParentRef(record.queue, record.id)
            if ref in seen or self._ledger.job(ref) is not None:
                if on_conflict == "error":
                    raise ConfigurationError(
                        f"queue {record.queue!r} has a job {record.id} already; nothing was written. "
                        "Import with on_conflict='skip', or remove the job"
                    )
                continue
            seen.add(ref)
            fresh.append(record)
        written = [self._restore(record, now) for record in fresh]
        for job in written:
            if (parent := self._ledger.job(job.parent)) is not None:
                self._reunite(parent, job)
        if any(job.state is JobState.WAITING_CHILDREN for job in written):
            # Their children may have come in an earlier call.
            for job in [job for shelf in self._ledger.shelves.values() for job in shelf.jobs.values()]:
                if (parent := self._ledger.job(job.parent)) is not None and parent.state is JobState.WAITING_CHILDREN:
                    self._reunite(parent, job)
        return len(written)

    def _restore(self, record: JobRecord, now: int) -> Job:
        shelf = self._ledger.listed(record.queue)
        spec = JobSpec(
            queue=record.queue,
            name=record.name,
            data=record.data,
            opts=record.opts,
            timestamp=record.added,
            priority=record.priority,
            lifo=record.lifo,
            max_attempts=record.max_attempts,
            tags=record.tags,
            policy=record.policy,
            on_crash=record.on_crash,
            schedule=record.schedule,
        )
        job = shelf.jobs[record.id] = Job(shelf, record.id, spec, now)
        job.attempts = record.attempts_made
        job.crashes = record.crashes
        job.fence = record.fence
        job.started = record.started
        job.worker = record.worker
        job.parent = record.parent
        job.dedup = record.dedup
        job.deferred = record.deferred
        job.progress = record.progress
        job.reason = record.reason
        job.trace = record.trace
        job.result = record.result
        match record.state:
            case JobState.COMPLETED | JobState.FAILED:
                shelf.end(job, record.state, record.added if record.finished is None else record.finished)
            case JobState.DELAYED:
                shelf.put_delayed(job, now if record.due is None else record.due)
            case JobState.WAITING_CHILDREN:
                shelf.park(job)
            case JobState.WAITING | JobState.PRIORITIZED | JobState.ACTIVE:
                shelf.put_behind(job)
        if job.dedup is not None and not job.state.ended:
            shelf.dedup.setdefault(job.dedup, Key(job.id, None))
        return job

    def _reunite(self, parent: Job, child: Job) -> None:
        if parent.deps is None:
            parent.deps = Deps()
        queue, id = child.ref
        if child.ref in parent.deps.children:
            return
        match child.state, child.policy:
            case JobState.COMPLETED, _:
                parent.deps.put(Child(queue, id, "processed", value=child.result))
            case JobState.FAILED, ChildPolicy.FAIL_PARENT:
                parent.deps.put(Child(queue, id, "failed", reason=child.reason))
            case JobState.FAILED, ChildPolicy.REMOVE:
                pass
            case JobState.FAILED, _:
                parent.deps.put(Child(queue, id, "ignored", reason=child.reason))
            case _:
                parent.deps.put(Child(queue, id, "pending"))

    def problems(self, queue: str) -> list[Problem]:
        """Check what lies in a queue; see `Store.verify`."""
        shelf = self._ledger.shelves.get(queue)
        if shelf is None:
            return []
        found = list(shelf.problems())
        for job in shelf.jobs.values():
            for ref, child in () if job.deps is None else job.deps.children.items():
                if child.state == "pending" and self._ledger.job(ref) is None:
                    found.append(Problem("I7", job.id, f"waits for job {ref.id} of queue {ref.queue!r}, which is gone"))
        return found


def _is_current(job: Job) -> bool:
    """Return whether a job is that of the current slot of its schedule."""
    one = None if job.schedule is None else job.shelf.schedules.get(job.schedule)
    return one is not None and one.job_id == job.id
