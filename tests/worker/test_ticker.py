"""Schedules: declared, changed, dropped, missed and late; every slot once, whatever becomes of its jobs."""

import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest

from tests.worker.loops import (
    HOUR,
    MINUTE,
    Desk,
    Q,
    Unreliable,
    jobs,
    nothing,
    queue_plan,
    record,
    schedule,
    states,
    until,
)
from workers_module.clock import Clock, FrozenClock
from workers_module.errors import StoreUnavailableError
from workers_module.job.job import Job
from workers_module.job.record import Token
from workers_module.job.schedule import CatchUp
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.chain import Rules, rules_of, schedule_of, slot_job
from workers_module.store.schedules import PutSchedule, ScheduleDefinition, ScheduleRecord
from workers_module.store.values import ByIds, Promote, Step, Sweep
from workers_module.worker.context import JobContext
from workers_module.worker.handler import ScheduleSpec, WorkPlan
from workers_module.worker.locks import RunLocks
from workers_module.worker.slots import definition_of
from workers_module.worker.stepper import Stepper
from workers_module.worker.sweeper import Sweeper
from workers_module.worker.ticker import Ticker
from workers_module.worker.ticks import LocalTicks


class Slots:
    """A handler that notes the slots it ran for."""

    def __init__(self) -> None:
        self.ran: list[int] = []

    async def __call__(self, job: Job[Any], context: JobContext) -> None:
        self.ran.append(slot(job.id))


def slot(job_id: str) -> int:
    return int(job_id.rpartition(":")[2])


def instance(store: Store, work: Any, *specs: ScheduleSpec, **more: Any) -> Stepper:
    """Return one process that ticks these schedules and runs their jobs, step by step."""
    plans = more.pop("plans", (queue_plan(work),))
    desk = Desk(store, *plans, **more.pop("settings", {}))
    ticker = Ticker(store, specs, owner=more.pop("owner", "app"), queues=[plan.queue for plan in plans], **more)
    return Stepper(
        store,
        WorkPlan(queues=plans),
        executor=desk.executor,
        hooks=desk.hooks,
        settings=desk.settings,
        ticker=ticker,
    )


async def sweep(store: Store, stepper: Stepper, clock: FrozenClock) -> None:
    """Sweep as a process does, twice, so that what is abandoned comes back."""
    sweeper = Sweeper(
        store,
        [Q],
        hooks=stepper._hooks,
        ticker=stepper._ticker,
        interval_ms=1,
        lease_ms=1,
        max_crashes=3,
        completed_age_ms=None,
        failed_age_ms=None,
    )
    for _ in range(3):
        clock.advance(timedelta(milliseconds=2))
        await sweeper.sweep(Sweep(queue=Q, interval_ms=1))


async def only(store: Store, id: str = "report") -> ScheduleRecord:
    (found,) = await store.schedules(Q, ids=[id])
    return found


