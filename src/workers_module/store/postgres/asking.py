"""What a function is asked: values of the contract as arrays of plain types, in the order its file lists them."""

from collections.abc import Sequence
from typing import Any, Final, assert_never

from workers_module.job.outcome import Completed, Failed, Keep, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import JobRecord
from workers_module.store.codec import dump_definition
from workers_module.store.planning import MAX_LOG_LINES, MAX_MOVED, cut_line
from workers_module.store.postgres.reading import POLICY_CODES, SHOWN_CODES
from workers_module.store.schedules import DropSchedule, FireSlot, PutSchedule
from workers_module.store.values import (
    UNSET,
    Action,
    ByIds,
    Fail,
    Held,
    JobPatch,
    JobSpec,
    Promote,
    QueuePatch,
    RateLimit,
    Remove,
    RetryAgain,
    Selection,
    Settle,
)

SEPARATOR: Final = "\x1f"
"""What stands between ids, tokens, or the tags of a set, on the way to the server."""


def joined(tags: Sequence[str]) -> str | None:
    """Return a set of tags as one text; None for none."""
    return SEPARATOR.join(tags) or None


def raw(text: str) -> bytes:
    """Return text as bytes; what is no character becomes a question mark."""
    return text.encode("utf-8", "replace")


def add_args(specs: Sequence[JobSpec], *, home: str | None, channel: str | None, now: int | None) -> list[Any]:
    """Return what ``add_1`` is asked; ``home`` and ``channel`` are for a transaction of the application's."""
    queues = {name: place for place, name in enumerate(dict.fromkeys(spec.queue for spec in specs), 1)}
    plain = all(spec.parent is None and spec.dedup is None and spec.schedule is None for spec in specs)
    parents = [spec.parent for spec in specs]
    dedups = [spec.dedup for spec in specs]
    columns: list[list[Any]] = [
        [queues[spec.queue] for spec in specs],
        [spec.id for spec in specs],
        [raw(spec.name) for spec in specs],
        [spec.data for spec in specs],
        [spec.opts for spec in specs],
        [spec.priority for spec in specs],
        [spec.lifo for spec in specs],
        [spec.timestamp for spec in specs],
        [spec.due for spec in specs],
        [spec.delay_ms for spec in specs],
        [spec.max_attempts for spec in specs],
        [joined(spec.tags) for spec in specs],
        [spec.on_crash == "fail" for spec in specs],
        [POLICY_CODES[spec.policy] for spec in specs],
        [spec.schedule for spec in specs],
        [None if parent is None or isinstance(parent, int) else parent.queue for parent in parents],
        [None if parent is None or isinstance(parent, int) else parent.id for parent in parents],
        [parent + 1 if isinstance(parent, int) else None for parent in parents],
        [None if dedup is None else dedup.key for dedup in dedups],
        [None if dedup is None else dedup.mode for dedup in dedups],
        [None if dedup is None else dedup.ttl_ms for dedup in dedups],
    ]
    data = columns[3]
    # The driver looks at each element of an array: columns that hold one value go as that value.
    short = [column if column is data or column.count(column[0]) < len(column) else column[:1] for column in columns]
    return [list(queues), *short, plain, home, channel, now]


ADD_TYPES: Final = [
    "text[]",
    "int[]",
    "text[]",
    "bytea[]",
    "bytea[]",
    "bytea[]",
    "int[]",
    "boolean[]",
    "bigint[]",
    "bigint[]",
    "bigint[]",
    "int[]",
    "text[]",
    "boolean[]",
    "smallint[]",
    "text[]",
    "text[]",
    "text[]",
    "int[]",
    "text[]",
    "text[]",
    "bigint[]",
    "boolean",
    "text",
    "text",
    "bigint",
]
"""The types of `add_args`, for drivers that must be told."""


def outcome_args(outcomes: Sequence[Settle]) -> list[Any]:
    """Return the part of ``step_1`` that settles, from ``p_ids`` to ``p_simple``."""
    held = [one.held for one in outcomes]
    ids = [one.id for one in held]
    who: list[Any] = [
        SEPARATOR.join(ids),
        SEPARATOR.join([one.token for one in held]),
        SEPARATOR.join([str(one.fence) for one in held]),
    ]
    handles = [one.handle for one in held]
    completed = [outcome for _, outcome in outcomes if type(outcome) is Completed]
    if len(completed) == len(held) == len(set(ids)) and None not in handles:
        keep = completed[0].keep if completed else None
        if all(one.keep == keep for one in completed):
            # Half of the arrays say nothing then, and the driver looks at each of their elements.
            kept = [[value] for value in _keep(keep)]
            places = SEPARATOR.join([f"({handle >> 16},{handle & 65535})" for handle in handles if handle is not None])
            return [*who, places, [], [one.result for one in completed], [], [], [], *kept, True]
    how = zip(*(_outcome(outcome) for _, outcome in outcomes), strict=True)
    return [*who, "", *(list(column) for column in how), False]


_Outcome = tuple[int, bytes | None, bytes | None, int, str | None, int | None, int | None, int]


def _outcome(outcome: object) -> _Outcome:
    """Return kind, text, trace, delay, child, and what is kept: count, age, limit."""
    match outcome:
        case Completed(result, keep):
            return 0, result, None, 0, None, *_keep(keep)
        case Failed(reason, trace, keep):
            return 1, raw(reason), trace, 0, None, *_keep(keep)
        case Retry(delay_ms, reason, trace):
            return 2, raw(reason), trace, delay_ms, None, *_keep(None)
        case Snooze(delay_ms):
            return 3, None, None, delay_ms, None, *_keep(None)
        case Release():
            return 4, None, None, 0, None, *_keep(None)
        case WaitChildren(child):
            return 5, None, None, 0, child, *_keep(None)
        case _:
            raise AssertionError(outcome)


