"""Our side, through the whole stack: decorated class, REQUEST scope per job, payload validated, result stored, events written."""
from typing import Any

from benchlib import handle
from dishka import Provider, Scope, make_async_container
from pydantic import BaseModel

from workers_module import Job, Queue, WorkersModule, WorkersSettings, process, processor, run_workers


class Payload(BaseModel):
    n: int
    email: str
    t: int | None = None


class Result(BaseModel):
    ok: bool
    n: int


class BenchQueue(Queue[Payload], name="bench"):
    pass


class Session:
    """What a REQUEST scope usually makes anew."""


@processor(BenchQueue)
class BenchProcessor:
    def __init__(self, session: Session) -> None:
        self.session = session

    @process("job")
    async def job(self, job: Job[Payload]) -> Result:
        data = job.data
        done = handle({"n": data.n, "email": data.email, "t": data.t})
        return Result(ok=done["ok"], n=done["n"])


def settings(url: str | None, concurrency: int, synchronous: str) -> WorkersSettings:
    queue: dict[str, Any] = {} if url is None else {"uri": url, "synchronous": synchronous}
    return WorkersSettings(concurrency=concurrency, queue=queue)


class WorkersAdapter:
    synchronous = "full"

    async def setup(self, ctx) -> None:
        sessions = Provider(scope=Scope.REQUEST)
        sessions.provide(Session)
        module = WorkersModule.for_root(settings(self.make_url(ctx), ctx.concurrency, self.synchronous), processors=[BenchProcessor])
        self.container = make_async_container(sessions, module)
        self.queue = await self.container.get(BenchQueue)

    def make_url(self, ctx) -> str | None:
        return None

    async def enqueue_one(self, p) -> None:
        await self.queue.add("job", Payload(**p))

    async def enqueue_bulk(self, ps) -> None:
        await self.queue.add_many([("job", Payload(**p), {}) for p in ps])

    async def enqueue_delayed(self, p, when) -> None:
        from datetime import UTC, datetime

        await self.queue.add("job", Payload(**p), run_at=datetime.fromtimestamp(when, UTC))

    async def run_worker_until(self, n) -> None:
        async with run_workers(self.container, force=True) as workers:
            await workers.wait()
