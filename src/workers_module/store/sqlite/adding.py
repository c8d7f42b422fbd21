"""Storing new jobs: ids, places, deduplication, and ties to parents."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from workers_module.errors import ConfigurationError, JobNotFoundError, StoreCorruptError
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.codec import EventParts, dump_spec, load_spec
from workers_module.store.planning import check_specs, due_of
from workers_module.store.sqlite import flows
from workers_module.store.sqlite.rows import (
    PART_DATA,
    PART_OPTS,
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
from workers_module.store.values import Added, DedupSpec, JobSpec

_INSERT_JOB: Final = (
    "INSERT INTO wm_job (n, q, state, tagset, priority, seq, due, added, max_attempts, delay, lifo, on_crash, big, "
    "policy, parent_queue, parent_id, id, name, dedup, schedule, opts, data) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_BLOB: Final = "INSERT INTO wm_blob (k, value) VALUES (?, ?)"
_LARGEST_ID: Final = 2**62


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
        parent: ParentRef | None = None,
        parked: bool = False,
    ) -> JobState:
        """Decide where a new job goes, with its events and counters.

        Args:
            queue: Its queue.
            spec: The job.
            n: Its number.
            id_: Its id.
            tagset: The number of its set of tags.
            parent: Its parent.
            parked: Whether it waits for children.
        """
        now = self.work.now
        stamp = now if spec.timestamp is None else spec.timestamp
        due = due_of(spec, now)
        delay = 0
        priority = spec.priority
        events: list[EventParts] = queue.events
        events.append(("added", id_, {"name": spec.name}))
        if parked:
            delay = 0 if due is None else max(0, due - stamp)
            state, seq, due = PARKED, queue.behind(), None
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
        parent_queue, parent_id = parent if parent is not None else (None, None)
        self.jobs.append(
            (
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
                POLICY_CODES[spec.policy],
                parent_queue,
                parent_id,
                id_,
                spec.name,
                None if spec.dedup is None else spec.dedup.key,
                spec.schedule,
                opts,
                data,
            )
        )
        return show_state(state, priority)


def insert(work: Work, queue: Queue, spec: JobSpec, id_: str) -> Plan[JobState]:
    """Store one job that has neither parent nor children, under an id that is free."""
    n = yield from work.ledger.numbers(1)
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
    base = yield from work.ledger.numbers(len(specs))
    stored = yield from _stored(specs, queues)
    if parents or any(spec.parent is not None for spec in specs):
        yield from _check_parents(work, specs, stored)
    ids = _ids(specs, queues)
    live = {ref: head.n for ref, head in stored.items()}
    chosen: list[int] = []
    batch = _Batch(work)
    tagset_of = work.tagsets.number
    done: list[Added] = []
    for index, spec in enumerate(specs):
        queue, id_ = queues[spec.queue], ids[index]
        parent = spec.parent
        if isinstance(parent, int):
            parent = ParentRef(specs[parent].queue, ids[parent])
        known = None if spec.id is None else live.get((spec.queue, id_))
        if known is not None:
            yield from batch.write()
            # A spec of this call may have replaced it since.
            known = None if (yield from head_by_number(known)) is None else known
        chosen.append(base + index if known is None else known)
        if known is not None:
            done.append((yield from _again(work, queue, spec, known, parent)))
        else:
            tagset = (yield from tagset_of(queue, spec.tags)) if spec.tags else 0
            if spec.dedup is not None:
                yield from batch.write()
                owner = yield from _deduplicate(work, queue, spec, spec.dedup, id_)
                if owner is not None:
                    done.append(owner)
                    continue
            state = batch.place(queue, spec, base + index, id_, tagset, parent=parent, parked=index in parents)
            if spec.id is not None:
                live[spec.queue, id_] = base + index
            if isinstance(spec.parent, ParentRef):
                yield from batch.write()
                yield from _tie(work, spec.parent, queue, base + index)
            done.append(Added(id_, state))
        if index in parents:
            yield from batch.write()
            for place, child in enumerate(specs[:index]):
                if child.parent == index:
                    yield from _adopt(chosen[index], queues[child.queue], chosen[place])
    yield from batch.write()
    for index in sorted(parents):
        yield from flows.release_if_free(work, chosen[index])
        head = yield from head_by_number(chosen[index])
        if head is not None:
            done[index] = done[index]._replace(state=head.shown_state)
    return done


def _again(work: Work, queue: Queue, spec: JobSpec, n: int, parent: ParentRef | None) -> Plan[Added]:
    """Answer a spec whose id is there already."""
    if parent is not None:
        yield (
            "UPDATE wm_job SET parent_queue = ?, parent_id = ?, policy = ? WHERE n = ?",
            (parent.queue, parent.id, POLICY_CODES[spec.policy], n),
        )
    if isinstance(spec.parent, ParentRef):
        released = yield from _tie(work, spec.parent, queue, n)
        yield from flows.release_if_free(work, released)
    stored = yield from head_by_number(n)
    assert stored is not None
    queue.events.append(("duplicated", stored.id, None))
    return Added(stored.id, stored.shown_state, "same_id")


def _tie(work: Work, parent: ParentRef, queue: Queue, n: int) -> Plan[int]:
    """Make a job a child of one that is stored; the parent's number."""
    found = yield from work.find(parent.queue)
    head = None if found is None else (yield from head_by_id(found.q, parent.id))
    if head is None:
        raise JobNotFoundError(parent.queue, parent.id)
    yield from _adopt(head.n, queue, n)
    return head.n


