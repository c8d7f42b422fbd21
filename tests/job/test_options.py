"""Options: what is refused, how layers merge, and BullMQ's JSON in both directions."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers_module.errors import ConfigurationError, InvalidNameError, StoreCorruptError
from workers_module.job.bullmq import from_bullmq
from workers_module.job.options import Dedup, JobOptions, KeepJobs, Repeat, check, merge
from workers_module.job.outcome import Keep
from workers_module.job.record import ParentRef
from workers_module.job.retry import Backoff
from workers_module.job.stored import StoredOptions, read_options, write_options, write_slot_options

NAN = float("nan")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def checked(**options: Any) -> JobOptions:
    return check(cast("JobOptions", options), "q.j")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attempts": -1}, ("attempts", "-1", "1,000")),
        ({"attempts": 1_001}, ("attempts", "1001", "1,000")),
        ({"attempts": 1.5}, ("attempts", "1.5", "1,000")),
        ({"attempts": NAN}, ("attempts", "nan", "1,000")),
        ({"attempts": float("inf")}, ("attempts", "inf")),
        ({"attempts": "3"}, ("attempts", "'3'")),
        ({"attempts": True}, ("attempts", "True")),
        ({"priority": -1}, ("priority", "-1", "2,097,151")),
        ({"priority": 2**21}, ("priority", "2097152", "2,097,151")),
        ({"priority": 0.5}, ("priority", "0.5")),
        ({"delay": 5}, ("delay", "'5s'", "'5ms'")),
        ({"delay": NAN}, ("delay", "nan")),
        ({"delay": timedelta(seconds=-1)}, ("delay", "negative")),
        ({"delay": f"{2**53}ms"}, ("delay", "2^53")),
        ({"delay": "soon"}, ("delay", "'soon'")),
        ({"run_at": datetime(2026, 1, 1)}, ("run_at", "time zone", "tzinfo=UTC")),  # noqa: DTZ001
        ({"run_at": 3}, ("run_at", "datetime")),
        ({"timeout": "0s"}, ("timeout", "None")),
        ({"keep_logs": -1}, ("keep_logs", "-1")),
        ({"lifo": 1}, ("lifo", "True")),
        ({"tags": "gpu"}, ("tags", "['gpu']")),
        ({"backoff": 5}, ("backoff", "Backoff.fixed")),
        ({"backoff": {"type": "fixed", "dely": 5}}, ("backoff", "dely", "delay")),
        ({"deduplication": "x"}, ("deduplication", "Dedup")),
        ({"deduplication": {"ttl": 5}}, ("Dedup",)),
        ({"repeat": "* * * * *"}, ("repeat", "Repeat")),
        ({"remove_on_complete": -1}, ("remove_on_complete", "-1")),
        ({"remove_on_fail": {"agee": 1}}, ("remove_on_fail", "agee", "age")),
        ({"on_crash": "explode"}, ("on_crash", "retry, fail")),
        ({"on_failure": "explode"}, ("on_failure", "fail_parent")),
        ({"parent": "1"}, ("parent", "ParentRef")),
        ({"delay": "1s", "run_at": NOON}, ("delay", "run_at")),
        ({"deduplication": Dedup.simple("a"), "parent": ParentRef("q", "1")}, ("parent", "deduplicated")),
        ({"repeat": Repeat("* * * * *"), "delay": "1s"}, ("repeat", "delay")),
        ({"repeat": Repeat("* * * * *"), "job_id": "a"}, ("repeat", "job_id")),
    ],
)
def test_refusals_name_option_value_and_limit(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        checked(**options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("options", [{"job_id": "12"}, {"job_id": "a b"}, {"tags": ["a b"]}])
def test_bad_names_in_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidNameError):
        checked(**options)


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="unknown option 'atempts'; did you mean 'attempts'"):
        checked(atempts=3)
    with pytest.raises(TypeError, match="known: attempts, backoff"):
        checked(xyzzy=3)


def test_good_options_are_turned_into_our_shapes() -> None:
    assert checked(
        attempts=0,
        priority=2**21 - 1,
        tags=["b", "a", "b"],
        backoff={"type": "exponential", "delay": 1_000},
        deduplication={"id": "x", "ttl": 5_000},
        remove_on_complete={"age": 3_600, "count": -1},
        timeout=None,
    ) == {
        "attempts": 1,
        "priority": 2**21 - 1,
        "tags": ("a", "b"),
        "backoff": Backoff.exponential("1s"),
        "deduplication": Dedup.throttle("x", "5s"),
        "remove_on_complete": KeepJobs(age="3600s"),
        "timeout": None,
    }
    assert checked(repeat={"every": 60_000}) == {"repeat": Repeat(every="60000ms")}


def test_checking_twice_changes_nothing() -> None:
    once = checked(backoff={"type": "fixed", "delay": 5}, tags=["a"], remove_on_fail={"count": 3}, delay="1s")
    assert check(once, "q.j") == once


def test_later_layers_win() -> None:
    assert merge({"attempts": 1, "priority": 2}, {"attempts": 3}, {}) == {"attempts": 3, "priority": 2}


def test_delay_and_run_at_displace_each_other() -> None:
    assert merge({"delay": "1s"}, {"run_at": NOON}) == {"run_at": NOON}
    assert merge({"run_at": NOON}, {"delay": "1s"}) == {"delay": "1s"}


def test_merging_leaves_the_layers_alone() -> None:
    lower: JobOptions = {"delay": "1s"}
    merge(lower, {"run_at": NOON})
    assert lower == {"delay": "1s"}


def test_writes_bullmq_json() -> None:
    options = checked(
        attempts=3,
        backoff=Backoff.exponential("1s", jitter=0.5, max="1m"),
        delay="5s",
        priority=1,
        lifo=True,
        job_id="a-1",
        deduplication=Dedup.debounce("x", "1m"),
        timeout=None,
        tags=["a"],
        remove_on_complete=True,
        remove_on_fail=KeepJobs(age="1500ms", count=3, limit=10),
        keep_logs=5,
        on_crash="fail",
        on_failure="ignore",
    )
    assert json.loads(write_options(options)) == {
        "attempts": 3,
        "backoff": {"type": "exponential", "delay": 1_000, "jitter": 0.5, "max": 60_000},
        "delay": 5_000,
        "priority": 1,
        "lifo": True,
        "jobId": "a-1",
        "de": {"id": "x", "ttl": 60_000, "extend": True, "replace": True},
        "timeout": None,
        "removeOnComplete": True,
        "removeOnFail": {"age": 2, "count": 3, "limit": 10},
        "kl": 5,
        "onCrash": "fail",
        "idof": True,
    }


def test_no_options_are_two_bytes() -> None:
    assert write_options({}) == b"{}"
    assert read_options(b"{}") == read_options(b"") == StoredOptions()


def test_a_template_keeps_its_tags() -> None:
    options = checked(tags=["b", "a"])
    assert write_options(options) == b"{}"
    assert read_options(write_options(options, template=True)).tags == ("a", "b")


def test_reads_what_was_written() -> None:
    options = checked(
        attempts=3, backoff=Backoff.fixed("5s"), timeout="1m", remove_on_complete=False, remove_on_fail=7, keep_logs=3
    )
    assert read_options(write_options(options)) == StoredOptions(
        attempts=3,
        backoff=Backoff.fixed("5s"),
        has_timeout=True,
        timeout_ms=60_000,
        keep_completed=Keep(),
        keep_failed=Keep(count=7),
        keep_logs=3,
    )


@pytest.mark.parametrize("mode", ["simple", "throttle", "extend", "debounce", "reschedule", "keep_latest"])
def test_each_way_of_deduplication_comes_back(mode: str) -> None:
    make = getattr(Dedup, mode)
    dedup: Dedup = make("x", "5s") if mode in {"throttle", "extend", "debounce"} else make("x")
    assert read_options(write_options(checked(deduplication=dedup))).dedup == dedup


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ({"attempts": 0, "removeOnComplete": True}, StoredOptions(keep_completed=Keep(count=0))),
        ({"removeOnFail": -1}, StoredOptions(keep_failed=Keep())),
        ({"removeOnFail": {"age": 10}}, StoredOptions(keep_failed=Keep(age_ms=10_000))),
        ({"removeOnFail": {"age": 0.5, "count": 1}}, StoredOptions(keep_failed=Keep(age_ms=500, count=1))),
        ({"backoff": 5}, StoredOptions(backoff=Backoff.fixed("5ms"))),
        ({"backoff": {}}, StoredOptions()),
        ({"backoff": {"type": "fixed", "delay": "x"}}, StoredOptions()),
        ({"backoff": {"type": "own"}}, StoredOptions(backoff=Backoff.custom("own"))),
        ({"attempts": "3", "kl": [], "priority": {}, "lifo": 1, "jobId": 3, "de": []}, StoredOptions()),
        ({"timeout": None}, StoredOptions(has_timeout=True)),
        ({"timeout": 500}, StoredOptions(has_timeout=True, timeout_ms=500)),
        ({"fpof": True}, StoredOptions(on_failure="fail_parent")),
        ({"tm": "{}", "omc": True, "stackTraceLimit": 5, "sizeLimit": 1}, StoredOptions(trace_context="{}")),
        ([], StoredOptions()),
    ],
)
def test_reads_what_node_writes(stored: object, expected: StoredOptions) -> None:
    assert read_options(json.dumps(stored).encode()) == expected


@pytest.mark.parametrize("raw", [b"nul", b'"x"', b"[1]", b"{", b"\xff", b"[" * 5_000])
def test_options_that_are_no_object_are_corrupt(raw: bytes) -> None:
    with pytest.raises(StoreCorruptError):
        read_options(raw)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
OBJECTS = st.dictionaries(st.sampled_from(["type", "delay", "id", "ttl", "age", "count"]), SCALARS)
KEYS = st.sampled_from(["attempts", "backoff", "kl", "removeOnFail", "de", "timeout", "tags"])


@given(st.dictionaries(KEYS, SCALARS | OBJECTS | st.lists(SCALARS)))
def test_no_object_of_options_stops_a_job(stored: dict[str, Any]) -> None:
    assert read_options(json.dumps(stored).encode()).attempts >= 1


def test_bullmq_options_are_read_in_bullmq_units() -> None:
    assert from_bullmq(
        {
            "attempts": 3,
            "backoff": {"type": "exponential", "delay": 60_000},
            "delay": 5_000,
            "priority": 1,
            "removeOnComplete": True,
            "removeOnFail": {"age": 3_600},
            "jobId": "a",
            "keepLogs": 10,
            "ignoreDependencyOnFailure": True,
            "parent": {"id": "7", "queue": "bull:reports"},
        }
    ) == {
        "attempts": 3,
        "backoff": Backoff.exponential("1m"),
        "delay": "5000ms",
        "priority": 1,
        "remove_on_complete": True,
        "remove_on_fail": KeepJobs(age="3600s"),
        "job_id": "a",
        "keep_logs": 10,
        "on_failure": "ignore",
        "parent": ParentRef("reports", "7"),
    }


def test_a_bullmq_repetition_is_read() -> None:
    assert from_bullmq({"repeat": {"pattern": "*/5 * * * *", "tz": "Europe/Riga", "endDate": 1_800_000_000_000}}) == {
        "repeat": Repeat("*/5 * * * *", tz="Europe/Riga", end=datetime.fromtimestamp(1_800_000_000, UTC))
    }


@pytest.mark.parametrize(
    ("given", "fault", "words"),
    [
        ({"removeOnCompleted": True}, TypeError, "did you mean 'removeOnComplete'"),
        ({"timestamp": 5}, ConfigurationError, "timestamp"),
        ({"delay": -5}, ConfigurationError, "delay -5"),
        ({"delay": "5s"}, ConfigurationError, "delay '5s'"),
        ({"failParentOnFailure": True, "ignoreDependencyOnFailure": True}, ConfigurationError, "at most one"),
    ],
)
def test_bullmq_options_that_cannot_be_used_are_refused(
    given: dict[str, Any], fault: type[Exception], words: str
) -> None:
    with pytest.raises(fault, match=words):
        from_bullmq(given)


@pytest.mark.parametrize(
    "make",
    [
        Repeat,
        lambda: Repeat("* * * * *", every="5m"),
        lambda: Repeat(every="0s"),
        lambda: Repeat(every="5m", tz="UTC"),
        lambda: Repeat("* * * * *", limit=0),
        lambda: Repeat("* * * * *", start=datetime(2026, 1, 1)),  # noqa: DTZ001
        lambda: Repeat("* * * * *", start=NOON, immediately=True),
        lambda: Repeat("61 * * * *").schedule(),
        lambda: Repeat("0 0 30 2 *").schedule(),
        lambda: Repeat("* * * * *", tz="Mars/Olympus").schedule(),
        lambda: Dedup.simple(""),
        lambda: Dedup.throttle("x", "0s"),
        lambda: Dedup("x", "throttle"),
        lambda: KeepJobs(count=-1),
        lambda: KeepJobs(age="x"),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused_where_they_are_written(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_a_slots_options_have_what_node_needs_for_the_next() -> None:
    raw = write_slot_options(
        b'{"attempts":3}',
        schedule_id="s",
        slot=1_000,
        count=2,
        delay_ms=10,
        now=990,
        pattern="* * * * *",
        tz="UTC",
        limit=5,
    )
    assert json.loads(raw) == {
        "attempts": 3,
        "repeat": {"count": 2, "pattern": "* * * * *", "tz": "UTC", "limit": 5},
        "jobId": "repeat:s:1000",
        "delay": 10,
        "timestamp": 990,
        "repeatJobKey": "s",
        "prevMillis": 1_000,
    }
