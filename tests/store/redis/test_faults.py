"""What goes wrong with a server, and what the store says then (reliability §7). Each test has a server of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import redis.asyncio
from anyio.abc import TaskGroup
from redis._parsers.base import BaseParser

from tests.servers import Server, redis_server
from tests.store.helpers import PATIENCE, Q, add, claim, claim_one, complete, ids_of, listening, numbers, spec, step
from workers_module.clock import FrozenClock
from workers_module.errors import (
    ConfigurationError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.events import Event
from workers_module.store.base import Store
from workers_module.store.redis.address import Address
from workers_module.store.redis.connect import Link
from workers_module.store.redis.faults import CutOffError, translate
from workers_module.store.redis.scripts import Command
from workers_module.store.redis.store import RedisStore
from workers_module.store.values import StepReply

pytestmark = pytest.mark.redis

LONG = 60.0


@pytest.fixture
def server() -> Iterator[Server]:
    with redis_server() as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    return f"unix://{server.address}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(url)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def root(url: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Return what commands the server."""
    async with redis.asyncio.Redis.from_url(url) as client:
        yield client.execute_command


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    store = RedisStore("unix:///nowhere/at/all")
    with pytest.raises(StoreUnavailableError, match="unix:///nowhere/at/all"):
        await store.open()
    with pytest.raises(StoreError, match=r"store\.open"):
        await add(store, "a")


async def test_a_server_that_evicts_is_refused_unless_allowed(url: str, root: Callable[..., Awaitable[Any]]) -> None:
    await root("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = RedisStore(url)
    with pytest.raises(ConfigurationError, match="noeviction"):
        await store.open()
    store = RedisStore(url, allow_eviction=True)
    info = await store.open()
    await store.close()
    assert any("allkeys-lru" in warning for warning in info.warnings)


async def test_a_server_that_keeps_nothing_is_named(url: str, root: Callable[..., Awaitable[Any]]) -> None:
    store = RedisStore(url)
    assert any("disk" in warning for warning in (await store.open()).warnings)
    await store.close()
    await root("CONFIG", "SET", "appendonly", "yes")
    assert (await store.open()).warnings == ()
    await store.close()


@pytest.mark.parametrize(("version", "says"), [("bullmq:5.81.5", "pausing"), ("bullmq:7.0.0", "7.0.0")])
async def test_peers_of_other_versions_are_named(
    url: str, root: Callable[..., Awaitable[Any]], version: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(url)
    await store.open()
    await root("HSET", "bull:mail:meta", "version", version)
    await claim(store)
    await claim(store)
    await store.close()
    assert [says in record.message for record in caplog.records if record.name.endswith("redis.stepping")] == [True]
    info = await store.open()
    await store.close()
    assert any(says in warning for warning in info.warnings)


async def test_a_wrong_password_is_denied_and_not_shown(url: str, root: Callable[..., Awaitable[Any]]) -> None:
    await root("ACL", "SETUSER", "ada", "on", ">right", "~*", "+@all")
    store = RedisStore(f"{url}?username=ada&password=hunter2")
    with pytest.raises(StoreDeniedError) as caught:
        await store.open()
    assert "hunter2" not in str(caught.value)


async def test_a_missing_right_is_denied_by_name(url: str, root: Callable[..., Awaitable[Any]]) -> None:
    await root("ACL", "SETUSER", "ada", "on", ">right", "~*", "+@all", "-evalsha", "-eval")
    store = RedisStore(f"{url}?username=ada&password=right")
    await store.open()
    with pytest.raises(StoreDeniedError, match="evalsha"):
        await add(store, "a")
    await store.close()


def test_an_empty_prefix_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisStore("redis://host", prefix="")


def test_a_place_shows_no_password() -> None:
    assert Address("rediss://ada:hunter2@host:7000/3").place == "rediss://ada:***@host:7000/3"


# --- at work ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailableError),
        ("READONLY You can't write against a read only replica. script: 0a, on @user_script:1.", StoreUnavailableError),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", StoreUnavailableError),
        ("CLUSTERDOWN The cluster is down", StoreUnavailableError),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreUnavailableError),
        ("MOVED 3999 127.0.0.1:6381", StoreUnavailableError),
        ("ASK 3999 127.0.0.1:6381", StoreUnavailableError),
        ("BUSY Redis is busy running a script.", StoreUnavailableError),
        ("UNBLOCKED force unblock from blocking operation", StoreUnavailableError),
        ("ERR max number of clients reached", StoreUnavailableError),
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreFullError),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", StoreFullError),
        ("NOREPLICAS Not enough good replicas to write.", StoreFullError),
        ("NOAUTH Authentication required.", StoreDeniedError),
        ("NOPERM this user has no permissions to run the 'evalsha' command", StoreDeniedError),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreError),
    ],
)
def test_what_a_server_answers_is_told_by_who_must_act(reply: str, kind: type[Exception]) -> None:
    error = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    assert type(translate(error, "here")) is kind


