"""The older, Redis-only guide to Loco's workers, ported: one worker, its registration, three modes, a test."""

from collections.abc import AsyncIterator

import pytest
from dishka import Provider, Scope, make_async_container
from pydantic import BaseModel

from tests.servers import shared_redis
from workers_module import (
    Dispatcher,
    Inspector,
    JobFailedError,
    Worker,
    WorkersModule,
    WorkersSettings,
    process,
    processor,
    run_workers,
)
from workers_module.job.job import Job
from workers_module.testing import WorkerTest, worker_test


class DownloadWorkerArgs(BaseModel):
    user_guid: str


class Downloads(list[str]):
    def __init__(self) -> None:
        super().__init__()


class DownloadWorker(Worker[DownloadWorkerArgs, None]):
    def __init__(self, downloads: Downloads) -> None:
        self.downloads = downloads

    async def perform(self, args: DownloadWorkerArgs, /) -> None:
        if not args.user_guid:
            raise ValueError("nobody to download for")
        self.downloads.append(args.user_guid)


class UsersController:
    """Enqueues from a web handler, with typed arguments."""

    def __init__(self, jobs: Dispatcher) -> None:
        self.jobs = jobs

    async def register(self, user_guid: str) -> None:
        await self.jobs.perform_later(DownloadWorker, DownloadWorkerArgs(user_guid=user_guid))


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.provide_all(Downloads, UsersController)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def t(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerTest]:
    if request.param == "redis":
        monkeypatch.setenv("WORKERS_TEST_REDIS_URL", shared_redis()[0])
    async with worker_test(App(), processors=[DownloadWorker], store=request.param) as t:
        yield t


async def test_a_worker_that_is_registered_performs_what_the_controller_enqueues(t: WorkerTest) -> None:
    await (await t.get(UsersController)).register("ada")
    assert [job.data for job in t.enqueued(DownloadWorker)] == [DownloadWorkerArgs(user_guid="ada")]
    await t.drain()
    assert await t.get(Downloads) == ["ada"]


async def test_an_error_as_result_fails_the_job(t: WorkerTest) -> None:
    handle = await t.dispatcher.perform_later(DownloadWorker, DownloadWorkerArgs(user_guid=""))
    with pytest.raises(ValueError, match="nobody to download for"):
        await t.drain()
    with pytest.raises(JobFailedError, match="nobody to download for"):
        await handle.result()


async def test_a_test_boots_the_application_in_the_foreground_and_asserts_after_the_call() -> None:
    async with worker_test(App(), processors=[DownloadWorker], mode="foreground_blocking") as t:
        await (await t.get(UsersController)).register("ada")
        assert await t.get(Downloads) == ["ada"]
        with pytest.raises(ValueError, match="nobody"):
            await (await t.get(UsersController)).register("")


@pytest.mark.parametrize("mode", ["foreground_blocking", "background_async"])
async def test_each_mode_needs_no_server_and_no_other_code(mode: str) -> None:
    module = WorkersModule.for_root(WorkersSettings(mode=mode), processors=[DownloadWorker])
    container = make_async_container(App(), module)
    async with run_workers(container, close_container=True):
        await (await container.get(Dispatcher)).run_job(DownloadWorker, DownloadWorkerArgs(user_guid="ada"))
        assert await container.get(Downloads) == ["ada"]


@pytest.mark.redis
async def test_a_flush_at_start_empties_its_own_prefix_and_no_other() -> None:
    url, prefix = shared_redis()
    ours, theirs = (WorkersSettings(queue={"uri": url, "prefix": f"{prefix}-{whose}"}) for whose in ("ours", "theirs"))
    for settings in (ours, theirs):
        container = make_async_container(WorkersModule.for_root(settings, processors=[ThumbnailWorker]))
        await (await container.get(Dispatcher)).perform_later(ThumbnailWorker.make, 1)
        await container.close()

    flushing = WorkersSettings(queue={"uri": url, "prefix": f"{prefix}-ours", "dangerously_flush": True})
    left: list[int] = []
    for settings in (flushing, theirs):
        container = make_async_container(WorkersModule.for_root(settings, processors=[ThumbnailWorker]))
        async with run_workers(container, only=[], close_container=True):
            left.append((await (await container.get(Inspector)).counts("thumbnails")).waiting)
    assert left == [0, 1]


@processor("thumbnails", concurrency=2)
class ThumbnailWorker:
    @process("make")
    async def make(self, job: Job[int]) -> int:
        return job.data


@pytest.mark.redis
async def test_workers_compete_for_the_jobs_of_one_redis() -> None:
    url, prefix = shared_redis()
    settings = WorkersSettings(queue={"uri": url, "prefix": f"{prefix}-loco"})
    first, second = (
        make_async_container(WorkersModule.for_root(settings, processors=[ThumbnailWorker])) for _ in range(2)
    )
    jobs = await first.get(Dispatcher)
    async with run_workers(first, close_container=True), run_workers(second, close_container=True):
        handles = [await jobs.perform_later(ThumbnailWorker.make, n) for n in range(20)]
        assert [await handle.result() for handle in handles] == list(range(20))
