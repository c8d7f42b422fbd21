"""Handlers away from the loop: threads that can be left behind, children that can be killed."""

import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from workers_module.clock import FrozenClock
from workers_module.di.target import child_command, open_handlers
from workers_module.errors import (
    ConfigurationError,
    JobCancelledError,
    JobCrashedError,
    JobTimeoutError,
    RemoteError,
    UnrecoverableError,
    WorkersError,
)
from workers_module.job.events import WorkerEvent
from workers_module.job.failure import failure_of
from workers_module.job.kind import JobKind
from workers_module.job.options import JobOptions
from workers_module.job.outcome import Completed, Failed, Retry, RetryLaterError, Snooze
from workers_module.job.record import Token
from workers_module.job.sandbox import Sandbox
from workers_module.job.stored import write_options
from workers_module.store.memory import MemoryStore
from workers_module.store.values import Claimed, JobSpec, Settle, Step
from workers_module.worker.capture import capturing
from workers_module.worker.context import JobContext
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.handler import Handler, HandlerSpec, Listener
from workers_module.worker.hooks import Hooks
from workers_module.worker.place import Runner
from workers_module.worker.run import CancelReason
from workers_module.worker.sandbox import ProcessRunner, ThreadRunner, needed_sandboxes

FARM = '''
import asyncio
import ctypes
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.from_thread
from dishka import FromDishka, Provider, Scope, make_async_container, provide

from workers_module.di.decorators import Worker, job, process, processor
from workers_module.errors import UnrecoverableError
from workers_module.job.job import Job
from workers_module.job.outcome import RetryLaterError
from workers_module.module import WorkersModule
from workers_module.worker.context import JobContext


# A thread left behind closes its application when the test's directory is no longer the current one.
GROUND = Path(__file__).parent


class Seed(str):
    """Of one attempt."""


class Barn(str):
    """Of the application."""


class Things(Provider):
    @provide(scope=Scope.APP)
    async def barn(self) -> AsyncIterator[Barn]:
        yield Barn("red")
        GROUND.joinpath("barn-closed").write_text(str(os.getpid()))

    @provide(scope=Scope.REQUEST)
    async def seed(self) -> AsyncIterator[Seed]:
        yield Seed("wheat")
        GROUND.joinpath("seed-closed").write_text(str(os.getpid()))


@processor("farm")
class Farm:
    def __init__(self, seed: Seed, barn: Barn) -> None:
        self.seed, self.barn = seed, barn

    @process("sum")
    async def sum(self, job: Job[list[int]]) -> int:
        return sum(job.data)

    @process("parts")
    async def parts(self, job: Job[None]) -> list[str]:
        return [self.seed, self.barn]

    @process("where")
    async def where(self, job: Job[None]) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "thread": threading.get_ident(),
            "loop": id(asyncio.get_running_loop()),
            "variable": os.environ.get("FARM_VARIABLE"),
        }

    @process("block-def")
    def block_def(self, job: Job[None], context: JobContext) -> str:
        anyio.from_thread.run(context.progress, {"half": True})
        context.log.warning("from a thread: %s", job.attempt)
        return threading.current_thread().name

    @process("progress")
    async def report(self, job: Job[None], context: JobContext) -> None:
        context.log("sown")
        await context.progress(50)
        context.log("reaped")

    @process("logging")
    async def log_records(self, job: Job[None]) -> None:
        logging.getLogger("farm").warning("the fox is back")

    @process("bad-progress")
    async def bad_progress(self, job: Job[None], context: JobContext) -> None:
        await context.progress({"when": object()})

    @process("bad-result")
    async def bad_result(self, job: Job[None]):
        return {"eggs": [1, object()]}

    @process("wrong")
    async def wrong(self, job: Job[None]) -> None:
        raise ZeroDivisionError("no cows to share")

    @process("never")
    async def never(self, job: Job[None]) -> None:
        raise UnrecoverableError("the field is gone")

    @process("later")
    async def later(self, job: Job[None]) -> None:
        raise RetryLaterError("90s")

    @process("leaving")
    async def leaving(self, job: Job[None]) -> None:
        sys.exit(4)

    @process("asleep")
    async def asleep(self, job: Job[None], context: JobContext) -> None:
        context.log("asleep in %s", os.getpid())
        Path("asleep").write_text(str(os.getpid()))
        time.sleep(60)

    @process("waiting")
    async def waiting(self, job: Job[None]) -> None:
        Path("waiting").write_text(str(os.getpid()))
        await anyio.sleep(60)

    @process("polite")
    async def polite(self, job: Job[None], context: JobContext) -> None:
        Path("polite").write_text(str(os.getpid()))
        while not context.cancelled:
            time.sleep(0.01)

    @process("family")
    async def family(self, job: Job[None]) -> None:
        grandchild = subprocess.Popen(["sleep", "60"])
        Path("family").write_text(str(grandchild.pid))
        time.sleep(60)

    @process("exit")
    async def exit(self, job: Job[None], context: JobContext) -> None:
        context.log("last words")
        os._exit(3)

    @process("segfault")
    async def segfault(self, job: Job[None]) -> None:
        ctypes.string_at(0)

    @process("print")
    async def print(self, job: Job[None]) -> str:
        print("a cow says moo")
        print("and moo again", file=sys.stderr)
        os.write(1, b"raw moo\\n")
        subprocess.run(["echo", "moo from afar"])
        return "printed"

    @process("doubt")
    async def doubt(self, job: Job[None]) -> bool:
        Path("doubt").touch()
        while not job.lease_in_doubt:
            await anyio.sleep(0.01)
        return True

    @process("children")
    async def children(self, job: Job[None], context: JobContext) -> list[object]:
        return [await context.children_values(), await context.children_values(Farm.sum)]


def make_container():
    return make_async_container(Things(), WorkersModule.for_root(processors=[Farm]))


def make_broken():
    raise RuntimeError("the barn burnt down")


def make_leaving():
    sys.exit(5)
'''


