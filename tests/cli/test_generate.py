"""``workers generate worker``: what it writes works, and what exists is left alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from workers_module.cli.generate import names_of


@pytest.mark.parametrize("options", ["", "--cron '0 3 * * *' --queue night.work"])
def test_the_test_passes_as_generated(bare: Cli, here: Path, options: str) -> None:
    done = bare(f"generate worker MonthlyReport --module acme.workers {options}")

    assert done.code == 0, done.err
    assert "acme/workers/monthly_report.py" in done.err
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/workers/test_monthly_report.py"],
        cwd=here,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


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
