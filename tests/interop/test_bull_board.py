"""Bull Board reads a queue that we have filled, and acts on it; our Inspector is the judge of what it did."""

import json
from typing import Any

import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until_asleep
from workers_module import Backoff, Job, JobContext, flow_job

QUEUES = ["mail", "children"]


async def handle(job: Job[Any], context: JobContext) -> Any:
    """End as the name says."""
    await context.progress({"done": 50})
    context.log("begun")
    if job.name == "bad":
        raise RuntimeError("no luck")
    return {"sent": job.data}


async def ask(node: Node, method: str, path: str, **more: Any) -> Any:
    """Ask the board; the answer's body."""
    answer = await node.run(
        "return t.ask(queues, method, path, more)", queues=QUEUES, method=method, path=path, more=more
    )
    assert answer["status"] in {200, 204}, answer
    return answer["body"]


@pytest.fixture
async def ids(py: App, place: Place, raw: Raw) -> dict[str, str]:
    """Fill the queue with a job in each state, and return their ids."""
    found: dict[str, str] = {}
    async with place.working(consumer("mail", handle)):
        found["completed"] = (await py.mail.add("good", {"n": 1})).id
        found["failed"] = (await py.mail.add("bad", {"n": 2}, attempts=2, backoff=Backoff.fixed("10ms"))).id
        await raw.until_state(found["completed"], "completed")
        await raw.until_state(found["failed"], "failed")
    await py.mail.pause()
    found["waiting"] = (await py.mail.add("good", {"n": 3})).id
    found["prioritized"] = (await py.mail.add("good", {"n": 4}, priority=2)).id
    found["delayed"] = (await py.mail.add("good", {"n": 5}, delay="1h")).id
    children = [flow_job(("children", "part"), {"n": 7}), flow_job(("children", "part"), {"n": 8})]
    found["waiting-children"] = (await py.flows.add(flow_job(("mail", "whole"), {"n": 6}, children=children))).id
    start = await py.store.now() + 3_600_000
    tick = await py.mail.upsert_job_scheduler("tick", {"every": 3_600_000, "startDate": start}, {"data": {"n": 9}})
    found["tick"] = tick.id
    return found


async def test_the_board_lists_queues_and_jobs_by_state(py: App, node: Node, ids: dict[str, str]) -> None:
    counts = await py.inspector.counts("mail")
    for state in ("waiting", "prioritized", "delayed", "completed", "failed", "waiting-children"):
        body = await ask(node, "get", "/api/queues", query={"activeQueue": "mail", "status": state, "page": "1"})
        mail = next(one for one in body["queues"] if one["name"] == "mail")
        shown = {name: mail["counts"][name] for name in ("waiting", "prioritized", "delayed", "completed", "failed")}
        assert shown == {name: getattr(counts, name) for name in shown}
        assert (mail["counts"]["active"], mail["counts"]["waiting-children"], mail["isPaused"]) == (0, 1, True)
        assert ids[state] in {job["id"] for job in mail["jobs"]}
    assert {one["name"] for one in body["queues"]} == set(QUEUES)


async def test_the_board_shows_a_job_its_log_and_its_flow(py: App, node: Node, ids: dict[str, str]) -> None:
    body = await ask(node, "get", f"/api/queues/mail/{ids['failed']}")
    job = await py.inspector.get("mail", ids["failed"])
    assert job is not None
    shown = body["job"]
    assert (body["status"], shown["data"], shown["failedReason"], shown["attempts"]) == (
        "failed", {"n": 2}, job.error, job.attempt,
    )  # fmt: skip
    assert (shown["progress"], shown["stacktrace"]) == ({"done": 50}, [*reversed(job.traces)])
    assert shown["processedBy"] == job.record.worker
    body = await ask(node, "get", f"/api/queues/mail/{ids['completed']}")
    assert (body["status"], body["job"]["returnValue"], body["job"]["isFailed"]) == (
        "completed", {"sent": {"n": 1}}, False,
    )  # fmt: skip
    logs = await ask(node, "get", f"/api/queues/mail/{ids['completed']}/logs")
    assert logs == await py.inspector.logs("mail", ids["completed"])
    assert logs[0].endswith("begun")
    flow = await ask(node, "get", f"/api/queues/mail/{ids['waiting-children']}/flow")
    text = json.dumps(flow)
    for child in await py.inspector.children("mail", ids["waiting-children"]):
        assert child.id in text