TARGET = "sandbox_farm:make_container"
Make = Callable[..., Runner]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the application into the current directory, where targets are looked for."""
    ground = tmp_path_factory.mktemp("farm")
    (ground / "sandbox_farm.py").write_text(FARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ground)
        patch.setattr(sys, "path", [*sys.path])
        patch.setenv("FARM_VARIABLE", "handed on")
        yield ground
    for name in ("sandbox_farm", "sandbox_one"):
        sys.modules.pop(name, None)


@pytest.fixture
def farm(ground: Path) -> Path:
    """Return the application's directory, without what earlier handlers left there."""
    for path in ground.iterdir():
        if path.is_file() and path.suffix != ".py":
            path.unlink()
    return ground


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(clock=FrozenClock())
    await store.open()
    yield store
    await store.close()


def process_runner(store: MemoryStore, target: str = TARGET, **settings: Any) -> Runner:
    settings = {"size": 1, "kill_after_ms": 500, **settings}
    return ProcessRunner(child_command(target), store=store, **settings)


def thread_runner(store: MemoryStore, target: str = TARGET, **settings: Any) -> Runner:
    serve = partial(open_handlers, target, anew=True)
    settings = {"size": 1, "kill_after_ms": 500, **settings}
    return ThreadRunner(serve, store=store, **settings)


@pytest.fixture(scope="module")
async def shared(ground: Path) -> AsyncIterator[dict[str, Runner]]:
    """Return runners with one place, for all tests that do it no harm."""
    nowhere = MemoryStore()
    runners = {"process": process_runner(nowhere), "thread": thread_runner(nowhere)}
    yield runners
    for runner in runners.values():
        await runner.close()


@pytest.fixture
def child(shared: dict[str, Runner], farm: Path, store: MemoryStore) -> Runner:
    shared["process"]._store = store
    return shared["process"]


@pytest.fixture
def thread(shared: dict[str, Runner], farm: Path, store: MemoryStore) -> Runner:
    shared["thread"]._store = store
    return shared["thread"]


@pytest.fixture(params=["process", "thread"])
def place(request: pytest.FixtureRequest) -> Runner:
    """Return the shared runner of either kind."""
    runner: Runner = request.getfixturevalue("child" if request.param == "process" else "thread")
    return runner


@pytest.fixture
async def children(farm: Path, store: MemoryStore) -> AsyncIterator[Make]:
    """Return what makes runners of the test's own."""
    runners: list[Runner] = []

    def make(target: str = TARGET, **settings: Any) -> Runner:
        runners.append(process_runner(store, target, **settings))
        return runners[-1]

    yield make
    for runner in runners:
        await runner.close()


