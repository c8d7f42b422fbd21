"""mypy and pyright accept what is right about the public API and reject what is wrong, line by line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

for _checker in ("mypy", "pyright"):
    pytest.importorskip(_checker, reason=f"{_checker} is part of the dev extra")

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

Checker = Callable[[Path, Path], dict[int, str]]


def mypy(file: Path, scratch: Path) -> dict[int, str]:
    """Return what mypy says about a file, by line."""
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--python-version=3.11",
        "--config-file=",
        f"--cache-dir={scratch}",
        "--no-error-summary",
        "--hide-error-context",
        "--explicit-package-bases",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT / "src")
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    found: dict[int, str] = {}
    for line in done.stdout.splitlines():
        match = re.match(rf"[^:]*{file.name}:(\d+): error: (.*)", line)
        if match:
            found.setdefault(int(match[1]), match[2])
        else:
            assert ": note: " in line, line
    return found


def pyright(file: Path, scratch: Path) -> dict[int, str]:
    """Return what pyright says about a file, by line."""
    settings = {
        "include": [os.path.relpath(file, scratch)],
        "extraPaths": [str(ROOT / "src")],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "reportMissingTypeStubs": "none",
    }
    project = scratch / "pyrightconfig.json"
    project.write_text(json.dumps(settings))
    command = [
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        f"--pythonpath={sys.executable}",
        f"--project={project}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    told = json.loads(done.stdout)
    assert told["summary"]["filesAnalyzed"] == 1, done.stdout
    found: dict[int, str] = {}
    for fault in told["generalDiagnostics"]:
        if fault["severity"] == "error":
            found.setdefault(fault["range"]["start"]["line"] + 1, fault["message"])
    return found


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_what_is_right_is_accepted(checker: Checker, tmp_path: Path) -> None:
    for file in sorted((HERE / "accepted").glob("*.py")):
        assert checker(file, tmp_path) == {}


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_each_wrong_line_is_rejected_and_no_other(checker: Checker, tmp_path: Path) -> None:
    for file in sorted((HERE / "rejected").glob("*.py")):
        lines = file.read_text().splitlines()
        marked = {number for number, line in enumerate(lines, start=1) if line.endswith("  # error")}
        told = checker(file, tmp_path)

        assert marked, f"{file.name} has no marked line"
        assert set(told) == marked, {number: told.get(number, "accepted") for number in marked ^ set(told)}
