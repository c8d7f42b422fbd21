"""Scenarios 17 to 20: failed attempts, their delays and traces, and how long ended jobs are kept."""

import json
from typing import Any

import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until
from workers_module import Backoff, Job, JobContext, KeepJobs, UnrecoverableError


async def fails(job: Job[Any], _: JobContext) -> None:
    """Handle nothing."""
    raise RuntimeError(f"attempt {job.attempt} fails")


async def succeeds(job: Job[Any], _: JobContext) -> str:
    """Handle everything."""
    return "well"


@pytest.mark.scenario(17)
async def test_attempts_are_shared_and_tell_their_traces(py: App, node: Node, place: Place, raw: Raw) -> None:
    handle = await py.mail.add("send", {}, attempts=3, backoff=Backoff.fixed("300ms"))
    async with place.working(consumer("mail", fails)):
        await raw.until_state(handle.id, "delayed")
    await node.run(
        "const worker = await t.worker('mail', 'throw new TypeError(`attempt ${job.attemptsMade + 1} fails`)');"
        "await new Promise(resolve => worker.once('failed', resolve));"
        "await worker.close()"
    )
    found = await raw.job(handle.id)
    assert (found["atm"], found["failedReason"]) == ("2", "attempt 2 fails")
    async with place.working(consumer("mail", succeeds)):
        assert await handle.result() == "well"
    found = await raw.job(handle.id)
    assert (found["atm"], found["ats"], found["failedReason"]) == ("3", "3", "attempt 2 fails")
    ours, theirs = json.loads(found["stacktrace"])
    assert ours.startswith("Traceback")
    assert ours.endswith("RuntimeError: attempt 1 fails")
    assert theirs.startswith("TypeError: attempt 2 fails\n    at ")
    job = await py.inspector.get("mail", handle.id)
    assert job is not None
    assert (job.traces, job.attempt, job.attempts) == ([ours, theirs], 3, 3)
    board = await node.run(
        "const {BullMQAdapter} = t.require('@bull-board/api/bullMQAdapter');"
        "const adapter = new BullMQAdapter(t.queue());"
        "return (await adapter.getJob(id)).toJSON()",
        id=handle.id,
    )
    assert (board["failedReason"], board["stacktrace"], board["attemptsMade"]) == ("attempt 2 fails", [ours, theirs], 3)


@pytest.mark.scenario(18)
@pytest.mark.parametrize("worker", ["py", "node"])
@pytest.mark.parametrize("producer", ["py", "node"])
async def test_delays_with_chance_stay_within_their_bounds(
    py: App, node: Node, place: Place, raw: Raw, worker: str, producer: str
) -> None:
    if producer == "py":
        id = (await py.mail.add("send", {}, attempts=3, backoff=Backoff.exponential("200ms", jitter=0.5))).id
    else:
        backoff = {"type": "exponential", "delay": 200, "jitter": 0.5}
        id = await node.run("return (await t.queue().add('send', {}, {attempts: 3, backoff})).id", backoff=backoff)

    async def look() -> None:
        for attempt, longest in ((1, 200), (2, 400)):
            await until(lambda: raw.job(id), lambda found, n=attempt: found.get("atm") == str(n))  # type: ignore[misc]
            found = await raw.job(id)
            delayed = [entry for entry in await raw.events() if entry["event"] == "delayed"]
            score = await raw("ZSCORE", "delayed", id)
            assert longest / 2 <= int(found["delay"]) <= longest
            assert int(float(score)) // 4096 == int(delayed[attempt - 1]["delay"])
            assert int(delayed[attempt - 1]["delay"]) >= int(found["processedOn"]) + int(found["delay"])
        await raw.until_state(id, "failed")

    if worker == "py":
        async with place.working(consumer("mail", fails)):
            await look()
    else:
        await node.work("mail", "throw new Error('no')")
        await look()
    assert [entry["event"] for entry in await raw.events()].count("delayed") == 2


