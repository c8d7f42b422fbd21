"""How every loop waits out an outage of the store: one warning, growing pauses, one line when it is over."""

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from workers_module.errors import StoreError, StoreFullError, StoreOutcomeUnknownError, StoreUnavailableError

T = TypeVar("T")

WAITED_OUT: Final = (StoreUnavailableError, StoreFullError, StoreOutcomeUnknownError)
"""What passes by itself, and what loops may repeat, because their calls carry a token or an id."""

_FIRST_S: Final = 0.05
_LONGEST_S: Final = 1.0
"""The first job runs within a second of the store's return."""
_WHEN_FULL_S: Final = 1.0

_log = logging.getLogger(__name__)


class Outage:
    """Counts the failures in a row of one caller.

    Args:
        what: Who it is, for the log: ``queue mail``.
        on_begin: Told the first error of each outage.
    """

    __slots__ = ("_failures", "_on_begin", "_since", "_what")

    def __init__(self, what: str, on_begin: Callable[[StoreError], None] | None = None) -> None:
        self._what = what
        self._on_begin = on_begin
        self._failures = 0
        self._since = 0.0

    def pause(self, error: StoreError) -> float:
        """Note a failed call and return the seconds to wait before the next one."""
        self._failures += 1
        if self._failures == 1:
            self._since = time.monotonic()
            _log.warning("%s: %s (%s); trying again until it works", self._what, error, type(error).__name__)
            if self._on_begin is not None:
                self._on_begin(error)
        longest = min(_FIRST_S * (1 << min(self._failures - 1, 10)), _LONGEST_S)
        if isinstance(error, StoreFullError):
            longest = max(longest, _WHEN_FULL_S)
        # Many workers meet the same outage: chance keeps them from coming back in one moment.
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def over(self) -> None:
        """Note a call that worked."""
        if self._failures:
            lasted = time.monotonic() - self._since
            _log.info("%s: the store is back after %.1f s", self._what, lasted)
            self._failures = 0

    async def wait_out(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return what ``call`` returns, repeating it until the store answers; for calls that may be repeated."""
        while True:
            try:
                result = await call()
            except WAITED_OUT as error:
                await anyio.sleep(self.pause(error))
            else:
                self.over()
                return result
