"""One application, four ways to run its jobs: what changes between them is configuration, never a line of code."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from dishka import AsyncContainer, FromDishka, Provider, Scope, make_async_container
from pydantic import BaseModel, ValidationError

from tests.servers import empty_schema, shared_redis
from workers_module import (
    Dispatcher,
    Inspector,
    Job,
    JobFailedError,
    JobLogger,
    JobState,
    Progress,
    Queue,
    UnknownJobError,
    Worker,
    WorkerMode,
    WorkersModule,
    WorkersSettings,
    job,
    on_worker_event,
    process,
    processor,
    run_workers,
)


class Order(BaseModel):
    number: int


class Receipt(BaseModel):
    number: int
    lines: tuple[str, ...]


class Journal(list[str]):
    """What happened, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.written = anyio.Event()


class OrderQueue(Queue[Order], name="orders"):
    pass


@processor(OrderQueue)
class OrderProcessor:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    @process("pay")
    async def pay(self, job: Job[Order], progress: FromDishka[Progress], log: FromDishka[JobLogger]) -> Receipt:
        await progress(50)
        log.info("paying %s", job.data.number)
        return Receipt(number=job.data.number, lines=("one", "two"))

    @process("refuse")
    async def refuse(self, job: Job[Order]) -> None:
        raise LookupError(f"no order {job.data.number}")

    @on_worker_event("completed")
    async def completed(self, job: Job[Order]) -> None:
        self.journal.append(f"completed {job.name}")
        self.journal.written.set()


class Calculator(Worker[int, int]):
    def perform(self, args: int, /) -> int:
        return args * 4


@job(queue="reports")
async def report(data: int, jobs: FromDishka[Dispatcher]) -> str:
    return f"{await jobs.run_job(Calculator, data)} in all"


@job(queue="reports")
async def figures(data: int) -> object:
    return {"pair": (data, data + 1)}


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.provide(Journal)


def on_redis() -> dict[str, str]:
    url, prefix = shared_redis()
    return {"QUEUE_URL": url, "WORKERS_QUEUE__PREFIX": f"{prefix}-{uuid4().hex[:8]}"}


def on_postgres() -> dict[str, str]:
    url, schema = empty_schema()
    return {"QUEUE_URL": f"{url}{'&' if '?' in url else '?'}schema={schema}"}


MODES: dict[str, Callable[[], dict[str, str]]] = {
    "background_queue": lambda: {"QUEUE_URL": "sqlite:///jobs.db"},
    "background_queue on redis": on_redis,
    "background_queue on postgres": on_postgres,
    "background_async": lambda: {"WORKERS_MODE": "background_async"},
    "foreground_blocking": lambda: {"WORKERS_MODE": "foreground_blocking"},
    "in_process": lambda: {"WORKERS_IN_PROCESS": "true"},
}
SERVERS = {"redis": pytest.mark.redis, "postgres": pytest.mark.postgres}