def _adopt(parent: int, queue: Queue, n: int) -> Plan[None]:
    child = yield from head_by_number(n)
    assert child is not None
    yield from flows.adopt(parent, queue.name, child)


_Stored = dict[tuple[str, str], Head]


def _stored(specs: Sequence[JobSpec], queues: dict[str, Queue]) -> Plan[_Stored]:
    """Read the jobs whose ids are given."""
    given: dict[str, list[str]] = {}
    for spec in specs:
        if spec.id is not None:
            given.setdefault(spec.queue, []).append(spec.id)
            note_id(queues[spec.queue], spec.id)
    stored: _Stored = {}
    for name, ids in given.items():
        found = yield from heads_by_id(queues[name].q, ids)
        stored.update({(name, id_): head for id_, head in found.items()})
    return stored


def _check_parents(work: Work, specs: Sequence[JobSpec], stored: _Stored) -> Plan[None]:
    """Refuse parents that are not there, and children that have another one."""
    own: dict[tuple[str, str], ParentRef | int | None] = {}
    for spec in specs:
        wanted = spec.parent
        if isinstance(wanted, int):
            target = specs[wanted]
            wanted = wanted if target.id is None else ParentRef(target.queue, target.id)
        elif wanted is not None and wanted not in own:
            queue = yield from work.find(wanted.queue)
            if queue is None or (yield from head_by_id(queue.q, wanted.id)) is None:
                raise JobNotFoundError(wanted.queue, wanted.id)
        if spec.id is None:
            continue
        ref = (spec.queue, spec.id)
        if ref in own:
            current = own[ref]
        else:
            head = stored.get(ref)
            living = None if head is None else (yield from flows.living_parent(work, head))
            current = None
            if head is not None and living is not None and head.parent_queue is not None:
                current = ParentRef(head.parent_queue, living.id)
        if wanted is not None and (wanted == ref or current not in {None, wanted}):
            what = "names itself as its parent" if wanted == ref else f"is already a child of {current}"
            raise ConfigurationError(
                f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
            )
        if spec.dedup is None:
            own[ref] = current if wanted is None else wanted


def _ids(specs: Sequence[JobSpec], queues: dict[str, Queue]) -> list[str]:
    """Return the id of each spec's job; a parent without one gets it with its first child."""
    early: dict[int, str] = {}
    ids: list[str] = []
    for index, spec in enumerate(specs):
        wanted = spec.parent
        if isinstance(wanted, int) and specs[wanted].id is None and wanted not in early:
            early[wanted] = choose_id(queues[specs[wanted].queue])
        if spec.id is not None:
            ids.append(spec.id)
        else:
            ids.append(early[index] if index in early else choose_id(queues[spec.queue]))
    return ids


