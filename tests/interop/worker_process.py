"""A worker of ours in a process of its own, to be killed: it says which job it began, and never ends one."""

import asyncio
import sys
from typing import Any

from tests.interop.apps import Place, consumer
from workers_module import Job, JobContext


async def main(url: str, prefix: str, lease_ms: int) -> None:
    """Work until killed."""

    async def handle(job: Job[Any], _: JobContext) -> None:
        sys.stdout.write(f"{job.id}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()

    async with Place(url, prefix).working(consumer("mail", handle), lease_ms=lease_ms, sweep_interval_ms=200):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
