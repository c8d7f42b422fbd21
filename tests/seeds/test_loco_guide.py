"""The current guide to Loco's workers, ported: typed arguments, tags, modes, upkeep of jobs, generated code."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from dishka import AsyncContainer, Provider, Scope, make_async_container
from pydantic import BaseModel, ValidationError

from tests.cli.conftest import Cli
from workers_module import (
    ConfigurationError,
    Dispatcher,
    Inspector,
    Job,
    JobCancelledError,
    JobHandle,
    JobsAdmin,
    Worker,
    WorkerMode,
    WorkersModule,
    WorkersSettings,
    process,
    processor,
    run_workers,
)
from workers_module.store.values import JobSpec
from workers_module.testing import WorkerTest, worker_test


class DownloadArgs(BaseModel):
    user_guid: str
    url: str = "https://example.org"


class AppContext:
    """What all workers of a process share."""

    def __init__(self) -> None:
        self.downloaded: list[str] = []


@processor("downloads", tags=("download", "network"))
class DownloadWorker(Worker[DownloadArgs, int]):
    """A worker with a queue and tags of its own, built from the application's context."""

    def __init__(self, ctx: AppContext) -> None:
        self.ctx = ctx

    async def perform(self, args: DownloadArgs, /) -> int:
        self.ctx.downloaded.append(args.user_guid)
        return len(self.ctx.downloaded)


class ReportWorker(Worker[DownloadArgs, str]):
    """Without a queue of its own: it is on ``default``, under its bare name."""

    async def perform(self, args: DownloadArgs, /) -> str:
        if not args.user_guid:
            raise ValueError("no user")
        return f"report of {args.user_guid}"


class LegacyWorker(Worker[DownloadArgs, str]):
    job_name = "report_v1"

    async def perform(self, args: DownloadArgs, /) -> str:
        return "old report"


class App(Provider):
    scope = Scope.APP

    def __init__(self) -> None:
        super().__init__()
        self.provide(AppContext)


WORKERS = [DownloadWorker, ReportWorker, LegacyWorker]
ADA = DownloadArgs(user_guid="ada")


def build(settings: WorkersSettings) -> AsyncContainer:
    return make_async_container(App(), WorkersModule.for_root(settings, processors=WORKERS))


@pytest.fixture
async def t() -> AsyncIterator[WorkerTest]:
    async with worker_test(App(), processors=WORKERS) as t:
        yield t


class TestWorkers:
    async def test_are_built_from_the_context_and_perform_later(self, t: WorkerTest) -> None:
        handle = await t.dispatcher.perform_later(DownloadWorker, ADA)
        [waiting] = t.enqueued(DownloadWorker)
        assert (waiting.queue, waiting.name, waiting.tags) == ("downloads", "DownloadWorker", ("download", "network"))
        await t.drain()
        assert await handle.result() == 1
        assert (await t.get(AppContext)).downloaded == ["ada"]

    async def test_have_the_class_s_name_and_the_default_queue_unless_they_say_otherwise(self, t: WorkerTest) -> None:
        await t.dispatcher.perform_later(ReportWorker, ADA)
        await t.dispatcher.perform_later(LegacyWorker, ADA)
        assert [(job.queue, job.name) for job in t.enqueued()] == [
            ("default", "ReportWorker"),
            ("default", "report_v1"),
        ]

    async def test_refuse_arguments_of_another_type_at_the_call_and_in_the_worker(
        self, t: WorkerTest, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.CRITICAL)
        with pytest.raises(ValidationError):
            await t.dispatcher.perform_later("ReportWorker", {"user": "ada"})
        assert t.enqueued() == []

        foreign = JobSpec(queue="default", name="ReportWorker", data=b'{"user": "ada"}')
        await t.store.add([foreign])
        await t.drain(raise_errors=False)
        [failed] = t.jobs("default", "failed")
        assert "user_guid" in str(failed.error)


