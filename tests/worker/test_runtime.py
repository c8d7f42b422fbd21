"""All loops together: the start, what goes on, what ends them, and what an application sees of it."""

import logging
from typing import Any

import anyio
import pytest

from tests.worker.loops import (
    MINUTE,
    PATIENCE,
    Q,
    Unreliable,
    all_ended,
    jobs,
    numbered,
    queue_plan,
    record,
    runtime,
    schedule,
    states,
    until,
)
from workers_module.errors import StoreDeniedError
from workers_module.job.events import QueueEvent, WorkerEvent
from workers_module.job.job import Job
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Order, Step, Sweep, SweepReply
from workers_module.worker.context import JobContext
from workers_module.worker.handler import Listener, WorkPlan
from workers_module.worker.runtime import Workers


class Broken:
    """A store one of whose calls raises something."""

    def __init__(self, store: Store, name: str, error: BaseException) -> None:
        self._store, self._name, self._error = store, name, error
        self.broken = True

    def __getattr__(self, name: str) -> Any:
        if name != self._name or not self.broken:
            return getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            raise self._error

        return call


class TestStarting:
    async def test_jobs_of_all_queues_run(self, live: Store) -> None:
        await live.add([*numbered(20), *jobs(*(f"o{n}" for n in range(20)), queue="other")])
        async with runtime(live, queue_plan(), queue_plan(queue="other")):
            await until(lambda: all_ended(live))
            await until(lambda: all_ended(live, "other"))

    async def test_it_names_what_runs(self, live: Store) -> None:
        work = runtime(live, queue_plan(queue="b"), queue_plan(queue="a"))
        assert not work.running
        async with work:
            assert work.running == ("a", "b")
        assert not work.running

    async def test_declared_schedules_are_stored_when_start_returns(self, live: Store) -> None:
        async with runtime(live, queue_plan(), schedules=[schedule(every=MINUTE)], app_id="shop"):
            assert [found.id for found in await live.schedules(Q)] == ["report"]

    async def test_without_cron_schedules_are_left_alone(self, live: Store) -> None:
        async with runtime(live, queue_plan(), schedules=[schedule("old", every=MINUTE)]):
            pass
        async with runtime(live, queue_plan(), schedules=[schedule("new", every=MINUTE)], cron=False):
            assert [found.id for found in await live.schedules(Q)] == ["old"]

    async def test_missed_slots_are_caught_up_with_before_the_first_claim(self, live: Store) -> None:
        ran: list[str] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)

        spec = schedule(every=100, catch_up="none")
        async with runtime(live, queue_plan(work), schedules=[spec], shutdown_grace_ms=0):
            pass
        before = (await live.schedules(Q))[0].slot
        # Longer than a late job is taken for a punctual one.
        await anyio.sleep(1.3)
        async with runtime(live, queue_plan(work), schedules=[spec]):
            await until(lambda: ran)
        assert f"repeat:report:{before}" not in ran

    async def test_an_outage_at_the_start_is_waited_out(self, live: Store) -> None:
        away = True
        store = Unreliable(live, lambda name, number: "lost" if away else None)
        await live.add(jobs("a"))
        async with runtime(store, queue_plan(), schedules=[schedule(every=MINUTE)]):
            assert await states(live) == {"waiting": 1}
            away = False
            await until(lambda: _done(live, "a"))

    async def test_a_store_that_refuses_fails_the_start(self, live: Store) -> None:
        store = Broken(live, "schedules", StoreDeniedError("no right to read schedules"))
        with pytest.raises(StoreDeniedError, match="no right"):
            await runtime(store, queue_plan(), schedules=[schedule(every=MINUTE)]).start()

    async def test_what_is_kept_is_said_at_the_start(self, live: Store, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            async with runtime(live, queue_plan()):
                await until(lambda: "workers started" in caplog.text)
        assert "completed jobs are kept 1 h, at most 1000, failed ones 168 h, at most 5000" in caplog.text
        assert "queue mail: 10 at once; send" in caplog.text


class TestRunning:
    async def test_abandoned_jobs_come_back_and_listeners_hear_of_it(self, live: Store) -> None:
        told: list[str] = []

        async def hear(event: WorkerEvent | QueueEvent) -> None:
            assert isinstance(event, WorkerEvent)
            assert event.job is not None
            told.append(event.job.id)

        await live.add(jobs("a"))
        await live.step(Step(queue=Q, worker="dead", token=Token("dead"), take=1, lease_ms=1))
        plan = WorkPlan(queues=(queue_plan(),), listeners=(Listener(label="L", call=hear, worker_event="stalled"),))
        async with runtime(live, plan=plan, sweep_interval_ms=20, lease_ms=1_000):
            await until(lambda: all_ended(live))
            await until(lambda: told)
        assert told == ["a"]
        assert (await record(live, "a")).crashes == 1

    async def test_idle_schedules_are_revived_by_the_sweep(self, live: Store) -> None:
        ran: list[str] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)

        async with runtime(live, queue_plan(work), schedules=[schedule(every=30)], sweep_interval_ms=20):
            await until(lambda: len(ran) > 1)
            before = len(ran)
            await until(lambda: len(ran) > before + 2)
        assert len(ran) == len(set(ran))

    async def test_queue_listeners_hear_of_every_process(self, live: Store) -> None:
        told: list[str | None] = []

        async def hear(event: WorkerEvent | QueueEvent) -> None:
            assert isinstance(event, QueueEvent)
            told.append(event.job_id)

        listener = Listener(label="L", call=hear, queue_event="completed", queue=Q)
        async with runtime(live, plan=WorkPlan(listeners=(listener,))), runtime(live, queue_plan()):
            await anyio.wait_all_tasks_blocked()
            await live.add(jobs("a"))
            await until(lambda: told)
        assert told == ["a"]

    async def test_ticks_of_each_instance_fire(self, live: Store) -> None:
        fired: list[str] = []

        async def tick() -> None:
            fired.append("tick")

        spec = schedule("local", every=10, every_instance=True)
        async with runtime(live, plan=WorkPlan(schedules=(spec,), ticks={"local": tick})) as work:
            assert work.running == (Q,)
            await until(lambda: len(fired) >= 2)

    async def test_a_worker_is_known_while_it_runs(self, live: Store) -> None:
        async with runtime(live, queue_plan(concurrency=7), worker_id="w1", version="1.2", tags=("gpu",)):
            await until(live.workers)
            [info] = await live.workers()
            assert (info.id, info.queues, info.slots, info.version, info.tags) == ("w1", (Q,), 7, "1.2", ("gpu",))
        assert await live.workers() == []

    @pytest.mark.parametrize("order", ["drain", "stop"])
    async def test_an_order_left_for_it_is_obeyed(
        self, live: Store, order: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers_module.worker.runtime.BEAT_S", 0.01)
        async with runtime(live, queue_plan(), worker_id="w1") as work:
            await until(live.workers)
            await live.worker(Order("w1", order))
            if order == "stop":
                with anyio.fail_after(PATIENCE):
                    await work.wait()
                assert not work.running
            else:
                await until(lambda: work._consumers[0]._draining)
                await live.add(jobs("a"))
                await anyio.wait_all_tasks_blocked()
                assert await states(live) == {"waiting": 1}
                assert work.running == (Q,)

    async def test_two_runtimes_share_the_work(self, live: Store) -> None:
        ran: list[str] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)
            await anyio.sleep(0.001)

        await live.add(numbered(200))
        async with runtime(live, queue_plan(work)), runtime(live, queue_plan(work)):
            await until(lambda: all_ended(live))
        assert sorted(ran) == sorted(f"j{n}" for n in range(200))


