"""``workers jobs``: look at jobs, add them, and follow what happens to them. `bulk` and `files` have the rest."""

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
import typer

from workers_module.cli import bulk, files
from workers_module.cli.app import Face
from workers_module.cli.failures import CommandFailedError, FoundError, UsageError
from workers_module.cli.options import options
from workers_module.cli.output import Column, clean, emit, emit_line, result, say, some, span, table, when
from workers_module.cli.selecting import Filter, Queue, States, document, filter_of, find_job, states_of
from workers_module.cli.session import Session, complete_queue, opened
from workers_module.client.handle import JobHandle
from workers_module.client.search import find_jobs
from workers_module.errors import ConfigurationError, JobFailedError, ResultTimeoutError
from workers_module.job.events import Event, EventType
from workers_module.job.job import Job
from workers_module.job.options import JobOptions
from workers_module.job.state import ALL_STATES, JobState

face = Face("Look at jobs; add, retry, remove, cancel, dump and import them.")

_ENDS: Final = frozenset({EventType.COMPLETED, EventType.FAILED})


@face.command("list")
async def list_(
    queue: Queue = None,
    state: States = None,
    filter: Filter = "",  # noqa: A002 - the option's name
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, of each queue the newest.")] = 50,
    fail_if_any: Annotated[bool, typer.Option("--fail-if-any", help="Exit with 5 if there are any.")] = False,
) -> None:
    """Show jobs, the newest first."""
    states, wanted = states_of(state) or ALL_STATES, filter_of(filter)
    found: list[Job[Any]] = []
    async with opened() as session:
        now = await session.now()
        for name in await session.queues(queue):
            left = limit - len(found)
            if left <= 0:
                break
            jobs = find_jobs(session.inspector, name, states, wanted, now=now, limit=left, newest_first=True)
            found += [job async for job in jobs]
    if options().json:
        emit([document(job) for job in found])
    else:
        heads = [
            Column("id", shrinks=True, keeps="end"),
            Column("queue"),
            Column("name", shrinks=True),
            Column("state"),
            Column("attempts", right=True),
            Column("added"),
            Column("about", shrinks=True),
        ]
        table(heads, [_row(job, now) for job in found], empty="no job is like that")
        if len(found) == limit:
            say(f"the first {limit}; there may be more: --limit {limit * 10}")
    if fail_if_any and found:
        raise FoundError(f"{len(found)} jobs")


