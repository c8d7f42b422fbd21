# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""What every call shares: plans, the rows of queues, and the effects that are written at a call's end.

A *plan* is a generator that yields statements and receives their rows. It knows neither connection nor thread, so the
same code runs on the store's own thread and inside a transaction of the application's, synchronous or not.
"""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from workers_module.errors import StoreCorruptError
from workers_module.job.record import ChildPolicy
from workers_module.store.codec import EventParts, dump_events, dump_tags, load_tags
from workers_module.store.values import MAX_EVENTS

T = TypeVar("T")

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = list[Row]


class Many(NamedTuple):
    """One statement for many rows of parameters."""

    sql: str
    rows: Sequence[Sequence[Any]]


Statement: TypeAlias = tuple[str, Sequence[Any]] | Many
Plan: TypeAlias = Generator[Statement, Rows, T]

READY: Final = 1
DELAYED: Final = 2
ACTIVE: Final = 3
COMPLETED: Final = 4
FAILED: Final = 5
PARKED: Final = 6
PRIORITIZED: Final = 7
"""Only in counters: ready, with a priority."""

BIG: Final = 4_096
"""Values over so many bytes lie outside their job's row."""
MANUAL: Final = 2**53 - 1
"""The starts of a rate window that was closed by hand; BullMQ's number."""
ALL: Final = 1_000_000
"""A hint for every waiter."""

POLICIES: Final = (ChildPolicy.FAIL_PARENT, ChildPolicy.CONTINUE_PARENT, ChildPolicy.IGNORE, ChildPolicy.REMOVE)
POLICY_CODES: Final = {policy: code for code, policy in enumerate(POLICIES)}

FROM_DELAYED: Final = {"prev": "delayed"}
FROM_ACTIVE: Final = {"prev": "active"}
FROM_WAITING: Final = {"prev": "waiting"}
FROM_CHILDREN: Final = {"prev": "waiting-children"}

_COUNTERS: Final = "waiting, delayed, active, completed, failed, parked, prioritized"
_QUEUE_COLUMNS: Final = (
    "q, name, gone, paused, concurrency, rate_max, rate_ms, rate_used, rate_until, event_cap, "
    f"event_last, swept, tagsets, ids, back, front, {_COUNTERS}"
)
_WRITTEN: Final = [name.strip() for name in _QUEUE_COLUMNS.split(",")][2:]
_SELECT_QUEUE: Final = f"SELECT {_QUEUE_COLUMNS} FROM wm_queue WHERE name = ?"
_SELECT_QUEUE_BY_NUMBER: Final = f"SELECT {_QUEUE_COLUMNS} FROM wm_queue WHERE q = ?"
_UPDATE_QUEUE: Final = f"UPDATE wm_queue SET {', '.join(f'{name} = ?' for name in _WRITTEN)} WHERE q = ?"
_INSERT_QUEUE: Final = "INSERT INTO wm_queue (name, event_cap) VALUES (?, ?)"
_INSERT_EVENT: Final = "INSERT INTO wm_event (q, last, size, body) VALUES (?, ?, ?, ?)"
_EVENTS_A_ROW: Final = 1_000
_TRIM_EVENTS: Final = "DELETE FROM wm_event WHERE q = ? AND last <= ?"


