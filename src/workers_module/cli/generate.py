"""``workers generate``: the file of a new worker and its test, as a beginning. What exists is never overwritten."""

import keyword
import os
import re
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import CommandFailedError, UsageError
from workers_module.cli.output import result, say
from workers_module.cli.selecting import DryRun
from workers_module.cli.session import find_target
from workers_module.errors import ConfigurationError
from workers_module.job.names import check_name
from workers_module.job.schedule import Schedule

PYTEST_INI: Final = """\
[pytest]
# Tests import the application from here, whether run by pytest or by python -m pytest.
pythonpath = .
"""

face = Face("Make the file of a new worker, and its test.")


@face.callback()
def group() -> None:
    """Keep ``worker`` a command of its own."""


class Names(NamedTuple):
    """What a worker is called: ``report``, ``Report``."""

    snake: str
    camel: str


@face.command()
def worker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="E.g. report; the class is then ReportWorker.")],
    module: Annotated[
        str | None, typer.Option("--module", help="The package it goes to; else 'workers' beside the application.")
    ] = None,
    tests: Annotated[Path, typer.Option("--tests", help="Where the test goes.")] = Path("tests/workers"),
    queue: Annotated[str | None, typer.Option("--queue", help="Its queue; else the name.")] = None,
    cron: Annotated[str | None, typer.Option("--cron", metavar="EXPR", help="Also run it at these times.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Make the file of a new worker, and a test that passes."""
    names = names_of(name)
    try:
        chosen = check_name("queue", queue or names.snake)
        if cron is not None:
            Schedule.cron(cron)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
    package = module or _package()
    if not all(part.isidentifier() and not keyword.iskeyword(part) for part in package.split(".")):
        raise UsageError(f"--module {package!r}: expected a package, e.g. app.workers")
    if Path(f"{package.partition('.')[0]}.py").is_file():
        raise UsageError(f"--module {package!r}: {package.partition('.')[0]}.py is a file, so it can be no package")
    folder = Path(*package.split("."))
    files = {
        folder / f"{names.snake}.py": worker_text(names, chosen, cron),
        tests / f"test_{names.snake}.py": test_text(names, package),
    }
    _refuse_existing(files)
    # Parents above are the application's own affair: a package without the file is one, too.
    initial = folder / "__init__.py"
    if not initial.exists():
        files = {initial: '"""The workers: one file each."""\n', **files}
    if not _configures_pytest(Path()):
        files[Path("pytest.ini")] = PYTEST_INI
    for path, text in files.items():
        if not dry_run:
            _create(path, text)
        say(f"  {'would create' if dry_run else 'created'}  {path}")
    result(
        f'Next: let the application find it, WorkersModule.for_root(discover="{package}"), '
        f"and run pytest {tests / f'test_{names.snake}.py'}",
        {"files": [str(path) for path in files], "class": f"{names.camel}Worker", "queue": chosen, "dry_run": dry_run},
    )


def names_of(name: str) -> Names:
    """Return what a worker is called, however it was spelled; the ending ``worker`` is not doubled.

    Raises:
        UsageError: It cannot be a name in Python.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower().strip("_")
    snake = words.removesuffix("_worker")
    if not snake.isidentifier() or not snake.isascii() or keyword.iskeyword(snake) or snake == "worker":
        raise UsageError(f"{name!r} cannot be the name of a worker; write letters, digits and _, e.g. monthly_report")
    return Names(snake, "".join(word.capitalize() for word in snake.split("_")))


def worker_text(names: Names, queue: str, cron: str | None) -> str:
    """Return the file of a worker."""
    snake, camel = names
    scheduled = f'\n    @cron("{cron}", data={camel}Args())' if cron is not None else ""
    imports = "Worker, cron, processor" if cron is not None else "Worker, processor"
    return f'''"""{camel}: what it does, in a sentence."""

from pydantic import BaseModel

from workers_module import {imports}


class {camel}Args(BaseModel):
    """What a job is given; it is checked when the job is added, and again before it runs."""

    subject: str = "world"


@processor("{queue}")
class {camel}Worker(Worker[{camel}Args, str]):
    """Runs the jobs of queue {queue!r}. What it needs, its constructor asks for."""
{scheduled}
    async def perform(self, args: {camel}Args, /) -> str:
        """Do the work. What is raised fails the attempt; what is returned is the job's result."""
        return f"{snake} of {{args.subject}}"
'''


def test_text(names: Names, package: str) -> str:
    """Return the test of a worker."""
    snake, camel = names
    return f'''"""{camel}Worker, run as a worker process would: through the queue, with jobs in memory."""

import anyio

from {package}.{snake} import {camel}Args, {camel}Worker
from workers_module.testing.harness import worker_test


def test_{snake}_returns_its_result() -> None:
    async def scenario() -> None:
        async with worker_test(processors=[{camel}Worker]) as t:
            handle = await t.dispatcher.perform_later({camel}Worker, {camel}Args(subject="test"))

            assert await t.drain() == 1
            assert await handle.result() == "{snake} of test"

    anyio.run(scenario)
'''


def _package() -> str:
    top = (find_target() or "app").partition(":")[0].partition(".")[0]
    # An application that is one file has no room for more.
    return "workers" if Path(f"{top}.py").is_file() else f"{top}.workers"


def _configures_pytest(folder: Path) -> bool:
    """Whether a project has settings of pytest, which then say where its modules are."""
    if any((folder / name).exists() for name in ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini")):
        return True
    sections = {"pyproject.toml": "[tool.pytest", "tox.ini": "[pytest]", "setup.cfg": "[tool:pytest]"}
    try:
        return any(
            section in (folder / name).read_text(encoding="utf-8")
            for name, section in sections.items()
            if (folder / name).is_file()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailedError(f"the settings of the project cannot be read: {error}") from None


def _refuse_existing(files: dict[Path, str]) -> None:
    there = [str(path) for path in files if path.exists() or path.is_symlink()]
    if there:
        raise CommandFailedError(f"{', '.join(there)}: exists already and is left alone; nothing was written")


def _create(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandFailedError(f"{path}: cannot be written: {error.strerror}") from None
