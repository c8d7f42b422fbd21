"""Rows that cannot be: one bad job is put aside, and its queue goes on."""

import sqlite3
from pathlib import Path

import anyio
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    PATIENCE,
    Later,
    Q,
    add,
    by_state,
    claim,
    claim_one,
    complete,
    listening,
    numbers,
    record,
    settle_all,
    spec,
    state,
    sweep,
)
from workers_module.job.events import EventType
from workers_module.job.outcome import Completed
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.sqlite.stepping import DAMAGED
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import Beat, DedupSpec, Remove, SettleCode, WorkerInfo

pytestmark = pytest.mark.sqlite


def harm(path: Path, sql: str) -> None:
    """Change the file behind the store's back."""
    connection = sqlite3.connect(path)
    try:
        connection.execute(sql)
        connection.commit()
    finally:
        connection.close()


DAMAGES = [
    "data = '{}'",
    "data = 5",
    "opts = 'text'",
    "name = x'ff00'",
    "fence = 'many'",
    "attempts = 'x'",
    "max_attempts = 1.5",
    "crashes = x'00'",
    "added = 'yesterday'",
    "policy = 99",
    "policy = -1",
    "policy = 'ignore'",
    "lifo = 'yes'",
    "progress = 'half'",
    "trace = 7",
    "result = 'done'",
    "deferred = x'ff'",
    "schedule = x'01'",
]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_job_is_failed_and_the_others_run(store: SqliteStore, path: Path, damage: str) -> None:
    await add(store, *(f"{n}" for n in range(10)))
    harm(path, f"UPDATE wm_job SET {damage} WHERE id = '4'")
    # It can be looked at, damaged as it is.
    assert len((await store.page(Q, ALL_STATES)).items) == 10
    done: list[str] = []
    with anyio.fail_after(PATIENCE):
        while jobs := await claim(store, 3):
            done += [job.record.id for job in jobs]
            assert set(await settle_all(store, jobs, Completed(b"1"))) == {SettleCode.OK}
    assert done == [f"{n}" for n in range(10) if n != 4]
    assert await numbers(store) == {"completed": 9, "failed": 1}
    kept = await record(store, "4")
    assert (kept.state, kept.reason) == (JobState.FAILED, DAMAGED)
    assert isinstance(kept.data, bytes)
    assert isinstance(kept.fence, int)
    assert await store.verify(Q) == []


async def test_the_failure_of_a_damaged_job_is_told(store: SqliteStore, path: Path) -> None:
    await add(store, "a")
    harm(path, "UPDATE wm_job SET data = 5")
    async with listening(store) as ear:
        assert await claim(store, 5) == []
        heard = await ear.heard()
    assert heard == [("failed", "a", {"failedReason": DAMAGED, "prev": "waiting"})]


@pytest.mark.parametrize("damage", ["priority = 'x'", "fence = 'x'", "crashes = 'x'", "policy = 9", "attempts = 'x'"])
async def test_a_job_damaged_while_it_runs_does_not_stop_the_sweep(
    store: SqliteStore, path: Path, later: Later, damage: str
) -> None:
    await add(store, "a", "b")
    await claim(store, 2)
    harm(path, f"UPDATE wm_job SET {damage} WHERE id = 'a'")
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    assert set((await sweep(store)).recovered) == {"a", "b"}


async def test_a_large_value_that_is_gone_is_noticed(store: SqliteStore, path: Path) -> None:
    await add(store, "a", data=b'"' + b"x" * 10_000 + b'"')
    harm(path, "DELETE FROM wm_blob")
    assert (await claim_one(store)).record.data == b""
    problems = await store.verify(Q)
    assert [(one.invariant, one.job_id) for one in problems] == [("I1", "a")]
    assert "large data" in problems[0].text