@pytest.fixture
async def threads(farm: Path, store: MemoryStore) -> AsyncIterator[Make]:
    runners: list[Runner] = []

    def make(target: str = TARGET, **settings: Any) -> Runner:
        runners.append(thread_runner(store, target, **settings))
        return runners[-1]

    yield make
    for runner in runners:
        await runner.close()


@pytest.fixture(params=["process", "thread"])
def make(request: pytest.FixtureRequest) -> Make:
    """Return what makes a runner of either kind."""
    made: Make = request.getfixturevalue("children" if request.param == "process" else "threads")
    return made


async def claim(store: MemoryStore, name: str, data: object = None, **fields: Any) -> Claimed:
    spec = JobSpec(queue="farm", name=name, data=json.dumps(data).encode(), opts=b"{}", **fields)
    await store.add([spec])
    reply = await store.step(Step(queue="farm", worker="w", token=Token("t"), take=1))
    return reply.jobs[0]


def context_of(store: MemoryStore, claimed: Claimed) -> JobContext:
    return JobContext(claimed.record, claimed.held, store, max_bytes=10_000)


async def run(
    runner: Runner, store: MemoryStore, name: str, data: object = None, *, limit: int | None = None, **fields: Any
) -> Any:
    claimed = await claim(store, name, data, max_attempts=fields.pop("attempts", 1), **fields)
    with anyio.fail_after(20):
        return json.loads(await runner.run(claimed.record, context_of(store, claimed), limit))


async def logs(store: MemoryStore, context: JobContext, job_id: str) -> list[str]:
    await context.flush()
    page = await store.logs("farm", job_id)
    return [line.partition(" ")[2] for line in page.items]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await anyio.sleep(0.01)


async def pid_in(path: Path) -> int:
    """Return the number in a file, as soon as it is there."""
    await until(lambda: path.exists() and path.read_text())
    return int(await anyio.Path(path).read_text())


async def until_dead(pid: int) -> None:
    await until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        # A process that nobody has waited for is dead all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        os.kill(pid, 0)
        return True


