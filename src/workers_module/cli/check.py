"""``workers check``: builds the application, looks for faults, and starts nothing; for CI."""

from collections import Counter

from workers_module.cli.app import Face
from workers_module.cli.banner import worker_rows
from workers_module.cli.failures import FoundError
from workers_module.cli.options import options
from workers_module.cli.output import Column, console, emit, result, some, span, table
from workers_module.cli.session import built
from workers_module.clock import span_ms
from workers_module.di.registry import WorkerRegistry
from workers_module.settings import WorkersSettings, explained_settings

face = Face(single=True)


@face.command("check")
async def check() -> None:
    """Build the application and look for faults: exit code 0 if it could start, 5 with warnings, 3 if it could not.

    The store is not touched, so that this runs where there is none.
    """
    async with built() as (container, target):
        with explained_settings():
            settings = await container.get(WorkersSettings)
        registry = await container.get(WorkerRegistry)
        # What the start would refuse; the graph was checked when the container was made.
        selected = registry.select(settings.enabled_workers, force=True)
    warnings = list(_warnings(registry, settings))
    rows = worker_rows(registry, settings, selected)
    if options().json:
        emit(
            {
                "app": target,
                "workers": [
                    {"name": row.name, "queue": row.queue, "worker": row.worker, "slots": row.slots, "jobs": row.jobs}
                    for row in rows
                ],
                "schedules": [
                    {"name": spec.name, "queue": spec.queue, "worker": spec.worker, "handler": spec.label}
                    for spec in registry.schedules
                ],
                "queues": registry.queues,
                "warnings": warnings,
            }
        )
    else:
        heads = [
            Column("name"),
            Column("queue"),
            Column("worker"),
            Column("slots", right=True),
            Column("jobs", shrinks=True),
        ]
        cells = [[row.name, row.queue, row.worker, row.slots, ", ".join(row.jobs)] for row in rows]
        table(heads, cells, empty="no handler is registered")
        if registry.schedules:
            if console().is_terminal:
                result("", None)
            table(
                ["schedule", "when", "worker", Column("handler", shrinks=True)],
                [
                    [spec.name, _times(spec.schedule, spec.after_ms), spec.worker, spec.label]
                    for spec in registry.schedules
                ],
                empty="",
            )
        for warning in warnings:
            result(f"warn  {warning}", None)
        if not warnings:
            result(
                f"{target}: {some(len(rows), 'worker')}, {some(len(registry.schedules), 'schedule')}; all in order",
                None,
            )
    if warnings:
        raise FoundError("")


def _times(schedule: object, after_ms: int | None) -> str:
    expression, every = getattr(schedule, "expression", None), getattr(schedule, "every_ms", None)
    if expression is not None:
        return str(expression)
    return f"every {span(every)}" if every is not None else f"once, after {span(after_ms or 0)}"


def _warnings(registry: WorkerRegistry, settings: WorkersSettings) -> "list[str]":
    handled = Counter(handler.kind.queue for handler in registry.handlers)
    warnings = [
        f"queue {queue} is declared and has no handler here; another service must work on it"
        for queue in registry.queues
        if not handled[queue]
    ]
    if settings.job_timeout is None:
        warnings += [
            f"{handler.spec.label} has no time limit: WORKERS_JOB_TIMEOUT is none, and it sets no timeout="
            for handler in registry.handlers
            if "timeout" not in handler.kind.options
        ]
    elif span_ms(settings.lease) < 5_000:
        warnings.append(f"WORKERS_LEASE is {span(span_ms(settings.lease))}: a short pause of a process loses its jobs")
    return warnings
