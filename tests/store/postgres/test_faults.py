"""A server that dies, is not there, or cuts connections: nothing is lost, nothing hangs, work goes on by itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import asyncpg
import pytest

from tests.servers import PostgresServer, postgres_server
from tests.store.helpers import PATIENCE, Q, add, assert_sound, claim, ids_of, listening, numbers, spec, step, types_of
from workers_module.errors import (
    ConfigurationError,
    StoreCorruptError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.events import Event
from workers_module.job.outcome import Completed
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.postgres import connect
from workers_module.store.postgres.connect import of_server
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import Claimed, Held, QueuePatch, RenewReply, Settle, SettleCode, Step, Sweep

pytestmark = pytest.mark.postgres


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Return a server of this test's own that keeps what it has accepted."""
    with postgres_server("fsync=on") as server:
        yield server


@pytest.fixture
async def mine(server: PostgresServer) -> AsyncIterator[PostgresStore]:
    """Return a store on the server of its own."""
    mine = PostgresStore(server.url)
    await mine.open()
    yield mine
    await mine.close()


class Worker:
    """Works through a queue whatever happens to the server, as the consumer does: what failed is sent again."""

    def __init__(self, store: PostgresStore, name: str) -> None:
        self._store = store
        self._name = name
        self.outages = 0
        self.accepted: list[str] = []

    async def step(self, token: Token, done: list[Claimed]) -> list[Claimed]:
        resume = False
        while True:
            req = Step(
                queue=Q,
                worker=self._name,
                token=token,
                outcomes=[Settle(job.held, Completed(b"1")) for job in done],
                take=10,
                lease_ms=60_000,
                resume=resume,
            )
            try:
                reply = await self._store.step(req)
            except StoreUnavailableError:
                self.outages += 1
                resume = True
                await anyio.sleep(0.02)
                continue
            for job, code in zip(done, reply.settled, strict=True):
                fine = {SettleCode.OK, SettleCode.ALREADY} if resume else {SettleCode.OK}
                assert code in fine
                self.accepted.append(job.record.id)
            return reply.jobs

    async def reached(self, number: int) -> None:
        """Wait until so many outcomes were accepted."""
        while len(self.accepted) < number:  # noqa: ASYNC110 - the worker runs beside
            await anyio.sleep(0.002)

    async def run(self, total: int) -> None:
        calls, done = 0, list[Claimed]()
        while len(self.accepted) < total or done:
            calls += 1
            done = await self.step(Token(f"{self._name}-{calls}"), done)
            await asyncio.sleep(0)


