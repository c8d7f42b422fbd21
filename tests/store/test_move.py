"""Moves by hand: retry, promote, cancel, remove, clean, drain."""

import pytest

from tests.store.helpers import (
    LEASE,
    Later,
    Q,
    add,
    by_id,
    by_state,
    claim,
    claim_one,
    complete,
    fail,
    ids_in,
    ids_of,
    numbers,
    record,
    settle,
    settle_all,
    spec,
    state,
)
from workers_module.clock import FrozenClock
from workers_module.errors import IllegalMoveError, JobNotFoundError
from workers_module.job.outcome import Completed, Failed, Retry
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Action, Fail, JobSpec, Promote, Remove, RetryAgain

ACTIONS: list[Action] = [Remove(), Remove(hard=True), RetryAgain(), Promote(), Fail("no")]


async def one_of_each(store: Store) -> None:
    """Add a job in every state, named after it in capitals (the plain words are keys of BullMQ's)."""
    await add(store, "COMPLETED", "FAILED", "ACTIVE")
    done, failed, _ = await claim(store, 3)
    await complete(store, done)
    await fail(store, failed)
    await store.add([spec("WAITING"), spec("PRIORITIZED", priority=1), spec("DELAYED", delay_ms=10**7)])
    await store.add([spec("child", delay_ms=10**8, parent=1), spec("WAITING-CHILDREN")])


# --- what may move ----------------------------------------------------------------------------------------------------

LEGAL: dict[str, set[str]] = {
    "Remove": {"waiting", "prioritized", "delayed", "waiting-children", "completed", "failed"},
    "RetryAgain": {"completed", "failed"},
    "Promote": {"delayed"},
    "Fail": {"waiting", "prioritized", "delayed", "waiting-children"},
}


@pytest.mark.parametrize("name", [str(state) for state in JobState])
@pytest.mark.parametrize("action", ACTIONS, ids=repr)
async def test_each_action_takes_its_states_and_refuses_the_others(store: Store, action: Action, name: str) -> None:
    await one_of_each(store)
    id = name.upper()
    before = await record(store, id)
    assert before.state == name
    if name in LEGAL[type(action).__name__]:
        assert (await store.move(Q, by_id(id), action))[0] == id
        assert await state(store, id) is not before.state
    else:
        with pytest.raises(IllegalMoveError) as caught:
            await store.move(Q, by_id(id), action)
        assert (caught.value.job_id, caught.value.state) == (id, name)
        assert await record(store, id) == before


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
async def test_a_single_job_that_is_not_there_is_an_error(store: Store, action: Action) -> None:
    with pytest.raises(JobNotFoundError) as caught:
        await store.move(Q, by_id("nobody"), action)
    assert (caught.value.queue, caught.value.job_id) == (Q, "nobody")


async def test_of_several_jobs_the_refused_are_left_out(store: Store) -> None:
    await one_of_each(store)
    assert await store.move(Q, by_id("nobody", "ACTIVE", "DELAYED", "FAILED"), Remove()) == ["DELAYED", "FAILED"]
    assert await store.move(Q, by_id("WAITING", "COMPLETED"), RetryAgain()) == ["COMPLETED"]
    assert await store.move(Q, by_id("nobody", "ACTIVE"), Fail("no")) == []
    assert await store.move(Q, by_id(), Remove()) == []


async def test_active_jobs_are_skipped_by_state(store: Store) -> None:
    await one_of_each(store)
    assert await store.move(Q, by_state(*JobState), Remove(hard=True)) != []
    assert await ids_in(store) == ["ACTIVE"]


# --- retry ------------------------------------------------------------------------------------------------------------


async def test_a_failed_job_goes_back_to_work_as_it_was(store: Store, later: Later) -> None:
    await add(store, "a", max_attempts=2)
    before = await record(store, "a")
    await settle(store, await claim_one(store), Retry(0, "one", b'["t1"]'))
    await settle(store, await claim_one(store), Failed("two", b'["t1","t2"]'))
    later(100)
    assert await store.move(Q, by_id("a"), RetryAgain()) == ["a"]
    kept = await record(store, "a")
    assert kept == before._replace(attempts_made=2, fence=2, trace=b'["t1","t2"]', worker=kept.worker)
    assert (await claim_one(store)).record.fence == 3