@face.command()
async def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="The job, also as QUEUE/ID.")],
    queue: Queue = None,
    logs: Annotated[bool, typer.Option("--logs", help="Also its log.")] = False,
    attempts: Annotated[bool, typer.Option("--attempts", help="Also the traceback of each failed attempt.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="As it is stored, in BullMQ's words.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Its log and events, until it ends.")] = False,
) -> None:
    """Show one job."""
    async with opened() as session:
        job = await find_job(session, id, queue)
        if follow:
            await _follow(session, job)
            return
        lines = await session.inspector.logs(job.queue, job.id) if logs or options().json else []
        now = await session.now()
    if raw:
        emit({**job.record._asdict(), "data": job.data})
    elif options().json:
        emit({**document(job), "traces": list(job.traces), "logs": lines})
    else:
        _print_job(job, now, lines=lines if logs else None, attempts=attempts)


@face.command()
async def add(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="The queue.", autocompletion=complete_queue)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The job's name.")],
    data: Annotated[str, typer.Argument(metavar="JSON|@FILE|-", help="The payload; - reads it from input.")] = "null",
    delay: Annotated[str | None, typer.Option("--delay", metavar="5m", help="Not before this time.")] = None,
    priority: Annotated[int, typer.Option("--priority", min=0, help="1 goes first; 0 for none.")] = 0,
    attempts: Annotated[int | None, typer.Option("--attempts", min=1, help="How often it may run.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="For workers with this tag; repeatable.")] = None,
    job_id: Annotated[str | None, typer.Option("--id", help="Its id; one that exists is left as it is.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its result, and print it.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="30s", help="How long to wait.")] = "30s",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the payload and the options.")] = False,
) -> None:
    """Add a job. With the application its payload is checked; new queues are made."""
    payload = _payload(data)
    given = JobOptions()
    for key, value in (
        ("delay", delay),
        ("priority", priority or None),
        ("attempts", attempts),
        ("tags", tag),
        ("job_id", job_id),
    ):
        if value is not None:
            given[key] = value  # type: ignore[literal-required]
    async with opened(new=not dry_run) as session:
        if doubt := _doubt(session, await session.queues(), queue, name):
            say(f"note: {doubt}")
        if dry_run:
            session.admin.check(queue, name, payload, given)
            result(f"{name} could be added to {queue}", {"queue": queue, "name": name, "dry_run": True})
            return
        target = await session.queue(queue, new=True)
        try:
            handle = await target.add(name, payload, **given)
        except ConfigurationError as error:
            raise UsageError(str(error)) from None
        told = {"queue": queue, "name": name, "id": handle.id, "existing": handle.deduplicated}
        if not wait:
            was = "was there already as" if handle.deduplicated else "added as"
            result(f"{name} {was} job {handle.id} of {queue}", told)
            return
        say(f"job {handle.id} added; waiting for its result")
        value = await _result(handle, timeout)
    if options().json:
        emit({**told, "result": value})
    else:
        result(json.dumps(value, ensure_ascii=False), None)


@face.command()
async def watch(
    queue: Queue = None,
    event: Annotated[list[str] | None, typer.Option("--event", help="Only these, e.g. failed; repeatable.")] = None,
) -> None:
    """Show what happens to jobs, as it happens, until Ctrl-C."""
    kinds = {one.value for one in EventType}
    for one in event or ():
        if one not in kinds:
            raise UsageError(f"--event {one!r}: there are {', '.join(sorted(kinds))}")
    async with opened() as session, anyio.create_task_group() as group:
        names = await session.queues(queue)
        if not names:
            raise UsageError("there is no queue yet; add a job first")
        say(f"watching {', '.join(names)}; Ctrl-C ends it")
        for name in names:
            group.start_soon(_watch, session, name, frozenset(event or ()))


# Help lists commands in this order.
for command in (bulk.retry, bulk.promote, bulk.remove, bulk.cancel, bulk.tidy, bulk.purge, bulk.requeue, files.dump):
    face.command()(command)
face.command("import")(files.import_)


async def _watch(session: Session, queue: str, kinds: frozenset[str]) -> None:
    async with session.inspector.events(queue) as batches:
        async for batch in batches:
            for event in batch.events:
                if not kinds or event.type in kinds:
                    _print_event(queue, event)


def _print_event(queue: str, event: Event) -> None:
    if options().json:
        emit_line({"queue": queue, "event": event.type, "id": event.job_id, **event.fields})
        return
    about = event.fields.get("failedReason") or event.fields.get("returnvalue") or event.fields.get("data") or ""
    # One line an event: what is longer is seen with `jobs show`.
    result(clean(f"{queue:<12} {event.type:<17} {event.job_id or '':<20} {about[:200]}").rstrip(), None)


async def _follow(session: Session, job: Job[Any]) -> None:
    """Print the log of a job as it grows, and what happens to it, until it ends."""
    printed = 0
    async with session.inspector.events(job.queue) as batches:
        # Whatever happens from here on is heard of, so the state read now is the last one missed.
        printed = await _print_log(session, job, printed)
        current = await find_job(session, job.id, job.queue)
        if not current.state.ended:
            say(f"following job {job.id} of {job.queue}, which is {current.state.value}; Ctrl-C ends it")
            async with anyio.create_task_group() as group:
                group.start_soon(_keep_printing, session, job, printed)
                async for batch in batches:
                    mine = [event for event in batch.events if event.job_id == job.id]
                    for event in mine:
                        _print_event(job.queue, event)
                    if any(event.type in _ENDS for event in mine):
                        current = await find_job(session, job.id, job.queue)
                        if current.state.ended:
                            break
                group.cancel_scope.cancel()
    if options().json:
        emit_line(document(current))
        return
    say(f"job {job.id} of {job.queue} is {_state(current)}")
    if current.state is JobState.FAILED:
        raise CommandFailedError(f"job {job.id} failed: {current.error}")


async def _keep_printing(session: Session, job: Job[Any], printed: int) -> None:
    try:
        while True:
            await anyio.sleep(0.5)
            printed = await _print_log(session, job, printed)
    finally:
        with anyio.CancelScope(shield=True):
            await _print_log(session, job, printed)


async def _print_log(session: Session, job: Job[Any], printed: int) -> int:
    lines = await session.inspector.logs(job.queue, job.id, start=printed)
    for line in lines:
        if options().json:
            emit_line({"queue": job.queue, "id": job.id, "log": line})
        else:
            result(f"{job.queue:<12} {'log':<17} {line}", None)
    return printed + len(lines)


# --- parts ------------------------------------------------------------------------------------------------------------


def _doubt(session: Session, queues: Sequence[str], queue: str, name: str) -> str:
    """Return what looks mistyped; it is no error, because another service may take the job."""
    if queue not in queues:
        close = get_close_matches(queue, queues, n=1)
        return f"{queue} is a new queue; did you mean {close[0]!r}?" if close else ""
    if queue not in session.registry.queues or session.registry.handler_for(queue, name) is not None:
        return ""
    names = [one.kind.name for one in session.registry.handlers if one.kind.queue == queue and one.kind.name]
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(names)}"
    return f"the application has no handler for {name!r} in {queue}; {hint}"


def _row(job: Job[Any], now: datetime) -> list[object]:
    about = {
        JobState.FAILED: job.error,
        JobState.DELAYED: f"due {when(job.run_at, now)}",
        JobState.ACTIVE: f"runs since {when(job.started_at, now)}",
        JobState.COMPLETED: "took " + _took(job),
    }.get(job.state)
    first = (about or "").partition("\n")[0]
    attempts = f"{job.record.attempts_made}/{job.attempts}"
    return [job.id, job.queue, job.name, _state(job), attempts, when(job.created_at, now), first]


def _state(job: Job[Any]) -> str:
    """Return what people call the state; BullMQ has no word of its own for a job that was cancelled."""
    return "cancelled" if job.cancelled else job.state.value


def _took(job: Job[Any]) -> str:
    if job.started_at is None or job.finished_at is None:
        return "-"
    return span((job.finished_at - job.started_at).total_seconds() * 1_000)


def _print_job(job: Job[Any], now: datetime, *, lines: Sequence[str] | None, attempts: bool) -> None:
    def at(instant: datetime | None) -> str | None:
        return None if instant is None else f"{instant:%Y-%m-%d %H:%M:%S}Z  {when(instant, now)}"

    record = job.record
    facts: list[tuple[str, object]] = [
        ("job", f"{job.id} of {job.queue}"),
        ("name", job.name),
        ("state", _state(job)),
        ("attempts", f"{record.attempts_made} of {job.attempts}" + _crashes(record.crashes)),
        ("priority", job.priority or None),
        ("tags", ", ".join(job.tags)),
        ("added", at(job.created_at)),
        ("due", at(job.run_at)),
        ("started", at(job.started_at)),
        ("ended", at(job.finished_at)),
        ("worker", record.worker),
        ("schedule", job.schedule),
        ("parent", None if job.parent is None else f"{job.parent.queue}/{job.parent.id}"),
        ("progress", json.dumps(job.progress) if record.progress is not None else None),
        ("data", json.dumps(job.data, ensure_ascii=False)),
        ("result", json.dumps(job.return_value, ensure_ascii=False) if record.result is not None else None),
        ("error", job.error),
    ]
    for key, value in facts:
        if value not in {None, ""}:
            result(f"{key:<10}{clean(str(value))}", None)
    if attempts:
        for number, trace in enumerate(job.traces, 1):
            result(f"\nfailure {number}\n{clean(trace, keep=chr(10))}", None)
    if lines is not None:
        result(f"\nlog, {some(len(lines), 'line')}", None)
        for line in lines:
            result(clean(line, keep="\n"), None)


def _crashes(count: int) -> str:
    return f", {some(count, 'worker')} lost" if count else ""


def _payload(text: str) -> Any:
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{text[1:]}: cannot be read: {error}") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        raise UsageError(f"the payload {shown!r} is not JSON: {error}; quote it: '{{\"a\": 1}}'") from None


async def _result(handle: JobHandle[Any], timeout: str) -> Any:
    try:
        return await handle.result(timeout)
    except ResultTimeoutError:
        raise CommandFailedError(
            f"job {handle.id} has not ended within {timeout}; it goes on: workers jobs show {handle.id} --follow"
        ) from None
    except JobFailedError as error:
        raise CommandFailedError(str(error)) from None
