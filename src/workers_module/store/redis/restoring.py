"""Writing whole jobs back."""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NoReturn

from workers_module.errors import ConfigurationError
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.redis.calls import Calls, pieces
from workers_module.store.redis.fields import FLAGS, record_fields, to_json
from workers_module.store.redis.keys import Keys, check_id, check_tags
from workers_module.store.redis.queries import get
from workers_module.store.redis.reading import to_text
from workers_module.store.redis.scripts import Argument, script
from workers_module.store.redis.slots import check_parent

_RESTORE: Final = script("restore-2")


async def restore(calls: Calls, records: Sequence[JobRecord], *, on_conflict: Literal["skip", "error"]) -> int:
    """Do what `Store.restore` says."""
    calls.open_servers()
    for record in records:
        check_id(record.queue, record.id)
        check_tags(record.queue, record.tags)
    if on_conflict == "error":
        await _refuse_conflicts(calls, records)
    calls.listed = None
    written = 0
    for piece in _in_slots(calls.keys, records):
        args: list[Argument] = ["1" if on_conflict == "error" else ""]
        for record in piece:
            fields = record_fields(record)
            extras: dict[str, object] = {"p": record.priority, "l": record.lifo}
            if record.parent is not None:
                extras |= {"pq": record.parent.queue, "pid": record.parent.id, "po": FLAGS[record.policy]}
            if record.dedup is not None:
                extras["k"] = record.dedup
            state = JobState.WAITING if record.state is JobState.ACTIVE else record.state
            ended = record.added if record.finished is None else record.finished
            args += (
                calls.keys.place(record.queue, record.tags),
                record.id,
                state.value,
                "" if record.due is None else record.due,
                ended if record.state.ended else "",
                to_json(extras),
                len(fields),
                *fields,
            )
        reply = await calls.call(_RESTORE, piece[0].queue, None, *args)
        if reply[0] < 0:
            _refuse_conflict(to_text(reply[3]).removeprefix(calls.keys.head).partition("@")[0], to_text(reply[2]))
        written += reply[0]
    return written


def _in_slots(keys: Keys, records: Sequence[JobRecord]) -> Iterator[Sequence[JobRecord]]:
    by_slot: dict[str, list[JobRecord]] = {}
    for record in records:
        slot = keys.slot(record.queue)
        if record.parent is not None:
            check_parent(keys, record.queue, record.id, record.parent.queue)
        by_slot.setdefault(slot, []).append(record)
    for together in by_slot.values():
        yield from pieces(together)


async def _refuse_conflicts(calls: Calls, records: Sequence[JobRecord]) -> None:
    by_queue: dict[str, list[str]] = {}
    for record in records:
        ids = by_queue.setdefault(record.queue, [])
        if record.id in ids[-1:]:
            _refuse_conflict(record.queue, record.id)
        ids.append(record.id)
    for queue, ids in by_queue.items():
        if len(set(ids)) < len(ids):
            _refuse_conflict(queue, next(id for id in ids if ids.count(id) > 1))
        for one in await get(calls, queue, ids, payload=False):
            if one is not None:
                _refuse_conflict(queue, one.id)


def _refuse_conflict(queue: str, id: str) -> NoReturn:
    raise ConfigurationError(
        f"queue {queue!r} has a job {id} already; nothing was written. "
        "Import with on_conflict='skip', or remove the job"
    )
