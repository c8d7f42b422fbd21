"""From a URL to connections: one server, a cluster, or what sentinels watch. Nothing is connected here."""

import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import redis.connection
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.retry import Retry as PlainRetry

from workers_module.errors import ConfigurationError

CONNECT_SECONDS: Final = 5.0
REPLY_SECONDS: Final = 5.0
"""How long a command may take before its connection counts as cut."""
LEARN_SECONDS: Final = 2.0
"""The same, when servers are asked who is who: there are others to ask."""
LIBRARY: Final = "workers_module"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_OURS: Final[tuple[str, ...]] = (
    "allow_eviction",
    "queue_bytes",
    "wait_replicas",
    "connections",
    "sentinel_username",
    "sentinel_password",
)
_TAKEN: Final = ("max_connections", "decode_responses", "retry_on_timeout", "health_check_interval")
"""What redis-py reads in a URL and this store decides by itself."""
_YES: Final = frozenset({"1", "true", "yes", "on"})


class Kind(Enum):
    """How the servers behind a URL hang together."""

    PLAIN = auto()
    """One server, or one address behind which there is always one."""
    CLUSTER = auto()
    SENTINEL = auto()


_FORMS: Final = {"": Kind.PLAIN, "cluster": Kind.CLUSTER, "sentinel": Kind.SENTINEL}


class Target(NamedTuple):
    """Where one server is: a host and a port, or the path of a socket and 0."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else self.host


class Address:
    """Where the servers are, and how connections to them are made.

    Args:
        url: What `workers_module.url.check_url` takes for Redis, with user, password, database number and options as
            redis-py reads them.

    Raises:
        ConfigurationError: A parameter cannot be used; the message shows no password.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition("://")
        base, _, form = scheme.lower().partition("+")
        self.kind = _FORMS[form]
        self.scheme = base
        self.encrypted = base == "rediss"
        self._read(scheme, rest)
        self._try_options()

    def _read(self, scheme: str, rest: str) -> None:
        netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
        who, at, hosts = netloc.rpartition("@")
        parts = urlsplit(f"{self.scheme}://{rest}")
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.own: dict[str, str] = {name: given.pop(name) for name in _OURS if name in given}
        user, colon, _ = who.partition(":")
        shown = f"{user}:***@" if colon else f"{user}@" if user else ""
        self.place = f"{scheme}://{shown}{hosts}{parts.path}"
        path = parts.path
        if self.kind is Kind.SENTINEL:
            path = self._read_master(path)
        first = netloc if self.kind is Kind.PLAIN else f"{who}{at}host"
        plain = f"{self.scheme}://{first}{path}"
        try:
            self._options: dict[str, Any] = dict(parse_url(f"{plain}?{urlencode(given)}" if given else plain))
        except ValueError as error:
            # redis-py names the parameter, and does not show its value.
            raise ConfigurationError(f"{self.place}: {error} Correct it, or leave it out") from None
        self.seeds = self._read_seeds(hosts, parts.path)
        for name in (*_TAKEN, "connection_class", "host", "port", "path"):
            self._options.pop(name, None)

    def _read_master(self, path: str) -> str:
        self.master, _, number = unquote(path).strip("/").partition("/")
        return f"/{number}"

    def _read_seeds(self, hosts: str, path: str) -> tuple[Target, ...]:
        if self.kind is Kind.PLAIN:
            if self.scheme == "unix":
                return (Target(unquote(path), 0),)
            return (Target(self._options.get("host", "localhost"), self._options.get("port", _PORT)),)
        port = _SENTINEL_PORT if self.kind is Kind.SENTINEL else _PORT
        seeds: list[Target] = []
        for text in hosts.split(","):
            one = urlsplit(f"//{text}")
            seeds.append(Target(one.hostname or "", one.port or port))
        return tuple(seeds)

    def _try_options(self) -> None:
        try:
            self.connection(self.seeds[0])
        except TypeError as error:
            name = str(error).rpartition("argument ")[2]
            raise ConfigurationError(
                f"{self.place}: a {self.scheme}:// URL takes no parameter {name}; correct its name, or leave it out"
            ) from None
        except ValueError as error:
            raise ConfigurationError(f"{self.place}: {error}") from None

    def flag(self, name: str, default: bool) -> bool:
        """Return whether a parameter of our own is set in the URL."""
        return self.own[name].lower() in _YES if name in self.own else default

    def number(self, name: str, default: int) -> int:
        """Return a parameter of our own that is a number."""
        return int(self.own.get(name, default))

    def place_of(self, target: Target) -> str:
        """Return how one of the servers is called in messages."""
        return self.place if self.kind is Kind.PLAIN and target in self.seeds else f"{self.scheme}://{target}"

    def warnings(self) -> Iterator[str]:
        """Return what whoever wrote the URL should know."""
        if self.encrypted and self._options.get("ssl_cert_reqs", "required") != "required":
            yield f"{self.place}: the server's certificate is not checked (ssl_cert_reqs): anybody can pose as it."
        away = any(seed.port and seed.host not in _LOOPBACK for seed in self.seeds)
        if self._options.get("password") and not self.encrypted and away:
            yield f"{self.place}: the password crosses the network unencrypted; write rediss://."

    # connections

    def connection(self, target: Target, client_name: str | None = None) -> AbstractConnection:
        """Return a connection for an event loop, not connected yet."""
        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            **self._options,
            **_where(target),
            "socket_timeout": None,
            "protocol": 2,
            "client_name": client_name,
            "driver_info": DriverInfo(name=LIBRARY),
            "retry": Retry(NoBackoff(), 0),
            "retry_on_error": [],
        }
        kind: type[AbstractConnection] = SSLConnection if self.encrypted else Connection
        return UnixDomainSocketConnection(**options) if not target.port else kind(**options)

    def blocking_connection(
        self, target: Target, seconds: float = REPLY_SECONDS
    ) -> "redis.connection.ConnectionInterface":
        """Return a connection for a thread, not connected yet."""
        return self._blocking(target, self._options, seconds)

    def sentinel_connection(self, target: Target) -> "redis.connection.ConnectionInterface":
        """Return a connection to a sentinel, for a thread, not connected yet. It has users of its own."""
        options = {name: value for name, value in self._options.items() if name.startswith("ssl_")}
        for name in ("username", "password"):
            if value := self.own.get(f"sentinel_{name}"):
                options[name] = value
        return self._blocking(target, options, LEARN_SECONDS)

    def _blocking(
        self, target: Target, options: dict[str, Any], seconds: float
    ) -> "redis.connection.ConnectionInterface":
        options = {
            **options,
            **_where(target),
            "socket_timeout": seconds,
            "socket_connect_timeout": min(seconds, CONNECT_SECONDS),
            "protocol": 2,
            "driver_info": DriverInfo(name=LIBRARY),
            "retry": PlainRetry(NoBackoff(), 0),
        }
        kind: Callable[..., redis.connection.ConnectionInterface] = redis.connection.Connection
        if not target.port:
            kind = redis.connection.UnixDomainSocketConnection
        elif self.encrypted:
            kind = redis.connection.SSLConnection
        return kind(**options)


def _where(target: Target) -> dict[str, str | int]:
    return {"host": target.host, "port": target.port} if target.port else {"path": target.host}
