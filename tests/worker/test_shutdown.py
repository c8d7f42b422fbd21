"""Stopping: in time whatever jobs and store do, nothing left active, nothing that finished run again."""

import asyncio
import time
from typing import Any

import anyio
import pytest

from tests.worker.loops import (
    PATIENCE,
    Desk,
    Q,
    Unreliable,
    all_ended,
    jobs,
    numbered,
    queue_plan,
    record,
    runtime,
    states,
    until,
)
from workers_module.errors import StoreUnavailableError
from workers_module.job.job import Job
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Step, StepReply
from workers_module.worker.context import JobContext
from workers_module.worker.leaving import StopCounts

MARGIN_S = 3.0
"""What a stop may take beyond its grace."""


async def forever(job: Job[Any], context: JobContext) -> None:
    await anyio.sleep_forever()


async def stubborn(job: Job[Any], context: JobContext) -> None:
    """Go on for two seconds whatever anybody says."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


class TestGrace:
    async def test_running_jobs_end_and_waiting_ones_stay(self, live: Store) -> None:
        ran: list[str] = []
        go_on = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)
            await go_on.wait()

        await live.add(numbered(10))
        desk = Desk(live, queue_plan(work, concurrency=3))
        async with desk.at_work():
            await until(lambda: len(ran) == 3)
            desk.stop()
            go_on.set()
        assert await states(live) == {"waiting": 7, "completed": 3}
        assert ran == ["j0", "j1", "j2"]

    async def test_what_was_sent_ahead_is_handed_back_to_the_head(self, live: Store) -> None:
        class Slow:
            """Lets a stop come between a claim and its reply."""

            def __init__(self) -> None:
                self.steps = 0

            def __getattr__(self, name: str) -> Any:
                return getattr(live, name)

            async def step(self, req: Step) -> StepReply:
                self.steps += 1
                reply = await live.step(req)
                if self.steps == 2:
                    desk.stop()
                    await anyio.sleep(0.01)
                return reply

        go_on = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            await go_on.wait()

        await live.add(numbered(50))
        desk = Desk(Slow(), queue_plan(work, concurrency=20))
        async with desk.at_work():
            await until(lambda: desk.consumer.stopping)
            go_on.set()
        assert await states(live) == {"waiting": 40, "completed": 10}
        page = await live.page(Q, [JobState.WAITING])
        assert {item.id for item in page.items[:10]} == {f"j{n}" for n in range(10, 20)}
        assert [item.attempts_made for item in page.items] == [0] * 40

    async def test_at_the_deadline_jobs_are_cancelled_and_handed_back(self, live: Store) -> None:
        await live.add(jobs("a"))
        desk = Desk(live, queue_plan(forever))
        async with desk.at_work(grace=0.05):
            await until(lambda: desk.consumer.busy)
        back = await record(live, "a")
        assert (back.state, back.attempts_made, back.crashes) == (JobState.WAITING, 0, 0)

    async def test_a_job_that_does_not_end_is_handed_back_all_the_same(self, live: Store) -> None:
        await live.add(jobs("a"))
        desk = Desk(live, queue_plan(stubborn), kill_after_ms=50)
        begun = time.monotonic()
        async with desk.at_work(grace=0.05):
            await until(lambda: desk.consumer.busy)
        assert time.monotonic() - begun < 0.05 + MARGIN_S
        assert await states(live) == {"waiting": 1}
        await until(lambda: not _others())

    async def test_a_second_stop_brings_the_end_forward(self, live: Store) -> None:
        await live.add(jobs("a"))
        work = runtime(live, queue_plan(forever))
        await work.start()
        await until(lambda: work.busy)
        work.request_stop(3_600_000)
        with anyio.fail_after(MARGIN_S):
            await work.stop(0)
        assert await states(live) == {"waiting": 1}

    async def test_a_later_deadline_changes_nothing(self, live: Store) -> None:
        await live.add(jobs("a"))
        work = runtime(live, queue_plan(forever))
        await work.start()
        await until(lambda: work.busy)
        work.request_stop(20)
        with anyio.fail_after(MARGIN_S):
            await work.stop(3_600_000)

    async def test_an_idle_runtime_stops_at_once(self, live: Store) -> None:
        work = runtime(live, queue_plan())
        await work.start()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(1):
            await work.stop()

    async def test_what_became_of_running_jobs_is_counted(self, live: Store) -> None:
        go_on = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            if job.id == "fails":
                await go_on.wait()
                raise ValueError("no")
            await (go_on.wait() if job.id == "ends" else anyio.sleep_forever())

        run = runtime(live, queue_plan(work, concurrency=3), queue_plan(forever, queue="other"))
        await live.add([*jobs("ends", "fails", "stays"), *jobs("o", queue="other")])
        await run.start()
        await until(lambda: run.busy == 4)
        await live.add(jobs("waits"))
        run.request_stop(3_600_000)
        go_on.set()
        await until(lambda: run.busy == 2)
        run.request_stop(1)
        await run.wait()
        assert run.left == StopCounts(finished=2, handed_back=2)
        assert await states(live) == {"completed": 1, "failed": 1, "waiting": 2}

    async def test_an_idle_runtime_has_nothing_to_count(self, live: Store) -> None:
        await live.add(jobs("a"))
        async with runtime(live, queue_plan()) as run:
            await until(lambda: all_ended(live))
            await until(lambda: not run.busy)
        assert run.left == StopCounts()

    async def test_one_that_has_not_started_stops_too(self, live: Store) -> None:
        await runtime(live, queue_plan()).stop()

    async def test_a_stop_in_the_middle_of_the_start(self, live: Store) -> None:
        store = Unreliable(live, lambda name, number: "lost")
        work = runtime(store, queue_plan())
        await work.start()
        with anyio.fail_after(1):
            await work.stop()


class TestWithoutTheStore:
    @pytest.mark.parametrize("how", ["refuses", "hangs"])
    async def test_the_end_comes_in_time(self, live: Store, how: str) -> None:
        gone = anyio.Event()

        class Gone:
            def __getattr__(self, name: str) -> Any:
                real = getattr(live, name)
                if name not in {"step", "wait", "sweep", "worker", "renew", "schedules"}:
                    return real

                async def call(*args: Any, **kwargs: Any) -> Any:
                    if not gone.is_set():
                        return await real(*args, **kwargs)
                    if how == "hangs":
                        await anyio.sleep_forever()
                    raise StoreUnavailableError("gone")

                return call

        async def work(job: Job[Any], context: JobContext) -> None:
            await gone.wait()

        await live.add(jobs("a"))
        run = runtime(Gone(), queue_plan(work))
        await run.start()
        await until(lambda: run.busy)
        gone.set()
        begun = time.monotonic()
        with anyio.fail_after(PATIENCE):
            await run.stop(100)
        assert time.monotonic() - begun < 0.1 + MARGIN_S
        assert run.left == StopCounts(lost=1)
        # Its end could not be told; the lease lapses, and a sweep brings it back.
        assert await states(live) == {"active": 1}


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "_execute" in repr(task.get_coro())}
