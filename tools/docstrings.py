"""What the reference makes of docstrings: names of the package become links, and examples code."""

import re
import textwrap
from pathlib import Path
from typing import Any, Final

import griffe

_PUBLIC: Final = (Path(__file__).parents[1] / "src/workers_module/__init__.pyi").read_text(encoding="utf-8")
_NAMES: Final = frozenset(re.findall(r"(?m)^from \S+ import \w+ as (\w+)$", _PUBLIC))
_NAME: Final = re.compile(r"(?<![`\[])`(?P<name>\w+)(?P<rest>(?:\.\w+)?)`(?!`)")
_LITERAL: Final = re.compile(r"(?m)^(?P<indent> *)::\n\n(?P<code>(?:(?P=indent) +.*\n?|\n)+)")


class Docstrings(griffe.Extension):
    """Changes docstrings before they are read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a class, a function or an attribute."""
        if obj.docstring is not None:
            obj.docstring.value = _LITERAL.sub(_fence, _NAME.sub(_link, obj.docstring.value))


def _link(match: re.Match[str]) -> str:
    name = match["name"]
    return match[0] if name not in _NAMES else f"[{match[0]}][workers_module.{name}{match['rest']}]"


def _fence(match: re.Match[str]) -> str:
    code = textwrap.dedent(match["code"]).strip("\n")
    return textwrap.indent(f"```python\n{code}\n```\n\n", match["indent"])
