"""Adding inside a transaction of the application's: which connections are taken, and how each is asked.

Drivers are recognised through `sys.modules`: a connection of a package that was never imported cannot exist.
"""

import re
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from workers_module.errors import ConfigurationError
from workers_module.store.postgres.asking import ADD_TYPES
from workers_module.store.postgres.connect import of_server

_KINDS: Final = (
    "an asyncpg connection, a psycopg connection, or a Session or Connection of SQLAlchemy over asyncpg, psycopg or "
    "psycopg2; asynchronous ones as well"
)
_SYNC_KINDS: Final = "a psycopg Connection, or a Session or Connection of SQLAlchemy over psycopg or psycopg2"
_NUMBERED: Final = frozenset({"asyncpg"})
_POSITIONAL: Final = frozenset({"psycopg", "psycopg_async", "psycopg2"})
_NO_TRANSACTION: Final = "tx is in no transaction, and its connection commits each statement by itself: begin one first"
_PLACE = re.compile(r"\$(\d+)")


async def add_inside(tx: Any, sql: str, args: Sequence[Any], place: str) -> Sequence[Any]:
    """Call ``add_1`` in the transaction of ``tx``; that goes on.

    Raises:
        ConfigurationError: ``tx`` is nothing this store knows, or is in no transaction.
    """
    with _ours(place):
        if isinstance(tx, _types("asyncpg", "Connection") + _types("asyncpg.pool", "PoolConnectionProxy")):
            if not tx.is_in_transaction():
                raise ConfigurationError(_NO_TRANSACTION)
            rows: Sequence[Any] = await tx.fetch(sql, *args)
            return rows
        if isinstance(tx, _types("psycopg", "AsyncConnection")):
            _check_psycopg(tx)
            async with tx.cursor(row_factory=_tuples()) as cursor:
                await cursor.execute(_positional(sql), args)
                found: Sequence[Any] = await cursor.fetchall()
                return found
        connection = tx
        if isinstance(tx, _types("sqlalchemy.ext.asyncio", "AsyncSession", "async_scoped_session")):
            connection = await tx.connection()
        if isinstance(connection, _types("sqlalchemy.ext.asyncio", "AsyncConnection")):
            ran: Sequence[Any] = await connection.run_sync(_ask_sqlalchemy, sql, args)
            return ran
    return add_inside_sync(tx, sql, args, place, kinds=_KINDS)


def add_inside_sync(tx: Any, sql: str, args: Sequence[Any], place: str, *, kinds: str = _SYNC_KINDS) -> Sequence[Any]:
    """Do what `add_inside` does, with connections that block."""
    with _ours(place):
        if isinstance(tx, _types("psycopg", "Connection")):
            _check_psycopg(tx)
            with tx.cursor(row_factory=_tuples()) as cursor:
                cursor.execute(_positional(sql), args)
                rows: Sequence[Any] = cursor.fetchall()
                return rows
        connection = tx
        if isinstance(tx, _types("sqlalchemy.orm", "Session", "scoped_session")):
            connection = tx.connection()
        if isinstance(connection, _types("sqlalchemy.engine", "Connection")):
            return _ask_sqlalchemy(connection, sql, args)
    raise ConfigurationError(f"tx={type(tx).__module__}.{type(tx).__qualname__}: the Postgres store takes {kinds} here")


def _types(module: str, *names: str) -> tuple[type[Any], ...]:
    """Return some types of a package; none when it was never imported."""
    loaded = sys.modules.get(module)
    return () if loaded is None else tuple(getattr(loaded, name) for name in names)


def _tuples() -> Any:
    return sys.modules["psycopg.rows"].tuple_row


def _check_psycopg(connection: Any) -> None:
    idle = sys.modules["psycopg"].pq.TransactionStatus.IDLE
    if connection.autocommit and connection.info.transaction_status == idle:
        raise ConfigurationError(_NO_TRANSACTION)


def _positional(sql: str) -> str:
    """Return a statement as drivers with ``%s`` read it, which must be told the types."""
    return _PLACE.sub(lambda match: f"%s::{ADD_TYPES[int(match[1]) - 1]}", sql)


def _ask_sqlalchemy(connection: Any, sql: str, args: Sequence[Any]) -> Sequence[Any]:
    driver = connection.dialect.driver
    if connection.dialect.name != "postgresql" or driver not in _NUMBERED | _POSITIONAL:
        raise ConfigurationError(
            f"tx is a connection over {connection.dialect.name}+{driver}; the Postgres store takes {_KINDS}"
        )
    preset = getattr(connection.dialect, "_on_connect_isolation_level", None)
    if connection.get_execution_options().get("isolation_level", preset) == "AUTOCOMMIT":
        raise ConfigurationError(_NO_TRANSACTION)
    result = connection.exec_driver_sql(sql if driver in _NUMBERED else _positional(sql), tuple(args))
    return [tuple(row) for row in result.fetchall()]


@contextmanager
def _ours(place: str) -> Generator[None]:
    """Turn what the server answers into our errors; whatever else goes wrong is the application's connection's."""
    try:
        yield
    except Exception as error:
        cause: BaseException = getattr(error, "orig", None) or error
        # SQLAlchemy's own driver for asyncpg puts one more class around it.
        code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        if not isinstance(code, str):
            raise
        raise of_server(code, str(cause), place) from error
