"""`JobsAdmin`: upkeep in all queues, and dumps that a person may edit."""

import json
import os
import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tests.client.helpers import Kit, Q, everything
from workers_module.client.admin import JobsAdmin
from workers_module.clock import FrozenClock
from workers_module.errors import ConfigurationError, JobCancelledError, PayloadError, TooLargeError
from workers_module.job.kind import JobKind
from workers_module.job.options import Dedup, JobOptions
from workers_module.job.outcome import Failed
from workers_module.job.retry import Backoff
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.values import JobPatch, JobSpec


class Mail(BaseModel):
    to: str


def admin(kit: Kit) -> JobsAdmin:
    return JobsAdmin(kit.store, kit.producer)


async def states(kit: Kit) -> dict[str, int]:
    counts = await kit.queue.get_job_counts()
    return {name: number for name in counts.__dataclass_fields__ if (number := getattr(counts, name))}


async def all_kinds(kit: Kit) -> dict[str, str]:
    """Add a job in each state; the ids by state."""
    ids: dict[str, str] = {}
    ids["completed"] = (await kit.queue.add("done", {"n": 1}, attempts=2, backoff=Backoff.fixed("1s"))).id
    await kit.complete(b'{"ok":true}')
    ids["failed"] = (await kit.queue.add("broken", [1])).id
    await kit.fail(ValueError("bad"))
    ids["active"] = (await kit.queue.add("running", 1)).id
    await kit.claim()
    ids["waiting"] = (await kit.queue.add("next", {"text": "é\u2028"}, deduplication=Dedup.simple("k"))).id
    ids["prioritized"] = (await kit.queue.add("soon", None, priority=3, tags=["gpu"])).id
    ids["delayed"] = (await kit.queue.add("later", 1, delay="1h")).id
    await kit.store.edit(Q, [JobPatch(id=ids["failed"], log_lines=("line one", "line two"))])
    return ids


async def test_cancel_by_name_in_every_queue(any_kit: Kit) -> None:
    other = any_kit.producer
    await any_kit.queue.add_many([("a", 1), ("b", 1), ("a", 1, {"delay": "1h"}), ("a", 1, {"priority": 1})])
    await other.add("second", "a", 1)
    assert await admin(any_kit).cancel(["a", "nobody"]) == 4
    assert await states(any_kit) == {"failed": 3, "waiting": 1}
    assert await admin(any_kit).cancel("b", "second") == 0
    assert await admin(any_kit).cancel("b", Q) == 1
    assert await admin(any_kit).cancel([]) == 0


