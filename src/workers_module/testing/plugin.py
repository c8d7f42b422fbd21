"""The pytest plugin: a fixture and two markers. It does nothing in test suites that do not use them.

The fixture goes with AnyIO's own plugin and with pytest-asyncio, in every mode of either, also side by side.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers, and serve pytest-asyncio where it is at work."""
    config.addinivalue_line("markers", "store(kind): the store of the fixture `workers`: memory, sqlite, redis, a URL")
    config.addinivalue_line("markers", "workers_mode(mode): the mode of the fixture `workers`: foreground_blocking, …")
    if _has_pytest_asyncio(config):
        from workers_module.testing import asyncio_plugin  # noqa: PLC0415 - needs pytest-asyncio

        config.pluginmanager.register(asyncio_plugin, "workers_module_asyncio")


@pytest.fixture
def workers(request: pytest.FixtureRequest) -> Any:
    """A `WorkerTest` over the project's own fixture ``worker_providers``: a provider, or a sequence of them.

    Example:
        ::

            @pytest.fixture
            def worker_providers():
                return AppProvider(), WorkersModule.for_root(processors=[EmailProcessor])


            @pytest.mark.store("sqlite")
            async def test_welcome(workers):
                await workers.dispatcher.perform_later(EmailProcessor.welcome, Welcome(to="ada@example.com"))
                assert await workers.drain() == 1
    """
    # Each async plugin only runs fixtures that are marked as its own, on the loop of the test that asks.
    on_anyio = "anyio_backend" in request.fixturenames or not _has_pytest_asyncio(request.config)
    return request.getfixturevalue("_workers_on_anyio" if on_anyio else "_workers_on_asyncio")


@pytest.fixture
async def _workers_on_anyio(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    # Nothing of the package is loaded in a suite that does not ask for it.
    from workers_module.testing.fixture import worker_test_of  # noqa: PLC0415

    async for t in worker_test_of(request):
        yield t


def _has_pytest_asyncio(config: pytest.Config) -> bool:
    # By its entry point, or by its module after `-p`.
    return any(map(config.pluginmanager.hasplugin, ("asyncio", "pytest_asyncio.plugin")))
