"""Every error this package raises on purpose.

The class says who must act: the developer (`ConfigurationError`), the caller (`PayloadError`, `UnknownJobError`), the
operator (`StoreError`), or nobody any more (`JobFailedError`). Messages name queue, job, limit and value, never
payloads or secrets.
"""

from collections.abc import Sequence


class WorkersError(Exception):
    """The root of all errors of this package."""


class ConfigurationError(WorkersError):
    """Code or settings are wrong; raised at start or at the call, before anything is stored."""


class RegistrationError(ConfigurationError, TypeError):
    """A decorated class or function cannot be a handler, a schedule or a listener."""


class UnknownWorkerError(ConfigurationError):
    """``ENABLED_WORKERS`` or ``only=`` names a worker that this application does not have."""


class ScheduleError(ConfigurationError):
    """A cron expression, time zone or interval cannot be used, or never fires."""


class InvalidNameError(ConfigurationError, ValueError):
    """A queue, job, schedule, lock or tag name has characters or a length that no store keeps."""


class SchemaOutdatedError(ConfigurationError):
    """The tables of an SQL store lack migrations, and they are not applied at start here.

    Attributes:
        number: The last migration that was applied.
        needed: The one this code needs.
    """

    def __init__(self, message: str, *, number: int, needed: int) -> None:
        super().__init__(message)
        self.number = number
        self.needed = needed


class NotSupportedError(ConfigurationError):
    """The configured store cannot do what was asked of it."""


class PayloadError(WorkersError):
    """Data cannot be stored as JSON.

    Attributes:
        path: Where in the data, in the form ``$.a[3]``.
    """

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.args[0]}"


class NotSerializableError(PayloadError):
    """A value of a type JSON does not have, or a mapping key that is not text."""


class TooLargeError(PayloadError):
    """Data over the size limit, or too many jobs in one call."""


class TooDeepError(PayloadError):
    """Data nested deeper than the limit, or within itself."""


class BadNumberError(PayloadError):
    """A number JSON does not have (NaN, infinities), or one that other readers would round."""


class BadTextError(PayloadError):
    """Text that is not Unicode (lone surrogates), or bytes."""


class SingletonKeyError(PayloadError):
    """A ``singleton=`` function returned something that is not JSON."""


class UnknownJobError(WorkersError, LookupError):
    """No handler, or more than one, goes by this name.

    Attributes:
        name: What was asked for.
        known: The full names that exist.
    """

    def __init__(self, message: str, *, name: str, known: Sequence[str]) -> None:
        super().__init__(message)
        self.name = name
        self.known = tuple(known)


class ResultTimeoutError(WorkersError, TimeoutError):
    """The caller's patience ended before the job did; the job goes on."""


class IllegalMoveError(WorkersError):
    """A job cannot go from the state it is in to the one asked for."""

    def __init__(self, job_id: str, state: str, to: str) -> None:
        super().__init__(job_id, state, to)
        self.job_id = job_id
        self.state = state
        self.to = to

    def __str__(self) -> str:
        return f"job {self.job_id} is {self.state} and cannot become {self.to}"


class StoreError(WorkersError):
    """The store could not do its part."""


class StoreUnavailableError(StoreError):
    """No connection, a time-out, or a server that is starting, failing over or busy; tried again with backoff."""


class StoreFullError(StoreError):
    """The store has no memory or disk left."""


class StoreDeniedError(StoreError):
    """The store refuses this user; the message names the right that is missing."""


class StoreOutcomeUnknownError(StoreError):
    """A write was sent and no reply came; repeating it could do it twice."""


class StoreCorruptError(StoreError):
    """Stored data has a shape it cannot have."""


class JobNotFoundError(StoreError):
    """No such job, or no longer."""

    def __init__(self, queue: str, job_id: str) -> None:
        super().__init__(queue, job_id)
        self.queue = queue
        self.job_id = job_id

    def __str__(self) -> str:
        return f"queue {self.queue!r} has no job {self.job_id!r}"


class LeaseLostError(StoreError):
    """Another worker holds the job now; stop its side effects."""


class LockLostError(StoreError):
    """Somebody else holds the lock now, or it ran out; stop what it protected."""


class JobFailedError(WorkersError):
    """A job ended in ``failed``.

    Attributes:
        job_id: Which job.
        error_type: The name of the exception class as it was stored; no class is ever built from it.
        message: The exception's text.
        trace: The stored traceback text, or an empty one.
    """

    def __init__(self, message: str, *, job_id: str, error_type: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.job_id = job_id
        self.error_type = error_type
        self.trace = trace

    def __str__(self) -> str:
        kind = f"{self.error_type}: " if self.error_type else ""
        return f"job {self.job_id} failed: {kind}{self.message}"


class JobTimeoutError(JobFailedError):
    """The run passed its time limit."""


class JobCancelledError(JobFailedError):
    """A person or the program cancelled the job."""


class JobCrashedError(JobFailedError):
    """The job's workers died too often while they ran it."""


class JobExpiredError(JobFailedError):
    """The job's time to run had passed."""


class UnrecoverableError(WorkersError):
    """Raised by a handler: this job will not succeed; use up no further attempts.

    Source: BullMQ ``UnrecoverableError``.
    """


class RemoteError(WorkersError):
    """A handler failed in a child process. The class of what it raised there is never rebuilt here.

    Attributes:
        error_type: The name of that class, for people.
        message: The exception's text.
        trace: Its traceback as text, kept with the job.
    """

    def __init__(self, message: str, *, error_type: str, trace: str) -> None:
        super().__init__(message)
        self.message = message
        self.error_type = error_type
        self.trace = trace


class UnrecoverableRemoteError(RemoteError, UnrecoverableError):
    """A handler failed in a child process in a way that no further attempt can mend."""
