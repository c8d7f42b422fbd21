"""What the README tells people to type exists: its commands, and their options."""

import re
import shlex

import pytest

from tests.cli.conftest import HERE, Cli

TEXT = (HERE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:sh|bash|console|shell)\n(.*?)```", TEXT, re.DOTALL)
LINES = sorted(
    {
        *re.findall(r"`(?:[A-Z_]+=\S+ )*workers ([a-z][^`\n]*)`", TEXT),
        *(
            line
            for block in BLOCKS
            for line in re.findall(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*workers ([a-z].*)$", block, re.MULTILINE)
        ),
    }
)


@pytest.mark.parametrize("line", LINES)
def test_every_line_of_the_readme_can_be_typed(bare: Cli, line: str) -> None:
    words = shlex.split(line.partition(" # ")[0].partition(" && ")[0], comments=True)
    names = [word for word in words[:2] if re.fullmatch("[a-z]+", word)]

    help_ = bare.ok(" ".join(names), "--help") if len(names) == 2 else bare.ok(names[0], "--help")

    shown = help_ + bare.ok("--help")
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(^|[\s,]){re.escape(word.partition('=')[0])}\b", shown), word


def test_the_readme_has_some() -> None:
    assert LINES
