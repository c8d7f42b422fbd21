"""The scripts: how their text is put together, and how they are called.

A script is known to the server by a hash of its text, and the server may forget it at any time: then the text is sent.
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

Argument = bytes | str | int | float
Command = tuple[Argument, ...]

_LUA: Final = files("workers_module.store.redis").joinpath("lua")
_PARTS: Final = ("ends", "moves")
"""What stands between ``core.lua`` and a script that does not say itself where it wants which part."""
_PART: Final = re.compile(r"^--> (\w+)\n", re.MULTILINE)
_BLOCK: Final = re.compile(r"--\[\[.*?\]\]\n?", re.DOTALL)
_LINE: Final = re.compile(r"^\s*--[^\n]*\n", re.MULTILINE)


class Script(NamedTuple):
    """A script: the text the server gets, and its hash."""

    name: str
    text: bytes
    sha: str

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """Return the call by hash."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def whole(self, command: Command) -> Command:
        """Return a call by hash as one that carries the text."""
        return ("EVAL", self.text, *command[2:])


@cache
def script(name: str) -> Script:
    """Return a script by its file's name without ending, such as ``step-2``."""
    keys = int(name.rpartition("-")[2])
    raw = (_read(name) if keys == 1 else _whole(name)).encode()
    return Script(name, raw, hashlib.sha1(raw, usedforsecurity=False).hexdigest())


def _whole(name: str) -> str:
    """Return a script with the common parts: a line ``--> part`` in it stands for the text of that file.

    Making the functions of all parts takes longer than most calls need for the rest.
    """
    text = _text(name)
    if not _PART.search(text):
        text = "".join(f"--> {part}\n" for part in _PARTS) + text
    return _bare(_text("core") + _PART.sub(lambda found: _text(found[1]), text))


def _read(name: str) -> str:
    return _bare(_text(name))


def _text(name: str) -> str:
    return _LUA.joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _bare(text: str) -> str:
    return _LINE.sub("", _BLOCK.sub("", text))
