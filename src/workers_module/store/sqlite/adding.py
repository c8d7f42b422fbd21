"""Storing new jobs: ids, places, deduplication, and ties to parents."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from workers_module.errors import ConfigurationError, JobNotFoundError
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Added, DedupSpec, JobSpec
from workers_module.store.codec import EventParts, dump_spec, load_spec
from workers_module.store.planning import check_specs, due_of
from workers_module.store.sqlite import flows
from workers_module.store.sqlite.rows import (
    PART_DATA,
    PART_OPTS,
    PART_RESULT,
    Head,
    delete,
    head_by_id,
    head_by_number,
    heads_by_id,
    show_state,
)
from workers_module.store.sqlite.work import (
    ACTIVE,
    ALL,
    BIG,
    COMPLETED,
    DELAYED,
    FROM_DELAYED,
    PARKED,
    POLICY_CODES,
    READY,
    Many,
    Plan,
    Queue,
    Row,
    Work,
)

_INSERT_JOB: Final = (
    "INSERT INTO wm_job (n, q, state, tagset, priority, seq, due, added, max_attempts, delay, lifo, on_crash, big, children, "
    "pending, policy, parent, parent_queue, parent_id, id, name, dedup, schedule, opts, data) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_BLOB: Final = "INSERT INTO wm_blob (k, value) VALUES (?, ?)"
_LARGEST_ID: Final = 2**62


class _Target(NamedTuple):
    """Which job a spec stands for: a stored one (``head``), or one that this call makes."""

    n: int
    id: str
    head: Head | None
    first: int
    """The index of the first spec of this call with this id."""


class _Parent(NamedTuple):
    """The parent of a job to be placed."""

    n: int
    queue: str
    id: str


class _Batch:
    """Rows of jobs on their way into the table."""

    __slots__ = ("blobs", "jobs", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.jobs: list[Row] = []
        self.blobs: list[Row] = []

    def write(self) -> Plan[None]:
        """Insert what has gathered."""
        if self.jobs:
            yield Many(_INSERT_JOB, self.jobs)
            self.jobs = []
        if self.blobs:
            yield Many(_INSERT_BLOB, self.blobs)
            self.blobs = []

    def place(
        self,
        queue: Queue,
        spec: JobSpec,
        n: int,
        id_: str,
        tagset: int,
        *,
        parent: _Parent | None = None,
        children: tuple[int, int] | None = None,
    ) -> JobState:
        """Decide where a new job goes, with its events and counters.

        Args:
            queue: Its queue.
            spec: The job.
            n: Its number.
            id_: Its id.
            tagset: The number of its set of tags.
            parent: Its parent, which knows of it already.
            children: How many children it has, and how many of them are pending; None: it is no parent.
        """
        now = self.work.now
        stamp = now if spec.timestamp is None else spec.timestamp
        due = due_of(spec, now)
        delay = 0
        priority = spec.priority
        events: list[EventParts] = queue.events
        events.append(("added", id_, {"name": spec.name}))
        if children is not None:
            state, seq, due = PARKED, queue.behind(), None
            delay = spec.delay_ms if spec.due is None else max(0, spec.due - stamp)
            events.append(("waiting-children", id_, None))
        elif due is not None:
            state, seq = DELAYED, queue.behind()
            events.append(("delayed", id_, {"delay": str(due)}))
            self.work.hint(queue, ALL)
        else:
            state = READY
            seq = queue.ahead() if spec.lifo and priority == 0 else queue.behind()
            events.append(("waiting", id_, None))
            self.work.hint(queue, 1)
        queue.count(state, priority, 1)
        data, opts, big = spec.data, spec.opts, 0
        if len(data) > BIG:
            self.blobs.append((n * 8 + PART_DATA, data))
            data, big = b"", 1 << PART_DATA
        if len(opts) > BIG:
            self.blobs.append((n * 8 + PART_OPTS, opts))
            opts, big = b"", big | 1 << PART_OPTS
        pn, pq, pid = parent if parent is not None else (None, None, None)
        total, pending = children if children is not None else (0, 0)
        self.jobs.append((
            n,
            queue.q,
            state,
            tagset,
            priority,
            seq,
            due,
            stamp,
            spec.max_attempts,
            delay,
            1 if spec.lifo else 0,
            1 if spec.on_crash == "fail" else 0,
            big,
            total,
            pending,
            POLICY_CODES[spec.policy],
            pn,
            pq,
            pid,
            id_,
            spec.name,
            None if spec.dedup is None else spec.dedup.key,
            spec.schedule,
            opts,
            data,
        ))
        return show_state(state, priority)


def numbers(count: int) -> Plan[int]:
    """Return the first of so many numbers no job ever had."""
    rows = yield "SELECT seq FROM sqlite_sequence WHERE name = 'wm_job'", ()
    return (rows[0][0] if rows else 0) + 1 if count else 0


def insert(work: Work, queue: Queue, spec: JobSpec, id_: str) -> Plan[JobState]:
    """Store one job that has neither parent nor children, under an id that is free."""
    n = yield from numbers(1)
    note_id(queue, id_)
    tagset = yield from work.tagsets.number(queue, spec.tags)
    batch = _Batch(work)
    state = batch.place(queue, spec, n, id_, tagset)
    yield from batch.write()
    return state


def note_id(queue: Queue, id_: str) -> None:
    """Remember an id given from outside, so that none that is chosen will hit it."""
    if id_.isdecimal() and id_.isascii() and len(id_) < 19:
        queue.ids = max(queue.ids, min(int(id_), _LARGEST_ID))


def choose_id(queue: Queue) -> str:
    """Return an id no job of the queue has had."""
    queue.ids += 1
    return str(queue.ids)


def add(work: Work, specs: Sequence[JobSpec]) -> Plan[list[Added]]:
    """Do what `Store.add` says."""
    if not specs:
        return []
    parents = check_specs(specs)
    queues: dict[str, Queue] = {}
    for spec in specs:
        if spec.queue not in queues:
            queues[spec.queue] = yield from work.make(spec.queue)
    base = yield from numbers(len(specs))
    targets = yield from _targets(specs, queues, base, parents)
    family = _Family(work, specs, targets, parents)
    batch = _Batch(work)
    tagset_of = work.tagsets.number
    done: list[Added] = []
    for index, spec in enumerate(specs):
        queue = queues[spec.queue]
        n, id_, head, first = targets[index]
        if head is None and first == index:
            tagset = (yield from tagset_of(queue, spec.tags)) if spec.tags else 0
            if spec.dedup is not None:
                yield from batch.write()
                owner = yield from _deduplicate(work, queue, spec, spec.dedup, n, id_)
                if owner is not None:
                    done.append(owner)
                    continue
            parent = None if spec.parent is None else (yield from family.parent(batch, index))
            if parent is not None:
                yield from family.tie(parent, queue.name, id_)
            children = family.children.get(n) if index in parents else None
            state = batch.place(queue, spec, n, id_, tagset, parent=parent, children=children)
            done.append(Added(id_, state))
        else:
            yield from batch.write()
            stored = head if head is not None else (yield from head_by_number(targets[first].n))
            if stored is None:
                # The first spec with this id was dropped as a duplicate of a deduplicated job.
                done.append(done[first]._replace(existing="deduplicated"))
                continue
            if spec.parent is not None:
                parent = yield from family.parent(batch, index)
                yield from family.adopt(stored, queue.name, parent, POLICY_CODES[spec.policy])
            queue.events.append(("duplicated", stored.id, None))
            done.append(Added(stored.id, stored.shown_state, "same_id"))
    yield from batch.write()
    for index in sorted(parents):
        released = yield from flows.release_if_free(work, targets[index].n)
        if released is not None:
            done[index] = done[index]._replace(state=released)
    return done


def _targets(
    specs: Sequence[JobSpec], queues: dict[str, Queue], base: int, parents: frozenset[int]
) -> Plan[list[_Target]]:
    given: dict[str, list[str]] = {}
    for spec in specs:
        if spec.id is not None:
            given.setdefault(spec.queue, []).append(spec.id)
            note_id(queues[spec.queue], spec.id)
    stored: dict[str, dict[str, Head]] = {}
    for name, ids in given.items():
        stored[name] = yield from heads_by_id(queues[name].q, ids)
    first: dict[tuple[str, str], int] = {}
    targets: list[_Target] = []
    for index, spec in enumerate(specs):
        if spec.id is None:
            targets.append(_Target(base + index, choose_id(queues[spec.queue]), None, index))
            continue
        head = stored[spec.queue].get(spec.id)
        if head is not None:
            targets.append(_Target(head.n, spec.id, head, index))
            continue
        earlier = first.setdefault((spec.queue, spec.id), index)
        if earlier != index and (index in parents or earlier in parents):
            raise ConfigurationError(
                f"job {spec.id!r} of queue {spec.queue!r} stands twice in one call, once as a parent; add it once"
            )
        targets.append(_Target(base + earlier, spec.id, None, earlier))
    return targets


class _Family:
    """The ties between the jobs of one call and their parents, stored or not."""

    __slots__ = ("_parents", "_specs", "_targets", "_work", "children")

    def __init__(self, work: Work, specs: Sequence[JobSpec], targets: Sequence[_Target], parents: frozenset[int]) -> None:
        self._work = work
        self._specs = specs
        self._targets = targets
        self._parents: dict[ParentRef, _Parent] = {}
        self.children: dict[int, tuple[int, int]] = {
            targets[index].n: (0, 0) for index in parents if targets[index].head is None
        }
        """How many children, and how many pending ones, each parent has that this call is yet to make."""

    def parent(self, batch: _Batch, index: int) -> Plan[_Parent]:
        """Return the parent of a spec.

        Raises:
            JobNotFoundError: There is no such job.
        """
        named = self._specs[index].parent
        if isinstance(named, int):
            return _Parent(self._targets[named].n, self._specs[named].queue, self._targets[named].id)
        assert named is not None
        known = self._parents.get(named)
        if known is None:
            yield from batch.write()
            queue = yield from self._work.find(named.queue)
            head = None if queue is None else (yield from head_by_id(queue.q, named.id))
            if head is None:
                raise JobNotFoundError(named.queue, named.id)
            known = self._parents[named] = _Parent(head.n, named.queue, named.id)
        return known

    def tie(self, parent: _Parent, queue: str, id_: str, result: bytes | None = None) -> Plan[None]:
        """Make a job its parent's child: pending, or processed when there is a result."""
        pending = 1 if result is None else 0
        coming = self.children.get(parent.n)
        if coming is not None:
            place = coming[0]
            self.children[parent.n] = (place + 1, coming[1] + pending)
        else:
            rows = yield "SELECT children FROM wm_job WHERE n = ?", (parent.n,)
            place = rows[0][0]
            yield (
                "UPDATE wm_job SET children = children + 1, pending = pending + ? WHERE n = ?",
                (pending, parent.n),
            )
        yield (
            "INSERT INTO wm_dep (parent, i, queue, id, state, value) VALUES (?, ?, ?, ?, ?, ?)",
            (parent.n, place, queue, id_, flows.PENDING if pending else flows.PROCESSED, result),
        )

    def adopt(self, head: Head, queue: str, parent: _Parent, policy: int) -> Plan[None]:
        """Make a stored job a child, if it has no other living parent; a completed one hands its result over at once.

        Raises:
            ConfigurationError: It has.
        """
        same = (head.parent_queue, head.parent_id) == (parent.queue, parent.id)
        if head.parent is not None and not same and (yield from head_by_number(head.parent)) is not None:
            raise ConfigurationError(
                f"job {head.id!r} of queue {queue!r} is a child of {head.parent_id!r} in {head.parent_queue!r} already; "
                f"it cannot also become one of {parent.id!r} in {parent.queue!r}"
            )
        result: bytes | None = None
        if head.state == COMPLETED:
            rows = yield "SELECT result FROM wm_job WHERE n = ?", (head.n,)
            if head.big & (1 << PART_RESULT):
                rows = yield "SELECT value FROM wm_blob WHERE k = ?", (head.n * 8 + PART_RESULT,)
            result = rows[0][0]
        known = yield "SELECT state FROM wm_dep WHERE parent = ? AND queue = ? AND id = ?", (parent.n, queue, head.id)
        if not known:
            yield from self.tie(parent, queue, head.id, result)
        elif result is not None and known[0][0] == flows.PENDING:
            yield from flows.mark(parent.n, queue, head.id, flows.PROCESSED, value=result)
        yield (
            "UPDATE wm_job SET parent = ?, parent_queue = ?, parent_id = ?, policy = ? WHERE n = ?",
            (parent.n, parent.queue, parent.id, policy, head.n),
        )
        if result is not None and parent.n not in self.children:
            yield from flows.release_if_free(self._work, parent.n)


