"""What a queue that runs for long leaves in the server (P31)."""

import pytest

from tests.faults.conftest import Size
from tests.faults.fleet import Fleet
from tests.faults.launcher import RedisServer
from tests.faults.office import office
from tests.faults.waiting import until
from tests.faults.worker import QUEUE, Task
from tests.worker.loops import all_ended
from workers_module.store.values import QueuePatch

pytestmark = pytest.mark.redis

CAP = 1_000
FAILED_CAP = 100
MIB = 1_048_576
MORE = 5 * MIB


async def test_what_ended_is_forgotten(server: RedisServer, workers: Fleet, size: Size) -> None:
    """P31."""
    total, piece = size.of(200_000, 5_000), 1_000
    # Of a size that would be seen, were they kept.
    tasks = [Task(text="x" * 1_000, fail=n % 10 == 0) for n in range(piece)]
    async with office(server.url) as there:
        there.fleet = workers
        await there.store.configure(QUEUE, QueuePatch(event_cap=10_000))
        before = await used_memory(server)
        kept = {"completed": {"count": CAP}, "failed": {"count": FAILED_CAP}}
        await workers.start(server.url, slots=100, retention=kept)
        for _ in range(total // piece):
            await there.add_tasks(tasks)
            await until(lambda: all_ended(there.store))
        await workers.stop()
        assert await there.numbers() == {"completed": CAP, "failed": FAILED_CAP}
        assert await there.store.verify(QUEUE) == []
        assert await used_memory(server) <= before + MORE
        left = {f"bull:{QUEUE}:{record.id}" for record in await there.records()}
        assert {key for key in await server.keys() if key.startswith(f"bull:{QUEUE}:j")} == left
        assert there.left_over(await server.keys()) == set()


async def used_memory(server: RedisServer) -> int:
    """Return the bytes that the server has allocated."""
    return int((await server.info("memory"))["used_memory"])
