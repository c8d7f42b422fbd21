"""``workers jobs``: looking, adding, and doing the same to many."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, work


class TestAdd:
    def test_tells_the_id(self, cli: Cli) -> None:
        assert cli.ok("""jobs add mail send '{"to": "ann"}'""") == "send added as job 1 of mail\n"

    def test_takes_options(self, cli: Cli) -> None:
        id = cli.add(
            "mail", "send", {"to": "ann"}, "--delay", "5m", "--priority", "3", "--attempts", "4", "--tag", "eu"
        )

        shown = cli(f"jobs show mail/{id} --json").json

        assert (shown["state"], shown["priority"], shown["attempts"], shown["tags"]) == ("delayed", 3, 4, ["eu"])

    @pytest.mark.parametrize("way", ["-", "@mail.json"])
    def test_reads_the_payload_from_elsewhere(self, cli: Cli, here: Path, way: str) -> None:
        (here / "mail.json").write_text('{"to": "ann"}')

        cli.ok("jobs add mail send", way, stdin='{"to": "ann"}')

        assert cli("jobs show 1 --json").json["data"] == {"to": "ann", "text": "hello"}

    def test_an_id_that_exists_is_left_alone(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"}, "--id", "one")

        assert "was there already as job one" in cli.ok("""jobs add mail send '{"to": "bob"}' --id one""")
        assert cli("jobs show one --json").json["data"]["to"] == "ann"

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("jobs add mail send 5", "does not fit Mail"),
            ("jobs add mail send {", "is not JSON"),
            ("jobs add mail send @nowhere.json", "nowhere.json: cannot be read"),
            ("jobs add 'no queue' send 5", "no queue"),
            ("""jobs add mail send '{"to": "a"}' --delay 5""", "has no unit"),
            ("""jobs add mail send '{"to": "a"}' --tag 'a b'""", "tag"),
            ("jobs add mail send '[NaN]'", "Mail"),
        ],
    )
    def test_bad_input_is_refused_before_anything_is_stored(self, cli: Cli, line: str, says: str) -> None:
        done = cli(line)

        assert done.code == 2
        assert says in done.err
        assert cli("jobs list --json").json == []

    @pytest.mark.parametrize(
        ("line", "doubt"),
        [
            ("jobs add mial send 5", "mial is a new queue; did you mean 'mail'?"),
            ("jobs add mail sent 5", "no handler for 'sent' in mail; did you mean 'send'?"),
            ("jobs add mail parcel 5", "no handler for 'parcel' in mail; it has: send, bounce"),
        ],
    )
    @pytest.mark.parametrize("option", ["", "--dry-run"])
    def test_what_looks_mistyped_is_noted(self, cli: Cli, line: str, doubt: str, option: str) -> None:
        done = cli(f"{line} {option}")

        assert done.code == 0, done.err
        assert doubt in done.err

    def test_what_the_application_knows_is_not(self, cli: Cli) -> None:
        assert cli("""jobs add mail send '{"to": "ann"}'""").err == ""
        assert cli("jobs add parcels send 5").err == ""

    def test_dry_run_checks_alone(self, cli: Cli) -> None:
        assert "could be added" in cli.ok("""jobs add mail send '{"to": "ann"}' --dry-run""")
        assert cli("jobs add mail send 5 --dry-run").code == 2
        assert cli("jobs list --json").json == []

    def test_needs_no_application(self, url: str, bare: Cli) -> None:
        bare.ok("jobs add elsewhere anything '[1, 2]'")

        assert bare("jobs list --json").json[0]["data"] == [1, 2]


class TestList:
    def test_names_each_job(self, ended: Cli) -> None:
        lines = ended.ok("jobs list --queue mail").splitlines()

        assert lines[0].split() == ["id", "queue", "name", "state", "attempts", "added", "about"]
        assert len(lines) == 9
        assert any("bad1" in line and "no mailbox bob1" in line for line in lines)

    @pytest.mark.parametrize(
        ("options", "ids"),
        [
            ("--state failed", {"bad0", "bad1", "bad2"}),
            ("--state failed --filter error:bob1", {"bad1"}),
            ("--filter error:ValueError", {"bad0", "bad1", "bad2"}),
            ("--filter data.to:*@example.org", {f"good{number}" for number in range(5)}),
            ("--filter 'name:send id:good1'", {"good1"}),
            ("--filter good3", {"good3"}),
            ("--filter 'attempts:>1'", set[str]()),
            ("--filter 'age:<1h attempts:1' --limit 2 --state failed", {"bad1", "bad2"}),
        ],
    )
    def test_filters(self, ended: Cli, options: str, ids: set[str]) -> None:
        assert {job["id"] for job in ended(f"jobs list --queue mail --json {options}").json} == ids

    def test_fails_if_any_when_told(self, ended: Cli) -> None:
        assert ended("jobs list --state failed --fail-if-any").code == 5
        assert ended("jobs list --state delayed --queue mail --fail-if-any").code == 0

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ("--state done", "--state 'done': there are waiting"),
            ("--filter colour:red", "no key 'colour'"),
            ("--filter attempts:many", "is no number"),
            ("--filter age:5m", "needs a sign"),
            ("--filter 'a \"b'", "no closing quotation"),
            ("--queue mial", "no queue 'mial'; did you mean 'mail'?"),
        ],
    )
    def test_what_cannot_be_meant_is_a_usage_error(self, cli: Cli, options: str, says: str) -> None:
        done = cli(f"jobs list {options}")

        assert done.code == 2
        assert says in done.err


class TestShow:
    def test_tells_all_there_is(self, ended: Cli) -> None:
        text = ended.ok("jobs show bad0 --attempts")

        assert "failed" in text
        assert "no mailbox bob0" in text
        assert "Traceback" in text

    def test_of_an_unknown_id_names_the_next_step(self, cli: Cli) -> None:
        done = cli("jobs show 99")

        assert (done.code, done.out) == (1, "")
        assert "no job '99'" in done.err
        assert "workers jobs list" in done.err

    def test_of_an_id_of_several_queues_asks_which(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "a"}, "--id", "twin")
        cli.add("slow", "nap", {}, "--id", "twin")

        done = cli("jobs show twin")

        assert done.code == 2
        assert "write mail/twin or slow/twin" in done.err
        assert cli("jobs show slow/twin --json").json["name"] == "nap"

    def test_has_the_log(self, cli: Cli) -> None:
        id = cli.add("default", "LogWorker", {"to": "ann"})
        work(cli)

        assert cli(f"jobs show {id} --queue default --json").json["logs"][2].endswith("INFO step 2")
        assert "step 2" in cli.ok(f"jobs show {id} --queue default --logs")

    def test_follow_of_an_ended_job_shows_its_log_and_ends(self, cli: Cli) -> None:
        id = cli.add("default", "LogWorker", {"to": "ann"})
        work(cli)

        lines = [json.loads(line) for line in cli.ok(f"jobs show {id} --queue default --follow --json").splitlines()]

        assert [line["log"][-6:] for line in lines[:-1]] == ["step 0", "step 1", "step 2"]
        assert lines[-1]["state"] == "completed"


class TestMany:
    def test_retry_by_filter(self, ended: Cli) -> None:
        done = ended("jobs retry --queue mail --filter error:bob --yes --json")

        assert (done.code, done.json) == (0, {"retried": 3, "skipped": 0, "found": 3, "dry_run": False})
        assert len(ended("jobs list --state waiting --json").json) == 3

    def test_retry_by_id_needs_no_answer(self, ended: Cli) -> None:
        assert ended.ok("jobs retry bad0 mail/bad1") == "2 retried\n"

    def test_what_is_in_another_state_is_skipped_and_told(self, ended: Cli) -> None:
        ended.ok("jobs retry bad0")

        done = ended("jobs retry bad0 bad1")

        assert done.code == 1
        assert "1 retried · 1 skipped" in done.out

    def test_without_a_person_deleting_needs_yes(self, ended: Cli) -> None:
        done = ended("jobs remove --queue mail --state completed")

        assert done.code == 2
        assert "5 jobs of mail" in done.err
        assert "--yes" in done.err
        assert len(ended("jobs list --queue mail --json").json) == 8

    def test_dry_run_changes_nothing(self, ended: Cli) -> None:
        assert ended("jobs remove --queue mail --dry-run --json").json["found"] == 8
        assert len(ended("jobs list --queue mail --json").json) == 8

    def test_remove(self, ended: Cli) -> None:
        ended.ok("jobs remove --queue mail --name send --yes")

        assert len(ended("jobs list --queue mail --json").json) == 3

    def test_promote(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"}, "--delay", "1h")

        cli.ok("jobs promote 1 --queue mail")

        assert cli("jobs show 1 --json").json["state"] == "waiting"

    def test_cancel_by_name(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"})
        cli.add("mail", "bounce", {"to": "ann"})

        cli.ok("jobs cancel --name send --yes")

        assert {job["name"]: job["state"] for job in cli("jobs list --json").json} == {
            "send": "failed",
            "bounce": "waiting",
        }
        assert " cancelled " in cli.ok("jobs list --state failed")

    def test_tidy_takes_completed_and_cancelled_alone(self, ended: Cli) -> None:
        ended.add("mail", "send", {"to": "late"}, "--delay", "1h")
        ended.ok("jobs cancel --name send --yes")

        assert ended("jobs tidy --dry-run --json").json["found"] == 6
        assert ended("jobs tidy --yes --json").json["deleted"] == 6
        assert {job["state"] for job in ended("jobs list --queue mail --json").json} == {"failed"}

    def test_purge_dumps_first(self, ended: Cli, here: Path) -> None:
        assert ended("jobs purge --max-age 1d --dry-run --json").json["found"] == 0
        ended.ok("jobs purge --max-age 0s --state failed --dump old.json --yes")

        assert len(json.loads((here / "old.json").read_text())["jobs"]) == 3
        assert len(ended("jobs list --queue mail --json").json) == 5

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("jobs retry", "say which jobs"),
            ("jobs retry 1 --name send", "not both"),
            ("jobs retry --queue mail --state waiting", "retry takes jobs that are failed, completed"),
            ("jobs remove --queue nope", "no queue 'nope'"),
            ("jobs cancel --name a --queue nope", "no queue 'nope'"),
            ("jobs tidy --queue nope", "no queue 'nope'"),
            ("jobs purge --max-age 90", "has no unit"),
            ("jobs requeue --from-age soon", "is not a duration"),
            ("jobs cancel", "--name"),
        ],
    )
    def test_what_cannot_be_meant_is_a_usage_error(self, cli: Cli, line: str, says: str) -> None:
        done = cli(line)

        assert done.code == 2
        assert says in done.err


class TestFiles:
    @pytest.mark.parametrize("form", ["json", "yaml"])
    def test_come_back(self, ended: Cli, here: Path, form: str) -> None:
        before = ended("jobs list --queue mail --json").json
        ended.ok(f"jobs dump --folder backup --queue mail --format {form}")
        ended.ok("queues obliterate mail --yes")

        ended.ok(f"jobs import --file backup/mail.{form}")

        assert sorted(ended("jobs list --queue mail --json").json, key=str) == sorted(before, key=str)

    def test_may_be_edited_when_it_is_said(self, ended: Cli, here: Path) -> None:
        ended.ok("jobs dump --folder backup --queue mail --state failed --format yaml")
        file = here / "backup/mail.yaml"
        file.write_text(file.read_text().replace("bob1", "ann1"))
        ended.ok("jobs remove --queue mail --yes")

        refused = ended("jobs import --file backup/mail.yaml")

        assert refused.code == 3
        assert "--edited" in refused.err
        ended.ok("jobs import --file backup/mail.yaml --edited")
        assert ended("jobs show bad1 --json").json["data"]["to"] == "ann1"

    @pytest.mark.parametrize("form", ["json", "yaml"])
    def test_that_are_cut_off_anywhere_change_nothing(self, ended: Cli, here: Path, form: str) -> None:
        ended.ok(f"jobs dump --folder backup --queue mail --format {form}")
        whole = (here / f"backup/mail.{form}").read_bytes()
        ended.ok("queues obliterate mail --yes")
        for end in range(0, len(whole) - 2, len(whole) // 9):
            (here / f"cut.{form}").write_bytes(whole[:end])

            done = ended(f"jobs import --file cut.{form}")

            assert done.code == 3, done.err
            assert "nothing was imported" in done.err
        assert ended("jobs list --queue mail --json").json == []

    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("odd.json", "{}", "no dump of jobs"),
            ("odd.yaml", "a: &a [x]\nb: *a\n", "references"),
            ("odd.yaml", "a: !!python/object/apply:os.system [id]\n", "not YAML"),
            ("odd.json", '{"schema": "workers.jobs/v1", "jobs": [{"queue": "a\\u001b[2J", "id": "1"}]}', "$.queue"),
        ],
    )
    def test_that_are_not_ours_are_refused(self, cli: Cli, here: Path, name: str, text: str, says: str) -> None:
        (here / name).write_text(text)

        done = cli(f"jobs import --file {name} --edited")

        assert done.code in {1, 3}
        assert says in done.err
        assert "\x1b" not in done.err
        assert cli("jobs list --json").json == []

    def test_stay_where_they_are_told_to(self, ended: Cli, here: Path) -> None:
        (here / "away").symlink_to("/tmp")
        for line in (
            "jobs dump --folder ../out",
            "jobs dump --folder away",
            "jobs import --file ../jobs.json",
            "jobs purge --max-age 0s --dump ../old.json --yes",
        ):
            done = ended(line)
            assert done.code == 3, line
            assert "'..'" in done.err or "link" in done.err
        assert len(ended("jobs list --queue mail --json").json) == 8

    def test_dry_runs_write_nothing(self, ended: Cli, here: Path) -> None:
        assert "8 jobs would be written" in ended.ok("jobs dump --folder backup --queue mail --dry-run")
        assert not (here / "backup").exists()
        ended.ok("jobs dump --folder backup --queue mail")
        ended.ok("queues obliterate mail --yes")
        assert ended("jobs import --file backup/mail.json --dry-run --json").json["imported"] == {"mail": 8}
        assert ended("jobs list --queue mail --json").json == []


DUMP = '{{"schema": "workers.jobs/v1", "jobs": [{}]}}'
JOB = '{"queue": "mail", "id": "n1", "name": "send", "state": "waiting", "data": {"to": "a"}}'


class TestHostileFiles:
    """What is not in order is refused in a line that names it, before anything is changed."""

    @pytest.mark.parametrize(
        ("name", "content", "code", "says"),
        [
            ("gone.json", None, 3, "gone.json: cannot be read: No such file"),
            ("latin.json", b'{"schema": "\xff"}', 3, "not JSON, or cut off"),
            ("deep.json", b"[" * 100_000, 3, "not JSON, or cut off"),
            ("empty.json", b"", 3, "not JSON, or cut off"),
            ("newer.json", b'{"schema": "workers.jobs/v2", "jobs": []}', 3, "no schema 'workers.jobs/v1'"),
            ("list.json", b'{"schema": "workers.jobs/v1", "jobs": {}}', 3, "has no list of jobs"),
            ("twice.json", DUMP.format(f"{JOB}, {JOB}").encode(), 1, "the file has this job twice"),
            ("state.json", DUMP.format(JOB.replace("waiting", "flying")).encode(), 1, "$.state: Input should be"),
            ("nan.json", DUMP.format(JOB.replace('"a"', "NaN")).encode(), 1, "not JSON compliant"),
            ("fits.json", DUMP.format(JOB.replace('"to"', '"too"')).encode(), 1, "$.to: Field required"),
            ("more.json", DUMP.format(JOB.replace('"id"', '"odd": 1, "id"')).encode(), 1, "$.odd: Extra inputs"),
            ("name.json", DUMP.format(JOB.replace("n1", "a\\u0000b")).encode(), 1, "$.id: String should match"),
        ],
    )
    def test_are_refused_whole(
        self, ended: Cli, here: Path, name: str, content: bytes | None, code: int, says: str
    ) -> None:
        if content is not None:
            (here / name).write_bytes(content)
        before = ended("jobs list --json").json

        done = ended(f"jobs import --file {name}")

        assert (done.code, done.out) == (code, "")
        assert says in done.err
        assert "Traceback" not in done.err
        assert ended("jobs list --json").json == before

    def test_no_pipe_is_waited_for_and_no_folder_read(self, cli: Cli, here: Path) -> None:
        os.mkfifo(here / "pipe.json")
        (here / "folder.json").mkdir()

        for name in ("pipe.json", "folder.json"):
            done = cli(f"jobs import --file {name}")
            assert (done.code, f"{name}: is no file" in done.err) == (3, True)

    def test_links_in_place_of_files_are_neither_read_nor_written(self, ended: Cli, here: Path) -> None:
        (here / "precious.json").write_text("mine")
        (here / "backup").mkdir()
        (here / "backup/mail.json").symlink_to(here / "precious.json")

        for line in (
            "jobs dump --folder backup --queue mail",
            "jobs import --file backup/mail.json",
            "jobs purge --max-age 0s --dump backup/mail.json --yes",
        ):
            done = ended(line)
            assert (done.code, "is a link" in done.err) == (3, True)
        assert (here / "precious.json").read_text() == "mine"
        assert len(ended("jobs list --queue mail --json").json) == 8

    def test_a_purge_overwrites_no_file(self, ended: Cli, here: Path) -> None:
        (here / "old.json").write_text("all that is left of an earlier purge")

        done = ended("jobs purge --max-age 0s --dump old.json --yes")

        assert (done.code, "exists already and is left alone" in done.err) == (3, True)
        assert (here / "old.json").read_text() == "all that is left of an earlier purge"
        assert len(ended("jobs list --queue mail --json").json) == 8

    def test_a_file_in_place_of_the_folder_is_told(self, ended: Cli, here: Path) -> None:
        (here / "backup").write_text("mine")

        done = ended("jobs dump --folder backup")

        assert (done.code, "backup: is a file; name another folder" in done.err) == (3, True)
        assert (here / "backup").read_text() == "mine"

    def test_only_their_owner_may_read_them_and_nothing_else_is_left(self, ended: Cli, here: Path) -> None:
        ended.ok("jobs dump --folder backup --queue mail")
        ended.ok("jobs purge --max-age 0s --dump old.yaml --yes")

        assert [file.name for file in (here / "backup").iterdir()] == ["mail.json"]
        assert {(here / name).stat().st_mode & 0o777 for name in ("backup/mail.json", "old.yaml")} == {0o600}

    def test_text_that_steers_terminals_comes_back_and_is_shown_escaped(self, ended: Cli, here: Path) -> None:
        evil = "\x1b]0;owned\x07\r"
        job = {**json.loads(JOB), "state": "failed", "name": f"n{evil}", "error": evil, "logs": [evil], "data": evil}
        (here / "evil.json").write_text(DUMP.format(json.dumps(job)))

        done = ended("jobs import --file evil.json")

        assert done.code == 0, done.err
        for line in ("jobs show n1 --logs --attempts", "jobs list", "jobs list --json"):
            shown = ended.ok(line)
            assert "\x1b" not in shown
            assert "\r" not in shown
        assert ended("jobs show n1 --json").json["error"] == evil
