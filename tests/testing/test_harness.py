"""The testing kit, used as its reader would."""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any

import pytest
from dishka import FromDishka, Provider, Scope
from dishka.exceptions import NothingOverriddenError
from pydantic import BaseModel

from tests.servers import shared_postgres, shared_redis
from workers_module import (
    Backoff,
    ConfigurationError,
    CronExpression,
    Dispatcher,
    DistributedLockService,
    InjectQueue,
    Job,
    JobLogger,
    Queue,
    Store,
    WorkersModule,
    WorkersSettings,
    cron,
    job,
    on_worker_event,
    process,
    processor,
)
from workers_module.job.record import Token
from workers_module.store.open import drop_store
from workers_module.store.values import JobSpec, Step
from workers_module.testing import WorkerTest, worker_test


class Welcome(BaseModel):
    to: str


class Mailer:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, to: str) -> str:
        raise AssertionError("the real mailer must not be called in a test")


class FakeMailer(Mailer):
    down = 0

    async def send(self, to: str) -> str:
        if self.down:
            self.down -= 1
            raise ConnectionError("smtp is down")
        self.sent.append(to)
        return f"<{len(self.sent)}>"


class MailQueue(Queue[Welcome], name="mail"):
    pass


@processor(MailQueue, options={"attempts": 3, "backoff": Backoff.fixed("1m")})
class MailProcessor:
    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer

    @process("welcome")
    async def welcome(self, job: Job[Welcome]) -> str:
        return await self.mailer.send(job.data.to)

    @on_worker_event("completed")
    async def completed(self, job: Job[Welcome], result: str, heard: FromDishka[list[str]]) -> None:
        heard.append(f"{job.data.to} {result}")


class TickerWorker:
    def __init__(self, heard: list[str]) -> None:
        self.heard = heard

    @cron(CronExpression.EVERY_10_SECONDS)
    async def tick(self) -> None:
        self.heard.append("tick")


@job(queue="numbers")
async def double(data: int) -> int:
    return data * 2


@job(queue="numbers")
async def explode(data: int) -> int:
    raise ValueError(f"no {data}")


@job(queue="numbers")
async def grow(data: int, heard: FromDishka[list[str]]) -> int:
    heard.append("x")
    return len(heard)


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self.provide(Mailer)
        self.provide(lambda: self.heard, provides=list[str])


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def mailer() -> FakeMailer:
    return FakeMailer()


@pytest.fixture(params=["memory", "sqlite"])
async def t(request: pytest.FixtureRequest, app: App, mailer: FakeMailer) -> AsyncIterator[WorkerTest]:
    module = WorkersModule.for_root(processors=[MailProcessor, TickerWorker, double, explode, grow])
    async with worker_test(app, module, overrides={Mailer: mailer}, store=request.param) as t:
        yield t


ADA = Welcome(to="ada")


class TestDrain:
    async def test_runs_what_is_due_in_order_and_counts_it(self, t: WorkerTest, mailer: FakeMailer) -> None:
        for name in ("ada", "grace"):
            await t.dispatcher.perform_later(MailProcessor.welcome, Welcome(to=name))
        assert await t.drain() == 2
        assert mailer.sent == ["ada", "grace"]
        assert [job.return_value for job in t.jobs("mail", "completed")] == ["<1>", "<2>"]

    async def test_tells_listeners(self, t: WorkerTest, app: App) -> None:
        await t.dispatcher.perform_later(MailProcessor.welcome, ADA)
        await t.drain()
        assert app.heard == ["ada <1>"]

    async def test_raises_what_failed_for_good(self, t: WorkerTest) -> None:
        await t.dispatcher.perform_later(explode, 7)
        with pytest.raises(ValueError, match="no 7"):
            await t.drain()

    async def test_leaves_failures_to_be_looked_at(self, t: WorkerTest, caplog: pytest.LogCaptureFixture) -> None:
        await t.dispatcher.perform_later(explode, 7)
        with caplog.at_level(logging.CRITICAL):
            assert await t.drain(raise_errors=False) == 1
        [failed] = t.jobs("numbers", "failed")
        assert failed.error == "no 7"

    async def test_runs_jobs_with_tags_too_those_of_the_handler_and_those_of_a_call(self, t: WorkerTest) -> None:
        await t.dispatcher.perform_later(double, 1, tags=["gpu"])
        await t.dispatcher.perform_later(double, 2, tags=["eu"], delay="1m")
        assert await t.drain() == 1
        await t.advance("1m")
        assert [job.return_value for job in t.jobs("numbers", "completed")] == [2, 4]

    async def test_takes_only_jobs_of_its_tags_where_the_settings_name_some(self, app: App) -> None:
        settings = WorkersSettings(mode="background_async", tags="gpu")
        async with worker_test(app, WorkersModule.for_root(settings, processors=[double])) as t:
            for tags in ([], ["gpu"], ["eu"]):
                await t.dispatcher.perform_later(double, 1, tags=tags)
            assert await t.drain() == 1