async def test_forgotten_scripts_are_sent_again(store: RedisStore, root: Callable[..., Awaitable[Any]]) -> None:
    for n in range(5):
        await root("SCRIPT", "FLUSH")
        await add(store, f"{n}")
        await root("SCRIPT", "FLUSH")
        job = (await store.wait(step(1), LONG)).jobs[0]
        await root("SCRIPT", "FLUSH")
        renewer = store.renewer()
        assert renewer.renew(Q, [job.held], 1_000).lost == ()
        renewer.close()
        await complete(store, job)
    assert await numbers(store) == {"completed": 5}


async def test_a_sleep_until_a_job_is_due_does_not_rely_on_the_servers_timeouts(
    store: RedisStore, root: Callable[..., Awaitable[Any]]
) -> None:
    await add(store, "late", delay_ms=150)
    assert (await store.step(step(1))).jobs == []
    assert ids_of((await store.wait(step(1), LONG)).jobs) == ["late"]
    # A caller may know itself when the job is due.
    assert (await store.wait(step(1), 0.05)).jobs == []
    # Servers name subcommands since Redis 7.
    told = await root("INFO", "commandstats")
    unblocked = told.get("cmdstat_client|unblock") or told["cmdstat_client"]
    assert unblocked["calls"] >= 2


@pytest.mark.parametrize("missing", ["client|id", "client|unblock"])
async def test_without_the_right_to_end_a_sleep_the_server_ends_it(
    url: str, root: Callable[..., Awaitable[Any]], missing: str
) -> None:
    await root("ACL", "SETUSER", "ada", "on", ">right", "~*", "+@all", f"-{missing}")
    store = RedisStore(f"{url}?username=ada&password=right")
    await store.open()
    await add(store, "late", delay_ms=300)
    assert (await store.step(step(1))).jobs == []
    assert ids_of((await store.wait(step(1), LONG)).jobs) == ["late"]
    await store.close()