async def test_cancelled_jobs_say_so(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    await admin(any_kit).cancel("a")
    with pytest.raises(JobCancelledError):
        await handle.result()


async def test_cancel_asks_running_jobs_only_when_told(any_kit: Kit) -> None:
    handle = await any_kit.queue.add("a", 1)
    (claimed,) = await any_kit.claim()
    assert await admin(any_kit).cancel("a") == 0
    assert await admin(any_kit).cancel("a", running=True) == 1
    assert (await any_kit.store.renew(Q, [claimed.held], 1_000)).cancelled == (handle.id,)


async def test_tidy_deletes_what_is_completed_or_cancelled(any_kit: Kit) -> None:
    await any_kit.queue.add("a", 1)
    await any_kit.complete()
    await any_kit.queue.add("a", 1)
    await any_kit.fail(ValueError())
    await any_kit.queue.add_many([("b", 1), ("c", 1)])
    await admin(any_kit).cancel("b")
    assert await admin(any_kit).tidy() == 2
    assert await states(any_kit) == {"failed": 1, "waiting": 1}


async def test_purge_deletes_the_old(any_kit: Kit, clock: FrozenClock) -> None:
    await all_kinds(any_kit)
    clock.advance(timedelta(days=91))
    await any_kit.queue.add("new", 1)
    assert await admin(any_kit).purge() == 4
    assert await states(any_kit) == {"active": 1, "delayed": 1, "waiting": 1}
    assert await admin(any_kit).purge("1d", "delayed") == 1
    assert await admin(any_kit).purge("1d", [JobState.WAITING], queue="nowhere") == 0


async def test_purge_writes_what_it_deletes(any_kit: Kit, clock: FrozenClock) -> None:
    ids = await all_kinds(any_kit)
    clock.advance(timedelta(days=91))
    before = await any_kit.record(ids["failed"])
    assert await admin(any_kit).purge("90d", ["failed", "completed"], dump="old.json") == 2
    assert await states(any_kit) == {"active": 1, "waiting": 1, "prioritized": 1, "delayed": 1}
    report = await admin(any_kit).import_("old.json")
    assert (report.added, report.skipped, report.refused) == ({Q: 2}, 0, ())
    assert await any_kit.record(ids["failed"]) == before


async def test_purge_tells_of_what_it_writes_and_of_what_it_deletes(any_kit: Kit, clock: FrozenClock) -> None:
    await any_kit.queue.add_many([("a", 1)] * 3)
    clock.advance(timedelta(days=91))
    written: list[int] = []
    deleted: list[int] = []
    await admin(any_kit).purge(
        dump="old.json", on_written=written.append, on_progress=lambda n: deleted.append(len(written) * n)
    )
    # All were written before the first was deleted.
    assert (written, sum(deleted)) == ([1, 1, 1], 9)


async def test_purge_deletes_nothing_if_the_file_cannot_be_written(any_kit: Kit, clock: FrozenClock) -> None:
    await any_kit.queue.add("a", 1)
    await any_kit.complete()
    clock.advance(timedelta(days=91))
    with pytest.raises(ConfigurationError, match="cannot be written"):
        await admin(any_kit).purge(dump="nowhere/old.json")
    assert await states(any_kit) == {"completed": 1}


async def test_a_dump_brings_everything_back(any_kit: Kit, clock: FrozenClock, tmp_path: Path) -> None:
    ids = await all_kinds(any_kit)
    before = {state: await any_kit.record(id) for state, id in ids.items()}
    assert await admin(any_kit).dump("backup") == 6
    file = tmp_path / "backup" / f"{Q}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path / "backup")) == [f"{Q}.json"]
    fresh = Kit(MemoryStore(clock=clock))
    report = await admin(fresh).import_(file)
    assert (report.added, report.refused) == ({Q: 6}, ())
    for state, record in before.items():
        after = await fresh.record(record.id)
        if state == "active":
            assert after.state is JobState.WAITING
        else:
            assert after._replace(worker=None) == record._replace(worker=None)
    assert (await fresh.store.logs(Q, ids["failed"])).items == ["line one", "line two"]
    again = await admin(fresh).import_(file)
    assert (again.added, again.skipped) == ({}, 6)


async def test_a_dump_may_be_edited_by_hand(any_kit: Kit, tmp_path: Path) -> None:
    handle = await any_kit.queue.add("a", {"to": "adaexample.com"}, attempts=2)
    await any_kit.fail(ValueError("no address"))
    await admin(any_kit).dump("backup", "failed")
    await any_kit.queue.remove(handle.id)
    file = tmp_path / "backup" / f"{Q}.json"
    document = json.loads(file.read_text())
    document["jobs"][0]["data"]["to"] = "ada@example.com"
    document["jobs"][0]["state"] = "waiting"
    file.write_text(json.dumps(document, indent=4))
    with pytest.raises(ConfigurationError, match=r"checksum is wrong.*nothing was imported"):
        await admin(any_kit).import_(file)
    dry = await admin(any_kit).import_(file, dry_run=True, edited=True)
    assert dry.added == {Q: 1}
    assert (await any_kit.queue.get_job_counts()).waiting == 0
    await admin(any_kit).import_(file, edited=True)
    claimed = await any_kit.complete()
    assert (claimed.record.id, claimed.record.data) == (handle.id, b'{"to":"ada@example.com"}')


async def test_a_job_may_be_written_by_hand(any_kit: Kit, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    job = {"queue": Q, "id": "mine", "name": "a", "state": "waiting", "data": {"n": 2**70}, "priority": 2}
    file.write_text(json.dumps({"schema": "workers.jobs/v1", "jobs": [job]}))
    assert (await admin(any_kit).import_(file)).added == {Q: 1}
    record = await any_kit.record("mine")
    assert (record.state, record.data) == (JobState.PRIORITIZED, b'{"n":1180591620717411303424}')


async def test_one_job_out_of_order_keeps_all_out(any_store: Store, tmp_path: Path) -> None:
    kit = Kit(any_store, kinds=[JobKind(queue=Q, name="welcome", payload=Mail)])
    good = {"queue": Q, "id": "a", "name": "welcome", "state": "waiting", "data": {"to": "x"}}
    bad: list[tuple[Any, str]] = [
        ({**good, "id": "b", "data": {"email": "x"}}, "to"),
        ({**good, "id": "c", "state": "sleeping"}, "state"),
        ({**good, "id": "d", "attempts": -1}, "attempts"),
        ({**good, "id": "e", "colour": 1}, "colour"),
        ({**good, "id": ""}, "id"),
        ({**good, "id": "f", "created_at": "2026-01-01T00:00:00"}, "created_at"),
        ({**good, "id": "g", "raw": {"data": "!"}}, ""),
        (good, "twice"),
        ("job", ""),
    ]
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"schema": "workers.jobs/v1", "jobs": [good, *(job for job, _ in bad)]}))
    report = await admin(kit).import_(file)
    assert [refused.number for refused in report.refused] == list(range(1, len(bad) + 1))
    for refused, (_, word) in zip(report.refused, bad, strict=True):
        assert word in refused.why
    assert await everything(any_store) == {}
    ended = {**good, "id": "old", "state": "completed", "data": {"email": "x"}, "result": 5}
    file.write_text(json.dumps({"schema": "workers.jobs/v1", "jobs": [ended]}))
    assert (await admin(kit).import_(file)).added == {Q: 1}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "workers.jobs/v2", "jobs": []}',
        '{"schema": "workers.jobs/v1", "jobs": {}}',
        '{"schema": "workers.jobs/v1", "jobs": [{"queue": "mail", "id": "1", "name":',
        "\x00",
        "[" * 100_000,
        "PK\x03\x04",
    ],
)
async def test_files_that_are_not_ours_or_cut_off_are_refused(kit: Kit, tmp_path: Path, text: str) -> None:
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="nothing was imported"):
        await admin(kit).import_(file)
    assert await everything(kit.store) == {}


