"""How a run ended: a value, decided by the executor and carried out by the store."""

from dataclasses import dataclass

from workers_module.clock import Duration, duration_ms
from workers_module.errors import WorkersError


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How many ended jobs of a queue stay, per state.

    Attributes:
        count: The newest so many; 0 deletes the job at its end; None sets no limit.
        age_ms: No older than this; None sets no limit.
        limit: At most so many are trimmed for one ended job.
    """

    count: int | None = None
    age_ms: int | None = None
    limit: int = 1_000


@dataclass(frozen=True, slots=True)
class Completed:
    """The handler returned; ``result`` is JSON."""

    result: bytes
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed for good.

    Attributes:
        reason: The error's text.
        trace: A JSON array of all attempts' traces, oldest first; None leaves what is stored.
    """

    reason: str
    trace: bytes | None = None
    keep: Keep | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """This attempt failed; another one starts after ``delay_ms`` (0: at once)."""

    delay_ms: int
    reason: str
    trace: bytes | None = None


@dataclass(frozen=True, slots=True)
class Snooze:
    """Not now: the job starts again after ``delay_ms``, and no attempt is counted."""

    delay_ms: int


@dataclass(frozen=True, slots=True)
class Release:
    """Hand the job back to the head of its queue: neither attempt nor crash is counted."""


@dataclass(frozen=True, slots=True)
class WaitChildren:
    """The job waits for its children (or one of them), then starts again; no attempt is counted."""

    child: str | None = None


Outcome = Completed | Failed | Retry | Snooze | Release | WaitChildren


class RetryLaterError(WorkersError):
    """Raised by a handler: not now; run this job again after ``delay``, and count no attempt.

    Example:
        ``raise RetryLaterError("30s")``
    """

    def __init__(self, delay: Duration) -> None:
        super().__init__(delay)
        self.delay_ms = duration_ms(delay, "RetryLaterError")

    def __str__(self) -> str:
        return f"again in {self.args[0]}"
