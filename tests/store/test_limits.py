"""Pause, concurrency, and rates: how many jobs may start."""

import anyio
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    fail,
    ids_of,
    numbers,
    spec,
    state,
    step,
    sweep,
)
from workers_module.clock import FrozenClock
from workers_module.job.outcome import Completed, Failed, Release
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import (
    MAX_EVENTS,
    UNSET,
    QueuePatch,
    QueueSettings,
    RateLimit,
    Settle,
    SettleCode,
    Unset,
)


async def limit(
    store: Store,
    *,
    concurrency: int | Unset | None = UNSET,
    rate: RateLimit | Unset | None = UNSET,
    limit_for_ms: int | None = None,
) -> QueueSettings:
    return await store.configure(Q, QueuePatch(concurrency=concurrency, rate=rate, limit_for_ms=limit_for_ms))


# --- settings ---------------------------------------------------------------------------------------------------------


async def test_a_queue_without_settings_has_the_default_ones(store: Store) -> None:
    assert await store.configure(Q) == QueueSettings(
        paused=False, concurrency=None, rate=None, event_cap=MAX_EVENTS, limited_until=None
    )
    assert await store.queues() == []


async def test_settings_are_kept_and_answered(store: Store, other: Store, clock: FrozenClock) -> None:
    patch = QueuePatch(paused=True, concurrency=4, rate=RateLimit(10, 1_000), event_cap=50, limit_for_ms=700)
    wanted = QueueSettings(
        paused=True, concurrency=4, rate=RateLimit(10, 1_000), event_cap=50, limited_until=clock.now_ms() + 700
    )
    assert await store.configure(Q, patch) == wanted
    assert await store.configure(Q) == wanted
    assert await other.configure(Q) == wanted
    assert await store.queues() == [Q]


async def test_a_patch_leaves_alone_what_it_does_not_name(store: Store) -> None:
    await store.configure(Q, QueuePatch(paused=True, concurrency=4, rate=RateLimit(10, 1_000), event_cap=50))
    assert (await store.configure(Q, QueuePatch(concurrency=5))) == QueueSettings(
        paused=True, concurrency=5, rate=RateLimit(10, 1_000), event_cap=50
    )
    assert (await store.configure(Q, QueuePatch(concurrency=None, rate=None))) == QueueSettings(
        paused=True, event_cap=50
    )


async def test_settings_of_two_queues_do_not_meet(store: Store) -> None:
    await store.configure("one", QueuePatch(paused=True))
    assert (await store.configure("two")).paused is False
    await store.add([spec("a", queue="two")])
    assert ids_of(await claim(store, queue="two")) == ["a"]


# --- pause ------------------------------------------------------------------------------------------------------------


async def test_a_paused_queue_hands_out_nothing(store: Store) -> None:
    await add(store, "a")
    await store.configure(Q, QueuePatch(paused=True))
    await add(store, "b", priority=1)
    reply = await store.step(step(5))
    assert (reply.jobs, reply.paused) == ([], True)
    assert await numbers(store) == {"waiting": 1, "prioritized": 1}
    (counts,) = await store.counts([Q])
    assert counts.paused is True


async def test_a_resumed_queue_hands_out_again(store: Store) -> None:
    await add(store, "a")
    await store.configure(Q, QueuePatch(paused=True))
    await store.configure(Q, QueuePatch(paused=False))
    reply = await store.step(step(5))
    assert (ids_of(reply.jobs), reply.paused) == (["a"], False)


async def test_jobs_end_in_a_paused_queue(store: Store) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    await store.configure(Q, QueuePatch(paused=True))
    reply = await store.step(step(5, outcomes=[Settle(job.held, Completed(b"1"))]))
    assert (reply.settled, reply.jobs, reply.paused) == ([SettleCode.OK], [], True)


async def test_due_jobs_become_ready_in_a_paused_queue(store: Store, later: Later) -> None:
    await add(store, "a", delay_ms=10)
    await store.configure(Q, QueuePatch(paused=True))
    later(10)
    await store.step(step(5))
    assert await state(store, "a") is JobState.WAITING


