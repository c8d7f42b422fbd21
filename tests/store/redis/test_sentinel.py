"""A master watched by sentinels: found by its name, and found again when another server has become it."""

import asyncio
from collections.abc import Iterator

import anyio
import pytest

from tests.servers import Server, command, free_port, redis_on_port, redis_sentinels, until, until_all
from tests.store.helpers import PATIENCE, Q, add, assert_sound, claim_one, complete, ids_of, numbers, run, step
from tests.store.redis.helpers import produce, renewed, stubborn, until_blocked, work
from workers_module.errors import ConfigurationError, StoreDeniedError, StoreUnavailableError
from workers_module.store.open import open_store
from workers_module.store.redis.store import RedisStore
from workers_module.store.values import RenewReply

pytestmark = pytest.mark.redis

LONG = 60.0
Watched = tuple[list[int], Server, list[int]]


@pytest.fixture
def watched() -> Iterator[Watched]:
    with redis_sentinels() as found:
        yield found


def url_of(watching: list[int], rest: str = "") -> str:
    hosts = ",".join(f"127.0.0.1:{port}" for port in watching)
    return f"redis+sentinel://{hosts}/mymaster{rest}"


async def test_the_master_is_found_and_its_database(watched: Watched) -> None:
    (master, replica), _, watching = watched
    store = open_store(url_of([free_port(), *watching], "/3"))
    await store.open()
    await add(store, "a")
    await run(store, "a")
    await store.close()
    assert "'db3'" in str(command(master, "INFO", "keyspace"))
    assert "'role': 'slave'" in str(command(replica, "INFO", "replication"))


@pytest.mark.slow
async def test_a_master_that_is_handed_over_is_followed(watched: Watched) -> None:
    (master, replica), _, watching = watched
    store = RedisStore(url_of(watching))
    await store.open()
    renewer = store.renewer()
    await add(store, "a", "b")
    job = await claim_one(store)
    assert await renewed(renewer, Q, job.held) == RenewReply()
    sure = RedisStore(url_of(watching, "?wait_replicas=1"))
    await sure.open()
    await add(sure, "c")
    await sure.close()
    command(watching[0], "SENTINEL", "FAILOVER", "mymaster")
    await anyio.to_thread.run_sync(until_all, [replica], "'role': 'master'", "INFO", "replication")
    await anyio.to_thread.run_sync(until_all, watching, f"'{replica}'", "SENTINEL", "MASTERS")
    # The old one goes on to take writes until its sentinel tells it, and those are lost: that is Redis' bargain.
    await anyio.to_thread.run_sync(
        until_all, [master], "'role': 'slave'", "INFO", "replication", abandon_on_cancel=True
    )
    assert await stubborn(renewed, renewer, Q, job.held) == RenewReply()
    assert await stubborn(store.renew, Q, [job.held], 30_000) == RenewReply()
    await complete(store, job)
    await run(store, "b")
    assert "'db0'" in str(command(replica, "INFO", "keyspace"))
    renewer.close()
    await store.close()


async def test_work_goes_on_through_a_failover() -> None:
    with redis_sentinels(sentinels=3, replicas=2) as ((_, *replicas), server, watching):
        total = 400
        # Without a replica that confirms, a failover loses what was not yet with one.
        store = RedisStore(url_of(watching, "?wait_replicas=1"))
        await store.open()
        done: list[str] = []
        async with anyio.create_task_group() as group:
            group.start_soon(produce, store, Q, total)
            for _ in range(3):
                group.start_soon(work, store, Q, done, total)
            await anyio.to_thread.run_sync(until, lambda: len(done) >= 50, "the workers are at work")
            server.kill()
        assert set(done) == {f"job-{n}" for n in range(total)}
        assert await numbers(store) == {"completed": total}
        await assert_sound(store)
        assert [str(command(port, "INFO", "replication")).count("'role': 'master'") for port in replicas].count(1) == 1
        await store.close()


