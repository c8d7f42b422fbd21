"""``workers migrations``: the tables of SQL stores."""

from typing import Annotated

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import FoundError, UsageError
from workers_module.cli.options import options
from workers_module.cli.output import result
from workers_module.cli.session import built, opened
from workers_module.errors import ConfigurationError
from workers_module.settings import WorkersSettings, explained_settings
from workers_module.store.migrate import MigrationStatus
from workers_module.store.open import migrations_sql, migrations_status
from workers_module.url import QueueKind

face = Face("Bring the tables of an SQL store up to date.")


@face.command()
async def up() -> None:
    """Apply the migrations that are missing."""
    options().setting("queue.migrate", "auto", "migrations up")
    async with opened(new=True) as session:
        found = await _status(session.settings)
    text = f"{found.place} has schema {found.state.number}"
    result(text, {"place": found.place, "schema": found.state.number, "missing": len(found.missing)})


@face.command()
async def status() -> None:
    """Say whether migrations are missing: exit code 0 if none is, else 5."""
    async with built(app=False) as (container, _):
        with explained_settings():
            settings = await container.get(WorkersSettings)
    found = await _status(settings)
    schema, newest, missing = found.state.number, len(found.known), len(found.missing)
    told = {"place": found.place, "schema": schema, "needed": newest, "missing": missing}
    if missing:
        names = ", ".join(f"{one.number:04} {one.name}" for one in found.missing)
        result(f"{found.place} has schema {schema}; missing: {names}. Apply with: workers migrations up", told)
        raise FoundError("")
    result(f"{found.place} has schema {schema}, which is the newest", told)


@face.command()
def sql(
    store: Annotated[str, typer.Option("--store", help="sqlite or postgres.")],
    since: Annotated[int, typer.Option("--from", min=0, help="After this migration.")] = 0,
    to: Annotated[int | None, typer.Option("--to", min=1, help="Up to this one; all unless given.")] = None,
) -> None:
    """Print the SQL of migrations, for a person who applies them."""
    if store not in {*QueueKind}:
        raise UsageError(f"--store {store!r}: there are sqlite and postgres")
    try:
        text = migrations_sql(QueueKind(store), after=since, up_to=to)
    except ConfigurationError as error:
        raise UsageError(str(error)) from None
    result(text.rstrip(), {"store": store, "sql": text})


async def _status(settings: WorkersSettings) -> MigrationStatus:
    uri = settings.queue.uri
    if uri is None:
        raise UsageError("no store is named; set QUEUE_URL, or pass --url, e.g. --url sqlite:///jobs.db")
    return await migrations_status(uri.get_secret_value())
