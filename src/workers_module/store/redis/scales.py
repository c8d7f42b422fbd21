"""How much memory queues take: a budget for each, and one warning when a queue has passed it."""

import logging
import time
from collections.abc import Callable
from typing import Final

QUEUE_BYTES: Final = 256 * 1_048_576
"""A backlog of some 700,000 small jobs; ended jobs are capped far below it."""
SAMPLE: Final = 20
"""Jobs of each state that stand for all of it."""
EVERY_SECONDS: Final = 300.0
_BELOW: Final = 0.9
"""Under so much of its budget a queue is forgiven, so that one at the edge does not warn again and again."""

_log = logging.getLogger(__name__)


class Scales:
    """Remembers when a queue of this process is to be weighed, and which one is too heavy.

    Args:
        budget: Bytes a queue may take; 0 weighs none.
        clock: Seconds that only grow.
    """

    def __init__(self, budget: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._due: dict[str, float] = {}
        self._heavy: set[str] = set()

    def wanted(self, queue: str) -> bool:
        """Return whether a queue is to be weighed now: when it is first swept, then each five minutes."""
        return self._budget > 0 and self._clock() >= self._due.get(queue, 0.0)

    def note(self, queue: str, place: str, taken: int, state: str, number: int) -> None:
        """Note what a queue takes, and warn if it is too much.

        Args:
            queue: Its name.
            place: The server, for people.
            taken: Bytes, estimated; negative where the server does not tell this user.
            state: Whose jobs take most of them; empty where there are none.
            number: How many jobs those are.
        """
        self._due[queue] = self._clock() + EVERY_SECONDS
        if taken < 0:
            _log.debug("%s: MEMORY USAGE is not allowed; no queue is weighed", place)
            self._budget = 0
        elif taken > self._budget and queue not in self._heavy:
            self._heavy.add(queue)
            most = f", most of it for {number} jobs that are {state}" if state else ""
            _log.warning(
                "queue %s takes about %s of the memory of %s, more than its budget of %s%s. Run more workers, keep "
                "fewer ended jobs, clean the queue, or raise queue_bytes in the store's URL",
                queue,
                _mebibytes(taken),
                place,
                _mebibytes(self._budget),
                most,
            )
        elif taken < _BELOW * self._budget and queue in self._heavy:
            self._heavy.discard(queue)
            _log.info("queue %s takes about %s again, within its budget", queue, _mebibytes(taken))


def _mebibytes(number: int) -> str:
    return f"{number / 1_048_576:,.1f} MiB"
