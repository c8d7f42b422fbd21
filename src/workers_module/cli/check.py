"""``workers check``: builds the application, looks for faults, and starts nothing; for CI."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from workers_module.cli.app import Face
from workers_module.cli.banner import WorkerRow, worker_rows
from workers_module.cli.failures import FoundError
from workers_module.cli.options import options
from workers_module.cli.output import Column, console, emit, fires, result, some, span, table
from workers_module.cli.session import built
from workers_module.clock import Clock, span_ms, to_datetime
from workers_module.di.registry import WorkerRegistry
from workers_module.di.target import load_target
from workers_module.errors import ConfigurationError
from workers_module.job.sandbox import Sandbox
from workers_module.settings import WorkerMode, WorkersSettings, explained_settings
from workers_module.store.open import open_store
from workers_module.worker.handler import ScheduleSpec
from workers_module.worker.sandbox import needed_sandboxes

face = Face(single=True)

RUNS: Final = 3
"""So many runs of each schedule are shown."""
_TOGETHER: Final = "\N{NO-BREAK SPACE}"


@face.command("check")
async def check() -> None:
    """Build the application and look for faults: exit code 0 if it could start, 5 with warnings, 3 if it could not.

    The store is not touched, so that this runs where there is none.
    """
    async with built() as (container, target):
        with explained_settings():
            settings = await container.get(WorkersSettings)
        registry = await container.get(WorkerRegistry)
        # The graph was checked when the container was made.
        selected = registry.select(settings.enabled_workers, force=True)
        _refuse(registry, settings, target or "")
    warnings = list(_warnings(registry, settings))
    rows = worker_rows(registry, settings, selected)
    runs = {spec.name: next_runs(spec, Clock().now_ms()) for spec in registry.schedules}
    if options().json:
        emit(_document(target, rows, registry, runs, warnings))
    else:
        _print(rows, registry, runs)
        for warning in warnings:
            result(f"warn  {warning}", None)
        if not warnings:
            counts = f"{some(len(rows), 'worker')}, {some(len(registry.schedules), 'schedule')}"
            result(f"{target}: {counts}; all in order", None)
    if warnings:
        raise FoundError("")


def next_runs(spec: ScheduleSpec, now: int) -> list[datetime]:
    """Return the next instants at which a declared schedule fires if its worker starts now; fewer when it ends."""
    if spec.schedule is None or spec.disabled:
        return []
    slot = spec.schedule.first_slot(now + (spec.initial_delay_ms or 0))
    found: list[datetime] = []
    while slot is not None and len(found) < RUNS:
        found.append(to_datetime(slot))
        slot = spec.schedule.anchored(slot).next_slot(slot)
    return found


def _refuse(registry: WorkerRegistry, settings: WorkersSettings, target: str) -> None:
    """Refuse what the start would, as far as it can be known before it.

    Raises:
        ConfigurationError: It would not start.
    """
    if not registry.handlers:
        raise ConfigurationError(
            f"{target}: the application has no handlers; pass them to WorkersModule.for_root(processors=[...])"
        )
    if settings.mode is WorkerMode.FOREGROUND_BLOCKING:
        raise ConfigurationError("WORKERS_MODE is foreground_blocking: jobs run where they are added, no worker starts")
    if not settings.in_memory and settings.queue.uri is not None:
        # Its scheme, its parameters, and whether its driver is installed; nothing is connected.
        open_store(settings.queue.uri.get_secret_value(), prefix=settings.queue.prefix)
    needed = needed_sandboxes([one.spec for one in registry.handlers], settings.sandbox, target=target)
    if needed:
        load_target(target, anew=Sandbox.THREAD in needed)


def _print(rows: Sequence[WorkerRow], registry: WorkerRegistry, runs: dict[str, list[datetime]]) -> None:
    heads = [Column("name"), Column("queue"), Column("worker"), Column("slots", right=True)]
    cells = [[row.name, row.queue, row.worker, row.slots, ", ".join(row.jobs)] for row in rows]
    table([*heads, Column("jobs", shrinks=True, keeps="all")], cells, empty="only schedules")
    out = console()
    for spec in registry.schedules:
        if out.is_terminal:
            result("", None)
        schedule = spec.schedule
        times = fires(
            None if schedule is None else schedule.expression,
            None if schedule is None else schedule.tz,
            None if schedule is None else schedule.every_ms,
            spec.after_ms,
        )
        result(f"schedule {spec.name}  {times}  {spec.label} of {spec.worker}", None)
        coming = ", ".join(_shown(runs[spec.name], ZoneInfo("UTC" if schedule is None else schedule.tz)))
        if coming or schedule is not None:
            text = f"  next  {coming or ('disabled' if spec.disabled else 'never: it has ended')}"
            if out.is_terminal:
                text = textwrap.fill(text, out.width, subsequent_indent=" " * 8)
            result(text.replace(_TOGETHER, " "), None)
    if out.is_terminal:
        result("", None)


def _shown(instants: Sequence[datetime], zone: ZoneInfo) -> Iterator[str]:
    clock = "%H:%M" if all(not one.second for one in instants) else "%H:%M:%S"
    local = [one.astimezone(zone) for one in instants]
    for one, before, after in zip(local, [None, *local], [*local[1:], None], strict=False):
        # The day is said where it changes, the zone where the next one's is another; a line ends between two only.
        day = "" if before is not None and before.date() == one.date() else "%Y-%m-%d "
        name = "" if after is not None and after.tzname() == one.tzname() else " %Z"
        yield f"{one:{day}{clock}{name}}".replace(" ", _TOGETHER)


def _document(
    target: str | None,
    rows: Sequence[WorkerRow],
    registry: WorkerRegistry,
    runs: dict[str, list[datetime]],
    warnings: list[str],
) -> dict[str, object]:
    return {
        "app": target,
        "workers": [
            {"name": row.name, "queue": row.queue, "worker": row.worker, "slots": row.slots, "jobs": row.jobs}
            for row in rows
        ],
        "schedules": [
            {
                "name": spec.name,
                "queue": spec.queue,
                "worker": spec.worker,
                "handler": spec.label,
                "next": runs[spec.name],
            }
            for spec in registry.schedules
        ],
        "queues": registry.queues,
        "warnings": warnings,
    }


def _warnings(registry: WorkerRegistry, settings: WorkersSettings) -> Iterator[str]:
    handled = Counter(handler.kind.queue for handler in registry.handlers)
    for queue in registry.queues:
        if not handled[queue]:
            yield f"queue {queue} is declared and has no handler here; another service must work on it"
    for spec in registry.schedules:
        if spec.schedule is not None and not spec.disabled and spec.schedule.next_slot(Clock().now_ms()) is None:
            yield f"schedule {spec.name} has ended: it does not fire any more; give it a later end, or remove it"
    if settings.job_timeout is None:
        for handler in registry.handlers:
            if "timeout" not in handler.kind.options:
                yield f"{handler.spec.label} has no time limit: WORKERS_JOB_TIMEOUT is none, and it sets no timeout="
    if span_ms(settings.lease) < 5_000:
        yield f"WORKERS_LEASE is {span(span_ms(settings.lease))}: a short pause of a process loses its jobs"