class TestModes:
    """Which store, and whether there is one, is configuration alone."""

    @pytest.mark.parametrize(
        ("file", "kind", "mode"),
        [
            ("", "memory", WorkerMode.BACKGROUND_ASYNC),
            ('mode = "foreground_blocking"', "memory", WorkerMode.FOREGROUND_BLOCKING),
            ('[queue]\nuri = "sqlite:///jobs.db?mode=rwc"', "sqlite", WorkerMode.BACKGROUND_QUEUE),
            ('[queue]\nkind = "redis"\nuri = "redis://h"', "redis", WorkerMode.BACKGROUND_QUEUE),
            ('[queue]\nkind = "postgres"\nuri = "postgres://h/db"', "postgres", WorkerMode.BACKGROUND_QUEUE),
        ],
    )
    def test_the_file_of_the_environment_says_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, kind: str, mode: WorkerMode
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "workers.staging.toml").write_text(file, encoding="utf-8")
        monkeypatch.setenv("ENVIRONMENT", "staging")
        settings = WorkersSettings()
        assert (settings.queue.kind, settings.mode) == (kind, mode)

    async def test_the_code_is_the_same(self, tmp_path: Path) -> None:
        for values in (
            {"mode": "background_async"},
            {"mode": "foreground_blocking"},
            {"queue": {"uri": f"sqlite:///{tmp_path / 'jobs.db'}?mode=rwc"}, "tags": "download"},
        ):
            container = build(WorkersSettings(**{"tags": "network", **values}))
            async with run_workers(container, close_container=True):
                assert await (await container.get(Dispatcher)).run_job(DownloadWorker, ADA) == 1

    async def test_num_workers_is_how_many_jobs_run_at_once(self) -> None:
        assert WorkersSettings(queue={"num_workers": 4}).concurrency == 4

    @pytest.mark.parametrize(("given", "own", "at_once"), [(4, None, 4), (4, 2, 2)])
    async def test_no_more_jobs_of_a_processor_run_at_once(self, given: int, own: int | None, at_once: int) -> None:
        running, full, go_on = list[int](), anyio.Event(), anyio.Event()

        @processor("crowd", concurrency=own)
        class Crowd:
            @process("enter")
            async def enter(self, job: Job[int]) -> None:
                running.append(job.data)
                if len(running) == at_once:
                    full.set()
                await go_on.wait()

        settings = WorkersSettings(mode="background_async", queue={"num_workers": given})
        container = make_async_container(WorkersModule.for_root(settings, processors=[Crowd]))
        async with run_workers(container, close_container=True):
            jobs = await container.get(Dispatcher)
            handles = [await jobs.perform_later(Crowd.enter, n) for n in range(8)]
            await full.wait()
            counts = await (await container.get(Inspector)).counts("crowd")
            assert (len(running), counts.active) == (at_once, at_once)
            go_on.set()
            for handle in handles:
                await handle.result()

    async def test_a_dangerous_flush_empties_the_queues_at_start(self, tmp_path: Path) -> None:
        queue = {"uri": f"sqlite:///{tmp_path / 'jobs.db'}"}
        first = build(WorkersSettings(queue=queue))
        await (await first.get(Dispatcher)).perform_later(ReportWorker, ADA)
        await first.close()
        second = build(WorkersSettings(queue={**queue, "dangerously_flush": True}))
        async with run_workers(second, only=[], close_container=True):
            assert await (await second.get(Inspector)).queues() == []
        with pytest.raises(ConfigurationError, match="DANGEROUSLY_FLUSH"):
            WorkersSettings(environment="production", queue={**queue, "dangerously_flush": True})


class TestTags:
    """The four rules: who takes which jobs."""

    @pytest.mark.parametrize(
        ("worker", "takes"),
        [
            pytest.param("", {"none"}, id="without tags: jobs without tags only"),
            pytest.param("download", {"download", "both"}, id="with a tag: jobs that share it, and no others"),
            pytest.param("network, download", {"download", "network", "both"}, id="a list means any of them"),
            pytest.param("Download", set[str](), id="case matters"),
        ],
    )
    async def test_a_worker_takes(self, tmp_path: Path, worker: str, takes: set[str]) -> None:
        settings = WorkersSettings(queue={"uri": f"sqlite:///{tmp_path / 'jobs.db'}"}, tags=worker)
        container = build(settings)
        jobs = await container.get(Dispatcher)
        handles: dict[str, JobHandle[str]] = {}
        for label, tags in {"none": [], "download": ["download"], "network": ["network"], "both": None}.items():
            options: dict[str, Any] = {"tags": ["download", "network"] if tags is None else tags}
            handles[label] = await jobs.perform_later(ReportWorker, ADA, **options)
        async with run_workers(container, close_container=True):
            # The last job it could want has come and gone, so it has had every chance to take the others.
            last = await jobs.perform_later(ReportWorker, ADA, tags=list(settings.tags))
            for handle in [*(handles[label] for label in takes), last]:
                assert await handle.result() == "report of ada"
            left = {label for label, handle in handles.items() if await handle.state() == "waiting"}
        assert left == handles.keys() - takes

    async def test_a_worker_s_tags_are_put_on_its_jobs_unless_the_call_says_otherwise(self, t: WorkerTest) -> None:
        await t.dispatcher.perform_later(DownloadWorker, ADA)
        await t.dispatcher.perform_later(DownloadWorker, ADA, tags=["slow"])
        assert [job.tags for job in t.enqueued()] == [("download", "network"), ("slow",)]


