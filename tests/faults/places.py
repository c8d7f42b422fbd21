"""One storage of each kind, and any number of clients of it on the real clock."""

from pathlib import Path
from typing import Final

import pytest

from tests.servers import shared_redis
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.redis.store import RedisStore
from workers_module.store.sqlite.store import SqliteStore

KINDS: Final = [pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("memory", "sqlite", "redis")]


def client_of(kind: str, folder: Path, name: str) -> Store:
    """Return one more client, not yet open, of the storage of this name."""
    match kind:
        case "memory":
            return MemoryStore.shared(name)
        case "sqlite":
            return SqliteStore(folder / f"{name}.db", synchronous="normal")
        case _:
            url, prefix = shared_redis()
            return RedisStore(url, prefix=f"{prefix}-{name}")