def _keep(keep: Keep | None) -> tuple[int | None, int | None, int]:
    return (None, None, 0) if keep is None else (keep.count, keep.age_ms, keep.limit)


def held_args(held: Sequence[Held]) -> list[list[Any]]:
    """Return ids, tokens and fences."""
    return [[one.id for one in held], [one.token for one in held], [one.fence for one in held]]


def patch_args(patches: Sequence[JobPatch]) -> list[Any]:
    """Return what ``edit_1`` is asked, from ``p_ids`` to ``p_fences``."""
    lines: list[bytes] = []
    line_of: list[int] = []
    for place, patch in enumerate(patches, 1):
        for line in patch.log_lines[-MAX_LOG_LINES:]:
            lines.append(raw(cut_line(line)))
            line_of.append(place)
    return [
        [patch.id for patch in patches],
        [patch.progress for patch in patches],
        [patch.data for patch in patches],
        lines,
        line_of,
        [MAX_LOG_LINES if patch.keep_logs is None else min(patch.keep_logs, MAX_LOG_LINES) for patch in patches],
        [patch.clear_logs for patch in patches],
        [patch.priority for patch in patches],
        [patch.delay_ms for patch in patches],
        [patch.cancel for patch in patches],
        [patch.detach for patch in patches],
        [None if patch.held is None else patch.held.token for patch in patches],
        [None if patch.held is None else patch.held.fence for patch in patches],
    ]


def selection_args(selection: Selection) -> list[Any]:
    """Return the part of ``move_1`` that selects, from ``p_ids`` to ``p_names``."""
    if isinstance(selection, ByIds):
        return [list(selection.ids), None, None, MAX_MOVED, None]
    states = [SHOWN_CODES[state] for state in selection.states]
    limit = min(selection.limit or MAX_MOVED, MAX_MOVED)
    return [None, states, selection.older_than, limit, [raw(name) for name in selection.names] or None]


def action_args(action: Action) -> list[Any]:
    """Return the part of ``move_1`` that acts, from ``p_action`` to ``p_trace``."""
    match action:
        case Remove(children, hard):
            return [0, children, hard, False, None, None]
        case RetryAgain(reset):
            return [1, False, False, reset, None, None]
        case Promote():
            return [2, False, False, False, None, None]
        case Fail(reason, trace):
            return [3, False, False, False, raw(reason), trace]
        case _:
            assert_never(action)


def settings_args(patch: QueuePatch) -> list[Any]:
    """Return what ``configure_1`` is asked, from ``p_paused`` to ``p_set_rate``."""
    rate = patch.rate if isinstance(patch.rate, RateLimit) else None
    return [
        patch.paused,
        None if patch.concurrency is UNSET else patch.concurrency,
        None if rate is None else rate.max,
        None if rate is None else rate.window_ms,
        patch.event_cap,
        patch.limit_for_ms,
        patch.free_dedup,
        patch.concurrency is not UNSET,
        patch.rate is not UNSET,
    ]


def schedule_args(changes: Sequence[PutSchedule | FireSlot | DropSchedule]) -> list[Any]:
    """Return what ``schedule_1`` is asked, from ``p_kinds`` to ``p_key``."""
    rows = [_change(change) for change in changes]
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    return columns or [[] for _ in range(17)]


def _change(change: PutSchedule | FireSlot | DropSchedule) -> tuple[Any, ...]:
    match change:
        case PutSchedule():
            body = dump_definition(change.definition)
            return 0, change.id, change.slot, None, change.paused, body, *_job(change.job)
        case FireSlot():
            return 1, change.id, change.slot, change.from_slot, change.replace, None, *_job(change.job)
        case DropSchedule():
            return 2, change.id, None, None, False, None, *[None] * 11
        case _:
            assert_never(change)


def _job(job: JobSpec) -> tuple[Any, ...]:
    crash = job.on_crash == "fail"
    tags = joined(job.tags)
    policy, key = POLICY_CODES[job.policy], None if job.dedup is None else job.dedup.key
    return (
        raw(job.name),
        job.data,
        job.opts,
        job.priority,
        job.lifo,
        job.timestamp,
        job.max_attempts,
        tags,
        crash,
        policy,
        key,
    )


def record_args(records: Sequence[JobRecord]) -> list[Any]:
    """Return what ``restore_1`` is asked, from ``p_queues`` to ``p_results``."""
    return [
        [record.queue for record in records],
        [record.id for record in records],
        [raw(record.name) for record in records],
        [SHOWN_CODES[record.state] for record in records],
        [record.data for record in records],
        [record.opts for record in records],
        [record.priority for record in records],
        [joined(record.tags) for record in records],
        [record.attempts_made for record in records],
        [record.max_attempts for record in records],
        [record.crashes for record in records],
        [record.fence for record in records],
        [record.added for record in records],
        [record.due for record in records],
        [record.started for record in records],
        [record.finished for record in records],
        [record.lifo for record in records],
        [record.on_crash == "fail" for record in records],
        [None if record.worker is None else raw(record.worker) for record in records],
        [None if record.parent is None else record.parent.queue for record in records],
        [None if record.parent is None else record.parent.id for record in records],
        [POLICY_CODES[record.policy] for record in records],
        [record.schedule for record in records],
        [record.dedup for record in records],
        [record.deferred for record in records],
        [record.progress for record in records],
        [None if record.reason is None else raw(record.reason) for record in records],
        [record.trace for record in records],
        [record.result for record in records],
    ]
