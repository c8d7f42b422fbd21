"""What one job, one start and one claim cost: figures beside the peers' table. Run by ``make bench``."""

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

from dishka import Provider, Scope, make_async_container
from pydantic import BaseModel

from workers_module import Job, WorkersModule, WorkersSettings, job, process, processor, run_workers
from workers_module.di.registry import WorkerRegistry
from workers_module.job.job import Job as StoredJob
from workers_module.job.outcome import Completed, Keep
from workers_module.job.record import Token
from workers_module.job.state import JobState
from workers_module.store.sqlite.store import SqliteStore
from workers_module.store.values import JobSpec, Settle, Step


class Payload(BaseModel):
    n: int


class Engine: ...


class Cache: ...


class Session:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine


@processor("scoped")
class Scoped:
    def __init__(self, cache: Cache, session: Session) -> None:
        self.cache = cache
        self.session = session

    @process("run")
    async def run(self, job: Job[Payload]) -> int:
        return job.data.n


@job(queue="static")
async def static(data: Payload) -> int:
    return data.n


def report(what: str, figure: str, target: str) -> None:
    print(f"{what:58} {figure:>16}   target {target}", flush=True)


async def timed(call: Callable[[], object], rounds: int = 30, each: int = 500) -> float:
    """Return the median time of an awaited call, in µs."""
    found: list[float] = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(each):
            await call()  # type: ignore[misc]
        found.append((time.perf_counter() - begin) / each * 1e6)
    return median(found)


async def handlers() -> None:
    services = Provider(scope=Scope.APP)
    services.provide_all(Engine, Cache)
    services.provide(Session, scope=Scope.REQUEST)
    root = WorkersModule.for_root(WorkersSettings(mode="background_async"), processors=[Scoped, static])
    container = make_async_container(services, root)
    registry = await container.get(WorkerRegistry)
    fake = StoredJob.fake(Payload(n=1), queue="scoped", name="run")
    scoped = await registry.bound(registry.find(Scoped.run).handler)
    bare = await registry.bound(registry.find(static).handler)

    async def through_scope() -> None:
        scope = scoped.opening(fake, None)
        call = await scope.__aenter__()
        await call(fake, None)
        await scope.__aexit__(None, None, None)

    async def static_call() -> None:
        await bare.static(fake, None)

    async def direct() -> None:
        await static(fake.data)

    report("scope, resolution and call (two APP, one REQUEST)", f"{await timed(through_scope):.1f} µs", "< 20 µs")
    more = await timed(static_call) - await timed(direct)
    report("static handler, over its bare call", f"{max(0.0, more):.2f} µs", "< 1 µs")
    await container.close()


def imports() -> None:
    def once(code: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return (time.perf_counter() - begin) * 1e3

    bare = min(once("pass") for _ in range(7))
    report("import workers_module", f"{min(once('import workers_module') for _ in range(7)) - bare:.0f} ms", "< 150 ms")
    face = "from workers_module import Job, Queue, WorkersModule, processor, process"
    report("  with the names a module of processors imports", f"{min(once(face) for _ in range(7)) - bare:.0f} ms", "-")
    deps = "import dishka, pydantic_settings, croniter, anyio"
    report(
        "  of which dishka, pydantic-settings, croniter, anyio",
        f"{min(once(deps) for _ in range(7)) - bare:.0f} ms",
        "-",
    )


async def many_processors() -> None:
    def make(number: int) -> type:
        class P:
            @process("run")
            async def run(self, job: Job[Payload]) -> int:
                return job.data.n

        P.__name__ = P.__qualname__ = f"P{number}"
        return processor(f"queue{number}")(P)

    begin = time.perf_counter()
    root = WorkersModule.for_root(WorkersSettings(mode="background_async"), processors=[make(n) for n in range(200)])
    container = make_async_container(root)
    async with run_workers(container):
        took = time.perf_counter() - begin
    await container.close()
    report("200 processors, from classes to ready", f"{took * 1e3:.0f} ms", "< 500 ms")


CLAIMS = 400


class Claims(NamedTuple):
    """What claims of 50 jobs took.

    Attributes:
        times: Each claim, in ms.
        growth: How much the worker grew, in MiB.
    """

    times: list[float]
    growth: int

    def at(self, percent: int) -> float:
        return quantiles(self.times, n=100)[percent - 1]


async def claims(waiting: int) -> Claims:
    """Claim 50 at a time with always so many jobs waiting."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "jobs.db")
        await store.open()
        spec = JobSpec(
            queue="q", name="run", data=b'{"n":1,"email":"user@example.com","k":12345}', opts=b'{"attempts":1}'
        )
        for _ in range(waiting // 1_000):
            await store.add([spec] * 1_000)
        # What the filling left for the disk to write is not the claims' affair.
        await store.close()
        os.sync()
        await store.open()
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        keep = Keep(count=0)
        times: list[float] = []
        outcomes: list[Settle] = []
        for number in range(CLAIMS):
            begin = time.perf_counter()
            reply = await store.step(Step(queue="q", worker="w", token=Token(f"t{number}"), outcomes=outcomes, take=50))
            times.append((time.perf_counter() - begin) * 1e3)
            outcomes = [Settle(claimed.held, Completed(b"1", keep)) for claimed in reply.jobs]
            await store.add([spec] * 50)
        page = await store.page("q", [JobState.WAITING], limit=1)
        assert page.total == waiting
        await store.close()
        return Claims(times, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss) // 1024)


async def backlog(size: int) -> None:
    # Few before and after: the machine may have become slower or faster meanwhile.
    sizes = [1_000, 20_000, size, 20_000, 1_000]
    found = [await claims(one) for one in sizes]
    for one, figures in zip(sizes, found, strict=True):
        figure = " / ".join(f"{figures.at(percent):.2f}" for percent in (50, 90, 99))
        report(f"claim of 50, {one:,} waiting: p50 / p90 / p99 (SQLite, FULL)", f"{figure} ms", "-")
    many = found[2]
    for place in (0, 1):
        few = min(found[place].at(99), found[-1 - place].at(99))
        report(f"  p99 beside {sizes[place]:,}", f"{many.at(99) / few:.2f} x", "≤ 1.5 x")
    report(f"  worker's growth while it works on {size:,}", f"{many.growth} MiB", "≤ 20 MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=1_000_000, help="jobs waiting in the large claim test")
    size: int = parser.parse_args().backlog
    imports()
    asyncio.run(handlers())
    asyncio.run(many_processors())
    asyncio.run(backlog(size))


if __name__ == "__main__":
    main()
