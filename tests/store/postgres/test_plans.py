"""The statements that matter use their indexes, whatever the planner knows; and a call costs one round trip."""

import json
import re
from collections.abc import Iterator
from typing import Any

import anyio
import asyncpg
import pytest

from tests.store.helpers import PATIENCE, Q, add, claim, spec, step
from workers_module.job.outcome import Completed, Failed, Keep, Retry
from workers_module.store.postgres import notify
from workers_module.store.postgres.connect import Connection
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import DedupSpec, Settle, Sweep

pytestmark = pytest.mark.postgres

ROWS = 100_000
_FILL = """
INSERT INTO job (n, q, state, seq, due, ended, added, id, name, opts, data, token, lease)
SELECT n, 1,
    CASE WHEN n % 100 = 0 THEN 3 WHEN n % 4 = 0 THEN 1 WHEN n % 4 = 1 THEN 2 WHEN n % 4 = 2 THEN 4 ELSE 5 END,
    n * 1024, CASE WHEN n % 4 = 1 THEN 9e12 + n END, CASE WHEN n % 100 <> 0 AND n % 4 > 1 THEN n END, n, 'j' || n,
    'send',
    '{}', '{}', CASE WHEN n % 100 = 0 THEN 't' END, CASE WHEN n % 100 = 0 THEN 9e12 END
FROM generate_series(1000000, 1000000 + $1::int) n
"""
HOT = {
    "claim": (
        "SELECT ctid FROM job WHERE q = $1 AND state = 1 AND tagset = 0 ORDER BY priority, seq LIMIT 50 FOR UPDATE",
        "job_ready",
    ),
    "claim from where the last one ended": (
        (
            "SELECT ctid FROM job WHERE q = $1 AND state = 1 AND tagset = 0 AND (priority, seq) >= (0, least(5, ("
            "SELECT seq FROM job WHERE q = $1 AND state = 1 AND tagset = 0 AND priority = 0 AND seq < 0 ORDER BY seq "
            "LIMIT 1))) ORDER BY priority, seq LIMIT 50 FOR UPDATE SKIP LOCKED"
        ),
        "job_ready",
    ),
    "due": (
        "SELECT n FROM job WHERE q = $1 AND state = 2 AND due <= 5 ORDER BY due, seq LIMIT 50 FOR UPDATE SKIP LOCKED",
        "job_due",
    ),
    "next due": ("SELECT due FROM job WHERE q = $1 AND state = 2 ORDER BY due LIMIT 1", "job_due"),
    "abandoned": (
        "SELECT * FROM job WHERE q = $1 AND state = 3 AND lease <= 5 AND lapsed <= 5 ORDER BY seq DESC FOR UPDATE",
        "job_active",
    ),
    "oldest completed": (
        (
            "DELETE FROM job WHERE ctid = ANY (ARRAY(SELECT ctid FROM job WHERE q = $1 AND state = 4 "
            "AND ended BETWEEN 1 AND 5 ORDER BY ended, seq LIMIT 50 FOR UPDATE SKIP LOCKED))"
        ),
        "job_done",
    ),
    "oldest failed": (
        (
            "DELETE FROM job WHERE ctid = ANY (ARRAY(SELECT ctid FROM job WHERE q = $1 AND state = 5 "
            "AND ended BETWEEN 1 AND 5 ORDER BY ended, seq LIMIT 50 FOR UPDATE SKIP LOCKED))"
        ),
        "job_failed",
    ),
    "places": (
        PLACES := "SELECT (SELECT ctid FROM job WHERE q = $1 AND id = u.id) FROM unnest(ARRAY['1', '2']) u(id)",
        "job_pkey",
    ),
    "by id": ("SELECT * FROM job WHERE q = $1 AND id = 'j1000001'", "job_pkey"),
}
SORTED = {"job_active", "job_pkey"}
"""Indexes of statements that find so few rows that the planner may sort them, or have no order."""
# Where rows lie is known from the statement before, or from their claim: no index is needed.
AT_THEIR_PLACES = (
    "UPDATE job AS j SET state = 3 FROM unnest(ARRAY['(0,1)'::tid]) u(place) WHERE j.ctid = u.place",
    (
        "UPDATE job SET state = 4 FROM unnest(ARRAY['(0,1)'::tid], ARRAY['1'], ARRAY['t']) WITH ORDINALITY "
        "u(place, id, token, o) WHERE job.ctid = u.place AND (job.id = u.id) IS TRUE AND job.token = u.token"
    ),
)


