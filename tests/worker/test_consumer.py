"""The loop of one queue: what it asks of the store, what it runs, and what no fault makes it do."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tests.worker.loops import (
    MINUTE,
    Desk,
    Q,
    Unreliable,
    all_ended,
    crash,
    handler,
    jobs,
    nothing,
    numbered,
    queue_plan,
    record,
    states,
    until,
)
from workers_module.clock import FrozenClock
from workers_module.errors import StoreDeniedError, StoreUnavailableError
from workers_module.job.events import QueueEvent, WorkerEvent
from workers_module.job.job import Job
from workers_module.job.outcome import Failed
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import QueuePatch, SettleCode, Step, StepReply, Sweep
from workers_module.worker import outage
from workers_module.worker.consumer import ABREAST, BATCH, IDLE_WAIT_S
from workers_module.worker.context import JobContext
from workers_module.worker.handler import Listener, QueuePlan
from workers_module.worker.intake import Unrun

GOOD_SEED = 20_260_101


@pytest.fixture(autouse=True, params=[1, ABREAST], ids=["one call", "two calls"])
def abreast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many calls of a consumer may be under way at once: as with a store in this process, and as with a server."""
    monkeypatch.setattr(Desk, "abreast", request.param)
    return Desk.abreast


class Ran:
    """A handler that counts its runs by job id, and how many go on at once."""

    def __init__(self, rounds: int = 0) -> None:
        self.times: Counter[str] = Counter()
        self.now: set[str] = set()
        self.most = 0
        self.rounds = rounds

    def reached(self, count: int) -> bool:
        return len(self.times) == count

    async def __call__(self, job: Job[Any], context: JobContext) -> None:
        self.times[job.id] += 1
        self.now.add(job.id)
        self.most = max(self.most, len(self.now))
        try:
            for _ in range(self.rounds):
                await anyio.lowlevel.checkpoint()
        finally:
            self.now.discard(job.id)