class TestBoth:
    async def test_the_result_comes_back_as_json(self, place: Runner, store: MemoryStore) -> None:
        assert await run(place, store, "sum", [1, 2, 3]) == 6

    async def test_dependencies_of_both_scopes_are_built_there(self, place: Runner, store: MemoryStore) -> None:
        assert await run(place, store, "parts") == ["wheat", "red"]

    async def test_it_runs_in_another_loop(self, place: Runner, store: MemoryStore) -> None:
        import threading

        where = await run(place, store, "where")
        assert (where["pid"], where["thread"]) != (os.getpid(), threading.get_ident())

    async def test_progress_and_log_lines_reach_the_job(self, place: Runner, store: MemoryStore) -> None:
        claimed = await claim(store, "progress")
        context = context_of(store, claimed)
        with anyio.fail_after(20):
            await place.run(claimed.record, context, None)
        [stored] = await store.get("farm", [claimed.record.id])
        assert stored is not None
        assert stored.progress == b"50"
        assert await logs(store, context, claimed.record.id) == ["INFO sown", "INFO reaped"]

    async def test_progress_is_told_to_listeners(self, place: Runner, store: MemoryStore) -> None:
        told: list[WorkerEvent] = []
        claimed = await claim(store, "progress")
        context = JobContext(claimed.record, claimed.held, store, max_bytes=100, tell=told.append)
        with anyio.fail_after(20):
            await place.run(claimed.record, context, None)
        assert [event.progress for event in told] == [50]

    async def test_a_plain_function_runs_in_a_thread_and_can_report(self, place: Runner, store: MemoryStore) -> None:
        claimed = await claim(store, "block-def")
        context = context_of(store, claimed)
        with anyio.fail_after(20):
            await place.run(claimed.record, context, None)
        [stored] = await store.get("farm", [claimed.record.id])
        assert stored is not None
        assert stored.progress == b'{"half":true}'
        assert await logs(store, context, claimed.record.id) == ["WARNING from a thread: 1"]

    @pytest.mark.parametrize("captures", [True, False])
    async def test_log_records_go_to_the_job_where_they_are_captured(
        self, make: Make, store: MemoryStore, captures: bool
    ) -> None:
        claimed = await claim(store, "logging")
        context = context_of(store, claimed)
        with anyio.fail_after(20), capturing():
            await make(capture_logging=captures).run(claimed.record, context, None)
        expected = ["WARNING farm the fox is back"] if captures else []
        assert await logs(store, context, claimed.record.id) == expected

    async def test_a_lost_lease_is_told_to_the_handler(self, place: Runner, store: MemoryStore) -> None:
        claimed = await claim(store, "progress")
        await store.step(
            Step(queue="farm", worker="w", token=Token("u"), outcomes=[Settle(claimed.held, Completed(b"1"))])
        )
        with anyio.fail_after(20), pytest.raises(WorkersError, match="no longer this worker's"):
            await place.run(claimed.record, context_of(store, claimed), None)

    async def test_a_payload_that_does_not_fit_is_refused(self, place: Runner, store: MemoryStore) -> None:
        with pytest.raises(WorkersError, match=r"does not fit: \$\[0\]"):
            await run(place, store, "sum", ["wheat"])

    async def test_a_result_that_json_cannot_carry_is_refused_with_its_path(
        self, place: Runner, store: MemoryStore
    ) -> None:
        with pytest.raises(WorkersError, match=r"\$\.eggs\[1\]"):
            await run(place, store, "bad-result")

    async def test_a_result_over_the_limit_is_refused(self, make: Make, store: MemoryStore) -> None:
        with pytest.raises(WorkersError, match="the limit is 5"):
            await run(make(max_bytes=5), store, "parts")

    async def test_retry_later_acts_as_itself(self, place: Runner, store: MemoryStore) -> None:
        with pytest.raises(RetryLaterError) as caught:
            await run(place, store, "later")
        assert caught.value.delay_ms == 90_000

    async def test_unrecoverable_acts_as_itself(self, place: Runner, store: MemoryStore) -> None:
        with pytest.raises(UnrecoverableError, match="the field is gone"):
            await run(place, store, "never")

    async def test_sys_exit_fails_the_attempt_alone(self, place: Runner, store: MemoryStore) -> None:
        runner = place
        before = await run(runner, store, "where")
        with pytest.raises((RemoteError, SystemExit)):
            await run(runner, store, "leaving")
        assert await run(runner, store, "where") == before

    async def test_an_unknown_job_names_it(self, place: Runner, store: MemoryStore) -> None:
        with pytest.raises(WorkersError, match=r"no handler 'farm\.milk'"):
            await run(place, store, "milk")

    async def test_a_broken_application_fails_with_its_error(self, make: Make, store: MemoryStore) -> None:
        with pytest.raises(Exception, match="the barn burnt down"):
            await run(make("sandbox_farm:make_broken"), store, "sum", [1])

    async def test_an_application_that_exits_ends_its_place_alone(self, make: Make, store: MemoryStore) -> None:
        with pytest.raises(WorkersError, match=r"exit status 5|SystemExit\(5\)"):
            await run(make("sandbox_farm:make_leaving"), store, "sum", [1])

    async def test_a_limit_stops_a_handler_that_waits(self, make: Make, store: MemoryStore, farm: Path) -> None:
        with pytest.raises(JobTimeoutError, match=r"passed its limit of 0\.1 s .*sandbox_farm\.py:"):
            await run(make(), store, "waiting", limit=100)
        assert (farm / "seed-closed").exists()

    async def test_a_limit_stops_a_handler_that_blocks(self, make: Make, store: MemoryStore, farm: Path) -> None:
        with pytest.raises(JobTimeoutError, match=r"passed its limit of 0\.1 s"):
            await run(make(), store, "asleep", limit=100)
        assert (farm / "asleep").exists()

    async def test_a_place_that_was_lost_is_replaced(self, make: Make, store: MemoryStore) -> None:
        runner = make(kill_after_ms=50)
        before = await run(runner, store, "where")
        with pytest.raises(JobTimeoutError):
            await run(runner, store, "asleep", limit=100)
        after = await run(runner, store, "where")
        assert (after["pid"], after["thread"]) != (before["pid"], before["thread"])

    async def test_log_lines_of_a_stopped_run_are_kept(self, make: Make, store: MemoryStore) -> None:
        claimed = await claim(store, "asleep")
        context = context_of(store, claimed)
        with pytest.raises(JobTimeoutError):
            await make(kill_after_ms=50).run(claimed.record, context, 100)
        assert len(await logs(store, context, claimed.record.id)) == 1

    async def test_cancelling_closes_what_the_attempt_opened(self, make: Make, store: MemoryStore, farm: Path) -> None:
        runner = make(kill_after_ms=5_000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, store, "waiting")
            await pid_in(farm / "waiting")
            tasks.cancel_scope.cancel()
        assert (farm / "seed-closed").exists()

    async def test_a_handler_that_looks_ends_a_blocking_loop(
        self, make: Make, store: MemoryStore, farm: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run, make(kill_after_ms=60_000), store, "polite")
                await pid_in(farm / "polite")
                tasks.cancel_scope.cancel()
        assert not caplog.records

    async def test_a_lease_in_doubt_is_told(self, place: Runner, store: MemoryStore, farm: Path) -> None:
        claimed = await claim(store, "doubt")
        context = context_of(store, claimed)

        async def doubt() -> None:
            await until((farm / "doubt").exists)
            context.lease_in_doubt = True

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(doubt)
                assert await place.run(claimed.record, context, None) == b"true"

    async def test_children_values_are_read_outside(self, place: Runner, store: MemoryStore) -> None:
        names = {"sum": 2, "parts": 2, "children": None}
        await store.add(
            [JobSpec(queue="farm", name=name, data=b"[]", opts=b"{}", parent=parent) for name, parent in names.items()]
        )
        step = await store.step(Step(queue="farm", worker="w", token=Token("t"), take=2))
        results = {"sum": b"7", "parts": b'"x"'}
        settle = [Settle(one.held, Completed(results[one.record.name])) for one in step.jobs]
        reply = await store.step(Step(queue="farm", worker="w", token=Token("u"), outcomes=settle, take=1))
        parent = reply.jobs[0]
        with anyio.fail_after(20):
            raw = await place.run(parent.record, context_of(store, parent), None)
        assert json.loads(raw) == [[7, "x"], [7]]

    async def test_places_are_shared_out_and_reused(self, make: Make, store: MemoryStore) -> None:
        runner = make(size=2)
        seen: list[tuple[int, int]] = []

        async def note() -> None:
            where = await run(runner, store, "where")
            seen.append((where["pid"], where["thread"]))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(note)
        assert len(seen) == 6
        assert 1 <= len(set(seen)) <= 2

    async def test_closing_closes_the_application(self, make: Make, store: MemoryStore, farm: Path) -> None:
        runner = make(kill_after_ms=5_000)
        await run(runner, store, "parts")
        assert not (farm / "barn-closed").exists()
        with anyio.fail_after(20):
            await runner.close()
        assert (farm / "barn-closed").exists()

    async def test_a_closed_runner_starts_nothing(self, make: Make, store: MemoryStore) -> None:
        runner = make()
        await runner.close()
        with pytest.raises(WorkersError, match="stopping"):
            await run(runner, store, "sum", [1])

    async def test_a_short_limit_does_not_keep_places_from_opening(self, make: Make, store: MemoryStore) -> None:
        runner = make()
        with anyio.move_on_after(0.01):
            await run(runner, store, "sum", [1])
        [opening] = runner._opening
        assert await run(runner, store, "sum", [2]) == 2
        assert opening.done()
        assert len(runner._places) == 1

    async def test_no_places_is_a_fault_of_the_settings(self, make: Make) -> None:
        with pytest.raises(ConfigurationError, match="give it one or more"):
            make(size=0)


