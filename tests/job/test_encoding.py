"""The bad-input table of the reliability contract, as far as it is about data."""

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError, computed_field, field_serializer
from typing_extensions import TypedDict

from workers_module.errors import (
    BadNumberError,
    BadTextError,
    NotSerializableError,
    PayloadError,
    StoreCorruptError,
    TooDeepError,
    TooLargeError,
)
from workers_module.job.encoding import decode, encode

NAN = float("nan")
INF = float("inf")
SECRET = "hunter2"


class Own:
    def __repr__(self) -> str:
        return SECRET


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Mail(BaseModel):
    to: str = "a"
    size: float = 1.0
    note: str | None = None
    extra: Any = None
    when: datetime | None = None


class Cased(BaseModel):
    user_id: int = Field(alias="userId")


class Settled(BaseModel, extra="forbid"):
    n: int

    @computed_field
    def double(self) -> int:
        return 2 * self.n


class Blank(BaseModel):
    size: float
    extra: Any = None

    @field_serializer("size")
    def write(self, size: float) -> float | None:
        return None if math.isnan(size) else size


class Loose(TypedDict):
    a: int
    b: Any


@dataclass
class Plain:
    n: int


MAIL = TypeAdapter(Mail)
MAPPING = TypeAdapter(dict[str, Any])


def nested(depth: int, leaf: Any = 1) -> Any:
    value = leaf
    for _ in range(depth):
        value = [value]
    return value


def looped() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


def write(value: Any, adapter: TypeAdapter[Any] | None = None, **options: Any) -> bytes:
    return encode(value, adapter, what="payload of q.j", **options)


REFUSED = [
    pytest.param(NAN, BadNumberError, "$", id="nan"),
    pytest.param({"a": [1, {"b": INF}]}, BadNumberError, "$.a[1].b", id="infinity"),
    pytest.param([-INF], BadNumberError, "$[0]", id="minus-infinity"),
    pytest.param({"a": "\ud800"}, BadTextError, "$.a", id="lone-surrogate"),
    pytest.param({"\udfff": 1}, BadTextError, "$", id="lone-surrogate-key"),
    pytest.param({"a": b"x"}, BadTextError, "$.a", id="bytes"),
    pytest.param({"a": bytearray(b"x")}, BadTextError, "$.a", id="bytearray"),
    pytest.param({"a": {1}}, NotSerializableError, "$.a", id="set"),
    pytest.param({"a": frozenset[int]()}, NotSerializableError, "$.a", id="frozenset"),
    pytest.param([datetime(2026, 1, 1, tzinfo=UTC)], NotSerializableError, "$[0]", id="datetime"),
    pytest.param([Decimal("1.1")], NotSerializableError, "$[0]", id="decimal"),
    pytest.param([UUID(int=1)], NotSerializableError, "$[0]", id="uuid"),
    pytest.param({"a": {"b": Own()}}, NotSerializableError, "$.a.b", id="own-class"),
    pytest.param(Plain(1), NotSerializableError, "$", id="own-dataclass"),
    pytest.param({1: "a"}, NotSerializableError, "$", id="int-key"),
    pytest.param({"a": {None: 1}}, NotSerializableError, "$.a", id="none-key"),
    pytest.param({"a": {True: 1}}, NotSerializableError, "$.a", id="bool-key"),
    pytest.param({"odd key": [NAN]}, BadNumberError, '$["odd key"][0]', id="odd-key-in-path"),
    pytest.param({"a": 10**5000}, BadNumberError, "$.a", id="unreadably-long-integer"),
]


@pytest.mark.parametrize(("value", "fault", "path"), REFUSED)
def test_refuses_what_json_has_not_and_says_where(value: Any, fault: type[PayloadError], path: str) -> None:
    with pytest.raises(fault) as caught:
        write(value)
    assert caught.value.path == path
    assert "payload of q.j" in str(caught.value)


@pytest.mark.parametrize(("value", "fault", "path"), [one for one in REFUSED if isinstance(one.values[0], dict)])
def test_a_mapping_of_any_is_as_strict_as_no_type(value: Any, fault: type[PayloadError], path: str) -> None:
    with pytest.raises((fault, ValidationError)) as caught:
        write(value, MAPPING)
    if isinstance(caught.value, PayloadError):
        assert caught.value.path == path


