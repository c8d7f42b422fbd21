"""Workers and producers that outlast what happens to the servers."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio

from tests.servers import command, until
from tests.store.helpers import complete, spec, step
from workers_module.errors import StoreUnavailableError
from workers_module.store.base import Renewer, Store
from workers_module.store.values import Held, RenewReply


def until_blocked(port: int) -> None:
    until(lambda: "'blocked_clients': 0" not in str(command(port, "INFO", "clients")), "a client blocks")


async def stubborn(call: Callable[..., Any], *args: Any) -> Any:
    """Repeat a call until the store answers, as workers and producers do."""
    with anyio.fail_after(30):
        while True:
            try:
                return await call(*args)
            except StoreUnavailableError:
                await anyio.sleep(0.01)


async def work(store: Store, queue: str, done: list[str], total: int) -> None:
    """Claim and complete until so many jobs are done."""
    while len(done) < total:
        req = step(5, queue=queue)
        try:
            jobs = (await store.wait(req, 0.2)).jobs
        except StoreUnavailableError:
            again = step(5, queue=queue, token=req.token, resume=True)
            jobs = (await stubborn(store.step, again)).jobs
        for job in jobs:
            await stubborn(settle_once, store, queue, job)
            done.append(job.record.id)


async def settle_once(store: Store, queue: str, job: Any) -> None:
    with suppress(AssertionError):
        # Of a lost reply the second try says that it was done before; the counts at the end judge.
        await complete(store, job, queue=queue)


async def produce(store: Store, queue: str, total: int) -> None:
    for n in range(total):
        await stubborn(store.add, [spec(f"job-{n}", queue=queue)])


async def renewed(renewer: Renewer, queue: str, held: Held) -> RenewReply:
    return await anyio.to_thread.run_sync(renewer.renew, queue, [held], 30_000)
