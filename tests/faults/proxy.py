"""A TCP proxy before a Redis server, which does to the traffic what bad networks do.

It forwards whole commands and whole replies, so that it can count them and lose a chosen one. Its clients see TCP
whatever the server listens on, so that a connection can end with a reset.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

Direction = Literal["requests", "replies"]
Chooser = Callable[[int, bytes], bool]
"""Told the number of a command, from 1, and its bytes; whether it is meant."""

_CHUNK: Final = 1 << 16
_COUNTED: Final = frozenset(b"*")
_SIZED: Final = frozenset(b"$")
_GONE: Final = (OSError, asyncio.IncompleteReadError)
"""What reading and writing raise when the other side has ended the connection."""


class Framer:
    """Cuts a stream of the Redis protocol (version 2) into whole commands or replies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take bytes in, and give what is complete."""
        self._buffer += chunk
        while (end := self._end(0)) is not None:
            frame = bytes(self._buffer[:end])
            del self._buffer[:end]
            yield frame

    def _end(self, start: int) -> int | None:
        """Return where the value that begins at ``start`` ends; None while it is not all here."""
        left = 1
        while left:
            line = self._buffer.find(b"\r\n", start)
            if line < 0:
                return None
            kind = self._buffer[start]
            number = int(self._buffer[start + 1 : line]) if kind in _COUNTED | _SIZED else -1
            start = line + 2
            left -= 1
            if kind in _COUNTED:
                left += max(0, number)
            elif kind in _SIZED and number >= 0:
                start += number + 2
        return start if start <= len(self._buffer) else None


class Ending(Enum):
    """How a connection is ended."""

    RST = "reset"
    FIN = "closed in order"
    HALF = "closed towards the client, who may still send"


class _Pass:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: "Proxy",
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        # One for each command without a reply yet: whether that is to be lost.
        self._owed: deque[bool] = deque()
        self.lost_one = False

    async def run(self) -> None:
        """Forward until one side ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward("requests", self._client[0], self._server[1]))
                group.create_task(self._forward("replies", self._server[0], self._client[1]))
        except* _GONE:
            pass
        finally:
            self.end(Ending.FIN)

    async def _forward(self, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        framer = Framer()
        while chunk := await reader.read(_CHUNK):
            for frame in framer.feed(chunk):
                await self._proxy.gate(direction)
                if direction == "requests":
                    self._owed.append(self._proxy.note(frame))
                elif self._owed.popleft():
                    self.lost_one = True
                    if self._proxy.cuts_at_loss:
                        self.end(Ending.RST)
                        return
                    continue
                elif self.lost_one:
                    # What follows would be taken for the reply that was lost.
                    continue
                let_through = self._proxy.allowance(direction, len(frame))
                writer.write(frame[:let_through])
                if let_through < len(frame):
                    await writer.drain()
                    self.end(Ending.RST)
                    return
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def end(self, how: Ending) -> None:
        """End the connection on both sides; `Ending.HALF` only tells the client that nothing more comes."""
        client, server = self._client[1], self._server[1]
        if how is Ending.HALF:
            if not client.is_closing():
                client.write_eof()
            self.lost_one = True
            return
        if how is Ending.RST and not client.is_closing():
            raw = client.get_extra_info("socket")
            # Without lingering, closing sends a reset.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.transport.abort()
        client.close()
        server.close()


class Proxy:
    """Stands between clients and one server.

    Example::

        async with Proxy(server.address) as proxy:
            store = RedisStore(proxy.url)
            proxy.lose_replies(lambda number, command: number == 5)

    Attributes:
        commands: How many commands have come through.
        lost: How many replies were lost.
        target: Where new connections go; may be changed.
        cuts_at_loss: Whether a connection is cut where a reply is lost; else it goes silent.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.commands = 0
        self.lost = 0
        self.cuts_at_loss = True
        self._loses: Chooser | None = None
        self._open = asyncio.Event()
        self._delay: dict[Direction, float] = {}
        self._left: dict[Direction, int] = {}
        self._passes: set[_Pass] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        # It never listens: it keeps the port ours while new connections are refused.
        self._reserved = self._bind(0)
        self.port: int = self._reserved.getsockname()[1]
        self._open.set()

    @staticmethod
    def _bind(port: int) -> socket.socket:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        raw.bind(("127.0.0.1", port))
        return raw

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._passes)

    async def __aenter__(self) -> Self:
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._reserved.close()
        self.cut(Ending.FIN)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # faults

    def cut(self, how: Ending = Ending.RST) -> int:
        """End all connections; how many there were. New ones are taken."""
        passes = list(self._passes)
        for one in passes:
            one.end(how)
        return len(passes)

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def freeze(self) -> None:
        """Become a black hole: take connections and bytes, and forward nothing."""
        self._open.clear()

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Forward each command, or reply, or both, so much later."""
        for direction in directions or ("requests", "replies"):
            self._delay[direction] = seconds

    def lose_replies(self, which: Chooser = lambda number, command: True, *, cut: bool = True) -> None:
        """Let commands through and lose their replies.

        Args:
            which: The commands; all, unless said otherwise.
            cut: Reset the connection in place of the reply; else it stays open, and silent.
        """
        self._loses = which
        self.cuts_at_loss = cut

    def cut_after(self, count: int, direction: Direction) -> None:
        """Let so many bytes through in one direction, on all connections together; reset the one they end on."""
        self._left[direction] = count

    async def heal(self) -> None:
        """Do no more harm. Connections that have lost a reply are cut: their ends are out of step."""
        self._loses = None
        self._delay.clear()
        self._left.clear()
        for one in list(self._passes):
            if one.lost_one:
                one.end(Ending.RST)
        self._open.set()
        if self._listener is None:
            await self._listen()

    @asynccontextmanager
    async def broken(self, *, mute: bool = False, cut: bool = False, frozen: bool = False) -> AsyncGenerator[None]:
        """Do harm meanwhile: lose all replies, or cut off, or forward nothing."""
        if cut:
            self.refuse()
            self.cut()
        if frozen:
            self.freeze()
        if mute:
            self.lose_replies(cut=False)
        try:
            yield
        finally:
            await self.heal()

    # what a connection asks

    async def gate(self, direction: Direction) -> None:
        """Wait until something may be forwarded."""
        if seconds := self._delay.get(direction):
            await asyncio.sleep(seconds)
        await self._open.wait()

    def note(self, command: bytes) -> bool:
        """Count a command; whether its reply is to be lost."""
        self.commands += 1
        loses = self._loses is not None and self._loses(self.commands, command)
        self.lost += loses
        return loses

    def allowance(self, direction: Direction, size: int) -> int:
        """Return how many bytes may be forwarded now; fewer than ``size`` only on the connection that is cut."""
        left = self._left.get(direction)
        if left is None:
            return size
        if left < size:
            del self._left[direction]
            return left
        self._left[direction] = left - size
        return size

    # connections

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, sock=self._bind(self.port))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            writer.transport.abort()
            return
        one = _Pass(self, (reader, writer), server)
        self._passes.add(one)
        try:
            await one.run()
        finally:
            self._passes.discard(one)
