# ruff: noqa: ASYNC240 - small files of a test
"""The file: who makes it, what is in it, and which code may use it."""

import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.store.helpers import PATIENCE, add, numbers, run
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.store.migrate import Migration, read_migrations
from workers_module.store.open import migrations_sql, migrations_status
from workers_module.store.sqlite import schema
from workers_module.store.sqlite.store import SqliteStore
from workers_module.url import QueueKind

pytestmark = pytest.mark.sqlite


def query(path: Path, sql: str) -> Any:
    """Ask the file without the store."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def execute(path: Path, script: str) -> None:
    """Change the file without the store."""
    connection = sqlite3.connect(path)
    try:
        connection.executescript(script)
    finally:
        connection.close()


def with_second_migration(monkeypatch: pytest.MonkeyPatch, min_code: int = 1, sql: str = "") -> None:
    """Let this code know one migration more."""
    real = read_migrations(schema.PACKAGE)
    second = Migration(
        number=2, name="more", sql=sql or "ALTER TABLE wm_job ADD COLUMN colour TEXT;", min_code=min_code
    )

    def known(_: str) -> tuple[Migration, ...]:
        return (*real, second)

    monkeypatch.setattr(schema, "read_migrations", known)


async def test_a_new_file_gives_its_pages_back(store: SqliteStore, path: Path) -> None:
    assert query(path, "PRAGMA auto_vacuum") == [(2,)]
    assert query(path, "PRAGMA journal_mode") == [("wal",)]
    assert (await store.open()).warnings == ()


async def test_a_file_of_an_application_keeps_its_settings(path: Path) -> None:
    execute(
        path,
        "PRAGMA page_size = 8192; PRAGMA user_version = 17; PRAGMA application_id = 99;"
        "CREATE TABLE account (id INTEGER);"
        "INSERT INTO account VALUES (1);",
    )
    store = SqliteStore(path)
    info = await store.open()
    await add(store, "a")
    await run(store, "a")
    await store.close()
    for pragma, value in (("auto_vacuum", 0), ("page_size", 8192), ("user_version", 17), ("application_id", 99)):
        assert query(path, f"PRAGMA {pragma}") == [(value,)]
    assert query(path, "SELECT * FROM account") == [(1,)]
    assert len(info.warnings) == 1
    assert "'delete' and is 'wal' now" in info.warnings[0]


async def test_all_names_begin_with_the_prefix(path: Path) -> None:
    store = SqliteStore(path, prefix="jobs_")
    await store.open()
    await add(store, "a", tags=("eu",), data=b'"' + b"x" * 10_000 + b'"')
    await run(store, "a", tags=("eu",))
    assert await numbers(store) == {"completed": 1}
    await store.close()
    names = [name for (name,) in query(path, "SELECT name FROM sqlite_master")]
    assert names
    assert [name for name in names if not name.startswith(("jobs_", "sqlite_"))] == []


async def test_two_prefixes_in_a_file_do_not_meet(path: Path) -> None:
    one, two = SqliteStore(path, prefix="one_"), SqliteStore(path, prefix="two_")
    await one.open()
    await two.open()
    await add(one, "a")
    assert await numbers(two) == {}
    assert await numbers(one) == {"waiting": 1}
    await one.close()
    await two.close()


@pytest.mark.parametrize("prefix", ["", "1a", "a-b", "a b", "wm;", 'x"', "é"])
def test_a_prefix_that_is_no_name_is_refused(path: Path, prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        SqliteStore(path, prefix=prefix)


@pytest.mark.parametrize("name", ["", ":memory:", "file:jobs.db?mode=ro"])
def test_what_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="path of a file"):
        SqliteStore(name)


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"folder .*nowhere does not exist"):
        await SqliteStore(tmp_path / "nowhere" / "jobs.db").open()


async def test_a_file_is_only_made_when_that_is_allowed(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist, and create=False"):
        await SqliteStore(path, create=False).open()
    assert not path.exists()


async def test_an_older_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 23, 9))
    with pytest.raises(ConfigurationError, match=r"3\.24\.0 or newer"):
        await SqliteStore(path).open()


# --- migrations -------------------------------------------------------------------------------------------------------


async def test_ten_may_open_a_new_file_at_once(path: Path) -> None:
    stores = [SqliteStore(path) for _ in range(10)]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for store in stores:
                tasks.start_soon(store.open)
    for number, store in enumerate(stores):
        await add(store, f"{number}")
    assert await numbers(stores[0]) == {"waiting": 10}
    assert query(path, "SELECT value FROM wm_meta WHERE key = 'schema'") == [("1",)]
    assert query(path, "PRAGMA auto_vacuum") == [(2,)]
    for store in stores:
        await store.close()


async def test_an_older_schema_is_brought_up_to_date_with_its_jobs(
    path: Path, store: SqliteStore, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, "a")
    with_second_migration(monkeypatch)
    newer = SqliteStore(path, clock=clock)
    await newer.open()
    assert query(path, "SELECT key, value FROM wm_meta ORDER BY key") == [("min_code", "1"), ("schema", "2")]
    # Old and new code side by side.
    await run(store, "a")
    await add(store, "b")
    await run(newer, "b")
    assert await numbers(newer) == {"completed": 2}
    await newer.close()


async def test_ten_may_migrate_at_once(path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with_second_migration(monkeypatch)
    stores = [SqliteStore(path) for _ in range(10)]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for one in stores:
                tasks.start_soon(one.open)
    assert query(path, "SELECT value FROM wm_meta WHERE key = 'schema'") == [("2",)]
    for one in stores:
        await one.close()


async def test_an_older_schema_is_left_alone_when_it_may_only_be_checked(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_second_migration(monkeypatch)
    with pytest.raises(ConfigurationError, match=r"has schema 1, this code needs 2.*workers migrations up"):
        await SqliteStore(path, migrate="check").open()
    assert query(path, "SELECT value FROM wm_meta WHERE key = 'schema'") == [("1",)]


async def test_a_schema_that_fits_passes_the_check(path: Path, store: SqliteStore) -> None:
    checked = SqliteStore(path, migrate="check")
    await checked.open()
    await checked.close()


async def test_a_new_file_fails_the_check(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has schema 0"):
        await SqliteStore(path, migrate="check").open()


async def test_a_newer_schema_that_still_fits_is_used(path: Path, store: SqliteStore) -> None:
    execute(path, "UPDATE wm_meta SET value = '7' WHERE key = 'schema'")
    later = SqliteStore(path)
    await later.open()
    await add(later, "a")
    await later.close()
    assert query(path, "SELECT value FROM wm_meta WHERE key = 'schema'") == [("7",)]


async def test_a_newer_schema_that_does_not_fit_is_refused(path: Path, store: SqliteStore) -> None:
    execute(path, "UPDATE wm_meta SET value = '7'")
    with pytest.raises(ConfigurationError, match=r"has schema 7.*this code knows 1"):
        await SqliteStore(path).open()


async def test_a_migration_that_fails_changes_nothing(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add(store, "a")
    with_second_migration(monkeypatch, sql="CREATE TABLE wm_half (a);\nINSERT INTO nowhere VALUES (1);\n")
    with pytest.raises(Exception, match="nowhere"):
        await SqliteStore(path).open()
    assert query(path, "SELECT name FROM sqlite_master WHERE name = 'wm_half'") == []
    assert query(path, "SELECT value FROM wm_meta WHERE key = 'schema'") == [("1",)]
    assert await numbers(store) == {"waiting": 1}


def test_statements_are_cut_where_they_end() -> None:
    script = "-- note; here\nCREATE TABLE a (\n  b TEXT DEFAULT ';'\n);\n\nCREATE INDEX c\n  ON a (b);\n"
    assert [one.split()[-1] for one in schema.statements(script)] == [");", "(b);"]


async def test_migrations_may_be_applied_by_hand(path: Path) -> None:
    url = f"sqlite:///{path}?prefix=jobs_"
    before = await migrations_status(url)
    assert (before.state.number, before.missing) == (0, before.known)
    assert not path.exists()
    raw = sqlite3.connect(path)
    raw.executescript(migrations_sql(QueueKind.SQLITE, name="jobs_"))
    raw.close()
    assert (await migrations_status(url)).missing == ()
    store = SqliteStore(path, prefix="jobs_", migrate="check")
    await store.open()
    await add(store, "a")
    assert await numbers(store) == {"waiting": 1}
    await store.close()
    with pytest.raises(ConfigurationError, match="no migrations"):
        migrations_sql(QueueKind.REDIS)
    with pytest.raises(ConfigurationError, match="no migrations"):
        await migrations_status("memory://")
