"""What every command can be told, before or after its name."""

import os
import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOISTED: Final = {
    **dict.fromkeys(("--app", "--app-dir", "-e", "--environment", "--url", "--prefix"), True),
    **dict.fromkeys(("--json", "-q", "--quiet", "-v", "--verbose", "--no-color"), False),
}
"""The options of every command, and whether a value follows."""
UNSAID: Final = {"-w": ("--worker", ""), "--worker": ("--worker", ""), "--watch": ("--watch", "2s")}
"""The options whose value may be left out, and what is then meant: without tags it is jobs that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of every command.

    Attributes:
        app: The application, as given.
        app_dir: Where its modules are looked for.
        json: Print JSON.
        quiet: Say nothing but results and errors.
        verbose: Log more, and show tracebacks.
        color: Colours are allowed.
        said: Which option set a setting, by the setting's path.
    """

    app: str | None = None
    app_dir: Path = Path()
    json: bool = False
    quiet: bool = False
    verbose: bool = False
    color: bool = True
    said: dict[str, str] = field(default_factory=dict[str, str])

    def setting(self, path: str, value: str, option: str) -> None:
        """Let an option of the command line set a setting, over the environment; child processes inherit it."""
        from workers_module.settings import variables  # noqa: PLC0415 - not for every command

        variable = next(one for one in variables() if one.path == path)
        for name in variable.names:
            os.environ.pop(name, None)
        os.environ[variable.name] = value
        self.said[path] = option


_CURRENT: ContextVar[Options] = ContextVar("options")


def options() -> Options:
    """Return the options of the command that runs."""
    return _CURRENT.get(_DEFAULT)


_DEFAULT: Final = Options()


def choose(given: Options) -> None:
    """Make these the options of the command that runs."""
    _CURRENT.set(given)
    place = str(given.app_dir.resolve())
    if given.app_dir != Path():
        sys.path.insert(0, place)
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = place if not path else f"{place}{os.pathsep}{path}"


def hoist(args: list[str]) -> list[str]:
    """Bring the options of every command to the front, so that they may also stand behind a command."""
    front: list[str] = []
    rest: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        name, is_set, _ = arg.partition("=")
        if arg == "--":
            rest += [arg, *left]
            break
        if arg in UNSAID:
            option, value = UNSAID[arg]
            rest.append(f"{option}={left.pop(0) if left and not left[0].startswith('-') else value}")
            continue
        takes = HOISTED.get(name if name.startswith("--") else arg)
        if takes is None:
            rest.append(arg)
        else:
            front.append(arg)
            if takes and not is_set and left:
                front.append(left.pop(0))
    return front + rest
