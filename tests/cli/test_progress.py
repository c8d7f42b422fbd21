"""Work on many jobs shows how far it is: on a terminal, and nowhere else."""

from pathlib import Path

import anyio
import pytest

from tests.cli.conftest import Cli, claim_and_vanish

LINES = [
    ("jobs retry --queue mail --yes", "Retrying", "3/3"),
    ("jobs remove --queue mail --yes", "Removing", "8/8"),
    ("jobs tidy --yes", "Deleting", "5/5"),
    ("jobs purge --max-age 0s --yes", "Deleting", "8/8"),
    ("jobs purge --max-age 0s --dump old.json --yes", "Deleting", "8/8"),
    ("jobs dump --folder backup --queue mail", "Writing", "8/8"),
    ("queues clean mail --older-than 0s --yes", "Deleting", "5/5"),
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
    assert label in done.err
    assert end in done.err
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


def test_of_jobs_put_into_the_store(ended: Cli, here: Path, terminal: None) -> None:
    ended.ok("jobs dump --folder backup --queue mail")
    ended.ok("queues obliterate mail --yes")

    assert "8/" in ended("jobs import --file backup/mail.json").err


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
