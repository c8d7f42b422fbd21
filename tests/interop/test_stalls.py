"""Scenarios 21 to 25 and 46: workers that die, and leases that are lost, between the two sides."""

import logging
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.audit import Audit
from tests.interop.peer import Node, connect, node_process
from tests.interop.raw import Raw, until
from workers_module import Job, JobContext
from workers_module.job.record import Token
from workers_module.store.values import Step, Sweep

ROOT = Path(__file__).parents[2]
FAST: dict[str, Any] = {"lease_ms": 600, "sweep_interval_ms": 200}
FAST_NODE: dict[str, Any] = {"lockDuration": 600, "stalledInterval": 200, "drainDelay": 1}
STALLED = "job stalled more than allowable limit"


async def succeeds(job: Job[Any], _: JobContext) -> str:
    """Handle everything."""
    return "ours"


@contextmanager
def python_process(place: Place, lease_ms: int) -> Generator[subprocess.Popen[str]]:
    """Run a worker of ours that never ends a job; its output is the ids of those it began."""
    command = [sys.executable, "-m", "tests.interop.worker_process", place.url, place.prefix, str(lease_ms)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.scenario(21)
async def test_a_job_of_our_killed_worker_is_run_by_node(py: App, node: Node, place: Place, raw: Raw) -> None:
    handle = await py.mail.add("send", {})
    with python_process(place, 600) as process:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == f"{handle.id}\n"
        await node.work("mail", "return 'theirs'", **FAST_NODE)
        process.send_signal(signal.SIGKILL)
        assert await handle.result() == "theirs"
    found = await raw.job(handle.id)
    assert (found["stc"], found["ats"], found["atm"]) == ("1", "2", "1")
    story = await raw.story(handle.id)
    assert story[3:] == ["waiting<active", "stalled", "active<waiting", "completed<active"]


@pytest.mark.scenario(22)
async def test_a_job_of_nodes_killed_worker_is_run_here(py: App, place: Place, raw: Raw, modules: Path) -> None:
    handle = await py.mail.add("send", {})
    with node_process(modules) as server:
        async with connect(server, place.url, place.prefix) as doomed:
            await doomed.work("mail", "await t.gate('never').passed", lockDuration=600, stalledInterval=60_000)
            await raw.until_state(handle.id, "active")
            server.kill()
    # What a killed worker's own check has left holds others up for its interval.
    await raw("DEL", "stalled-check")
    async with place.working(consumer("mail", succeeds), **FAST):
        assert await handle.result() == "ours"
    found = await raw.job(handle.id)
    assert (found["stc"], found["ats"], found["atm"]) == ("1", "2", "1")
    story = await raw.story(handle.id)
    assert story[3:] == ["waiting<active", "stalled", "active<waiting", "completed<active"]


@pytest.mark.scenario(22)
async def test_a_mixed_fleet_checks_once_an_interval(place: Place, node: Node, raw: Raw) -> None:
    await node.work("mail", "", stalledInterval=300, drainDelay=1)
    checks: list[int] = []

    async def look() -> list[int]:
        found = await raw("GET", "stalled-check")
        if found is not None and int(found) not in checks:
            checks.append(int(found))
        return checks

    async with (
        place.working(consumer("mail", succeeds), sweep_interval_ms=300) as py,
        place.working(consumer("mail", succeeds), sweep_interval_ms=300),
    ):
        await py.mail.add("send", {})
        await until(look, lambda seen: len(seen) == 6)
    # Node's part of a millisecond is cut off where ours is the server's.
    assert min(after - before for before, after in pairwise(checks)) >= 295


async def abandon_here(py: App) -> str:
    """Take a job with a lease that nobody renews."""
    reply = await py.store.step(Step(queue="mail", worker="gone", token=Token("gone"), take=1, lease_ms=1))
    return reply.jobs[0].record.id


async def stall_once(py: App, node: Node, raw: Raw, sweeper: str, id: str) -> None:
    """Have one side look until the abandoned job is back."""

    async def look() -> bool:
        await raw("DEL", "stalled-check")
        if sweeper == "py":
            await py.store.sweep(Sweep(queue="mail", interval_ms=1, max_crashes=2))
        else:
            await node.run("await t.idle.moveStalledJobsToWait()")
        return await raw.state(id) != "active"

    await until(look)


@pytest.mark.scenario(23)
@pytest.mark.parametrize("loser", ["py", "node"])
async def test_a_job_that_stalls_twice_is_failed_by_the_other_side(
    py: App, node: Node, place: Place, raw: Raw, loser: str
) -> None:
    ran: list[str] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append(job.id)

    # A worker that only looks, or takes a job without renewing.
    await node.run(
        "t.idle = t.keep(new t.bullmq.Worker('mail', null, {...t.options, autorun: false, lockDuration: 1,"
        " stalledInterval: 50, maxStalledCount: 1, skipStalledCheck: true, skipLockRenewal: true}));"
        "await t.idle.waitUntilReady()"
    )
    id = (await py.mail.add("send", {}, attempts=5)).id
    for _ in range(2):
        if loser == "py":
            assert await abandon_here(py) == id
        else:
            assert await node.run("return (await t.idle.getNextJob('gone')).id") == id
        await stall_once(py, node, raw, loser, id)
    assert (await raw.job(id))["defa"] == STALLED
    if loser == "py":
        await node.work("mail", "")
        await raw.until_state(id, "failed")
    else:
        async with place.working(consumer("mail", handle)):
            await raw.until_state(id, "failed")
    assert (ran, await node.ran()) == ([], [])
    found = await raw.job(id)
    assert ("defa" in found, found["failedReason"], found["stc"]) == (False, STALLED, "2")
    job = await py.inspector.get("mail", id)
    assert job is not None
    assert (job.state, job.error) == ("failed", STALLED)
    assert await raw("EXISTS", f"{id}:lock") == 0


@pytest.mark.scenario(24)
async def test_our_long_job_is_never_taken_by_node(py: App, node: Node, place: Place, raw: Raw) -> None:
    leases: list[int] = []

    async def handle(job: Job[Any], _: JobContext) -> str:
        began = anyio.current_time()
        while anyio.current_time() < began + 1.8:
            leases.append(await raw("PTTL", f"{job.id}:lock"))
            await anyio.sleep(0.02)
        return "ours"

    async with place.working(consumer("mail", handle), lease_ms=600, sweep_interval_ms=60_000):
        handle_of = await py.mail.add("send", {})
        await raw.until_state(handle_of.id, "active")
        await node.work("mail", "return 'theirs'", **FAST_NODE)
        assert await handle_of.result() == "ours"
    assert min(leases) > 0
    assert any(after > before for before, after in pairwise(leases))
    assert await raw.story(handle_of.id) == ["added", "waiting", "active<waiting", "completed<active"]


@pytest.mark.scenario(24)
async def test_nodes_long_job_is_never_taken_by_us(py: App, node: Node, place: Place, raw: Raw) -> None:
    await node.work("mail", "await new Promise(r => setTimeout(r, 1800)); return 'theirs'", **FAST_NODE)
    handle = await py.mail.add("send", {})
    await raw.until_state(handle.id, "active")
    async with place.working(consumer("mail", succeeds), **FAST):
        assert await handle.result() == "theirs"
    assert await raw.story(handle.id) == ["added", "waiting", "active<waiting", "completed<active"]


async def steal(raw: Raw, id: str) -> None:
    """Put a running job back as a stall check does that found no lease."""
    await raw("DEL", f"{id}:lock")
    assert await raw("LREM", "active", 1, id) == 1
    await raw("RPUSH", "wait", id)
    await raw("ZADD", "marker", 0, "0")


@pytest.mark.scenario(25)
async def test_our_late_end_of_a_stolen_job_counts_for_nothing(
    py: App, node: Node, place: Place, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    held = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> str:
        await held.wait()
        return "ours"

    caplog.set_level(logging.WARNING)
    id = (await py.mail.add("send", {})).id
    async with place.working(consumer("mail", handle)) as app:
        await raw.until_state(id, "active")
        await node.work("mail", "await t.gate('go').passed; return 'theirs'", drainDelay=1)
        await steal(raw, id)
        await until(node.ran)
        held.set()

        async def logged() -> bool:
            return f"job {id} had been taken over (lease_lost); its Completed is dropped" in caplog.text

        await until(logged)
        await app.mail.pause()
        await node.run("t.gate('go').open()")
        await raw.until_state(id, "completed")
    await py.mail.resume()
    assert (await raw.job(id))["returnvalue"] == '"theirs"'
    assert (await raw.story(id)).count("completed<active") == 1


@pytest.mark.scenario(25)
async def test_nodes_late_end_of_a_stolen_job_counts_for_nothing(
    py: App, node: Node, place: Place, raw: Raw, audit: Audit
) -> None:
    held = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> str:
        await held.wait()
        return "ours"

    id = (await py.mail.add("send", {})).id
    await node.work("mail", "await t.gate('go').passed; return 'theirs'")
    await raw.until_state(id, "active")
    async with place.working(consumer("mail", handle)):
        await steal(raw, id)
        await until(lambda: raw.job(id), lambda found: found["ats"] == "2")
        await node.run("t.gate('go').open()")
        errors = await until(lambda: node.run("return t.errors"))
        assert any("lock" in error.lower() for error in errors)
        held.set()
        await raw.until_state(id, "completed")
    assert (await raw.job(id))["returnvalue"] == '"ours"'
    assert (await raw.story(id)).count("completed<active") == 1
