"""What is printed: nothing of what is stored steers a terminal, and tables fit."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from rich.console import Group
from rich.table import Table

from tests.cli.conftest import Cli
from workers_module.cli.output import Column, clean, fitting, span, when
from workers_module.store.open import open_store
from workers_module.store.values import ByIds, Fail, JobPatch, JobSpec

EVIL = "\x1b]0;owned\x07\x1b[2J\r\n\x9b31m\u202egnp\u2028\x00\x7f"


class TestClean:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain", "plain"),
            ("żółć 漢字 👩‍💻", "żółć 漢字 👩‍💻"),
            ("\x1b[31m", "\\x1b[31m"),
            ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
            ("\x9b\x7f\x00", "\\x9b\\x7f\\x00"),
            ("\u202e\u2028\ud800", "\\u202e\\u2028\\ud800"),
            ("\U000e0041", "\\U000e0041"),
        ],
    )
    def test_writes_control_characters_out(self, text: str, shown: str) -> None:
        assert clean(text) == shown

    def test_keeps_what_is_meant(self) -> None:
        assert clean("a\nb\x1b", keep="\n") == "a\nb\\x1b"


LOOKS = ["list", "show one", "show one --attempts --logs", "show one --json", "list --json", "show one --raw",
         "list --filter id:one", "show one --follow"]  # fmt: skip


@pytest.mark.parametrize("line", [*(f"jobs {look}" for look in LOOKS), "doctor", "stats", "queues list"])
def test_stored_control_characters_never_reach_the_terminal(url: str, bare: Cli, line: str) -> None:
    async def store_evil() -> None:
        # As other programs may write it; our own producers refuse most of it.
        store = open_store(url)
        await store.open()
        spec = JobSpec(queue="mail", name=f"name{EVIL}", data=json.dumps({"to": EVIL}).encode(), id="one")
        await store.add([spec, spec._replace(queue=f"queue{EVIL}", id="two")])
        await store.move("mail", ByIds(("one",)), Fail(EVIL, json.dumps([EVIL]).encode()))
        await store.edit("mail", [JobPatch(id="one", log_lines=(EVIL,))])
        await store.close()

    anyio.run(store_evil)

    done = bare(line)

    text = (done.out + done.err).replace("\n", "")
    assert text != ""
    assert not {one for one in text if not one.isprintable()}


def test_those_of_dumps_and_arguments_neither(cli: Cli, here: Path) -> None:
    job = {"queue": "mail", "id": "1", "name": "send", "state": "waiting", "data": 1, EVIL: 1}
    (here / "odd.json").write_text(json.dumps({"schema": "workers.jobs/v1", "jobs": [job]}))
    for done in (
        cli("jobs import --file odd.json"),
        cli("queues pause", EVIL.replace("\x00", "")),
        cli("jobs show", EVIL),
    ):
        assert done.code
        assert not {one for one in done.err.replace("\n", "") if not one.isprintable()}


class TestTimes:
    @pytest.mark.parametrize(
        ("ms", "text"),
        [
            (0, "0 ms"),
            (212, "212 ms"),
            (1_200, "1.2 s"),
            (59_000, "59 s"),
            (61_000, "1 min 1 s"),
            (16_800_000, "4 h 40 min"),
            (900_000_000, "10 d"),
        ],
    )
    def test_spans(self, ms: int, text: str) -> None:
        assert span(ms) == text

    def test_instants(self) -> None:
        now = datetime(2026, 1, 1, tzinfo=UTC)

        assert when(None, now) is None
        assert when(now, now) == "now"
        assert when(now + timedelta(minutes=5), now) == "in 5 min"
        assert when(now - timedelta(hours=2), now) == "2 h ago"


class TestTables:
    ROWS = (("ReportProcessor", "reports", 12), ("MailProcessor", "mail", 3))

    @pytest.mark.parametrize("width", [200, 80, 40, 30])
    def test_are_never_wider_than_the_terminal(self, width: int) -> None:
        made = fitting([Column("name", shrinks=True), "queue", Column("active", right=True)], self.ROWS, width)

        assert isinstance(made, Table)
        assert sum(column.width or 0 for column in made.columns) + len(made.columns) - 1 <= width

    def test_are_blocks_where_nothing_fits(self) -> None:
        made = fitting(["name", "queue", "active"], self.ROWS, 20)

        assert isinstance(made, Group)
        assert [str(line) for line in made.renderables][:4] == [
            *("  name  ReportProcessor", " queue  reports", "active  12", ""),
        ]
