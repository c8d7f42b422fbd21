"""The same commands on every store that processes share: what they say, and what they do."""

import json
from pathlib import Path

import anyio
import pytest

from tests.cli.conftest import Cli, Place, claim_and_vanish, work
from tests.cli.processes import running
from workers_module.cli.output import clean
from workers_module.store.open import open_store


@pytest.fixture
def ended(place: Place) -> Place:
    """Two jobs of `mail` have completed, three have failed, one is delayed and one cancelled."""
    for number in range(2):
        place.cli.add("mail", "send", {"to": f"ann{number}@example.org"}, "--id", f"good{number}")
    for number in range(3):
        place.cli.add("mail", "bounce", {"to": f"bob{number}"}, "--id", f"bad{number}", "--attempts", "1")
    work(place.cli)
    place.cli.add("mail", "send", {"to": "late"}, "--id", "late", "--delay", "1d")
    place.cli.add("mail", "nobody", {"to": "x"}, "--id", "gone", "--priority", "3")
    place.cli.ok("jobs cancel --name nobody --yes")
    return place


def states(place: Place) -> dict[str, str]:
    return {job["id"]: job["state"] for job in place.cli("jobs list --queue mail --json --limit 100").json}


ALL = {
    **dict.fromkeys(("good0", "good1"), "completed"),
    **dict.fromkeys(("bad0", "bad1", "bad2", "gone"), "failed"),
    "late": "delayed",
}


def test_looking(ended: Place) -> None:
    cli = ended.cli
    assert states(ended) == ALL
    row = next(row for row in cli("stats --json --wide").json if row["queue"] == "mail")
    assert [row[name] for name in ("completed", "failed", "delayed", "waiting", "active", "prioritized")] == [
        *(2, 4, 1, 0, 0, 0),
    ]
    assert "bad1" in cli.ok("jobs list --filter error:bob1")
    assert {job["id"] for job in cli("jobs list --json --filter 'data.to:*@example.org'").json} == {"good0", "good1"}
    shown = cli("jobs show bad0 --json").json
    assert (shown["attempts_made"], shown["error"]) == (1, "no mailbox bob0")
    assert "Traceback" in shown["traces"][0]
    assert json.loads(cli.ok("jobs show good0 --raw"))["queue"] == "mail"
    assert '"sent to ann0@example.org"' in cli.ok("jobs show good0 --logs --attempts")
    assert {row["queue"]: row["failed"] for row in cli("queues list --json").json}["mail"] == 4
    assert cli("workers list --json").json == []
    assert cli("locks list --json").json == []
    # That a server of tests keeps nothing on its disk is for doctor to say.
    assert cli("stats").err == ""


def test_what_was_cancelled_says_so(ended: Place) -> None:
    assert "cancelled" in ended.cli("jobs show gone --json").json["error"]


def test_doctor_finds_nothing_wrong_but_the_tests_server(ended: Place) -> None:
    found = ended.cli("doctor --json").json

    assert [one for one in found if one["level"] == "fail"] == []
    # A server of tests keeps nothing on its disk, and says so.
    assert all("queue" not in one["text"] for one in found if one["level"] == "warn")
    assert sum("queue mail: 7 jobs" in one["text"] for one in found) == 1


def test_moving(ended: Place) -> None:
    cli = ended.cli
    assert cli("jobs retry bad0 --json").json == {"retried": 1, "skipped": 0, "found": 1, "dry_run": False}
    assert cli("jobs retry --queue mail --name bounce --yes --json").json["retried"] == 2
    assert cli("jobs retry bad0").code == 1
    assert cli("jobs promote late --json").json["promoted"] == 1
    assert cli("jobs promote late").code == 1
    assert states(ended) == {
        **ALL,
        **dict.fromkeys(("bad0", "bad1", "bad2", "late"), "waiting"),
    }
    assert cli("queues drain mail --yes --json").json["deleted"] == 4
    assert cli("jobs tidy --queue mail --dry-run --json").json["found"] == 3
    assert cli("jobs tidy --queue mail --yes --json").json["deleted"] == 3
    assert states(ended) == {}


def test_deleting(ended: Place) -> None:
    cli = ended.cli
    assert cli("jobs purge --max-age 1d --dry-run --json").json["found"] == 0
    assert cli("queues clean mail --older-than 0s --state failed --limit 1 --yes --json").json["deleted"] == 1
    assert cli("jobs remove good0 --yes --json").json["removed"] == 1
    assert cli("jobs purge --max-age 0s --state failed,completed --yes --json").json["deleted"] == 4
    assert states(ended) == {"late": "delayed"}
    assert cli("queues obliterate mail --yes --json").json["deleted"] == 1
    assert states(ended) == {}


