"""The other nouns: queues, stats, cron, workers, locks, check, doctor, config, migrations, shell."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import anyio
import pytest

from tests.cli.conftest import HERE, Cli, work
from tests.cli.processes import running
from workers_module.cli.cron import note_of
from workers_module.cli.session import complete_queue, complete_schedule, complete_worker
from workers_module.cli.stats import COLUMNS
from workers_module.store.open import open_store

WORDS = "name queue active completed delayed failed paused waiting waiting-children"


class TestStats:
    def test_has_the_nine_columns_in_their_order(self, ended: Cli) -> None:
        lines = ended.ok("stats").splitlines()

        assert tuple(lines[0].split()) == COLUMNS
        assert lines[0].split() == WORDS.split()
        assert ["MailProcessor", "mail", "0", "5", "0", "3", "0", "0", "0"] in [line.split() for line in lines]

    def test_ready_jobs_of_a_paused_queue_are_paused(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"})
        cli.ok("queues pause mail")

        row = next(row for row in cli("stats --json --wide").json if row["queue"] == "mail")

        assert (row["paused"], row["waiting"], row["prioritized"], row["schedulers"]) == (1, 0, 0, 0)

    def test_without_the_application_rows_are_queues(self, ended: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WORKERS_APP")

        assert [(row["name"], row["queue"], row["failed"]) for row in ended("stats --json").json if row["failed"]] == [
            (None, "mail", 3)
        ]

    def test_watch_repeats_itself(self, cli: Cli, here: Path) -> None:
        with running(here, "stats", "--watch", "10ms", "--json") as watching:
            watching.wait_for(r"(\[.*\]\n){3}")

    def test_watch_needs_a_unit(self, cli: Cli) -> None:
        assert cli("stats --watch 2").code == 2


class TestQueues:
    def test_list(self, ended: Cli) -> None:
        row = next(row for row in ended("queues list --json").json if row["queue"] == "mail")

        assert (row["completed"], row["failed"], row["paused"], row["workers"]) == (5, 3, False, 0)

    def test_pause_and_resume(self, cli: Cli) -> None:
        cli.ok("queues pause mail")
        cli.add("mail", "send", {"to": "ann"})
        work(cli)
        assert cli("jobs show 1 --json").json["state"] == "waiting"

        cli.ok("queues resume mail")
        work(cli)
        assert cli("jobs show 1 --json").json["state"] == "completed"

    def test_drain(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"})
        cli.add("mail", "send", {"to": "ann"}, "--delay", "1h")

        assert cli("queues drain mail").code == 2
        assert cli("queues drain mail --dry-run --json").json["found"] == 1
        assert cli("queues drain mail --yes --json").json["deleted"] == 1
        assert cli("queues drain mail --delayed --yes --json").json["deleted"] == 1

    def test_clean(self, ended: Cli) -> None:
        assert ended("queues clean mail --older-than 1h --yes --json").json["found"] == 0
        assert ended("queues clean mail --older-than 0s --state failed --limit 2 --dry-run --json").json["found"] == 2
        assert ended("queues clean mail --older-than 0s --state failed --yes --json").json["deleted"] == 3

    def test_sweep(self, ended: Cli) -> None:
        assert "0 jobs taken back" in ended.ok("queues sweep mail")

    def test_obliterate(self, ended: Cli) -> None:
        assert ended("queues obliterate mail --dry-run --json").json["found"] == 8
        ended.ok("queues obliterate mail --yes")
        assert ended("jobs list --queue mail --json").json == []

    @pytest.mark.parametrize("verb", ["pause", "resume", "drain", "sweep", "obliterate", "clean --older-than 1d"])
    def test_an_unknown_one_is_not_made(self, cli: Cli, verb: str) -> None:
        done = cli(f"queues {verb} maill")

        assert done.code == 2
        assert "did you mean 'mail'?" in done.err
        assert "maill" not in cli.ok("queues list")

    def test_an_unknown_state_is_a_usage_error(self, cli: Cli) -> None:
        assert cli("queues clean mail --older-than 1d --state done").code == 2


class TestCron:
    def test_list_shows_what_is_declared(self, cli: Cli) -> None:
        (row,) = cli("cron list --json").json

        assert (row["schedule"], row["pattern"], row["tz"], row["stored"]) == (
            "nightly",
            "0 3 * * *",
            "Europe/Warsaw",
            False,
        )
        assert "nightly" in cli.ok("cron list")

    def test_next(self, cli: Cli) -> None:
        found = cli("cron next nightly -n 3 --json").json

        assert len(found) == 3
        assert all("T03:00:00" in one["local"] for one in found)
        assert "in-Europe/Warsaw" in cli.ok("cron next nightly")

    def test_pause_run_resume_sync(self, cli: Cli) -> None:
        cli.ok("cron sync")
        cli.ok("cron pause nightly")
        assert cli("cron list --json").json[0]["paused"]
        assert "paused" in cli.ok("cron list")

        cli.ok("cron run nightly")
        work(cli)
        cli.ok("cron resume nightly")
        assert not cli("cron list --json").json[0]["paused"]

    def test_sync_removes_what_is_no_longer_declared(self, cli: Cli, here: Path) -> None:
        cli.ok("cron sync")
        (here / "smaller.py").write_text(
            "from dishka import make_async_container\nfrom tests.cli.shop import MailProcessor\n"
            "from workers_module import WorkersModule\n"
            "container = make_async_container(WorkersModule.for_root(processors=[MailProcessor]))\n"
        )

        assert cli("cron sync --json --app smaller:container").json == {"stored": [], "removed": ["nightly"]}

    @pytest.mark.parametrize("verb", ["next", "run", "pause", "resume"])
    def test_an_unknown_one_is_a_usage_error(self, cli: Cli, verb: str) -> None:
        done = cli(f"cron {verb} nightli")

        assert (done.code, "did you mean 'nightly'?" in done.err) == (2, True)

    def test_notes_tell_of_daylight_saving(self) -> None:
        zone = ZoneInfo("Europe/Berlin")
        before, after = datetime(2026, 3, 28, 2, tzinfo=UTC), datetime(2026, 3, 29, 1, tzinfo=UTC)

        assert note_of(after, before, zone) == "clocks go forward before it"
        assert (
            note_of(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), None, zone)
            == "this local time comes twice; the first one"
        )
        assert note_of(before, None, zone) == ""


class TestWorkersAndLocks:
    def test_a_running_worker_is_listed(self, cli: Cli, here: Path) -> None:
        assert cli("workers list --fail-if-none").code == 1
        with running(here, "start", "-w", "--only", "mail", environment={"WORKERS_LOG_FORMAT": "console"}) as worker:
            worker.wait_for("Ready in")
            (found,) = cli("workers list --json").json
            assert (found["queues"], found["slots"], found["pid"]) == (["mail"], 10, worker.process.pid)
            assert str(worker.process.pid) in cli.ok("workers list")

    def test_a_lock_is_released_by_hand(self, cli: Cli, url: str) -> None:
        cli.ok("queues list")

        async def hold() -> None:
            store = open_store(url)
            await store.open()
            await store.lease("prices", "somebody", 600_000)
            await store.close()

        anyio.run(hold)

        assert "prices" in cli.ok("locks list")
        assert cli("locks release prices").code == 2
        assert "would be taken from somebody" in cli.ok("locks release prices --dry-run")
        assert cli("locks release prise").code == 2
        cli.ok("locks release prices --yes")
        assert cli("locks list --json").json == []


class TestCheck:
    def test_of_an_application_in_order(self, cli: Cli) -> None:
        text = cli.ok("check")

        assert "4 workers, 1 schedule; all in order" in text
        assert re.search(r"  next  ....-..-.. 03:00.*, ....-..-.. 03:00.*, ....-..-.. 03:00 CES?T\n", text)
        assert len(cli("check --json").json["schedules"][0]["next"]) == 3
        assert "nightly" in text
        assert {one["name"] for one in cli("check --json").json["workers"]} == {
            "MailProcessor",
            "SlowProcessor",
            "LogWorker",
            "render",
        }

    def test_touches_no_store(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_URL", "redis://127.0.0.1:1/0")

        cli.ok("check")

    def test_unknown_workers_in_the_settings_are_found(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ENABLED_WORKERS", "candles")

        done = cli("check")

        assert (done.code, "ENABLED_WORKERS names 'candles'" in done.err) == (3, True)

    @pytest.mark.parametrize(
        ("variable", "value", "says"),
        [
            ("QUEUE_URL", "nothing://host", "nothing"),
            ("QUEUE_URL", "redis://host:many/0", "cannot be read"),
            ("QUEUE_URL", "postgresql://host/shop?pool_max=many", "pool_max=many; write a number"),
            ("QUEUE_URL", "sqlite:///", "an sqlite URL names a file"),
            ("WORKERS_MODE", "foreground_blocking", "no worker starts"),
            ("WORKERS_JOB_TIMEOUT", "30", "has no unit"),
            ("WORKERS_CONCURRENCY", "many", "WORKERS_CONCURRENCY"),
        ],
    )
    def test_what_no_worker_could_start_with_is_refused(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
    ) -> None:
        monkeypatch.setenv(variable, value)

        done = cli("check")

        assert done.code == 3, done.err
        assert says in done.err

    def test_an_application_without_handlers_is_refused(self, cli: Cli, here: Path) -> None:
        (here / "bare.py").write_text(
            "from dishka import make_async_container\nfrom workers_module import WorkersModule\n"
            "container = make_async_container(WorkersModule.for_root())\n"
        )

        done = cli("check --app bare:container")

        assert (done.code, "the application has no handlers" in done.err) == (3, True)

    def test_each_kind_of_schedule_tells_its_next_runs(self, cli: Cli, here: Path) -> None:
        (here / "times.py").write_text(
            "from dishka import make_async_container\n"
            "from workers_module import WorkersModule, cron, interval, timeout\n"
            "class Times:\n"
            "    @cron('*/10 * * * * *', name='often')\n"
            "    async def often(self) -> None: ...\n"
            "    @cron('0 9 * * 1', name='off', disabled=True)\n"
            "    async def off(self) -> None: ...\n"
            "    @interval('5m', name='steady')\n"
            "    async def steady(self) -> None: ...\n"
            "    @timeout('10s', name='soon')\n"
            "    async def soon(self) -> None: ...\n"
            "container = make_async_container(WorkersModule.for_root(processors=[Times]))\n"
        )

        text = cli.ok("check --app times:container")

        assert re.search(
            r"schedule often  \*/10 \* \* \* \* \*  Times.often of times\n  next  .*:\d0, .*:\d0, .*:\d0 UTC\n", text
        )
        assert "schedule off  0 9 * * 1  Times.off of times\n  next  disabled\n" in text
        assert re.search(r"schedule steady  every 5 min  Times.steady of times\n  next  .*, .*, .*\n", text)
        assert "schedule soon  once, 10 s after start  Times.soon of times\n" in text

    def test_warnings_have_their_exit_code(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKERS_JOB_TIMEOUT", "none")

        done = cli("check")

        assert (done.code, "has no time limit" in done.out) == (5, True)


class TestDoctor:
    def test_of_a_healthy_store(self, cli: Cli) -> None:
        done = cli("doctor")

        assert done.code == 0, done.out
        assert "all is well" in done.out

    def test_names_what_it_finds_with_a_remedy(self, cli: Cli, url: str) -> None:
        cli.add("mail", "unheard", {"to": "ann"})
        cli.ok("queues pause slow")

        done = cli("doctor --json")

        assert done.code == 5
        found = {(one["level"], one["remedy"]) for one in done.json if one["level"] != "ok"}
        assert ("fail", "deploy one, or: workers jobs remove --queue mail --name unheard") in found
        assert ("warn", "workers start --worker") in found
        assert ("warn", "workers queues resume slow") in found

    def test_finds_contradictions_in_the_data(self, ended: Cli, here: Path) -> None:
        with closing(sqlite3.connect(here / "jobs.db")) as db:
            db.execute("UPDATE wm_job SET due = 5 WHERE id = 'good1'")
            db.commit()

        done = ended("doctor")

        assert done.code == 5
        assert "good1" in done.out
        assert ended("doctor --quick").code == 0


class TestConfig:
    def test_show_tells_values_and_sources(self, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKERS_CONCURRENCY", "3")

        found = {one["variable"]: (one["value"], one["source"]) for one in cli("config show --json").json}

        assert found["WORKERS_CONCURRENCY"] == ("3", "WORKERS_CONCURRENCY")
        assert found["WORKERS_JOB_TIMEOUT"] == ("30s", "default")

    def test_env_is_the_example_file(self, bare: Cli) -> None:
        assert bare.ok("config env") == (Path(__file__).parents[2] / ".env.example").read_text()


class TestMigrations:
    def test_status_up_and_sql(self, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("QUEUE_URL", "sqlite:///fresh.db")
        missing = cli("migrations status --json")
        assert (missing.code, missing.json["schema"]) == (5, 0)

        cli.ok("migrations up")
        assert cli("migrations status").code == 0
        assert "CREATE TABLE" in cli.ok("migrations sql --store sqlite")

    @pytest.mark.parametrize(
        ("line", "code"),
        [("sql --store mysql", 2), ("sql --store redis", 2), ("sql --store sqlite --from 7", 2), ("sql", 2)],
    )
    def test_what_cannot_be_meant_is_told(self, cli: Cli, line: str, code: int) -> None:
        assert cli(f"migrations {line}").code == code


class TestShell:
    def test_awaits_and_has_commands(self, ended: Cli, here: Path) -> None:
        lines = "await inspector.queues()\n.queues\n.jobs\n.job bad1\n.job\n.nope\n1/0\nx = 20 + 2\nprint(x)\n"

        done = ended("shell", stdin=lines)

        assert done.code == 0
        assert "'mail'" in done.out
        assert "MailProcessor" in done.out
        assert "no mailbox bob1" in done.out
        assert "22" in done.out
        assert "no command .nope" in done.err
        assert "ZeroDivisionError" in done.err


class TestCompletion:
    def test_of_names(self, ended: Cli) -> None:
        assert complete_queue("ma") == ["mail"]
        assert complete_schedule("n") == ["nightly"]
        assert complete_worker("mail,sl") == ["mail,slow"]

    def test_as_a_shell_asks_for_it(self, ended: Cli, here: Path) -> None:
        asked = {"COMP_WORDS": "workers cron run ni", "COMP_CWORD": "3", "_WORKERS_COMPLETE": "complete_bash"}

        done = subprocess.run(
            [sys.executable, "-m", "workers_module"],
            env={**os.environ, **asked, "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.stdout.split() == ["nightly"], done.stderr

    def test_of_nothing_where_nothing_can_be_asked(self, bare: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKERS_APP", "nowhere:app")

        assert complete_queue("") == []


def test_watch_streams_events(cli: Cli, here: Path) -> None:
    with running(here, "jobs", "watch", "--queue", "mail", "--event", "completed", "--json") as watching:
        watching.wait_for("watching mail")
        cli.add("mail", "send", {"to": "ann"})
        work(cli)
        line = watching.wait_for(r"\{.*\}")[0]
    event = json.loads(line)
    assert (event["queue"], event["event"], event["id"]) == ("mail", "completed", "1")


def test_watch_of_an_unknown_event_is_a_usage_error(cli: Cli) -> None:
    assert cli("jobs watch --event compelted").code == 2
