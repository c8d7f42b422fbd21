"""Write the pages on commands, settings and patterns from the code: ``python -m tools.reference docs/reference``.

The pages are made before each build of the documentation and are not kept, so they cannot fall behind.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import typer

from workers_module.cli.app import app
from workers_module.cli.config import env_example
from workers_module.job.schedule import CronExpression
from workers_module.settings import variables
from workers_module.sources import Variable

_TITLE: Final = re.compile(r"# ---- (.*) ----")
_ASSIGNED: Final = re.compile(r"#?([A-Z][A-Z_]*)=")
_MADE: Final = "<!-- Made by tools/reference.py; edit the code it describes. -->"

_COMMANDS: Final = """\
# Commands

`pip install 'workers_module[cli]'` brings `workers`; `python -m workers_module` is the same.
Each command prints this text with `--help`.

## Options of every command

They stand before or behind the command.

"""

_SETTINGS: Final = """\
# Settings

Every setting is an environment variable. Durations have a unit: `500ms`, `30s`, `5m`, `2h`, `1d`.
Lists are separated by commas.

Strongest first:

1. arguments of `WorkersSettings(...)`, and options of the command line
2. the environment
3. `.env.<environment>`, then `.env`
4. `workers.<environment>.toml`, then `workers.toml`
5. files in `/run/secrets`, named like the variable
6. the default

A fault stops the start. It names the variable, and all faults are told at once.
A `WORKERS_…` variable that is not below is warned of.

```console
$ workers config show --changed
$ workers config env > .env.example
```

In code a setting is a field of `WorkersSettings`:
`WorkersSettings(queue={"uri": "sqlite:///jobs.db"}, job_timeout="2m")`.
In TOML it has the same path: `job_timeout = "2m"`, and `[queue]` with `uri = "sqlite:///jobs.db"`.

"""

_EXPRESSIONS: Final = """\
# Cron expressions

`@cron(CronExpression.EVERY_10_SECONDS)` is `@cron("*/10 * * * * *")`.
Names and patterns are those of `@nestjs/schedule`. See [Schedules and time zones](../how-to/schedules.md).

"""


def commands() -> str:
    """Return the page on commands."""
    root: Any = typer.main.get_command(app)
    context = root.make_context("workers", [], resilient_parsing=True)
    lines = [_options(context, root.params)]
    for name in root.list_commands(context):
        command = root.resolve_command(context, [name])[1]
        lines += _command(command, name, context, level=2)
    return f"{_MADE}\n{_COMMANDS}" + "\n".join(lines).rstrip() + "\n"


def _command(command: Any, name: str, parent: Any, *, level: int) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield f"{'#' * level} {context.command_path}\n"
    yield f"{_text(command.help)}\n"
    if hasattr(command, "list_commands"):
        for one in command.list_commands(context):
            yield from _command(command.get_command(context, one), one, context, level=level + 1)
        return
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    yield f"```text\n{usage}\n```\n"
    yield _options(context, command.params)


def _options(context: Any, params: Sequence[Any]) -> str:
    rows: list[tuple[str, str]] = []
    for param in params:
        if param.param_type_name == "argument":
            rows.append((str(param.metavar), param.help or ""))
        elif (record := param.get_help_record(context)) is not None:
            rows.append(record)
    if not rows:
        return ""
    table = [f"| `{_cell(name)}` | {_text(text)} |" for name, text in rows]
    return _framed(["| option | what it does |", "| --- | --- |", *table])


def settings() -> str:
    """Return the page on settings."""
    known = {variable.name: variable for variable in variables()}
    parts: dict[str, list[str]] = {}
    rows: list[str] = []
    for line in env_example().splitlines():
        if title := _TITLE.fullmatch(line):
            rows = parts[title[1]] = ["| variable | default | meaning |", "| --- | --- | --- |"]
        elif assigned := _ASSIGNED.match(line):
            rows.append(_setting(known.pop(assigned[1])))
    if known:
        raise ValueError(f"{', '.join(known)}: left out by `workers config env`")
    return f"{_MADE}\n{_SETTINGS}" + "\n".join(f"## {title}\n\n{_framed(rows)}" for title, rows in parts.items())


def cron_expressions() -> str:
    """Return the page on patterns that have a name."""
    rows = [f"| `{one.name}` | `{one.value}` |" for one in CronExpression]
    return f"{_MADE}\n{_EXPRESSIONS}{_framed(['| name | pattern |', '| --- | --- |', *rows])}"


def _setting(variable: Variable) -> str:
    others = [name for name in variable.names if name != variable.name]
    also = f"; also `{'`, `'.join(others)}`" if others else ""
    default = f"`{_cell(variable.default)}`" if variable.default else ""
    meaning = f"{_text(variable.description)}{also}; field `{variable.path}`"
    return f"| `{variable.name}` | {default} | {meaning} |"


def _framed(table: Sequence[str]) -> str:
    """Return a table as the style sheet knows it."""
    return "\n".join(['<div class="reference" markdown>', "", *table, "", "</div>", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(text: str | None) -> str:
    """Return a help text as a line of Markdown."""
    return re.sub(r"([|*_\[\]])", r"\\\1", escape(" ".join((text or "").split()), quote=False))


def main(folder: Path) -> None:
    """Write the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.md").write_text(commands(), encoding="utf-8")
    (folder / "settings.md").write_text(settings(), encoding="utf-8")
    (folder / "cron-expressions.md").write_text(cron_expressions(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
