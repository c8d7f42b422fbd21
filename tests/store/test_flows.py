"""Parents that wait for children: release, the four policies, removal, retry."""

from typing import Any

import pytest

from tests.store.helpers import (
    Later,
    Q,
    add,
    by_id,
    by_state,
    claim,
    claim_one,
    complete,
    edit,
    ev,
    fail,
    ids_of,
    listening,
    numbers,
    record,
    release,
    retry,
    run,
    run_to_failure,
    settle,
    settle_all,
    spec,
    state,
    step,
    token,
    types_of,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.outcome import Completed, Keep, WaitChildren
from workers_module.job.record import ChildPolicy, ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Added, Child, Fail, Held, Page, Promote, Remove, RetryAgain, Settle, SettleCode

WAITS = JobState.WAITING_CHILDREN
P = ParentRef(Q, "p")
POLICIES = list(ChildPolicy)


async def flow(store: Store, *children: str, policy: ChildPolicy = ChildPolicy.FAIL_PARENT, **parent: Any) -> None:
    """Add a parent ``p`` and its children in one call."""
    specs = [spec(id, parent=len(children), policy=policy) for id in children]
    await store.add([*specs, spec("p", **parent)])


async def children(store: Store, id: str = "p") -> dict[str, str]:
    """Return what became of a job's children."""
    return {child.id: child.state for child in (await store.children(Q, id)).items}


# --- adding -----------------------------------------------------------------------------------------------------------


async def test_a_parent_waits_and_its_children_are_ready(store: Store) -> None:
    added = await store.add([spec("a", parent=2), spec("b", parent=2), spec("p")])
    assert added == [Added("a", JobState.WAITING), Added("b", JobState.WAITING), Added("p", WAITS)]
    assert await numbers(store) == {"waiting": 2, "waiting-children": 1}
    assert (await record(store, "a")).parent == P
    assert (await record(store, "p")).parent is None
    assert await store.children(Q, "p") == Page([Child(Q, "a", "pending"), Child(Q, "b", "pending")], 2)
    assert await store.children(Q, "a") == Page([], 0)


async def test_parents_may_be_named_before_they_have_an_id(store: Store) -> None:
    child, parent = await store.add([spec(None, parent=1), spec(None)])
    assert (await record(store, child.id)).parent == ParentRef(Q, parent.id)
    assert parent.state is WAITS


async def test_children_are_claimed_in_the_order_of_the_call(store: Store) -> None:
    await flow(store, "c", "a", "b")
    assert ids_of(await claim(store, 9)) == ["c", "a", "b"]


async def test_children_may_be_prioritized_or_delayed(store: Store) -> None:
    await store.add([spec("a", parent=2, priority=1), spec("b", parent=2, delay_ms=5), spec("p")])
    assert await numbers(store) == {"prioritized": 1, "delayed": 1, "waiting-children": 1}


async def test_a_child_joins_a_stored_parent(store: Store) -> None:
    await flow(store, "a")
    await store.add([spec("b", parent=P)])
    assert await children(store) == {"a": "pending", "b": "pending"}
    await run(store, "a")
    assert await state(store, "p") is WAITS
    await run(store, "b")
    assert await state(store, "p") is JobState.WAITING


async def test_a_child_of_nobody_is_refused_with_its_whole_flow(store: Store) -> None:
    with pytest.raises(JobNotFoundError):
        await store.add([spec("a", parent=1), spec("b", parent=ParentRef("elsewhere", "nobody"))])
    assert await numbers(store) == {}


async def test_a_parent_whose_children_all_ended_before_is_ready_at_once(store: Store) -> None:
    await add(store, "a", "b")
    await run(store, "a", result=b'"A"')
    await run(store, "b", result=b'"B"')
    added = await store.add([spec("a", parent=2), spec("b", parent=2), spec("p")])
    assert [one.existing for one in added] == ["same_id", "same_id", None]
    assert added[2].state is JobState.WAITING
    assert (await store.children(Q, "p")).items == [
        Child(Q, "a", "processed", b'"A"'),
        Child(Q, "b", "processed", b'"B"'),
    ]
    assert ids_of(await claim(store)) == ["p"]


async def test_an_existing_job_becomes_a_child(store: Store) -> None:
    await add(store, "a")
    await store.add([spec("a", parent=1, policy=ChildPolicy.IGNORE), spec("p")])
    assert await state(store, "p") is WAITS
    assert (await record(store, "a")).parent == P
    await run(store, "a")
    assert await state(store, "p") is JobState.WAITING


async def test_a_repeated_flow_adds_nothing(store: Store) -> None:
    await flow(store, "a", "b")
    await flow(store, "a", "b")
    assert await numbers(store) == {"waiting": 2, "waiting-children": 1}
    await run(store, "a")
    await run(store, "b")
    assert await state(store, "p") is JobState.WAITING


async def test_a_child_of_another_living_parent_is_refused(store: Store) -> None:
    await flow(store, "a")
    with pytest.raises(ConfigurationError):
        await store.add([spec("x"), spec("a", parent=3), spec("b", parent=3), spec("q")])
    assert await numbers(store) == {"waiting": 1, "waiting-children": 1}
    assert (await record(store, "a")).parent == P


async def test_a_job_cannot_be_its_own_parent(store: Store) -> None:
    with pytest.raises(ConfigurationError):
        await store.add([spec("x"), spec("a", parent=2), spec("a")])
    await add(store, "a")
    with pytest.raises(ConfigurationError):
        await store.add([spec("x"), spec("a", parent=ParentRef(Q, "a"))])
    assert await numbers(store) == {"waiting": 1}
    await run(store, "a")


@pytest.mark.parametrize("parent", [0, 1, 3, -1])
async def test_a_parent_named_by_index_stands_behind_its_child(store: Store, parent: int) -> None:
    with pytest.raises(ConfigurationError):
        await store.add([spec("x"), spec("a", parent=parent), spec("b")])
    assert await numbers(store) == {}


async def test_a_child_whose_parent_is_gone_may_have_another(store: Store) -> None:
    await flow(store, "a", "b")
    jobs = await claim(store, 2)
    await store.move(Q, by_id("p"), Remove(children=False))
    assert await state(store, "p") is None
    await settle_all(store, jobs, Completed(b"1"))
    await store.add([spec("a", parent=1), spec("q")])
    assert (await record(store, "a")).parent == ParentRef(Q, "q")
    assert await state(store, "q") is JobState.WAITING


# --- release ----------------------------------------------------------------------------------------------------------


async def test_the_last_child_releases_its_parent(store: Store) -> None:
    await flow(store, "a", "b")
    await run(store, "a", result=b"[1 ]")
    assert await state(store, "p") is WAITS
    await run(store, "b", result=b"2")
    assert await state(store, "p") is JobState.WAITING
    assert (await store.children(Q, "p")).items == [
        Child(Q, "a", "processed", b"[1 ]"),
        Child(Q, "b", "processed", b"2"),
    ]
    await run(store, "p")
    assert await numbers(store) == {"completed": 3}


async def test_a_parent_can_be_claimed_in_the_step_that_releases_it(store: Store) -> None:
    await flow(store, "a")
    job = await claim_one(store)
    reply = await store.step(step(1, outcomes=[Settle(job.held, Completed(b"1"))]))
    assert ids_of(reply.jobs) == ["p"]


async def test_a_released_parent_without_priority_stands_in_front(store: Store) -> None:
    await flow(store, "a")
    await add(store, "x", "y")
    await run(store, "a")
    assert ids_of(await claim(store, 9)) == ["p", "x", "y"]


async def test_a_released_parent_with_priority_stands_behind(store: Store) -> None:
    await flow(store, "a", priority=3)
    await add(store, "x", priority=3)
    await run(store, "a")
    assert await state(store, "p") is JobState.PRIORITIZED
    assert ids_of(await claim(store, 9)) == ["x", "p"]


async def test_a_released_parent_with_a_delay_waits_for_that(store: Store, clock: FrozenClock, later: Later) -> None:
    await flow(store, "a", delay_ms=500)
    assert await state(store, "p") is WAITS
    later(10_000)
    await run(store, "a")
    kept = await record(store, "p")
    assert (kept.state, kept.due) == (JobState.DELAYED, clock.now_ms() + 500)
    later(500)
    assert ids_of(await claim(store)) == ["p"]


async def test_a_delay_that_was_over_when_its_parent_was_added_delays_nothing(store: Store, clock: FrozenClock) -> None:
    await flow(store, "a", delay_ms=500, timestamp=clock.now_ms() - 2_000)
    await run(store, "a")
    kept = await record(store, "p")
    assert (kept.state, kept.due) == (JobState.WAITING, None)


async def test_results_of_children_outlive_them(store: Store) -> None:
    await flow(store, "a")
    await complete(store, await claim_one(store), b"1", keep=Keep(count=0))
    assert await state(store, "a") is None
    assert await state(store, "p") is JobState.WAITING
    assert (await store.children(Q, "p")).items == [Child(Q, "a", "processed", b"1")]


async def test_large_results_of_children_are_kept(store: Store) -> None:
    large = b'"' + b"r" * 30_000 + b'"'
    await flow(store, "a")
    await complete(store, await claim_one(store), large)
    assert (await store.children(Q, "p")).items == [Child(Q, "a", "processed", large)]


async def test_children_are_read_in_pieces(store: Store) -> None:
    await flow(store, *(f"{n}" for n in range(6)))
    page = await store.children(Q, "p", start=2, limit=3)
    assert ([child.id for child in page.items], page.total) == (["2", "3", "4"], 6)


async def test_a_retried_child_keeps_its_parent_waiting(store: Store) -> None:
    await flow(store, "a")
    await retry(store, await claim_one(store))
    assert await children(store) == {"a": "pending"}
    assert await state(store, "p") is WAITS
    await run(store, "a")
    assert await state(store, "p") is JobState.WAITING


async def test_parent_and_children_may_be_in_several_queues(store: Store, other: Store) -> None:
    await store.add([spec("a", queue="one", parent=2), spec("a", queue="two", parent=2), spec("p", queue="three")])
    await complete(store, await claim_one(store, queue="one"), b"1", queue="one")
    assert await state(store, "p", queue="three") is WAITS
    await complete(other, await claim_one(other, queue="two"), b"2", queue="two")
    assert await state(store, "p", queue="three") is JobState.WAITING
    page = await store.children("three", "p")
    assert page.items == [Child("one", "a", "processed", b"1"), Child("two", "a", "processed", b"2")]


async def test_nested_flows_are_released_from_below(store: Store) -> None:
    await store.add([spec("leaf", parent=1), spec("middle", parent=2), spec("top")])
    assert await numbers(store) == {"waiting": 1, "waiting-children": 2}
    for id in ("leaf", "middle", "top"):
        await run(store, id)
    assert await numbers(store) == {"completed": 3}


# --- a running parent -------------------------------------------------------------------------------------------------


async def test_a_running_parent_cannot_complete_before_its_children(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P)])
    async with listening(store) as ear:
        assert await settle(store, parent, Completed(b"1")) is SettleCode.PENDING
        assert await ear.heard() == []
    assert await state(store, "p") is JobState.ACTIVE
    await run(store, "a")
    await complete(store, parent)


