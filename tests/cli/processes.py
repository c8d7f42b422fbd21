"""Commands as processes of their own, for what only a process has: signals, exit codes, children, a terminal."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
PATIENCE = 60.0


def until(met: Callable[[], object], what: str) -> None:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE
    while not met():
        if time.monotonic() > end:
            pytest.fail(f"not within {PATIENCE:g} s: {what}")
        time.sleep(0.02)


class Running:
    """A command that runs."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str) -> "re.Match[str]":
        """Wait until it has said what a pattern matches."""
        until(
            lambda: re.search(text, self.said) or self.process.poll() is not None,
            f"{text!r} in:\n{self.said}",
        )
        match = re.search(text, self.said)
        assert match is not None, f"it ended without {text!r}:\n{self.said}"
        return match

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for its end, and return the exit code."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end:\n{self.said}")


@contextmanager
def running(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Generator[Running]:
    """Run a command meanwhile; what is left of it is killed."""
    log = folder / f"log-{time.monotonic_ns()}"
    values = {
        **os.environ,
        "PYTHONPATH": str(HERE),
        "WORKERS_APP": "tests.cli.shop:make_container",
        **(environment or {}),
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers_module", *arguments],
            cwd=folder,
            env=values,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
