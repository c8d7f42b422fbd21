"""``workers start`` and ``workers run``: the worker process, alone or beside a web server."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from workers_module.cli.app import Face
from workers_module.cli.ending import LEAVE_S, end_within, relax
from workers_module.cli.failures import ExitCode, UsageError, told
from workers_module.cli.options import options
from workers_module.cli.output import say
from workers_module.cli.process import Wish, work
from workers_module.cli.selecting import duration_of
from workers_module.cli.session import complete_worker
from workers_module.cli.supervisor import Supervisor
from workers_module.clock import span_ms
from workers_module.errors import ConfigurationError
from workers_module.settings import WorkersSettings

face = Face(single=True)


@face.command("start")
def start(
    worker: Annotated[
        list[str] | None,
        typer.Option(
            "-w", "--worker", metavar="[TAGS]", help="Run workers; with tags, for jobs that have one of them."
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("-s", "--server-and-worker", metavar="ASGI_APP", help="Serve a web application and run workers."),
    ] = None,
    everything: Annotated[
        str | None, typer.Option("--all", metavar="ASGI_APP", help="The same: schedules tick where workers run.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="NAMES", help="These workers alone.", autocompletion=complete_worker),
    ] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Jobs at once, per worker.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, max=1024, help="So many processes.")] = 1,
    no_cron: Annotated[bool, typer.Option("--no-cron", help="Schedules do not tick here.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Stop when nothing is left to do.")] = False,
    max_jobs: Annotated[int | None, typer.Option("--max-jobs", min=1, help="Stop after so many jobs.")] = None,
    grace: Annotated[str | None, typer.Option("--grace", metavar="25s", help="For running jobs, at a stop.")] = None,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a file changes.")] = False,
    reload_dir: Annotated[Path, typer.Option("--reload-dir", metavar="DIR", help="Where files are watched.")] = Path(),
    health_port: Annotated[
        int | None, typer.Option("--health-port", min=0, max=65535, help="Serve /live, /ready and /startup.")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Where the web server listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On which port.")] = 8000,
    loop: Annotated[str, typer.Option("--loop", help="The event loop: asyncio or uvloop.")] = "asyncio",
    stats: Annotated[bool, typer.Option("--stats", help="Show how many jobs there are, and end.")] = False,
) -> None:
    """Run workers until Ctrl-C or SIGTERM, alone (--worker) or beside a web server (--all)."""
    asgi = _asgi_app(worker, server, everything)
    tags = [tag for given in worker or () for tag in given.removeprefix("=").split(",") if tag.strip()]
    if asgi is not None and tags:
        raise UsageError("tags do not go with a web server, which takes jobs without tags; use start --worker=TAGS")
    if loop not in {"asyncio", "uvloop"}:
        raise UsageError(f"--loop {loop!r}: there are asyncio and uvloop")
    if loop == "uvloop":
        _need("uvloop", "uvloop")
    _set(tags=tags, concurrency=concurrency, grace=grace, health_port=health_port, no_cron=no_cron)
    if stats:
        from workers_module.cli.stats import show  # noqa: PLC0415 - a noun of its own

        anyio.run(show)
        return
    wish = Wish(
        only=None if only is None else tuple(name.strip() for name in only.split(",") if name.strip()),
        server=asgi,
        host=host,
        port=port,
        drain=drain,
        max_jobs=max_jobs,
        uvloop=loop == "uvloop",
    )
    if reload or processes > 1:
        if asgi is not None and processes > 1:
            raise UsageError("--processes goes with --worker; a web server's processes are its own affair")
        _supervise(wish, processes, reload_dir if reload else None)
        return
    if asgi is None:
        _run_loop(partial(work, wish), uvloop=wish.uvloop)
        return
    _prepare_server(wish, health_port)
    from workers_module.cli.server import serve  # noqa: PLC0415 - needs an extra

    _run_loop(partial(serve, wish), uvloop=wish.uvloop)


@face.command("run")
def run(app: Annotated[str, typer.Argument(metavar="APP", help="The application: module:attribute.")]) -> None:
    """Run the workers of an application: short for start --worker --app APP."""
    os.environ["WORKERS_APP"] = app
    options().said["app"] = "APP"
    _run_loop(partial(work, Wish()), uvloop=False)


def _asgi_app(worker: list[str] | None, server: str | None, everything: str | None) -> str | None:
    given = [one for one in (server, everything) if one is not None]
    if len(given) + (worker is not None) != 1:
        if worker is not None and given and any(one.strip("=") for one in worker):
            raise UsageError("tags do not go with a web server, which takes jobs without tags; use start --worker=TAGS")
        raise UsageError("say what to start, one of: --worker, --server-and-worker ASGI_APP, --all ASGI_APP")
    return given[0] if given else None


def _set(
    *, tags: Sequence[str], concurrency: int | None, grace: str | None, health_port: int | None, no_cron: bool
) -> None:
    if grace is not None:
        duration_of(grace, "--grace")
    for path, value, option in (
        ("tags", ",".join(tags) or None, "--worker"),
        ("concurrency", concurrency, "--concurrency"),
        ("shutdown_grace", grace, "--grace"),
        ("health.port", health_port, "--health-port"),
        ("cron", "false" if no_cron else None, "--no-cron"),
    ):
        if value is not None:
            options().setting(path, str(value), option)


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise ConfigurationError(f"this needs {module}, which is not installed: pip install 'workers_module[{extra}]'")


def _run_loop(function: Callable[[], Coroutine[Any, Any, int]], *, uvloop: bool) -> None:
    async def bounded() -> int:
        code: int = ExitCode.FAILED
        why = ""
        try:
            code = await function()
        except Exception as error:
            code, why = told(error)
            raise
        finally:
            # All that counts is over. Tasks that ignore their cancellation would keep the event loop for ever.
            relax()
            end_within(LEAVE_S, code, why=why)
        return code

    try:
        code = anyio.run(bounded, backend_options={"use_uvloop": uvloop})
    finally:
        relax()
    if code:
        raise typer.Exit(code)


def _prepare_server(wish: Wish, health_port: int | None) -> None:
    """Let the lifespan of the web application start the workers as this command wants them."""
    _need("uvicorn", "server")
    for option, given in (("--drain", wish.drain), ("--max-jobs", wish.max_jobs), ("--health-port", health_port)):
        if given not in {None, False}:
            raise UsageError(f"{option} goes with --worker; beside a web server the server decides")
    if wish.only is not None:
        options().setting("enabled_workers", ",".join(wish.only), "--only")
    for path in ("enabled", "auto_start", "auto_start_production"):
        options().setting(path, "true", "--all")
    tags = WorkersSettings().tags
    if tags:
        raise UsageError(f"WORKERS_TAGS is {','.join(tags)}, and tags do not go with a web server; unset it")


def _supervise(wish: Wish, processes: int, watched: Path | None) -> None:
    if watched is not None:
        _need("watchfiles", "reload")
        if not watched.is_dir():
            raise UsageError(f"--reload-dir {watched}: is no directory")
    settings = WorkersSettings()
    health = settings.health.port

    def command(number: int) -> tuple[list[str], dict[str, str]]:
        flags = [flag for flag, on in (("-v", options().verbose), ("-q", options().quiet)) if on]
        flags += [] if options().color else ["--no-color"]
        # Each process needs a port of its own; 0 is any free one for each.
        port = {"WORKERS_HEALTH__PORT": str(health + number)} if health else {}
        return [sys.executable, "-m", "workers_module", *flags, "start", *wish.arguments], port

    if options().app is not None:
        os.environ["WORKERS_APP"] = options().app or ""
    supervisor = Supervisor(
        command,
        processes,
        grace_s=(span_ms(settings.shutdown_grace) + span_ms(settings.kill_after)) / 1_000,
        changes=None if watched is None else partial(_changes, watched),
        once=wish.drain,
    )
    if processes > 1:
        say(f"workers_module supervises {processes} processes from pid {os.getpid()}")
    _run_loop(supervisor.run, uvloop=False)


async def _changes(folder: Path) -> AsyncIterator[str]:
    from watchfiles import PythonFilter, awatch  # noqa: PLC0415 - an extra  # pyright: ignore[reportUnknownVariableType]

    async for changes in awatch(folder, watch_filter=PythonFilter()):
        yield ", ".join(sorted({Path(path).name for _, path in changes})[:3])