class TestDeclaring:
    async def test_a_declared_schedule_has_its_next_job_stored_ahead(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule(cron="*/5 * * * *")).begin()
        found = await only(frozen)
        assert found.slot == clock.now_ms() + 5 * MINUTE
        assert rules_of(found.definition).owner == "app"
        job = await record(frozen, f"repeat:report:{found.slot}")
        assert (job.state, job.due, job.schedule, job.name) == (JobState.DELAYED, found.slot, "report", "send")

    async def test_declaring_it_again_changes_nothing(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        before = await only(frozen)
        clock.advance(timedelta(seconds=30))
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        assert await only(frozen) == before

    async def test_other_data_reach_the_pending_job_at_its_slot(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        before = await only(frozen)
        clock.advance(timedelta(seconds=30))
        await instance(frozen, nothing, schedule(every=MINUTE, data=b'{"n":2}')).begin()
        assert (await only(frozen)).slot == before.slot
        assert (await record(frozen, f"repeat:report:{before.slot}")).data == b'{"n":2}'
        assert await states(frozen) == {"delayed": 1}

    async def test_another_pattern_replaces_the_pending_job(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule(cron="0 12 * * *")).begin()
        await instance(frozen, nothing, schedule(cron="0 6 * * *")).begin()
        assert (await only(frozen)).slot == clock.now_ms() + 6 * HOUR
        assert await states(frozen) == {"delayed": 1}

    async def test_one_that_is_no_longer_declared_is_removed(self, frozen: Store) -> None:
        await instance(frozen, nothing, schedule("old", every=MINUTE), schedule("new", every=MINUTE)).begin()
        await instance(frozen, nothing, schedule("new", every=MINUTE)).begin()
        assert [found.id for found in await frozen.schedules(Q)] == ["new"]

    async def test_those_of_others_and_those_added_at_run_time_stay(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule("theirs", every=MINUTE), owner="other").begin()
        definition = replace(definition_of(schedule("mine", every=MINUTE), None))
        job = slot_job(Q, "mine", definition, slot=clock.now_ms() + 1, count=1, now=clock.now_ms())
        await frozen.schedule(Q, [PutSchedule(id="mine", definition=definition, slot=clock.now_ms() + 1, job=job)])
        await instance(frozen, nothing).begin()
        assert {found.id for found in await frozen.schedules(Q)} == {"theirs", "mine"}

    async def test_those_of_workers_that_do_not_run_here_stay(self, frozen: Store) -> None:
        both = (schedule("mail", every=MINUTE), schedule("audio", every=MINUTE))
        await instance(frozen, nothing, *both).begin()
        await instance(frozen, nothing, both[0], declared=[(Q, "mail"), (Q, "audio")]).begin()
        assert {found.id for found in await frozen.schedules(Q)} == {"mail", "audio"}

    async def test_a_disabled_one_is_stored_without_a_job(self, frozen: Store) -> None:
        await instance(frozen, nothing, schedule(every=MINUTE, disabled=True)).begin()
        assert (await only(frozen)).paused
        assert await states(frozen) == {}
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        assert not (await only(frozen)).paused
        assert await states(frozen) == {"delayed": 1}

    async def test_a_persons_pause_outlives_a_restart(self, frozen: Store, clock: FrozenClock) -> None:
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        found = await only(frozen)
        job = slot_job(Q, "report", found.definition, slot=found.slot, count=1, now=clock.now_ms())
        pause = PutSchedule(id="report", definition=found.definition, slot=found.slot, job=job, paused=True)
        await frozen.schedule(Q, [pause])
        await instance(frozen, nothing, schedule(every=MINUTE)).begin()
        await instance(frozen, nothing, schedule(every=MINUTE, data=b"1")).begin()
        assert (await only(frozen)).paused
        assert await states(frozen) == {}

    async def test_one_that_moved_to_another_queue_leaves_the_first(self, frozen: Store) -> None:
        plans = (queue_plan(), queue_plan(queue="other"))
        await instance(frozen, nothing, schedule(every=MINUTE), plans=plans).begin()
        await instance(frozen, nothing, schedule(every=MINUTE, queue="other"), plans=plans).begin()
        assert not await frozen.schedules(Q)
        assert [found.id for found in await frozen.schedules("other")] == ["report"]

    async def test_a_timeout_of_the_whole_fleet_brings_one_job(self, frozen: Store, clock: FrozenClock) -> None:
        ran: list[str] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)

        spec = replace(schedule("warm"), schedule=None, after_ms=5_000)
        steppers = [instance(frozen, work, spec) for _ in range(3)]
        for stepper in steppers:
            await stepper.begin()
            assert await stepper.run_due() == 0
        clock.advance(timedelta(seconds=5))
        assert sum([await stepper.run_due() for stepper in steppers]) == 1

    async def test_what_the_store_keeps_is_read_back_as_it_was(self) -> None:
        spec = schedule(cron="0 9 * * 1", tz="Europe/Berlin", catch_up="all", threshold_ms=5, jitter_ms=6, lock="l")
        definition = definition_of(spec, "app")
        assert schedule_of(definition) == spec.schedule
        assert rules_of(definition) == Rules(
            owner="app", catch_up="all", overlap="allow", threshold_ms=5, jitter_ms=6, lock="l"
        )

    @pytest.mark.parametrize("extra", [b"", b"nonsense", b"[]", b'{"catchUp":"weekly","threshold":-1,"jitter":true}'])
    async def test_rules_nobody_understands_are_none(self, extra: bytes) -> None:
        assert Rules.read(extra) == Rules()


class TestTicking:
    async def test_each_slot_runs_once_and_the_next_is_always_stored(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(cron="*/10 * * * *"))
        await stepper.begin()
        start = clock.now_ms()
        for _ in range(6 * 24):
            clock.advance(timedelta(minutes=10))
            await stepper.run_due()
        assert slots.ran == [start + n * 10 * MINUTE for n in range(1, 6 * 24 + 1)]
        assert (await states(frozen))["delayed"] == 1
        assert stepper.wake_at == clock.now_ms() + 10 * MINUTE

    async def test_the_successor_is_stored_before_the_handler_runs(self, frozen: Store, clock: FrozenClock) -> None:
        seen: list[dict[str, int]] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            seen.append(await states(frozen))

        stepper = instance(frozen, work, schedule(every=MINUTE))
        await stepper.begin()
        clock.advance(timedelta(minutes=1))
        await stepper.run_due()
        assert seen == [{"active": 1, "delayed": 1}]

    async def test_a_change_at_run_time_holds_from_the_next_slot_on(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(every=MINUTE))
        await stepper.begin()
        found = await only(frozen)
        changed = replace(found.definition, every_ms=HOUR)
        job = slot_job(Q, "report", changed, slot=found.slot, count=1, now=clock.now_ms())
        await frozen.schedule(Q, [PutSchedule(id="report", definition=changed, slot=found.slot, job=job)])
        clock.advance(timedelta(minutes=1))
        await stepper.run_due()
        assert (await only(frozen)).slot == found.slot + HOUR

    async def test_the_limit_ends_it(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots)
        definition = ScheduleDefinition(name="send", every_ms=MINUTE, limit=3)
        first = clock.now_ms() + MINUTE
        job = slot_job(Q, "three", definition, slot=first, count=1, now=clock.now_ms())
        await frozen.schedule(Q, [PutSchedule(id="three", definition=definition, slot=first, job=job)])
        for _ in range(6):
            clock.advance(timedelta(minutes=1))
            await stepper.run_due()
            await sweep(frozen, stepper, clock)
        assert len(slots.ran) == 3

    @pytest.mark.parametrize(
        ("catch_up", "expected"), [("latest", [5]), ("all", [1, 2, 3, 4, 5]), ("none", [])], ids=str
    )
    async def test_slots_missed_while_all_were_down(
        self, frozen: Store, clock: FrozenClock, catch_up: CatchUp, expected: list[int]
    ) -> None:
        slots = Slots()
        start = clock.now_ms()
        spec = schedule(cron="* * * * *", catch_up=catch_up)
        await instance(frozen, slots, spec).begin()
        clock.advance(timedelta(minutes=5, seconds=30))
        again = instance(frozen, slots, spec)
        await again.begin()
        await again.run_due()
        assert [(ran - start) // MINUTE for ran in slots.ran] == expected
        clock.advance(timedelta(seconds=30))
        await again.run_due()
        assert (slots.ran[-1] - start) // MINUTE == 6
        assert len(slots.ran) == len(expected) + 1

    @pytest.mark.parametrize(("catch_up", "count"), [("latest", 1), ("all", 100), ("none", 0)])
    async def test_all_down_over_a_hundred_slots(
        self, frozen: Store, clock: FrozenClock, catch_up: CatchUp, count: int
    ) -> None:
        """P26."""
        slots = Slots()
        spec = schedule(every=MINUTE, catch_up=catch_up)
        await instance(frozen, slots, spec).begin()
        clock.advance(timedelta(minutes=100, seconds=10))
        again = instance(frozen, slots, spec)
        await again.begin()
        assert await again.run_due() == count
        clock.advance(timedelta(minutes=1))
        assert await again.run_due() == 1
        assert len(set(slots.ran)) == count + 1

    async def test_a_slot_that_is_only_just_due_is_not_missed(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        spec = schedule(cron="* * * * *", catch_up="none")
        await instance(frozen, slots, spec).begin()
        clock.advance(timedelta(seconds=60, milliseconds=900))
        again = instance(frozen, slots, spec)
        await again.begin()
        assert await again.run_due() == 1

    async def test_what_node_wrote_follows_nodes_rule(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        start = clock.now_ms()
        definition = ScheduleDefinition(name="send", pattern="* * * * *")
        job = slot_job(Q, "node", definition, slot=start + MINUTE, count=1, now=start)
        await frozen.schedule(Q, [PutSchedule(id="node", definition=definition, slot=start + MINUTE, job=job)])
        clock.advance(timedelta(minutes=5, seconds=30))
        stepper = instance(frozen, slots)
        await stepper.begin()
        assert await stepper.run_due() == 1
        assert slots.ran == [start + MINUTE]
        assert (await only(frozen, "node")).slot == start + 6 * MINUTE

    async def test_a_slot_over_the_threshold_is_ended_unrun(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(every=MINUTE, threshold_ms=10_000))
        await stepper.begin()
        clock.advance(timedelta(seconds=71))
        assert await stepper.run_due() == 0
        assert await states(frozen) == {"delayed": 1}
        clock.advance(timedelta(seconds=50))
        assert await stepper.run_due() == 1

    async def test_jitter_puts_a_start_off_but_not_for_long(self, frozen: Store, clock: FrozenClock) -> None:
        started: list[int] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            started.append(clock.now_ms() - slot(job.id))

        stepper = instance(frozen, work, schedule(every=HOUR, jitter_ms=10 * MINUTE, threshold_ms=31_000))
        await stepper.begin()
        for _ in range(24 * 60 * 2):
            clock.advance(timedelta(seconds=30))
            await stepper.run_due()
        assert len(started) >= 22
        assert all(0 <= late <= 10 * MINUTE + 30_000 for late in started)
        assert len(set(started)) > 5

    async def test_a_slot_made_ready_by_hand_runs_early(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(every=HOUR, jitter_ms=HOUR, initial_delay_ms=HOUR))
        await stepper.begin()
        found = await only(frozen)
        await frozen.move(Q, ByIds((f"repeat:report:{found.slot}",)), Promote())
        assert await stepper.run_due() == 1
        assert (await only(frozen)).slot == found.slot + HOUR

    async def test_nothing_starts_before_the_initial_delay(self, frozen: Store, clock: FrozenClock) -> None:
        started: list[int] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            started.append(clock.now_ms())

        spec = schedule(cron="* * * * *", initial_delay_ms=10 * MINUTE)
        start = clock.now_ms()
        stepper = instance(frozen, work, spec)
        await stepper.begin()
        for _ in range(15):
            clock.advance(timedelta(minutes=1))
            await stepper.run_due()
        assert started[0] > start + 10 * MINUTE
        clock.advance(timedelta(seconds=30))
        restart = clock.now_ms()
        again = instance(frozen, work, spec)
        await again.begin()
        before = len(started)
        for _ in range(15):
            clock.advance(timedelta(minutes=1))
            await again.run_due()
        assert started[before] >= restart + 10 * MINUTE

    async def test_a_run_that_overlaps_the_last_one_is_skipped(self, frozen: Store, clock: FrozenClock) -> None:
        slots, inner = Slots(), Slots()
        other = instance(frozen, inner, schedule(every=MINUTE, overlap="skip"))

        async def long(job: Job[Any], context: JobContext) -> None:
            await slots(job, context)
            clock.advance(timedelta(minutes=1))
            await other.run_due()

        stepper = instance(frozen, long, schedule(every=MINUTE, overlap="skip"))
        await stepper.begin()
        clock.advance(timedelta(minutes=1))
        await stepper.run_due()
        assert len(slots.ran) == 1
        assert inner.ran == []
        clock.advance(timedelta(minutes=1))
        await other.run_due()
        assert len(inner.ran) == 1
        assert not await frozen.locks()

    async def test_a_crashed_run_does_not_lock_itself_out(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        spec = schedule(every=HOUR, overlap="skip")
        stepper = instance(frozen, slots, spec)
        await stepper.begin()
        clock.advance(timedelta(hours=1))
        [claimed] = (await frozen.step(Step(queue=Q, worker="w", token=Token("t"), take=1, lease_ms=1))).jobs
        admission = await stepper._ticker.admit(claimed, clock.now_ms())
        assert admission.locks is not None
        await sweep(frozen, stepper, clock)
        assert await stepper.run_due() == 1

    async def test_a_run_holds_the_lock_it_was_declared_with_or_is_skipped(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        held: list[list[str]] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            held.append([lock.name for lock in await frozen.locks()])

        stepper = instance(frozen, work, schedule(every=MINUTE, lock="books"))
        await stepper.begin()
        clock.advance(timedelta(minutes=1))
        await stepper.run_due()
        fence = await frozen.lease("books", "somebody", 10 * MINUTE)
        clock.advance(timedelta(minutes=1))
        assert await stepper.run_due() == 0
        assert held == [["books"]]
        assert fence is not None

    async def test_a_schedule_nobody_can_read_fails_its_job_and_stops_nothing(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        definition = ScheduleDefinition(name="send", pattern="every full moon")
        now = clock.now_ms()
        job = slot_job(Q, "odd", definition, slot=now, count=1, now=now)
        await frozen.schedule(Q, [PutSchedule(id="odd", definition=definition, slot=now, job=job)])
        await frozen.add(jobs("good"))
        stepper = instance(frozen, nothing)
        await stepper.begin()
        await stepper.run_due()
        assert (await record(frozen, job.id or "")).state is JobState.FAILED
        assert (await record(frozen, "good")).state is JobState.COMPLETED
        await sweep(frozen, stepper, clock)


class TestManyInstances:
    async def test_clocks_that_lie_change_no_slot(self, frozen: Store, clock: FrozenClock) -> None:
        """P25: the instances' own clocks are never asked; restarts and racing claims come on top."""
        chance = random.Random(7)
        slots: Counter[int] = Counter()
        early: list[int] = []

        async def work(job: Job[Any], context: JobContext) -> None:
            slots[slot(job.id)] += 1
            if clock.now_ms() < slot(job.id):
                early.append(slot(job.id))

        start = clock.now_ms()
        spec = schedule(cron="*/7 * * * *", catch_up="all")
        instances = [instance(frozen, work, spec) for _ in range(8)]
        for stepper in instances:
            await stepper.begin()
        for minute in range(1, 24 * 60 + 1):
            clock.set(start + minute * MINUTE)
            stepper = chance.choice(instances)
            if chance.random() < 0.05:
                await stepper.begin()
            await stepper.run_due()
        expected = {start + n * MINUTE for n in range(1, 24 * 60 + 1) if (n % 60) % 7 == 0}
        assert set(slots) == expected
        assert set(slots.values()) == {1}
        assert not early

    async def test_eight_that_start_at_once_store_one_job(self, frozen: Store) -> None:
        spec = schedule(cron="*/5 * * * *")
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(instance(frozen, nothing, spec).begin)
        assert await states(frozen) == {"delayed": 1}


class TestLostJobs:
    """P27: the next slot comes, whatever became of a job."""

    async def test_a_crashed_job_is_run_again_and_the_next_slot_fires(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(every=HOUR))
        await stepper.begin()
        clock.advance(timedelta(hours=1))
        for number in range(5):
            claimed = await frozen.step(Step(queue=Q, worker="w", token=Token(f"t{number}"), take=1, lease_ms=1))
            assert len(claimed.jobs) == 1
            await sweep(frozen, stepper, clock)
        await stepper.run_due()
        clock.advance(timedelta(hours=1))
        await stepper.run_due()
        assert len(slots.ran) == 2

    async def test_a_failed_job_ends_nothing(self, frozen: Store, clock: FrozenClock) -> None:
        async def fails(job: Job[Any], context: JobContext) -> None:
            raise ValueError

        stepper = instance(frozen, fails, schedule(every=HOUR))
        await stepper.begin()
        for _ in range(3):
            clock.advance(timedelta(hours=1))
            assert await stepper.run_due() == 1

    async def test_one_of_an_unknown_name_is_revived(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(
            frozen, slots, schedule(every=HOUR), plans=(queue_plan(None),), settings={"unknown_job_grace_ms": 0}
        )
        await stepper.begin()
        clock.advance(timedelta(hours=1))
        await stepper.run_due()
        assert await states(frozen) == {"failed": 1}
        await sweep(frozen, stepper, clock)
        assert await states(frozen) == {"failed": 1, "delayed": 1}

    async def test_a_process_that_dies_before_the_successor_is_stored(self, frozen: Store, clock: FrozenClock) -> None:
        slots = Slots()
        stepper = instance(frozen, slots, schedule(every=HOUR))
        await stepper.begin()
        clock.advance(timedelta(hours=1))
        [claimed] = (await frozen.step(Step(queue=Q, worker="w", token=Token("t"), take=1, lease_ms=1))).jobs
        assert claimed.record.schedule == "report"
        await sweep(frozen, stepper, clock)
        await stepper.run_due()
        assert len(slots.ran) == 1
        assert (await states(frozen))["delayed"] == 1

    @pytest.mark.parametrize("lost", [1, 2, 3, 4, 5, 6, 7, 8])
    @pytest.mark.parametrize("fate", ["lost", "no reply"])
    async def test_a_start_that_dies_at_any_call_is_made_good_by_the_next(
        self, frozen: Store, clock: FrozenClock, lost: int, fate: str
    ) -> None:
        slots = Slots()
        calls = 0

        def die(name: str, number: int) -> str | None:
            nonlocal calls
            calls += 1
            return fate if calls == lost else None

        specs = (schedule("a", every=MINUTE), schedule("b", cron="*/2 * * * *"))
        unreliable: Any = Unreliable(frozen, die, ("step", "schedule", "schedules"))
        try:
            await instance(unreliable, slots, *specs).begin()
        except StoreUnavailableError:
            await instance(frozen, slots, *specs).begin()
        stepper = instance(frozen, slots, *specs)
        await stepper.begin()
        for _ in range(4):
            clock.advance(timedelta(minutes=1))
            await stepper.run_due()
        assert Counter(slots.ran) == Counter({clock.now_ms() - m * MINUTE: 2 if m % 2 == 0 else 1 for m in range(4)})

    @pytest.mark.parametrize("fate", ["lost", "no reply"])
    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    async def test_a_consumer_secures_the_successor_through_lost_calls(
        self, frozen: Store, clock: FrozenClock, fate: str, number: int
    ) -> None:
        slots = Slots()
        await instance(frozen, slots, schedule(every=HOUR)).begin()
        first = (await only(frozen)).slot
        clock.advance(timedelta(hours=1))
        names = ("schedule", "schedules")
        seen = 0

        def lose(name: str, n: int) -> str | None:
            nonlocal seen
            seen += 1
            return fate if seen == number else None

        unreliable: Any = Unreliable(frozen, lose, names)
        async with Desk(unreliable, queue_plan(slots)).at_work():
            await until(lambda: _ran_once(frozen, first))
        assert slots.ran == [first]
        assert (await only(frozen)).slot == first + HOUR


async def _ran_once(store: Store, slot: int) -> bool:
    return (await record(store, f"repeat:report:{slot}")).state is JobState.COMPLETED


class TestInAConsumer:
    async def test_locks_are_kept_while_the_run_lasts_and_released_after_it(self, live: Store) -> None:
        release, ran = anyio.Event(), Slots()

        async def long(job: Job[Any], context: JobContext) -> None:
            await ran(job, context)
            await release.wait()

        ticker = Ticker(live, [schedule(every=20, overlap="skip")], owner="app", lock_ms=400)
        await ticker.prepare()
        desk = Desk(live, queue_plan(long))
        desk.consumer._scheduled._ticker = ticker
        async with desk.at_work():
            await until(live.locks)
            first = (await live.locks())[0]
            await anyio.sleep(0.6)
            [kept] = await live.locks()
            assert (kept.owner, kept.fence) == (first.owner, first.fence)
            assert len(ran.ran) == 1
            desk.stop()
            release.set()
        assert not await live.locks()

    async def test_a_run_that_loses_its_lock_is_handed_back(self, live: Store) -> None:
        ran: list[str] = []

        async def long(job: Job[Any], context: JobContext) -> None:
            ran.append(job.id)
            await anyio.sleep_forever()

        # Far apart, so that no other slot takes the lock between the two who hold it.
        ticker = Ticker(live, [schedule(every=500, lock="books")], owner="app", lock_ms=60)
        await ticker.prepare()
        desk = Desk(live, queue_plan(long))
        desk.consumer._scheduled._ticker = ticker
        async with desk.at_work(grace=0.05):
            await until(lambda: ran)
            [held] = await live.locks()
            await live.lease("books", held.owner, 0)
            assert await live.lease("books", "thief", HOUR)
            await until(lambda: _no_longer_runs(live, ran[0]))
        assert len(ran) == 1


async def _no_longer_runs(store: Store, id: str) -> bool:
    # Of this job alone: on a busy machine later slots may be active at every look.
    [found] = await store.get(Q, [id])
    return found is None or found.state is not JobState.ACTIVE


class TestEachInstance:
    def local(self, store: Store, clock: Clock, *specs: ScheduleSpec, fired: list[str]) -> LocalTicks:
        def tick(name: str) -> Any:
            async def fire() -> None:
                fired.append(name)
                if name == "bad":
                    raise ValueError

            return fire

        return LocalTicks(specs, {spec.name: tick(spec.name) for spec in specs}, store=store, clock=clock)

    async def test_it_fires_in_the_process_and_leaves_the_store_alone(self, frozen: Store, clock: FrozenClock) -> None:
        fired: list[str] = []
        spec = schedule("local", cron="* * * * *", every_instance=True)
        ticks = self.local(frozen, clock, spec, fired=fired)
        await instance(frozen, nothing, spec).begin()
        ticks.begin()
        assert await ticks.run_due() == 0
        for _ in range(3):
            clock.advance(timedelta(minutes=1))
            await ticks.run_due()
        assert fired == ["local"] * 3
        assert not await frozen.schedules(Q)

    async def test_a_distance_comes_first_after_one_distance(self, frozen: Store, clock: FrozenClock) -> None:
        ticks = self.local(frozen, clock, schedule("local", every=MINUTE, every_instance=True), fired=[])
        ticks.begin()
        assert ticks.wake_at == clock.now_ms() + MINUTE

    async def test_a_timeout_fires_once(self, frozen: Store, clock: FrozenClock) -> None:
        fired: list[str] = []
        spec = replace(schedule("warm", every_instance=True), schedule=None, after_ms=5_000)
        ticks = self.local(frozen, clock, spec, fired=fired)
        ticks.begin()
        for _ in range(4):
            clock.advance(timedelta(seconds=5))
            await ticks.run_due()
        assert fired == ["warm"]
        assert ticks.wake_at is None

    async def test_missed_slots_are_gone(self, frozen: Store, clock: FrozenClock) -> None:
        fired: list[str] = []
        ticks = self.local(frozen, clock, schedule("local", every=MINUTE, every_instance=True), fired=fired)
        ticks.begin()
        clock.advance(timedelta(minutes=10))
        await ticks.run_due()
        assert fired == ["local"]
        assert ticks.wake_at == clock.now_ms() + MINUTE

    async def test_one_that_fails_goes_on_and_so_do_the_others(
        self, frozen: Store, clock: FrozenClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        fired: list[str] = []
        specs = [schedule(name, every=MINUTE, every_instance=True) for name in ("bad", "good")]
        ticks = self.local(frozen, clock, *specs, fired=fired)
        ticks.begin()
        for _ in range(2):
            clock.advance(timedelta(minutes=1))
            await ticks.run_due()
        assert Counter(fired) == {"bad": 2, "good": 2}
        assert "schedule bad" in caplog.text

    async def test_the_loop_fires_and_stops(self, live: Store) -> None:
        fired: list[str] = []
        ticks = self.local(live, Clock(), schedule("local", every=10, every_instance=True), fired=fired)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(ticks.run)
                await until(lambda: len(fired) >= 3)
                ticks.stop()

    async def test_with_a_lock_it_fires_in_one_process(self, live: Store) -> None:
        running, most = 0, 0

        async def tick() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await anyio.sleep(0.02)
            running -= 1

        spec = schedule("local", every=5, every_instance=True, lock="books", overlap="allow")
        both = [LocalTicks([spec], {"local": tick}, store=live) for _ in range(2)]
        async with anyio.create_task_group() as group:
            for ticks in both:
                group.start_soon(ticks.run)
            await anyio.sleep(0.15)
            group.cancel_scope.cancel()
        assert most == 1
        await until(lambda: _unlocked(live))


async def _unlocked(store: Store) -> bool:
    return not await store.locks()


class TestRunLocks:
    async def test_all_or_none(self, frozen: Store) -> None:
        await frozen.lease("b", "somebody", MINUTE)
        locks = RunLocks(frozen, "me", MINUTE)
        assert not await locks.acquire(["a", "b"])
        assert [lock.name for lock in await frozen.locks()] == ["b"]

    async def test_an_outage_longer_than_the_lease_loses_it(self, live: Store) -> None:
        unreliable: Any = Unreliable(live, lambda name, number: "lost" if number > 1 else None, ("lease",))
        locks = RunLocks(unreliable, "me", 60)
        assert await locks.acquire(["a"])
        with anyio.fail_after(5):
            assert await locks.keep() == "a"
