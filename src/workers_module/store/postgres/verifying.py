# ruff: noqa: S608 - statements are put together from constants of this package and the checked name of the schema
"""The check of everything: the invariants of a queue's rows."""

from typing import Final

from workers_module.store.postgres.connect import Pool
from workers_module.store.values import Problem

_CHECKS: Final = (
    ("I1", "state NOT BETWEEN 1 AND 6", "has an unknown state"),
    ("I1", "(state = 2) <> (due IS NOT NULL)", "has a due time and is not delayed, or the other way round"),
    ("I2", "state = 3 AND (token IS NULL OR lease IS NULL)", "is active without a lease"),
    (
        "I3",
        "state <> 3 AND (token IS NOT NULL OR lease IS NOT NULL OR lapsed IS NOT NULL)",
        "has a lease and is not active",
    ),
    ("I3", "state <> 3 AND cancel", "is asked to stop and is not active"),
    ("I4", "state IN (4, 5) AND ended IS NULL", "has ended and has no end time"),
    ("I4", "state NOT IN (4, 5) AND ended IS NOT NULL", "has an end time and has not ended"),
    (
        "I5",
        "pending <> (SELECT count(*) FROM {s}.dep d WHERE d.parent = j.n AND d.state = 0)",
        "counts its pending children wrong",
    ),
    (
        "I5",
        "broken <> (SELECT count(*) FROM {s}.dep d WHERE d.parent = j.n AND d.state = 2)",
        "counts its failed children wrong",
    ),
    ("I6", "state = 6 AND pending = 0", "waits for children and none is pending"),
    (
        "I6",
        (
            "pending > 0 AND EXISTS (SELECT 1 FROM {s}.dep d WHERE d.parent = j.n AND d.state = 0 AND NOT EXISTS "
            "(SELECT 1 FROM {s}.job c JOIN {s}.queue cq ON cq.q = c.q WHERE cq.name = d.queue AND c.id = d.id))"
        ),
        "waits for a child that is not there",
    ),
    (
        "I7",
        "tagset <> 0 AND NOT EXISTS (SELECT 1 FROM {s}.tagset t WHERE t.q = j.q AND t.id = j.tagset)",
        "has tags that are not stored",
    ),
)
_COUNTED: Final = """
WITH found AS (
    SELECT {s}.shown(j.state, j.priority) AS code, count(*) AS num FROM {s}.job j JOIN {s}.queue w ON w.q = j.q
    WHERE w.name = $1 GROUP BY 1
)
SELECT c.code, c.num AS kept, coalesce(f.num, 0) AS num FROM {s}.queue w
CROSS JOIN LATERAL (
    SELECT coalesce(sum(u.num), 0)::bigint AS num, u.code FROM {s}.tally t CROSS JOIN LATERAL unnest(ARRAY[
        t.waiting, t.delayed, t.active, t.completed, t.failed, t.parked, t.prioritized]) WITH ORDINALITY AS u(num, code)
    WHERE t.q = w.q GROUP BY u.code
) c
LEFT JOIN found f ON f.code = c.code WHERE w.name = $1 AND c.num <> coalesce(f.num, 0) ORDER BY c.code
"""
_KEYS: Final = """
SELECT d.key, d.id FROM {s}.dedup d JOIN {s}.queue w ON w.q = d.q WHERE w.name = $1 AND d.until IS NULL AND NOT EXISTS (
    SELECT 1 FROM {s}.job j WHERE j.q = d.q AND j.id = d.id AND j.state NOT IN (4, 5)) ORDER BY d.key
"""
_ORPHANS: Final = (
    ("SELECT count(*) AS num FROM {s}.log l WHERE NOT EXISTS (SELECT 1 FROM {s}.job j WHERE j.n = l.n)", "log lines"),
    (
        "SELECT count(*) AS num FROM {s}.dep d WHERE NOT EXISTS (SELECT 1 FROM {s}.job j WHERE j.n = d.parent)",
        "children",
    ),
)
_NAMES: Final = ("", "waiting", "delayed", "active", "completed", "failed", "waiting-children", "prioritized")


async def verify(pool: Pool, schema: str, queue: str) -> list[Problem]:
    """Do what `Store.verify` says."""
    name = f'"{schema}"'
    problems: list[Problem] = []
    for invariant, condition, words in _CHECKS:
        sql = (
            f"SELECT j.id FROM {name}.job j JOIN {name}.queue w ON w.q = j.q WHERE w.name = $1 "
            f"AND ({condition.replace('{s}', name)}) ORDER BY j.n LIMIT 100"
        )
        rows = await pool.fetch(sql, [queue])
        problems += [Problem(invariant, row["id"], f"job {row['id']!r} {words}") for row in rows]
    for row in await pool.fetch(_COUNTED.replace("{s}", name), [queue]):
        text = f"the counter says {row['kept']} {_NAMES[row['code']]}, there are {row['num']}"
        problems.append(Problem("I5", None, text))
    for row in await pool.fetch(_KEYS.replace("{s}", name), [queue]):
        text = f"deduplication key {row['key']!r} is held by {row['id']!r}, which ended or is gone"
        problems.append(Problem("I7", row["id"], text))
    for sql, words in _ORPHANS:
        rows = await pool.fetch(sql.replace("{s}", name), [])
        if rows[0]["num"]:
            problems.append(Problem("I7", None, f"{rows[0]['num']} {words} belong to no job"))
    return problems