async def test_a_running_parent_can_fail_before_its_children(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P)])
    await fail(store, parent)
    assert await state(store, "p") is JobState.FAILED
    await run(store, "a")
    assert await state(store, "p") is JobState.FAILED


async def test_a_running_parent_waits_for_its_children_and_runs_again(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P), spec("b", parent=P)])
    assert await settle(store, parent, WaitChildren()) is SettleCode.OK
    kept = await record(store, "p")
    assert (kept.state, kept.attempts_made) == (WAITS, 0)
    await run(store, "a")
    await run(store, "b")
    again = await claim_one(store)
    assert (again.record.id, again.record.fence, again.record.attempts_made) == ("p", 2, 0)
    await complete(store, again)


async def test_waiting_without_pending_children_is_refused(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    async with listening(store) as ear:
        assert await settle(store, parent, WaitChildren()) is SettleCode.NOTHING_PENDING
        await store.add([spec("a", parent=P)])
        await ear.heard()
        await run(store, "a")
        await ear.heard()
        assert await settle(store, parent, WaitChildren()) is SettleCode.NOTHING_PENDING
        assert await ear.heard() == []
    assert await record(store, "p") == parent.record
    await complete(store, parent)


async def test_waiting_for_one_child_that_is_not_pending_is_refused(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P), spec("b", parent=P)])
    await run(store, "a")
    assert await settle(store, parent, WaitChildren("a")) is SettleCode.NOTHING_PENDING
    assert await settle(store, parent, WaitChildren("nobody")) is SettleCode.NOTHING_PENDING
    assert await settle(store, parent, WaitChildren("b")) is SettleCode.OK
    await run(store, "b")
    assert await state(store, "p") is JobState.WAITING


