"""What a command works with: the application's container, or one made for a bare store."""

import logging
import os
import tomllib
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import typer
from dishka import AsyncContainer, make_async_container
from dishka.exceptions import NoFactoryError

from workers_module.cli.failures import NoStoreError, UsageError
from workers_module.cli.options import options
from workers_module.client.admin import JobsAdmin
from workers_module.client.inspector import Inspector
from workers_module.client.producer import Producer
from workers_module.client.queue import Queue
from workers_module.clock import to_datetime
from workers_module.di.registry import WorkerRegistry
from workers_module.di.schedules import Scheduler
from workers_module.di.target import load_target
from workers_module.errors import ConfigurationError, WorkersError
from workers_module.job.names import check_name
from workers_module.module import WorkersModule
from workers_module.settings import WorkersSettings, explained_settings
from workers_module.store.base import Store
from workers_module.store.open import open_store, schema_of
from workers_module.store.values import StoreInfo

_NO_APP: Final = (
    "this needs the application: pass --app module:attribute, set WORKERS_APP, "
    'or write app = "module:attribute" under [tool.workers] in pyproject.toml'
)
_NO_STORE: Final = (
    "jobs rest in the memory of the process that runs them, so a command sees none; "
    "set QUEUE_URL, or pass --url, e.g. --url sqlite:///jobs.db"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """An open application, or an open store without one.

    Attributes:
        container: The application's, or one of ours.
        settings: What is in effect.
        registry: The handlers and schedules; of no application, none.
        inspector: Looks.
        admin: Keeps jobs in order.
        scheduler: Looks at schedules and changes them.
        store: Where the jobs are; opened.
        info: What opening it found.
        has_app: Whether there is an application.
    """

    container: AsyncContainer
    settings: WorkersSettings
    registry: WorkerRegistry
    inspector: Inspector
    admin: JobsAdmin
    scheduler: Scheduler
    store: Store
    info: StoreInfo
    has_app: bool

    async def queue(self, name: str, *, new: bool = False) -> Queue[Any]:
        """Return a queue by name.

        Args:
            name: Its name.
            new: It need not exist.

        Raises:
            UsageError: There is none of this name.
        """
        if new:
            check_name("queue", name)
        else:
            known("queue", name, await self.queues())
        found: type[Queue[Any]] = self.registry.queue_class(name) or Queue[Any]
        return found(await self.container.get(Producer), self.store, name=name)

    async def queues(self, name: str | None = None) -> list[str]:
        """Return the names of all queues, those of the application included; or the one given, if it exists.

        Raises:
            UsageError: There is none of this name.
        """
        names = sorted({*await self.inspector.queues(), *self.registry.queues})
        if name is None:
            return names
        known("queue", name, names)
        return [name]

    async def now(self) -> datetime:
        """Return the store's clock."""
        return to_datetime(await self.store.now())


def known(what: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not there.

    Raises:
        UsageError: It is not; the message names the nearest, or all.
    """
    there = list(names)
    if name in there:
        return
    close = get_close_matches(name, there, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(there) or 'none'}"
    raise UsageError(f"no {what} {name!r}; {hint}")


@asynccontextmanager
async def opened(*, app: bool = False, shared: bool = True, new: bool = False) -> AsyncGenerator[Session]:
    """Open what a command works with.

    Args:
        app: It needs the application.
        shared: It needs a store that other processes see.
        new: It may make the store: its file, its tables. Else a URL that is mistyped is found out.

    Raises:
        ConfigurationError: There is no application, or it or its settings cannot be used.
        NoStoreError: What the URL names is not there.
        StoreUnavailableError: The store cannot be reached.
    """
    async with built(app=app) as (container, target):
        settings = await settings_of(container, shared=shared)
        if not new and not settings.in_memory:
            await _must_exist(settings)
        # What a store warns of is said where workers start, and by doctor.
        with _no_warnings():
            session = await session_of(container, settings, has_app=target is not None)
        yield session


async def settings_of(container: AsyncContainer, *, shared: bool = False) -> WorkersSettings:
    """Return the settings in effect; the store is not touched.

    Raises:
        ConfigurationError: They cannot be used, or name no store that other processes see and ``shared`` is set.
    """
    with explained_settings():
        settings = await container.get(WorkersSettings)
    if shared and settings.in_memory:
        raise ConfigurationError(_NO_STORE)
    return settings


async def session_of(container: AsyncContainer, settings: WorkersSettings, *, has_app: bool) -> Session:
    """Open the store of a container.

    Raises:
        StoreUnavailableError: It cannot be reached.
    """
    store = await container.get(Store)
    return Session(
        container=container,
        settings=settings,
        registry=await container.get(WorkerRegistry),
        inspector=await container.get(Inspector),
        admin=await container.get(JobsAdmin),
        scheduler=await container.get(Scheduler),
        store=store,
        info=await store.open(),
        has_app=has_app,
    )


@contextmanager
def _no_warnings() -> Generator[None]:
    log = logging.getLogger("workers_module.module")
    before = log.level
    if not options().verbose:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


async def _must_exist(settings: WorkersSettings) -> None:
    """Refuse a database that opening it would make: whoever looks for jobs has mistyped its name."""
    uri = settings.queue.uri
    found = None if uri is None else await schema_of(open_store(uri.get_secret_value()))
    if found is not None and not found.state.number:
        what = "has no tables of workers_module" if found.exists else "there is no such file"
        text = f"{found.place}: {what}"
        raise NoStoreError(
            f"{text}\nIs the URL right? See: workers config show. "
            "Adding a job makes it, starting a worker, and: workers migrations up"
        )


@asynccontextmanager
async def built(*, app: bool = True) -> AsyncGenerator[tuple[AsyncContainer, str | None]]:
    """Build the container of the application, or one of ours where there is none; gives the target too.

    Raises:
        ConfigurationError: There is no application and ``app`` is set, or it cannot be built.
    """
    target = find_target()
    if target is None:
        if app:
            raise ConfigurationError(_NO_APP)
        container = make_async_container(WorkersModule.for_root())
    else:
        os.environ["WORKERS_APP"] = target
        build = load_target(target)
        try:
            container = await build()
        except WorkersError:
            raise
        except Exception as error:
            raise ConfigurationError(f"{target!r} cannot be built: {type(error).__name__}: {error}") from error
    try:
        try:
            await container.get(WorkerRegistry)
        except NoFactoryError:
            raise ConfigurationError(f"{target!r}: its container has no WorkersModule.for_root(...)") from None
        yield container, target
    finally:
        await container.close()


def find_target() -> str | None:
    """Return the name of the application: of ``--app``, the settings, or ``[tool.workers]`` in pyproject.toml.

    What it says is noted for ``config show``, because it becomes a variable of the environment later.

    Raises:
        ConfigurationError: pyproject.toml or the settings cannot be read.
    """
    if options().app is not None:
        options().said.setdefault("app", "--app")
        return options().app
    named = os.environ.get("WORKERS_APP")
    if named:
        return named
    file = Path("pyproject.toml")
    app = _target_of(file)
    if app is not None:
        options().said["app"] = str(file)
        return app
    settings = WorkersSettings()
    if settings.app is not None:
        options().said["app"] = settings.origins.get("app", "default")
    return settings.app


def _target_of(file: Path) -> str | None:
    try:
        tool: Any = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {error}") from None
    app: object = tool.get("workers", {}).get("app") if isinstance(tool, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if app is not None and not isinstance(app, str):
        raise ConfigurationError(f'{file}: [tool.workers] app is no text; write app = "module:attribute"')
    return app


# --- completion ------------------------------------------------------------------------------------------------------


def complete_queue(incomplete: str) -> list[str]:
    """Return the queues that a word may become."""
    return _completed(incomplete, "queues")


def complete_schedule(incomplete: str) -> list[str]:
    """Return the schedules that a word may become."""
    return _completed(incomplete, "schedules")


def complete_worker(incomplete: str) -> list[str]:
    """Return the worker names that the last of a comma-separated list may become."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in _completed(last, "workers")]


def _completed(incomplete: str, what: str) -> list[str]:
    import anyio  # noqa: PLC0415 - only when a shell asks

    async def names() -> list[str]:
        async with opened(shared=False) as session:
            match what:
                case "queues":
                    return await session.queues()
                case "schedules":
                    return await session.scheduler.names()
                case _:
                    return list(session.registry.workers)

    try:
        return [name for name in anyio.run(names) if name.startswith(incomplete)]
    except Exception:
        # A shell that asks for names can show no error.
        return []


QueueArgument = typer.Argument(metavar="QUEUE", help="The queue.", autocompletion=complete_queue)
QueueOption = typer.Option("--queue", help="Only this queue.", autocompletion=complete_queue)
YesOption = typer.Option("-y", "--yes", help="Do not ask.")
DryRunOption = typer.Option("--dry-run", help="Only say what would be done.")
