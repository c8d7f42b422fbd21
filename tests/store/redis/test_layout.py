"""What BullMQ's readers see: keys, hash fields, scores, stream entries (wire format §1 to §11)."""

import re
from typing import Any

import pytest

from tests.store.helpers import (
    INTERVAL,
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
    release,
    retry,
    spec,
    step,
    sweep,
    token,
)
from tests.store.redis.conftest import Raw
from workers_module.clock import FrozenClock
from workers_module.errors import InvalidNameError
from workers_module.job.outcome import Completed, Failed, Keep, Release, Retry
from workers_module.job.record import ChildPolicy, ParentRef
from workers_module.job.state import JobState
from workers_module.store.redis.store import RedisStore
from workers_module.store.schedules import PutSchedule, ScheduleDefinition
from workers_module.store.values import Beat, DedupSpec, QueuePatch, RateLimit, Settle, WorkerInfo

pytestmark = pytest.mark.redis


async def hash_of(raw: Raw, key: str) -> dict[str, str]:
    found: dict[str, str] = await raw("HGETALL", key)
    return found


async def stream(raw: Raw, key: str = "{}events") -> list[list[str]]:
    """Return the entries as flat lists of fields and values."""
    entries: list[tuple[str, dict[str, str]]] = await raw("XRANGE", key, "-", "+")
    return [[word for pair in fields.items() for word in pair] for _, fields in entries]


async def keys(raw: Raw) -> set[str]:
    """Return what the queue's keys are called behind its name."""
    found: list[str] = await raw("KEYS", "{}*")
    return {key.partition(":mail:")[2] for key in found}


# --- a job ------------------------------------------------------------------------------------------------------------


async def test_the_hash_of_a_job_at_each_stage_of_its_life(
    store: RedisStore, raw: Raw, clock: FrozenClock, later: Later
) -> None:
    added = clock.now_ms()
    await store.add([spec("a", data=b'{"a":1}', opts=b'{"attempts":2}', max_attempts=2)])
    wanted = {
        "name": "send",
        "data": '{"a":1}',
        "opts": '{"attempts":2}',
        "timestamp": str(added),
        "delay": "0",
        "priority": "0",
    }
    assert await hash_of(raw, "{}a") == wanted
    assert (await raw("LRANGE", "{}wait", 0, -1), await raw("GET", "{}id")) == (["a"], "1")
    assert await raw("ZRANGE", "{}marker", 0, -1, "WITHSCORES") == ["0", "0"]

    started = later(5)
    job = await claim_one(store)
    wanted |= {"processedOn": str(started), "pb": "ada", "ats": "1"}
    assert await hash_of(raw, "{}a") == wanted
    assert await raw("GET", "{}a:lock") == job.held.token
    assert await raw("LRANGE", "{}active", 0, -1) == ["a"]

    await retry(store, job, reason="no luck")
    wanted |= {"atm": "1", "failedReason": "no luck"}
    assert await hash_of(raw, "{}a") == wanted
    assert await raw("EXISTS", "{}a:lock", "{}active") == 0

    job = await claim_one(store)
    ended = later(7)
    await complete(store, job, b'{"ok":[]}')
    wanted |= {"ats": "2", "atm": "2", "returnvalue": '{"ok":[]}', "finishedOn": str(ended)}
    assert await hash_of(raw, "{}a") == wanted
    assert await raw("ZRANGE", "{}completed", 0, -1, "WITHSCORES") == ["a", str(ended)]


async def test_the_events_of_a_life_with_their_fields_in_order(store: RedisStore, raw: Raw) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await edit(store, "a", progress=b"5")
    await fail(store, job, "no")
    assert await stream(raw) == [
        ["event", "added", "jobId", "a", "name", "send"],
        ["event", "waiting", "jobId", "a"],
        ["event", "active", "jobId", "a", "prev", "waiting"],
        ["event", "progress", "jobId", "a", "data", "5"],
        ["event", "failed", "jobId", "a", "failedReason", "no", "prev", "active"],
        ["event", "retries-exhausted", "jobId", "a", "attemptsMade", "1"],
        ["event", "drained"],
    ]


