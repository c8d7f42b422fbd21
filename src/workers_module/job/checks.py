"""What the values of options are checked with. Each refusal names option, value and limit."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Final

from workers_module.clock import to_datetime
from workers_module.errors import ConfigurationError

_LAST_INSTANT: Final = 253_402_300_799_999
"""The end of the year 9999, past which datetimes do not go."""


def whole(what: str, value: object, *, low: int = 0, high: int, unit: str = "") -> int:
    """Return a whole number as int, or refuse what is none or out of bounds; ``what`` begins the message."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ConfigurationError(f"{what} {value!r} is not a whole number from {low} to {high:,}{unit}")
    if not low <= value <= high:
        raise ConfigurationError(f"{what} {value!r} is not between {low} and {high:,}{unit}")
    return int(value)


def instant(what: str, value: object) -> datetime | None:
    """Return an instant that has a time zone, or None, or refuse it."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise ConfigurationError(f"{what} {value!r} is not a datetime; write datetime(..., tzinfo=UTC)")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ConfigurationError(f"{what} {value!r} has no time zone; write datetime(..., tzinfo=UTC)")
    return value


def date_of(what: str, value: object) -> datetime | None:
    """Return an instant, or the one that BullMQ writes in milliseconds."""
    if value is None or isinstance(value, datetime):
        return instant(what, value)
    return to_datetime(whole(what, value, high=_LAST_INSTANT, unit=" ms"))


def check_keys(what: str, value: Mapping[str, Any], names: set[str]) -> None:
    """Refuse a mapping with a key it cannot have."""
    for name in value:
        if name not in names:
            raise ConfigurationError(f"{what}: unknown key {name!r}{nearest(name, sorted(names))}")


def nearest(name: object, known: Sequence[str]) -> str:
    """Return what to say after a name that is not known: the nearest known one, or all."""
    close = get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
