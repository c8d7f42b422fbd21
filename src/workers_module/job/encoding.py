"""Data as JSON, exactly or not at all: what comes out at the other end is what went in, or nothing was stored.

The fast path is one call of pydantic and a few looks at the bytes it made. Only data that fails one of them is walked,
to say what is wrong and where. What a model writes in its own way (dates, decimals, own classes) is the model's affair;
data without a type must be JSON as it is.
"""

import json
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_jsonable_python

from workers_module.errors import (
    BadNumberError,
    BadTextError,
    NotSerializableError,
    PayloadError,
    StoreCorruptError,
    TooDeepError,
    TooLargeError,
)

MAX_DEPTH: Final = 100
"""So many lists and objects may stand in each other."""
MAX_BYTES: Final = 1_048_576
"""The size limit unless the settings say otherwise."""
MAX_EXACT: Final = 2**53 - 1
"""Readers that know floating-point numbers only keep integers up to here."""
MAX_PATH: Final = 200

# In fewer bytes nothing can be nested too deeply.
_SHALLOW: Final = 2 * MAX_DEPTH

_BYTES: Final[tuple[type, ...]] = (bytes, bytearray, memoryview)
_JSON: Final = TypeAdapter[Any](JsonValue, config=ConfigDict(ser_json_inf_nan="constants"))
# What pydantic makes of the commonest keys that are not text.
_TURNED_KEY = re.compile(rb'"(?:-?[0-9][0-9.]*|true|false|None)":')
# Python writes longer integers in some ways and reads them in none.
_READABLE_DIGITS: Final = 4_300
_UNREADABLE = re.compile(rb"[0-9]{4301}")
_MANY_DIGITS = re.compile(rb"\d{16}")
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def encode(
    value: object,
    adapter: TypeAdapter[Any] | None,
    *,
    what: str,
    max_bytes: int = MAX_BYTES,
    exact_integers: bool = True,
) -> bytes:
    """Validate a value and write it as JSON; see `Coder.encode`.

    Args:
        value: The payload, result or progress.
        adapter: Its type; None, like an adapter of `Any`, for data that must be JSON as it is (models in it write
            themselves).
        what: What error messages call the value, for example ``payload of email.welcome``.
        max_bytes: The size limit.
        exact_integers: Allow integers beyond 2^53 - 1, which JavaScript readers would round.

    Raises:
        PayloadError: JSON cannot carry the value, or it passes a limit; the subclass says why, ``path`` where.
        pydantic.ValidationError: The value does not fit its type.
    """
    return coder(adapter).encode(value, what, max_bytes=max_bytes, exact_integers=exact_integers)


def decode(raw: bytes, adapter: TypeAdapter[Any] | None) -> Any:
    """Read what `encode`, or another producer, wrote; see `Coder.decode`.

    Raises:
        pydantic.ValidationError: The data does not fit its type.
        StoreCorruptError: The bytes are not JSON.
    """
    return coder(adapter).decode(raw)


