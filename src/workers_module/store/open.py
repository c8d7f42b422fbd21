"""From a URL to a store: the only place that names the stores."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, assert_never
from urllib.parse import parse_qsl, unquote, urlsplit

from workers_module.clock import Clock
from workers_module.errors import ConfigurationError
from workers_module.store.base import Store
from workers_module.store.migrate import MigrationStatus
from workers_module.url import EXAMPLES, QueueKind, check_url

Synchronous = Literal["full", "normal"]
Migrate = Literal["auto", "check"]


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
    kind: QueueKind | None = None,
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
        if kind not in {None, QueueKind.MEMORY}:
            raise ConfigurationError(f"a {kind} store needs a URL; write {EXAMPLES}")
        url = "memory://"
    named = check_url(url)
    if kind not in {None, named}:
        scheme = url.partition("://")[0]
        raise ConfigurationError(
            f"the store is set to {kind}, but its URL begins with {scheme}://; set only one of them"
        )
    wish = _Wish(prefix=prefix, clock=clock, synchronous=synchronous, migrate=migrate)
    match named:
        case QueueKind.MEMORY:
            return _memory(url, wish)
        case QueueKind.SQLITE:
            return _sqlite(url, wish)
        case QueueKind.REDIS:
            return _redis(url, wish)
        case QueueKind.POSTGRES:
            return _postgres(url, wish)
        case _:
            assert_never(named)


def migrations_sql(kind: QueueKind, *, after: int = 0, up_to: int | None = None, name: str | None = None) -> str:
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
        case QueueKind.POSTGRES:
            from workers_module.store.postgres import scripts  # noqa: PLC0415 - needs no driver

            return scripts.whole_script(name or "workers_module", after, up_to)
        case QueueKind.SQLITE:
            from workers_module.store.sqlite import schema  # noqa: PLC0415 - as above

            return schema.whole_script(name or "wm_", after, up_to)
        case QueueKind.MEMORY | QueueKind.REDIS:
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


def _memory(url: str, wish: _Wish) -> Store:
    from workers_module.store.memory import MemoryStore  # noqa: PLC0415 - a store is imported when it is asked for

    parts = urlsplit(url)
    return MemoryStore(clock=wish.clock, name=unquote(parts.netloc + parts.path).strip("/") or "memory")


def _sqlite(url: str, wish: _Wish) -> Store:
    from workers_module.store.sqlite.store import SqliteStore  # noqa: PLC0415 - as above

    parts = urlsplit(url)
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    return SqliteStore(
        unquote(parts.path.removeprefix("/")),
        prefix=given.get("prefix", "wm_"),
        create=given.get("mode") != "rw",
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
