"""How a job's options lie in the store: as BullMQ's JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from workers_module.clock import MAX_MS, duration_ms
from workers_module.errors import ConfigurationError, StoreCorruptError
from workers_module.job.options import Dedup, JobOptions, KeepJobs, OnFailure
from workers_module.job.outcome import Keep
from workers_module.job.record import OnCrash
from workers_module.job.retry import Backoff

_FAILURE_FLAGS: Final[Mapping[str, str]] = {
    "fail_parent": "fpof",
    "continue_parent": "cpof",
    "ignore": "idof",
    "remove": "rdof",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOptions:
    """What a worker reads of a job's stored options.

    Attributes:
        attempts: Runs allowed in all.
        backoff: The wait before the next attempt; None for no wait.
        keep_completed: What stays of completed jobs; None leaves it to the worker.
        keep_failed: What stays of failed jobs; None leaves it to the worker.
        has_timeout: Whether anything is said about the time limit of a run.
        timeout_ms: That limit; None for no limit.
        keep_logs: How many log lines are kept; None for the most there are.
        on_crash: What becomes of the job when its worker dies.
        delay_ms: The delay it was added with.
        priority: 0 for none.
        lifo: Whether it went in front.
        job_id: The id its producer gave it.
        dedup: Its deduplication.
        on_failure: What its final failure does to its parent; None where nothing is said.
        tags: The tags of a schedule's jobs; those of other jobs stand in their record.
        trace_context: The telemetry carrier, as text.
    """

    attempts: int = 1
    backoff: Backoff | None = None
    keep_completed: Keep | None = None
    keep_failed: Keep | None = None
    has_timeout: bool = False
    timeout_ms: int | None = None
    keep_logs: int | None = None
    on_crash: OnCrash = "retry"
    delay_ms: int = 0
    priority: int = 0
    lifo: bool = False
    job_id: str | None = None
    dedup: Dedup | None = None
    on_failure: OnFailure | None = None
    tags: tuple[str, ...] = ()
    trace_context: str | None = None


def write_options(options: JobOptions, *, template: bool = False) -> bytes:
    """Write checked options as BullMQ's JSON.

    Keys that BullMQ does not know: ``timeout`` (ms, or null for no limit), ``onCrash``, and ``max`` in ``backoff``.
    What the store keeps elsewhere (parent, repetition, tags) is left out.

    Args:
        options: What `check` returned.
        template: They are those of a schedule's jobs: ``tags`` are written too.

    Source: wire format §2.2.
    """
    value: dict[str, Any] = {}
    for name, item in options.items():
        match name:
            case "attempts" | "priority" | "lifo":
                value[name] = item
            case "backoff" if isinstance(item, Backoff):
                value[name] = item.to_bullmq()
            case "delay":
                value[name] = duration_ms(item)  # type: ignore[arg-type]
            case "timeout":
                value[name] = None if item is None else duration_ms(item)  # type: ignore[arg-type]
            case "job_id":
                value["jobId"] = item
            case "deduplication" if isinstance(item, Dedup):
                value["de"] = item.to_bullmq()
            case "remove_on_complete":
                value["removeOnComplete"] = _write_retention(item)
            case "remove_on_fail":
                value["removeOnFail"] = _write_retention(item)
            case "keep_logs":
                value["kl"] = item
            case "on_crash":
                value["onCrash"] = item
            case "on_failure":
                value[_FAILURE_FLAGS[str(item)]] = True
            case "tags" if template and item:
                value["tags"] = item
            case _:
                pass
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() if value else b"{}"


def write_slot_options(
    opts: bytes,
    *,
    schedule_id: str,
    slot: int,
    count: int,
    delay_ms: int,
    now: int,
    pattern: str | None = None,
    every_ms: int | None = None,
    offset_ms: int = 0,
    tz: str | None = None,
    start: int | None = None,
    end: int | None = None,
    limit: int | None = None,
) -> bytes:
    """Return the options of a schedule's job: those of the template, and what Node needs to make the job after it.

    Args:
        opts: The template's options in BullMQ's JSON.
        schedule_id: The schedule's id.
        slot: The job's slot.
        count: The job's number in the schedule, from 1.
        delay_ms: From now to the slot.
        now: The store's time.
        pattern: The cron text, or None.
        every_ms: The distance, or None.
        offset_ms: The distance's phase.
        tz: The pattern's zone.
        start: No slot before.
        end: No slot after.
        limit: So many jobs at most.

    Source: wire format §7.4.
    """
    repeat: dict[str, Any] = {"count": count}
    optional = {"pattern": pattern, "every": every_ms, "tz": tz, "limit": limit, "startDate": start, "endDate": end}
    repeat.update((key, item) for key, item in optional.items() if item is not None)
    if every_ms is not None and offset_ms:
        repeat["offset"] = offset_ms
    value = _object(opts) | {
        "repeat": repeat,
        "jobId": f"repeat:{schedule_id}:{slot}",
        "delay": delay_ms,
        "timestamp": now,
        "repeatJobKey": schedule_id,
    }
    if pattern is not None:
        value["prevMillis"] = slot
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(maxsize=4_096)
def read_options(opts: bytes) -> StoredOptions:
    """Read stored options, whoever wrote them.

    Values that cannot be used count as not given: a job is run rather than thrown away for a bad option.

    Raises:
        StoreCorruptError: The bytes are no JSON object.
    """
    if opts in {b"", b"{}"}:
        return StoredOptions()
    value = _object(opts)
    on_crash = value.get("onCrash")
    flag = next((policy for policy, key in _FAILURE_FLAGS.items() if value.get(key) is True), None)
    return StoredOptions(
        attempts=max(1, _number(value.get("attempts")) or 1),
        backoff=_read_backoff(value.get("backoff")),
        keep_completed=_read_keep(value.get("removeOnComplete")),
        keep_failed=_read_keep(value.get("removeOnFail")),
        has_timeout="timeout" in value,
        timeout_ms=_number(value.get("timeout")) or None,
        keep_logs=_number(value.get("kl")),
        on_crash="fail" if on_crash == "fail" else "retry",
        delay_ms=_number(value.get("delay")) or 0,
        priority=_number(value.get("priority")) or 0,
        lifo=value.get("lifo") is True,
        job_id=value["jobId"] if isinstance(value.get("jobId"), str) else None,
        dedup=_read_dedup(value.get("de")),
        on_failure=flag,  # type: ignore[arg-type]
        tags=_read_tags(value.get("tags")),
        trace_context=value["tm"] if isinstance(value.get("tm"), str) else None,
    )


def _object(opts: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(opts)
    except (ValueError, RecursionError):
        value = None
    # Lua's JSON writes an empty object and an empty list alike.
    if value == []:
        return {}
    if not isinstance(value, dict):
        raise StoreCorruptError(f"stored options of {len(opts):,} bytes are no JSON object")
    return value  # pyright: ignore[reportUnknownVariableType]


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_MS:
        return None
    return int(value)


def _read_backoff(value: object) -> Backoff | None:
    if not value:
        return None
    try:
        return Backoff.from_bullmq(value)  # type: ignore[arg-type]
    except (ConfigurationError, TypeError, ValueError, OverflowError):
        return None


def _read_keep(value: object) -> Keep | None:
    if value is True:
        return Keep(count=0)
    if value is False:
        return Keep()
    if isinstance(value, Mapping):
        given: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        age = given.get("age")
        # Rounded up, so that nothing goes early.
        usable = isinstance(age, int | float) and not isinstance(age, bool) and 0 <= age <= MAX_MS / 1_000
        age_ms = -int(-age * 1_000 // 1) if usable and age is not None else None
        return Keep(count=_number(given.get("count")), age_ms=age_ms, limit=_number(given.get("limit")) or 1_000)
    # BullMQ's -1 keeps all.
    if isinstance(value, int | float) and value < 0:
        return Keep()
    count = _number(value)
    return None if count is None else Keep(count=count)


def _read_tags(value: object) -> tuple[str, ...]:
    tags: list[object] = value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
    return tuple(sorted({tag for tag in tags if isinstance(tag, str)}))


def _read_dedup(value: object) -> Dedup | None:
    if not isinstance(value, Mapping):
        return None
    try:
        return Dedup.from_bullmq(value)  # pyright: ignore[reportUnknownArgumentType]
    except (ConfigurationError, TypeError):
        return None


def _write_retention(value: object) -> Any:
    if not isinstance(value, KeepJobs):
        return value
    keep = value.keep()
    written: dict[str, Any] = {}
    if keep.age_ms is not None:
        # BullMQ counts in seconds; rounded up, so that nothing goes early.
        written["age"] = -(-keep.age_ms // 1_000)
    if keep.count is not None:
        written["count"] = keep.count
    if keep.limit != 1_000 or not written:
        written["limit"] = keep.limit
    return written