async def test_a_completed_job_goes_back_to_work_without_its_result(store: Store) -> None:
    await add(store, "a")
    await complete(store, await claim_one(store), b"1")
    await store.move(Q, by_id("a"), RetryAgain())
    kept = await record(store, "a")
    assert (kept.state, kept.result, kept.finished, kept.started) == (JobState.WAITING, None, None, None)
    assert (kept.attempts_made, kept.fence) == (1, 1)
    await complete(store, await claim_one(store), b"2")
    assert (await record(store, "a")).result == b"2"


async def test_attempts_count_from_zero_again_when_asked_the_fence_never(store: Store) -> None:
    await add(store, "a")
    await fail(store, await claim_one(store))
    await store.move(Q, by_id("a"), RetryAgain(reset=True))
    kept = await record(store, "a")
    assert (kept.attempts_made, kept.fence) == (0, 1)


async def test_retried_jobs_go_behind_and_keep_their_priority(store: Store) -> None:
    await store.add([spec("a"), spec("p", priority=2)])
    await settle_all(store, await claim(store, 2), Failed("no"))
    await store.add([spec("b"), spec("q", priority=2)])
    await store.move(Q, by_id("p", "a"), RetryAgain())
    assert await state(store, "p") is JobState.PRIORITIZED
    assert ids_of(await claim(store, 9)) == ["b", "a", "q", "p"]


async def test_a_retried_lifo_job_goes_in_front(store: Store) -> None:
    await add(store, "l", lifo=True)
    await fail(store, await claim_one(store))
    await add(store, "a")
    await store.move(Q, by_id("l"), RetryAgain())
    assert ids_of(await claim(store, 9)) == ["l", "a"]


async def test_ended_jobs_are_retried_oldest_first(store: Store, later: Later) -> None:
    await add(store, "a", "b", "c", "d")
    a, b, c, d = await claim(store, 4)
    for job in (c, a, d, b):
        later(10)
        await fail(store, job)
    assert await store.move(Q, by_state(JobState.FAILED, limit=3), RetryAgain()) == ["c", "a", "d"]
    assert ids_of(await claim(store, 9)) == ["c", "a", "d"]


# --- promote ----------------------------------------------------------------------------------------------------------


async def test_promoted_jobs_are_ready_now_behind_the_others(store: Store) -> None:
    await store.add(
        [spec("d", delay_ms=500), spec("p", delay_ms=500, priority=1), spec("l", delay_ms=500, lifo=True), spec("a")]
    )
    assert await store.move(Q, by_id("d", "p", "l"), Promote()) == ["d", "p", "l"]
    assert (await record(store, "d")).due is None
    assert await numbers(store) == {"waiting": 3, "prioritized": 1}
    assert ids_of(await claim(store, 9)) == ["a", "d", "l", "p"]


async def test_all_delayed_jobs_are_promoted_soonest_first(store: Store) -> None:
    await store.add([spec("c", delay_ms=300), spec("a", delay_ms=100), spec("b", delay_ms=200)])
    assert await store.move(Q, by_state(JobState.DELAYED, limit=2), Promote()) == ["a", "b"]
    assert await store.move(Q, by_state(JobState.DELAYED), Promote()) == ["c"]
    assert await store.move(Q, by_state(JobState.DELAYED), Promote()) == []


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_cancelled_job_is_failed_without_an_attempt(store: Store, later: Later) -> None:
    await add(store, "a", delay_ms=500)
    before = await record(store, "a")
    now = later(10)
    assert await store.move(Q, by_id("a"), Fail("cancelled by ada", b'["trace"]')) == ["a"]
    assert await record(store, "a") == before._replace(
        state=JobState.FAILED, reason="cancelled by ada", trace=b'["trace"]', finished=now, due=None
    )
    later(10_000)
    assert await claim(store) == []


async def test_all_jobs_of_some_states_can_be_cancelled(store: Store) -> None:
    await one_of_each(store)
    moved = await store.move(Q, by_state(JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED), Fail("no"))
    assert sorted(moved) == ["DELAYED", "PRIORITIZED", "WAITING", "child"]


# --- remove -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
async def test_removed_jobs_are_gone_and_their_ids_free(store: Store, hard: bool) -> None:
    await add(store, "a", data=b"1")
    await store.move(Q, by_id("a"), Remove(hard=hard))
    assert await store.get(Q, ["a"]) == [None]
    assert await numbers(store) == {}
    (again,) = await store.add([spec("a", data=b"2")])
    assert again.existing is None
    assert ids_of(await claim(store, 9)) == ["a"]


