"""How many ended jobs stay."""

import pytest

from tests.store.helpers import (
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    ev,
    fail,
    ids_in,
    listening,
    numbers,
    settle_all,
    state,
    step,
)
from workers_module.job.outcome import Completed, Failed, Keep, Outcome
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import JobPatch, Settle, SettleCode


def end(keep: Keep | None, state: JobState) -> Outcome:
    return Completed(b"1", keep) if state is JobState.COMPLETED else Failed("no", keep=keep)


both_ends = pytest.mark.parametrize("final", [JobState.COMPLETED, JobState.FAILED])


@both_ends
async def test_without_a_rule_all_stay(store: Store, final: JobState) -> None:
    await add(store, *(f"{n}" for n in range(20)))
    await settle_all(store, await claim(store, 20), end(None, final))
    assert await numbers(store) == {final: 20}


@both_ends
async def test_the_newest_so_many_stay(store: Store, later: Later, final: JobState) -> None:
    await add(store, "a", "b", "c", "d", "e")
    for job in await claim(store, 5):
        later(1)
        await settle_all(store, [job], end(Keep(count=2), final))
    assert await ids_in(store, final) == ["d", "e"]
    assert await store.get(Q, ["a", "b", "c"]) == [None, None, None]
    assert await numbers(store) == {final: 2}


@both_ends
async def test_jobs_that_ended_in_one_step_are_trimmed_together(store: Store, final: JobState) -> None:
    await add(store, *(f"{n}" for n in range(10)))
    await settle_all(store, await claim(store, 10), end(Keep(count=3), final))
    assert await ids_in(store, final) == ["7", "8", "9"]


@both_ends
async def test_count_0_leaves_no_job_and_tells_its_end_all_the_same(store: Store, final: JobState) -> None:
    await add(store, "old")
    await settle_all(store, await claim(store), end(None, final))
    await add(store, "a")
    job = await claim_one(store)
    async with listening(store) as ear:
        await settle_all(store, [job], end(Keep(count=0), final))
        heard = await ear.heard()
    assert heard[0][:2] == (str(final), "a")
    assert await state(store, "a") is None
    assert await ids_in(store, final) == ["old"]


async def test_count_0_in_a_step_with_others_deletes_its_own_only(store: Store) -> None:
    await add(store, "a", "b", "c")
    a, b, c = await claim(store, 3)
    outcomes = [
        Settle(a.held, Completed(b"1")),
        Settle(b.held, Completed(b"1", Keep(count=0))),
        Settle(c.held, Completed(b"1")),
    ]
    assert (await store.step(step(0, outcomes=outcomes))).settled == [SettleCode.OK] * 3
    assert await ids_in(store, JobState.COMPLETED) == ["a", "c"]


@both_ends
async def test_older_ones_than_an_age_go(store: Store, later: Later, final: JobState) -> None:
    await add(store, "a", "b", "c")
    a, b, c = await claim(store, 3)
    await settle_all(store, [a], end(None, final))
    later(600)
    await settle_all(store, [b], end(None, final))
    later(600)
    await settle_all(store, [c], end(Keep(age_ms=1_000), final))
    assert await ids_in(store, final) == ["b", "c"]


@both_ends
async def test_count_and_age_both_apply(store: Store, later: Later, final: JobState) -> None:
    await add(store, "a", "b", "c", "d", "e")
    jobs = await claim(store, 5)
    await settle_all(store, jobs[:1], end(None, final))
    later(1_500)
    await settle_all(store, jobs[1:4], end(None, final))
    later(1)
    await settle_all(store, jobs[4:], end(Keep(age_ms=1_000, count=3), final))
    assert await ids_in(store, final) == ["c", "d", "e"]


@both_ends
async def test_no_more_than_the_limit_go_at_once_the_oldest_first(store: Store, later: Later, final: JobState) -> None:
    await add(store, "a", "b", "c", "d", "e", "f", "g")
    jobs = await claim(store, 7)
    for job in jobs[:5]:
        later(1)
        await settle_all(store, [job], end(None, final))
    later(10_000)
    keep = Keep(age_ms=1_000, limit=2)
    await settle_all(store, jobs[5:6], end(keep, final))
    assert await ids_in(store, final) == ["c", "d", "e", "f"]
    await settle_all(store, jobs[6:7], end(keep, final))
    assert await ids_in(store, final) == ["e", "f", "g"]


async def test_a_rule_holds_for_its_own_state_only(store: Store) -> None:
    await add(store, "c1", "f1", "c2", "f2")
    c1, f1, c2, f2 = await claim(store, 4)
    await complete(store, c1)
    await fail(store, f1)
    await complete(store, c2, keep=Keep(count=1))
    assert await ids_in(store, JobState.COMPLETED) == ["c2"]
    assert await ids_in(store, JobState.FAILED) == ["f1"]
    await fail(store, f2, keep=Keep(count=1))
    assert await ids_in(store, JobState.COMPLETED) == ["c2"]
    assert await ids_in(store, JobState.FAILED) == ["f2"]


async def test_a_rule_holds_for_its_own_queue_only(store: Store) -> None:
    await add(store, "a", queue="one")
    await add(store, "b", queue="two")
    await complete(store, await claim_one(store, queue="one"), queue="one")
    await complete(store, await claim_one(store, queue="two"), queue="two", keep=Keep(count=1))
    assert await ids_in(store, queue="one") == ["a"]


async def test_trimmed_jobs_are_gone_without_a_word_and_with_their_logs(store: Store) -> None:
    await add(store, "a", "b")
    a, b = await claim(store, 2)
    await store.edit(Q, [JobPatch(id="a", log_lines=("line",))])
    await complete(store, a)
    async with listening(store) as ear:
        await complete(store, b, b"2", keep=Keep(count=1))
        assert await ear.heard() == [ev("completed", "b", returnvalue="2", prev="active"), ev("drained")]
    assert (await store.logs(Q, "a")).total == 0
    await add(store, "a")
    assert (await store.logs(Q, "a")).items == []


async def test_several_rules_in_one_step_all_apply(store: Store, later: Later) -> None:
    await add(store, "old", "a", "b", "c")
    old, a, b, c = await claim(store, 4)
    await complete(store, old)
    later(5_000)
    outcomes = [
        Settle(a.held, Completed(b"1", Keep(age_ms=1_000))),
        Settle(b.held, Completed(b"1", Keep(count=2))),
        Settle(c.held, Completed(b"1")),
    ]
    await store.step(step(0, outcomes=outcomes))
    assert await ids_in(store, JobState.COMPLETED) == ["b", "c"]