async def test_only_the_holder_may_send_a_parent_to_wait(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P)])
    thief = Held("p", token(), parent.held.fence, parent.held.handle)
    assert await settle(store, thief, WaitChildren()) is SettleCode.LEASE_LOST
    assert await state(store, "p") is JobState.ACTIVE


# --- a child fails ----------------------------------------------------------------------------------------------------


async def test_fail_parent_releases_the_parent_to_be_failed(store: Store) -> None:
    await flow(store, "a", "b")
    a, b = await claim(store, 2)
    await fail(store, a, "no luck")
    kept = await record(store, "p")
    assert kept.state is JobState.WAITING
    assert kept.deferred is not None
    assert "a" in kept.deferred
    assert (await store.children(Q, "p")).items[0][:3] == (Q, "a", "failed")

    parent = await claim_one(store)
    assert (parent.record.id, parent.record.deferred) == ("p", kept.deferred)
    assert await settle(store, parent, WaitChildren()) is SettleCode.CHILD_FAILED
    await complete(store, b)
    assert await settle(store, parent, Completed(b"1")) is SettleCode.CHILD_FAILED
    assert await settle(store, parent, WaitChildren()) is SettleCode.CHILD_FAILED
    assert await state(store, "p") is JobState.ACTIVE
    await fail(store, parent, kept.deferred)
    assert await numbers(store) == {"completed": 1, "failed": 2}


