"""The root of the command line: its options, its nouns, and how a command is run."""

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from workers_module import __version__
from workers_module.cli.ending import end_threads
from workers_module.cli.options import Options, choose, hoist, options

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

SETTINGS: Final[Mapping[str, Any]] = {"help_option_names": ["-h", "--help"]}

NOUNS: Final[Mapping[str, tuple[str, str]]] = {
    "start": ("start", "Run workers, alone or beside a web server."),
    "run": ("start", "Run the workers of an application: short for start --worker --app APP."),
    "stats": ("stats", "Show how many jobs each worker has, by state."),
    "queues": ("queues", "Look at queues; pause, resume, empty and delete them."),
    "jobs": ("jobs", "Look at jobs; add, retry, remove, cancel, dump and import them."),
    "cron": ("cron", "Look at schedules; run, pause and resume them."),
    "workers": ("workers", "Look at worker processes."),
    "locks": ("locks", "Look at named locks, and release them."),
    "check": ("check", "Build the application and look for faults; starts nothing."),
    "doctor": ("doctor", "Look for trouble in the store, each with its remedy."),
    "health": ("health", "Ask a running worker whether it is well."),
    "config": ("config", "Show the settings and where they come from."),
    "generate": ("generate", "Make the file of a new worker, and its test."),
    "migrations": ("migrations", "Bring the tables of an SQL store up to date."),
    "shell": ("shell", "Open a Python prompt on the application."),
}
"""Every command or group: the module that has it, and its line of help."""


class Nouns(TyperGroup):
    """A group that knows its commands by name, and imports one when it is run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options of every command from wherever they stand."""
        return super().parse_args(ctx, hoist(args))

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base's signature
        """Return the names in the order of `NOUNS`."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - as above
        """Return what tells of a command; `resolve_command` returns what runs it."""
        noun = NOUNS.get(cmd_name)
        return None if noun is None else TyperCommand(cmd_name, help=noun[1], short_help=noun[1], rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import what runs a command."""
        if args and args[0] not in NOUNS and not args[0].startswith("-"):
            close = get_close_matches(args[0], NOUNS, n=2)
            hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"There are: {', '.join(NOUNS)}."
            ctx.fail(f"No such command {args[0]!r}. {hint}")
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and name in NOUNS:
            face: Face = import_module(f"workers_module.cli.{NOUNS[name][0]}").face
            command = face.compiled(name)
        return name, command, rest


class Face(typer.Typer):
    """The commands of one noun. They may be coroutines; what they raise is told in a line and becomes the exit code."""

    def __init__(self, help: str | None = None, *, single: bool = False) -> None:  # noqa: A002 - Typer's word
        """Make a noun.

        Args:
            help: Its line of help.
            single: Its commands are no group: each is a noun itself.
        """
        super().__init__(
            help=help,
            no_args_is_help=True,
            rich_markup_mode=None,
            add_completion=False,
            context_settings=dict(SETTINGS),
            pretty_exceptions_enable=False,
        )
        self._single = single
        self._group: Any = None

    def command(self, name: str | None = None, **settings: Any) -> Callable[[CommandT], CommandT]:
        """Register a command, sync or async."""

        def register(function: CommandT) -> CommandT:
            settings.setdefault("context_settings", dict(SETTINGS))
            # Else it is cut to what fits into one line.
            settings.setdefault("short_help", (function.__doc__ or "").partition("\n")[0])
            super(Face, self).command(name, **settings)(_reporting(function))
            return function

        return register

    def compiled(self, name: str) -> Any:
        """Return the group, or its one command of this name."""
        if self._group is None:
            self._group = typer.main.get_group(self)
            for command in self._group.commands.values():
                _name_values(command)
        return self._group.commands[name] if self._single else self._group


def _name_values(command: Any) -> None:
    """Have help call values by words; typer's own are types, as ``<list[str]>``."""
    for param in command.params:
        if param.param_type_name == "argument":
            param.display_type_rich = _no_type
        elif param.metavar is None and not param.is_flag:
            is_number = param.type_descriptor.annotation in {int, float}
            param.metavar = "N" if is_number else max(param.opts, key=len).removeprefix("--").upper()


def _no_type(ctx: Any) -> None:
    """Say nothing of a type."""


def _reporting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command, and turn what it raises into a line and an exit code."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> None:
        try:
            if inspect.iscoroutinefunction(function):
                run_async(functools.partial(function, *args, **kwargs))
            else:
                function(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise typer.Exit(report(error)) from None

    return command


def run_async(function: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function on an event loop of its own."""
    import anyio  # noqa: PLC0415 - not for the commands that need no loop

    anyio.run(function)


def report(error: BaseException) -> int:
    """Tell an error in its own words on standard error, and return the exit code.

    A group of errors, as task groups raise, is told by its first one.
    """
    from workers_module.cli.failures import first_of, told  # noqa: PLC0415 - they cost time to import
    from workers_module.cli.output import clean  # noqa: PLC0415

    if options().verbose:
        sys.stderr.write(clean("".join(traceback.format_exception(first_of(error))), keep="\n"))
    code, text = told(error)
    if text:
        sys.stderr.write(f"{clean(text, keep=chr(10))}\n")
    return code


app: Final = typer.Typer(
    cls=Nouns,
    name="workers",
    help="Background jobs: run workers, look at queues and jobs, keep them in order.",
    epilog="The options above may also stand behind a command. Exit codes: 0 done, 1 failed, 2 usage, 3 application "
    "or settings, 4 store, 5 a check found something, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=dict(SETTINGS),
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"workers_module {__version__}")
        raise typer.Exit


@app.callback()
def root(
    target: Annotated[
        str | None,
        typer.Option("--app", metavar="MODULE:NAME", help="The application: a container, or what returns one."),
    ] = None,
    app_dir: Annotated[
        Path, typer.Option("--app-dir", metavar="DIR", help="Where its modules are.", file_okay=False)
    ] = Path(),
    environment: Annotated[
        str | None, typer.Option("-e", "--environment", metavar="NAME", help="Whose settings files are read.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Where the jobs are, e.g. sqlite:///jobs.db.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", metavar="TEXT", help="What the names of all keys begin with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log more, show tracebacks.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback answers
        bool, typer.Option("-V", "--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Take the options of every command."""
    given = Options(app=target, app_dir=app_dir, json=as_json, quiet=quiet, verbose=verbose, color=not no_color)
    choose(given)
    for path, value, option in (
        ("environment", environment, "--environment"),
        ("queue.uri", url, "--url"),
        ("queue.prefix", prefix, "--prefix"),
    ):
        if value is not None:
            given.setting(path, value, option)
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING,
        format="%(levelname)s %(message)s",
        stream=sys.stderr,
        force=True,
    )


def run() -> None:
    """Run the command line of this process, and let no thread of a handler keep it."""
    try:
        app(prog_name="workers")
    except SystemExit as end:
        end_threads(end.code if isinstance(end.code, int) else 1)
        raise
