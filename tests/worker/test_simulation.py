"""P23: eight processes keep the schedules of ten time zones through simulated years, and every slot runs once."""

import logging
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from tests.job.oracle import ZONES, watch
from tests.store.conftest import PLACES, Opener, memory, redis, sqlite
from tests.worker.fleet import LOCAL, PROCESSES, Fleet, Life, Slot, application, container_of, expected_slots
from tests.worker.loops import HOUR, until
from workers_module import FrozenClock, WorkersModule, run_workers
from workers_module.clock import to_ms
from workers_module.job.schedule import LATE_MS
from workers_module.store.base import Store

_log = logging.getLogger(__name__)

QUICK_ZONES = ["Europe/Berlin", "Australia/Lord_Howe"]


async def simulate(opener: Opener, zones: list[str], begin: str, end: str, *, seed: int, unrest: float) -> None:
    """Run a fleet from one day to another, and compare what it did with what it should have done."""
    first = ms(begin)
    fleet = Fleet(opener, zones, first, seed=seed, unrest=unrest)
    try:
        await fleet.run(ms(end))
        _log.info("%r", fleet)
        expected = expected_slots(zones, first, fleet.latest)
        assert_each_slot_once(fleet, expected)
        assert_local_ticks(fleet, first)
        await fleet.assert_chains(Counter(name for name, _ in expected))
    finally:
        await fleet.close()


def assert_each_slot_once(fleet: Fleet, expected: set[Slot]) -> None:
    runs = [run for life in fleet.lives for run in life.ran]
    assert [failure for life in fleet.lives for failure in life.failed] == []
    # A job whose process was killed between its run and its settling runs again, and no other.
    wanted = Counter(expected) + fleet.repeats
    ran = Counter(slot for slot, _ in runs)
    assert (wanted - ran, ran - wanted) == (Counter(), Counter()), "slots missing, and slots too many"
    assert [run for run in runs if run[1] < run[0][1]] == [], "before their slot"
    assert {slot for slot, at in runs if at - slot[1] > LATE_MS} <= set(fleet.struck), "late, and nobody was killed"


def assert_local_ticks(fleet: Fleet, begin: int) -> None:
    """What fires in each process does so once for each slot that this process' own clock has shown."""
    expression, zone = LOCAL
    margin = 2 * HOUR
    instants = watch([expression], zone, (begin - margin) // 1_000, (fleet.latest + margin) // 1_000)[expression]
    for life in fleet.lives:
        shown = [second * 1_000 for second in instants if life.began < second * 1_000 <= life.latest]
        assert [max(slot for slot in shown if slot <= at) for at in life.local] == shown


def ms(moment: str) -> int:
    return to_ms(datetime.fromisoformat(moment).replace(tzinfo=UTC))


@pytest.fixture(
    params=[pytest.param(maker, id=name, marks=getattr(pytest.mark, name)) for name, maker in PLACES.items()]
)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return what makes clients of one new, empty storage."""
    maker: Callable[[Path], Opener] = request.param
    return maker(tmp_path)


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        pytest.param("2026-10-24T12:00", "2026-10-26T12:00", id="Berlin's repeated hour"),
        pytest.param("2026-10-03T00:00", "2026-10-05T00:00", id="Lord Howe's gap"),
    ],
)
async def test_around_a_change_of_the_clocks(opener: Opener, begin: str, end: str) -> None:
    await simulate(opener, QUICK_ZONES, begin, end, seed=23, unrest=0.05)


@pytest.mark.memory
@pytest.mark.parametrize(
    ("begin", "end"), [("2026-03-22T12:00", "2026-04-08T12:00"), ("2026-10-01T12:00", "2026-10-28T12:00")]
)
async def test_weeks_in_memory(tmp_path: Path, begin: str, end: str) -> None:
    await simulate(memory(tmp_path), QUICK_ZONES, begin, end, seed=29, unrest=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(sqlite, id="sqlite", marks=pytest.mark.sqlite),
        pytest.param(redis, id="redis", marks=pytest.mark.redis),
    ],
)
async def test_thirty_days_of_ten_zones(place: Callable[[Path], Opener], tmp_path: Path) -> None:
    # From before the change in New York up to the day after the one on Lord Howe Island.
    await simulate(place(tmp_path), ZONES, "2026-03-07T12:00", "2026-04-06T12:00", seed=31, unrest=0.02)


@pytest.mark.slow
@pytest.mark.memory
async def test_three_years_of_ten_zones(tmp_path: Path) -> None:
    await simulate(memory(tmp_path), ZONES, "2024-01-01T12:00", "2027-01-01T12:00", seed=37, unrest=0.005)


class Crew:
    """Eight processes with the loops of real workers, which wait in the store for what the simulated clock brings."""

    def __init__(self, opener: Opener, root: WorkersModule, server: FrozenClock) -> None:
        self.lives: list[Life] = []
        self._alive: list[AsyncExitStack] = []
        self._opener = opener
        self._root = root
        self._server = server

    async def join(self) -> None:
        store = self._opener(self._server)
        life = Life(store, self._server)
        stack = AsyncExitStack()
        await store.open()
        stack.push_async_callback(store.close)
        await stack.enter_async_context(run_workers(container_of(life, self._root), close_container=True))
        self.lives.append(life)
        self._alive.append(stack)

    async def leave(self) -> None:
        await self._alive.pop(0).aclose()


async def test_with_the_loops_of_real_workers(opener: Opener) -> None:
    begin, end = ms("2026-10-24T18:00"), ms("2026-10-25T06:00")
    chance = random.Random(41)
    server = FrozenClock(begin)
    crew = Crew(opener, application(QUICK_ZONES, plain=False), server)
    looker = opener(server)
    async with AsyncExitStack() as stack:
        await looker.open()
        stack.push_async_callback(looker.close)
        async with anyio.create_task_group() as group:
            for _ in range(PROCESSES):
                group.start_soon(crew.join)
        for _ in range(PROCESSES):
            stack.push_async_callback(crew.leave)
        while (at := await next_slot(looker)) <= end:
            async with anyio.create_task_group() as group:
                if chance.random() < 0.1:
                    group.start_soon(crew.leave)
                    group.start_soon(crew.join)
                server.set(at + chance.choice((0, 0, 1, LATE_MS - 100)))
            await until(lambda: all_is_quiet(looker, server))
    ran = Counter(slot for life in crew.lives for slot, _ in life.ran)
    assert ran == Counter(expected_slots(QUICK_ZONES, begin, server.now_ms(), plain=False))


async def next_slot(store: Store) -> int:
    return min([record.slot for queue in await store.queues() for record in await store.schedules(queue)])


async def all_is_quiet(store: Store, server: FrozenClock) -> bool:
    counts = await store.counts(await store.queues())
    busy = any(count.waiting or count.prioritized or count.active for count in counts)
    return not busy and await next_slot(store) > server.now_ms()
