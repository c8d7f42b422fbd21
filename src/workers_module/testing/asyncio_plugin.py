"""The fixture `workers` for tests that pytest-asyncio runs; only loaded where it is at work."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from workers_module.testing.fixture import worker_test_of


@pytest_asyncio.fixture
async def _workers_on_asyncio(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    async for t in worker_test_of(request):
        yield t
