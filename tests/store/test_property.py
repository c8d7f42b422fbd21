"""Every store against the memory store: the same calls, the same answers.

Hypothesis plays a fleet of clients over two queues and a clock. Each call goes to both stores; replies, errors, counts
and soundness are compared after each, and everything that can be read, events included, at the end. Row handles are a
store's own and left out; generated ids are not, as every store counts them per queue.
"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.store.helpers import Heard, listening
from workers_module.clock import FrozenClock
from workers_module.errors import WorkersError
from workers_module.job.events import Event
from workers_module.job.options import DedupMode
from workers_module.job.outcome import Completed, Failed, Keep, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import ChildPolicy, ParentRef, Token
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import Store
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule, ScheduleDefinition
from workers_module.store.values import (
    Action,
    Beat,
    ByIds,
    ByState,
    Claimed,
    DedupSpec,
    Fail,
    Held,
    JobPatch,
    JobSpec,
    Order,
    Problem,
    Promote,
    QueuePatch,
    RateLimit,
    Remove,
    RetryAgain,
    Settle,
    Step,
    StepReply,
    Sweep,
    SweepReply,
    WorkerInfo,
)

T = TypeVar("T")
FULL = bool(os.environ.get("WORKERS_TEST_FULL"))

QUEUES = ("one", "two")
IDS = ("a", "b", "c", "d", "e", "f")
NAMES = ("send", "tidy")
KNOWN = (*IDS, "1", "2", "3")
"""Ids that jobs are likely to have, chosen ones too."""
TAGS = ((), (), (), ("eu",), ("gpu",), ("eu", "gpu"))
START = FrozenClock().now_ms()
SPANS = (0, 1, 50, 999, 1_000, 1_001, 5_000, 60_000)

queues = st.sampled_from(QUEUES)
ids = st.sampled_from(IDS)
known = st.sampled_from(KNOWN)
picks = st.integers(0, 1_000)
payloads = st.sampled_from([b"1", b'{"x": [ ]}', b'"' + b"y" * 5_000 + b'"'])
policies = st.sampled_from(list(ChildPolicy))
keeps = st.sampled_from(
    [None, None, Keep(count=0), Keep(count=2), Keep(age_ms=1_000), Keep(count=3, age_ms=5_000, limit=1)]
)
rates = st.sampled_from([None, None, None, None, RateLimit(1, 1_000), RateLimit(3, 5_000)])

TIMED: tuple[DedupMode, ...] = ("throttle", "extend", "debounce")
dedups = st.one_of(
    st.none(),
    st.builds(DedupSpec, st.sampled_from(["k", "l"]), st.sampled_from(["simple", "reschedule", "keep_latest"])),
    st.builds(DedupSpec, st.sampled_from(["k", "l"]), st.sampled_from(TIMED), st.sampled_from([50, 1_000, 5_000])),
)


def specs(*, parent: Any = None, dedup: st.SearchStrategy[DedupSpec | None] = dedups) -> st.SearchStrategy[JobSpec]:
    """Make jobs for either queue."""
    return st.builds(
        JobSpec,
        queue=queues,
        name=st.sampled_from(NAMES),
        data=payloads,
        opts=st.sampled_from([b"{}", b'{"attempts" : 3}']),
        id=st.one_of(st.none(), ids),
        priority=st.sampled_from([0, 0, 0, 1, 5]),
        lifo=st.sampled_from([False, False, True]),
        delay_ms=st.sampled_from([0, 0, 0, 50, 1_000, 5_000]),
        max_attempts=st.integers(1, 3),
        tags=st.sampled_from(TAGS),
        dedup=dedup,
        parent=st.just(parent),
        policy=policies,
        on_crash=st.sampled_from(["retry", "retry", "fail"]),
        timestamp=st.sampled_from([None, None, None, START - 1_000, START + 1_000]),
        due=st.sampled_from([None, None, None, START - 1, START + 1_000, START + 5_000]),
        schedule=st.none(),
    )


outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Completed, payloads, keeps),
    st.builds(Failed, st.sampled_from(["boom", "no luck"]), st.sampled_from([None, b'["t"]']), keeps),
    st.builds(Retry, st.sampled_from([0, 50, 1_000]), st.just("again"), st.sampled_from([None, b'["t"]'])),
    st.builds(Snooze, st.sampled_from([1, 50, 1_000])),
    st.just(Release()),
    st.builds(WaitChildren, st.one_of(st.none(), ids)),
)
whose = st.sampled_from(["own", "own", "own", "own", "foreign"])
actions: st.SearchStrategy[Action] = st.one_of(
    st.builds(Remove, children=st.booleans(), hard=st.booleans()),
    st.builds(RetryAgain, reset=st.booleans()),
    st.just(Promote()),
    st.builds(Fail, st.just("cancelled"), st.sampled_from([None, b'["t"]'])),
)
some_states = st.lists(st.sampled_from(ALL_STATES), min_size=1, max_size=3, unique=True).map(tuple)
definitions = st.builds(
    ScheduleDefinition,
    name=st.just("tick"),
    every_ms=st.sampled_from([1_000, 5_000]),
    limit=st.sampled_from([None, None, 3]),
)


def distinct(flow: list[JobSpec]) -> list[JobSpec]:
    """Return a flow in which no id stands twice: what a second one means to its family is not laid down."""
    seen: set[tuple[str, str | None]] = set()
    kept: list[JobSpec] = []
    for job in flow:
        twice = job.id is not None and (job.queue, job.id) in seen
        seen.add((job.queue, job.id))
        kept.append(job._replace(id=None) if twice else job)
    return kept


def without_handles(value: Any) -> Any:
    """Return a reply as every store must give it."""
    match value:
        case Held():
            return value._replace(handle=None)
        case Claimed(record, held):
            return Claimed(record, without_handles(held))
        case StepReply():
            return replace(value, jobs=[without_handles(job) for job in value.jobs])
        case _:
            return value


async def verify(store: Store, *, queue: str) -> list[Problem]:
    return await store.verify(queue)


class Fleet(RuleBasedStateMachine):
    """Two stores that must not differ."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = FrozenClock()
        self.stores: list[Store] = [self.reference(), self.tested()]
        self.tokens = 0
        self.claims: list[tuple[str, list[Claimed]]] = []
        """All claims ever made, each as the stores gave it; late outcomes come from here."""
        self.steps: list[Step] = []
        self.slots: dict[tuple[str, str], int] = {}
        self.equal = True
        self.cursors = [self.run(self.begin(store)) for store in self.stores]

    def reference(self) -> Store:
        """Return the memory store."""
        from workers_module.store.memory import MemoryStore

        return MemoryStore(clock=self.clock)

    def tested(self) -> Store:
        """Return the store that must not differ from it."""
        from workers_module.store.sqlite.store import SqliteStore

        return SqliteStore(Path(self.folder.name) / "jobs.db", clock=self.clock, synchronous="normal")

    def run(self, call: Awaitable[T]) -> T:
        async def wrapped() -> T:
            return await call

        return self.runner.run(wrapped())

    async def begin(self, store: Store) -> dict[str, str | None]:
        await store.open()
        cursors: dict[str, str | None] = {}
        for queue in QUEUES:
            async with listening(store, queue) as ear:
                await store.publish(queue, [Event("begin")])
                await ear.until("begin")
                cursors[queue] = ear.cursor
        return cursors

    def both(self, call: Callable[[Store], Awaitable[T]]) -> list[T]:
        """Ask both stores; their answers, which are equal but for handles. Nothing when both refused alike."""

        async def ask(store: Store) -> tuple[T | None, tuple[str, ...] | None]:
            try:
                return await call(store), None
            except WorkersError as error:
                fields = [str(error)] if type(error).__name__ in {"IllegalMoveError", "JobNotFoundError"} else []
                return None, (type(error).__name__, *fields)

        self.equal = False
        (one, refused), (two, refused_too) = [self.run(ask(store)) for store in self.stores]
        assert refused == refused_too
        assert without_handles(one) == without_handles(two)
        self.equal = True
        return [] if one is None or two is None else [one, two]

    def held(self, pick: int, which: str, store: Store) -> tuple[str, Held]:
        """Return an earlier claim as its holder names it, or as a stranger would, whose run never was."""
        queue, claimed = self.claims[pick % len(self.claims)]
        held = claimed[self.stores.index(store)].held
        return queue, held if which == "own" else held._replace(token=Token("stranger"), fence=held.fence + 1_000)

    # --- producing

    @rule(jobs=st.lists(specs(), min_size=1, max_size=4))
    def add(self, jobs: list[JobSpec]) -> None:
        self.both(lambda store: store.add(jobs))

    @rule(children=st.lists(specs(dedup=st.none()), min_size=1, max_size=3), parent=specs(dedup=st.none()))
    def add_flow(self, children: list[JobSpec], parent: JobSpec) -> None:
        flow = distinct([*(child._replace(parent=len(children)) for child in children), parent])
        self.both(lambda store: store.add(flow))

    @rule(leaf=specs(dedup=st.none()), middle=specs(dedup=st.none()), top=specs(dedup=st.none()))
    def add_tree(self, leaf: JobSpec, middle: JobSpec, top: JobSpec) -> None:
        tree = distinct([leaf._replace(parent=1), middle._replace(parent=2), top])
        self.both(lambda store: store.add(tree))

    @rule(child=specs(dedup=st.none()), queue=queues, parent=known)
    def add_child(self, child: JobSpec, queue: str, parent: str) -> None:
        self.both(lambda store: store.add([child._replace(parent=ParentRef(queue, parent))]))

    # --- working

    def take(self, reqs: Callable[[Store], Step]) -> None:
        """Step both stores and remember what they gave."""
        replies = self.both(lambda store: store.step(reqs(store)))
        if replies:
            mine, theirs = replies
            queue = reqs(self.stores[0]).queue
            self.claims += [(queue, list(pair)) for pair in zip(mine.jobs, theirs.jobs, strict=True)]
            self.steps.append(reqs(self.stores[0]))

    @rule(
        queue=queues,
        take=st.integers(0, 4),
        tags=st.sampled_from(TAGS),
        lease_ms=st.sampled_from([100, 1_000, 30_000]),
        rate=rates,
        metrics=st.sampled_from([0, 3]),
    )
    def claim(
        self, queue: str, take: int, tags: tuple[str, ...], lease_ms: int, rate: RateLimit | None, metrics: int
    ) -> None:
        self.tokens += 1
        req = Step(
            queue=queue,
            worker=f"w{self.tokens}",
            token=Token(f"t{self.tokens}"),
            take=take,
            lease_ms=lease_ms,
            tags=tags,
            rate=rate,
            metrics=metrics,
        )
        self.take(lambda store: req)

    @rule(
        queue=queues,
        ends=st.lists(outcomes, max_size=4),
        tagged=st.sampled_from([False, False, True]),
        metrics=st.sampled_from([0, 3]),
    )
    def work(self, queue: str, ends: list[Outcome], tagged: bool, metrics: int) -> None:
        """Be a worker: claim four jobs and settle some of them."""
        known = len(self.claims)
        self.claim(queue, 4, ("eu", "gpu") if tagged else (), 1_000, None, metrics)
        fresh = list(range(known, len(self.claims)))[: len(ends)]
        if fresh:
            self.settle(
                [(n, "own", end) for n, end in zip(fresh, ends, strict=False)], newest=False, take=0, metrics=metrics
            )

    @rule(ends=st.lists(outcomes, min_size=4, max_size=4))
    def work_through(self, ends: list[Outcome]) -> None:
        """Be a busy worker of both queues."""
        for queue in QUEUES:
            for tagged in (False, True):
                self.work(queue, ends, tagged, 3)

    @rule(queue=queues, max_crashes=st.integers(1, 3))
    def abandon(self, queue: str, max_crashes: int) -> None:
        """Let time pass over all leases, and two sweeps look."""
        for _ in range(2):
            self.go_on(30_001)
            self.sweep(queue, 1_000, max_crashes, None, None)

    @precondition(lambda self: self.claims)
    @rule(
        ends=st.lists(st.tuples(picks, whose, outcomes), min_size=1, max_size=4),
        newest=st.booleans(),
        take=st.integers(0, 2),
        metrics=st.sampled_from([0, 3]),
    )
    def settle(self, ends: list[tuple[int, str, Outcome]], newest: bool, take: int, metrics: int) -> None:
        self.tokens += 1
        token = Token(f"t{self.tokens}")
        if newest:
            ends = [
                (len(self.claims) - 1 - pick % 3 % len(self.claims), which, outcome) for pick, which, outcome in ends
            ]
        queue = self.claims[ends[0][0] % len(self.claims)][0]

        def req(store: Store) -> Step:
            settles = [Settle(self.held(pick, which, store)[1], outcome) for pick, which, outcome in ends]
            return Step(queue=queue, worker="w", token=token, outcomes=settles, take=take, metrics=metrics)

        self.take(req)

    @precondition(lambda self: self.steps)
    @rule(pick=picks, take=st.integers(0, 3))
    def resume(self, pick: int, take: int) -> None:
        req = replace(self.steps[pick % len(self.steps)], outcomes=(), take=take, resume=True)
        self.take(lambda store: req)

    @precondition(lambda self: self.claims)
    @rule(holds=st.lists(st.tuples(picks, whose), min_size=1, max_size=4), lease_ms=st.sampled_from([100, 5_000]))
    def renew(self, holds: list[tuple[int, str]], lease_ms: int) -> None:
        queue = self.claims[holds[0][0] % len(self.claims)][0]
        first = {self.held(pick, which, self.stores[0])[1].id: (pick, which) for pick, which in reversed(holds)}
        self.both(
            lambda store: store.renew(
                queue, [self.held(pick, which, store)[1] for pick, which in first.values()], lease_ms
            )
        )

    @rule(
        queue=queues,
        interval_ms=st.sampled_from([50, 1_000]),
        max_crashes=st.integers(1, 3),
        completed=st.sampled_from([None, 1_000]),
        failed=st.sampled_from([None, 5_000]),
    )
    def sweep(self, queue: str, interval_ms: int, max_crashes: int, completed: int | None, failed: int | None) -> None:
        req = Sweep(
            queue=queue,
            interval_ms=interval_ms,
            max_crashes=max_crashes,
            completed_age_ms=completed,
            failed_age_ms=failed,
        )

        async def to_the_end(store: Store) -> SweepReply:
            reply = await store.sweep(req)
            recovered = reply.recovered
            while reply.more:
                reply = await store.sweep(req)
                recovered += reply.recovered
            return replace(reply, recovered=recovered)

        self.both(to_the_end)

    # --- changing

    @rule(
        queue=queues,
        id=known,
        progress=st.sampled_from([None, b"50"]),
        data=st.one_of(st.none(), payloads),
        log_lines=st.sampled_from([(), ("one",), ("one", "two", "three")]),
        keep_logs=st.sampled_from([None, 2]),
        clear_logs=st.booleans(),
        priority=st.sampled_from([None, 0, 1, 5]),
        delay_ms=st.sampled_from([None, None, 0, 500]),
        cancel=st.sampled_from([False, False, True]),
        detach=st.sampled_from([False, False, True]),
    )
    def edit(self, queue: str, **changes: Any) -> None:
        self.both(lambda store: store.edit(queue, [JobPatch(**changes)]))

    @precondition(lambda self: self.claims)
    @rule(pick=picks, which=whose)
    def edit_under_lease(self, pick: int, which: str) -> None:
        queue, held = self.held(pick, which, self.stores[0])
        self.both(
            lambda store: store.edit(
                queue, [JobPatch(id=held.id, progress=b"75", log_lines=("x",), held=self.held(pick, which, store)[1])]
            )
        )

    @rule(queue=queues, chosen=st.lists(known, min_size=1, max_size=3, unique=True), action=actions)
    def move_by_id(self, queue: str, chosen: list[str], action: Action) -> None:
        self.both(lambda store: store.move(queue, ByIds(tuple(chosen)), action))

    @rule(
        queue=queues,
        states=some_states,
        action=actions,
        age=st.sampled_from([None, None, 0, 1_000]),
        limit=st.sampled_from([0, 0, 2]),
        names=st.sampled_from([(), (), ("send",)]),
    )
    def move_by_state(
        self,
        queue: str,
        states: tuple[JobState, ...],
        action: Action,
        age: int | None,
        limit: int,
        names: tuple[str, ...],
    ) -> None:
        older_than = None if age is None else self.clock.now_ms() - age
        self.both(lambda store: store.move(queue, ByState(states, older_than, limit, names), action))

    @rule(
        queue=queues,
        patch=st.one_of(
            st.builds(QueuePatch, paused=st.sampled_from([True, False, False])),
            st.just(QueuePatch(paused=False, concurrency=None, rate=None)),
            st.builds(QueuePatch, paused=st.just(False), concurrency=st.sampled_from([None, None, 1, 3])),
            st.builds(QueuePatch, paused=st.just(False), rate=rates),
            st.builds(QueuePatch, limit_for_ms=st.sampled_from([50, 1_000])),
            st.builds(QueuePatch, free_dedup=st.sampled_from(["k", "l"])),
            st.none(),
        ),
    )
    def configure(self, queue: str, patch: QueuePatch | None) -> None:
        self.both(lambda store: store.configure(queue, patch))

    @rule(
        queue=queues,
        id=st.sampled_from(["s", "t"]),
        definition=definitions,
        job=specs(dedup=st.none()),
        in_ms=st.sampled_from(SPANS),
        paused=st.sampled_from([False, False, False, True]),
    )
    def put_schedule(
        self, queue: str, id: str, definition: ScheduleDefinition, job: JobSpec, in_ms: int, paused: bool
    ) -> None:
        slot = self.clock.now_ms() + in_ms
        put = PutSchedule(id=id, definition=definition, slot=slot, job=job._replace(queue=queue), paused=paused)
        if self.both(lambda store: store.schedule(queue, [put])) == [[True], [True]]:
            self.slots[queue, id] = slot

    @precondition(lambda self: self.slots)
    @rule(pick=picks, by=st.sampled_from([-1, 0, 1, 1_000, 5_000]), job=specs(dedup=st.none()), replacing=st.booleans())
    def fire_slot(self, pick: int, by: int, job: JobSpec, replacing: bool) -> None:
        (queue, id), slot = list(self.slots.items())[pick % len(self.slots)]
        fire = FireSlot(id=id, from_slot=slot, slot=slot + by, job=job._replace(queue=queue), replace=replacing)
        if self.both(lambda store: store.schedule(queue, [fire])) == [[True], [True]]:
            self.slots[queue, id] = slot + by

    @rule(queue=queues, id=st.sampled_from(["s", "t"]))
    def drop_schedule(self, queue: str, id: str) -> None:
        self.both(lambda store: store.schedule(queue, [DropSchedule(id=id)]))

    @rule(
        name=st.sampled_from(["door", "window"]),
        owner=st.sampled_from(["ada", "bob"]),
        ttl_ms=st.sampled_from([0, 50, 1_000]),
        fence=st.one_of(st.none(), st.integers(1, 6)),
    )
    def lease(self, name: str, owner: str, ttl_ms: int, fence: int | None) -> None:
        self.both(lambda store: store.lease(name, owner, ttl_ms, fence=fence))

    @rule(
        id=st.sampled_from(["w1", "w2"]),
        ttl_ms=st.sampled_from([0, 1_000, 5_000]),
        order=st.sampled_from([None, "drain", "stop"]),
    )
    def tell(self, id: str, ttl_ms: int, order: Any) -> None:
        if order is None:
            info = WorkerInfo(id=id, host="h", pid=1, version="1", started=5, slots=2)
            self.both(lambda store: store.worker(Beat(info, ttl_ms)))
        else:
            self.both(lambda store: store.worker(Order(id, order)))

    @rule(queue=queues, force=st.sampled_from([False, False, True]), rarely=st.integers(0, 5))
    def obliterate(self, queue: str, force: bool, rarely: int) -> None:
        if rarely == 0:
            self.both(lambda store: store.obliterate(queue, force=force))
            self.slots = {key: slot for key, slot in self.slots.items() if key[0] != queue}

    @rule(ms=st.sampled_from(SPANS[1:]))
    def go_on(self, ms: int) -> None:
        self.clock.advance(timedelta(milliseconds=ms))

    # --- comparing

    @invariant()
    def counts_are_equal_and_queues_sound(self) -> None:
        self.both(lambda store: store.counts(QUEUES))
        for queue in QUEUES:
            assert self.both(partial(verify, queue=queue)) == [[], []]

    async def events(self, store: Store) -> dict[str, list[Heard]]:
        heard: dict[str, list[Heard]] = {}
        for queue in QUEUES:
            async with listening(store, queue, after=self.cursors[self.stores.index(store)][queue]) as ear:
                await store.publish(queue, [Event("end")])
                heard[queue] = await ear.until("end")
        return heard

    async def everything(self, store: Store) -> list[Any]:
        """Read all there is to read."""
        seen: list[Any] = [await store.queues(), await store.locks(), await store.workers()]
        for queue in QUEUES:
            seen += [await store.configure(queue), await store.schedules(queue), await store.metrics(queue)]
            for state in ALL_STATES:
                page = await store.page(queue, [state], limit=1_000)
                turned = await store.page(queue, [state], limit=1_000, newest_first=True)
                assert [one.id for one in turned.items] == [one.id for one in reversed(page.items)]
                assert await store.get(queue, [one.id for one in page.items]) == page.items
                seen.append(page)
                for one in page.items:
                    seen += [await store.logs(queue, one.id), await store.children(queue, one.id)]
        return seen

    def teardown(self) -> None:
        try:
            if self.equal:
                self.compare_all()
        finally:
            for store in self.stores:
                self.run(store.close())
            self.runner.close()
            self.folder.cleanup()

    def compare_all(self) -> None:
        """Compare what the two stores hold and have told."""
        one, two = self.both(self.everything)
        for mine, theirs in zip(flat(one), flat(two), strict=True):
            assert mine == theirs
        one_heard, two_heard = self.both(self.events)
        assert one_heard == two_heard


def flat(seen: list[Any]) -> Iterable[Any]:
    """Return the pieces of what was read, so that a difference shows where it is."""
    return iter(seen)


Fleet.TestCase.settings = settings(
    max_examples=300 if FULL else 12,
    stateful_step_count=40 if FULL else 30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


TestSqliteIsLikeMemory = pytest.mark.sqlite(Fleet.TestCase)
"""P01 for SQLite."""
