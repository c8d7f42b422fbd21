"""The log record of an attempt's end: its level, its line, and the fields that machines read."""

import json
import logging
from typing import Any

import pytest

from workers_module.errors import JobCancelledError, JobTimeoutError
from workers_module.job.outcome import Completed, Failed, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.worker.report import report_end

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def record(**options: Any) -> JobRecord:
    return JobRecord(
        queue="mail",
        id="41",
        name="send",
        state=JobState.ACTIVE,
        data=b"null",
        opts=json.dumps(options).encode(),
        priority=0,
        tags=(),
        attempts_made=1,
        max_attempts=3,
        crashes=0,
        fence=2,
        added=0,
        due=None,
        started=0,
        finished=None,
        worker="web-1:4121:aa",
    )


def reported(
    caplog: pytest.LogCaptureFixture, of: JobRecord, outcome: Outcome | None, error: BaseException | None = None
) -> dict[str, Any]:
    with caplog.at_level(logging.INFO):
        report_end(of, outcome, error, took_s=0.212)
    return vars(caplog.records[-1])


@pytest.mark.parametrize(
    ("outcome", "error", "word"),
    [
        (Completed(b"1"), None, "completed"),
        (Failed("ValueError: no"), ValueError("no"), "failed"),
        (Failed("late"), JobTimeoutError("late", job_id="41"), "timed_out"),
        (Failed("stopped"), JobCancelledError("stopped", job_id="41"), "cancelled"),
        (Retry(60_000, "SMTP 550"), OSError("SMTP 550"), "retried"),
        (Snooze(500), None, "delayed"),
        (Release(), None, "released"),
        (WaitChildren(), None, "waiting_children"),
        (None, None, "lost"),
    ],
)
def test_each_outcome_has_its_word(
    caplog: pytest.LogCaptureFixture, outcome: Outcome | None, error: BaseException | None, word: str
) -> None:
    fields = reported(caplog, record(), outcome, error)

    assert fields["outcome"] == word
    assert fields["levelno"] == (logging.WARNING if isinstance(outcome, Failed) else logging.INFO)


def test_the_fields_tell_the_whole_attempt(caplog: pytest.LogCaptureFixture) -> None:
    carrier = json.dumps({"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})

    fields = reported(caplog, record(tm=carrier), Retry(60_000, "SMTP 550"), OSError("SMTP 550"))

    assert {name: fields[name] for name in ("queue", "job_id", "job_name", "attempt", "attempts", "worker_id")} == {
        "queue": "mail",
        "job_id": "41",
        "job_name": "send",
        "attempt": 2,
        "attempts": 3,
        "worker_id": "web-1:4121:aa",
    }
    assert (fields["trace_id"], fields["duration_ms"], fields["delay_ms"], fields["reason"]) == (
        *(TRACE, 212.0, 60_000, "SMTP 550"),
    )
    assert caplog.messages[-1] == "job 41 (mail.send) retried: SMTP 550"


@pytest.mark.parametrize(
    "carrier", ["", "{", "[]", "5", "{}", '{"traceparent": 5}', '{"traceparent": "00-short-1-01"}']
)
def test_a_carrier_that_cannot_be_read_is_no_trace(caplog: pytest.LogCaptureFixture, carrier: str) -> None:
    assert reported(caplog, record(tm=carrier), Completed(b"1"))["trace_id"] is None


def test_neither_are_options_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert reported(caplog, record()._replace(opts=b'{"tm"'), Completed(b"1"))["trace_id"] is None
