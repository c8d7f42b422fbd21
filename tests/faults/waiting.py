"""Waiting for a condition, under a deadline."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

PATIENCE: Final = 60.0
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
