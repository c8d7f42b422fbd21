"""When a schedule fires: its slots, and what becomes of those that were missed. Pure.

A slot is an instant in UTC milliseconds. Slots come from the schedule alone, so every process finds the same ones.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, Literal, Self, assert_never
from zoneinfo import ZoneInfo

from workers_module.clock import MAX_MS
from workers_module.errors import ScheduleError
from workers_module.job.cron import Cron, check_zone, parse_cron

CatchUp = Literal["latest", "all", "none"]
"""What becomes of slots that passed while nobody ran: one job for the newest, one for each (oldest first), or none."""

MAX_MISSED: Final = 1_000
"""So many missed slots are run with ``catch_up="all"``: the newest ones, and of them the oldest first."""

LATE_MS: Final = 1_000
"""A job still delayed this long after its slot has been seen by nobody: all processes were down."""


class CronExpression(StrEnum):
    """Common patterns by name.

    Names and patterns are those of ``@nestjs/schedule``, and so is their meaning: the last hour of a range counts in
    full (``EVERY_30_MINUTES_BETWEEN_9AM_AND_5PM`` ends at 17:30), and ``EVERY_5_HOURS`` begins anew each midnight.
    """

    EVERY_SECOND = "* * * * * *"
    EVERY_5_SECONDS = "*/5 * * * * *"
    EVERY_10_SECONDS = "*/10 * * * * *"
    EVERY_30_SECONDS = "*/30 * * * * *"
    EVERY_MINUTE = "*/1 * * * *"
    EVERY_5_MINUTES = "0 */5 * * * *"
    EVERY_10_MINUTES = "0 */10 * * * *"
    EVERY_15_MINUTES = "0 */15 * * * *"
    EVERY_30_MINUTES = "0 */30 * * * *"
    EVERY_HOUR = "0 0-23/1 * * *"
    EVERY_2_HOURS = "0 0-23/2 * * *"
    EVERY_3_HOURS = "0 0-23/3 * * *"
    EVERY_4_HOURS = "0 0-23/4 * * *"
    EVERY_5_HOURS = "0 0-23/5 * * *"
    EVERY_6_HOURS = "0 0-23/6 * * *"
    EVERY_7_HOURS = "0 0-23/7 * * *"
    EVERY_8_HOURS = "0 0-23/8 * * *"
    EVERY_9_HOURS = "0 0-23/9 * * *"
    EVERY_10_HOURS = "0 0-23/10 * * *"
    EVERY_11_HOURS = "0 0-23/11 * * *"
    EVERY_12_HOURS = "0 0-23/12 * * *"
    EVERY_DAY_AT_1AM = "0 01 * * *"
    EVERY_DAY_AT_2AM = "0 02 * * *"
    EVERY_DAY_AT_3AM = "0 03 * * *"
    EVERY_DAY_AT_4AM = "0 04 * * *"
    EVERY_DAY_AT_5AM = "0 05 * * *"
    EVERY_DAY_AT_6AM = "0 06 * * *"
    EVERY_DAY_AT_7AM = "0 07 * * *"
    EVERY_DAY_AT_8AM = "0 08 * * *"
    EVERY_DAY_AT_9AM = "0 09 * * *"
    EVERY_DAY_AT_10AM = "0 10 * * *"
    EVERY_DAY_AT_11AM = "0 11 * * *"
    EVERY_DAY_AT_NOON = "0 12 * * *"
    EVERY_DAY_AT_1PM = "0 13 * * *"
    EVERY_DAY_AT_2PM = "0 14 * * *"
    EVERY_DAY_AT_3PM = "0 15 * * *"
    EVERY_DAY_AT_4PM = "0 16 * * *"
    EVERY_DAY_AT_5PM = "0 17 * * *"
    EVERY_DAY_AT_6PM = "0 18 * * *"
    EVERY_DAY_AT_7PM = "0 19 * * *"
    EVERY_DAY_AT_8PM = "0 20 * * *"
    EVERY_DAY_AT_9PM = "0 21 * * *"
    EVERY_DAY_AT_10PM = "0 22 * * *"
    EVERY_DAY_AT_11PM = "0 23 * * *"
    EVERY_DAY_AT_MIDNIGHT = "0 0 * * *"
    EVERY_WEEK = "0 0 * * 0"
    EVERY_WEEKDAY = "0 0 * * 1-5"
    EVERY_WEEKEND = "0 0 * * 6,0"
    EVERY_1ST_DAY_OF_MONTH_AT_MIDNIGHT = "0 0 1 * *"
    EVERY_1ST_DAY_OF_MONTH_AT_NOON = "0 12 1 * *"
    EVERY_2ND_HOUR = "0 */2 * * *"
    EVERY_2ND_HOUR_FROM_1AM_THROUGH_11PM = "0 1-23/2 * * *"
    EVERY_2ND_MONTH = "0 0 1 */2 *"
    EVERY_QUARTER = "0 0 1 */3 *"
    EVERY_6_MONTHS = "0 0 1 */6 *"
    EVERY_YEAR = "0 0 1 1 *"
    EVERY_30_MINUTES_BETWEEN_9AM_AND_5PM = "0 */30 9-17 * * *"
    EVERY_30_MINUTES_BETWEEN_9AM_AND_6PM = "0 */30 9-18 * * *"
    EVERY_30_MINUTES_BETWEEN_10AM_AND_7PM = "0 */30 10-19 * * *"
    MONDAY_TO_FRIDAY_AT_1AM = "0 0 01 * * 1-5"
    MONDAY_TO_FRIDAY_AT_2AM = "0 0 02 * * 1-5"
    MONDAY_TO_FRIDAY_AT_3AM = "0 0 03 * * 1-5"
    MONDAY_TO_FRIDAY_AT_4AM = "0 0 04 * * 1-5"
    MONDAY_TO_FRIDAY_AT_5AM = "0 0 05 * * 1-5"
    MONDAY_TO_FRIDAY_AT_6AM = "0 0 06 * * 1-5"
    MONDAY_TO_FRIDAY_AT_7AM = "0 0 07 * * 1-5"
    MONDAY_TO_FRIDAY_AT_8AM = "0 0 08 * * 1-5"
    MONDAY_TO_FRIDAY_AT_9AM = "0 0 09 * * 1-5"
    MONDAY_TO_FRIDAY_AT_09_30AM = "0 30 09 * * 1-5"
    MONDAY_TO_FRIDAY_AT_10AM = "0 0 10 * * 1-5"
    MONDAY_TO_FRIDAY_AT_11AM = "0 0 11 * * 1-5"
    MONDAY_TO_FRIDAY_AT_11_30AM = "0 30 11 * * 1-5"
    MONDAY_TO_FRIDAY_AT_12PM = "0 0 12 * * 1-5"
    MONDAY_TO_FRIDAY_AT_1PM = "0 0 13 * * 1-5"
    MONDAY_TO_FRIDAY_AT_2PM = "0 0 14 * * 1-5"
    MONDAY_TO_FRIDAY_AT_3PM = "0 0 15 * * 1-5"
    MONDAY_TO_FRIDAY_AT_4PM = "0 0 16 * * 1-5"
    MONDAY_TO_FRIDAY_AT_5PM = "0 0 17 * * 1-5"
    MONDAY_TO_FRIDAY_AT_6PM = "0 0 18 * * 1-5"
    MONDAY_TO_FRIDAY_AT_7PM = "0 0 19 * * 1-5"
    MONDAY_TO_FRIDAY_AT_8PM = "0 0 20 * * 1-5"
    MONDAY_TO_FRIDAY_AT_9PM = "0 0 21 * * 1-5"
    MONDAY_TO_FRIDAY_AT_10PM = "0 0 22 * * 1-5"
    MONDAY_TO_FRIDAY_AT_11PM = "0 0 23 * * 1-5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A sequence of instants: a cron expression in a time zone, or a fixed distance. Made by `cron` or `every`.

    Attributes:
        expression: Cron text, its fields one space apart; ``@daily`` and its kind are written out. None for a distance.
        tz: The IANA zone in which the expression is read.
        every_ms: The distance between two slots. None for an expression.
        offset_ms: The phase of the distance, counted from the epoch. None: the first slot sets it; see `anchored`.
        start: No slot before this instant, in milliseconds. A distance may begin at it; an expression begins after it,
            as in BullMQ.
        end: No slot after this instant, in milliseconds.
    """

    expression: str | None = None
    tz: str = "UTC"
    every_ms: int | None = None
    offset_ms: int | None = None
    start: int | None = None
    end: int | None = None
    _cron: Cron | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        check_zone(self.tz)
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ScheduleError(f"a schedule cannot end (at {self.end}) before it starts (at {self.start})")
        if self.expression is not None and self.every_ms is None:
            cron = parse_cron(self.expression)
            if not cron.fires_in(ZoneInfo(self.tz)):
                raise ScheduleError(f"{cron.text!r} never fires")
            object.__setattr__(self, "expression", cron.text)
            object.__setattr__(self, "_cron", cron)
        elif self.every_ms is not None and self.expression is None:
            if not _is_whole(self.every_ms) or not 1 <= self.every_ms <= MAX_MS:
                raise ScheduleError(f"every: {self.every_ms!r} is not a distance of 1 to 2^53 - 1 milliseconds")
            if self.offset_ms is not None and not (_is_whole(self.offset_ms) and 0 <= self.offset_ms < self.every_ms):
                raise ScheduleError(f"offset: {self.offset_ms!r} does not lie within the {self.every_ms} ms of every")
        else:
            raise ScheduleError("a schedule has either a cron expression or a distance")

    @classmethod
    def cron(cls, expression: str, *, tz: str = "UTC", start: int | None = None, end: int | None = None) -> Self:
        """Return the schedule of a cron expression.

        Five fields (minute, hour, day, month, weekday) or six (seconds first), or ``@daily`` and its kind. A field is
        ``*`` or a list of numbers, names, ranges and steps; the day may be ``L``, the last of the month; the weekday
        ``5L``, its last Friday, or ``1#2``, its second Monday. Where both day and weekday are restricted, either is
        enough.

        Raises:
            ScheduleError: The text is no cron expression, the zone is unknown, or the expression never fires.
        """
        return cls(expression=expression, tz=tz, start=start, end=end)

    @classmethod
    def every(
        cls, every_ms: int, *, offset_ms: int | None = None, start: int | None = None, end: int | None = None
    ) -> Self:
        """Return the schedule of a fixed distance.

        Raises:
            ScheduleError: The distance is less than a millisecond, or the offset does not lie within it.
        """
        return cls(every_ms=every_ms, offset_ms=offset_ms, start=start, end=end)

    def next_slot(self, after_ms: int) -> int | None:
        """Return the first slot later than ``after_ms``; None when the schedule has ended."""
        if self._cron is None:
            slot = self._aligned(after_ms + 1 if self.start is None else max(after_ms + 1, self.start))
        else:
            after_ms = after_ms if self.start is None else max(after_ms, self.start)
            instant = self._cron.next_instant(after_ms // 1_000, ZoneInfo(self.tz))
            if instant is None:
                return None
            slot = instant * 1_000
        return slot if self.end is None or slot <= self.end else None

    def newest_slot(self, after_ms: int, until_ms: int) -> int | None:
        """Return the last slot later than ``after_ms`` and not later than ``until_ms``; None when there is none.

        The search begins at the end, however many slots lie between.
        """
        if self.end is not None:
            until_ms = min(until_ms, self.end)
        if self._cron is None:
            slot = self._aligned(until_ms - self._distance + 1)
            earliest = self.start
        else:
            instant = self._cron.newest_instant(until_ms // 1_000, ZoneInfo(self.tz))
            if instant is None:
                return None
            slot = instant * 1_000
            earliest = None if self.start is None else self.start + 1
        return slot if slot > after_ms and (earliest is None or slot >= earliest) else None

    def first_slot(self, now_ms: int, *, immediately: bool = False) -> int | None:
        """Return the slot with which the schedule begins; None when it has ended.

        A distance without an offset begins at once, or at ``start`` where that is still to come.

        Args:
            now_ms: The store's time.
            immediately: Begin now; the slots after this one keep to the expression or the offset.
        """
        if immediately:
            slot = now_ms
        elif self._cron is None and self.offset_ms is None:
            slot = now_ms if self.start is None else max(now_ms, self.start)
        else:
            return self.next_slot(now_ms)
        return slot if self.end is None or slot <= self.end else None

    def anchored(self, slot: int) -> Self:
        """Return this schedule with the phase of one of its slots, where it is a distance that has none yet."""
        if self._cron is not None or self.offset_ms is not None:
            return self
        return replace(self, offset_ms=slot % self._distance)

    def nth_newest_slot(self, n: int, after_ms: int, until_ms: int) -> int | None:
        """Return the slot that has ``n - 1`` newer ones up to ``until_ms``; None when fewer than ``n`` lie there.

        Args:
            n: From 1. Of an expression so many slots are visited at most.
            after_ms: Only slots later than this count.
            until_ms: Only slots not later than this count.
        """
        slot = self.newest_slot(after_ms, until_ms)
        if self._cron is None or slot is None:
            return None if slot is None else self.newest_slot(after_ms, slot - (n - 1) * self._distance)
        if slot - after_ms <= (n - 1) * self._cron.spacing * 1_000:
            return None
        for _ in range(n - 1):
            slot = self.newest_slot(after_ms, slot - 1)
            if slot is None:
                return None
        return slot

    @property
    def _distance(self) -> int:
        return self.every_ms or 1

    def _aligned(self, low: int) -> int:
        """Return the first instant in phase that is not before ``low``."""
        phase = self.offset_ms if self.offset_ms is not None else self.start or 0
        return low + (phase - low) % self._distance


def successor(schedule: Schedule, *, slot: int, now: int, catch_up: CatchUp) -> int | None:
    """Return the slot to store once the job of ``slot`` has been claimed; None when the schedule has ended.

    Nothing missed: the slot after this one. Else with ``latest`` the newest slot that is due, with ``all`` the slot
    after this one, with ``none`` the first slot after now. Always newer than ``slot``, also where the clock ran back.

    ``all`` is never more than `MAX_MISSED` slots behind: after a longer outage the oldest are left out.

    Args:
        schedule: A distance without a phase takes it from ``slot``.
        slot: The slot whose job was claimed.
        now: The store's time.
        catch_up: What becomes of missed slots.

    Source: reliability §6.4.
    """
    schedule = schedule.anchored(slot)
    following = schedule.next_slot(slot)
    if following is None or following > now:
        return following
    match catch_up:
        case "latest":
            return schedule.newest_slot(slot, now)
        case "all":
            oldest_kept = schedule.nth_newest_slot(MAX_MISSED, slot, now)
            return following if oldest_kept is None else oldest_kept
        case "none":
            return schedule.next_slot(now)
        case _:
            assert_never(catch_up)


def restart_slot(schedule: Schedule, *, slot: int, now: int, catch_up: CatchUp) -> int | None:
    """Return the slot whose job replaces the pending one after all processes were down; None when it stays.

    For the first tick of a process, when the job of ``slot`` is still delayed; up to `LATE_MS` after its slot nothing
    was down. ``latest``: the newest missed slot. ``all``: the oldest of the `MAX_MISSED` newest. ``none``: the first
    after now; where the schedule has ended there is none, and only the caller can drop the late job.

    Args:
        schedule: A distance without a phase takes it from ``slot``.
        slot: The slot of the pending job.
        now: The store's time.
        catch_up: What becomes of missed slots.

    Source: reliability §6.4.
    """
    if now - slot <= LATE_MS:
        return None
    schedule = schedule.anchored(slot)
    match catch_up:
        case "latest":
            return schedule.newest_slot(slot, now)
        case "all":
            return schedule.nth_newest_slot(MAX_MISSED, slot, now)
        case "none":
            return schedule.next_slot(now)
        case _:
            assert_never(catch_up)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
