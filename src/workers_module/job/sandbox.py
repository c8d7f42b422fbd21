"""Where a handler's code runs."""

from enum import StrEnum


class Sandbox(StrEnum):
    """How far a handler is kept from the event loop that feeds it.

    Source: StartupJS ``useSeparateProcess`` and ``useWorkerThreads``.
    """

    NONE = "none"
    """On the worker's own event loop; a ``def`` handler in a worker thread."""
    THREAD = "thread"
    """In a thread with an event loop and a container of its own."""
    PROCESS = "process"
    """In a child process, killed and replaced when a time limit passes."""
