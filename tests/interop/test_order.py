"""Scenarios 9 to 11, 14 to 16 and 26 to 28: in which order jobs start, in what pieces, and that pausing holds them."""

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until, until_asleep
from workers_module import Job, JobContext, UnrecoverableError


async def run_all(place: Place, node: Node, worker: str, count: int) -> list[Any]:
    """Let a worker of one side run everything, one after the other; the payloads in the order they started."""
    ran: list[Any] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append(job.data)

    if worker == "node":
        await node.work("mail", "", concurrency=1)
        seen = await until(node.ran, lambda seen: len(seen) == count)
        return [one["data"] for one in seen]
    async with place.working(consumer("mail", handle)):
        await until_length(ran, count)
    return ran


async def until_length(found: list[Any], count: int) -> None:
    async def look() -> list[Any]:
        return found

    await until(look, lambda seen: len(seen) >= count)


@pytest.mark.scenario(9)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_priorities_hold_over_both_sides(py: App, node: Node, place: Place, worker: str) -> None:
    await py.mail.pause()
    await py.mail.add("send", 5, priority=5)
    await node.run("await t.queue().add('send', 1, {priority: 1})")
    await py.mail.add("send", 3, priority=3)
    await node.run("await t.queue().add('send', 0)")
    await node.run("await t.queue().resume()")
    assert await run_all(place, node, worker, 4) == [0, 1, 3, 5]


@pytest.mark.scenario(10)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_equal_priorities_go_in_the_order_of_adding(py: App, node: Node, place: Place, worker: str) -> None:
    for n in range(0, 8, 2):
        await py.mail.add("send", n, priority=7)
        await node.run("await t.queue().add('send', n, {priority: 7})", n=n + 1)
    assert await run_all(place, node, worker, 8) == [*range(8)]


@pytest.mark.scenario(11)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_the_newest_goes_first_if_asked(py: App, node: Node, place: Place, worker: str) -> None:
    for n in range(0, 6, 2):
        await py.mail.add("send", n, lifo=True)
        await node.run("await t.queue().add('send', n, {lifo: true})", n=n + 1)
    await py.mail.add("send", 6)
    assert await run_all(place, node, worker, 7) == [5, 4, 3, 2, 1, 0, 6]


@pytest.mark.scenario(14)
async def test_a_batch_of_ours_wakes_a_sleeping_worker_of_node(py: App, node: Node, raw: Raw) -> None:
    await node.work("mail", "", concurrency=5, drainDelay=10)
    await until_asleep(raw)
    # A worker that was not woken would sleep for ten seconds more.
    with anyio.fail_after(8):
        handles = await py.mail.add_many([("send", n) for n in range(500)])
        await until(node.ran)
    await raw.until_count("completed", 500)
    types = [entry["event"] for entry in await raw.events()]
    assert (types.count("added"), types.count("waiting"), types.count("active")) == (500, 500, 500)
    assert {one["id"] for one in await node.ran()} == {handle.id for handle in handles}


@pytest.mark.scenario(15)
async def test_a_batch_taken_by_us_wakes_a_sleeping_worker_of_node(py: App, node: Node, place: Place, raw: Raw) -> None:
    held = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> None:
        await held.wait()

    await node.work("mail", "await t.gate('go').passed", concurrency=1, drainDelay=10)
    await until_asleep(raw)
    async with place.working(consumer("mail", handle, concurrency=50)):
        await until_asleep(raw, 2)
        with anyio.fail_after(8):
            await py.mail.add_many([("send", n) for n in range(200)])
            await until(node.ran)
        await until(lambda: raw.ids("active"), lambda ids: len(ids) == 51)
        held.set()
        await node.run("t.gate('go').open()")
        await raw.until_count("completed", 200)


