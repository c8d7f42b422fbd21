"""What a queue tells: exact types, order and fields, on every store those of BullMQ's stream."""

from typing import Any

import anyio
import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    PATIENCE,
    Later,
    Q,
    add,
    by_id,
    by_state,
    claim,
    claim_one,
    complete,
    edit,
    ev,
    fail,
    listening,
    retry,
    settle,
    settle_all,
    spec,
    step,
    sweep,
    types_of,
)
from workers_module.clock import FrozenClock
from workers_module.errors import JobNotFoundError
from workers_module.job.events import Event
from workers_module.job.outcome import Completed, Failed, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import DedupSpec, Fail, Promote, QueuePatch, Remove, RetryAgain, Settle

# --- adding -----------------------------------------------------------------------------------------------------------


async def test_added_jobs_are_told_in_order_each_with_its_place(store: Store, clock: FrozenClock) -> None:
    due = clock.now_ms() + 500
    async with listening(store) as ear:
        await store.add([spec("a"), spec("p", priority=1), spec("d", delay_ms=500, name="other")])
        assert await ear.heard() == [
            ev("added", "a", name="send"),
            ev("waiting", "a"),
            ev("added", "p", name="send"),
            ev("waiting", "p"),
            ev("added", "d", name="other"),
            ev("delayed", "d", delay=str(due)),
        ]


async def test_a_flow_is_told_parent_and_children(store: Store) -> None:
    async with listening(store) as ear:
        await store.add([spec("c", parent=1), spec("p")])
        heard = await ear.heard()
    assert [event for event in heard if event[1] == "c"] == [ev("added", "c", name="send"), ev("waiting", "c")]
    assert [event for event in heard if event[1] == "p"] == [ev("added", "p", name="send"), ev("waiting-children", "p")]
    assert len(heard) == 4


async def test_an_id_that_exists_is_told(store: Store) -> None:
    await add(store, "a")
    async with listening(store) as ear:
        await add(store, "a")
        assert await ear.heard() == [ev("duplicated", "a")]


async def test_a_refused_call_is_not_told(store: Store) -> None:
    async with listening(store) as ear:
        with pytest.raises(JobNotFoundError):
            await store.add([spec("a"), spec("b", parent=ParentRef(Q, "nobody"))])
        assert await ear.heard() == []


# --- deduplication ----------------------------------------------------------------------------------------------------


async def test_a_dropped_call_is_told_with_both_ids(store: Store) -> None:
    await store.add([spec("a", dedup=DedupSpec("k"))])
    async with listening(store) as ear:
        await store.add([spec("b", dedup=DedupSpec("k"))])
        assert await ear.heard() == [ev("deduplicated", "a", deduplicationId="k", deduplicatedJobId="b")]


async def test_a_debounced_call_is_told_with_the_ids_the_other_way_round(store: Store, clock: FrozenClock) -> None:
    await store.add([spec("a", delay_ms=500, dedup=DedupSpec("k", "debounce", 1_000))])
    due = clock.now_ms() + 500
    async with listening(store) as ear:
        await store.add([spec("b", delay_ms=500, dedup=DedupSpec("k", "debounce", 1_000))])
        assert await ear.heard() == [
            ev("removed", "a", prev="delayed"),
            ev("deduplicated", "b", deduplicationId="k", deduplicatedJobId="a"),
            ev("added", "b", name="send"),
            ev("delayed", "b", delay=str(due)),
        ]


async def test_a_debounced_call_after_the_delay_is_not_told(store: Store, later: Later) -> None:
    await store.add([spec("a", delay_ms=500, dedup=DedupSpec("k", "debounce", 10_000))])
    later(500)
    await claim_one(store)
    async with listening(store) as ear:
        await store.add([spec("b", delay_ms=500, dedup=DedupSpec("k", "debounce", 10_000))])
        assert await ear.heard() == []


async def test_a_rescheduled_job_is_told(store: Store, clock: FrozenClock) -> None:
    await store.add([spec("a", delay_ms=500, dedup=DedupSpec("k", "reschedule"))])
    due = clock.now_ms() + 900
    async with listening(store) as ear:
        await store.add([spec("b", delay_ms=900, dedup=DedupSpec("k", "reschedule"))])
        heard = await ear.heard()
    assert sorted(heard) == [
        ev("deduplicated", "a", deduplicationId="k", deduplicatedJobId="b"),
        ev("delayed", "a", delay=str(due)),
    ]


