"""The URL that says where jobs are kept: what kind of store it names, what is wrong with it, how it is shown."""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple, assert_never
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import Secret

from workers_module.errors import ConfigurationError


class QueueKind(StrEnum):
    """What keeps the jobs."""

    REDIS = "redis"
    POSTGRES = "postgres"
    SQLITE = "sqlite"
    MEMORY = "memory"


SCHEMES: Final[Mapping[str, QueueKind]] = MappingProxyType(
    {
        "redis": QueueKind.REDIS,
        "rediss": QueueKind.REDIS,
        "unix": QueueKind.REDIS,
        "redis+cluster": QueueKind.REDIS,
        "rediss+cluster": QueueKind.REDIS,
        "redis+sentinel": QueueKind.REDIS,
        "rediss+sentinel": QueueKind.REDIS,
        "postgres": QueueKind.POSTGRES,
        "postgresql": QueueKind.POSTGRES,
        "sqlite": QueueKind.SQLITE,
        "memory": QueueKind.MEMORY,
    }
)
"""URL scheme to the kind of store behind it."""

EXAMPLES: Final = "sqlite:///jobs.db, redis://host:6379/0 or postgresql://host/database"


class _Shape(NamedTuple):
    """What the value of a parameter looks like."""

    pattern: str
    text: str


_SWITCH: Final = _Shape("on|off", "on or off")
_FLAG: Final = _Shape("(?i:1|true|yes|on|0|false|no|off)", "true or false")
_ANY_NUMBER: Final = _Shape("[0-9]+", "a number from 0 up")
_NUMBER: Final = _Shape("0*[1-9][0-9]*", "a number from 1 up")
_PARAMETERS: Final[Mapping[QueueKind, Mapping[str, _Shape]]] = {
    QueueKind.REDIS: {
        "db": _ANY_NUMBER,
        "allow_eviction": _FLAG,
        "connections": _NUMBER,
        "queue_bytes": _ANY_NUMBER,
        "wait_replicas": _ANY_NUMBER,
    },
    QueueKind.POSTGRES: {
        "pool_max": _NUMBER,
        "prepare": _SWITCH,
        "wakeup": _Shape("listen|poll", "listen or poll"),
    },
    QueueKind.SQLITE: {"mode": _Shape("rwc|rw", "rwc, or rw for a file that must be there")},
    QueueKind.MEMORY: {},
}
"""The parameters whose values are known here; a driver may know more."""

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_SECRET_PARAMETER: Final = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)
_MASTER: Final = re.compile(r"/[A-Za-z0-9_.-]+(/[0-9]+)?/?")
_ESCAPES: Final = "in user and password, / ? # and @ are written %2F, %3F, %23 and %40"


def url_kind(url: str) -> QueueKind:
    """Return what kind of store a URL names.

    Raises:
        ConfigurationError: The URL has no scheme, or an unknown one; the message shows no other part of it.
    """
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ConfigurationError(f"this is not a URL; write {EXAMPLES}")
    kind = SCHEMES.get(scheme[1].lower())
    if kind is None:
        raise ConfigurationError(f"unknown scheme {scheme[1]!r}; known: {', '.join(sorted(SCHEMES))}")
    return kind


def check_url(url: str) -> QueueKind:
    """Return what kind of store a URL names, when nothing in it is wrong that can be seen without connecting.

    Raises:
        ConfigurationError: Some part of it can never work; the message names the part, and shows the URL without its
            password.
    """
    kind = url_kind(url)
    try:
        fault = next(_faults(kind, urlsplit(url)), None)
    except ValueError:
        fault = f"its host cannot be read; {_ESCAPES}"
    if fault is not None:
        raise ConfigurationError(f"{mask_url(url)}: {fault}")
    return kind


def mask_url(url: str) -> str:
    """Return the URL in the form ``redis://user:***@host``, with parameters such as ``password=`` masked too.

    Where it is doubtful what belongs to the password (it holds a ``?`` or an ``@``, or stands where a port should),
    more is masked rather than less.
    """
    start = scheme.end() if (scheme := _SCHEME.match(url)) else 0
    who, at, where = url[start:].rpartition("@")
    user, colon, _ = who.partition(":")
    if not at and (shown := _before_odd_port(url[start:])):
        return f"{url[:start]}{shown}:***"
    if not colon or who.startswith("/"):
        return _SECRET_PARAMETER.sub(r"\1***", url)
    if "?" in who:
        return f"{url[:start]}{user.partition('?')[0]}:***"
    return f"{url[:start]}{user}:***{at}" + _SECRET_PARAMETER.sub(r"\1***", where)