async def test_a_plain_job_leaves_no_field_of_ours(store: RedisStore, raw: Raw) -> None:
    await store.add([spec("a", opts=b'{"attempts":3,"lifo":true}', max_attempts=3, lifo=True)])
    assert not [name for name in await hash_of(raw, "{}a") if name.startswith("wm:")]


async def test_what_the_options_do_not_say_is_kept_in_fields_of_ours(store: RedisStore, raw: Raw) -> None:
    await store.add([spec("a", max_attempts=3, lifo=True, on_crash="fail", policy=ChildPolicy.IGNORE)])
    found = await hash_of(raw, "{}a")
    ours = {name: value for name, value in found.items() if name.startswith("wm:")}
    assert ours == {"wm:attempts": "3", "wm:lifo": "1", "wm:oc": "fail", "wm:policy": "ignore"}


async def test_every_attempt_to_add_counts(store: RedisStore, raw: Raw) -> None:
    await add(store, "a", "a")
    await store.add([spec(None), spec("b")])
    assert await raw("GET", "{}id") == "4"
    assert await raw("EXISTS", "{}3") == 1


@pytest.mark.parametrize("id", ["wait", "meta", "completed", "stalled-check", "repeat:x", "de:k", "a:lock", "0:5", ""])
async def test_ids_that_name_other_keys_are_refused(store: RedisStore, raw: Raw, id: str) -> None:
    with pytest.raises(InvalidNameError):
        await store.add([spec("a"), spec(id)])
    assert await keys(raw) == set()
    assert await store.get(Q, [id]) == [None]


async def test_tags_that_would_be_read_in_another_way_are_refused(store: RedisStore, raw: Raw) -> None:
    for tag in ("a+b", "a@b", "a:b", ""):
        with pytest.raises(InvalidNameError):
            await store.add([spec("a", tags=(tag,))])
    assert await keys(raw) == set()


# --- scores -----------------------------------------------------------------------------------------------------------


async def test_scores_of_delayed_jobs_count_within_a_millisecond(
    store: RedisStore, raw: Raw, clock: FrozenClock
) -> None:
    await store.add([spec("a", delay_ms=500), spec("b", delay_ms=500), spec("c", delay_ms=700)])
    base = (clock.now_ms() + 500) * 4096
    found = await raw("ZRANGE", "{}delayed", 0, -1, "WITHSCORES")
    assert found == ["a", str(base), "b", str(base + 1), "c", str((clock.now_ms() + 700) * 4096)]
    assert await raw("ZSCORE", "{}marker", "1") == clock.now_ms() + 500
    assert (await hash_of(raw, "{}a"))["delay"] == "500"
    assert (await stream(raw))[1] == ["event", "delayed", "jobId", "a", "delay", str(clock.now_ms() + 500)]


async def test_scores_of_prioritized_jobs(store: RedisStore, raw: Raw) -> None:
    await store.add([spec("a", priority=5), spec("b", priority=2)])
    found = await raw("ZRANGE", "{}prioritized", 0, -1, "WITHSCORES")
    assert found == ["b", str(2 * 2**32 + 2), "a", str(5 * 2**32 + 1)]
    await claim(store, 3)
    assert await raw("EXISTS", "{}pc") == 0


async def test_jobs_ended_in_one_millisecond_keep_their_order(store: RedisStore, raw: Raw, clock: FrozenClock) -> None:
    await add(store, "b", "a")
    for job in await claim(store, 2):
        await complete(store, job)
    found = await raw("ZRANGE", "{}completed", 0, -1, "WITHSCORES")
    assert found[::2] == ["b", "a"]
    assert [int(float(score)) for score in found[1::2]] == [clock.now_ms()] * 2


# --- markers ----------------------------------------------------------------------------------------------------------


async def test_a_paused_queue_has_no_marker_and_its_jobs_wait(store: RedisStore, raw: Raw) -> None:
    await add(store, "a")
    await store.configure(Q, QueuePatch(paused=True))
    assert await raw("EXISTS", "{}marker") == 0
    await add(store, "b")
    assert await raw("EXISTS", "{}marker") == 0
    assert (await raw("HGET", "{}meta", "paused"), await raw("LLEN", "{}wait")) == ("1", 2)
    await store.configure(Q, QueuePatch(paused=False))
    assert await raw("ZSCORE", "{}marker", "0") == 0
    assert await raw("HEXISTS", "{}meta", "paused") == 0


