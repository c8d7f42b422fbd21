"""From a URL to a store: the one table of schemes, and the only place that names the stores."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final, Literal, assert_never
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from workers_module.clock import Clock
from workers_module.errors import ConfigurationError
from workers_module.store.base import Store, StoreKind
from workers_module.store.migrate import MigrationStatus

Synchronous = Literal["full", "normal"]
Migrate = Literal["auto", "check"]

SCHEMES: Final[Mapping[str, StoreKind]] = MappingProxyType(
    {
        "memory": StoreKind.MEMORY,
        "sqlite": StoreKind.SQLITE,
        "redis": StoreKind.REDIS,
        "rediss": StoreKind.REDIS,
        "unix": StoreKind.REDIS,
        "redis+cluster": StoreKind.REDIS,
        "rediss+cluster": StoreKind.REDIS,
        "redis+sentinel": StoreKind.REDIS,
        "rediss+sentinel": StoreKind.REDIS,
        "postgres": StoreKind.POSTGRES,
        "postgresql": StoreKind.POSTGRES,
    }
)
"""URL scheme to the kind of store behind it."""

_EXAMPLES: Final = "memory://, sqlite:///jobs.db, redis://host:6379/0 or postgresql://host/database"
_SCHEME: Final = re.compile(r"[A-Za-z0-9]+(\+[A-Za-z]+)?")
_SQLITE_MODES: Final = {"rwc": True, "rw": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What `open_store` was asked for, beside the URL."""

    prefix: str
    clock: Clock | None
    synchronous: Synchronous
    migrate: Migrate


def open_store(
    url: str | None,
    *,
    kind: StoreKind | None = None,
    prefix: str = "bull",
    clock: Clock | None = None,
    synchronous: Synchronous = "full",
    migrate: Migrate = "auto",
) -> Store:
    """Make the store that a URL names; nothing is read, written or connected before `Store.open`.

    * ``memory://`` or None: jobs in this process; ``memory://name`` gives the store a name for people.
    * ``sqlite:///jobs.db`` (relative to the working directory), ``sqlite:////var/lib/jobs.db`` (absolute);
      ``?mode=rw`` makes no file that is not there, ``?prefix=wm_`` is what the names of its tables begin with.
    * ``redis://host:6379/0``, ``rediss://`` (over TLS), ``unix:///run/redis.sock``;
      ``redis+cluster://host1:7000,host2:7000`` names some nodes of a cluster (any node of it under ``redis://`` does
      too), ``redis+sentinel://host1:26379,host2:26379/mymaster/0`` the sentinels and what they call the master; both
      also with ``rediss``. Parameters: ``allow_eviction``, ``wait_replicas``, ``connections``, ``queue_bytes`` (see
      `RedisStore`), ``sentinel_username`` and ``sentinel_password``, and redis-py's (``ssl_ca_certs``, …).
    * ``postgresql://user:password@host/database``, ``postgres://``: parameters are asyncpg's, and ``schema=``,
      ``pool_max=``, ``wakeup=poll``, ``prepare=off`` of the store. Needs the extra ``postgres``.

    Args:
        url: Where the jobs are.
        kind: What the URL must name, if that was said separately.
        prefix: What the names of all keys begin with, where the store has keys.
        clock: What time it is, for the stores that live in this process.
        synchronous: Whether SQLite waits for the disk at each commit.
        migrate: Whether opening the store may bring its tables up to date.

    Raises:
        ConfigurationError: The URL names no store, another one than ``kind``, or one that this version does not have,
            or a part of it cannot be used. The message shows no password.
    """
    if url is None:
        if kind not in {None, StoreKind.MEMORY}:
            raise ConfigurationError(f"a {kind} store needs a URL; write {_EXAMPLES}")
        url = "memory://"
    scheme, mark, _ = url.partition("://")
    named = SCHEMES.get(scheme.lower()) if mark else None
    if named is None:
        # What has no scheme may be anything, a password too: it is not shown.
        what = (
            f"no store has URLs that begin with {scheme}://" if mark and _SCHEME.fullmatch(scheme) else "this is no URL"
        )
        raise ConfigurationError(f"{what}; write {_EXAMPLES}")
    if kind not in {None, named}:
        raise ConfigurationError(
            f"the store is set to {kind}, but its URL begins with {scheme}://; set only one of them"
        )
    wish = _Wish(prefix=prefix, clock=clock, synchronous=synchronous, migrate=migrate)
    match named:
        case StoreKind.MEMORY:
            return _memory(_split(url), wish)
        case StoreKind.SQLITE:
            return _sqlite(_split(url), wish)
        case StoreKind.REDIS:
            return _redis(url, wish)
        case StoreKind.POSTGRES:
            return _postgres(url, wish)
        case _:
            assert_never(named)