@pytest.fixture(params=[pytest.param(name, marks=SERVERS.get(name.split()[-1], ())) for name in MODES])
async def app(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[AsyncContainer]:
    monkeypatch.chdir(tmp_path)
    for name, value in MODES[request.param]().items():
        monkeypatch.setenv(name, value)
    root = WorkersModule.for_root(processors=[OrderProcessor, Calculator, report, figures])
    container = make_async_container(App(), root)
    async with run_workers(container, close_container=True):
        yield container


@pytest.fixture
async def jobs(app: AsyncContainer) -> Dispatcher:
    return await app.get(Dispatcher)


@pytest.fixture
async def blocking(app: AsyncContainer) -> bool:
    return (await app.get(WorkersSettings)).mode is WorkerMode.FOREGROUND_BLOCKING


async def test_perform_later_gives_a_handle_that_comes_to_its_result(jobs: Dispatcher, blocking: bool) -> None:
    handle = await jobs.perform_later(OrderProcessor.pay, Order(number=7))
    assert handle.queue == "orders"
    if blocking:
        assert await handle.state() is JobState.COMPLETED
    assert await handle.result() == Receipt(number=7, lines=("one", "two"))
    assert await handle.state() is JobState.COMPLETED
    assert not await handle.cancel()


async def test_the_record_of_a_job_is_the_same(app: AsyncContainer, jobs: Dispatcher) -> None:
    handle = await jobs.perform_later(OrderProcessor.pay, Order(number=7))
    await handle.result()

    inspector = await app.get(Inspector)
    done = await inspector.get("orders", handle.id)
    assert done is not None
    assert (done.name, done.data, done.attempt, done.progress) == ("pay", {"number": 7}, 1, 50)
    assert done.return_value == {"number": 7, "lines": ["one", "two"]}
    [line] = await inspector.logs("orders", handle.id)
    assert line.endswith("INFO paying 7")


async def test_perform_now_runs_in_the_caller_and_stores_nothing(app: AsyncContainer, jobs: Dispatcher) -> None:
    assert await jobs.perform_now(Calculator, 21) == 84
    with pytest.raises(LookupError, match="no order 3"):
        await jobs.perform_now(OrderProcessor.refuse, Order(number=3))
    assert (await (await app.get(OrderQueue)).get_job_counts()).failed == 0


async def test_run_job_returns_the_value(jobs: Dispatcher) -> None:
    assert await jobs.run_job(Calculator, 21) == 84
    assert await jobs.run_job("reports.report", 2) == "8 in all"


async def test_run_job_raises_when_the_job_fails(
    jobs: Dispatcher, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises(LookupError if blocking else JobFailedError, match="no order 3") as caught:
        await jobs.run_job(OrderProcessor.refuse, Order(number=3))
    assert isinstance(caught.value if blocking else caught.value.__cause__, LookupError)


async def test_perform_later_raises_the_job_s_own_error_only_where_it_runs_at_once(
    app: AsyncContainer, jobs: Dispatcher, blocking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    if blocking:
        with pytest.raises(LookupError, match="no order 3"):
            await jobs.perform_later(OrderProcessor.refuse, Order(number=3))
    else:
        handle = await jobs.perform_later(OrderProcessor.refuse, Order(number=3))
        with pytest.raises(JobFailedError):
            await handle.result()
        assert await handle.state() is JobState.FAILED
    assert (await (await app.get(OrderQueue)).get_job_counts()).failed == 1


async def test_a_queue_s_add_does_the_same(app: AsyncContainer) -> None:
    handle = await (await app.get(OrderQueue)).add("pay", Order(number=9), priority=3)
    assert (await handle.result()).number == 9


async def test_an_unknown_name_lists_the_known_ones(jobs: Dispatcher) -> None:
    for call in (jobs.perform_later, jobs.perform_now, jobs.run_job):
        with pytest.raises(UnknownJobError, match=r"no handler 'nope'") as caught:
            await call("nope", 1)
        known = "default.Calculator, orders.pay, orders.refuse, reports.figures, reports.report"
        assert f"available: {known}" in str(caught.value)


async def test_data_of_a_wrong_type_are_refused_before_anything_is_stored(
    app: AsyncContainer, jobs: Dispatcher
) -> None:
    with pytest.raises(ValidationError):
        await jobs.perform_later("orders.pay", {"number": "many"})
    assert await (await app.get(Inspector)).queues() == []


async def test_listeners_hear_of_it(app: AsyncContainer, jobs: Dispatcher) -> None:
    await jobs.run_job(OrderProcessor.pay, Order(number=7))
    journal = await app.get(Journal)
    with anyio.fail_after(10):
        await journal.written.wait()
    assert journal == ["completed pay"]


async def test_results_are_what_json_makes_of_them(jobs: Dispatcher) -> None:
    assert await jobs.run_job(figures, 1) == {"pair": [1, 2]}
