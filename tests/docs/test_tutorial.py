"""The tutorial, done step by step as its reader would: files are written, commands run, and say what it says."""

import importlib
import io
import logging
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from tests.pages import blocks
from tests.servers import shared_redis
from workers_module.cli.app import app
from workers_module.settings import WorkersSettings

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial.md"
URL = "redis://localhost:6379/0"
ANYTHING = "…"


class Command(NamedTuple):
    line: str
    output: list[str]


def commands(text: str) -> list[Command]:
    found: list[Command] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:], []))
        else:
            found[-1].output.append(line)
    return found


def plain(line: str) -> str:
    """Leave out what differs between two runs: numbers, the width of columns, the name of the machine.

    Of what a worker logs this keeps what happened; how it is worded is for the tests of the command.
    """
    if ended := re.match(r"\d\d:\d\d:\d\d +(?P<job>\S+ +\S+ #\d+) +(?P<how>\w+)", line):
        return f"{' '.join(ended['job'].split())} {ended['how'].replace('retry', 'failed')}"
    if told := re.match(r" *(kept:|Ready in)", line):
        return told[1]
    line = re.sub(r"\b\S+:\d+:[0-9a-f]{8}\b", "worker", line)
    line = re.sub(r"\b(?:EET|EEST)\b", "local", line)
    line = re.sub(r"\bnow$|(in )?\b\d[\d.]* ?(ms|s|min|h|d)\b( \d+ (s|min|h)\b)*( ago)?", "some time", line)
    return re.sub(r"\s+", " ", re.sub(r"\d[\d,.]*", "0", line)).strip()


def says(output: str, expected: list[str]) -> bool:
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == ANYTHING else f"{re.escape(plain(line))}\n" for line in expected)
    return re.fullmatch(pattern, "".join(f"{plain(line)}\n" for line in output.splitlines())) is not None


class Reader:
    """Somebody who follows the tutorial in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.modules: set[str] = set()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")
        if name.endswith(".py"):
            self.modules.add(name.removesuffix(".py"))

    def run(self, line: str) -> str:
        """Run a command, and return what it says: where it can be in this process, which has imported all it needs."""
        match shlex.split(line):
            case ["workers", *words]:
                return self._command(words)
            case ["python", script, *words] if script.endswith(".py"):
                return self._script(script, words)
            case ["python", *words]:
                return self._process(words)
            case _:
                pytest.fail(f"{line}: who runs this?")

    def _command(self, words: list[str]) -> str:
        self.forget()
        root = logging.getLogger()
        level, handlers, path = root.level, list(root.handlers), list(sys.path)
        try:
            done = CliRunner().invoke(app, words)
        finally:
            root.setLevel(level)
            root.handlers[:], sys.path[:] = handlers, path
        assert done.exit_code == 0, f"workers {shlex.join(words)}\n{done.output}"
        return done.output

    def _script(self, script: str, words: list[str]) -> str:
        self.forget()
        output = io.StringIO()
        with self.monkeypatch.context() as patch, redirect_stdout(output):
            patch.syspath_prepend(self.folder)
            patch.setattr(sys, "argv", [script, *words])
            runpy.run_path(script, run_name="__main__")
        return output.getvalue()

    def _process(self, words: list[str]) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"python {shlex.join(words)}\n{done.stdout}"
        return done.stdout

    def forget(self) -> None:
        """Let the next command import the files as they are now."""
        for name in self.modules:
            sys.modules.pop(name, None)
        importlib.invalidate_caches()


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(WorkersSettings.model_config, "env_file", ".env")
    monkeypatch.setenv("COLUMNS", "120")
    # As on a terminal, which also shows each line at once.
    monkeypatch.setenv("WORKERS_LOG_FORMAT", "console")
    monkeypatch.setattr("builtins.print", partial(print, flush=True))
    reader = Reader(tmp_path, monkeypatch)
    yield reader
    reader.forget()


def test_it_can_be_done_step_by_step(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    url, prefix = shared_redis()
    monkeypatch.setenv("WORKERS_QUEUE__PREFIX", prefix)
    # The reader has no such plug-in; without settings for it, it warns.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:asyncio")
    ran = 0
    for block in blocks(TUTORIAL, "python", "ini", "console"):
        if block.language != "console":
            reader.write(block.title, block.text)
            continue
        for line, expected in commands(block.text):
            if line.startswith(("python -m venv", "pip install")):
                continue
            if export := re.fullmatch(r"export (\w+)=(.*)", line):
                monkeypatch.setenv(export[1], export[2].replace(URL, url))
                continue
            # The server of the tests keeps nothing, and is warned of; its reader's does as it comes.
            output = re.sub(".*writes nothing to disk.*\n", "", reader.run(line)).replace(url, URL)
            assert says(output, expected), f"line {block.line}: {line}\n{output}"
            ran += 1
    assert ran > 10
