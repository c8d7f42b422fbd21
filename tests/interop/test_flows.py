"""Scenarios 38 to 40: parents and children on different sides."""

import json
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw, until
from workers_module import Job, JobContext, ParentRef, flow_job
from workers_module.job.outcome import Completed, Failed, WaitChildren
from workers_module.job.record import Token
from workers_module.store.values import Held, Settle, SettleCode, Step

TREE = """
const leaf = n => ({name: 'part', queueName: 'children', data: n})
const children = [
  {name: 'middle', queueName: 'children', data: 10, children: [leaf(1), leaf(2)]},
  leaf(3),
]
return (await t.flow().add({name: 'whole', queueName: 'parents', data: 100, children})).job.id
"""
SUM = """
const values = Object.values(await job.getChildrenValues())
return job.data + values.reduce((sum, value) => sum + value, 0)
"""


async def add_sum(job: Job[Any], context: JobContext) -> int:
    """Return the payload and what the children returned, added up."""
    values: list[int] = await context.children_values()
    return int(job.data) + sum(values)


@pytest.mark.scenario(38)
@pytest.mark.parametrize("producer", ["py", "node"])
@pytest.mark.parametrize("parents", ["py", "node"])
async def test_a_tree_is_worked_on_by_both_sides(
    py: App, node: Node, place: Place, raw: Raw, producer: str, parents: str
) -> None:
    if producer == "node":
        root = await node.run(TREE)
    else:
        leaves = [flow_job(("children", "part"), n) for n in (1, 2)]
        middle = flow_job(("children", "middle"), 10, children=leaves)
        whole = flow_job(("parents", "whole"), 100, children=[middle, flow_job(("children", "part"), 3)])
        root = (await py.flows.add(whole)).id

    def tree(one: dict[str, Any]) -> tuple[str, list[Any]]:
        return one["job"]["name"], sorted(tree(child) for child in one.get("children", []))

    async def seen_by_node() -> tuple[str, list[Any]]:
        shape = (
            "const plain = one => ({job: {name: one.job.name}, children: (one.children ?? []).map(plain)});"
            "return plain(await t.flow().getFlow({id: root, queueName: 'parents'}))"
        )
        return tree(await node.run(shape, root=root))

    full: Any = ("whole", [("middle", [("part", []), ("part", [])]), ("part", [])])
    assert await seen_by_node() == full
    async with AsyncExitStack() as stack:
        if parents == "py":
            await node.work("children", SUM)
            await stack.enter_async_context(place.working(consumer("parents", add_sum)))
        else:
            await node.work("parents", SUM)
            await stack.enter_async_context(place.working(consumer("children", add_sum)))
        await raw.until_state(root, "completed", "parents")
    found = await raw.job(root, "parents")
    assert (found["returnvalue"], found["ats"]) == ("116", "1")
    assert await raw.story(root, "parents") == [
        *("added", "waiting-children", "waiting<waiting-children", "active<waiting", "completed<active"),
    ]
    assert await seen_by_node() == full
    children = await py.inspector.children("parents", root)
    assert sorted(json.loads(child.value or b"") for child in children) == [3, 13]


BAD = "if (job.name === 'bad' && job.attemptsStarted === 1) throw new Error('no luck'); return 'good'"
POLICIES = {"fpof": "fail_parent", "cpof": "continue_parent", "idof": "ignore", "rdof": "remove"}
LONG = {
    "fpof": "failParentOnFailure",
    "cpof": "continueParentOnFailure",
    "idof": "ignoreDependencyOnFailure",
    "rdof": "removeDependencyOnFailure",
}


@pytest.mark.scenario(39)
@pytest.mark.parametrize(
    ("producer", "policy"),
    # Ours says always what a child's failure means; Node may leave it open.
    [("node", "none"), *((side, policy) for side in ("py", "node") for policy in POLICIES)],
)
@pytest.mark.parametrize("parents", ["py", "node"])
async def test_a_failed_child_means_the_same_to_both_sides(
    py: App, node: Node, place: Place, raw: Raw, producer: str, policy: str, parents: str
) -> None:
    if producer == "node":
        root = await node.run(
            "const children = [{name: 'bad', queueName: 'children', opts},"
            " {name: 'good', queueName: 'children', opts: {...opts, delay: 3600000}}];"
            "return (await t.flow().add({name: 'whole', queueName: 'parents', children})).job.id",
            opts={LONG[policy]: True} if policy != "none" else {},
        )
    else:
        kind: Any = POLICIES[policy]
        bad = flow_job(("children", "bad"), on_failure=kind)
        good = flow_job(("children", "good"), on_failure=kind, delay="1h")
        root = (await py.flows.add(flow_job(("parents", "whole"), children=[bad, good]))).id
    [bad_id], [good_id] = await raw.ids("wait", "children"), await raw.ids("delayed", "children")
    bad_key, good_key = raw.key(bad_id, "children"), raw.key(good_id, "children")
    parent = await raw.job(bad_id, "children")
    assert json.loads(parent["parent"]) == {
        "id": root,
        "queueKey": f"{raw.prefix}:parents",
        **({policy: True} if policy != "none" else {}),
    }
    assert json.loads(parent["opts"])["parent"] == {"id": root, "queue": f"{raw.prefix}:parents"}
    ran: list[str] = []
    over = anyio.Event()

    async def child(job: Job[Any], _: JobContext) -> str:
        if job.name == "bad" and job.fence == 1:
            raise RuntimeError("no luck")
        return "good"

    async def whole(job: Job[Any], _: JobContext) -> str:
        ran.append(job.id)
        await over.wait()
        return "done"

    async with AsyncExitStack() as stack:
        if parents == "py":
            await node.work("children", BAD)
            await stack.enter_async_context(place.working(consumer("parents", whole)))
        else:
            await node.work("parents", "await t.gate('over').passed; return 'done'")
            await stack.enter_async_context(place.working(consumer("children", child)))
        await raw.until_state(bad_id, "failed", "children")
        if policy == "fpof":
            await raw.until_state(root, "failed", "parents")
        elif policy == "cpof":
            # It runs at once; only ending has to wait for the other child.
            await raw.until_state(root, "active", "parents")
        else:
            assert await raw.state(root, "parents") == "waiting-children"
        pending = {bad_key, good_key} if policy == "none" else {good_key}
        assert set(await raw("SMEMBERS", f"{root}:dependencies", queue="parents")) == pending
        await py.queue("children").promote(good_id)
        await raw.until_state(good_id, "completed", "children")
        assert await raw("HGETALL", f"{root}:processed", queue="parents") == {good_key: '"good"'}
        if policy == "none":
            # Run again, and well this time, the child sets its parent free.
            assert await raw.state(root, "parents") == "waiting-children"
            await py.queue("children").retry(bad_id)
        over.set()
        await node.run("t.gate('over').open()")
        if policy != "fpof":
            await raw.until_state(root, "completed", "parents")
        ran += [one["id"] for one in await node.ran() if one["queue"] == "parents"]
    assert ran == ([] if policy == "fpof" else [root])
    noted: dict[str, str] = await raw("HGETALL", f"{root}:failed", queue="parents")
    assert noted == ({bad_key: "no luck"} if policy in {"cpof", "idof"} else {})
    unsuccessful = await raw("ZRANGE", f"{root}:unsuccessful", 0, -1, queue="parents")
    assert unsuccessful == ([bad_key] if policy == "fpof" else [])
    found = await raw.job(root, "parents")
    assert "defa" not in found
    if policy == "fpof":
        assert found["failedReason"] == f"child {bad_key} failed"