class TestFaults:
    async def test_a_bug_in_a_loop_ends_the_runtime_with_that_error(
        self, live: Store, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Broken(live, "sweep", ZeroDivisionError("a bug"))
        work = runtime(store, queue_plan())
        await work.start()
        with pytest.raises(ZeroDivisionError, match="a bug"), anyio.fail_after(PATIENCE):
            await work.wait()
        assert "stopped because of an error" in caplog.text
        assert not work.running

    async def test_it_hands_back_what_ran(self, live: Store) -> None:
        started = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            started.set()
            await anyio.sleep_forever()

        class Late(Broken):
            async def sweep(self, req: Sweep) -> SweepReply:
                await started.wait()
                raise ZeroDivisionError

        await live.add(jobs("a"))
        run = runtime(Late(live, "", ValueError()), queue_plan(work))
        await run.start()
        with pytest.raises(ZeroDivisionError), anyio.fail_after(PATIENCE):
            await run.wait()
        assert await states(live) == {"waiting": 1}

    async def test_the_bodys_error_comes_out_as_itself(self, live: Store) -> None:
        with pytest.raises(LookupError, match="the body's own"):
            async with runtime(live, queue_plan()):
                raise LookupError("the body's own")

    async def test_a_cancelled_body_stops_it(self, live: Store) -> None:
        work = runtime(live, queue_plan())
        with anyio.move_on_after(0.05):
            async with work:
                await anyio.sleep_forever()
        assert not work.running

    async def test_a_listener_that_hangs_does_not_hold_the_stop(self, live: Store) -> None:
        async def hear(event: WorkerEvent | QueueEvent) -> None:
            await anyio.sleep_forever()

        plan = WorkPlan(queues=(queue_plan(),), listeners=(Listener(label="L", call=hear, worker_event="completed"),))
        await live.add(jobs("a"))
        with anyio.fail_after(5):
            async with runtime(live, plan=plan):
                await until(lambda: all_ended(live))

    async def test_a_failing_tick_of_an_instance_stops_nothing(self, live: Store) -> None:
        fired: list[str] = []

        async def tick() -> None:
            fired.append("tick")
            raise ValueError

        spec = schedule("local", every=10, every_instance=True)
        async with runtime(live, plan=WorkPlan(schedules=(spec,), ticks={"local": tick})):
            await until(lambda: len(fired) >= 3)


class TestWorkers:
    async def test_nothing_runs_before_it_is_attached(self) -> None:
        workers = Workers()
        assert not workers.running
        await workers.stop()
        await workers.wait()

    async def test_it_stops_and_tells(self, live: Store) -> None:
        workers = Workers()
        work = runtime(live, queue_plan())
        async with work:
            workers.attach(work)
            assert workers.running == (Q,)
            async with anyio.create_task_group() as group:
                group.start_soon(workers.wait)
                await anyio.wait_all_tasks_blocked()
                await workers.stop("1s")
            assert not workers.running

    async def test_a_handler_may_stop_its_own_workers(self, live: Store) -> None:
        workers = Workers()

        async def work(job: Job[Any], context: JobContext) -> None:
            work_is.request_stop()

        work_is = runtime(live, queue_plan(work))
        await live.add(jobs("a"))
        async with work_is:
            workers.attach(work_is)
            with anyio.fail_after(PATIENCE):
                await workers.wait()
        assert (await record(live, "a")).state is JobState.COMPLETED


async def _done(store: Store, id: str) -> bool:
    return (await record(store, id)).state is JobState.COMPLETED