def _decode_leniently(raw: bytes) -> Any:
    """Read JSON that has lone surrogates, as JavaScript writes them."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise StoreCorruptError(f"stored data of {len(raw):,} bytes is not JSON") from None


class Coder:
    """Writes and reads the values of one type. What is known about the type is looked up once; see `coder`."""

    __slots__ = ("_floats", "_opaque", "_plain", "_serializer", "_text_keys", "_unchecked", "_validator")

    def __init__(
        self,
        adapter: TypeAdapter[Any] | None,
        *,
        plain: bool = True,
        floats: bool = False,
        opaque: bool = False,
        text_keys: bool = True,
    ) -> None:
        """Keep what `coder` found out.

        Args:
            adapter: The type; None for one that accepts everything.
            plain: Its values are JSON as they are, so that nothing else may occur in them.
            floats: Its values may have numbers that JSON does not have, which pydantic writes as null.
            opaque: A part of it is of type `Any`, and nothing in it is written in a way of its own.
            text_keys: None of its mappings has keys that are not text.
        """
        self._unchecked = adapter is None
        self._validator = (adapter or _JSON).validator
        self._serializer = (adapter or _JSON).serializer
        self._plain = plain
        self._floats = floats
        self._opaque = opaque
        self._text_keys = text_keys

    def encode(self, value: object, what: str, *, max_bytes: int = MAX_BYTES, exact_integers: bool = True) -> bytes:
        """Validate a value and write it as JSON.

        Raises:
            PayloadError: JSON cannot carry the value, or it passes a limit; the subclass says why, ``path`` where.
            pydantic.ValidationError: The value does not fit its type.
        """
        return self.dump(self.validate(value, what), what, max_bytes=max_bytes, exact_integers=exact_integers)

    def validate(self, value: object, what: str) -> Any:
        """Return the value as its type makes it: the first half of `encode`.

        Raises:
            TooDeepError: The value contains itself.
            pydantic.ValidationError: The value does not fit its type.
        """
        if self._unchecked:
            return value
        try:
            return self._validator.validate_python(value)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_context=False, include_input=False):
                if fault["type"].startswith("recursion"):
                    raise TooDeepError(f"{what}: the data contains itself, or is nested too deeply") from None
            raise

    def dump(self, value: object, what: str, *, max_bytes: int = MAX_BYTES, exact_integers: bool = True) -> bytes:
        """Write a validated value as JSON: the second half of `encode`.

        Raises:
            PayloadError: JSON cannot carry the value, or it passes a limit.
        """
        raw = _dump_plain(value, what) if self._plain else self._dump_typed(value, what)
        if len(raw) > max_bytes:
            raise TooLargeError(f"{what}: {len(raw):,} bytes of JSON; the limit is {max_bytes:,}")
        if len(raw) > _SHALLOW:
            if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
                raise TooDeepError(f"{what}: nested deeper than {MAX_DEPTH}")
            if len(raw) > _READABLE_DIGITS and _UNREADABLE.search(raw):
                look = _Walk(what).plain if self._plain else _Walk(what).blame
                look(value)
        if not exact_integers and _MANY_DIGITS.search(raw):
            _Walk(what, exact_integers=False).plain(json.loads(raw))
        return raw

    def decode(self, raw: bytes) -> Any:
        """Read what `encode`, or another producer, wrote.

        Fields are found by their name and by their alias.

        Raises:
            pydantic.ValidationError: The data does not fit its type.
            StoreCorruptError: The bytes are not JSON.
        """
        if self._unchecked:
            try:
                return from_json(raw)
            except ValueError:
                return _decode_leniently(raw)
        try:
            return self._validator.validate_json(raw, by_alias=True, by_name=True)
        except ValidationError as error:
            # Only what the parser refuses is read a second time: the other parties may write what it does not.
            if any(fault["type"] == "json_invalid" for fault in error.errors(include_url=False, include_input=False)):
                return self._validator.validate_python(_decode_leniently(raw), by_alias=True, by_name=True)
            raise

    def _dump_typed(self, value: object, what: str) -> bytes:
        to_python = self._serializer.to_python
        raw: bytes | None
        # What is raised below must not have pydantic's own errors as its context: they show the data.
        try:
            raw = self._serializer.to_json(value, by_alias=True, round_trip=True, warnings=False)
        except (ValueError, RecursionError):
            raw = None
        if raw is None:
            _Walk(what).blame(value)
            raise NotSerializableError(f"{what}: pydantic cannot write a {_type_name(value)} as JSON")
        if self._floats and b"null" in raw:
            # Most nulls are None: one look at the text of it all is cheaper than a walk.
            text = repr(to_python(value, round_trip=True, warnings=False))
            if "nan" in text or "inf" in text:
                _Walk(what).plain(to_python(value, mode="json", by_alias=True, round_trip=True, warnings=False))
                if self._opaque:
                    _Walk(what, floats=True).blame(value)
        if self._opaque and self._text_keys and _TURNED_KEY.search(raw):
            _Walk(what, keys=True).blame(value)
        return raw

    def look_inside(self, value: Any, what: str, path: str, depth: int) -> None:
        """Raise the fault of a value of this type that would be written without one."""
        if self._opaque:
            _Walk(what, floats=True, keys=self._text_keys).blame(value, path, depth)


_coders: "WeakKeyDictionary[TypeAdapter[Any], Coder]" = WeakKeyDictionary()


def coder(adapter: TypeAdapter[Any] | None) -> Coder:
    """Return what writes and reads the values of a type; None, like an adapter of `Any`, takes data as it is."""
    if adapter is None:
        return _UNCHECKED
    found = _coders.get(adapter)
    if found is None:
        found = _coders[adapter] = _coder_of(adapter)
    return found


_UNCHECKED: Final = Coder(None)

_PLAIN_TYPES: Final = frozenset(
    {
        "any",
        "bool",
        "definition-ref",
        "definitions",
        "dict",
        "float",
        "int",
        "json-or-python",
        "list",
        "literal",
        "none",
        "nullable",
        "str",
        "tagged-union",
        "typed-dict",
        "typed-dict-field",
        "union",
    }
)
_MAY_BE_NAN: Final = frozenset({"any", "float", "complex", "decimal"})


@lru_cache(maxsize=256)
def _adapter(model: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", model))


def _coder_of(adapter: TypeAdapter[Any]) -> Coder:
    schema = adapter.core_schema
    if schema["type"] == "any":
        return _UNCHECKED
    parts = list(_parts(schema))
    types = {str(part["type"]) for part in parts}
    # A bare `dict` or `list` says nothing about what is in it.
    open_ended = "any" in types or any(
        part["type"] in {"dict", "list"} and not {"values_schema", "items_schema"} & part.keys() for part in parts
    )
    written_otherwise = any("serialization" in part or "serialization_alias" in part for part in parts)
    text_keys = all(
        part.get("keys_schema", {"type": "any"})["type"] in {"any", "str"} for part in parts if part["type"] == "dict"
    )
    plain = open_ended and text_keys and not written_otherwise and types <= _PLAIN_TYPES
    # A function may put anything in place of what its inner schema describes.
    floats = bool(types & _MAY_BE_NAN) or any(kind.startswith("function") for kind in types)
    return Coder(
        adapter,
        plain=plain,
        floats=floats or open_ended,
        opaque=open_ended and not written_otherwise,
        text_keys=text_keys,
    )


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield each schema within a schema."""
    rest: list[Any] = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, Mapping):
            if isinstance(part.get("type"), str):
                yield part
            named: Mapping[str, Any] = part  # pyright: ignore[reportUnknownVariableType]
            rest.extend(named[key] for key in named.keys() - {"default", "metadata", "expected"})
        elif isinstance(part, list | tuple):
            rest.extend(part)  # pyright: ignore[reportUnknownArgumentType]


