"""Which jobs a command means, and how a job is written down."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from workers_module.cli.failures import CommandFailedError, UsageError
from workers_module.cli.session import DryRunOption, QueueOption, Session, YesOption
from workers_module.client.search import JobFilter
from workers_module.clock import duration_ms
from workers_module.errors import ConfigurationError
from workers_module.job.job import Job
from workers_module.job.state import ALL_STATES, JobState

Queue = Annotated[str | None, QueueOption]
States = Annotated[list[str] | None, typer.Option("--state", help=f"One or more of: {', '.join(ALL_STATES)}.")]
Filter = Annotated[str, typer.Option("--filter", metavar="QUERY", help="E.g. 'name:welcome age:>1h error:Timeout'.")]
Yes = Annotated[bool, YesOption]
DryRun = Annotated[bool, DryRunOption]


def states_of(given: Sequence[str] | None) -> tuple[JobState, ...]:
    """Return the states that options name, alone or comma-separated.

    Raises:
        UsageError: One is unknown.
    """
    names = [name.strip() for one in given or () for name in one.split(",") if name.strip()]
    for name in names:
        if name not in {*ALL_STATES}:
            raise UsageError(f"--state {name!r}: there are {', '.join(ALL_STATES)}")
    return tuple(JobState(name) for name in dict.fromkeys(names))


def duration_of(text: str, option: str) -> int:
    """Return an option's duration in milliseconds.

    Raises:
        UsageError: It is none.
    """
    try:
        return duration_ms(text, option)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


def filter_of(text: str, names: Sequence[str] = ()) -> JobFilter:
    """Read a filter.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return JobFilter(text, names=names)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None


async def find_job(session: Session, id: str, queue: str | None) -> Job[Any]:
    """Return a job by its id, also ``queue/id``; of all queues where none is given.

    Raises:
        CommandFailedError: There is none.
        UsageError: Several queues have one of this id.
    """
    names = await session.queues(queue)
    before, slash, rest = id.partition("/")
    if queue is None and slash and before in names:
        names, id = [before], rest
    found = [job for name in names if (job := await session.inspector.get(name, id)) is not None]
    if not found:
        where = f"queue {names[0]!r} has" if len(names) == 1 else "there is"
        raise CommandFailedError(f"{where} no job {id!r} (any more); see: workers jobs list")
    if len(found) > 1:
        raise UsageError(f"several queues have a job {id!r}; write {' or '.join(f'{job.queue}/{id}' for job in found)}")
    return found[0]


def document(job: Job[Any]) -> dict[str, Any]:
    """Return a job as JSON shows it."""
    record = job.record
    return {
        "queue": job.queue,
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "data": job.data,
        "priority": job.priority,
        "tags": list(job.tags),
        "attempts_made": record.attempts_made,
        "attempts": job.attempts,
        "crashes": record.crashes,
        "progress": job.progress,
        "created_at": job.created_at,
        "run_at": job.run_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "worker": record.worker,
        "schedule": job.schedule,
        "parent": None if job.parent is None else job.parent._asdict(),
        "result": job.return_value,
        "error": job.error,
        "options": job.options,
    }
