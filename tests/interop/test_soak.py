"""Scenarios 54 and 55: a mixed fleet whose workers are killed, whose scripts are forgotten and connections cut."""

import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import redis

from tests.interop.apps import App, Place, consumer
from tests.interop.fleet import FAST, FAST_NODE, HANDLER, handle
from tests.interop.peer import Node, connect, node_process
from tests.interop.raw import Raw, until
from workers_module import JobOptions, StoreUnavailableError

ROOT = Path(__file__).parents[2]
FULL = bool(os.environ.get("WORKERS_TEST_FULL"))
KEEP = {"retention": {"completed": {"age": "none", "count": "none"}, "failed": {"age": "none", "count": "none"}}}


def options(n: int, backoff: dict[str, Any]) -> JobOptions:
    """Return the options of a job; the same are written in JavaScript below."""
    given = JobOptions(attempts=3, backoff=backoff)
    if n % 7 == 0:
        given["delay"] = "200ms"
    if n % 11 == 0:
        given["priority"] = 5
    return given


async def add_all(py: App, node: Node, count: int) -> None:
    """Add jobs 1 to count, half from each side; some later, some first."""
    backoff = {"type": "fixed", "delay": 30}
    for start in range(1, count + 1, 500):
        numbers = range(start, min(start + 500, count + 1))
        await py.mail.add_many([("send", n, options(n, backoff)) for n in numbers if n % 2])
        await node.run(
            "await t.queue().addBulk(numbers.map(n => ({name: 'send', data: n, opts: {attempts: 3, backoff,"
            " ...(n % 7 === 0 && {delay: 200}), ...(n % 11 === 0 && {priority: 5})}})))",
            numbers=[n for n in numbers if n % 2 == 0],
            backoff=backoff,
        )


async def check_ends(py: App, raw: Raw, count: int) -> None:
    """Each job has ended once, as its number says."""
    counts = await py.inspector.counts("mail")
    bad = sum(n % 101 == 0 for n in range(1, count + 1))
    assert (counts.completed, counts.failed) == (count - bad, bad)
    assert (counts.waiting, counts.active, counts.delayed, counts.prioritized) == (0, 0, 0, 0)
    ends: Counter[str] = Counter()
    for entry in await raw.events():
        if entry["event"] in {"completed", "failed"}:
            ends[entry["jobId"]] += 1
    assert set(ends.values()) <= {1}
    if count <= 2_000:
        assert len(ends) == count
    for id in await raw.ids("completed"):
        if int(id) % 97 == 0:
            found = await raw.job(id)
            assert found["returnvalue"] == found["data"]


def is_over(py: App, count: int) -> Any:
    """Return what asks whether all have ended."""

    async def probe() -> bool:
        try:
            counts = await py.inspector.counts("mail")
        except StoreUnavailableError:
            # Our own connections are cut, too.
            return False
        return counts.completed + counts.failed == count

    return probe


def start(place: Place) -> "subprocess.Popen[str]":
    """Start a worker of ours in a process of its own; it writes a line when it works."""
    command = [sys.executable, "-m", "tests.interop.fleet", place.url, place.prefix]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def soak(py: App, node: Node, place: Place, raw: Raw, modules: Path, count: int, kills: int) -> None:
    await raw("HSET", "meta", "opts.maxLenEvents", 100 * count)
    chance = random.Random(54)
    async with anyio.create_task_group() as group:
        group.start_soon(add_all, py, node, count)
        for _ in range(kills):
            process = start(place)
            assert process.stdout is not None
            try:
                with node_process(modules) as server:
                    async with connect(server, place.url, place.prefix) as doomed:
                        await doomed.work("mail", HANDLER, **FAST_NODE)
                        await anyio.to_thread.run_sync(process.stdout.readline)
                        # Let them get into their work, for a time that is never the same.
                        began = len(await raw.ids("completed"))
                        goal = min(count - 1, began + chance.randrange(50, 50 + count // 8))
                        ended = is_over(py, count)

                        async def far_enough(goal: int = goal, ended: Any = ended) -> bool:
                            return bool(await raw("ZCARD", "completed") >= goal or await ended())

                        await until(far_enough)
                        process.kill()
                        server.kill()
            finally:
                process.kill()
                process.communicate()
    async with place.working(consumer("mail", handle, concurrency=20), settings=KEEP, **FAST):
        await node.work("mail", HANDLER, **FAST_NODE)
        over = is_over(py, count)
        while not await over():
            before = await py.inspector.counts("mail")

            async def goes_on(before: Any = before) -> bool:
                return bool(await py.inspector.counts("mail") != before)

            await until(goes_on)
        await node.run("await t.last.close()")
    await check_ends(py, raw, count)


@pytest.mark.scenario(54)
async def test_a_fleet_that_is_killed_now_and_then_loses_nothing(
    py: App, node: Node, place: Place, raw: Raw, modules: Path
) -> None:
    await soak(py, node, place, raw, modules, 2_000, 3)


@pytest.mark.slow
@pytest.mark.scenario(54)
async def test_a_large_fleet_that_is_killed_often_loses_nothing(
    py: App, node: Node, place: Place, raw: Raw, modules: Path
) -> None:
    await soak(py, node, place, raw, modules, 100_000, 30)


@pytest.mark.scenario(55)
@pytest.mark.parametrize("trouble", ["forgotten scripts", "cut connections"])
async def test_trouble_at_the_server_loses_and_doubles_nothing(
    py: App, node: Node, place: Place, raw: Raw, modules: Path, trouble: str
) -> None:
    count = 1_500
    await raw("HSET", "meta", "opts.maxLenEvents", 100 * count)
    await add_all(py, node, count)

    async def harm() -> None:
        with redis.Redis.from_url(place.url) as killer:
            while True:
                if trouble == "forgotten scripts":
                    killer.script_flush()
                    await anyio.sleep(0.02)
                else:
                    cast("Any", killer).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                    await anyio.sleep(0.3)

    async with AsyncExitStack() as stack:
        # In a process of its own: where its connections are cut, BullMQ's worker may never end its closing.
        server = stack.enter_context(node_process(modules))
        doomed = await stack.enter_async_context(connect(server, place.url, place.prefix))
        await doomed.work("mail", HANDLER, **FAST_NODE)
        app = place.working(consumer("mail", handle, concurrency=20), settings=KEEP, **FAST)
        await stack.enter_async_context(app)
        async with anyio.create_task_group() as group:
            group.start_soon(harm)
            await until(is_over(py, count))
            group.cancel_scope.cancel()
        server.kill()
    await check_ends(py, raw, count)
