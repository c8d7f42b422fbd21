"""The centre: settle outcomes, then claim."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import anyio
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    Later,
    Q,
    add,
    assert_sound,
    claim,
    claim_one,
    complete,
    edit,
    fail,
    ids_in,
    ids_of,
    listening,
    numbers,
    record,
    release,
    settle,
    settle_all,
    spec,
    state,
    step,
    sweep,
    token,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.job.outcome import Completed, Failed, Keep, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import JobRecord, ParentRef, Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import MAX_OUTCOMES, Claimed, Held, Settle, SettleCode


def claimed(jobs: Sequence[Claimed]) -> list[tuple[JobRecord, str, int]]:
    """Return what claims say; not their handles, which are the store's own and may change."""
    return [(job.record, job.held.token, job.held.fence) for job in jobs]


# --- claiming ---------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_gives_nothing(store: Store, clock: FrozenClock) -> None:
    reply = await store.step(step(5))
    assert (reply.settled, reply.jobs, reply.wake_at, reply.paused) == ([], [], None, False)
    assert reply.now == clock.now_ms()


async def test_a_claimed_job_is_active_under_its_token(store: Store, clock: FrozenClock, later: Later) -> None:
    await add(store, "a", data=b'{"x":1}')
    before = await record(store, "a")
    now = later(250)
    mine = token()
    (job,) = (await store.step(step(1, token=mine, worker="ada"))).jobs

    assert job.record == before._replace(state=JobState.ACTIVE, fence=1, started=now, worker="ada")
    assert job.held[:3] == ("a", mine, 1)
    assert await record(store, "a") == job.record
    assert await numbers(store) == {"active": 1}


async def test_a_claimed_job_is_not_claimed_again(store: Store, other: Store) -> None:
    await add(store, "a", "b")
    assert ids_of(await claim(store, 1)) == ["a"]
    assert ids_of(await claim(other, 5)) == ["b"]
    assert await claim(store, 5) == []


async def test_take_is_the_most_that_comes(store: Store) -> None:
    await add(store, "a", "b", "c")
    assert await claim(store, 0) == []
    assert ids_of(await claim(store, 2)) == ["a", "b"]
    assert ids_of(await claim(store, 2)) == ["c"]


async def test_the_lowest_priority_number_comes_first_and_none_before_all(store: Store) -> None:
    await store.add(
        [spec("p9", priority=9), spec("p1", priority=1), spec("none"), spec("p9b", priority=9), spec("p2", priority=2)]
    )
    await store.add([spec("p1b", priority=1), spec("noneb"), spec("last", priority=2_097_151)])
    assert ids_of(await claim(store, 3)) == ["none", "noneb", "p1"]
    assert ids_of(await claim(store, 9)) == ["p1b", "p2", "p9", "p9b", "last"]


async def test_each_start_raises_the_fence_by_one(store: Store) -> None:
    await add(store, "a")
    for fence in (1, 2, 3):
        job = await claim_one(store)
        assert (job.record.fence, job.held.fence) == (fence, fence)
        await release(store, job)


async def test_an_instant_may_be_given(store: Store) -> None:
    await store.add([spec("a"), spec("b", delay_ms=500)], now=10_000)
    reply = await store.step(step(5, now=10_499))
    assert reply.now == 10_499
    assert ids_of(reply.jobs) == ["a"]
    assert reply.jobs[0].record.started == 10_499
    assert reply.wake_at == 10_500
    assert ids_of((await store.step(step(5, now=10_500))).jobs) == ["b"]


async def test_two_clients_share_a_backlog_without_doubles(store: Store, other: Store) -> None:
    await store.add([spec(f"{n}") for n in range(200)])
    claimed: list[str] = []

    async def consume(client: Store) -> None:
        while jobs := await claim(client, 7):
            claimed.extend(ids_of(jobs))
            assert set(await settle_all(client, jobs, Completed(b"1"))) == {SettleCode.OK}

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for client in (store, other, store, other):
                tasks.start_soon(consume, client)
    assert sorted(claimed) == sorted(f"{n}" for n in range(200))
    assert await numbers(store) == {"completed": 200}


# --- due jobs ---------------------------------------------------------------------------------------------------------


async def test_a_delayed_job_is_ready_when_due_and_not_before(store: Store, later: Later) -> None:
    await add(store, "a", delay_ms=500)
    later(499)
    assert await claim(store) == []
    later(1)
    job = await claim_one(store)
    assert (job.record.id, job.record.due) == ("a", None)


