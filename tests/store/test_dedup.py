"""Deduplication: one job for several calls, in six modes."""

from collections.abc import Sequence
from typing import Any

import anyio
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
    fail,
    ids_in,
    numbers,
    record,
    release,
    retry,
    run,
    run_to_failure,
    settle,
    spec,
    state,
    step,
    sweep,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.job.options import DedupMode
from workers_module.job.outcome import Completed, Keep
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Added, DedupSpec, JobSpec, QueuePatch, Remove, RetryAgain, Settle

TTL = 1_000


def once(
    id: str | None, mode: DedupMode = "simple", ttl_ms: int | None = None, *, key: str = "k", **options: Any
) -> JobSpec:
    return spec(id, dedup=DedupSpec(key, mode, ttl_ms), **options)


async def call(store: Store, *specs: JobSpec) -> Sequence[Added]:
    return await store.add(specs)


async def test_the_first_call_is_a_job_with_its_key(store: Store) -> None:
    assert await call(store, once("a")) == [Added("a", JobState.WAITING)]
    assert (await record(store, "a")).dedup == "k"


# --- simple -----------------------------------------------------------------------------------------------------------


async def test_simple_drops_further_calls(store: Store) -> None:
    await call(store, once("a", data=b"1"))
    assert await call(store, once("b", data=b"2")) == [Added("a", JobState.WAITING, "deduplicated")]
    assert await ids_in(store) == ["a"]
    assert (await record(store, "a")).data == b"1"


async def test_simple_drops_calls_without_an_id(store: Store) -> None:
    (first,) = await call(store, once(None))
    (second,) = await call(store, once(None))
    assert second == Added(first.id, JobState.WAITING, "deduplicated")
    assert await numbers(store) == {"waiting": 1}


async def test_simple_answers_with_the_state_of_the_job_that_counts(store: Store) -> None:
    await call(store, once("a", delay_ms=500))
    assert await call(store, once("b")) == [Added("a", JobState.DELAYED, "deduplicated")]


async def test_two_calls_of_one_batch_are_one_job(store: Store) -> None:
    added = await call(store, once("a"), once("b"), once("c", key="other"))
    assert added == [
        Added("a", JobState.WAITING),
        Added("a", JobState.WAITING, "deduplicated"),
        Added("c", JobState.WAITING),
    ]


async def test_keys_of_two_queues_do_not_meet(store: Store) -> None:
    added = await call(store, once("a", queue="one"), once("a", queue="two"))
    assert [one.existing for one in added] == [None, None]


async def test_simple_holds_while_the_job_runs_and_is_tried_again(store: Store) -> None:
    await call(store, once("a"))
    job = await claim_one(store)
    assert await call(store, once("b")) == [Added("a", JobState.ACTIVE, "deduplicated")]
    await retry(store, job, 500)
    assert await call(store, once("b")) == [Added("a", JobState.DELAYED, "deduplicated")]


async def test_simple_holds_over_a_hand_back(store: Store) -> None:
    await call(store, once("a"))
    await release(store, await claim_one(store))
    assert (await call(store, once("b")))[0].existing == "deduplicated"


async def test_completion_frees_the_key(store: Store) -> None:
    await call(store, once("a"))
    await run(store, "a")
    assert await call(store, once("b")) == [Added("b", JobState.WAITING)]


async def test_final_failure_frees_the_key(store: Store) -> None:
    await call(store, once("a"))
    await run_to_failure(store, "a")
    assert await call(store, once("b")) == [Added("b", JobState.WAITING)]


async def test_completion_with_removal_frees_the_key(store: Store) -> None:
    await call(store, once("a"))
    await complete(store, await claim_one(store), keep=Keep(count=0))
    assert await call(store, once("b")) == [Added("b", JobState.WAITING)]


@pytest.mark.parametrize("hard", [False, True])
async def test_removal_of_the_owner_frees_the_key(store: Store, hard: bool) -> None:
    await call(store, once("a"), once("x", "throttle", TTL, key="t"))
    await store.move(Q, by_state(JobState.WAITING), Remove(hard=hard))
    assert await call(store, once("b"), once("y", "throttle", TTL, key="t")) == [
        Added("b", JobState.WAITING),
        Added("y", JobState.WAITING),
    ]