async def test_the_board_acts_on_jobs(py: App, node: Node, ids: dict[str, str]) -> None:
    async def state(name: str) -> str | None:
        job = await py.inspector.get("mail", ids[name])
        return None if job is None else job.state

    await ask(node, "put", f"/api/queues/mail/{ids['failed']}/retry")
    assert await state("failed") == "waiting"
    await ask(node, "put", f"/api/queues/mail/{ids['delayed']}/promote")
    assert await state("delayed") == "waiting"
    await ask(node, "patch", f"/api/queues/mail/{ids['prioritized']}/priority", body={"priority": 7})
    job = await py.inspector.get("mail", ids["prioritized"])
    assert job is not None
    assert job.priority == 7
    await ask(node, "patch", f"/api/queues/mail/{ids['waiting']}/update-data", body={"jobData": {"n": 33}})
    job = await py.inspector.get("mail", ids["waiting"])
    assert job is not None
    assert job.data == {"n": 33}
    await ask(node, "put", f"/api/queues/mail/{ids['completed']}/clean")
    assert await state("completed") is None
    assert await py.inspector.verify("mail") == []


async def test_the_board_acts_on_a_queue(py: App, node: Node, place: Place, raw: Raw, ids: dict[str, str]) -> None:
    assert (await py.inspector.counts("mail")).paused == 2
    await ask(node, "put", "/api/queues/mail/resume")
    assert (await py.inspector.settings("mail")).paused is False
    await ask(node, "put", "/api/queues/mail/pause")
    assert (await py.inspector.settings("mail")).paused is True
    await ask(node, "put", "/api/queues/mail/retry/failed")
    assert (await py.inspector.counts("mail")).failed == 0
    # Bull Board spares what has ended within the last five seconds.
    await raw("ZINCRBY", "completed", -10_000, ids["completed"])
    await ask(node, "put", "/api/queues/mail/clean/completed")
    assert (await py.inspector.counts("mail")).completed == 0
    await ask(node, "put", "/api/queues/mail/promote")
    counts = await py.inspector.counts("mail")
    assert counts.delayed == 0
    async with place.working(consumer("mail", handle), consumer("children", handle)):
        await ask(node, "put", "/api/queues/mail/resume")
        await raw.until_state(ids["waiting-children"], "completed")
        await raw.until_state(ids["tick"], "completed")
        await until_asleep(raw)
        workers = await ask(node, "get", "/api/queues/mail/workers")
        assert len(workers["workers"]) == 1


async def test_the_board_runs_a_schedule_now(py: App, node: Node, ids: dict[str, str]) -> None:
    body = await ask(node, "get", "/api/job-schedulers")
    assert [one["name"] if "name" in one else one["key"] for one in body["schedulers"]] == ["tick"]
    before = {job.id for job in (await py.inspector.page("mail", "waiting")).items}  # type: ignore[arg-type]
    await ask(node, "put", "/api/queues/mail/job-schedulers/tick/run")
    after = {job.id: job for job in (await py.inspector.page("mail", "waiting")).items}  # type: ignore[arg-type]
    [made] = after.keys() - before
    assert after[made].data == {"n": 9}
    [record] = await py.inspector.schedules("mail")
    assert record.job_state == "delayed"
    await ask(node, "put", "/api/queues/mail/job-schedulers/tick/remove")
    assert await py.inspector.schedules("mail") == []
