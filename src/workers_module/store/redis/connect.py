"""Connections to a Redis server, and its errors as ours.

A connection answers one caller at a time. A call that is cancelled or cut off throws its connection away, so that no
reply ever reaches somebody else.
"""

import asyncio
import os
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn, TypeVar
from urllib.parse import urlsplit

import anyio
import redis.connection
from redis import exceptions as raised
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.retry import Retry as PlainRetry

from workers_module.errors import (
    ConfigurationError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from workers_module.store.redis.scripts import Command, Script

CONNECT_SECONDS: Final = 5.0
REPLY_SECONDS: Final = 5.0
"""How long a command may take before its connection counts as cut."""
BUSY_SECONDS: Final = 20.0
"""How long a call waits for a connection when all are in use."""
FORGET_SECONDS: Final = 1.0
LIBRARY: Final = "workers_module"

T = TypeVar("T")
_FULL: Final = ("OOM", "MISCONF", "NOREPLICAS")
_DENIED: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED")
_LATER: Final = ("BUSY", "UNBLOCKED", "max number")
_LATER_CLASSES: Final = (
    raised.BusyLoadingError,
    raised.ReadOnlyError,
    raised.ClusterDownError,
    raised.TryAgainError,
    raised.AskError,
)
"""What redis-py has a class for, it strips of its first word. (Of these, MOVED and MASTERDOWN are special cases.)"""
_ERROR_REPLIES: Final = (raised.ResponseError, raised.BusyLoadingError, raised.AuthenticationError)
"""What a server answers. The last two are among redis-py's errors of connections, and yet the connection is sound."""


def _pack(command: Command) -> bytes:
    """Return a command as the bytes that are sent; redis-py's own way takes three times as long."""
    parts = [b"*%d\r\n" % len(command)]
    for argument in command:
        if isinstance(argument, bytes):
            raw = argument
        elif isinstance(argument, str):
            raw = argument.encode()
        else:
            raw = b"%d" % argument
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


pack: Callable[[Command], bytes] = getattr(sys.modules.get("hiredis"), "pack_command", _pack)
"""The same, by hiredis where redis-py has found it."""


class CutOffError(StoreUnavailableError):
    """The connection was lost after a command was sent: it may or may not have been carried out."""


def translate(error: Exception, place: str) -> StoreError | ConfigurationError:
    """Return one of our errors for one of the driver's; what reached the server is `CutOffError` of the caller."""
    # Of some kinds of connections a refusal comes wrapped.
    if isinstance(error.__cause__, raised.ResponseError | raised.AuthenticationError):
        error = error.__cause__
    text = str(error)
    word = text.split(" ", 1)[0].rstrip(":,")
    if isinstance(error, raised.AuthenticationError | raised.NoPermissionError) or word in _DENIED:
        return StoreDeniedError(
            f"{place} refuses this user: {text}. Grant the right, or correct user and password in the URL"
        )
    if isinstance(error, raised.OutOfMemoryError) or word in _FULL or "command not allowed when used memory" in text:
        return StoreFullError(f"{place} takes no more data: {text}. Give it memory or disk, or remove jobs")
    if isinstance(error, _LATER_CLASSES) or (isinstance(error, raised.ResponseError) and text.startswith(_LATER)):
        return StoreUnavailableError(f"{place} cannot answer now: {text}")
    if isinstance(error, raised.ResponseError):
        return StoreError(f"{place} answered: {text}")
    if isinstance(error, ValueError):
        return ConfigurationError(f"{place}: {text}")
    if "certificate" in text.lower():
        return StoreDeniedError(f"{place}: {text}. Give the URL the authority's certificate (ssl_ca_certs=…)")
    return StoreUnavailableError(f"{place} is not there: {text or type(error).__name__}")


class Address:
    """Where the server is, and how connections to it are made; nothing is connected here.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user, password, database number and options as redis-py
            reads them.

    Raises:
        ConfigurationError: The URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
            parts = urlsplit(url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as error:
            raise ConfigurationError(f"store URL: {error}") from None
        self._url = url
        for name in ("max_connections", "decode_responses", "retry_on_timeout", "health_check_interval"):
            self._options.pop(name, None)
        self._class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        user = f"{parts.username or ''}:***@" if parts.password else f"{parts.username}@" if parts.username else ""
        host = parts.hostname or ""
        self.place = f"{parts.scheme}://{user}{host}{port}{parts.path}"

    def connection(self, client_name: str | None = None) -> AbstractConnection:
        """Return a connection for an event loop, not connected yet."""
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            **self._options,
            "socket_timeout": None,
            "protocol": 2,
            "client_name": client_name,
            "driver_info": DriverInfo(name=LIBRARY),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
        }
        return self._class(**options)

    def blocking_connection(self) -> "redis.connection.ConnectionInterface":
        """Return a connection for a thread, not connected yet."""
        options: dict[str, Any] = {**redis.connection.parse_url(self._url)}  # type: ignore[no-untyped-call]
        for name in ("max_connections", "decode_responses", "retry_on_timeout", "health_check_interval"):
            options.pop(name, None)
        kind: Callable[..., redis.connection.ConnectionInterface] = options.pop(
            "connection_class", redis.connection.Connection
        )
        options |= {
            "socket_timeout": REPLY_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "protocol": 2,
            "driver_info": DriverInfo(name=LIBRARY),
            "retry": PlainRetry(NoBackoff(), 0),
        }
        return kind(**options)


class Link:
    """One connection, and one caller at a time.

    Args:
        address: Where to.
        client_name: What the server shows it as; given anew at each reconnect.
    """

    __slots__ = ("_address", "_connection", "_limit", "interrupted")

    def __init__(self, address: Address, client_name: str | None = None) -> None:
        self._address = address
        self._connection = address.connection(client_name)
        self._limit: asyncio.Timeout | None = None
        self.interrupted = False

    @property
    def fresh(self) -> bool:
        """Whether the connection is still open as far as can be seen from here."""
        reader, writer = self._connection._reader, self._connection._writer
        if not self._connection.is_connected or reader is None or writer is None:
            return False
        # A reset is no end of the stream; and writing to what is closed fails in ways of asyncio's own.
        return not reader.at_eof() and reader.exception() is None and not writer.is_closing()

    async def connect(self) -> None:
        """Connect, if need be.

        Raises:
            StoreUnavailableError: Nothing was sent.
            StoreDeniedError: The server knows the user not.
        """
        if self.fresh:
            return
        try:
            await self._connection.disconnect(nowait=True)
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except (raised.RedisError, OSError, TimeoutError, ValueError) as error:
            raise translate(error, self._address.place) from error
        if not self.fresh:
            raise StoreUnavailableError(f"{self._address.place}: the connection was lost as soon as it was made")

    async def ask(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Any]:
        """Send commands in one go and return their replies; an error reply is an item of the list.

        Raises:
            StoreUnavailableError: No connection; nothing was sent.
            CutOffError: The connection was lost, or no reply came in time.
        """
        await self.connect()
        if self.interrupted:
            raise CutOffError(f"{self._address.place}: the call was interrupted")
        connection = self._connection
        replies: list[Any] = []
        demoted = False
        try:
            packed = [pack(command) for command in commands]
            async with asyncio.timeout(seconds) as self._limit:
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(disable_decoding=True, disconnect_on_error=False))
                    except _ERROR_REPLIES as error:
                        replies.append(error)
                        demoted = demoted or isinstance(error, raised.ReadOnlyError)
        except (raised.RedisError, OSError, TimeoutError) as error:
            await self.drop()
            text = str(error) or "no reply in time"
            raise CutOffError(f"{self._address.place}: the connection was lost: {text}") from error
        except BaseException:
            await self.drop()
            raise
        finally:
            self._limit = None
        if demoted:
            # Its name may lead to the new primary by now, while this connection is as healthy as ever.
            await self.drop()
        return replies

    async def drop(self) -> None:
        """Close the connection; the next call makes a new one."""
        with anyio.CancelScope(shield=True):
            with suppress(raised.RedisError, OSError):
                await self._connection.disconnect(nowait=True)

    def interrupt(self) -> None:
        """End the call under way, from another task of the same loop; it raises `CutOffError`."""
        self.interrupted = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


class Links:
    """The connections of one store: some for commands, and those that sleep.

    Args:
        address: Where to.
        most: How many commands are under way at once; others wait.
    """

    def __init__(self, address: Address, most: int) -> None:
        self._address = address
        self._idle: list[Link] = []
        self._room = asyncio.Semaphore(most)
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._sleepers: dict[str, list[Link]] = {}
        self._asleep: set[Link] = set()
        self.pid = os.getpid()
        self.closed = False

    # commands

    async def run(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Any]:
        """Send commands over one connection; see `Link.ask`."""
        self.check()
        self._busy += 1
        self._quiet.clear()
        try:
            await self._enter()
            link = self._idle.pop() if self._idle else Link(self._address)
            try:
                return await link.ask(commands, seconds)
            finally:
                if self.closed:
                    await link.drop()
                else:
                    self._idle.append(link)
                self._room.release()
        finally:
            self._busy -= 1
            if not self._busy:
                self._quiet.set()

    async def _enter(self) -> None:
        if not self._room.locked():
            await self._room.acquire()
            return
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                await self._room.acquire()
        except TimeoutError:
            raise StoreUnavailableError(
                f"{self._address.place}: no connection became free within {BUSY_SECONDS:g} s; allow more connections"
            ) from None

    async def call(self, script: Script, command: Command) -> Any:
        """Call a script; one that the server has forgotten is sent along."""
        (reply,) = await self.run([command])
        if isinstance(reply, raised.NoScriptError):
            (reply,) = await self.run([script.whole(command)])
        return self.answer(reply)

    async def call_all(self, script: Script, commands: Sequence[Command]) -> list[Any]:
        """Call one script several times in one go; for reading."""
        replies = await self.run(commands)
        for n, reply in enumerate(replies):
            if isinstance(reply, raised.NoScriptError):
                (replies[n],) = await self.run([script.whole(commands[n])])
        return [self.answer(reply) for reply in replies]

    def answer(self, reply: Any) -> Any:
        """Return a reply, or raise the error it is."""
        if isinstance(reply, Exception):
            self.refuse(reply)
        return reply

    def refuse(self, error: Exception) -> NoReturn:
        """Raise an error reply as ours."""
        raise translate(error, self._address.place) from error

    # sleeping

    def sleeper(self, name: str) -> Link:
        """Take a connection that may block, with a name to be seen by; give it back with `rest`."""
        self.check()
        idle = self._sleepers.setdefault(name, [])
        link = idle.pop() if idle else Link(self._address, name)
        link.interrupted = False
        self._asleep.add(link)
        return link

    async def rest(self, name: str, link: Link) -> None:
        """Give back what `sleeper` gave."""
        self._asleep.discard(link)
        if self.closed or self._sleepers.get(name):
            # One is kept: a worker is listed by its named connections, and has one.
            await link.drop()
        else:
            self._sleepers.setdefault(name, []).append(link)

    async def forget(self, link: Link) -> None:
        """Make sure that a sleep that was given up does nothing any more when this returns, as far as that can be done.

        A server sees a closed connection when it next looks at all of them: the first answer may come before that,
        the second does not.
        """
        if self.closed:
            return
        with anyio.CancelScope(shield=True):
            await link.drop()
            await asyncio.sleep(0)
            with suppress(StoreError):
                for _ in range(2):
                    await self.run([("PING",)], FORGET_SECONDS)

    def interrupt(self) -> None:
        """End every sleep."""
        for link in self._asleep:
            link.interrupt()

    # life

    def check(self) -> None:
        """Refuse a call after `close` or in a child process.

        Raises:
            StoreError: Either.
        """
        if self.closed:
            raise StoreError(f"{self._address.place}: this store is closed; open it again")
        if self.pid != os.getpid():
            raise StoreError(
                f"{self._address.place}: this store was opened before a fork; make a new one in each process"
            )

    async def close(self) -> None:
        """End all sleeps, let the commands under way end, and close every connection."""
        self.closed = True
        if self.pid != os.getpid():
            return
        self.interrupt()
        with anyio.CancelScope(shield=True), anyio.move_on_after(REPLY_SECONDS):
            await self._quiet.wait()
        for link in [*self._idle, *(link for links in self._sleepers.values() for link in links)]:
            await link.drop()
        self._idle.clear()
        self._sleepers.clear()


def backoff(attempt: int) -> float:
    """Return how many seconds to wait before another try: growing to five, never the same for all."""
    return min(5.0, 0.05 * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
