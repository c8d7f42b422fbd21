"""``workers doctor``: looks for trouble in the store, and names a remedy for each finding."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from workers_module.cli.app import Face
from workers_module.cli.failures import FoundError
from workers_module.cli.options import options
from workers_module.cli.output import clean, console, emit, progress, result, some, span, when
from workers_module.cli.selecting import Queue
from workers_module.cli.session import Session, opened
from workers_module.client.queue import JobCounts
from workers_module.clock import Clock, to_datetime
from workers_module.job.state import READY, JobState
from workers_module.store.values import WorkerInfo

face = Face(single=True)

Level = Literal["ok", "warn", "fail"]
_WORDS: Final[Mapping[Level, str]] = {"warn": "warning", "fail": "failure"}
_LEVEL_STYLES: Final[Mapping[Level, str]] = {"ok": "green", "warn": "yellow", "fail": "red"}
SKEW_WARN_MS: Final = 2_000
LATE: Final = timedelta(minutes=2)
_LOOKED_AT: Final = 1_000
_SAMPLE: Final = 50
_SHOWN: Final = 5


class Finding(NamedTuple):
    """What was found, and what to do about it; the remedy is empty where there is nothing to do."""

    level: Level
    text: str
    remedy: str = ""


@face.command("doctor")
async def doctor(
    queue: Queue = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the check of every job's data.")] = False,
) -> None:
    """Look for trouble in the store, each finding with its remedy: exit code 5 if there is any."""
    async with opened() as session:
        findings = [one async for one in _store(session)]
        workers = await session.inspector.workers()
        queues = await session.queues(queue)
        with progress("Looking", len(queues), stays=False) as advance:
            for name in queues:
                findings += [one async for one in _queue(session, name, workers, quick=quick)]
                advance(1)
        findings += [one async for one in _schedules(session)]
    counts = Counter(one.level for one in findings)
    if options().json:
        emit([one._asdict() for one in findings])
    else:
        _print(findings)
        told = [some(counts[level], word) for level, word in _WORDS.items() if counts[level]]
        result(", ".join(told) or "all is well", None)
    if counts["warn"] or counts["fail"]:
        raise FoundError("")


def _print(findings: Sequence[Finding]) -> None:
    out = console()
    for one in findings:
        if not out.is_terminal:
            result(f"{one.level:<5} {one.text}" + (f"\n      → {one.remedy}" if one.remedy else ""), None)
            continue
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=5)
        line.add_row(Text(one.level, style=_LEVEL_STYLES[one.level]), Text(clean(one.text)))
        out.print(line)
        if one.remedy:
            # Mostly a command, which is to be copied in one piece.
            out.print(f"      → {clean(one.remedy)}", soft_wrap=True)


async def _store(session: Session) -> AsyncIterator[Finding]:
    begun = time.monotonic()
    theirs = await session.store.now()
    took_ms = (time.monotonic() - begun) * 1_000
    skew = abs(theirs + round(took_ms / 2) - Clock().now_ms())
    info = session.info
    yield Finding("ok", f"{info.place}: {info.kind} {info.version}, answers in {took_ms:.1f} ms")
    if skew > SKEW_WARN_MS:
        yield Finding(
            "warn", f"its clock and ours differ by {span(skew)}", "set both by NTP; due times follow the store's"
        )
    for warning in info.warnings:
        yield Finding("warn", warning, "see the chapter on stores, or change the server's settings")


async def _queue(session: Session, queue: str, workers: Sequence[WorkerInfo], *, quick: bool) -> AsyncIterator[Finding]:
    counts = await session.inspector.counts(queue)
    theirs = [worker for worker in workers if queue in worker.queues]
    ready = counts.waiting + counts.prioritized
    begin = f"queue {queue}:"
    yield Finding("ok", f"{begin} {await _size(session, queue, counts)}, {some(len(theirs), 'worker process')}")
    if (await session.inspector.settings(queue)).paused:
        yield Finding("warn", f"{begin} is paused, {some(ready, 'job')} held back", f"workers queues resume {queue}")
    elif ready and not theirs:
        yield Finding("warn", f"{begin} {some(ready, 'job')} to do, and no worker", "workers start --worker")
    async for finding in _abandoned(session, queue, {worker.id for worker in workers}):
        yield finding
    async for finding in _unknown(session, queue):
        yield finding
    if not quick:
        problems = await session.inspector.verify(queue)
        for problem in problems[:_SHOWN]:
            where = "" if problem.job_id is None else f" job {problem.job_id}:"
            yield Finding(
                "fail", f"{begin}{where} {problem.text} ({problem.invariant})", _remedy(queue, problem.invariant)
            )
        if len(problems) > _SHOWN:
            yield Finding(
                "fail", f"{begin} {len(problems) - _SHOWN} further contradictions in its data", "doctor --json"
            )


def _remedy(queue: str, invariant: str) -> str:
    if invariant == "I2":
        return f"recovered within two sweeps while a worker runs, else: workers queues sweep {queue}"
    return f"keep a copy (workers jobs dump --queue {queue} --folder DIR), then report it"


async def _size(session: Session, queue: str, counts: JobCounts) -> str:
    page = await session.inspector.page(queue, tuple(JobState), limit=_SAMPLE)
    total = page.total
    sizes = [
        sum(len(part) for part in (record.data, record.opts, record.result or b"", record.trace or b""))
        for record in (job.record for job in page.items)
    ]
    if not sizes:
        return "no jobs"
    size = sum(sizes) / len(sizes) * total
    failed = f", {counts.failed} of them failed" if counts.failed else ""
    return f"{some(total, 'job')}{failed}, about {_bytes(size)} of data"


def _bytes(size: float) -> str:
    if size < 1_024:
        return f"{size:.0f} bytes"
    return f"{size / 1_024:,.1f} KiB" if size < 1_048_576 else f"{size / 1_048_576:,.1f} MiB"


async def _abandoned(session: Session, queue: str, alive: set[str]) -> AsyncIterator[Finding]:
    page = await session.inspector.page(queue, JobState.ACTIVE, limit=_LOOKED_AT)
    gone = [job for job in page.items if job.record.worker is not None and job.record.worker not in alive]
    if gone:
        oldest = min(job.started_at or job.created_at for job in gone)
        yield Finding(
            "warn",
            f"queue {queue}: {some(len(gone), 'job')} active without a live worker, the oldest since "
            f"{when(oldest, await session.now())}",
            f"recovered within two sweeps while a worker runs, else: workers queues sweep {queue}",
        )


async def _unknown(session: Session, queue: str) -> AsyncIterator[Finding]:
    """Find jobs that no handler of the application takes; without one nothing can be said."""
    if not session.has_app or queue not in session.registry.queues:
        return
    page = await session.inspector.page(queue, (*READY, JobState.DELAYED), limit=_LOOKED_AT)
    names = Counter(job.name for job in page.items if session.registry.handler_for(queue, job.name) is None)
    for name, count in names.most_common(_SHOWN):
        yield Finding(
            "fail",
            f"queue {queue}: {some(count, 'job')} without a handler ({name!r})",
            f"deploy one, or: workers jobs remove --queue {queue} --name {name}",
        )


async def _schedules(session: Session) -> AsyncIterator[Finding]:
    now = await session.now()
    for record in await session.inspector.schedules():
        slot = to_datetime(record.slot)
        if not record.paused and _is_late(slot, now) and record.job_state in {None, JobState.DELAYED}:
            yield Finding(
                "warn",
                f"schedule {record.id} of {record.queue} should have fired {when(slot, now)}",
                "workers start --worker (a schedule ticks where its worker runs)",
            )


def _is_late(slot: datetime, now: datetime) -> bool:
    return now - slot > LATE