def _deduplicate(
    work: Work, queue: Queue, spec: JobSpec, dedup: DedupSpec, n: int, id_: str
) -> Plan[Added | None]:
    """Decide whether a job counts; None means yes, and its key is taken."""
    now = work.now
    mode = dedup.mode
    ttl = None if mode == "keep_latest" else dedup.ttl_ms
    until = None if ttl is None else now + ttl
    rows = yield "SELECT n, id, until FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, dedup.key)
    owner: Head | None = None
    if rows:
        owner_n, owner_id, ends = rows[0]
        owner = yield from head_by_number(owner_n)
        if (owner is None) if ends is None else (ends <= now):
            rows = []
    if not rows:
        yield from _take_key(queue, dedup.key, n, id_, until)
        return None
    if mode == "debounce":
        if owner is not None and owner.state == DELAYED:
            yield from delete(work, [owner])
            queue.events.append(("removed", owner.id, FROM_DELAYED))
            queue.events.append(_dropped(id_, dedup.key, owner.id))
            yield from _take_key(queue, dedup.key, n, id_, until)
            return None
    elif mode == "reschedule" and owner is not None and owner.state == DELAYED:
        due = due_of(spec, now) or now
        yield "UPDATE wm_job SET due = ?, seq = ? WHERE n = ?", (due, queue.behind(), owner.n)
        queue.events.append(("delayed", owner.id, {"delay": str(due)}))
        work.hint(queue, ALL)
    elif mode == "extend":
        yield "UPDATE wm_dedup SET until = ? WHERE q = ? AND key = ?", (until, queue.q, dedup.key)
    elif mode == "keep_latest" and owner is not None and owner.state == ACTIVE:
        kept = dump_spec(_later(spec, id_))
        yield "UPDATE wm_dedup SET until = NULL, next = ? WHERE q = ? AND key = ?", (kept, queue.q, dedup.key)
    if mode != "debounce":
        queue.events.append(_dropped(owner_id, dedup.key, id_))
    return Added(owner_id, JobState.COMPLETED if owner is None else owner.shown_state, "deduplicated")