class TestAdvance:
    async def test_delayed_jobs_run_at_their_time(self, t: WorkerTest, mailer: FakeMailer) -> None:
        await t.dispatcher.perform_later(MailProcessor.welcome, ADA, delay="1h")
        await t.drain()
        assert mailer.sent == []
        assert [job.data for job in t.enqueued(MailProcessor.welcome)] == [ADA]
        await t.advance(timedelta(hours=1))
        assert mailer.sent == ["ada"]
        assert t.enqueued(MailProcessor.welcome) == []

    async def test_retries_wait_their_backoff(self, t: WorkerTest, mailer: FakeMailer) -> None:
        mailer.down = 1
        handle = await t.dispatcher.perform_later(MailProcessor.welcome, ADA)
        await t.drain()
        assert await handle.state() == "delayed"
        await t.advance("59s")
        assert mailer.sent == []
        await t.advance("1s")
        assert await handle.result() == "<1>"

    async def test_schedules_tick_on_the_virtual_clock(self, t: WorkerTest, app: App) -> None:
        assert await t.advance("1m") == 6
        assert app.heard == ["tick"] * 6
        assert len(t.jobs("cron.ticker", "completed")) == 6

    async def test_a_job_whose_worker_died_comes_back_when_its_lease_is_over(self, t: WorkerTest) -> None:
        handle = await t.dispatcher.perform_later(double, 4)
        dead = Step(queue="numbers", worker="dead", token=Token("dead"), take=1, lease_ms=30_000)
        await t.store.step(dead)
        assert await t.drain() == 0
        await t.advance("29s")
        assert await handle.state() == "active"
        await t.advance("1m")
        assert await handle.result() == 8

    async def test_what_ended_is_kept_as_long_as_in_production(self) -> None:
        async with worker_test(processors=[double]) as t:
            await t.dispatcher.perform_later(double, 4)
            await t.drain()
            await t.advance("59m")
            assert len(t.jobs("numbers", "completed")) == 1
            await t.advance("2m")
            assert t.jobs("numbers", "completed") == []


class TestTheRest:
    async def test_a_payload_that_json_cannot_carry_fails_the_test(self, t: WorkerTest) -> None:
        with pytest.raises(ValueError, match="should be a valid integer"):
            await t.dispatcher.perform_later("double", "x")
        assert [job.queue for job in t.enqueued()] == ["cron.ticker"]

    async def test_services_come_from_the_container(self, t: WorkerTest) -> None:
        queue = await t.get(MailQueue)
        handle = await queue.add("welcome", ADA)
        await t.drain()
        assert await handle.result() == "<1>"

    async def test_what_lives_for_a_request_lives_as_long_as_the_test(self, app: App) -> None:
        class Session:
            closed = False

        async def session() -> AsyncIterator[Session]:
            opened = Session()
            yield opened
            opened.closed = True

        app.provide(session, scope=Scope.REQUEST)
        async with worker_test(app, processors=[double]) as t:
            mine = await t.get(Session)
            assert await t.get(Session) is mine
            await t.drain()
            assert not mine.closed
        assert mine.closed

    async def test_a_queue_comes_by_its_name_too(self, t: WorkerTest) -> None:
        named = await t.get(Annotated[Queue[Welcome], InjectQueue("mail")])
        assert named is await t.get(MailQueue)

    async def test_a_job_whose_data_do_not_fit_can_be_looked_at(self, t: WorkerTest) -> None:
        await t.store.add([JobSpec(queue="numbers", name="double", data=b'{"from": "elsewhere"}')])
        await t.drain(raise_errors=False)
        [failed] = t.jobs("numbers", "failed")
        assert failed.data == {"from": "elsewhere"}

    async def test_idempotent_handlers_pass_and_others_are_named(self, t: WorkerTest) -> None:
        await t.assert_idempotent(double, 4)
        with pytest.raises(AssertionError, match="second run differs"):
            await t.assert_idempotent(grow, 4)

    async def test_an_override_nobody_provides_is_an_error(self, app: App) -> None:
        class Unknown: ...

        with pytest.raises(NothingOverriddenError):
            async with worker_test(app, processors=[double], overrides={Unknown: Unknown()}):
                pass

    async def test_a_queue_can_be_overridden_for_every_way_of_asking(self, app: App) -> None:
        class Fake(MailQueue):
            def __init__(self) -> None:
                self.names: list[str] = []

            async def add(self, name: str, *args: Any, **options: Any) -> Any:
                self.names.append(name)

        class Service:
            def __init__(self, mails: Annotated[Queue[Any], InjectQueue("mail")]) -> None:
                self.mails = mails

        app.provide(Service)
        fake = Fake()
        async with worker_test(app, processors=[MailProcessor], overrides={MailQueue: fake}) as t:
            await (await t.get(Service)).mails.add("welcome", ADA)
        assert fake.names == ["welcome"]

    async def test_foreground_mode_runs_jobs_where_they_are_enqueued(self, app: App, mailer: FakeMailer) -> None:
        module = WorkersModule.for_root(processors=[MailProcessor])
        async with worker_test(app, module, overrides={Mailer: mailer}, mode="foreground_blocking") as t:
            handle = await t.dispatcher.perform_later(MailProcessor.welcome, ADA, delay="1h")
            assert mailer.sent == ["ada"]
            assert await handle.result() == "<1>"
            assert app.heard == ["ada <1>"]
            assert await t.drain() == 0

    async def test_root_and_processors_together_are_refused(self, app: App) -> None:
        with pytest.raises(ConfigurationError, match="belong to the WorkersModule"):
            async with worker_test(app, WorkersModule.for_root(), processors=[double]):
                pass

    async def test_a_handler_alone_needs_no_container(self, mailer: FakeMailer) -> None:
        assert await MailProcessor(mailer).welcome(Job.fake(ADA)) == "<1>"

    async def test_a_job_made_up_for_it_takes_what_handlers_tell_it(self) -> None:
        async def handler(job: Job[int]) -> int:
            job.log("begun")
            await job.update_progress({"page": job.data})
            return job.attempt

        made_up = Job.fake(3, attempt=2)
        assert await handler(made_up) == 2
        assert made_up.progress == {"page": 3}

    async def test_logs_of_a_run_are_kept_with_the_job(self, app: App) -> None:
        @job(queue="logs")
        async def chatty(data: None, log: FromDishka[JobLogger]) -> None:
            log.warning("careful")

        async with worker_test(app, processors=[chatty]) as t:
            handle = await (await t.get(Dispatcher)).perform_later(chatty, None)
            await t.drain()
            page = await t.store.logs("logs", handle.id)
            assert [line.split(" ", 1)[1] for line in page.items] == ["WARNING careful"]


