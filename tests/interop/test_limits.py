"""Scenarios 29 to 32: concurrency and rates over a mixed fleet; progress and logs."""

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until, until_asleep
from workers_module import Job, JobContext, RetryLaterError
from workers_module.store.values import RateLimit

PAUSE = "await new Promise(resolve => setTimeout(resolve, 5))"


async def short(job: Job[Any], _: JobContext) -> None:
    """Take a moment."""
    await anyio.sleep(0.005)


async def starts(raw: Raw) -> list[int]:
    """Return when jobs were started, by the server's clock."""
    entries: list[tuple[str, dict[str, str]]] = await raw("XRANGE", "events", "-", "+")
    return [int(id.partition("-")[0]) for id, fields in entries if fields["event"] == "active"]


@pytest.mark.scenario(29)
@pytest.mark.parametrize("limiter", ["py", "node"])
async def test_global_concurrency_holds_over_both_sides(
    py: App, node: Node, place: Place, raw: Raw, limiter: str
) -> None:
    if limiter == "py":
        await py.mail.set_global_concurrency(3)
        assert await node.run("return t.queue().getGlobalConcurrency()") == 3
    else:
        await node.run("await t.queue().setGlobalConcurrency(3)")
        assert (await py.inspector.settings("mail")).concurrency == 3
    active: list[int] = []

    async def look() -> list[str]:
        active.append(await raw("LLEN", "active"))
        return await raw.ids("completed")

    async with AsyncExitStack() as stack:
        for _ in range(2):
            await node.work("mail", PAUSE, concurrency=10)
            await stack.enter_async_context(place.working(consumer("mail", short, concurrency=10)))
        await until_asleep(raw, 4)
        await node.run("await t.queue().addBulk(Array.from({length: 100}, () => ({name: 'send'})))")
        await py.mail.add_many([("send", n) for n in range(100)])
        with anyio.fail_after(10):
            await until(look, lambda ids: len(ids) == 200)
    assert 2 <= max(active) <= 3


@pytest.mark.scenario(30)
async def test_rates_of_workers_hold_over_both_sides(py: App, node: Node, place: Place, raw: Raw) -> None:
    limits: list[tuple[int, int]] = []

    async def look() -> list[str]:
        limits.append((int(await raw("GET", "limiter") or 0), await raw("PTTL", "limiter")))
        return await raw.ids("completed")

    async with AsyncExitStack() as stack:
        await node.work("mail", PAUSE, concurrency=10, limiter={"max": 10, "duration": 1_000})
        for _ in range(2):
            app = place.working(consumer("mail", short, concurrency=10), rate=RateLimit(10, 1_000))
            await stack.enter_async_context(app)
        await until_asleep(raw, 3)
        await py.mail.add_many([("send", n) for n in range(25)])
        await until(look, lambda ids: len(ids) == 25)
    at = await starts(raw)
    assert len(at) == 25
    # A window begins with its first start, so that the eleventh start after any one is in a later window.
    assert all(later - first >= 990 for first, later in zip(at[::10], at[10::10], strict=False))
    assert max(count for count, _ in limits) == 10
    assert max(left for _, left in limits) <= 1_000
    assert all(left != -1 for _, left in limits)


@pytest.mark.scenario(31)
@pytest.mark.parametrize("limiter", ["py", "node"])
async def test_a_rate_of_the_queue_holds_over_both_sides(
    py: App, node: Node, place: Place, raw: Raw, limiter: str
) -> None:
    if limiter == "py":
        await py.mail.set_rate_limit(2, "400ms")
        assert await node.run("return t.queue().getGlobalRateLimit()") == {"max": 2, "duration": 400}
    else:
        await node.run("await t.queue().setGlobalRateLimit(2, 400)")
        assert (await py.inspector.settings("mail")).rate == RateLimit(2, 400)
    await node.work("mail", "", concurrency=5)
    async with place.working(consumer("mail", short, concurrency=5)):
        await until_asleep(raw, 2)
        await py.mail.add_many([("send", n) for n in range(6)])
        await raw.until_count("completed", 6)
    at = await starts(raw)
    assert all(later - first >= 390 for first, later in zip(at[::2], at[2::2], strict=False))


