"""Schedules: one stored job ahead, one job per slot."""

from dataclasses import replace
from typing import Any

import anyio
import pytest

from tests.store.helpers import (
    Later,
    Q,
    by_id,
    by_state,
    claim,
    claim_one,
    complete,
    ev,
    ids_in,
    ids_of,
    listening,
    numbers,
    record,
    run,
    run_to_failure,
    spec,
    state,
    sweep,
)
from workers_module.clock import FrozenClock
from workers_module.errors import IllegalMoveError
from workers_module.job.outcome import Keep
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleDefinition, ScheduleRecord
from workers_module.store.values import Fail, QueuePatch, Remove

MINUTE = 60_000
DEFINITION = ScheduleDefinition(
    name="tick",
    pattern="* * * * *",
    tz="Europe/Berlin",
    start=1,
    end=2**50,
    limit=1_000,
    data=b'{ "x":1}',
    opts=b'{"attempts": 3}',
    extra=b'{"owner" : "me"}',
)


def put(
    slot: int, *, id: str = "s", definition: ScheduleDefinition = DEFINITION, paused: bool = False, **job: Any
) -> PutSchedule:
    return PutSchedule(id=id, definition=definition, slot=slot, job=spec(name="tick", **job), paused=paused)


def fire(from_slot: int, slot: int, *, id: str = "s", replace: bool = False, **job: Any) -> FireSlot:
    return FireSlot(id=id, from_slot=from_slot, slot=slot, job=spec(name="tick", **job), replace=replace)


async def change(store: Store, *changes: PutSchedule | FireSlot | DropSchedule) -> list[bool]:
    return await store.schedule(Q, changes)


async def stored(store: Store, id: str = "s") -> ScheduleRecord | None:
    found = await store.schedules(Q, ids=[id])
    return found[0] if found else None


def job_of(slot: int, id: str = "s") -> str:
    return f"repeat:{id}:{slot}"


@pytest.fixture
def slot(clock: FrozenClock) -> int:
    """Return the first slot of a test: in a minute."""
    return clock.now_ms() + MINUTE


# --- declaring --------------------------------------------------------------------------------------------------------


async def test_a_new_schedule_has_its_first_job_stored_ahead(store: Store, clock: FrozenClock, slot: int) -> None:
    assert await change(store, put(slot, data=b'{ "x":1}', opts=b'{"attempts": 3}', max_attempts=3, priority=2)) == [
        True
    ]
    kept = await record(store, job_of(slot))
    assert (kept.state, kept.due, kept.schedule, kept.added) == (JobState.DELAYED, slot, "s", clock.now_ms())
    assert (kept.name, kept.data, kept.opts) == ("tick", b'{ "x":1}', b'{"attempts": 3}')
    assert (kept.max_attempts, kept.priority) == (3, 2)
    assert await stored(store) == ScheduleRecord(
        queue=Q, id="s", definition=DEFINITION, slot=slot, count=1, paused=False, job_state=JobState.DELAYED
    )
    assert await store.queues() == [Q]


async def test_the_id_and_delay_of_the_given_job_do_not_matter(store: Store, slot: int) -> None:
    given = PutSchedule(id="s", definition=DEFINITION, slot=slot, job=spec("other", name="tick", delay_ms=5))
    await change(store, given)
    assert await ids_in(store) == [job_of(slot)]
    assert (await record(store, job_of(slot))).due == slot


async def test_a_slot_that_is_not_after_now_is_ready_at_once(store: Store, clock: FrozenClock) -> None:
    await change(store, put(clock.now_ms()))
    assert ids_of(await claim(store)) == [job_of(clock.now_ms())]


async def test_declaring_the_same_again_changes_nothing(store: Store, slot: int, later: Later) -> None:
    await change(store, put(slot))
    before = await stored(store)
    later(500)
    async with listening(store) as ear:
        assert await change(store, put(slot + 7 * MINUTE, data=b"2")) == [False]
        assert await ear.heard() == []
    assert await stored(store) == before
    assert await ids_in(store) == [job_of(slot)]


