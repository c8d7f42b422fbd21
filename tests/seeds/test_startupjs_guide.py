"""The guide to `@startupjs/worker`, ported: job modules, `run_job`, schedules, singletons, two workers, sandboxes."""

import logging
import os
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from zoneinfo import ZoneInfo

import anyio
import pytest
from dishka import AsyncContainer, FromDishka, Provider, Scope, make_async_container

from tests.seeds import boxed
from tests.seeds.worker_jobs.cleanup import cleanup
from tests.seeds.worker_jobs.generate_report import Report, generate_report
from tests.seeds.worker_jobs.send_otp import Otp, send_otp
from tests.seeds.worker_jobs.send_welcome_email import Welcome, send_welcome_email
from workers_module import (
    Dispatcher,
    Inspector,
    JobFailedError,
    JobLogger,
    JobTimeoutError,
    NotSerializableError,
    Scheduler,
    SingletonKeyError,
    UnknownJobError,
    UnknownWorkerError,
    Workers,
    WorkersModule,
    WorkersSettings,
    cron,
    job,
    module,
    run_workers,
    workers_lifespan,
)
from workers_module.testing import WorkerTest, worker_test


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.outbox: list[str] = []
        self.provide(lambda: self.outbox, provides=list[str])


def root(settings: WorkersSettings | None = None) -> WorkersModule:
    return WorkersModule.for_root(settings, queues=["default", "priority"], discover="tests.seeds.worker_jobs")


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def t(app: App) -> AsyncIterator[WorkerTest]:
    async with worker_test(app, root()) as t:
        yield t


@pytest.fixture
async def container(app: App, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncContainer]:
    monkeypatch.setenv("WORKERS_MODE", "background_async")
    container = make_async_container(app, root())
    yield container
    await container.close()


@pytest.fixture
async def jobs(container: AsyncContainer) -> AsyncIterator[Dispatcher]:
    async with run_workers(container):
        yield await container.get(Dispatcher)


class TestJobModules:
    async def test_each_module_of_the_folder_is_a_job_named_after_its_function(self, t: WorkerTest) -> None:
        with pytest.raises(UnknownJobError) as caught:
            await t.dispatcher.run_job("sendWelcomeEmail", {"email": "a@b.c"})
        assert caught.value.known == (
            "default.cleanup",
            "default.generate_report",
            "default.send_welcome_email",
            "priority.send_otp",
        )
        assert all(name in str(caught.value) for name in caught.value.known)

    async def test_data_come_first_and_dependencies_are_injected(self, t: WorkerTest, app: App) -> None:
        await t.dispatcher.perform_later(send_otp, Otp(phone="+371", code="1234"))
        await t.drain()
        assert app.outbox == ["1234 to +371"]

    async def test_a_plain_function_runs_in_a_thread(self) -> None:
        @job()
        def where(data: None) -> str:
            return threading.current_thread().name

        async with worker_test(processors=[where]) as t:
            assert await t.dispatcher.perform_now(where, None) != threading.current_thread().name


class TestRunJob:
    async def test_returns_what_the_job_returns(self, jobs: Dispatcher) -> None:
        assert await jobs.run_job(send_welcome_email, Welcome(email="a@b.c")) == "sent to a@b.c"
        assert await jobs.run_job("cleanup") == "clean"
        assert await jobs.run_job("default.generate_report", {"kind": "daily"}) == "daily.pdf"

    async def test_raises_when_the_job_throws(self, jobs: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL)
        with pytest.raises(JobFailedError, match="no address: nowhere") as caught:
            await jobs.run_job(send_welcome_email, Welcome(email="nowhere"))
        assert caught.value.error_type == "ValueError"
        assert isinstance(caught.value.__cause__, ValueError)

    async def test_has_a_time_limit_per_call(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL)

        @job()
        async def sleepy(data: None) -> None:
            await anyio.sleep_forever()

        settings = WorkersSettings(mode="background_async", job_timeout="none")
        container = make_async_container(WorkersModule.for_root(settings, processors=[sleepy]))
        async with run_workers(container, close_container=True):
            with pytest.raises(JobTimeoutError):
                await (await container.get(Dispatcher)).run_job(sleepy, None, timeout="50ms", wait="10s")


