"""Which names queues, jobs, schedules, locks and tags may have, and which ids jobs may be given."""

import re
from typing import Final, Literal

from workers_module.errors import InvalidNameError

NameKind = Literal["queue", "job", "schedule", "lock", "tag"]

MAX_NAME: Final = 128
MAX_KEY_BYTES: Final = 1_024
"""The longest deduplication id."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
# Redis Cluster keeps what shares the text in braces on one node.
_QUEUE = re.compile(r"[A-Za-z0-9_.-]*(?:\{[A-Za-z0-9_.-]+\})?[A-Za-z0-9_.-]*")
_RULE = f"letters, digits, '_', '.' and '-', at most {MAX_NAME}"


def check_name(kind: NameKind, name: object) -> str:
    """Return ``name`` if every store can keep it.

    Raises:
        InvalidNameError: It is no text, or anything but 1 to 128 of ``[A-Za-z0-9_.-]``. (A part of a queue's name may
            stand in one pair of braces.)
    """
    if isinstance(name, str):
        if _NAME.fullmatch(name):
            return name
        if kind == "queue" and 0 < len(name) <= MAX_NAME and _QUEUE.fullmatch(name):
            return name
    raise InvalidNameError(f"{kind} name {_shown(name)}: names are {_RULE}")


def check_job_id(id: object) -> str:
    """Return ``id`` if a caller may give it to a job.

    Raises:
        InvalidNameError: It breaks the rule for names, or has digits only: those ids the stores give out themselves.
    """
    if not isinstance(id, str) or not _NAME.fullmatch(id):
        raise InvalidNameError(f"job_id {_shown(id)}: ids are {_RULE}")
    if id.isdigit():
        raise InvalidNameError(f"job_id {id!r}: ids of digits only are the store's own; write for example 'order-{id}'")
    return id


def check_key(what: str, key: object) -> str:
    """Return ``key`` if it may identify jobs that stand for each other: any text but NUL, up to 1,024 bytes.

    Raises:
        InvalidNameError: It is no text, empty, too long, or not Unicode.
    """
    if isinstance(key, str) and key and "\0" not in key:
        try:
            size = len(key.encode())
        except UnicodeEncodeError:
            raise InvalidNameError(f"{what}: the id has a lone surrogate, which is no text") from None
        if size <= MAX_KEY_BYTES:
            return key
        raise InvalidNameError(f"{what}: the id has {size:,} bytes; at most {MAX_KEY_BYTES:,}")
    raise InvalidNameError(
        f"{what}: the id {_shown(key)} is not a text; it needs at least one character, and none of them NUL"
    )


def _shown(name: object) -> str:
    if not isinstance(name, str):
        return f"of type {type(name).__name__}"
    return ascii(name if len(name) <= 2 * MAX_NAME else f"{name[:40]}…") + (
        f" ({len(name):,} characters)" if len(name) > MAX_NAME else ""
    )