def nodes(plan: Any) -> Iterator[Any]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def guarded(raw: Any, function: str) -> list[str]:
    """Return what a function sets while it runs."""
    found: list[str] = await raw.fetchval("SELECT proconfig FROM pg_proc WHERE oid = $1::regproc", function)
    return found


async def assert_found_by_place(raw: Any) -> None:
    for sql in AT_THEIR_PLACES:
        (plan,) = json.loads(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {sql}"))
        met = {node["Node Type"] for node in nodes(plan["Plan"])}
        assert {"Nested Loop", "Tid Scan"} <= met, met


@pytest.mark.parametrize("analyzed", [False, True], ids=["unknown", "analyzed"])
async def test_hot_statements_scan_no_table(store: PostgresStore, raw: Any, analyzed: bool) -> None:
    await add(store, "a")
    await raw.execute("ALTER TABLE job SET (autovacuum_enabled = off)")
    await raw.execute(_FILL, ROWS)
    if analyzed:
        await raw.execute("ANALYZE job")
    for setting in await guarded(raw, "step_1"):
        name, _, value = setting.partition("=")
        if name != "search_path":
            await raw.execute(f"SET {name} = {value}")
    for what, (sql, index) in HOT.items():
        (plan,) = json.loads(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {sql.replace('$1', '1')}"))
        met = list(nodes(plan["Plan"]))
        assert not [node for node in met if node["Node Type"] == "Seq Scan"], what
        assert index in {node.get("Index Name") for node in met}, (what, met)
        assert index in SORTED or not [node for node in met if node["Node Type"] == "Sort"], what
    await assert_found_by_place(raw)
    await raw.execute("ALTER TABLE job RESET (autovacuum_enabled)")


async def test_jobs_are_found_by_their_ids_while_the_planner_believes_there_are_few(
    store: PostgresStore, raw: Any
) -> None:
    """A statement planned on the first day is kept by its connection for all that follow."""
    await add(store, "a")
    await raw.execute("SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off")
    (plan,) = json.loads(await raw.fetchval(f"EXPLAIN (FORMAT JSON) {PLACES.replace('$1', '1')}"))
    conditions = [node["Index Cond"] for node in nodes(plan["Plan"]) if node.get("Index Name")]
    assert conditions == ["((id = u.id) AND (q = 1))"]
    await assert_found_by_place(raw)


async def test_what_is_explained_is_what_is_run(raw: Any) -> None:
    """The statements above stand in the functions, but for their parameters."""
    source = " ".join(
        re.sub(r"\s+", " ", row["prosrc"])
        for row in await raw.fetch("SELECT prosrc FROM pg_proc WHERE pronamespace = current_schema()::regnamespace")
    )
    for what in (
        "FROM job WHERE q = p_q AND state = 1 AND tagset = 0 ORDER BY priority, seq LIMIT p_take FOR UPDATE SKIP",
        "AND (priority, seq) >= (0, least(p_from, (SELECT seq FROM job WHERE q = p_q AND state = 1 AND tagset = 0",
        "FROM unnest(v_best) WITH ORDINALITY u(place, o) WHERE j.ctid = u.place",
        "u(place, id, token, result, o) WHERE job.ctid = u.place AND (job.id = u.id) IS TRUE AND job.token = u.token",
        "(SELECT ctid FROM job WHERE q = p_q AND id = u.id) FROM unnest(p_ids)",
        "FROM job WHERE q = p_q AND state = 2 AND due <= p_now ORDER BY due, seq LIMIT p_limit FOR UPDATE SKIP LOCKED",
        "DELETE FROM job WHERE ctid = ANY (ARRAY( SELECT ctid FROM job WHERE q = p_q AND state = 4",
        "state = 4 AND ended BETWEEN p_from AND p_before ORDER BY ended, seq LIMIT p_limit FOR UPDATE SKIP LOCKED))",
        "lease <= v_now AND lapsed <= v_now - p_interval ORDER BY seq DESC FOR UPDATE SKIP LOCKED",
    ):
        assert what in source


@pytest.mark.parametrize("name", ["add_1", "step_1", "renew_1", "sweep_1", "edit_1", "move_1"])
async def test_operations_keep_the_planner_to_indexes(raw: Any, name: str) -> None:
    settings = await guarded(raw, name)
    assert "enable_seqscan=off" in settings
    assert any(setting.startswith("search_path=wm_test_") for setting in settings)


async def test_no_index_holds_what_a_renewal_writes(raw: Any) -> None:
    indexed = await raw.fetch(
        "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) "
        "WHERE i.indrelid = 'job'::regclass"
    )
    assert {"lease", "lapsed", "token", "cancel", "progress"}.isdisjoint(row["attname"] for row in indexed)


class Counter:
    """Counts the statements this process sends."""

    def __init__(self) -> None:
        self.sent: list[str] = []


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    fetch, execute = Connection.fetch, asyncpg.Connection.execute

    async def counted(self: Any, sql: str, *args: Any) -> Any:
        counter.sent.append(sql)
        return await fetch(self, sql, *args)

    async def counted_too(self: Any, sql: str, *args: Any, **options: Any) -> Any:
        counter.sent.append(sql)
        return await execute(self, sql, *args, **options)

    monkeypatch.setattr(Connection, "fetch", counted)
    monkeypatch.setattr(Connection, "execute", counted_too)
    return counter


async def test_each_operation_is_one_round_trip(
    place: tuple[str, str], clock: Any, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, schema = place
    store = PostgresStore(url, schema=schema, clock=clock, wakeup="poll")
    await store.open()

    def sent() -> int:
        number = len(counter.sent)
        counter.sent.clear()
        return number

    sent()
    await store.add([spec(f"{n}", queue=f"q{n % 3}", dedup=DedupSpec(f"{n}")) for n in range(100)])
    await store.add([*(spec(f"{n}", parent=10) for n in range(10)), spec("p")])
    await store.add([spec(priority=n % 3, tags=("eu",) if n % 2 else ()) for n in range(200)])
    assert sent() == 3
    jobs = await claim(store, 50)
    assert sent() == 1
    outcomes: list[Any] = [Completed(b"1", Keep(count=5)), Failed("no"), Retry(0, "no"), Retry(500, "no")]
    reply = await store.step(step(50, outcomes=[Settle(job.held, outcomes[n % 4]) for n, job in enumerate(jobs)]))
    assert len(reply.jobs) == 50
    assert sent() == 1
    await store.renew(Q, [job.held for job in reply.jobs], 1_000)
    await store.sweep(Sweep(queue=Q, interval_ms=1))
    await store.counts([Q, "q1"])
    await store.page(Q, [])
    assert sent() == 4
    await store.wait(step(5, queue="empty"), 0.5)
    assert sent() == 2
    await store.close()


async def test_who_waits_asks_once_a_second_at_most(live: PostgresStore, counter: Counter) -> None:
    await add(live, "a", delay_ms=600_000)
    counter.sent.clear()
    assert not (await live.wait(step(1), 1.5)).jobs
    asked = [sql for sql in counter.sent if "step_1" in sql]
    # At once, after the first second, and when the time was over.
    assert len(asked) <= 3
    assert len(counter.sent) <= 6


async def test_events_alone_are_told_less_often_while_batches_end_and_jobs_at_once(
    live: PostgresStore, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "RUSH", 600.0)

    def told() -> int:
        return sum("pg_notify" in sql for sql in counter.sent)

    async def until_told(times: int) -> None:
        with anyio.fail_after(PATIENCE):
            while told() < times:  # noqa: ASYNC110 - what is sent is counted
                await anyio.sleep(0.005)

    await live.add([spec() for _ in range(100)])
    await until_told(1)
    jobs = await claim(live, 100)
    await until_told(2)
    for some in (jobs[:40], jobs[40:80]):
        await live.step(step(outcomes=[Settle(job.held, Completed(b"1")) for job in some]))
    # A rush: told when a job is ready, not before.
    await anyio.sleep(5 * notify.DEBOUNCE)
    assert told() == 2
    await live.add([spec()])
    await until_told(3)
    # Few ended since: told at once.
    await live.step(step(outcomes=[Settle(job.held, Completed(b"1")) for job in jobs[80:90]]))
    await until_told(4)