class TestThreads:
    async def test_an_error_is_the_one_that_was_raised(self, thread: Runner, store: MemoryStore) -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            await run(thread, store, "wrong")
        assert any("sandbox_farm.py" in str(entry.path) for entry in caught.traceback)

    async def test_an_unserializable_result_ends_the_job_for_good(self, thread: Runner, store: MemoryStore) -> None:
        claimed = await claim(store, "bad-result")
        context = context_of(store, claimed)
        with pytest.raises(WorkersError) as caught:
            await thread.run(claimed.record, context, None)
        assert context.fatal is caught.value

    async def test_a_thread_that_answers_to_cancelling_is_kept(
        self, threads: Make, store: MemoryStore, farm: Path
    ) -> None:
        runner = threads(kill_after_ms=5_000)
        before = await run(runner, store, "where")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, store, "waiting")
            await pid_in(farm / "waiting")
            tasks.cancel_scope.cancel()
        assert (await run(runner, store, "where"))["thread"] == before["thread"]

    async def test_a_thread_that_is_left_behind_is_said_to_be(
        self, threads: Make, store: MemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(JobTimeoutError):
            await run(threads(kill_after_ms=50), store, "asleep", limit=50)
        assert "farm.asleep): its thread does not answer" in caplog.text

    async def test_one_container_for_all_is_refused(self, threads: Make, store: MemoryStore, farm: Path) -> None:
        text = "from sandbox_farm import make_container\ncontainer = make_container()\n"
        await anyio.Path(farm / "sandbox_one.py").write_text(text)
        with pytest.raises(ConfigurationError, match="a sandbox in a thread needs its own"):
            await run(threads("sandbox_one:container"), store, "sum", [1])


class TestChildren:
    async def test_it_is_another_process_with_the_same_environment(self, child: Runner, store: MemoryStore) -> None:
        where = await run(child, store, "where")
        assert where["pid"] != os.getpid()
        assert where["variable"] == "handed on"

    async def test_an_error_brings_its_text_type_and_trace(self, child: Runner, store: MemoryStore) -> None:
        with pytest.raises(RemoteError, match="no cows to share") as caught:
            await run(child, store, "wrong")
        assert caught.value.error_type == "ZeroDivisionError"
        assert caught.value.trace.endswith("ZeroDivisionError: no cows to share")
        assert "in wrong" in caught.value.trace

    async def test_an_unserializable_result_is_not_tried_again(self, child: Runner, store: MemoryStore) -> None:
        with pytest.raises(UnrecoverableError):
            await run(child, store, "bad-result")

    async def test_unserializable_progress_is_not_tried_again(self, child: Runner, store: MemoryStore) -> None:
        with pytest.raises(UnrecoverableError, match="progress"):
            await run(child, store, "bad-progress")

    async def test_a_child_that_was_stopped_is_killed_with_its_own_children(
        self, children: Make, store: MemoryStore, farm: Path
    ) -> None:
        with pytest.raises(JobTimeoutError):
            await run(children(kill_after_ms=50), store, "family", limit=1_500)
        await until_dead(await pid_in(farm / "family"))

    async def test_a_child_whose_job_passed_its_limit_is_killed_even_if_it_answers(
        self, children: Make, store: MemoryStore, farm: Path
    ) -> None:
        with pytest.raises(JobTimeoutError):
            await run(children(kill_after_ms=5_000), store, "waiting", limit=50)
        await until_dead(await pid_in(farm / "waiting"))

    async def test_cancelling_kills_the_child(self, children: Make, store: MemoryStore, farm: Path) -> None:
        runner = children(kill_after_ms=50)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, runner, store, "asleep")
            await pid_in(farm / "asleep")
            tasks.cancel_scope.cancel()
        await until_dead(await pid_in(farm / "asleep"))
        assert await run(runner, store, "sum", [4]) == 4

    @pytest.mark.parametrize(
        ("job", "text"),
        [
            ("exit", r"farm\.exit \(attempt 1 of 3\): its process ended: exit status 3"),
            ("segfault", "killed by SIGSEGV"),
        ],
    )
    async def test_a_child_that_dies_fails_the_attempt_and_is_replaced(
        self, children: Make, store: MemoryStore, job: str, text: str
    ) -> None:
        runner = children()
        with pytest.raises(JobCrashedError, match=text):
            await run(runner, store, job, attempts=3)
        assert await run(runner, store, "sum", [4]) == 4

    async def test_what_a_dying_child_said_last_is_kept(self, children: Make, store: MemoryStore) -> None:
        claimed = await claim(store, "exit")
        context = context_of(store, claimed)
        with pytest.raises(JobCrashedError):
            await children().run(claimed.record, context, None)
        assert await logs(store, context, claimed.record.id) == ["INFO last words"]

    async def test_a_child_that_died_while_idle_fails_no_job(self, children: Make, store: MemoryStore) -> None:
        runner = children()
        pid = (await run(runner, store, "where"))["pid"]
        os.kill(pid, signal.SIGKILL)
        assert await run(runner, store, "sum", [4]) == 4

    async def test_a_child_that_cannot_start_says_so(self, farm: Path, store: MemoryStore) -> None:
        runner = ProcessRunner([sys.executable, "-c", "raise SystemExit(9)"], store=store, size=1)
        with pytest.raises(JobCrashedError, match="did not start: its process ended: exit status 9"):
            await run(runner, store, "sum", [1])
        await runner.close()

    async def test_what_is_no_message_ends_the_child(
        self, farm: Path, store: MemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        script = "import os, sys, time; os.write(int(sys.argv[1]), b'HTTP/1.1 200 OK'); time.sleep(60)"
        runner = ProcessRunner([sys.executable, "-c", script], store=store, size=1)
        with pytest.raises(JobCrashedError, match="killed by SIGKILL"):
            await run(runner, store, "sum", [1])
        assert "sent what is no message" in caplog.text
        await runner.close()

    async def test_what_handlers_print_goes_to_standard_error(
        self, children: Make, store: MemoryStore, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert await run(children(), store, "print") == "printed"
        out, err = capfd.readouterr()
        assert out == ""
        assert {"a cow says moo", "and moo again", "raw moo", "moo from afar"} <= set(err.splitlines())

    async def test_signals_to_the_whole_service_are_left_to_the_parent(self, child: Runner, store: MemoryStore) -> None:
        runner = child
        pid = (await run(runner, store, "where"))["pid"]
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        assert (await run(runner, store, "where"))["pid"] == pid

    async def test_closing_leaves_no_process(self, children: Make, store: MemoryStore, farm: Path) -> None:
        runner = children(size=2, kill_after_ms=50)
        pids = [(await run(runner, store, "where"))["pid"]]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_expect_crash, runner, store)
            pids.append(await pid_in(farm / "asleep"))
            with anyio.fail_after(20):
                await runner.close()
        for pid in pids:
            await until_dead(pid)

    async def test_a_child_ends_when_its_parent_is_killed(self, farm: Path) -> None:
        (farm / "parent.py").write_text(PARENT)
        process = await anyio.open_process([sys.executable, "parent.py"], stdout=None, stderr=None)
        try:
            pid = await pid_in(farm / "asleep")
        finally:
            process.kill()
            await process.wait()
        await until_dead(pid)

    async def test_a_payload_of_a_megabyte_passes(self, child: Runner, store: MemoryStore) -> None:
        assert await run(child, store, "sum", [1] * 500_000) == 500_000

    async def test_bytes_that_are_no_text_pass_unchanged(self, child: Runner, store: MemoryStore) -> None:
        claimed = await claim(store, "where")
        record = claimed.record._replace(trace=b"\xff\x00")
        with anyio.fail_after(20):
            assert await child.run(record, context_of(store, claimed), None)


async def _expect_crash(runner: Runner, store: MemoryStore) -> None:
    with pytest.raises((JobCrashedError, RemoteError)):
        await run(runner, store, "asleep")


PARENT = """
import asyncio

from workers_module.di.target import child_command
from workers_module.job.job import Job
from workers_module.store.memory import MemoryStore
from workers_module.store.values import Held
from workers_module.job.record import Token
from workers_module.worker.context import JobContext
from workers_module.worker.sandbox import ProcessRunner


async def main() -> None:
    record = Job.fake(None, queue="farm", name="asleep").record
    store = MemoryStore()
    runner = ProcessRunner(child_command("sandbox_farm:make_container"), store=store, size=1, kill_after_ms=50)
    await runner.run(record, JobContext(record, Held("1", Token("t"), 1), store, max_bytes=100), None)


asyncio.run(main())
"""


class TestThroughTheExecutor:
    def handler(self, name: str, sandbox: Sandbox = Sandbox.PROCESS) -> Handler:
        kind = JobKind(queue="farm", name=name)
        spec = HandlerSpec(kind=kind, label=name, worker="farm", target=name, is_async=True, sandbox=sandbox)
        return Handler(spec=spec, static=lambda job, context: pytest.fail("it must not run here"))

    def executor(self, store: MemoryStore, runner: Runner, *listeners: Listener, **settings: Any) -> Executor:
        remotes = {Sandbox.PROCESS: runner, Sandbox.THREAD: runner}
        return Executor(store, hooks=Hooks(listeners), settings=ExecutorSettings(**settings), remotes=remotes)

    async def ended(self, store: MemoryStore, runner: Runner, name: str, *, attempts: int = 1, **settings: Any) -> Any:
        spec = JobSpec(
            queue="farm",
            name=name,
            data=b"null",
            opts=write_options(JobOptions(attempts=attempts)),
            max_attempts=attempts,
        )
        await store.add([spec])
        reply = await store.step(Step(queue="farm", worker="w", token=Token("t"), take=1))
        with anyio.fail_after(20):
            done = await self.executor(store, runner, **settings).execute_here(self.handler(name), reply.jobs[0])
        settle = done.settle()
        assert settle is not None
        await store.step(Step(queue="farm", worker="w", token=Token("u"), outcomes=[settle]))
        [stored] = await store.get("farm", [reply.jobs[0].record.id])
        assert stored is not None
        return done.outcome, stored

    async def test_the_trace_of_the_child_is_what_a_waiter_is_told(self, child: Runner, store: MemoryStore) -> None:
        outcome, stored = await self.ended(store, child, "wrong")
        assert isinstance(outcome, Failed)
        told = failure_of(stored)
        assert (told.message, told.error_type) == ("no cows to share", "ZeroDivisionError")
        assert "sandbox_farm.py" in told.trace

    async def test_an_ordinary_error_is_tried_again(self, child: Runner, store: MemoryStore) -> None:
        outcome, _ = await self.ended(store, child, "wrong", attempts=2)
        assert isinstance(outcome, Retry)

    async def test_an_unrecoverable_one_is_not(self, place: Runner, store: MemoryStore) -> None:
        outcome, _ = await self.ended(store, place, "never", attempts=9)
        assert isinstance(outcome, Failed)

    async def test_retry_later_snoozes(self, place: Runner, store: MemoryStore) -> None:
        outcome, _ = await self.ended(store, place, "later")
        assert outcome == Snooze(90_000)

    async def test_a_bad_result_is_not_tried_again(self, place: Runner, store: MemoryStore) -> None:
        outcome, stored = await self.ended(store, place, "bad-result", attempts=9)
        assert isinstance(outcome, Failed)
        assert stored.reason is not None
        assert stored.reason.startswith("$.eggs[1]")

    async def test_a_crash_is_a_failed_attempt(self, child: Runner, store: MemoryStore) -> None:
        outcome, _ = await self.ended(store, child, "exit", attempts=2)
        assert isinstance(outcome, Retry)

    async def test_a_crash_is_told_as_such(self, child: Runner, store: MemoryStore) -> None:
        _, stored = await self.ended(store, child, "exit")
        assert isinstance(failure_of(stored), JobCrashedError)

    async def test_a_limit_is_told_as_such(self, make: Make, store: MemoryStore) -> None:
        runner = make(kill_after_ms=50)
        await run(runner, store, "sum", [1])
        _, stored = await self.ended(store, runner, "asleep", job_timeout_ms=100)
        assert isinstance(failure_of(stored), JobTimeoutError)

    async def test_a_cancelled_job_fails_as_cancelled(self, make: Make, store: MemoryStore, farm: Path) -> None:
        runner = make(kill_after_ms=50)
        claimed = await claim(store, "asleep")
        over = anyio.Event()
        running = self.executor(store, runner).start(self.handler("asleep"), claimed, lambda _: over.set())
        await pid_in(farm / "asleep")
        running.cancel(CancelReason.CANCELLED)
        with anyio.fail_after(20):
            await over.wait()
        assert isinstance(running.outcome, Failed)
        assert isinstance(running.error, JobCancelledError)


class TestNeeded:
    def spec(self, label: str, sandbox: Sandbox | None) -> HandlerSpec:
        kind = JobKind(queue="farm", name=label)
        return HandlerSpec(kind=kind, label=label, worker="farm", target=label, is_async=True, sandbox=sandbox)

    def test_handlers_and_the_setting_say_which(self) -> None:
        specs = [self.spec("a", None), self.spec("b", Sandbox.PROCESS), self.spec("c", Sandbox.NONE)]
        assert needed_sandboxes(specs, Sandbox.NONE, target="app:make") == {Sandbox.PROCESS}
        assert needed_sandboxes(specs, Sandbox.THREAD, target="app:make") == {Sandbox.PROCESS, Sandbox.THREAD}

    def test_none_needs_no_target(self) -> None:
        assert needed_sandboxes([self.spec("a", None)], Sandbox.NONE, target=None) == set()

    @pytest.mark.parametrize("target", [None, ""])
    def test_a_missing_target_names_each_handler_and_what_to_set(self, target: str | None) -> None:
        specs = [self.spec("Farm.a", Sandbox.PROCESS), self.spec("Farm.b", None)]
        with pytest.raises(ConfigurationError) as caught:
            needed_sandboxes(specs, Sandbox.THREAD, target=target)
        first, second = str(caught.value).splitlines()
        assert first.startswith("Farm.a runs in a sandbox (process)")
        assert second.startswith("Farm.b runs in a sandbox (thread)")
        assert "WORKERS_APP" in first
