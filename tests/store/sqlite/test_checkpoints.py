"""The write-ahead log is moved into the file beside the writer, stays small, and loses nothing."""

import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.store.helpers import assert_sound, numbers, spec
from tests.store.sqlite.conftest import until, writer_of
from workers_module.store.sqlite import checkpoints
from workers_module.store.sqlite.connect import Connection
from workers_module.store.sqlite.store import SqliteStore

pytestmark = pytest.mark.sqlite

SCRIPT = Path(__file__).with_name("checkpoint_worker.py")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a handful of jobs be enough for a checkpoint."""
    monkeypatch.setattr(checkpoints, "EVERY", 20)
    monkeypatch.setattr(checkpoints, "RESTART", 80)
    monkeypatch.setattr(checkpoints, "HELD_UP", 160)
    monkeypatch.setattr(checkpoints, "READERS_MS", 1)


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def beginnings(path: Path) -> int:
    """Return how often the log has begun anew; its header counts that."""
    with log_of(path).open("rb") as file:
        return int.from_bytes(file.read(16)[12:], "big")


async def keep_adding(store: SqliteStore) -> None:
    while True:
        await store.add([spec(None, data=b"x" * 2_000)])


def jobs_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute("SELECT count(*) FROM wm_job").fetchone()[0]
        return number


async def test_the_log_stays_bounded_while_somebody_always_writes(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 50)
    monkeypatch.setattr(checkpoints, "RESTART", 200)
    before = beginnings(path)
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(keep_adding, store)
        await until(lambda: beginnings(path) >= before + 5)
        # Each commit wrote five pages at least.
        await until(lambda: log_of(path).stat().st_size < writer_of(store).transactions * 5 * 4_096 / 3)
        group.cancel_scope.cancel()
    await assert_sound(store)


async def test_no_commit_of_the_writer_checkpoints(store: SqliteStore, path: Path) -> None:
    for connection in (writer_of(store)._connection, Connection(path, "wm_", synchronous="full")):
        assert connection.raw.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    connection.close()


async def test_a_reader_that_holds_the_log_up_is_told_of_and_stops_nobody(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, checkpoints.__name__)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM wm_job").fetchone()
        async with anyio.create_task_group() as group:
            group.start_soon(keep_adding, store)
            await until(lambda: "keeps it from being moved" in caplog.text)
            sent = writer_of(store).transactions
            await until(lambda: writer_of(store).transactions > sent + 100)
            assert caplog.text.count("keeps it from being moved") == 1
            before = beginnings(path)
            reader.execute("COMMIT")
            await until(lambda: beginnings(path) > before and "is moved into the file again" in caplog.text)
            group.cancel_scope.cancel()


async def test_a_failing_checkpoint_is_told_of_and_stops_nobody(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, checkpoints.__name__)

    def broken(*_: object, **__: object) -> Connection:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "Connection", broken)
        for _ in range(100):
            await store.add([spec(None)])
        await until(lambda: "disk I/O error" in caplog.text)
        assert caplog.text.count("could not be moved") == 1
        assert str(log_of(path)) in caplog.text
    async with anyio.create_task_group() as group:
        group.start_soon(keep_adding, store)
        await until(lambda: "is moved into the file again" in caplog.text)
        group.cancel_scope.cancel()
    assert (await numbers(store))["waiting"] >= 100


async def test_closing_moves_a_long_log_though_others_have_the_file_open(
    store: SqliteStore, other: SqliteStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 1_000_000)
    for _ in range(50):
        await store.add([spec(None)])
    monkeypatch.setattr(checkpoints, "EVERY", 20)
    assert log_of(path).stat().st_size > 20 * 4_096
    await store.close()
    without_log = tmp_path / "copy.db"
    shutil.copy(path, without_log)
    assert jobs_in(without_log) == 50
    assert await numbers(other) == {"waiting": 50}


async def test_a_process_killed_in_the_middle_of_a_checkpoint_loses_nothing(path: Path, tmp_path: Path) -> None:
    hits = runs = 0
    accepted: set[str] = set()
    stored: set[str] = set()
    with anyio.fail_after(60):
        while hits < 3:
            runs += 1
            lines = await anyio.to_thread.run_sync(run_and_kill, path, tmp_path / f"{runs}.log", f"run{runs}")
            hits += lines.count("begin\n") > lines.count("end\n")
            accepted |= {line.split()[1] for line in lines if line.startswith("added ") and line.endswith("\n")}
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                stored = {id for (id,) in connection.execute("SELECT id FROM wm_job")}
            assert accepted <= stored
    store = SqliteStore(path)
    await store.open()
    await assert_sound(store)
    assert await numbers(store) == {"waiting": len(stored)}
    await store.close()


def run_and_kill(path: Path, log: Path, prefix: str) -> list[str]:
    """Let a process add and checkpoint for a moment, kill it, and return what it wrote down."""
    log.touch()
    with log.with_suffix(".err").open("wb") as errors:
        command = [sys.executable, str(SCRIPT), str(path), str(log), prefix]
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
    end = time.monotonic() + 30
    try:
        while log.read_bytes().count(b"\n") < 100:
            assert process.poll() is None, log.with_suffix(".err").read_text()
            assert time.monotonic() < end, "nothing is added"
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    return log.read_text().splitlines(keepends=True)
