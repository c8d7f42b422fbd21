"""Keeping leases alive, from the loop and from a thread."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing

import anyio.to_thread
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
    edit,
    record,
    settle,
    state,
    sweep,
    token,
)
from workers_module.job.outcome import Release
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Held, RenewReply

Renew = Callable[[Sequence[Held], int], Awaitable[RenewReply]]


@pytest.fixture(params=["loop", "thread"])
def renew(request: pytest.FixtureRequest, store: Store) -> Renew:
    """Return `Store.renew`, or that of its renewer in a thread of its own."""
    if request.param == "loop":
        return lambda held, lease_ms: store.renew(Q, held, lease_ms)

    async def renew(held: Sequence[Held], lease_ms: int) -> RenewReply:
        with closing(store.renewer()) as renewer:
            return await anyio.to_thread.run_sync(renewer.renew, Q, held, lease_ms)

    return renew


async def look_twice(store: Store, later: Later) -> list[str]:
    """Let two sweeps look, an interval apart; what they took back."""
    found = [*(await sweep(store)).recovered]
    later(INTERVAL + 1)
    return [*found, *(await sweep(store)).recovered]


async def test_nothing_held_is_nothing_lost(renew: Renew) -> None:
    assert await renew([], LEASE) == RenewReply()


async def test_a_renewed_lease_outlives_its_first_term(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=1_000)
    later(900)
    assert await renew([job.held], 60_000) == RenewReply()
    later(5_000)
    assert await look_twice(store, later) == []
    await complete(store, job)


async def test_a_renewed_lease_ends_as_well(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=60_000)
    await renew([job.held], 1_000)
    later(1_001)
    assert await look_twice(store, later) == ["a"]


async def test_a_lapsed_lease_is_extended_while_nobody_took_the_job(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    later(50_000)
    assert await renew([job.held], 60_000) == RenewReply()
    assert await look_twice(store, later) == []


async def test_a_renewal_between_two_looks_starts_the_looks_anew(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    later(200)
    await sweep(store)
    assert await renew([job.held], 100) == RenewReply()
    later(INTERVAL + 1)
    assert (await sweep(store)).recovered == ()
    later(INTERVAL + 1)
    assert (await sweep(store)).recovered == ("a",)


async def test_what_is_not_held_any_more_is_lost(store: Store, renew: Renew) -> None:
    await add(store, "done", "back", "mine", "foreign")
    done, back, mine, foreign = await claim(store, 4)
    await complete(store, done)
    await settle(store, back, Release())
    thief = Held("foreign", token(), foreign.held.fence, foreign.held.handle)
    unknown = Held("nobody", token(), 1)

    reply = await renew([done.held, mine.held, thief, back.held, unknown], LEASE)
    assert set(reply.lost) == {"done", "back", "foreign", "nobody"}
    assert len(reply.lost) == 4
    assert reply.cancelled == ()


async def test_a_job_taken_back_by_a_sweep_is_lost(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    later(200)
    assert await look_twice(store, later) == ["a"]
    assert (await renew([job.held], LEASE)).lost == ("a",)
    assert await state(store, "a") is JobState.WAITING


async def test_a_job_that_another_run_holds_is_lost_even_on_a_lapsed_lease(
    store: Store, later: Later, renew: Renew
) -> None:
    await add(store, "a")
    old = await claim_one(store)
    await settle(store, old, Release())
    new = await claim_one(store, lease_ms=100)
    later(5_000)
    assert (await renew([old.held], LEASE)).lost == ("a",)
    assert (await renew([new.held], LEASE)).lost == ()


async def test_cancel_requests_are_told(store: Store, renew: Renew) -> None:
    await add(store, "a", "b", "c")
    jobs = await claim(store, 3)
    await edit(store, "b", cancel=True)
    reply = await renew([job.held for job in jobs], LEASE)
    assert reply == RenewReply(lost=(), cancelled=("b",))
    assert await renew([jobs[1].held], LEASE) == RenewReply(cancelled=("b",))


async def test_a_renewal_changes_nothing_else(store: Store, later: Later, renew: Renew) -> None:
    await add(store, "a")
    job = await claim_one(store)
    later(100)
    await renew([job.held], LEASE)
    assert await record(store, "a") == job.record


async def test_the_instant_of_a_renewal_may_be_given(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100, now=10_000)
    await store.renew(Q, [job.held], 500, now=10_050)
    assert (await sweep(store, now=10_549)).recovered == ()
    assert (await sweep(store, now=10_549 + INTERVAL + 1)).recovered == ()
    assert (await sweep(store, now=10_549 + 2 * INTERVAL + 2)).recovered == ("a",)


async def test_many_jobs_in_one_renewal(store: Store, renew: Renew) -> None:
    await add(store, *(f"{n}" for n in range(500)))
    jobs = await claim(store, 500)
    await complete(store, jobs[250])
    assert await renew([job.held for job in jobs], LEASE) == RenewReply(lost=("250",))