def _deduplicate(work: Work, queue: Queue, spec: JobSpec, dedup: DedupSpec, id_: str) -> Plan[Added | None]:
    """Decide whether a job counts; None means yes, and its key is taken."""
    now = work.now
    mode = dedup.mode
    ttl = None if mode == "keep_latest" else dedup.ttl_ms
    until = None if ttl is None else now + ttl
    rows = yield "SELECT id, until FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, dedup.key)
    owner: Head | None = None
    owner_id = ""
    if rows:
        owner_id, ends = rows[0]
        owner = yield from head_by_id(queue.q, owner_id)
        if (owner is None) if ends is None else (ends <= now):
            rows = []
    if not rows:
        yield from _take_key(queue, dedup.key, id_, until)
        return None
    if mode == "debounce":
        if owner is not None and owner.state == DELAYED:
            yield from flows.child_gone(work, queue.name, owner)
            yield from delete(work, [owner])
            queue.events.append(("removed", owner.id, FROM_DELAYED))
            queue.events.append(_dropped(id_, dedup.key, owner.id))
            yield from _take_key(queue, dedup.key, id_, until)
            return None
        return Added(owner_id, show_owner(owner), "deduplicated")
    if mode == "extend":
        yield "UPDATE wm_dedup SET until = ? WHERE q = ? AND key = ?", (until, queue.q, dedup.key)
    elif mode == "keep_latest" and owner is not None and owner.state == ACTIVE:
        kept = dump_spec(spec._replace(id=id_))
        yield "UPDATE wm_dedup SET until = NULL, next = ? WHERE q = ? AND key = ?", (kept, queue.q, dedup.key)
    queue.events.append(_dropped(owner_id, dedup.key, id_))
    if mode == "reschedule" and owner is not None and owner.state == DELAYED:
        stamp = now if spec.timestamp is None else spec.timestamp
        due = stamp + spec.delay_ms if spec.due is None else spec.due
        yield "UPDATE wm_job SET due = ?, seq = ? WHERE n = ?", (due, queue.behind(), owner.n)
        queue.events.append(("delayed", owner.id, {"delay": str(due)}))
        work.hint(queue, ALL)
    return Added(owner_id, show_owner(owner), "deduplicated")


def show_owner(owner: Head | None) -> JobState:
    """Return the state of a key's owner; one that was not kept at its end counts as completed."""
    return JobState.COMPLETED if owner is None else owner.shown_state


def _take_key(queue: Queue, key: str, id_: str, until: int | None) -> Plan[None]:
    yield (
        "INSERT OR REPLACE INTO wm_dedup (q, key, id, until, next) VALUES (?, ?, ?, ?, NULL)",
        (queue.q, key, id_, until),
    )


def _dropped(id_: str, key: str, dropped: str) -> EventParts:
    return "deduplicated", id_, {"deduplicationId": key, "deduplicatedJobId": dropped}


def free_key(work: Work, queue: Queue, head: Head) -> Plan[None]:
    """Free the deduplication key of a job that ended, or add the call that was kept for this moment."""
    rows = yield "SELECT id, until, next FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, head.dedup)
    if not rows or rows[0][0] != head.id:
        return
    _, until, kept = rows[0]
    spec: JobSpec | None = None
    if kept is not None:
        # A kept call that cannot be read is given up; the job that ends must end.
        with suppress(StoreCorruptError):
            spec = load_spec(kept)
    if spec is not None and spec.id is not None and (yield from head_by_id(queue.q, spec.id)) is None:
        yield "UPDATE wm_dedup SET id = ?, next = NULL WHERE q = ? AND key = ?", (spec.id, queue.q, head.dedup)
        yield from insert(work, queue, spec, spec.id)
    elif until is None:
        yield "DELETE FROM wm_dedup WHERE q = ? AND key = ?", (queue.q, head.dedup)


def drop_keys(heads: Sequence[Head]) -> Plan[None]:
    """Free the deduplication keys of jobs that are removed, whatever their time."""
    keyed = [(head.q, head.dedup, head.id) for head in heads if head.dedup is not None]
    if keyed:
        yield Many("DELETE FROM wm_dedup WHERE q = ? AND key = ? AND id = ?", keyed)
