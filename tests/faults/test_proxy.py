"""The tools themselves: a proxy that did no harm would let every test here pass."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import anyio
import pytest
import redis.asyncio
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as Cut

from tests.faults.launcher import RedisServer
from tests.faults.proxy import Ending, Framer, Proxy
from tests.faults.waiting import until

pytestmark = pytest.mark.redis


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.address) as proxy:
        yield proxy


@pytest.fixture
async def line(proxy: Proxy) -> AsyncIterator[Connection]:
    """Return one connection through the proxy."""
    connection = Connection(port=proxy.port, protocol=2, socket_timeout=None)
    await connection.connect()  # type: ignore[no-untyped-call]
    yield connection
    await connection.disconnect()


async def ask(line: Connection, *words: object) -> Any:
    await line.send_command(*words)
    with anyio.fail_after(10):
        return cast("Any", await line.read_response())


async def test_what_is_whole_goes_through_whatever_its_pieces() -> None:
    stream = (
        b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n+OK\r\n$-1\r\n*0\r\n*-1\r\n*2\r\n*1\r\n:1\r\n$4\r\n\r\n\r\n\r\n-ERR no\r\n"
    )
    wholes = [
        b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n",
        b"+OK\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*2\r\n*1\r\n:1\r\n$4\r\n\r\n\r\n\r\n",
        b"-ERR no\r\n",
    ]
    for size in range(1, len(stream) + 1):
        framer = Framer()
        pieces = (stream[n : n + size] for n in range(0, len(stream), size))
        assert [frame for piece in pieces for frame in framer.feed(piece)] == wholes


async def test_commands_and_replies_go_through(proxy: Proxy, line: Connection) -> None:
    before = proxy.commands
    assert await ask(line, "SET", "a", b"\r\n" * 50_000) == b"OK"
    assert await ask(line, "GET", "a") == b"\r\n" * 50_000
    assert proxy.commands == before + 2


async def test_a_lost_reply_is_that_of_a_command_carried_out(
    proxy: Proxy, line: Connection, server: RedisServer
) -> None:
    third = proxy.commands + 3
    proxy.lose_replies(lambda number, command: number == third)
    assert [await ask(line, "INCR", "n") for _ in range(2)] == [1, 2]
    with pytest.raises(Cut):
        await ask(line, "INCR", "n")
    assert (await server.command("GET", "n"), proxy.lost) == ("3", 1)


async def test_a_silent_connection_is_cut_when_all_is_well_again(
    proxy: Proxy, line: Connection, server: RedisServer
) -> None:
    proxy.lose_replies(lambda number, command: b"INCR" in command, cut=False)
    await line.send_command("INCR", "n")
    await line.send_command("GET", "n")
    await until(lambda: proxy.lost == 1)
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await line.read_response(disconnect_on_error=False)
    await proxy.heal()
    with pytest.raises(Cut), anyio.fail_after(10):
        await line.read_response()
    assert await server.command("GET", "n") == "1"


@pytest.mark.parametrize("how", [Ending.RST, Ending.FIN, Ending.HALF])
async def test_a_cut_is_seen_by_the_client(proxy: Proxy, line: Connection, how: Ending) -> None:
    await ask(line, "PING")
    assert proxy.cut(how) == 1
    with pytest.raises(Cut):
        await ask(line, "PING")
    await line.disconnect()
    await until(lambda: proxy.connections == 0)


async def test_a_refusing_proxy_takes_nobody_and_keeps_its_port(proxy: Proxy, line: Connection) -> None:
    proxy.refuse()
    assert await ask(line, "PING") == b"PONG"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.heal()
    async with redis.asyncio.Redis.from_url(proxy.url, protocol=2) as client:
        assert await client.ping()


async def test_a_frozen_proxy_takes_all_and_forwards_it_later(proxy: Proxy, line: Connection) -> None:
    proxy.freeze()
    await line.send_command("PING")
    other = Connection(port=proxy.port, protocol=2, socket_timeout=0.05)
    with pytest.raises(Exception, match=r"[Tt]imeout"):
        await other.connect()  # type: ignore[no-untyped-call]
    with pytest.raises(TimeoutError), anyio.fail_after(0.05):
        await line.read_response(disconnect_on_error=False)
    await proxy.heal()
    with anyio.fail_after(10):
        assert await line.read_response() == b"PONG"


async def test_a_slow_link_is_slow_in_the_directions_asked_for(proxy: Proxy, line: Connection) -> None:
    proxy.delay(0.05, "replies")
    before = anyio.current_time()
    assert await ask(line, "PING") == b"PONG"
    assert anyio.current_time() - before >= 0.05
    await proxy.heal()
    assert await ask(line, "PING") == b"PONG"


async def test_a_cut_within_a_command_leaves_it_undone(proxy: Proxy, line: Connection, server: RedisServer) -> None:
    proxy.cut_after(10, "requests")
    with pytest.raises(Cut):
        await ask(line, "SET", "a", "b")
    assert await server.command("GET", "a") is None


async def test_a_cut_within_a_reply_comes_after_the_deed(proxy: Proxy, line: Connection, server: RedisServer) -> None:
    await ask(line, "SET", "a", "x" * 1_000)
    proxy.cut_after(100, "replies")
    with pytest.raises(Cut):
        await ask(line, "GETDEL", "a")
    assert await server.command("GET", "a") is None


async def test_a_server_keeps_its_data_through_a_kill_and_says_when_it_is_loading(server: RedisServer) -> None:
    await server.command("SET", "a", "1")
    await server.grow_log()
    server.kill()
    await server.start(load_delay_us=100)
    assert await server.is_loading()
    await until(server.is_up)
    assert await server.keys() == {"a"}


async def test_a_demoted_server_refuses_writes_and_keeps_its_data(server: RedisServer) -> None:
    await server.command("SET", "a", "1")
    async with server.demoted():
        assert await server.command("GET", "a") == "1"
        with pytest.raises(Exception, match="read only"):
            await server.command("SET", "a", "2")
    assert await server.command("SET", "a", "3")


async def test_a_full_server_takes_no_more(server: RedisServer) -> None:
    async with server.full():
        with pytest.raises(Exception, match="used memory"):
            await server.command("SET", "a", "1")
    assert await server.command("SET", "a", "1")