@pytest.mark.parametrize(
    ("damage", "invariant"),
    [
        ("UPDATE wm_job SET state = 9 WHERE id = 'w'", "I1"),
        ("UPDATE wm_job SET due = 5 WHERE id = 'w'", "I1"),
        ("UPDATE wm_job SET due = NULL WHERE id = 'd'", "I1"),
        ("UPDATE wm_job SET token = NULL WHERE id = 'a'", "I2"),
        ("UPDATE wm_job SET lease = NULL WHERE id = 'a'", "I2"),
        ("UPDATE wm_job SET lease = 5 WHERE id = 'w'", "I3"),
        ("UPDATE wm_job SET lapsed = 5 WHERE id = 'w'", "I3"),
        ("UPDATE wm_job SET cancel = 1 WHERE id = 'w'", "I3"),
        ("UPDATE wm_job SET ended = NULL WHERE id = 'c'", "I4"),
        ("UPDATE wm_job SET ended = 5 WHERE id = 'w'", "I4"),
        ("UPDATE wm_job SET token = 'x' WHERE id = 'c'", "I3"),
        ("UPDATE wm_queue SET waiting = waiting + 1", "I5"),
        ("DELETE FROM wm_job WHERE id = 'w'", "I5"),
        ("UPDATE wm_job SET pending = 7 WHERE id = 'p'", "I5"),
        ("UPDATE wm_job SET broken = 1 WHERE id = 'p'", "I5"),
        ("UPDATE wm_queue SET event_last = 1", "I5"),
        ("UPDATE wm_job SET pending = 0 WHERE id = 'p'", "I6"),
        ("DELETE FROM wm_job WHERE id = 'k'", "I6"),
        ("INSERT INTO wm_log VALUES (999, 1, 'x')", "I7"),
        ("INSERT INTO wm_blob VALUES (9999, x'00')", "I7"),
        ("INSERT INTO wm_dep (parent, i, queue, id) VALUES (999, 0, 'mail', 'x')", "I7"),
        ("DELETE FROM wm_tagset", "I7"),
        ("UPDATE wm_dedup SET id = 'nobody'", "I7"),
        ("UPDATE wm_job SET big = 1 WHERE id = 'w'", "I1"),
    ],
)
async def test_the_check_of_everything_names_what_is_wrong(
    store: SqliteStore, path: Path, damage: str, invariant: str
) -> None:
    await store.add([spec("c"), spec("a")])
    await complete(store, await claim_one(store))
    await claim_one(store)
    await store.add(
        [
            spec("w", dedup=DedupSpec("key")),
            spec("d", delay_ms=500),
            spec("t", tags=("eu",)),
            spec("k", parent=4),
            spec("p"),
        ]
    )
    assert await store.verify(Q) == []
    harm(path, damage)
    assert invariant in {one.invariant for one in await store.verify(Q)}


async def test_events_that_cannot_be_read_are_a_gap(store: SqliteStore, path: Path) -> None:
    async with listening(store) as ear:
        assert await ear.heard() == []
        await add(store, "a")
        harm(path, "UPDATE wm_event SET body = 'no JSON' WHERE last = (SELECT max(last) FROM wm_event)")
        await add(store, "b")
        heard = [one[:2] for one in await ear.heard()]
    # The reader may have been faster than the damage.
    assert heard[-2:] == [("added", "b"), ("waiting", "b")]
    assert heard[:-2] in ([(EventType.GAP, None)], [("added", "a"), ("waiting", "a")])


async def test_a_kept_call_that_cannot_be_read_does_not_keep_a_job_from_ending(store: SqliteStore, path: Path) -> None:
    await store.add([spec("a", dedup=DedupSpec("k", "keep_latest"))])
    job = await claim_one(store)
    await store.add([spec("b", dedup=DedupSpec("k", "keep_latest"))])
    harm(path, "UPDATE wm_dedup SET next = 'no JSON'")
    await complete(store, job)
    assert await numbers(store) == {"completed": 1}
    assert await store.verify(Q) == []


async def test_a_worker_that_cannot_be_read_does_not_hide_the_others(store: SqliteStore, path: Path) -> None:
    for id in ("ada", "bob"):
        await store.worker(Beat(WorkerInfo(id=id, host="h", pid=1, version="1", started=1), 60_000))
    harm(path, "UPDATE wm_worker SET body = '{' WHERE id = 'ada'")
    assert [one.id for one in await store.workers()] == ["bob"]


async def test_tags_that_cannot_be_read_do_not_stop_the_queue(
    store: SqliteStore, path: Path, other: SqliteStore
) -> None:
    await add(store, "t", tags=("eu",))
    await add(store, "a")
    harm(path, "UPDATE wm_tagset SET tags = 'no JSON'")
    await complete(other, await claim_one(other))
    assert await state(other, "t") is JobState.WAITING
    assert await claim(other, 5, tags=("eu",)) == []


async def test_a_sweep_gives_free_pages_back(store: SqliteStore, path: Path) -> None:
    large = b'"' + b"x" * 60_000 + b'"'
    await add(store, *(f"{n}" for n in range(200)), data=large)
    await store.move(Q, by_state(JobState.WAITING), Remove(hard=True))
    connection = sqlite3.connect(path)
    try:
        free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        assert free > 1_500
        await sweep(store)
        left = connection.execute("PRAGMA freelist_count").fetchone()[0]
        assert left == free - 1_000
    finally:
        connection.close()
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}
