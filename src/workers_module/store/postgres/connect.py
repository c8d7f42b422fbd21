"""Connections to a Postgres server, and its errors as ours."""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import anyio
import asyncpg

from workers_module.errors import (
    ConfigurationError,
    StoreCorruptError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)

CONNECT_SECONDS: Final = 5.0
REPLY_SECONDS: Final = 30.0
"""How long a call may take before it is given up; a lock somebody holds longer counts as an outage."""
ACQUIRE_SECONDS: Final = 20.0
"""How long a call waits for a connection when all are in use."""
TRIES: Final = 6
"""How often a call is made that the server rolled back for another one's sake."""
LIBRARY: Final = "workers_module"

Row: TypeAlias = Any

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,49}")
_ROLLED_BACK: Final = frozenset({"40001", "40P01", "23505"})
"""The last is an id that was taken between choosing and storing it."""
_NOT_DONE: Final = frozenset({"57P01", "57P03", "53300", "25006", "55P03"})
"""What the server says when it has certainly done nothing."""
_DENIED: Final = frozenset({"28000", "28P01", "42501", "0LP01"})
_FULL: Final = frozenset({"53100", "53200", "53400", "58030"})
_MISSING: Final = frozenset({"3F000", "42P01", "42883", "42703", "42704"})


class CutOffError(StoreUnavailableError):
    """The connection was lost after a call was sent: it may or may not have been carried out."""


class Connection(asyncpg.Connection):
    """A connection that is given back as it is: no call leaves anything behind, so no statement need tidy up."""

    __slots__ = ()

    def get_reset_query(self) -> str:
        """Return nothing."""
        return ""


class Address:
    """Where the server is, and how connections to it are made; nothing is connected here.

    Args:
        url: ``postgresql://user:password@host/database`` with asyncpg's parameters (``sslmode``, …).
        schema: Where the tables and functions are.
        pool_max: How many calls may be under way at once.
        prepare: Keep prepared statements; not behind PgBouncer in its statement or transaction mode.

    Raises:
        ConfigurationError: The name of the schema cannot be used.
    """

    def __init__(self, url: str, *, schema: str, pool_max: int, prepare: bool) -> None:
        if not _SCHEMA.fullmatch(schema):
            raise ConfigurationError(
                f"Postgres schema {schema!r}: use lower-case letters, digits and '_', not beginning with a digit"
            )
        if pool_max < 1:
            raise ConfigurationError(f"pool_max={pool_max}: at least one connection is needed")
        parts = urlsplit(url)
        self.url = url
        self.schema = schema
        self.pool_max = pool_max
        self._prepare = prepare
        user = f"{parts.username or ''}:***@" if parts.password else f"{parts.username}@" if parts.username else ""
        hosts = parts.netloc.rpartition("@")[2] or dict(parse_qsl(parts.query)).get("host", "")
        self.place = f"postgresql://{user}{hosts}{parts.path} (schema {schema})"

    def options(self, purpose: str) -> dict[str, Any]:
        """Return what `asyncpg.connect` is called with."""
        options: dict[str, Any] = {
            "dsn": self.url,
            "timeout": CONNECT_SECONDS,
            "command_timeout": REPLY_SECONDS,
            "connection_class": Connection,
            "server_settings": {"application_name": f"{LIBRARY} {purpose}"},
        }
        if not self._prepare:
            options["statement_cache_size"] = 0
        return options

    async def connect(self, purpose: str) -> asyncpg.Connection:
        """Return one connection of its own."""
        try:
            return await asyncpg.connect(**self.options(purpose))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError) as error:
            raise translate(error, self.place) from error


