"""Leases are kept from a thread: through a blocked loop, through an outage, and no longer than the loop lives."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.worker.conftest import opened
from tests.worker.loops import Desk, Q, all_ended, jobs, numbered, queue_plan, record, until
from workers_module.errors import StoreUnavailableError
from workers_module.job.job import Job
from workers_module.job.state import JobState
from workers_module.store.base import Renewer, Store
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import Held, JobPatch, RenewReply, Sweep
from workers_module.worker.context import JobContext
from workers_module.worker.leases import Leases


class Noted:
    """A store whose renewals are noted, and can be made to fail."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.renewals: list[tuple[str, list[str]]] = []
        self.threads: set[int] = set()
        self.away = False
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def renewer(self) -> Renewer:
        real, noted = self._store.renewer(), self

        class Watching:
            def renew(self, queue: str, held: list[Held], lease_ms: int) -> RenewReply:
                noted.threads.add(threading.get_ident())
                if noted.away:
                    raise StoreUnavailableError("away")
                noted.renewals.append((queue, [item.id for item in held]))
                return real.renew(queue, held, lease_ms)

            def close(self) -> None:
                noted.closed = True
                real.close()

        return Watching()  # type: ignore[return-value]


@asynccontextmanager
async def kept(desk: Desk, *, lease_ms: int, max_block_ms: int = 60_000) -> AsyncGenerator[Leases]:
    """Run the consumers of a desk with their leases kept."""
    leases = Leases(desk.store, desk.consumers, lease_ms=lease_ms, max_block_ms=max_block_ms)
    for consumer in desk.consumers:
        consumer._on_hold = leases.wake
    async with anyio.create_task_group() as group:
        group.start_soon(leases.run)
        async with desk.at_work():
            yield leases
        group.cancel_scope.cancel()