async def test_a_claim_that_leaves_jobs_wakes_the_next_worker(store: RedisStore, raw: Raw) -> None:
    await add(store, "a", "b")
    await raw("DEL", "{}marker")
    await claim(store, 1)
    assert await raw("ZSCORE", "{}marker", "0") == 0
    await raw("DEL", "{}marker")
    await claim(store, 1)
    assert await raw("EXISTS", "{}marker") == 0


async def test_a_freed_slot_wakes_a_worker(store: RedisStore, raw: Raw) -> None:
    await add(store, "a", "b")
    await store.configure(Q, QueuePatch(concurrency=1))
    job = await claim_one(store)
    await raw("DEL", "{}marker")
    await complete(store, job)
    assert await raw("ZSCORE", "{}marker", "0") == 0


# --- settings and limits ----------------------------------------------------------------------------------------------


async def test_settings_are_bullmqs(store: RedisStore, raw: Raw) -> None:
    await store.configure(Q, QueuePatch(concurrency=3, rate=RateLimit(5, 1_000), event_cap=50))
    wanted = {"opts.maxLenEvents": "50", "concurrency": "3", "max": "5", "duration": "1000"}
    assert await hash_of(raw, "{}meta") == wanted
    await store.configure(Q, QueuePatch(concurrency=None, rate=None))
    assert await hash_of(raw, "{}meta") == {"opts.maxLenEvents": "50"}


async def test_settings_of_node_are_read(store: RedisStore, raw: Raw) -> None:
    await raw("HSET", "{}meta", "version", "bullmq:6.7.0", "concurrency", 2, "max", 7, "duration", 500, "paused", 1)
    found = await store.configure(Q)
    assert (found.paused, found.concurrency, found.rate) == (True, 2, RateLimit(7, 500))


async def test_the_limiter_counts_starts_of_its_window(live: RedisStore, raw: Raw) -> None:
    await live.configure(Q, QueuePatch(rate=RateLimit(2, 60_000)))
    await add(live, "a", "b", "c")
    assert ids_of(await claim(live, 3)) == ["a", "b"]
    assert await raw("GET", "{}limiter") == "2"
    assert 50_000 < await raw("PTTL", "{}limiter") <= 60_000
    await live.configure(Q, QueuePatch(limit_for_ms=9_000))
    assert await raw("GET", "{}limiter") == str(2**53 - 1)


async def test_leases_are_keys_that_expire(live: RedisStore, raw: Raw) -> None:
    await add(live, "a")
    job = await claim_one(live, lease_ms=30_000)
    assert 25_000 < await raw("PTTL", "{}a:lock") <= 30_000
    await live.renew(Q, [job.held], 60_000)
    assert 55_000 < await raw("PTTL", "{}a:lock") <= 60_000
    await raw("DEL", "{}a:lock")
    assert (await live.renew(Q, [job.held], 30_000)).lost == ()
    assert await raw("GET", "{}a:lock") == job.held.token


# --- deduplication ----------------------------------------------------------------------------------------------------


async def test_deduplication_keys(live: RedisStore, raw: Raw) -> None:
    await live.add([spec("a", dedup=DedupSpec("k")), spec("b", dedup=DedupSpec("t", "throttle", 60_000))])
    assert (await raw("GET", "{}de:k"), await raw("PTTL", "{}de:k")) == ("a", -1)
    assert 50_000 < await raw("PTTL", "{}de:t") <= 60_000
    assert (await hash_of(raw, "{}a"))["deid"] == "k"
    for job in await claim(live, 2):
        await complete(live, job)
    assert (await raw("EXISTS", "{}de:k"), await raw("GET", "{}de:t")) == (0, "b")


async def test_a_kept_call_lies_where_node_finds_it(store: RedisStore, raw: Raw) -> None:
    await store.add([spec("a", dedup=DedupSpec("k", "keep_latest"))])
    job = await claim_one(store)
    await store.add([spec("b", data=b'{"n":2}', dedup=DedupSpec("k", "keep_latest"))])
    found = await hash_of(raw, "{}dn:k")
    assert {name: found[name] for name in ("name", "data", "opts", "jid")} == {
        "name": "send",
        "data": '{"n":2}',
        "opts": "{}",
        "jid": "b",
    }
    await complete(store, job)
    assert await raw("EXISTS", "{}dn:k") == 0