async def test_fail_parent_takes_away_a_delayed_parents_delay(store: Store) -> None:
    await add(store, "p", delay_ms=50_000)
    await store.add([spec("a", parent=P)])
    await run_to_failure(store, "a")
    kept = await record(store, "p")
    assert (kept.state, kept.due) == (JobState.WAITING, None)
    assert kept.deferred


async def test_fail_parent_reaches_a_running_parent_at_its_end(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("a", parent=P)])
    await run_to_failure(store, "a")
    assert await state(store, "p") is JobState.ACTIVE
    assert await settle(store, parent, Completed(b"1")) is SettleCode.CHILD_FAILED
    await fail(store, parent)


async def test_fail_parent_goes_up_only_when_the_parent_fails(store: Store) -> None:
    await store.add([spec("leaf", parent=1), spec("middle", parent=2), spec("top")])
    await run_to_failure(store, "leaf")
    assert await state(store, "middle") is JobState.WAITING
    assert await state(store, "top") is WAITS
    middle = await claim_one(store)
    await fail(store, middle, middle.record.deferred or "")
    top = await claim_one(store)
    assert top.record.id == "top"
    assert top.record.deferred
    await fail(store, top)
    assert await numbers(store) == {"failed": 3}


async def test_a_second_failing_child_changes_nothing_more(store: Store) -> None:
    await flow(store, "a", "b")
    a, b = await claim(store, 2)
    await fail(store, a)
    parent = await claim_one(store)
    await fail(store, parent, parent.record.deferred or "")
    await fail(store, b)
    assert await numbers(store) == {"failed": 3}
    assert await children(store) == {"a": "failed", "b": "failed"}


async def test_continue_parent_releases_the_parent_at_once(store: Store) -> None:
    await flow(store, "a", "b", policy=ChildPolicy.CONTINUE_PARENT)
    await run_to_failure(store, "a", reason="no luck")
    kept = await record(store, "p")
    assert (kept.state, kept.deferred) == (JobState.WAITING, None)
    assert (await store.children(Q, "p")).items == [
        Child(Q, "a", "ignored", None, "no luck"),
        Child(Q, "b", "pending"),
    ]
    parent = await claim_one(store)
    assert parent.record.id == "p"
    assert await settle(store, parent, Completed(b"1")) is SettleCode.PENDING
    assert await settle(store, parent, WaitChildren()) is SettleCode.OK
    await run(store, "b")
    await run(store, "p")


async def test_ignore_lets_the_parent_wait_for_the_others(store: Store) -> None:
    await flow(store, "a", "b", policy=ChildPolicy.IGNORE)
    await run_to_failure(store, "a", reason="no luck")
    assert await state(store, "p") is WAITS
    await run(store, "b", result=b"2")
    assert await state(store, "p") is JobState.WAITING
    assert (await store.children(Q, "p")).items == [
        Child(Q, "a", "ignored", None, "no luck"),
        Child(Q, "b", "processed", b"2"),
    ]
    await run(store, "p")


