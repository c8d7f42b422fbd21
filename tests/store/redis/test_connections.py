"""Connections: what a server answers that cannot do its part now, links that died unseen, what is asked at start."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import anyio
import pytest
import redis.asyncio
from redis._parsers.base import BaseParser

from tests.servers import Server, command, free_port, redis_on_port, until
from tests.store.helpers import PATIENCE, Q, add, claim_one, complete, ids_of, listening, numbers, run, spec, step
from tests.store.redis.helpers import stubborn, until_blocked
from workers_module.errors import (
    ConfigurationError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.record import Token
from workers_module.store.open import open_store
from workers_module.store.redis import address, connect, stepping
from workers_module.store.redis.address import Address
from workers_module.store.redis.faults import CutOffError, translate
from workers_module.store.redis.store import RedisStore
from workers_module.store.values import Held, RenewReply

pytestmark = pytest.mark.redis

LONG = 60.0


@pytest.fixture
def place() -> Iterator[tuple[int, Server]]:
    with redis_on_port() as found:
        yield found


@pytest.fixture
def port(place: tuple[int, Server]) -> int:
    return place[0]


@pytest.fixture
async def store(port: int) -> AsyncIterator[RedisStore]:
    store = RedisStore(f"redis://127.0.0.1:{port}")
    await store.open()
    yield store
    await store.close()


# --- what a server answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailableError),
        ("READONLY You can't write against a read only replica.", StoreUnavailableError),
        ("BUSY Redis is busy running a script.", StoreUnavailableError),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailableError),
        ("CLUSTERDOWN The cluster is down", StoreUnavailableError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailableError),
        ("MOVED 3999 127.0.0.1:6381", StoreUnavailableError),
        ("UNBLOCKED force unblock from blocking operation", StoreUnavailableError),
        ("ERR max number of clients reached", StoreUnavailableError),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreFullError),
        ("MISCONF Redis is configured to save RDB snapshots", StoreFullError),
        ("NOREPLICAS Not enough good replicas to write.", StoreFullError),
        ("NOAUTH Authentication required.", StoreDeniedError),
        ("WRONGPASS invalid username-password pair or user is disabled.", StoreDeniedError),
        ("NOPERM this user has no permissions to run the 'get' command", StoreDeniedError),
        ("ERR The user executing the script can't run this command or subcommand script: x", StoreDeniedError),
        ("ERR ACL failure in script: User x has no permissions to run the 'zadd' command", StoreDeniedError),
        ("CROSSSLOT Keys in request don't hash to the same slot", StoreError),
        ("ERR something else", StoreError),
    ],
)
def test_each_answer_has_its_class(said: str, kind: type[StoreError]) -> None:
    found = translate(cast("Callable[[str], Exception]", BaseParser.parse_error)(said), "redis://host")
    assert type(found) is kind
    assert "redis://host" in str(found)
    assert said.partition(" ")[2] in str(found)


async def test_a_server_that_is_loading_is_waited_for(place: tuple[int, Server]) -> None:
    port, server = place
    store = RedisStore(f"redis://127.0.0.1:{port}")
    await store.open()
    # The server answers each time it has read a kilobyte, which is once for each of these jobs.
    await add(store, *(f"{n}" for n in range(100)), data=b'"%s"' % (b"x" * 2_000))
    command(port, "CONFIG", "SET", "rdbcompression", "no")
    command(port, "SAVE")
    server.kill()
    server.command += ["--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024"]
    await anyio.to_thread.run_sync(server.start)
    # Nothing was done: not even for jobs without an id is there a doubt.
    with pytest.raises(StoreUnavailableError, match="LOADING"):
        await store.add([spec(None)])
    with pytest.raises(StoreUnavailableError):
        await store.wait(step(1), LONG)
    renewer = store.renewer()
    with pytest.raises(StoreUnavailableError, match="LOADING"):
        renewer.renew(Q, [Held("0", Token("t"), 1, None)], 1_000)
    renewer.close()
    await stubborn(store.add, [spec(None)])
    assert await numbers(store) == {"waiting": 101}
    await store.close()


async def add_without_end(store: RedisStore) -> None:
    while True:
        await store.add([spec("a")])


async def test_a_server_in_a_script_without_end_is_waited_for(port: int, store: RedisStore) -> None:
    command(port, "CONFIG", "SET", "busy-reply-threshold", "20")
    async with redis.asyncio.Redis(port=port) as client:
        call = cast("Callable[..., Awaitable[Any]]", client.execute_command)
        endless = asyncio.ensure_future(call("EVAL", "while true do end", 0))
        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError, match="BUSY"):
            await add_without_end(store)
        command(port, "SCRIPT", "KILL")
        with pytest.raises(redis.asyncio.RedisError):
            await endless
    await stubborn(add, store, "a")
    assert await numbers(store) == {"waiting": 1}


async def test_a_replica_without_its_master_is_waited_for(port: int, store: RedisStore) -> None:
    command(port, "CONFIG", "SET", "replica-serve-stale-data", "no")
    command(port, "REPLICAOF", "127.0.0.1", free_port())
    for call in (add(store, "a"), store.wait(step(1), 0.1)):
        with pytest.raises(StoreUnavailableError, match=r"READONLY|MASTERDOWN"):
            await call
    with pytest.raises(StoreUnavailableError, match="MASTERDOWN"):
        await store.locks()
    command(port, "REPLICAOF", "NO", "ONE")
    await add(store, "a")
    await run(store, "a")


async def test_a_master_that_wants_replicas_and_has_none_is_full(port: int, store: RedisStore) -> None:
    command(port, "CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(StoreFullError, match="NOREPLICAS"):
        await add(store, "a")
    command(port, "CONFIG", "SET", "min-replicas-to-write", "0")
    await add(store, "a")


async def test_too_many_clients_are_waited_out(port: int, store: RedisStore) -> None:
    command(port, "CONFIG", "SET", "maxclients", "1")
    other = RedisStore(f"redis://127.0.0.1:{port}")
    with pytest.raises(StoreUnavailableError):
        await other.open()
    await store.close()
    await stubborn(other.open)
    await other.close()


async def test_replicas_are_waited_for(port: int) -> None:
    command(port, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
    with redis_on_port("--replicaof", "127.0.0.1", str(port)) as (replica, server):
        await anyio.to_thread.run_sync(
            until, lambda: command(replica, "INFO", "replication")["master_link_status"] == "up", "the link"
        )
        store = open_store(f"redis://127.0.0.1:{port}?wait_replicas=1")
        await store.open()
        await add(store, "a")
        await run(store, "a")
        # What is read waits for nobody, nor does what is renewed.
        server.kill()
        assert await numbers(store) == {"completed": 1}
        await store.close()


# --- links that died --------------------------------------------------------------------------------------------------


@contextmanager
def frozen(server: Server) -> Generator[None]:
    """Let a server take connections and bytes, and answer nothing."""
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


async def test_no_wait_outlives_its_link(
    place: tuple[int, Server], store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stepping.BLOCK_SECONDS + stepping.SLACK_SECONDS < LONG
    monkeypatch.setattr(stepping, "BLOCK_SECONDS", 0.3)
    monkeypatch.setattr(stepping, "SLACK_SECONDS", 0.3)
    waiting = asyncio.ensure_future(store.wait(step(1), LONG))
    await anyio.to_thread.run_sync(until_blocked, place[0])
    with frozen(place[1]), anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
        await waiting
    await add(store, "a")
    assert ids_of((await store.wait(step(1), LONG)).jobs) == ["a"]


async def test_a_link_that_was_idle_is_tried_before_it_carries_a_job(
    place: tuple[int, Server], store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add([spec(None)])
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 0.3)
    with frozen(place[1]):
        monkeypatch.setattr(connect, "IDLE_SECONDS", 0.0)
        monkeypatch.setattr(connect, "FORGET_SECONDS", 0.3)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.add([spec(None)])
        assert not isinstance(caught.value, CutOffError)
    await store.add([spec(None)])
    assert await numbers(store) == {"waiting": 2}


async def test_a_job_sent_into_a_link_that_is_dead_is_in_doubt(
    place: tuple[int, Server], store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.add([spec(None)])
    ask = connect.Link.ask

    async def short(self: connect.Link, commands: Any, seconds: float = 0.0) -> list[Any]:
        return await ask(self, commands, 0.3)

    monkeypatch.setattr(connect.Link, "ask", short)
    with frozen(place[1]), pytest.raises(StoreOutcomeUnknownError):
        await store.add([spec(None)])
    monkeypatch.undo()
    # It had been sent: the server did it when it came back.
    with anyio.fail_after(PATIENCE):
        while await numbers(store) != {"waiting": 2}:
            await anyio.lowlevel.checkpoint()


async def test_links_are_kept_alive(port: int, store: RedisStore) -> None:
    import socket

    (links,) = await store._calls.open_servers().each()
    await add(store, "a")
    (link,) = links._idle
    writer: Any = link._connection._writer
    sock = writer.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60


async def test_all_clients_killed(port: int, store: RedisStore) -> None:
    renewer = store.renewer()
    async with listening(store) as ear:
        for n in range(5):
            await add(store, f"{n}")
            job = await claim_one(store)
            assert renewer.renew(Q, [job.held], 30_000) == RenewReply()
            command(port, "CLIENT", "KILL", "TYPE", "normal")
            assert await stubborn(store.renew, Q, [job.held], 30_000) == RenewReply()
            await complete(store, job)
            with pytest.raises(StoreUnavailableError):
                renewer.renew(Q, [job.held], 30_000)
        heard = await ear.heard()
        assert [kind for kind, _, _ in heard].count("completed") == 5
    renewer.close()


# --- at start ---------------------------------------------------------------------------------------------------------


async def test_options_stand_in_the_url(port: int) -> None:
    command(port, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match=r"\?allow_eviction=true"):
        await open_store(f"redis://127.0.0.1:{port}").open()
    store = open_store(f"redis://127.0.0.1:{port}?allow_eviction=true&connections=2")
    info = await store.open()
    assert any("allkeys-lru" in warning for warning in info.warnings)
    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(store.add, [spec(f"{n}")])
    clients = str(command(port, "CLIENT", "LIST")).count("\n")
    await store.close()
    assert clients <= 3


async def test_a_clock_that_differs_is_named(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from workers_module.store.redis import peers

    def told(seconds: float) -> None:
        monkeypatch.setattr(peers, "unix_seconds", lambda: time.time() + seconds)

    for seconds, warned in ((0, False), (30, True), (-30, True)):
        told(seconds)
        store = RedisStore(f"redis://127.0.0.1:{port}")
        info = await store.open()
        await store.close()
        assert any("clock" in warning for warning in info.warnings) is warned


def test_an_ipv6_host_is_shown_as_it_is_written() -> None:
    found = Address("redis+cluster://[::1]:7000,[::1]:7001")
    assert [str(seed) for seed in found.seeds] == ["[::1]:7000", "[::1]:7001"]
    assert Address("redis+sentinel://host/m").seeds == (address.Target("host", 26379),)