async def test_a_dump_that_is_cut_off_anywhere_is_refused(kit: Kit, clock: FrozenClock, tmp_path: Path) -> None:
    await all_kinds(kit)
    await admin(kit).dump("backup")
    whole = (tmp_path / "backup" / f"{Q}.json").read_bytes().rstrip()
    fresh = Kit(MemoryStore(clock=clock))
    file = tmp_path / "cut.json"
    for end in range(0, len(whole) - 1, 37):
        file.write_bytes(whole[:end])
        with pytest.raises(ConfigurationError):
            await admin(fresh).import_(file)
    assert await everything(fresh.store) == {}


async def test_bytes_that_are_no_text_are_refused(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigurationError):
        await admin(kit).import_("odd.json")


async def test_a_file_that_is_too_large_is_refused_unread(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * 2_000)
    with pytest.raises(TooLargeError, match=r"2,000 bytes.*1,000"):
        await admin(kit).import_("large.json", max_bytes=1_000)


async def test_what_is_no_file_is_refused(kit: Kit, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere.json", "."):
        with pytest.raises(ConfigurationError):
            await admin(kit).import_(name)


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/../out"])
async def test_paths_that_climb_are_refused(kit: Kit, name: str) -> None:
    for use in (admin(kit).dump(name), admin(kit).import_(name), admin(kit).purge(dump=name)):
        with pytest.raises(ConfigurationError, match=r"'\.\.' is not followed"):
            await use


async def test_links_are_not_followed(kit: Kit, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "there.json").write_text('{"schema": "workers.jobs/v1", "jobs": []}')
    (tmp_path / "link.json").symlink_to(outside / "there.json")
    (tmp_path / "links").symlink_to(outside)
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / f"{Q}.json").symlink_to(outside / "there.json")
    await kit.queue.add("a", 1)
    for use in (
        admin(kit).import_("link.json"),
        admin(kit).import_("links/there.json"),
        admin(kit).purge(dump="link.json"),
        admin(kit).purge(dump="links/new.json"),
        admin(kit).dump("links"),
        admin(kit).dump("backup"),
    ):
        with pytest.raises(ConfigurationError, match="link"):
            await use
    assert os.listdir(outside) == ["there.json"]


