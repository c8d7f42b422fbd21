# ruff: noqa: S608 - statements are put together from constants of this package and the checked name of the schema
"""Reads: plain statements, one each."""

from dataclasses import dataclass
from typing import Final, Self

from workers_module.store.postgres.reading import RECORD

_COLUMNS: Final = ", ".join("t.tags" if name == "tags" else f"j.{name}" for name in RECORD)
_GET: Final = f"""
SELECT {_COLUMNS}, j.state, j.due, j.ended FROM {{s}}.queue w
CROSS JOIN LATERAL unnest($2::text[]) u(id)
JOIN {{s}}.job j ON j.q = w.q AND j.id = u.id LEFT JOIN {{s}}.tagset t ON t.id = j.tagset WHERE w.name = $1
"""
_COUNTS: Final = """
SELECT w.name, w.paused, coalesce(sum(t.waiting), 0)::bigint, coalesce(sum(t.prioritized), 0)::bigint,
    coalesce(sum(t.delayed), 0)::bigint, coalesce(sum(t.active), 0)::bigint, coalesce(sum(t.completed), 0)::bigint,
    coalesce(sum(t.failed), 0)::bigint, coalesce(sum(t.parked), 0)::bigint
FROM {s}.queue w LEFT JOIN {s}.tally t ON t.q = w.q WHERE w.name = ANY ($1::text[]) GROUP BY w.name, w.paused
"""
_LOGS: Final = """
SELECT j.logged, l.line, count(l.line) OVER () AS some,
    (SELECT count(*) FROM {s}.log x WHERE x.n = j.n) AS total
FROM {s}.queue w JOIN {s}.job j ON j.q = w.q AND j.id = $2
LEFT JOIN LATERAL (SELECT i, line FROM {s}.log WHERE n = j.n ORDER BY i LIMIT $3 OFFSET $4) l ON true
WHERE w.name = $1 ORDER BY l.i
"""
_CHILDREN: Final = """
SELECT c.queue, c.id, c.state, c.value, c.reason, (SELECT count(*) FROM {s}.dep x WHERE x.parent = j.n) AS total
FROM {s}.queue w JOIN {s}.job j ON j.q = w.q AND j.id = $2
LEFT JOIN LATERAL (SELECT * FROM {s}.dep WHERE parent = j.n ORDER BY i LIMIT $3 OFFSET $4) c ON true
WHERE w.name = $1 ORDER BY c.i
"""
_QUEUES: Final = """
SELECT name FROM {s}.queue w WHERE NOT gone OR (
    SELECT sum(waiting + delayed + active + completed + failed + parked + prioritized) FROM {s}.tally t
    WHERE t.q = w.q) > 0
"""
_METRICS: Final = """
SELECT m.kind, m.minute, sum(m.num)::bigint AS num, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now
FROM {s}.queue w JOIN {s}.metric m ON m.q = w.q WHERE w.name = $1 GROUP BY m.kind, m.minute
"""
_SETTINGS: Final = """
SELECT paused, concurrency, rate_max, rate_ms, event_cap,
    CASE WHEN rate_used >= 9007199254740991 AND rate_until > {s}.instant($2) THEN rate_until END AS limited_until
FROM {s}.queue WHERE name = $1
"""
_SCHEDULES: Final = """
SELECT s.id, s.slot, s.count, s.paused, s.body, j.state, j.priority
FROM {s}.queue w JOIN {s}.schedule s ON s.q = w.q
LEFT JOIN {s}.job j ON j.q = w.q AND j.id = 'repeat:' || s.id || ':' || s.slot
WHERE w.name = $1 AND ($4::text[] IS NULL OR s.id = ANY ($4)) ORDER BY s.slot, s.id COLLATE "C" LIMIT $2 OFFSET $3
"""
_LOCKS: Final = 'SELECT name, owner, fence, until FROM {s}.lock WHERE until > {s}.instant($1) ORDER BY name COLLATE "C"'
_WORKERS: Final = 'SELECT seen, body FROM {s}.worker WHERE until > {s}.instant($1) ORDER BY id COLLATE "C"'


def call(name: str, arguments: int, columns: str = "*") -> str:
    """Return the statement that calls a function."""
    return f"SELECT {columns} FROM {{s}}.{name}({', '.join(f'${n}' for n in range(1, arguments + 1))})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sql:
    """The statements of a store, with the name of its schema."""

    add: str = call("add_1", 26)
    step: str = call("step_1", 26)
    renew: str = call("renew_1", 6)
    sweep: str = call("sweep_1", 7)
    edit: str = call("edit_1", 15)
    move: str = call("move_1", 13)
    configure: str = call("configure_1", 11)
    obliterate: str = call("obliterate_1", 4)
    schedule: str = call("schedule_1", 19)
    lease: str = call("lease_1", 5, "lease_1 AS fence")
    worker: str = call("worker_1", 5, "worker_1 AS orders")
    publish: str = call("publish_1", 4)
    restore: str = call("restore_1", 31)
    make: str = call("make_1", 2)
    page: str = call("page_1", 5)
    now: str = "SELECT {s}.instant(NULL) AS now"
    get: str = _GET
    get_without_data: str = _GET.replace("j.data", "''::bytea AS data")
    counts: str = _COUNTS
    logs: str = _LOGS
    children: str = _CHILDREN
    queues: str = _QUEUES
    metrics: str = _METRICS
    settings: str = _SETTINGS
    schedules: str = _SCHEDULES
    locks: str = _LOCKS
    workers: str = _WORKERS

    @classmethod
    def of(cls, schema: str) -> Self:
        """Return the statements for a schema."""
        fields = cls.__dataclass_fields__
        return cls(**{name: str(field.default).replace("{s}", f'"{schema}"') for name, field in fields.items()})