@pytest.mark.parametrize(
    "changed",
    [
        {"name": "tock"},
        {"pattern": "*/2 * * * *"},
        {"pattern": None, "every_ms": 5_000},
        {"offset_ms": 5},
        {"tz": None},
        {"start": None},
        {"end": None},
        {"limit": None},
        {"data": b'{"x":1}'},
        {"opts": b"{}"},
        {"extra": b"{}"},
    ],
)
async def test_any_change_of_the_definition_replaces_the_pending_job(
    store: Store, slot: int, changed: dict[str, Any]
) -> None:
    await change(store, put(slot))
    definition = replace(DEFINITION, **changed)
    assert await change(store, put(slot + MINUTE, definition=definition)) == [True]
    assert await ids_in(store) == [job_of(slot + MINUTE)]
    kept = await stored(store)
    assert kept is not None
    assert (kept.definition, kept.slot) == (definition, slot + MINUTE)
    assert await change(store, put(slot, definition=definition)) == [False]


async def test_a_changed_definition_may_keep_its_slot(store: Store, slot: int) -> None:
    await change(store, put(slot, data=b"1"))
    assert await change(store, put(slot, definition=replace(DEFINITION, name="tock"), data=b"2")) == [True]
    assert await ids_in(store) == [job_of(slot)]
    assert (await record(store, job_of(slot))).data == b"2"


@pytest.mark.parametrize("priority", [0, 3])
async def test_a_changed_definition_replaces_a_job_that_waits(
    store: Store, clock: FrozenClock, slot: int, priority: int
) -> None:
    await change(store, put(clock.now_ms(), priority=priority))
    await change(store, put(slot, definition=replace(DEFINITION, name="tock")))
    assert await ids_in(store) == [job_of(slot)]
    assert await numbers(store) == {"delayed": 1}


async def test_a_changed_definition_leaves_a_running_job(store: Store, clock: FrozenClock, slot: int) -> None:
    now = clock.now_ms()
    await change(store, put(now))
    job = await claim_one(store)
    await change(store, put(slot, definition=replace(DEFINITION, name="tock")))
    assert await numbers(store) == {"active": 1, "delayed": 1}
    await complete(store, job)
    assert await state(store, job_of(now)) is JobState.COMPLETED


async def test_a_new_schedule_is_told_like_a_job(store: Store, slot: int) -> None:
    async with listening(store) as ear:
        await change(store, put(slot))
        assert await ear.heard() == [
            ev("added", job_of(slot), name="tick"),
            ev("delayed", job_of(slot), delay=str(slot)),
        ]


# --- firing -----------------------------------------------------------------------------------------------------------


async def test_firing_stores_the_next_job_and_moves_the_slot(store: Store, slot: int, later: Later) -> None:
    await change(store, put(slot))
    later(MINUTE)
    job = await claim_one(store)
    assert job.record.schedule == "s"
    assert await change(store, fire(slot, slot + MINUTE, data=b"2")) == [True]
    kept = await stored(store)
    assert kept is not None
    assert (kept.slot, kept.count, kept.job_state) == (slot + MINUTE, 2, JobState.DELAYED)
    assert (await record(store, job_of(slot + MINUTE))).data == b"2"
    await complete(store, job)
    later(MINUTE)
    assert ids_of(await claim(store)) == [job_of(slot + MINUTE)]


async def test_firing_a_slot_twice_does_it_once(store: Store, slot: int) -> None:
    await change(store, put(slot))
    assert await change(store, fire(slot, slot + MINUTE)) == [True]
    async with listening(store) as ear:
        assert await change(store, fire(slot, slot + MINUTE)) == [False]
        assert await change(store, fire(slot, slot + 2 * MINUTE)) == [False]
        assert await ear.heard() == []
    assert await ids_in(store) == [job_of(slot), job_of(slot + MINUTE)]


@pytest.mark.parametrize("back", [0, 1, MINUTE])
async def test_a_slot_that_is_not_later_is_refused(store: Store, slot: int, back: int) -> None:
    await change(store, put(slot))
    assert await change(store, fire(slot, slot - back)) == [False]
    assert await ids_in(store) == [job_of(slot)]


async def test_racing_clients_fire_a_slot_once(store: Store, other: Store, slot: int) -> None:
    await change(store, put(slot))
    fired: list[bool] = []

    async def race(client: Store, n: int) -> None:
        fired.extend(await client.schedule(Q, [fire(slot, slot + n * MINUTE)]))

    async with anyio.create_task_group() as tasks:
        for n in range(1, 9):
            tasks.start_soon(race, other if n % 2 else store, n)
    assert sorted(fired) == [False] * 7 + [True]
    assert await numbers(store) == {"delayed": 2}


