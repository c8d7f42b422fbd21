"""A worker of a fleet that is killed now and then, as a process of its own; what Node runs beside it is `HANDLER`."""

import asyncio
import sys
from typing import Any

from tests.interop.apps import Place, consumer
from workers_module import Job, JobContext

FAST: dict[str, Any] = {"lease_ms": 800, "sweep_interval_ms": 300, "max_crashes": 1_000}
FAST_NODE: dict[str, Any] = {
    "lockDuration": 800,
    "stalledInterval": 300,
    "maxStalledCount": 1_000,
    "drainDelay": 1,
    "concurrency": 20,
}
HANDLER = """
if (job.data % 10 === 0 && job.attemptsMade === 0) throw new Error('once')
if (job.data % 101 === 0) throw new t.bullmq.UnrecoverableError('never')
return job.data
"""


async def handle(job: Job[Any], _: JobContext) -> Any:
    """End as `HANDLER` does."""
    from workers_module import UnrecoverableError

    if job.data % 10 == 0 and job.attempt == 1:
        raise RuntimeError("once")
    if job.data % 101 == 0:
        raise UnrecoverableError("never")
    return job.data


async def main(url: str, prefix: str) -> None:
    """Work until killed."""
    keep = {"retention": {"completed": {"age": "none", "count": "none"}, "failed": {"age": "none", "count": "none"}}}
    async with Place(url, prefix).working(consumer("mail", handle, concurrency=20), settings=keep, **FAST):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
