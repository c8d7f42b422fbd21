"""What comes after a failed attempt: another one or not, and how long until then. Pure."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from workers_module.clock import MAX_MS, Duration, duration_ms
from workers_module.errors import ConfigurationError

FIXED = "fixed"
EXPONENTIAL = "exponential"
_BUILT_IN = (FIXED, EXPONENTIAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a failed job waits before its next attempt.

    Attributes:
        type: ``"fixed"``, ``"exponential"``, or the name of a function of the application.
        delay_ms: The wait, or the first wait of an exponential backoff.
        jitter: The share of the wait that is left to chance, 0 to 1. With 0.25 the wait lies between 75 % and 100 %.
        max_ms: No wait is longer. Ours; Node ignores it.

    Example:
        ``Backoff.exponential("1s", jitter=0.5, max="10m")``

    Source: BullMQ's built-in strategies; wire format §6.2.
    """

    type: str
    delay_ms: int = 0
    jitter: float = 0.0
    max_ms: int | None = None

    def __post_init__(self) -> None:
        if not _is_name(self.type):
            raise ConfigurationError(f"Backoff: {self.type!r} is not a type; write 'fixed', 'exponential' or a name")
        if not _is_share(self.jitter):
            raise ConfigurationError(f"Backoff.jitter: {self.jitter!r} is not a share; write a number from 0 to 1")

    @classmethod
    def fixed(cls, delay: Duration, *, jitter: float = 0.0) -> Self:
        """Wait the same time before each attempt.

        Raises:
            ConfigurationError: ``delay`` is no duration, or ``jitter`` lies outside 0 to 1.
        """
        return cls(type=FIXED, delay_ms=duration_ms(delay, "Backoff.fixed"), jitter=jitter)

    @classmethod
    def exponential(cls, delay: Duration, *, jitter: float = 0.0, max: Duration | None = None) -> Self:
        """Wait ``delay`` before the second attempt, and twice as long each time after, up to ``max``.

        Raises:
            ConfigurationError: ``delay`` or ``max`` is no duration, or ``jitter`` lies outside 0 to 1.
        """
        cap = None if max is None else duration_ms(max, "Backoff.exponential: max")
        return cls(type=EXPONENTIAL, delay_ms=duration_ms(delay, "Backoff.exponential"), jitter=jitter, max_ms=cap)

    @classmethod
    def custom(cls, name: str) -> Self:
        """Ask the function registered under ``name`` with ``for_root(backoffs=…)``.

        Raises:
            ConfigurationError: The name is empty, or one of the built-in types.
        """
        if name in _BUILT_IN:
            raise ConfigurationError(f"Backoff.custom: {name!r} is built in; write Backoff.{name}(…)")
        return cls(type=name)

    @property
    def is_custom(self) -> bool:
        """Whether the wait comes from a function of the application instead of `delay_for`."""
        return self.type not in _BUILT_IN

    def delay_for(self, attempt: int, random: Callable[[], float] = random.random) -> int:
        """Return the wait after a failed attempt, in milliseconds; never above ``max`` or 2^53 - 1.

        Args:
            attempt: The number of the attempt that failed, from 1.
            random: A draw from 0 (included) to 1 (excluded); asked only when there is jitter.

        Raises:
            ConfigurationError: The backoff is a function of the application, which only its consumer can call.
        """
        if self.is_custom:
            raise ConfigurationError(
                f"backoff {self.type!r} is neither fixed nor exponential; register it with for_root(backoffs=…)"
            )
        longest = MAX_MS if self.max_ms is None else min(self.max_ms, MAX_MS)
        # 53 doublings pass every cap; more would only build a number of thousands of digits.
        doublings = min(max(attempt - 1, 0), 53) if self.type == EXPONENTIAL else 0
        wait = min(self.delay_ms << doublings, longest)
        if not self.jitter:
            return wait
        # BullMQ's order of operations: the same draw gives the same millisecond.
        return min(int(random() * wait * self.jitter + wait * (1 - self.jitter)), wait)

    def to_bullmq(self) -> dict[str, Any]:
        """Return BullMQ's JSON: ``{"type", "delay", "jitter"?, "max"?}``, in milliseconds."""
        value: dict[str, Any] = {"type": self.type}
        if self.delay_ms or not self.is_custom:
            value["delay"] = self.delay_ms
        if self.jitter:
            value["jitter"] = self.jitter
        if self.max_ms is not None:
            value["max"] = self.max_ms
        return value

    @classmethod
    def from_bullmq(cls, value: float | Mapping[str, Any]) -> Self:
        """Read BullMQ's JSON: a number of milliseconds (fixed), or ``{"type", "delay"?, "jitter"?, "max"?}``.

        Keys that other readers added are left aside.

        Raises:
            ConfigurationError: The value has another shape, or a number in it cannot be used.
        """
        if not isinstance(value, Mapping):
            return cls(type=FIXED, delay_ms=_milliseconds(value, "backoff"))
        cap = value.get("max")
        return cls(
            type=value.get("type", ""),
            delay_ms=_milliseconds(value.get("delay") or 0, "backoff.delay"),
            jitter=value.get("jitter") or 0.0,
            max_ms=None if cap is None else _milliseconds(cap, "backoff.max"),
        )


def should_retry(*, attempts_made: int, max_attempts: int, unrecoverable: bool) -> bool:
    """Return whether a job runs again after an attempt that failed just now.

    Args:
        attempts_made: Attempts that had ended before this one.
        max_attempts: How many are allowed in all.
        unrecoverable: The handler said that the job will not succeed.

    Source: wire format §6.1.
    """
    return not unrecoverable and attempts_made + 1 < max_attempts


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_share(value: object) -> bool:
    # NaN compares false with everything.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _milliseconds(value: object, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise ConfigurationError(f"{what}: {value!r} is not a whole number of milliseconds")
    if not 0 <= value <= MAX_MS:
        raise ConfigurationError(f"{what}: {value!r} is not between 0 and 2^53 milliseconds")
    return int(value)