def test_a_dump_comes_back_as_it_was(ended: Place, here: Path) -> None:
    cli = ended.cli
    before = cli("jobs list --queue mail --json").json
    assert cli("jobs dump --folder backup --queue mail --json").json["jobs"] == 7
    cli.ok("queues obliterate mail --yes")

    assert cli("jobs import --file backup/mail.json --json").json["imported"] == {"mail": 7}
    assert sorted(cli("jobs list --queue mail --json").json, key=str) == sorted(before, key=str)
    assert cli("jobs import --file backup/mail.json --json").json["skipped"] == 7


def test_pausing(place: Place) -> None:
    cli = place.cli
    cli.ok("queues pause mail")
    cli.add("mail", "send", {"to": "ann"}, "--id", "one")
    work(cli)
    assert states(place) == {"one": "waiting"}
    assert next(row["paused"] for row in cli("stats --json").json if row["queue"] == "mail") == 1
    cli.ok("queues resume mail")
    work(cli)
    assert states(place) == {"one": "completed"}


def test_schedules(place: Place) -> None:
    cli = place.cli
    assert cli("cron sync --json").json == {"stored": ["nightly"], "removed": []}
    assert all("T03:00:00" in one["local"] for one in cli("cron next nightly -n 2 --json").json)
    cli.ok("cron pause nightly")
    assert "paused" in cli.ok("cron list")
    told = cli("cron run nightly --json").json
    work(cli, "--no-cron")
    assert cli(f"jobs show {told['id']} --queue {told['queue']} --json").json["state"] == "completed"
    cli.ok("cron resume nightly")
    (row,) = cli("cron list --json").json
    assert (row["paused"], row["stored"], row["owner"]) == (False, True, "app")


def test_jobs_of_a_worker_that_is_gone_are_put_back(place: Place) -> None:
    cli = place.cli
    cli.add("slow", "nap", {}, "--id", "one")
    anyio.run(claim_and_vanish, place.url, "slow", place.prefix)

    told = cli("doctor --json").json
    assert any("queue slow: 1 job active without a live worker" in one["text"] for one in told)
    assert cli("queues sweep slow --json").json["recovered"] == 1
    assert cli("jobs show slow/one --json").json["state"] == "waiting"


def test_a_lock_is_released(place: Place) -> None:
    async def hold() -> None:
        store = open_store(place.url, prefix=place.prefix)
        await store.open()
        await store.lease("prices", "somebody", 600_000)
        await store.close()

    anyio.run(hold)

    assert [one["name"] for one in place.cli("locks list --json").json] == ["prices"]
    place.cli.ok("locks release prices --yes")
    assert place.cli("locks list --json").json == []


def test_following_and_watching(place: Place, here: Path) -> None:
    cli = place.cli
    id = cli.add("default", "LogWorker", {"to": "ann"}, "--delay", "1d")
    with (
        running(here, "jobs", "show", id, "--queue", "default", "--follow") as following,
        running(here, "jobs", "watch", "--queue", "default", "--json", "--event", "completed") as watching,
    ):
        watching.wait_for("watching default")
        following.wait_for("following job")
        cli.ok(f"jobs promote {id} --queue default")
        work(cli)
        event = json.loads(watching.wait_for(r"\{.*\}")[0])
        assert following.end() == 0
    assert (event["queue"], event["event"], event["id"]) == ("default", "completed", id)
    assert "step 2" in following.said
    assert f"job {id} of default is completed" in following.said


def test_a_worker_process_tells_of_its_jobs_and_is_listed(place: Place, here: Path) -> None:
    with running(here, "start", "-w", "--only", "mail", environment={"WORKERS_LOG_FORMAT": "json"}) as worker:
        worker.wait_for("workers started")
        place.cli.add("mail", "send", {"to": "ann"})
        line = worker.wait_for(r'\{.*"outcome": "completed".*\}')[0]
        (listed,) = place.cli("workers list --json").json
        worker.send()
        assert worker.end() == 0
    told = json.loads(line)
    assert (told["queue"], told["job_name"], told["attempt"]) == ("mail", "send", 1)
    assert told["duration_ms"] >= 0
    assert told["worker_id"] == listed["id"]


def test_hostile_text_is_shown_escaped(place: Place) -> None:
    evil = "\x1b]0;owned\x07\u202e"
    place.cli.add("mail", "send", {"to": evil}, "--id", "one")

    for line in ("jobs list", "jobs show one", "jobs list --filter data.to:*owned*"):
        out = place.cli.ok(line)
        assert "\x1b" not in out
        assert "\u202e" not in out
    assert clean(evil) == "\\x1b]0;owned\\x07\\u202e"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/shop"])
@pytest.mark.parametrize("line", ["stats", "jobs list", "doctor", 'jobs add mail send \'{"to": "a"}\'', "cron sync"])
def test_a_store_that_is_down_has_its_exit_code(cli: Cli, url: str, line: str) -> None:
    done = cli(line, "--url", url)

    assert done.code == 4
    assert "the store cannot be reached" in done.err
    assert "127.0.0.1:1" in done.err
    assert "workers config show" in done.err