async def test_due_jobs_become_ready_in_the_order_of_their_instants(store: Store, later: Later) -> None:
    await add(store, "now")
    await store.add(
        [spec("d3", delay_ms=300), spec("d1", delay_ms=100), spec("d2", delay_ms=200), spec("d1b", delay_ms=100)]
    )
    later(1_000)
    assert ids_of(await claim(store, 10)) == ["now", "d1", "d1b", "d2", "d3"]


async def test_due_jobs_keep_their_priority_and_stand_behind(store: Store, later: Later) -> None:
    await store.add([spec("d5", delay_ms=10, priority=5), spec("d0", delay_ms=20)])
    later(100)
    await store.add([spec("p5", priority=5), spec("p1", priority=1), spec("p0")])
    assert ids_of(await claim(store, 10)) == ["p0", "d0", "p1", "p5", "d5"]


async def test_lifo_does_not_put_a_due_job_in_front(store: Store, later: Later) -> None:
    await add(store, "d", delay_ms=10, lifo=True)
    await add(store, "a", "b")
    later(100)
    assert ids_of(await claim(store, 10)) == ["a", "b", "d"]


async def test_due_jobs_become_ready_though_nothing_is_claimed(store: Store, later: Later) -> None:
    await store.add([spec("a", delay_ms=10), spec("b", delay_ms=10, priority=1), spec("c", delay_ms=11)])
    later(10)
    reply = await store.step(step(0))
    assert await numbers(store) == {"waiting": 1, "prioritized": 1, "delayed": 1}
    assert (await record(store, "a")).due is None
    assert reply.wake_at is not None


@pytest.mark.parametrize(("take", "ready"), [(0, 100), (2, 104)])
async def test_so_many_due_jobs_become_ready_in_one_step(store: Store, later: Later, take: int, ready: int) -> None:
    await store.add([spec(f"{n}", delay_ms=10) for n in range(110)])
    later(10)
    jobs = await claim(store, take)
    assert len(jobs) == take
    assert (await numbers(store))["delayed"] == 110 - ready


async def test_the_reply_says_when_the_next_job_is_due(store: Store, clock: FrozenClock) -> None:
    now = clock.now_ms()
    await store.add([spec("a", delay_ms=900), spec("b", delay_ms=300), spec("c")])
    reply = await store.step(step(1))
    assert ids_of(reply.jobs) == ["c"]
    assert reply.wake_at == now + 300


# --- settling ---------------------------------------------------------------------------------------------------------