class Queue:
    """A queue's row as one call sees and changes it. ``tally`` is indexed by state code."""

    __slots__ = (
        "back",
        "concurrency",
        "event_cap",
        "event_last",
        "events",
        "front",
        "gone",
        "ids",
        "name",
        "paused",
        "q",
        "rate_max",
        "rate_ms",
        "rate_until",
        "rate_used",
        "stored",
        "swept",
        "tagsets",
        "tally",
    )
    q: int
    name: str
    gone: int
    paused: int
    concurrency: int | None
    rate_max: int | None
    rate_ms: int | None
    rate_used: int
    rate_until: int
    event_cap: int
    event_last: int
    swept: int
    tagsets: int
    ids: int
    back: int
    front: int
    tally: list[int]
    events: list[EventParts]
    stored: Row

    def __init__(self, row: Row) -> None:
        self._set(row)
        self.events = []
        self.stored = row[2:]

    def _set(self, row: Row) -> None:
        (
            self.q,
            self.name,
            self.gone,
            self.paused,
            self.concurrency,
            self.rate_max,
            self.rate_ms,
            self.rate_used,
            self.rate_until,
            self.event_cap,
            self.event_last,
            self.swept,
            self.tagsets,
            self.ids,
            self.back,
            self.front,
            *tally,
        ) = row
        self.tally = [0, *tally]

    @property
    def ready(self) -> int:
        """How many jobs wait to be claimed."""
        return self.tally[READY] + self.tally[PRIORITIZED]

    def behind(self) -> int:
        """Return a place behind all others."""
        self.back += 1
        return self.back

    def ahead(self) -> int:
        """Return a place in front of all others."""
        self.front -= 1
        return self.front

    def count(self, state: int, priority: int, by: int) -> None:
        """Change the number of jobs in a state."""
        self.tally[PRIORITIZED if state == READY and priority > 0 else state] += by

    def restore(self, values: Row, events: int) -> None:
        """Go back to earlier values, and to so many events."""
        stored = self.stored
        self._set((self.q, self.name, *values))
        self.stored = stored
        del self.events[events:]

    def values(self) -> Row:
        """Return what is to be written, in the order of the columns."""
        return (
            self.gone,
            self.paused,
            self.concurrency,
            self.rate_max,
            self.rate_ms,
            self.rate_used,
            self.rate_until,
            self.event_cap,
            self.event_last,
            self.swept,
            self.tagsets,
            self.ids,
            self.back,
            self.front,
            *self.tally[1:],
        )


def _tags(body: str) -> tuple[str, ...]:
    try:
        return load_tags(body)
    except StoreCorruptError:
        # Nobody asks for these jobs then; the others of the queue go on.
        return ()


class Tagsets:
    """The sets of tags seen so far, by queue.

    Sets are only ever added, so what was read stays true, and the queue's count of them tells whether there are more.
    After a rollback the cache must be emptied.
    """

    __slots__ = ("_by_queue",)

    def __init__(self) -> None:
        self._by_queue: dict[int, list[tuple[str, ...]]] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._by_queue.clear()

    def of(self, q: int, count: int) -> Plan[list[tuple[str, ...]]]:
        """Return a queue's sets; the index is the number, and number 0 has no tags."""
        known = self._by_queue.get(q)
        if known is None:
            known = self._by_queue[q] = [()]
        if len(known) <= count:
            rows = yield "SELECT tags FROM wm_tagset WHERE q = ? AND id >= ? ORDER BY id", (q, len(known))
            known.extend(_tags(body) for (body,) in rows)
        return known

    def number(self, queue: Queue, tags: tuple[str, ...]) -> Plan[int]:
        """Return the number of a set, new or not."""
        if not tags:
            return 0
        known = yield from self.of(queue.q, queue.tagsets)
        if tags in known:
            return known.index(tags)
        queue.tagsets += 1
        yield "INSERT INTO wm_tagset (q, id, tags) VALUES (?, ?, ?)", (queue.q, queue.tagsets, dump_tags(tags))
        known.append(tags)
        return queue.tagsets


class Ledger:
    """The rows of queues as one transaction sees and changes them: read once, and written once at its end."""

    __slots__ = ("_by_number", "_queues", "_taken")

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._by_number: dict[int, Queue] = {}
        self._taken = -1

    def named(self, name: str) -> Queue | None:
        """Return a queue that was read before."""
        return self._queues.get(name)

    def numbered(self, q: int) -> Queue | None:
        """Return a queue that was read before."""
        return self._by_number.get(q)

    def keep(self, row: Row) -> Queue:
        """Take in a queue that was just read."""
        queue = Queue(row)
        self._queues[queue.name] = queue
        self._by_number[queue.q] = queue
        return queue

    def drop(self, queue: Queue) -> None:
        """Forget a queue: what was read may not be true any more."""
        del self._queues[queue.name], self._by_number[queue.q]

    def numbers(self, count: int) -> Plan[int]:
        """Return the first of so many numbers no job ever had."""
        if self._taken < 0:
            rows = yield "SELECT seq FROM sqlite_sequence WHERE name = 'wm_job'", ()
            self._taken = rows[0][0] if rows else 0
        first = self._taken + 1
        self._taken += count
        return first

    def flush(self) -> Plan[list[str]]:
        """Write the events and the changed rows; the queues that have new events."""
        told: list[str] = []
        for queue in self._queues.values():
            if queue.events:
                yield from _write_events(queue)
                told.append(queue.name)
            values = queue.values()
            if values != queue.stored:
                yield _UPDATE_QUEUE, (*values, queue.q)
                queue.stored = values
        return told


