# ruff: noqa: ASYNC240 - small files of a test
"""What goes wrong with files: full disks, locks, damage, rights."""

import os
import sqlite3
import threading
from pathlib import Path

import anyio
import pytest

from tests.store.helpers import PATIENCE, Q, add, assert_sound, claim_one, complete, numbers, spec
from tests.store.sqlite.conftest import writer_of
from workers_module.errors import StoreCorruptError, StoreDeniedError, StoreError, StoreFullError, StoreUnavailableError
from workers_module.job.outcome import Keep
from workers_module.store.sqlite.faults import translate
from workers_module.store.sqlite.store import SqliteStore

pytestmark = pytest.mark.sqlite


def limit_pages(store: SqliteStore, more: int | None) -> None:
    """Let the file grow by so many pages and no further; None lifts the limit."""
    raw = writer_of(store)._connection.raw
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {2**30 if more is None else pages + more}")


async def test_a_full_disk_refuses_the_call_and_keeps_what_was_there(store: SqliteStore, path: Path) -> None:
    await add(store, "a", "b")
    limit_pages(store, 2)
    with pytest.raises(StoreFullError, match=str(path)):
        await store.add([spec("large", data=b'"' + b"x" * 100_000 + b'"')])
    assert await numbers(store) == {"waiting": 2}
    await assert_sound(store)
    limit_pages(store, None)
    await add(store, "c")
    assert await numbers(store) == {"waiting": 3}


async def test_a_job_can_end_when_the_disk_is_full(store: SqliteStore) -> None:
    await add(store, "a", data=b'"' + b"x" * 50_000 + b'"')
    job = await claim_one(store)
    limit_pages(store, 0)
    await complete(store, job, keep=Keep(count=0))
    assert await numbers(store) == {}
    limit_pages(store, None)


async def test_a_call_that_fills_the_disk_fails_alone_or_with_all_but_never_by_half(store: SqliteStore) -> None:
    await add(store, "a")
    limit_pages(store, 3)
    results: list[object] = []

    async def one(number: int) -> None:
        size = 100_000 if number == 5 else 10
        try:
            results.append(await store.add([spec(f"n{number}", data=b'"' + b"x" * size + b'"')]))
        except StoreFullError as error:
            results.append(error)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(one, number)
    limit_pages(store, None)
    good = sum(not isinstance(one, StoreFullError) for one in results)
    assert len(results) == 10
    assert await store.get(Q, ["n5"]) == [None]
    assert await numbers(store) == {"waiting": 1 + good}
    await assert_sound(store)


async def test_a_file_that_somebody_else_holds_is_unavailable_and_comes_back(store: SqliteStore, path: Path) -> None:
    await add(store, "a")
    writer_of(store)._connection.raw.execute("PRAGMA busy_timeout = 20")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreUnavailableError, match=r"jobs\.db.*locked.*keep its transactions short"):
            await add(store, "b")
        # Readers do not care.
        assert await numbers(store) == {"waiting": 1}
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    await add(store, "b")
    assert await numbers(store) == {"waiting": 2}


async def test_a_process_that_keeps_its_turn_is_named(
    store: SqliteStore, other: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = writer_of(other)._gate
    assert gate is not None
    gate.enter(PATIENCE)
    mine = writer_of(store)._gate
    assert mine is not None
    enter = mine.enter
    monkeypatch.setattr(mine, "enter", lambda: enter(0.01))
    with pytest.raises(StoreUnavailableError, match="turn to write"):
        await add(store, "a")
    gate.leave()
    monkeypatch.undo()
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}


async def test_a_file_that_is_no_database_is_corrupt(path: Path) -> None:
    path.write_bytes(b"this is not a database, but it is long enough to be one " * 100)
    before = set(threading.enumerate())
    with pytest.raises(StoreCorruptError, match=f"{path}.*backup"):
        await SqliteStore(path).open()
    assert not [one for one in set(threading.enumerate()) - before if one.name.startswith("workers-sqlite")]


async def test_damage_found_later_is_corrupt(store: SqliteStore, path: Path) -> None:
    await add(store, *(f"{n}" for n in range(500)), data=b'"' + b"x" * 300 + b'"')
    await store.close()
    raw = bytearray(path.read_bytes())
    raw[4_096:] = b"\xff" * (len(raw) - 4_096)
    path.write_bytes(raw)
    with pytest.raises(StoreCorruptError, match=str(path)):
        await store.open()


async def test_tables_that_were_dropped_are_named(store: SqliteStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE wm_job")
    connection.close()
    with pytest.raises(StoreCorruptError, match="no such table: wm_job"):
        await add(store, "a")


async def test_a_file_that_may_not_be_written_is_denied(path: Path) -> None:
    store = SqliteStore(path)
    await store.open()
    await add(store, "a")
    writer_of(store)._connection.raw.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreDeniedError, match=f"{path}.*write"):
        await add(store, "b")
    await store.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write everywhere")
async def test_a_folder_that_may_not_be_written_is_told(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(StoreError, match=str(path)):
            await SqliteStore(path).open()
    finally:
        path.parent.chmod(0o700)


async def test_a_path_that_is_a_folder_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").mkdir()
    with pytest.raises(StoreUnavailableError, match=r"jobs\.db"):
        await SqliteStore(tmp_path / "jobs.db").open()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, StoreFullError),
        (sqlite3.SQLITE_BUSY, StoreUnavailableError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreUnavailableError),
        (sqlite3.SQLITE_LOCKED, StoreUnavailableError),
        (sqlite3.SQLITE_IOERR_READ, StoreUnavailableError),
        (sqlite3.SQLITE_CANTOPEN, StoreUnavailableError),
        (sqlite3.SQLITE_CORRUPT_INDEX, StoreCorruptError),
        (sqlite3.SQLITE_NOTADB, StoreCorruptError),
        (sqlite3.SQLITE_READONLY_DBMOVED, StoreDeniedError),
        (sqlite3.SQLITE_PERM, StoreDeniedError),
    ],
)
def test_each_kind_of_error_is_ours(code: int, kind: type[StoreError]) -> None:
    error = sqlite3.OperationalError("something happened")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_X"
    ours = translate(error, Path("/data/jobs.db"))
    assert type(ours) is kind
    assert "/data/jobs.db" in str(ours)
    assert "something happened" in str(ours)
