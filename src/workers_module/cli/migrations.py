"""``workers migrations``: the tables of SQL stores."""

from typing import Annotated

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import FoundError, UsageError
from workers_module.cli.options import options
from workers_module.cli.output import emit, result
from workers_module.cli.session import opened
from workers_module.errors import SchemaOutdatedError
from workers_module.store.base import StoreKind
from workers_module.store.migrate import Migration
from workers_module.store.open import migrations_of

face = Face("Bring the tables of an SQL store up to date.")


@face.command()
async def up() -> None:
    """Apply the migrations that are missing."""
    options().setting("queue.migrate", "auto", "migrations up")
    async with opened() as session:
        info = session.info
        newest = _newest(info.kind)
    result(f"{info.place} has schema {newest}", {"place": info.place, "schema": newest, "missing": 0})


@face.command()
async def status() -> None:
    """Say whether migrations are missing: exit code 0 if none is, else 5."""
    options().setting("queue.migrate", "check", "migrations status")
    try:
        async with opened() as session:
            info = session.info
            newest = _newest(info.kind)
    except SchemaOutdatedError as error:
        missing = error.needed - error.number
        text = f"schema {error.number}, {missing} missing; apply them with: workers migrations up"
        result(text, {"schema": error.number, "needed": error.needed, "missing": missing})
        raise FoundError("") from None
    result(f"{info.place} has schema {newest}, which is the newest", {"schema": newest, "missing": 0})


@face.command()
def sql(
    store: Annotated[str, typer.Option("--store", help="sqlite or postgres.")],
    since: Annotated[int, typer.Option("--from", min=0, help="After this migration.")] = 0,
    to: Annotated[int | None, typer.Option("--to", min=1, help="Up to this one; all unless given.")] = None,
) -> None:
    """Print the SQL of migrations, for a person who applies them."""
    if store not in {*StoreKind}:
        raise UsageError(f"--store {store!r}: there are sqlite and postgres")
    found = _some(StoreKind(store))
    last = found[-1].number if to is None else to
    if not since < last <= found[-1].number:
        raise UsageError(f"--from {since} --to {last}: there are migrations 1 to {found[-1].number}")
    chosen = [one for one in found if since < one.number <= last]
    if options().json:
        emit([{"number": one.number, "name": one.name, "sql": one.sql} for one in chosen])
        return
    for one in chosen:
        result(f"-- {one.number:04} {one.name}\n{one.sql.rstrip()}\n", None)


def _newest(kind: StoreKind) -> int:
    return _some(kind)[-1].number


def _some(kind: StoreKind) -> tuple[Migration, ...]:
    found = migrations_of(kind)
    if not found:
        raise UsageError(f"a {kind} store has no tables, and nothing to migrate")
    return found