class TestServers:
    """``store="redis"`` and ``"postgres"``: a place of the test's own on a server that it shares with others."""

    @pytest.fixture(
        params=[pytest.param("redis", marks=pytest.mark.redis), pytest.param("postgres", marks=pytest.mark.postgres)]
    )
    def server(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        url = shared_redis()[0] if request.param == "redis" else shared_postgres()
        monkeypatch.setenv(f"WORKERS_TEST_{request.param.upper()}_URL", url)
        return str(request.param)

    async def test_jobs_rest_there_and_time_is_the_test_s(self, server: str) -> None:
        async with worker_test(processors=[double], store=server) as t:
            handle = await t.dispatcher.perform_later(double, 4, delay="1h")
            assert await t.drain() == 0
            assert await t.advance("1h") == 1
            assert await handle.result() == 8
            assert [job.data for job in t.jobs("numbers", "completed")] == [4]
            assert (await t.store.open()).kind.value == server

    async def test_two_tests_at_once_do_not_see_each_other(self, server: str) -> None:
        async with (
            worker_test(processors=[double], store=server) as one,
            worker_test(processors=[double], store=server) as two,
        ):
            await one.dispatcher.perform_later(double, 4)
            assert len(one.enqueued()) == 1
            assert two.enqueued() == []
            assert await two.drain() == 0

    async def test_nothing_is_left_behind(self, server: str) -> None:
        stores: list[Store] = []
        async with worker_test(processors=[double], store=server) as t:
            await t.dispatcher.perform_later(double, 4, tags=["gpu"])
            await (await t.get(DistributedLockService)).acquire("books", "1m")
            stores.append(t.store)
        [store] = stores
        await store.open()
        assert await store.queues() == []
        assert await store.locks() == []
        await drop_store(store)
        await store.close()

    async def test_truncate_empties_one_place_that_all_share_and_leaves_it(self, server: str) -> None:
        stores: list[Store] = []
        for _ in range(2):
            async with worker_test(processors=[double], store=server, truncate=True) as t:
                assert t.jobs("numbers") == []
                await t.dispatcher.perform_later(double, 4)
                stores.append(t.store)
        store = stores[-1]
        await store.open()
        assert await store.queues() == ["numbers"]
        await drop_store(store)
        await store.close()

    async def test_a_server_nobody_named_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORKERS_TEST_REDIS_URL", raising=False)
        with pytest.raises(ConfigurationError, match="set WORKERS_TEST_REDIS_URL or QUEUE_URL"):
            async with worker_test(processors=[double], store="redis"):
                pass


@pytest.fixture
def worker_providers(app: App) -> list[Provider]:
    return [app, WorkersModule.for_root(processors=[double])]


class TestPlugin:
    async def test_the_fixture_is_over_the_projects_providers(self, workers: WorkerTest) -> None:
        handle = await workers.dispatcher.perform_later(double, 4)
        assert await workers.drain() == 1
        assert await handle.result() == 8

    @pytest.mark.workers_mode("foreground_blocking")
    async def test_the_mode_marker(self, workers: WorkerTest) -> None:
        assert await (await workers.dispatcher.perform_later(double, 4)).result() == 8

    @pytest.mark.store("sqlite")
    async def test_the_store_marker(self, workers: WorkerTest) -> None:
        await workers.dispatcher.perform_later(double, 4)
        assert (await workers.store.open()).kind.value == "sqlite"
        assert await workers.drain() == 1
