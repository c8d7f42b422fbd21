"""On a cluster: which jobs of one call lie together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from workers_module.errors import ConfigurationError
from workers_module.store.redis.keys import Keys
from workers_module.store.values import JobSpec


@dataclass(slots=True)
class Batch:
    """The specs of one slot: their numbers in the whole call, and they themselves, parents by their new number."""

    numbers: list[int] = field(default_factory=list[int])
    specs: list[JobSpec] = field(default_factory=list[JobSpec])


def by_slot(keys: Keys, specs: Sequence[JobSpec]) -> list[Batch]:
    """Return the specs of a call slot by slot; first those with parents, for these can be refused.

    Raises:
        ConfigurationError: A queue whose keys lie in several slots, or a flow that does.
    """
    batches: dict[str, Batch] = {}
    place: dict[int, int] = {}
    for number, spec in enumerate(specs):
        keys.declared(spec.queue)
        batch = batches.setdefault(keys.slot(spec.queue), Batch())
        place[number] = len(batch.numbers)
        batch.numbers.append(number)
    for batch in batches.values():
        for number in batch.numbers:
            spec = specs[number]
            if isinstance(spec.parent, int):
                check_parent(keys, spec.queue, spec.id or spec.name, specs[spec.parent].queue)
                spec = spec._replace(parent=place[spec.parent])
            elif spec.parent is not None:
                check_parent(keys, spec.queue, spec.id or spec.name, spec.parent.queue)
            batch.specs.append(spec)
    return sorted(batches.values(), key=lambda batch: all(spec.parent is None for spec in batch.specs))


def check_parent(keys: Keys, queue: str, job: str, parent_queue: str) -> None:
    """Refuse a flow that spans slots.

    Raises:
        ConfigurationError: Child and parent lie in two slots of a cluster.
    """
    if keys.slot(queue) != keys.slot(parent_queue):
        raise ConfigurationError(
            f"queue {queue!r}: job {job!r} and its parent in queue {parent_queue!r} lie in different slots of the "
            "cluster; a flow's queues must share the part in braces: put the key prefix in braces "
            f"('{{{keys.prefix}}}'), or give both names the same one ('{{shop}}-mail', '{{shop}}-news')"
        )
