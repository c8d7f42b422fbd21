"""What the fixture `workers` gives, whichever async plugin runs it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from workers_module.testing.harness import WorkerTest, worker_test


async def worker_test_of(request: pytest.FixtureRequest) -> AsyncIterator[WorkerTest]:
    """Yield the `WorkerTest` that a test's markers and the project's fixture ``worker_providers`` ask for."""
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
