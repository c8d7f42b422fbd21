"""When does an expression fire? Look at the clock on the wall, minute by minute, and write it down.

The judge of `workers_module.job.schedule`, so it shares nothing with it: it reads the fields itself, never searches,
and knows of daylight saving only what one sees on the wall: that the hands jump, or show a time again.
"""

import calendar
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

NAMES = {
    **{name.lower(): number for number, name in enumerate(calendar.month_abbr) if name},
    **{name.lower(): (number + 1) % 7 for number, name in enumerate(calendar.day_abbr)},
}

ZONES = [
    "Africa/Cairo",
    "Africa/Casablanca",
    "America/New_York",
    "America/Santiago",
    "America/St_Johns",
    "Antarctica/Troll",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Europe/Berlin",
    "Pacific/Chatham",
]
"""Each changes its clocks in another way, or not at all."""


class Pattern:
    """The fields of an expression, each as the set of what it allows."""

    def __init__(self, text: str) -> None:
        fields = text.lower().split()
        if len(fields) == 5:
            fields = ["0", *fields]
        second, minute, hour, self.day, month, self.weekday = fields
        self.text = text
        self.seconds = numbers(second, 0, 59)
        self.minutes = numbers(minute, 0, 59)
        self.hours = numbers(hour, 0, 23)
        self.months = numbers(month, 1, 12)
        self.follows_real_time = any(sign in minute + hour for sign in "*/")

    def allows_day(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        if self.day == "*":
            return self._allows_weekday(day)
        return self._allows_day_of_month(day) or (self.weekday != "*" and self._allows_weekday(day))

    def allows(self, wall: datetime) -> bool:
        return (
            wall.second in self.seconds
            and wall.minute in self.minutes
            and wall.hour in self.hours
            and self.allows_day(wall.date())
        )

    def _allows_day_of_month(self, day: date) -> bool:
        if self.day == "l":
            return (day + timedelta(days=1)).day == 1
        return day.day in numbers(self.day, 1, 31)

    def _allows_weekday(self, day: date) -> bool:
        weekday = day.isoweekday() % 7
        if self.weekday.endswith("l"):
            return weekday == int(self.weekday[:-1]) % 7 and (day + timedelta(days=7)).month != day.month
        if "#" in self.weekday:
            name, nth = self.weekday.split("#")
            return weekday in numbers(name, 0, 7) and (day.day - 1) // 7 + 1 == int(nth)
        return weekday in {number % 7 for number in numbers(self.weekday, 0, 7)}


def numbers(field: str, lowest: int, highest: int) -> set[int]:
    """Return what a field allows: ``1,5-9/2,*/10``."""
    allowed: set[int] = set()
    for part in field.split(","):
        body, _, step = part.partition("/")
        low, _, high = body.partition("-")
        if low == "*":
            first, last = lowest, highest
        else:
            first = number(low)
            last = number(high) if high else highest if step else first
        allowed.update(range(first, last + 1, int(step or 1)))
    return allowed


def number(text: str) -> int:
    return NAMES[text] if text in NAMES else int(text)


def watch(expressions: Sequence[str], tz: str, begin: int, end: int, step: int = 60) -> dict[str, list[int]]:
    """Watch a clock and return the instants, in seconds, at which each expression fires.

    Args:
        expressions: Cron texts; with a step of a minute, such as fire on the minute.
        tz: The zone of the clock.
        begin: The first instant looked at, in seconds. Not within an hour that comes twice.
        end: The last one.
        step: 60 to look each minute, 1 to look each second.
    """
    zone = ZoneInfo(tz)
    tick = timedelta(seconds=step)
    patterns = [Pattern(text) for text in expressions]
    fired: dict[str, list[int]] = {text: [] for text in expressions}
    latest_shown = datetime.fromtimestamp(begin, zone).replace(tzinfo=None) - tick
    today: date | None = None
    on_minute: dict[tuple[int, int], list[Pattern]] = {}
    for instant in range(begin, end + 1, step):
        wall = datetime.fromtimestamp(instant, zone).replace(tzinfo=None)
        if wall.date() != today:
            today = wall.date()
            on_minute = defaultdict(list)
            for pattern in patterns:
                if pattern.allows_day(today):
                    for hour in pattern.hours:
                        for minute in pattern.minutes:
                            on_minute[hour, minute].append(pattern)
        for pattern in on_minute.get((wall.hour, wall.minute), ()):
            if wall.second in pattern.seconds and (pattern.follows_real_time or wall > latest_shown):
                fired[pattern.text].append(instant)
        if wall > latest_shown + tick:
            for pattern in patterns:
                if not pattern.follows_real_time and not (fired[pattern.text] and fired[pattern.text][-1] == instant):
                    skipped = latest_shown + tick
                    while skipped < wall and not pattern.allows(skipped):
                        skipped += tick
                    if skipped < wall:
                        fired[pattern.text].append(instant)
        latest_shown = max(latest_shown, wall)
    return fired


def changes(tz: str, begin: int, end: int) -> list[int]:
    """Return the days, as instants in seconds, after each of which the clock of a zone is changed within a day."""
    zone = ZoneInfo(tz)

    def offset(instant: int) -> timedelta | None:
        return datetime.fromtimestamp(instant, zone).utcoffset()

    return [day for day in range(begin, end, 86_400) if offset(day) != offset(day + 86_400)]
