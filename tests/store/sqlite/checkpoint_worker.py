"""A process for the test that kills one in the middle of a checkpoint: adds jobs, and checkpoints all the time.

Usage: ``python checkpoint_worker.py FILE LOG PREFIX``. It writes ``added ID`` when a job is accepted, and ``begin`` and
``end`` around each checkpoint.
"""

import asyncio
import sqlite3
import sys
from itertools import count
from pathlib import Path
from typing import IO

from workers_module.store.sqlite import checkpoints
from workers_module.store.sqlite.checkpoints import Checkpointer
from workers_module.store.sqlite.gate import Gate
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import JobSpec


def tell(log: IO[str]) -> None:
    """Write down when a checkpoint begins and when it is over."""
    checkpoint = Checkpointer._checkpoint

    def told(self: Checkpointer, raw: sqlite3.Connection, gate: Gate) -> None:
        log.write("begin\n")
        checkpoint(self, raw, gate)
        log.write("end\n")

    Checkpointer._checkpoint = told  # type: ignore[method-assign]


async def work(path: Path, prefix: str, log: IO[str]) -> None:
    """Add jobs until killed."""
    store = SqliteStore(path)
    await store.open()

    async def add(caller: int) -> None:
        for number in count():
            job = f"{prefix}-{caller}-{number}"
            await store.add([JobSpec(queue="mail", name="send", id=job, data=b"x" * 3_000, opts=b"{}")])
            log.write(f"added {job}\n")

    await asyncio.gather(*(add(caller) for caller in range(4)))


def main() -> None:
    """Run the worker of the command line."""
    path, log, prefix = sys.argv[1:]
    checkpoints.EVERY, checkpoints.RESTART = 1, 50  # type: ignore[misc]
    with open(log, "a", buffering=1, encoding="utf-8") as lines:
        tell(lines)
        asyncio.run(work(Path(path), prefix, lines))


if __name__ == "__main__":
    main()
