"""Tasks that begin at once where Python can do that (3.12), and with the next turn of the loop where it cannot."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def begin(call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begin a coroutine in a task of its own; it may be over when this returns.

    A request to a store is so on its way before the jobs start.
    """
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(call, loop=loop, eager_start=True)
    return loop.create_task(call)