def _write_events(queue: Queue) -> Plan[None]:
    before = queue.event_last
    for piece in chunks(queue.events, _EVENTS_A_ROW):
        queue.event_last += len(piece)
        yield _INSERT_EVENT, (queue.q, queue.event_last, len(piece), dump_events(piece))
    queue.events = []
    # Trimming at each call would cost a look into the table each time; a tenth over the cap does no harm.
    stride = max(1, min(1_000, queue.event_cap // 10))
    if before // stride != queue.event_last // stride and queue.event_last > queue.event_cap:
        yield from trim_events(queue)


def trim_events(queue: Queue) -> Plan[None]:
    """Delete the rows whose events all lie outside the cap."""
    yield _TRIM_EVENTS, (queue.q, queue.event_last - queue.event_cap)


class Work:
    """One call: its instant, the queues it touches, and the hints to be given when it is committed."""

    __slots__ = ("_before", "hints", "ledger", "now", "tagsets", "tidy")

    def __init__(self, now: int, tagsets: Tagsets, ledger: Ledger) -> None:
        self.now = now
        self.tagsets = tagsets
        self.ledger = ledger
        self.hints: dict[str, int] = {}
        self.tidy = False
        """Whether this is a good moment to give free pages back."""
        self._before: dict[Queue, tuple[Row, int] | None] = {}
        """The queues touched, as they were before; None for those this call has read first."""

    def hint(self, queue: Queue, jobs: int) -> None:
        """Say that so many jobs of a queue became ready; where jobs have tags, any waiter may be the right one."""
        more = ALL if queue.tagsets else jobs
        self.hints[queue.name] = self.hints.get(queue.name, 0) + more

    def find(self, name: str) -> Plan[Queue | None]:
        """Return a queue's row, if there is one."""
        queue = self.ledger.named(name)
        if queue is not None:
            return self._known(queue)
        rows = yield _SELECT_QUEUE, (name,)
        return self._new(rows[0]) if rows else None

    def make(self, name: str) -> Plan[Queue]:
        """Return a queue's row; a queue that is not there is made, one that was obliterated comes back."""
        queue = yield from self.find(name)
        if queue is None:
            yield _INSERT_QUEUE, (name, MAX_EVENTS)
            rows = yield _SELECT_QUEUE, (name,)
            queue = self._new(rows[0])
        queue.gone = 0
        return queue

    def numbered(self, q: int) -> Plan[Queue]:
        """Return the row of a queue that is known to exist."""
        queue = self.ledger.numbered(q)
        if queue is not None:
            return self._known(queue)
        rows = yield _SELECT_QUEUE_BY_NUMBER, (q,)
        return self._new(rows[0])

    def _known(self, queue: Queue) -> Queue:
        if queue not in self._before:
            self._before[queue] = queue.values(), len(queue.events)
        return queue

    def _new(self, row: Row) -> Queue:
        queue = self.ledger.keep(row)
        self._before[queue] = None
        return queue

    def undo(self) -> None:
        """Leave the ledger as this call found it."""
        for queue, before in self._before.items():
            if before is None:
                self.ledger.drop(queue)
            else:
                queue.restore(*before)
        self.hints.clear()


def marks(number: int) -> str:
    """Return question marks for an ``IN`` list of at least ``number`` values: few sizes make few statements."""
    size = 1
    while size < number:
        size *= 2
    return ",".join("?" * size)


def padded(values: Sequence[Any]) -> list[Any]:
    """Return the values for `marks`: the last one again and again until the size is right."""
    size = 1
    while size < len(values):
        size *= 2
    return [*values, *([values[-1]] * (size - len(values)))]


def with_ids(q: int, ids: Iterable[str]) -> Iterable[tuple[str, list[Any]]]:
    """Return conditions that together hold for the jobs of a queue with these ids, each with its values.

    Written as the index has it; an id's length is what SQLite takes for it, which ends at a NUL.
    """
    sizes: dict[int, list[str]] = {}
    for id_ in dict.fromkeys(ids):
        sizes.setdefault(len(id_.partition("\0")[0]), []).append(id_)
    for size, some in sizes.items():
        for piece in chunks(some):
            yield f"q = ? AND length(id) = ? AND id IN ({marks(len(piece))})", [q, size, *padded(piece)]


def chunks(values: Sequence[T], size: int = 256) -> Iterable[Sequence[T]]:
    """Cut a sequence into pieces: SQLite allows 999 parameters in old versions."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
