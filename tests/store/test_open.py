"""From a URL to a store."""

from pathlib import Path

import pytest

from tests.store.helpers import Q, record, spec
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError
from workers_module.store.memory import MemoryStore
from workers_module.store.open import open_store
from workers_module.store.sqlite.store import SqliteStore
from workers_module.url import SCHEMES, QueueKind


@pytest.mark.parametrize("url", [None, "memory://", "MEMORY://", "memory:///", "memory://orders"])
async def test_memory(url: str | None) -> None:
    store = open_store(url)
    assert isinstance(store, MemoryStore)
    name = "orders" if url == "memory://orders" else "memory"
    assert (await store.open()).place == f"memory://{name}"


async def test_the_clock_is_that_of_the_store() -> None:
    store = open_store("memory://", clock=FrozenClock(1_000))
    await store.add([spec("a")])
    assert (await record(store, "a")).added == 1_000


async def test_an_absolute_sqlite_path(tmp_path: Path) -> None:
    path = tmp_path / "my jobs #1.db"
    store = open_store(f"sqlite:///{str(path).replace(' ', '%20').replace('#', '%23')}")
    assert isinstance(store, SqliteStore)
    assert not path.exists()
    info = await store.open()
    await store.add([spec("a")])
    await store.close()
    assert info.kind is QueueKind.SQLITE
    assert path.exists()


async def test_a_relative_sqlite_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///jobs.db?prefix=app_", synchronous="normal", migrate="auto")
    await store.open()
    await store.close()
    assert (tmp_path / "jobs.db").exists()


async def test_a_file_that_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = open_store(f"sqlite:///{path}?mode=rw")
    with pytest.raises(ConfigurationError):
        await store.open()
    assert not path.exists()


def test_every_scheme_names_a_store() -> None:
    paths = {
        "sqlite": "/jobs.db",
        "unix": "/run/redis.sock",
        "redis+sentinel": "host/mymaster",
        "rediss+sentinel": "host/mymaster",
    }
    for scheme in SCHEMES:
        assert open_store(f"{scheme}://{paths.get(scheme, 'host')}") is not None


def test_a_store_whose_driver_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> None:
        assert name == "asyncpg"

    monkeypatch.setattr("workers_module.store.open.find_spec", find)
    with pytest.raises(ConfigurationError, match=r"pip install 'workers_module\[postgres\]'"):
        open_store("postgresql://user:hunter2@host/db")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("jobs.db", "not a URL"),
        ("mysql://user:hunter2@host/db", "unknown scheme 'mysql'"),
        ("redis://user:hunter2@host/zero", "its database is no number"),
        ("sqlite:///jobs.db?prefix=1;drop", "prefix"),
    ],
)
def test_what_cannot_be_used_is_refused_without_a_secret(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_store(url)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_kind_must_be_what_the_url_says() -> None:
    assert isinstance(open_store("memory://", kind=QueueKind.MEMORY), MemoryStore)
    assert isinstance(open_store(None, kind=QueueKind.MEMORY), MemoryStore)
    with pytest.raises(ConfigurationError, match="begins with memory://"):
        open_store("memory://", kind=QueueKind.SQLITE)
    with pytest.raises(ConfigurationError, match="sqlite store needs a URL"):
        open_store(None, kind=QueueKind.SQLITE)


async def test_a_store_is_usable_as_opened() -> None:
    store = open_store(None)
    await store.open()
    await store.add([spec("a")])
    assert (await record(store, "a", queue=Q)).id == "a"
