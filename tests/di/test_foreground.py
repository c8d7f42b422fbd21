"""Mode ``foreground_blocking``: each enqueueing call runs the job at once, in the caller's task."""

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from dishka import AsyncContainer, FromDishka, Scope

from tests.di.conftest import Build
from workers_module.client.producer import Producer
from workers_module.client.queue import Queue
from workers_module.di.decorators import Worker, interval, job, on_worker_event, process, processor
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.schedules import Scheduler
from workers_module.errors import UnknownJobError
from workers_module.job.job import Job
from workers_module.job.outcome import RetryLaterError
from workers_module.job.state import JobState
from workers_module.store.base import Store


class Session: ...


class Calculator(Worker[int, int]):
    async def perform(self, args: int, /) -> int:
        return args * 4


@pytest.fixture
async def ran() -> list[Any]:
    return []


async def dispatcher(container: AsyncContainer) -> Dispatcher:
    found: Dispatcher = await container.get(Dispatcher)
    return found


async def test_the_handle_is_already_finished(build: Build) -> None:
    container = build(Calculator, foreground=True)
    jobs = await dispatcher(container)

    handle = await jobs.perform_later(Calculator, 21, delay="1h", priority=5, attempts=3)

    assert await handle.state() is JobState.COMPLETED
    assert await handle.result(timeout="10ms") == 84
    assert await jobs.run_job(Calculator, 2) == 8
    (record,) = await (await container.get(Store)).get("default", [handle.id])
    assert record is not None
    assert (record.state, record.result, record.attempts_made) == (JobState.COMPLETED, b"84", 1)


async def test_the_error_is_raised_after_one_attempt(build: Build, ran: list[Any]) -> None:
    @job(options={"attempts": 3})
    async def fail(data: int) -> None:
        ran.append(data)
        raise LookupError("nobody")

    container = build(fail, foreground=True)
    with pytest.raises(LookupError, match="nobody"):
        await (await dispatcher(container)).perform_later(fail, 1)

    assert ran == [1]
    store: Store = await container.get(Store)
    assert (await store.counts(["default"]))[0].failed == 1


async def test_not_now_has_no_later_here(build: Build) -> None:
    @job()
    async def busy(data: int) -> None:
        raise RetryLaterError("30s")

    container = build(busy, foreground=True)
    with pytest.raises(RetryLaterError):
        await (await dispatcher(container)).perform_later(busy, 1)

    counts = (await (await container.get(Store)).counts(["default"]))[0]
    assert (counts.failed, counts.active, counts.delayed) == (1, 0, 0)


async def test_it_runs_in_the_caller_s_task_and_a_scope_of_its_own(build: Build, ran: list[Any]) -> None:
    @job()
    async def send(data: int, session: FromDishka[Session]) -> None:
        ran.append((asyncio.current_task(), session))

    container = build(send, provide={Session: Scope.REQUEST}, foreground=True)
    async with container() as request:
        own = await request.get(Session)
        for n in range(2):
            await (await dispatcher(container)).perform_later(send, n)

    assert {task for task, _ in ran} == {asyncio.current_task()}
    assert len({id(own), *(id(session) for _, session in ran)}) == 3


async def test_jobs_that_a_handler_enqueues_run_within_it(build: Build, ran: list[Any]) -> None:
    @job()
    async def inner(data: int) -> int:
        ran.append(("inner", data))
        return data + 1

    @job()
    async def outer(data: int, jobs: FromDishka[Dispatcher]) -> int:
        ran.append(("outer", data))
        result = await jobs.run_job(inner, data)
        ran.append(("back", result))
        return result

    container = build(inner, outer, foreground=True)
    handle = await (await dispatcher(container)).perform_later(outer, 1)

    assert await handle.result() == 2
    assert ran == [("outer", 1), ("inner", 1), ("back", 2)]


async def test_queues_run_their_jobs_too(build: Build, ran: list[Any]) -> None:
    @processor("email")
    class P:
        @process(tags=["gpu"])
        async def a(self, job: Job[int]) -> int:
            ran.append((job.name, job.data))
            return job.data

        async def process(self, job: Job[int]) -> int:
            ran.append((job.name, job.data))
            return job.data

    container = build(P, foreground=True)
    queue: Queue[Any] = await container.get(Queue[Any], component="queue:email")

    handles = await queue.add_many([("a", 1), ("b", 2), ("a", 3)])

    assert ran == [("a", 1), ("b", 2), ("a", 3)]
    assert [await handle.result() for handle in handles] == [1, 2, 3]


async def test_all_jobs_of_a_call_run_before_the_first_error_is_raised(build: Build, ran: list[Any]) -> None:
    @job()
    async def send(data: int) -> None:
        ran.append(data)
        if data != 3:
            raise ValueError(data)

    container = build(send, foreground=True)
    queue: Queue[Any] = await container.get(Queue[int], component="queue:default")
    with pytest.raises(ValueError, match="1"):
        await queue.add_many([("send", 1), ("send", 2), ("send", 3)])

    assert ran == [1, 2, 3]


