"""The key audit: every key, field, score and event under a prefix is one the layout knows (wire format §1 to §4.1).

It is written from the specification, not from the code under test, and looks at what both sides left.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, Final, cast

import redis

QUEUE_KEYS: Final = {
    "id": "string",
    "meta": "hash",
    "wait": "list",
    "prioritized": "zset",
    "pc": "string",
    "delayed": "zset",
    "active": "list",
    "waiting-children": "zset",
    "completed": "zset",
    "failed": "zset",
    "stalled": "set",
    "stalled-check": "string",
    "limiter": "string",
    "marker": "zset",
    "events": "stream",
    "repeat": "zset",
    "metrics:completed": "hash",
    "metrics:failed": "hash",
    "metrics:completed:data": "list",
    "metrics:failed:data": "list",
    "wm:tagsets": "set",
}
JOB_KEYS: Final = {
    "lock": "string",
    "logs": "list",
    "dependencies": "set",
    "processed": "hash",
    "failed": "hash",
    "unsuccessful": "zset",
}
STATES: Final = ("wait", "prioritized", "delayed", "active", "waiting-children", "completed", "failed")
META: Final = {"opts.maxLenEvents", "version", "paused", "concurrency", "max", "duration"}
JSON_FIELDS: Final = {"data", "opts", "parent", "progress", "returnvalue", "stacktrace"}
NUMBERS: Final = {"timestamp", "delay", "priority", "ats", "atm", "stc", "processedOn", "finishedOn"}
TEXTS: Final = {"name", "parentKey", "rjk", "deid", "pb", "failedReason", "defa", "tm"}
OURS: Final = re.compile(r"wm:(oc|cancel|attempts|lifo|policy|n|seq|c:.+)")
DEFINITION: Final = {
    *("name", "pattern", "every", "tz", "offset", "startDate", "endDate", "limit", "ic", "data", "opts"),
    *("wm:extra", "wm:paused", "wm:phase"),
}
REMOVED_FROM: Final = {
    *("wait", "delayed", "prioritized", "active", "completed", "failed", "waiting-children", "unknown"),
}
READY_FROM: Final = {"delayed", "active", "failed", "completed", "waiting-children"}
EVENTS: Final[dict[str, list[tuple[str, ...]]]] = {
    "added": [("jobId", "name")],
    "waiting": [("jobId",), ("jobId", "prev")],
    "delayed": [("jobId", "delay")],
    "waiting-children": [("jobId",), ("jobId", "prev")],
    "active": [("jobId", "prev")],
    "progress": [("jobId", "data")],
    "completed": [("jobId", "returnvalue", "prev")],
    "failed": [("jobId", "failedReason", "prev")],
    "retries-exhausted": [("jobId", "attemptsMade")],
    "stalled": [("jobId",)],
    "drained": [()],
    "removed": [("jobId", "prev")],
    "cleaned": [("count",)],
    "duplicated": [("jobId",)],
    "deduplicated": [("jobId", "deduplicationId", "deduplicatedJobId")],
    "paused": [()],
    "resumed": [()],
    "wm:tagsets": [()],
}
PREV: Final = {
    "waiting": READY_FROM,
    "waiting-children": {"active"},
    "active": {"waiting"},
    "completed": {"active"},
    # Ours only: a job that is cancelled before it runs names the state it left.
    "failed": {"active", "waiting", "prioritized", "delayed", "waiting-children"},
    "removed": REMOVED_FROM,
}


def strict(text: str) -> object:
    """Parse JSON as Node does."""

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def is_json(text: str) -> bool:
    """Return whether Node can parse a text."""
    try:
        strict(text)
    except ValueError:
        return False
    return True


class Audit:
    """Looks at all keys under a prefix.

    Args:
        url: The server.
        prefix: The prefix.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._url = url
        self._prefix = prefix
        self._accepted: list[str] = []

    def accept(self, pattern: str) -> None:
        """Accept problems that match a pattern: what a scenario leaves on purpose."""
        self._accepted.append(pattern)

    def problems(self) -> list[str]:
        """Return what is wrong, a sentence each."""
        with redis.Redis.from_url(self._url, decode_responses=True) as client:
            found = list(_Look(client, self._prefix).all())
        return [one for one in found if not any(re.search(pattern, one) for pattern in self._accepted)]


