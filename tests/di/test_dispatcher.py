"""`Dispatcher`: typed calls that address handlers, and what they store or run."""

import asyncio
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from dishka import AsyncContainer
from pydantic import BaseModel, ValidationError

from tests.di.conftest import Build
from workers_module.client.queue import Queue
from workers_module.clock import FrozenClock
from workers_module.di.decorators import Worker, job, process, processor
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.foreground import ForegroundIntake
from workers_module.errors import (
    JobFailedError,
    NotSerializableError,
    ResultTimeoutError,
    UnknownJobError,
)
from workers_module.job.job import Job
from workers_module.job.outcome import Completed
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import Settle, Step


class EmailJob(BaseModel):
    to: str


class EmailQueue(Queue[EmailJob], name="email", options={"attempts": 3}): ...


@processor(EmailQueue)
class Email:
    @process(options={"attempts": 5}, tags=["mail"])
    async def welcome(self, job: Job[EmailJob]) -> str:
        return f"sent to {job.data.to}"

    @process(singleton=lambda data: {"to": data.to})
    def once(self, job: Job[EmailJob]) -> int:
        return len(job.data.to)

    async def process(self, job: Job[Any]) -> str:
        return job.name


class Calculator(Worker[int, int]):
    async def perform(self, args: int, /) -> int:
        return args * 4


@job()
def shout(data: str) -> str:
    return data.upper()


@job()
async def nightly() -> str:
    return "done"


@pytest.fixture
async def container(build: Build) -> AsyncContainer:
    return build(Email, Calculator, shout, nightly)


@pytest.fixture
async def jobs(container: AsyncContainer) -> Dispatcher:
    dispatcher: Dispatcher = await container.get(Dispatcher)
    return dispatcher


@pytest.fixture
async def store(container: AsyncContainer) -> Store:
    found: Store = await container.get(Store)
    return found


async def test_perform_later_stores_and_returns(jobs: Dispatcher, store: Store) -> None:
    handle = await jobs.perform_later(Email.welcome, EmailJob(to="ada"), delay=timedelta(minutes=1), priority=2)
    (record,) = await store.get("email", [handle.id])

    assert record is not None
    assert (record.name, record.state, record.data) == ("welcome", JobState.DELAYED, b'{"to":"ada"}')
    assert (record.max_attempts, record.priority, record.tags) == (5, 2, ("mail",))


async def test_every_style_knows_its_queue_and_name(jobs: Dispatcher, store: Store) -> None:
    handles = [
        await jobs.perform_later(Calculator, 1),
        await jobs.perform_later(shout, "a"),
        await jobs.perform_later(Email().welcome, EmailJob(to="a")),
        await jobs.perform_later(Email.process, None),
        await jobs.perform_later("email.sync-data", {"any": "thing"}),
        await jobs.perform_later("nightly"),
    ]
    found: list[str] = []
    for handle in handles:
        (record,) = await store.get(handle.queue, [handle.id])
        assert record is not None
        found.append(f"{record.queue}.{record.name}")

    assert found == [
        "default.Calculator",
        "default.shout",
        "email.welcome",
        "email.process",
        "email.sync-data",
        "default.nightly",
    ]


async def test_a_wrong_payload_stores_nothing(jobs: Dispatcher, store: Store) -> None:
    with pytest.raises(ValidationError):
        await jobs.perform_later("email.welcome", {"too": "ada"})
    with pytest.raises(NotSerializableError):
        await jobs.perform_later(Email.process, {1, 2})
    with pytest.raises(UnknownJobError):
        await jobs.perform_later("nope", 1)

    assert await store.queues() == []


async def test_a_singleton_is_added_once_per_key(jobs: Dispatcher) -> None:
    first = await jobs.perform_later(Email.once, EmailJob(to="ada"))
    again = await jobs.perform_later(Email.once, EmailJob(to="ada"))
    other = await jobs.perform_later(Email.once, EmailJob(to="bob"))

    assert (again.id, again.deduplicated) == (first.id, True)
    assert other.id != first.id


