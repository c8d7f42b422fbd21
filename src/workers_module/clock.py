"""The only place that asks what time it is, and the one reading of spans of time.

Instants are milliseconds since the epoch, UTC; spans are `Duration` in public and whole milliseconds inside.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from workers_module.errors import ConfigurationError

Duration = timedelta | str
"""A span of time in public signatures.

``timedelta(seconds=30)`` or ``"500ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"1d"``, ``"1w"``.
"""

_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SPELLING = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*")
MAX_MS = 2**53 - 1
"""The largest count of milliseconds that every reader of the stored data keeps exactly."""


class Clock:
    """The machine's wall clock.

    Stores judge delays, leases and slots by their own clock; this one is it for the stores that live in this process.
    """

    __slots__ = ()

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def now(self) -> datetime:
        """Return the instant as an aware UTC datetime."""
        return to_datetime(self.now_ms())


class FrozenClock(Clock):
    """A clock that stands still until a test moves it.

    Example:
        ``clock = FrozenClock(datetime(2026, 1, 1, tzinfo=UTC)); clock.advance(timedelta(hours=1))``
    """

    __slots__ = ("_listeners", "_ms")

    def __init__(self, start: datetime | int = 1_767_225_600_000) -> None:
        self._ms = start if isinstance(start, int) else to_ms(start)
        self._listeners: list[Callable[[], object]] = []

    def now_ms(self) -> int:
        """Return the milliseconds since the epoch at which the clock stands."""
        return self._ms

    def set(self, instant: datetime | int) -> None:
        """Move the clock to an instant: an aware datetime, or milliseconds since the epoch. It may run back."""
        self._ms = instant if isinstance(instant, int) else to_ms(instant)
        for listener in self._listeners:
            listener()

    def advance(self, by: timedelta) -> None:
        """Move the clock by a span of time."""
        self.set(self._ms + span_ms(by))

    def on_change(self, listener: Callable[[], object]) -> None:
        """Call ``listener`` after each move, so that what waits for a moment looks again."""
        self._listeners.append(listener)


def to_ms(instant: datetime) -> int:
    """Return an aware datetime as milliseconds since the epoch.

    Raises:
        ValueError: The datetime has no time zone.
    """
    if instant.tzinfo is None:
        raise ValueError(f"{instant!r} has no time zone; write datetime(..., tzinfo=UTC)")
    return span_ms(instant - datetime(1970, 1, 1, tzinfo=UTC))


def to_datetime(ms: int) -> datetime:
    """Return milliseconds since the epoch as an aware UTC datetime."""
    return datetime.fromtimestamp(ms // 1000, UTC) + timedelta(milliseconds=ms % 1000)


def span_ms(span: timedelta) -> int:
    """Return a span of time in whole milliseconds, rounded up, so that nothing starts early."""
    return -(-span // timedelta(milliseconds=1))


def duration_ms(value: Duration, what: str = "duration") -> int:
    """Return a duration in whole milliseconds, rounded up.

    Args:
        value: A `timedelta`, or text such as ``"1.5s"`` or ``"5m"``.
        what: What the error message calls it.

    Raises:
        ConfigurationError: A bare number (guides mean milliseconds and Python people mean seconds), a text that is no
            duration, a negative span, or one over 2^53 milliseconds.
    """
    if isinstance(value, timedelta):
        ms = span_ms(value)
    elif isinstance(value, str):
        match = _SPELLING.fullmatch(value)
        unit = _UNITS.get(match[2]) if match else None
        if match is None or unit is None:
            if value.strip().lstrip("+-").replace(".", "", 1).isdigit():
                raise ConfigurationError(_bare(what, value.strip()))
            raise ConfigurationError(f"{what}: {value!r} is not a duration; write '500ms', '30s', '5m', '2h' or '1d'")
        ms = -int(-float(match[1]) * unit // 1) if "." in match[1] else int(match[1]) * unit
    else:
        raise ConfigurationError(_bare(what, value))
    if ms < 0:
        raise ConfigurationError(f"{what}: {value!r} is negative")
    if ms > MAX_MS:
        raise ConfigurationError(f"{what}: {value!r} is more than 2^53 milliseconds")
    return ms


def duration_text(span: timedelta) -> str:
    """Return a duration in the largest unit that divides it: ``"90s"``, ``"10m"``, ``"7d"``."""
    ms = span_ms(span)
    units = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
    return next(f"{ms // size}{unit}" for unit, size in units if ms % size == 0) if ms else "0s"


def _bare(what: str, value: object) -> str:
    return f"{what}: {value!r} has no unit; write '{value}s' or '{value}ms', or a timedelta"
