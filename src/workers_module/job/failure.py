"""How an error is written down, and how it is told again to whoever waits for the job.

BullMQ stores a text (``failedReason``) and a list of traces; the class of the error is read from the last trace, never
built
from a stored name: only the few classes below, which are ours, come back as themselves.
"""

import json
import traceback
from collections.abc import Sequence

from pydantic import TypeAdapter

from workers_module.errors import (
    JobCancelledError,
    JobCrashedError,
    JobExpiredError,
    JobFailedError,
    JobTimeoutError,
    RemoteError,
)
from workers_module.job.record import JobRecord

MAX_TEXT_BYTES = 16 * 1024
"""Longer error texts and traces are cut (reliability §8)."""
MAX_TRACES = 20

_TRACES: TypeAdapter[list[str]] = TypeAdapter(list[str])
_OURS: dict[str, type[JobFailedError]] = {
    kind.__name__: kind for kind in (JobTimeoutError, JobCancelledError, JobCrashedError, JobExpiredError)
}


def cut(text: str, limit: int = MAX_TEXT_BYTES) -> str:
    """Return ``text`` as UTF-8 can carry it, cut to ``limit`` bytes and marked with ``…`` where it was longer."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"


def reason_of(error: BaseException) -> str:
    """Return the text kept as the reason of a failure: the message, or the class name where there is none."""
    text = error.message if isinstance(error, JobFailedError) else str(error)
    return cut(text or type(error).__name__)


def trace_of(error: BaseException) -> str:
    """Return the traceback as text; its last line begins with the class name."""
    if isinstance(error, RemoteError):
        return cut(error.trace)
    if isinstance(error, JobFailedError) and error.__traceback__ is None:
        return cut(f"{type(error).__name__}: {error.message}")
    lines = traceback.format_exception(error, chain=True)
    text = "".join(lines).rstrip()
    raw = text.encode("utf-8", "replace")
    if len(raw) <= MAX_TEXT_BYTES:
        return raw.decode()
    # The end names the error and the place it was raised: that half is the one to keep.
    return "…" + raw[-(MAX_TEXT_BYTES - 3) :].decode("utf-8", "ignore")


def add_trace(stored: bytes | None, trace: str) -> bytes:
    """Return the JSON array of traces with one more at its end, at most `MAX_TRACES` of them."""
    traces = [*read_traces(stored), trace][-MAX_TRACES:]
    return json.dumps(traces, ensure_ascii=False).encode("utf-8", "replace")


def read_traces(stored: bytes | None) -> Sequence[str]:
    """Return the stored traces, oldest first; what is no list of texts counts as none."""
    if not stored:
        return []
    try:
        return _TRACES.validate_json(stored)
    except ValueError:
        return []


def failure_of(record: JobRecord) -> JobFailedError:
    """Return the error that a failed job's handle raises.

    Of the stored error class only the name is taken, as text; ours come back as themselves.
    """
    traces = read_traces(record.trace)
    trace = traces[-1] if traces else ""
    name = _error_type(trace)
    kind = _OURS.get(name, JobFailedError)
    return kind(
        record.reason or "", job_id=record.id, error_type="" if kind is not JobFailedError else name, trace=trace
    )


def _error_type(trace: str) -> str:
    lines = trace.strip().splitlines()
    if not lines:
        return ""
    # Python names the error at the end, Node at the beginning.
    line = lines[0] if len(lines) > 1 and lines[1].lstrip().startswith("at ") else _last_unindented(lines)
    name = line.partition(":")[0].strip().rpartition(".")[2]
    return name if name.isidentifier() else ""


def _last_unindented(lines: Sequence[str]) -> str:
    start = max((i for i, line in enumerate(lines) if line.startswith('  File "')), default=-1)
    return next((line for line in lines[start + 1 :] if line and not line[0].isspace()), lines[-1])