@pytest.mark.scenario(19)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_an_error_without_hope_ends_the_job(py: App, node: Node, place: Place, raw: Raw, worker: str) -> None:
    async def handle(job: Job[Any], _: JobContext) -> None:
        raise UnrecoverableError("never")

    several = (await py.mail.add("send", {}, attempts=3)).id
    single = await node.run("return (await t.queue().add('send', {})).id")
    if worker == "py":
        async with place.working(consumer("mail", handle)):
            await raw.until_count("failed", 2)
    else:
        await node.work("mail", "throw new (t.bullmq.UnrecoverableError)('never')")
        await raw.until_count("failed", 2)
    assert (await raw.story(several))[-1] == "failed<active"
    assert (await raw.story(single))[-2:] == ["failed<active", "retries-exhausted"]
    for id in (several, single):
        found = await raw.job(id)
        assert (found["atm"], found["failedReason"]) == ("1", "never")


COUNTED = {"count": 3, "age": 60, "limit": 1}


@pytest.mark.scenario(20)
@pytest.mark.parametrize("worker", ["py", "node"])
@pytest.mark.parametrize("end", ["completed", "failed"])
@pytest.mark.parametrize(
    ("said_by", "keep", "kept"),
    [
        pytest.param("job", True, 0, id="none"),
        pytest.param("job", 2, 2, id="two"),
        pytest.param("job", False, 6, id="all"),
        pytest.param("job", COUNTED, 3, id="counted"),
        pytest.param("job", {"age": 1}, 1, id="second"),
        # A worker names its retention as an object.
        pytest.param("worker", COUNTED, 3, id="worker-counted"),
        pytest.param("worker", {"age": 1}, 1, id="worker-second"),
    ],
)
async def test_ended_jobs_are_kept_alike(
    py: App, node: Node, place: Place, raw: Raw, worker: str, end: str, keep: Any, kept: int, said_by: str
) -> None:
    option = "removeOnComplete" if end == "completed" else "removeOnFail"
    jobs: dict[str, Any] = {option: keep} if said_by == "job" else {}
    ids: list[str] = []

    async def run() -> None:
        for n in range(6):
            if n == 5 and keep == {"age": 1}:
                last = int((await raw.job(ids[-1]))["finishedOn"])
                await until(lambda: server_ms(raw), lambda now, last=last: now > last + 1_000)  # type: ignore[misc]
            if n % 2:
                ids.append((await py.mail.add("send", n, jobs)).id)
            else:
                ids.append(await node.run("return (await t.queue().add('send', n, opts)).id", n=n, opts=jobs))
            await until(lambda: raw.story(ids[-1]), lambda story: f"{end}<active" in story)

    if worker == "py":
        limits = {"age": "none", "count": "none"}
        if said_by == "worker":
            limits = {name: f"{value}s" if name == "age" else value for name, value in keep.items() if name != "limit"}
        retention = {"retention": {"completed": limits, "failed": limits}}
        async with place.working(consumer("mail", succeeds if end == "completed" else fails), settings=retention):
            await run()
    else:
        options = {option: keep} if said_by == "worker" else {}
        await node.work("mail", "" if end == "completed" else "throw new Error('no')", **options)
        await run()
    assert await raw.ids(end) == ids[len(ids) - kept :]
    assert await raw("EXISTS", ids[0]) == (kept == 6)


async def server_ms(raw: Raw) -> int:
    """Return the server's clock."""
    seconds, micros = await raw.send("TIME")
    return int(seconds) * 1_000 + int(micros) // 1_000


@pytest.mark.scenario(20)
async def test_our_spelling_of_retention_reads_like_theirs(py: App, node: Node, raw: Raw) -> None:
    keep = KeepJobs(age="1m", count=3, limit=1)
    id = (await py.mail.add("send", {}, remove_on_complete=keep, remove_on_fail=2)).id
    opts = await node.run("return (await t.queue().getJob(id)).opts", id=id)
    assert (opts["removeOnComplete"], opts["removeOnFail"]) == (COUNTED, 2)
