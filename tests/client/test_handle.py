"""`JobHandle`: the way to a result, which always comes to an end."""

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from tests.client.helpers import PATIENCE, Kit, Q
from workers_module.clock import FrozenClock
from workers_module.errors import (
    ConfigurationError,
    JobCancelledError,
    JobFailedError,
    JobNotFoundError,
    ResultTimeoutError,
    StoreUnavailableError,
)
from workers_module.job.events import EventBatch
from workers_module.job.kind import JobKind
from workers_module.job.outcome import Completed, Keep
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore


class Sent(BaseModel):
    at: datetime


KINDS = [JobKind(queue=Q, name="send", result=Sent)]


def listeners(kit: Kit, handle: Any) -> int:
    """Return how many wait for a job."""
    follower = kit.watcher._followers.get(Q)
    return 0 if follower is None else len(follower._waiting.get(handle.id, ()))


async def waiting(kit: Kit, handle: Any) -> "asyncio.Task[Any]":
    """Start to wait for a result, and return when the waiter listens."""
    before = listeners(kit, handle)
    task = asyncio.create_task(handle.result("20s"))
    with anyio.fail_after(PATIENCE):
        while listeners(kit, handle) == before:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    return task


async def test_a_result_that_is_there_is_returned(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    await any_kit.complete(b'{"n":[1,null]}')
    assert await handle.result() == {"n": [1, None]}


async def test_a_result_is_waited_for(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.complete(b"[1]")
    with anyio.fail_after(PATIENCE):
        assert await task == [1]


async def test_a_result_has_the_handlers_type(store: Store) -> None:
    kit = Kit(store, kinds=KINDS)
    handle = await kit.queue.add("send", 1)
    await kit.complete(b'{"at":"2026-01-01T00:00:00Z"}')
    assert (await handle.result()).at.year == 2026
    other = await kit.queue.add("send", 1)
    await kit.complete(b'{"to":1}')
    with pytest.raises(ValidationError):
        await other.result()


async def test_a_failure_is_raised_with_what_was_stored(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.fail(ValueError("no such address"))
    with anyio.fail_after(PATIENCE), pytest.raises(JobFailedError) as caught:
        await task
    error = caught.value
    assert (error.job_id, error.error_type, error.message) == (handle.id, "ValueError", "no such address")
    assert error.__cause__ is None


async def test_a_failure_in_this_process_has_its_cause(kit: Kit) -> None:
    handle = await kit.queue.add("a", 1)
    original = ValueError("x")
    kit.watcher.note_error(Q, handle.id, original)
    await kit.fail(original)
    with pytest.raises(JobFailedError) as caught:
        await handle.result()
    assert caught.value.__cause__ is original


async def test_only_the_newest_causes_are_kept_and_none_of_what_they_held(kit: Kit) -> None:
    class Session:
        pass

    sessions: list[weakref.ref[Session]] = []

    def handler() -> None:
        session = Session()
        sessions.append(weakref.ref(session))
        raise ValueError("x")

    for number in range(200):
        try:
            handler()
        except ValueError as error:
            kit.watcher.note_error(Q, str(number), error)
    gc.collect()
    assert kit.watcher.error_of(Q, "0") is None
    assert isinstance(kit.watcher.error_of(Q, "199"), ValueError)
    assert [session() for session in sessions if session() is not None] == []


async def test_a_cancelled_job_is_told_as_such(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    assert await handle.cancel()
    with anyio.fail_after(PATIENCE), pytest.raises(JobCancelledError):
        await task


async def test_the_callers_patience_ends(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    with anyio.fail_after(PATIENCE), pytest.raises(ResultTimeoutError, match="it goes on") as caught:
        await handle.result(timedelta(milliseconds=20))
    assert isinstance(caught.value, TimeoutError)
    assert await handle.state() is JobState.WAITING
    assert any_kit.watcher._followers == {}


async def test_a_removed_job_ends_the_wait(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.queue.remove(handle.id)
    with anyio.fail_after(PATIENCE), pytest.raises(JobNotFoundError):
        await task


async def test_a_drained_job_ends_the_wait(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.queue.drain()
    with anyio.fail_after(PATIENCE), pytest.raises(JobNotFoundError):
        await task


async def test_a_job_that_is_removed_at_its_end_leaves_its_result(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.complete(b'{"n":1}', keep=Keep(count=0))
    with anyio.fail_after(PATIENCE):
        assert await task == {"n": 1}


async def test_a_job_that_is_removed_at_its_bad_end_leaves_its_reason(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    task = await waiting(any_kit, handle)
    await any_kit.fail(ValueError("why"), keep=Keep(count=0))
    with anyio.fail_after(PATIENCE), pytest.raises(JobFailedError, match="why"):
        await task


async def test_run_gets_the_result_of_a_job_that_ends_before_its_handle_is_used(any_kit: Kit) -> None:
    async with anyio.create_task_group() as group:

        async def work() -> None:
            while not (jobs := await any_kit.claim()):  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await any_kit.settle(jobs[0], Completed(b'"done"', Keep(count=0)))

        group.start_soon(work)
        with anyio.fail_after(PATIENCE):
            assert await any_kit.producer.run(Q, "a", 1) == "done"


async def test_an_end_that_was_told_before_anybody_asked_is_remembered(any_kit: Kit) -> None:
    async with any_kit.watcher.following(Q):
        handle = await any_kit.queue.add("a", 1)
        await any_kit.complete(b"7", keep=Keep(count=0))
        with anyio.fail_after(PATIENCE):
            assert await handle.result() == 7


async def test_many_who_wait_share_one_follower(kit: Kit) -> None:
    handles = await kit.queue.add_many([("a", number) for number in range(20)])
    tasks = [await waiting(kit, handle) for handle in handles]
    again = await waiting(kit, handles[0])
    assert len(kit.watcher._followers) == 1
    assert kit.watcher._followers[Q].users == 21
    for number in range(20):
        await kit.complete(str(number).encode())
    with anyio.fail_after(PATIENCE):
        assert await asyncio.gather(*tasks, again) == [*range(20), 0]
    assert kit.watcher._followers == {}


async def test_a_waiter_that_is_cancelled_leaves_the_others(kit: Kit) -> None:
    first, second = await kit.queue.add_many([("a", 1), ("a", 2)])
    leaving, staying = await waiting(kit, first), await waiting(kit, second)
    leaving.cancel()
    await kit.complete()
    await kit.complete(b"2")
    with anyio.fail_after(PATIENCE):
        assert await staying == 2
        with pytest.raises(asyncio.CancelledError):
            await leaving


async def test_closing_lets_waiters_go_on_by_looking(kit: Kit) -> None:
    handle = await kit.queue.add("a", 1)
    task = await waiting(kit, handle)
    await kit.watcher.aclose()
    await kit.complete(b"3")
    with anyio.fail_after(PATIENCE):
        assert await task == 3


class Deaf(MemoryStore):
    """A memory store without events, whose reads fail as told."""

    faults = 0

    def events(self, queue: str, *, after: str | None = None) -> AbstractAsyncContextManager[AsyncIterator[EventBatch]]:
        @asynccontextmanager
        async def nothing() -> AsyncGenerator[AsyncIterator[EventBatch]]:
            raise StoreUnavailableError("no events")
            yield

        return nothing()

    async def get(self, queue: str, ids: Sequence[str], *, payload: bool = True) -> list[JobRecord | None]:
        if self.faults:
            self.faults -= 1
            raise StoreUnavailableError("down")
        return await super().get(queue, ids, payload=payload)


async def test_without_events_results_come_by_looking(clock: FrozenClock) -> None:
    store = Deaf(clock=clock)
    kit = Kit(store, poll=0.01)
    handle = await kit.queue.add("a", 1)
    task = await waiting(kit, handle)
    store.faults = 3
    await kit.complete(b"4")
    with anyio.fail_after(PATIENCE):
        assert await task == 4
    await kit.aclose()


async def test_a_job_that_comes_back_from_failed_can_be_waited_for_again(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    await any_kit.fail(ValueError("x"))
    with pytest.raises(JobFailedError):
        await handle.result()
    await any_kit.queue.retry(handle.id)
    task = await waiting(any_kit, handle)
    await any_kit.complete(b"5")
    with anyio.fail_after(PATIENCE):
        assert await task == 5


async def test_a_bare_number_is_no_patience(kit: Kit) -> None:
    handle = await kit.queue.add("a", 1)
    with pytest.raises(ConfigurationError, match="has no unit"):
        await handle.result(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_state_of_a_job_that_is_gone(any_kit: Kit) -> None:
    handle = any_kit.producer.handle(Q, "nobody")
    with pytest.raises(JobNotFoundError):
        await handle.state()
    with anyio.fail_after(PATIENCE), pytest.raises(JobNotFoundError):
        await handle.result(None)
    assert not await handle.cancel()
