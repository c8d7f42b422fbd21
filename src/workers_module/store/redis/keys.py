"""How keys are called, and which names would collide with them. Source: wire format §1 and §15.4."""

import base64
import re
from collections.abc import Iterable
from typing import Final

from workers_module.errors import ConfigurationError, InvalidNameError

_SUFFIXES: Final = frozenset(
    [
        "id",
        "meta",
        "wait",
        "paused",
        "prioritized",
        "pc",
        "delayed",
        "active",
        "waiting-children",
        "completed",
        "failed",
        "stalled",
        "stalled-check",
        "limiter",
        "marker",
        "events",
        "repeat",
        "priority",
    ]
)
"""Words that name a queue's own keys; a job of that id would lie under one of them."""
_FAMILIES: Final = frozenset({"de", "dn", "metrics", "wm"})
_PARTS: Final = frozenset({"lock", "logs", "dependencies", "processed", "failed", "unsuccessful", "data"})
_GLOB: Final = re.compile(r"([\\*?\[\]])")
_SCHEDULED: Final = 3
"""The parts of ``repeat:<schedule>:<slot>``."""


class Keys:
    """The keys below one prefix."""

    __slots__ = ("clustered", "head", "locks", "prefix", "workers")

    def __init__(self, prefix: str) -> None:
        if not prefix or prefix.endswith(":"):
            raise ConfigurationError(
                f"key prefix {prefix!r}: give some text that does not end in a colon, such as 'bull'"
            )
        self.clustered = False
        self.prefix = prefix
        self.head = f"{prefix}:"
        self.locks = f"{prefix}::wm:locks"
        self.workers = f"{prefix}::wm:workers"

    def meta(self, queue: str) -> str:
        """Return the key of a queue's settings."""
        return f"{self.head}{queue}:meta"

    def declared(self, queue: str) -> tuple[str, ...]:
        """Return the keys that each script about a queue declares.

        On a cluster the last one never exists. While a slot moves to another node, its keys lie on two: then Redis
        refuses a command one of whose keys is not there, and so no script runs that would find half of a queue.

        Raises:
            ConfigurationError: On a cluster, the queue's keys would lie in several slots.
        """
        base = f"{self.head}{queue}"
        if not self.clustered:
            return f"{base}:meta", f"{base}:wm:tagsets"
        if not hash_tag(base):
            raise ConfigurationError(
                f"queue {queue!r}: on a cluster all keys of a queue must lie in one slot; put the key prefix in braces "
                f"('{{{self.prefix}}}'), or the queue's name ('{{{queue}}}')"
            )
        return f"{base}:meta", f"{base}:wm:tagsets", f"{base}:wm:whole"

    def slot(self, queue: str) -> str:
        """Return what the slot of a queue's keys depends on."""
        return hash_tag(f"{self.head}{queue}") if self.clustered else ""

    def place(self, queue: str, tags: tuple[str, ...] = ()) -> str:
        """Return the qualified name of the BullMQ queue that holds a queue's jobs with these tags."""
        return f"{self.head}{queue}@{'+'.join(tags)}" if tags else f"{self.head}{queue}"

    def markers(self, queue: str, tags: tuple[str, ...]) -> list[str]:
        """Return the keys that wake a worker with these tags."""
        if not tags:
            return [f"{self.head}{queue}:marker"]
        return [f"{self.head}{queue}:wm:marker:{tag}" for tag in tags]

    def stream(self, queue: str, tags: str) -> str:
        """Return the key of the events of a queue, or of its jobs with some tags (joined by ``+``)."""
        return f"{self.head}{queue}@{tags}:events" if tags else f"{self.head}{queue}:events"

    def queue_of(self, key: str) -> tuple[str, str] | None:
        """Return the queue and the id in a job's key, or None for a key of another prefix."""
        if not key.startswith(self.head):
            return None
        place, _, id = key[len(self.head) :].partition(":")
        return place.partition("@")[0], id

    def pattern(self, queue: str = "*", suffix: str = "meta") -> str:
        """Return a pattern for SCAN; ``queue`` and ``suffix`` are patterns themselves."""
        return f"{glob(self.head)}{queue}:{suffix}"

    def listed(self, key: str) -> str | None:
        """Return the queue whose settings lie under a key; None when that holds only a queue's jobs with some tags."""
        queue = key[len(self.head) :].removesuffix(":meta")
        return None if not queue or ":" in queue or "@" in queue else queue

    def client_name(self, queue: str, worker: str) -> str:
        """Return the name of a worker's blocking connection, by which Node finds it (wire format §12.4)."""
        name = f"{self.prefix}:{base64.b64encode(queue.encode()).decode()}"
        plain = "".join(one for one in worker if "!" <= one <= "~")
        return f"{name}:w:{plain}" if plain else name

    @staticmethod
    def decoded(encoded: str) -> str | None:
        """Return the queue in the name of a worker's connection, or None."""
        try:
            return base64.b64decode(encoded, validate=True).decode()
        except ValueError:
            return None


def hash_tag(key: str) -> str:
    """Return the part of a key that decides on its slot in a cluster; empty when that is the whole key."""
    _, brace, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    return tag if brace and end else ""


def glob(text: str) -> str:
    """Return text so that a pattern takes it as it is."""
    return _GLOB.sub(r"\\\1", text)


def is_reserved(id: str) -> bool:
    """Return whether a job of this id would lie under a key that is something else."""
    if id in _SUFFIXES or not id or id.startswith("0:"):
        return True
    parts = id.split(":")
    if len(parts) == 1:
        return False
    return parts[0] in _FAMILIES or parts[-1] in _PARTS or (parts[0] == "repeat" and len(parts) < _SCHEDULED)


def described(suffix: str) -> tuple[str, str] | None:
    """Return what a queue's key is that hangs on a job, by what stands behind the queue's name.

    Returns:
        ``job`` and its id; a part of a job, such as ``logs``, and the job's id; ``de`` and the id of a deduplication.
        None for a key of the queue itself, and for a lease, which runs out by itself.
    """
    if not is_reserved(suffix):
        return "job", suffix
    first, _, rest = suffix.partition(":")
    if first == "de":
        return first, rest
    id, _, part = suffix.rpartition(":")
    if part in _PARTS - {"lock"} and first not in _FAMILIES and not is_reserved(id):
        return part, id
    return None


def check_id(queue: str, id: str) -> None:
    """Refuse an id that Redis needs for itself.

    Raises:
        InvalidNameError: It names a key of the queue.
    """
    if is_reserved(id):
        raise InvalidNameError(
            f"queue {queue!r}: job id {id!r} is the name of a key that the queue itself has in Redis; choose another id"
        )


def check_tags(queue: str, tags: Iterable[str]) -> None:
    """Refuse tags whose joined text could be read in another way.

    Raises:
        InvalidNameError: A tag is empty or has one of the three characters that part names.
    """
    for tag in tags:
        if not tag or not {"+", "@", ":"}.isdisjoint(tag):
            raise InvalidNameError(f"queue {queue!r}: tag {tag!r} is empty or has one of the characters + @ :")
