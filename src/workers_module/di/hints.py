"""Reading hints: what an alias, a type variable or an annotation stands for, and what the container is to fill."""

import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, Final, Never, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from dishka import FromComponent

TypeArguments = Mapping[type[Any], Mapping[Any, Any]]
"""For each generic base class, what its type variables stand for."""

POSITIONAL: Final = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})
VARIADIC: Final = frozenset({inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})
_FROM_COMPONENT: Final = type(FromComponent())
_NOTHING: Final[Mapping[Any, Any]] = {}


def read_hints(function: Callable[..., Any], variables: Mapping[Any, Any] = _NOTHING) -> dict[str, Any]:
    """Return a function's hints with their extras, aliases resolved and known type variables replaced.

    Raises:
        NameError: A name in a hint does not exist at run time.
        AttributeError, TypeError, SyntaxError: A hint is no hint.
    """
    hints = get_type_hints(function, include_extras=True)
    return {name: substituted(unaliased(hint), variables) for name, hint in hints.items()}


def type_arguments(cls: type[Any]) -> TypeArguments:
    """Return for each generic base what ``cls`` makes of its type variables."""
    found: dict[type[Any], dict[Any, Any]] = {}

    def visit(current: type[Any], own: Mapping[Any, Any]) -> None:
        bases: Sequence[Any] = vars(current).get("__orig_bases__") or current.__bases__
        for base in bases:
            origin = get_origin(base) or base
            arguments = [substituted(argument, own) for argument in get_args(base)]
            variables: Sequence[Any] = getattr(origin, "__parameters__", ())
            if isinstance(origin, type) and origin not in found:
                found[origin] = dict(zip(variables, arguments, strict=False))
                visit(origin, found[origin])

    visit(cls, {})
    return found


def substituted(hint: Any, variables: Mapping[Any, Any]) -> Any:
    """Return a hint with type variables replaced; those that are not known stay."""
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    free: Sequence[Any] = getattr(hint, "__parameters__", ())
    if not variables or not free or get_origin(hint) is None:
        return hint
    return hint[tuple(variables.get(one, one) for one in free)]


def free_variable(hint: Any) -> TypeVar | None:
    """Return the first type variable that is left in a hint."""
    if isinstance(hint, TypeVar):
        return hint
    free: Sequence[Any] = getattr(hint, "__parameters__", ()) if get_origin(hint) is not None else ()
    return free[0] if free else None


def unaliased(hint: Any) -> Any:
    """Return what a ``type`` alias stands for; any other hint as it is."""
    while True:
        origin = get_origin(hint)
        if _is_alias(hint):
            hint = hint.__value__
        elif _is_alias(origin):
            variables = dict(zip(origin.__type_params__, get_args(hint), strict=False))
            hint = substituted(origin.__value__, variables)
        else:
            return hint


def _is_alias(hint: Any) -> bool:
    # By name, because typing_extensions has a class of its own for older interpreters.
    return type(hint).__name__ == "TypeAliasType"


def bare(hint: Any) -> Any:
    """Return a hint without its aliases and annotations."""
    hint = unaliased(hint)
    while get_origin(hint) is Annotated:
        hint = unaliased(get_args(hint)[0])
    return hint


def injected(hint: Any) -> Any:
    """Return the hint by which the container knows an injected parameter, or None when it is not injected."""
    hint = unaliased(hint)
    if get_origin(hint) is not Annotated:
        return None
    key, *extras = get_args(hint)
    key = unaliased(key)
    if get_origin(key) is Annotated:
        inner, *own = get_args(key)
        key, extras = inner, [*own, *extras]
    component = next((extra for extra in extras if isinstance(extra, _FROM_COMPONENT)), None)
    return None if component is None else Annotated[key, component]


def result_of(hint: Any) -> Any:
    """Return the type of what a call of a function with this return hint brings; `Any` where nobody can know."""
    hint = unaliased(hint)
    if get_origin(hint) in {Awaitable, Coroutine}:
        hint = get_args(hint)[-1]
    return Any if hint is NoReturn or hint is Never or free_variable(hint) is not None else hint


def type_name(hint: Any) -> str:
    """Return how a type reads in the code: without modules."""
    if hint is None or hint is type(None):
        return "None"
    hint = bare(hint)
    if isinstance(hint, type) and get_origin(hint) is None:
        return hint.__name__
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(hint).replace("<locals>.", ""))


def parameters_of(function: Callable[..., Any], owner: type[Any] | None) -> list[inspect.Parameter]:
    """Return a function's parameters; a method's without ``self``."""
    found = list(inspect.signature(function).parameters.values())
    return found if owner is None else found[1:]


def is_required(parameter: inspect.Parameter) -> bool:
    """Whether a call must fill this parameter."""
    return parameter.default is inspect.Parameter.empty and parameter.kind not in VARIADIC
