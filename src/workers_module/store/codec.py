"""Values of the contract as JSON text, for stores that keep them in a column or a file.

JSON that users gave (``bytes`` in the records) is carried as text inside, never parsed. Bytes that are not UTF-8
survive too.
"""

import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from workers_module.errors import StoreCorruptError
from workers_module.job.events import Event
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef
from workers_module.job.state import JobState
from workers_module.store.schedules import ScheduleDefinition
from workers_module.store.values import DedupSpec, JobSpec, WorkerInfo

_ENCODER: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_RECORD_BYTES: Final = frozenset({"data", "opts", "progress", "trace", "result"})

EventParts = tuple[str, str | None, Mapping[str, str] | None]
"""An event before it is stored: type, job id, fields (a plain `dict`, or None for none)."""


def dump_events(events: Iterable[EventParts]) -> str:
    """Write events as a JSON array of ``[type, job id, fields]``."""
    return _ENCODER.encode(list(events))


def load_events(body: str) -> list[Event]:
    """Read what `dump_events` wrote."""
    with _shape("list of events"):
        return [Event(type_, id_, fields or _NOTHING) for type_, id_, fields in json.loads(body)]


def dump_definition(definition: ScheduleDefinition) -> str:
    """Write a schedule's definition; equal definitions give equal texts."""
    return _ENCODER.encode(
        {
            "name": definition.name,
            "pattern": definition.pattern,
            "every_ms": definition.every_ms,
            "offset_ms": definition.offset_ms,
            "tz": definition.tz,
            "start": definition.start,
            "end": definition.end,
            "limit": definition.limit,
            "data": _text(definition.data),
            "opts": _text(definition.opts),
            "extra": _text(definition.extra),
        }
    )


def load_definition(body: str) -> ScheduleDefinition:
    """Read what `dump_definition` wrote."""
    with _shape("schedule"):
        fields = json.loads(body)
        for name in ("data", "opts", "extra"):
            fields[name] = _bytes(fields[name])
        return ScheduleDefinition(**fields)


def dump_spec(spec: JobSpec) -> str:
    """Write a job that is to be added later. A parent cannot be written: only jobs without one are put off."""
    return _ENCODER.encode(
        {
            "queue": spec.queue,
            "name": spec.name,
            "data": _text(spec.data),
            "opts": _text(spec.opts),
            "id": spec.id,
            "priority": spec.priority,
            "lifo": spec.lifo,
            "delay_ms": spec.delay_ms,
            "due": spec.due,
            "max_attempts": spec.max_attempts,
            "tags": spec.tags,
            "dedup": None if spec.dedup is None else [spec.dedup.key, spec.dedup.mode, spec.dedup.ttl_ms],
            "on_crash": spec.on_crash,
        }
    )


def load_spec(body: str) -> JobSpec:
    """Read what `dump_spec` wrote."""
    with _shape("job"):
        fields = json.loads(body)
        fields["data"] = _bytes(fields["data"])
        fields["opts"] = _bytes(fields["opts"])
        fields["tags"] = tuple(fields["tags"])
        if fields["dedup"] is not None:
            fields["dedup"] = DedupSpec(*fields["dedup"])
        return JobSpec(**fields)


def dump_worker(info: WorkerInfo) -> str:
    """Write what a worker tells of itself."""
    return _ENCODER.encode({name: getattr(info, name) for name in info.__dataclass_fields__})


def load_worker(body: str) -> WorkerInfo:
    """Read what `dump_worker` wrote."""
    with _shape("worker"):
        fields = json.loads(body)
        fields["queues"] = tuple(fields["queues"])
        fields["tags"] = tuple(fields["tags"])
        return WorkerInfo(**fields)


def dump_record(record: JobRecord) -> str:
    """Write a whole job; what a dump holds, a line each."""
    fields = record._asdict()
    for name in _RECORD_BYTES:
        if fields[name] is not None:
            fields[name] = _text(fields[name])
    return _ENCODER.encode(fields)


def load_record(body: str) -> JobRecord:
    """Read what `dump_record` wrote.

    Raises:
        StoreCorruptError: The text is not a record.
    """
    with _shape("job"):
        fields = json.loads(body)
        for name in _RECORD_BYTES:
            if fields[name] is not None:
                fields[name] = _bytes(fields[name])
        fields["state"] = JobState(fields["state"])
        fields["policy"] = ChildPolicy(fields["policy"])
        fields["tags"] = tuple(fields["tags"])
        if fields["parent"] is not None:
            fields["parent"] = ParentRef(*fields["parent"])
        return JobRecord(**fields)


def dump_tags(tags: Sequence[str]) -> str:
    """Write a set of tags; equal sets (sorted, without doubles) give equal texts."""
    return _ENCODER.encode(list(tags))


def load_tags(body: str) -> tuple[str, ...]:
    """Read what `dump_tags` wrote."""
    with _shape("set of tags"):
        return tuple(json.loads(body))


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@contextmanager
def _shape(what: str) -> Generator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreCorruptError(f"a stored {what} has a shape it cannot have: {error!r}") from error