async def test_a_call_that_node_kept_is_made_into_a_job(store: RedisStore, raw: Raw) -> None:
    await store.add([spec("a", dedup=DedupSpec("k", "keep_latest"))])
    job = await claim_one(store)
    opts = '{"priority":4,"attempts":2,"de":{"id":"k","keepLastIfActive":true}}'
    await raw("HSET", "{}dn:k", "name", "send", "data", "[1]", "opts", opts, "jid", "9")
    await complete(store, job)
    (made,) = await store.get(Q, ["9"])
    assert made is not None
    assert (made.state, made.priority, made.max_attempts, made.data) == (JobState.PRIORITIZED, 4, 2, b"[1]")
    assert await raw("GET", "{}de:k") == "9"


# --- flows ------------------------------------------------------------------------------------------------------------


async def test_a_flow_has_both_names_of_its_parent(store: RedisStore, raw: Raw, place: tuple[str, str]) -> None:
    await store.add([spec("c", opts=b'{"fpof":true}', parent=1), spec("p", priority=2)])
    queue = f"{place[1]}:mail"
    child = await hash_of(raw, "{}c")
    assert child["parentKey"] == f"{queue}:p"
    assert child["parent"] == f'{{"id":"p","queueKey":"{queue}","fpof":true}}'
    assert child["opts"] == f'{{"fpof":true,"parent":{{"id":"p","queue":"{queue}"}}}}'
    assert await raw("SMEMBERS", "{}p:dependencies") in ([f"{queue}:c"], {f"{queue}:c"})
    (seen,) = await store.get(Q, ["c"])
    assert seen is not None
    assert (seen.opts, seen.parent) == (b'{"fpof":true}', ParentRef(Q, "p"))


@pytest.mark.parametrize(
    ("policy", "key", "defa"),
    [
        (ChildPolicy.FAIL_PARENT, "unsuccessful", True),
        (ChildPolicy.CONTINUE_PARENT, "failed", False),
        (ChildPolicy.IGNORE, "failed", False),
        (ChildPolicy.REMOVE, None, False),
    ],
)
async def test_where_a_failed_child_is_noted(
    store: RedisStore, raw: Raw, place: tuple[str, str], policy: ChildPolicy, key: str | None, defa: bool
) -> None:
    await store.add([spec("c", parent=1, policy=policy), spec("p")])
    await fail(store, await claim_one(store), "no")
    child = f"{place[1]}:mail:c"
    assert await raw("EXISTS", "{}p:dependencies") == 0
    assert {one.rpartition(":")[2] for one in await keys(raw) if one.startswith("p:")} == ({key} if key else set())
    assert (await hash_of(raw, "{}p")).get("defa") == (f"child {child} failed" if defa else None)
    if key == "failed":
        assert await hash_of(raw, "{}p:failed") == {child: "no"}


# --- schedules --------------------------------------------------------------------------------------------------------


async def test_a_schedule_is_bullmqs(store: RedisStore, raw: Raw, clock: FrozenClock) -> None:
    slot = clock.now_ms() + 60_000
    definition = ScheduleDefinition(name="tick", every_ms=60_000, limit=5, data=b'{"x":1}', extra=b'{"owner":"me"}')
    await store.schedule(Q, [PutSchedule(id="s", definition=definition, slot=slot, job=spec(name="tick"))])
    assert await raw("ZRANGE", "{}repeat", 0, -1, "WITHSCORES") == ["s", str(slot)]
    assert await hash_of(raw, "{}repeat:s") == {
        "ic": "1",
        "name": "tick",
        "every": "60000",
        "offset": "0",
        "limit": "5",
        "data": '{"x":1}',
        "wm:extra": '{"owner":"me"}',
    }
    job = await hash_of(raw, f"{{}}repeat:s:{slot}")
    assert (job["rjk"], job["delay"], job["timestamp"]) == ("s", "60000", str(clock.now_ms()))