async def test_an_old_job_does_not_free_its_successors_key(store: Store) -> None:
    await call(store, once("a"))
    await run(store, "a")
    await call(store, once("b"))
    await store.move(Q, by_id("a"), Remove())
    assert (await call(store, once("c")))[0] == Added("b", JobState.WAITING, "deduplicated")


async def test_an_old_job_retried_does_not_take_its_successors_key(store: Store) -> None:
    await call(store, once("a"))
    await run_to_failure(store, "a")
    await call(store, once("b"))
    await store.move(Q, by_id("a"), RetryAgain())
    assert (await call(store, once("c")))[0].id == "b"
    jobs = await claim(store, 2)
    await complete(store, next(job for job in jobs if job.record.id == "a"))
    assert (await call(store, once("c")))[0] == Added("b", JobState.ACTIVE, "deduplicated")


async def test_a_key_can_be_freed_by_hand(store: Store) -> None:
    await call(store, once("a"), once("t", "throttle", TTL, key="t"))
    await store.configure(Q, QueuePatch(free_dedup="k"))
    assert (await call(store, once("b")))[0] == Added("b", JobState.WAITING)
    assert (await call(store, once("u", "throttle", TTL, key="t")))[0].existing == "deduplicated"


async def test_an_id_that_exists_is_noticed_before_its_key(store: Store) -> None:
    await call(store, once("a"))
    assert await call(store, once("a")) == [Added("a", JobState.WAITING, "same_id")]


async def test_an_absorbed_call_leaves_its_id_free_for_the_next(store: Store) -> None:
    await call(store, once("a"))
    assert await call(store, once("b"), spec("b", data=b"2")) == [
        Added("a", JobState.WAITING, "deduplicated"),
        Added("b", JobState.WAITING),
    ]
    assert (await record(store, "b")).data == b"2"


async def test_racing_calls_of_two_clients_make_one_job(store: Store, other: Store) -> None:
    added: list[Added] = []

    async def race(client: Store, n: int) -> None:
        added.extend(await client.add([once(f"{n}")]))

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(race, other if n % 2 else store, n)
    assert len({one.id for one in added}) == 1
    assert sum(one.existing is None for one in added) == 1
    assert await numbers(store) == {"waiting": 1}


# --- throttle and extend ----------------------------------------------------------------------------------------------


async def test_throttle_drops_calls_for_its_time_even_after_the_end(store: Store, later: Later) -> None:
    await call(store, once("a", "throttle", TTL))
    await run(store, "a")
    later(TTL - 1)
    assert await call(store, once("b", "throttle", TTL)) == [Added("a", JobState.COMPLETED, "deduplicated")]
    later(2)
    assert await call(store, once("c", "throttle", TTL)) == [Added("c", JobState.WAITING)]
    assert await ids_in(store) == ["c", "a"]


async def test_throttle_lets_a_call_through_after_its_time_though_the_job_waits(store: Store, later: Later) -> None:
    await call(store, once("a", "throttle", TTL))
    later(TTL + 1)
    assert await call(store, once("b", "throttle", TTL)) == [Added("b", JobState.WAITING)]
    assert await ids_in(store) == ["a", "b"]


async def test_throttle_is_not_prolonged_by_further_calls(store: Store, later: Later) -> None:
    await call(store, once("a", "throttle", TTL))
    later(TTL - 1)
    await call(store, once("b", "throttle", TTL))
    later(2)
    assert (await call(store, once("c", "throttle", TTL)))[0].existing is None


async def test_throttle_drops_calls_when_the_job_was_not_kept(store: Store) -> None:
    await call(store, once("a", "throttle", TTL))
    await complete(store, await claim_one(store), keep=Keep(count=0))
    (again,) = await call(store, once("b", "throttle", TTL))
    assert (again.id, again.existing) == ("a", "deduplicated")
    assert await numbers(store) == {}


