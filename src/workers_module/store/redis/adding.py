"""Adding jobs."""

from collections.abc import Sequence
from typing import Final

from workers_module.errors import ConfigurationError, JobNotFoundError, StoreError, StoreOutcomeUnknownError
from workers_module.job.record import ParentRef
from workers_module.store.redis.asking import add_args
from workers_module.store.redis.calls import Calls
from workers_module.store.redis.faults import CutOffError
from workers_module.store.redis.reading import read_added
from workers_module.store.redis.scripts import script
from workers_module.store.redis.slots import by_slot
from workers_module.store.values import Added, JobSpec

_ADD: Final = script("add-2")
_UNKNOWN_PARENT: Final = -5


async def add_here(calls: Calls, specs: Sequence[JobSpec], now: int | None) -> list[Added]:
    """Add jobs whose queues lie in one slot."""
    args = add_args(calls.keys, specs)
    try:
        reply = await calls.call(_ADD, specs[0].queue, now, *args)
    except CutOffError as error:
        if all(spec.id is not None for spec in specs):
            raise
        raise StoreOutcomeUnknownError(
            f"{error}; the jobs may or may not have been added. Give jobs ids of their own to add them again safely"
        ) from error
    if isinstance(reply[0], int):
        _refuse_parent(specs, reply)
    return list(map(read_added, reply))


async def add_by_slot(calls: Calls, specs: Sequence[JobSpec], now: int | None) -> list[Added]:
    """Add jobs on a cluster, slot by slot."""
    added: list[Added | None] = [None] * len(specs)
    stored: list[JobSpec] = []
    for batch in by_slot(calls.keys, specs):
        try:
            for n, one in zip(batch.numbers, await add_here(calls, batch.specs, now), strict=True):
                added[n] = one
        except (StoreError, ConfigurationError) as error:
            if all(spec.id is not None for spec in stored):
                raise
            raise StoreOutcomeUnknownError(
                f"{error}. Jobs of other queues in this call have been added; give jobs ids of their own to add "
                "them again safely"
            ) from error
        stored += batch.specs
    return [one for one in added if one is not None]


def _refuse_parent(specs: Sequence[JobSpec], reply: Sequence[int]) -> None:
    spec = specs[reply[1] - 1]
    if reply[0] == _UNKNOWN_PARENT and isinstance(spec.parent, ParentRef):
        raise JobNotFoundError(spec.parent.queue, spec.parent.id)
    what = "names itself as its parent" if reply[2] else "is already the child of another job"
    raise ConfigurationError(
        f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
    )