class SecretUrl(Secret[str]):
    """A URL that shows itself without its password; ``get_secret_value()`` gives the whole."""

    def _display(self) -> str:
        return mask_url(self.get_secret_value())


def _before_odd_port(rest: str) -> str:
    """Return what stands before the first port that is no number, or nothing: ``user:password`` without its host."""
    shown = ""
    for host in re.split(r"[/?#]", rest, maxsplit=1)[0].split(","):
        name, _, port = host.rpartition(":")
        if name and port and not port.isdecimal() and not port.endswith("]"):
            return shown + name
        shown += f"{host},"
    return ""


def _faults(kind: QueueKind, parts: SplitResult) -> Iterator[str]:
    """Return what can never work in a URL, as text of what it is and what to write.

    Raises:
        ValueError: A host is in no form that hosts have.
    """
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    match kind:
        case QueueKind.REDIS if parts.scheme == "unix":
            yield from _faults_of_socket(parts)
        case QueueKind.REDIS:
            yield from _faults_of_hosts(parts, several="+" in parts.scheme)
            yield from _faults_of_database(parts, given)
        case QueueKind.POSTGRES:
            yield from _faults_of_hosts(parts, several=True)
        case QueueKind.SQLITE:
            yield from _faults_of_file(parts)
            if unknown := given.keys() - {"mode", "prefix"}:
                yield f"an sqlite URL takes mode= and prefix=, and not {', '.join(sorted(unknown))}"
        case QueueKind.MEMORY:
            if given:
                yield "a memory URL takes no parameters; write memory://"
        case _:
            assert_never(kind)
    if parts.fragment:
        yield "no store's URL has a part after '#'; write %23 for a '#' in a name or a password"
    for name, shape in _PARAMETERS[kind].items():
        if name in given and not re.fullmatch(shape.pattern, given[name]):
            yield f"{name}={given[name]}; write {shape.text}"


def _faults_of_hosts(parts: SplitResult, *, several: bool) -> Iterator[str]:
    hosts = parts.netloc.rpartition("@")[2].split(",")
    if len(hosts) > 1 and not several:
        yield "it names several hosts; write redis+cluster:// or redis+sentinel:// before them"
    for host in hosts:
        one = urlsplit(f"//{host}")
        try:
            port = one.port
        except ValueError:
            port = 0
        if port == 0:
            # What stands there may be part of a password: it is not shown.
            yield f"its port cannot be read; write a number from 1 to 65535 ({_ESCAPES})"
        if not one.hostname and "+" in parts.scheme:
            yield "it names no host; several are separated by commas: host1:7000,host2:7000"


def _faults_of_database(parts: SplitResult, given: Mapping[str, str]) -> Iterator[str]:
    path = unquote(parts.path)
    if parts.scheme.endswith("+sentinel"):
        if not _MASTER.fullmatch(path):
            yield (
                "a sentinel URL names the master that the sentinels watch, and perhaps the number of a database: "
                "redis+sentinel://host:26379/mymaster/0"
            )
    elif parts.scheme.endswith("+cluster"):
        if path.strip("/") not in {"", "0"} or given.get("db", "0") != "0":
            yield "a cluster has one database, number 0; leave the number out"
    elif not re.fullmatch(r"/?|/[0-9]+/?", path):
        yield f"its database is no number; write redis://host:6379/0 ({_ESCAPES})"


def _faults_of_socket(parts: SplitResult) -> Iterator[str]:
    if parts.netloc.rpartition("@")[2] or not parts.path.strip("/"):
        yield "a unix URL names a socket, with three slashes before its path: unix:///run/redis.sock"


def _faults_of_file(parts: SplitResult) -> Iterator[str]:
    if parts.netloc == ":memory:" or (not parts.netloc and unquote(parts.path) in {"", "/", "/:memory:"}):
        yield "an sqlite URL names a file: sqlite:///jobs.db; for jobs that end with the process write memory://"
    elif parts.netloc:
        yield (
            "an sqlite URL has three slashes before a relative path and four before an absolute one: "
            "sqlite:///jobs.db, sqlite:////var/lib/jobs.db"
        )
