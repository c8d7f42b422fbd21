"""Scenarios 33 to 35: what one side does to the jobs and queues of the other."""

from typing import Any

import pytest

from tests.interop.apps import App
from tests.interop.peer import Node, NodeError
from tests.interop.raw import Raw
from workers_module import IllegalMoveError, JobNotFoundError, flow_job
from workers_module.job.outcome import Completed, Failed, Outcome
from workers_module.job.record import Token
from workers_module.store.values import EditResult, Held, JobPatch, Settle, Step

STATES = ("wait", "prioritized", "delayed", "active", "completed", "failed", "waiting-children")
OPERATIONS = ("data", "delay", "priority", "promote", "retry", "remove")
ALLOWED: dict[str, tuple[str, ...]] = {
    "data": STATES,
    "delay": ("delayed",),
    "priority": STATES,
    "promote": ("delayed",),
    "retry": ("completed", "failed"),
    "remove": tuple(state for state in STATES if state != "active"),
}


async def take(py: App) -> Held:
    """Take the next job by hand."""
    reply = await py.store.step(Step(queue="mail", worker="hand", token=Token("hand"), take=1, lease_ms=60_000))
    return reply.jobs[0].held


async def ours_in(py: App, state: str) -> str:
    """Bring a job of ours into a state."""
    match state:
        case "prioritized":
            return (await py.mail.add("send", 1, priority=3)).id
        case "delayed":
            return (await py.mail.add("send", 1, delay="1h")).id
        case "waiting-children":
            child = flow_job(("children", "part"), 1, delay="1h")
            return (await py.flows.add(flow_job(("mail", "send"), 1, children=[child]))).id
        case _:
            id = (await py.mail.add("send", 1)).id
    if state != "wait":
        held = await take(py)
        ends: dict[str, Outcome] = {"completed": Completed(b"1"), "failed": Failed("no", b'["no"]')}
        outcome = ends.get(state)
        if outcome is not None:
            await py.store.step(Step(queue="mail", worker="hand", token=Token("end"), outcomes=[Settle(held, outcome)]))
    return id


THEIRS = """
const queue = t.queue()
t.hand ??= t.keep(new t.bullmq.Worker('mail', null, {...t.options, autorun: false, lockDuration: 60000}))
if (state === 'prioritized') return (await queue.add('send', 1, {priority: 3})).id
if (state === 'delayed') return (await queue.add('send', 1, {delay: 3600000})).id
if (state === 'waiting-children') {
  const children = [{name: 'part', queueName: 'children', data: 1, opts: {delay: 3600000}}]
  return (await t.flow().add({name: 'send', queueName: 'mail', data: 1, children})).job.id
}
const {id} = await queue.add('send', 1)
if (state !== 'wait') {
  const job = await t.hand.getNextJob('hand')
  if (state === 'completed') await job.moveToCompleted(1, 'hand', false)
  if (state === 'failed') await job.moveToFailed(new Error('no'), 'hand', false)
}
return id
"""
ACT = """
const job = await t.queue().getJob(id)
if (operation === 'data') await job.updateData({x: 1})
if (operation === 'delay') await job.changeDelay(7200000)
if (operation === 'priority') await job.changePriority({priority: 9})
if (operation === 'promote') await job.promote()
if (operation === 'retry') await job.retry(state === 'completed' ? 'completed' : 'failed')
if (operation === 'remove') await job.remove()
"""


async def act_here(py: App, operation: str, id: str) -> bool:
    """Do something to a job from our side; whether that was allowed."""
    patches = {
        "data": JobPatch(id=id, data=b'{"x":1}'),
        "delay": JobPatch(id=id, delay_ms=7_200_000),
        "priority": JobPatch(id=id, priority=9),
    }
    if operation in patches:
        [result] = await py.store.edit("mail", [patches[operation]])
        assert result in {EditResult.OK, EditResult.WRONG_STATE}
        return result is EditResult.OK
    moves = {"promote": py.mail.promote, "retry": py.mail.retry, "remove": py.mail.remove}
    try:
        await moves[operation](id)
    except IllegalMoveError:
        return False
    return True


async def act_there(node: Node, operation: str, id: str, state: str) -> bool:
    """The same from Node."""
    answer = await node.run(
        f"try {{ {ACT}; return null }} catch (error) {{ return [error.code ?? null, error.message] }}",
        operation=operation,
        id=id,
        state=state,
    )
    if answer is None:
        return True
    code, message = answer
    assert code == -3 or "locked" in message, answer
    return False


