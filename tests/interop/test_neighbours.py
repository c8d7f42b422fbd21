"""Scenarios 47 to 50, 52 and 53: counts, workers, versions, the event stream, and BullMQ 5."""

import json
import logging
from typing import Any

import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.audit import Audit
from tests.interop.peer import Node
from tests.interop.raw import Raw, until
from workers_module import Job, JobContext


async def echo(job: Job[Any], _: JobContext) -> Any:
    """Return the payload."""
    if job.name == "bad":
        raise RuntimeError("no")
    return job.data


@pytest.mark.scenario(47)
async def test_counts_of_both_sides_add_up(py: App, node: Node, place: Place, raw: Raw) -> None:
    async def run(name: str, count: int) -> None:
        kind = "failed" if name == "bad" else "completed"
        before = len(await raw.ids(kind))
        await py.mail.add_many([(name, n) for n in range(count)])
        await raw.until_count(kind, before + count)

    async def minutes_pass(minutes: int) -> None:
        for kind in ("completed", "failed"):
            if await raw("EXISTS", f"metrics:{kind}"):
                await raw("HINCRBY", f"metrics:{kind}", "prevTS", -60_000 * minutes)

    code = "if (job.name === 'bad') throw new Error('no')"
    await node.work("mail", code, metrics={"maxDataPoints": 60})
    await run("good", 3)
    await run("bad", 2)
    await node.run("await t.last.close()")
    await minutes_pass(2)
    async with place.working(consumer("mail", echo), metrics=60):
        await run("good", 4)
        await run("bad", 1)
        await minutes_pass(3)
        await run("good", 1)
    for kind, total, listed in (("completed", 8, ["0", "0", "4", "0", "3"]), ("failed", 3, ["0", "2"])):
        found = await raw("LRANGE", f"metrics:{kind}:data", 0, -1)
        seen = await node.run("return t.queue().getMetrics(kind)", kind=kind)
        assert (seen["meta"]["count"], [str(one) for one in seen["data"]], seen["count"]) == (total, found, len(found))
        assert found == listed
    metrics = await py.inspector.metrics("mail")
    assert (metrics.completed.total, metrics.completed.per_minute) == (8, (0, 0, 4, 0, 3))
    assert metrics.failed.total == 3