async def test_a_full_server_takes_no_jobs_but_lets_them_end(
    store: RedisStore, root: Callable[..., Awaitable[Any]]
) -> None:
    await add(store, "a", "b")
    job = await claim_one(store)
    await root("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreFullError):
        await add(store, "c")
    assert (await store.renew(Q, [job.held], 30_000)).lost == ()
    await complete(store, job)
    await root("CONFIG", "SET", "maxmemory", "0")
    await add(store, "c")
    assert await numbers(store) == {"completed": 1, "waiting": 2}


async def test_a_server_that_is_back_is_used_again(server: Server, store: RedisStore) -> None:
    await add(store, "a")
    server.kill()
    with pytest.raises(StoreUnavailableError):
        await add(store, "b")
    with pytest.raises(StoreUnavailableError):
        await store.wait(step(1), LONG)
    server.start()
    await add(store, "c")
    assert ids_of((await store.wait(step(1), LONG)).jobs) == ["c"]


async def test_a_sleeping_worker_hears_of_an_outage(server: Server, store: RedisStore) -> None:
    waiting = asyncio.ensure_future(store.wait(step(1), LONG))
    await anyio.sleep(0.05)
    server.kill()
    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
        await waiting


async def test_a_reader_of_events_outlasts_an_outage(server: Server, store: RedisStore) -> None:
    async with listening(store) as ear:
        await store.publish(Q, [Event("one")])
        assert await ear.until("one")
        server.kill()
        server.start()

        async def publish(group: TaskGroup) -> None:
            while True:
                await anyio.sleep(0.05)
                await store.publish(Q, [Event("two")])

        async with anyio.create_task_group() as group:
            group.start_soon(publish, group)
            assert await ear.until("two")
            group.cancel_scope.cancel()


async def test_a_renewer_outlasts_an_outage(server: Server, store: RedisStore) -> None:
    renewer = store.renewer()
    await add(store, "a")
    job = await claim_one(store)
    assert renewer.renew(Q, [job.held], 1_000).lost == ()
    server.kill()
    with pytest.raises(StoreUnavailableError):
        renewer.renew(Q, [job.held], 1_000)
    server.start()
    assert renewer.renew(Q, [job.held], 1_000).lost == ("a",)
    renewer.close()


async def test_closing_ends_a_sleep(store: RedisStore) -> None:
    waiting = asyncio.ensure_future(store.wait(step(1), LONG))
    await anyio.sleep(0.05)
    await store.close()
    with anyio.fail_after(PATIENCE), pytest.raises(StoreError):
        await waiting


async def test_a_child_process_is_refused(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    renewer = store.renewer()
    await add(store, "a")
    job = await claim_one(store)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(StoreError, match="fork"):
            await add(store, "b")
        with pytest.raises(StoreError, match="fork"):
            renewer.renew(Q, [job.held], 1_000)


class Cut:
    """Loses the replies of a connection: what is sent arrives, and the connection breaks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        ask = Link.ask

        async def cut(link: Link, commands: list[Command], seconds: float = 5.0) -> list[Any]:
            replies = await ask(link, commands, seconds)
            if self.on:
                await link.drop()
                raise CutOffError("the connection was lost")
            return replies

        monkeypatch.setattr(Link, "ask", cut)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    return Cut(monkeypatch)


async def test_a_lost_reply_is_told_by_whether_the_call_can_be_repeated(store: RedisStore, cut: Cut) -> None:
    await add(store, "before")
    await store.publish(Q, [Event("before")])
    cut.on = True
    with pytest.raises(StoreOutcomeUnknownError):
        await store.add([spec("a"), spec(None)])
    with pytest.raises(StoreOutcomeUnknownError):
        await store.publish(Q, [Event("x")])
    with pytest.raises(StoreUnavailableError):
        await store.add([spec("b")])
    cut.on = False
    assert (await store.add([spec("b")]))[0].existing == "same_id"
    assert await numbers(store) == {"waiting": 4}


async def test_a_lost_claim_is_found_by_its_token(store: RedisStore, cut: Cut) -> None:
    await add(store, "a", "b")
    assert await claim(store, 0) == []
    cut.on = True
    req = step(1)
    with pytest.raises(StoreUnavailableError):
        await store.step(req)
    cut.on = False
    reply: StepReply = await store.step(step(1, token=req.token, resume=True))
    assert ids_of(reply.jobs) == ["a"]
    assert reply.jobs[0].held.fence == 1


async def test_cancelled_calls_leave_no_reply_behind(store: RedisStore) -> None:
    await add(store, *(f"{n}" for n in range(20)))
    for n in range(60):
        call = asyncio.ensure_future(store.get(Q, ["1"]))
        for _ in range(n % 6):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        (found,) = await store.get(Q, [f"{n % 20}"])
        assert found is not None
        assert found.id == f"{n % 20}"


async def test_two_connections_serve_fifty_callers(url: str) -> None:
    store: Store = RedisStore(url, connections=2)
    await store.open()

    async def produce(n: int) -> None:
        await store.add([spec(f"{n}")])

    async with anyio.create_task_group() as group:
        for n in range(50):
            group.start_soon(produce, n)
    assert await numbers(store) == {"waiting": 50}
    await store.close()


async def test_a_call_is_one_round_trip(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await add(store, "warm")
    job = await claim_one(store)
    await store.renew(Q, [job.held], 30_000)
    await complete(store, job)
    sent: list[int] = []
    ask = Link.ask

    async def counted(link: Link, commands: list[Command], seconds: float = 5.0) -> list[Any]:
        sent.append(len(commands))
        return await ask(link, commands, seconds)

    monkeypatch.setattr(Link, "ask", counted)
    await store.add([*(spec(f"c{n}", queue=f"q{n}", parent=50) for n in range(50)), spec("p")])
    assert sent == [1]
    await add(store, *(f"{n}" for n in range(100)))
    jobs = await claim(store, 100)
    assert sent == [1, 1, 1]
    await store.renew(Q, [job.held for job in jobs], 30_000)
    await add(store, "last")
    await store.wait(step(1), LONG)
    assert sent == [1, 1, 1, 1, 1, 2]


async def test_an_old_server_with_a_clock_of_ones_own_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers_module.store.redis import peers as module

    def ancient(version: tuple[int, int]) -> Callable[[str], tuple[int, int]]:
        return lambda _: version

    monkeypatch.setattr(module, "version_of", ancient((6, 2)))
    with pytest.raises(ConfigurationError, match=r"7\.0"):
        await RedisStore(url, clock=FrozenClock()).open()
    monkeypatch.setattr(module, "version_of", ancient((6, 0)))
    with pytest.raises(ConfigurationError, match=r"6\.2"):
        await RedisStore(url).open()