class _Look:
    def __init__(self, client: "redis.Redis", prefix: str) -> None:
        self.client: Any = client
        self.prefix = prefix
        keys = cast("Iterable[str]", client.scan_iter(match=f"{prefix}:*", count=1_000))
        found = dict(zip(names := [*keys], self.many("type", names), strict=True))
        # What runs out may do so between two looks.
        self.types: dict[str, str] = {key: kind for key, kind in found.items() if kind != "none"}
        self.jobs: set[str] = set()
        hashes = [key for key, kind in self.types.items() if kind == "hash"]
        self.hashes: dict[str, dict[str, str]] = dict(zip(hashes, self.many("hgetall", hashes), strict=True))

    def many(self, command: str, keys: list[str]) -> list[Any]:
        """Ask the same of many keys in one go."""
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            getattr(pipe, command)(key)
        answers: list[Any] = pipe.execute()
        return answers

    def all(self) -> Iterable[str]:
        queues: dict[str, dict[str, str]] = {}
        for key, kind in self.types.items():
            rest = key[len(self.prefix) + 1 :]
            if rest.startswith(":"):
                if rest not in {":wm:locks", ":wm:workers"} or kind != "hash":
                    yield f"{key}: not a key of a store"
                continue
            queue, _, suffix = rest.partition(":")
            queues.setdefault(queue, {})[suffix] = kind
        for queue, suffixes in queues.items():
            for suffix, kind in suffixes.items():
                yield from self.key(queue, suffix, kind)
        for queue in queues:
            yield from self.queue(queue)
        yield from self.belongings()

    def name(self, queue: str, suffix: str) -> str:
        return f"{self.prefix}:{queue}:{suffix}"

    def key(self, queue: str, suffix: str, kind: str) -> Iterable[str]:
        key = self.name(queue, suffix)
        parts = suffix.split(":")
        wanted = QUEUE_KEYS.get(suffix)
        if wanted is None and parts[0] in {"de", "dn"}:
            wanted = "string" if parts[0] == "de" else "hash"
        elif wanted is None and suffix.startswith("wm:marker:"):
            wanted = "zset"
        elif wanted is None and parts[0] == "repeat" and len(parts) == 2:
            wanted = "hash"
            yield from self.definition(queue, parts[1], key)
        elif wanted is None and len(parts) > 1 and parts[-1] in JOB_KEYS:
            wanted = JOB_KEYS[parts[-1]]
        elif wanted is None and (len(parts) == 1 or (parts[0] == "repeat" and len(parts) == 3)):
            wanted = "hash"
            self.jobs.add(key)
        if wanted is None:
            yield f"{key}: a key the layout does not know"
        elif wanted != kind:
            yield f"{key}: a {kind}, not a {wanted}"

    def definition(self, queue: str, id: str, key: str) -> Iterable[str]:
        fields = self.hashes[key]
        for field in fields.keys() - DEFINITION:
            yield f"{key}: unknown field {field}"
        if ("pattern" in fields) == ("every" in fields):
            yield f"{key}: needs one of pattern and every"
        if self.client.zscore(self.name(queue, "repeat"), id) is None:
            yield f"{key}: not a member of repeat"

    def queue(self, queue: str) -> Iterable[str]:
        get = self.client
        for field in get.hkeys(self.name(queue, "meta")):
            if field not in META and not field.startswith("wm:"):
                yield f"{self.name(queue, 'meta')}: unknown field {field}"
        for suffix in ("limiter", "stalled-check"):
            if get.ttl(self.name(queue, suffix)) == -1:
                yield f"{self.name(queue, suffix)}: never expires"
        for member in get.zrange(self.name(queue, "marker"), 0, -1):
            if member not in {"0", "1"}:
                yield f"{self.name(queue, 'marker')}: member {member}"
        for schedule in get.zrange(self.name(queue, "repeat"), 0, -1):
            if self.name(queue, f"repeat:{schedule}") not in self.types:
                yield f"schedule {schedule} of {queue} has no definition"
        listed: dict[str, str] = {}
        for state in STATES:
            key = self.name(queue, state)
            ids = [] if key not in self.types else self.members(key)
            for id in ids:
                if id in listed:
                    yield f"job {id} of {queue} is in {listed[id]} and in {state}"
                listed[id] = state
                if self.name(queue, id) not in self.jobs:
                    yield f"job {id} of {queue} is in {state} and has no hash"
        for job in sorted(self.jobs):
            place, id = self.split(job)
            if place == queue:
                yield from self.job(job, listed.get(id))
        yield from self.stream(queue)
        active = {id for id, state in listed.items() if state == "active"}
        for key in self.types:
            place, id = self.split(key.removesuffix(":lock"))
            if key.endswith(":lock") and place == queue and id not in active:
                yield f"{key}: a lease of a job that is not active"

    def members(self, key: str) -> list[str]:
        found: list[str] = (
            self.client.lrange(key, 0, -1) if self.types[key] == "list" else self.client.zrange(key, 0, -1)
        )
        return found

    def split(self, key: str) -> tuple[str, str]:
        queue, _, id = key[len(self.prefix) + 1 :].partition(":")
        return queue, id

    def job(self, key: str, state: str | None) -> Iterable[str]:
        if state is None:
            yield f"{key}: a job in no state"
        fields = self.hashes[key]
        for needed in ("name", "data", "opts", "timestamp"):
            if needed not in fields:
                yield f"{key}: no field {needed}"
        for field, value in fields.items():
            if field in JSON_FIELDS:
                if not is_json(value):
                    yield f"{key}: {field} is no JSON: {value[:100]}"
            elif field in NUMBERS:
                if not re.fullmatch(r"\d+", value):
                    yield f"{key}: {field} is no number: {value}"
            elif field not in TEXTS and not OURS.fullmatch(field):
                yield f"{key}: unknown field {field}"
        ended = state in {"completed", "failed"}
        if state is not None and ended != ("finishedOn" in fields):
            yield f"{key}: is in {state}, finishedOn is {fields.get('finishedOn')}"
        if ("parent" in fields) != ("parentKey" in fields):
            yield f"{key}: one of parent and parentKey without the other"
        if "parent" in fields and is_json(fields["parent"]):
            parent = cast("dict[str, str]", strict(fields["parent"]))
            if f"{parent['queueKey']}:{parent['id']}" != fields["parentKey"]:
                yield f"{key}: parent {fields['parent']} is not parentKey {fields['parentKey']}"
        if "rjk" in fields and '"repeat"' not in fields["opts"]:
            yield f"{key}: a schedule's job without opts.repeat"

    def belongings(self) -> Iterable[str]:
        for key, kind in self.types.items():
            owner, _, part = key.rpartition(":")
            queue, suffix = self.split(key)
            if part in JOB_KEYS and suffix not in QUEUE_KEYS and owner not in self.jobs and part != "lock":
                yield f"{key}: of a job that is gone"
            if part == "processed" and kind == "hash" and suffix not in QUEUE_KEYS:
                for child, value in self.hashes[key].items():
                    if not is_json(value):
                        yield f"{key}: the result of {child} is no JSON"
            if part == "dependencies":
                for child in self.client.smembers(key):
                    if child not in self.jobs:
                        yield f"{key}: {child} is gone"
            if suffix.startswith("de:") and kind == "string":
                job = self.name(queue, self.client.get(key))
                if job not in self.jobs and self.client.ttl(key) == -1:
                    yield f"{key}: owned by {job}, which is gone"

    def stream(self, queue: str) -> Iterable[str]:
        key = self.name(queue, "events")
        if key not in self.types:
            return
        entries: list[tuple[str, dict[str, str]]] = self.client.xrange(key)
        for _, entry in entries:
            fields = list(entry)
            event = entry.get("event", "")
            if fields[0] != "event" or tuple(fields[1:]) not in EVENTS.get(event, []):
                yield f"{key}: event {entry}"
                continue
            if "prev" in entry and entry["prev"] not in PREV[event]:
                yield f"{key}: event {entry} with prev {entry['prev']}"
            for field in ("returnvalue", "data"):
                if field in entry and not is_json(entry[field]):
                    yield f"{key}: {field} of {entry} is no JSON"
            for field in ("delay", "attemptsMade", "count"):
                if field in entry and not re.fullmatch(r"\d+", entry[field]):
                    yield f"{key}: {field} of {entry} is no number"
