"""Connections to one Redis server.

A connection answers one caller at a time. A call that is cancelled or cut off throws its connection away, so that no
reply ever reaches somebody else.
"""

import asyncio
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import anyio
from redis import exceptions as raised

from workers_module.errors import StoreError, StoreUnavailableError
from workers_module.store.redis.address import CONNECT_SECONDS, REPLY_SECONDS, Address, Target
from workers_module.store.redis.faults import REPLIES, CutOffError, translate
from workers_module.store.redis.scripts import Command

BUSY_SECONDS: Final = 20.0
"""How long a call waits for a connection when all are in use."""
FORGET_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 30.0
"""After so long without use a connection is tried before it carries a command: a firewall may have dropped it."""


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


class Link:
    """One connection, and one caller at a time.

    Args:
        address: How to connect.
        target: Where to.
        client_name: What the server shows it as; given anew at each reconnect.
    """

    __slots__ = ("_connection", "_id", "_limit", "_place", "_used", "interrupted")

    def __init__(self, address: Address, target: Target, client_name: str | None = None) -> None:
        self._place = address.place_of(target)
        self._connection = address.connection(target, client_name)
        self._limit: asyncio.Timeout | None = None
        self._used = 0.0
        self._id: int | None = None
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
        now = asyncio.get_running_loop().time()
        if self.fresh and (now - self._used < IDLE_SECONDS or await self._answers()):
            return
        try:
            await self._connection.disconnect(nowait=True)
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._connection.connect()  # type: ignore[no-untyped-call]
        except (raised.RedisError, OSError, TimeoutError, ValueError) as error:
            await self.drop()
            raise translate(error, self._place) from error
        except BaseException:
            await self.drop()
            raise
        if not self.fresh:
            raise StoreUnavailableError(f"{self._place}: the connection was lost as soon as it was made")
        self._id = None
        self._used = now

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(FORGET_SECONDS):
                await self._connection.send_packed_command([pack(("PING",))], check_health=False)
                await self._connection.read_response(disable_decoding=True)
        except (raised.RedisError, OSError, TimeoutError):
            return False
        except BaseException:
            await self.drop()
            raise
        return True

    async def ask(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Any]:
        """Send commands in one go and return their replies; an error reply is an item of the list.

        Raises:
            StoreUnavailableError: No connection; nothing was sent.
            CutOffError: The connection was lost, or no reply came in time.
        """
        await self.connect()
        if self.interrupted:
            raise CutOffError(f"{self._place}: the call was interrupted")
        connection = self._connection
        replies: list[Any] = []
        try:
            packed = [pack(command) for command in commands]
            async with asyncio.timeout(seconds) as self._limit:
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response(disable_decoding=True, disconnect_on_error=False))
                    except REPLIES as error:
                        replies.append(error)
                        if not connection.is_connected and len(replies) < len(commands):
                            # Of what came behind nothing is known.
                            raise
        except (raised.RedisError, OSError, TimeoutError) as error:
            await self.drop()
            text = str(error) or "no reply in time"
            raise CutOffError(f"{self._place}: the connection was lost: {text}") from error
        except BaseException:
            await self.drop()
            raise
        finally:
            self._limit = None
        self._used = asyncio.get_running_loop().time()
        return replies

    async def id(self) -> int:
        """Return by what number the server knows the connection; 0 where the user may not ask."""
        await self.connect()
        if self._id is None:
            (reply,) = await self.ask([("CLIENT", "ID")])
            self._id = 0 if isinstance(reply, Exception) else int(reply)
        return self._id

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
    """The connections to one server: some for commands, and those that sleep.

    Args:
        address: How to connect.
        target: Where to.
        most: How many commands are under way at once; others wait.

    Attributes:
        retired: Whether another server has taken this one's place.
        stale: Whether to connect anew: the server may be another one by now, under the same name.
    """

    def __init__(self, address: Address, target: Target, most: int) -> None:
        self._address = address
        self._idle: list[Link] = []
        self._room = asyncio.Semaphore(most)
        self._busy = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._sleepers: dict[str, list[Link]] = {}
        self._asleep: set[Link] = set()
        # The event loop itself keeps no strong reference to its tasks.
        self._alarms: set[asyncio.Task[None]] = set()
        self.target = target
        self.place = address.place_of(target)
        self.closed = False
        self.retired = False
        self.stale = False

    # commands

    async def run(self, commands: Sequence[Command], seconds: float = REPLY_SECONDS) -> list[Any]:
        """Send commands over one connection; see `Link.ask`."""
        self._busy += 1
        self._quiet.clear()
        try:
            await self._enter()
            if self.stale:
                self.stale = False
                await self._drop_idle()
            link = self._idle.pop() if self._idle else Link(self._address, self.target)
            try:
                return await link.ask(commands, seconds)
            finally:
                if self.closed or self.retired:
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
                f"{self.place}: no connection became free within {BUSY_SECONDS:g} s; "
                "allow more (connections=… in the URL)"
            ) from None

    async def _drop_idle(self) -> None:
        idle = [*self._idle, *(link for links in self._sleepers.values() for link in links)]
        self._idle.clear()
        self._sleepers.clear()
        for link in idle:
            await link.drop()

    async def retire(self) -> None:
        """End the sleeps, and close each connection as its command ends."""
        self.retired = True
        self.interrupt()
        await self._drop_idle()

    # sleeping

    def sleeper(self, name: str) -> Link:
        """Take a connection that may block, with a name to be seen by; give it back with `rest`."""
        idle = self._sleepers.setdefault(name, [])
        link = idle.pop() if idle else Link(self._address, self.target, name)
        link.interrupted = False
        self._asleep.add(link)
        return link

    async def rest(self, name: str, link: Link) -> None:
        """Give back what `sleeper` gave."""
        self._asleep.discard(link)
        if self.closed or self.retired or self._sleepers.get(name):
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
            if self.retired:
                return
            await asyncio.sleep(0)
            with suppress(StoreError):
                for _ in range(2):
                    await self.run([("PING",)], FORGET_SECONDS)

    def alarm(self, id: int, seconds: float) -> asyncio.TimerHandle:
        """Let the sleep of the connection with this number end on time.

        A server looks at the time limits of those who sleep only ten times a second.
        """
        return asyncio.get_running_loop().call_later(seconds, self._ring, id)

    def _ring(self, id: int) -> None:
        task = asyncio.get_running_loop().create_task(self._unblock(id))
        self._alarms.add(task)
        task.add_done_callback(self._alarms.discard)

    async def _unblock(self, id: int) -> None:
        # Without it, the sleep ends by its own time limit.
        if not self.closed:
            with suppress(StoreError):
                await self.run([("CLIENT", "UNBLOCK", id)])

    def interrupt(self) -> None:
        """End every sleep."""
        for link in self._asleep:
            link.interrupt()

    # life

    async def close(self) -> None:
        """End all sleeps, let the commands under way end, and close every connection."""
        self.closed = True
        self.interrupt()
        with anyio.CancelScope(shield=True), anyio.move_on_after(REPLY_SECONDS):
            await self._quiet.wait()
        await self._drop_idle()


def backoff(attempt: int) -> float:
    """Return how many seconds to wait before another try: growing to five, never the same for all."""
    return min(5.0, 0.05 * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