async def test_remove_takes_the_child_out_of_the_flow(store: Store) -> None:
    await flow(store, "a", "b", policy=ChildPolicy.REMOVE)
    await run_to_failure(store, "a")
    assert await state(store, "p") is WAITS
    assert await children(store) == {"b": "pending"}
    await run(store, "b")
    assert await state(store, "p") is JobState.WAITING
    await run(store, "p")


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_last_failing_child_releases_its_parent(store: Store, policy: ChildPolicy) -> None:
    await flow(store, "a", policy=policy)
    await run_to_failure(store, "a")
    parent = await claim_one(store)
    assert parent.record.id == "p"
    assert bool(parent.record.deferred) is (policy is ChildPolicy.FAIL_PARENT)


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_failed_child_that_is_not_kept_counts_all_the_same(store: Store, policy: ChildPolicy) -> None:
    await flow(store, "a", policy=policy)
    await fail(store, await claim_one(store), keep=Keep(count=0))
    assert await state(store, "a") is None
    parent = await claim_one(store)
    assert bool(parent.record.deferred) is (policy is ChildPolicy.FAIL_PARENT)


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_cancelled_child_counts_as_failed(store: Store, policy: ChildPolicy) -> None:
    await flow(store, "a", policy=policy)
    assert await store.move(Q, by_id("a"), Fail("cancelled")) == ["a"]
    parent = await claim_one(store)
    assert (parent.record.id, bool(parent.record.deferred)) == ("p", policy is ChildPolicy.FAIL_PARENT)


async def test_a_waiting_parent_can_be_cancelled(store: Store) -> None:
    await flow(store, "a")
    assert await store.move(Q, by_id("p"), Fail("cancelled")) == ["p"]
    assert (await record(store, "p")).reason == "cancelled"
    await run(store, "a")
    assert await state(store, "p") is JobState.FAILED


# --- a child is tried again -------------------------------------------------------------------------------------------


async def test_a_completed_child_that_is_retried_is_pending_again(store: Store) -> None:
    await flow(store, "a", "b")
    await run(store, "a")
    await store.move(Q, by_id("a"), RetryAgain())
    assert await children(store) == {"a": "pending", "b": "pending"}
    await run(store, "b")
    assert await state(store, "p") is WAITS
    await run(store, "a")
    assert await state(store, "p") is JobState.WAITING


async def test_an_ignored_child_that_is_retried_is_pending_again(store: Store) -> None:
    await flow(store, "a", "b", policy=ChildPolicy.IGNORE)
    await run_to_failure(store, "a")
    await store.move(Q, by_id("a"), RetryAgain())
    assert await children(store) == {"a": "pending", "b": "pending"}
    await settle_all(store, await claim(store, 2), Completed(b"1"))
    assert await state(store, "p") is JobState.WAITING
    assert await children(store) == {"a": "processed", "b": "processed"}


async def test_a_parent_released_to_fail_is_not_called_back_by_a_retried_child(store: Store) -> None:
    await flow(store, "a")
    await run_to_failure(store, "a")
    await store.move(Q, by_id("a"), RetryAgain())
    assert await children(store) == {"a": "pending"}
    kept = await record(store, "p")
    assert kept.state is JobState.WAITING
    assert kept.deferred


# --- removal ----------------------------------------------------------------------------------------------------------


async def test_soft_removal_of_the_last_pending_child_releases_the_parent(store: Store) -> None:
    await flow(store, "a", "b")
    await run(store, "a")
    async with listening(store) as ear:
        assert await store.move(Q, by_id("b"), Remove()) == ["b"]
        heard = await ear.heard()
    assert sorted(heard) == [ev("removed", "b", prev="wait"), ev("waiting", "p", prev="waiting-children")]
    await run(store, "p")


async def test_soft_removal_of_one_of_several_children_leaves_the_parent_waiting(store: Store) -> None:
    await flow(store, "a", "b")
    await store.move(Q, by_id("b"), Remove())
    assert await state(store, "p") is WAITS
    await run(store, "a")
    await run(store, "p")


async def test_soft_removal_of_a_parent_takes_its_pending_children_along(store: Store) -> None:
    await store.add([spec("leaf", parent=1), spec("middle", parent=3), spec("done", parent=3), spec("p")])
    jobs = await claim(store, 2)
    await complete(store, next(job for job in jobs if job.record.id == "done"))
    await release(store, next(job for job in jobs if job.record.id == "leaf"))
    await store.move(Q, by_id("p"), Remove())
    assert await numbers(store) == {"completed": 1}


async def test_soft_removal_may_leave_the_children(store: Store) -> None:
    await flow(store, "a", "b")
    assert await store.move(Q, by_id("p"), Remove(children=False)) == ["p"]
    assert await numbers(store) == {"waiting": 2}
    await run(store, "a")
    await run(store, "b")