@pytest.mark.scenario(16)
async def test_a_batch_that_ends_in_every_way_reads_like_single_ends(place: Place, node: Node, raw: Raw) -> None:
    tries: dict[str, int] = {}
    held = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> str:
        await held.wait()
        tries[job.id] = tries.get(job.id, 0) + 1
        if job.name == "fail":
            raise UnrecoverableError("no")
        if job.name == "retry" and tries[job.id] == 1:
            raise ValueError("once")
        return "well"

    ids: list[str] = await node.run(
        "const jobs = ['ok', 'fail', 'retry', 'ok', 'later'].map(name => "
        "  ({name, opts: name === 'retry' ? {attempts: 2} : {}}));"
        "return (await t.queue().addBulk(jobs)).map(job => job.id)"
    )
    async with place.working(consumer("mail", handle, concurrency=5)):
        await until(lambda: raw.ids("active"), lambda found: len(found) == 5)
        held.set()
        await raw.until_count("completed", 4)
        await raw.until_count("failed", 1)
    states = await node.run("return Promise.all(ids.map(async id => (await t.queue().getJob(id)).getState()))", ids=ids)
    assert states == ["completed", "failed", "completed", "completed", "completed"]
    started = ["added", "waiting", "active<waiting"]
    assert await raw.story(ids[0]) == [*started, "completed<active"]
    assert await raw.story(ids[1]) == [*started, "failed<active", "retries-exhausted"]
    assert await raw.story(ids[2]) == [*started, "waiting<active", "active<waiting", "completed<active"]
    assert (await raw.job(ids[2]))["failedReason"] == "once"


@pytest.mark.scenario(26)
@pytest.mark.parametrize("pauser", ["py", "node"])
async def test_a_pause_by_one_side_holds_the_jobs_of_the_other(
    py: App, node: Node, place: Place, raw: Raw, pauser: str
) -> None:
    ran: list[str] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append(job.id)

    async with AsyncExitStack() as stack:
        await node.work("mail", "", drainDelay=10)
        await stack.enter_async_context(place.working(consumer("mail", handle)))
        await until_asleep(raw, 2)
        if pauser == "node":
            await node.run("await t.queue().pause()")
            ids = [(await py.mail.add("send", n)).id for n in range(4)]
        else:
            await py.mail.pause()
            ids = [await node.run("return (await t.queue().add('send', n)).id", n=n) for n in range(4)]
        assert await py.mail.is_paused()
        assert await node.run("return t.queue().isPaused()")
        assert await raw.ids("wait") == ids[::-1]
        assert await raw("EXISTS", "marker") == 0
        assert await raw("EXISTS", "paused") == 0
        assert await node.run("return (await t.queue().getJob(id)).getState()", id=ids[0]) == "waiting"
        job = await py.inspector.get("mail", ids[0])
        assert job is not None
        assert job.state == "waiting"
        assert (ran, await node.ran()) == ([], [])
        if pauser == "node":
            await py.mail.resume()
        else:
            await node.run("await t.queue().resume()")
        with anyio.fail_after(8):
            await raw.until_count("completed", 4)
    assert sorted([*ran, *(one["id"] for one in await node.ran())]) == ids


@pytest.mark.scenario(27)
async def test_a_pause_lets_only_jobs_already_taken_go_on(py: App, node: Node, place: Place, raw: Raw) -> None:
    held = anyio.Event()
    ran: list[str] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append(job.id)
        await held.wait()

    async with place.working(consumer("mail", handle, concurrency=3)):
        await until_asleep(raw)
        await node.run("await t.queue().addBulk(Array.from({length: 10}, (_, n) => ({name: 'send', data: n})))")
        await until_length(ran, 3)
        await node.run("await t.queue().pause()")
        held.set()
        await raw.until_count("completed", 3)
        # Once more asleep, it has looked at the paused queue and taken nothing.
        await until_asleep(raw)
        assert len(ran) == 3
        assert len(await raw.ids("wait")) == 7
        await node.run("await t.queue().resume()")
        with anyio.fail_after(8):
            await raw.until_count("completed", 10)


@pytest.mark.scenario(28)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_due_jobs_of_a_paused_queue_become_ready_and_do_not_run(
    py: App, node: Node, place: Place, raw: Raw, worker: str
) -> None:
    ran: list[str] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append(job.id)

    async with AsyncExitStack() as stack:
        await py.mail.pause()
        handle_of = await py.mail.add("later", None, delay="50ms", priority=3)
        id: str = await node.run("return (await t.queue().add('later', {}, {delay: 50})).id")
        if worker == "node":
            await node.work("mail", "", drainDelay=1)
        else:
            await stack.enter_async_context(place.working(consumer("mail", handle)))
        await raw.until_state(id, "wait")
        await raw.until_state(handle_of.id, "prioritized")
        assert await raw.story(id) == ["added", "delayed", "waiting<delayed"]
        assert (await raw.job(id))["delay"] == "0"
        assert (ran, await node.ran()) == ([], [])
        await node.run("await t.queue().resume()")
        await raw.until_count("completed", 2)
