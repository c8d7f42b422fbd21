"""How SQLite finds the rows: no statement that runs often may go through a whole table, whatever the planner knows."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.store.helpers import Q, spec
from workers_module.job.outcome import Completed, Failed, Keep, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import ParentRef, Token
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.schedules import FireSlot, PutSchedule, ScheduleDefinition
from workers_module.store.sqlite import adding, changing, queries, registry, schedules, stepping, sweeping
from workers_module.store.sqlite.connect import Connection
from workers_module.store.sqlite.schema import prepare
from workers_module.store.sqlite.work import Ledger, Many, Plan, Statement, Tagsets, Work
from workers_module.store.values import (
    Beat,
    ByIds,
    ByState,
    DedupSpec,
    Fail,
    Held,
    JobPatch,
    Order,
    Promote,
    QueuePatch,
    Remove,
    RetryAgain,
    Settle,
    Step,
    StepReply,
    Sweep,
    WorkerInfo,
)

pytestmark = pytest.mark.sqlite

ROWS = 100_000
NOW = 1_767_225_600_000
SMALL = {"wm_queue", "wm_lock", "wm_worker", "wm_meta", "sqlite_sequence", "CONSTANT"}
"""Tables that stay small."""


class Recorder:
    """Runs plans, and remembers each statement with its parameters once."""

    def __init__(self, path: Path) -> None:
        self.connection = Connection(path, "wm_", synchronous="normal")
        prepare(self.connection, mode="auto", place=str(path))
        self.seen: dict[str, tuple[Any, ...]] = {}
        self.tagsets = Tagsets()

    def watched(self, plan: Plan[Any]) -> Plan[Any]:
        try:
            statement: Statement = next(plan)
            while True:
                if isinstance(statement, Many):
                    if statement.rows:
                        self.seen.setdefault(statement.sql, tuple(statement.rows[0]))
                else:
                    self.seen.setdefault(statement[0], tuple(statement[1]))
                rows = yield statement
                statement = plan.send(rows)
        except StopIteration as end:
            return end.value

    def do(self, plan: Callable[[Work], Plan[Any]], now: int = NOW) -> Any:
        ledger = Ledger()
        work = Work(now, self.tagsets, ledger)
        self.connection.begin("IMMEDIATE")
        result = self.connection.run(self.watched(plan(work)))
        self.connection.run(self.watched(ledger.flush()))
        self.connection.raw.execute("COMMIT")
        return result

    def scans(self) -> dict[str, list[str]]:
        """Return the statements that go through a table that may be large."""
        found: dict[str, list[str]] = {}
        for sql, parameters in self.seen.items():
            rows = self.connection.raw.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
            details = [str(row[3]) for row in rows]
            # The rows a part of the statement has found by a line of its own.
            details = [one for one in details if not one.startswith(("SCAN (subquery", "SCAN SUBQUERY"))]
            bad = [one for one in details if one.startswith("SCAN") and one.split()[1] not in SMALL | {"TABLE"}]
            # Old versions say SCAN TABLE x.
            bad += [one for one in details if one.startswith("SCAN TABLE") and one.split()[2] not in SMALL]
            if bad:
                found[sql] = bad
        return found

    def sorts(self) -> list[str]:
        """Return the statements that sort what an index could have given in order."""
        return [
            sql
            for sql, parameters in self.seen.items()
            if any(
                "TEMP B-TREE" in str(row[3])
                for row in self.connection.raw.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)
            )
        ]


def fill(raw: sqlite3.Connection) -> None:
    """Write 100,000 jobs in all states, as fast as SQLite can."""
    raw.execute("BEGIN")
    for state, share in ((1, 60), (2, 10), (3, 5), (4, 15), (5, 9), (6, 1)):
        number = ROWS * share // 100
        raw.execute(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < :number) "
            "INSERT INTO wm_job (q, state, tagset, priority, seq, due, ended, token, lease, fence, added, id, name, "
            "opts, data) "
            "SELECT 1, :state, CASE WHEN i % 10 = 0 THEN 1 ELSE 0 END, CASE WHEN i % 4 = 0 THEN 5 ELSE 0 END, i, "
            "CASE WHEN :state = 2 THEN :now + i END, CASE WHEN :state IN (4, 5) THEN :now - i END, "
            "CASE WHEN :state = 3 THEN 'dead' END, CASE WHEN :state = 3 THEN :now + 30000 END, 1, :now, "
            "'s' || :state || '-' || i, 'send', x'7b7d', x'7b7d' FROM c",
            {"number": number, "state": state, "now": NOW},
        )
    for column, condition in (
        ("waiting", "state = 1 AND priority = 0"),
        ("prioritized", "state = 1 AND priority > 0"),
        ("delayed", "state = 2"),
        ("active", "state = 3"),
        ("completed", "state = 4"),
        ("failed", "state = 5"),
        ("parked", "state = 6"),
    ):
        raw.execute(f"UPDATE wm_queue SET {column} = (SELECT count(*) FROM wm_job WHERE {condition}), back = 1000000")
    raw.execute("COMMIT")


@pytest.fixture(scope="module", params=["unanalyzed", "analyzed"])
def recorder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path_factory.mktemp("plans") / "jobs.db")
    recorder.do(lambda work: adding.add(work, [spec("first"), spec("tagged", tags=("eu",))]))
    fill(recorder.connection.raw)
    if request.param == "analyzed":
        recorder.connection.raw.execute("ANALYZE")
    recorder.seen.clear()
    yield recorder
    recorder.connection.close()


def claim(recorder: Recorder, take: int = 10, **options: Any) -> StepReply:
    req = Step(queue=Q, worker="ada", token=Token(f"t{take}"), take=take, **options)
    reply: StepReply = recorder.do(lambda work: stepping.step(work, req))
    return reply


def test_work_finds_its_rows_by_indexes_alone_and_in_order(recorder: Recorder) -> None:
    recorder.seen.clear()
    jobs = [*claim(recorder, 20).jobs, *claim(recorder, 5, tags=("eu",)).jobs]
    claim(recorder, 5, resume=True, tags=("eu",))
    keep = Keep(count=100, age_ms=50, limit=20)
    ends: list[Outcome] = [
        Completed(b"1", keep),
        Completed(b"1", Keep(count=0)),
        Failed("no", b"[]", keep),
        Failed("no", keep=Keep(count=0)),
        Retry(0, "no"),
        Retry(5, "no", b"[]"),
        Snooze(5),
        Release(),
        WaitChildren(),
        Completed(b"x" * 5_000),
    ]
    outcomes = [Settle(job.held, end) for job, end in zip(jobs, ends, strict=False)]
    outcomes.append(Settle(Held("s1-50007", Token("none"), 1), Completed(b"1")))
    req = Step(queue=Q, worker="ada", token=Token("x"), outcomes=outcomes, take=10, metrics=5)
    codes = recorder.do(lambda work: stepping.step(work, req), NOW + 5_000).settled
    assert codes[:4] == ["ok"] * 4
    recorder.do(lambda work: stepping.renew(work, Q, [job.held for job in jobs], 1_000))
    assert recorder.seen
    assert recorder.scans() == {}
    assert recorder.sorts() == []


def test_a_sweep_finds_its_rows_by_indexes_alone(recorder: Recorder) -> None:
    recorder.seen.clear()
    for later in (40_000, 80_000, 120_000):
        req = Sweep(queue=Q, interval_ms=1_000, completed_age_ms=1, failed_age_ms=1)
        recorder.do(lambda work, req=req: sweeping.sweep(work, req), NOW + later)  # type: ignore[misc]
    assert any("lapsed" in sql for sql in recorder.seen)
    assert recorder.scans() == {}
    # A queue has a handful of schedules.
    assert [sql for sql in recorder.sorts() if "wm_schedule" not in sql] == []


def test_adding_finds_its_rows_by_indexes_alone(recorder: Recorder) -> None:
    recorder.seen.clear()
    for _ in range(2):
        for specs in (
            [spec("a"), spec("b", delay_ms=5), spec("c", tags=("gpu",)), spec(None)],
            [spec("c1", parent=1), spec("p")],
            [spec("c2", parent=ParentRef(Q, "p"))],
            [spec(None, dedup=DedupSpec("k"))],
            [spec(None, dedup=DedupSpec("d", "debounce", 50), delay_ms=10)],
            [spec(None, dedup=DedupSpec("r", "reschedule"), delay_ms=10)],
            [spec(None, dedup=DedupSpec("e", "extend", 50))],
        ):
            recorder.do(lambda work, specs=specs: adding.add(work, specs))  # type: ignore[misc]
    assert recorder.scans() == {}


def test_upkeep_finds_its_rows_by_indexes_alone(recorder: Recorder) -> None:
    recorder.seen.clear()
    patch = JobPatch(id="s1-50011", progress=b"1", data=b"2", log_lines=("x",), priority=3, detach=True)
    definition = ScheduleDefinition(name="tick", every_ms=1_000)
    info = WorkerInfo(id="w", host="h", pid=1, version="1", started=1)
    plans: list[Callable[[Work], Plan[Any]]] = [
        lambda work: changing.edit(work, Q, [patch, JobPatch(id="s2-3", delay_ms=5)]),
        lambda work: changing.move(work, Q, ByIds(("s5-1",)), RetryAgain(reset=True)),
        lambda work: changing.move(work, Q, ByIds(("s2-1", "s2-2")), Promote()),
        lambda work: changing.move(work, Q, ByIds(("s1-50021",)), Fail("no")),
        lambda work: changing.move(work, Q, ByIds(("s1-50022",)), Remove()),
        lambda work: changing.move(work, Q, ByState((JobState.COMPLETED,), NOW, 5), Remove(hard=True)),
        lambda work: changing.move(work, Q, ByState(ALL_STATES, limit=5), Remove(hard=True)),
        lambda work: changing.configure(work, Q, QueuePatch(paused=True, event_cap=10, free_dedup="k")),
        lambda work: changing.configure(work, Q, QueuePatch(paused=False)),
        lambda work: schedules.schedule(work, Q, [PutSchedule(id="s", definition=definition, slot=NOW, job=spec("x"))]),
        lambda work: schedules.schedule(work, Q, [FireSlot(id="s", from_slot=NOW, slot=NOW + 5, job=spec("x"))]),
        lambda work: schedules.read(work, Q, 0, 10, ["s"]),
        lambda work: registry.lease(work, "door", "ada", 50, None),
        lambda work: registry.worker(work, Beat(info, 50)),
        lambda work: registry.worker(work, Order("w", "stop")),
    ]
    for plan in plans:
        recorder.do(plan)
    assert recorder.scans() == {}


def test_looking_finds_its_rows_by_indexes_alone(recorder: Recorder) -> None:
    recorder.seen.clear()
    plans: list[Callable[[Work], Plan[Any]]] = [
        lambda work: queries.get(work, Q, ["s1-1", "s1-2", "nobody"], payload=True),
        lambda work: queries.counts(work, [Q]),
        lambda work: queries.logs(work, Q, "s1-1", 0, 10),
        lambda work: queries.children(work, Q, "s1-1", 0, 10),
        lambda work: queries.metrics(work, Q, 10),
        lambda work: queries.events_after(work, Q, 0),
        lambda _: queries.queues(),
    ]
    for state in ALL_STATES:
        plans += [
            lambda work, state=state: queries.page(work, Q, [state], 5, 10, newest_first=False),  # type: ignore[misc]
            lambda work, state=state: queries.page(work, Q, [state], 5, 10, newest_first=True),  # type: ignore[misc]
        ]
    for plan in plans:
        recorder.do(plan)
    assert recorder.scans() == {}
    assert recorder.sorts() == []
