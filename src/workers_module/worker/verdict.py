"""What becomes of a job whose attempt failed: another one, and when, or the end. Decides; does nothing."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pydantic import ValidationError

from workers_module.clock import duration_ms
from workers_module.errors import (
    JobCancelledError,
    JobFailedError,
    JobTimeoutError,
    PayloadError,
    StoreCorruptError,
    UnrecoverableError,
)
from workers_module.job.failure import add_trace, reason_of, trace_of
from workers_module.job.job import Job
from workers_module.job.outcome import Failed, Keep, Outcome, Retry
from workers_module.job.record import JobRecord
from workers_module.job.retry import should_retry
from workers_module.job.stored import StoredOptions, read_options
from workers_module.store.values import Claimed, Settle
from workers_module.worker.run import Run

_log = logging.getLogger(__name__)

Backoffs = Mapping[str, Callable[[int, Exception, Job[Any]], Any]]
"""The application's own backoff functions by name."""

_LIBRARY: Final = (str(Path(asyncio.__file__).parent.parent), str(Path(__file__).parent.parent))


class Verdict:
    """Decides on failed attempts.

    Args:
        keep_failed: Retention of failed jobs that name none.
        backoffs: The application's own backoff functions.
        on_end: Told the original exception of each job that failed for good, so that a waiter in this process gets it.
    """

    def __init__(
        self, keep_failed: Keep, backoffs: Backoffs, on_end: Callable[[JobRecord, BaseException], None] | None
    ) -> None:
        self._keep = keep_failed
        self._backoffs = backoffs
        self._on_end = on_end

    def on(self, run: Run, error: BaseException) -> Outcome:
        """Return the outcome of an attempt that ended with ``error``."""
        record = run.claimed.record
        hopeless = UnrecoverableError | JobCancelledError | StoreCorruptError
        final = isinstance(error, hopeless) or error is run.context.fatal
        if should_retry(attempts_made=record.attempts_made, max_attempts=record.max_attempts, unrecoverable=final):
            return Retry(self._delay(run, error), reason_of(error), add_trace(record.trace, trace_of(error)))
        return self._end(record, error)

    def without_run(self, claimed: Claimed, error: JobFailedError) -> Settle:
        """Return the end of a job that is not run at all: a deferred failure, an unknown name, unreadable data."""
        return Settle(claimed.held, self._end(claimed.record, error))

    def _end(self, record: JobRecord, error: BaseException) -> Failed:
        if self._on_end is not None:
            self._on_end(record, error)
        keep = _options(record).keep_failed or self._keep
        return Failed(reason_of(error), add_trace(record.trace, trace_of(error)), keep)

    def _delay(self, run: Run, error: BaseException) -> int:
        record = run.claimed.record
        backoff = _options(record).backoff
        if backoff is None:
            return 0
        attempt = record.attempts_made + 1
        own = self._backoffs.get(backoff.type)
        if own is None and not backoff.is_custom:
            return backoff.delay_for(attempt)
        if own is None:
            _log.error(
                "job %s of queue %s: no backoff %r here; register it with for_root(backoffs=…). Retried after %d ms",
                *(record.id, record.queue, backoff.type, backoff.delay_ms),
            )
            return backoff.delay_ms
        cause = error if isinstance(error, Exception) else JobFailedError(reason_of(error), job_id=record.id)
        try:
            return duration_ms(own(attempt, cause, run.context.job_or_bare), f"backoff {backoff.type!r}")
        except Exception:
            _log.exception(
                "backoff %r failed; job %s comes again after %d ms", backoff.type, record.id, backoff.delay_ms
            )
            return backoff.delay_ms


def _options(record: JobRecord) -> StoredOptions:
    # Options that nobody can read must not keep the job from ending.
    try:
        return read_options(record.opts)
    except StoreCorruptError:
        return StoredOptions()


def timed_out(record: JobRecord, limit_ms: int, error: asyncio.CancelledError | None) -> JobTimeoutError:
    """Return the error of a run over its limit; where the handler stood is read from the cancellation that ended it."""
    place = _place(error.__traceback__) if error is not None else ""
    where = f"; it was at {place}" if place else ""
    return JobTimeoutError(
        f"{record.queue}.{record.name} passed its limit of {limit_ms / 1000:g} s (attempt {record.attempts_made + 1} of"
        f" {max(1, record.max_attempts)}){where}. Raise the limit: options={{'timeout': …}}",
        job_id=record.id,
    )


def unreadable(error: ValidationError) -> PayloadError:
    """Return what a payload that does not fit fails with; the text names places and rules, never values."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    shown = "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in faults[:5])
    return PayloadError(
        f"the stored payload does not fit: {shown}. Not retried, it will not get better", path=_path(faults[0]["loc"])
    )


def _path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _place(trace: TracebackType | None) -> str:
    """Return ``file:line`` of the innermost frame that is the application's own."""
    place = ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith(_LIBRARY) and "site-packages" not in name:
            place = f"{name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
