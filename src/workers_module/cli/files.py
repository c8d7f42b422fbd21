"""``workers jobs dump`` and ``import``: jobs as files, to be kept, edited and put back."""

from typing import Annotated, Final

import typer

from workers_module.cli.failures import CommandFailedError, UsageError
from workers_module.cli.output import progress, result, say, some
from workers_module.cli.selecting import DryRun, Queue, States, states_of
from workers_module.cli.session import opened
from workers_module.client.dump import DUMP_FORMATS, DumpFormat
from workers_module.job.state import ALL_STATES

_SHOWN: Final = 20


async def dump(
    folder: Annotated[str, typer.Option("--folder", metavar="DIR", help="Where the files go, one a queue.")],
    queue: Queue = None,
    state: States = None,
    format: Annotated[str, typer.Option("--format", help="json or yaml.")] = "json",  # noqa: A002 - the option's name
    dry_run: DryRun = False,
) -> None:
    """Write all that is known about jobs to files in a folder, one a queue."""
    chosen, states = _format(format), states_of(state) or None
    async with opened() as session:
        names = await session.queues(queue)
        pages = [await session.inspector.page(name, states or ALL_STATES, limit=1) for name in names]
        count = sum(page.total for page in pages)
        if not dry_run:
            with progress("Writing", count) as advance:
                count = await session.admin.dump(folder, states, queue=queue, format=chosen, on_progress=advance)
    told = {"jobs": count, "folder": folder, "dry_run": dry_run}
    result(f"{some(count, 'job')} {'would be ' if dry_run else ''}written to {folder}", told)


async def import_(
    file: Annotated[str, typer.Option("--file", metavar="FILE", help="A file that dump or purge wrote.")],
    edited: Annotated[bool, typer.Option("--edited", help="It was edited: do not compare its checksum.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Put the jobs of a file back. It is checked whole before the first is written; what exists is left as it is."""
    async with opened(new=not dry_run) as session:
        with progress("Importing", None) as advance:
            report = await session.admin.import_(file, dry_run=dry_run, edited=edited, on_progress=advance)
    if report.refused:
        for one in report.refused[:_SHOWN]:
            say(f"job {one.number} ({one.name} {one.id}): {one.why}")
        left = len(report.refused) - _SHOWN
        more = f", {left} more not shown" if left > 0 else ""
        raise CommandFailedError(
            f"{some(len(report.refused), 'job')} of {file} not in order{more}; nothing was imported"
        )
    count = sum(report.added.values())
    queues = ", ".join(f"{number} to {queue}" for queue, number in report.added.items())
    text = f"{some(count, 'job')} {'would be ' if dry_run else ''}imported" + (f": {queues}" if queues else "")
    if report.skipped:
        text += f" · {report.skipped} skipped (they exist)"
    result(text, {"imported": dict(report.added), "skipped": report.skipped, "dry_run": dry_run})


def _format(text: str) -> DumpFormat:
    for one in DUMP_FORMATS:
        if one == text:
            return one
    raise UsageError(f"--format {text!r}: there are {', '.join(DUMP_FORMATS)}")