class TestLog:
    async def test_lines_have_a_level_data_and_an_error(self, t: WorkerTest) -> None:
        inspector = await t.get(Inspector)
        good = await t.dispatcher.perform_later(send_welcome_email, Welcome(email="a@b.c"))
        bad = await t.dispatcher.perform_later(send_welcome_email, Welcome(email="nowhere"))
        await t.drain(raise_errors=False)

        assert without_times(await inspector.logs("default", good.id)) == [
            f'INFO sending to a@b.c {{"job": "{good.id}"}}',
            "WARNING the outbox is filling up",
        ]
        _, trouble = without_times(await inspector.logs("default", bad.id))
        assert trouble.startswith("ERROR cannot send\nTraceback")
        assert trouble.endswith("ValueError: no address: nowhere")

    async def test_records_of_the_handler_s_own_loggers_are_captured_where_asked(self) -> None:
        @job()
        async def talkative(data: None, log: FromDishka[JobLogger]) -> None:
            logging.getLogger("app.mail").warning("no %s", "route")
            log.error("own")

        settings = WorkersSettings(mode="background_async", capture_logging=True)
        container = make_async_container(WorkersModule.for_root(settings, processors=[talkative]))
        async with run_workers(container, close_container=True):
            handle = await (await container.get(Dispatcher)).perform_later(talkative, None)
            await handle.result()
            logs = await (await container.get(Inspector)).logs("default", handle.id)
        assert without_times(logs) == ["WARNING app.mail no route", "ERROR own"]


def without_times(lines: list[str]) -> list[str]:
    return [line.partition(" ")[2] for line in lines]


class TestCron:
    async def test_six_fields_have_the_seconds_first(self, t: WorkerTest) -> None:
        await t.advance("1m")
        assert len([done for done in t.jobs("default", "completed") if done.name == "cleanup"]) == 6

    async def test_a_schedule_brings_its_data(self, t: WorkerTest) -> None:
        [monday] = await (await t.get(Scheduler)).next_run("generate_report")
        assert monday.astimezone(ZoneInfo("Europe/Riga")).strftime("%A %H:%M") == "Monday 09:00"
        t.clock.set(monday - timedelta(seconds=1))
        await t.advance("1s")
        [weekly] = [done for done in t.jobs("default", "completed") if done.name == "generate_report"]
        assert (weekly.data, weekly.return_value) == (Report(kind="weekly"), "weekly.pdf")

    async def test_the_same_job_may_be_run_by_hand(self, t: WorkerTest) -> None:
        handle = await t.dispatcher.perform_later(generate_report, Report(kind="extra"))
        triggered = await (await t.get(Scheduler)).trigger("generate_report")
        await t.drain()
        assert (await handle.result(), await triggered.result()) == ("extra.pdf", "weekly.pdf")

    async def test_schedules_that_are_no_longer_declared_go_at_the_next_start(self, tmp_path: Path) -> None:
        @job()
        @cron("0 * * * *")
        async def old(data: None = None) -> None: ...

        @job()
        @cron("0 * * * *")
        async def new(data: None = None) -> None: ...

        settings = WorkersSettings(queue={"uri": f"sqlite:///{tmp_path / 'jobs.db'}"}, app_id="shop")
        for declared, expected in ((old, ["old"]), (new, ["new"])):
            container = make_async_container(WorkersModule.for_root(settings, processors=[declared]))
            async with run_workers(container, close_container=True):
                found = await (await container.get(Inspector)).schedules()
                assert [one.id for one in found] == expected


