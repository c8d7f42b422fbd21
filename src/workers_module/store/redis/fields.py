"""A job as BullMQ's hash, and back. Source: wire format §2.

What a spec says and its options do not (they are the caller's text) is kept in fields of ours, ``wm:…``; jobs of our
own producers have none.
"""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from workers_module.job.record import ChildPolicy, JobRecord, OnCrash, ParentRef
from workers_module.job.state import JobState
from workers_module.store.redis.keys import Keys
from workers_module.store.values import JobSpec

FLAGS: Final = {
    ChildPolicy.FAIL_PARENT: "fpof",
    ChildPolicy.CONTINUE_PARENT: "cpof",
    ChildPolicy.IGNORE: "idof",
    ChildPolicy.REMOVE: "rdof",
}
_POLICIES: Final = {flag: policy for policy, flag in FLAGS.items()}
_SMALL: Final = 2_048
"""Options up to this size are remembered by their text."""
_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False)
_PARENT: Final = re.compile(
    rb',?"parent":\{"id":"(?:[^"\\]|\\.)*","queue":"(?:[^"\\]|\\.)*"\}\}\Z',
    re.DOTALL,
)
_ACTIVE: Final = JobState.ACTIVE
_STARTED: Final = [
    *(b"name", b"data", b"opts", b"timestamp", b"delay", b"priority"),
    *(b"processedOn", b"pb", b"ats"),
]
"""The fields of a job without any peculiarity, in the order in which we and BullMQ write them; then its start's."""
_NO_TAGS: Final[tuple[str, ...]] = ()


class Told(NamedTuple):
    """What a job's options say of what the store itself decides by."""

    attempts: int
    lifo: bool
    policy: ChildPolicy


_NOTHING_TOLD: Final = Told(1, False, ChildPolicy.FAIL_PARENT)


def told(opts: bytes) -> Told:
    """Return what options say, whoever wrote them."""
    return _NOTHING_TOLD if opts == b"{}" else _told(opts) if len(opts) <= _SMALL else _read_told(opts)


def _read_told(opts: bytes) -> Told:
    try:
        value: Any = json.loads(opts)
    except (ValueError, RecursionError):
        return _NOTHING_TOLD
    if not isinstance(value, dict):
        return _NOTHING_TOLD
    said = cast("dict[str, Any]", value)
    attempts: object = said.get("attempts")
    policy = next((policy for flag, policy in _POLICIES.items() if said.get(flag) is True), ChildPolicy.FAIL_PARENT)
    plain = isinstance(attempts, int) and not isinstance(attempts, bool)
    return Told(max(1, int(cast("int", attempts))) if plain else 1, said.get("lifo") is True, policy)


_told = lru_cache(maxsize=2_048)(_read_told)


def to_json(value: object) -> str:
    """Write values of ours (never a user's) for a script."""
    return _ENCODER.encode(value)


def spec_extras(spec: JobSpec) -> dict[str, Any]:
    """Return what of a spec is not the default, under the names ``core.lua`` gives."""
    extras: dict[str, Any] = {}
    if spec.timestamp is not None:
        extras["ts"] = spec.timestamp
    if spec.priority:
        extras["p"] = spec.priority
    if spec.lifo:
        extras["l"] = True
    if spec.delay_ms:
        extras["d"] = spec.delay_ms
    if spec.due is not None:
        extras["du"] = spec.due
    if spec.on_crash == "fail":
        extras["oc"] = "fail"
    if spec.schedule is not None:
        extras["s"] = spec.schedule
    said = told(spec.opts)
    if said.attempts != spec.max_attempts:
        extras["ma"] = spec.max_attempts
    if said.lifo is not spec.lifo:
        extras["ml"] = int(spec.lifo)
    if spec.parent is not None:
        extras["po"] = FLAGS[spec.policy]
    elif said.policy is not spec.policy:
        extras["mp"] = spec.policy.value
    if spec.dedup is not None:
        extras["k"] = spec.dedup.key
        extras["m"] = spec.dedup.mode
        if spec.dedup.ttl_ms is not None:
            extras["t"] = spec.dedup.ttl_ms
    return extras


def record_fields(record: JobRecord) -> list[bytes | str | int]:
    """Return the hash of a job that is written back, without its parent."""
    fields: list[bytes | str | int] = [
        "name",
        record.name,
        "data",
        record.data,
        "opts",
        record.opts,
        "timestamp",
        record.added,
        "delay",
        max(0, record.due - record.added) if record.due is not None else 0,
        "priority",
        record.priority,
    ]
    said = told(record.opts)
    pairs: list[tuple[str, bytes | str | int | None]] = [
        ("atm", record.attempts_made or None),
        ("ats", record.fence or None),
        ("stc", record.crashes or None),
        ("processedOn", record.started),
        ("finishedOn", (record.added if record.finished is None else record.finished) if record.state.ended else None),
        ("pb", record.worker),
        ("rjk", record.schedule),
        ("deid", record.dedup),
        ("defa", record.deferred),
        ("progress", record.progress),
        ("failedReason", record.reason),
        ("stacktrace", record.trace),
        ("returnvalue", record.result),
        ("wm:oc", "fail" if record.on_crash == "fail" else None),
        ("wm:attempts", record.max_attempts if said.attempts != record.max_attempts else None),
        ("wm:lifo", int(record.lifo) if said.lifo is not record.lifo else None),
        ("wm:policy", record.policy.value if record.parent is None and said.policy is not record.policy else None),
    ]
    for name, value in pairs:
        if value is not None:
            fields += (name, value)
    return fields