async def test_a_killed_server_loses_nothing_and_ends_nothing_twice(
    mine: PostgresStore, server: PostgresServer
) -> None:
    await mine.configure(Q, QueuePatch(event_cap=1_000_000))
    async with listening(mine) as ear:
        await mine.publish(Q, [Event("begin")])
        await ear.until("begin")
        cursor = ear.cursor
    total = 6_000
    for n in range(0, total, 1_000):
        await add(mine, *(f"{m}" for m in range(n, n + 1_000)))
    worker = Worker(mine, "ada")
    with anyio.fail_after(6 * PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, total)
            for kill in range(3):
                await worker.reached((kill + 1) * total // 4)
                await anyio.to_thread.run_sync(server.stop)
                await anyio.to_thread.run_sync(server.start)
    assert worker.outages > 0
    assert len(worker.accepted) == len(set(worker.accepted)) == total
    assert await numbers(mine) == {"completed": total}
    page = await mine.page(Q, [JobState.COMPLETED], limit=total)
    assert {(job.fence, job.crashes, job.attempts_made) for job in page.items} == {(1, 0, 1)}
    await assert_sound(mine)
    async with listening(mine, after=cursor) as ear:
        await mine.publish(Q, [Event("end")])
        heard = await ear.until("end")
    ends = [id for kind, id, _ in heard if kind == "completed"]
    assert len(ends) == len(set(ends)) == total


async def test_work_goes_on_when_all_connections_are_cut(mine: PostgresStore, server: PostgresServer) -> None:
    total = 2_000
    await add(mine, *(f"{n}" for n in range(total)))
    worker = Worker(mine, "ada")
    cutter = await asyncpg.connect(server.url)
    with anyio.fail_after(3 * PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, total)
            for cut in range(5):
                await worker.reached((cut + 1) * total // 7)
                await cutter.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
    await cutter.close()
    assert sorted(worker.accepted) == sorted(f"{n}" for n in range(total))
    assert await numbers(mine) == {"completed": total}
    await assert_sound(mine)


async def listeners(raw: Any) -> list[int]:
    rows = await raw.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'workers_module wake-up'")
    return [row["pid"] for row in rows]


async def until(true: Callable[[], Awaitable[object]]) -> None:
    with anyio.fail_after(PATIENCE):
        while not await true():  # noqa: ASYNC110 - it comes true in the server
            await anyio.sleep(0.01)


async def test_a_listener_that_is_cut_listens_again(mine: PostgresStore, server: PostgresServer) -> None:
    raw = await asyncpg.connect(server.url)
    await until(lambda: listeners(raw))
    (before,) = await listeners(raw)
    await raw.execute("SELECT pg_terminate_backend($1)", before)

    async def another() -> bool:
        return bool(set(await listeners(raw)) - {before})

    await until(another)
    other = PostgresStore(server.url)
    await other.open()
    woken: list[str] = []

    async def sleep() -> None:
        woken.extend(ids_of((await mine.wait(step(1), PATIENCE)).jobs))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sleep)
            await add(other, "a")
    assert woken == ["a"]
    await other.close()
    await raw.close()


async def test_who_does_not_listen_finds_the_job_all_the_same(server: PostgresServer) -> None:
    deaf = PostgresStore(server.url, wakeup="poll", prepare=False, pool_max=1)
    other = PostgresStore(server.url, wakeup="poll")
    await deaf.open()
    await other.open()
    woken: list[str] = []
    heard: list[str] = []

    async def sleep() -> None:
        woken.extend(ids_of((await deaf.wait(step(1), PATIENCE)).jobs))

    async def listen() -> None:
        async with listening(deaf) as ear:
            started.set()
            heard.extend(types_of(await ear.until("active")))

    started = anyio.Event()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await started.wait()
            tasks.start_soon(sleep)
            await anyio.sleep(0.05)
            await add(other, "a")
    assert (woken, heard) == (["a"], ["added", "waiting", "active"])
    await deaf.close()
    await other.close()


async def test_a_server_that_is_not_there_is_unavailable(server: PostgresServer) -> None:
    store = PostgresStore(server.url)
    server.stop()
    with pytest.raises(StoreUnavailableError, match="is not there"):
        await store.open()
    await anyio.to_thread.run_sync(server.start)
    await store.open()
    await add(store, "a")
    await anyio.to_thread.run_sync(server.stop)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.add([spec("b")]),
        lambda: store.add([spec()]),
        lambda: store.step(step(1)),
        lambda: store.sweep(Sweep(queue=Q, interval_ms=1)),
        lambda: store.counts([Q]),
    ]
    for call in calls:
        with anyio.fail_after(PATIENCE), pytest.raises(StoreUnavailableError):
            await call()
    renewer = store.renewer()
    assert await anyio.to_thread.run_sync(renewer.renew, Q, list[Held](), 1_000) == RenewReply()
    with pytest.raises(StoreUnavailableError):
        await anyio.to_thread.run_sync(renewer.renew, Q, [held()], 1_000)
    await anyio.to_thread.run_sync(server.start)
    reply = await anyio.to_thread.run_sync(renewer.renew, Q, [held()], 1_000)
    assert reply.lost == ("a",)
    renewer.close()
    assert ids_of(await claim(store, 5)) == ["a"]
    await store.close()


def held() -> Held:
    return Held("a", Token("nobody's"), 1)