class Watched:
    """A store that notes the requests of a consumer, and what is under way at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.steps: list[Step] = []
        self.waits: list[tuple[Step, float]] = []
        self.under_way = 0
        self.most_under_way = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def step(self, req: Step) -> StepReply:
        self.steps.append(req)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        try:
            return await self._store.step(req)
        finally:
            await asyncio.sleep(0)
            self.under_way -= 1

    async def wait(self, req: Step, timeout: float) -> StepReply:
        self.waits.append((req, timeout))
        return await self._store.wait(req, timeout)


def heard_by(told: list[WorkerEvent | QueueEvent], *names: Any) -> list[Listener]:
    async def hear(event: WorkerEvent | QueueEvent) -> None:
        told.append(event)

    return [Listener(label="L", call=hear, worker_event=name) for name in names]


class TestClaiming:
    @pytest.mark.parametrize("concurrency", [1, 2, 10, 100])
    async def test_every_job_runs_once(self, live: Store, concurrency: int) -> None:
        ran = Ran(rounds=2)
        await live.add(numbered(200))
        async with Desk(live, queue_plan(ran, concurrency=concurrency)).at_work():
            await until(lambda: all_ended(live))
        assert ran.times == Counter(f"j{n}" for n in range(200))
        assert await states(live) == {"completed": 200}

    @pytest.mark.parametrize("concurrency", [1, 3, 40])
    async def test_no_more_jobs_are_active_than_there_are_slots(self, live: Store, concurrency: int) -> None:
        ran, most = Ran(rounds=3), 0
        watched = Watched(live)

        async def look(job: Job[Any], context: JobContext) -> None:
            nonlocal most
            most = max(most, (await live.counts([Q]))[0].active)
            await ran(job, context)

        await live.add(numbered(150))
        async with Desk(watched, queue_plan(look, concurrency=concurrency)).at_work():
            await until(lambda: all_ended(live))
        assert ran.most <= concurrency
        # What has ended and is on its way to the store is active there still.
        assert most <= 2 * concurrency
        assert watched.most_under_way <= Desk.abreast

    async def test_jobs_start_in_the_order_they_were_added(self, live: Store) -> None:
        ran = Ran()
        await live.add(numbered(120))
        async with Desk(live, queue_plan(ran, concurrency=30)).at_work():
            await until(lambda: all_ended(live))
        assert list(ran.times) == [f"j{n}" for n in range(120)]

    async def test_the_next_batch_is_asked_for_before_the_first_one_starts(self, live: Store) -> None:
        watched = Watched(live)
        asked: list[int] = []

        async def note(job: Job[Any], context: JobContext) -> None:
            asked.append(len(watched.steps))

        await live.add(numbered(60))
        async with Desk(watched, queue_plan(note, concurrency=60)).at_work():
            await until(lambda: all_ended(live))
        assert watched.steps[0].take == 30
        assert asked[0] == 2

    async def test_a_busy_consumer_makes_one_call_per_batch(self, live: Store) -> None:
        watched = Watched(live)
        await live.add(numbered(1_000))
        async with Desk(watched, queue_plan(concurrency=100)).at_work():
            await until(lambda: all_ended(live))
        assert len(watched.steps) <= 1_000 // BATCH + 5
        assert max(len(step.outcomes) for step in watched.steps) <= BATCH

    async def test_an_idle_consumer_waits_and_asks_nothing(self, live: Store) -> None:
        watched = Watched(live)
        async with Desk(watched, queue_plan(concurrency=4)).at_work():
            await until(lambda: watched.waits)
            await anyio.wait_all_tasks_blocked()
            assert len(watched.steps) == 1
            assert [(req.take, timeout) for req, timeout in watched.waits] == [(4 // Desk.abreast, IDLE_WAIT_S)]

    async def test_the_wait_ends_when_the_next_job_is_due_and_not_before(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        watched = Watched(frozen)
        await frozen.add(jobs("later", delay_ms=1_500))
        async with Desk(watched, queue_plan()).at_work():
            await until(lambda: watched.waits)
            assert 1.4 < watched.waits[0][1] <= 1.5
        assert (await record(frozen, "later")).state is JobState.DELAYED

    async def test_a_delayed_job_runs_when_it_is_due(self, live: Store) -> None:
        async with Desk(live, queue_plan()).at_work():
            await live.add(jobs("soon", delay_ms=40))
            await until(lambda: all_ended(live))
        done = await record(live, "soon")
        assert done.started is not None
        assert done.started >= done.added + 40

    async def test_no_wake_up_is_lost(self, live: Store) -> None:
        ran = Ran()
        async with Desk(live, queue_plan(ran, concurrency=2)).at_work():
            for number in range(300):
                await live.add(jobs(f"j{number}"))
                for _ in range(number % 7):
                    await anyio.lowlevel.checkpoint()
            await until(lambda: len(ran.times) == 300)
            await until(lambda: all_ended(live))
        assert set(ran.times.values()) == {1}

    async def test_a_job_added_while_others_run_starts_beside_them(self, live: Store) -> None:
        release, started = anyio.Event(), Ran()

        async def long(job: Job[Any], context: JobContext) -> None:
            await started(job, context)
            await release.wait()

        async with Desk(live, queue_plan(long, concurrency=2)).at_work():
            await live.add(jobs("a"))
            await until(lambda: "a" in started.times)
            await live.add(jobs("b"))
            await until(lambda: "b" in started.times)
            release.set()
            await until(lambda: all_ended(live))

    async def test_an_outcome_is_stored_while_other_jobs_go_on(self, live: Store) -> None:
        release = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            if job.id == "long":
                await release.wait()

        await live.add(jobs("long", "short"))
        async with Desk(live, queue_plan(work)).at_work():
            await until(lambda: _is(live, "short", JobState.COMPLETED))
            assert (await record(live, "long")).state is JobState.ACTIVE
            release.set()
            await until(lambda: all_ended(live))

    async def test_a_paused_queue_hands_out_nothing_until_it_is_resumed(self, live: Store) -> None:
        ran = Ran()
        await live.configure(Q, QueuePatch(paused=True))
        await live.add(numbered(5))
        async with Desk(live, queue_plan(ran)).at_work():
            await anyio.wait_all_tasks_blocked()
            assert not ran.times
            await live.configure(Q, QueuePatch(paused=False))
            await until(lambda: all_ended(live))
        assert len(ran.times) == 5

    async def test_a_global_limit_holds_over_two_consumers(self, live: Store) -> None:
        ran = Ran(rounds=3)
        await live.configure(Q, QueuePatch(concurrency=2))
        await live.add(numbered(40))
        async with Desk(live, queue_plan(ran)).at_work(), Desk(live, queue_plan(ran)).at_work():
            await until(lambda: all_ended(live))
        assert ran.most <= 2
        assert set(ran.times.values()) == {1}

    async def test_a_consumer_with_tags_leaves_the_others_alone(self, live: Store) -> None:
        ran = Ran()
        await live.add([*jobs("plain"), *jobs("gpu", tags=("gpu",))])
        async with Desk(live, queue_plan(ran), tags=("gpu",)).at_work():
            await until(lambda: "gpu" in ran.times)
            await anyio.wait_all_tasks_blocked()
        assert list(ran.times) == ["gpu"]


class Held(Watched):
    """A store whose replies to steps that settle are kept back until they are let go, by the number of the step."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.kept: dict[int, anyio.Event] = {}

    async def step(self, req: Step) -> StepReply:
        number = len(self.steps)
        reply = await super().step(req)
        if req.outcomes:
            self.kept[number] = anyio.Event()
            await self.kept[number].wait()
        return reply


