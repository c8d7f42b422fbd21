"""One job, one outcome: the executor's answer to everything a handler can do."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from pydantic import BaseModel

from workers_module.clock import FrozenClock
from workers_module.errors import JobCancelledError, JobTimeoutError, PayloadError, UnrecoverableError
from workers_module.job.events import WorkerEvent
from workers_module.job.failure import failure_of
from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.job.options import JobOptions
from workers_module.job.outcome import Completed, Failed, Release, Retry, RetryLaterError, Snooze
from workers_module.job.record import Token
from workers_module.job.retry import Backoff
from workers_module.job.stored import write_options
from workers_module.store.memory import MemoryStore
from workers_module.store.values import Claimed, JobSpec, Step
from workers_module.worker.context import JobContext
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.handler import Call, Handler, HandlerSpec, Listener
from workers_module.worker.hooks import Hooks
from workers_module.worker.run import CancelReason, Run


class Mail(BaseModel):
    to: str


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    store = MemoryStore(clock=FrozenClock())
    await store.open()
    yield store
    await store.close()


def handler(
    call: Callable[..., Any],
    *,
    payload: Any = Any,
    result: Any = Any,
    is_async: bool = True,
    scope: Callable[[Job[Any], JobContext], AbstractAsyncContextManager[Call]] | None = None,
    **options: Any,
) -> Handler:
    kind = JobKind(queue="mail", name="send", payload=payload, result=result, options=cast("JobOptions", options))
    spec = HandlerSpec(kind=kind, label="P.send", worker="mail", target=call, is_async=is_async)
    return Handler(spec=spec, static=call if scope is None else None, opening=scope)


def executor(store: MemoryStore, *listeners: Listener, **settings: Any) -> Executor:
    return Executor(store, hooks=Hooks(listeners), settings=ExecutorSettings(**settings), backoffs={"mine": sevenfold})


def sevenfold(attempt: int, error: Exception, job: Job[Any]) -> str:
    return f"{attempt * 7}s"


async def claim(store: MemoryStore, data: object = None, *, attempts: int = 1, **options: Any) -> Claimed:
    opts = write_options(cast("JobOptions", {"attempts": attempts, **options}))
    spec = JobSpec(queue="mail", name="send", data=json.dumps(data).encode(), opts=opts, max_attempts=attempts)
    await store.add([spec])
    reply = await store.step(Step(queue="mail", worker="w", token=Token("t"), take=1))
    return reply.jobs[0]


async def run(store: MemoryStore, it: Handler, claimed: Claimed, **settings: Any) -> Run:
    with anyio.fail_after(10):
        return await executor(store, **settings).execute_here(it, claimed)


async def started(store: MemoryStore, it: Handler, claimed: Claimed, **settings: Any) -> tuple[Run, anyio.Event]:
    over = anyio.Event()
    return executor(store, **settings).start(it, claimed, lambda _: over.set()), over


class TestOutcomes:
    async def test_a_returned_value_completes_the_job(self, store: MemoryStore) -> None:
        async def send(job: Job[Mail], context: JobContext) -> dict[str, str]:
            return {"sent": job.data.to}

        ended = await run(store, handler(send, payload=Mail), await claim(store, {"to": "ada"}))
        assert isinstance(ended.outcome, Completed)
        assert json.loads(ended.outcome.result) == {"sent": "ada"}
        assert ended.result == {"sent": "ada"}

    async def test_a_handler_without_payload_gets_none_whatever_is_stored(self, store: MemoryStore) -> None:
        async def send(job: Job[None], context: JobContext) -> bool:
            return job.data is None

        ended = await run(store, handler(send, payload=None), await claim(store, {}))
        assert ended.result is True

    async def test_an_exception_with_attempts_left_asks_for_a_retry(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise ConnectionError("smtp is down")

        claimed = await claim(store, attempts=3, backoff=Backoff.fixed("5s"))
        ended = await run(store, handler(send), claimed)
        assert ended.outcome == Retry(
            5_000, "smtp is down", ended.outcome.trace if isinstance(ended.outcome, Retry) else None
        )
        assert isinstance(ended.outcome, Retry)
        assert ended.outcome.trace is not None
        assert "ConnectionError: smtp is down" in json.loads(ended.outcome.trace)[0]

    async def test_the_applications_own_backoff_is_asked(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise ConnectionError

        claimed = await claim(store, attempts=2, backoff=Backoff.custom("mine"))
        ended = await run(store, handler(send), claimed)
        assert isinstance(ended.outcome, Retry)
        assert ended.outcome.delay_ms == 7_000

    async def test_the_last_attempt_fails_the_job(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise ValueError("no")

        ended = await run(store, handler(send), await claim(store))
        assert isinstance(ended.outcome, Failed)
        assert ended.outcome.reason == "no"

    async def test_an_unrecoverable_error_skips_the_attempts_left(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise UnrecoverableError("never")

        ended = await run(store, handler(send), await claim(store, attempts=9))
        assert isinstance(ended.outcome, Failed)

    async def test_retry_later_counts_no_attempt(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise RetryLaterError("90s")

        ended = await run(store, handler(send), await claim(store))
        assert ended.outcome == Snooze(90_000)

    async def test_a_payload_that_does_not_fit_fails_at_once_and_names_the_place_not_the_value(
        self, store: MemoryStore
    ) -> None:
        async def send(job: Job[Mail], context: JobContext) -> None:
            pytest.fail("must not run")

        ended = await run(store, handler(send, payload=Mail), await claim(store, {"to": ["hunter2"]}, attempts=5))
        assert isinstance(ended.outcome, Failed)
        assert "$.to" in ended.outcome.reason
        assert "hunter2" not in ended.outcome.reason

    async def test_a_result_json_cannot_carry_fails_at_once(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> object:
            return {"a": [1.0, float("nan")]}

        ended = await run(store, handler(send), await claim(store, attempts=5))
        assert isinstance(ended.outcome, Failed)
        assert "$.a[1]" in ended.outcome.reason

    async def test_bad_progress_fails_at_once(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await context.progress({1, 2})

        ended = await run(store, handler(send), await claim(store, attempts=5))
        assert isinstance(ended.outcome, Failed)
        assert isinstance(ended.error, PayloadError)

    @pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, BaseException])
    async def test_no_exception_of_a_handler_gets_out(self, store: MemoryStore, error: type[BaseException]) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            raise error

        run_, over = await started(store, handler(send), await claim(store))
        with anyio.fail_after(5):
            await over.wait()
        assert isinstance(run_.outcome, Failed)


class TestLimits:
    async def test_a_run_over_its_limit_is_cancelled_and_tried_again(self, store: MemoryStore) -> None:
        closed: list[str] = []

        async def send(job: Job[Any], context: JobContext) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                closed.append("yes")

        run_, over = await started(store, handler(send), await claim(store, attempts=2), job_timeout_ms=10)
        with anyio.fail_after(5):
            await over.wait()
        assert isinstance(run_.outcome, Retry)
        assert isinstance(run_.error, JobTimeoutError)
        assert closed == ["yes"]
        assert "0.01 s" in run_.outcome.reason
        assert "test_executor.py" in run_.outcome.reason

    async def test_the_jobs_own_limit_wins_over_handler_and_setting(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await anyio.sleep_forever()

        claimed = await claim(store, timeout="10ms")
        run_, over = await started(store, handler(send, timeout=None), claimed, job_timeout_ms=None)
        with anyio.fail_after(5):
            await over.wait()
        assert isinstance(run_.error, JobTimeoutError)

    async def test_a_run_that_will_not_end_gives_up_its_slot(
        self, store: MemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        let_go = anyio.Event()

        async def send(job: Job[Any], context: JobContext) -> None:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

        run_, over = await started(store, handler(send), await claim(store), job_timeout_ms=10, kill_after_ms=10)
        with anyio.fail_after(5), caplog.at_level(logging.ERROR):
            await over.wait()
        assert isinstance(run_.outcome, Failed)
        assert "given up" in caplog.text
        let_go.set()
        assert run_.task is not None
        with anyio.fail_after(5):
            await asyncio.wait([run_.task])
        assert isinstance(run_.outcome, Failed)

    async def test_a_thread_past_its_limit_is_left_behind(self, store: MemoryStore) -> None:
        let_go = threading.Event()

        def send(job: Job[Any], context: JobContext) -> None:
            let_go.wait(10)

        run_, over = await started(store, handler(send, is_async=False), await claim(store), job_timeout_ms=10)
        with anyio.fail_after(5):
            await over.wait()
        let_go.set()
        assert isinstance(run_.error, JobTimeoutError)


class TestCancelling:
    @pytest.mark.parametrize(("reason", "kind"), [(CancelReason.SHUTDOWN, Release), (CancelReason.CANCELLED, Failed)])
    async def test_the_reason_decides_the_outcome(
        self, store: MemoryStore, reason: CancelReason, kind: type[object]
    ) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await anyio.sleep_forever()

        run_, over = await started(store, handler(send), await claim(store, attempts=5))
        await anyio.lowlevel.checkpoint()
        run_.cancel(reason)
        with anyio.fail_after(5):
            await over.wait()
        assert isinstance(run_.outcome, kind)

    async def test_a_lost_lease_leaves_nothing_to_settle(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await anyio.sleep_forever()

        run_, over = await started(store, handler(send), await claim(store))
        await anyio.lowlevel.checkpoint()
        run_.cancel(CancelReason.LEASE_LOST)
        with anyio.fail_after(5):
            await over.wait()
        assert run_.settle() is None

    async def test_a_cancelled_job_reads_back_as_cancelled(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await anyio.sleep_forever()

        claimed = await claim(store)
        run_, over = await started(store, handler(send), claimed)
        await anyio.lowlevel.checkpoint()
        run_.cancel(CancelReason.CANCELLED)
        with anyio.fail_after(5):
            await over.wait()
        settle = run_.settle()
        assert settle is not None
        await store.step(Step(queue="mail", worker="w", token=Token("t2"), outcomes=[settle]))
        [record] = await store.get("mail", [claimed.record.id])
        assert record is not None
        assert isinstance(failure_of(record), JobCancelledError)

    async def test_a_cancelled_caller_releases_the_job_and_stays_cancelled(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            await anyio.sleep_forever()

        claimed = await claim(store)
        with anyio.move_on_after(0.01) as scope:
            await executor(store).execute_here(handler(send), claimed)
        assert scope.cancelled_caught


class TestScopes:
    async def test_the_scope_is_closed_before_the_outcome_and_a_failing_close_fails_the_attempt(
        self, store: MemoryStore
    ) -> None:
        @asynccontextmanager
        async def scope(job: Job[Any], context: JobContext) -> AsyncGenerator[Call]:
            async def send(job: Job[Any], context: JobContext) -> int:
                return 1

            yield send
            raise OSError("commit failed")

        ended = await run(store, handler(len, scope=scope), await claim(store, attempts=2))
        assert isinstance(ended.outcome, Retry)
        assert ended.outcome.reason == "commit failed"

    async def test_a_result_that_cannot_be_stored_closes_the_scope_with_the_error(self, store: MemoryStore) -> None:
        seen: list[BaseException | None] = []

        class Scope:
            async def __aenter__(self) -> Call:
                async def send(job: Job[Any], context: JobContext) -> object:
                    return object()

                return send

            async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
                seen.append(error)

        ended = await run(store, handler(len, scope=lambda job, context: Scope()), await claim(store))
        assert isinstance(ended.outcome, Failed)
        assert isinstance(seen[0], PayloadError)

    async def test_finalizers_are_not_cut_short_by_a_limit(self, store: MemoryStore) -> None:
        closed: list[int] = []

        @asynccontextmanager
        async def scope(job: Job[Any], context: JobContext) -> AsyncGenerator[Call]:
            async def send(job: Job[Any], context: JobContext) -> None:
                await anyio.sleep_forever()

            try:
                yield send
            finally:
                await anyio.sleep(0.01)
                closed.append(1)
                await anyio.sleep(0.01)
                closed.append(2)

        run_, over = await started(store, handler(len, scope=scope), await claim(store), job_timeout_ms=10)
        with anyio.fail_after(5):
            await over.wait()
        assert closed == [1, 2]
        assert isinstance(run_.error, JobTimeoutError)


class TestTelling:
    async def test_log_lines_are_stored_before_the_job_ends(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> None:
            context.log("begun %d", 1, data={"k": [1]})
            context.log.warning("hm")
            job.log("nest")
            raise ValueError

        claimed = await claim(store)
        await run(store, handler(send), claimed)
        lines = (await store.logs("mail", claimed.record.id)).items
        assert [line.split(" ", 1)[1] for line in lines] == ['INFO begun 1 {"k": [1]}', "WARNING hm", "INFO nest"]

    async def test_progress_is_stored_and_told(self, store: MemoryStore) -> None:
        heard: list[Any] = []

        async def hear(event: Any) -> None:
            heard.append((event.name, event.progress))

        async def send(job: Job[Any], context: JobContext) -> None:
            await context.progress(40)
            await job.update_progress({"page": 2})

        listener = Listener(label="L.progress", call=hear, worker_event="progress")
        claimed = await claim(store)
        runner = executor(store, listener)
        await runner.execute_here(handler(send), claimed)
        await runner._hooks.finish(5)
        assert heard == [("progress", 40), ("progress", {"page": 2})]
        [record] = await store.get("mail", [claimed.record.id])
        assert record is not None
        assert record.progress == b'{"page":2}'

    async def test_events_are_made_only_for_listeners(self, store: MemoryStore) -> None:
        async def send(job: Job[Any], context: JobContext) -> int:
            return 5

        async def hear(event: WorkerEvent | Any) -> None: ...

        quiet = await executor(store).execute_here(handler(send), await claim(store))
        assert quiet.worker_events == ()
        listener = Listener(label="L.done", call=hear, worker_event="completed")
        told = await executor(store, listener).execute_here(handler(send), await claim(store))
        assert [(event.name, event.result) for event in told.worker_events] == [("completed", 5)]

    async def test_a_thread_reports_progress_through_the_loop(self, store: MemoryStore) -> None:
        def send(job: Job[Any], context: JobContext) -> str:
            anyio.from_thread.run(context.progress, 10)
            return threading.current_thread().name

        claimed = await claim(store)
        ended = await run(store, handler(send, is_async=False), claimed)
        assert ended.result != threading.current_thread().name
        [record] = await store.get("mail", [claimed.record.id])
        assert record is not None
        assert record.progress == b"10"