@pytest.mark.parametrize("value", [nested(101), nested(100_000), looped(), {"a": nested(100)}, [looped()]])
@pytest.mark.parametrize("adapter", [None, TypeAdapter(JsonValue), TypeAdapter(list[Any] | dict[str, Any])])
def test_refuses_depth_and_cycles_without_recursion_errors(value: Any, adapter: TypeAdapter[Any] | None) -> None:
    with pytest.raises(TooDeepError) as caught:
        write(value, adapter)
    assert len(str(caught.value)) < 400


def test_a_hundred_levels_are_allowed() -> None:
    assert decode(write(nested(100)), None) == nested(100)


def test_brackets_in_text_are_no_depth() -> None:
    value = ['[[["{\\"' * 50] * 60
    assert decode(write(value), None) == value


def test_a_value_in_two_places_is_no_cycle() -> None:
    shared = {"a": 1}
    assert write([shared, shared]) == b'[{"a":1},{"a":1}]'


def test_refuses_a_cycle_in_a_model() -> None:
    with pytest.raises(TooDeepError):
        write(Mail(extra=looped()), MAIL)


def test_refuses_what_is_too_large_with_both_sizes() -> None:
    with pytest.raises(TooLargeError, match=r"1,048,579 bytes.*1,048,576"):
        write("x" * 1_048_577, max_bytes=1_048_576)
    assert len(write("x" * 98, max_bytes=100)) == 100


@pytest.mark.parametrize(
    "value",
    ["\0", "\u2028\u2029", "\u202eabc", "😀", "a\\u0000", "\x7f\x1f", "ﬀ", ""],
    ids=["nul", "line-separators", "rtl", "four-bytes", "escaped-look", "controls", "ligature", "empty"],
)
def test_keeps_text_exactly(value: str) -> None:
    assert decode(write({"a": value, value: 1}), None) == {"a": value, value: 1}
    assert decode(write(Mail(to=value), MAIL), MAIL).to == value


@pytest.mark.parametrize("value", [2**53, -(2**53), 2**64, 10**400, -(10**4000)])
def test_keeps_large_integers_exactly(value: int) -> None:
    assert decode(write([value]), None) == [value]
    adapter = TypeAdapter(list[int])
    assert decode(write([value], adapter), adapter) == [value]


def test_refuses_integers_that_other_readers_round_where_asked() -> None:
    with pytest.raises(BadNumberError) as caught:
        write({"a": [2**53 - 1, 2**53]}, exact_integers=False)
    assert caught.value.path == "$.a[1]"
    assert write([2**53 - 1, "9" * 20], exact_integers=False)


@pytest.mark.parametrize("key", ["__proto__", "__class__", "constructor", "__init__", "self"])
def test_keeps_suspicious_keys_as_data(key: str) -> None:
    assert decode(write({key: {"x": 1}}), None) == {key: {"x": 1}}


def test_tuples_enums_and_models_have_a_form_in_json() -> None:
    value = {"t": (1, (2,)), "e": [Colour.RED, Level.HIGH], "m": Mail(when=datetime(2026, 1, 1, tzinfo=UTC))}
    assert json.loads(write(value)) == {
        "t": [1, [2]],
        "e": ["red", 3],
        "m": {"to": "a", "size": 1.0, "note": None, "extra": None, "when": "2026-01-01T00:00:00Z"},
    }


def test_an_ordered_mapping_keeps_its_order() -> None:
    assert write(OrderedDict(b=1, a=2)) == b'{"b":1,"a":2}'


@pytest.mark.parametrize(
    ("value", "fault", "path"),
    [
        (Mail(size=NAN), BadNumberError, "$.size"),
        (Mail(size=NAN, note="nan"), BadNumberError, "$.size"),
        (Mail(extra=[1, INF]), BadNumberError, "$.extra[1]"),
        (Mail(extra={"a": Mail(size=NAN)}), BadNumberError, "$.extra.a.size"),
        (Mail(to="\ud800"), BadTextError, "$.to"),
        (Mail(extra={"a": b"\xff"}), BadTextError, "$.extra.a"),
        (Mail(extra=[Own()]), NotSerializableError, "$.extra[0]"),
        (Mail(extra={"a": {1: 2}}), NotSerializableError, "$.extra.a"),
    ],
    ids=["float", "float-beside-text", "any-float", "model-in-any", "text", "bytes", "own-class", "int-key"],
)
def test_a_model_hides_no_fault(value: Mail, fault: type[PayloadError], path: str) -> None:
    with pytest.raises(fault) as caught:
        write(value, MAIL)
    assert caught.value.path == path
    with pytest.raises(fault):
        write([value])


