"""``workers stats``: how many jobs each worker has, by state, in the columns of Hyperstack."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import anyio
import typer
from rich.live import Live

from workers_module.cli.app import Face
from workers_module.cli.banner import worker_rows
from workers_module.cli.options import options
from workers_module.cli.output import Column, console, emit, emit_line, fitting, table
from workers_module.cli.selecting import duration_of
from workers_module.cli.session import Session, opened

face = Face(single=True)

COLUMNS: Final = ("name", "queue", "active", "completed", "delayed", "failed", "paused", "waiting", "waiting-children")
WIDE: Final = ("prioritized", "schedulers")
_LEAST_S: Final = 0.2


@face.command("stats")
async def stats(
    watch: Annotated[
        str | None, typer.Option("--watch", metavar="[2s]", help="Show them again and again, so far apart.")
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Also prioritized jobs and schedules.")] = False,
) -> None:
    """Show how many jobs each worker has, by state. Jobs of a paused queue that are ready count as paused."""
    if watch is None:
        await show(wide=wide)
        return
    every = duration_of(watch, "--watch") / 1_000
    async with opened() as session:
        await _watch(session, max(every, _LEAST_S), wide=wide)


async def show(*, wide: bool = False) -> None:
    """Print the figures once."""
    async with opened() as session:
        found = await rows(session)
    names = (*COLUMNS, *WIDE) if wide else COLUMNS
    if options().json:
        emit([{name: row[name] for name in names} for row in found])
        return
    table(heads(names), cells(found, names), empty="no queue has jobs, and the application has no workers")


async def rows(session: Session) -> list[dict[str, Any]]:
    """Return a row for each worker class or function, and for each queue without one."""
    workers = worker_rows(session.registry, session.settings)
    pairs = [(row.name, row.queue) for row in workers]
    ticks = {one.kind.queue: one.spec.label.partition(".")[0] for one in session.registry.handlers if one.is_tick}
    covered = {row.queue for row in workers}
    pairs += [(ticks.get(queue, ""), queue) for queue in await session.queues() if queue not in covered]
    counted = {queue: await _counted(session, queue) for queue in dict.fromkeys(queue for _, queue in pairs)}
    return [{"name": name or None, "queue": queue, **counted[queue]} for name, queue in sorted(pairs, key=_by_queue)]


def _by_queue(pair: tuple[str, str]) -> tuple[str, str]:
    return pair[1], pair[0]


async def _counted(session: Session, queue: str) -> dict[str, int]:
    counts = await session.inspector.counts(queue)
    return {
        "active": counts.active,
        "completed": counts.completed,
        "delayed": counts.delayed,
        "failed": counts.failed,
        "paused": counts.paused,
        "waiting": 0 if counts.paused else counts.waiting,
        "waiting-children": counts.waiting_children,
        "prioritized": 0 if counts.paused else counts.prioritized,
        "schedulers": len(await session.inspector.schedules(queue)),
    }


def heads(names: Sequence[str]) -> list[Column]:
    """Return the columns of these names."""
    return [Column(name, right=name not in {"name", "queue"}, shrinks=name in {"name", "queue"}) for name in names]


def cells(found: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[object]]:
    """Return the cells of these columns."""
    return [[row[name] for name in names] for row in found]


async def _watch(session: Session, every: float, *, wide: bool) -> None:
    names = (*COLUMNS, *WIDE) if wide else COLUMNS
    out = console()
    if options().json or not out.is_terminal:
        while True:
            found = await rows(session)
            if options().json:
                emit_line([{name: row[name] for name in names} for row in found])
            else:
                table(heads(names), cells(found, names), empty="no jobs")
            await anyio.sleep(every)
    with Live(console=out, auto_refresh=False, screen=False, vertical_overflow="visible") as live:
        while True:
            found = await rows(session)
            # The ^C that ends it is written behind the table, and must not break its last line.
            made = fitting(heads(names), cells(found, names), out.width - 2)
            live.update(made, refresh=True)
            await anyio.sleep(every)
