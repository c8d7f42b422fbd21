"""The budget of memory each queue has."""

import logging
from collections.abc import AsyncIterator

import pytest

from tests.store.helpers import Later, Q, add, claim, claim_one, complete, fail, spec, sweep
from tests.store.redis.conftest import Raw
from workers_module.clock import FrozenClock
from workers_module.store.redis.scales import EVERY_SECONDS, SAMPLE, Scales
from workers_module.store.redis.scripts import script
from workers_module.store.redis.store import RedisStore

pytestmark = pytest.mark.redis

BUDGET = 200_000


@pytest.fixture
async def small(place: tuple[str, str], clock: FrozenClock) -> AsyncIterator[RedisStore]:
    """Return a store whose queues may take little."""
    url, prefix = place
    mark = "&" if "?" in url else "?"
    small = RedisStore(f"{url}{mark}queue_bytes={BUDGET}", prefix=prefix, clock=clock)
    await small.open()
    yield small
    await small.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if "budget" in one.getMessage()]


async def test_a_queue_over_its_budget_is_warned_of_once(
    small: RedisStore, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    await small.add([spec(f"{n}", data=b'"' + b"x" * 5_000 + b'"') for n in range(60)])
    await sweep(small)
    (told,) = warnings(caplog)
    assert "queue mail takes about 0.3 MiB" in told or "queue mail takes about 0.4 MiB" in told
    assert "its budget of 0.2 MiB, most of it for 60 jobs that are waiting" in told
    later(10**6)
    await sweep(small)
    assert len(warnings(caplog)) == 1


async def test_a_queue_within_its_budget_is_not(small: RedisStore, caplog: pytest.LogCaptureFixture) -> None:
    await add(small, *(f"{n}" for n in range(60)))
    await sweep(small)
    assert warnings(caplog) == []


async def test_the_estimate_is_near_what_the_keys_take(store: RedisStore, raw: Raw, place: tuple[str, str]) -> None:
    for tags in ((), ("eu",)):
        head = "".join(tags)
        sized = [b'"' + b"x" * (100 + 10 * n) + b'"' for n in range(150)]
        await store.add([spec(f"w{head}{n}", data=data, tags=tags) for n, data in enumerate(sized)])
        await store.add([spec(f"p{head}{n}", data=data, tags=tags, priority=9) for n, data in enumerate(sized)])
        await store.add([spec(f"d{head}{n}", data=data, tags=tags, delay_ms=9) for n, data in enumerate(sized)])
        for job in await claim(store, 30, tags=tags):
            await complete(store, job)
        await fail(store, await claim_one(store, tags=tags))
        await claim(store, 30, tags=tags)
    keys = await raw("KEYS", f"{place[1]}:{Q}*")
    taken = sum([await raw("MEMORY", "USAGE", key, "SAMPLES", 0) or 0 for key in keys])
    found, state, number = await store._calls.call(script("weigh-2"), Q, None, SAMPLE)
    assert found == pytest.approx(taken, rel=0.15)
    assert (state, number) in {(b"prioritized", 300), (b"delayed", 300)}


async def test_a_user_who_may_not_ask_sweeps_all_the_same(
    small: RedisStore, raw: Raw, place: tuple[str, str], later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    url, prefix = place
    name = prefix.replace("-", "")
    await raw("ACL", "SETUSER", name, "on", ">few", "~*", "&*", "+@all", "-memory")
    shy = RedisStore(url.replace("://", f"://{name}:few@"), prefix=prefix, clock=FrozenClock(), queue_bytes=1)
    try:
        await shy.open()
        await add(shy, "a")
        assert (await sweep(shy)).recovered == ()
        assert not shy._scales.wanted(Q)
    finally:
        await shy.close()
        await raw("ACL", "DELUSER", name)
    assert warnings(caplog) == []


def test_queues_are_weighed_now_and_then_and_forgiven(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seconds = 1_000.0
    scales = Scales(1_000, lambda: seconds)
    assert scales.wanted("a")
    scales.note("a", "here", 1_001, "failed", 7)
    assert (scales.wanted("a"), scales.wanted("b")) == (False, True)
    seconds += EVERY_SECONDS
    assert scales.wanted("a")
    for taken in (2_000, 950, 1_001, 899, 1_001):
        scales.note("a", "here", taken, "failed", 7)
    assert [one.levelname for one in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_no_budget_weighs_nothing() -> None:
    assert not Scales(0).wanted("a")
