"""``workers cron``: look at schedules; run, pause and resume them."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from zoneinfo import ZoneInfo

import typer

from workers_module.cli.app import Face
from workers_module.cli.options import options
from workers_module.cli.output import Column, emit, fires, result, say, some, table, when
from workers_module.cli.session import Session, complete_schedule, known, opened
from workers_module.clock import span_ms
from workers_module.di.schedules import ScheduleInfo
from workers_module.job.state import JobState

face = Face("Look at schedules; run, pause and resume them.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.", autocompletion=complete_schedule)]


@face.command("list")
async def list_() -> None:
    """Show every schedule: when it fires, what became of its last job, and whose it is."""
    async with opened() as session:
        now = await session.now()
        found = [await _row(session, name, now) for name in await session.scheduler.names()]
    if options().json:
        emit(found)
        return
    heads = [
        Column("schedule", shrinks=True),
        Column("queue", shrinks=True),
        Column("when", shrinks=True),
        Column("next"),
        Column("last"),
        Column("owner"),
    ]
    rows = [[one["schedule"], one["queue"], one["when"], _next(one, now), one["last"], one["owner"]] for one in found]
    table(heads, rows, empty="no schedule is stored, and the application declares none")


@face.command("next")
async def next_(
    name: Name,
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1_000, help="How many.")] = 5,
) -> None:
    """Show when a schedule fires next, in its own time zone and in UTC."""
    async with opened(shared=False) as session:
        known("schedule", name, await session.scheduler.names())
        info = await session.scheduler.get(name)
        instants = await session.scheduler.next_run(name, count)
        now = await session.now()
    zone = ZoneInfo(info.tz or "UTC")
    found = [
        {"utc": one, "local": one.astimezone(zone).isoformat(timespec="seconds"), "note": note_of(one, before, zone)}
        for one, before in zip(instants, [None, *instants], strict=False)
    ]
    if options().json:
        emit(found)
        return
    rows = [
        [f"{one.astimezone(zone):%a %Y-%m-%d %H:%M:%S %Z}", f"{one:%H:%M:%S}Z", when(one, now), given["note"]]
        for one, given in zip(instants, found, strict=True)
    ]
    empty = f"{name} is paused" if info.is_paused else f"{name} does not fire any more"
    table([f"in {zone.key}", "utc", "from now", "note"], rows, empty=empty)


@face.command()
async def run(name: Name) -> None:
    """Add a job of a schedule now, beside its own times; also when it is paused."""
    async with opened() as session:
        known("schedule", name, await session.scheduler.names())
        handle = await session.scheduler.trigger(name)
    result(f"job {handle.id} of {handle.queue} added", {"schedule": name, "queue": handle.queue, "id": handle.id})


@face.command()
async def pause(name: Name) -> None:
    """Make no more jobs of a schedule, in any process, until it is resumed."""
    async with opened() as session:
        known("schedule", name, await session.scheduler.names())
        await session.scheduler.pause(name)
    result(f"{name} is paused; resume it with: workers cron resume {name}", {"schedule": name, "paused": True})


@face.command()
async def resume(name: Name) -> None:
    """Make jobs of a schedule again, from the next time on."""
    async with opened() as session:
        known("schedule", name, await session.scheduler.names())
        await session.scheduler.resume(name)
        info = await session.scheduler.get(name)
        now = await session.now()
    text = f"{name} fires again, next {when(info.next_run, now)}"
    result(text, {"schedule": name, "paused": False, "next": info.next_run})


@face.command()
async def sync() -> None:
    """Write the schedules that the application declares, and remove those it no longer does; workers do so at start."""
    async with opened(app=True, new=True) as session:
        before = {*await session.scheduler.names()}
        await session.scheduler.sync()
        after = await session.scheduler.names()
        stored = [name for name in after if (await session.scheduler.get(name)).is_stored]
    removed = sorted(before.difference(after))
    for name in removed:
        say(f"{name} is no longer declared and was removed")
    result(f"{some(len(stored), 'schedule')} stored", {"stored": stored, "removed": removed})


async def _row(session: Session, name: str, now: datetime) -> dict[str, Any]:
    info = await session.scheduler.get(name)
    return {
        "schedule": name,
        "queue": info.queue,
        "job": info.job_name,
        "when": fires(
            info.pattern,
            info.tz,
            None if info.every is None else span_ms(info.every),
            None if info.after is None else span_ms(info.after),
        ),
        "pattern": info.pattern,
        "every_ms": None if info.every is None else span_ms(info.every),
        "tz": info.tz,
        "next": info.next_run,
        "paused": info.is_paused,
        "last": await _last(session, info, now),
        "count": info.count,
        "owner": _owner(session, info),
        "stored": info.is_stored,
    }


def _next(one: dict[str, Any], now: datetime) -> str | None:
    if one["paused"]:
        return "paused"
    return when(one["next"], now) or ("when a worker starts" if not one["stored"] else None)


async def _last(session: Session, info: ScheduleInfo, now: datetime) -> str | None:
    """Return what became of the newest job of a schedule that has started, as far as it is kept."""
    states = (JobState.ACTIVE, JobState.COMPLETED, JobState.FAILED)
    newest = None
    for state in states:
        page = await session.inspector.page(info.queue, state, limit=100, newest_first=True)
        mine = next((job for job in page.items if job.schedule == info.name), None)
        if mine is not None and (newest is None or mine.created_at > newest.created_at):
            newest = mine
    if newest is None:
        return None
    match newest.state:
        case JobState.COMPLETED:
            return f"ok {when(newest.finished_at, now)}"
        case JobState.FAILED:
            return f"failed {when(newest.finished_at, now)}"
        case _:
            return f"runs since {when(newest.started_at, now)}"


def _owner(session: Session, info: ScheduleInfo) -> str:
    if info.is_declared:
        return "app"
    return (info.owner or "added") if not session.has_app or info.owner is None else f"{info.owner} (not declared here)"


def note_of(instant: datetime, before: datetime | None, zone: ZoneInfo) -> str:
    """Return what daylight saving does to a time, for people who wonder about it."""
    local = instant.astimezone(zone)
    notes: list[str] = []
    if before is not None:
        moved = (local.utcoffset() or _NO) - (before.astimezone(zone).utcoffset() or _NO)
        if moved:
            notes.append(f"clocks go {'forward' if moved > _NO else 'back'} before it")
    other = local.replace(fold=1 - local.fold)
    if other.utcoffset() != local.utcoffset() and other.astimezone(UTC) != instant and _exists(local):
        notes.append("this local time comes twice" + ("; the first one" if not local.fold else "; the second one"))
    return "; ".join(notes)


_NO: Final = timedelta()


def _exists(local: datetime) -> bool:
    return local.astimezone(UTC).astimezone(local.tzinfo).replace(tzinfo=None) == local.replace(tzinfo=None)
