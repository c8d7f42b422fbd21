"""How the calls of one store reach its servers: on which keys, and by which clock."""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any, Final

from workers_module.clock import Clock
from workers_module.errors import StoreError
from workers_module.store.redis.connect import Links
from workers_module.store.redis.keys import Keys
from workers_module.store.redis.reading import to_text
from workers_module.store.redis.scripts import Argument, Command, Script, script
from workers_module.store.redis.servers import Servers

PIECE: Final = 500
"""Jobs of one call that takes any number of them, and of one look of ``verify``."""
READ: Final = script("read-2")
_PASSING: Final = frozenset(map(script, ("read-2", "renew-2", "sweep-2", "verify-2", "weigh-2", "worker-1")))
"""Scripts after which no replica is waited for: they write nothing, or what is written again and again."""
_SCANNED: Final = 1_000


class Calls:
    """Calls of scripts for one store.

    Args:
        place: Where the servers are, for people.
        keys: The store's.
        clock: A clock other than the server's, or None.

    Attributes:
        servers: What is called; None while the store is not open.
        listed: The names of all queues, and when they were found, as long as they are remembered.
    """

    def __init__(self, place: str, keys: Keys, clock: Clock | None) -> None:
        self._place = place
        self.keys = keys
        self.clock = clock
        self.servers: Servers | None = None
        self.listed: tuple[float, list[str]] | None = None
        self._declared: dict[str, tuple[str, ...]] = {}

    def begin(self, servers: Servers) -> None:
        """Call these servers from now on."""
        self._declared.clear()
        self.servers = servers

    def open_servers(self) -> Servers:
        """Return what is called.

        Raises:
            StoreError: The store is not open.
        """
        if self.servers is None:
            raise StoreError(f"{self._place}: this store is not open; await store.open() first")
        return self.servers

    def instant(self, now: int | None) -> Argument:
        """Return what a script is told of the time: nothing where it is to ask its server."""
        if now is not None:
            return now
        return "" if self.clock is None else self.clock.now_ms()

    def declare(self, queue: str) -> tuple[str, ...]:
        """Return the keys that a call about a queue declares."""
        keys = self._declared.get(queue)
        if keys is None:
            keys = self._declared[queue] = self.keys.declared(queue)
        return keys

    def command(self, what: Script, queue: str, now: int | None, args: Iterable[Argument]) -> Command:
        """Return the call of a script about a queue."""
        return what.command(self.declare(queue), (self.keys.head, queue, self.instant(now), *args))

    async def call(self, what: Script, queue: str, now: int | None, *args: Argument) -> Any:
        """Call a script about a queue, and return its answer."""
        servers = self.open_servers()
        return await servers.call(what, self.command(what, queue, now, args), lasting=what not in _PASSING)

    async def now(self) -> int:
        """Return the clock that counts here."""
        servers = self.open_servers()
        if self.clock is not None:
            return self.clock.now_ms()
        seconds, micros = await servers.ask(self.keys.locks, ("TIME",))
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def scan(self, links: Links, pattern: str) -> AsyncGenerator[str]:
        """Go through the keys of one server that fit a pattern; one may come more than once."""
        servers = self.open_servers()
        cursor: bytes = b"0"
        while True:
            (reply,) = await servers.run(links, [("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED)])
            cursor, keys = servers.answer(reply, links)
            for key in keys:
                yield to_text(key)
            if cursor == b"0":
                return


def pieces(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Return items some hundred at a time."""
    for start in range(0, len(items), PIECE):
        yield items[start : start + PIECE]
