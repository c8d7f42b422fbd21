"""Reading a queue's events: each once, though their numbers are drawn before their transactions end.

A number that is skipped is a *hole*: its transaction goes on, or was rolled back. A reader asks for its holes again
until no transaction is left that could fill them: those had their ids before the numbers, so that all of them are below
the id the reader draws when it has found the hole.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from workers_module.errors import ConfigurationError
from workers_module.job.events import Event, EventBatch, EventType
from workers_module.store.postgres.asking import SEPARATOR
from workers_module.store.postgres.calls import FALLBACK, Calls
from workers_module.store.postgres.connect import Pool
from workers_module.store.postgres.reading import to_event

_ROWS: Final = 500
_LOOKED_BACK: Final = 200
"""How many numbers before its beginning a reader takes for holes, if they are not there."""
_MOST_HOLES: Final = 2_000

_READ: Final = """
SELECT u.trimmed, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin, e.n, x.kind, x.id, x.a, x.b
FROM {schema}.queue w JOIN {schema}.upkeep u ON u.q = w.q
LEFT JOIN LATERAL (
    SELECT n, kinds, ids, a, b FROM {schema}.event WHERE q = w.q AND (n > $2 OR n = ANY ($3::bigint[]))
    ORDER BY n LIMIT {rows}
) e ON true
LEFT JOIN LATERAL unnest(e.kinds, e.ids, e.a, e.b) WITH ORDINALITY AS x(kind, id, a, b, o) ON true
WHERE w.name = $1 ORDER BY e.n, x.o
"""
_BEGIN: Final = """
WITH last AS (
    SELECT w.q, u.trimmed, greatest(u.trimmed, coalesce(
        (SELECT max(n) FROM {schema}.event e WHERE e.q = w.q), 0)) AS n
    FROM {schema}.queue w JOIN {schema}.upkeep u ON u.q = w.q WHERE w.name = $1
)
SELECT last.n, ARRAY(
    SELECT k FROM generate_series(greatest(last.n - {back}, last.trimmed) + 1, last.n) k
    WHERE NOT EXISTS (SELECT 1 FROM {schema}.event e WHERE e.q = last.q AND e.n = k)
) AS holes FROM last
"""


@dataclass(slots=True)
class Cursor:
    """How far a reader has come.

    Attributes:
        last: The newest number it has met.
        holes: Numbers before that one that it has not met, and the transaction id that tells when they never come; None
            until that is drawn.
    """

    last: int = 0
    holes: dict[int, int | None] = field(default_factory=dict[int, int | None])

    def __str__(self) -> str:
        if not self.holes:
            return str(self.last)
        return f"{self.last}:{','.join(map(str, self.holes))}"

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ConfigurationError: The text is something else.
        """
        last, _, holes = text.partition(":")
        try:
            return cls(int(last), {int(hole): None for hole in holes.split(",") if hole})
        except ValueError:
            raise ConfigurationError(
                f"{text!r} is no cursor of a Postgres store; pass the cursor of an EventBatch, or None"
            ) from None


class EventReader:
    """Reads the events of one queue on behalf of one listener."""

    def __init__(self, pool: Pool, schema: str, queue: str) -> None:
        self._pool = pool
        self._queue = queue
        self._read = _READ.format(schema=f'"{schema}"', rows=_ROWS)
        self._begin = _BEGIN.format(schema=f'"{schema}"', back=_LOOKED_BACK)
        self.cursor = Cursor()

    async def begin(self) -> None:
        """Begin at this moment: what commits from now on is read, also under numbers drawn before."""
        rows = await self._pool.fetch(self._begin, [self._queue])
        self.cursor = Cursor(rows[0]["n"], dict.fromkeys(rows[0]["holes"])) if rows else Cursor()

    async def next(self) -> EventBatch | None:
        """Return what is new; None when there is nothing."""
        cursor = self.cursor
        last, holes = cursor.last, dict(cursor.holes)
        rows = await self._pool.fetch(self._read, [self._queue, last, list(holes)])
        if not rows:
            return None
        found: list[Event] = []
        trimmed: int = rows[0]["trimmed"]
        if last < trimmed:
            found.append(Event(EventType.GAP))
            last = trimmed
        numbers = {row["n"] for row in rows if row["n"] is not None}
        xmin: int = rows[0]["xmin"]
        for hole, bound in list(holes.items()):
            if hole in numbers or hole <= trimmed or (bound is not None and bound <= xmin):
                del holes[hole]
        if numbers:
            top = max(last, *numbers)
            holes.update(dict.fromkeys(hole for hole in range(last + 1, top) if hole not in numbers))
            last = top
            for row in rows:
                found += _events(row)
        if any(bound is None for bound in holes.values()):
            bound = await self._bound()
            for hole, old in holes.items():
                holes[hole] = bound if old is None else old
            while len(holes) > _MOST_HOLES:
                del holes[min(holes)]
        self.cursor = Cursor(last, holes)
        return EventBatch(str(self.cursor), tuple(found)) if found else None

    async def _bound(self) -> int:
        rows = await self._pool.fetch("SELECT pg_current_xact_id()::text::bigint AS bound", [])
        bound: int = rows[0]["bound"]
        return bound


def _events(row: Any) -> list[Event]:
    kind, id_, first, second = row["kind"], row["id"], row["a"], row["b"]
    if second == SEPARATOR:
        # An event of the application's own: all its fields are in the first value.
        return [Event(kind, id_, json.loads(first))]
    match kind:
        case None:
            return []
        case "c":
            return [to_event("completed", id_, first, "active")]
        case "a":
            return [to_event("active", id_, None, "waiting")]
        case "n":
            return [to_event("added", id_, first, None), to_event("waiting", id_, None, None)]
        case _:
            return [to_event(kind, id_, first, second)]


@asynccontextmanager
async def following(calls: Calls, queue: str, after: str | None) -> AsyncGenerator[AsyncIterator[EventBatch]]:
    """Do what `Store.events` says."""
    reader = EventReader(calls.check(), calls.address.schema, queue)
    if after is None:
        await reader.begin()
    else:
        reader.cursor = Cursor.read(after)
    batches = _follow(calls, reader, queue)
    try:
        yield batches
    finally:
        await batches.aclose()


async def _follow(calls: Calls, reader: EventReader, queue: str) -> AsyncGenerator[EventBatch]:
    with calls.news.listen(queue) as ear:
        while True:
            calls.check()
            batch = await reader.next()
            if batch is None:
                await ear.wait(FALLBACK)
            else:
                yield batch


async def publish(calls: Calls, queue: str, events: Sequence[Event]) -> None:
    """Do what `Store.publish` says."""
    if not events:
        calls.check()
        return
    await calls.fetch(
        calls.sql.publish,
        queue,
        [str(event.type) for event in events],
        [event.job_id for event in events],
        [json.dumps(dict(event.fields)).encode() for event in events],
        repeatable=False,
    )
    calls.changed(queue, 0)
