"""What the tests of this room say all the time: a queue with its producer, a run of a job, a look at everything."""

from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import anyio

from workers_module.client.handle import ResultWatcher
from workers_module.client.producer import Producer
from workers_module.client.queue import Queue
from workers_module.job.failure import add_trace, reason_of, trace_of
from workers_module.job.outcome import Completed, Failed, Keep, Outcome
from workers_module.job.record import JobRecord, Token
from workers_module.job.state import ALL_STATES
from workers_module.store.base import Store
from workers_module.store.values import Claimed, Settle, SettleCode, Step

Q = "mail"
PATIENCE = 10
"""Seconds after which something that should have happened counts as not happening."""

_tokens = count(1)


class Kit:
    """A producer over a store, and the queue ``mail`` through it."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.watcher = ResultWatcher(store, poll=options.pop("poll", 0.05))
        self.producer = Producer(store, watcher=self.watcher, **options)
        self.queue: Queue[Any] = Queue(self.producer, store, name=Q)

    async def aclose(self) -> None:
        await self.watcher.aclose()

    async def record(self, id: str, queue: str = Q) -> JobRecord:
        (found,) = await self.store.get(queue, [id])
        assert found is not None, f"job {id} is gone"
        return found

    async def claim(self, queue: str = Q, take: int = 1, tags: tuple[str, ...] = ()) -> list[Claimed]:
        token = Token(f"token-{next(_tokens)}")
        return (await self.store.step(Step(queue=queue, worker="w", token=token, take=take, tags=tags))).jobs

    async def settle(self, claimed: Claimed, outcome: Outcome) -> None:
        step = Step(queue=claimed.record.queue, worker="w", token=Token("t"), outcomes=[Settle(claimed.held, outcome)])
        assert (await self.store.step(step)).settled == [SettleCode.OK]

    async def complete(self, result: bytes = b"1", queue: str = Q, keep: Keep | None = None) -> Claimed:
        """Run the next job."""
        (claimed,) = await self.claim(queue)
        await self.settle(claimed, Completed(result, keep))
        return claimed

    async def fail(self, error: Exception, queue: str = Q, keep: Keep | None = None) -> Claimed:
        """Run the next job, badly."""
        (claimed,) = await self.claim(queue)
        await self.settle(claimed, Failed(reason_of(error), add_trace(None, trace_of(error)), keep))
        return claimed


async def everything(store: Store) -> dict[str, Any]:
    """Return all that is in a store."""
    found: dict[str, Any] = {}
    for queue in await store.queues():
        page = await store.page(queue, ALL_STATES, limit=10_000)
        found[queue] = (
            page.items,
            await store.counts([queue]),
            await store.schedules(queue),
            await store.configure(queue),
        )
    return found


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110
            await anyio.sleep(0.005)
