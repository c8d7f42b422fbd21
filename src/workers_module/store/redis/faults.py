"""A server's errors as ours."""

from typing import Final

from redis import exceptions as raised

from workers_module.errors import (
    ConfigurationError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from workers_module.store.redis.rights import COMMANDS

_FULL: Final = ("OOM", "MISCONF", "NOREPLICAS")
_DENIED: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED")
_DENIED_IN_SCRIPT: Final = ("user executing the script", "acl failure in script")
"""Redis before 7.2 does not say which command it was, others do."""
_LATER: Final = (
    "LOADING",
    "READONLY",
    "BUSY",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "UNBLOCKED",
    "max number",
)
_ELSEWHERE: Final = ("READONLY", "MASTERDOWN", "CLUSTERDOWN", "UNBLOCKED")
REPLIES: Final = (raised.ResponseError, raised.BusyLoadingError, raised.AuthenticationError)
"""What the driver raises for an error that a server answered; all else is about the connection."""


class CutOffError(StoreUnavailableError):
    """The connection was lost after a command was sent: it may or may not have been carried out."""


def said(error: Exception) -> str:
    """Return an error reply as the server wrote it; the driver takes the first word away from those it knows."""
    code = getattr(error, "status_code", None)
    text = str(error)
    return f"{code} {text}" if isinstance(code, str) and not text.startswith(code) else text


def is_elsewhere(error: Exception) -> bool:
    """Return whether an error reply says that another server may be the one to ask by now."""
    return said(error).startswith(_ELSEWHERE)


def translate(error: Exception, place: str) -> StoreError | ConfigurationError:
    """Return one of our errors for one of the driver's; what reached the server is `CutOffError` of the caller."""
    # Of some kinds of connections a refusal comes wrapped.
    if isinstance(error.__cause__, REPLIES):
        error = error.__cause__
    text = said(error)
    in_script = any(words in text.lower() for words in _DENIED_IN_SCRIPT)
    word = text.split(" ", 1)[0].rstrip(":,")
    if isinstance(error, raised.AuthenticationError | raised.NoPermissionError) or word in _DENIED or in_script:
        which = f" (a script runs one of {' '.join(COMMANDS)})" if in_script else ""
        return StoreDeniedError(
            f"{place} refuses this user: {text}. Grant the right{which}, or correct user and password in the URL"
        )
    if isinstance(error, raised.OutOfMemoryError) or word in _FULL or "command not allowed when used memory" in text:
        return StoreFullError(f"{place} takes no more data: {text}. Give it memory or disk, or remove jobs")
    if isinstance(error, REPLIES):
        if text.startswith(_LATER):
            return StoreUnavailableError(f"{place} cannot answer now: {text}")
        return StoreError(f"{place} answered: {text}")
    if isinstance(error, ValueError):
        return ConfigurationError(f"{place}: {text}")
    if "certificate" in text.lower():
        return StoreDeniedError(f"{place}: {text}. Give the URL the authority's certificate (ssl_ca_certs=…)")
    return StoreUnavailableError(f"{place} is not there: {text or type(error).__name__}")
