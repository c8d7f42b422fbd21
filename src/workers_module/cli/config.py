"""``workers config``: what the settings are, where they come from, and a file to start from."""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from pydantic import BaseModel

from workers_module.cli.app import Face
from workers_module.cli.options import options
from workers_module.cli.output import Column, emit, result, table
from workers_module.cli.session import built
from workers_module.settings import WorkersSettings, explained_settings, variables
from workers_module.sources import Variable, setting_text

face = Face("Show the settings and where they come from.")

_TOML: Final = "workers.<environment>.toml and workers.toml"
_HEAD: Final = (
    'Copy this file to .env and keep what you change. Every setting is here, with its default behind the "=";',
    "empty means none, or that it follows from the others. Durations have a unit: 500ms, 30s, 5m, 2h, 1d.",
    f"The environment wins over .env.<environment>, that over .env, that over {_TOML}.",
)
_PARTS: Final[Sequence[tuple[str, Sequence[str]]]] = (
    ("Where jobs are kept", ("queue",)),
    ("Which environment and application this is", ("environment", "app", "app_id")),
    (
        "Which workers run in this process",
        ("enabled", "enabled_workers", "tags", "cron", "auto_start", "auto_start_production"),
    ),
    (
        "How jobs run",
        ("mode", "in_process", "concurrency", "job_timeout", "sandbox", "max_payload_bytes", "capture_logging"),
    ),
    (
        "What happens when a worker stops, hangs or dies",
        ("shutdown_grace", "kill_after", "lease", "sweep_interval", "max_crashes", "unknown_job_grace"),
    ),
    ("How long jobs that ended are kept", ("retention",)),
    ("Looking on", ("dashboard", "health", "telemetry", "log")),
)


@face.command()
async def show(
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not a default.")] = False,
) -> None:
    """Show every setting in effect and where it comes from; secrets are masked."""
    async with built(app=False) as (container, _):
        with explained_settings():
            settings = await container.get(WorkersSettings)
    found = [
        {
            "variable": variable.name,
            "value": setting_text(_at(settings, variable.path)),
            "source": _source(settings, variable),
        }
        for variable in variables()
    ]
    if changed:
        found = [one for one in found if one["source"] != "default"]
    if options().json:
        emit(found)
        return
    heads = [
        Column("variable"),
        Column("value", shrinks=True, keeps="all"),
        Column("source", shrinks=True, keeps="all"),
    ]
    table(heads, [list(one.values()) for one in found], empty="every setting has its default")


@face.command()
def env() -> None:
    """Print a fresh .env.example: every setting with its default and what it is for."""
    result(env_example().rstrip("\n"), None)


def env_example() -> str:
    """Return the text of ``.env.example``."""
    lines = [f"# {line}" for line in _HEAD]
    for title, paths in _PARTS:
        lines += ["", f"# ---- {title} ----"]
        for path in paths:
            for variable in variables():
                if variable.path == path or variable.path.startswith(f"{path}."):
                    lines += ["", *_entry(variable)]
    return "\n".join(lines) + "\n"


def _entry(variable: Variable) -> list[str]:
    own = f"WORKERS_{variable.path.replace('.', '__').upper()}"
    others = [name for name in variable.names if name not in {variable.name, own}]
    comment = f"# {variable.description}"
    comments = [comment]
    if len(others) > 1:
        comments.append(f"# also read, in this order: {', '.join(others)}")
    elif others:
        comments = [f"{comment}; also read: {others[0]}"]
    if variable.path == "queue.uri":
        # The one that is active: jobs that outlive the process, without a server.
        return [*comments, f"{variable.name}=sqlite:///jobs.db"]
    return [*comments, f"#{variable.name}={variable.default}"]


def _at(settings: BaseModel, path: str) -> Any:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _source(settings: WorkersSettings, variable: Variable) -> str:
    return options().said.get(variable.path) or settings.origins.get(variable.path, "default")
