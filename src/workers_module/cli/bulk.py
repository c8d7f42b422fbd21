"""``workers jobs retry`` and its kind: the same done to many jobs, which are named first and counted after."""

from collections.abc import Sequence
from typing import Annotated, Final

import typer

from workers_module.cli.failures import CommandFailedError, UsageError
from workers_module.cli.output import confirm, phases, progress, result, say, some
from workers_module.cli.selecting import DryRun, Filter, Queue, States, Yes, duration_of, filter_of, find_job, states_of
from workers_module.cli.session import Session, opened
from workers_module.client.admin import BulkAction
from workers_module.client.search import find_jobs
from workers_module.job.state import JobState

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="The jobs; or say which with the options.")]
Names = Annotated[list[str] | None, typer.Option("--name", help="Jobs of this name; repeatable.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")]

_CHUNK: Final = 500
_ALLOWED: Final[dict[BulkAction, tuple[JobState, ...]]] = {
    "retry": (JobState.FAILED, JobState.COMPLETED),
    "promote": (JobState.DELAYED,),
    "remove": tuple(state for state in JobState if state is not JobState.ACTIVE),
}
_UNSAID: Final[dict[BulkAction, tuple[JobState, ...]]] = {**_ALLOWED, "retry": (JobState.FAILED,)}
_DONE: Final[dict[BulkAction, str]] = {"retry": "retried", "promote": "promoted", "remove": "removed"}
_DOING: Final[dict[BulkAction, str]] = {"retry": "Retrying", "promote": "Promoting", "remove": "Removing"}


