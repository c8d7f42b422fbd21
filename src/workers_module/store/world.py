"""The rules by which jobs move, for jobs in memory: what `Store` promises, without waiting and without a clock.

Every public call is one atomic step: it decides whether it may do what it is asked for before it changes anything, and none
suspends. `World.finish` ends it: the events become visible and waiters are woken.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from time import perf_counter
from typing import Final, Literal, assert_never

from workers_module.clock import Clock, FrozenClock
from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.events import Event, EventType
from workers_module.job.outcome import Completed, Failed, Keep, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef
from workers_module.job.state import READY, JobState
from workers_module.store.base import (
    MAX_EVENTS,
    UNSET,
    Action,
    Added,
    ByIds,
    ByState,
    Child,
    Claimed,
    DropSchedule,
    EditResult,
    Fail,
    FireSlot,
    Held,
    JobPatch,
    JobSpec,
    Problem,
    Promote,
    PutSchedule,
    QueuePatch,
    QueueSettings,
    Remove,
    RenewReply,
    RetryAgain,
    ScheduleRecord,
    Selection,
    Settle,
    SettleCode,
    Step,
    StepReply,
    Sweep,
    SweepReply,
)
from workers_module.store.hub import Hub
from workers_module.store.planning import (
    CRASHED,
    MAX_LOG_LINES,
    MAX_MOVED,
    MAX_TRIMMED,
    check_specs,
    check_step,
    child_failed,
    cut_line,
    due_of,
    earliest,
    leads_to,
    rate_of,
    slot_job_id,
)
from workers_module.store.shelf import (
    FROM_ACTIVE,
    FROM_CHILDREN,
    FROM_DELAYED,
    FROM_WAITING,
    MANUAL,
    Chain,
    Deps,
    Job,
    Key,
    Ready,
    Shelf,
)

SWEEP_SECONDS: Final = 0.05
"""No sweep works longer."""
_LISTS: Final = {JobState.WAITING: "wait"}
"""What BullMQ calls the place a removed job was in, where that is not the state's name."""
_TO: Final[dict[type[Action], str]] = {Remove: "removed", RetryAgain: "waiting", Promote: "waiting", Fail: "failed"}


