"""The bad-input table: each row through `Queue.add` on each store, and the store as it was."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tests.client.helpers import Kit, Q, everything
from workers_module.errors import (
    BadNumberError,
    BadTextError,
    ConfigurationError,
    InvalidNameError,
    NotSerializableError,
    TooDeepError,
    TooLargeError,
)
from workers_module.job.kind import JobKind
from workers_module.job.options import Dedup, KeepJobs, Repeat
from workers_module.job.retry import Backoff
from workers_module.store.base import Store

NAN = float("nan")


class Mail(BaseModel):
    to: str
    size: float = 0.0


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def looped() -> Any:
    value: dict[str, Any] = {}
    value["a"] = value
    return value


class Own:
    pass


BAD_DATA = [
    pytest.param({"a": [NAN]}, BadNumberError, id="nan"),
    pytest.param({"a": float("inf")}, BadNumberError, id="infinity"),
    pytest.param({"a": "\ud800"}, BadTextError, id="lone-surrogate"),
    pytest.param({"a": b"x"}, BadTextError, id="bytes"),
    pytest.param({"a": {1, 2}}, NotSerializableError, id="set"),
    pytest.param({"a": datetime(2026, 1, 1, tzinfo=UTC)}, NotSerializableError, id="datetime"),
    pytest.param({"a": Decimal(1)}, NotSerializableError, id="decimal"),
    pytest.param({"a": Own()}, NotSerializableError, id="own-class"),
    pytest.param({1: "a"}, NotSerializableError, id="int-key"),
    pytest.param({"a": {(1, 2): 3}}, NotSerializableError, id="tuple-key"),
    pytest.param(nested(101), TooDeepError, id="deep"),
    pytest.param(nested(50_000), TooDeepError, id="very-deep"),
    pytest.param(looped(), TooDeepError, id="cycle"),
    pytest.param("x" * 1_048_577, TooLargeError, id="large"),
]

BAD_OPTIONS = [
    ({"attempts": -1}, ConfigurationError),
    ({"attempts": 1_001}, ConfigurationError),
    ({"attempts": NAN}, ConfigurationError),
    ({"attempts": 1.5}, ConfigurationError),
    ({"priority": -1}, ConfigurationError),
    ({"priority": 2**21}, ConfigurationError),
    ({"priority": NAN}, ConfigurationError),
    ({"delay": 5_000}, ConfigurationError),
    ({"delay": "-5s"}, ConfigurationError),
    ({"delay": NAN}, ConfigurationError),
    ({"delay": f"{2**53}ms"}, ConfigurationError),
    ({"run_at": datetime(2027, 1, 1)}, ConfigurationError),  # noqa: DTZ001
    ({"job_id": "12"}, InvalidNameError),
    ({"job_id": "a:b"}, InvalidNameError),
    ({"job_id": ""}, InvalidNameError),
    ({"tags": ["a b"]}, InvalidNameError),
    ({"tags": ["{}"]}, InvalidNameError),
    ({"atempts": 3}, TypeError),
    ({"repeat": {"pattern": "61 * * * *"}}, ConfigurationError),
    ({"repeat": {"pattern": "0 0 30 2 *"}}, ConfigurationError),
]
BAD_NAMES = ["", " ", "a b", "a\n", "a\r\n", "a\0", "../x", "a/b", "a*", "{}", "{a}", "é", "a:b", "x" * 129, None, 3]


async def some(kit: Kit) -> dict[str, Any]:
    await kit.queue.add("there", {"a": 1})
    return await everything(kit.store)


@pytest.mark.parametrize(("data", "fault"), BAD_DATA)
async def test_bad_data_is_refused_and_nothing_stored(any_kit: Kit, data: Any, fault: type[Exception]) -> None:
    before = await some(any_kit)
    with pytest.raises(fault):
        await any_kit.queue.add("a", data)
    with pytest.raises(fault) as caught:
        await any_kit.queue.add_many([("a", 1), ("a", data), ("a", 2)])
    assert "job 1 of 'mail'" in caught.value.__notes__[0]
    assert await everything(any_kit.store) == before


@pytest.mark.parametrize(("options", "fault"), BAD_OPTIONS, ids=str)
async def test_bad_options_are_refused_and_nothing_stored(any_kit: Kit, options: Any, fault: type[Exception]) -> None:
    before = await some(any_kit)
    with pytest.raises(fault):
        await any_kit.queue.add("a", 1, **options)
    with pytest.raises(fault):
        await any_kit.queue.add_many([("a", 1), ("a", 1, options)])
    assert await everything(any_kit.store) == before


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
async def test_bad_job_names_are_refused_and_nothing_stored(any_kit: Kit, name: Any) -> None:
    before = await some(any_kit)
    with pytest.raises(InvalidNameError):
        await any_kit.queue.add(name, 1)
    with pytest.raises(InvalidNameError):
        await any_kit.queue.upsert_job_scheduler(name, Repeat("* * * * *"))
    assert await everything(any_kit.store) == before


async def test_data_that_does_not_fit_is_refused_and_nothing_stored(any_store: Store) -> None:
    kit = Kit(any_store, kinds=[JobKind(queue=Q, name="welcome", payload=Mail)])
    before = await some(kit)
    bad: list[tuple[Any, type[Exception]]] = [
        ({"to": 3}, ValidationError),
        (None, ValidationError),
        (Mail(to="a", size=NAN), BadNumberError),
        (Mail(to="\ud800"), BadTextError),
        (Mail(to="x" * 1_048_577), TooLargeError),
    ]
    for data, fault in bad:
        with pytest.raises(fault):
            await kit.queue.add("welcome", data)
    assert await everything(any_store) == before


async def test_what_looks_odd_is_kept_exactly(any_kit: Kit) -> None:
    data: dict[str, Any] = {
        "nul": "a\0b",
        "lines": "\u2028\u2029",
        "rtl": "\u202e",
        "wide": "😀",
        "__proto__": {"__class__": 1},
        "constructor": [2**64, -(2**200)],
        "float": 0.1,
        "empty": [{}, [], ""],
    }
    handle = await any_kit.queue.add("a", data)
    claimed = await any_kit.complete()
    assert claimed.record.id == handle.id
    assert json.loads(claimed.record.data) == data


async def test_more_than_ten_thousand_jobs_are_refused(any_kit: Kit) -> None:
    with pytest.raises(TooLargeError, match="10,000"):
        await any_kit.queue.add_many([("a", 1)] * 10_001)
    assert await everything(any_kit.store) == {}


async def test_more_than_64_mebibytes_are_refused(kit: Kit) -> None:
    with pytest.raises(TooLargeError, match="67,108,864"):
        await kit.queue.add_many([("a", "x" * 1_000_000)] * 70)
    assert await everything(kit.store) == {}


async def test_a_large_payload_is_allowed_where_the_setting_says_so(store: Store) -> None:
    kit = Kit(store, max_payload_bytes=2_000_000)
    await kit.queue.add("a", "x" * 1_500_000)
    assert (await kit.queue.get_job_counts()).waiting == 1


async def test_integers_that_node_would_round_are_refused_where_asked(store: Store) -> None:
    kit = Kit(store, exact_integers=False)
    with pytest.raises(BadNumberError):
        await kit.queue.add("a", {"n": 2**53})
    await kit.queue.add("a", {"n": 2**53 - 1})


NAMES = st.text(max_size=130) | st.from_regex(r"[A-Za-z0-9_.\-]{1,130}", fullmatch=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, NAMES)
async def test_names_and_ids_come_back_exactly_or_are_refused(any_kit: Kit, name: str, id: str) -> None:
    before = await everything(any_kit.store)
    try:
        handle = await any_kit.queue.add(name, None, job_id=id)
    except InvalidNameError:
        assert await everything(any_kit.store) == before
        return
    assert handle.id == id
    record = await any_kit.record(id)
    assert handle.deduplicated or record.name == name


async def test_options_that_look_like_ours_are_all_taken(any_kit: Kit) -> None:
    handle = await any_kit.queue.add(
        "a",
        1,
        attempts=3,
        backoff=Backoff.exponential("1m"),
        delay="5s",
        priority=1,
        remove_on_complete=True,
        remove_on_fail=KeepJobs(age="1d", count=5),
        deduplication=Dedup.simple("x"),
        job_id="mine",
        timeout=None,
        keep_logs=5,
        on_crash="fail",
    )
    record = await any_kit.record(handle.id)
    assert (record.id, record.max_attempts, record.priority, record.on_crash) == ("mine", 3, 1, "fail")
    assert record.due == record.added + 5_000
    assert record.dedup == "x"