async def test_extend_is_prolonged_by_each_call(store: Store, later: Later) -> None:
    await call(store, once("a", "extend", TTL))
    for _ in range(3):
        later(TTL - 1)
        assert (await call(store, once("b", "extend", TTL)))[0] == Added("a", JobState.WAITING, "deduplicated")
    later(TTL + 1)
    assert (await call(store, once("c", "extend", TTL)))[0] == Added("c", JobState.WAITING)


async def test_the_end_of_an_overtaken_job_leaves_the_new_key(store: Store, later: Later) -> None:
    await call(store, once("a", "throttle", TTL))
    later(TTL + 1)
    await call(store, once("b"))
    await run(store, "a")
    assert (await call(store, once("c")))[0] == Added("b", JobState.WAITING, "deduplicated")


async def test_a_sweep_forgets_keys_that_ran_out(store: Store, later: Later) -> None:
    await call(store, once("a", "throttle", TTL), once("b", "throttle", 10 * TTL, key="long"))
    later(TTL + 1)
    await sweep(store)
    added = await call(store, once("c", "throttle", TTL), once("d", "throttle", TTL, key="long"))
    assert [one.existing for one in added] == [None, "deduplicated"]


# --- debounce ---------------------------------------------------------------------------------------------------------


async def test_debounce_replaces_a_delayed_job(store: Store, clock: FrozenClock, later: Later) -> None:
    await call(store, once("a", "debounce", TTL, delay_ms=500, data=b"1"))
    later(400)
    assert await call(store, once("b", "debounce", TTL, delay_ms=500, data=b"2")) == [Added("b", JobState.DELAYED)]
    assert await ids_in(store) == ["b"]
    kept = await record(store, "b")
    assert (kept.data, kept.due, kept.dedup) == (b"2", clock.now_ms() + 500, "k")


async def test_the_id_of_a_replaced_job_is_free_in_the_same_call(store: Store) -> None:
    await call(store, once("a", "debounce", TTL, delay_ms=500))
    added = await call(store, once("b", "debounce", TTL, delay_ms=500), spec("a", data=b"2"))
    assert added == [Added("b", JobState.DELAYED), Added("a", JobState.WAITING)]
    assert (await record(store, "a")).data == b"2"


async def test_debounce_restarts_its_time(store: Store, later: Later) -> None:
    await call(store, once("a", "debounce", TTL, delay_ms=5 * TTL))
    later(TTL - 1)
    await call(store, once("b", "debounce", TTL, delay_ms=5 * TTL))
    later(TTL - 1)
    await call(store, once("c", "debounce", TTL, delay_ms=5 * TTL))
    assert await ids_in(store) == ["c"]


async def test_debounce_leaves_an_old_job_after_its_time(store: Store, later: Later) -> None:
    await call(store, once("a", "debounce", TTL, delay_ms=5 * TTL))
    later(TTL + 1)
    assert (await call(store, once("b", "debounce", TTL, delay_ms=5 * TTL)))[0].existing is None
    assert await ids_in(store, JobState.DELAYED) == ["a", "b"]


async def test_debounce_drops_calls_once_the_job_is_not_delayed(store: Store, later: Later) -> None:
    await call(store, once("a", "debounce", TTL, delay_ms=100))
    later(101)
    job = await claim_one(store)
    assert await call(store, once("b", "debounce", TTL, delay_ms=100)) == [Added("a", JobState.ACTIVE, "deduplicated")]
    await complete(store, job)
    assert await ids_in(store) == ["a"]


# --- reschedule -------------------------------------------------------------------------------------------------------


async def test_reschedule_moves_the_due_time_of_a_delayed_job(store: Store, clock: FrozenClock, later: Later) -> None:
    await call(store, once("a", "reschedule", delay_ms=500, data=b"1"))
    later(400)
    assert await call(store, once("b", "reschedule", delay_ms=900, data=b"2")) == [
        Added("a", JobState.DELAYED, "deduplicated")
    ]
    kept = await record(store, "a")
    assert (kept.due, kept.data) == (clock.now_ms() + 900, b"1")
    later(899)
    assert await claim(store) == []
    later(1)
    assert (await claim_one(store)).record.id == "a"


