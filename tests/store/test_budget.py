"""What a call may cost, counted and not timed."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.store.helpers import Q, add, claim, spec, step
from workers_module.clock import FrozenClock
from workers_module.job.outcome import Completed, Failed, Keep, Retry
from workers_module.store.base import Store
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import DedupSpec, Settle

pytestmark = pytest.mark.sqlite


class Counter:
    """Counts what every SQLite connection of this process executes."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    def __call__(self, statement: str) -> None:
        self.statements.append(statement.strip())

    def count(self, *words: str) -> int:
        """Return how many statements begin with one of some words."""
        return sum(statement.upper().startswith(words) for statement in self.statements)

    def transactions(self) -> int:
        """Return how many transactions were begun to write; each must have been committed."""
        begun, ended = self.count("BEGIN IMMEDIATE"), self.count("COMMIT", "END")
        assert self.count("ROLLBACK") == self.count("ROLLBACK TO")
        assert ended >= begun
        return begun

    def changes(self) -> int:
        """Return how many statements write."""
        return self.count("INSERT", "UPDATE", "DELETE", "REPLACE")


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Watch every connection opened from now on."""
    counter = Counter()
    connect = sqlite3.connect

    def watched(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(counter)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    return counter


@pytest.fixture
async def store(counter: Counter, tmp_path: Path, clock: FrozenClock) -> AsyncIterator[SqliteStore]:
    """Return an open store whose statements are counted from here on."""
    store = SqliteStore(tmp_path / "jobs.db", clock=clock)
    await store.open()
    counter.statements.clear()
    yield store
    await store.close()


@pytest.mark.parametrize("number", [1, 100])
async def test_a_call_to_add_is_one_transaction(store: Store, counter: Counter, number: int) -> None:
    await store.add([spec(f"{n}", queue=f"q{n % 3}", dedup=DedupSpec(f"{n}")) for n in range(number)])
    assert counter.transactions() == 1


async def test_a_flow_is_one_transaction(store: Store, counter: Counter) -> None:
    await store.add([*(spec(f"{n}", parent=10) for n in range(10)), spec("p")])
    assert counter.transactions() == 1


async def test_settling_and_claiming_is_one_transaction(store: Store, counter: Counter) -> None:
    await store.add([spec(f"{n}", priority=n % 3, tags=("eu",) if n % 2 else ()) for n in range(200)])
    jobs = await claim(store, 50)
    outcomes: Sequence[Any] = (Completed(b"1", Keep(count=5)), Failed("no"), Retry(0, "no"), Retry(500, "no"))
    counter.statements.clear()
    reply = await store.step(step(50, outcomes=[Settle(job.held, outcomes[n % 4]) for n, job in enumerate(jobs)]))
    assert len(reply.jobs) == 50
    assert counter.transactions() == 1


async def test_the_statements_of_a_step_do_not_grow_with_its_batch(store: Store, counter: Counter) -> None:
    async def cost(batch: int) -> int:
        await store.add([spec() for _ in range(2 * batch)])
        jobs = await claim(store, batch)
        counter.statements.clear()
        await store.step(step(batch, outcomes=[Settle(job.held, Completed(b"1")) for job in jobs]))
        assert counter.transactions() == 1
        return sum(not statement.upper().startswith(("UPDATE", "INSERT", "DELETE")) for statement in counter.statements)

    few = await cost(5)
    many = await cost(50)
    assert many <= few + 10


async def test_an_empty_step_writes_nothing(store: Store, counter: Counter) -> None:
    await add(store, "a", queue="elsewhere")
    counter.statements.clear()
    await store.step(step(5))
    assert counter.changes() == 0


async def test_calls_made_together_share_a_transaction(store: Store, counter: Counter) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(100):
            tasks.start_soon(store.add, [spec(f"{n}")])
    assert (await store.counts([Q]))[0].waiting == 100
    assert counter.transactions() <= 50


async def test_reading_begins_no_transaction_to_write(store: Store, counter: Counter) -> None:
    await add(store, "a")
    counter.statements.clear()
    await store.get(Q, ["a"])
    await store.counts([Q])
    await store.page(Q, [])
    await store.logs(Q, "a")
    await store.configure(Q)
    await store.schedules(Q)
    assert counter.changes() == 0