async def test_perform_now_returns_the_result_and_stores_nothing(jobs: Dispatcher, store: Store) -> None:
    assert await jobs.perform_now(Email.welcome, EmailJob(to="ada")) == "sent to ada"
    assert await jobs.perform_now(Calculator, 21) == 84
    assert await jobs.perform_now(shout, "hey") == "HEY"
    assert await jobs.perform_now("nightly") == "done"
    assert await jobs.perform_now("email.what-ever", [1]) == "what-ever"
    assert await jobs.perform_now(Email.once, EmailJob(to="ada")) == 3
    assert await jobs.perform_now(Email.once, EmailJob(to="ada")) == 3

    assert await store.queues() == []


async def test_perform_now_leaves_nothing_behind(container: AsyncContainer, jobs: Dispatcher) -> None:
    here: ForegroundIntake = await container.get(ForegroundIntake)

    await jobs.perform_now(Email.welcome, EmailJob(to="ada"))

    assert (await here._store.counts(["email"]))[0].completed == 0


async def test_perform_now_raises_what_the_handler_raises(build: Build) -> None:
    class OopsError(Exception): ...

    error = OopsError("no")

    @job(options={"attempts": 5, "backoff": {"type": "fixed", "delay": 10}})
    async def fail(data: int) -> None:
        raise error

    jobs: Dispatcher = await build(fail).get(Dispatcher)
    with pytest.raises(OopsError) as caught:
        await jobs.perform_now(fail, 1)

    assert caught.value is error


async def test_a_handler_s_own_cancellation_does_not_cancel_the_caller(build: Build) -> None:
    @job()
    async def cancel(data: int) -> None:
        raise asyncio.CancelledError

    jobs: Dispatcher = await build(cancel).get(Dispatcher)
    with pytest.raises(JobFailedError) as caught:
        await jobs.perform_now(cancel, 1)

    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_perform_now_validates_what_it_is_given(jobs: Dispatcher) -> None:
    with pytest.raises(ValidationError):
        await jobs.perform_now("Calculator", "many")


async def test_perform_now_reports_progress_and_writes_its_log(build: Build) -> None:
    @job()
    async def send(job: Job[int]) -> Any:
        await job.update_progress(50)
        job.log("half")
        return job.data

    assert await (await build(send).get(Dispatcher)).perform_now(send, 3) == 3


async def complete_next(store: Store, queue: str, result: bytes) -> None:
    """Do a worker's part for one job."""
    step = Step(queue=queue, worker="w", token=Token("t"), take=1, tags=())
    with anyio.fail_after(5):
        while not (claimed := (await store.step(step)).jobs):
            await anyio.lowlevel.checkpoint()
    settle = Settle(claimed[0].held, Completed(result))
    await store.step(Step(queue=queue, worker="w", token=Token("t2"), outcomes=[settle]))


async def test_run_job_waits_for_the_result(jobs: Dispatcher, store: Store) -> None:
    results: list[int] = []
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(complete_next, store, "default", b"84")
            results.append(await jobs.run_job(Calculator, 21))

    assert results == [84]


@pytest.mark.parametrize(
    ("wait", "timeout", "expected"),
    [(None, None, "30s"), ("1s", None, "1s"), (None, "5s", "5s"), ("1s", "5s", "1s")],
)
async def test_the_caller_s_patience(
    jobs: Dispatcher, monkeypatch: pytest.MonkeyPatch, wait: str | None, timeout: str | None, expected: str
) -> None:
    seen: list[object] = []

    async def run(*args: object, wait: object, **more: object) -> int:
        seen.append(wait)
        return 1

    monkeypatch.setattr(jobs._producer, "run", run)
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    given: dict[str, Any] = {} if wait is None else {"wait": wait}
    await jobs.run_job(Calculator, 1, **given, **options)
    await jobs.run_job(Calculator, 1, wait=None, **options)
    await jobs.run_job(Calculator, 1, timeout=None)

    assert seen == [expected, None, None]


async def test_run_job_gives_up_waiting(jobs: Dispatcher) -> None:
    with pytest.raises(ResultTimeoutError):
        await jobs.run_job(Calculator, 1, wait="10ms")


async def test_what_is_stored_later_is_due_by_the_store_s_clock(container: AsyncContainer, jobs: Dispatcher) -> None:
    clock: FrozenClock = await container.get(FrozenClock)
    store: Store = await container.get(Store)
    handle = await jobs.perform_later(Calculator, 1, delay="1m")
    (record,) = await store.get(handle.queue, [handle.id])

    assert record is not None
    assert record.due == clock.now_ms() + 60_000
