"""The guide to BullMQ workers in a NestJS application, ported piece by piece.

Each class stands as its reader would write it; each test is a promise of that guide.
"""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Annotated, Any
from unittest.mock import AsyncMock

import pytest
from dishka import AsyncContainer, FromDishka, Provider, Scope, make_async_container
from pydantic import BaseModel

from workers_module import (
    Backoff,
    CronExpression,
    Dispatcher,
    DistributedLockService,
    InjectQueue,
    Inspector,
    Job,
    Queue,
    Repeat,
    RetryLaterError,
    UnknownWorkerError,
    UnrecoverableError,
    WorkerHost,
    Workers,
    WorkersModule,
    WorkersSettings,
    cron,
    on_worker_event,
    process,
    processor,
    run_workers,
)
from workers_module.testing import WorkerTest, worker_test


class EmailJob(BaseModel):
    email: str
    name: str = ""


class Sent(BaseModel):
    success: bool


class MailService:
    async def send(self, to: str, subject: str) -> None:
        raise AssertionError("no test sends real mail")


class Heard(list[str]):
    """What listeners and ticks have noted."""

    def __init__(self) -> None:
        super().__init__()


@processor("email")
class EmailWorker(WorkerHost):
    """One method for all jobs of the queue, as the guide has it."""

    def __init__(self, mails: MailService, heard: Heard) -> None:
        self.mails = mails
        self.heard = heard

    async def process(self, job: Job[EmailJob]) -> Sent:
        match job.name:
            case "welcome":
                return await self._send_welcome(job)
            case name:
                raise LookupError(f"unknown job {name}")

    async def _send_welcome(self, job: Job[EmailJob]) -> Sent:
        await job.update_progress(50)
        await self.mails.send(job.data.email, f"Welcome, {job.data.name}!")
        await job.update_progress(100)
        return Sent(success=True)

    @on_worker_event("completed")
    async def on_completed(self, job: Job[EmailJob], result: Sent) -> None:
        self.heard.append(f"completed {job.id}: {result.success}")

    @on_worker_event("failed")
    async def on_failed(self, job: Job[EmailJob], error: Exception) -> None:
        self.heard.append(f"failed {job.id}: {error}")

    @on_worker_event("progress")
    async def on_progress(self, job: Job[EmailJob], progress: int) -> None:
        self.heard.append(f"progress {job.id}: {progress}")


class UserService:
    """Any service may have a queue injected, by its name."""

    def __init__(self, emails: Annotated[Queue[EmailJob], InjectQueue("email")]) -> None:
        self.emails = emails

    async def register(self, email: str, name: str) -> str:
        handle = await self.emails.add(
            "welcome",
            EmailJob(email=email, name=name),
            attempts=3,
            backoff=Backoff.exponential("1s"),
            delay="5s",
            priority=1,
            remove_on_fail=False,
        )
        return handle.id


class TickerWorker:
    """Schedules need no queue; only one instance does the work of a tick."""

    def __init__(self, locks: DistributedLockService, heard: Heard) -> None:
        self.locks = locks
        self.heard = heard

    @cron(CronExpression.EVERY_10_SECONDS)
    async def update_tickers(self) -> None:
        if not await self.locks.acquire("sync-data", "30s"):
            self.heard.append("somebody else syncs")
            return
        try:
            self.heard.append("synced")
        finally:
            await self.locks.release("sync-data")

    @cron("0 0 * * *")
    async def daily_cleanup(self) -> None:
        self.heard.append("cleaned up")


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.provide(MailService)
        self.provide(Heard)
        self.provide(UserService, scope=Scope.REQUEST)


ADA = EmailJob(email="ada@example.org", name="Ada")


@pytest.fixture
def mails() -> AsyncMock:
    return AsyncMock(spec=MailService)


@pytest.fixture
async def t(mails: AsyncMock) -> AsyncIterator[WorkerTest]:
    async with worker_test(App(), processors=[EmailWorker], overrides={MailService: mails}) as t:
        yield t


@pytest.fixture
async def emails(t: WorkerTest) -> Queue[EmailJob]:
    queue: Queue[EmailJob] = await t.get(Annotated[Queue[EmailJob], InjectQueue("email")])
    return queue


