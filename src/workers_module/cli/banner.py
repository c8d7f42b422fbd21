"""What ``start`` tells: which workers run here, and which schedules."""

import os
import platform
import textwrap
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from workers_module import __version__
from workers_module.cli.output import clean, fires, some, span, when
from workers_module.clock import duration_ms, span_ms
from workers_module.di.found import FoundHandler
from workers_module.di.registry import WorkerRegistry
from workers_module.di.schedules import Scheduler
from workers_module.job.options import JobOptions, merge
from workers_module.settings import RetentionLimits, WorkersSettings
from workers_module.store.values import StoreInfo
from workers_module.url import mask_url

_MOST_JOBS: Final = 30


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


def body(rows: Sequence[WorkerRow], crons: Sequence[tuple[str, str]], settings: WorkersSettings) -> list[str]:
    """Return a line for each class or function that runs, and for each schedule, in columns.

    Args:
        rows: What runs.
        crons: The schedules: name, and when.
        settings: The defaults.
    """
    names = [(row.queue, row.name) for row in rows] + [("cron", name) for name, _ in crons]
    queue, name = (max((len(pair[part]) for pair in names), default=0) for part in (0, 1))
    slots = max((len(some(row.slots, "slot")) for row in rows), default=0)
    jobs = [", ".join(row.jobs) for row in rows]
    # One long list of jobs must not push the notes of all others out of sight.
    most = max((len(one) for one in jobs if len(one) <= _MOST_JOBS), default=0)
    lines = [
        f"  {row.queue:<{queue}}  {row.name:<{name}}  {some(row.slots, 'slot'):>{slots}}  {listed:<{most}}  "
        f"{'  '.join((*row.notes, *_option_notes(row.options, settings)))}"
        for row, listed in zip(rows, jobs, strict=True)
    ]
    return [clean(line) for line in (*lines, *(f"  {'cron':<{queue}}  {one:<{name}}  {times}" for one, times in crons))]


def wrapped(lines: Iterable[str], width: int) -> Iterator[str]:
    """Yield lines that fit, broken between words."""
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        yield (
            line
            if len(line) <= width
            else textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        )


def _option_notes(options: JobOptions, settings: WorkersSettings) -> Iterator[str]:
    timeout = options.get("timeout", settings.job_timeout)
    yield f"timeout {'none' if timeout is None else span(duration_ms(timeout))}"
    if options.get("attempts", 1) > 1:
        yield f"attempts {options.get('attempts')}"


async def crons(
    registry: WorkerRegistry, scheduler: Scheduler, running: Collection[str], now: datetime
) -> list[tuple[str, str]]:
    """Return the schedules that tick here: name, and when they fire."""
    found: list[tuple[str, str]] = []
    for spec in registry.schedules:
        if not {spec.worker, spec.queue} & {*running}:
            continue
        info = await scheduler.get(spec.name)
        times = fires(info.pattern, info.tz, None if info.every is None else span_ms(info.every), spec.after_ms)
        state = "paused" if info.is_paused else when(info.next_run, now)
        found.append((spec.name, f"{times}  ({state})" if state else times))
    return found


def kept(settings: WorkersSettings) -> str:
    """Return how long jobs that ended are kept."""
    limits = settings.retention
    return f"kept: completed jobs {_limits(limits.completed)}, failed ones {_limits(limits.failed)}"


def _limits(limits: RetentionLimits) -> str:
    age = "for ever" if limits.age is None else span(span_ms(limits.age))
    return age if limits.count is None else f"{age} (at most {limits.count:,})"