async def test_completed(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    now = later(70)
    assert await settle(store, job, Completed(b'{"ok": [ ]}')) is SettleCode.OK
    assert await record(store, "a") == job.record._replace(
        state=JobState.COMPLETED, result=b'{"ok": [ ]}', finished=now, attempts_made=1
    )
    assert await numbers(store) == {"completed": 1}


async def test_failed(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    now = later(70)
    assert await settle(store, job, Failed("boom \x00 \U0001f40d", b'["one", "two"]')) is SettleCode.OK
    assert await record(store, "a") == job.record._replace(
        state=JobState.FAILED, reason="boom \x00 \U0001f40d", trace=b'["one", "two"]', finished=now, attempts_made=1
    )
    assert await numbers(store) == {"failed": 1}


async def test_failed_without_a_trace_leaves_the_stored_one(store: Store) -> None:
    await add(store, "a")
    await settle(store, await claim_one(store), Retry(0, "one", b'["t1"]'))
    await settle(store, await claim_one(store), Failed("two"))
    kept = await record(store, "a")
    assert (kept.reason, kept.trace, kept.attempts_made) == ("two", b'["t1"]', 2)


async def test_released_is_as_if_it_had_not_run(store: Store, later: Later) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    later(70)
    assert await settle(store, job, Release()) is SettleCode.OK
    kept = await record(store, "a")
    assert kept.state is JobState.WAITING
    assert (kept.attempts_made, kept.crashes, kept.fence, kept.finished) == (0, 0, 1, None)
    assert ids_of(await claim(store, 5)) == ["a", "b"]


async def test_released_goes_in_front_of_its_own_priority_only(store: Store) -> None:
    await store.add([spec("a5", priority=5), spec("b5", priority=5)])
    job = await claim_one(store)
    await store.add([spec("c1", priority=1), spec("d0")])
    await release(store, job)
    assert await state(store, "a5") is JobState.PRIORITIZED
    assert ids_of(await claim(store, 9)) == ["d0", "c1", "a5", "b5"]


async def test_released_goes_in_front_of_lifo_jobs(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await add(store, "b", lifo=True)
    await release(store, job)
    assert ids_of(await claim(store, 9)) == ["a", "b"]


async def test_outcomes_come_before_claims(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    reply = await store.step(step(1, outcomes=[Settle(job.held, Release())]))
    assert reply.settled == [SettleCode.OK]
    assert ids_of(reply.jobs) == ["a"]
    assert reply.jobs[0].record.fence == 2


async def test_a_code_for_each_outcome_in_order(store: Store) -> None:
    await add(store, "a", "b", "c", "d")
    a, b, c, _ = await claim(store, 4)
    await complete(store, b)
    stranger = Held("c", token(), c.held.fence, c.held.handle)
    outcomes = [
        Settle(a.held, Completed(b"1")),
        Settle(b.held, Completed(b"1")),
        Settle(stranger, Completed(b"1")),
        Settle(Held("nobody", token(), 1), Completed(b"1")),
        Settle(c.held, Failed("no")),
    ]
    reply = await store.step(step(0, outcomes=outcomes))
    assert reply.settled == [
        SettleCode.OK,
        SettleCode.ALREADY,
        SettleCode.LEASE_LOST,
        SettleCode.MISSING,
        SettleCode.OK,
    ]
    assert await numbers(store) == {"active": 1, "completed": 2, "failed": 1}


async def test_the_same_outcome_twice_in_a_step_counts_once(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    assert await settle_all(store, [job, job], Completed(b"1")) == [SettleCode.OK, SettleCode.ALREADY]
    assert (await record(store, "a")).attempts_made == 1


async def test_a_step_carries_outcomes_of_several_claims_up_to_the_most_allowed(store: Store) -> None:
    await store.add([spec(f"{n}") for n in range(MAX_OUTCOMES + 1)])
    jobs = [*await claim(store, 120), *await claim(store, MAX_OUTCOMES - 120)]
    reply = await store.step(step(5, outcomes=[Settle(job.held, Completed(b"1")) for job in jobs]))
    assert reply.settled == [SettleCode.OK] * MAX_OUTCOMES
    assert ids_of(reply.jobs) == [f"{MAX_OUTCOMES}"]


async def test_a_step_with_too_many_outcomes_is_refused_whole(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    with pytest.raises(ConfigurationError):
        await store.step(step(0, outcomes=[Settle(job.held, Completed(b"1"))] * (MAX_OUTCOMES + 1)))
    assert await state(store, "a") is JobState.ACTIVE


async def test_outcomes_of_another_queue_are_missing(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    assert await settle(store, job, Completed(b"1"), queue="elsewhere") is SettleCode.MISSING
    assert await state(store, "a") is JobState.ACTIVE


async def test_a_cancel_request_ends_with_the_run(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await edit(store, "a", cancel=True)
    assert (await record(store, "a")).cancelled is True
    await settle(store, job, Retry(0, "again"))
    assert (await record(store, "a")).cancelled is False


# --- who may settle ---------------------------------------------------------------------------------------------------


async def test_a_foreign_token_changes_nothing(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    thief = Held("a", token(), job.held.fence, job.held.handle)
    async with listening(store) as ear:
        for outcome in (Completed(b"1"), Failed("no"), Retry(5, "no"), Retry(0, "no"), Snooze(5), Release()):
            assert await settle(store, thief, outcome) is SettleCode.LEASE_LOST
        assert await ear.heard() == []
    assert await record(store, "a") == job.record
    await complete(store, job)


async def test_a_lapsed_lease_is_not_yet_a_lost_one(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    later(10_000)
    await complete(store, job, b"1")
    assert await state(store, "a") is JobState.COMPLETED


async def test_a_first_look_of_the_sweep_does_not_end_a_lease(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    later(200)
    assert (await sweep(store)).recovered == ()
    await complete(store, job)


async def abandon(store: Store, later: Later) -> None:
    """Let two sweeps find the leases run out."""
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    await sweep(store)


@pytest.mark.parametrize(
    "outcome", [Completed(b"1"), Completed(b"1", Keep(count=0)), Failed("no"), Failed("no", keep=Keep(count=0))]
)
async def test_what_a_sweep_took_back_cannot_be_ended(store: Store, later: Later, outcome: Outcome) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await abandon(store, later)
    before = await record(store, "a")
    assert before.state is JobState.WAITING
    async with listening(store) as ear:
        assert await settle(store, job, outcome) is SettleCode.LEASE_LOST
        assert await ear.heard() == []
    assert await record(store, "a") == before


OUTCOMES: list[Outcome] = [
    Completed(b"1"),
    Failed("no"),
    Retry(0, "no"),
    Retry(500, "no"),
    Snooze(500),
    Release(),
    WaitChildren(),
]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_the_run_before_cannot_settle_the_run_that_came_after(
    store: Store, later: Later, outcome: Outcome
) -> None:
    await add(store, "a")
    old = await claim_one(store)
    await abandon(store, later)
    new = await claim_one(store)
    assert (new.record.fence, new.record.crashes) == (2, 1)
    async with listening(store) as ear:
        assert await settle(store, old, outcome) is SettleCode.LEASE_LOST
        assert await ear.heard() == []
    assert await record(store, "a") == new.record
    await complete(store, new)


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
async def test_a_lapsed_run_cannot_settle_what_somebody_else_runs_on_a_lapsed_lease(
    store: Store, later: Later, outcome: Outcome
) -> None:
    await add(store, "a")
    old = await claim_one(store)
    await release(store, old)
    new = await claim_one(store, lease_ms=100)
    later(10_000)
    assert await settle(store, old, outcome) is SettleCode.LEASE_LOST
    await complete(store, new)


# --- repeats of lost replies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Completed(b"1"), SettleCode.ALREADY),
        (Completed(b"1", Keep(count=0)), SettleCode.MISSING),
        (Failed("no"), SettleCode.ALREADY),
        (Failed("no", keep=Keep(count=0)), SettleCode.MISSING),
        (Retry(0, "no"), SettleCode.ALREADY),
        (Retry(500, "no"), SettleCode.ALREADY),
        (Snooze(500), SettleCode.ALREADY),
        (Release(), SettleCode.ALREADY),
    ],
    ids=["completed", "completed-gone", "failed", "failed-gone", "retry", "retry-later", "snooze", "release"],
)
async def test_a_repeated_outcome_has_no_second_effect(store: Store, outcome: Outcome, code: SettleCode) -> None:
    await add(store, "a")
    job = await claim_one(store)
    assert await settle(store, job, outcome) is SettleCode.OK
    before, counts = await store.get(Q, ["a"]), await numbers(store)
    async with listening(store) as ear:
        assert await settle(store, job, outcome) is code
        assert await ear.heard() == []
    assert await store.get(Q, ["a"]) == before
    assert await numbers(store) == counts


async def test_a_repeated_wait_for_children_has_no_second_effect(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("c", parent=ParentRef(Q, "p"))])
    assert await settle(store, parent, WaitChildren()) is SettleCode.OK
    async with listening(store) as ear:
        assert await settle(store, parent, WaitChildren()) is SettleCode.ALREADY
        assert await ear.heard() == []
    assert await state(store, "p") is JobState.WAITING_CHILDREN


async def test_a_repeated_retry_that_became_due_meanwhile_is_known(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await settle(store, job, Retry(500, "no"))
    later(500)
    await store.step(step(0))
    assert await state(store, "a") is JobState.WAITING
    assert await settle(store, job, Retry(500, "no")) is SettleCode.ALREADY


async def ended_as_completed(store: Store, job: Claimed) -> None:
    await complete(store, job)


async def ended_as_failed(store: Store, job: Claimed) -> None:
    await fail(store, job)


async def handed_back(store: Store, job: Claimed) -> None:
    await release(store, job)


@pytest.mark.parametrize(
    ("before", "outcome"),
    [
        (ended_as_completed, Failed("no")),
        (ended_as_completed, Retry(0, "no")),
        (ended_as_completed, Snooze(5)),
        (ended_as_completed, Release()),
        (ended_as_failed, Completed(b"1")),
        (ended_as_failed, Retry(5, "no")),
        (ended_as_failed, Release()),
        (handed_back, Completed(b"1")),
        (handed_back, Failed("no")),
    ],
)
async def test_another_outcome_after_the_first_is_a_lost_lease(
    store: Store, before: Callable[[Store, Claimed], Awaitable[None]], outcome: Outcome
) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await before(store, job)
    kept = await record(store, "a")
    assert await settle(store, job, outcome) is SettleCode.LEASE_LOST
    assert await record(store, "a") == kept


async def test_a_repeated_step_settles_once_and_claims_anew(store: Store) -> None:
    await add(store, "a", "b", "c")
    job = await claim_one(store)
    req = step(1, outcomes=[Settle(job.held, Completed(b"1"))])
    first = await store.step(req)
    again = await store.step(replace(req, resume=True))
    assert (first.settled, again.settled) == ([SettleCode.OK], [SettleCode.ALREADY])
    assert claimed(again.jobs) == claimed(first.jobs)
    assert await numbers(store) == {"completed": 1, "active": 1, "waiting": 1}


@pytest.mark.parametrize("keep", [None, Keep(count=0), Keep(count=3)], ids=["all kept", "none kept", "three kept"])
@pytest.mark.parametrize("lost", [False, True], ids=["all held", "one lost"])
async def test_jobs_that_were_written_to_meanwhile_complete_with_the_others(
    store: Store, keep: Keep | None, lost: bool
) -> None:
    """Wherever a store keeps them by then."""
    await add(store, *"abcdef")
    jobs = await claim(store, 6)
    await store.renew(Q, [jobs[1].held, jobs[2].held], LEASE)
    await edit(store, "c", progress=b"50")
    await edit(store, "d", data=b'{"x":1}')
    held = [job.held for job in jobs]
    if lost:
        held[4] = held[4]._replace(token=token(), fence=7)
    outcomes = [Settle(one, Completed(b'"%d"' % n, keep)) for n, one in enumerate(held)]
    async with listening(store) as ear:
        reply = await store.step(step(outcomes=outcomes))
        told = [(await ear.until("completed"))[-1][1] for _ in range(5 if lost else 6)]
    ok = [n for n in range(6) if not (lost and n == 4)]
    assert reply.settled == [SettleCode.OK if n in ok else SettleCode.LEASE_LOST for n in range(6)]
    assert told == ["abcdef"[n] for n in ok]
    kept = ok if keep is None else ok[len(ok) - keep.count :] if keep.count else []
    done = {"completed": len(kept)} if kept else {}
    assert await numbers(store) == done | ({"active": 1} if lost else {})
    assert [(await record(store, "abcdef"[n])).result for n in kept] == [b'"%d"' % n for n in kept]
    await assert_sound(store)


# --- resume -----------------------------------------------------------------------------------------------------------


async def test_resume_brings_the_same_jobs_again(store: Store, later: Later) -> None:
    await add(store, "a", "b", "c")
    mine = token()
    first = (await store.step(step(2, token=mine))).jobs
    later(50)
    again = (await store.step(step(2, token=mine, resume=True))).jobs
    assert sorted(claimed(again)) == sorted(claimed(first))
    assert [job.held.fence for job in again] == [1, 1]
    assert await numbers(store) == {"active": 2, "waiting": 1}


async def test_resume_claims_up_to_take_in_all(store: Store) -> None:
    await add(store, "a", "b", "c", "d")
    mine = token()
    await store.step(step(2, token=mine))
    again = (await store.step(step(3, token=mine, resume=True))).jobs
    assert sorted(ids_of(again)) == ["a", "b", "c"]
    assert await numbers(store) == {"active": 3, "waiting": 1}


async def test_resume_with_take_0_brings_what_is_held_and_claims_nothing(store: Store) -> None:
    await add(store, "a", "b", "c")
    mine = token()
    await store.step(step(2, token=mine))
    reply = await store.step(step(0, token=mine, resume=True))
    assert sorted(ids_of(reply.jobs)) == ["a", "b"]
    assert await numbers(store) == {"active": 2, "waiting": 1}


async def test_resume_leaves_out_what_ended_and_what_others_hold(store: Store) -> None:
    await add(store, "a", "b", "c", "d")
    mine = token()
    a, _ = (await store.step(step(2, token=mine))).jobs
    await claim_one(store)
    await complete(store, a)
    assert ids_of((await store.step(step(0, token=mine, resume=True))).jobs) == ["b"]


async def test_resume_of_a_claim_that_never_arrived_claims(store: Store) -> None:
    await add(store, "a", "b")
    assert ids_of((await store.step(step(1, resume=True))).jobs) == ["a"]


async def test_resume_finds_nothing_after_a_sweep_took_the_jobs_back(store: Store, later: Later) -> None:
    await add(store, "a")
    mine = Token("mine")
    await store.step(step(1, token=mine))
    await abandon(store, later)
    assert (await store.step(step(0, token=mine, resume=True))).jobs == []
    (job,) = (await store.step(step(1, token=mine, resume=True))).jobs
    assert job.record.fence == 2


async def test_what_a_resume_brought_can_be_settled(store: Store) -> None:
    await add(store, "a")
    mine = token()
    await store.step(step(1, token=mine))
    (job,) = (await store.step(step(0, token=mine, resume=True))).jobs
    await complete(store, job)
    assert await ids_in(store, JobState.COMPLETED) == ["a"]
