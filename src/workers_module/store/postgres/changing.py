"""Changing jobs and queues in place, deleting them, and writing them back."""

from collections.abc import Sequence
from typing import Any, Final, Literal

from workers_module.errors import ConfigurationError, IllegalMoveError, JobNotFoundError
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.planning import MOVED_TO
from workers_module.store.postgres.asking import action_args, patch_args, record_args, selection_args, settings_args
from workers_module.store.postgres.calls import ALL, Calls
from workers_module.store.postgres.reading import SHOWN
from workers_module.store.values import (
    Action,
    ByIds,
    EditResult,
    JobPatch,
    QueuePatch,
    QueueSettings,
    RateLimit,
    Remove,
    Selection,
)

_EDITED: Final = (EditResult.OK, EditResult.MISSING, EditResult.LEASE_LOST, EditResult.WRONG_STATE)


async def edit(calls: Calls, queue: str, patches: Sequence[JobPatch], *, now: int | None) -> list[EditResult]:
    """Do what `Store.edit` says."""
    if not patches:
        return []
    repeatable = not any(patch.log_lines for patch in patches)
    args = patch_args(patches)
    rows = await calls.fetch(calls.sql.edit, queue, *args, calls.instant(now), repeatable=repeatable)
    for name in rows[0]["news"]:
        calls.changed(name, 0 if name == queue else ALL)
    if any(patch.delay_ms is not None or patch.priority is not None for patch in patches):
        calls.changed(queue, ALL)
    return [_EDITED[code] for code in rows[0]["results"]]


async def move(calls: Calls, queue: str, selection: Selection, action: Action, *, now: int | None) -> list[str]:
    """Do what `Store.move` says."""
    args = (*selection_args(selection), *action_args(action), calls.instant(now))
    (row,) = await calls.fetch(calls.sql.move, queue, *args)
    refused: str | None = row["refused"]
    if refused is not None:
        assert isinstance(selection, ByIds)
        if refused == "missing":
            raise JobNotFoundError(queue, selection.ids[0])
        raise IllegalMoveError(selection.ids[0], SHOWN[int(refused)], MOVED_TO[type(action)])
    moved: list[str] = row["moved"]
    if moved:
        hint: int = row["hint"]
        calls.changed(queue, ALL if hint and row["tagged"] else hint)
    for name in row["news"]:
        calls.changed(name, ALL)
    return moved


async def configure(calls: Calls, queue: str, patch: QueuePatch | None, *, now: int | None) -> QueueSettings:
    """Do what `Store.configure` says."""
    instant = calls.instant(now)
    if patch is None or patch == QueuePatch():
        rows = await calls.fetch(calls.sql.settings, queue, instant)
        return _settings(rows[0]) if rows else QueueSettings()
    (row,) = await calls.fetch(calls.sql.configure, queue, *settings_args(patch), instant)
    calls.changed(queue, row["hint"])
    return _settings(row)


async def obliterate(calls: Calls, queue: str, *, force: bool, limit: int) -> bool:
    """Do what `Store.obliterate` says."""
    (row,) = await calls.fetch(calls.sql.obliterate, queue, force, limit, calls.instant(None))
    if row["active"] is not None:
        raise IllegalMoveError(row["active"], JobState.ACTIVE, MOVED_TO[Remove])
    calls.changed(queue, 0)
    calls.told(row["news"], queue)
    empty: bool = row["empty"]
    return empty


async def restore(calls: Calls, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"]) -> int:
    """Do what `Store.restore` says."""
    if not records:
        return 0
    strict = on_conflict == "error"
    (row,) = await calls.fetch(calls.sql.restore, *record_args(records), strict, calls.instant(None))
    if row["taken"] is not None:
        raise ConfigurationError(
            f"queue {row['taken_queue']!r} already has a job {row['taken']!r}; nothing was written. "
            "Skip those that exist, or remove them first"
        )
    for queue in dict.fromkeys(record.queue for record in records):
        calls.changed(queue, ALL)
    written: int = row["written"]
    return written


def _settings(row: Any) -> QueueSettings:
    rate = None
    if row["rate_max"] is not None and row["rate_ms"] is not None:
        rate = RateLimit(row["rate_max"], row["rate_ms"])
    return QueueSettings(
        paused=row["paused"],
        concurrency=row["concurrency"],
        rate=rate,
        event_cap=row["event_cap"],
        limited_until=row["limited_until"],
    )