@pytest.mark.scenario(31)
@pytest.mark.parametrize("limiter", ["py", "node"])
async def test_a_handler_that_asks_for_a_break_holds_both_sides(
    py: App, node: Node, place: Place, raw: Raw, limiter: str
) -> None:
    async def handle(job: Job[Any], _: JobContext) -> None:
        if job.fence == 1 and job.data == "full":
            await py.mail.rate_limit("600ms")
            raise RetryLaterError("0s")

    code = (
        "if (job.attemptsStarted === 1 && job.data === 'full') {"
        "  await t.last.rateLimit(600); throw new t.bullmq.RateLimitError() }"
    )
    # Node heeds a manual limit only where it has a rate of its own; ours always does.
    options = {"limiter": {"max": 100, "duration": 1_000}, "drainDelay": 1}
    id = (await py.mail.add("send", "full", attempts=2)).id
    async with AsyncExitStack() as stack:
        if limiter == "py":
            await stack.enter_async_context(place.working(consumer("mail", handle)))
        else:
            await node.work("mail", code, **options)
        await until(lambda: raw.story(id), lambda story: "waiting<active" in story)
        found = await raw.job(id)
        assert ("atm" in found, found["ats"], await raw.state(id)) == (False, "1", "wait")
        other = (await py.mail.add("send", "more")).id
        if limiter == "py":
            await node.work("mail", "", **options)
        else:
            await stack.enter_async_context(place.working(consumer("mail", handle)))
        await raw.until_state(other, "completed")
        await raw.until_state(id, "completed")
    at = await starts(raw)
    assert at[1] - at[0] >= 590
    assert (await raw.job(id))["atm"] == "1"


@pytest.mark.scenario(32)
async def test_our_progress_and_logs_are_seen_by_node(py: App, node: Node, place: Place) -> None:
    async def handle(job: Job[Any], context: JobContext) -> None:
        await context.progress(40)
        for n in range(5):
            context.log(f"line {n} ✓")
        await context.progress({"done": [1, None]})

    await node.run("await t.listen('mail')")
    async with place.working(consumer("mail", handle)):
        handle_of = await py.mail.add("send", {}, keep_logs=3)
        await handle_of.result()
    seen = await until(
        lambda: node.run("return t.seen.filter(one => one.event === 'progress')"), lambda seen: len(seen) == 2
    )
    assert [one["data"] for one in seen] == [40, {"done": [1, None]}]
    job = await node.run("return (await t.queue().getJob(id)).toJSON()", id=handle_of.id)
    assert job["progress"] == {"done": [1, None]}
    logs = await node.run("return t.queue().getJobLogs(id)", id=handle_of.id)
    assert (logs["count"], [line.rpartition("INFO ")[2] for line in logs["logs"]]) == (
        3,
        ["line 2 ✓", "line 3 ✓", "line 4 ✓"],
    )
    assert await py.inspector.logs("mail", handle_of.id) == logs["logs"]


@pytest.mark.scenario(32)
async def test_nodes_progress_and_logs_are_seen_here(py: App, node: Node) -> None:
    await node.work(
        "mail",
        "await job.updateProgress(40); for (let n = 0; n < 5; n++) await job.log(`line ${n} ✓`);"
        "await job.updateProgress({done: [1, null]})",
    )
    async with py.inspector.events("mail") as batches:
        id = await node.run("return (await t.queue().add('send', {}, {keepLogs: 3})).id")
        told: list[str] = []
        async for batch in batches:
            told += [event.fields["data"] for event in batch.events if event.type == "progress"]
            if any(event.type == "completed" for event in batch.events):
                break
    assert told == ["40", '{"done":[1,null]}']
    assert await py.inspector.logs("mail", id) == ["line 2 ✓", "line 3 ✓", "line 4 ✓"]
    job = await py.inspector.get("mail", id)
    assert job is not None
    assert job.progress == {"done": [1, None]}