async def test_an_unknown_schedule_does_not_fire(store: Store, slot: int) -> None:
    assert await change(store, fire(slot, slot + MINUTE)) == [False]
    assert await numbers(store) == {}


async def test_a_schedule_fires_up_to_its_limit(store: Store, slot: int) -> None:
    await change(store, put(slot, definition=replace(DEFINITION, limit=2)))
    assert await change(store, fire(slot, slot + MINUTE)) == [True]
    assert await change(store, fire(slot + MINUTE, slot + 2 * MINUTE)) == [False]
    kept = await stored(store)
    assert kept is not None
    assert (kept.slot, kept.count) == (slot + MINUTE, 2)


async def test_firing_instead_of_a_delayed_job_removes_that(store: Store, slot: int) -> None:
    await change(store, put(slot))
    assert await change(store, fire(slot, slot + 5 * MINUTE, replace=True)) == [True]
    assert await ids_in(store) == [job_of(slot + 5 * MINUTE)]


async def test_firing_instead_of_a_job_that_is_not_delayed_is_refused(store: Store, clock: FrozenClock) -> None:
    now = clock.now_ms()
    await change(store, put(now))
    assert await change(store, fire(now, now + MINUTE, replace=True)) == [False]
    job = await claim_one(store)
    assert await change(store, fire(now, now + MINUTE, replace=True)) == [False]
    await complete(store, job, keep=Keep(count=0))
    assert await change(store, fire(now, now + MINUTE, replace=True)) == [False]
    assert await change(store, fire(now, now + MINUTE)) == [True]


async def test_changes_of_one_call_happen_in_order_each_for_itself(store: Store, slot: int) -> None:
    assert await change(
        store,
        put(slot),
        fire(slot, slot + MINUTE),
        fire(slot, slot + MINUTE),
        put(slot, id="t"),
        DropSchedule(id="t"),
        DropSchedule(id="t"),
        fire(slot + MINUTE, slot + 2 * MINUTE),
    ) == [True, True, False, True, True, False, True]
    assert await ids_in(store) == [job_of(slot + n * MINUTE) for n in range(3)]


# --- pausing ----------------------------------------------------------------------------------------------------------


async def test_a_paused_schedule_keeps_its_slot_and_has_no_pending_job(store: Store, slot: int) -> None:
    await change(store, put(slot))
    assert await change(store, put(slot, paused=True)) == [True]
    assert await ids_in(store) == []
    kept = await stored(store)
    assert kept is not None
    assert (kept.paused, kept.slot, kept.job_state, kept.definition) == (True, slot, None, DEFINITION)
    assert await change(store, put(slot, paused=True)) == [False]


async def test_a_paused_schedule_does_not_fire(store: Store, slot: int) -> None:
    await change(store, put(slot, paused=True))
    assert await ids_in(store) == []
    assert await change(store, fire(slot, slot + MINUTE)) == [False]
    assert await change(store, fire(slot, slot + MINUTE, replace=True)) == [False]


async def test_a_paused_schedule_goes_on(store: Store, slot: int) -> None:
    await change(store, put(slot, paused=True))
    assert await change(store, put(slot + MINUTE)) == [True]
    assert await ids_in(store) == [job_of(slot + MINUTE)]
    assert await change(store, fire(slot + MINUTE, slot + 2 * MINUTE)) == [True]


# --- dropping ---------------------------------------------------------------------------------------------------------


async def test_a_dropped_schedule_takes_its_delayed_job_along(store: Store, slot: int) -> None:
    await change(store, put(slot))
    async with listening(store) as ear:
        assert await change(store, DropSchedule(id="s")) == [True]
        assert await ear.heard() == [ev("removed", job_of(slot), prev="delayed")]
    assert await stored(store) is None
    assert await ids_in(store) == []
    assert await change(store, fire(slot, slot + MINUTE)) == [False]


async def test_a_dropped_schedule_leaves_a_job_that_is_ready(store: Store, clock: FrozenClock) -> None:
    await change(store, put(clock.now_ms()))
    assert await change(store, DropSchedule(id="s")) == [True]
    await run(store, job_of(clock.now_ms()))


async def test_an_unknown_schedule_cannot_be_dropped(store: Store) -> None:
    assert await change(store, DropSchedule(id="s")) == [False]
    assert await store.queues() == []


# --- its current job --------------------------------------------------------------------------------------------------