class TestUpkeep:
    """``cargo loco jobs``: each command is a method of `JobsAdmin` too."""

    async def test_cancel_by_name(self, t: WorkerTest) -> None:
        handle = await t.dispatcher.perform_later(ReportWorker, ADA)
        await t.dispatcher.perform_later(LegacyWorker, ADA)
        assert await (await t.get(JobsAdmin)).cancel(["ReportWorker"]) == 1
        assert await t.drain() == 1
        with pytest.raises(JobCancelledError):
            await handle.result()
        assert [job.name for job in t.jobs("default") if job.cancelled] == ["ReportWorker"]

    async def test_a_running_job_is_asked_to_stop_where_told(self) -> None:
        begun = anyio.Event()

        @processor("slow")
        class SlowWorker(Worker[int, None]):
            async def perform(self, args: int, /) -> None:
                begun.set()
                await anyio.sleep_forever()

        settings = WorkersSettings(mode="background_async", lease="300ms")
        container = make_async_container(WorkersModule.for_root(settings, processors=[SlowWorker]))
        async with run_workers(container, close_container=True):
            handle = await (await container.get(Dispatcher)).perform_later(SlowWorker, 1)
            await begun.wait()
            admin = await container.get(JobsAdmin)
            assert await admin.cancel("SlowWorker") == 0
            assert await admin.cancel("SlowWorker", running=True) == 1
            with pytest.raises(JobCancelledError):
                await handle.result()

    async def test_tidy_takes_what_completed_or_was_cancelled(self, t: WorkerTest) -> None:
        admin = await t.get(JobsAdmin)
        await t.dispatcher.perform_later(ReportWorker, ADA)
        await t.dispatcher.perform_later(ReportWorker, DownloadArgs(user_guid=""))
        await t.drain(raise_errors=False)
        await t.dispatcher.perform_later(ReportWorker, ADA)
        await admin.cancel("ReportWorker")
        await t.dispatcher.perform_later(LegacyWorker, ADA)
        assert await admin.tidy() == 2
        assert [job.state for job in t.jobs("default")] == ["waiting", "failed"]

    async def test_purge_takes_what_is_old_and_writes_it_down_first(self, t: WorkerTest, here: Path) -> None:
        await t.dispatcher.perform_later(ReportWorker, DownloadArgs(user_guid=""))
        await t.drain(raise_errors=False)
        t.clock.set(t.clock.now().replace(year=t.clock.now().year + 1))
        await t.dispatcher.perform_later(ReportWorker, ADA)
        assert await (await t.get(JobsAdmin)).purge("90d", dump=here / "old.json") == 1
        assert [job.data for job in t.jobs("default")] == [ADA]
        [old] = json.loads((here / "old.json").read_text(encoding="utf-8"))["jobs"]
        assert (old["name"], old["state"], old["data"]["user_guid"]) == ("ReportWorker", "failed", "")

    @pytest.mark.parametrize("form", ["json", "yaml"])
    async def test_a_dump_may_be_edited_by_hand_and_imported(self, t: WorkerTest, here: Path, form: Any) -> None:
        admin = await t.get(JobsAdmin)
        handle = await t.dispatcher.perform_later(ReportWorker, DownloadArgs(user_guid=""))
        await t.drain(raise_errors=False)
        assert await admin.dump(here / "backup", "failed", format=form) == 1
        await t.advance("1m")
        assert await admin.purge("30s", "failed") == 1
        assert t.jobs("default") == []

        file = here / "backup" / f"default.{form}"
        text = file.read_text(encoding="utf-8")
        assert "no user" in text
        edited = text.replace('"user_guid": ""', '"user_guid": "ada"').replace("user_guid: ''", "user_guid: ada")
        edited = edited.replace('"state": "failed"', '"state": "waiting"').replace("state: failed", "state: waiting")
        file.write_text(edited, encoding="utf-8")

        assert (await admin.import_(file, dry_run=True, edited=True)).added == {"default": 1}
        assert t.enqueued() == []
        assert (await admin.import_(file, edited=True)).added == {"default": 1}
        assert await t.drain() == 1
        assert await handle.result() == "report of ada"

    async def test_import_checks_payloads_before_anything_is_stored(self, t: WorkerTest, here: Path) -> None:
        wrong = {"queue": "default", "id": "1", "name": "ReportWorker", "state": "waiting", "data": {"user": "ada"}}
        (here / "mine.json").write_text(json.dumps({"schema": "workers.jobs/v1", "jobs": [wrong]}), encoding="utf-8")
        report = await (await t.get(JobsAdmin)).import_(here / "mine.json")
        assert (report.added, len(report.refused)) == ({}, 1)
        assert t.enqueued() == []


class TestGenerate:
    def test_a_worker_its_place_and_its_test(self, bare: Cli, here: Path) -> None:
        bare.ok("generate worker report_worker --module acme.workers")
        code = (here / "acme/workers/report.py").read_text(encoding="utf-8")
        assert "class ReportWorker(" in code
        assert "WorkerWorker" not in code
        assert (here / "tests/workers/test_report.py").exists()


async def test_tests_run_in_the_foreground() -> None:
    async with worker_test(App(), processors=WORKERS, mode="foreground_blocking") as t:
        await t.dispatcher.perform_later(DownloadWorker, ADA)
        assert (await t.get(AppContext)).downloaded == ["ada"]
