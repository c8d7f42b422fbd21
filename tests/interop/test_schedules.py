"""Scenarios 41, 42, 44 and 45: schedules that one side makes and the other keeps going."""

import json
from contextlib import AsyncExitStack
from itertools import pairwise
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until
from tests.interop.test_stalls import stall_once
from workers_module import Job, JobContext

HOUR = 3_600_000


async def succeeds(job: Job[Any], _: JobContext) -> str:
    """Handle everything."""
    return "ours"


async def slot_jobs(raw: Raw, state: str) -> list[str]:
    """Return the jobs of schedules in a state."""
    return [id for id in await raw.ids(state) if id.startswith("repeat:")]


def slot(id: str) -> int:
    """Return the slot in a job's id."""
    return int(id.rpartition(":")[2])


@pytest.mark.scenario(41)
@pytest.mark.parametrize("creator", ["py", "node"])
async def test_both_sides_keep_one_interval_going(py: App, node: Node, place: Place, raw: Raw, creator: str) -> None:
    if creator == "node":
        await node.run("await t.queue().upsertJobScheduler('tick', {every: 100}, {data: {n: 1}, opts: {priority: 2}})")
    else:
        await py.mail.upsert_job_scheduler("tick", {"every": 100}, {"data": {"n": 1}, "opts": {"priority": 2}})
    upcoming: list[int] = []

    async def look() -> list[str]:
        upcoming.append(len(await slot_jobs(raw, "delayed")) + len(await slot_jobs(raw, "prioritized")))
        return await raw.ids("completed")

    await node.work("mail", "return 'theirs'", concurrency=1)
    async with place.working(consumer("mail", succeeds)):
        await until(look, lambda ids: len(ids) >= 50)
        await node.run("await t.last.close()")
    assert max(upcoming) == 1
    ids = sorted(await raw.ids("completed"), key=slot)
    [following] = [*await slot_jobs(raw, "delayed"), *await slot_jobs(raw, "prioritized")]
    slots = [slot(id) for id in (*ids, following)]
    gaps = [later - first for first, later in pairwise(slots)]
    # A machine that is busy for longer than that leaves slots out; it never moves one.
    assert all(gap > 0 and gap % 100 == 0 for gap in gaps), gaps
    jobs = [await raw.job(id) for id in (*ids, following)]
    opts = [json.loads(job["opts"]) for job in jobs]
    assert [one["repeat"]["count"] for one in opts] == [*range(1, len(jobs) + 1)]
    assert await raw("HGET", "repeat:tick", "ic") == str(len(jobs))
    assert int(await raw("ZSCORE", "repeat", "tick")) == slot(following)
    assert {json.dumps(json.loads(job["data"])) for job in jobs} == {'{"n": 1}'}
    assert {job["priority"] for job in jobs} == {"2"}
    assert {job["returnvalue"] for job in jobs[:-1]} == {'"ours"', '"theirs"'}


def normal(opts: str) -> Any:
    """Return options without what differs from one job to the next."""
    value = json.loads(opts)
    for name in ("jobId", "delay", "timestamp", "prevMillis"):
        if name in value:
            value[name] = type(value[name]).__name__
    # Node writes its default; it means what leaving it out means.
    if value.get("attempts") == 0:
        del value["attempts"]
    return value


@pytest.mark.scenario(42)
@pytest.mark.parametrize(
    "repeat",
    [
        {"every": HOUR, "limit": 5},
        {"every": HOUR, "endDate": 4_000_000_000_000},
        {"pattern": "0 0 3 * * *", "tz": "Europe/Riga", "limit": 5},
        {"pattern": "0 3 * * *", "tz": "UTC", "startDate": 1_700_000_000_000},
    ],
    ids=["every", "end", "pattern", "start"],
)
async def test_our_jobs_of_schedules_have_the_shape_of_nodes(
    py: App, node: Node, raw: Raw, repeat: dict[str, Any]
) -> None:
    template = {"name": "send", "data": {"n": 1}, "opts": {"attempts": 2, "removeOnComplete": 3}}
    ours = (await py.mail.upsert_job_scheduler("ours", repeat, template)).id
    theirs = await node.run(
        "return (await t.queue().upsertJobScheduler('theirs', repeat, template)).id", repeat=repeat, template=template
    )
    mine, other = await raw.job(ours), await raw.job(theirs)
    assert mine.keys() == other.keys()
    assert normal(mine["opts"]) == normal(other["opts"].replace("theirs", "ours"))
    definition, wanted = await raw.job("repeat:ours"), await raw.job("repeat:theirs")
    own = {"offset", "opts", "wm:phase"}
    assert {name: value for name, value in definition.items() if name not in own} == {
        name: value for name, value in wanted.items() if name not in own
    }
    assert json.loads(definition["opts"]) == json.loads(wanted["opts"])
    for id, found in ((ours, definition), (theirs, wanted)):
        assert int(found["offset"]) == (slot(id) % repeat["every"] if "every" in repeat else 0)
    seen = await node.run("return (await t.queue().getJobSchedulers()).map(one => [one.key, one.next, one.name])")
    assert sorted(seen) == [["ours", slot(ours), "send"], ["theirs", slot(theirs), "send"]]