async def test_reschedule_leaves_a_job_that_is_not_delayed(store: Store) -> None:
    await call(store, once("a", "reschedule"))
    assert await call(store, once("b", "reschedule", delay_ms=900)) == [Added("a", JobState.WAITING, "deduplicated")]
    await run(store, "a")
    assert (await call(store, once("c", "reschedule", delay_ms=900)))[0] == Added("c", JobState.DELAYED)


# --- keep_latest ------------------------------------------------------------------------------------------------------


async def test_keep_latest_is_simple_until_the_job_runs(store: Store) -> None:
    await call(store, once("a", "keep_latest", data=b"1"))
    await call(store, once("b", "keep_latest", data=b"2"))
    await run(store, "a")
    assert await ids_in(store) == ["a"]
    assert (await record(store, "a")).data == b"1"


async def test_keep_latest_keeps_the_last_call_for_when_the_running_job_ends(store: Store) -> None:
    await call(store, once("a", "keep_latest", data=b"1"))
    job = await claim_one(store)
    for n in (2, 3, 4):
        (added,) = await call(
            store, once(None, "keep_latest", data=b"%d" % n, name="later", priority=n, max_attempts=n)
        )
        assert added == Added("a", JobState.ACTIVE, "deduplicated")
    assert await ids_in(store) == ["a"]
    await complete(store, job)

    (successor,) = await ids_in(store, JobState.PRIORITIZED)
    kept = await record(store, successor)
    assert (kept.data, kept.name, kept.priority, kept.max_attempts) == (b"4", "later", 4, 4)
    assert (kept.dedup, kept.attempts_made, kept.fence) == ("k", 0, 0)
    await run(store, successor)
    assert await numbers(store) == {"completed": 2}


async def test_the_kept_call_has_the_id_it_asked_for(store: Store) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    await complete(store, job)
    assert await ids_in(store, JobState.WAITING) == ["b"]


async def test_the_kept_call_owns_the_key(store: Store) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    await complete(store, job)
    assert (await call(store, once("c", "keep_latest")))[0] == Added("b", JobState.WAITING, "deduplicated")
    job = await claim_one(store)
    await call(store, once("d", "keep_latest"))
    await complete(store, job)
    assert await ids_in(store, JobState.WAITING) == ["d"]


async def test_the_kept_call_comes_after_a_final_failure_and_not_after_a_retry(store: Store) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    await retry(store, job)
    assert await ids_in(store) == ["a"]
    await fail(store, await claim_one(store))
    assert await ids_in(store, JobState.WAITING) == ["b"]


async def test_the_kept_call_can_be_claimed_in_the_step_that_ends_the_first(store: Store) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    reply = await store.step(step(1, outcomes=[Settle(job.held, Completed(b"1"))]))
    assert [one.record.id for one in reply.jobs] == ["b"]


async def test_the_kept_call_is_created_when_the_first_ends(store: Store, later: Later) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    now = later(300)
    await complete(store, job)
    assert (await record(store, "b")).added == now


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_deduplication_of_a_child_is_refused(store: Store) -> None:
    await add(store, "p")
    with pytest.raises(ConfigurationError):
        await call(store, spec("x"), once("a", parent=ParentRef(Q, "p")))
    assert await ids_in(store) == ["p"]


async def test_deduplication_of_a_parent_is_refused(store: Store) -> None:
    with pytest.raises(ConfigurationError):
        await call(store, spec("c", parent=1), once("p"))
    assert await numbers(store) == {}


async def test_a_repeated_end_makes_no_second_successor(store: Store) -> None:
    await call(store, once("a", "keep_latest"))
    job = await claim_one(store)
    await call(store, once("b", "keep_latest"))
    await complete(store, job)
    await settle(store, job, Completed(b"null"))
    assert await numbers(store) == {"completed": 1, "waiting": 1}
    assert await state(store, "b") is JobState.WAITING
