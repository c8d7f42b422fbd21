"""What only the memory store has: views of one world, calls that do not suspend, a renewer on a thread, its heaps."""

import asyncio
import logging
import os
import threading
from datetime import timedelta

import anyio
import pytest

from tests.store.helpers import (
    Q,
    add,
    by_state,
    claim,
    claim_one,
    complete,
    ids_in,
    ids_of,
    listening,
    numbers,
    spec,
    step,
    sweep,
    token,
)
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, StoreError
from workers_module.job.outcome import Completed, Failed, Keep
from workers_module.job.state import JobState
from workers_module.store.memory import MemoryStore
from workers_module.store.values import JobPatch, Order, Remove, Settle, StepReply
from workers_module.url import QueueKind

# --- worlds -----------------------------------------------------------------------------------------------------------


async def test_two_stores_never_see_each_other() -> None:
    one, two = MemoryStore(), MemoryStore()
    await add(one, "a")
    assert await numbers(two) == {}


async def test_views_of_a_name_share_one_world_while_one_of_them_lives() -> None:
    one, two = MemoryStore.shared("views"), MemoryStore.shared("views")
    await add(one, "a")
    assert await ids_in(two) == ["a"]
    del one
    assert await ids_in(MemoryStore.shared("views")) == ["a"]
    del two
    assert await ids_in(MemoryStore.shared("views")) == []


async def test_views_of_a_name_have_one_clock(clock: FrozenClock) -> None:
    first = MemoryStore.shared("clocks", clock=clock)
    assert await MemoryStore.shared("clocks").add([spec("a")])
    assert MemoryStore.shared("clocks", clock=clock) is not first
    with pytest.raises(ConfigurationError, match="another clock"):
        MemoryStore.shared("clocks", clock=FrozenClock())


async def test_it_says_that_its_jobs_end_with_the_process() -> None:
    info = await MemoryStore(name="orders").open()
    assert (info.kind, info.place, info.capabilities) == (QueueKind.MEMORY, "memory://orders", frozenset())
    assert "end with it" in info.warnings[0]


