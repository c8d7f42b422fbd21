"""Node beside us on one Redis, and the audit of what both have left."""

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.interop.apps import App, Place
from tests.interop.audit import Audit
from tests.interop.peer import Node, connect, node_process, packages
from tests.interop.raw import Raw, raw_client
from tests.servers import Server, shared_redis


@pytest.fixture(scope="session")
def modules() -> Path:
    """Return the folder with BullMQ."""
    return packages()


@pytest.fixture(scope="session")
def node_server(modules: Path) -> Generator[Server]:
    """Return the Node process that the tests of this process share."""
    with node_process(modules) as server:
        yield server


@pytest.fixture
def place() -> Place:
    """Return the server and a prefix of this test's own."""
    url, prefix = shared_redis()
    return Place(url, f"{prefix}-{uuid4().hex[:12]}")


@pytest.fixture
def audit(place: Place) -> Iterator[Audit]:
    """Look, when everything is closed, at every key the test has left."""
    audit = Audit(place.url, place.prefix)
    yield audit
    assert audit.problems() == []


@pytest.fixture
async def raw(place: Place, audit: Audit) -> AsyncIterator[Raw]:
    """Return the server itself."""
    async with raw_client(place.url, place.prefix) as raw:
        yield raw


@pytest.fixture
async def node(node_server: Server, place: Place, audit: Audit) -> AsyncIterator[Node]:
    """Return Node, with nothing open."""
    async with connect(node_server, place.url, place.prefix) as node:
        yield node


@pytest.fixture
async def py(place: Place, audit: Audit) -> AsyncIterator[App]:
    """Return an application of ours that runs no workers."""
    async with place.app() as app:
        yield app