def at_once(call: Coroutine[Any, Any, Any]) -> Any:
    """Carry out a call that does not wait, from within a blocked loop."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


async def test_a_job_that_blocks_the_loop_for_three_leases_is_not_repeated(memory: Store) -> None:
    """P11."""
    runs = 0
    recovered: list[str] = []

    async def block(job: Job[Any], context: JobContext) -> None:
        nonlocal runs
        runs += 1
        end = time.monotonic() + 0.9
        while time.monotonic() < end:
            time.sleep(0.02)  # noqa: ASYNC251 - that is the point
            recovered.extend(at_once(memory.sweep(Sweep(queue=Q, interval_ms=20))).recovered)

    await memory.add(jobs("a", "b"))
    async with kept(Desk(memory, queue_plan(block), lease_ms=300), lease_ms=300):
        await until(lambda: all_ended(memory))
    assert (runs, recovered) == (2, [])
    assert (await record(memory, "a")).fence == 1
    # It was claimed with the first one, and could not even start before that one was done.
    assert (await record(memory, "b")).fence == 1


async def test_without_renewal_it_would_be_repeated(memory: Store) -> None:
    """Shows that the test above can fail."""
    recovered: list[str] = []

    async def block(job: Job[Any], context: JobContext) -> None:
        if job.fence > 1:
            return
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            time.sleep(0.02)  # noqa: ASYNC251 - that is the point
            recovered.extend(at_once(memory.sweep(Sweep(queue=Q, interval_ms=20))).recovered)

    await memory.add(jobs("a"))
    async with Desk(memory, queue_plan(block), lease_ms=100).at_work():
        await until(lambda: all_ended(memory))
    assert recovered == ["a"]


async def test_another_process_does_not_take_it_back_meanwhile(tmp_path: Path) -> None:
    """P11, with the sweeps of somebody whose loop is not blocked."""
    over, recovered = threading.Event(), list[str]()

    async def sweep() -> None:
        async with opened(SqliteStore(tmp_path / "jobs.db")) as other:
            while not over.is_set():
                recovered.extend((await other.sweep(Sweep(queue=Q, interval_ms=20))).recovered)
                await anyio.sleep(0.02)

    async def block(job: Job[Any], context: JobContext) -> None:
        time.sleep(2)  # noqa: ASYNC251 - that is the point

    async with opened(SqliteStore(tmp_path / "jobs.db")) as store:
        await store.add(jobs("a"))
        thread = threading.Thread(target=lambda: asyncio.run(sweep()))
        thread.start()
        try:
            async with kept(Desk(store, queue_plan(block), lease_ms=600), lease_ms=600):
                await until(lambda: all_ended(store))
        finally:
            over.set()
            await anyio.to_thread.run_sync(thread.join)
        assert recovered == []
        assert (await record(store, "a")).fence == 1


async def test_all_jobs_of_a_queue_are_renewed_in_one_call_from_another_thread(live: Store) -> None:
    release, store = anyio.Event(), Noted(live)

    async def work(job: Job[Any], context: JobContext) -> None:
        await release.wait()

    await live.add([*numbered(3), *jobs("o", queue="other")])
    desk = Desk(store, queue_plan(work), queue_plan(work, queue="other"))
    async with kept(desk, lease_ms=90):
        await until(lambda: len(store.renewals) >= 4)
        release.set()
    assert (Q, ["j0", "j1", "j2"]) in store.renewals
    assert ("other", ["o"]) in store.renewals
    assert len(store.threads) == 1
    assert threading.get_ident() not in store.threads
    await until(lambda: store.closed)


async def test_nothing_is_renewed_while_nothing_runs(live: Store) -> None:
    store = Noted(live)
    await live.add(jobs("a"))
    async with kept(Desk(store, queue_plan()), lease_ms=30) as leases:
        await until(lambda: all_ended(live))
        await until(lambda: not leases._awake)
        before = len(store.renewals)
        await anyio.sleep(0.1)
        assert len(store.renewals) == before
        assert not leases._go.is_set()


async def test_a_cancelled_job_is_told_at_the_next_renewal(live: Store) -> None:
    async def work(job: Job[Any], context: JobContext) -> None:
        await anyio.sleep_forever()

    await live.add(jobs("a"))
    async with kept(Desk(live, queue_plan(work)), lease_ms=90):
        await until(lambda: _active(live))
        await live.edit(Q, [JobPatch(id="a", cancel=True)])
        await until(lambda: all_ended(live))
    failed = await record(live, "a")
    assert failed.state is JobState.FAILED
    assert failed.reason == "cancelled while it ran"


async def test_a_lost_lease_cancels_the_run(live: Store) -> None:
    cancelled = anyio.Event()

    async def work(job: Job[Any], context: JobContext) -> None:
        if job.fence > 1:
            return
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    store = Noted(live)
    await live.add(jobs("a"))
    async with kept(Desk(store, queue_plan(work), lease_ms=60), lease_ms=60):
        await until(lambda: _active(live))
        store.away = True
        await until(lambda: _recovered(live))
        store.away = False
        with anyio.fail_after(5):
            await cancelled.wait()
        await until(lambda: all_ended(live))


async def test_a_lease_that_cannot_be_renewed_is_in_doubt_and_clear_again_afterwards(live: Store) -> None:
    seen: list[bool] = []
    release, store = anyio.Event(), Noted(live)

    async def work(job: Job[Any], context: JobContext) -> None:
        seen.append(job.lease_in_doubt)
        await until(lambda: job.lease_in_doubt)
        seen.append(context.lease_in_doubt)
        store.away = False
        await until(lambda: not job.lease_in_doubt)
        seen.append(job.lease_in_doubt)

    store.away = True
    await live.add(jobs("a"))
    async with kept(Desk(store, queue_plan(work), lease_ms=200), lease_ms=200):
        await until(lambda: all_ended(live))
    release.set()
    assert seen == [False, True, False]
    assert (await record(live, "a")).state is JobState.COMPLETED


async def test_a_loop_blocked_for_too_long_loses_its_leases_and_its_stack_is_logged(
    live: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store = Noted(live)
    renewed: list[int] = []

    async def the_culprit(job: Job[Any], context: JobContext) -> None:
        for _ in range(2):
            time.sleep(0.4)  # noqa: ASYNC251 - that is the point
            renewed.append(len(store.renewals))

    await live.add(jobs("a"))
    with caplog.at_level(logging.ERROR):
        async with kept(Desk(store, queue_plan(the_culprit)), lease_ms=60, max_block_ms=150):
            await until(lambda: all_ended(live))
    told = [message for message in caplog.messages if "blocked" in message]
    assert len(told) == 1
    assert "the_culprit" in told[0]
    assert 0 < renewed[0] < 10
    assert renewed[1] == renewed[0]


async def test_a_broken_renewer_ends_the_loop_with_its_error(live: Store) -> None:
    class Broken(Noted):
        def renewer(self) -> Renewer:
            raise ZeroDivisionError

    broken: Any = Broken(live)
    leases = Leases(broken, [], lease_ms=30)
    with anyio.fail_after(5), contextlib.suppress(asyncio.CancelledError):
        with pytest.raises(BaseExceptionGroup) as caught:
            await leases.run()
        assert caught.group_contains(ZeroDivisionError)


async def _active(store: Store) -> bool:
    return (await record(store, "a")).state is JobState.ACTIVE


async def _recovered(store: Store) -> bool:
    return bool((await store.sweep(Sweep(queue=Q, interval_ms=20))).recovered)