async def test_a_name_without_handler_is_refused_before_anything_runs(build: Build, ran: list[Any]) -> None:
    @job()
    async def send(data: int) -> None:
        ran.append(data)

    container = build(send, foreground=True)
    queue: Queue[Any] = await container.get(Queue[int], component="queue:default")
    with pytest.raises(UnknownJobError, match=r"no handler 'default\.nope'; available: default\.send"):
        await queue.add_many([("send", 1), ("nope", 2)])

    assert ran == []
    assert await (await container.get(Store)).queues() == []


async def test_a_second_call_under_one_id_does_not_run_again(build: Build, ran: list[Any]) -> None:
    @job()
    async def send(data: int) -> int:
        ran.append(data)
        return data

    jobs = await dispatcher(build(send, foreground=True))
    first = await jobs.perform_later(send, 1, job_id="order-1")
    again = await jobs.perform_later(send, 2, job_id="order-1")

    assert ran == [1]
    assert (first.id, again.id, again.deduplicated) == ("order-1", "order-1", True)
    assert await again.result() == 1


async def test_concurrent_callers_each_run_their_own(build: Build) -> None:
    @job()
    async def send(data: int) -> int:
        await anyio.lowlevel.checkpoint()
        return data

    jobs = await dispatcher(build(send, foreground=True))
    with anyio.fail_after(5):
        results = await asyncio.gather(*(jobs.run_job(send, n) for n in range(20)))

    assert results == list(range(20))


async def test_a_parent_runs_after_its_children(build: Build, ran: list[Any]) -> None:
    @job(queue="pages")
    async def page(data: int) -> int:
        ran.append(data)
        return data

    @job(queue="reports")
    async def report(job: Job[str]) -> str:
        ran.append("parent")
        return job.data

    container = build(page, report, foreground=True)
    producer: Producer = await container.get(Producer)
    prepared = [
        producer.prepare("pages", "page", 1, parent=2, in_flow=True),
        producer.prepare("pages", "page", 2, parent=2, in_flow=True),
        producer.prepare("reports", "report", "all", in_flow=True),
    ]

    handles = await producer.add_prepared(prepared)

    assert ran == [1, 2, "parent"]
    assert await handles[2].result() == "all"


async def test_a_cancelled_caller_ends_the_job(build: Build) -> None:
    started = anyio.Event()

    @job()
    async def send(data: int) -> None:
        started.set()
        await anyio.sleep_forever()

    container = build(send, foreground=True)
    jobs = await dispatcher(container)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.perform_later, send, 1)
            await started.wait()
            group.cancel_scope.cancel()

    counts = (await (await container.get(Store)).counts(["default"]))[0]
    assert (counts.active, counts.failed) == (0, 1)


async def test_a_class_that_cannot_be_built_fails_its_job(build: Build) -> None:
    @processor("app", scope=Scope.APP)
    class P:
        def __init__(self) -> None:
            raise OSError("no connection")

        async def process(self, job: Job[int]) -> None: ...

    container = build(P, foreground=True)
    with pytest.raises(OSError, match="no connection"):
        await (await dispatcher(container)).perform_later(P.process, 1)

    counts = (await (await container.get(Store)).counts(["app"]))[0]
    assert (counts.active, counts.failed) == (0, 1)


async def test_listeners_hear_of_it(build: Build, ran: list[Any]) -> None:
    class Metrics:
        @on_worker_event("completed")
        async def done(self, job: Job[Any], result: int) -> None:
            ran.append((job.data, result))

        @on_worker_event("failed")
        async def oops(self, error: Exception) -> None:
            ran.append(error)

    @job()
    async def send(data: int) -> int:
        if data == 2:
            raise ValueError(data)
        return data * 10

    jobs = await dispatcher(build(send, Metrics, foreground=True))
    await jobs.perform_later(send, 1)
    with pytest.raises(ValueError, match="2") as caught:
        await jobs.perform_later(send, 2)

    assert ran == [(1, 10), caught.value]


async def test_a_job_of_a_paused_queue_stays(build: Build, ran: list[Any]) -> None:
    @job()
    async def send(data: int) -> None:
        ran.append(data)

    container = build(send, foreground=True)
    queue: Queue[int] = await container.get(Queue[int], component="queue:default")
    await queue.pause()
    handle = await queue.add("send", 1)

    assert ran == []
    assert await handle.state() is JobState.WAITING


async def test_triggering_a_schedule_runs_one(build: Build, ran: list[Any]) -> None:
    class Ticker:
        @interval("1h")
        async def tick(self) -> str:
            ran.append("tick")
            return "ticked"

    scheduler: Scheduler = await build(Ticker, foreground=True).get(Scheduler)
    handle = await scheduler.trigger("Ticker.tick")

    assert ran == ["tick"]
    assert await handle.result() == "ticked"
