"""How errors are written down, and how they are told again."""

import json
from typing import Any

import pytest

from workers_module.errors import (
    JobCancelledError,
    JobCrashedError,
    JobExpiredError,
    JobFailedError,
    JobTimeoutError,
)
from workers_module.job.failure import (
    MAX_TEXT_BYTES,
    MAX_TRACES,
    add_trace,
    cut,
    failure_of,
    read_traces,
    reason_of,
    trace_of,
)
from workers_module.job.job import Job
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState


class OwnError(Exception):
    pass


def raised(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def failed(error: BaseException) -> JobRecord:
    return Job.fake(
        None, state=JobState.FAILED, reason=reason_of(error), trace=add_trace(None, trace_of(error)), id="7"
    ).record


@pytest.mark.parametrize("error", [ValueError("bad"), OwnError("own"), KeyError("k"), RuntimeError("two\nlines: x")])
def test_a_foreign_error_is_told_by_name_only(error: Exception) -> None:
    told = failure_of(failed(raised(error)))
    assert type(told) is JobFailedError
    assert told.error_type == type(error).__name__
    assert told.message == str(error)
    assert "test_failure.py" in told.trace


@pytest.mark.parametrize("kind", [JobTimeoutError, JobCancelledError, JobCrashedError, JobExpiredError])
def test_our_errors_come_back_as_themselves(kind: type[JobFailedError]) -> None:
    for error in (kind("why", job_id="7"), raised(kind("why", job_id="7"))):
        told = failure_of(failed(error))
        assert type(told) is kind
        assert told.message == "why"
        assert told.job_id == "7"


def test_a_name_of_a_real_class_builds_nothing() -> None:
    record = failed(ValueError("x"))._replace(trace=json.dumps(["os.system: boom"]).encode(), reason="boom")
    told = failure_of(record)
    assert type(told) is JobFailedError
    assert told.error_type == "system"


def test_node_traces_are_read_from_their_first_line() -> None:
    trace = "TypeError: x is undefined\n    at Worker.process (/srv/a.js:3:1)"
    assert failure_of(failed(ValueError())._replace(trace=json.dumps([trace]).encode())).error_type == "TypeError"


@pytest.mark.parametrize("trace", [None, b"", b"nul", b"{}", b"[]", b'["\\n"]'])
def test_a_failure_without_a_usable_trace_is_told_all_the_same(trace: Any) -> None:
    assert failure_of(failed(ValueError("x"))._replace(trace=trace)).message == "x"


def test_an_error_without_text_has_its_name_as_reason() -> None:
    assert reason_of(ValueError()) == "ValueError"


def test_long_texts_are_cut_and_marked() -> None:
    reason = reason_of(ValueError("é" * MAX_TEXT_BYTES))
    assert reason.endswith("…")
    assert len(reason.encode()) <= MAX_TEXT_BYTES
    trace = trace_of(raised(ValueError("x" * 3 * MAX_TEXT_BYTES)))
    assert trace.startswith("…")
    assert len(trace.encode()) <= MAX_TEXT_BYTES


def test_text_that_is_not_unicode_can_be_stored() -> None:
    assert cut("a\ud800b") == "a?b"
    add_trace(None, "a\ud800b").decode()


def test_the_newest_traces_stay() -> None:
    stored: bytes | None = None
    for number in range(MAX_TRACES + 5):
        stored = add_trace(stored, str(number))
    assert read_traces(stored) == [str(number) for number in range(5, MAX_TRACES + 5)]