def _take_key(queue: Queue, key: str, n: int, id_: str, until: int | None) -> Plan[None]:
    yield (
        "INSERT OR REPLACE INTO wm_dedup (q, key, n, id, until, next) VALUES (?, ?, ?, ?, ?, NULL)",
        (queue.q, key, n, id_, until),
    )


def _dropped(id_: str, key: str, dropped: str) -> EventParts:
    return "deduplicated", id_, {"deduplicationId": key, "deduplicatedJobId": dropped}


def _later(spec: JobSpec, id_: str) -> JobSpec:
    return JobSpec(
        queue=spec.queue,
        name=spec.name,
        data=spec.data,
        opts=spec.opts,
        id=id_,
        priority=spec.priority,
        lifo=spec.lifo,
        delay_ms=spec.delay_ms,
        due=spec.due,
        max_attempts=spec.max_attempts,
        tags=spec.tags,
        dedup=spec.dedup,
        on_crash=spec.on_crash,
    )


def free_key(work: Work, queue: Queue, head: Head) -> Plan[None]:
    """Free the deduplication key of a job that ended, and add the call that was kept for this moment."""
    rows = yield "SELECT n, until, next FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, head.dedup)
    if not rows or rows[0][0] != head.n or rows[0][1] is not None:
        return
    kept = rows[0][2]
    yield "DELETE FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, head.dedup)
    if kept is None:
        return
    spec = load_spec(kept)
    id_ = spec.id
    if id_ is None or (yield from head_by_id(queue.q, id_)) is not None:
        id_ = choose_id(queue)
    n = yield from numbers(1)
    tagset = yield from work.tagsets.number(queue, spec.tags)
    assert head.dedup is not None
    yield from _take_key(queue, head.dedup, n, id_, None)
    batch = _Batch(work)
    batch.place(queue, spec, n, id_, tagset)
    yield from batch.write()


def drop_keys(heads: Sequence[Head]) -> Plan[None]:
    """Free the deduplication keys of jobs that are removed, whatever their time."""
    keyed = [(head.q, head.dedup, head.n) for head in heads if head.dedup is not None]
    if keyed:
        yield Many("DELETE FROM wm_dedup WHERE q = ? AND key = ? AND n = ?", keyed)