@pytest.mark.scenario(42)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_a_limit_ends_the_chain_and_leaves_the_entry(
    py: App, node: Node, place: Place, raw: Raw, worker: str
) -> None:
    if worker == "node":
        await py.mail.upsert_job_scheduler("tick", {"every": 50, "limit": 5})
        await node.work("mail", "")
        await raw.until_count("completed", 5)
        await node.run("await t.last.close()")
    else:
        await node.run("await t.queue().upsertJobScheduler('tick', {every: 50, limit: 5})")
        async with place.working(consumer("mail", succeeds)):
            await raw.until_count("completed", 5)
    assert await slot_jobs(raw, "delayed") == []
    assert await slot_jobs(raw, "wait") == []
    assert await raw("ZCARD", "repeat") == 1
    [record] = await py.inspector.schedules("mail")
    assert (record.id, record.count, record.definition.limit) == ("tick", 5, 5)


@pytest.mark.scenario(42)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_an_end_date_ends_the_chain(py: App, node: Node, place: Place, raw: Raw, worker: str) -> None:
    end = await py.store.now() + 400
    repeat = {"every": 100, "endDate": end}

    async def over() -> bool:
        left = [*await slot_jobs(raw, "delayed"), *await slot_jobs(raw, "wait"), *await slot_jobs(raw, "active")]
        return not left and await py.store.now() > end

    if worker == "node":
        await py.mail.upsert_job_scheduler("tick", repeat)
        await node.work("mail", "")
        await until(over)
        await node.run("await t.last.close()")
    else:
        await node.run("await t.queue().upsertJobScheduler('tick', repeat)", repeat=repeat)
        async with place.working(consumer("mail", succeeds)):
            await until(over)
    slots = [slot(id) for id in await raw.ids("completed")]
    assert len(slots) >= 2
    # Node compares only the moment it looks at, so that its last slot may lie behind the end.
    assert max(slots) <= end + (100 if worker == "node" else 0)
    assert await raw("ZCARD", "repeat") == 1


async def upsert(side: str, py: App, node: Node, repeat: dict[str, Any], data: int) -> None:
    """Declare the schedule."""
    if side == "py":
        await py.mail.upsert_job_scheduler("tick", repeat, {"name": "send", "data": data})
    else:
        await node.run(
            "await t.queue().upsertJobScheduler('tick', repeat, {name: 'send', data})", repeat=repeat, data=data
        )


async def upcoming(raw: Raw) -> list[str]:
    """Return the jobs of schedules that are still to run."""
    return [id for state in ("wait", "prioritized", "delayed") for id in await slot_jobs(raw, state)]


async def bring(state: str, creator: str, stack: AsyncExitStack, py: App, node: Node, place: Place, raw: Raw) -> Any:
    """Make a schedule whose current job is in a state; how often it comes."""
    repeat: dict[str, Any] = {"every": HOUR}
    held = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> None:
        await held.wait()

    if state == "delayed":
        repeat["startDate"] = await py.store.now() + HOUR
    if state == "paused":
        await py.mail.pause()
    await upsert(creator, py, node, repeat, 1)
    if state == "active":
        if creator == "node":
            await stack.enter_async_context(place.working(consumer("mail", handle)))
        else:
            await node.work("mail", "await t.gate('go').passed")
        await raw.until_count("active", 1)
        await until(lambda: upcoming(raw))
    stack.callback(held.set)
    return repeat


@pytest.mark.scenario(44)
@pytest.mark.parametrize("change", ["every", "template"])
@pytest.mark.parametrize(
    ("actor", "state"),
    # Node leaves the old job beside the new one where the queue is paused (§7.6).
    [("py", "paused"), *((actor, state) for actor in ("py", "node") for state in ("delayed", "wait", "active"))],
)
async def test_a_schedule_is_changed_by_the_other_side(
    py: App, node: Node, place: Place, raw: Raw, actor: str, state: str, change: str
) -> None:
    creator = "node" if actor == "py" else "py"
    async with AsyncExitStack() as stack:
        repeat = await bring(state, creator, stack, py, node, place, raw)
        before = await upcoming(raw)
        if change == "every":
            repeat = repeat | {"every": 2 * HOUR}
        await upsert(actor, py, node, repeat, 2)
        [current] = await upcoming(raw)
        assert int(await raw("ZSCORE", "repeat", "tick")) == slot(current)
        job = await raw.job(current)
        assert (job["data"], json.loads(job["opts"])["repeat"]["every"]) == ("2", repeat["every"])
        definition = await raw.job("repeat:tick")
        assert (definition["data"], definition["every"]) == ("2", str(repeat["every"]))
        if change == "template":
            assert [current] == before
        assert len(await slot_jobs(raw, "active")) == (state == "active")
        await node.run("t.gate('go').open()")
    await py.mail.resume()


