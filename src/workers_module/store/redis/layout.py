"""Which server has a key: always the same one, the one that sentinels name, or by slot the nodes of a cluster.

It is learned over blocking connections: the thread that renews leases asks too, while the event loop may be blocked.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from redis import exceptions as raised
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from workers_module.errors import ConfigurationError, StoreUnavailableError
from workers_module.store.redis.address import LEARN_SECONDS, Address, Kind, Target
from workers_module.store.redis.faults import translate

_CUT: Final = (raised.RedisError, OSError)


class Layout:
    """What is known of the servers of one store; several threads may ask.

    Args:
        address: Where to ask.

    Attributes:
        clustered: Whether keys lie on several nodes, by their slot.
        version: Grows each time the servers have told who is who.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self.clustered = address.kind is Kind.CLUSTER
        self.version = 0
        self._guard = threading.Lock()
        self._turn = 0
        self._one: Target | None = address.seeds[0] if address.kind is Kind.PLAIN else None
        self._slots: list[Target | None] = []

    @property
    def known(self) -> bool:
        """Whether anything has to be learned before the first call."""
        return bool(self._slots) if self.clustered else self._one is not None

    @property
    def fixed(self) -> bool:
        """Whether nothing ever has to be learned."""
        return not self.clustered and self._address.kind is Kind.PLAIN

    def target(self, key: str) -> Target:
        """Return the server that has a key.

        Raises:
            StoreUnavailableError: None, as far as is known.
        """
        if not self.clustered:
            if self._one is None:
                raise StoreUnavailableError(f"{self._address.place}: the sentinels have not named a master yet")
            return self._one
        slot = key_slot(key.encode())
        found = self._slots[slot] if self._slots else None
        if found is None:
            raise StoreUnavailableError(f"{self._address.place}: no node of the cluster has slot {slot} now")
        return found

    def targets(self) -> list[Target]:
        """Return all servers that have keys, as far as is known."""
        if not self.clustered:
            return [] if self._one is None else [self._one]
        return sorted({target for target in self._slots if target is not None})

    def moved(self, error: raised.AskError, asked: Target) -> Target:
        """Note what a node said of a key that another one has, and return that.

        Args:
            error: MOVED, which is noted, or ASK, which holds for one call.
            asked: Who said so.
        """
        target = Target(error.host or asked.host, error.port)
        if isinstance(error, raised.MovedError) and self._slots:
            self._slots[error.slot_id] = target
        return target

    # learning

    def learn(self, seen: int) -> None:
        """Ask the servers who is who, one after the other until one knows.

        Args:
            seen: The version that turned out wrong; when somebody else has learned since, nothing is asked.

        Raises:
            StoreUnavailableError: Nobody answers, or nobody knows.
            StoreDeniedError: They refuse this user.
            ConfigurationError: The URL speaks of a cluster, and there is none.
        """
        with self._guard:
            if self.version != seen or self.fixed:
                return
            # Another one first each time: one that is cut off from the others would repeat what it last heard.
            self._turn += 1
            candidates = list(dict.fromkeys(chain(self._others(), self._address.seeds)))
            start = self._turn % len(candidates)
            faults: list[Exception] = []
            for target in candidates[start:] + candidates[:start]:
                try:
                    if self.clustered:
                        self._slots = self._ask_node(target)
                    else:
                        self._one = self._ask_sentinel(target)
                except (*_CUT, ValueError) as error:
                    faults.append(translate(error, self._address.place_of(target)))
                except StoreUnavailableError as error:
                    faults.append(error)
                else:
                    self.version += 1
                    return
            told = "; ".join(dict.fromkeys(map(str, faults)))
            kinds = {type(fault) for fault in faults}
            # When all say the same, that is what is wrong.
            kind = kinds.pop() if len(kinds) == 1 else StoreUnavailableError
            raise kind(told)

    def _others(self) -> Iterable[Target]:
        return self.targets() if self.clustered else ()

    def _ask_node(self, target: Target) -> list[Target | None]:
        connection = self._address.blocking_connection(target, LEARN_SECONDS)
        try:
            rows = _ask(connection, "CLUSTER", "SLOTS")
        except raised.ResponseError as error:
            if "cluster support disabled" in str(error):
                raise ConfigurationError(
                    f"{self._address.place_of(target)} is no node of a cluster; write {self._address.scheme}://"
                ) from None
            raise
        slots: list[Target | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in rows:
            # A node that does not know its own name is where it was asked.
            owner = Target(_text(host) or target.host, int(port))
            slots[first : last + 1] = [owner] * (last + 1 - first)
        if not rows:
            raise StoreUnavailableError(f"{self._address.place_of(target)}: this node knows of no slots yet")
        return slots

    def _ask_sentinel(self, target: Target) -> Target:
        name = self._address.master
        found = _ask(self._address.sentinel_connection(target), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        if not found:
            raise StoreUnavailableError(f"sentinel {target} knows of no master {name!r}")
        master = Target(_text(found[0]), int(found[1]))
        try:
            role = _ask(self._address.blocking_connection(master, LEARN_SECONDS), "ROLE")
        except raised.NoPermissionError:
            return master
        if _text(role[0]) != "master":
            raise StoreUnavailableError(f"sentinel {target} names {master} the master, which is none yet")
        return master


def _ask(connection: Any, *command: str) -> Any:
    """Ask one server over a connection that is closed afterwards."""
    try:
        connection.connect()
        connection.send_command(*command)
        return connection.read_response(disable_decoding=True)
    finally:
        with suppress(*_CUT):
            connection.disconnect()


def _text(raw: bytes | str | None) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw or ""
