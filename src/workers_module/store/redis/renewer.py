"""Renewing leases from another thread."""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis import exceptions as raised

from workers_module.clock import Clock
from workers_module.errors import StoreError
from workers_module.store.base import Held, RenewReply
from workers_module.store.redis.asking import renew_args
from workers_module.store.redis.connect import Address, translate
from workers_module.store.redis.keys import Keys
from workers_module.store.redis.reading import read_renewal
from workers_module.store.redis.scripts import Argument, Command, script

_RENEW: Final = script("renew-2")


class RedisRenewer:
    """Renews leases over a connection of its own, from another thread."""

    __slots__ = ("_address", "_clock", "_connection", "_guard", "_keys", "_pid")

    def __init__(self, address: Address, keys: Keys, clock: Clock | None) -> None:
        self._address = address
        self._keys = keys
        self._clock = clock
        self._connection: Any = None
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
        command = _RENEW.command(self._keys.declared(queue), args)
        with self._guard:
            try:
                if self._connection is None:
                    self._connection = self._address.blocking_connection()
                    self._connection.connect()
                try:
                    return read_renewal(self._ask(command))
                except raised.NoScriptError:
                    return read_renewal(self._ask(_RENEW.whole(command)))
            except raised.ResponseError as error:
                if isinstance(error, raised.ReadOnlyError):
                    # As in `Link.ask`: its name may lead elsewhere by now.
                    self._drop()
                raise translate(error, self._address.place) from error
            except (raised.RedisError, OSError, ValueError) as error:
                self._drop()
                raise translate(error, self._address.place) from error
            except BaseException:
                self._drop()
                raise

    def _ask(self, command: Command) -> Any:
        self._connection.send_command(*command)
        return self._connection.read_response()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(raised.RedisError, OSError):
                connection.disconnect()

    def close(self) -> None:
        """Give the connection back."""
        with self._guard:
            self._drop()
