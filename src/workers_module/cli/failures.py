"""How commands end: the exit codes, and what is said of an error."""

from enum import IntEnum
from typing import Final, cast

from pydantic import ValidationError

from workers_module.errors import (
    ConfigurationError,
    InvalidNameError,
    JobNotFoundError,
    LeaseLostError,
    LockLostError,
    PayloadError,
    StoreCorruptError,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
    WorkersError,
)

_NOT_THE_STORE: Final = (JobNotFoundError, LeaseLostError, LockLostError, StoreCorruptError)


class ExitCode(IntEnum):
    """What a command tells the shell."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    """An option, a name or a value that cannot be meant."""
    TARGET = 3
    """The application or its settings cannot be used."""
    STORE = 4
    """The store cannot be reached, or refuses us."""
    FOUND = 5
    """A check found something."""
    INTERRUPTED = 130


class UsageError(WorkersError):
    """The command was given something that cannot be meant; nothing was changed."""


class NoStoreError(WorkersError):
    """What the URL of the store names is not there, and the command makes none."""


class FoundError(WorkersError):
    """A check found something; what it is has been printed."""


class CommandFailedError(WorkersError):
    """The command did not do what it was asked to; what it did has been printed."""


def told(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and what is said of it."""
    error = first_of(error)
    text = text_of(error)
    begin = "" if not text or isinstance(error, KeyboardInterrupt) else "error: "
    return int(code_of(error)), f"{begin}{text}"


def first_of(error: BaseException) -> BaseException:
    """Return the first error of a group, as task groups raise it, or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code of an error."""
    match error:
        case UsageError() | InvalidNameError() | PayloadError() | ValidationError():
            return ExitCode.USAGE
        case FoundError():
            return ExitCode.FOUND
        case NoStoreError():
            return ExitCode.STORE
        case StoreError() if not isinstance(error, _NOT_THE_STORE):
            return ExitCode.STORE
        case ConfigurationError():
            return ExitCode.TARGET
        case KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case _:
            return ExitCode.FAILED


def text_of(error: BaseException) -> str:
    """Return what is said of an error: its own text, and the next step where the text does not name one."""
    match error:
        case ValidationError():
            # The input may hold secrets: it is not shown.
            faults = error.errors(include_url=False, include_input=False)
            lines = [f"$.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults]
            return f"the payload does not fit {error.title}\n" + "\n".join(lines)
        case StoreUnavailableError():
            return (
                f"the store cannot be reached: {error}\nIs it running, and is its URL right? See: workers config show"
            )
        case StoreDeniedError():
            return f"the store refuses us: {error}\nIs the user in its URL right? See: workers config show"
        case WorkersError():
            return str(error)
        case KeyboardInterrupt():
            return "interrupted"
        case _:
            return f"{type(error).__name__}: {error}\nThe traceback is shown with -v"
