"""The lists of jobs in a state, and their order."""

from typing import Any, Final, NamedTuple

from workers_module.job.state import READY, JobState
from workers_module.store.sqlite.work import Plan, Queue, Work

# Written as the indexes have it, with literals, so that they are used.
_WHERE: Final = {
    JobState.WAITING: "state = 1 AND tagset = ? AND priority = 0",
    JobState.PRIORITIZED: "state = 1 AND tagset = ? AND priority > 0",
    JobState.DELAYED: "state = 2",
    JobState.ACTIVE: "state = 3",
    JobState.COMPLETED: "state = 4 AND state IN (4, 5)",
    JobState.FAILED: "state = 5 AND state IN (4, 5)",
    JobState.WAITING_CHILDREN: "state = 6",
}
_ORDER: Final = {
    JobState.WAITING: ("priority", "seq"),
    JobState.PRIORITIZED: ("priority", "seq"),
    JobState.DELAYED: ("due", "seq"),
    JobState.ACTIVE: ("seq",),
    JobState.COMPLETED: ("ended", "seq"),
    JobState.FAILED: ("ended", "seq"),
    JobState.WAITING_CHILDREN: ("seq",),
}


class JobList(NamedTuple):
    """A part of the table that an index holds in order.

    Attributes:
        where: The condition.
        values: Its parameters.
        columns: The order, oldest first.
    """

    where: str
    values: tuple[Any, ...]
    columns: tuple[str, ...]

    def order(self, newest_first: bool = False) -> str:
        """Return the order as SQL."""
        return ", ".join(f"{column} DESC" for column in self.columns) if newest_first else ", ".join(self.columns)


def lists_of(work: Work, queue: Queue, state: JobState) -> Plan[list[JobList]]:
    """Return the lists that hold the jobs in a state, one after the other: ready jobs lie tagset by tagset."""
    where, columns = f"q = ? AND {_WHERE[state]}", _ORDER[state]
    if state not in READY:
        return [JobList(where, (queue.q,), columns)]
    tagsets = yield from work.tagsets.of(queue.q, queue.tagsets)
    numbers = sorted(range(len(tagsets)), key=tagsets.__getitem__)
    return [JobList(where, (queue.q, number), columns) for number in numbers]
