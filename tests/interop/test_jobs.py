"""Scenarios 1 to 7 and 12, 13: a job and its data from one side to the other."""

import json
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until, until_asleep
from workers_module import Backoff, Job, JobContext

VALUES: dict[str, Any] = {
    "text": 'Grüße, 世界 \u2028 \\ " / \x7f',
    "emoji": "🦆👩‍👩‍👧",
    "nested": {"a": [{"b": {"c": [[], {}]}}]},
    "null": None,
    "empty": [],
    "blank": "",
    "zero": 0,
    "no": False,
    "large": 2**53 - 1,
    "negative": -1.5,
}


@pytest.mark.scenario(1)
async def test_our_plain_job_runs_at_node(py: App, node: Node, raw: Raw) -> None:
    await node.work("mail", "return {echo: job.data, name: job.name, opts: job.opts}")
    data = {"to": "ada@example.org", "n": [1, 2]}
    handle = await py.mail.add("welcome", data, attempts=3, backoff=Backoff.fixed("1s"))
    assert await handle.result() == {
        "echo": data,
        "name": "welcome",
        "opts": {"attempts": 3, "backoff": {"type": "fixed", "delay": 1000}},
    }
    seen = await node.run(
        "const job = await t.queue().getJob(id);"
        "const {returnvalue: value, attemptsMade: made, attemptsStarted: began} = job;"
        "return {state: await job.getState(), value, made, began}",
        id=handle.id,
    )
    assert seen == {"state": "completed", "value": await handle.result(), "made": 1, "began": 1}
    found = await raw.job(handle.id)
    assert (found["atm"], found["ats"]) == ("1", "1")


@pytest.mark.scenario(2)
async def test_a_plain_job_of_node_runs_here(place: Place, node: Node, raw: Raw, py: App) -> None:
    seen: list[Job[Any]] = []

    async def handle(job: Job[Any], _: JobContext) -> Any:
        seen.append(job)
        return {"echo": job.data}

    data = {"to": "ada@example.org", "n": [1, 2]}
    async with place.working(consumer("mail", handle)):
        found = await node.run(
            "const events = await t.listen('mail');"
            "const job = await t.queue().add('welcome', data, {attempts: 3, backoff: 1000});"
            "const value = await job.waitUntilFinished(events, 10000);"
            "return {id: job.id, value, state: await job.getState()}",
            data=data,
        )
    assert (found["value"], found["state"]) == ({"echo": data}, "completed")
    [job] = seen
    assert (job.id, job.name, job.data, job.attempts) == (found["id"], "welcome", data, 3)
    assert job.options == {"attempts": 3, "backoff": {"type": "fixed", "delay": 1000}}
    stored = await raw.job(found["id"])
    assert (stored["atm"], stored["ats"]) == ("1", "1")


@pytest.mark.scenario(3)
async def test_every_kind_of_data_reaches_node_as_it_is(py: App, node: Node) -> None:
    values = {**VALUES, "all": VALUES}
    ids = {name: (await py.mail.add("echo", value)).id for name, value in values.items()}
    seen = await node.run(
        "const found = {};"
        "for (const [name, id] of Object.entries(ids)) found[name] = (await t.queue().getJob(id)).data;"
        "return found",
        ids=ids,
    )
    assert seen == values
    assert {name: type(value) for name, value in seen.items()} == {name: type(value) for name, value in values.items()}


@pytest.mark.scenario(4)
async def test_missing_data_of_node_is_an_empty_object_or_none(py: App, node: Node) -> None:
    missing, null = await node.run(
        "return [(await t.queue().add('a', undefined)).id, (await t.queue().add('a', null)).id]"
    )
    found = [await py.inspector.get("mail", id) for id in (missing, null)]
    assert [job.data for job in found if job is not None] == [{}, None]


@pytest.mark.scenario(5)
async def test_every_kind_of_result_reaches_listeners_at_node(py: App, node: Node, place: Place) -> None:
    async def handle(job: Job[Any], _: JobContext) -> Any:
        return job.data

    await node.run("await t.listen('mail')")
    values = [None, {"a": [1, {"b": None}]}, [1, "2"], "text ✓", True, 0, []]
    async with place.working(consumer("mail", handle)):
        handles = [await py.mail.add("echo", value) for value in values]
        wanted = {handle.id: value for handle, value in zip(handles, values, strict=True)}
        completed = await until(
            lambda: node.run("return t.seen.filter(one => one.event === 'completed')"),
            lambda seen: len(seen) == len(values),
        )
    assert {one["jobId"]: one["returnvalue"] for one in completed} == wanted
    assert await node.run("return t.errors") == []