@pytest.mark.scenario(33)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("actor", ["py", "node"])
async def test_one_side_changes_the_jobs_of_the_other(py: App, node: Node, raw: Raw, actor: str, state: str) -> None:
    for operation in OPERATIONS:
        id: str = await ours_in(py, state) if actor == "node" else await node.run(THEIRS, state=state)
        before = await raw.job(id)
        assert await raw.state(id) == state
        done = await (act_here(py, operation, id) if actor == "py" else act_there(node, operation, id, state))
        assert done is (state in ALLOWED[operation]), operation
        after = await raw.job(id)
        if not done:
            assert (after, await raw.state(id)) == (before, state)
            await finish(py, raw, id)
            continue
        match operation:
            case "data":
                assert (after.pop("data"), after) == ('{"x":1}', {k: v for k, v in before.items() if k != "data"})
            case "delay":
                due = int(float(await raw("ZSCORE", "delayed", id))) // 4096
                assert after["delay"] == "7200000"
                assert (await raw.events())[-1] == {"event": "delayed", "jobId": id, "delay": str(due)}
            case "priority":
                assert after["priority"] == "9"
                assert await raw.state(id) == ("prioritized" if state == "wait" else state)
            case "promote":
                assert (after["delay"], await raw.state(id)) == ("0", "wait")
                assert (await raw.story(id))[-1] == "waiting<delayed"
            case "retry":
                assert await raw.state(id) == "wait"
                gone = {"finishedOn", "processedOn", "returnvalue" if state == "completed" else "failedReason"}
                assert before.keys() - after.keys() == gone
                assert (after["atm"], after["ats"]) == ("1", "1")
                assert (await raw.story(id))[-1] == f"waiting<{state}"
            case _:
                assert (after, await raw.state(id)) == ({}, None)
                # Node removes the children first, which sets their parent free for a moment.
                last = "wait" if actor == "node" and state == "waiting-children" else state
                assert (await raw.story(id))[-1] == f"removed<{last}"
        await finish(py, raw, id)


async def finish(py: App, raw: Raw, id: str) -> None:
    """Leave nothing in the way of the next job."""
    if await raw.state(id) == "active":
        await raw("DEL", f"{id}:lock")
        await raw("LREM", "active", 0, id)
        await raw("DEL", id)
    elif await raw.state(id) is not None:
        await py.mail.remove(id)


@pytest.mark.scenario(33)
async def test_what_is_not_there_is_told_alike(py: App, node: Node) -> None:
    [result] = await py.store.edit("mail", [JobPatch(id="none", data=b"1")])
    assert result is EditResult.MISSING
    for call in (py.mail.promote, py.mail.retry, py.mail.remove):
        with pytest.raises(JobNotFoundError):
            await call("none")
    # Node removes what is not there without a word; its other calls begin with the job itself.
    assert await node.run("return t.queue().remove('none')") == 1
    with pytest.raises(NodeError) as caught:
        await node.run("const job = await t.queue().add('send', 1); await job.remove(); await job.updateData(2)")
    assert caught.value.code == -1


@pytest.mark.scenario(34)
async def test_a_running_job_is_not_removed_by_the_other_side(py: App, node: Node, raw: Raw) -> None:
    await node.work("mail", "await t.gate('go').passed; return 'theirs'")
    handle = await py.mail.add("send", {})
    await raw.until_state(handle.id, "active")
    with pytest.raises(IllegalMoveError):
        await py.mail.remove(handle.id)
    await node.run("t.gate('go').open()")
    assert await handle.result() == "theirs"


@pytest.mark.scenario(34)
async def test_our_running_job_is_not_removed_by_node(py: App, node: Node, raw: Raw) -> None:
    id = await ours_in(py, "active")
    assert await node.run("return t.queue().remove(id)", id=id) == 0
    with pytest.raises(NodeError, match="locked"):
        await node.run("await (await t.queue().getJob(id)).remove()", id=id)
    assert await raw.state(id) == "active"
    held = Held(id, Token("hand"), 1)
    reply = await py.store.step(
        Step(queue="mail", worker="hand", token=Token("end"), outcomes=[Settle(held, Completed(b"1"))])
    )
    assert reply.settled == ["ok"]


FILL = """
const queue = t.queue(), flow = t.flow()
const hand = t.keep(new t.bullmq.Worker('mail', null, {...t.options, autorun: false, lockDuration: 60000}))
for (const state of ['completed', 'completed', 'failed', 'failed']) {
  await queue.add('send', 1)
  const job = await hand.getNextJob('hand')
  if (state === 'completed') await job.moveToCompleted(1, 'hand', false)
  else await job.moveToFailed(new Error('no'), 'hand', false)
}
await queue.addBulk([1, 2, 3].map(data => ({name: 'plain', data})))
await queue.addBulk([1, 2].map(data => ({name: 'prior', data, opts: {priority: 2}})))
await queue.addBulk([1, 2].map(data => ({name: 'later', data, opts: {delay: 3600000}})))
await queue.add('single', 1, {deduplication: {id: 'one'}})
await queue.upsertJobScheduler('tick', {every: 3600000, startDate: Date.now() + 3600000})
await flow.add({name: 'here', queueName: 'mail', children: [{name: 'part', queueName: 'mail'}]})
await flow.add({name: 'there', queueName: 'parents', children: [{name: 'part', queueName: 'mail'}]})
"""


