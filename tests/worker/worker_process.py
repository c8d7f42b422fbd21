"""A small worker process: ``worker_process.py FILE RUNS JOB_MS GRACE_MS [lease=MS]``.

It stops at SIGTERM, and at once at a second one.
"""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from workers_module.job.job import Job
from workers_module.job.kind import JobKind
from workers_module.store.sqlite.store import SqliteStore
from workers_module.worker.context import JobContext
from workers_module.worker.executor import Executor, ExecutorSettings
from workers_module.worker.handler import Handler, HandlerSpec, QueuePlan, WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.runtime import Runtime, RuntimeSettings


async def main(file: str, runs: str, job_ms: str, grace_ms: str, *more: str) -> None:
    async def work(job: Job[Any], context: JobContext) -> None:
        with Path(runs).open("a") as lines:  # noqa: ASYNC230 - one short line
            lines.write(f"{job.id}\n")
        await asyncio.sleep(int(job_ms) / 1_000)

    lease_ms = int(dict(item.split("=") for item in more).get("lease", "30000"))
    spec = HandlerSpec(kind=JobKind(queue="mail", name="send"), label="work", worker="mail", target=work, is_async=True)
    plan = WorkPlan(
        queues=(QueuePlan(queue="mail", handlers={"send": Handler(spec=spec, static=work)}, concurrency=8),)
    )
    store = SqliteStore(Path(file))
    await store.open()
    hooks = Hooks()
    executor = Executor(store, hooks=hooks, settings=ExecutorSettings(job_timeout_ms=None))
    settings = RuntimeSettings(shutdown_grace_ms=int(grace_ms), lease_ms=lease_ms, sweep_interval_ms=lease_ms // 2)
    async with Runtime(store, plan, settings, executor=executor, hooks=hooks) as runtime:
        stops = iter([None, 0])
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: runtime.request_stop(next(stops, 0)))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await runtime.wait()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
