"""The wiring and its life, with real workers."""

import importlib
import logging
import os
from collections.abc import AsyncIterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import anyio
import pytest
from dishka import STRICT_VALIDATION, AsyncContainer, FromDishka, Provider, Scope, make_async_container
from litestar import Litestar
from litestar.testing import AsyncTestClient

from workers_module import (
    Clock,
    ConfigurationError,
    Dispatcher,
    FrozenClock,
    Inspector,
    Job,
    JobFailedError,
    JobLogger,
    Queue,
    RegistrationError,
    Sandbox,
    Store,
    StoreUnavailableError,
    UnknownWorkerError,
    WorkerMode,
    Workers,
    WorkersModule,
    WorkersSettings,
    job,
    module,
    process,
    processor,
    run_workers,
    workers_lifespan,
)
from workers_module.module import WorkersModule as Root
from workers_module.store.memory import MemoryStore


class Numbers(Queue[int], name="numbers"):
    pass


@processor(Numbers)
class Calculator:
    @process("double")
    async def double(self, job: Job[int]) -> int:
        return job.data * 2

    @process("fail")
    async def fail(self, job: Job[int]) -> int:
        raise ZeroDivisionError(job.data)


@job(queue="mail")
async def send(data: str) -> str:
    return f"to {data}"


@pytest.fixture(params=["memory", "sqlite"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> WorkersSettings:
    if request.param == "memory":
        return WorkersSettings(mode="background_async")
    return WorkersSettings(queue={"uri": f"sqlite:///{tmp_path / 'jobs.db'}"})


def container_of(settings: WorkersSettings | None, *more: Provider) -> AsyncContainer:
    root = WorkersModule.for_root(settings, processors=[Calculator, send])
    return make_async_container(root, *more, validation_settings=STRICT_VALIDATION)


@pytest.fixture
async def container(settings: WorkersSettings) -> AsyncIterator[AsyncContainer]:
    container = container_of(settings)
    yield container
    await container.close()


class TestRunWorkers:
    async def test_runs_what_is_enqueued_and_hands_results_back(self, container: AsyncContainer) -> None:
        async with run_workers(container) as workers:
            assert workers.running == ("mail", "numbers")
            jobs = await container.get(Dispatcher)
            assert await jobs.run_job(Calculator.double, 21) == 42
            assert await jobs.run_job(send, "ada") == "to ada"
        assert not workers.running

    async def test_a_failed_job_raises_with_its_cause(
        self, container: AsyncContainer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with run_workers(container):
            jobs = await container.get(Dispatcher)
            with caplog.at_level(logging.CRITICAL), pytest.raises(JobFailedError, match="ZeroDivisionError") as caught:
                await jobs.run_job(Calculator.fail, 7)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async def test_an_exception_of_the_body_leaves_as_it_is(self, container: AsyncContainer) -> None:
        with pytest.raises(LookupError, match="mine"):
            async with run_workers(container):
                raise LookupError("mine")

    async def test_only_replaces_the_selection(self, container: AsyncContainer) -> None:
        async with run_workers(container, only=["mail"]) as workers:
            assert workers.running == ("mail",)

    async def test_an_unknown_worker_stops_the_start(self, container: AsyncContainer) -> None:
        with pytest.raises(UnknownWorkerError, match="only= names 'candles'; known workers: mail, numbers"):
            async with run_workers(container, only=["candles"]):
                pass

    async def test_a_disabled_process_enqueues_but_runs_nothing(self, settings: WorkersSettings) -> None:
        container = container_of(settings.model_copy(update={"enabled": False}))
        async with run_workers(container, close_container=True) as workers:
            assert list(workers.running) == []
            handle = await (await container.get(Numbers)).add("double", 1)
            assert await handle.state() == "waiting"
            async with run_workers(container, force=True) as forced:
                assert forced.running == ("mail", "numbers")
                assert await handle.result() == 2

    async def test_stop_ends_the_workers_and_wait_returns(self, container: AsyncContainer) -> None:
        async with run_workers(container) as workers:
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(workers.wait)
                    await workers.stop("5s")
            assert workers.running == ()

    async def test_close_container_closes_it_even_if_the_start_fails(self, settings: WorkersSettings) -> None:
        closed: list[str] = []

        async def resource() -> AsyncIterator[int]:
            yield 1
            closed.append("yes")

        provider = Provider(scope=Scope.APP)
        provider.provide(resource)
        container = container_of(settings, provider)
        await container.get(int)
        with pytest.raises(UnknownWorkerError):
            async with run_workers(container, only=["x"], close_container=True):
                pass
        assert closed == ["yes"]


class TestModes:
    async def test_foreground_runs_in_the_enqueueing_call_and_raises_its_error(self) -> None:
        container = container_of(WorkersSettings(mode=WorkerMode.FOREGROUND_BLOCKING))
        jobs = await container.get(Dispatcher)
        handle = await jobs.perform_later(Calculator.double, 4, delay="1h")
        assert await handle.result() == 8
        with pytest.raises(ZeroDivisionError):
            await jobs.perform_later(Calculator.fail, 1)
        async with run_workers(container, close_container=True) as workers:
            assert workers.running == ()

    async def test_perform_now_stores_nothing_in_any_mode(self, container: AsyncContainer) -> None:
        jobs = await container.get(Dispatcher)
        assert await jobs.perform_now(Calculator.double, 5) == 10
        assert await (await container.get(Inspector)).queues() == []

    async def test_background_async_ignores_the_url(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'jobs.db'}"
        container = container_of(WorkersSettings(mode="background_async", queue={"uri": url}))
        async with run_workers(container, close_container=True):
            assert await (await container.get(Dispatcher)).run_job(Calculator.double, 1) == 2
        assert os.listdir(tmp_path) == []

    async def test_without_a_url_memory_is_said_at_start(self, caplog: pytest.LogCaptureFixture) -> None:
        container = container_of(WorkersSettings())
        with caplog.at_level(logging.WARNING):
            await container.get(Store)
        assert "no QUEUE_URL is set" in caplog.text
        await container.close()


class TestSettings:
    async def test_come_from_the_environment_when_first_needed(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        container = container_of(None)
        monkeypatch.setenv("QUEUE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
        monkeypatch.setenv("ENABLED_WORKERS", "mail")
        async with run_workers(container, close_container=True) as workers:
            assert workers.running == ("mail",)

    async def test_come_from_the_containers_own_configuration(self) -> None:
        class Config:
            jobs = WorkersSettings(mode="background_async", enabled_workers="numbers")

        async def read(config: Config) -> WorkersSettings:
            return config.jobs

        provider = Provider(scope=Scope.APP)
        provider.provide(Config)
        container = make_async_container(provider, Root.for_root_async(read, processors=[Calculator, send]))
        async with run_workers(container, close_container=True) as workers:
            assert workers.running == ("numbers",)

    async def test_a_flush_at_start_empties_every_queue(self, tmp_path: Path) -> None:
        uri = f"sqlite:///{tmp_path / 'jobs.db'}"
        first = container_of(WorkersSettings(queue={"uri": uri}))
        await (await first.get(Numbers)).add("double", 1)
        await first.close()
        second = container_of(WorkersSettings(queue={"uri": uri, "dangerously_flush": True}))
        async with run_workers(second, only=[], close_container=True):
            assert await (await second.get(Inspector)).queues() == []

    async def test_captured_log_records_are_kept_with_their_job(self) -> None:
        @job(queue="logs")
        async def chatty(data: None, log: FromDishka[JobLogger]) -> None:
            logging.getLogger("app.mail").error("no %s", "route")
            log.info("done")

        @job(queue="logs")
        def chatty_thread(data: None) -> None:
            logging.getLogger("app.thread").error("from a thread")

        root = WorkersModule.for_root(
            WorkersSettings(mode="background_async", capture_logging=True), processors=[chatty, chatty_thread]
        )
        container = make_async_container(root)
        async with run_workers(container, close_container=True):
            jobs = await container.get(Dispatcher)
            store = await container.get(Store)
            lines: list[str] = []
            for handler in (chatty, chatty_thread):
                handle = await jobs.perform_later(handler, None)
                await handle.result()
                lines += (await store.logs("logs", handle.id)).items
        assert [line.split(" ", 1)[1] for line in lines] == [
            "ERROR app.mail no route",
            "INFO done",
            "ERROR app.thread from a thread",
        ]


class Away(Provider):
    """A store that cannot be reached the first times it is asked for."""

    scope = Scope.APP

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times
        self.provide(self.open, provides=Store, override=True)

    async def open(self) -> Store:
        if self.left:
            self.left -= 1
            raise StoreUnavailableError("redis://cache is not there")
        return MemoryStore()


class TestAStoreThatIsAway:
    async def test_is_waited_for_with_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        container = container_of(WorkersSettings(mode="background_async"), away := Away(3))
        with anyio.fail_after(30):
            async with run_workers(container, close_container=True) as workers:
                assert workers.running
        assert away.left == 0
        warnings = [one.getMessage() for one in caplog.records if "trying again" in one.getMessage()]
        assert len(warnings) == 1
        assert "redis://cache is not there" in warnings[0]

    async def test_is_not_waited_for_when_a_worker_is_unknown(self) -> None:
        container = container_of(WorkersSettings(mode="background_async"), away := Away(3))
        with pytest.raises(UnknownWorkerError, match="candles"):
            async with run_workers(container, only=["candles"], close_container=True):
                pass
        assert away.left == 3

    async def test_is_an_error_where_nobody_wants_to_wait(self) -> None:
        container = container_of(WorkersSettings(mode="background_async"), away := Away(3))
        with pytest.raises(StoreUnavailableError, match="redis://cache"):
            async with run_workers(container, close_container=True, wait_for_store=False):
                pass
        assert away.left == 2

    async def test_is_an_error_beside_a_web_server(self) -> None:
        container = container_of(WorkersSettings(mode="background_async"), Away(1))
        with pytest.raises(StoreUnavailableError):
            async with workers_lifespan(container)(None):
                pass

    async def test_is_an_error_for_a_producer(self) -> None:
        container = container_of(WorkersSettings(mode="background_async"), Away(1))
        with pytest.raises(StoreUnavailableError):
            await container.get(Numbers)
        await (await container.get(Numbers)).add("double", 1)
        await container.close()


class TestFeatures:
    async def test_stand_beside_the_root_in_any_order(self) -> None:
        feature = WorkersModule.for_feature("mailing", queues=["audio"], processors=[send])
        root = WorkersModule.for_root(WorkersSettings(mode="background_async"), processors=[Calculator])
        for providers in ((root, feature), (feature, root)):
            container = make_async_container(*providers, validation_settings=STRICT_VALIDATION)
            async with run_workers(container, close_container=True) as workers:
                assert workers.running == ("mail", "numbers")
                assert await (await container.get(Dispatcher)).run_job(send, "x") == "to x"

    def test_cannot_be_called_root(self) -> None:
        with pytest.raises(RegistrationError, match="cannot be called 'root'"):
            WorkersModule.for_feature("root")

    async def test_queues_can_be_registered_alone(self) -> None:
        container = make_async_container(
            WorkersModule.for_root(WorkersSettings(mode="background_async")),
            WorkersModule.register_queue(Numbers, "audio"),
        )
        handle = await (await container.get(Numbers)).add("anything", 3)
        assert handle.queue == "numbers"
        await container.close()

    def test_installed_ones_are_found_by_entry_point(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feature = WorkersModule.for_feature("plugin", processors=[send])
        install(monkeypatch, a=feature, b=lambda: feature)
        assert WorkersModule.installed_features() == (feature, feature)

    def test_an_entry_point_that_is_no_provider_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch, bad=7)
        with pytest.raises(ConfigurationError, match=r"entry point 'bad' \(plugin:bad\) is no provider"):
            WorkersModule.installed_features()


def install(monkeypatch: pytest.MonkeyPatch, **offered: object) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        return [EntryPoint(name, f"plugin:{name}", group) for name in offered if group == "workers_module.features"]

    def load(self: EntryPoint) -> object:
        return offered[self.name]

    monkeypatch.setattr(module, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", load)


class TestForTesting:
    async def test_has_a_frozen_clock_and_memory(self) -> None:
        container = make_async_container(WorkersModule.for_testing(processors=[Calculator]))
        assert isinstance(await container.get(Clock), FrozenClock)
        await container.close()

    def test_refuses_a_real_store(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="keeps jobs in memory"):
            WorkersModule.for_testing(WorkersSettings(queue={"uri": f"sqlite:///{tmp_path / 'x.db'}"}))


class TestLifespan:
    @pytest.mark.parametrize(
        ("changes", "running"),
        [
            ({}, ("mail", "numbers")),
            ({"auto_start": False}, ()),
            ({"auto_start_production": False}, ("mail", "numbers")),
            ({"auto_start_production": False, "environment": "production"}, ()),
            ({"enabled": False}, ()),
        ],
    )
    async def test_starts_workers_only_if_the_settings_say_so(
        self, changes: dict[str, Any], running: tuple[str, ...]
    ) -> None:
        container = container_of(WorkersSettings(mode="background_async", **changes))
        async with workers_lifespan(container)(object()):
            assert (await container.get(Workers)).running == running

    async def test_works_under_litestar(self) -> None:
        container = container_of(WorkersSettings(mode="background_async"))
        app = Litestar([], lifespan=[workers_lifespan(container)])
        async with AsyncTestClient(app):
            assert await (await container.get(Dispatcher)).run_job(Calculator.double, 4) == 8


def test_a_sandbox_without_a_target_stops_the_start() -> None:
    @job(queue="heavy", sandbox=Sandbox.PROCESS)
    def heavy(data: int) -> int:
        return data

    async def start() -> None:
        root = WorkersModule.for_root(WorkersSettings(mode="background_async"), processors=[heavy])
        async with run_workers(make_async_container(root), close_container=True):
            pass

    with pytest.raises(ConfigurationError, match="heavy"):
        anyio.run(start)


def test_sandboxed_handlers_run_here_where_jobs_are_run_at_once() -> None:
    @job(queue="heavy", sandbox=Sandbox.PROCESS)
    def heavy(data: int) -> int:
        return data + 1

    async def run() -> int:
        root = WorkersModule.for_root(WorkersSettings(mode="foreground_blocking"), processors=[heavy])
        return await (await make_async_container(root).get(Dispatcher)).perform_now(heavy, 1)

    assert anyio.run(run) == 2


def test_a_sandboxed_handler_runs_in_a_child_of_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boxed_app.py").write_text(
        "import os\n"
        "from dishka import make_async_container\n"
        "from workers_module import Sandbox, WorkersModule, job\n"
        "@job(queue='heavy', sandbox=Sandbox.PROCESS)\n"
        "def heavy(data: int) -> list[int]:\n"
        "    return [data, os.getpid()]\n"
        "def make_container():\n"
        "    return make_async_container(WorkersModule.for_root(processors=[heavy]))\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("QUEUE_URL", "sqlite:///jobs.db")
    monkeypatch.setenv("WORKERS_APP", "boxed_app:make_container")

    async def run() -> list[int]:
        container = importlib.import_module("boxed_app").make_container()
        async with run_workers(container, close_container=True):
            result: list[int] = await (await container.get(Dispatcher)).run_job("heavy", 7, wait="30s")
            return result

    data, pid = anyio.run(run)
    assert data == 7
    assert pid != os.getpid()
