"""``workers locks``: the named locks of the application."""

from typing import Annotated

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import CommandFailedError
from workers_module.cli.options import options
from workers_module.cli.output import Column, confirm, emit, result, table, when
from workers_module.cli.selecting import DryRun, Yes
from workers_module.cli.session import known, opened
from workers_module.clock import to_datetime

face = Face("Look at named locks, and release them.")


@face.command("list")
async def list_() -> None:
    """Show the named locks that are held."""
    async with opened() as session:
        found = await session.inspector.locks()
        now = await session.now()
    if options().json:
        emit([{**one._asdict(), "until": to_datetime(one.until)} for one in found])
        return
    heads = [Column("lock", shrinks=True), Column("holder", shrinks=True), Column("fence", right=True), Column("ends")]
    rows = [[one.name, one.owner, one.fence, when(to_datetime(one.until), now)] for one in found]
    table(heads, rows, empty="no lock is held")


@face.command()
async def release(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The lock.")],
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Take a lock from its holder, who may still be at work under it."""
    async with opened() as session:
        held = {one.name: one for one in await session.inspector.locks()}
        known("held lock", name, held)
        lock = held[name]
        told = {"lock": name, "holder": lock.owner, "released": not dry_run, "dry_run": dry_run}
        if dry_run:
            result(f"{name} would be taken from {lock.owner}", told)
            return
        confirm(f"Take {name} from {lock.owner}? What it protects may then run twice.", yes=yes)
        if not await session.admin.release_lock(lock):
            raise CommandFailedError(f"{name} is another's meanwhile; nothing was released")
    result(f"{name} is released; it was {lock.owner}'s", told)
