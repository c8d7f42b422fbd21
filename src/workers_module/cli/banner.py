"""What ``start`` tells: which workers run here, and which schedules."""

import os
import platform
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from workers_module import __version__
from workers_module.cli.output import clean, span, when
from workers_module.clock import duration_ms, span_ms
from workers_module.di.found import FoundHandler
from workers_module.di.registry import WorkerRegistry
from workers_module.di.schedules import Scheduler
from workers_module.job.options import JobOptions, merge
from workers_module.settings import RetentionLimits, WorkersSettings, duration_text, mask_url
from workers_module.store.base import StoreInfo


class WorkerRow(NamedTuple):
    """One class or function with handlers, in one queue.

    Attributes:
        name: The class, or the function.
        queue: Its queue.
        worker: The name that selects it.
        slots: Jobs at once in its queue.
        jobs: The names of its jobs; ``*`` is every other one.
        options: The defaults of its jobs.
        notes: What else is worth knowing.
    """

    name: str
    queue: str
    worker: str
    slots: int
    jobs: tuple[str, ...]
    options: JobOptions
    notes: tuple[str, ...]


def worker_rows(
    registry: WorkerRegistry, settings: WorkersSettings, running: Collection[str] | None = None
) -> list[WorkerRow]:
    """Return what runs, a row for each class or function and queue; ticks of plain schedules are none of them.

    Args:
        registry: All handlers.
        settings: The defaults.
        running: The worker names at work; None for all.
    """
    groups: dict[tuple[str, str], list[FoundHandler]] = defaultdict(list)
    slots: dict[str, int] = {}
    for handler in registry.handlers:
        queue, worker = handler.kind.queue, handler.spec.worker
        if handler.spec.concurrency is not None:
            slots[queue] = handler.spec.concurrency
        if not handler.is_tick and (running is None or {worker, queue} & {*running}):
            owner = handler.entry.owner
            groups[queue, handler.entry.function.__name__ if owner is None else owner.__name__].append(handler)
    return [
        WorkerRow(
            name=name,
            queue=queue,
            worker=handlers[0].spec.worker,
            slots=slots.get(queue, settings.concurrency),
            jobs=tuple(one.kind.name or "*" for one in handlers),
            options=merge(registry.queue_options(queue), handlers[0].kind.options),
            notes=tuple(dict.fromkeys(str(one.spec.sandbox.value) for one in handlers if one.spec.sandbox is not None)),
        )
        for (queue, name), handlers in groups.items()
    ]


def head(settings: WorkersSettings, info: StoreInfo) -> str:
    """Return the first line: what this is, and where the jobs are."""
    uri = settings.queue.uri
    place = "memory" if settings.in_memory or uri is None else mask_url(uri.get_secret_value())
    python = platform.python_version().rpartition(".")[0]
    return f"workers_module {__version__} · python {python} · pid {os.getpid()} · {place} ({info.version})"


def worker_lines(rows: Sequence[WorkerRow], settings: WorkersSettings, width: int) -> Iterator[str]:
    """Yield a line for each class or function that runs."""
    queue = max((len(row.queue) for row in rows), default=0)
    name = max((len(row.name) for row in rows), default=0)
    for row in rows:
        parts = [f"{row.slots} slots", ", ".join(row.jobs), *row.notes, *_option_notes(row.options, settings)]
        line = f"  {row.queue:<{queue}}  {row.name:<{name}}  {'  '.join(parts)}"
        yield clean(line if len(line) <= width else f"  {row.queue}  {row.name}\n      {'  '.join(parts)}", keep="\n")


def _option_notes(options: JobOptions, settings: WorkersSettings) -> Iterator[str]:
    timeout = options.get("timeout", settings.job_timeout)
    yield f"timeout {'none' if timeout is None else span(duration_ms(timeout))}"
    if options.get("attempts", 1) > 1:
        yield f"attempts {options.get('attempts')}"


async def cron_lines(
    registry: WorkerRegistry, scheduler: Scheduler, running: Collection[str], now: datetime
) -> list[str]:
    """Return a line for each schedule that ticks here."""
    lines: list[str] = []
    for spec in registry.schedules:
        if not {spec.worker, spec.queue} & {*running}:
            continue
        info = await scheduler.get(spec.name)
        times = info.pattern or (f"every {span(span_ms(info.every))}" if info.every else "once")
        zone = f" {info.tz}" if info.tz not in {None, "UTC"} else ""
        state = "paused" if info.is_paused else when(info.next_run, now) or ""
        lines.append(clean(f"  cron  {spec.name}  {times}{zone}" + (f"  ({state})" if state else "")))
    return lines


def kept(settings: WorkersSettings) -> str:
    """Return how long jobs that ended are kept."""
    limits = settings.retention
    return f"kept: completed jobs {_limits(limits.completed)}, failed ones {_limits(limits.failed)}"


def _limits(limits: RetentionLimits) -> str:
    age = "for ever" if limits.age is None else duration_text(limits.age)
    return age if limits.count is None else f"{age}, at most {limits.count:,}"