async def test_a_closed_store_keeps_its_jobs_for_the_next_opening() -> None:
    store = MemoryStore()
    await add(store, "a")
    await store.close()
    await store.open()
    assert await ids_in(store) == ["a"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_store_from_before_a_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(StoreError, match="fork"):
        await store.add([spec("a")])


async def test_a_transaction_is_ignored_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    with caplog.at_level(logging.WARNING):
        await store.add([spec("a")], tx=object())
        await store.add([spec("b")], tx=object())
    assert await ids_in(store) == ["a", "b"]
    assert len(caplog.records) == 1


# --- calls ------------------------------------------------------------------------------------------------------------


async def test_calls_do_not_suspend() -> None:
    store = MemoryStore()
    for call in (store.add([spec("a")]), store.step(step(1)), store.counts([Q]), store.queues()):
        with pytest.raises(StopIteration):
            call.send(None)


async def test_a_wait_with_something_to_claim_does_not_suspend() -> None:
    store = MemoryStore()
    await add(store, "a")
    with pytest.raises(StopIteration) as done:
        store.wait(step(1), 60).send(None)
    reply = done.value.value
    assert isinstance(reply, StepReply)
    assert ids_of(reply.jobs) == ["a"]


async def test_a_wait_that_is_cancelled_while_it_is_being_woken_hands_its_hint_on() -> None:
    store = MemoryStore()
    first = asyncio.create_task(store.wait(step(1), 60))
    second = asyncio.create_task(store.wait(step(1), 60))
    await anyio.wait_all_tasks_blocked()
    await add(store, "a")
    first.cancel()
    with anyio.fail_after(5):
        assert ids_of((await second).jobs) == ["a"]
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_no_more_waiters_are_woken_than_there_are_jobs() -> None:
    store = MemoryStore()
    waits = [asyncio.create_task(store.wait(step(5), 60)) for _ in range(10)]
    await anyio.wait_all_tasks_blocked()
    await store.add([spec(), spec(), spec()])
    await anyio.wait_all_tasks_blocked()
    assert sum(wait.done() for wait in waits) <= 3
    assert await numbers(store) == {"active": 3}
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


async def test_moving_the_clock_from_another_thread_wakes() -> None:
    clock = FrozenClock()
    store = MemoryStore(clock=clock)
    await add(store, "a", delay_ms=60_000)
    wait = asyncio.create_task(store.wait(step(1), 60))
    await anyio.wait_all_tasks_blocked()
    await anyio.to_thread.run_sync(clock.advance, timedelta(minutes=1))
    with anyio.fail_after(5):
        assert ids_of((await wait).jobs) == ["a"]


async def test_nothing_starts_early() -> None:
    store = MemoryStore()
    await store.add([spec(delay_ms=n % 7 + 1) for n in range(50)])
    started = 0
    with anyio.fail_after(10):
        while started < 50:
            reply = await store.wait(step(50), 5)
            started += len(reply.jobs)
            for job in reply.jobs:
                assert job.record.started is not None
                assert job.record.started > job.record.added
    assert await numbers(store) == {"active": 50}


# --- the renewer ------------------------------------------------------------------------------------------------------


async def test_a_renewer_on_a_thread_keeps_leases_while_jobs_start_and_end() -> None:
    store = MemoryStore()
    await store.add([spec(f"{n}") for n in range(2_000)])
    jobs = await claim(store, 50)
    renewer = store.renewer()
    stop, renewed = threading.Event(), threading.Event()

    def renew() -> None:
        while not stop.is_set():
            renewer.renew(Q, [job.held for job in jobs], 30_000)
            renewed.set()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        await anyio.to_thread.run_sync(renewed.wait, 5)
        while jobs:
            reply = await store.step(step(50, outcomes=[Settle(job.held, Completed(b"1")) for job in jobs]))
            jobs = reply.jobs
    finally:
        stop.set()
        await anyio.to_thread.run_sync(thread.join)
    renewer.close()
    assert renewed.is_set()
    assert await numbers(store) == {"completed": 2_000}
    assert await store.verify(Q) == []


# --- collections ------------------------------------------------------------------------------------------------------


async def test_heaps_do_not_grow_with_what_left_them() -> None:
    store = MemoryStore()
    await store.add([spec("due", delay_ms=500), spec("ready", priority=5)])
    for n in range(2_000):
        await store.edit(Q, [JobPatch(id="due", delay_ms=500 + n), JobPatch(id="ready", priority=1 + n % 9)])
    shelf = store._ledger.shelf(Q)
    assert len(shelf.delays) < 100
    assert len(shelf.untagged.heap) < 100
    assert await numbers(store) == {"delayed": 1, "prioritized": 1}
    assert await store.verify(Q) == []


async def test_jobs_that_ended_while_the_clock_ran_back_are_listed_by_their_end(clock: FrozenClock) -> None:
    store = MemoryStore(clock=clock)
    await add(store, "late", "early", "between")
    for by in (0, -20, 10):
        clock.set(clock.now_ms() + by)
        await complete(store, await claim_one(store))
    assert await ids_in(store, JobState.COMPLETED) == ["early", "between", "late"]
    assert await store.verify(Q) == []
    await add(store, "last")
    await complete(store, await claim_one(store), keep=Keep(count=2))
    assert len(await ids_in(store, JobState.COMPLETED)) == 2


async def test_one_keep_is_applied_to_both_ends_of_a_step() -> None:
    store = MemoryStore()
    await store.add([spec() for _ in range(6)])
    jobs = await claim(store, 6)
    keep = Keep(count=1)
    outcomes = [
        Settle(job.held, Failed("no", keep=keep) if n % 2 else Completed(b"1", keep)) for n, job in enumerate(jobs)
    ]
    await store.step(step(0, outcomes=outcomes))
    assert await numbers(store) == {"completed": 1, "failed": 1}


async def test_a_long_chain_of_parents_goes_in_one_piece() -> None:
    store = MemoryStore()
    depth = 3_000
    await store.add([spec(f"{n}", parent=n + 1 if n < depth - 1 else None) for n in range(depth)])
    await store.move(Q, by_state(JobState.WAITING), Remove(hard=True))
    assert await numbers(store) == {}

    await store.add([spec(f"{n}", parent=n + 1 if n < depth - 1 else None) for n in range(depth)])
    await store.move(Q, by_state(JobState.WAITING_CHILDREN, limit=1), Remove())
    assert (await numbers(store))["waiting-children"] < depth
    assert await store.verify(Q) == []


async def test_sets_of_tags_without_jobs_are_forgotten_by_a_sweep(clock: FrozenClock) -> None:
    store = MemoryStore(clock=clock)
    await store.add([spec(tags=(f"t{n}",)) for n in range(50)])
    for n in range(50):
        await claim(store, 1, tags=(f"t{n}",))
    await sweep(store)
    assert store._ledger.shelf(Q).tagged == {}


# --- events -----------------------------------------------------------------------------------------------------------


async def test_a_cursor_of_an_obliterated_queue_finds_a_gap_and_the_new_queue() -> None:
    store = MemoryStore()
    await add(store, "a")
    async with listening(store) as ear:
        await ear.heard()
        await store.obliterate(Q)
        await add(store, "b")
        assert [heard[0] for heard in await ear.heard()] == ["gap", "added", "waiting"]


async def test_a_cursor_that_is_none_is_refused() -> None:
    store = MemoryStore()
    for cursor in ("", "7", "a-1", "1-", "1--1"):
        with pytest.raises(ConfigurationError, match="cursor"):
            async with store.events(Q, after=cursor):
                pass


async def test_many_followers_hear_the_same() -> None:
    store = MemoryStore()
    async with listening(store) as one, listening(store) as two:
        await add(store, "a")
        await store.step(step(1, token=token()))
        assert [heard[0] for heard in await one.until("active")] == ["added", "waiting", "active"]
        assert [heard[0] for heard in await two.until("active")] == ["added", "waiting", "active"]


# --- locks and workers ------------------------------------------------------------------------------------------------


async def test_locks_that_ran_out_do_not_pile_up(clock: FrozenClock) -> None:
    store = MemoryStore(clock=clock)
    for n in range(1_000):
        assert await store.lease(f"lock-{n}", "me", 10) == n + 1
        clock.advance(timedelta(milliseconds=20))
    assert len(store._common.locks) < 300


async def test_an_order_for_nobody_is_not_kept() -> None:
    store = MemoryStore()
    await store.worker(Order("nobody", "stop"))
    assert store._common.orders == {}