class TestSingleton:
    async def test_one_in_flight_whatever_the_data(self, t: WorkerTest) -> None:
        first = await t.dispatcher.perform_later(cleanup)
        second = await t.dispatcher.perform_later(cleanup)
        assert (second.id, second.deduplicated) == (first.id, True)
        await t.drain()
        assert await second.result() == "clean"
        assert not (await t.dispatcher.perform_later(cleanup)).deduplicated

    async def test_one_in_flight_per_key_and_others_beside_it(self, t: WorkerTest, app: App) -> None:
        ann = await t.dispatcher.perform_later(send_otp, Otp(phone="ann", code="1"))
        bob = await t.dispatcher.perform_later(send_otp, Otp(phone="bob", code="2"))
        again = await t.dispatcher.perform_later(send_otp, Otp(phone="ann", code="3"))
        assert (again.id, bob.id == ann.id) == (ann.id, False)
        await t.drain()
        assert app.outbox == ["1 to ann", "2 to bob"]
        assert await again.result() == await ann.result() == 1

    async def test_run_job_joins_the_run_that_is_under_way(self) -> None:
        begun, go_on, runs = anyio.Event(), anyio.Event(), list[int]()

        @job(singleton=True)
        async def rebuild(data: int) -> int:
            runs.append(data)
            begun.set()
            await go_on.wait()
            return data

        results: list[int] = []

        async def ask(jobs: Dispatcher, data: int) -> None:
            results.append(await jobs.run_job(rebuild, data))

        settings = WorkersSettings(mode="background_async")
        container = make_async_container(WorkersModule.for_root(settings, processors=[rebuild]))
        async with run_workers(container, close_container=True), anyio.create_task_group() as callers:
            jobs = await container.get(Dispatcher)
            callers.start_soon(ask, jobs, 1)
            await begun.wait()
            joined = await jobs.perform_later(rebuild, 2)
            assert joined.deduplicated
            go_on.set()
            assert await joined.result() == 1
        assert (runs, results) == ([1], [1])

    async def test_a_key_must_be_json(self) -> None:
        @job(singleton=lambda data: {data})
        async def wrong(data: int) -> None: ...

        async with worker_test(processors=[wrong]) as t:
            with pytest.raises(SingletonKeyError):
                await t.dispatcher.perform_later(wrong, 1)
            assert t.enqueued() == []


