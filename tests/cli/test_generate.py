"""``workers generate worker``: what it writes works, and what exists is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from workers_module.cli.generate import names_of


def run_pytest(here: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # As the command pytest does: the current directory is not on the path.
    command = "import sys, pytest; sys.path[:] = [p for p in sys.path if p]; sys.exit(pytest.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-P", "-c", command, "-q", "-p", "no:cacheprovider", *arguments],
        cwd=here,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tests_pass_as_generated(bare: Cli, here: Path) -> None:
    done = bare("generate worker MonthlyReport --module acme.workers")
    assert done.code == 0, done.err
    assert "acme/workers/monthly_report.py" in done.err
    bare.ok("generate worker night --module acme.workers --cron '0 3 * * *' --queue night.work")

    ran = run_pytest(here)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout


def test_beside_an_application_of_one_file_they_pass_too(bare: Cli, here: Path) -> None:
    (here / "app.py").write_text("'the application'\n")

    bare.ok("generate worker report --app app:make_container")
    ran = run_pytest(here, "tests/workers/test_report.py")

    assert (here / "workers/report.py").exists()
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_file_can_be_no_package(bare: Cli, here: Path) -> None:
    (here / "app.py").write_text("'the application'\n")

    done = bare("generate worker report --module app.workers")

    assert (done.code, "app.py is a file" in done.err) == (2, True)
    assert list(here.iterdir()) == [here / "app.py"]


@pytest.mark.parametrize(
    ("file", "text", "written"),
    [
        ("pyproject.toml", "[tool.pytest.ini_options]\n", False),
        ("pyproject.toml", '[project]\nname = "acme"\n', True),
        ("setup.cfg", "[tool:pytest]\n", False),
        ("tox.ini", "[tox]\n", True),
        (".pytest.ini", "", False),
    ],
)
def test_settings_of_pytest_are_made_where_there_are_none(
    bare: Cli, here: Path, file: str, text: str, written: bool
) -> None:
    (here / file).write_text(text)

    bare.ok("generate worker report")

    assert (here / "pytest.ini").exists() == written
    assert (here / file).read_text() == text


@pytest.mark.parametrize("existing", ["acme/workers/report.py", "tests/workers/test_report.py"])
def test_what_exists_is_left_alone(bare: Cli, here: Path, existing: str) -> None:
    (here / existing).parent.mkdir(parents=True)
    (here / existing).write_text("mine")

    done = bare("generate worker report --module acme.workers")

    assert done.code == 1
    assert existing in done.err
    assert list(here.rglob("*.py")) == [here / existing]
    assert (here / existing).read_text() == "mine"


def test_links_are_not_written_through(bare: Cli, here: Path) -> None:
    (here / "acme/workers").mkdir(parents=True)
    (here / "acme/workers/report.py").symlink_to(here / "elsewhere.py")

    assert bare("generate worker report --module acme.workers").code == 1
    assert not (here / "elsewhere.py").exists()


def test_dry_run_writes_nothing(bare: Cli, here: Path) -> None:
    assert bare("generate worker report --dry-run --json").json["class"] == "ReportWorker"
    assert list(here.iterdir()) == []


def test_the_package_follows_from_the_application(bare: Cli, here: Path) -> None:
    bare.ok("generate worker report --app acme.app:make_container")

    assert (here / "acme/workers/report.py").exists()


@pytest.mark.parametrize(
    ("name", "snake", "camel"),
    [
        ("report", "report", "Report"),
        ("report_worker", "report", "Report"),
        ("ReportWorker", "report", "Report"),
        ("monthly-report", "monthly_report", "MonthlyReport"),
    ],
)
def test_names(name: str, snake: str, camel: str) -> None:
    assert names_of(name) == (snake, camel)


@pytest.mark.parametrize(
    "line",
    [
        "worker 'a b'",
        "worker ../evil",
        "worker class",
        "worker worker",
        "worker 1st",
        "worker a --module ../x",
        "worker a --cron 'every day'",
        "worker a --queue 'a b'",
        "workers a",
    ],
)
def test_what_cannot_be_a_name_is_refused(bare: Cli, here: Path, line: str) -> None:
    assert bare(f"generate {line}").code == 2
    assert list(here.iterdir()) == []