def take_parameters(url: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return a URL without some of its parameters, and those."""
    parts = urlsplit(url)
    given = parse_qsl(parts.query, keep_blank_values=True)
    taken = {name: value for name, value in given if name in names}
    rest = urlencode([(name, value) for name, value in given if name not in names], quote_via=quote, safe="/")
    return urlunsplit(parts._replace(query=rest)), taken


def translate(error: BaseException, place: str) -> StoreError | ConfigurationError:
    """Return one of our errors for one of the driver's."""
    text = str(error) or type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        return of_server(str(error.sqlstate or ""), text, place)
    if isinstance(error, asyncpg.InterfaceError):
        if isinstance(error, ValueError):
            return ConfigurationError(f"{place}: {text}")
        return StoreUnavailableError(f"{place}: {text}")
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ConfigurationError(f"{place}: {text}")
    return StoreUnavailableError(f"{place} is not there: {text}")


def of_server(code: str, text: str, place: str) -> StoreError | ConfigurationError:
    """Return one of our errors for what the server answered, whichever driver brought it."""
    what = f"{place}: {text} ({code})" if code else f"{place}: {text}"
    if code in _DENIED:
        return StoreDeniedError(f"{what}. Grant the right, or correct user and password in the URL")
    if code in _FULL:
        return StoreFullError(f"{what}. Free some disk or memory")
    if code == "3D000":
        return ConfigurationError(f"{what}. Create the database first, or correct the URL")
    if code in _MISSING:
        return StoreCorruptError(f"{what}. The schema is not the one this store made: run 'workers migrations up'")
    if code in _NOT_DONE or code in _ROLLED_BACK or code == "57014":
        return StoreUnavailableError(what)
    if code[:2] in {"08", "57", "58"}:
        return CutOffError(what)
    return StoreError(what)


class Pool:
    """The connections of a store for its calls: made when they are needed, at most so many."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._users = 0
        self._idle = asyncio.Event()
        self._pool: Any = asyncpg.create_pool(
            min_size=0, max_size=address.pool_max, **address.options("calls"), max_inactive_connection_lifetime=300
        )

    async def open(self) -> None:
        """Make the pool ready; nothing is connected."""
        try:
            await self._pool
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError) as error:
            raise translate(error, self._address.place) from error

    async def close(self) -> None:
        """Let the calls under way end, for a while, and close all connections."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                while self._users:
                    self._idle.clear()
                    await self._idle.wait()
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any]:
        """Lend a connection; errors come as ours."""
        self._users += 1
        try:
            async with self._lent() as connection:
                yield connection
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    @asynccontextmanager
    async def _lent(self) -> AsyncGenerator[Any]:
        place = self._address.place
        try:
            connection = await self._pool.acquire(timeout=ACQUIRE_SECONDS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError, TimeoutError) as error:
            found = translate(error, place)
            if isinstance(found, CutOffError):
                found = StoreUnavailableError(str(found))
            raise found from error
        try:
            yield connection
        except asyncpg.PostgresError as error:
            raise translate(error, place) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
            raise CutOffError(
                f"{place}: the connection was lost in the middle of a call: {str(error) or 'no reply'}"
            ) from error
        finally:
            # A cancelled call has ended on the server, done or not, before this returns: what is asked next sees it.
            with anyio.CancelScope(shield=True):
                await self._pool.release(connection)

    async def fetch(self, sql: str, args: Sequence[Any], *, repeatable: bool = True) -> list[Row]:
        """Make one call: one statement, and so one transaction and one round trip.

        A call the server rolled back because it met another one is made again.

        Raises:
            StoreOutcomeUnknownError: The reply was lost, and the call is not ``repeatable``.
        """
        for tries in range(1, TRIES + 1):
            try:
                async with self.connection() as connection:
                    rows: list[Row] = await connection.fetch(sql, *args)
                    return rows
            except CutOffError as error:
                if repeatable:
                    raise
                raise StoreOutcomeUnknownError(f"{error}; it may or may not have been done") from error
            except StoreUnavailableError as error:
                code = getattr(error.__cause__, "sqlstate", None)
                if code not in _ROLLED_BACK or tries == TRIES:
                    raise
            await asyncio.sleep(random.uniform(0, 0.005 * 2**tries))  # noqa: S311 - spreads those that met
        raise AssertionError