def test_none_beside_floats_is_no_fault() -> None:
    assert decode(write(Mail(note="info about nan and inf"), MAIL), MAIL) == Mail(note="info about nan and inf")


def test_a_model_may_write_its_odd_numbers_itself() -> None:
    assert write(Blank(size=NAN), TypeAdapter(Blank)) == b'{"size":null,"extra":null}'


def test_nan_in_a_list_of_floats_is_found() -> None:
    with pytest.raises(BadNumberError) as caught:
        write([1.0, NAN], TypeAdapter(list[float | None]))
    assert caught.value.path == "$[1]"


def test_a_type_may_have_keys_of_its_own() -> None:
    adapter = TypeAdapter(dict[int, str])
    assert write({1: "a"}, adapter) == b'{"1":"a"}'
    assert decode(b'{"1":"a"}', adapter) == {1: "a"}


def test_a_typed_dict_with_any_is_strict_in_the_open_part() -> None:
    adapter = TypeAdapter(Loose)
    assert write({"a": "1", "b": [None]}, adapter) == b'{"a":1,"b":[null]}'
    with pytest.raises(NotSerializableError):
        write({"a": 1, "b": {2}}, adapter)


def test_data_that_does_not_fit_its_type_is_a_validation_error() -> None:
    with pytest.raises(ValidationError):
        write({"to": 3}, MAIL)


def test_no_message_shows_the_data() -> None:
    for value in (Own(), {"a": Own()}, [SECRET, NAN], {"a": SECRET, "b": b"hunter2"}, Mail(to=SECRET, extra=Own())):
        with pytest.raises(PayloadError) as caught:
            write(value, MAIL if isinstance(value, Mail) else None)
        assert SECRET not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_fields_are_written_by_alias_and_read_by_name_too() -> None:
    adapter = TypeAdapter(Cased)
    assert write(Cased(userId=3), adapter) == b'{"userId":3}'
    assert decode(b'{"userId":3}', adapter) == decode(b'{"user_id":3}', adapter) == Cased(userId=3)


def test_computed_fields_are_not_written() -> None:
    adapter = TypeAdapter(Settled)
    assert decode(write(Settled(n=2), adapter), adapter) == Settled(n=2)


@pytest.mark.parametrize("raw", [b"", b'{"a"', b"\xff", b"nul", b"[" * 5_000])
@pytest.mark.parametrize("adapter", [None, MAIL, MAPPING])
def test_bytes_that_are_not_json_are_corrupt(raw: bytes, adapter: TypeAdapter[Any] | None) -> None:
    with pytest.raises(StoreCorruptError):
        decode(raw, adapter)


def test_reads_the_lone_surrogates_that_node_writes() -> None:
    assert decode(b'{"a":"\\ud800"}', None) == decode(b'{"a":"\\ud800"}', MAPPING) == {"a": "\ud800"}


def test_stored_data_that_does_not_fit_is_a_validation_error() -> None:
    with pytest.raises(ValidationError):
        decode(b'{"to":3}', MAIL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert decode(write(value), None) == value


@given(JSON)
def test_json_in_a_model_comes_back_as_it_was(value: Any) -> None:
    assert decode(write(Mail(extra=value), MAIL), MAIL).extra == value


ODD = st.recursive(
    st.floats() | st.binary() | st.text(st.characters(categories=None)) | st.sets(st.integers()) | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.none(), inner) | st.tuples(inner),
    max_leaves=10,
)


@given(ODD)
def test_anything_else_is_refused_by_name_or_comes_back(value: Any) -> None:
    try:
        raw = write(value)
    except PayloadError:
        return
    json.loads(raw, parse_constant=lambda text: pytest.fail(f"{text} was written"))
