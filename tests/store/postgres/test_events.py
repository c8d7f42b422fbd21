"""Events whose numbers are drawn before their transactions end: none is lost, none comes twice."""

import random
from typing import Any

import anyio
import asyncpg
import pytest

from tests.store.helpers import PATIENCE, Q, listening, types_of
from workers_module.errors import ConfigurationError
from workers_module.job.events import Event
from workers_module.store.postgres.store import PostgresStore

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("seed", range(10))
async def test_writers_that_dawdle_and_roll_back_lose_and_repeat_nothing(
    live: PostgresStore, place: tuple[str, str], seed: int
) -> None:
    url, schema = place
    written: list[str] = []

    async def write(who: int) -> None:
        dice = random.Random(seed * 100 + who)
        connection = await asyncpg.connect(url)
        for n in range(25):
            name = f"{who}-{n}"
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f'SELECT "{schema}".publish_1($1, $2, $3, $4)', Q, [name], [None], [b"{}"])
            await anyio.sleep(dice.choice([0, 0, 0.002, 0.01, 0.03]))
            if dice.random() < 0.2:
                await transaction.rollback()
            else:
                await transaction.commit()
                written.append(name)
        await connection.close()

    heard: list[str] = []

    async def read() -> None:
        async with listening(live) as ear:
            started.set()
            heard.extend(types_of(await ear.until("end"))[:-1])

    started = anyio.Event()
    with anyio.fail_after(3 * PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await started.wait()
            async with anyio.create_task_group() as writers:
                for who in range(8):
                    writers.start_soon(write, who)
            await live.publish(Q, [Event("end")])
    assert sorted(heard) == sorted(written)


async def test_a_hole_is_filled_after_a_restart_from_its_cursor(
    live: PostgresStore, place: tuple[str, str], raw: Any
) -> None:
    url, schema = place
    late = await asyncpg.connect(url)
    await live.publish(Q, [Event("begin")])
    async with listening(live) as ear:
        await live.publish(Q, [Event("first")])
        await ear.until("first")
        transaction = late.transaction()
        await transaction.start()
        await late.execute(f'SELECT "{schema}".publish_1($1, $2, $3, $4)', Q, ["late"], [None], [b"{}"])
        await live.publish(Q, [Event("early")])
        assert types_of(await ear.until("early")) == ["early"]
        cursor = ear.cursor
    await transaction.commit()
    await late.close()
    async with listening(live, after=cursor) as ear:
        await live.publish(Q, [Event("end")])
        assert types_of(await ear.until("end")) == ["late", "end"]
        assert ":" not in str(ear.cursor)


async def test_a_hole_that_never_fills_is_given_up(live: PostgresStore, raw: Any) -> None:
    async with listening(live) as ear:
        await live.publish(Q, [Event("one")])
        await ear.until("one")
        async with raw.transaction() as _:
            await raw.execute("SELECT nextval('events_1')")
        await live.publish(Q, [Event("two")])
        await ear.until("two")
        assert ":" in str(ear.cursor)
        with anyio.fail_after(PATIENCE):
            while ":" in str(ear.cursor):
                await live.publish(Q, [Event("more")])
                await ear.until("more")


async def test_what_is_no_cursor_is_refused(store: PostgresStore) -> None:
    with pytest.raises(ConfigurationError, match="no cursor of a Postgres store"):
        async with store.events(Q, after="1700000-0"):
            pass
