"""How an application tests its jobs: no server, no port, no sleep.

Its names come when they are first asked for: for the plugin, pytest imports this package in every suite of an
environment that has it, also in those that use nothing of it.
"""

from importlib import import_module
from typing import Any

__all__ = ["WorkerTest", "worker_test"]  # pyright: ignore[reportUnsupportedDunderAll] - given below


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"{__name__}.harness"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