@pytest.mark.scenario(44)
@pytest.mark.parametrize("actor", ["py", "node"])
async def test_a_schedule_said_again_by_the_other_side_keeps_its_slot(
    py: App, node: Node, raw: Raw, actor: str
) -> None:
    repeat = {"every": HOUR, "startDate": await py.store.now() + HOUR}
    await upsert("node" if actor == "py" else "py", py, node, repeat, 1)
    before = await upcoming(raw)
    await upsert(actor, py, node, repeat, 1)
    assert await upcoming(raw) == before
    assert len(before) == 1


@pytest.mark.scenario(45)
@pytest.mark.parametrize("actor", ["py", "node"])
@pytest.mark.parametrize("state", ["delayed", "wait", "active"])
async def test_a_schedule_is_removed_by_the_other_side(
    py: App, node: Node, place: Place, raw: Raw, actor: str, state: str
) -> None:
    async with AsyncExitStack() as stack:
        await bring(state, "node" if actor == "py" else "py", stack, py, node, place, raw)
        gone = await upcoming(raw)
        remove = "return t.queue().removeJobScheduler('tick')"
        for wanted in (True, False):
            done = await (py.mail.remove_job_scheduler("tick") if actor == "py" else node.run(remove))
            assert done is wanted
        assert await raw("EXISTS", "repeat", "repeat:tick") == 0
        assert await upcoming(raw) == (gone if state == "wait" else [])
        assert len(await slot_jobs(raw, "active")) == (state == "active")
        if state != "wait":
            assert await raw.job(gone[0]) == {}
            assert (await raw.story(gone[0]))[-1] == "removed<delayed"
        await node.run("t.gate('go').open()")
    if state == "wait":
        await node.work("mail", "")
        await raw.until_state(gone[0], "completed")
        assert await upcoming(raw) == []


@pytest.mark.scenario(45)
@pytest.mark.parametrize("actor", ["py", "node"])
async def test_the_current_job_of_a_schedule_is_not_removed(py: App, node: Node, raw: Raw, actor: str) -> None:
    from workers_module import IllegalMoveError

    repeat = {"every": HOUR, "startDate": await py.store.now() + HOUR}
    await upsert("node" if actor == "py" else "py", py, node, repeat, 1)
    [current] = await upcoming(raw)
    if actor == "py":
        with pytest.raises(IllegalMoveError):
            await py.mail.remove(current)
        await py.mail.drain(delayed=True)
    else:
        assert (
            await node.run(
                "try { await (await t.queue().getJob(id)).remove() } catch (error) { return error.code }", id=current
            )
            == -8
        )
        await node.run("await t.queue().drain(true)")
    assert await upcoming(raw) == [current]


@pytest.mark.scenario(46)
@pytest.mark.parametrize("creator", ["py", "node"])
async def test_a_schedules_job_outlives_the_workers_it_takes_down(
    py: App, node: Node, place: Place, raw: Raw, creator: str
) -> None:
    await node.run(
        "t.idle = t.keep(new t.bullmq.Worker('mail', null, {...t.options, autorun: false, lockDuration: 1,"
        " stalledInterval: 50, maxStalledCount: 1, skipStalledCheck: true, skipLockRenewal: true}));"
        "await t.idle.waitUntilReady()"
    )
    await upsert(creator, py, node, {"every": HOUR}, 1)
    [id] = await upcoming(raw)
    for sweeper in ("py", "node", "py"):
        assert await node.run("return (await t.idle.getNextJob('gone')).id") == id
        await stall_once(py, node, raw, sweeper, id)
    found = await raw.job(id)
    assert (found["stc"], found["ats"], "defa" in found) == ("3", "3", False)
    if creator == "node":
        async with place.working(consumer("mail", succeeds)):
            await raw.until_state(id, "completed")
    else:
        await node.work("mail", "")
        await raw.until_state(id, "completed")
    [following] = await upcoming(raw)
    assert slot(following) - slot(id) == HOUR
    assert await raw("HGET", "repeat:tick", "ic") == "2"