class TestTwoWorkers:
    @pytest.mark.parametrize(
        ("variables", "running"),
        [
            ({}, ("default", "priority")),
            ({"WORKERS": "default,priority"}, ("default", "priority")),
            ({"WORKERS": "priority"}, ("priority",)),
            ({"ENABLED_WORKERS": "default"}, ("default",)),
        ],
    )
    async def test_the_environment_says_which_start(
        self,
        container: AsyncContainer,
        monkeypatch: pytest.MonkeyPatch,
        variables: dict[str, str],
        running: tuple[str, ...],
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        async with run_workers(container) as workers:
            assert workers.running == running

    async def test_an_unknown_one_lists_those_there_are(
        self, container: AsyncContainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORKERS", "slow")
        with pytest.raises(UnknownWorkerError, match="'slow'; known workers: default, priority"):
            async with run_workers(container):
                pass

    async def test_servers_enqueue_and_one_process_takes_only_priority(self, app: App, tmp_path: Path) -> None:
        url = {"uri": f"sqlite:///{tmp_path / 'jobs.db'}"}
        server = make_async_container(app, root(WorkersSettings(queue=url, enabled=False)))
        worker = make_async_container(app, root(WorkersSettings(queue=url, enabled_workers="priority")))
        jobs = await server.get(Dispatcher)
        async with (
            run_workers(server, close_container=True) as idle,
            run_workers(worker, close_container=True),
        ):
            assert idle.running == ()
            later = await jobs.perform_later(send_welcome_email, Welcome(email="a@b.c"))
            assert await jobs.run_job(send_otp, Otp(phone="ann")) == 1
            assert await later.state() == "waiting"

    @pytest.mark.parametrize(
        ("variables", "runs"),
        [
            ({}, True),
            ({"WORKERS_AUTO_START": "false"}, False),
            ({"WORKERS_AUTO_START_PRODUCTION": "false"}, True),
            ({"WORKERS_AUTO_START_PRODUCTION": "false", "ENVIRONMENT": "production"}, False),
            ({"ENVIRONMENT": "production"}, True),
        ],
    )
    async def test_workers_start_with_the_server_unless_told_otherwise(
        self, container: AsyncContainer, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], runs: bool
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        async with workers_lifespan(container, close_container=False)(object()):
            assert bool((await container.get(Workers)).running) is runs
        # What a worker process calls asks nobody.
        async with run_workers(container, force=True) as workers:
            assert workers.running == ("default", "priority")


class TestPlugins:
    """A reusable package adds jobs of its own, with their schedules."""

    async def test_a_feature_adds_jobs_beside_those_of_the_application(self, app: App) -> None:
        async with worker_test(app, root(), billing()) as t:
            await t.advance("1h")
            assert [done.return_value for done in t.jobs("billing", "completed")] == ["billed"]
            await t.dispatcher.perform_later(send_otp, Otp(phone="ann"))
            assert await t.drain() == 1

    async def test_installed_packages_are_found_by_their_entry_point(
        self, app: App, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = EntryPoint("billing", f"{__name__}:billing", "workers_module.features")

        def entry_points(*, group: str) -> list[EntryPoint]:
            return [entry] if group == entry.group else []

        monkeypatch.setattr(module, "entry_points", entry_points)
        async with worker_test(app, root(), *WorkersModule.installed_features()) as t:
            await t.dispatcher.perform_later("billing.bill")
            assert await t.drain() == 1


@job(queue="billing")
@cron("@hourly")
async def bill() -> str:
    return "billed"


def billing() -> Provider:
    return WorkersModule.for_feature("billing", processors=[bill])


class TestSandbox:
    @pytest.fixture
    async def boxes(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[AsyncContainer]:
        monkeypatch.setenv("WORKERS_APP", "tests.seeds.boxed:make_container")
        monkeypatch.setenv("QUEUE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
        monkeypatch.setenv("WORKERS_CONCURRENCY", "1")
        container = boxed.make_container()
        async with run_workers(container, close_container=True):
            yield container

    async def test_a_process_of_its_own_with_a_container_of_its_own(self, boxes: AsyncContainer) -> None:
        handle = await (await boxes.get(Dispatcher)).perform_later(boxed.in_process, 7)
        result = await handle.result()
        assert result["n"] == 7
        assert result["pid"] == result["container"] != os.getpid()
        await assert_told(boxes, "process", handle.id, 'WARNING in a process {"n": 7}')

    async def test_a_thread_of_its_own_with_a_container_of_its_own(self, boxes: AsyncContainer) -> None:
        handle = await (await boxes.get(Dispatcher)).perform_later(boxed.in_thread, 7)
        result = await handle.result()
        assert (result["n"], result["pid"]) == (7, os.getpid())
        assert result["thread"] == result["container"] != "MainThread"
        await assert_told(boxes, "thread", handle.id, 'WARNING in a thread {"n": 7}')

    async def test_a_process_over_its_time_is_killed_and_replaced(
        self, boxes: AsyncContainer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        jobs = await boxes.get(Dispatcher)
        before = await jobs.run_job(boxed.in_process, 1)
        with pytest.raises(JobTimeoutError):
            await jobs.run_job(boxed.hang, 600.0, timeout="200ms", wait="30s")
        after = await jobs.run_job(boxed.in_process, 2)
        assert after["pid"] != before["pid"]
        await gone(before["pid"])

    async def test_only_json_comes_out(self, boxes: AsyncContainer, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL)
        with pytest.raises((JobFailedError, NotSerializableError), match="object"):
            await (await boxes.get(Dispatcher)).run_job(boxed.not_json, None)


async def assert_told(container: AsyncContainer, queue: str, id: str, line: str) -> None:
    inspector = await container.get(Inspector)
    done = await inspector.get(queue, id)
    assert done is not None
    assert done.progress == 50
    assert without_times(await inspector.logs(queue, id)) == [line]


async def gone(pid: int) -> None:
    with anyio.fail_after(20):
        while is_alive(pid):  # noqa: ASYNC110 - a process tells nobody that it has ended
            await anyio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