class Started(NamedTuple):
    """What a claim changed after the hash was read."""

    fence: int
    now: int
    worker: str


def read_record(
    keys: Keys,
    queue: str,
    id: str,
    tags: bytes,
    state: JobState,
    flat: Sequence[bytes],
    *,
    due: int | None = None,
    started: Started | None = None,
) -> JobRecord:
    """Return the job a hash describes; what cannot be read counts as absent.

    Args:
        keys: The store's.
        queue: Its queue.
        id: Its id.
        tags: Its tags, joined by ``+``.
        state: Where it was found.
        flat: Fields and values in turn.
        due: When it is due, if it is delayed.
        started: What the claim that brought it has changed.
    """
    it = iter(flat)
    h = dict(zip(it, it, strict=False))
    find = h.get
    opts = find(b"opts", b"{}")
    if opts.endswith(b"}}"):
        opts = _PARENT.sub(b"}", opts)
    said = told(opts)
    parent_key = find(b"parentKey")
    attempts, lifo, crash = find(b"wm:attempts"), find(b"wm:lifo"), find(b"wm:oc")
    on_crash: OnCrash = "fail" if crash == b"fail" else "retry"
    if started is None:
        fence, began, worker = _int(find(b"ats")) or 0, _int(find(b"processedOn")), _text(find(b"pb"))
    else:
        fence, now, name = started
        began, worker = now, name
    # One per claim: built without the keyword handling of the class, which costs more than all the rest.
    return tuple.__new__(
        JobRecord,
        (
            queue,
            id,
            find(b"name", b"").decode("utf-8", "replace"),
            state,
            find(b"data", b"{}"),
            opts,
            _int(find(b"priority")) or 0,
            tuple(tags.decode().split("+")) if tags else _NO_TAGS,
            _int(find(b"atm")) or 0,
            said.attempts if attempts is None else _int(attempts) or 1,
            _int(find(b"stc")) or 0,
            fence,
            _int(find(b"timestamp")) or 0,
            due,
            began,
            _int(find(b"finishedOn")),
            said.lifo if lifo is None else lifo == b"1",
            on_crash,
            state is _ACTIVE and b"wm:cancel" in h,
            worker,
            None if parent_key is None else _parent(keys, parent_key),
            _policy(find(b"parent") if parent_key is not None else None, find(b"wm:policy"), said),
            _text(find(b"rjk")),
            _text(find(b"deid")),
            _text(find(b"defa")),
            find(b"progress"),
            _text(find(b"failedReason")),
            find(b"stacktrace"),
            find(b"returnvalue"),
        ),
    )


def is_plain(record: JobRecord, flat: Sequence[bytes]) -> bool:
    """Return whether a running job is one that `read_plain` read when it started, and to which nothing was added."""
    return record.fence == 1 and not record.priority and flat[::2] == _STARTED


def read_plain(
    queue: str, id: str, name: bytes, data: bytes, opts: bytes, timestamp: bytes, now: int, worker: str
) -> JobRecord:
    """Return a job that starts for the first time and has nothing but what every job has: nearly each one claimed."""
    said = told(opts)
    # Built without the keyword handling of the class, which costs more than all the rest.
    return tuple.__new__(
        JobRecord,
        (
            *(queue, id, name.decode("utf-8", "replace"), _ACTIVE, data, opts, 0, _NO_TAGS),
            *(0, said.attempts, 0, 1, _int(timestamp) or 0, None, now, None, said.lifo, "retry", False, worker),
            *(None, said.policy, None, None, None, None, None, None, None),
        ),
    )


def _int(raw: bytes | None) -> int | None:
    if raw is None:
        return None
    try:
        return int(raw)
    except ValueError:
        return None


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8", "replace")


def _parent(keys: Keys, key: bytes) -> ParentRef | None:
    text = key.decode("utf-8", "replace")
    found = keys.queue_of(text)
    if found is None:
        place, _, id = text.rpartition(":")
        return ParentRef(place.rpartition(":")[2], id)
    return ParentRef(*found)


def _policy(parent: bytes | None, field: bytes | None, said: Told) -> ChildPolicy:
    if parent is not None:
        return next(
            (policy for flag, policy in _POLICIES.items() if b'"%s":true' % flag.encode() in parent), said.policy
        )
    if field is not None:
        try:
            return ChildPolicy(field.decode())
        except ValueError:
            return said.policy
    return said.policy
