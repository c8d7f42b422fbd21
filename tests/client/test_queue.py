"""`Queue`: what each of its calls does."""

import json
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pytest
from pydantic import BaseModel

from tests.client.helpers import Kit, Q, everything
from workers_module.client.producer import Producer
from workers_module.client.queue import JobCounts, Queue
from workers_module.clock import FrozenClock
from workers_module.errors import (
    ConfigurationError,
    IllegalMoveError,
    InvalidNameError,
    JobNotFoundError,
    NotSupportedError,
    ScheduleError,
)
from workers_module.job.options import JobOptions, Repeat
from workers_module.job.outcome import Completed
from workers_module.job.record import ParentRef
from workers_module.job.retry import Backoff
from workers_module.job.state import JobState
from workers_module.job.stored import read_options
from workers_module.store.base import Store
from workers_module.store.sqlite.store import SqliteStore

T = TypeVar("T")


class Mail(BaseModel):
    to: str


class MailQueue(Queue[Mail], name="mail", options={"attempts": 3}):
    """A queue with a class of its own."""


def test_a_class_tells_name_payload_and_options() -> None:
    assert (MailQueue.name, MailQueue.payload, MailQueue.options) == ("mail", Mail, {"attempts": 3})
    assert MailQueue.transactional is None


def test_a_class_between_hands_its_payload_on() -> None:
    class Base(Queue[T], Generic[T], options={"attempts": 2}):
        pass

    class Mine(Base[Mail], name="mine", options={"priority": 1}, transactional=Mail):
        pass

    class Yours(Mine, name="yours"):
        pass

    assert (Base.name, Base.payload) == ("", Any)
    assert (Mine.payload, Mine.options) == (Mail, {"attempts": 2, "priority": 1})
    assert (Yours.name, Yours.payload, Yours.transactional) == ("yours", Mail, Mail)
    assert Queue.options == {}


def test_a_class_with_a_bad_name_or_option_is_refused() -> None:
    with pytest.raises(InvalidNameError):

        class _Spaced(Queue[Any], name="a b"):  # pyright: ignore[reportUnusedClass]
            pass

    with pytest.raises(TypeError, match="did you mean 'attempts'"):

        class _Misspelt(Queue[Any], name="a", options=cast("JobOptions", {"atempts": 3})):  # pyright: ignore[reportUnusedClass]
            pass

    with pytest.raises(ConfigurationError, match="job_id belongs to a single job"):

        class _Single(Queue[Any], name="a", options={"job_id": "x"}):  # pyright: ignore[reportUnusedClass]
            pass


async def test_a_queue_needs_a_name(store: Store) -> None:
    with pytest.raises(ConfigurationError, match="has no name"):
        Queue[Any](Producer(store), store)


async def test_add_takes_bullmq_options_in_third_place_and_keywords_win(kit: Kit) -> None:
    handle = await kit.queue.add(
        "a", 1, {"attempts": 5, "delay": 2_000, "backoff": {"type": "fixed", "delay": 10}}, attempts=2
    )
    record = await kit.record(handle.id)
    assert (record.max_attempts, record.due) == (2, record.added + 2_000)
    assert read_options(record.opts).backoff == Backoff.fixed("10ms")


