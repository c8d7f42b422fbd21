"""What a job costs a Postgres server: the CPU of its backends for steps that settle a batch and claim the next.

One connection, the store alone: run by ``make bench-postgres``, or ``python benchmarks/steps.py URL``. It reads
``/proc``, so the server must be on this machine. Each round has a schema of its own, which is dropped.
"""

import argparse
import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import asyncpg

from workers_module.job.outcome import Completed, Keep
from workers_module.job.record import Token
from workers_module.store.postgres.store import PostgresStore
from workers_module.store.values import JobSpec, Settle, Step

KEEP = Keep(count=1_000, age_ms=3_600_000)
"""What is kept by default."""


def cpu_us(pids: Sequence[int]) -> float:
    """Return how long some processes have run, in microseconds."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1_000


async def backends(url: str) -> list[int]:
    """Return the processes of all connections but this one."""
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    await connection.close()
    return [row["pid"] for row in rows]


async def measured(url: str, schema: str, batch: int, jobs: int) -> float:
    """Return the backends' CPU microseconds for one job, from claim to settling and trimming."""
    store = PostgresStore(url, schema=schema)
    await store.open()
    spec = JobSpec(
        queue="bench", name="job", data=b'{"n": 123456, "email": "user@example.com"}', opts=b'{"attempts":1}'
    )
    warm = KEEP.count + 1_000 if KEEP.count else 0
    for _ in range(0, jobs + warm, 1_000):
        await store.add([spec] * 1_000)
    outcomes: list[Settle] = []
    done, begun, pids = 0, 0.0, [0]
    while done < jobs + warm:
        if not begun and done >= warm:
            pids = await backends(url)
            begun = cpu_us(pids)
        token = Token(os.urandom(8).hex())
        reply = await store.step(Step(queue="bench", worker="bench", token=token, outcomes=outcomes, take=batch))
        outcomes = [Settle(job.held, Completed(b'{"ok": true, "n": 123456}', KEEP)) for job in reply.jobs]
        done += len(outcomes)
    spent = cpu_us(pids) - begun
    await store.close()
    return spent / (done - warm)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    found: dict[int, list[float]] = {1: [], 10: [], 50: []}
    for number in range(args.rounds):
        for batch, figures in found.items():
            schema = f"steps_{os.getpid()}_{number}_{batch}"
            figures.append(await measured(args.url, schema, batch, 1_000 if batch == 1 else 10_000))
            connection = await asyncpg.connect(args.url)
            await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
            await connection.close()
    print("\n## Postgres: backends' CPU for one job, store alone, one connection\n")
    print("| jobs a step | µs a job | lowest | highest |\n|---:|---:|---:|---:|")
    for batch, figures in found.items():
        print(f"| {batch} | {median(figures):.1f} | {min(figures):.1f} | {max(figures):.1f} |")


if __name__ == "__main__":
    asyncio.run(main())