async def test_a_sleeping_worker_is_not_left_with_the_old_master(watched: Watched) -> None:
    (master, _), server, watching = watched
    store = RedisStore(url_of(watching))
    await store.open()
    asleep = asyncio.ensure_future(store.wait(step(1), LONG))
    await anyio.to_thread.run_sync(until_blocked, master)
    server.kill()
    with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
        await asleep
    await stubborn(add, store, "a")
    assert ids_of((await store.wait(step(1), LONG)).jobs) == ["a"]
    await store.close()


async def test_a_name_that_the_sentinels_do_not_know(watched: Watched) -> None:
    store = RedisStore(url_of(watched[2]).replace("mymaster", "nobody"))
    with pytest.raises(StoreUnavailableError, match="no master 'nobody'"):
        await store.open()


async def test_a_store_without_sentinels_is_unavailable() -> None:
    store = RedisStore("redis+sentinel://:hunter2@127.0.0.1:1/mymaster?sentinel_password=hunter2")
    with pytest.raises(StoreUnavailableError) as caught:
        await store.open()
    assert "hunter2" not in str(caught.value)


async def test_sentinels_have_a_password_of_their_own() -> None:
    with (
        redis_on_port() as (master, _),
        redis_on_port(
            "--sentinel", "--requirepass", "hunter2", lines=[f"sentinel monitor mymaster 127.0.0.1 {master} 1"]
        ) as (port, _),
    ):
        store = RedisStore(url_of([port]))
        with pytest.raises(StoreDeniedError):
            await store.open()
        store = RedisStore(url_of([port], "?sentinel_password=hunter3"))
        with pytest.raises(StoreDeniedError) as caught:
            await store.open()
        assert "hunter" not in str(caught.value)
        store = RedisStore(url_of([port], "?sentinel_password=hunter2"))
        assert "hunter2" not in (await store.open()).place
        await add(store, "a")
        await store.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis+sentinel://host", "names the master"),
        ("redis+sentinel://host/0/mymaster", "names the master"),
        ("redis+sentinel:///mymaster", "names no host"),
        ("redis+sentinel://one,,two/mymaster", "names no host"),
        ("redis+cluster://one,two/3", "one database"),
        ("redis+other://one", r"redis\+cluster"),
        ("unix+cluster:///s", r"redis\+cluster"),
        ("redis://host?wait_replicas=-1", "number from 0 up"),
        ("redis://host?allow_eviction=perhaps", "true or false"),
        ("redis://host?connections=0", "from 1 up"),
        ("redis://host?socket_timeout=long", "socket_timeout"),
        ("redis://host?sll_ca_certs=x", "no parameter 'sll_ca_certs'"),
        ("redis://host?ssl_ca_certs=x", "no parameter 'ssl_ca_certs'"),
        ("redis://user:hunter2@host:port/0", "port"),
        ("redis://user:hun/ter2@host", "%2F"),
    ],
)
def test_what_no_server_is_found_by_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
    assert "hun" not in str(caught.value).replace("hunter", "")


async def test_a_replica_is_not_written_to_and_used_once_it_is_the_master() -> None:
    with redis_on_port() as (port, _):
        store = RedisStore(f"redis://127.0.0.1:{port}")
        await store.open()
        renewer = store.renewer()
        await add(store, "a")
        job = await claim_one(store)
        assert await renewed(renewer, Q, job.held) == RenewReply()
        first = clients_of(port)
        command(port, "CONFIG", "SET", "replica-serve-stale-data", "yes")
        command(port, "REPLICAOF", "127.0.0.1", free_port())
        for call in (add(store, "b"), store.step(step(1)), store.wait(step(1), 0.1), renewed(renewer, Q, job.held)):
            with pytest.raises(StoreUnavailableError, match="READONLY"):
                await call
        command(port, "REPLICAOF", "NO", "ONE")
        await add(store, "b")
        assert await renewed(renewer, Q, job.held) == RenewReply()
        await complete(store, job)
        await run(store, "b")
        # Each connection was made anew: the name may have led to another server meanwhile.
        assert not first & clients_of(port)
        renewer.close()
        await store.close()


def clients_of(port: int) -> set[str]:
    """Return the numbers of the connections to a server; that of this question is another one each time."""
    return {line.split()[0] for line in str(command(port, "CLIENT", "LIST")).splitlines()}
