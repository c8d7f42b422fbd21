"""Opening and closing."""

import asyncio
from pathlib import Path

import anyio
import pytest

from tests.store.conftest import Opener
from tests.store.helpers import (
    LEASE,
    Later,
    Q,
    add,
    claim,
    claim_one,
    complete,
    edit,
    fail,
    ids_of,
    listening,
    numbers,
    record,
    spec,
    types_of,
)
from workers_module.clock import FrozenClock
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.schedules import PutSchedule, ScheduleDefinition
from workers_module.store.values import Capability, QueuePatch


async def test_a_constructor_does_nothing(opener: Opener, clock: FrozenClock, tmp_path: Path) -> None:
    opener(clock)
    assert [path async for path in anyio.Path(tmp_path).iterdir()] == []


async def test_opening_and_closing_may_be_repeated(store: Store) -> None:
    first = await store.open()
    await add(store, "a")
    assert await store.open() == first
    assert await numbers(store) == {"waiting": 1}
    await store.close()
    await store.close()


async def test_a_store_that_was_never_opened_can_be_closed(opener: Opener, clock: FrozenClock) -> None:
    await opener(clock).close()


async def test_open_tells_what_it_found(store: Store, request: pytest.FixtureRequest) -> None:
    info = await store.open()
    assert request.node.get_closest_marker(info.kind.value) is not None
    assert info.version
    assert info.place
    assert all(warning.strip() for warning in info.warnings)


async def test_a_store_tells_the_time_it_judges_by(store: Store, other: Store, later: Later) -> None:
    now = later(1_234)
    assert [await store.now(), await other.now()] == [now, now]


async def test_two_clients_find_the_same(store: Store, other: Store) -> None:
    assert (await store.open()).kind is (await other.open()).kind


async def test_everything_outlives_the_process(store: Store, opener: Opener, clock: FrozenClock) -> None:
    info = await store.open()
    if Capability.DURABLE not in info.capabilities:
        pytest.skip(f"{info.kind} ends with its process, as it says")
    await store.add([spec("done"), spec("broken"), spec("running"), spec("waiting", data=b'{"x" : 1}')])
    await store.add([spec("d", delay_ms=500), spec("p", priority=2), spec("t", tags=("eu",))])
    done, failed, running = await claim(store, 3)
    await complete(store, done, b"1")
    await fail(store, failed)
    await edit(store, "running", progress=b"5", log_lines=("one", "two"))
    await store.configure(Q, QueuePatch(concurrency=5))
    put = PutSchedule(id="s", definition=ScheduleDefinition(name="t", every_ms=1_000), slot=2**45, job=spec(name="t"))
    await store.schedule(Q, [put])
    fence = await store.lease("door", "ada", 60_000)
    pages = await store.page(Q, list(JobState))
    counts, settings, schedules = await store.counts([Q]), await store.configure(Q), await store.schedules(Q)
    await store.close()

    again = opener(clock)
    await again.open()
    try:
        assert await again.page(Q, list(JobState)) == pages
        assert await again.counts([Q]) == counts
        assert await again.configure(Q) == settings
        assert await again.schedules(Q) == schedules
        assert (await again.logs(Q, "running")).items == ["one", "two"]
        assert await again.lease("door", "ada", 60_000) == fence
        await complete(again, running)
        assert (await record(again, "running")).state is JobState.COMPLETED
        assert ids_of(await claim(again, 9)) == ["waiting", "p"]
    finally:
        await again.close()


async def test_events_are_followed_over_a_restart(store: Store, opener: Opener, clock: FrozenClock) -> None:
    info = await store.open()
    if Capability.DURABLE not in info.capabilities:
        pytest.skip(f"{info.kind} ends with its process, as it says")
    async with listening(store) as ear:
        await add(store, "a")
        await ear.heard()
        cursor = ear.cursor
    await add(store, "b")
    await store.close()
    again = opener(clock)
    await again.open()
    try:
        async with listening(again, after=cursor) as ear:
            assert types_of(await ear.heard()) == ["added", "waiting"]
    finally:
        await again.close()


async def test_closing_finishes_what_was_begun(store: Store, opener: Opener, clock: FrozenClock, other: Store) -> None:
    begun = [asyncio.ensure_future(add(store, f"{n}")) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    ended = await asyncio.gather(*begun, return_exceptions=True)
    stored = [one for one in ended if not isinstance(one, BaseException)]
    assert (await numbers(other)).get("waiting", 0) == len(stored)


async def test_a_cancelled_call_leaves_the_store_in_order(store: Store) -> None:
    for n in range(30):
        call = asyncio.ensure_future(store.add([spec(f"{n}")]))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    for n in range(30):
        (added,) = await store.add([spec(f"{n}")])
        assert added.id == f"{n}"
    assert await numbers(store) == {"waiting": 30}
    job = await claim_one(store, lease_ms=LEASE)
    await complete(store, job)