async def test_a_queue_name_from_elsewhere_stays_in_the_folder(kit: Kit, tmp_path: Path) -> None:
    for queue in ("../../evil", "/etc/evil", "..", "a b", "é"):
        await kit.store.add([JobSpec(queue=queue, name="a", data=b"1")])
    assert await admin(kit).dump("backup") == 5
    assert len(os.listdir(tmp_path / "backup")) == 5
    assert os.listdir(tmp_path) == ["backup"]
    fresh = Kit(MemoryStore())
    for name in os.listdir(tmp_path / "backup"):
        assert (await admin(fresh).import_(tmp_path / "backup" / name)).refused == ()
    assert await fresh.store.queues() == await kit.store.queues()


async def test_what_others_stored_comes_back_byte_for_byte(kit: Kit, tmp_path: Path) -> None:
    await kit.store.add([JobSpec(queue=Q, name="a", data=b'{"a', id="cut")])
    (claimed,) = await kit.claim()
    await kit.settle(claimed, Failed("unreadable"))
    await kit.store.add([JobSpec(queue=Q, name="b", data=b'"\\ud800"', opts=b'{"tm":"x"}', id="repeat:x:1")])
    await admin(kit).dump("backup")
    fresh = Kit(MemoryStore())
    assert (await admin(fresh).import_(tmp_path / "backup" / f"{Q}.json")).refused == ()
    assert (await fresh.record("cut")).data == b'{"a'
    record = await fresh.record("repeat:x:1")
    assert (json.loads(record.data), record.opts) == ("\ud800", b'{"tm":"x"}')


async def test_a_waiting_job_that_is_no_json_is_refused(kit: Kit, tmp_path: Path) -> None:
    await kit.store.add([JobSpec(queue=Q, name="a", data=b'{"a', id="cut")])
    await admin(kit).dump("backup")
    report = await admin(Kit(MemoryStore())).import_(tmp_path / "backup" / f"{Q}.json", dry_run=True)
    assert [refused.why for refused in report.refused] == ["stored data of 3 bytes is not JSON"]