@pytest.fixture
async def ticking() -> AsyncIterator[WorkerTest]:
    async with worker_test(App(), processors=[EmailWorker, TickerWorker]) as t:
        yield t


class TestProcessor:
    async def test_a_job_added_by_a_service_reaches_the_worker_with_its_options(
        self, t: WorkerTest, mails: AsyncMock
    ) -> None:
        id = await (await t.get(UserService)).register(ADA.email, ADA.name)

        [waiting] = t.enqueued()
        assert (waiting.id, waiting.name, waiting.data, waiting.priority, waiting.attempts) == (
            id,
            "welcome",
            ADA,
            1,
            3,
        )
        assert await t.drain() == 0
        assert await t.advance("5s") == 1
        mails.send.assert_awaited_once_with("ada@example.org", "Welcome, Ada!")
        [done] = t.jobs("email", "completed")
        assert done.return_value == {"success": True}

    async def test_listeners_hear_of_progress_and_ends(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        good = await emails.add("welcome", ADA)
        bad = await emails.add("nonsense", ADA)
        await t.drain(raise_errors=False)
        assert await t.get(Heard) == [
            f"progress {good.id}: 50",
            f"progress {good.id}: 100",
            f"completed {good.id}: True",
            f"failed {bad.id}: unknown job nonsense",
        ]

    async def test_a_throwing_worker_is_tried_again_after_1_and_2_seconds(
        self, t: WorkerTest, emails: Queue[EmailJob], mails: AsyncMock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        mails.send.side_effect = [ConnectionError("down"), ConnectionError("down"), None]
        handle = await emails.add("welcome", ADA, attempts=3, backoff=Backoff.exponential("1s"))
        started = [await t.drain(), await t.advance("999ms"), await t.advance("1ms"), await t.advance("2s")]
        assert started == [1, 0, 1, 1]
        assert await handle.result() == Sent(success=True)

    async def test_what_a_worker_may_say_about_its_retries(self) -> None:
        attempts: list[int] = []

        @processor("calls")
        class Caller:
            @process("give-up")
            async def give_up(self, job: Job[int]) -> None:
                attempts.append(job.attempt)
                raise UnrecoverableError("no such number")

            @process("busy")
            async def busy(self, job: Job[int]) -> None:
                attempts.append(job.attempt)
                if len(attempts) < 3:
                    raise RetryLaterError("1m")

        async with worker_test(processors=[Caller]) as t:
            await t.dispatcher.perform_later(Caller.give_up, 1, attempts=5)
            await t.advance("1h", raise_errors=False)
            assert attempts == [1]
            attempts.clear()
            await t.dispatcher.perform_later(Caller.busy, 1)
            assert await t.advance("5m") == 3
            assert attempts == [1, 1, 1]

    async def test_a_job_may_name_its_hour(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        await emails.add("welcome", ADA, run_at=t.clock.now() + timedelta(hours=1))
        assert (await t.advance("59m"), await t.advance("1m")) == (0, 1)

    async def test_a_listener_that_fails_changes_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        @processor("calls")
        class Caller:
            @process("call")
            async def call(self, job: Job[int]) -> int:
                return job.data

            @on_worker_event("completed")
            async def failing(self, job: Job[int]) -> None:
                raise RuntimeError("the listener's own trouble")

            @on_worker_event("completed")
            async def another(self, job: Job[int], heard: FromDishka[Heard]) -> None:
                heard.append(job.name)

        async with worker_test(App(), processors=[EmailWorker, Caller]) as t:
            handle = await t.dispatcher.perform_later(Caller.call, 1)
            await t.drain()
            assert await handle.result() == 1
            assert await t.get(Heard) == ["call"]
        assert "listener Caller.failing failed on completed" in caplog.text

    async def test_each_run_is_logged_with_its_particulars(
        self, t: WorkerTest, emails: Queue[EmailJob], caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, logger="workers_module.worker")
        handle = await emails.add("nonsense", ADA)
        await t.drain(raise_errors=False)
        started, ended = [vars(record) for record in caplog.records if hasattr(record, "job_id")]
        for record in (started, ended):
            particulars = (record["queue"], record["job_name"], record["job_id"], record["attempt"])
            assert particulars == ("email", "nonsense", handle.id, 1)
        assert (ended["outcome"], ended["levelname"]) == ("failed", "WARNING")
        assert ended["duration_ms"] >= 0

    async def test_errors_are_kept_with_their_trace(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        await emails.add("nonsense", ADA)
        await t.drain(raise_errors=False)
        [failed] = t.jobs("email", "failed")
        assert failed.error == "unknown job nonsense"
        [trace] = failed.traces
        assert "raise LookupError" in trace

    async def test_lower_priorities_go_first(self, t: WorkerTest, emails: Queue[EmailJob], mails: AsyncMock) -> None:
        for name, priority in (("third", 3), ("first", 1), ("second", 2)):
            await emails.add("welcome", EmailJob(email=name), priority=priority)
        await t.drain()
        assert [call.args[0] for call in mails.send.await_args_list] == ["first", "second", "third"]

    async def test_records_go_or_stay_as_told(
        self, t: WorkerTest, emails: Queue[EmailJob], mails: AsyncMock, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        await emails.add("welcome", ADA, remove_on_complete=True)
        await emails.add("nonsense", ADA, remove_on_fail=False)
        await t.drain(raise_errors=False)
        assert [job.name for job in t.jobs("email")] == ["nonsense"]

    async def test_the_guide_s_own_json_of_options_is_understood(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        await emails.add(
            "welcome",
            ADA,
            {
                "attempts": 3,
                "backoff": {"type": "exponential", "delay": 1000},
                "delay": 5000,
                "priority": 1,
                "removeOnComplete": True,
            },
        )
        assert await t.advance("4999ms") == 0
        assert await t.advance("1ms") == 1
        assert t.jobs("email") == []


class TestOperating:
    async def test_pause_and_resume(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        await emails.pause()
        await emails.add("welcome", ADA)
        assert await emails.is_paused()
        assert await t.drain() == 0
        await emails.resume()
        assert await t.drain() == 1

    async def test_counts_by_state(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        await emails.add("welcome", ADA)
        await emails.add("nonsense", ADA)
        await t.drain(raise_errors=False)
        await emails.add("welcome", ADA)
        await emails.add("welcome", ADA, delay="1h")
        counts = await emails.get_job_counts()
        assert (counts.waiting, counts.delayed, counts.active, counts.completed, counts.failed) == (1, 1, 0, 1, 1)

    async def test_clean_deletes_what_is_older_by_state(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        old = [await emails.add("welcome", ADA), await emails.add("nonsense", ADA)]
        await t.drain(raise_errors=False)
        await t.advance("30m")
        await emails.add("welcome", ADA)
        await t.drain()
        assert await emails.clean("20m", "completed") == [old[0].id]
        assert await emails.clean("20m", "failed") == [old[1].id]
        assert len(t.jobs("email")) == 1

    async def test_a_repeatable_job(self, t: WorkerTest, emails: Queue[EmailJob]) -> None:
        for _ in range(2):
            await emails.add("welcome", ADA, repeat=Repeat(pattern="*/5 * * * *"))
        assert await t.advance("15m") == 3
        assert len(await (await t.get(Inspector)).schedules("email")) == 1


class TestSchedules:
    async def test_a_tick_calls_the_method(self, ticking: WorkerTest) -> None:
        await ticking.advance("30s")
        assert await ticking.get(Heard) == ["synced"] * 3

    async def test_midnight_comes_once_a_day(self, ticking: WorkerTest) -> None:
        ticking.clock.set(ticking.clock.now().replace(hour=23, minute=59, second=59))
        await ticking.advance("2s")
        assert (await ticking.get(Heard)).count("cleaned up") == 1

    async def test_only_the_holder_of_the_lock_does_the_work(self, ticking: WorkerTest) -> None:
        other_instance = DistributedLockService(ticking.store)
        held = await other_instance.acquire("sync-data", "15s")
        assert held is not None
        await ticking.advance("20s")
        assert await ticking.get(Heard) == ["somebody else syncs", "synced"]

    async def test_a_lock_is_given_back_by_its_holder_alone(self, ticking: WorkerTest) -> None:
        mine, theirs = DistributedLockService(ticking.store), DistributedLockService(ticking.store)
        assert await mine.acquire("sync-data", "1m")
        assert await theirs.acquire("sync-data", "1m") is None
        assert not await theirs.release("sync-data")
        assert await mine.release("sync-data")
        assert await theirs.acquire("sync-data", "1m")


class TestModule:
    """`WorkersModule` and the variables that say what runs where."""

    @pytest.fixture
    async def container(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncContainer]:
        monkeypatch.setenv("WORKERS_MODE", "background_async")
        container = make_async_container(App(), WorkersModule.for_root(processors=[EmailWorker, TickerWorker]))
        yield container
        await container.close()

    @pytest.mark.parametrize(
        ("variables", "running"),
        [
            ({}, ("email", "ticker")),
            ({"ENABLED_WORKERS": "all"}, ("email", "ticker")),
            ({"ENABLED_WORKERS": "ticker"}, ("ticker",)),
            ({"ENABLED_WORKERS": " email , ticker "}, ("email", "ticker")),
            ({"WORKERS_ENABLED": "false"}, ()),
        ],
    )
    async def test_the_environment_says_which_workers_run(
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
            # Whatever runs here, jobs can be enqueued and locks taken.
            await (await container.get(Dispatcher)).perform_later("email.welcome", ADA, delay="1h")
            assert await (await container.get(DistributedLockService)).acquire("sync-data", "1s")

    async def test_an_unknown_name_stops_the_start_and_lists_the_known_ones(
        self, container: AsyncContainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ENABLED_WORKERS", "email,candles")
        with pytest.raises(UnknownWorkerError, match="ENABLED_WORKERS names 'candles'; known workers: email, ticker"):
            async with run_workers(container):
                pass

    async def test_the_address_comes_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_REDIS_URL", "redis://queues:6379")
        settings = WorkersSettings()
        assert settings.queue.uri is not None
        assert settings.queue.uri.get_secret_value() == "redis://queues:6379"
        assert (settings.mode, settings.queue.kind) == ("background_queue", "redis")

    async def test_queues_are_registered_several_at_once_and_settings_come_from_the_application(self) -> None:
        class Config:
            jobs = WorkersSettings(mode="background_async", concurrency=3)

        async def settings(config: Config) -> WorkersSettings:
            return config.jobs

        configuration = Provider(scope=Scope.APP)
        configuration.provide(Config)
        container = make_async_container(
            configuration, WorkersModule.for_root_async(settings), WorkersModule.register_queue("email", "ticker")
        )
        for name in ("email", "ticker"):
            queue: Queue[Any] = await container.get(Queue[Any], component=f"queue:{name}")
            assert (await queue.add("anything", {})).queue == name
        assert (await container.get(WorkersSettings)).concurrency == 3
        await container.close()

    async def test_two_instances_share_the_work(self, tmp_path: Any) -> None:
        settings = WorkersSettings(queue={"uri": f"sqlite:///{tmp_path / 'jobs.db'}"})
        first, second = (make_async_container(WorkersModule.for_root(settings, processors=[Sums])) for _ in range(2))
        async with run_workers(first, close_container=True) as one, run_workers(second, close_container=True) as two:
            assert one.running == two.running == ("sums",)
            handles = [await (await first.get(Dispatcher)).perform_later(Sums.double, n) for n in range(20)]
            assert [await handle.result() for handle in handles] == [2 * n for n in range(20)]
            assert isinstance(await second.get(Workers), Workers)


@processor("sums")
class Sums:
    @process("double")
    async def double(self, job: Job[int]) -> int:
        return 2 * job.data


class TestTesting:
    """Unit tests, as the guide writes them: a replaced provider, and a job made by hand."""

    async def test_the_worker_with_a_replaced_dependency(self, t: WorkerTest, mails: AsyncMock) -> None:
        worker = await t.get(EmailWorker)
        job = Job.fake(ADA, name="welcome")
        assert await worker.process(job) == Sent(success=True)
        mails.send.assert_awaited_once_with("ada@example.org", "Welcome, Ada!")
        assert job.progress == 100

    async def test_a_handler_that_may_run_twice(self, t: WorkerTest, mails: AsyncMock) -> None:
        await t.assert_idempotent("email.welcome", ADA)