async def test_a_removed_job_is_not_claimed(store: Store, later: Later) -> None:
    await store.add([spec("a"), spec("b"), spec("d", delay_ms=10)])
    await store.move(Q, by_id("a", "d"), Remove())
    later(10)
    assert ids_of(await claim(store, 9)) == ["b"]


async def test_draining_leaves_what_runs_or_ended(store: Store) -> None:
    await one_of_each(store)
    drained = by_state(JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED)
    assert {"WAITING", "PRIORITIZED", "DELAYED", "child"} <= set(await store.move(Q, drained, Remove(hard=True)))
    assert await numbers(store) == {"active": 1, "completed": 1, "failed": 1}


@pytest.mark.parametrize("final", [JobState.COMPLETED, JobState.FAILED])
async def test_cleaning_ended_jobs_goes_by_their_end(
    store: Store, clock: FrozenClock, later: Later, final: JobState
) -> None:
    await add(store, "a", "b", "c")
    outcome = Completed(b"1") if final is JobState.COMPLETED else Failed("no")
    for job in await claim(store, 3):
        later(1_000)
        await settle_all(store, [job], outcome)
    old = by_state(final, older_than=clock.now_ms() - 500)
    assert await store.move(Q, old, Remove(hard=True)) == ["a", "b"]
    assert await ids_in(store) == ["c"]


@pytest.mark.parametrize("options", [{}, {"priority": 1}, {"delay_ms": 10**9}])
async def test_cleaning_jobs_that_never_ran_goes_by_their_creation(
    store: Store, clock: FrozenClock, later: Later, options: dict[str, int]
) -> None:
    await add(store, "a", "b", **options)
    later(1_000)
    await add(store, "c", **options)
    old = by_state(JobState.WAITING, JobState.PRIORITIZED, JobState.DELAYED, older_than=clock.now_ms() - 500)
    assert sorted(await store.move(Q, old, Remove(hard=True))) == ["a", "b"]
    assert await ids_in(store) == ["c"]


async def test_no_more_than_the_limit_are_moved_the_oldest_first(store: Store) -> None:
    await add(store, "a", "b", "c")
    assert await store.move(Q, by_state(JobState.WAITING, limit=2), Remove()) == ["a", "b"]
    assert await ids_in(store) == ["c"]


async def test_a_limit_of_0_moves_all(store: Store) -> None:
    await add(store, *(f"{n}" for n in range(1_500)))
    assert len(await store.move(Q, by_state(JobState.WAITING, limit=0), Remove(hard=True))) == 1_500


async def test_at_most_ten_thousand_are_moved_in_a_call(store: Store) -> None:
    specs = [JobSpec(queue=Q, name="send", data=b"{}", id=f"{n}") for n in range(10_010)]
    await store.add(specs)
    everything = by_state(JobState.WAITING)
    assert len(await store.move(Q, everything, Remove(hard=True))) == 10_000
    assert len(await store.move(Q, everything, Remove(hard=True))) == 10
    assert await store.move(Q, everything, Remove(hard=True)) == []


async def test_names_narrow_a_selection(store: Store) -> None:
    await store.add(
        [spec("a", name="send"), spec("b", name="tidy"), spec("c", name="send"), spec("d", name="sendmail")]
    )
    assert await store.move(Q, by_state(JobState.WAITING, names=("send",)), Remove()) == ["a", "c"]
    assert await store.move(Q, by_state(JobState.WAITING, names=("tidy", "sendmail"), limit=1), Remove()) == ["b"]
    assert await ids_in(store) == ["d"]


async def test_another_queue_is_left_alone(store: Store) -> None:
    await store.add([spec("a", queue="one"), spec("a", queue="two")])
    await store.move("one", by_state(*JobState), Remove(hard=True))
    assert await numbers(store, "two") == {"waiting": 1}
    with pytest.raises(JobNotFoundError):
        await store.move("one", by_id("a"), Remove())


async def test_a_running_parent_of_removed_children_may_complete(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store, lease_ms=LEASE)
    await store.add([spec("a", parent=ParentRef(Q, "p"))])
    await store.move(Q, by_id("a"), Remove())
    await complete(store, parent)
