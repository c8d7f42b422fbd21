"""Scenarios 36 and 37: one job for several calls, whichever side makes them."""

import json
from typing import Any

import anyio
import pytest

from tests.interop.apps import App, Place, consumer
from tests.interop.peer import Node
from tests.interop.raw import Raw
from workers_module import Dedup, Job, JobContext

MODES = {
    "simple": Dedup.simple("k"),
    "throttle": Dedup.throttle("k", "1m"),
    "extend": Dedup.extend("k", "1m"),
    "debounce": Dedup.debounce("k", "1m"),
    "reschedule": Dedup.reschedule("k"),
    "keep_latest": Dedup.keep_latest("k"),
}
SIDES = [("py", "node"), ("node", "py"), ("py", "py"), ("node", "node")]


async def add(side: str, py: App, node: Node, n: int, mode: str, delay: int | None) -> str:
    """Add a job of some mode by one side; the id that counts."""
    if side == "py":
        delayed: Any = {} if delay is None else {"delay": f"{delay}ms"}
        return (await py.mail.add("send", {"n": n}, deduplication=MODES[mode], **delayed)).id
    opts = {"deduplication": MODES[mode].to_bullmq()} | ({} if delay is None else {"delay": delay})
    id: str = await node.run("return (await t.queue().add('send', {n}, opts)).id", n=n, opts=opts)
    return id


async def events(raw: Raw) -> list[dict[str, str]]:
    """Return the events, due times left out."""
    return [{name: value for name, value in one.items() if name != "delay"} for one in await raw.events()]


def event(kind: str, **fields: str) -> dict[str, str]:
    """Return an event."""
    return {"event": kind, **fields}


@pytest.mark.scenario(36)
@pytest.mark.parametrize("sides", SIDES, ids="-".join)
@pytest.mark.parametrize("delay", [None, 60_000], ids=["ready", "delayed"])
@pytest.mark.parametrize("mode", list(MODES))
async def test_a_second_call_counts_alike(
    py: App, node: Node, raw: Raw, mode: str, delay: int | None, sides: tuple[str, str]
) -> None:
    assert await add(sides[0], py, node, 1, mode, delay) == "1"
    lasts = MODES[mode].ttl_ms is not None
    if lasts:
        await raw("PEXPIRE", "de:k", 30_000)
    replaced = mode == "debounce" and delay is not None
    second = None if delay is None else 2 * delay
    assert await add(sides[1], py, node, 2, mode, second) == ("2" if replaced else "1")

    owner = "2" if replaced else "1"
    placed = "waiting" if delay is None else "delayed"
    first = [event("added", jobId="1", name="send"), event(placed, jobId="1")]
    deduplicated = event("deduplicated", jobId="1", deduplicationId="k", deduplicatedJobId="2")
    if replaced:
        wanted = [
            *first,
            event("removed", jobId="1", prev="delayed"),
            event("deduplicated", jobId="2", deduplicationId="k", deduplicatedJobId="1"),
            event("added", jobId="2", name="send"),
            event("delayed", jobId="2"),
        ]
    elif mode == "debounce":
        wanted = first
    elif mode == "reschedule" and delay is not None:
        wanted = [*first, deduplicated, event("delayed", jobId="1")]
    else:
        wanted = [*first, deduplicated]
    assert await events(raw) == wanted

    assert (await raw("GET", "de:k"), await raw("GET", "id")) == (owner, "2")
    assert await raw.ids("wait") + await raw.ids("delayed") == [owner]
    found = await raw.job(owner)
    assert (json.loads(found["data"]), found["deid"]) == ({"n": int(owner)}, "k")
    if delay is not None:
        due = int(float(await raw("ZSCORE", "delayed", owner))) // 4096 - int(found["timestamp"])
        moved = replaced or mode == "reschedule"
        assert found["delay"] == str(2 * delay if moved else delay)
        assert 0 <= due - int(found["delay"]) < 30_000
    left = await raw("PTTL", "de:k")
    if not lasts:
        assert left == -1
    elif mode == "throttle":
        assert left <= 30_000
    elif mode == "extend" or replaced:
        assert 30_000 < left <= 60_000


@pytest.mark.scenario(36)
@pytest.mark.parametrize("mode", ["simple", "throttle"])
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_a_key_is_freed_at_the_end_unless_it_runs_out(
    py: App, node: Node, place: Place, raw: Raw, mode: str, worker: str
) -> None:
    async def handle(job: Job[Any], _: JobContext) -> None:
        return None

    producer, other = ("node", "py") if worker == "py" else ("py", "node")
    await add(producer, py, node, 1, mode, None)
    if worker == "py":
        async with place.working(consumer("mail", handle)):
            await raw.until_state("1", "completed")
    else:
        await node.work("mail")
        await raw.until_state("1", "completed")
        await node.run("await t.last.close()")
    assert await raw("GET", "de:k") == (None if mode == "simple" else "1")
    assert await add(other, py, node, 2, mode, None) == ("2" if mode == "simple" else "1")


@pytest.mark.scenario(36)
@pytest.mark.parametrize("side", ["py", "node"])
async def test_a_key_whose_job_is_gone_counts_as_free(py: App, node: Node, raw: Raw, side: str) -> None:
    await raw("SET", "de:k", "gone")
    assert await add(side, py, node, 1, "simple", None) == "1"
    assert await raw("GET", "de:k") == "1"


@pytest.mark.scenario(37)
@pytest.mark.parametrize("worker", ["py", "node"])
async def test_the_last_call_follows_the_running_job(py: App, node: Node, place: Place, raw: Raw, worker: str) -> None:
    held = anyio.Event()
    ran: list[Any] = []

    async def handle(job: Job[Any], _: JobContext) -> None:
        ran.append((job.id, job.data))
        await held.wait()

    other = "node" if worker == "py" else "py"
    await add(other, py, node, 1, "keep_latest", None)

    async def play() -> None:
        await raw.until_state("1", "active")
        for n in (2, 3):
            assert await add(other, py, node, n, "keep_latest", None) == "1"
        kept: dict[str, str] = await raw("HGETALL", "dn:k")
        assert (kept["name"], json.loads(kept["data"]), kept["jid"]) == ("send", {"n": 3}, "3")
        assert json.loads(kept["opts"])["de"] == {"id": "k", "keepLastIfActive": True}
        held.set()
        await node.run("t.gate('go').open()")
        await raw.until_count("completed", 2)

    if worker == "py":
        async with place.working(consumer("mail", handle)):
            await play()
    else:
        await node.work("mail", "await t.gate('go').passed")
        await play()
        ran = [(one["id"], one["data"]) for one in await node.ran()]
    assert ran == [("1", {"n": 1}), ("3", {"n": 3})]
    assert await raw("EXISTS", "dn:k") == 0
    assert await raw("GET", "de:k") is None
    types = [(one["event"], one.get("jobId")) for one in await raw.events()]
    assert types.index(("added", "3")) < types.index(("waiting", "3")) < types.index(("completed", "1"))