async def test_resume_by_token_reaches_jobs_of_a_paused_queue(store: Store) -> None:
    await add(store, "a")
    req = step(1)
    await store.step(req)
    await store.configure(Q, QueuePatch(paused=True))
    assert ids_of((await store.step(step(1, token=req.token, resume=True))).jobs) == ["a"]


# --- concurrency ------------------------------------------------------------------------------------------------------


async def test_no_more_jobs_are_active_than_allowed_in_all_processes(store: Store, other: Store) -> None:
    await add(store, "a", "b", "c", "d", "e")
    await limit(store, concurrency=2)
    assert ids_of(await claim(store, 1)) == ["a"]
    assert ids_of(await claim(other, 5)) == ["b"]
    assert await claim(store, 5) == []
    assert await numbers(store) == {"active": 2, "waiting": 3}


async def test_a_slot_freed_in_a_step_is_filled_in_it(store: Store) -> None:
    await add(store, "a", "b", "c")
    await limit(store, concurrency=1)
    job = await claim_one(store)
    reply = await store.step(step(5, outcomes=[Settle(job.held, Completed(b"1"))]))
    assert ids_of(reply.jobs) == ["b"]


async def test_a_lowered_concurrency_lets_running_jobs_end(store: Store) -> None:
    await add(store, "a", "b", "c", "d")
    a, b, c = await claim(store, 3)
    await limit(store, concurrency=1)
    await complete(store, a)
    assert await claim(store, 5) == []
    await complete(store, b)
    assert await claim(store, 5) == []
    await complete(store, c)
    assert ids_of(await claim(store, 5)) == ["d"]


async def test_a_lifted_concurrency_holds_nothing_back(store: Store) -> None:
    await add(store, "a", "b", "c")
    await limit(store, concurrency=1)
    await limit(store, concurrency=None)
    assert len(await claim(store, 5)) == 3


async def test_concurrency_counts_jobs_of_all_tags(store: Store) -> None:
    await store.add([spec("a"), spec("b", tags=("gpu",)), spec("c", tags=("gpu",))])
    await limit(store, concurrency=2)
    assert ids_of(await claim(store, 5)) == ["a"]
    assert ids_of(await claim(store, 5, tags=("gpu",))) == ["b"]


async def test_racing_claims_keep_the_concurrency(store: Store, other: Store) -> None:
    await add(store, *(f"{n}" for n in range(50)))
    await limit(store, concurrency=10)
    taken: list[str] = []

    async def race(client: Store) -> None:
        taken.extend(ids_of(await claim(client, 7)))

    async with anyio.create_task_group() as tasks:
        for n in range(8):
            tasks.start_soon(race, other if n % 2 else store)
    assert len(taken) == 10
    assert await numbers(store) == {"active": 10, "waiting": 40}


# --- rates ------------------------------------------------------------------------------------------------------------

WINDOW = 1_000


@pytest.mark.parametrize("whose", ["queue", "worker"])
async def test_a_window_lets_so_many_jobs_start(store: Store, clock: FrozenClock, later: Later, whose: str) -> None:
    rate = RateLimit(2, WINDOW)
    mine = rate if whose == "worker" else None
    if whose == "queue":
        await limit(store, rate=rate)
    await add(store, "a", "b", "c", "d", "e")
    opened = clock.now_ms()
    assert ids_of(await claim(store, 1, rate=mine)) == ["a"]
    later(300)
    reply = await store.step(step(5, rate=mine))
    assert ids_of(reply.jobs) == ["b"]
    later(300)
    reply = await store.step(step(5, rate=mine))
    assert (reply.jobs, reply.wake_at) == ([], opened + WINDOW)
    clock.set(opened + WINDOW)
    assert ids_of(await claim(store, 5, rate=mine)) == ["c", "d"]


async def test_a_window_begins_with_its_first_start(store: Store, clock: FrozenClock, later: Later) -> None:
    await limit(store, rate=RateLimit(1, WINDOW))
    later(950)
    await add(store, "a", "b")
    await claim_one(store)
    later(WINDOW - 1)
    assert await claim(store) == []
    later(1)
    assert ids_of(await claim(store)) == ["b"]


async def test_a_window_counts_starts_of_all_processes(store: Store, other: Store) -> None:
    await limit(store, rate=RateLimit(3, WINDOW))
    await add(store, "a", "b", "c", "d")
    assert len(await claim(store, 2)) == 2
    assert len(await claim(other, 2)) == 1


