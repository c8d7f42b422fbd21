"""What a stop does to the jobs that ran when it was asked for."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from workers_module.job.outcome import Release
from workers_module.worker.run import Run


class StopCounts(NamedTuple):
    """What became of the jobs that ran when the workers were told to stop.

    Attributes:
        finished: Their attempt came to its own end, good or bad.
        handed_back: They were cancelled when the grace was over, and wait for another worker.
        lost: Neither could be told to the store, or the lease was lost before; they run again elsewhere.
    """

    finished: int = 0
    handed_back: int = 0
    lost: int = 0

    def __add__(self, other: object) -> "StopCounts":
        """Return the sum of each."""
        if not isinstance(other, StopCounts):
            return NotImplemented
        return StopCounts(*(one + more for one, more in zip(self, other, strict=True)))


def stop_counts(runs: Iterable[Run], unsettled: Collection[object]) -> StopCounts:
    """Count what became of runs.

    Args:
        runs: Those under way when the stop was asked for.
        unsettled: What the consumers still held when they ended.
    """
    counts = StopCounts()
    for run in runs:
        if run.outcome is None or run in unsettled:
            counts += StopCounts(lost=1)
        elif isinstance(run.outcome, Release):
            counts += StopCounts(handed_back=1)
        else:
            counts += StopCounts(finished=1)
    return counts
