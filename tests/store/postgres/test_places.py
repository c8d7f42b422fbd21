"""Claims and trimming begin where the last ones ended, and jobs are settled where they lie; nothing is missed by it."""

import json
from typing import Any

import pytest

from tests.store.helpers import (
    add,
    assert_sound,
    claim,
    claim_one,
    ids_in,
    ids_of,
    listening,
    numbers,
    record,
    release,
    spec,
    step,
)
from workers_module.job.outcome import Completed, Keep
from workers_module.job.state import JobState
from workers_module.store.postgres.fronts import WHOLE_LOOK, Front
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import Settle, SettleCode

pytestmark = pytest.mark.postgres


async def keep_working(store: PostgresStore, jobs: int, *, take: int, keep: Keep | None = None) -> list[str]:
    """Claim and complete batches until so many jobs are done; their ids."""
    done: list[str] = []
    outcomes: list[Settle] = []
    while len(done) < jobs:
        reply = await store.step(step(take, outcomes=outcomes))
        done += ids_of(reply.jobs)
        outcomes = [Settle(job.held, Completed(b"1", keep)) for job in reply.jobs]
    await store.step(step(outcomes=outcomes))
    return done


def test_each_so_many_calls_look_at_everything() -> None:
    front = Front()
    front.learn(5, 7)
    told = [front.begin() for _ in range(2 * WHOLE_LOOK)]
    assert told.count((5, 7)) == 2 * (WHOLE_LOOK - 1)
    assert told[WHOLE_LOOK - 1] == told[-1] == (None, None)


async def test_a_claim_walks_past_no_job_that_is_gone(store: PostgresStore, raw: Any) -> None:
    await raw.execute("ALTER TABLE job SET (autovacuum_enabled = off)")
    ids = await add(store, *(f"j{n}" for n in range(4_000)))
    assert await keep_working(store, 3_900, take=100) == ids[:3_900]
    begin = await raw.fetchval("SELECT min(seq) FROM job WHERE state = 1")

    async def read(front: int | None) -> int:
        """Return how many pages a claim reads."""
        text = await raw.fetchval(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM best(1, NULL, 10, $1::bigint)", front
        )
        plan = json.loads(text)[0]["Plan"]
        pages: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        return pages

    # The first ones plan, and note in the index which entries are dead.
    await read(None)
    await read(begin)
    assert await read(None) - await read(begin) >= 10
    await raw.execute("ALTER TABLE job RESET (autovacuum_enabled)")


async def test_what_is_put_in_front_goes_first(store: PostgresStore) -> None:
    await add(store, *(f"j{n}" for n in range(20)))
    first = await claim(store, 4)
    await add(store, "late", lifo=True)
    await release(store, first[1])
    assert ids_of(await claim(store, 4)) == ["j1", "late", "j4", "j5"]
    await add(store, "urgent", priority=1)
    assert ids_of(await claim(store, 14)) == [*(f"j{n}" for n in range(6, 20))]
    assert ids_of(await claim(store, 4)) == ["urgent"]


async def committed_late(store: PostgresStore, raw: Any, others: int) -> None:
    """Add a job in a transaction that ends when those added after it have been claimed."""
    async with raw.transaction():
        await store.add([spec("late")], tx=raw)
        await add(store, *(f"j{n}" for n in range(others)))
        assert ids_of(await claim(store, 2)) == ["j0", "j1"]


async def test_a_job_committed_late_is_claimed_when_nothing_else_waits(store: PostgresStore, raw: Any) -> None:
    await committed_late(store, raw, 2)
    assert ids_of(await claim(store, 2)) == ["late"]


async def test_a_job_committed_late_is_claimed_soon_while_others_wait(store: PostgresStore, raw: Any) -> None:
    await committed_late(store, raw, 100)
    claimed = [(await claim_one(store)).record.id for _ in range(WHOLE_LOOK)]
    assert "late" in claimed
    assert [id for id in claimed if id != "late"] == [f"j{n}" for n in range(2, WHOLE_LOOK + 1)]


async def test_the_newest_are_kept_whatever_was_restored(store: PostgresStore, later: Any) -> None:
    keep = Keep(count=5)
    await add(store, *(f"j{n}" for n in range(12)))
    old = await claim_one(store)
    await store.step(step(outcomes=[Settle(old.held, Completed(b"1", keep))]))
    dump = [await record(store, "j0")]
    for _ in range(9):
        later(1_000)
        await keep_working(store, 1, take=1, keep=keep)
    assert await ids_in(store, JobState.COMPLETED) == [f"j{n}" for n in range(5, 10)]
    assert await store.restore(dump) == 1
    assert await numbers(store) == {"completed": 6, "waiting": 2}
    later(1_000)
    await keep_working(store, 1, take=1, keep=keep)
    assert sorted(await ids_in(store, JobState.COMPLETED)) == ["j10", *(f"j{n}" for n in range(6, 10))]
    await assert_sound(store)


@pytest.mark.parametrize("keep", [None, Keep(count=0)], ids=["kept", "not kept"])
async def test_a_result_goes_to_its_own_job_where_another_lies_in_its_place(
    store: PostgresStore, keep: Keep | None
) -> None:
    """A vacuum, or what is written to a job, moves rows; places become free and are taken."""
    await add(store, *"abc")
    held = [job.held for job in await claim(store, 3)]
    held = [one._replace(handle=other.handle) for one, other in zip(held, [*held[1:], held[0]], strict=True)]
    results = [b'"a"', b'"b"', b'"c"']
    outcomes = [Settle(one, Completed(result, keep)) for one, result in zip(held, results, strict=True)]
    async with listening(store) as ear:
        assert (await store.step(step(outcomes=outcomes))).settled == [SettleCode.OK] * 3
        told = [(await ear.until("completed"))[-1] for _ in range(3)]
    assert [(id, fields["returnvalue"].encode()) for _, id, fields in told] == list(zip("abc", results, strict=True))
    if keep is None:
        assert [(await record(store, id)).result for id in "abc"] == results
    await assert_sound(store)


async def test_jobs_are_settled_after_the_table_was_rewritten(store: PostgresStore, raw: Any) -> None:
    await add(store, *(f"j{n}" for n in range(40)))
    jobs = await claim(store, 40)
    await raw.execute("VACUUM FULL job")
    outcomes = [Settle(job.held, Completed(b"%d" % n)) for n, job in enumerate(jobs)]
    assert (await store.step(step(outcomes=outcomes))).settled == [SettleCode.OK] * 40
    assert [(await record(store, f"j{n}")).result for n in range(40)] == [b"%d" % n for n in range(40)]


async def test_the_clock_may_go_back(store: PostgresStore) -> None:
    keep = Keep(count=2)
    await add(store, *(f"j{n}" for n in range(8)))
    (job,) = await claim(store, 1)
    for now in (1_000, 2_000, 3_000, 500, 600, 4_000):
        (job,) = (await store.step(step(1, outcomes=[Settle(job.held, Completed(b"1", keep))], now=now))).jobs
    assert await ids_in(store, JobState.COMPLETED) == ["j2", "j5"]
    await assert_sound(store)