@pytest.mark.parametrize("abreast", [ABREAST], indirect=True)
class TestTwoCalls:
    async def test_a_whole_batch_goes_beside_a_call_under_way(self, live: Store) -> None:
        held = Held(live)
        await live.add(numbered(8))
        async with Desk(held, queue_plan(concurrency=4)).at_work():
            await until(lambda: len(held.kept) == 2)
            first, second = (held.steps[number] for number in held.kept)
            assert [len(step.outcomes) for step in (first, second)] == [2, 2]
            assert [step.take for step in (first, second)] == [2, 2]
            await let_go_until_all_ended(held, live)

    async def test_less_than_a_batch_waits_for_the_call_under_way(self, live: Store) -> None:
        held, release = Held(live), anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            if job.id == "j3":
                await release.wait()

        await live.add(numbered(4))
        async with Desk(held, queue_plan(work, concurrency=4)).at_work():
            await until(lambda: held.kept)
            await anyio.wait_all_tasks_blocked()
            assert len(held.kept) == 1
            release.set()
            await let_go_until_all_ended(held, live)

    async def test_of_two_replies_the_one_that_comes_last_is_not_taken_for_the_newest(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        answers: list[asyncio.Future[StepReply]] = []

        class Answered(Watched):
            async def step(self, req: Step) -> StepReply:
                self.steps.append(req)
                answers.append(asyncio.get_running_loop().create_future())
                return await answers[-1]

        await frozen.add(jobs("a"))
        claim = await frozen.step(Step(queue=Q, worker="ada", token=Token("t"), take=1, lease_ms=MINUTE))
        nothing_yet = replace(claim, jobs=[], wake_at=None)
        due = replace(claim, jobs=[], wake_at=claim.now + 1_500)
        store = Answered(frozen)
        async with Desk(store, queue_plan(concurrency=2)).at_work(grace=0):
            await until(lambda: len(answers) == 1)
            answers[0].set_result(claim)
            await until(lambda: len(answers) == 3)
            assert [len(step.outcomes) for step in store.steps] == [0, 0, 1]
            answers[2].set_result(replace(due, settled=[SettleCode.OK]))
            await anyio.wait_all_tasks_blocked()
            answers[1].set_result(nothing_yet)
            await until(lambda: len(answers) == 4)
            assert not store.waits
            answers[3].set_result(due)
            await until(lambda: store.waits)
            assert 1.4 < store.waits[0][1] <= 1.5

    async def test_both_calls_lost_are_repeated_and_nothing_runs_twice(self, live: Store) -> None:
        class Away(Watched):
            lost = 0

            async def step(self, req: Step) -> StepReply:
                reply = await super().step(req)
                if req.outcomes and self.lost < 6:
                    self.lost += 1
                    raise StoreUnavailableError("the reply is lost")
                return reply

        ran, away = Ran(), Away(live)
        await live.add(numbered(40))
        async with Desk(away, queue_plan(ran, concurrency=4)).at_work():
            await until(lambda: all_ended(live))
        assert away.lost == 6
        assert set(ran.times.values()) == {1}
        assert await states(live) == {"completed": 40}


def _let_go(held: Held) -> bool:
    for event in held.kept.values():
        event.set()
    return False


async def let_go_until_all_ended(held: Held, store: Store) -> None:
    """Let go of every reply, also of those to come."""

    async def ended() -> bool:
        return _let_go(held) or await all_ended(store)

    await until(ended)


async def _is(store: Store, id: str, state: JobState) -> bool:
    return (await record(store, id)).state is state


class Nasty(BaseException):
    """Not an `Exception`."""


async def raises(job: Job[Any], context: JobContext) -> None:
    raise ValueError(job.id)


async def cancels(job: Job[Any], context: JobContext) -> None:
    raise asyncio.CancelledError


async def is_nasty(job: Job[Any], context: JobContext) -> None:
    raise Nasty


async def returns_an_object(job: Job[Any], context: JobContext) -> object:
    return object()


async def returns_nan(job: Job[Any], context: JobContext) -> float:
    return float("nan")


async def cancels_itself(job: Job[Any], context: JobContext) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


def blocks(job: Job[Any], context: JobContext) -> None:
    raise SystemError


class TestHandlers:
    @pytest.mark.parametrize("bad", [raises, cancels, is_nasty, returns_an_object, returns_nan])
    async def test_what_a_handler_does_fails_its_job_and_stops_nothing(self, live: Store, bad: Any) -> None:
        await live.add([*jobs("bad", name="bad"), *jobs("good")])
        async with Desk(live, queue_plan(bad=bad, concurrency=1)).at_work():
            await until(lambda: all_ended(live))
        assert (await record(live, "bad")).state is JobState.FAILED
        assert (await record(live, "good")).state is JobState.COMPLETED

    async def test_a_run_whose_task_is_cancelled_from_outside_goes_back(self, live: Store) -> None:
        ran = Ran()

        async def once(job: Job[Any], context: JobContext) -> None:
            await ran(job, context)
            if ran.times[job.id] == 1:
                await cancels_itself(job, context)

        await live.add(jobs("a"))
        async with Desk(live, queue_plan(once)).at_work():
            await until(lambda: all_ended(live))
        assert ran.times == {"a": 2}
        assert (await record(live, "a")).attempts_made == 1

    async def test_a_failed_attempt_comes_again(self, live: Store) -> None:
        ran = Ran()

        async def flaky(job: Job[Any], context: JobContext) -> None:
            await ran(job, context)
            if job.attempt < 3:
                raise ConnectionError

        await live.add(jobs("a", max_attempts=3))
        async with Desk(live, queue_plan(flaky)).at_work():
            await until(lambda: all_ended(live))
        assert ran.times == {"a": 3}
        assert (await record(live, "a")).state is JobState.COMPLETED

    async def test_listeners_are_told_after_settling(self, live: Store) -> None:
        told: list[WorkerEvent | QueueEvent] = []
        found: list[JobState] = []

        async def hear(event: WorkerEvent | QueueEvent) -> None:
            assert isinstance(event, WorkerEvent)
            assert event.job is not None
            found.append((await record(live, event.job.id)).state)

        listeners = [
            *heard_by(told, "ready", "active", "completed", "failed", "retries_exhausted", "drained", "closed"),
            Listener(label="L", call=hear, worker_event="completed"),
        ]
        desk = Desk(live, queue_plan(bad=raises, concurrency=1), listeners=listeners)
        await live.add([*jobs("good"), *jobs("bad", name="bad")])
        async with desk.at_work():
            await until(lambda: all_ended(live))
            await until(lambda: any(event.name == "drained" for event in told))
        await desk.hooks.finish(1)
        names = [event.name for event in told]
        assert Counter(names) == {
            "ready": 1,
            "active": 2,
            "completed": 1,
            "failed": 1,
            "retries_exhausted": 1,
            "drained": 1,
            "closed": 1,
        }
        assert found == [JobState.COMPLETED]


class TestNotRun:
    async def test_a_deferred_failure_is_settled_without_a_run(self, frozen: Store, clock: FrozenClock) -> None:
        ran = Ran()
        await frozen.add(jobs("a"))
        await crash(frozen, "a", times=1, max_crashes=1, start=clock.now_ms())
        async with Desk(frozen, queue_plan(ran)).at_work():
            await until(lambda: all_ended(frozen))
        failed = await record(frozen, "a")
        assert failed.state is JobState.FAILED
        assert failed.reason
        assert not ran.times

    async def test_a_job_that_must_not_run_twice_fails_when_node_gave_it_back(self, live: Store) -> None:
        ran = Ran()
        # As Node's own check leaves it: a crash is counted, and nothing is deferred.
        await live.add(jobs("a"))
        lying = (await record(live, "a"))._replace(crashes=1, on_crash="fail")
        desk = Desk(live, queue_plan(ran))
        reply = await live.step(Step(queue=Q, worker="ada", token=Token("t"), take=1))
        decision = desk.consumer._intake.decide(reply.jobs[0]._replace(record=lying), reply.now)
        assert isinstance(decision, Unrun)
        assert isinstance(decision.outcome, Failed)
        assert "on_crash" in decision.outcome.reason

    async def test_a_job_of_an_unknown_name_is_parked(self, frozen: Store) -> None:
        await frozen.add(jobs("a", name="unheard"))
        async with Desk(frozen, queue_plan(), unknown_job_grace_ms=600_000).at_work():
            await until(lambda: _is(frozen, "a", JobState.DELAYED))
        parked = await record(frozen, "a")
        assert parked.attempts_made == 0
        assert parked.due is not None

    async def test_it_fails_when_the_grace_is_over_with_the_names_that_are_known(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        await frozen.add(jobs("a", name="unheard"))
        async with Desk(frozen, queue_plan(other=nothing), unknown_job_grace_ms=60_000).at_work():

            async def a_second_later() -> bool:
                clock.advance(timedelta(seconds=1))
                return await all_ended(frozen)

            await until(a_second_later)
        failed = await record(frozen, "a")
        assert failed.state is JobState.FAILED
        assert failed.reason == "no handler for job name 'unheard' in queue 'mail'; known names: other, send"
        assert failed.finished is not None
        assert failed.finished >= failed.added + 60_000

    async def test_without_grace_it_fails_at_once(self, live: Store) -> None:
        await live.add(jobs("a", name="unheard"))
        async with Desk(live, queue_plan(), unknown_job_grace_ms=0).at_work():
            await until(lambda: all_ended(live))
        assert (await record(live, "a")).state is JobState.FAILED

    async def test_a_job_whose_options_are_damaged_fails_and_the_queue_goes_on(self, live: Store) -> None:
        await live.add(
            [
                *jobs("known", opts=b"nonsense", max_attempts=3),
                *jobs("unknown", name="unheard", opts=b"nonsense"),
                *jobs("good"),
            ]
        )
        async with Desk(live, queue_plan(concurrency=1), unknown_job_grace_ms=0).at_work():
            await until(lambda: all_ended(live))
        assert await states(live) == {"failed": 2, "completed": 1}

    async def test_the_catch_all_takes_every_other_name(self, live: Store) -> None:
        ran = Ran()
        plan = QueuePlan(queue=Q, handlers={}, catch_all=handler(ran, name=None))
        await live.add(jobs("a", name="unheard"))
        async with Desk(live, plan).at_work():
            await until(lambda: all_ended(live))
        assert ran.times == {"a": 1}


class TestLostCalls:
    @pytest.mark.parametrize("fate", ["lost", "no reply"])
    @pytest.mark.parametrize("call", ["step", "wait"])
    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    async def test_one_lost_call_changes_nothing(self, live: Store, fate: str, call: str, number: int) -> None:
        ran = Ran(rounds=2)
        store = Unreliable(live, lambda name, n: fate if (name, n) == (call, number) else None)
        async with Desk(store, queue_plan(ran, concurrency=4)).at_work():
            for pair in range(6):
                await live.add(jobs(f"a{pair}", f"b{pair}"))
                await until(partial(ran.reached, 2 * pair + 2))
            await until(lambda: all_ended(live))
        assert set(ran.times.values()) == {1}
        assert await states(live) == {"completed": 12}

    @pytest.mark.parametrize("concurrency", [1, 5, 40])
    async def test_many_lost_calls_change_nothing(
        self, live: Store, concurrency: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(outage, "_FIRST_S", 0.001)
        monkeypatch.setattr(outage, "_LONGEST_S", 0.002)
        ran, chance = Ran(rounds=2), random.Random(GOOD_SEED)
        store = Unreliable(live, lambda name, n: chance.choice(["lost", "no reply", None, None, None]))
        await live.add(numbered(150))
        desk = Desk(store, queue_plan(ran, concurrency=concurrency))
        async with desk.at_work():
            await until(lambda: all_ended(live))
        assert ran.times == Counter(f"j{n}" for n in range(150))
        assert await states(live) == {"completed": 150}

    async def test_jobs_go_on_in_an_outage_and_are_settled_after_it(self, live: Store) -> None:
        away, ran = False, Ran()
        told: list[WorkerEvent | QueueEvent] = []
        store = Unreliable(live, lambda name, n: "lost" if away else None)
        release = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            await release.wait()
            await ran(job, context)

        await live.add(numbered(3))
        desk = Desk(store, queue_plan(work), listeners=heard_by(told, "error"))
        async with desk.at_work():
            await until(lambda: desk.consumer.busy == 3)
            away = True
            release.set()
            await until(lambda: told)
            assert await states(live) == {"active": 3}
            away = False
            await until(lambda: all_ended(live))
        assert [event.name for event in told] == ["error"]
        assert set(ran.times.values()) == {1}

    async def test_an_error_that_does_not_pass_ends_the_consumer(self, live: Store) -> None:
        class Denied(Watched):
            async def step(self, req: Step) -> StepReply:
                raise StoreDeniedError("no right to step")

        desk = Desk(Denied(live), queue_plan())
        with pytest.raises(StoreDeniedError, match="no right to step"), anyio.fail_after(5):
            await desk.consumer.run(abreast=desk.abreast)


class TestLostLeases:
    async def test_a_late_end_is_refused_and_nobody_is_told(self, frozen: Store, clock: FrozenClock) -> None:
        told: list[WorkerEvent | QueueEvent] = []
        release = anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            await release.wait()

        desk = Desk(frozen, queue_plan(work, concurrency=1), listeners=heard_by(told, "completed"), lease_ms=1_000)
        await frozen.add(jobs("a"))
        async with desk.at_work():
            await until(lambda: desk.consumer.busy == 1)
            for _ in range(3):
                clock.advance(timedelta(seconds=2))
                await frozen.sweep(Sweep(queue=Q, interval_ms=1_000))
            other = await frozen.step(Step(queue=Q, worker="bob", token=Token("bob"), take=1))
            assert [job.record.id for job in other.jobs] == ["a"]
            release.set()
            await until(lambda: not desk.consumer.held)
        assert not told
        assert (await record(frozen, "a")).worker == "bob"

    async def test_a_job_claimed_anew_here_ends_the_older_run(self, frozen: Store, clock: FrozenClock) -> None:
        ran = Ran()
        cancelled = False

        async def work(job: Job[Any], context: JobContext) -> None:
            nonlocal cancelled
            await ran(job, context)
            if job.fence == 1:
                try:
                    await anyio.sleep_forever()
                except asyncio.CancelledError:
                    cancelled = True
                    raise

        await frozen.add(jobs("a"))
        desk = Desk(frozen, queue_plan(work, concurrency=2), lease_ms=1_000)
        fences: list[list[int]] = []
        desk.consumer._on_hold = lambda: fences.append([held.fence for held in desk.consumer.leased()])
        async with desk.at_work():
            await until(lambda: ran.times["a"] == 1)
            for _ in range(3):
                clock.advance(timedelta(seconds=2))
                await frozen.sweep(Sweep(queue=Q, interval_ms=1_000))
            await until(lambda: all_ended(frozen))
        assert ran.times == {"a": 2}
        assert cancelled
        # Were the older lease renewed beside the newer one, its loss would be taken for that of the newer one.
        assert fences == [[1], [2]]


class TestSuspects:
    async def test_a_suspect_runs_alone_in_its_process(self, frozen: Store, clock: FrozenClock) -> None:
        alone: list[bool] = []
        ran = Ran(rounds=5)
        both: Counter[str] = Counter()

        async def work(job: Job[Any], context: JobContext) -> None:
            if job.id.startswith("suspect"):
                alone.append(not ran.now)
                ran.now.add(job.id)
                await anyio.sleep(0.01)
                alone.append(ran.now == {job.id})
            await ran(job, context)
            both[job.queue] += 1

        for number in range(2):
            await frozen.add(jobs(f"suspect{number}", priority=1))
        for number in range(2):
            # The other one must not be claimed meanwhile.
            await _crash_all(frozen, clock, times=1)
            assert number >= 0
        await frozen.add([*numbered(30), *jobs(*(f"o{n}" for n in range(30)), queue="other")])
        desk = Desk(frozen, queue_plan(work, concurrency=8), queue_plan(work, queue="other", concurrency=8))
        async with desk.at_work():
            await until(lambda: all_ended(frozen))
            await until(lambda: all_ended(frozen, "other"))
        assert alone == [True] * 4
        assert both == {Q: 32, "other": 30}
        assert set(ran.times.values()) == {1}

    async def test_a_suspect_is_handed_back_when_the_process_stops(self, frozen: Store, clock: FrozenClock) -> None:
        ran, release = Ran(), anyio.Event()

        async def work(job: Job[Any], context: JobContext) -> None:
            await ran(job, context)
            if job.id == "long":
                await release.wait()

        await frozen.add(jobs("suspect"))
        await _crash_all(frozen, clock, times=2)
        desk = Desk(frozen, queue_plan(work))
        async with desk.at_work():
            await frozen.add(jobs("long", lifo=True))
            await until(lambda: "long" in ran.times)
            desk.stop()
            release.set()
        assert not ran.times["suspect"]
        back = await record(frozen, "suspect")
        assert (back.state, back.crashes) == (JobState.WAITING, 2)

    async def test_a_job_of_a_schedule_is_never_a_suspect(self, frozen: Store) -> None:
        desk = Desk(frozen, queue_plan())
        await frozen.add(jobs("a"))
        found = await record(frozen, "a")
        assert desk.consumer._intake.is_suspect(found._replace(crashes=2))
        assert not desk.consumer._intake.is_suspect(found._replace(crashes=2, schedule="report"))
        assert not desk.consumer._intake.is_suspect(found._replace(crashes=1))

    async def test_jobs_that_kill_their_process_fail_and_take_no_neighbour_along(
        self, frozen: Store, clock: FrozenClock
    ) -> None:
        """P12: a death is a store that answers nothing more and tasks that are cut off."""
        killers = {"j50", "j51", "j300"}
        ran: Counter[str] = Counter()
        await frozen.add(numbered(500))
        for _ in range(20):
            if await all_ended(frozen):
                break
            mortal = Mortal(frozen)

            async def work(job: Job[Any], context: JobContext, mortal: "Mortal" = mortal) -> None:
                ran[job.id] += 1
                await asyncio.sleep(0)
                if job.id in killers:
                    mortal.die()
                    await anyio.sleep_forever()

            desk = Desk(mortal, queue_plan(work, concurrency=20), kill_after_ms=10)
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    group.start_soon(partial(desk.consumer.run, abreast=desk.abreast))
                    await until(partial(_dead_or_done, mortal, frozen))
                    group.cancel_scope.cancel()
            for _ in range(3):
                clock.advance(timedelta(seconds=31))
                await frozen.sweep(Sweep(queue=Q, interval_ms=30_000, max_crashes=3))
        assert await states(frozen) == {"completed": 497, "failed": 3}
        for killer in killers:
            assert (await record(frozen, killer)).state is JobState.FAILED
        assert max(ran.values()) <= 3


async def _dead_or_done(mortal: "Mortal", store: Store) -> bool:
    return mortal.dead or await all_ended(store)


async def _crash_all(store: Store, clock: FrozenClock, times: int) -> None:
    """Have a worker claim everything and die."""
    for _ in range(times):
        clock.advance(timedelta(milliseconds=1))
        reply = await store.step(
            Step(queue=Q, worker="dead", token=Token(f"dead-{clock.now_ms()}"), take=50, lease_ms=1)
        )
        assert reply.jobs
        for _ in range(3):
            clock.advance(timedelta(milliseconds=100))
            await store.sweep(Sweep(queue=Q, interval_ms=50))


class Mortal:
    """A store whose process dies: from then on no call comes back, and none is carried out."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dead = False

    def die(self) -> None:
        self.dead = True

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name not in {"step", "wait"}:
            return real

        async def call(*args: Any) -> Any:
            if self.dead:
                await anyio.sleep_forever()
            return await real(*args)

        return call


class TestCancellation:
    @pytest.mark.parametrize("rounds", range(1, 40))
    async def test_cancelled_anywhere_it_hands_back_what_it_holds(self, live: Store, rounds: int) -> None:
        ran = Ran(rounds=4)

        async def resting(job: Job[Any], context: JobContext) -> None:
            await ran(job, context)
            if job.id == "j4":
                await anyio.sleep(0.001)

        await live.add(numbered(5))
        store = Watched(live)
        task = asyncio.create_task(Desk(store, queue_plan(resting, concurrency=3)).consumer.run())
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError), anyio.fail_after(5):
            await task
        assert set(await states(live)) <= {"waiting", "completed"}
        async with Desk(live, queue_plan(ran)).at_work():
            await until(lambda: all_ended(live))
        assert await states(live) == {"completed": 5}

    @pytest.mark.parametrize("rounds", range(1, 40, 3))
    async def test_a_cancelled_scope_is_the_same(self, live: Store, rounds: int) -> None:
        ran = Ran(rounds=4)
        await live.add(numbered(5))
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(Desk(Watched(live), queue_plan(ran, concurrency=3)).consumer.run)
                for _ in range(rounds):
                    await asyncio.sleep(0)
                group.cancel_scope.cancel()
        assert set(await states(live)) <= {"waiting", "completed"}

    async def test_what_a_cancelled_wait_has_claimed_is_handed_back(self, live: Store) -> None:
        ran = Ran()

        class Slow(Watched):
            async def wait(self, req: Step, timeout: float) -> StepReply:
                reply = await super().wait(req, timeout)
                claimed.set()
                await anyio.sleep_forever()
                return reply

        claimed = anyio.Event()
        desk = Desk(Slow(live), queue_plan(ran))
        async with desk.at_work():
            await anyio.wait_all_tasks_blocked()
            await live.add(jobs("a"))
            await claimed.wait()
            assert await states(live) == {"active": 1}
        assert await states(live) == {"waiting": 1}
        assert not ran.times
