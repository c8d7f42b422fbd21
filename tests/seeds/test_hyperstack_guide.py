"""The guide to Hyperstack's workers, ported: performLater and performNow, in-process tests, statistics, truncation."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from dishka import AsyncContainer, make_async_container
from pydantic import BaseModel

from tests.cli.conftest import Cli
from tests.servers import shared_redis
from workers_module import (
    Dispatcher,
    Inspector,
    Job,
    JobCounts,
    JobState,
    Worker,
    WorkerMode,
    WorkersModule,
    WorkersSettings,
    processor,
    run_workers,
)
from workers_module.testing import WorkerTest, worker_test


class CalcArgs(BaseModel):
    number: int


class Report(BaseModel):
    number: int
    parts: list[int]


@processor("calculator")
class Calculator(Worker[CalcArgs, Report]):
    """A class with one method, on a queue of its own."""

    async def perform(self, args: CalcArgs, /) -> Report:
        return Report(number=args.number * 4, parts=[args.number] * 4)


FOUR_TIMES_21 = Report(number=84, parts=[21, 21, 21, 21])


def make_container() -> AsyncContainer:
    return make_async_container(WorkersModule.for_root(processors=[Calculator, Downloader]))


@processor("downloads")
class Downloader(Worker[CalcArgs, None]):
    async def perform(self, args: CalcArgs, /) -> None:
        if args.number < 0:
            raise ValueError("negative")


@pytest.fixture
def worker_providers() -> WorkersModule:
    """What the fixture `workers` is over, as ``test(root)`` is over the application's root."""
    return WorkersModule.for_root(processors=[Calculator, Downloader])


class TestPerform:
    async def test_later_in_standard_mode_lasts_as_long_as_storing_the_job(self, workers: WorkerTest) -> None:
        handle = await workers.dispatcher.perform_later(Calculator, CalcArgs(number=21))
        assert await handle.state() is JobState.WAITING
        assert await workers.drain() == 1
        assert await handle.result() == FOUR_TIMES_21

    @pytest.mark.workers_mode("foreground_blocking")
    async def test_later_in_process_lasts_until_the_job_has_finished(self, workers: WorkerTest) -> None:
        handle = await workers.dispatcher.perform_later(Calculator, CalcArgs(number=21))
        assert await handle.state() is JobState.COMPLETED
        assert await handle.result() == FOUR_TIMES_21

    @pytest.mark.parametrize("mode", list(WorkerMode))
    async def test_now_runs_at_once_whatever_the_mode(self, mode: WorkerMode, tmp_path: Path) -> None:
        uri = f"sqlite:///{tmp_path / 'jobs.db'}"
        module = WorkersModule.for_root(WorkersSettings(mode=mode, queue={"uri": uri}), processors=[Calculator])
        container = make_async_container(module)
        assert await (await container.get(Dispatcher)).perform_now(Calculator, CalcArgs(number=21)) == FOUR_TIMES_21
        assert await (await container.get(Inspector)).counts("calculator") == JobCounts()
        await container.close()

    @pytest.mark.parametrize("mode", ["foreground_blocking", "background_async"])
    async def test_results_are_values_to_compare_with_a_snapshot(self, mode: str) -> None:
        async with worker_test(processors=[Calculator], mode=mode) as t:
            now = await t.dispatcher.perform_now(Calculator, CalcArgs(number=21))
            handle = await t.dispatcher.perform_later(Calculator, CalcArgs(number=21))
            await t.drain()
            for result in (now, await handle.result()):
                assert result.model_dump_json() == '{"number":84,"parts":[21,21,21,21]}'


class TestInProcess:
    async def test_is_a_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKERS_IN_PROCESS", "true")
        monkeypatch.setenv("QUEUE_REDIS_URL", "redis://nobody.listens.here:1")
        container = make_container()
        async with run_workers(container, close_container=True) as running:
            handle = await (await container.get(Dispatcher)).perform_later(Calculator, CalcArgs(number=21))
            assert (running.running, await handle.result()) == ((), FOUR_TIMES_21)


@pytest.mark.redis
class TestTruncate:
    """Each test finds an empty place, and never touches what else is on the server."""

    @pytest.fixture
    async def neighbour(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Job[Any]]:
        url, prefix = shared_redis()
        monkeypatch.setenv("WORKERS_TEST_REDIS_URL", url)
        settings = WorkersSettings(queue={"uri": url, "prefix": f"{prefix}-neighbour"})
        container = make_async_container(WorkersModule.for_root(settings, processors=[Calculator]))
        handle = await (await container.get(Dispatcher)).perform_later(Calculator, CalcArgs(number=1))
        inspector = await container.get(Inspector)
        before = await inspector.get("calculator", handle.id)
        assert before is not None
        yield before
        assert await inspector.get("calculator", handle.id) == before
        await container.close()

    @pytest.mark.parametrize("truncate", [False, True])
    async def test_tests_do_not_see_each_other(self, neighbour: Job[Any], truncate: bool) -> None:
        for _ in range(2):
            async with worker_test(processors=[Calculator], store="redis", truncate=truncate) as t:
                assert t.jobs("calculator") == []
                await t.dispatcher.perform_later(Calculator, CalcArgs(number=21))
                assert len(t.enqueued()) == 1


class TestStats:
    """``start --worker --stats`` and the portal's ``.jobs``: one table."""

    NINE = ("name", "queue", "active", "completed", "delayed", "failed", "paused", "waiting", "waiting-children")

    @pytest.fixture
    def cli(self, bare: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
        monkeypatch.setenv("QUEUE_URL", f"sqlite:///{here}/jobs.db")
        monkeypatch.setenv("WORKERS_APP", f"{__name__}:make_container")
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
        return bare

    @pytest.mark.parametrize("command", ["stats", "start --worker --stats"])
    def test_nine_columns_in_their_order_and_a_row_for_each_worker(self, cli: Cli, command: str) -> None:
        for number in (1, -1):
            cli.ok("jobs add downloads Downloader", json.dumps({"number": number}))
        cli.ok("jobs add calculator Calculator", json.dumps({"number": 1}), "--delay", "1h")
        cli.ok("start --worker --drain")

        heads, *rows = [line.split() for line in cli.ok(command).splitlines()]
        assert tuple(heads) == self.NINE
        assert ["Calculator", "calculator", "0", "0", "1", "0", "0", "0", "0"] in rows
        assert ["Downloader", "downloads", "0", "1", "0", "1", "0", "0", "0"] in rows

    def test_the_portal_shows_the_same(self, cli: Cli) -> None:
        done = cli("shell", stdin=".jobs\n")
        assert done.code == 0
        assert all(column in done.out for column in self.NINE)
        assert "Downloader" in done.out
