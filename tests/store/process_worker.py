"""A worker process for the tests of several processes on one storage: claims, pretends to work, settles, sweeps.

Usage: ``python process_worker.py URL NAME LOG TAKE LEASE_MS SWEEP_MS``. It ends on the order ``stop``. For each job it
writes a line to the log: ``start ID FENCE`` before the work, ``end ID FENCE CODE`` when the store has answered.
"""

import asyncio
import os
import sys
from typing import IO

from workers_module.clock import Clock
from workers_module.job.outcome import Completed
from workers_module.job.record import Token
from workers_module.store.open import open_store
from workers_module.store.sqlite import checkpoints
from workers_module.store.values import Beat, Claimed, Settle, Step, Sweep, WorkerInfo

QUEUE = "mail"
BEAT_MS = 100


async def work(url: str, name: str, log: IO[str], take: int, lease_ms: int, sweep_ms: int) -> None:
    """Work until told to stop."""
    clock = Clock()
    store = open_store(url)
    await store.open()
    info = WorkerInfo(id=name, host="here", pid=os.getpid(), version="1", started=clock.now_ms(), queues=(QUEUE,))
    calls = 0
    beaten = swept = 0
    done: list[Claimed] = []
    while True:
        now = clock.now_ms()
        if now - beaten >= BEAT_MS:
            beaten = now
            if await store.worker(Beat(info, 60_000)) == "stop" and not done:
                break
        if now - swept >= sweep_ms:
            swept = now
            await store.sweep(Sweep(queue=QUEUE, interval_ms=sweep_ms, max_crashes=1_000))
        calls += 1
        token = Token(f"{name}-{calls}")
        if done:
            outcomes = [Settle(job.held, Completed(b'"done"')) for job in done]
            reply = await store.step(
                Step(queue=QUEUE, worker=name, token=token, outcomes=outcomes, take=take, lease_ms=lease_ms, metrics=60)
            )
            for job, code in zip(done, reply.settled, strict=True):
                log.write(f"end {job.record.id} {job.held.fence} {code}\n")
        else:
            reply = await store.wait(Step(queue=QUEUE, worker=name, token=token, take=take, lease_ms=lease_ms), 0.1)
        done = reply.jobs
        for job in done:
            log.write(f"start {job.record.id} {job.held.fence}\n")
            await asyncio.sleep(0)
    await store.close()


def main() -> None:
    """Run the worker of the command line."""
    url, name, log, take, lease_ms, sweep_ms = sys.argv[1:]
    # Small, so that the processes' checkpoints meet.
    checkpoints.EVERY, checkpoints.RESTART = 20, 60  # type: ignore[misc]
    with open(log, "a", buffering=1, encoding="utf-8") as lines:
        asyncio.run(work(url, name, lines, int(take), int(lease_ms), int(sweep_ms)))


if __name__ == "__main__":
    main()