async def test_a_kept_call_is_told_before_the_end_that_brings_it(store: Store) -> None:
    await store.add([spec("a", dedup=DedupSpec("k", "keep_latest"))])
    job = await claim_one(store)
    async with listening(store) as ear:
        await store.add([spec("b", dedup=DedupSpec("k", "keep_latest"))])
        await complete(store, job, b"1")
        assert await ear.heard() == [
            ev("deduplicated", "a", deduplicationId="k", deduplicatedJobId="b"),
            ev("added", "b", name="send"),
            ev("waiting", "b"),
            ev("completed", "a", returnvalue="1", prev="active"),
        ]


# --- running ----------------------------------------------------------------------------------------------------------


async def test_a_life_is_told(store: Store) -> None:
    async with listening(store) as ear:
        await add(store, "a")
        job = await claim_one(store)
        await edit(store, "a", progress=b'{"x":1}')
        await complete(store, job, b'{"y" : [] }')
        assert await ear.heard() == [
            ev("added", "a", name="send"),
            ev("waiting", "a"),
            ev("active", "a", prev="waiting"),
            ev("progress", "a", data='{"x":1}'),
            ev("completed", "a", returnvalue='{"y" : [] }', prev="active"),
            ev("drained"),
        ]


async def test_a_start_is_told_alike_from_every_place(store: Store, later: Later) -> None:
    await store.add([spec("p", priority=1), spec("d", delay_ms=10)])
    later(10)
    async with listening(store) as ear:
        await claim(store, 5)
        assert await ear.heard() == [
            ev("waiting", "d", prev="delayed"),
            ev("active", "d", prev="waiting"),
            ev("active", "p", prev="waiting"),
        ]


async def test_a_final_failure_is_told_and_that_attempts_are_used_up(store: Store) -> None:
    await store.add([spec("a", max_attempts=2), spec("b", max_attempts=2)])
    a, b = await claim(store, 2)
    await retry(store, a)
    again = await claim_one(store)
    await add(store, "keeps the queue from draining")
    async with listening(store) as ear:
        await fail(store, again, "two")
        await fail(store, b, "unrecoverable")
        assert await ear.heard() == [
            ev("failed", "a", failedReason="two", prev="active"),
            ev("retries-exhausted", "a", attemptsMade="2"),
            ev("failed", "b", failedReason="unrecoverable", prev="active"),
        ]


async def test_going_back_is_told(store: Store, clock: FrozenClock) -> None:
    await add(store, "now", "later", "snooze", "release")
    now, late, snooze, release = await claim(store, 4)
    async with listening(store) as ear:
        await settle(store, now, Retry(0, "no"))
        await settle(store, late, Retry(500, "no"))
        await settle(store, snooze, Snooze(700))
        await settle(store, release, Release())
        assert await ear.heard() == [
            ev("waiting", "now", prev="active"),
            ev("delayed", "later", delay=str(clock.now_ms() + 500)),
            ev("delayed", "snooze", delay=str(clock.now_ms() + 700)),
            ev("waiting", "release", prev="active"),
        ]


async def test_ends_are_told_before_the_starts_of_the_same_step(store: Store) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    async with listening(store) as ear:
        await store.step(step(1, outcomes=[Settle(job.held, Completed(b"1"))]))
        assert await ear.heard() == [
            ev("completed", "a", returnvalue="1", prev="active"),
            ev("active", "b", prev="waiting"),
        ]


