"""Scenario 51: a cluster of three masters."""

import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

import pytest
import redis
from redis.crc import key_slot

from tests.interop.apps import Place, consumer
from tests.interop.peer import Node, NodeError, connect
from tests.servers import PATIENCE, Server, redis_binary
from workers_module import ConfigurationError, Job, JobContext, flow_job
from workers_module.url import SCHEMES

SLOTS = 16_384
SHARED = "redis+cluster" in SCHEMES
"""Whether our client follows the slots by itself; else it is shown the node that has those of the prefix."""


def ask(port: int, *words: Any) -> Any:
    """Send a command to one node."""
    with redis.Redis(port=port, decode_responses=True, protocol=2) as client:
        return cast("Any", client.execute_command)(*words)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(true: Any, what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + 3 * PATIENCE
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"in vain: {what}")
        time.sleep(0.02)


@contextmanager
def masters(count: int) -> Generator[list[int]]:
    """Run a cluster and return the ports of its masters."""
    binary = redis_binary()
    if binary is None:
        pytest.skip("no redis-server or valkey-server")
    ports: list[int] = []
    with ExitStack() as stack:
        for n in range(count):
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="wm-")))
            port, bus = free_port(), free_port()
            command = [binary, "--port", str(port), "--cluster-port", str(bus), "--bind", "127.0.0.1"]
            command += ["--cluster-enabled", "yes", "--save", "", "--dir", str(folder)]
            server = Server([*command, "--unixsocket", str(folder / "s")], folder, folder / "s")
            server.start()
            stack.callback(server.kill)
            ports.append(port)
            ask(ports[0], "CLUSTER", "MEET", "127.0.0.1", port, bus)
            ask(port, "CLUSTER", "ADDSLOTSRANGE", n * SLOTS // count, (n + 1) * SLOTS // count - 1)
        for port in ports:
            wait_for(
                lambda port=port: (
                    "cluster_state:ok" in ask(port, "CLUSTER", "INFO")
                    and f"cluster_known_nodes:{count}" in ask(port, "CLUSTER", "INFO")
                ),
                "a cluster that works",
            )
        yield ports


@pytest.fixture(scope="module")
def ports() -> Generator[list[int]]:
    """Return the ports of three masters."""
    with masters(3) as ports:
        yield ports


def place_on(ports: list[int], prefix: str) -> Place:
    """Return where our applications are."""
    if SHARED:
        return Place("redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), prefix)
    return Place(f"redis://127.0.0.1:{ports[key_slot(prefix.encode()) * 3 // SLOTS]}", prefix)


@pytest.fixture
def make_node(node_server: Server, ports: list[int]) -> Any:
    """Return what connects Node to the cluster under a prefix."""
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
    return partial(connect, node_server, url)


async def echo(job: Job[Any], context: JobContext) -> Any:
    """Return the payload and what the children returned."""
    return [job.data, *await context.children_values()]


async def play(place: Place, node: Node, mail: str, parents: str) -> None:
    """Have each side run a job of the other, and a flow over two queues."""
    async with place.working(consumer(mail, echo), consumer(parents, echo)) as app:
        value = await node.run(
            "const events = await t.listen(queue);"
            "const job = await t.queue(queue).add('send', 1, {delay: 50});"
            "return job.waitUntilFinished(events, 10000)",
            queue=mail,
        )
        assert value == [1]
        root = await node.run(
            "const children = [{name: 'part', queueName: mail, data: 2}];"
            "return (await t.flow().add({name: 'whole', queueName: parents, data: 3, children})).job.id",
            mail=mail,
            parents=parents,
        )
        found = await node.run(
            "const {job} = await t.flow().getFlow({id: root, queueName: parents});"
            "while (await job.getState() !== 'completed') await new Promise(resolve => setTimeout(resolve, 10));"
            "return (await t.queue(parents).getJob(root)).returnvalue",
            root=root,
            parents=parents,
        )
        assert found == [3, [2]]
    await node.run(
        "await t.worker(mail, 'return job.data * 2'); await t.worker(parents, 'return 7')", mail=mail, parents=parents
    )
    async with place.app() as app:
        handle = await app.queue(mail).add("send", 21, priority=3)
        assert await handle.result() == 42
        flow = await app.flows.add(flow_job((parents, "whole"), 1, children=[flow_job((mail, "part"), 2)]))
        assert await flow.result() == 7


@pytest.mark.scenario(51)
async def test_all_queues_of_a_prefix_in_braces_lie_in_one_slot(ports: list[int], make_node: Any) -> None:
    prefix = f"{{wm-{uuid4().hex[:12]}}}"
    async with make_node(prefix) as node:
        await play(place_on(ports, prefix), node, "mail", "parents")
    keys = [ask(port, "KEYS", f"{prefix}:*") for port in ports]
    assert sum(bool(one) for one in keys) == 1


@pytest.mark.scenario(51)
@pytest.mark.skipif(not SHARED, reason="our client for clusters is not here yet")
async def test_a_queue_in_braces_lies_where_its_name_says(ports: list[int], make_node: Any) -> None:
    prefix = f"wm-{uuid4().hex[:12]}"
    async with make_node(prefix) as node:
        # One tag for both queues.
        await play(place_on(ports, prefix), node, "{q}", "{q}-parents")


@pytest.mark.scenario(51)
@pytest.mark.skipif(not SHARED, reason="our client for clusters is not here yet")
async def test_a_flow_over_two_slots_is_refused_before_anything_is_stored(ports: list[int], make_node: Any) -> None:
    prefix = f"wm-{uuid4().hex[:12]}"
    async with place_on(ports, prefix).app() as app:
        with pytest.raises(ConfigurationError):
            await app.flows.add(flow_job(("{a}", "whole"), children=[flow_job(("{b}", "part"))]))
    assert [key for port in ports for key in ask(port, "KEYS", f"{prefix}:*")] == []
    # Node sends it, and the server refuses.
    async with make_node(prefix) as node:
        with pytest.raises(NodeError):
            await node.run(
                "await t.flow().add({name: 'whole', queueName: '{a}', children: [{name: 'part', queueName: '{b}'}]})"
            )
