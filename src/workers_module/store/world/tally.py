"""How many jobs of a queue ended."""

from typing import NamedTuple

from workers_module.store.values import Series


class Tally:
    """How many jobs ended in one way: since ever, and per minute."""

    __slots__ = ("first", "kept", "minutes", "total")

    def __init__(self) -> None:
        self.total = 0
        self.first: int | None = None
        self.kept = 0
        self.minutes: dict[int, int] = {}

    def add(self, number: int, now: int, keep: int) -> None:
        """Count some more, and forget all but the newest minutes."""
        minute = now // 60_000
        self.total += number
        self.first = minute if self.first is None else min(self.first, minute)
        self.kept = keep
        if minute not in self.minutes:
            for old in [one for one in self.minutes if one < minute - keep]:
                del self.minutes[old]
        self.minutes[minute] = self.minutes.get(minute, 0) + number

    def series(self, now: int, most: int) -> Series:
        """Return the counts of the minutes before this one."""
        minute = now // 60_000
        known = 0 if self.first is None else minute - self.first
        length = max(0, min(most, self.kept, known))
        return Series(self.total, tuple(self.minutes.get(minute - n, 0) for n in range(1, length + 1)))


class Counted(NamedTuple):
    """The two tallies of a queue."""

    completed: Tally
    failed: Tally