async def test_a_recovered_job_is_told(store: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    later(LEASE + 1)
    async with listening(store) as ear:
        await sweep(store)
        assert await ear.heard() == []
        later(INTERVAL + 1)
        await sweep(store)
        assert await ear.heard() == [ev("waiting", "a", prev="active"), ev("stalled", "a")]


async def test_due_jobs_are_told_by_a_sweep(store: Store, later: Later) -> None:
    await add(store, "a", delay_ms=10)
    later(10)
    async with listening(store) as ear:
        await sweep(store)
        assert await ear.heard() == [ev("waiting", "a", prev="delayed")]


async def test_waiting_for_children_is_told_and_its_end_before_the_childs(store: Store) -> None:
    await add(store, "p")
    parent = await claim_one(store)
    await store.add([spec("c", parent=ParentRef(Q, "p"))])
    child = await claim_one(store)
    async with listening(store) as ear:
        await settle(store, parent, WaitChildren())
        await complete(store, child, b"1")
        assert await ear.heard() == [
            ev("waiting-children", "p", prev="active"),
            ev("waiting", "p", prev="waiting-children"),
            ev("completed", "c", returnvalue="1", prev="active"),
        ]


async def test_a_parent_in_another_queue_is_told_there(store: Store) -> None:
    await store.add([spec("c", parent=1), spec("p", queue="parents")])
    child = await claim_one(store)
    async with listening(store) as ear, listening(store, "parents") as other_ear:
        await complete(store, child, b"1")
        assert await ear.heard() == [ev("completed", "c", returnvalue="1", prev="active"), ev("drained")]
        assert await other_ear.heard() == [ev("waiting", "p", prev="waiting-children")]


# --- drained ----------------------------------------------------------------------------------------------------------


async def test_drained_is_told_once_when_the_last_job_of_a_step_ends(store: Store) -> None:
    await add(store, "a", "b", "c")
    jobs = await claim(store, 3)
    async with listening(store) as ear:
        await settle_all(store, jobs[:2], Completed(b"1"))
        assert types_of(await ear.heard()) == ["completed", "completed"]
        await settle_all(store, jobs[2:], Failed("no"))
        assert types_of(await ear.heard()) == ["failed", "retries-exhausted", "drained"]


async def test_a_step_that_settled_nothing_tells_nothing(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await complete(store, job)
    async with listening(store) as ear:
        await store.step(step(5))
        await store.step(step(0))
        await settle(store, job, Completed(b"null"))
        assert await ear.heard() == []


@pytest.mark.parametrize(("take", "told"), [(0, ["completed", "drained"]), (1, ["completed"])])
async def test_delayed_jobs_count_only_for_a_step_that_wants_more(store: Store, take: int, told: list[str]) -> None:
    await store.add([spec("a"), spec("d", delay_ms=500)])
    job = await claim_one(store)
    async with listening(store) as ear:
        await store.step(step(take, outcomes=[Settle(job.held, Completed(b"1"))]))
        assert types_of(await ear.heard()) == told


@pytest.mark.parametrize("left", [{}, {"priority": 4}])
async def test_ready_jobs_of_a_paused_queue_keep_it_from_draining(store: Store, left: dict[str, Any]) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await store.add([spec("b", **left)])
    await store.configure(Q, QueuePatch(paused=True))
    async with listening(store) as ear:
        await store.step(step(1, outcomes=[Settle(job.held, Completed(b"1"))]))
        assert types_of(await ear.heard()) == ["completed"]


# --- changing ---------------------------------------------------------------------------------------------------------


async def test_removal_is_told_with_the_state_left(store: Store) -> None:
    await store.add([spec("c"), spec("f"), spec("w"), spec("p", priority=1), spec("d", delay_ms=5)])
    done, failed = await claim(store, 2)
    await complete(store, done)
    await fail(store, failed)
    async with listening(store) as ear:
        await store.move(Q, by_id("c", "f", "w", "p", "d"), Remove())
        assert await ear.heard() == [
            ev("removed", "c", prev="completed"),
            ev("removed", "f", prev="failed"),
            ev("removed", "w", prev="wait"),
            ev("removed", "p", prev="prioritized"),
            ev("removed", "d", prev="delayed"),
        ]


async def test_hard_removal_tells_nothing_of_the_jobs(store: Store) -> None:
    await store.add([spec("w"), spec("d", delay_ms=5)])
    async with listening(store) as ear:
        await store.move(Q, by_state(JobState.WAITING, JobState.DELAYED), Remove(hard=True))
        assert "removed" not in types_of(await ear.heard())


async def test_cleaning_by_age_tells_how_many(store: Store, clock: FrozenClock, later: Later) -> None:
    await add(store, "a", "b")
    await settle_all(store, await claim(store, 2), Completed(b"1"))
    later(1_000)
    async with listening(store) as ear:
        await store.move(Q, by_state(JobState.COMPLETED, older_than=clock.now_ms() - 500), Remove(hard=True))
        assert await ear.heard() == [ev("cleaned", count="2")]


async def test_retried_jobs_are_told_with_the_state_left(store: Store) -> None:
    await add(store, "c", "f")
    done, failed = await claim(store, 2)
    await complete(store, done)
    await fail(store, failed)
    async with listening(store) as ear:
        await store.move(Q, by_id("f", "c"), RetryAgain())
        assert await ear.heard() == [ev("waiting", "f", prev="failed"), ev("waiting", "c", prev="completed")]


async def test_promoted_jobs_are_told(store: Store) -> None:
    await add(store, "a", delay_ms=500)
    async with listening(store) as ear:
        await store.move(Q, by_id("a"), Promote())
        assert await ear.heard() == [ev("waiting", "a", prev="delayed")]


async def test_a_cancelled_job_is_told_as_failed(store: Store) -> None:
    await add(store, "a", delay_ms=500)
    async with listening(store) as ear:
        await store.move(Q, by_id("a"), Fail("cancelled by ada"))
        heard = await ear.heard()
    assert heard[0] == ev("failed", "a", failedReason="cancelled by ada", prev="delayed")
    assert set(types_of(heard)) <= {"failed", "retries-exhausted"}


async def test_a_changed_delay_is_told(store: Store, clock: FrozenClock) -> None:
    await add(store, "a", delay_ms=500)
    async with listening(store) as ear:
        await edit(store, "a", delay_ms=900)
        assert await ear.heard() == [ev("delayed", "a", delay=str(clock.now_ms() + 900))]


async def test_silent_changes_are_not_told(store: Store) -> None:
    await add(store, "a")
    async with listening(store) as ear:
        await edit(store, "a", data=b"1", log_lines=("x",))
        await edit(store, "a", priority=4)
        await claim_one(store)
        await edit(store, "a", cancel=True)
        assert types_of(await ear.heard()) == ["active"]


async def test_pause_and_resume_are_told_when_they_change_something(store: Store) -> None:
    async with listening(store) as ear:
        for paused in (False, True, True, False, False):
            await store.configure(Q, QueuePatch(paused=paused))
        await store.configure(Q, QueuePatch(concurrency=3))
        assert await ear.heard() == [ev("paused"), ev("resumed")]


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_published_events_are_heard_with_their_fields(store: Store) -> None:
    async with listening(store) as ear:
        await store.publish(
            Q, [Event("hello", None, {"a": "1", "b": "\U0001f40d"}), Event("progress", "x", {"data": "5"})]
        )
        await store.publish(Q, [])
        assert await ear.heard() == [ev("hello", a="1", b="\U0001f40d"), ev("progress", "x", data="5")]


async def test_a_reader_hears_from_the_moment_it_enters(store: Store) -> None:
    await add(store, "before")
    async with listening(store) as ear:
        await add(store, "after")
        assert await ear.heard() == [ev("added", "after", name="send"), ev("waiting", "after")]


async def test_what_happened_between_entering_and_reading_is_heard(store: Store) -> None:
    async with store.events(Q) as batches:
        await add(store, "a")
        await add(store, "b")
        with anyio.fail_after(PATIENCE):
            seen: list[Event] = []
            while len(seen) < 4:
                seen.extend((await anext(batches)).events)
    assert [event.job_id for event in seen] == ["a", "a", "b", "b"]


async def test_a_queue_is_heard_alone(store: Store) -> None:
    async with listening(store, "one") as ear:
        await store.add([spec("a", queue="two"), spec("b", queue="one")])
        assert await ear.heard() == [ev("added", "b", name="send"), ev("waiting", "b")]


async def test_several_readers_hear_the_same(store: Store, other: Store) -> None:
    async with listening(store) as one, listening(store) as two, listening(other) as three:
        await add(store, "a")
        await store.publish(Q, [Event("end")])
        wanted = [ev("added", "a", name="send"), ev("waiting", "a"), ev("end")]
        assert [await ear.until("end") for ear in (one, two, three)] == [wanted] * 3


async def test_other_clients_events_are_heard(store: Store, other: Store) -> None:
    async with listening(store) as ear:
        await add(other, "a")
        await other.publish(Q, [Event("end")])
        assert await ear.until("end") == [ev("added", "a", name="send"), ev("waiting", "a"), ev("end")]


async def test_a_sleeping_reader_is_woken(store: Store, other: Store) -> None:
    heard: list[str] = []

    async def read() -> None:
        async with listening(store) as ear:
            started.set()
            heard.extend(types_of(await ear.until("end")))

    started = anyio.Event()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await started.wait()
            await anyio.sleep(0.02)
            await other.publish(Q, [Event("one")])
            await anyio.sleep(0.02)
            await other.publish(Q, [Event("end")])
    assert heard == ["one", "end"]


async def test_a_cursor_resumes_after_its_batch_without_gap_or_repeat(store: Store, other: Store) -> None:
    async with listening(store) as ear:
        await store.publish(Q, [Event("one"), Event("two")])
        assert types_of(await ear.until("two")) == ["one", "two"]
        cursor = ear.cursor
    await store.publish(Q, [Event("three")])
    await add(store, "a")
    for client in (store, other):
        async with listening(client, after=cursor) as ear:
            await client.publish(Q, [Event("end")])
            assert types_of(await ear.until("end"))[:4] == ["three", "added", "waiting", "end"]


async def test_batches_name_cursors_that_lead_through_all_events(store: Store) -> None:
    cursor: str | None = None
    async with listening(store) as ear:
        await store.publish(Q, [Event("begin")])
        await ear.until("begin")
        cursor = ear.cursor
    for n in range(30):
        await store.publish(Q, [Event(f"e{n}")])
    seen: list[str] = []
    with anyio.fail_after(PATIENCE):
        while "e29" not in seen:
            async with store.events(Q, after=cursor) as batches:
                batch = await anext(batches)
                seen += [event.type for event in batch.events]
                cursor = batch.cursor
    assert seen == [f"e{n}" for n in range(30)]


async def test_a_cancelled_reader_leaves_the_store_in_order(store: Store) -> None:
    with anyio.move_on_after(0.05):
        async with store.events(Q) as batches:
            await anext(batches)
    async with listening(store) as ear:
        await add(store, "a")
        assert types_of(await ear.heard()) == ["added", "waiting"]


async def test_what_fell_out_of_the_cap_is_announced(store: Store, later: Later) -> None:
    await store.configure(Q, QueuePatch(event_cap=5))
    async with listening(store) as ear:
        await store.publish(Q, [Event("begin")])
        await ear.until("begin")
        cursor = ear.cursor
    for n in range(0, 2_000, 10):
        await store.publish(Q, [Event(f"e{m}") for m in range(n, n + 10)])
    await sweep(store)
    async with listening(store, after=cursor) as ear:
        heard = types_of(await ear.until("e1999"))
    assert heard[0] == "gap"
    assert heard[1:] == [f"e{n}" for n in range(2_000 - len(heard) + 1, 2_000)]
    assert 5 <= len(heard) - 1 < 1_000


async def test_nothing_falls_out_under_the_cap(store: Store) -> None:
    async with listening(store) as ear:
        await store.publish(Q, [Event("begin")])
        await ear.until("begin")
        cursor = ear.cursor
    for n in range(50):
        await store.publish(Q, [Event(f"e{n}")])
    await sweep(store)
    async with listening(store, after=cursor) as ear:
        assert types_of(await ear.until("e49")) == [f"e{n}" for n in range(50)]


async def test_events_come_in_the_order_of_the_writes_of_many_clients(store: Store, other: Store) -> None:
    async def produce(client: Store, name: str) -> None:
        for n in range(50):
            await client.publish(Q, [Event("n", None, {"who": name, "n": str(n)})])

    async with listening(store) as ear:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(produce, store, "one")
                tasks.start_soon(produce, other, "two")
        await store.publish(Q, [Event("end")])
        heard = (await ear.until("end"))[:-1]
    for name in ("one", "two"):
        assert [fields["n"] for _, _, fields in heard if fields["who"] == name] == [str(n) for n in range(50)]
    assert len(heard) == 100
