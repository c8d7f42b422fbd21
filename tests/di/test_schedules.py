"""`Scheduler`: schedules looked at, triggered, paused, added and deleted while the application runs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dishka import AsyncContainer
from pydantic import BaseModel, ValidationError

from tests.di.conftest import Build
from workers_module.clock import FrozenClock
from workers_module.di.decorators import cron, interval, job, timeout
from workers_module.di.schedules import Scheduler
from workers_module.errors import InvalidNameError, ScheduleError, UnknownJobError
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.chain import rules_of


class Args(BaseModel):
    kind: str


@job()
@cron("0 9 * * *", name="daily", data=Args(kind="daily"))
async def report(data: Args) -> str:
    return data.kind


class Ticker:
    @interval("10m", name="often")
    async def often(self) -> None: ...

    @cron("* * * * *", name="local", every_instance=True)
    async def local(self) -> None: ...

    @timeout("5s", name="once")
    async def once(self) -> None: ...

    @cron("0 0 * * *", name="off", disabled=True)
    async def off(self) -> None: ...


START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def container(build: Build) -> AsyncContainer:
    return build(report, Ticker)


@pytest.fixture
async def scheduler(container: AsyncContainer) -> Scheduler:
    found: Scheduler = await container.get(Scheduler)
    return found


@pytest.fixture
async def store(container: AsyncContainer) -> Store:
    found: Store = await container.get(Store)
    return found


async def pending(store: Store, queue: str) -> list[tuple[str, str, datetime | None]]:
    page = await store.page(queue, [JobState.DELAYED])
    return [
        (one.name, one.schedule or "", None if one.due is None else datetime.fromtimestamp(one.due / 1000, UTC))
        for one in page.items
    ]


async def test_names_are_those_declared_and_those_added(scheduler: Scheduler) -> None:
    assert await scheduler.names() == ["daily", "local", "off", "often", "once"]

    await scheduler.add_cron("hourly", report, "@hourly", data=Args(kind="hourly"))

    assert await scheduler.names() == ["daily", "hourly", "local", "off", "often", "once"]


async def test_sync_writes_what_is_declared(scheduler: Scheduler, store: Store) -> None:
    await scheduler.sync()
    await scheduler.sync()

    assert await pending(store, "default") == [("report", "daily", START + timedelta(hours=9))]
    assert await pending(store, "cron.ticker") == [("often", "often", START + timedelta(minutes=10))]


async def test_sync_removes_what_this_application_no_longer_declares(
    build: Build, store: Store, scheduler: Scheduler
) -> None:
    await scheduler.sync()
    await scheduler.add_cron("added", report, "@hourly", data=Args(kind="x"))
    later: Scheduler = await build(Ticker).get(Scheduler)
    later._store = store

    await later.sync()

    left = [one.id for one in await store.schedules("default")]
    assert left == ["added"]


async def test_what_is_known_before_and_after_the_first_start(scheduler: Scheduler) -> None:
    before = await scheduler.get("daily")
    await scheduler.sync()
    after = await scheduler.get("daily")

    assert (before.queue, before.job_name, before.pattern, before.tz) == ("default", "report", "0 9 * * *", "UTC")
    assert (before.is_declared, before.is_stored, before.is_paused, before.count) == (True, False, False, 0)
    assert before.next_run == after.next_run == START + timedelta(hours=9)
    assert (after.is_stored, after.count) == (True, 1)


async def test_what_is_known_of_the_other_kinds(scheduler: Scheduler) -> None:
    often, local, once, off = [await scheduler.get(name) for name in ("often", "local", "once", "off")]

    assert (often.every, often.pattern, often.tz) == (timedelta(minutes=10), None, None)
    assert (local.every_instance, local.next_run) == (True, START + timedelta(minutes=1))
    assert (once.after, once.next_run) == (timedelta(seconds=5), None)
    assert (off.is_paused, off.next_run) == (True, None)


async def test_an_unknown_name(scheduler: Scheduler) -> None:
    with pytest.raises(ScheduleError, match=r"^no schedule 'dayly'; did you mean 'daily'\?$"):
        await scheduler.get("dayly")
    with pytest.raises(ScheduleError, match=r"^no schedule 'zzz'; there are: daily, local, off, often, once$"):
        await scheduler.trigger("zzz")


async def test_the_next_runs(scheduler: Scheduler) -> None:
    await scheduler.sync()

    assert await scheduler.next_run("daily", 3) == [START + timedelta(days=n, hours=9) for n in range(3)]
    assert await scheduler.next_run("often", 2) == [START + timedelta(minutes=n) for n in (10, 20)]
    assert await scheduler.next_run("daily") == [START + timedelta(hours=9)]


async def test_trigger_adds_a_job_beside_the_schedule_s_own(scheduler: Scheduler, store: Store) -> None:
    await scheduler.sync()
    handle = await scheduler.trigger("daily")
    (record,) = await store.get("default", [handle.id])

    assert record is not None
    assert (record.name, record.state, record.data) == ("report", JobState.WAITING, b'{"kind":"daily"}')
    assert len(await pending(store, "default")) == 1


async def test_trigger_before_the_first_start(scheduler: Scheduler, store: Store) -> None:
    handle = await scheduler.trigger("often")
    (record,) = await store.get("cron.ticker", [handle.id])

    assert record is not None
    assert (record.name, record.data) == ("often", b"null")


async def test_a_pause_outlives_a_start(scheduler: Scheduler, store: Store) -> None:
    await scheduler.sync()
    await scheduler.pause("daily")
    await scheduler.pause("daily")
    await scheduler.sync()

    assert await pending(store, "default") == []
    assert (await scheduler.get("daily")).is_paused
    assert await scheduler.next_run("daily") == []


async def test_a_pause_before_the_first_start(scheduler: Scheduler, store: Store) -> None:
    await scheduler.pause("daily")
    await scheduler.sync()

    assert await pending(store, "default") == []


async def test_resuming_goes_on_with_the_next_slot(
    container: AsyncContainer, scheduler: Scheduler, store: Store
) -> None:
    clock: FrozenClock = await container.get(FrozenClock)
    await scheduler.sync()
    await scheduler.pause("daily")
    clock.advance(timedelta(days=3))

    await scheduler.resume("daily")
    await scheduler.resume("daily")

    assert await pending(store, "default") == [("report", "daily", START + timedelta(days=3, hours=9))]


async def test_what_fires_past_the_store_cannot_be_paused(scheduler: Scheduler) -> None:
    for name in ("local", "once"):
        with pytest.raises(ScheduleError, match=f"schedule '{name}' is not kept in the store and cannot be paused"):
            await scheduler.pause(name)


async def test_what_is_declared_disabled_cannot_be_resumed(scheduler: Scheduler) -> None:
    with pytest.raises(ScheduleError, match=r"declared disabled=True"):
        await scheduler.resume("off")


async def test_adding_a_cron_at_run_time(scheduler: Scheduler, store: Store) -> None:
    info = await scheduler.add_cron("night", "report", "0 3 * * *", data={"kind": "night"}, tz="Europe/Riga")
    (record,) = await store.schedules("default", ids=["night"])

    assert (info.pattern, info.tz, info.is_declared, info.is_stored) == ("0 3 * * *", "Europe/Riga", False, True)
    assert info.next_run == START + timedelta(hours=1)
    assert (record.definition.data, rules_of(record.definition).owner) == (b'{"kind":"night"}', None)

    await scheduler.add_cron("night", report, "0 4 * * *", data=Args(kind="later"))

    assert (await scheduler.get("night")).next_run == START + timedelta(hours=4)
    assert len(await pending(store, "default")) == 1


async def test_a_cron_that_moves_to_another_handler_s_queue(build: Build) -> None:
    @job(queue="other")
    async def other(data: Any) -> None: ...

    container = build(report, other)
    scheduler: Scheduler = await container.get(Scheduler)
    store: Store = await container.get(Store)
    await scheduler.add_cron("x", report, "@daily", data=Args(kind="x"))
    await scheduler.add_cron("x", other, "@daily")

    assert await store.schedules("default") == []
    assert (await scheduler.get("x")).queue == "other"


async def test_what_cannot_be_added(scheduler: Scheduler, store: Store) -> None:
    with pytest.raises(ScheduleError, match=r"'61 \* \* \* \*' is not a cron expression"):
        await scheduler.add_cron("x", report, "61 * * * *", data=Args(kind="x"))
    with pytest.raises(ScheduleError, match=r"unknown time zone 'Mars/Olympus'"):
        await scheduler.add_cron("x", report, "@daily", data=Args(kind="x"), tz="Mars/Olympus")
    with pytest.raises(ValidationError):
        await scheduler.add_cron("x", report, "@daily")
    with pytest.raises(UnknownJobError):
        await scheduler.add_cron("x", "nope", "@daily")
    with pytest.raises(InvalidNameError):
        await scheduler.add_cron("x y", report, "@daily")
    with pytest.raises(ScheduleError, match=r"schedule 'daily' is declared at report; change it there, or pause it"):
        await scheduler.add_cron("daily", report, "@daily", data=Args(kind="x"))

    assert await store.queues() == []


async def test_deleting(scheduler: Scheduler, store: Store) -> None:
    await scheduler.add_cron("x", report, "@daily", data=Args(kind="x"))

    assert await scheduler.delete("x") is True
    assert await scheduler.delete("x") is False
    assert await pending(store, "default") == []
    with pytest.raises(ScheduleError, match=r"is declared at"):
        await scheduler.delete("daily")
