"""Puts the jobs of a dump back: all of them are checked before the first is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from workers_module.client.dump import DumpedJob
from workers_module.client.producer import Producer
from workers_module.client.queue import Progress
from workers_module.errors import ConfigurationError, PayloadError, StoreCorruptError
from workers_module.job.record import JobRecord
from workers_module.store.base import Store
from workers_module.store.values import JobPatch

_PAGE: Final = 500


class Refused(NamedTuple):
    """A job of a file that cannot be imported: its number in the file, from 0, and why."""

    number: int
    id: str
    name: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did, or would do.

    Attributes:
        added: How many jobs, by queue.
        skipped: How many exist already; they are left as they are.
        refused: The jobs that cannot be imported; if there are any, nothing is.
    """

    added: Mapping[str, int] = field(default_factory=dict[str, int])
    skipped: int = 0
    refused: tuple[Refused, ...] = ()


async def import_jobs(
    store: Store, producer: Producer, jobs: Sequence[object], *, dry_run: bool, on_progress: Progress | None
) -> ImportReport:
    """Put jobs back whose id is free; an active one becomes waiting.

    Args:
        store: Where they go.
        producer: Knows the types of payloads.
        jobs: As `document_of` writes them; what is not in order keeps all of them out.
        dry_run: Only check.
        on_progress: Told of each part: how many jobs more are written.
    """
    records: list[JobRecord] = []
    logs: dict[tuple[str, str], tuple[str, ...]] = {}
    refused: list[Refused] = []
    seen: set[tuple[str, str]] = set()
    for index, value in enumerate(jobs):
        try:
            one = DumpedJob.model_validate(value)
            record = _checked(producer, one.record(), seen)
        except (ValidationError, PayloadError, ConfigurationError, StoreCorruptError, ValueError) as error:
            refused.append(_refusal(index, value, error))
            continue
        records.append(record)
        if one.logs:
            logs[record.queue, record.id] = one.logs
    known = await _existing(store, records)
    fresh = [record for record in records if (record.queue, record.id) not in known]
    if not dry_run and not refused:
        await _restore(store, fresh, logs, on_progress)
    added: dict[str, int] = {}
    for record in fresh:
        added[record.queue] = added.get(record.queue, 0) + 1
    return ImportReport(added=added, skipped=len(records) - len(fresh), refused=tuple(refused))


def _checked(producer: Producer, record: JobRecord, seen: set[tuple[str, str]]) -> JobRecord:
    key = (record.queue, record.id)
    if key in seen:
        raise ConfigurationError("the file has this job twice")
    seen.add(key)
    if not record.state.ended:
        producer.check_payload(record.queue, record.name, record.data)
    return record


async def _restore(
    store: Store,
    records: list[JobRecord],
    logs: Mapping[tuple[str, str], tuple[str, ...]],
    on_progress: Progress | None,
) -> None:
    for start in range(0, len(records), _PAGE):
        part = records[start : start + _PAGE]
        await store.restore(part)
        for queue in dict.fromkeys(record.queue for record in part):
            patches = [
                JobPatch(id=record.id, log_lines=lines, clear_logs=True)
                for record in part
                if record.queue == queue and (lines := logs.get((queue, record.id)))
            ]
            if patches:
                await store.edit(queue, patches)
        if on_progress is not None:
            on_progress(len(part))


async def _existing(store: Store, records: list[JobRecord]) -> set[tuple[str, str]]:
    by_queue: dict[str, list[str]] = {}
    for record in records:
        by_queue.setdefault(record.queue, []).append(record.id)
    known: set[tuple[str, str]] = set()
    for queue, ids in by_queue.items():
        for start in range(0, len(ids), _PAGE):
            part = ids[start : start + _PAGE]
            stored = await store.get(queue, part, payload=False)
            known.update((queue, id) for id, record in zip(part, stored, strict=True) if record is not None)
    return known


def _refusal(index: int, value: object, error: Exception) -> Refused:
    job: Mapping[str, Any] = value if isinstance(value, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_input=False)
        why = "; ".join(f"$.{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults[:5])
    else:
        why = str(error)
    return Refused(index, str(job.get("id", "")), str(job.get("name", "")), why)
