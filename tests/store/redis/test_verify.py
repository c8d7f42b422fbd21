"""P03 on Redis: `verify` names each of some damages that only a hand in the database can do."""

import pytest

from tests.store.helpers import Q, add, claim, complete, fail, spec
from tests.store.redis.conftest import Raw
from workers_module.store.redis.store import RedisStore
from workers_module.store.values import DedupSpec

pytestmark = pytest.mark.redis

Damage = tuple[tuple[str | int, ...], ...]


@pytest.fixture
async def filled(store: RedisStore) -> RedisStore:
    """Return a store whose queue has a sound job in each state."""
    await add(store, "done", "broken", "running")
    done, broken, _ = await claim(store, 3)
    await complete(store, done)
    await fail(store, broken)
    await add(store, "ready", "next")
    await add(store, "late", delay_ms=60_000)
    await add(store, "urgent", priority=5)
    await store.add([spec("child", parent=1), spec("parent")])
    await add(store, "tagged", tags=("gpu",))
    await add(store, "only", dedup=DedupSpec(key="k"))
    await store.add([spec("tick", dedup=DedupSpec(key="short", ttl_ms=60_000, mode="throttle"))])
    assert await store.verify(Q) == []
    return store


DAMAGES: dict[str, tuple[Damage, str, str | None, str]] = {
    "a waiting id without a job": ((("LPUSH", "{}wait", "ghost"),), "I1", "ghost", "waiting but is not there"),
    "an active id without a job": ((("LPUSH", "{}active", "ghost"),), "I1", "ghost", "active but is not there"),
    "a delayed id without a job": ((("ZADD", "{}delayed", 1, "ghost"),), "I1", "ghost", "delayed but is not there"),
    "a prioritized id without a job": ((("ZADD", "{}prioritized", 1, "ghost"),), "I1", "ghost", "but is not there"),
    "a completed id without a job": ((("ZADD", "{}completed", 1, "ghost"),), "I1", "ghost", "but is not there"),
    "a failed id without a job": ((("ZADD", "{}failed", 1, "ghost"),), "I1", "ghost", "but is not there"),
    "a parent without a job": ((("ZADD", "{}waiting-children", 1, "ghost"),), "I1", "ghost", "but is not there"),
    "a job that waits nowhere": ((("LREM", "{}wait", 1, "ready"),), "I1", "ready", "listed nowhere"),
    "a job that is active nowhere": ((("LREM", "{}active", 1, "running"),), "I1", "running", "listed nowhere"),
    "a job that ended nowhere": ((("ZREM", "{}completed", "done"),), "I1", "done", "listed nowhere"),
    "a tagged job that waits nowhere": ((("DEL", "{@gpu}wait"),), "I1", "tagged", "listed nowhere"),
    "a job written by hand": ((("HSET", "{}mine", "name", "send"),), "I1", "mine", "listed nowhere"),
    "a job that waits twice": ((("LPUSH", "{}wait", "ready"),), "I1", "ready", "listed twice"),
    "a job in two sets": ((("ZADD", "{}failed", 1, "done"),), "I1", "done", "and in failed"),
    "a job that waits and is active": ((("LPUSH", "{}wait", "running"),), "I1", "running", "and in active"),
    "a lease on a waiting job": (
        (("SET", "{}ready:lock", "t", "PX", 5_000_000_000_000),),
        "I3",
        "ready",
        "has a lease",
    ),
    "a lease on a completed job": (
        (("SET", "{}done:lock", "t", "PX", 5_000_000_000_000),),
        "I4",
        "done",
        "has a lease",
    ),
    "an end without a time": ((("HDEL", "{}done", "finishedOn"),), "I4", "done", "end is not set"),
    "a waiting job that has ended": ((("HSET", "{}ready", "finishedOn", 1),), "I4", "ready", "its end is 1"),
    "a priority among those without": ((("HSET", "{}ready", "priority", 3),), "I1", "ready", "with priority 3"),
    "no priority among those with one": ((("HSET", "{}urgent", "priority", 0),), "I1", "urgent", "with priority 0"),
    "a child that is gone": ((("DEL", "{}child"), ("LREM", "{}wait", 1, "child")), "I7", "parent", "which is gone"),
    "a parent that waits for nobody": ((("DEL", "{}parent:dependencies"),), "I6", "parent", "none is pending"),
    "a log of no job": ((("RPUSH", "{}gone:logs", "line"),), "I7", "gone", "has logs but is not there"),
    "children of no job": ((("SADD", "{}gone:dependencies", "x"),), "I7", "gone", "has dependencies"),
    "results of no job": ((("HSET", "{}gone:processed", "x", "1"),), "I7", "gone", "has processed"),
    "a deduplication of no job": ((("SET", "{}de:old", "gone"),), "I7", None, "key old belongs to job gone"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_named(filled: RedisStore, raw: Raw, damage: str) -> None:
    commands, invariant, id, says = DAMAGES[damage]
    tagged = f"{filled._keys.place(Q, ('gpu',))}:"
    for words in commands:
        await raw(*(word.replace("{@gpu}", tagged) if isinstance(word, str) else word for word in words))
    problems = await filled.verify(Q)
    assert any(one.invariant == invariant and one.job_id == id and says in one.text for one in problems), problems


async def test_what_others_keep_beside_a_queue_is_no_damage(filled: RedisStore, raw: Raw) -> None:
    await raw("SET", "{}gone:lock", "t", "PX", 60_000)
    await raw("SET", "{}de:short", "gone", "PX", 60_000)
    await raw("LPUSH", "{}paused", "ready")
    await raw("LREM", "{}wait", 1, "ready")
    await raw("HSET", "{}metrics:completed", "count", 1)
    await raw("HSET", "{}repeat:daily", "name", "tick")
    await raw("HSET", "{}wm:other", "field", 1)
    assert await filled.verify(Q) == []
