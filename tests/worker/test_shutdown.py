"""Stopping: in time whatever jobs and store do, nothing left active, nothing that finished run again."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
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
from workers_module.store.base import Step, StepReply, Store
from workers_module.store.sqlite.store import SqliteStore
from workers_module.worker.context import JobContext

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
        # Its end could not be told; the lease lapses, and a sweep brings it back.
        assert await states(live) == {"active": 1}


def _others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "_execute" in repr(task.get_coro())}


class Processes:
    """Real worker processes on one SQLite file; their runs are lines in another file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "jobs.db"
        self.runs_file = folder / "runs.txt"
        self.running: list[asyncio.subprocess.Process] = []

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        script = Path(__file__).with_name("worker_process.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(self.file), str(self.runs_file), *arguments, stdout=asyncio.subprocess.PIPE
        )
        self.running.append(process)
        assert process.stdout is not None
        with anyio.fail_after(3 * PATIENCE):
            assert await process.stdout.readline() == b"ready\n"
        return process

    async def stop(self, process: asyncio.subprocess.Process, *, within: float) -> int:
        """Send SIGTERM; the exit code, which must come in time."""
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(within):
            return await process.wait()

    def runs(self) -> Counter[str]:
        return Counter(self.runs_file.read_text().split()) if self.runs_file.exists() else Counter()

    def more_than(self, count: int) -> bool:
        return sum(self.runs().values()) > count

    async def kill(self) -> None:
        for process in self.running:
            if process.returncode is None:
                process.kill()
                await process.wait()
            # Lets the pipe's transport close before the loop does.
            await asyncio.sleep(0)


@pytest.fixture
async def processes(tmp_path: Path) -> Any:
    made = Processes(tmp_path)
    yield made
    await made.kill()


@pytest.fixture
async def file_store(processes: Processes) -> Any:
    store = SqliteStore(processes.file)
    await store.open()
    yield store
    assert await store.verify(Q) == []
    await store.close()


@pytest.mark.sqlite
@pytest.mark.skipif(os.name == "nt", reason="SIGTERM is not a request there")
class TestProcesses:
    async def test_all_stopped_in_mid_work_three_times(self, processes: Processes, file_store: Store) -> None:
        """P13."""
        await file_store.add(numbered(400))
        for _ in range(3):
            workers = [await processes.start("200", "25000") for _ in range(2)]
            before = sum(processes.runs().values())
            await until(partial(processes.more_than, before + 8))
            codes = await _gather(processes, workers, within=PATIENCE)
            assert codes == [0, 0]
            assert "active" not in await states(file_store)
        done = await states(file_store)
        assert done["completed"] == len(processes.runs())
        assert set(processes.runs().values()) == {1}
        workers = [await processes.start("1", "25000") for _ in range(2)]
        await until(lambda: all_ended(file_store))
        await _gather(processes, workers, within=PATIENCE)
        assert await states(file_store) == {"completed": 400}
        assert processes.runs() == Counter(f"j{n}" for n in range(400))

    async def test_a_job_that_never_ends(self, processes: Processes, file_store: Store) -> None:
        """P14."""
        await file_store.add(jobs("a"))
        worker = await processes.start("3600000", "500")
        await until(processes.runs)
        assert await processes.stop(worker, within=0.5 + MARGIN_S) == 0
        assert await states(file_store) == {"waiting": 1}

    async def test_an_idle_process(self, processes: Processes, file_store: Store) -> None:
        """P14."""
        worker = await processes.start("1", "25000")
        assert await processes.stop(worker, within=1 + 1) == 0

    async def test_a_killed_process_loses_nothing(self, processes: Processes, file_store: Store) -> None:
        await file_store.add(numbered(30))
        worker = await processes.start("100", "25000", "lease=1000")
        await until(lambda: len(processes.runs()) > 10)
        worker.kill()
        await worker.wait()
        other = await processes.start("1", "25000", "lease=1000")
        await until(lambda: all_ended(file_store))
        await processes.stop(other, within=PATIENCE)
        assert await states(file_store) == {"completed": 30}
        assert max(processes.runs().values()) <= 2


async def _gather(processes: Processes, workers: list[Any], *, within: float) -> list[int]:
    return list(await asyncio.gather(*(processes.stop(worker, within=within) for worker in workers)))