async def test_a_window_counts_starts_not_ends(store: Store) -> None:
    await limit(store, rate=RateLimit(2, WINDOW))
    await add(store, "a", "b", "c")
    job = await claim_one(store)
    reply = await store.step(step(5, outcomes=[Settle(job.held, Release())]))
    assert ids_of(reply.jobs) == ["a"]
    assert await claim(store, 5) == []


async def test_the_queues_number_and_the_workers_window_go_together(
    store: Store, clock: FrozenClock, later: Later
) -> None:
    await limit(store, rate=RateLimit(5, 60_000))
    await add(store, *(f"{n}" for n in range(20)))
    mine = RateLimit(1, WINDOW)
    opened = clock.now_ms()
    assert len(await claim(store, 20, rate=mine)) == 5
    assert (await store.step(step(20, rate=mine))).wake_at == opened + WINDOW
    later(WINDOW)
    assert len(await claim(store, 20, rate=mine)) == 5


async def test_a_lifted_rate_holds_nothing_back(store: Store) -> None:
    await limit(store, rate=RateLimit(1, WINDOW))
    await add(store, "a", "b", "c")
    await claim_one(store)
    await limit(store, rate=None)
    assert len(await claim(store, 5)) == 2


async def test_a_job_that_is_only_to_be_failed_uses_up_no_rate(store: Store, later: Later) -> None:
    await add(store, "dead", on_crash="fail")
    await claim_one(store)
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    await sweep(store)
    await add(store, "a", "b")
    await limit(store, rate=RateLimit(1, WINDOW))
    jobs = await claim(store, 5)
    assert ids_of(jobs) == ["dead", "a"]
    await fail(store, jobs[0])


async def test_due_jobs_become_ready_in_a_limited_queue(store: Store, later: Later) -> None:
    await limit(store, rate=RateLimit(1, 10 * WINDOW))
    await add(store, "a")
    await claim_one(store)
    await add(store, "d", delay_ms=10)
    later(10)
    await store.step(step(1))
    assert await state(store, "d") is JobState.WAITING


# --- by hand ----------------------------------------------------------------------------------------------------------


async def test_a_manual_limit_holds_for_all_and_for_its_time(
    store: Store, other: Store, clock: FrozenClock, later: Later
) -> None:
    await add(store, "a")
    settings = await limit(store, limit_for_ms=500)
    until = clock.now_ms() + 500
    assert settings.limited_until == until
    reply = await other.step(step(1))
    assert (reply.jobs, reply.wake_at, reply.paused) == ([], until, False)
    assert (await store.step(step(1, rate=RateLimit(1_000, 10)))).jobs == []
    later(499)
    assert await claim(store) == []
    later(1)
    assert ids_of(await claim(store)) == ["a"]


async def test_a_manual_limit_that_is_over_is_not_shown(store: Store, later: Later) -> None:
    await limit(store, limit_for_ms=500)
    later(501)
    assert (await store.configure(Q)).limited_until is None


async def test_a_manual_limit_counts_more_than_the_rate(store: Store, later: Later) -> None:
    await limit(store, rate=RateLimit(10, 100))
    await limit(store, limit_for_ms=1_000)
    await add(store, "a")
    later(900)
    assert await claim(store) == []
    later(100)
    assert ids_of(await claim(store)) == ["a"]


async def test_jobs_end_under_a_manual_limit(store: Store) -> None:
    await add(store, "a", "b")
    a, b = await claim(store, 2)
    await limit(store, limit_for_ms=1_000)
    reply = await store.step(step(1, outcomes=[Settle(a.held, Completed(b"1")), Settle(b.held, Failed("no"))]))
    assert reply.settled == [SettleCode.OK, SettleCode.OK]


async def test_a_manual_limit_may_be_set_at_a_given_instant(store: Store) -> None:
    settings = await store.configure(Q, QueuePatch(limit_for_ms=500), now=10_000)
    assert settings.limited_until == 10_500
    await store.add([spec("a")], now=10_000)
    assert (await store.step(step(1, now=10_499))).jobs == []
    assert ids_of((await store.step(step(1, now=10_500))).jobs) == ["a"]
