"""Work on many jobs shows how far it is: on a terminal, and nowhere else."""

import re
from pathlib import Path

import anyio
import pytest

from tests.cli.conftest import Cli, claim_and_vanish
from tests.cli.test_terminal import ESCAPES
from workers_module.cli import output

LINES = [
    ("jobs retry --queue mail --yes", "Retrying", "3/3"),
    ("jobs remove --queue mail --yes", "Removing", "8/8"),
    ("jobs tidy --yes", "Deleting", "5/5"),
    ("jobs purge --max-age 0s --yes", "Deleting", "8/8"),
    ("jobs purge --max-age 0s --dump old.json --yes", "Writing", "8/8"),
    ("jobs purge --max-age 0s --dump older.json --yes", "Deleting", "8/8"),
    ("jobs dump --folder backup --queue mail", "Writing", "8/8"),
    ("queues clean mail --older-than 0s --yes", "Deleting", "5/5"),
    ("queues obliterate mail --yes", "Deleting", "8/8"),
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to standard error goes to a terminal, as far as Rich knows."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(("line", "label", "end"), LINES)
def test_is_shown_on_a_terminal(ended: Cli, terminal: None, line: str, label: str, end: str) -> None:
    done = ended(line)

    assert done.code == 0, done.err
    bars = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", done.err)]
    assert any(label in bar and "━" in bar and end in bar for bar in bars), done.err
    assert "━" not in done.out


@pytest.mark.parametrize(
    ("line", "options"),
    [*((line, "") for line, _, _ in LINES), ("jobs tidy --yes", "--json"), ("jobs tidy --yes", "--quiet")],
)
def test_is_nothing_elsewhere(
    ended: Cli, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, line: str, options: str
) -> None:
    if options:
        request.getfixturevalue("terminal")

    done = ended(line, *options.split())

    assert done.code == 0, done.err
    assert "━" not in done.err + done.out
    assert not re.search(r"\d/\d", done.err)


@pytest.mark.parametrize(("line", "label", "end"), LINES)
def test_is_a_plain_line_now_and_then_without_a_terminal(
    ended: Cli, monkeypatch: pytest.MonkeyPatch, line: str, label: str, end: str
) -> None:
    monkeypatch.setattr(output, "PLAIN_EVERY_S", 0.0)

    done = ended(line)

    assert done.code == 0, done.err
    assert f"{label} {end}" in done.err.splitlines()
    assert not ESCAPES.search(done.err)
    assert label not in done.out


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_is_not_told_to_programs(ended: Cli, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(output, "PLAIN_EVERY_S", 0.0)

    assert not re.search(r"\d/\d", ended("jobs tidy --yes", option).err)


def test_of_jobs_put_into_the_store(ended: Cli, here: Path, terminal: None) -> None:
    ended.ok("jobs dump --folder backup --queue mail")
    ended.ok("queues obliterate mail --yes")

    assert "8/8" in ended("jobs import --file backup/mail.json").err


@pytest.mark.parametrize(
    "line",
    ["jobs import --file nothing.json", "jobs dump --folder ../away", "jobs purge --max-age 0s --dump ../a.json --yes"],
)
def test_of_work_that_is_refused_is_not_shown(ended: Cli, terminal: None, line: str) -> None:
    done = ended(line)

    assert done.code != 0
    assert "━" not in done.err


def test_of_promoted_and_cancelled_jobs(cli: Cli, terminal: None) -> None:
    for number in range(3):
        cli.add("mail", "send", {"to": f"ann{number}"}, "--delay", "1h")

    assert "3/3" in cli("jobs promote --queue mail --yes").err
    assert "3/3" in cli("jobs cancel --name send --yes").err


def test_of_jobs_put_back(cli: Cli, url: str, terminal: None) -> None:
    cli.add("slow", "nap", {})
    anyio.run(claim_and_vanish, url, "slow")

    done = cli("jobs requeue --from-age 0s")

    assert done.out == "1 job put back\n"
    assert "1/1" in done.err
