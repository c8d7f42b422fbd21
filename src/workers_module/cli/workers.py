"""``workers workers``: the worker processes that are alive."""

from typing import Annotated

import typer

from workers_module.cli.app import Face
from workers_module.cli.failures import CommandFailedError
from workers_module.cli.options import options
from workers_module.cli.output import Column, emit, table, when
from workers_module.cli.session import opened
from workers_module.clock import to_datetime

face = Face("Look at worker processes.")


@face.command("list")
async def list_(
    fail_if_none: Annotated[bool, typer.Option("--fail-if-none", help="Exit with 1 if there are none.")] = False,
) -> None:
    """Show the worker processes that are alive."""
    async with opened() as session:
        found = await session.inspector.workers()
        now = await session.now()
    if options().json:
        emit(
            [
                {
                    "id": one.id,
                    "host": one.host,
                    "pid": one.pid,
                    "version": one.version,
                    "started_at": to_datetime(one.started),
                    "seen_at": to_datetime(one.seen),
                    "queues": list(one.queues),
                    "tags": list(one.tags),
                    "slots": one.slots,
                    "busy": one.busy,
                }
                for one in found
            ]
        )
    else:
        heads = [
            Column("host", shrinks=True),
            Column("pid", right=True),
            Column("started"),
            Column("seen"),
            Column("busy", right=True),
            Column("queues", shrinks=True),
            Column("tags"),
            Column("version"),
        ]
        rows = [
            [
                one.host,
                one.pid,
                when(to_datetime(one.started), now),
                when(to_datetime(one.seen), now),
                f"{one.busy}/{one.slots}",
                ", ".join(one.queues),
                ", ".join(one.tags),
                one.version,
            ]
            for one in found
        ]
        table(heads, rows, empty="no worker runs; start one: workers start --worker")
    if fail_if_none and not found:
        raise CommandFailedError("no worker runs")