async def retry(
    ids: Ids = None,
    queue: Queue = None,
    name: Names = None,
    state: States = None,
    filter: Filter = "",  # noqa: A002 - the option's name
    limit: Limit = None,
    reset: Annotated[bool, typer.Option("--reset", help="Count attempts from zero again.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Put jobs that ended back to work: the failed ones, unless --state says otherwise."""
    await _act("retry", ids, queue, name, state, filter, limit, reset=reset, yes=yes, dry_run=dry_run)


async def promote(
    ids: Ids = None,
    queue: Queue = None,
    name: Names = None,
    filter: Filter = "",  # noqa: A002 - as above
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Make delayed jobs ready now."""
    await _act("promote", ids, queue, name, None, filter, limit, yes=yes, dry_run=dry_run)


async def remove(
    ids: Ids = None,
    queue: Queue = None,
    name: Names = None,
    state: States = None,
    filter: Filter = "",  # noqa: A002 - as above
    limit: Limit = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete jobs that do not run."""
    await _act("remove", ids, queue, name, state, filter, limit, yes=yes, dry_run=dry_run)


async def cancel(
    name: Annotated[list[str], typer.Option("--name", help="Jobs of this name; repeatable.")],
    queue: Queue = None,
    running: Annotated[bool, typer.Option("--running", help="Also ask running ones to stop.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Cancel jobs by name: they fail before they start."""
    names = [one.strip() for given in name for one in given.split(",") if one.strip()]
    async with opened() as session:
        await _one_of(session, queue)
        count = await session.admin.cancel(names, queue, running=running, dry_run=True)
        if not dry_run and count:
            confirm(f"Cancel {some(count, 'job')} named {', '.join(names)}?", yes=yes)
            with progress("Cancelling", count) as advance:
                count = await session.admin.cancel(names, queue, running=running, on_progress=advance)
    _tell("cancelled", count, dry_run=dry_run)


async def tidy(queue: Queue = None, yes: Yes = False, dry_run: DryRun = False) -> None:
    """Delete completed and cancelled jobs."""
    async with opened() as session:
        await _one_of(session, queue)
        count = await session.admin.tidy(queue, dry_run=True)
        if not dry_run and count:
            confirm(f"Delete {some(count, 'completed or cancelled job')}{_of(queue)}?", yes=yes)
            with progress("Deleting", count) as advance:
                count = await session.admin.tidy(queue, on_progress=advance)
    _tell("deleted", count, dry_run=dry_run)


async def purge(
    max_age: Annotated[str, typer.Option("--max-age", metavar="90d", help="Last touched longer ago.")] = "90d",
    queue: Queue = None,
    state: States = None,
    dump: Annotated[str | None, typer.Option("--dump", metavar="FILE", help="Write them to this file first.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Delete old jobs: completed, failed, waiting and prioritized ones, unless --state says otherwise."""
    duration_of(max_age, "--max-age")
    states = states_of(state) or None
    async with opened() as session:
        await _one_of(session, queue)
        count = await session.admin.purge(max_age, states, queue=queue, dry_run=True)
        if not dry_run and count:
            confirm(f"Delete {some(count, 'job')} older than {max_age}{_of(queue)}?", yes=yes)
            labels = ["Deleting"] if dump is None else ["Writing", "Deleting"]
            with phases(labels, count) as tells:
                count = await session.admin.purge(
                    max_age, states, queue=queue, dump=dump, on_progress=tells[-1], on_written=tells[0]
                )
    if dump is not None and not dry_run and count:
        say(f"they are in {dump}")
    _tell("deleted", count, dry_run=dry_run)


async def requeue(
    from_age: Annotated[str, typer.Option("--from-age", metavar="30m", help="Started longer ago.")],
    queue: Queue = None,
    dry_run: DryRun = False,
) -> None:
    """Put back jobs that are active, but whose worker is gone; running workers do so by themselves."""
    duration_of(from_age, "--from-age")
    async with opened() as session:
        await _one_of(session, queue)
        count = await session.admin.requeue(from_age, queue=queue, dry_run=True)
        if not dry_run and count:
            with progress("Putting back", count) as advance:
                count = await session.admin.requeue(from_age, queue=queue, on_progress=advance)
    _tell("put back", count, dry_run=dry_run)


# --- parts -----------------------------------------------------------------------------------------------------------


async def _act(
    action: BulkAction,
    ids: Sequence[str] | None,
    queue: str | None,
    names: Sequence[str] | None,
    state: Sequence[str] | None,
    text: str,
    limit: int | None,
    *,
    yes: bool,
    dry_run: bool,
    reset: bool = False,
) -> None:
    """Name the jobs that are meant, ask, and do it in chunks; the answer adds up to what was named."""
    if ids and (names or state or text or limit):
        raise UsageError("give ids, or say which jobs with --queue, --name, --state and --filter; not both")
    if not ids and not (queue or names or state or text):
        raise UsageError(f"say which jobs: ids, or --queue, --name, --state or --filter; see: workers jobs {action} -h")
    states = states_of(state) or (_ALLOWED[action] if ids else _UNSAID[action])
    wrong = [one for one in states if one not in _ALLOWED[action]]
    if wrong:
        raise UsageError(f"--state {wrong[0]}: {action} takes jobs that are {', '.join(_ALLOWED[action])}")
    async with opened() as session:
        if ids:
            found = [(job.queue, job.id) for one in ids for job in [await find_job(session, one, queue)]]
        else:
            found = await _found(session, queue, states, text, names or (), limit)
        count = len(found)
        queues = ", ".join(dict.fromkeys(queue for queue, _ in found))
        if dry_run or not count:
            _tell(_DONE[action], count, dry_run=dry_run, more=f" of {queues}" if queues else "")
            return
        if not ids or action == "remove":
            confirm(f"{some(count, 'job')} of {queues} found. {action.capitalize()}?", yes=yes)
        done = await _in_chunks(session, action, found, reset=reset)
    skipped = count - done
    text = f"{done} {_DONE[action]}" + (f" · {skipped} skipped (their state does not allow it)" if skipped else "")
    result(text, {_DONE[action]: done, "skipped": skipped, "found": count, "dry_run": False})
    if ids and skipped:
        raise CommandFailedError(f"not all could be {_DONE[action]}: {action} takes jobs that are {', '.join(states)}")


async def _found(
    session: Session,
    queue: str | None,
    states: Sequence[JobState],
    text: str,
    names: Sequence[str],
    limit: int | None,
) -> list[tuple[str, str]]:
    wanted = filter_of(text, names)
    now = await session.now()
    found: list[tuple[str, str]] = []
    for name in await session.queues(queue):
        left = None if limit is None else limit - len(found)
        if left == 0:
            break
        jobs = find_jobs(session.inspector, name, states, wanted, now=now, limit=left)
        found += [(name, job.id) async for job in jobs]
    return found


async def _in_chunks(session: Session, action: BulkAction, found: Sequence[tuple[str, str]], *, reset: bool) -> int:
    by_queue: dict[str, list[str]] = {}
    for queue, id in found:
        by_queue.setdefault(queue, []).append(id)
    done = 0
    with progress(_DOING[action], len(found)) as advance:
        for queue, ids in by_queue.items():
            for start in range(0, len(ids), _CHUNK):
                part = ids[start : start + _CHUNK]
                done += len(await session.admin.act(action, queue, part, reset=reset))
                advance(len(part))
    return done


async def _one_of(session: Session, queue: str | None) -> None:
    """Refuse a queue that is not there."""
    if queue is not None:
        await session.queues(queue)


def _of(queue: str | None) -> str:
    return " of all queues" if queue is None else f" of {queue}"


def _tell(done: str, count: int, *, dry_run: bool, more: str = "") -> None:
    text = f"{some(count, 'job')}{more} {'would be ' if dry_run else ''}{done}"
    result(text, {done.replace(" ", "_"): 0 if dry_run else count, "found": count, "dry_run": dry_run})
