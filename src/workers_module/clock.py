"""The only place that asks what time it is: milliseconds since the epoch, UTC."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


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
