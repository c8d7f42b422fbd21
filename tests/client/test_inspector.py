"""`Inspector`: looks, and changes nothing."""

from datetime import timedelta

import anyio
import pytest

from tests.client.helpers import PATIENCE, Kit, Q, everything
from workers_module.client.inspector import Inspector
from workers_module.client.queue import JobCounts
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.job.options import Repeat
from workers_module.job.state import JobState
from workers_module.store.values import Beat, JobPatch, JobSpec, WorkerInfo


async def test_it_tells_what_there_is(any_kit: Kit) -> None:
    inspector = Inspector(any_kit.store)
    assert await inspector.queues() == []
    handle = await any_kit.queue.add("a", {"n": 1}, attempts=3)
    await any_kit.queue.add("tick", 1, repeat=Repeat("* * * * *"))
    before = await everything(any_kit.store)
    assert await inspector.queues() == [Q]
    assert await inspector.counts(Q) == JobCounts(waiting=1, delayed=1)
    job = await inspector.get(Q, handle.id)
    assert job is not None
    assert (job.id, job.name, job.data, job.attempts, job.attempt) == (handle.id, "a", {"n": 1}, 3, 1)
    assert await inspector.get(Q, "nobody") is None
    (schedule,) = await inspector.schedules()
    assert await inspector.schedules(Q) == [schedule]
    assert await inspector.verify(Q) == []
    assert not (await inspector.settings(Q)).paused
    assert await inspector.locks() == []
    assert (await inspector.metrics(Q)).completed.total == 0
    assert await everything(any_kit.store) == before


async def test_pages_follow_each_other(any_kit: Kit) -> None:
    inspector = Inspector(any_kit.store)
    handles = await any_kit.queue.add_many([("a", number) for number in range(7)])
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await inspector.page(Q, JobState.WAITING, cursor, 3)
        seen += [job.id for job in page.items]
        assert page.total == 7
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [handle.id for handle in handles]
    newest = await inspector.page(Q, [JobState.WAITING, JobState.ACTIVE], limit=2, newest_first=True)
    assert [job.id for job in newest.items] == [handles[6].id, handles[5].id]
    assert [job.id for job in (await inspector.page(Q, JobState.WAITING, limit=0)).items] == [handles[0].id]


@pytest.mark.parametrize("cursor", ["", "x", "-1", "9" * 40, "\u0661"])
async def test_a_cursor_of_somebody_else_is_refused(kit: Kit, cursor: str) -> None:
    with pytest.raises(ConfigurationError, match="no cursor"):
        await Inspector(kit.store).page(Q, JobState.WAITING, cursor)


async def test_logs_children_and_workers(any_kit: Kit) -> None:
    inspector = Inspector(any_kit.store)
    handle = await any_kit.queue.add("a", 1)
    await any_kit.store.edit(Q, [JobPatch(id=handle.id, log_lines=("one", "two"))])
    assert await inspector.logs(Q, handle.id) == ["one", "two"]
    assert await inspector.children(Q, handle.id) == []
    info = WorkerInfo(id="w", host="h", pid=1, version="0", started=0)
    await any_kit.store.worker(Beat(info, 60_000))
    assert [worker.id for worker in await inspector.workers()] == ["w"]


async def test_events_are_followed(any_kit: Kit) -> None:
    with anyio.fail_after(PATIENCE):
        async with Inspector(any_kit.store).events(Q) as batches:
            handle = await any_kit.queue.add("a", 1)
            async for batch in batches:
                if any(event.job_id == handle.id for event in batch.events):
                    break


async def test_a_payload_that_is_not_json_is_shown_as_text(any_kit: Kit, clock: FrozenClock) -> None:
    clock.advance(timedelta(seconds=1))
    (added,) = await any_kit.store.add([JobSpec(queue=Q, name="a", data=b'{"a')])
    job = await Inspector(any_kit.store).get(Q, added.id)
    assert job is not None
    assert job.data == '{"a'
