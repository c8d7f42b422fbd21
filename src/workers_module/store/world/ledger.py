"""All jobs of one memory store: how they come, what ties them to one another, and how they go."""

from collections.abc import Sequence
from itertools import count
from typing import Final, assert_never

from workers_module.errors import ConfigurationError, JobNotFoundError
from workers_module.job.events import EventType
from workers_module.job.record import ChildPolicy, ParentRef
from workers_module.job.state import JobState
from workers_module.store.planning import check_specs, child_failed, due_of
from workers_module.store.values import Added, Child, JobSpec
from workers_module.store.world.shelf import FROM_CHILDREN, FROM_DELAYED, Job, Shelf
from workers_module.store.world.ties import Deps, Key

_LISTS: Final = {JobState.WAITING: "wait"}
"""What BullMQ calls the place a removed job was in, where that is not the state's name."""


class Ledger:
    """The queues, and the moves that touch more than one job.

    Attributes:
        shelves: The queues by name.
        touched: Those that the call under way has changed.
    """

    def __init__(self) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.touched: dict[Shelf, None] = {}
        self._epochs = count(1)

    # queues

    def find(self, queue: str) -> Shelf | None:
        """Return a queue, if there is one."""
        return self.shelves.get(queue)

    def shelf(self, queue: str) -> Shelf:
        """Return a queue, making it if need be."""
        shelf = self.shelves.get(queue)
        if shelf is None:
            shelf = self.shelves[queue] = Shelf(queue, next(self._epochs), self.touched)
        return shelf

    def queues(self) -> list[str]:
        """Return the names of the queues that are more than a stream of events."""
        return sorted(name for name, shelf in self.shelves.items() if shelf.listed)

    def listed(self, queue: str) -> Shelf:
        """Return a queue, making it one that `queues` names."""
        shelf = self.shelf(queue)
        shelf.listed = True
        return shelf

    def job(self, ref: ParentRef | None) -> Job | None:
        """Return a job of any queue, if there is one."""
        if ref is None or (shelf := self.shelves.get(ref.queue)) is None:
            return None
        return shelf.jobs.get(ref.id)

    # adding

    def add(self, specs: Sequence[JobSpec], now: int) -> list[Added]:
        """Do what `Store.add` says."""
        parents = check_specs(specs)
        self._check_parents(specs)
        ids: dict[int, str] = {}
        children: dict[int, list[Job]] = {}
        added: list[Added] = []
        for index, spec in enumerate(specs):
            shelf = self.listed(spec.queue)
            id = spec.id if spec.id is not None else ids.get(index)
            if not isinstance(spec.parent, int):
                added.append(self._add(shelf, id, spec, spec.parent, now, parked=index in parents))
            else:
                if (parent_id := specs[spec.parent].id or ids.get(spec.parent)) is None:
                    parent_id = ids[spec.parent] = self.listed(specs[spec.parent].queue).next_id()
                ref = ParentRef(specs[spec.parent].queue, parent_id)
                added.append(self._add(shelf, id, spec, ref, now, parked=index in parents))
                children.setdefault(spec.parent, []).append(shelf.jobs[added[-1].id])
            if index in parents:
                parent = shelf.jobs[added[index].id]
                for child in children[index]:
                    self._adopt(parent, child)
        for index in sorted(parents):
            parent = self.shelves[specs[index].queue].jobs[added[index].id]
            self.release_if_done(parent, now)
            added[index] = added[index]._replace(state=parent.state)
        return added

    def _check_parents(self, specs: Sequence[JobSpec]) -> None:
        own: dict[ParentRef, ParentRef | int | None] = {}
        for spec in specs:
            wanted = spec.parent
            if isinstance(wanted, int):
                target = specs[wanted]
                wanted = wanted if target.id is None else ParentRef(target.queue, target.id)
            elif wanted is not None and wanted not in own and self.job(wanted) is None:
                raise JobNotFoundError(wanted.queue, wanted.id)
            if spec.id is None:
                continue
            ref = ParentRef(spec.queue, spec.id)
            current = own[ref] if ref in own else self._living_parent(self.job(ref))
            if wanted is not None and (wanted == ref or current not in {None, wanted}):
                what = "names itself as its parent" if wanted == ref else "is already the child of another job"
                raise ConfigurationError(
                    f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
                )
            if spec.dedup is None:
                own[ref] = current if wanted is None else wanted

    def _living_parent(self, job: Job | None) -> ParentRef | None:
        return None if job is None or self.job(job.parent) is None else job.parent

    def _add(
        self, shelf: Shelf, id: str | None, spec: JobSpec, parent: ParentRef | None, now: int, *, parked: bool
    ) -> Added:
        by_index = isinstance(spec.parent, int)
        if id is not None and (job := shelf.jobs.get(id)) is not None:
            if parent is not None:
                job.parent = parent
                job.policy = spec.policy
                if not by_index and (stored := self.job(parent)) is not None:
                    self._adopt(stored, job)
                    self.release_if_done(stored, now)
            shelf.emit(EventType.DUPLICATED, id)
            return Added(id, job.state, "same_id")
        if id is None:
            id = shelf.next_id()
        if spec.dedup is not None and (owner := self._deduplicate(shelf, id, spec, now)) is not None:
            # A job that was not kept at its end counts as completed.
            job = shelf.jobs.get(owner)
            return Added(owner, JobState.COMPLETED if job is None else job.state, "deduplicated")
        job = self.insert(shelf, id, spec, now, parked=parked)
        if parent is not None:
            job.parent = parent
            if not by_index and (stored := self.job(parent)) is not None:
                self._adopt(stored, job)
        return Added(id, job.state)

    def insert(self, shelf: Shelf, id: str, spec: JobSpec, now: int, *, parked: bool = False) -> Job:
        """Make a job and put it where it belongs; a parent (``parked``) waits for its children."""
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
            self.queue_up(job)
            shelf.emit(EventType.WAITING, id)
        return job

    def queue_up(self, job: Job) -> None:
        """Make a job ready, in front if it asks for that."""
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
        if key is None or key_is_free(shelf, key, now):
            shelf.dedup[dedup.key] = Key(id, until)
            return None
        owner = shelf.jobs.get(key.owner)
        delayed = owner if owner is not None and owner.state is JobState.DELAYED else None
        if dedup.mode == "debounce":
            if delayed is None:
                return key.owner
            self.remove(delayed, now)
            shelf.dedup[dedup.key] = Key(id, until)
            self._tell_deduplicated(shelf, dedup.key, kept=id, dropped=delayed.id)
            return None
        if dedup.mode == "extend":
            key.until = until
        elif dedup.mode == "keep_latest" and owner is not None and owner.state is JobState.ACTIVE:
            key.until = None
            key.successor = spec._replace(id=id, timestamp=None)
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

    def free_key(self, job: Job, now: int) -> None:
        """Let go of an ending job's key, or let the call kept for this moment in."""
        shelf = job.shelf
        if job.dedup is None or (key := shelf.dedup.get(job.dedup)) is None or key.owner != job.id:
            return
        spec, key.successor = key.successor, None
        if spec is not None and spec.id is not None and spec.id not in shelf.jobs:
            key.owner = spec.id
            self.insert(shelf, spec.id, spec, now)
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

    def release_if_done(self, parent: Job, now: int) -> None:
        """Let a parent go on that waits for nothing."""
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

    def child_completed(self, job: Job, now: int) -> None:
        """Hand a child's result to its parent."""
        parent, ref = self.job(job.parent), job.ref
        if parent is not None and parent.deps is not None and parent.deps.waits_for(ref):
            parent.deps.put(Child(ref.queue, ref.id, "processed", value=job.result))
            self.release_if_done(parent, now)

    def _child_failed(self, job: Job, now: int) -> None:
        parent, ref = self.job(job.parent), job.ref
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
                self.release_if_done(parent, now)
            case ChildPolicy.REMOVE:
                parent.deps.drop(ref)
                self.release_if_done(parent, now)
            case _:
                assert_never(job.policy)

    def child_gone(self, job: Job, now: int) -> None:
        """Take a job that is being deleted, or detached, off its parent's list of pending children."""
        if (parent := self._childless(job)) is not None:
            self._release(parent, now)

    def _childless(self, job: Job) -> Job | None:
        """Take a job off its parent's list; the parent, if it waited for this one only."""
        parent = self.job(job.parent)
        if parent is None or parent.deps is None or not parent.deps.waits_for(job.ref):
            return None
        parent.deps.drop(job.ref)
        return parent if parent.state is JobState.WAITING_CHILDREN and not parent.deps.pending else None

    def family(self, job: Job) -> list[Job]:
        """Return a job after its pending children, theirs before them."""
        family = {job: None}
        stack = [job]
        while stack:
            parent = stack.pop()
            for ref, child in () if parent.deps is None else parent.deps.children.items():
                if child.state == "pending" and (found := self.job(ref)) is not None and found not in family:
                    family[found] = None
                    stack.append(found)
        return list(reversed(family))

    # removing

    def remove(self, job: Job, now: int, *, children: bool = False) -> None:
        """Delete a job, and tell it."""
        family = self.family(job) if children else [job]
        left = {one: _LISTS.get(one.state, one.state.value) for one in family}
        self.child_gone(job, now)
        for one, prev in left.items():
            self.delete(one)
            self._drop_key(one)
            one.shelf.emit(EventType.REMOVED, one.id, {"prev": prev})

    def remove_hard(self, job: Job, now: int) -> None:
        """Delete a job without a word, and a parent of the same queue that waited for it only, and so on upward."""
        while True:
            self.delete(job)
            self._drop_key(job)
            parent = self._childless(job)
            if parent is None:
                return
            if parent.shelf is not job.shelf:
                self._release(parent, now, silent=True)
                return
            job = parent

    def delete(self, job: Job) -> None:
        """Delete a job, and nothing else."""
        job.shelf.leave(job)
        job.shelf.forget(job)

    # ending

    def fail(self, job: Job, reason: str, trace: bytes | None, now: int) -> None:
        """Let a job end in ``failed``, with all that hangs on it."""
        shelf, prev = job.shelf, job.state.value
        shelf.leave(job)
        job.reason = reason
        job.trace = job.trace if trace is None else trace
        job.deferred = None
        self.free_key(job, now)
        self._child_failed(job, now)
        shelf.end(job, JobState.FAILED, now)
        shelf.emit(EventType.FAILED, job.id, {"failedReason": reason, "prev": prev})
        if job.attempts >= job.max_attempts:
            shelf.emit(EventType.RETRIES_EXHAUSTED, job.id, job.attempts)


def key_is_free(shelf: Shelf, key: Key, now: int) -> bool:
    """Return whether a deduplication key no longer keeps anything out."""
    return key.owner not in shelf.jobs if key.until is None else key.until <= now