def _dump_plain(value: object, what: str) -> bytes:
    raw: bytes | None
    try:
        raw = _JSON.serializer.to_json(_JSON.validator.validate_python(value))
    except (ValueError, RecursionError):
        raw = None
    if raw is None:
        # Not JSON as it is: models and tuples have a form in JSON, and of the rest the walk says where it stands.
        return json.dumps(_Walk(what).plain(value), ensure_ascii=False, separators=(",", ":")).encode()
    if b"NaN" in raw or b"Infinity" in raw:
        _Walk(what).plain(value)
    return raw


def _depth(raw: bytes) -> int:
    """Return how deep a JSON text is nested, in passes that each take off the innermost level."""
    brackets = _TEXT.sub(b"", raw).translate(None, _NO_BRACKETS).translate(_TO_BRACKETS)
    depth = 0
    while brackets and depth <= MAX_DEPTH:
        brackets = brackets.replace(b"[]", b"")
        depth += 1
    return depth


class _Walk:
    """A walk through data, for what the fast path could not take.

    Args:
        what: What messages call the data.
        exact_integers: Allow integers that JavaScript readers would round.
        floats: `blame` also looks for numbers that JSON does not have.
        keys: `blame` also looks for keys that are not text.
    """

    def __init__(self, what: str, *, exact_integers: bool = True, floats: bool = False, keys: bool = False) -> None:
        self._what = what
        self._floats = floats
        self._keys = keys
        self._largest = None if exact_integers else MAX_EXACT

    def plain(self, value: Any, path: str = "$", depth: int = 0) -> Any:
        """Return the value as JSON has it, or raise the first fault."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            return self._integer(int(value), path)
        if isinstance(value, float):
            return self._float(float(value), path)
        if isinstance(value, dict):
            self._go_in(path, depth)
            return {self._key(key, path): self.plain(item, _at(path, key), depth + 1) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if isinstance(value, list | tuple):
            self._go_in(path, depth)
            return [self.plain(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        if isinstance(value, _BYTES):
            raise BadTextError(
                f"{self._what}: bytes are no text; decode them, or send them as base64",
                path=_cut(path),
            )
        if isinstance(value, BaseModel) or (is_dataclass(value) and hasattr(value, "__pydantic_serializer__")):
            self._go_in(path, depth)
            encoded = self._encoded(value, path, depth)
            return self.plain(encoded, path, depth)
        raise NotSerializableError(
            f"{self._what}: JSON has no {_type_name(value)}; convert it, or give the payload a model that writes it",
            path=_cut(path),
        )

    def _encoded(self, value: Any, path: str, depth: int) -> Any:
        """Return what a model makes of itself."""
        coder(_adapter(cast("Hashable", type(value)))).look_inside(value, self._what, path, depth)
        try:
            return to_jsonable_python(value, by_alias=True, round_trip=True)
        except (ValueError, RecursionError):
            pass
        self.blame(value, path, depth)
        raise NotSerializableError(
            f"{self._what}: pydantic cannot write a value of type {_type_name(value)} as JSON", path=_cut(path)
        )

    def blame(self, value: Any, path: str = "$", depth: int = 0) -> None:
        """Raise the fault that keeps pydantic from writing a value; return if none is found."""
        for step, item in self._inside(value, path):
            self._go_in(path, depth)
            self.blame(item, step, depth + 1)
        if isinstance(value, str):
            self._text(value, path)
        elif isinstance(value, int):
            self._integer(value, path)
        elif isinstance(value, float):
            if self._floats:
                self._float(value, path)
        elif isinstance(value, bytes | bytearray):
            self._guard(value.decode, BadTextError, "bytes that are no UTF-8", path)
        elif not isinstance(value, dict | list | tuple | set | frozenset | BaseModel) and not is_dataclass(value):
            self._guard(
                lambda: to_jsonable_python(value), NotSerializableError, f"a value of type {_type_name(value)}", path
            )

    def _inside(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            items: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
            for key, item in items.items():
                if self._keys or isinstance(key, str):
                    self._key(key, path)
                yield _at(path, key), item
        elif isinstance(value, list | tuple | set | frozenset):
            for index, item in enumerate(value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
                yield f"{path}[{index}]", item
        elif isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
            fields = value.__pydantic_fields__ if isinstance(value, BaseModel) else value.__dataclass_fields__
            extra = (value.__pydantic_extra__ or {}) if isinstance(value, BaseModel) else {}
            for name in [*fields, *extra]:
                yield _at(path, name), getattr(value, name, None)

    def _guard(self, write: Callable[[], object], fault: type[PayloadError], found: str, path: str) -> None:
        try:
            write()
        except (PydanticSerializationError, ValueError):
            raise fault(f"{self._what}: JSON cannot carry {found}", path=_cut(path)) from None

    def _go_in(self, path: str, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise TooDeepError(f"{self._what}: nested deeper than {MAX_DEPTH}, or within itself", path=_cut(path))

    def _text(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadTextError(f"{self._what}: text with a lone surrogate is not Unicode", path=_cut(path)) from None
        return str(value)

    def _key(self, key: object, path: str) -> str:
        if not isinstance(key, str):
            raise NotSerializableError(
                f"{self._what}: keys of JSON objects are text, not {type(key).__name__}; write str(key)",
                path=_cut(path),
            )
        return self._text(key, path)

    def _float(self, value: float, path: str) -> float:
        if not math.isfinite(value):
            raise BadNumberError(f"{self._what}: {value} is not a number JSON has", path=_cut(path))
        return value

    def _integer(self, value: int, path: str) -> int:
        if self._largest is not None and abs(value) > self._largest:
            raise BadNumberError(
                f"{self._what}: JavaScript readers round integers beyond 2^53 - 1; send it as text", path=_cut(path)
            )
        # A digit is worth more than 3.32 bits.
        if value.bit_length() > _READABLE_DIGITS * 3.3219:
            raise BadNumberError(f"{self._what}: an integer of more than {_READABLE_DIGITS:,} digits", path=_cut(path))
        return value


def _at(path: str, key: object) -> str:
    text = key if isinstance(key, str) else str(type(key).__name__)
    if _IDENTIFIER.fullmatch(text):
        return f"{path}.{text}"
    return f"{path}[{json.dumps(text)}]"


def _cut(path: str) -> str:
    return path if len(path) <= MAX_PATH else f"{path[:80]}…{path[-80:]}"


def _type_name(value: object) -> str:
    return type(value).__name__
