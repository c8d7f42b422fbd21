"""Finds the application by its name, ``module:attribute``, for the command line and for sandboxes."""

import importlib
import inspect
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any, Final, get_type_hints

from dishka import AsyncContainer, Container
from dishka.exceptions import NoFactoryError

from workers_module.di.registry import WorkerRegistry
from workers_module.errors import ConfigurationError
from workers_module.job.kind import JobKind
from workers_module.worker.handler import Handler
from workers_module.worker.inside import Handlers

Build = Callable[[], Awaitable[AsyncContainer]]

_EXAMPLE: Final = "e.g. app.main:container"


def load_target(text: str, *, anew: bool = False) -> Build:
    """Import an application and return what builds its container.

    The current directory is put on ``sys.path``. The attribute (with dots for attributes of attributes) is an
    `AsyncContainer`, or a function without parameters, sync or async, that returns one.

    Args:
        text: ``module:attribute``.
        anew: Each call must build a container of its own; one that is there already will not do.

    Raises:
        ConfigurationError: The text, the module or the attribute is not as it should be.
    """
    module_name, _, path = text.strip().partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ConfigurationError(f"{text!r}: expected 'module:attribute', {_EXAMPLE}")
    module = _module(text, module_name)
    value: Any = module
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            there = ", ".join(_containers(module)) or "none"
            raise ConfigurationError(f"{text!r}: {module_name} has no {path!r}; containers there: {there}") from None
    if isinstance(value, AsyncContainer):
        if anew:
            raise ConfigurationError(
                f"{text!r} is one container, and a sandbox in a thread needs its own: give the name of a function "
                "that makes one, or use Sandbox.PROCESS"
            )
        return _giving(value)
    if isinstance(value, Container) or not callable(value):
        raise ConfigurationError(f"{text!r} is {_described(value)}; expected {_EXPECTED}")
    _check_call(text, value)

    async def build() -> AsyncContainer:
        container = value()
        if inspect.isawaitable(container):
            container = await container
        if not isinstance(container, AsyncContainer):
            raise ConfigurationError(f"{text!r} returned {_described(container)}; expected {_EXPECTED}")
        return container

    return build


_EXPECTED: Final = "an AsyncContainer, or a function without parameters that returns one"


async def build_container(target: str) -> AsyncContainer:
    """Return the container that a target names or makes; see `load_target`.

    Raises:
        ConfigurationError: The target is not as it should be.
    """
    return await load_target(target)()


@asynccontextmanager
async def open_handlers(target: str, *, anew: bool = False) -> AsyncGenerator[Handlers]:
    """Build an application for a sandbox, and close its container at the end. No worker and no schedule is started.

    Args:
        target: ``module:attribute``.
        anew: See `load_target`; for sandboxes in a process that has its own container already.

    Raises:
        ConfigurationError: The target is not as it should be, or what it names knows no handlers.
    """
    container = await load_target(target, anew=anew)()
    try:
        try:
            registry = await container.get(WorkerRegistry)
        except NoFactoryError:
            raise ConfigurationError(f"{target!r}: its container has no WorkersModule.for_root(...)") from None
        yield _Bound(registry)
    finally:
        await container.close()


def child_command(target: str) -> tuple[str, ...]:
    """Return the command that starts a child for a `ProcessRunner`."""
    return (sys.executable, "-m", "workers_module.di.child", target)


class _Bound:
    """The handlers of a registry, bound to its container as they are asked for."""

    def __init__(self, registry: WorkerRegistry) -> None:
        self._registry = registry

    async def find(self, queue: str, name: str) -> Handler | None:
        found = self._registry.handler_for(queue, name)
        return None if found is None else await self._registry.bound(found)

    def kind_of(self, reference: object) -> JobKind:
        return self._registry.kind_of(reference)


def _module(text: str, name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{text!r}: no module {error.name!r} in {sys.path[0] or here} or among the installed ones"
            ) from None
        raise ConfigurationError(f"{text!r}: {name} imports {error.name!r}, which is not installed") from error
    except Exception as error:
        raise ConfigurationError(f"{text!r}: {name} cannot be imported: {type(error).__name__}: {error}") from error


def _giving(container: AsyncContainer) -> Build:
    async def give() -> AsyncContainer:
        return container

    return give


def _containers(module: ModuleType) -> list[str]:
    """Return the names in a module that could have been meant."""
    return sorted(name for name, value in vars(module).items() if _is_container(value, module))


def _is_container(value: object, module: ModuleType) -> bool:
    if not inspect.isfunction(value):
        return isinstance(value, AsyncContainer)
    if value.__module__ != module.__name__:
        return False
    try:
        returned = get_type_hints(value).get("return")
    except Exception:
        # Hints that cannot be read say nothing; the search must not fail on them.
        return False
    return returned is AsyncContainer


def _check_call(text: str, value: Callable[..., object]) -> None:
    try:
        inspect.signature(value).bind()
    except TypeError as error:
        raise ConfigurationError(f"{text!r} is called without arguments: {error}") from None
    except ValueError:
        return  # a callable that does not tell; the call will


def _described(value: object) -> str:
    if isinstance(value, Container):
        return "a Container (make it with make_async_container)"
    return f"of type {type(value).__name__}"