async def test_the_current_job_cannot_be_removed(store: Store, slot: int) -> None:
    await change(store, put(slot))
    with pytest.raises(IllegalMoveError):
        await store.move(Q, by_id(job_of(slot)), Remove())
    assert await store.move(Q, by_id(job_of(slot), "nobody"), Remove()) == []
    assert await store.move(Q, by_state(JobState.DELAYED), Remove(hard=True)) == []
    assert await ids_in(store) == [job_of(slot)]


async def test_the_current_job_may_be_cancelled_and_its_schedule_goes_on(store: Store, slot: int) -> None:
    await change(store, put(slot))
    assert await store.move(Q, by_id(job_of(slot)), Fail("no")) == [job_of(slot)]
    assert (await sweep(store)).idle == ("s",)
    assert await change(store, fire(slot, slot + MINUTE)) == [True]
    assert await ids_in(store, JobState.DELAYED) == [job_of(slot + MINUTE)]


async def test_a_job_of_an_earlier_slot_can_be_removed(store: Store, clock: FrozenClock, slot: int) -> None:
    now = clock.now_ms()
    await change(store, put(now))
    await run(store, job_of(now))
    await change(store, fire(now, slot))
    assert await store.move(Q, by_id(job_of(now)), Remove()) == [job_of(now)]


async def test_the_last_job_of_a_schedule_that_is_gone_can_be_removed(store: Store, clock: FrozenClock) -> None:
    now = clock.now_ms()
    await change(store, put(now))
    await run(store, job_of(now))
    await change(store, DropSchedule(id="s"))
    assert await store.move(Q, by_id(job_of(now)), Remove()) == [job_of(now)]


async def test_the_state_of_the_current_job_is_shown(store: Store, clock: FrozenClock) -> None:
    now = clock.now_ms()

    async def shown() -> JobState | None:
        kept = await stored(store)
        assert kept is not None
        return kept.job_state

    await change(store, put(now))
    assert await shown() is JobState.WAITING
    job = await claim_one(store)
    assert await shown() is JobState.ACTIVE
    await complete(store, job)
    assert await shown() is JobState.COMPLETED
    await change(store, fire(now, now + 1))
    assert await shown() is JobState.DELAYED
    await change(store, fire(now + 1, now + 2, replace=True))
    assert await shown() is JobState.DELAYED


async def test_a_failed_job_does_not_end_its_schedule(store: Store, clock: FrozenClock, slot: int) -> None:
    now = clock.now_ms()
    await change(store, put(now))
    await run_to_failure(store, job_of(now))
    kept = await stored(store)
    assert kept is not None
    assert kept.job_state is JobState.FAILED
    assert await change(store, fire(now, slot)) == [True]


async def test_a_paused_queue_keeps_its_schedules(store: Store, clock: FrozenClock) -> None:
    await store.configure(Q, QueuePatch(paused=True))
    await change(store, put(clock.now_ms()))
    assert await claim(store) == []
    assert await numbers(store) == {"waiting": 1}


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_schedules_are_listed_by_slot_in_pieces(store: Store, slot: int) -> None:
    await change(
        store, put(slot + 300, id="c"), put(slot + 100, id="a"), put(slot + 400, id="d"), put(slot + 200, id="b")
    )
    assert [one.id for one in await store.schedules(Q)] == ["a", "b", "c", "d"]
    assert [one.id for one in await store.schedules(Q, start=1, limit=2)] == ["b", "c"]
    assert await store.schedules(Q, start=4) == []
    assert await store.schedules("elsewhere") == []


async def test_schedules_are_read_by_id(store: Store, slot: int) -> None:
    await change(store, put(slot, id="a"), put(slot, id="b"))
    assert [one.id for one in await store.schedules(Q, ids=["b", "nobody", "a"])] == ["b", "a"]
    assert await store.schedules(Q, ids=[]) == []


async def test_two_queues_may_have_schedules_of_one_name(store: Store, slot: int) -> None:
    for queue in ("one", "two"):
        changes = [PutSchedule(id="s", definition=DEFINITION, slot=slot, job=spec(queue=queue, name="tick"))]
        assert await store.schedule(queue, changes) == [True]
    await store.schedule("one", [DropSchedule(id="s")])
    assert [one.queue for one in await store.schedules("two")] == ["two"]
    assert await numbers(store, "two") == {"delayed": 1}


async def test_another_client_sees_the_schedule(store: Store, other: Store, slot: int) -> None:
    await change(store, put(slot))
    assert await other.schedules(Q) == await store.schedules(Q)
