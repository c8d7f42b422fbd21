"""Waiting for a condition, under a deadline."""

import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

SEEDS: Final = os.environ.get("WORKERS_TEST_FAULT_SEEDS", "").split()
"""The seeds to run tests of chance with; given ones ask for the full size."""
PATIENCE: Final = 300.0 if SEEDS else 60.0
"""Seconds after which something that should have happened counts as not happening; far more than it needs."""


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], *, within: float | None = None) -> None:
    """Return when a condition holds.

    Raises:
        TimeoutError: It did not in time.
    """
    with anyio.fail_after(PATIENCE if within is None else within):
        while True:
            held = condition()
            if inspect.isawaitable(held):
                held = await held
            if held:
                return
            await anyio.sleep(0.01)