class World:
    """All queues of one memory store.

    Attributes:
        clock: What time it is.
        work: Those who wait for jobs.
        news: Those who wait for events.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.work = Hub()
        self.news = Hub()
        self._shelves: dict[str, Shelf] = {}
        self._touched: dict[Shelf, None] = {}
        self._epochs = count(1)
        self._frozen = isinstance(clock, FrozenClock)
        if isinstance(clock, FrozenClock):
            clock.on_change(self._clock_moved)

    # queues

    def find(self, queue: str) -> Shelf | None:
        """Return a queue, if there is one."""
        return self._shelves.get(queue)

    def shelf(self, queue: str) -> Shelf:
        """Return a queue, making it if need be."""
        shelf = self._shelves.get(queue)
        if shelf is None:
            shelf = self._shelves[queue] = Shelf(queue, next(self._epochs), self._touched)
        return shelf

    def queues(self) -> list[str]:
        """Return the names of the queues that are more than a stream of events."""
        return sorted(name for name, shelf in self._shelves.items() if shelf.listed)

    def _listed(self, queue: str) -> Shelf:
        shelf = self.shelf(queue)
        shelf.listed = True
        return shelf

    def _job(self, ref: ParentRef | None) -> Job | None:
        if ref is None or (shelf := self._shelves.get(ref.queue)) is None:
            return None
        return shelf.jobs.get(ref.id)

    # waking

    def finish(self, now: int) -> None:
        """End a call: show its events and wake who can go on because of it."""
        while self._touched:
            shelf, _ = self._touched.popitem()
            if shelf.flush() and self.news.waiting(shelf.name):
                self.news.hint_all(shelf.name)
            if self.work.waiting(shelf.name):
                self.wake(shelf, now)

    def wake(self, shelf: Shelf, now: int) -> None:
        """Wake as many waiters as there are jobs for them, and look again when time brings more."""
        ready = shelf.count(JobState.WAITING) + shelf.count(JobState.PRIORITIZED)
        if ready:

            def fits(req: Step) -> bool:
                then = now if req.now is None else req.now
                return self._room(shelf, req, then) > 0 and any(map(len, shelf.matching(req.tags)))

            self.work.hint(shelf.name, ready - self.work.awake(shelf.name, fits=fits), fits=fits)
        if not self._frozen:
            first = shelf.next_delayed()
            window = shelf.rate_until if ready and shelf.rate_until > now else None
            at = earliest(None if first is None else first.due, window)
            # Rounded up by the milliseconds that have begun: the alarm never rings early.
            seconds = None if at is None else (at - self.clock.now_ms()) / 1_000
            self.work.alarm(shelf.name, seconds, partial(self._look_again, shelf.name))

    def _look_again(self, queue: str) -> None:
        if shelf := self._shelves.get(queue):
            now = self.clock.now_ms()
            self._promote_due(shelf, now, MAX_MOVED)
            self._touched[shelf] = None
            self.finish(now)

    def _clock_moved(self) -> None:
        self.work.run(self._look_at_all)

    def _look_at_all(self) -> None:
        for queue in self.work.queues():
            self._look_again(queue)

    # adding

    def add(self, specs: Sequence[JobSpec], now: int) -> list[Added]:
        """Do what `Store.add` says."""
        parents = check_specs(specs)
        self._check_parents(specs)
        ids: dict[int, str] = {}
        children: dict[int, list[Job]] = {}
        added: list[Added] = []
        for index, spec in enumerate(specs):
            shelf = self._listed(spec.queue)
            id = spec.id if spec.id is not None else ids.get(index)
            if not isinstance(spec.parent, int):
                added.append(self._add(shelf, id, spec, spec.parent, now, parked=index in parents))
            else:
                if (parent_id := specs[spec.parent].id or ids.get(spec.parent)) is None:
                    parent_id = ids[spec.parent] = self._listed(specs[spec.parent].queue).next_id()
                ref = ParentRef(specs[spec.parent].queue, parent_id)
                added.append(self._add(shelf, id, spec, ref, now, parked=index in parents))
                children.setdefault(spec.parent, []).append(shelf.jobs[added[-1].id])
            if index in parents:
                parent = shelf.jobs[added[index].id]
                for child in children[index]:
                    self._adopt(parent, child)
        for index in sorted(parents):
            parent = self._shelves[specs[index].queue].jobs[added[index].id]
            self._release_if_done(parent, now)
            added[index] = added[index]._replace(state=parent.state)
        return added

    def _check_parents(self, specs: Sequence[JobSpec]) -> None:
        own: dict[ParentRef, ParentRef | int | None] = {}
        for spec in specs:
            wanted = spec.parent
            if isinstance(wanted, int):
                target = specs[wanted]
                wanted = wanted if target.id is None else ParentRef(target.queue, target.id)
            elif wanted is not None and wanted not in own and self._job(wanted) is None:
                raise JobNotFoundError(wanted.queue, wanted.id)
            if spec.id is None:
                continue
            ref = ParentRef(spec.queue, spec.id)
            current = own[ref] if ref in own else self._living_parent(self._job(ref))
            if wanted is not None and (wanted == ref or current not in {None, wanted}):
                whose = "its own" if wanted == ref else "already the child of another job"
                raise ConfigurationError(
                    f"queue {spec.queue!r}: job {spec.id} is {whose}; give the child another id, or leave its parent out"
                    if wanted != ref
                    else f"queue {spec.queue!r}: job {spec.id} names itself as its parent"
                )
            if spec.dedup is None:
                own[ref] = current if wanted is None else wanted

    def _living_parent(self, job: Job | None) -> ParentRef | None:
        return None if job is None or self._job(job.parent) is None else job.parent

    def _add(
        self, shelf: Shelf, id: str | None, spec: JobSpec, parent: ParentRef | None, now: int, *, parked: bool
    ) -> Added:
        by_index = isinstance(spec.parent, int)
        if id is not None and (job := shelf.jobs.get(id)) is not None:
            if parent is not None:
                job.parent = parent
                job.policy = spec.policy
                if not by_index and (stored := self._job(parent)) is not None:
                    self._adopt(stored, job)
                    self._release_if_done(stored, now)
            shelf.emit(EventType.DUPLICATED, id)
            return Added(id, job.state, "same_id")
        if id is None:
            id = shelf.next_id()
        if spec.dedup is not None and (owner := self._deduplicate(shelf, id, spec, now)) is not None:
            # A job that was not kept at its end counts as completed.
            job = shelf.jobs.get(owner)
            return Added(owner, JobState.COMPLETED if job is None else job.state, "deduplicated")
        job = self._insert(shelf, id, spec, now, parked=parked)
        if parent is not None:
            job.parent = parent
            if not by_index and (stored := self._job(parent)) is not None:
                self._adopt(stored, job)
        return Added(id, job.state)

    def _insert(self, shelf: Shelf, id: str, spec: JobSpec, now: int, *, parked: bool = False) -> Job:
        job = shelf.jobs[id] = Job(shelf, id, spec, now)
        shelf.emit(EventType.ADDED, id, spec.name)
        due = due_of(spec, now)
        if parked:
            job.delay_ms = 0 if due is None else max(0, due - job.added)
            shelf.park(job)
            shelf.emit(EventType.WAITING_CHILDREN, id)
        elif due is not None:
            shelf.put_delayed(job, due)
            shelf.emit(EventType.DELAYED, id, due)
        else:
            self._queue_up(job)
            shelf.emit(EventType.WAITING, id)
        return job

    def _queue_up(self, job: Job) -> None:
        if job.lifo and not job.priority:
            job.shelf.put_in_front(job)
        else:
            job.shelf.put_behind(job)

    # deduplication

    def _deduplicate(self, shelf: Shelf, id: str, spec: JobSpec, now: int) -> str | None:
        """Return the id of the job that counts instead, or None after making the new one the owner of its key."""
        if (dedup := spec.dedup) is None:
            return None
        key = shelf.dedup.get(dedup.key)
        ttl = None if dedup.mode == "keep_latest" else dedup.ttl_ms
        until = None if ttl is None else now + ttl
        if key is None or _key_is_free(shelf, key, now):
            shelf.dedup[dedup.key] = Key(id, until)
            return None
        owner = shelf.jobs.get(key.owner)
        delayed = owner if owner is not None and owner.state is JobState.DELAYED else None
        if dedup.mode == "debounce":
            if delayed is None:
                return key.owner
            self._remove(delayed, now)
            shelf.dedup[dedup.key] = Key(id, until)
            self._tell_deduplicated(shelf, dedup.key, kept=id, dropped=delayed.id)
            return None
        if dedup.mode == "extend":
            key.until = until
        elif dedup.mode == "keep_latest" and owner is not None and owner.state is JobState.ACTIVE:
            key.until = None
            key.successor = replace(spec, id=id, timestamp=None)
        self._tell_deduplicated(shelf, dedup.key, kept=key.owner, dropped=id)
        if dedup.mode == "reschedule" and delayed is not None:
            start = now if spec.timestamp is None else spec.timestamp
            due = start + spec.delay_ms if spec.due is None else spec.due
            shelf.leave(delayed)
            shelf.put_delayed(delayed, due)
            shelf.emit(EventType.DELAYED, delayed.id, due)
        return key.owner

    def _tell_deduplicated(self, shelf: Shelf, key: str, *, kept: str, dropped: str) -> None:
        shelf.emit(EventType.DEDUPLICATED, kept, {"deduplicationId": key, "deduplicatedJobId": dropped})

    def _free_key(self, job: Job, now: int) -> None:
        """Let go of an ending job's key, or let the call kept for this moment in."""
        shelf = job.shelf
        if job.dedup is None or (key := shelf.dedup.get(job.dedup)) is None or key.owner != job.id:
            return
        spec, key.successor = key.successor, None
        if spec is not None and spec.id is not None and spec.id not in shelf.jobs:
            key.owner = spec.id
            self._insert(shelf, spec.id, spec, now)
        elif key.until is None:
            del shelf.dedup[job.dedup]

    def _drop_key(self, job: Job) -> None:
        if job.dedup is not None and (key := job.shelf.dedup.get(job.dedup)) is not None and key.owner == job.id:
            del job.shelf.dedup[job.dedup]

    # parents and children

    def _adopt(self, parent: Job, child: Job) -> None:
        if parent.deps is None:
            parent.deps = Deps()
        ref = child.ref
        if child.state is JobState.COMPLETED:
            parent.deps.put(Child(ref.queue, ref.id, "processed", value=child.result))
        elif ref not in parent.deps.children:
            parent.deps.put(Child(ref.queue, ref.id, "pending"))

    def _release_if_done(self, parent: Job, now: int) -> None:
        if parent.state is JobState.WAITING_CHILDREN and (parent.deps is None or not parent.deps.pending):
            self._release(parent, now)

    def _release(self, parent: Job, now: int, *, silent: bool = False) -> None:
        """Let a parent go on: in front where it has no priority, and after its own delay."""
        shelf = parent.shelf
        prev = FROM_CHILDREN if parent.state is JobState.WAITING_CHILDREN else FROM_DELAYED
        shelf.leave(parent)
        if parent.delay_ms > 0:
            due = now + parent.delay_ms
            parent.delay_ms = 0
            shelf.put_delayed(parent, due)
            if not silent:
                shelf.emit(EventType.DELAYED, parent.id, due)
            return
        if parent.priority:
            shelf.put_behind(parent)
        else:
            shelf.put_in_front(parent)
        if not silent:
            shelf.emit(EventType.WAITING, parent.id, prev)

    def _child_completed(self, job: Job, now: int) -> None:
        parent, ref = self._job(job.parent), job.ref
        if parent is not None and parent.deps is not None and parent.deps.waits_for(ref):
            parent.deps.put(Child(ref.queue, ref.id, "processed", value=job.result))
            self._release_if_done(parent, now)

    def _child_failed(self, job: Job, now: int) -> None:
        parent, ref = self._job(job.parent), job.ref
        if parent is None or parent.deps is None or not parent.deps.waits_for(ref):
            return
        match job.policy:
            case ChildPolicy.FAIL_PARENT:
                parent.deps.put(Child(ref.queue, ref.id, "failed", reason=job.reason))
                if not parent.state.ended:
                    parent.deferred = child_failed(*ref)
                if parent.state in {JobState.WAITING_CHILDREN, JobState.DELAYED}:
                    if parent.state is JobState.DELAYED:
                        parent.delay_ms = 0
                    self._release(parent, now)
            case ChildPolicy.CONTINUE_PARENT:
                parent.deps.put(Child(ref.queue, ref.id, "ignored", reason=job.reason))
                if parent.state is JobState.WAITING_CHILDREN:
                    self._release(parent, now)
            case ChildPolicy.IGNORE:
                parent.deps.put(Child(ref.queue, ref.id, "ignored", reason=job.reason))
                self._release_if_done(parent, now)
            case ChildPolicy.REMOVE:
                parent.deps.drop(ref)
                self._release_if_done(parent, now)
            case _:
                assert_never(job.policy)

    def _child_gone(self, job: Job, now: int, *, hard: bool = False) -> None:
        """Take a job that is being deleted, or detached, off its parent's list of pending children."""
        parent = self._job(job.parent)
        if parent is None or parent.deps is None or not parent.deps.waits_for(job.ref):
            return
        parent.deps.drop(job.ref)
        if parent.deps.pending or parent.state is not JobState.WAITING_CHILDREN:
            return
        if hard and parent.shelf is job.shelf:
            self._remove_hard(parent, now)
        else:
            self._release(parent, now, silent=hard)

    def _family(self, job: Job) -> list[Job]:
        """Return a job after its pending children, theirs before them."""
        family = {job: None}
        stack = [job]
        while stack:
            parent = stack.pop()
            for ref, child in () if parent.deps is None else parent.deps.children.items():
                if child.state == "pending" and (found := self._job(ref)) is not None and found not in family:
                    family[found] = None
                    stack.append(found)
        return list(reversed(family))

    # removing

    def _remove(self, job: Job, now: int, *, children: bool = False) -> None:
        """Delete a job, and tell it."""
        family = self._family(job) if children else [job]
        left = {one: _LISTS.get(one.state, one.state.value) for one in family}
        self._child_gone(job, now)
        for one, prev in left.items():
            self._delete(one)
            self._drop_key(one)
            one.shelf.emit(EventType.REMOVED, one.id, {"prev": prev})

    def _remove_hard(self, job: Job, now: int) -> None:
        """Delete a job without a word, and a parent of the same queue that has no other pending child with it."""
        self._delete(job)
        self._drop_key(job)
        self._child_gone(job, now, hard=True)

    def _delete(self, job: Job) -> None:
        job.shelf.leave(job)
        job.shelf.forget(job)

    # working

    def step(self, req: Step, now: int) -> StepReply:
        """Do what `Store.step` says."""
        check_step(req)
        shelf = self._shelves.get(req.queue)
        if shelf is None:
            return StepReply([SettleCode.MISSING] * len(req.outcomes), [], None, paused=False, now=now)
        settled: list[SettleCode] = []
        ended = False
        if req.outcomes:
            settled, ended = self._settle_all(shelf, req, now)
        if shelf.delayed:
            self._promote_due(shelf, now, 2 * req.take + 100)
        jobs = self._resume(shelf, req, now) if req.resume else []
        if req.take and (room := self._room(shelf, req, now, len(jobs))) > 0:
            self._claim(shelf, req, now, room, jobs)
        if ended and not shelf.active and not (req.take and shelf.delayed) and not self._ready(shelf):
            shelf.emit(EventType.DRAINED)
        first = shelf.next_delayed() if shelf.delayed else None
        window = self._window(shelf, req, now) if shelf.rate_until > now else None
        return StepReply(settled, jobs, earliest(None if first is None else first.due, window), shelf.paused, now)

    def _settle_all(self, shelf: Shelf, req: Step, now: int) -> tuple[list[SettleCode], bool]:
        """Settle outcomes in order; the codes, and whether a job ended."""
        self._touched[shelf] = None
        keeps: dict[tuple[JobState, Keep], None] = {}
        before = shelf.ends
        codes = [self._settle(shelf, held, outcome, now, keeps) for held, outcome in req.outcomes]
        ended = shelf.ends - before
        if req.metrics:
            for tally, state in ((shelf.counted.completed, JobState.COMPLETED), (shelf.counted.failed, JobState.FAILED)):
                pass
        for state, keep in keeps:
            self._trim(shelf, state, keep, now)
        return codes, bool(ended)