async def test_a_lost_reply_is_told_from_a_refusal(
    live: PostgresStore, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is carried out, and its connection ends before the reply is read."""

    async def cut(self: asyncpg.Connection, sql: str, *args: Any) -> Any:
        rows = await fetch(self, sql, *args)
        if "add_1" not in sql:
            return rows
        self.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    fetch = asyncpg.Connection.fetch
    monkeypatch.setattr(asyncpg.Connection, "fetch", cut)
    with pytest.raises(StoreOutcomeUnknownError, match="may or may not"):
        await live.add([spec()])
    with pytest.raises(StoreUnavailableError):
        await live.add([spec("a")])
    monkeypatch.undo()
    (again,) = await live.add([spec("a")])
    assert again.existing == "same_id"
    assert await numbers(live) == {"waiting": 2}


async def test_a_lock_held_for_minutes_is_an_outage_only_for_who_needs_it(
    live: PostgresStore, place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, schema = place
    monkeypatch.setattr(connect, "REPLY_SECONDS", 0.5)
    hasty = PostgresStore(url, schema=schema)
    await hasty.open()
    await add(live, "a", "b")
    (job,) = await claim(live, 1)
    holder = await asyncpg.connect(url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(f"SELECT 1 FROM \"{schema}\".job WHERE id = 'a' FOR UPDATE")
    end = step(outcomes=[Settle(job.held, Completed(b"1"))])
    with anyio.fail_after(PATIENCE):
        with pytest.raises(StoreUnavailableError):
            await hasty.step(end)
        assert ids_of(await claim(hasty, 5)) == ["b"]
        await add(hasty, "c")
    await transaction.rollback()
    await holder.close()
    assert (await hasty.step(end)).settled == [SettleCode.OK]
    await hasty.close()
    await assert_sound(live)


async def test_calls_that_meet_are_made_again(live: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    times = 0

    async def met(self: asyncpg.Connection, sql: str, *args: Any) -> Any:
        nonlocal times
        times += "add_1" in sql
        if "add_1" in sql and times < 4:
            raise asyncpg.DeadlockDetectedError("deadlock detected")
        return await fetch(self, sql, *args)

    fetch = asyncpg.Connection.fetch
    monkeypatch.setattr(asyncpg.Connection, "fetch", met)
    assert (await live.add([spec("a")]))[0].existing is None
    assert times == 4
    assert await numbers(live) == {"waiting": 1}


async def test_calls_that_meet_for_ever_are_an_outage(live: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def met(self: asyncpg.Connection, sql: str, *args: Any) -> Any:
        if "add_1" in sql:
            raise asyncpg.SerializationError("could not serialize access")
        return await fetch(self, sql, *args)

    fetch = asyncpg.Connection.fetch
    monkeypatch.setattr(asyncpg.Connection, "fetch", met)
    with pytest.raises(StoreUnavailableError, match="40001"):
        await live.add([spec("a")])


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("28P01", StoreDeniedError),
        ("42501", StoreDeniedError),
        ("53100", StoreFullError),
        ("53300", StoreUnavailableError),
        ("57P03", StoreUnavailableError),
        ("25006", StoreUnavailableError),
        ("55P03", StoreUnavailableError),
        ("40001", StoreUnavailableError),
        ("08006", StoreUnavailableError),
        ("42P01", StoreCorruptError),
        ("3D000", ConfigurationError),
        ("XX000", StoreError),
    ],
)
def test_each_answer_has_its_class(code: str, kind: type[Exception]) -> None:
    error = of_server(code, "so it is", "postgresql://host/jobs")
    assert type(error) is kind or (kind is StoreUnavailableError and isinstance(error, kind))
    assert code in str(error)


async def test_a_database_that_is_not_there_is_said(server: PostgresServer) -> None:
    with pytest.raises(ConfigurationError, match="Create the database"):
        await PostgresStore(server.url.replace("/postgres?", "/nowhere?")).open()


async def test_a_user_without_rights_is_denied(server: PostgresServer) -> None:
    raw = await asyncpg.connect(server.url)
    await raw.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(StoreDeniedError, match="42501"):
        await PostgresStore(server.url.replace("postgres@", "guest@")).open()
    await raw.close()


def test_no_password_is_shown() -> None:
    store = PostgresStore("postgresql://ada:s3cret@db.example:5432/jobs")
    assert "s3cret" not in store._address.place
    assert store._address.place == "postgresql://ada:***@db.example:5432/jobs (schema workers_module)"
