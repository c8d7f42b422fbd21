"""On a real terminal: colours where they are wanted, questions, progress, and nothing wider than it is."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.cli.conftest import Cli
from tests.cli.processes import HERE, PATIENCE

COLOR = re.compile(r"\x1b\[[0-9;]*[1-9][0-9;]*m")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")


def on_terminal(
    here: Path, *arguments: str, columns: int = 80, answer: tuple[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Run a command on a terminal of its own; ``answer`` is what is typed when something was said."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(here)
        values = {**os.environ, "PYTHONPATH": str(HERE), "TERM": "xterm-256color", **(environment or {})}
        values.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, "-m", "workers_module", *arguments], values)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    said = ""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 65_536)
            except OSError:  # Linux says so when the other side is closed
                break
            if not data:
                break
            said += data.decode("utf-8", "replace")
        if answer is not None and answer[0] in said:
            os.write(terminal, answer[1].encode())
            answer = None
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), said


def test_tables_fit(ended: Cli, here: Path) -> None:
    code, said = on_terminal(here, "jobs", "list", "--queue", "mail", columns=80)

    assert code == 0, said
    assert COLOR.search(said)
    assert_fits(said, 80)


WIDTHS = {
    **dict.fromkeys(("stats", "jobs list --queue mail", "queues list", "cron list"), (120, 80, 60, 44)),
    "config show": (120, 80, 60),
    "check": (120, 80),
}


@pytest.mark.parametrize(("line", "columns"), [(line, width) for line, widths in WIDTHS.items() for width in widths])
def test_whatever_the_width(ended: Cli, monkeypatch: pytest.MonkeyPatch, line: str, columns: int) -> None:
    # In this process, which Rich then takes for one on a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))

    said = ended.ok(line)

    # The last line of check is a sentence, which the terminal breaks.
    assert_fits(said.partition("\ntests.cli.shop:make_container:")[0], columns)


def assert_fits(said: str, columns: int) -> None:
    assert "mail" in said or "nightly" in said or "QUEUE_URL" in said
    lines = [ESCAPES.sub("", line).rstrip() for line in said.splitlines()]
    assert max(map(cell_len, lines)) <= columns


@pytest.mark.parametrize(
    ("options", "environment"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"})], ids=["option", "variable"]
)
def test_colours_can_be_refused(
    ended: Cli, here: Path, options: tuple[str, ...], environment: Mapping[str, str]
) -> None:
    code, said = on_terminal(here, "jobs", "list", *options, environment=environment)

    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", said)


def test_a_person_is_asked_and_sees_progress(ended: Cli, here: Path) -> None:
    code, said = on_terminal(here, "jobs", "retry", "--queue", "mail", answer=("[y/N]", "y\n"))

    assert code == 0, said
    assert "3 jobs of mail found. Retry? [y/N]" in said
    assert "3/3" in said
    assert "3 retried" in said


def test_no_is_the_answer_that_changes_nothing(ended: Cli, here: Path) -> None:
    code, said = on_terminal(here, "jobs", "remove", "--queue", "mail", answer=("[y/N]", "\n"))

    assert code == 2
    assert "nothing was changed" in said
    assert len(ended("jobs list --queue mail --json").json) == 8


def test_ctrl_c_ends_what_watches_with_130(ended: Cli, here: Path) -> None:
    code, said = on_terminal(here, "stats", "--watch", "50ms", answer=("NightTasks", "\x03"))

    assert code == 130, said
    assert "interrupted" in said
    assert "error" not in said
    # What Ctrl-C writes, ^C, must fit behind the last line, or the table moves.
    lines = [ESCAPES.sub("", line) for line in re.split(r"[\r\n]+", said.partition("^C")[0])]
    assert max(map(cell_len, lines)) <= 78


def test_what_watches_on_a_narrow_terminal_has_blocks(ended: Cli, here: Path) -> None:
    code, said = on_terminal(here, "stats", "--watch", "50ms", columns=50, answer=("render", "\x03"))

    assert code == 130, said
    assert "name  MailProcessor" in ESCAPES.sub("", said)


def test_what_doctor_finds_is_broken_between_words(ended: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "44")
    ended.ok("queues pause mail")

    said = ESCAPES.sub("", ended("doctor --queue mail").out)

    lines = [line for line in said.splitlines() if "→" not in line]
    assert max(map(len, lines)) <= 44
    assert any(line.startswith("      ") for line in lines)
    assert "      → workers queues resume mail" in said.splitlines()
