"""``workers queues``: look at queues; pause, resume, empty and delete them."""

from typing import Annotated, Any

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import UsageError
from workers_module.cli.options import options
from workers_module.cli.output import Column, confirm, emit, progress, result, some, table
from workers_module.cli.selecting import duration_of
from workers_module.cli.session import DryRunOption, QueueArgument, YesOption, opened
from workers_module.client.queue import CLEAN_STATES, CleanState
from workers_module.client.search import JobFilter, find_jobs
from workers_module.job.state import JobState

face = Face("Look at queues; pause, resume, empty and delete them.")

Name = Annotated[str, QueueArgument]
Yes = Annotated[bool, YesOption]
DryRun = Annotated[bool, DryRunOption]


@face.command("list")
async def list_() -> None:
    """Show every queue: how many jobs it has in each state, and who works on it."""
    async with opened() as session:
        workers = await session.inspector.workers()
        found: list[dict[str, Any]] = [
            {
                "queue": name,
                "waiting": counts.waiting,
                "prioritized": counts.prioritized,
                "delayed": counts.delayed,
                "active": counts.active,
                "completed": counts.completed,
                "failed": counts.failed,
                "waiting-children": counts.waiting_children,
                "paused": (await session.inspector.settings(name)).paused,
                "workers": sum(name in worker.queues for worker in workers),
            }
            for name in await session.queues()
            for counts in [await session.inspector.counts(name)]
        ]
    if options().json:
        emit(found)
        return
    names = ("queue", "ready", "delayed", "active", "completed", "failed", "waiting-children", "paused", "workers")
    heads = [Column(name, right=name != "queue", shrinks=name == "queue") for name in names]
    # On a terminal of 80 columns there is no room for two kinds of ready.
    rows = [{**row, "ready": row["waiting"] + row["prioritized"]} for row in found]
    table(heads, [[row[name] for name in names] for row in rows], empty="there is no queue yet; a first job makes one")


@face.command()
async def pause(queue: Name) -> None:
    """Hand out no more jobs, in every process; running ones go on."""
    async with opened() as session:
        await (await session.queue(queue)).pause()
    result(f"{queue} is paused; resume it with: workers queues resume {queue}", {"queue": queue, "paused": True})


@face.command()
async def resume(queue: Name) -> None:
    """Hand out jobs again."""
    async with opened() as session:
        await (await session.queue(queue)).resume()
    result(f"{queue} hands out jobs again", {"queue": queue, "paused": False})


@face.command()
async def drain(
    queue: Name,
    delayed: Annotated[bool, typer.Option("--delayed", help="Also jobs that are to run later.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete all jobs that wait to run."""
    async with opened() as session:
        target = await session.queue(queue)
        before = await target.get_job_counts()
        count = before.waiting + before.prioritized + (before.delayed if delayed else 0)
        if not dry_run and count:
            confirm(f"Delete {some(count, 'job')} of {queue} waiting to run?", yes=yes)
            with progress("Deleting", count) as advance:
                await target.drain(delayed=delayed, on_progress=advance)
            after = await target.get_job_counts()
            count -= after.waiting + after.prioritized + (after.delayed if delayed else 0)
    _tell_deleted(count, queue, dry_run=dry_run)


@face.command()
async def clean(
    queue: Name,
    older_than: Annotated[str, typer.Option("--older-than", metavar="7d", help="Last touched longer ago.")],
    state: Annotated[str, typer.Option("--state", help=f"One of: {', '.join(CLEAN_STATES)}.")] = "completed",
    limit: Annotated[int, typer.Option("--limit", min=0, help="The oldest so many; 0 for all.")] = 0,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete old jobs in a state."""
    chosen = _clean_state(state)
    age = duration_of(older_than, "--older-than")
    async with opened() as session:
        target = await session.queue(queue)
        now = await session.now()
        fitting = JobFilter(older_ms=age)
        found = find_jobs(session.inspector, queue, (JobState(state),), fitting, now=now, limit=limit or None)
        count = len([job async for job in found])
        if not dry_run and count:
            confirm(f"Delete {count} {state} jobs of {queue} older than {older_than}?", yes=yes)
            with progress("Deleting", count) as advance:
                count = len(await target.clean(older_than, chosen, limit=limit, on_progress=advance))
    _tell_deleted(count, queue, dry_run=dry_run)


@face.command()
async def sweep(queue: Name, dry_run: DryRun = False) -> None:
    """Take back jobs whose worker is gone: two looks, a moment apart. Running workers do so by themselves."""
    async with opened() as session:
        await session.queues(queue)
        count = await session.admin.requeue("0s", queue=queue, dry_run=dry_run)
    text = f"{some(count, 'active job')} would be looked at" if dry_run else f"{some(count, 'job')} taken back"
    result(text, {"queue": queue, "recovered": 0 if dry_run else count, "dry_run": dry_run})


@face.command()
async def obliterate(
    queue: Name,
    force: Annotated[bool, typer.Option("--force", help="Also while jobs run; their ends are then refused.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete a queue with everything in it."""
    async with opened() as session:
        target = await session.queue(queue)
        counts = await target.get_job_counts()
        count = counts.total
        if not dry_run:
            if counts.active and not force:
                raise UsageError(f"{some(counts.active, 'job')} of {queue} running; wait for the end, or pass --force")
            confirm(f"Delete {queue} with {some(count, 'job')}, its schedules and settings?", yes=yes)
            with progress("Deleting", count) as advance:
                await target.obliterate(force, on_progress=advance)
    _tell_deleted(count, queue, dry_run=dry_run)


def _tell_deleted(count: int, queue: str, *, dry_run: bool) -> None:
    text = f"{some(count, 'job')} of {queue} {'would be ' if dry_run else ''}deleted"
    result(text, {"queue": queue, "deleted": 0 if dry_run else count, "found": count, "dry_run": dry_run})


def _clean_state(state: str) -> CleanState:
    for one in CLEAN_STATES:
        if one == state:
            return one
    raise UsageError(f"--state {state!r}: there are {', '.join(CLEAN_STATES)}")
