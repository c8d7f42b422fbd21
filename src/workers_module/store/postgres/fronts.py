"""Where a queue's jobs begin, so that a call need not walk past those that are gone.

An index keeps the entries of jobs that have left it until a vacuum. Claims and trimming work at its front, where these
gather: after 20,000 jobs each call would read a hundred pages of them.
"""

from typing import Final

WHOLE_LOOK: Final = 16
"""Every so many calls look at everything: at what was committed late, or returned, and so lies before the front."""


class Front:
    """What the calls of one queue know of it; a hint, which is never needed.

    Attributes:
        ready: No job that waits its turn has a place before this one, but for those that were put in front.
        done: No job that is kept completed before this instant.
    """

    def __init__(self) -> None:
        self.ready: int | None = None
        self.done: int | None = None
        self._calls = 0

    def begin(self) -> "tuple[int | None, int | None]":
        """Return what the next call is told."""
        self._calls += 1
        return (None, None) if self._calls % WHOLE_LOOK == 0 else (self.ready, self.done)

    def learn(self, ready: int | None, done: int | None) -> None:
        """Take over what a call has found; it may have had no reason to look at completed jobs."""
        self.ready = ready
        if done is not None:
            self.done = done
