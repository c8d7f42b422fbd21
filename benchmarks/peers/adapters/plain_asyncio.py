META = {"venv": "ours", "backend": "memory", "n": 50000, "results": "none", "notes": "no queue at all: the same handler awaited by tasks of a plain loop"}
import asyncio

from benchlib import handle


async def job(p):
    return handle(p)


class Adapter:
    async def setup(self, ctx):
        self.slots = asyncio.Semaphore(ctx.concurrency)
        self.tasks = set()

    def prepare(self):
        pass

    async def run(self, p):
        try:
            await job(p)
        finally:
            self.slots.release()

    async def enqueue_one(self, p):
        await self.slots.acquire()
        task = asyncio.create_task(self.run(p))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def run_worker_until(self, n):
        await asyncio.Event().wait()