async def fill_here(py: App) -> None:
    """The same as `FILL`, by our side."""
    for outcome in (Completed(b"1"), Completed(b"1"), Failed("no"), Failed("no")):
        await py.mail.add("send", 1)
        held = await take(py)
        await py.store.step(Step(queue="mail", worker="hand", token=Token("end"), outcomes=[Settle(held, outcome)]))
    await py.mail.add_many([("plain", n) for n in (1, 2, 3)])
    await py.mail.add_many([("prior", n, {"priority": 2}) for n in (1, 2)])
    await py.mail.add_many([("later", n, {"delay": "1h"}) for n in (1, 2)])
    await py.mail.add("single", 1, {"deduplication": {"id": "one"}})
    start = await py.store.now() + 3_600_000
    await py.mail.upsert_job_scheduler("tick", {"every": 3_600_000, "startDate": start})
    await py.flows.add(flow_job(("mail", "here"), children=[flow_job(("mail", "part"))]))
    await py.flows.add(flow_job(("parents", "there"), children=[flow_job(("mail", "part"))]))


FULL = {
    "wait": 6, "prioritized": 2, "delayed": 3, "completed": 2, "failed": 2, "waiting-children": 1, "there": "parked",
}  # fmt: skip


async def survey(raw: Raw) -> dict[str, Any]:
    """Return how many jobs are where."""
    found: dict[str, Any] = {state: len(await raw.ids(state)) for state in FULL if state != "there"}
    parents = [await raw.ids(state, "parents") for state in ("waiting-children", "wait")]
    found["there"] = "parked" if parents[0] else "ready" if parents[1] else "gone"
    return found


@pytest.mark.scenario(35)
@pytest.mark.parametrize(
    ("here", "there", "changed", "cleaned"),
    [
        pytest.param(
            "drain", "await t.queue().drain()",
            {"wait": 0, "prioritized": 0, "waiting-children": 0, "there": "ready"}, None, id="drain",
        ),
        pytest.param(
            "drain-delayed", "await t.queue().drain(true)",
            {"wait": 0, "prioritized": 0, "waiting-children": 0, "there": "ready", "delayed": 1}, None,
            id="drain-delayed",
        ),
        pytest.param("clean completed", "completed", {"completed": 0}, 2, id="completed"),
        pytest.param("clean failed", "failed", {"failed": 0}, 2, id="failed"),
        pytest.param("clean delayed", "delayed", {"delayed": 1}, 2, id="delayed"),
        pytest.param("clean prioritized", "prioritized", {"prioritized": 0}, 2, id="prioritized"),
        pytest.param(
            "clean waiting", "wait", {"wait": 0, "waiting-children": 0, "there": "ready"}, 6, id="waiting",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("actor", ["py", "node"])
async def test_emptying_leaves_the_same_whoever_does_it(
    py: App, node: Node, raw: Raw, actor: str, here: str, there: str, changed: dict[str, Any], cleaned: int | None
) -> None:
    if actor == "node":
        await fill_here(py)
    else:
        await node.run(FILL)
    assert await survey(raw) == FULL
    assert await raw("GET", "de:one") is not None
    past = await py.store.now()
    while await py.store.now() <= past:
        pass
    if actor == "py":
        match here.split():
            case ["drain"]:
                await py.mail.drain()
            case ["drain-delayed"]:
                await py.mail.drain(delayed=True)
            case [_, state]:
                assert len(await py.mail.clean("0s", state)) == cleaned  # type: ignore[arg-type]
            case _:
                raise AssertionError(here)
    elif cleaned is None:
        await node.run(there)
    else:
        assert len(await node.run("return t.queue().clean(0, 1000, state)", state=there)) == cleaned
    assert await survey(raw) == FULL | changed
    assert (await raw("GET", "de:one") is None) is ("wait" in changed)
    last = (await raw.events())[-1]
    assert (last == {"event": "cleaned", "count": str(cleaned)}) is (cleaned is not None)


@pytest.mark.scenario(35)
@pytest.mark.parametrize("actor", ["py", "node"])
async def test_obliterating_leaves_nothing(py: App, node: Node, raw: Raw, actor: str) -> None:
    if actor == "node":
        await fill_here(py)
        await take(py)
        with pytest.raises(NodeError, match="active"):
            await node.run("await t.queue().pause(); await t.queue().obliterate()")
        await node.run("await t.queue().obliterate({force: true})")
    else:
        await node.run(FILL)
        await take(py)
        await node.run("await t.queue().rateLimit(60000)")
        with pytest.raises(IllegalMoveError):
            await py.mail.obliterate()
        await py.mail.obliterate(force=True)
    left: list[str] = sorted(await raw.send("KEYS", raw.key("*")))
    # Node leaves parents that wait; we do not.
    assert [key for key in left if not key.endswith(":waiting-children")] == []
    # The parent in the other queue is set free, as when its child is cleaned away.
    assert (await survey(raw))["there"] == "ready"