def migrations_sql(kind: StoreKind, *, after: int = 0, up_to: int | None = None, name: str | None = None) -> str:
    """Return the migrations of a kind of store as SQL, for people who apply them with tools of their own.

    Args:
        kind: The kind of store.
        after: The schema the database has; 0 for none.
        up_to: The schema it is to have; None for the newest.
        name: Where it is: the schema in Postgres, the prefix of the tables in SQLite; None for the usual one.

    Raises:
        ConfigurationError: The kind has no migrations, or this code does not know these.
    """
    match kind:
        case StoreKind.POSTGRES:
            from workers_module.store.postgres import scripts  # noqa: PLC0415 - needs no driver

            return scripts.whole_script(name or "workers_module", after, up_to)
        case StoreKind.SQLITE:
            from workers_module.store.sqlite import schema  # noqa: PLC0415 - as above

            return schema.whole_script(name or "wm_", after, up_to)
        case StoreKind.MEMORY | StoreKind.REDIS:
            raise ConfigurationError(f"a {kind} store has no migrations; sqlite and postgres have")
        case _:
            assert_never(kind)


async def drop_store(store: Store) -> None:
    """Delete everything an open store keeps under its key prefix or in its schema; where it has neither, its queues.

    Other prefixes and schemas of the server are not touched.
    """
    drop = getattr(store, "drop", None)
    if drop is not None:
        await drop()
        return
    for queue in await store.queues():
        while not await store.obliterate(queue, force=True):
            pass


async def migrations_status(url: str) -> MigrationStatus:
    """Return which migrations the database behind a URL has, and which this code knows; nothing is changed.

    Raises:
        ConfigurationError: The URL names no store that has migrations.
        StoreError: The database could not be read.
    """
    status = await schema_of(open_store(url))
    if status is None:
        raise ConfigurationError("this store has no migrations; sqlite and postgres have")
    return status


async def schema_of(store: Store) -> MigrationStatus | None:
    """Return what a store has of the tables it needs; None for one without tables.

    The store need not be open, and nothing is made or changed.

    Raises:
        StoreError: The database could not be read.
    """
    read = getattr(store, "migrations", None)
    return None if read is None else await read()


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"this is no URL; write {_EXAMPLES}") from None
    if parts.fragment:
        raise ConfigurationError(f"a {parts.scheme} URL has no part after '#'; write %23 for a '#' in a name")
    return parts


def _memory(parts: SplitResult, wish: _Wish) -> Store:
    from workers_module.store.memory import MemoryStore  # noqa: PLC0415 - a store is imported when it is asked for

    if parts.query:
        raise ConfigurationError("a memory URL takes no parameters; write memory://")
    return MemoryStore(clock=wish.clock, name=unquote(parts.netloc + parts.path).strip("/") or "memory")


def _sqlite(parts: SplitResult, wish: _Wish) -> Store:
    from workers_module.store.sqlite.store import SqliteStore  # noqa: PLC0415 - as above

    path = unquote(parts.path.removeprefix("/"))
    if parts.netloc == ":memory:" or (not parts.netloc and path in {"", ":memory:"}):
        raise ConfigurationError(
            "an sqlite URL names a file: sqlite:///jobs.db; for jobs that end with the process write memory://"
        )
    if parts.netloc:
        raise ConfigurationError(
            "an sqlite URL has three slashes before a relative path and four before an absolute one: "
            "sqlite:///jobs.db, sqlite:////var/lib/jobs.db"
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    mode, tables = given.pop("mode", "rwc"), given.pop("prefix", "wm_")
    if given:
        raise ConfigurationError(f"an sqlite URL takes mode= and prefix=, and not {', '.join(sorted(given))}")
    if mode not in _SQLITE_MODES:
        raise ConfigurationError(f"sqlite mode {mode!r}: write rwc, or rw for a file that must be there")
    return SqliteStore(
        path,
        prefix=tables,
        create=_SQLITE_MODES[mode],
        clock=wish.clock,
        synchronous=wish.synchronous,
        migrate=wish.migrate,
    )


def _redis(url: str, wish: _Wish) -> Store:
    from workers_module.store.redis.store import RedisStore  # noqa: PLC0415 - as above

    return RedisStore(url, prefix=wish.prefix, clock=wish.clock)


def _postgres(url: str, wish: _Wish) -> Store:
    if find_spec("asyncpg") is None:
        raise ConfigurationError("a Postgres store needs asyncpg: pip install 'workers_module[postgres]'")
    from workers_module.store.postgres.open import from_url  # noqa: PLC0415 - as above

    return from_url(url, clock=wish.clock, migrate=wish.migrate)