async def take(py: App, queue: str) -> Held:
    """Take the next job of a queue."""
    reply = await py.store.step(Step(queue=queue, worker="hand", token=Token("hand"), take=1, lease_ms=60_000))
    return reply.jobs[0].held


async def end(py: App, queue: str, held: Held, outcome: Any) -> SettleCode:
    """End a job that was taken."""
    step = Step(queue=queue, worker="hand", token=Token("end"), outcomes=[Settle(held, outcome)])
    return (await py.store.step(step)).settled[0]


@pytest.mark.scenario(40)
async def test_our_running_job_waits_for_a_child_of_node(py: App, node: Node, raw: Raw) -> None:
    root = (await py.queue("parents").add("whole", {})).id
    held = await take(py, "parents")
    assert await end(py, "parents", held, WaitChildren()) is SettleCode.NOTHING_PENDING
    await node.run(
        "await t.queue('children').add('part', 7, {parent: {id: root, queue: `${t.prefix}:parents`}})", root=root
    )
    # It may not end while the child has not.
    assert await end(py, "parents", held, Completed(b"1")) is SettleCode.PENDING
    assert await end(py, "parents", held, WaitChildren()) is SettleCode.OK
    assert await raw.state(root, "parents") == "waiting-children"
    assert (await raw.story(root, "parents"))[-1] == "waiting-children<active"
    await node.work("children", "return job.data")
    await raw.until_state(root, "wait", "parents")
    held = await take(py, "parents")
    [child] = await py.inspector.children("parents", root)
    assert (child.state, child.value) == ("processed", b"7")
    assert await end(py, "parents", held, Completed(b"1")) is SettleCode.OK
    assert "atm" in await raw.job(root, "parents")
    assert (await raw.job(root, "parents"))["ats"] == "2"


@pytest.mark.scenario(40)
async def test_our_running_job_learns_of_a_failed_child_of_node(py: App, node: Node, raw: Raw) -> None:
    await py.queue("parents").add("whole", {})
    held = await take(py, "parents")
    await node.work("children", "throw new Error('no')")
    child = await py.queue("children").add("part", {}, parent=ParentRef("parents", held.id), on_failure="fail_parent")
    await raw.until_state(child.id, "failed", "children")
    assert await end(py, "parents", held, WaitChildren()) is SettleCode.CHILD_FAILED
    assert await end(py, "parents", held, Completed(b"1")) is SettleCode.CHILD_FAILED
    assert (await raw.job(held.id, "parents"))["defa"] == f"child {raw.key(child.id, 'children')} failed"
    assert await end(py, "parents", held, Failed("a child failed")) is SettleCode.OK
    assert "defa" not in await raw.job(held.id, "parents")


@pytest.mark.scenario(40)
async def test_a_running_job_of_node_waits_for_our_child(py: App, node: Node, place: Place, raw: Raw) -> None:
    release = anyio.Event()

    async def handle(job: Job[Any], _: JobContext) -> int:
        await release.wait()
        return 7

    await node.work(
        "parents",
        "if (job.attemptsStarted === 1) {"
        "  await t.gate('added').passed;"
        "  if (await job.moveToWaitingChildren(token)) throw new t.bullmq.WaitingChildrenError()"
        "}"
        "return Object.values(await job.getChildrenValues())",
    )
    async with place.working(consumer("children", handle)):
        root = await py.queue("parents").add("whole", {})
        await raw.until_state(root.id, "active", "parents")
        await py.queue("children").add("part", {}, parent=ParentRef("parents", root.id))
        await node.run("t.gate('added').open()")
        await raw.until_state(root.id, "waiting-children", "parents")
        release.set()
        assert await root.result() == [7]
    await until(lambda: raw.story(root.id, "parents"), lambda story: story[-1] == "completed<active")
