"""The servers of one store as one: each command goes to the one that has its key, and follows the key when it moves."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import anyio
from redis import exceptions as raised

from workers_module.errors import StoreError, StoreUnavailableError
from workers_module.store.redis.address import Address, Target
from workers_module.store.redis.connect import Links
from workers_module.store.redis.faults import CutOffError, is_elsewhere, translate
from workers_module.store.redis.layout import Layout
from workers_module.store.redis.scripts import Command, Script

_HOPS: Final = 5
"""How often one call follows its key."""
_KEY: Final = 3
"""Where the first key stands in the call of a script."""
REPLICAS_MS: Final = 2_000
"""How long a write waits for the replicas it was asked to wait for."""


class Servers:
    """The connections of one store.

    Args:
        address: How to connect.
        layout: Which server has which key.
        most: How many commands are under way at once, on each server.
        replicas: How many replicas must have a write before its call returns.
    """

    def __init__(self, address: Address, layout: Layout, most: int, replicas: int = 0) -> None:
        self._address = address
        self._layout = layout
        self._most = most
        self._replicas = replicas
        self._links: dict[Target, Links] = {}
        self._doubted: int | None = None if layout.known else layout.version
        # The threads that others share may all be taken by handlers.
        self._asking = anyio.CapacityLimiter(1)
        self.pid = os.getpid()
        self.closed = False

    # which one

    async def at(self, key: str) -> Links:
        """Return the connections to the server that has a key.

        Raises:
            StoreUnavailableError: None has it, or nobody can be asked.
        """
        self.check()
        if self._doubted is not None:
            await self.learn()
        return self._to(key)

    def _to(self, key: str) -> Links:
        target = self._layout.target(key)
        links = self._links.get(target)
        if links is None:
            links = self._links[target] = Links(self._address, target, self._most)
        return links

    async def each(self) -> list[Links]:
        """Return the connections to all servers that have keys."""
        self.check()
        if self._doubted is not None or self._layout.clustered:
            self.doubt()
            await self.learn()
        for target in self._layout.targets():
            if target not in self._links:
                self._links[target] = Links(self._address, target, self._most)
        return [self._links[target] for target in self._layout.targets()]

    def doubt(self) -> None:
        """Have the servers asked who is who before the next call."""
        if not self._layout.fixed:
            self._doubted = self._layout.version

    async def learn(self) -> None:
        """Ask the servers who is who, unless somebody else has."""
        seen = self._doubted
        if seen is not None and seen == self._layout.version:
            await anyio.to_thread.run_sync(self._layout.learn, seen, abandon_on_cancel=True, limiter=self._asking)
        if self._doubted == seen:
            self._doubted = None
        there = set(self._layout.targets())
        gone = [self._links.pop(target) for target in list(self._links) if target not in there]
        for links in gone:
            await links.retire()

    # asking

    async def run(self, links: Links, commands: Sequence[Command]) -> list[Any]:
        """Send commands to one server; an error reply is an item of the list. See `Link.ask`."""
        self.check()
        try:
            return await links.run(commands)
        except StoreUnavailableError:
            self.doubt()
            raise

    async def ask(self, key: str, command: Command) -> Any:
        """Send a command to the server that has a key, and return its reply."""
        links = await self.at(key)
        (reply,) = await self.run(links, [command])
        return self.answer(await self._follow(links, key, command, reply))

    async def call(self, script: Script, command: Command, *, lasting: bool = False) -> Any:
        """Call a script; one that the server has forgotten is sent along.

        Args:
            lasting: Whether it writes what must not be lost: the replicas that were asked for must have it.

        Raises:
            CutOffError: It may or may not have been done, or not all replicas have it.
        """
        key = str(command[_KEY])
        links = await self.at(key)
        if lasting and self._replicas:
            return await self._call_lasting(links, key, script, command)
        (reply,) = await self.run(links, [command])
        if isinstance(reply, Exception):
            reply = await self.repeat(links, script, command, reply)
        return self.answer(reply, links)

    async def _call_lasting(self, links: Links, key: str, script: Script, command: Command) -> Any:
        # WAIT speaks of what its own connection has written: it goes along with the call.
        wait = ("WAIT", self._replicas, REPLICAS_MS)
        for what in (command, script.whole(command)):
            reply, number = await self.run(links, [what, wait])
            if not isinstance(reply, raised.NoScriptError):
                break
        if isinstance(reply, raised.AskError):
            links = await self._hop(links, key, reply)
            reply, number = await self.run(links, [script.whole(command), wait])
        reply = self.answer(reply, links)
        if self.answer(number, links) < self._replicas:
            raise CutOffError(
                f"{links.place}: {number} of {self._replicas} replicas have what was written after {REPLICAS_MS} ms; "
                "look after the replicas, or lower wait_replicas"
            )
        return reply

    async def call_all(self, script: Script, commands: Sequence[Command]) -> list[Any]:
        """Call one script several times, in one go for each server; an error of ours is an item of the list."""
        by_links: dict[Links, list[int]] = {}
        for n, command in enumerate(commands):
            by_links.setdefault(await self.at(str(command[_KEY])), []).append(n)
        replies: list[Any] = [None] * len(commands)

        async def send(links: Links, numbers: list[int]) -> None:
            try:
                found = await self.run(links, [commands[n] for n in numbers])
            except StoreError as error:
                found = [error] * len(numbers)
            for n, reply in zip(numbers, found, strict=True):
                replies[n] = reply
                if isinstance(reply, raised.RedisError):
                    try:
                        replies[n] = self.answer(await self.repeat(links, script, commands[n], reply), links)
                    except StoreError as error:
                        replies[n] = error

        if len(by_links) == 1:
            await send(*by_links.popitem())
        else:
            async with anyio.create_task_group() as group:
                for links, numbers in by_links.items():
                    group.start_soon(send, links, numbers)
        return replies

    async def repeat(self, links: Links, script: Script, command: Command, reply: Exception) -> Any:
        """Return what a script answers after all, when its first reply was an error that says how to ask again."""
        if isinstance(reply, raised.NoScriptError | raised.AskError):
            command = script.whole(command)
        if isinstance(reply, raised.NoScriptError):
            (reply,) = await self.run(links, [command])
        return await self._follow(links, str(command[_KEY]), command, reply)

    async def _follow(self, links: Links, key: str, command: Command, reply: Any) -> Any:
        for _ in range(_HOPS):
            if not isinstance(reply, raised.AskError):
                break
            links = await self._hop(links, key, reply)
            ahead: list[Command] = [] if isinstance(reply, raised.MovedError) else [("ASKING",)]
            *_, reply = await self.run(links, [*ahead, command])
        return reply

    async def _hop(self, links: Links, key: str, error: raised.AskError) -> Links:
        target = self._layout.moved(error, links.target)
        if isinstance(error, raised.MovedError):
            return await self.at(key)
        found = self._links.get(target)
        if found is None:
            found = self._links[target] = Links(self._address, target, self._most)
        return found

    # errors

    def answer(self, reply: Any, links: Links | None = None) -> Any:
        """Return a reply, or raise the error it is."""
        if isinstance(reply, Exception):
            self.refuse(reply, links)
        return reply

    def refuse(self, error: Exception, links: Links | None = None) -> NoReturn:
        """Raise an error reply as ours."""
        if is_elsewhere(error):
            self.doubt()
            if links is not None:
                links.stale = True
        raise translate(error, self._address.place if links is None else links.place) from error

    # life

    def interrupt(self) -> None:
        """End every sleep."""
        for links in self._links.values():
            links.interrupt()

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
        if self.pid == os.getpid():
            await asyncio.gather(*(links.close() for links in self._links.values()))
