"""Adding inside a transaction of the application's: which connections are taken, and how a plan runs on each.

Drivers are recognised through `sys.modules`: a connection of a package that was never imported cannot exist.
"""

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from workers_module.errors import ConfigurationError
from workers_module.store.sqlite.faults import translate
from workers_module.store.sqlite.work import Many, Plan, Rows, Statement

T = TypeVar("T")

_SYNC_KINDS: Final = "a sqlite3 connection, or a Session or Connection of SQLAlchemy, none that is asynchronous"
_KINDS: Final = "a sqlite3 or aiosqlite connection, or a Session or Connection of SQLAlchemy, asynchronous ones as well"


async def run_inside(tx: object, plan: Callable[[], Plan[T]], *, prefix: str, path: Path) -> T:
    """Run a plan in the transaction of ``tx``, whole or not at all; that transaction goes on.

    Raises:
        ConfigurationError: ``tx`` is nothing this store knows, is in no transaction, or belongs to another file.
    """
    guarded = _guarded(plan, prefix=prefix, path=path)
    with _ours(path):
        aiosqlite = sys.modules.get("aiosqlite")
        if aiosqlite is not None and isinstance(tx, aiosqlite.Connection):
            return await _whole(_run_aiosqlite(tx, guarded))
        connection: Any = tx
        if isinstance(tx, _sqlalchemy("ext.asyncio", "AsyncSession", "async_scoped_session")):
            connection = await connection.connection()
        if isinstance(connection, _sqlalchemy("ext.asyncio", "AsyncConnection")):
            return await _whole(connection.run_sync(_run_sqlalchemy, guarded))
        return _run_blocking(tx, guarded, _KINDS)


def run_inside_sync(tx: object, plan: Callable[[], Plan[T]], *, prefix: str, path: Path) -> T:
    """Do what `run_inside` does, with connections that block."""
    with _ours(path):
        return _run_blocking(tx, _guarded(plan, prefix=prefix, path=path), _SYNC_KINDS)


def _run_blocking(tx: Any, guarded: "_Guarded[T]", kinds: str) -> T:
    if isinstance(tx, sqlite3.Connection):
        return _run_sqlite(tx, guarded)
    connection = tx.connection() if isinstance(tx, _sqlalchemy("orm", "Session", "scoped_session")) else tx
    if isinstance(connection, _sqlalchemy("engine", "Connection")):
        return _run_sqlalchemy(connection, guarded)
    raise ConfigurationError(f"tx={type(tx).__module__}.{type(tx).__qualname__}: the SQLite store takes {kinds}")


@contextmanager
def _ours(path: Path) -> Generator[None]:
    """Turn the driver's errors into ours, also where SQLAlchemy has wrapped them."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error
    except Exception as error:
        cause = getattr(error, "orig", None)
        if isinstance(cause, sqlite3.Error):
            raise translate(cause, path) from error
        raise


class _Begin:
    """Asks the runner to see to it that a transaction is open."""


_Asked = Statement | _Begin
_Guarded = Generator[_Asked, Rows, T]


def _guarded(plan: Callable[[], Plan[T]], *, prefix: str, path: Path) -> "_Guarded[T]":
    """Check the file, open the transaction if it is only announced, and undo a plan that fails."""
    files = yield "PRAGMA database_list", ()
    theirs = next((file for _, name, file in files if name == "main"), "")
    if not theirs or not _same(Path(theirs), path):
        raise ConfigurationError(
            f"tx belongs to {theirs or 'a database in memory'}, this store to {path}: "
            "a transaction cannot reach over two files"
        )
    yield _Begin()
    yield "SAVEPOINT wm_add", ()
    try:
        inner = plan()
        rows: Rows = []
        try:
            statement = next(inner)
            while True:
                rows = yield _prefixed(statement, prefix)
                statement = inner.send(rows)
        except StopIteration as end:
            value: T = end.value
    except Exception:
        yield "ROLLBACK TO wm_add", ()
        yield "RELEASE wm_add", ()
        raise
    yield "RELEASE wm_add", ()
    return value


def _prefixed(statement: Statement, prefix: str) -> Statement:
    if prefix == "wm_":
        return statement
    if isinstance(statement, Many):
        return Many(statement.sql.replace("wm_", prefix), statement.rows)
    return statement[0].replace("wm_", prefix), statement[1]


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _need_begin(connection: Any) -> bool:
    """Tell whether a transaction must be opened.

    Raises:
        ConfigurationError: The connection commits each statement by itself.
    """
    if connection.in_transaction:
        return False
    if connection.isolation_level is None or getattr(connection, "autocommit", None) is True:
        raise ConfigurationError(
            "tx is in no transaction, and its connection commits each statement by itself: execute BEGIN first"
        )
    return True


async def _whole(run: Coroutine[Any, Any, T]) -> T:
    """Run something to its end though the caller is cancelled: a half of it might be committed by the caller."""
    task = asyncio.create_task(run)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


# --- the runners ------------------------------------------------------------------------------------------------------


def _drive(guarded: "_Guarded[T]", execute: Callable[[_Asked], Rows]) -> T:
    try:
        asked = next(guarded)
        while True:
            try:
                rows = execute(asked)
            except Exception as error:
                asked = guarded.throw(error)
            else:
                asked = guarded.send(rows)
    except StopIteration as end:
        value: T = end.value
        return value


def _run_sqlite(connection: sqlite3.Connection, guarded: "_Guarded[T]") -> T:
    cursor = connection.cursor()
    cursor.row_factory = None

    def execute(asked: _Asked) -> Rows:
        if isinstance(asked, _Begin):
            if _need_begin(connection):
                cursor.execute("BEGIN IMMEDIATE")
            return []
        if isinstance(asked, Many):
            cursor.executemany(asked.sql, asked.rows)
            return []
        return cursor.execute(asked[0], asked[1]).fetchall()

    try:
        return _drive(guarded, execute)
    finally:
        cursor.close()


async def _run_aiosqlite(connection: Any, guarded: "_Guarded[T]") -> T:
    cursor = await connection.cursor()
    cursor.row_factory = None
    try:
        asked = next(guarded)
        while True:
            rows: Rows = []
            try:
                if isinstance(asked, _Begin):
                    if _need_begin(connection):
                        await cursor.execute("BEGIN IMMEDIATE")
                elif isinstance(asked, Many):
                    await cursor.executemany(asked.sql, asked.rows)
                else:
                    await cursor.execute(asked[0], asked[1])
                    rows = list(await cursor.fetchall())
            except Exception as error:
                asked = guarded.throw(error)
            else:
                asked = guarded.send(rows)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        await cursor.close()


def _run_sqlalchemy(connection: Any, guarded: "_Guarded[T]") -> T:
    if connection.dialect.name != "sqlite":
        raise ConfigurationError(f"tx is a {connection.dialect.name} connection; the SQLite store takes {_KINDS}")

    def execute(asked: _Asked) -> Rows:
        if isinstance(asked, _Begin):
            if _need_begin(connection.connection.driver_connection):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            return []
        if isinstance(asked, Many):
            connection.exec_driver_sql(asked.sql, [tuple(row) for row in asked.rows])
            return []
        result = connection.exec_driver_sql(asked[0], tuple(asked[1]))
        return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    return _drive(guarded, execute)


def _sqlalchemy(name: str, *types: str) -> tuple[type[Any], ...]:
    """Return some types of SQLAlchemy; none when their module was never imported."""
    module = sys.modules.get(f"sqlalchemy.{name}")
    return () if module is None else tuple(getattr(module, one) for one in types)