async def test_an_unfinished_dump_leaves_no_file(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await kit.queue.add("a", 1)

    async def broken(queue: str, id: str, **options: Any) -> Any:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(kit.store, "logs", broken)
    with pytest.raises(RuntimeError):
        await admin(kit).dump("backup")
    assert os.listdir(tmp_path / "backup") == []


@pytest.mark.parametrize("state", ["done", ["waiting", "x"], ""])
async def test_unknown_states_are_refused(kit: Kit, state: Any) -> None:
    for use in (admin(kit).purge("1d", state), admin(kit).dump("backup", state)):
        with pytest.raises(ConfigurationError, match="known: waiting"):
            await use


async def test_unknown_formats_are_refused(kit: Kit) -> None:
    with pytest.raises(ConfigurationError, match="known: json"):
        await admin(kit).dump("backup", format="pickle")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_requeue_puts_back_what_nobody_runs(
    any_kit: Kit, clock: FrozenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pass_time(seconds: float) -> None:
        clock.advance(timedelta(seconds=seconds))

    monkeypatch.setattr("workers_module.client.admin.anyio.sleep", pass_time)
    handle = await any_kit.queue.add("a", 1)
    await any_kit.claim()
    assert await admin(any_kit).requeue("30m") == 0
    clock.advance(timedelta(minutes=31))
    assert await admin(any_kit).requeue("1h") == 0
    assert await admin(any_kit).requeue("30m") == 1
    assert await handle.state() is JobState.WAITING
    assert (await any_kit.record(handle.id)).crashes == 1


async def test_every_state_is_dumped_once(any_kit: Kit, tmp_path: Path) -> None:
    await any_kit.queue.add_many([("a", number) for number in range(1_234)])
    assert await admin(any_kit).dump("backup") == 1_234
    document = json.loads((tmp_path / "backup" / f"{Q}.json").read_text())
    assert [job["data"] for job in document["jobs"]] == list(range(1_234))
    assert len(ALL_STATES) == 7


async def test_act_does_it_to_those_it_can_be_done_to(any_kit: Kit) -> None:
    late = await any_kit.queue.add("a", 1, delay="1h")
    ready = await any_kit.queue.add("a", 2)
    tool = admin(any_kit)
    assert await tool.act("promote", Q, [ready.id]) == []
    assert await tool.act("promote", Q, [late.id, ready.id, "gone"]) == [late.id]
    assert await tool.act("retry", Q, ["gone"]) == []
    assert await tool.act("remove", Q, []) == []
    assert sorted(await tool.act("remove", Q, [late.id, ready.id])) == sorted([late.id, ready.id])


async def test_check_refuses_what_add_would_and_stores_nothing(kit: Kit) -> None:
    tool = admin(kit)
    tool.check(Q, "a", {"n": 1}, {"attempts": 3})
    refused: list[tuple[str, str, object, JobOptions]] = [
        ("a b", "a", 1, {}),
        (Q, "a b", 1, {}),
        (Q, "a", float("nan"), {}),
        (Q, "a", 1, {"attempts": -1}),
    ]
    for queue, name, data, options in refused:
        with pytest.raises((ConfigurationError, PayloadError)):
            tool.check(queue, name, data, options)
    assert await kit.store.queues() == []


async def test_dry_runs_count_and_change_nothing(any_kit: Kit, clock: FrozenClock, tmp_path: Path) -> None:
    tool = admin(any_kit)
    for number in range(3):
        await any_kit.queue.add("a", number)
    await any_kit.complete()
    await any_kit.claim()
    clock.advance(timedelta(hours=2))
    assert await tool.cancel("a", dry_run=True) == 1
    assert await tool.cancel("a", running=True, dry_run=True) == 2
    assert await tool.tidy(dry_run=True) == 1
    assert await tool.purge("1h", dry_run=True, dump="not-written.json") == 2
    assert await tool.requeue("1h", dry_run=True) == 1
    counts = await any_kit.queue.get_job_counts()
    assert (counts.waiting, counts.active, counts.completed) == (1, 1, 1)
    assert not (tmp_path / "not-written.json").exists()


async def test_a_lock_is_taken_from_its_holder_and_from_nobody_else(any_kit: Kit) -> None:
    await any_kit.store.lease("prices", "one", 60_000)
    (lock,) = await any_kit.store.locks()
    assert await admin(any_kit).release_lock(lock)
    await any_kit.store.lease("prices", "two", 60_000)
    assert not await admin(any_kit).release_lock(lock)
    assert [held.owner for held in await any_kit.store.locks()] == ["two"]
