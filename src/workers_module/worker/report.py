"""Writes the log records of an attempt: a line for people, and its parts as fields for machines."""

import json
import logging
from typing import Any, assert_never

from workers_module.errors import JobCancelledError, JobTimeoutError, StoreCorruptError
from workers_module.job.outcome import Completed, Failed, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import JobRecord
from workers_module.job.stored import read_options

_log = logging.getLogger(__name__)


def report_start(record: JobRecord) -> None:
    """Log, for those who debug, that an attempt starts; with the first five fields of `report_end`."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("job %s (%s.%s) started", record.id, record.queue, record.name, extra=_attempt(record))


def report_end(
    record: JobRecord, outcome: Outcome | None, error: BaseException | None = None, *, took_s: float | None = None
) -> None:
    """Log the end of an attempt.

    The record's fields: ``queue``, ``job_id``, ``job_name``, ``attempt`` (from 1), ``attempts`` (allowed),
    ``worker_id``, ``trace_id`` (where the job carries one), ``duration_ms`` (of the run), ``outcome`` (``completed``,
    ``failed``, ``retried``, ``timed_out``, ``cancelled``, ``delayed``, ``released``, ``waiting_children``, ``lost``),
    ``reason`` (of a failure), ``delay_ms`` (until the next start).

    Args:
        record: The job.
        outcome: How it ended; None when its lease was lost.
        error: What ended it.
        took_s: How long it ran, in seconds; None if it did not.
    """
    level = logging.WARNING if isinstance(outcome, Failed) else logging.INFO
    if not _log.isEnabledFor(level):
        return
    word = _word(outcome, error)
    reason = outcome.reason if isinstance(outcome, Failed | Retry) else None
    fields: dict[str, Any] = {
        **_attempt(record),
        "worker_id": record.worker,
        "trace_id": _trace_id(record),
        "duration_ms": None if took_s is None else round(took_s * 1_000, 3),
        "outcome": word,
        "reason": reason,
        "delay_ms": outcome.delay_ms if isinstance(outcome, Retry | Snooze) else None,
    }
    text = f"{word}: {reason}" if reason else word
    _log.log(level, "job %s (%s.%s) %s", record.id, record.queue, record.name, text, extra=fields)


def _attempt(record: JobRecord) -> dict[str, Any]:
    return {
        "queue": record.queue,
        "job_id": record.id,
        "job_name": record.name,
        "attempt": record.attempts_made + 1,
        "attempts": max(1, record.max_attempts),
    }


def _word(outcome: Outcome | None, error: BaseException | None) -> str:
    match outcome:
        case Completed():
            return "completed"
        case Failed():
            match error:
                case JobTimeoutError():
                    return "timed_out"
                case JobCancelledError():
                    return "cancelled"
                case _:
                    return "failed"
        case Retry():
            return "retried"
        case Snooze():
            return "delayed"
        case Release():
            return "released"
        case WaitChildren():
            return "waiting_children"
        case None:
            return "lost"
        case _ as never:
            assert_never(never)


def _trace_id(record: JobRecord) -> str | None:
    """Return the id of the trace that the job belongs to, from the W3C carrier in its options."""
    if b'"tm"' not in record.opts:
        return None
    try:
        carrier: Any = json.loads(read_options(record.opts).trace_context or "{}")
        version, trace, *_ = str(carrier["traceparent"]).split("-")
    except (StoreCorruptError, ValueError, TypeError, KeyError):
        return None
    return trace if len(version) == 2 and len(trace) == 32 else None
