"""Calls whose transactions overlap: what neither sees of the other must be made up for."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tests.store.helpers import (
    LEASE,
    PATIENCE,
    Q,
    add,
    assert_sound,
    claim,
    complete,
    ids_of,
    listening,
    numbers,
    settle,
    spec,
    step,
    sweep,
    types_of,
)
from workers_module.job.outcome import Completed, Keep
from workers_module.store.postgres.asking import outcome_args
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import Claimed, Settle

pytestmark = pytest.mark.postgres

_WAITS = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted LIMIT 1"
_STEP = f"SELECT * FROM step_1({', '.join(f'${n}' for n in range(1, 27))})"


async def finish_inside(connection: Any, jobs: Sequence[Claimed], keep: Keep | None = None) -> list[int]:
    """Complete jobs in a connection's transaction, which goes on; the codes."""
    outcomes = [Settle(job.held, Completed(b"1", keep)) for job in jobs]
    # It counts in a row of its own: connections whose numbers are alike would wait for each other.
    await connection.execute("SELECT set_config('workers_module.foreign', 'on', true)")
    who = (Q, b"w", "t", 0, LEASE, None, None, None, 0, False, None, None)
    (row,) = await connection.fetch(_STEP, *who, *outcome_args(outcomes), None)
    codes: list[int] = row["codes"]
    return codes


async def until_one_waits(raw: Any) -> None:
    """Wait until some call waits for an advisory lock."""
    with anyio.fail_after(PATIENCE):
        while not await raw.fetchval(_WAITS):  # noqa: ASYNC110 - the server knows
            await anyio.sleep(0.01)


async def test_the_last_of_those_that_end_the_last_jobs_tells_it(store: PostgresStore, raw: Any) -> None:
    await add(store, "a", "b")
    first, second = await claim(store, 2)
    async with listening(store) as ear:
        async with anyio.create_task_group() as tasks, raw.transaction():
            assert await finish_inside(raw, [first]) == [0]
            tasks.start_soon(complete, store, second)
            await until_one_waits(raw)
        await ear.until("drained")
        await add(store, "c")
        heard = types_of(await ear.until("waiting"))
    assert "drained" not in heard
    assert await numbers(store) == {"completed": 2, "waiting": 1}
    await assert_sound(store)


async def test_one_that_is_rolled_back_drains_nothing(store: PostgresStore, raw: Any) -> None:
    await add(store, "a", "b")
    first, second = await claim(store, 2)
    async with listening(store) as ear:
        async with anyio.create_task_group() as tasks:
            transaction = raw.transaction()
            await transaction.start()
            await finish_inside(raw, [first])
            tasks.start_soon(complete, store, second)
            await until_one_waits(raw)
            await transaction.rollback()
        assert "drained" not in types_of(await ear.until("completed"))
        await complete(store, first)
        assert types_of(await ear.until("drained")) == ["completed", "drained"]


async def test_a_trim_that_met_another_one_is_made_up_for_by_the_sweep(store: PostgresStore, raw: Any) -> None:
    keep = Keep(count=2)
    await add(store, *"abcdefg")
    jobs = await claim(store, 6)
    async with raw.transaction():
        await finish_inside(raw, jobs[:3], keep)
        reply = await store.step(step(outcomes=[Settle(job.held, Completed(b"1", keep)) for job in jobs[3:]]))
        assert [str(code) for code in reply.settled] == ["ok"] * 3
    assert await numbers(store) == {"completed": 5, "waiting": 1}
    assert not (await sweep(store)).more
    assert await numbers(store) == {"completed": 2, "waiting": 1}
    assert await raw.fetchval("SELECT count(*) FROM untrimmed") == 0
    await assert_sound(store)


async def test_a_sweep_leaves_the_trim_of_a_call_it_cannot_see(store: PostgresStore, raw: Any, later: Any) -> None:
    keep = Keep(count=1)
    await add(store, *"abcde")
    jobs = await claim(store, 4)
    async with raw.transaction():
        # Somebody trims, so that this one leaves it; and it has not committed when the sweep comes.
        await store.step(step(outcomes=[Settle(job.held, Completed(b"1", keep)) for job in jobs[:2]]))
        await raw.execute("SELECT untrimmed_noted(1, 4, 1, NULL)")
        await finish_inside(raw, jobs[2:])
        await sweep(store)
    assert await numbers(store) == {"completed": 3, "waiting": 1}
    later(60_000)
    await sweep(store)
    assert await numbers(store) == {"completed": 1, "waiting": 1}


async def test_settling_goes_on_while_another_trims(store: PostgresStore, raw: Any) -> None:
    await add(store, "a", "b", "c")
    jobs = await claim(store, 2)
    async with raw.transaction():
        await finish_inside(raw, jobs[:1], Keep(count=0))
        with anyio.fail_after(PATIENCE):
            assert await settle(store, jobs[1], Completed(b"1", Keep(count=1))) == "ok"
            assert ids_of(await claim(store)) == ["c"]


async def test_an_id_that_somebody_took_meanwhile_is_chosen_anew(store: PostgresStore, raw: Any) -> None:
    await add(store, "a")
    # What a transaction looks like that has not noted its number yet when the next one is drawn.
    columns = "n, seq, q, state, added, id, name, opts, data"
    await raw.execute(f"INSERT INTO job ({columns}) VALUES (900, 921600, 1, 1, 0, '1', '', '{{}}', '{{}}')")
    await raw.execute("SELECT counted(1, ARRAY[1, 0, 0, 0, 0, 0, 0])")
    assert [one.id for one in await store.add([spec(), spec()])] == ["2", "3"]
    assert await numbers(store) == {"waiting": 4}
    await assert_sound(store)