async def test_a_distance_that_names_no_phase_has_that_of_its_first_slot_for_node(
    store: RedisStore, raw: Raw, clock: FrozenClock
) -> None:
    slot = clock.now_ms() + 44
    definition = ScheduleDefinition(name="tick", every_ms=60_000)
    put = PutSchedule(id="s", definition=definition, slot=slot, job=spec(name="tick"))
    assert await store.schedule(Q, [put]) == [True]
    assert await raw("HGET", "{}repeat:s", "offset") == str(slot % 60_000)
    # It is no word of the definition's: that is read, and found unchanged, as it was given.
    [found] = await store.schedules(Q)
    assert found.definition == definition
    assert await store.schedule(Q, [put]) == [False]


# --- what others leave ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        ("DEL", "{}a"),
        ("HDEL", "{}a", "name"),
        ("SET", "{}a", "text"),
    ],
)
async def test_an_id_without_a_job_is_parked_and_the_queue_goes_on(
    store: RedisStore, raw: Raw, damage: tuple[str, ...]
) -> None:
    await add(store, "a", "b")
    await raw(*damage)
    assert ids_of(await claim(store, 5)) == ["b"]
    (parked,) = await store.get(Q, ["a"])
    assert parked is not None
    assert (parked.state, parked.data, parked.opts) == (JobState.FAILED, b"{}", b"{}")
    assert parked.name == ("send" if parked.name == "send" else "unknown")
    assert parked.reason
    assert await store.verify(Q) == []


async def test_numbers_that_are_none_do_not_stop_the_queue(store: RedisStore, raw: Raw) -> None:
    await add(store, "a", "b")
    await raw("HSET", "{}a", "ats", "x", "atm", "y", "priority", "", "timestamp", "?", "stc", "-", "processedOn", "z")
    jobs = await claim(store, 5)
    assert ids_of(jobs) == ["a", "b"]
    await complete(store, jobs[0])
    (ended,) = await store.get(Q, ["a"])
    assert ended is not None
    assert (ended.state, ended.attempts_made, ended.fence) == (JobState.COMPLETED, 1, 1)


async def test_markers_of_old_versions_are_dropped(store: RedisStore, raw: Raw) -> None:
    await add(store, "a")
    await raw("RPUSH", "{}wait", "0:1767225600000")
    assert ids_of(await claim(store, 5)) == ["a"]


async def test_resuming_takes_back_what_old_versions_put_aside(store: RedisStore, raw: Raw) -> None:
    await store.configure(Q, QueuePatch(paused=True))
    await add(store, "a", "b", "c")
    await raw("RENAME", "{}wait", "{}paused")
    await add(store, "d")
    await store.configure(Q, QueuePatch(paused=False))
    assert ids_of(await claim(store, 5)) == ["a", "b", "c", "d"]
    assert await raw("EXISTS", "{}paused") == 0


async def test_unknown_fields_and_options_stay(store: RedisStore, raw: Raw) -> None:
    opts = '{"x":[],"attempts":2,"y":null}'
    await store.add([spec("a", opts=opts.encode(), max_attempts=2)])
    await raw("HSET", "{}a", "tm", "trace", "other", "1")
    await retry(store, await claim_one(store))
    await release(store, await claim_one(store))
    found = await hash_of(raw, "{}a")
    assert (found["tm"], found["other"], found["opts"]) == ("trace", "1", opts)


