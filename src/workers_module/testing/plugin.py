"""The pytest plugin: a fixture and two markers. It does nothing in test suites that do not use them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Describe the markers."""
    config.addinivalue_line("markers", "store(kind): the store of the fixture `workers`: memory, sqlite, or a URL")
    config.addinivalue_line("markers", "workers_mode(mode): the mode of the fixture `workers`: foreground_blocking, …")


@pytest.fixture
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
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
    # Nothing of the package is loaded in a suite that does not ask for it.
    from workers_module.testing.harness import worker_test  # noqa: PLC0415

    given: Any = request.getfixturevalue("worker_providers")
    providers: list[Any] = [*given] if isinstance(given, list | tuple) else [given]  # pyright: ignore[reportUnknownVariableType]
    async with worker_test(*providers, store=_argument(request, "store"), mode=_argument(request, "workers_mode")) as t:
        yield t


def _argument(request: pytest.FixtureRequest, marker: str) -> str | None:
    found = request.node.get_closest_marker(marker)
    if found is None:
        return None
    if len(found.args) != 1:
        raise pytest.UsageError(f"@pytest.mark.{marker} takes one argument")
    return str(found.args[0])