@pytest.mark.scenario(6)
async def test_results_that_are_no_json_fail_the_job_and_no_listener(
    py: App, node: Node, place: Place, raw: Raw
) -> None:
    results: list[tuple[Any, str]] = [
        (float("nan"), "nan"),
        (datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
        ({1, 2}, "set"),
        (object(), "object"),
        ({"a": float("inf")}, "inf"),
    ]

    async def handle(job: Job[Any], _: JobContext) -> Any:
        if job.data is None:
            return "well"
        at: int = job.data
        return results[at][0]

    await node.run("await t.listen('mail')")
    async with place.working(consumer("mail", handle)):
        bad = [(await py.mail.add("bad", n, attempts=3)).id for n in range(len(results))]
        good = await py.mail.add("good", None)
        assert await good.result() == "well"
        ends: list[dict[str, Any]] = await until(
            lambda: node.run("return t.seen.filter(one => one.event === 'completed' || one.event === 'failed')"),
            lambda seen: len(seen) == len(bad) + 1,
        )
    reasons = {one["jobId"]: one.get("failedReason", "") for one in ends}
    for id, (_, word) in zip(bad, results, strict=True):
        assert word in reasons[id]
        assert (await raw.job(id))["atm"] == "1"
    assert ends[-1] == {"event": "completed", "jobId": good.id, "returnvalue": "well", "prev": "active"}
    assert await node.run("return t.errors") == []


@pytest.mark.scenario(7)
async def test_our_delayed_job_wakes_a_sleeping_worker_of_node(py: App, node: Node, raw: Raw) -> None:
    await node.work("mail", "return Date.now()", drainDelay=10)
    await until_asleep(raw)
    handle = await py.mail.add("later", None, delay="500ms")
    # A worker that was not woken would sleep for ten seconds.
    ran = await handle.result("8s")
    due = int((await raw.job(handle.id))["timestamp"]) + 500
    assert ran >= due
    story = [entry for entry in await raw.events() if entry.get("jobId") == handle.id]
    assert [entry["event"] for entry in story] == ["added", "delayed", "waiting", "active", "completed"]
    assert (story[1]["delay"], story[2]["prev"]) == (str(due), "delayed")


@pytest.mark.scenario(8)
async def test_a_delayed_job_of_node_wakes_our_sleeping_worker(place: Place, node: Node, raw: Raw) -> None:
    async def handle(job: Job[Any], _: JobContext) -> None:
        return None

    async with place.working(consumer("mail", handle)):
        await until_asleep(raw)
        began = await node.run("return (await t.queue().add('later', {}, {delay: 500})).id")
        # A worker that polled would be asleep for ten seconds.
        with anyio.fail_after(5):
            await raw.until_state(began, "completed")
    story = [entry for entry in await raw.events() if entry.get("jobId") == began]
    assert [entry["event"] for entry in story] == ["added", "delayed", "waiting", "active", "completed"]
    stored = await raw.job(began)
    assert int(stored["processedOn"]) >= int(stored["timestamp"]) + 500
    assert json.loads(stored["opts"])["delay"] == 500


@pytest.mark.scenario(12)
@pytest.mark.parametrize("first", ["py", "node"])
async def test_an_id_taken_by_the_other_side_makes_no_second_job(py: App, node: Node, raw: Raw, first: str) -> None:
    add = "const job = await t.queue().add('send', {by: 'node'}, {jobId: 'order-1'}); return job.id"
    ids: list[str] = []
    for side in ("py", "node") if first == "py" else ("node", "py"):
        if side == "py":
            handle = await py.mail.add("send", {"by": "py"}, job_id="order-1")
            assert handle.deduplicated is (first == "node")
            ids.append(handle.id)
        else:
            ids.append(await node.run(add))
    assert ids == ["order-1", "order-1"]
    assert json.loads((await raw.job("order-1"))["data"]) == {"by": first}
    assert await raw.ids("wait") == ["order-1"]
    assert await raw.story("order-1") == ["added", "waiting", "duplicated"]
    # Every attempt counts, also one with an id of its own.
    assert await raw("GET", "id") == "2"


@pytest.mark.scenario(13)
async def test_both_sides_draw_ids_from_one_counter(py: App, node: Node, raw: Raw) -> None:
    ours: list[str] = []

    async def add() -> None:
        for n in range(25):
            ours.append((await py.mail.add("one", n)).id)
            ours.extend(handle.id for handle in await py.mail.add_many([("many", m) for m in range(9)]))

    theirs: list[str] = []

    async def add_there() -> None:
        theirs.extend(
            await node.run(
                "const ids = [];"
                "for (let n = 0; n < 25; n++) {"
                "  ids.push((await t.queue().add('one', n)).id);"
                "  const bulk = Array.from({length: 9}, (_, m) => ({name: 'many', data: m}));"
                "  ids.push(...(await t.queue().addBulk(bulk)).map(job => job.id));"
                "}"
                "return ids"
            )
        )

    async with anyio.create_task_group() as group:
        for task in (add, add, add_there, add_there):
            group.start_soon(task)
    ids = [int(id) for id in (*ours, *theirs)]
    assert sorted(ids) == list(range(1, 1_001))
    assert await raw("GET", "id") == "1000"
    # First added, first started: the list grows at its head.
    assert await raw.ids("wait") == [str(n) for n in range(1_000, 0, -1)]