async def test_a_third_place_that_is_no_mapping_is_refused(kit: Kit) -> None:
    with pytest.raises(TypeError, match="third argument"):
        await kit.queue.add("a", 1, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_jobs_come_in_the_order_of_their_calls(any_kit: Kit) -> None:
    for name in ("a", "b"):
        await any_kit.queue.add(name, 1)
    await any_kit.queue.add_many([("c", 1), ("d", 1, {"priority": 1}), ("e", 1)])
    jobs = await any_kit.claim(take=10)
    assert [job.record.name for job in jobs] == ["a", "b", "c", "e", "d"]


async def test_add_many_of_nothing_is_nothing(any_kit: Kit) -> None:
    assert await any_kit.queue.add_many([]) == []


async def test_add_many_answers_each_job(any_kit: Kit) -> None:
    await any_kit.queue.add("a", 1, job_id="x")
    handles = await any_kit.queue.add_many([("a", 1, {"job_id": "x"}), ("a", 1, {"job_id": "y"})])
    assert [(handle.id, handle.deduplicated) for handle in handles] == [("x", True), ("y", False)]


async def test_a_job_can_name_its_parent(any_kit: Kit) -> None:
    parent = await any_kit.queue.add("p", 1)
    child = await any_kit.queue.add("c", 1, parent=ParentRef(Q, parent.id))
    record = await any_kit.record(child.id)
    assert record.parent == ParentRef(Q, parent.id)
    assert json.loads(record.opts)["fpof"] is True


async def test_pause_and_resume(any_kit: Kit) -> None:
    assert not await any_kit.queue.is_paused()
    await any_kit.queue.add("a", 1)
    await any_kit.queue.pause()
    assert await any_kit.queue.is_paused()
    assert await any_kit.claim() == []
    assert (await any_kit.queue.get_job_counts()).paused == 1
    await any_kit.queue.resume()
    assert len(await any_kit.claim()) == 1


async def test_counts_by_state(any_kit: Kit) -> None:
    queue = any_kit.queue
    await queue.add("a", 1)
    await any_kit.complete()
    await queue.add("a", 1)
    await any_kit.fail(ValueError("x"))
    await queue.add("a", 1)
    await any_kit.claim()
    await queue.add_many([("a", 1), ("a", 1), ("a", 1, {"priority": 3}), ("a", 1, {"delay": "1s"})])
    assert await queue.get_job_counts() == JobCounts(
        waiting=2, prioritized=1, delayed=1, active=1, completed=1, failed=1
    )


async def test_retry_promote_and_remove(any_kit: Kit) -> None:
    queue = any_kit.queue
    failed = await queue.add("a", 1)
    await any_kit.fail(ValueError("x"))
    await queue.retry(failed.id)
    assert await failed.state() is JobState.WAITING
    later = await queue.add("a", 1, delay="1h")
    await queue.promote(later.id)
    assert await later.state() is JobState.WAITING
    await queue.remove(later.id)
    with pytest.raises(JobNotFoundError):
        await later.state()


async def test_moves_that_are_not_allowed_are_refused(any_kit: Kit) -> None:
    queue = any_kit.queue
    waiting = await queue.add("a", 1)
    for move in (queue.retry, queue.promote):
        with pytest.raises(IllegalMoveError):
            await move(waiting.id)
        with pytest.raises(JobNotFoundError):
            await move("nobody")
    await any_kit.claim()
    with pytest.raises(IllegalMoveError):
        await queue.remove(waiting.id)


async def test_clean_deletes_the_old_of_one_state(any_kit: Kit, clock: FrozenClock) -> None:
    old = await any_kit.queue.add_many([("a", 1), ("a", 1), ("a", 1)])
    for _ in old:
        await any_kit.complete()
    clock.advance(timedelta(days=2))
    await any_kit.queue.add("a", 1)
    await any_kit.complete()
    await any_kit.queue.add("a", 1)
    await any_kit.fail(ValueError())
    assert await any_kit.queue.clean("1d", limit=2) == [old[0].id, old[1].id]
    assert await any_kit.queue.clean(timedelta(days=1), "completed") == [old[2].id]
    assert await any_kit.queue.clean("1d", "failed") == []
    counts = await any_kit.queue.get_job_counts()
    assert (counts.completed, counts.failed) == (1, 1)


async def test_clean_in_bullmqs_order_gets_a_hint(kit: Kit) -> None:
    with pytest.raises(ConfigurationError, match=r"second argument is the state, not 1000; write clean\('1d'"):
        await kit.queue.clean("1d", 1_000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="has no unit"):
        await kit.queue.clean(5_000, "completed")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="unknown state"):
        await kit.queue.clean("1d", "done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError, match="limit"):
        await kit.queue.clean("1d", limit=-1)


async def test_drain_leaves_what_runs_and_what_comes_later(any_kit: Kit) -> None:
    queue = any_kit.queue
    await queue.add("a", 1)
    await any_kit.claim()
    await queue.add_many([("a", 1), ("a", 1, {"priority": 1}), ("a", 1, {"delay": "1h"})])
    await queue.drain()
    assert await queue.get_job_counts() == JobCounts(active=1, delayed=1)
    await queue.drain(delayed=True)
    assert await queue.get_job_counts() == JobCounts(active=1)


async def test_obliterate_asks_for_force_while_jobs_run(any_kit: Kit) -> None:
    await any_kit.queue.add_many([("a", 1)] * 3)
    await any_kit.claim()
    with pytest.raises(IllegalMoveError):
        await any_kit.queue.obliterate()
    assert (await any_kit.queue.get_job_counts()).waiting == 2
    await any_kit.queue.obliterate(force=True)
    assert await everything(any_kit.store) == {}


async def test_obliterate_tells_how_far_it_is(any_kit: Kit) -> None:
    for _ in range(3):
        await any_kit.queue.add_many([("a", 1)] * 500)
    told: list[int] = []
    await any_kit.queue.obliterate(on_progress=told.append)
    assert (len(told) > 1, sum(told)) == (True, 1_500)


async def test_limits_hold_and_are_lifted(any_kit: Kit, clock: FrozenClock) -> None:
    queue = any_kit.queue
    await queue.add_many([("a", 1)] * 10)
    await queue.set_global_concurrency(2)
    jobs = await any_kit.claim(take=5)
    assert len(jobs) == 2
    await queue.set_global_concurrency(None)
    await queue.set_rate_limit(1, "1m")
    assert len(await any_kit.claim(take=5)) == 1
    await queue.set_rate_limit(None)
    await queue.rate_limit("1m")
    assert await any_kit.claim(take=5) == []
    clock.advance(timedelta(minutes=2))
    assert len(await any_kit.claim(take=5)) == 5


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3"])
async def test_limits_that_mean_nothing_are_refused(kit: Kit, n: Any) -> None:
    with pytest.raises(ConfigurationError):
        await kit.queue.set_global_concurrency(n)
    with pytest.raises(ConfigurationError):
        await kit.queue.set_rate_limit(n, "1m")
    with pytest.raises(ConfigurationError, match="per what time"):
        await kit.queue.set_rate_limit(3)


async def test_cancel_of_a_waiting_job_fails_it(any_kit: Kit) -> None:
    for options in (JobOptions(), JobOptions(delay="1h"), JobOptions(priority=3)):
        handle = await any_kit.queue.add("a", 1, **options)
        assert await any_kit.queue.cancel(handle.id)
        assert await handle.state() is JobState.FAILED
        assert not await any_kit.queue.cancel(handle.id)
    assert not await any_kit.queue.cancel("nobody")


async def test_cancel_of_a_running_job_asks_it_to_stop(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    (claimed,) = await any_kit.claim()
    assert await handle.cancel()
    assert (await any_kit.store.renew(Q, [claimed.held], 1_000)).cancelled == (handle.id,)
    await any_kit.settle(claimed, Completed(b"1"))
    assert not await handle.cancel()


async def test_repeat_makes_one_schedule_however_often_it_is_said(any_kit: Kit) -> None:
    queue = any_kit.queue
    first = await queue.add("sync", {"a": 1}, repeat=Repeat("*/5 * * * *"), attempts=3, tags=["x"])
    before = await everything(any_kit.store)
    again = await queue.add("sync", {"a": 1}, repeat=Repeat("*/5 * * * *"), attempts=3, tags=["x"])
    assert (first.id, await first.state()) == (again.id, JobState.DELAYED)
    assert await everything(any_kit.store) == before
    (schedule,) = await any_kit.store.schedules(Q)
    assert (schedule.definition.name, schedule.definition.pattern) == ("sync", "*/5 * * * *")
    record = await any_kit.record(first.id)
    assert (record.max_attempts, record.tags, record.schedule) == (3, ("x",), schedule.id)
    stored = json.loads(record.opts)
    assert stored["repeat"] == {"count": 1, "pattern": "*/5 * * * *", "tz": "UTC"}
    assert stored["prevMillis"] == schedule.slot
    other = await queue.add("sync", {"a": 2}, repeat=Repeat("*/5 * * * *"))
    assert other.id != first.id


async def test_a_distance_begins_at_once(any_kit: Kit, clock: FrozenClock) -> None:
    handle = await any_kit.queue.add("sync", None, repeat=Repeat(every="5m"))
    assert handle.id.endswith(f":{clock.now_ms()}")
    assert (await any_kit.claim())[0].record.id == handle.id


async def test_upsert_changes_a_schedule_in_place(any_kit: Kit) -> None:
    queue = any_kit.queue
    template = {"name": "sync", "data": {"a": 1}, "opts": {"attempts": 2}}
    first = await queue.upsert_job_scheduler("nightly", {"pattern": "0 3 * * *"}, template)
    changed = await queue.upsert_job_scheduler("nightly", Repeat("0 3 * * *"), {**template, "data": {"a": 2}})
    assert first.id == changed.id
    record = await any_kit.record(changed.id)
    assert (json.loads(record.data), record.max_attempts, record.name) == ({"a": 2}, 2, "sync")
    moved = await queue.upsert_job_scheduler("nightly", Repeat("0 4 * * *"), {"name": "sync"})
    assert moved.id != first.id
    assert (await queue.get_job_counts()).delayed == 1
    assert await queue.remove_job_scheduler("nightly")
    assert not await queue.remove_job_scheduler("nightly")
    assert (await queue.get_job_counts()).delayed == 0


async def test_a_schedule_that_is_over_is_refused(kit: Kit, clock: FrozenClock) -> None:
    past = clock.now() - timedelta(days=1)
    with pytest.raises(ConfigurationError, match="no slot left"):
        await kit.queue.add("a", 1, repeat=Repeat("* * * * *", end=past))
    with pytest.raises(ScheduleError):
        await kit.queue.add("a", 1, repeat=Repeat("0 0 31 2 *"))
    with pytest.raises(TypeError, match="unknown key 'date'"):
        await kit.queue.upsert_job_scheduler("a", Repeat("* * * * *"), {"date": 1})
    assert await everything(kit.store) == {}


async def test_add_sync_needs_a_store_with_transactions(kit: Kit) -> None:
    with pytest.raises(NotSupportedError, match=r"await add\(\)"):
        kit.queue.add_sync("a", 1, tx=object())


async def test_a_job_added_in_a_transaction_exists_exactly_if_that_commits(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    await store.open()
    kit = Kit(store)
    connection = sqlite3.connect(tmp_path / "jobs.db")
    try:
        connection.execute("CREATE TABLE orders (id)")
        connection.commit()
        for commit in (False, True):
            connection.execute("INSERT INTO orders VALUES (1)")
            await kit.queue.add("a", 1, tx=connection)
            await kit.queue.add_many([("b", 1), ("c", 1)], tx=connection)
            connection.commit() if commit else connection.rollback()
        assert (await kit.queue.get_job_counts()).waiting == 3
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    finally:
        connection.close()
        await store.close()
