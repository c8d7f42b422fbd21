"""What is decorated in a package."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from workers_module.di.decorators import Worker
from workers_module.di.metadata import labels, processor_label
from workers_module.errors import RegistrationError


def decorated_in(package: str) -> list[object]:
    """Import a module, or a package with all its submodules, and return what is decorated and defined there.

    A class without `processor` that only lends its methods to others of them, or its types, is left out.

    Raises:
        RegistrationError: There is no such module. What goes wrong while one is imported is raised as it is.
    """
    found: dict[int, object] = {}
    for module in _modules(package):
        for value in _defined_in(module):
            if _is_candidate(value):
                found.setdefault(id(value), value)
    classes = [value for value in found.values() if isinstance(value, type)]
    return [value for value in found.values() if not (isinstance(value, type) and _only_lends(value, classes))]


def _modules(package: str) -> list[ModuleType]:
    try:
        root = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is not None and (package == error.name or package.startswith(f"{error.name}.")):
            raise RegistrationError(f"discover={package!r}: there is no module {error.name!r}") from None
        raise
    if not hasattr(root, "__path__"):
        return [root]
    below = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=_raise)
        # Importing a __main__ would run it.
        if found.name.rpartition(".")[2] != "__main__"
    ]
    return [root, *below]


def _raise(_: str) -> NoReturn:
    # walk_packages calls this while it handles the import's own error.
    raise  # noqa: PLE0704


def _defined_in(module: ModuleType) -> Iterator[object]:
    for value in list(vars(module).values()):
        is_ours = isinstance(value, type) or inspect.isroutine(value)
        if is_ours and getattr(value, "__module__", None) == module.__name__:
            yield value


def _is_candidate(value: object) -> bool:
    if not isinstance(value, type):
        return bool(labels(value))
    if labels(value) or any(labels(one) for one in vars(value).values() if not isinstance(one, type)):
        return True
    return _is_worker(value) and not inspect.isabstract(value)


def _only_lends(cls: type[Any], classes: Sequence[type[Any]]) -> bool:
    if processor_label(cls) is not None:
        return False
    if _is_worker(cls):
        # A base whose types are still open cannot run itself.
        return inspect.isabstract(cls) or bool(getattr(cls, "__parameters__", ()))
    return any(cls in other.__mro__[1:] for other in classes)


def _is_worker(cls: type[Any]) -> bool:
    return issubclass(cls, Worker)