async def test_a_parent_and_its_children_removed_together_are_told_once(store: Store) -> None:
    await flow(store, "a", "b")
    await add(store, "c")
    async with listening(store) as ear:
        assert await store.move(Q, by_id("p", "a", "c"), Remove()) == ["p", "c"]
        assert sorted(id or "" for _, id, _ in await ear.heard()) == ["a", "b", "c", "p"]
    assert await numbers(store) == {}


async def test_a_parent_is_not_removed_with_a_child_that_runs(store: Store) -> None:
    await store.add([spec("leaf", parent=1), spec("middle", parent=2), spec("p"), spec("x")])
    job = await claim_one(store)
    assert job.record.id == "leaf"
    with pytest.raises(IllegalMoveError):
        await store.move(Q, by_id("p"), Remove())
    assert await store.move(Q, by_id("p", "middle", "x"), Remove()) == ["x"]
    assert await numbers(store) == {"active": 1, "waiting-children": 2}
    await complete(store, job)
    await run(store, "middle")
    await run(store, "p")


async def test_removal_of_a_parent_leaves_children_that_run(store: Store) -> None:
    await flow(store, "a", "b")
    job = await claim_one(store)
    await store.move(Q, by_id("p"), Remove(children=False))
    await complete(store, job)
    assert await state(store, "a") is JobState.COMPLETED


async def test_hard_removal_of_the_last_pending_child_deletes_a_parent_of_the_same_queue(store: Store) -> None:
    await store.add([spec("a", parent=1), spec("p", parent=2), spec("top")])
    async with listening(store) as ear:
        assert "a" in await store.move(Q, by_state(JobState.WAITING), Remove(hard=True))
        assert "removed" not in types_of(await ear.heard())
    assert await numbers(store) == {}


async def test_hard_removal_of_one_of_several_children_leaves_the_parent(store: Store) -> None:
    await flow(store, "a", "b")
    await store.move(Q, by_id("a"), Remove(hard=True))
    assert await state(store, "p") is WAITS
    await run(store, "b")
    await run(store, "p")


async def test_hard_removal_releases_a_parent_of_another_queue_without_a_word(store: Store) -> None:
    await store.add([spec("a", parent=1), spec("p", queue="parents")])
    async with listening(store, "parents") as ear:
        await store.move(Q, by_state(JobState.WAITING), Remove(hard=True))
        assert await ear.heard() == []
    assert await state(store, "p", queue="parents") is JobState.WAITING
    assert ids_of(await claim(store, queue="parents")) == ["p"]


async def test_removal_of_an_ended_child_changes_nothing_for_its_parent(store: Store) -> None:
    await flow(store, "a", "b")
    await run(store, "a", result=b"1")
    await store.move(Q, by_id("a"), Remove())
    assert await state(store, "p") is WAITS
    assert (await store.children(Q, "p")).items == [Child(Q, "a", "processed", b"1"), Child(Q, "b", "pending")]


async def test_a_detached_child_releases_its_parent(store: Store) -> None:
    await flow(store, "a", "b")
    await run(store, "a")
    async with listening(store) as ear:
        assert await edit(store, "b", detach=True) == "ok"
        assert await ear.heard() == [ev("waiting", "p", prev="waiting-children")]
    assert (await record(store, "b")).parent is None
    assert "b" not in await children(store)
    assert ids_of(await claim(store, 9)) == ["p", "b"]


async def test_a_detached_child_ends_for_itself(store: Store) -> None:
    await flow(store, "a", "b")
    await edit(store, "a", detach=True)
    await run_to_failure(store, "a")
    kept = await record(store, "p")
    assert (kept.state, kept.deferred) == (WAITS, None)
    await run(store, "b")
    await run(store, "p")


async def test_promotion_does_not_touch_a_waiting_parent(store: Store) -> None:
    await flow(store, "a", delay_ms=500)
    with pytest.raises(IllegalMoveError):
        await store.move(Q, by_id("p"), Promote())
    assert await state(store, "p") is WAITS


async def test_ended_children_end_once_for_their_parent(store: Store) -> None:
    await flow(store, "a", "b")
    a, _ = await claim(store, 2)
    await complete(store, a)
    assert await settle(store, a, Completed(b"null")) is SettleCode.ALREADY
    assert await state(store, "p") is WAITS
    assert await children(store) == {"a": "processed", "b": "pending"}
