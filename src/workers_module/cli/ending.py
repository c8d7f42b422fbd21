"""The last resort: ends the process by force when a handler keeps it from ending, after all that counts is settled."""

import os
import sys
import threading
from typing import Final

LEAVE_S: Final = 0.5
"""What event loop and threads each have to end when all work is over."""

_timers: Final[list[threading.Timer]] = []


def end_within(seconds: float, code: int, *, why: str = "") -> None:
    """End the process after this time unless `relax` is called first; the earliest such end counts.

    Args:
        seconds: From now.
        code: The exit code.
        why: What is said then.
    """

    def end() -> None:
        if why:
            sys.stderr.write(f"{why}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    _timers.append(timer)


def end_threads(code: int) -> None:
    """End the process soon if a thread runs that the interpreter would wait for: a handler that nothing can cancel."""
    here = {threading.current_thread(), threading.main_thread()}
    if any(thread not in here and not thread.daemon for thread in threading.enumerate()):
        end_within(LEAVE_S, code)


def relax() -> None:
    """Forget every end that was set: what was feared did not happen."""
    while _timers:
        _timers.pop().cancel()