async def test_a_node_look_at_stalled_jobs_is_respected(store: RedisStore, raw: Raw, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    await raw("SADD", "{}stalled", "a")
    later(LEASE + 1)
    assert (await sweep(store)).recovered == ("a",)
    assert (await hash_of(raw, "{}a"))["stc"] == "1"


async def test_a_crashed_job_over_the_limit_says_so_in_bullmqs_words(store: RedisStore, raw: Raw, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    later(LEASE + 1)
    await sweep(store, max_crashes=1)
    assert await raw("SMEMBERS", "{}stalled") in (["a"], {"a"})
    later(INTERVAL + 1)
    await sweep(store, max_crashes=1)
    assert (await hash_of(raw, "{}a"))["defa"] == "job stalled more than allowable limit"


# --- tags -------------------------------------------------------------------------------------------------------------


async def test_jobs_with_tags_lie_in_a_queue_of_their_own(store: RedisStore, raw: Raw, place: tuple[str, str]) -> None:
    await store.add([spec("a", tags=("eu", "gpu")), spec("b")])
    own = f"{place[1]}:mail@eu+gpu"
    assert await raw("LRANGE", f"{own}:wait", 0, -1) == ["a"]
    assert await raw("LRANGE", "{}wait", 0, -1) == ["b"]
    assert await raw("SMEMBERS", "{}wm:tagsets") in (["eu+gpu"], {"eu+gpu"})
    assert await raw("ZSCORE", f"{own}:marker", "0") == 0
    assert {"wm:marker:eu", "wm:marker:gpu"} <= await keys(raw)
    await store.configure(Q, QueuePatch(paused=True))
    assert await raw("HGET", f"{own}:meta", "paused") == "1"
    assert await store.queues() == [Q]


# --- all keys ---------------------------------------------------------------------------------------------------------

KNOWN = re.compile(
    r"(id|meta|wait|paused|prioritized|pc|delayed|active|waiting-children|completed|failed|stalled|stalled-check|limiter"
    r"|marker|events|repeat|repeat:[^:]+|de:[^:]+|dn:[^:]+|metrics:(completed|failed)(:data)?"
    r"|wm:(tagsets|more|orphans|marker:[^:]+)"
    r"|(j-[^:]+|repeat:[^:]+:\d+)(:(lock|logs|dependencies|processed|failed|unsuccessful))?)"
)


async def test_no_key_is_without_a_place_in_the_wire_format(
    store: RedisStore, raw: Raw, place: tuple[str, str], clock: FrozenClock, later: Later
) -> None:
    await store.add(
        [
            spec("j-c", parent=1, dedup=None),
            spec("j-p"),
            spec("j-k", dedup=DedupSpec("k", "keep_latest")),
            spec("j-t", tags=("eu",), dedup=DedupSpec("t", "throttle", 5_000)),
            spec("j-d", delay_ms=500),
            spec("j-q", priority=3),
        ]
    )
    put = PutSchedule(
        id="s", definition=ScheduleDefinition(name="t", every_ms=1_000), slot=clock.now_ms(), job=spec(name="t")
    )
    await store.schedule(Q, [put])
    await store.configure(Q, QueuePatch(rate=RateLimit(100, 1_000), concurrency=50))
    jobs = await claim(store, 9)
    await store.add([spec("j-l", dedup=DedupSpec("k", "keep_latest"))])
    await edit(store, "j-k", log_lines=("x",))
    await claim(store, 1, tags=("eu",))
    outcomes = [Settle(job.held, Completed(b"1", Keep(count=3))) for job in jobs[:3]]
    await store.step(step(0, outcomes=outcomes, metrics=5))
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    await sweep(store)
    await store.lease("door", "ada", 1_000)
    await store.worker(Beat(WorkerInfo(id="w", host="h", pid=1, version="1", started=1), 1_000))

    prefix = place[1]
    found: list[str] = await raw("KEYS", f"{prefix}:*")
    strange = []
    for key in found:
        queue, _, rest = key[len(prefix) + 1 :].partition(":")
        if queue == "":
            assert rest in {":wm:locks", ":wm:workers", "wm:locks", "wm:workers"}
        elif queue not in {"mail", "mail@eu"} or not KNOWN.fullmatch(rest):
            strange.append(key)
    assert strange == []
    assert await store.verify(Q) == []
    while not await store.obliterate(Q, force=True):
        pass
    left: list[str] = await raw("KEYS", f"{prefix}:mail*")
    assert left == []


async def test_a_waiting_worker_is_seen_under_nodes_name(live: RedisStore, raw: Raw, place: tuple[str, str]) -> None:
    await live.wait(step(1, worker="ada one"), 0.02)
    listed: Any = await raw("CLIENT", "LIST")
    text = listed if isinstance(listed, str) else "\n".join(str(one.get("name")) for one in listed)
    assert text.count(f"{place[1]}:bWFpbA==:w:adaone") == 1


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ended", [["a", "c", "d", "f", "g"], ["e", "f", "g", "h"], ["a", "b", "c", "d"], list("hgfedcba")]
)
async def test_a_batch_leaves_the_list_of_active_jobs_in_order(store: RedisStore, raw: Raw, ended: list[str]) -> None:
    await add(store, *"abcdefgh")
    jobs = {job.record.id: job for job in await claim(store, 8)}
    reply = await store.step(step(outcomes=[Settle(jobs[id].held, Completed(b"1")) for id in ended]))
    assert {code.value for code in reply.settled} == {"ok"}
    assert await raw("LRANGE", "{}active", 0, -1) == [id for id in reversed("abcdefgh") if id not in ended]
    assert await raw("ZRANGE", "{}completed", 0, -1) == ended
    assert await raw("EXISTS", *(f"{{}}{id}:lock" for id in ended)) == 0


async def test_a_batch_of_all_kinds_settles_each(store: RedisStore, raw: Raw) -> None:
    await add(store, *"abcdefg")
    jobs = {job.record.id: job.held for job in await claim(store, 7)}
    await raw("LREM", "{}active", 1, "e")
    reply = await store.step(
        step(
            outcomes=[
                Settle(jobs["a"], Completed(b"1")),
                Settle(jobs["b"], Retry(0, "boom", b"")),
                Settle(jobs["c"], Completed(b"2", Keep(count=0))),
                Settle(jobs["d"], Failed("boom", b"")),
                Settle(jobs["e"], Completed(b"3")),
                Settle(jobs["a"], Completed(b"4")),
                Settle(jobs["f"], Release()),
                Settle(jobs["g"]._replace(token=token()), Completed(b"5")),
            ]
        )
    )
    assert [code.value for code in reply.settled] == [
        "ok", "ok", "ok", "ok", "lease_lost", "already", "ok", "lease_lost"
    ]  # fmt: skip
    assert await raw("LRANGE", "{}active", 0, -1) == ["g"]
    assert await raw("LRANGE", "{}wait", 0, -1) == ["b", "f"]
    assert await raw("HGET", "{}a", "returnvalue") == "1"
    assert await raw("EXISTS", "{}c") == 0
    # It lies nowhere any more: its own list was edited by hand.
    await raw("DEL", "{}e")


async def test_what_is_noted_on_a_running_job_counts_at_its_end(store: RedisStore, raw: Raw) -> None:
    await add(store, "parent", "child")
    parent, child = await claim(store, 2)
    await store.add([spec("child", parent=ParentRef(Q, "parent"))])
    await edit(store, "child", cancel=True)
    await complete(store, child)
    assert await raw("HGETALL", "{}parent:processed") == {f"{store._keys.place(Q)}:child": "null"}
    assert await raw("HEXISTS", "{}child", "wm:cancel") == 0
    await complete(store, parent)


async def test_jobs_that_differ_in_more_than_their_data_are_told_apart(store: RedisStore, raw: Raw) -> None:
    await store.add(
        [
            spec(data=b"1"),
            spec(data=b"2"),
            spec(data=b"3", name="call"),
            spec(data=b"4", opts=b'{"x":1}'),
            spec(data=b"5", priority=7),
            spec(data=b"6", priority=7),
            spec("own", data=b"7"),
            spec("own", data=b"8"),
            spec(data=b"9", queue="other"),
            spec(data=b"10"),
        ]
    )
    stored = [await raw("HMGET", f"{{}}{id}", "name", "data", "opts", "priority") for id in (*"123456", "own", "9")]
    assert stored == [
        ["send", "1", "{}", "0"],
        ["send", "2", "{}", "0"],
        ["call", "3", "{}", "0"],
        ["send", "4", '{"x":1}', "0"],
        ["send", "5", "{}", "7"],
        ["send", "6", "{}", "7"],
        ["send", "7", "{}", "0"],
        ["send", "10", "{}", "0"],
    ]


async def test_a_number_that_is_taken_is_passed_over(store: RedisStore, raw: Raw) -> None:
    await add(store, "2", "5")
    await raw("SET", "{}id", "0")
    added = await store.add([spec() for _ in range(4)])
    assert len({one.id for one in added} | {"2", "5"}) == 6
    assert sorted(await raw("LRANGE", "{}wait", 0, -1)) == sorted(["2", "5", *(one.id for one in added)])
