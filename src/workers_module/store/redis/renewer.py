"""Renewing leases from another thread."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis import exceptions as raised

from workers_module.clock import Clock
from workers_module.errors import StoreError, StoreUnavailableError
from workers_module.store.redis.address import Address, Target
from workers_module.store.redis.asking import renew_args
from workers_module.store.redis.faults import is_elsewhere, translate
from workers_module.store.redis.keys import Keys
from workers_module.store.redis.layout import Layout
from workers_module.store.redis.reading import read_renewal
from workers_module.store.redis.scripts import Argument, Command, script
from workers_module.store.values import Held, RenewReply

_RENEW: Final = script("renew-2")
_HOPS: Final = 5


class RedisRenewer:
    """Renews leases over connections of its own, from another thread."""

    __slots__ = ("_address", "_clock", "_connections", "_doubted", "_guard", "_keys", "_layout", "_pid")

    def __init__(self, address: Address, layout: Layout, keys: Keys, clock: Clock | None) -> None:
        self._address = address
        self._layout = layout
        self._keys = keys
        self._clock = clock
        self._connections: dict[Target, Any] = {}
        self._doubted: int | None = None
        self._guard = threading.Lock()
        self._pid = os.getpid()

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int) -> RenewReply:
        """Do what `Store.renew` does, blocking."""
        if self._pid != os.getpid():
            raise StoreError(
                f"{self._address.place}: this renewer was made before a fork; make a new one in each process"
            )
        if not held:
            return RenewReply()
        now: Argument = "" if self._clock is None else self._clock.now_ms()
        args = (self._keys.head, queue, now, *renew_args(held, lease_ms))
        keys = self._keys.declared(queue)
        command = _RENEW.command(keys, args)
        with self._guard:
            if not self._layout.known:
                self._doubt()
            if self._doubted is not None:
                self._layout.learn(self._doubted)
                self._doubted = None
            target = self._layout.target(keys[0])
            for _ in range(_HOPS):
                try:
                    return self._renew(target, command)
                except raised.MovedError as error:
                    target = self._layout.moved(error, target)
            raise StoreUnavailableError(f"{self._address.place_of(target)}: queue {queue!r} moves from node to node")

    def _renew(self, target: Target, command: Command) -> RenewReply:
        try:
            try:
                return read_renewal(self._ask(target, command))
            except raised.NoScriptError:
                return read_renewal(self._ask(target, _RENEW.whole(command)))
        except raised.MovedError:
            raise
        except raised.ResponseError as error:
            if is_elsewhere(error):
                self._forget(target)
            raise translate(error, self._address.place_of(target)) from error
        except (raised.RedisError, OSError, ValueError) as error:
            self._forget(target)
            raise translate(error, self._address.place_of(target)) from error
        except BaseException:
            self._drop(target)
            raise

    def _ask(self, target: Target, command: Command) -> Any:
        connection: Any = self._connections.get(target)
        if connection is None:
            connection = self._connections[target] = self._address.blocking_connection(target)
            connection.connect()
        connection.send_command(*command)
        return connection.read_response()

    def _doubt(self) -> None:
        self._doubted = self._layout.version

    def _forget(self, target: Target) -> None:
        """Connect anew the next time, and ask before whether that is still the server to connect to."""
        self._drop(target)
        self._doubt()

    def _drop(self, target: Target) -> None:
        connection = self._connections.pop(target, None)
        if connection is not None:
            with suppress(raised.RedisError, OSError):
                connection.disconnect()

    def close(self) -> None:
        """Give the connections back."""
        with self._guard:
            for target in list(self._connections):
                self._drop(target)
