"""What ties jobs to one another: the children of a job, the owner of a key, the slots of a schedule."""

from workers_module.job.record import ParentRef
from workers_module.store.planning import slot_job_id
from workers_module.store.schedules import ScheduleDefinition
from workers_module.store.values import Child, JobSpec


class Deps:
    """The children of a job, in the order they were added, and how many of them it waits for."""

    __slots__ = ("children", "failed", "pending")

    def __init__(self) -> None:
        self.children: dict[ParentRef, Child] = {}
        self.pending = 0
        self.failed = 0

    def put(self, child: Child) -> None:
        """Note what became of a child."""
        self.drop(ref := ParentRef(child.queue, child.id), keep_place=True)
        self.children[ref] = child
        self._count(child, 1)

    def drop(self, ref: ParentRef, *, keep_place: bool = False) -> None:
        """Forget a child."""
        if old := self.children.get(ref):
            self._count(old, -1)
            if not keep_place:
                del self.children[ref]

    def waits_for(self, ref: ParentRef) -> bool:
        """Return whether a child has not ended."""
        child = self.children.get(ref)
        return child is not None and child.state == "pending"

    def _count(self, child: Child, by: int) -> None:
        if child.state == "pending":
            self.pending += by
        elif child.state == "failed":
            self.failed += by


class Key:
    """A deduplication key: who owns it, until when (None: until that job ends), and the call kept for afterwards."""

    __slots__ = ("owner", "successor", "until")

    def __init__(self, owner: str, until: int | None) -> None:
        self.owner = owner
        self.until = until
        self.successor: JobSpec | None = None


class Chain:
    """A schedule: `ScheduleRecord` says what this means."""

    __slots__ = ("count", "definition", "id", "paused", "slot")

    def __init__(self, id: str, definition: ScheduleDefinition, slot: int, *, paused: bool) -> None:
        self.id = id
        self.definition = definition
        self.slot = slot
        self.count = 0
        self.paused = paused

    @property
    def job_id(self) -> str:
        """The id of the current slot's job."""
        return slot_job_id(self.id, self.slot)