@pytest.mark.scenario(48)
async def test_workers_of_both_sides_are_listed_once(py: App, node: Node, place: Place, raw: Raw) -> None:
    names = "return (await t.queue().getWorkers()).map(one => one.rawname ?? one.name)"
    assert await node.run(names) == []
    async with place.working(consumer("mail", echo), worker_id="ada 1"):
        seen = await until(lambda: node.run(names), lambda seen: len(seen) > 0)
        assert [name.rpartition(":w:")[2] for name in seen] == ["ada1"]
        assert await node.run("return t.queue().getWorkersCount()") == 1
        # A connection that is cut is named again.
        await raw.send("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: node.run(names), lambda again: again == seen)
        await node.work("mail", "", name="grace")
        workers = await until(py.inspector.workers, lambda found: len(found) == 2)
        assert {worker.id if worker.version != "grace" else "grace" for worker in workers} == {"ada 1", "grace"}
        assert all(worker.queues == ("mail",) for worker in workers)
        await node.run("await t.last.close()")
    assert await until(lambda: node.run(names), lambda seen: not seen) == []
    assert await py.inspector.workers() == []


@pytest.mark.scenario(49)
async def test_versions_and_foreign_settings_disturb_nobody(
    py: App, node: Node, place: Place, raw: Raw, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await py.mail.add("send", 1)
    await raw("HSET", "meta", "wm:other", "1")
    assert await node.run("return t.queue().getVersion()") in {None, "bullmq:6.7.0"}
    meta = await node.run("return t.queue().getMeta()")
    assert meta["wm:other"] == "1"
    assert await node.run("return t.queue().getJobCounts('waiting')") == {"waiting": 1}
    await until(lambda: raw("HGET", "meta", "version"), lambda version: version == "bullmq:6.7.0")
    async with place.app():
        pass
    assert "A peer is" not in caplog.text
    for version, warned in (("bullmq:5.81.5", "A peer is bullmq:5.81.5: pausing"), ("bullmq:7.0.0", "7.0.0, which")):
        await raw("HSET", "meta", "version", version)
        async with place.working(consumer("mail", echo)) as app:
            await (await app.mail.add("send", 1)).result()
        assert warned in caplog.text


@pytest.mark.scenario(50)
async def test_a_short_stream_of_events_stays_short(py: App, node: Node, raw: Raw) -> None:
    await node.run("await t.queue('mail', {streams: {events: {maxLen: 100}}}).waitUntilReady()")
    await until(lambda: raw("HGET", "meta", "opts.maxLenEvents"), lambda cap: cap == "100")
    for _ in range(4):
        await py.mail.add_many([("send", n) for n in range(2_500)])
    # What one call appends is trimmed by the next.
    await py.mail.add("send", 1)
    assert await raw("XLEN", "events") <= 200
    assert (await py.inspector.settings("mail")).event_cap == 100
    [(last, _)] = await raw("XREVRANGE", "events", "+", "-", "COUNT", 1)
    missed = [(await py.mail.add("missed", n)).id for n in range(20)]
    await node.run("await t.listen('mail', {lastEventId: last})", last=last)
    seen = await until(
        lambda: node.run("return t.seen.filter(one => one.event === 'added').map(one => one.jobId)"),
        lambda seen: len(seen) >= 20,
    )
    assert seen == missed


FIVE = """
const five = t.require('bullmq5')
t.five ??= t.keep(new five.Queue('mail', t.options))
t.heard ??= t.keep(new five.QueueEvents('mail', t.options))
await t.heard.waitUntilReady()
"""


@pytest.mark.scenario(52)
async def test_producers_of_bullmq_5_are_served(py: App, node: Node, place: Place, raw: Raw) -> None:
    async with place.working(consumer("mail", echo), consumer("parents", echo)):
        found = await node.run(
            FIVE
            + """
            const jobs = [
              await t.five.add('plain', {n: 1}),
              await t.five.add('later', {n: 2}, {delay: 50}),
              await t.five.add('prior', {n: 3}, {priority: 4}),
              await t.five.add('own', {n: 4}, {jobId: 'own-4'}),
              ...(await t.five.addBulk([{name: 'bulk', data: {n: 5}},
                {name: 'bulk', data: {n: 6}, opts: {lifo: true}}])),
              await t.five.add('once', {n: 7}, {deduplication: {id: 'k', ttl: 60000}}),
            ]
            const values = await Promise.all(jobs.map(job => job.waitUntilFinished(t.heard, 10000)))
            const bad = await t.five.add('bad', {}, {attempts: 2, backoff: 20})
            const reason = await bad.waitUntilFinished(t.heard, 10000).catch(error => error.message)
            const flow = t.keep(new five.FlowProducer(t.options))
            const tree = await flow.add({name: 'whole', queueName: 'parents', data: 8,
              children: [{name: 'part', queueName: 'mail', data: 9}]})
            return {values, reason, states: await Promise.all(jobs.map(job => job.getState())), root: tree.job.id}
            """
        )
        assert [value["n"] for value in found["values"]] == [1, 2, 3, 4, 5, 6, 7]
        assert (found["reason"], set(found["states"])) == ("no", {"completed"})
        await raw.until_state(found["root"], "completed", "parents")
    assert await raw.story(found["root"], "parents") == [
        *("added", "waiting-children", "waiting<waiting-children", "active<waiting", "completed<active"),
    ]
    await node.run("await t.heard.close()")


@pytest.mark.scenario(52)
async def test_workers_of_bullmq_5_run_our_jobs(py: App, node: Node, raw: Raw) -> None:
    await node.run(
        "const five = t.require('bullmq5');"
        "const run = async job => { if (job.name === 'bad') throw new Error('no'); return job.data };"
        "t.keep(new five.Worker('mail', run, t.options))"
    )
    handles = [
        await py.mail.add("plain", {"n": 1}),
        await py.mail.add("later", {"n": 2}, delay="50ms"),
        await py.mail.add("prior", {"n": 3}, priority=4),
    ]
    assert [await handle.result() for handle in handles] == [{"n": 1}, {"n": 2}, {"n": 3}]
    bad = await py.mail.add("bad", {}, attempts=2)
    await raw.until_state(bad.id, "failed")
    assert json.loads((await raw.job(bad.id))["opts"]) == {"attempts": 2}


@pytest.mark.scenario(53)
async def test_a_pause_by_bullmq_5_loses_what_we_add_and_we_say_so(
    py: App, node: Node, place: Place, raw: Raw, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await node.run(FIVE + "await t.five.add('early', 1); await t.five.pause()")
    lost = (await py.mail.add("lost", 2)).id
    assert (await raw.ids("paused"), await raw.ids("wait")) == (["1"], [lost])
    await node.run("await t.five.resume()")
    # Its resume renames one list over the other: the known loss, and the reason for the warning.
    assert (await raw.ids("wait"), await raw.state(lost)) == (["1"], None)
    audit.accept(rf":mail:{lost}: a job in no state")

    async def told() -> bool:
        return "pausing a queue can lose jobs in a fleet with BullMQ 5" in caplog.text

    # At the start only some of a server's keys are looked at; whoever works on the queue is told for certain.
    async with place.working(consumer("mail", echo)):
        await until(told)
    await node.run("await t.heard.close()")


@pytest.mark.scenario(53)
async def test_our_resume_takes_back_what_bullmq_5_put_aside(py: App, node: Node, raw: Raw) -> None:
    await node.run(FIVE + "await t.five.add('early', 1); await t.five.pause(); await t.five.add('paused', 2)")
    kept = (await py.mail.add("kept", 3)).id
    await py.mail.resume()
    assert await raw.ids("wait") == [kept, "2", "1"]
    await node.run("await t.heard.close()")
