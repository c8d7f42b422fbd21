"""What a cron expression means: which local times it names, and which instants these are in a zone. Pure.

Cron text is read here and nowhere else. croniter expands it and finds matching local times; what a local time is in UTC
is our own answer, because cron libraries fire a fixed schedule twice in the hour that autumn repeats:

* A *fixed* expression (neither minute nor hour has ``*`` or a step) fires once per matching local time. A time that the
  clock skips fires at the first instant after the gap; a time that the clock shows twice fires at the first of the two.
* A *running* expression (any other) follows real time: nothing in a gap, both times in a repeated hour.
* Two firings at one instant are one.

Local times are whole seconds since 1970-01-01 00:00 as a clock on the wall shows it, instants whole seconds since the
epoch. Source: reliability §6.3.
"""

import copy
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, CroniterError, croniter

from workers_module.errors import ScheduleError

_ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@weekdays": "0 0 * * 1-5",
    "@weekends": "0 0 * * 0,6",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
    "@minutely": "* * * * *",
    "@secondly": "* * * * * *",
}
_MONTH_NAMES: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS: Final = {name: n for n, name in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_NUMBERS: Final = {name: n for n, name in enumerate(_MONTH_NAMES, 1)} | _WEEKDAYS

_MAX_TEXT: Final = 1_000
_ELEMENT: Final = re.compile(r"(?:\*|(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?)(?:/\d{1,4})?")
_OPEN_RANGE: Final = re.compile(r"^([0-7]|[a-z]{3})/")
_LAST_WEEKDAY: Final = re.compile(r"([0-7]|[a-z]{3})l")
_NTH_WEEKDAY: Final = re.compile(r"(?:[0-7]|[a-z]{3})#[1-5]")
_REFUSED: Final = (
    (re.compile(r"[hr](?:\(.*)?(?:/.*)?"), "'H' and 'R' would pick a value of their own; write the value"),
    (re.compile(r"\d*w\d*|lw"), "'W', the nearest working day, is not offered"),
    (re.compile(r"l\d"), "the last Friday of a month is written 5L"),
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST: Final = -30_000_000_000
_LATEST: Final = 250_000_000_000
"""About the years 1019 and 9892: what `datetime` can hold, with room for an offset and a search."""
_FIFTY_YEARS: Final = 50 * 366 * 86_400
_YEAR_2000: Final = 946_684_800
# These names go to the file system. The names left out differ from machine to machine, or count leap seconds.
_ZONE: Final = re.compile(r"(?!right/|posix|localtime)[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


@dataclass(frozen=True, slots=True)
class Cron:
    """A compiled expression; made by `parse_cron`, safe to share between threads."""

    text: str
    """The expression, its fields one space apart; a name such as ``@daily`` is written out."""
    rules: tuple[croniter, ...]
    """One, or two of which either is enough."""
    running: bool
    """Whether it follows real time where the clock is changed."""
    spacing: int
    """No two matching local times lie closer together; a lower bound, in seconds."""

    def fires_in(self, zone: ZoneInfo) -> bool:
        """Return whether it ever fires: not on 30 February, and not at a time that the zone always skips."""
        return self.next_instant(_YEAR_2000, zone) is not None

    def next_instant(self, instant: int, zone: ZoneInfo) -> int | None:
        """Return the first firing after an instant; None when there is none in fifty years."""
        instant = max(instant, _EARLIEST)
        if instant > _LATEST:
            return None
        wall = instant + _offset(instant, zone)
        first, second = _readings(wall, zone)
        if not self.running:
            if first < instant:
                # In the second pass of a repeated hour: all its local times had their turn in the first.
                wall = _change(first, second, zone) + (wall - first) - 1
            found = self._wall_after(wall)
            return None if found is None else _first_reading(found, zone)
        firings: list[int] = []
        if instant == first < second:
            # In the first pass: what the clock has shown already comes again.
            change = _change(first, second, zone)
            again = self._wall_after(change + (wall - second) - 1)
            if again is not None and again < change + (wall - first):
                firings.append(again - (wall - second))
        found = self._wall_after(wall)
        while found is not None and found < wall + _FIFTY_YEARS:
            first, second = _readings(found, zone)
            if first <= second:
                firings.append(first if first > instant else second)
                break
            found = self._wall_after(_change(second, first, zone) + (found - second) - 1)
        return min(firings, default=None)

    def newest_instant(self, instant: int, zone: ZoneInfo) -> int | None:
        """Return the last firing not after an instant; None when there is none in fifty years."""
        instant = min(instant, _LATEST)
        if instant < _EARLIEST:
            return None
        wall = instant + _offset(instant, zone)
        first, second = _readings(wall, zone)
        # The local time at which the first pass of a repeated hour ended, while the second lasts.
        passed = _change(first, second, zone) + (wall - first) if first < instant else None
        if not self.running:
            found = self._wall_before(wall + 1 if passed is None else passed)
            return None if found is None else _first_reading(found, zone)
        firings: list[int] = []
        if passed is not None:
            earlier = self._wall_before(passed)
            if earlier is not None and earlier > wall:
                firings.append(earlier - (wall - first))
        found = self._wall_before(wall + 1)
        while found is not None and found > wall - _FIFTY_YEARS:
            first, second = _readings(found, zone)
            if first <= second:
                firings.append(second if second <= instant else first)
                break
            found = self._wall_before(_change(second, first, zone) + (found - first))
        return max(firings, default=None)

    def _wall_after(self, wall: int) -> int | None:
        found: list[int] = []
        for rule in self.rules:
            try:
                # A search moves its croniter; a copy leaves the shared one alone.
                found.append(int(copy.copy(rule).get_next(float, start_time=wall)))
            except CroniterBadDateError:
                continue
        return min(found, default=None)

    def _wall_before(self, wall: int) -> int | None:
        found: list[int] = []
        for rule in self.rules:
            try:
                found.append(int(copy.copy(rule).get_prev(float, start_time=wall)))
            except CroniterBadDateError:
                continue
        return max(found, default=None)


def parse_cron(expression: object) -> Cron:
    """Compile a cron expression; compiled ones are kept.

    Five fields (minute, hour, day, month, weekday) or six (seconds first), or ``@daily`` and its kind.

    Raises:
        ScheduleError: It is not one, or uses what croniter knows and Node does not (``15W``, ranges such as ``22-2``),
            or what would differ between processes (``H``, ``R``).
    """
    if not isinstance(expression, str) or len(expression) > _MAX_TEXT or not expression.isascii():
        raise _not_cron(expression)
    text = " ".join(expression.split())
    return _compile(_ALIASES.get(text.lower(), text))


def check_zone(tz: object) -> None:
    """Check that a name is an IANA time zone that this machine knows.

    Raises:
        ScheduleError: It is not.
    """
    if isinstance(tz, str) and len(tz) <= 100 and _ZONE.fullmatch(tz):
        try:
            ZoneInfo(tz)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
        else:
            return
    raise ScheduleError(f"unknown time zone {_shown(tz)}")


@lru_cache(maxsize=1_024)
def _compile(text: str) -> Cron:
    fields = text.lower().split()
    if len(fields) not in {5, 6}:
        why = f"it has {len(fields)} fields; write 5 (minute hour day month weekday), or 6 with seconds first"
        raise _not_cron(text, why)
    *times, day, month, weekday = fields
    times = [_field(text, field) for field in times]
    day = "*" if day == "?" else ",".join(part if part == "l" else _element(text, part) for part in day.split(","))
    month = _field(text, month)
    plain, special = _weekdays(text, "*" if weekday == "?" else weekday)
    lines = [[*times, day, month, ",".join(plain) or "*"]]
    if special:
        # Given both in one expression, croniter wants a day that is in both; as in Node, either is enough.
        either = [*times, "*", month, ",".join(special)]
        lines = [either] if day == "*" and not plain else [*lines, either]
    try:
        rules = tuple(croniter(" ".join(line), 0, second_at_beginning=True) for line in lines)
    except CroniterError as error:
        raise _not_cron(text) from error
    running = any(sign in field for field in times[-2:] for sign in "*/")
    return Cron(text, rules, running, _spacing(rules[0]))


def _weekdays(text: str, weekday: str) -> tuple[list[str], list[str]]:
    """Split the weekday field into what each week has and what one week of the month has (``5L``, ``1#2``)."""
    plain: list[str] = []
    special: list[str] = []
    for part in weekday.split(","):
        last = _LAST_WEEKDAY.fullmatch(part)
        if last is not None:
            special.append(f"l{_WEEKDAYS.get(last[1], last[1])}")
        elif _NTH_WEEKDAY.fullmatch(part):
            special.append(part)
        else:
            # From Friday on is 5/1: Sunday counts, as in Node.
            plain.append(_element(text, _OPEN_RANGE.sub(r"\1-7/", part)))
    return plain, special


def _field(text: str, field: str) -> str:
    return ",".join(_element(text, part) for part in field.split(","))


def _element(text: str, element: str) -> str:
    """Return an element of a list in a form that croniter reads as everybody else does."""
    match = _ELEMENT.fullmatch(element)
    if match is None:
        raise _not_cron(text, next((why for pattern, why in _REFUSED if pattern.fullmatch(element)), ""))
    low, high = match.groups()
    if high is None:
        return element
    try:
        first, last = int(_NUMBERS.get(low, low)), int(_NUMBERS.get(high, high))
    except ValueError:
        raise _not_cron(text) from None
    if first > last:
        raise _not_cron(text, f"the range {element} runs backwards; write two ranges that run upwards")
    # croniter takes 5-5 for the whole cycle.
    return low if first == last else element


def _spacing(rule: croniter) -> int:
    minutes = rule.expanded[0]
    seconds = rule.expanded[5] if len(rule.expanded) > 5 else [0]
    for values, unit in ((seconds, 1), (minutes, 60)):
        if values == ["*"]:
            return unit
        if len(values) > 1:
            return unit * min((int(later) - int(value)) % 60 for value, later in pairwise([*values, values[0]]))
    return 3_600


def _not_cron(text: object, why: str = "") -> ScheduleError:
    return ScheduleError(f"{_shown(text)} is not a cron expression{why and ': '}{why}")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _offset(instant: int, zone: ZoneInfo) -> int:
    """Return how far local time is ahead of UTC at an instant."""
    return _seconds((_EPOCH + timedelta(seconds=instant)).astimezone(zone))


def _readings(wall: int, zone: ZoneInfo) -> tuple[int, int]:
    """Return the instants a local time can mean: by the offset before a change of the clock, and by that after it.

    Equal: there is one. Rising: it comes twice. Falling: it is skipped; the change lies after the second and not after
    the first.
    """
    local = (_EPOCH + timedelta(seconds=wall)).replace(tzinfo=zone)
    return wall - _seconds(local), wall - _seconds(local.replace(fold=1))


def _first_reading(wall: int, zone: ZoneInfo) -> int:
    """Return the first instant of a local time, or the first instant after the gap it lies in."""
    first, second = _readings(wall, zone)
    return first if first <= second else _change(second, first, zone)


def _seconds(local: datetime) -> int:
    return (local.utcoffset() or timedelta()) // timedelta(seconds=1)


def _change(low: int, high: int, zone: ZoneInfo) -> int:
    """Return the first instant after ``low`` that has the offset of ``high``."""
    after = _offset(high, zone)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(middle, zone) == after:
            high = middle
        else:
            low = middle
    return high
