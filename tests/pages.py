"""Pages in Markdown whose code runs: the README, and the documentation."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]+)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of code in a page.

    Attributes:
        language: What stands behind the fence.
        title: The name of the file, or what else the block is headed by; empty without one.
        text: The code.
        line: Where it begins, from 1.
    """

    language: str
    title: str
    text: str
    line: int


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page in some languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["language"],
            match["title"] or "",
            re.sub(f"(?m)^{match['indent']}", "", match["text"]),
            text.count("\n", 0, match.start()) + 2,
        )
        for match in _FENCE.finditer(text)
        if match["language"] in languages
    ]


def execute(page: Path, name: str) -> ModuleType:
    """Run all Python blocks of a page in one module, in order, as a reader pastes them one below the other."""
    module = ModuleType(name)
    # Annotations are looked up where the module is known by its name.
    sys.modules[name] = module
    for block in blocks(page, "python"):
        # Errors name the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        exec(code, vars(module))  # the pages are ours
    return module
