"""Workers that are killed, or stand still, and jobs that kill their workers (P07, P10, P11, P12)."""

import random
import signal

import anyio
import pytest

from tests.faults.conftest import Size
from tests.faults.fleet import SLOTS, Fleet, Hand
from tests.faults.launcher import RedisServer
from tests.faults.office import office
from tests.faults.waiting import until
from tests.faults.worker import Task

pytestmark = pytest.mark.redis

PROCESSES = 4


async def test_killed_workers_lose_nothing(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random
) -> None:
    """P07."""
    kills = size.of(20, 5)
    async with office(server.url) as there:
        there.fleet = workers
        await there.add(size.of(5_000, 400), ms=50)
        hands = await workers.start_all([server.url] * PROCESSES)
        in_flight = 0
        for n in range(1, kills + 1):
            await there.until_ended(len(there.ids) * n // (kills + 2))
            victim = dice.choice(hands)
            victim.kill()
            in_flight += len(victim.in_flight())
            hands[hands.index(victim)] = workers.begin(server.url)
        await there.until_ended()
        await workers.stop()
        assert in_flight, "nobody was killed at work"
        await there.assert_clean(workers, server=server, repeated=lambda number: 0 < number <= kills * SLOTS)
        # Recovery came from the sweeps of others, and nobody was failed for it.
        assert all(record.fence >= 1 + record.crashes for record in await there.records())


async def test_frozen_workers_change_nothing_when_they_go_on(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random
) -> None:
    """P10."""
    times = size.of(3, 2)
    async with office(server.url) as there:
        there.fleet = workers
        await there.add(size.of(5_000, 400), ms=50)
        # A frozen process may take a job down twice: as its run, and by the claim it had sent behind its wait.
        hands = await workers.start_all([server.url] * PROCESSES, max_crashes=4 * times)
        for n in range(1, times + 1):
            await there.until_ended(len(there.ids) * n // (times + 2))
            victim = dice.choice(hands)
            with victim.frozen():
                held = victim.in_flight()
                # Whatever it held is taken back, and when it goes on, somebody else has run that, or runs it just then.
                word = "start" if n % 2 else "end"
                await until(lambda held=held, victim=victim, word=word: held <= noted_elsewhere(workers, victim, word))
            await until(lambda held=held, victim=victim: held.isdisjoint(victim.in_flight()))
        await there.until_ended()
        await workers.stop()
        logged = "".join(hand.log() for hand in hands)
        assert "is dropped" in logged or "its run is cancelled" in logged, "nobody came too late"
        await there.assert_clean(workers, server=server, repeated=lambda number: 0 < number <= times * SLOTS)


def noted_elsewhere(workers: Fleet, victim: Hand, word: str) -> set[str]:
    """Return the jobs that other processes than this one have started, or ended."""
    return {line.id for line in workers.lines(word) if line.process != victim.name}


async def test_a_job_that_blocks_its_loop_for_three_leases_is_not_repeated(
    server: RedisServer, workers: Fleet, size: Size
) -> None:
    """P11; in other stores: `tests.worker.test_leases`."""
    lease_ms = size.of(3_000, 1_000)
    async with office(server.url) as there:
        # Those behind the first one are claimed with it, and do not even start before it is done.
        await there.add_tasks([Task(block_ms=3 * lease_ms), Task(), Task()])
        blocked = await workers.start(server.url, lease=f"{lease_ms}ms")
        await until(lambda: blocked.in_flight() != set())
        # Somebody who sweeps, and would take what is taken back.
        await workers.start(server.url, lease=f"{lease_ms}ms")
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers, server=server)
        assert {line.process for line in workers.lines("start")} == {blocked.name}


async def test_a_job_that_kills_its_workers_fails_alone(
    server: RedisServer, workers: Fleet, size: Size, dice: random.Random
) -> None:
    """P12."""
    killers = 3
    lease, sweep = size.of(3_000, 1_500), size.of(2_000, 300)
    tasks = [Task(ms=50)] * (size.of(500, 100) - killers)
    for _ in range(killers):
        tasks.insert(dice.randrange(len(tasks)), Task(kill=True))
    async with office(server.url) as there:
        ids = await there.add_tasks(tasks)

        async def refill() -> None:
            while True:
                while len(workers.living) < PROCESSES:
                    workers.begin(server.url, lease=f"{lease}ms", sweep_interval=f"{sweep}ms")
                await anyio.sleep(0.02)

        async with anyio.create_task_group() as group:
            group.start_soon(refill)
            await there.until_ended()
            group.cancel_scope.cancel()
        await workers.stop()
        for hand in workers.hands:
            hand.killed = hand.exit_code == -signal.SIGKILL
        failed = {id for id, task in zip(ids, tasks, strict=True) if task.kill}
        await there.assert_clean(workers, server=server, failed=failed, repeated=lambda number: number > 0)
        assert max(workers.starts().values()) <= 3
        for record in await there.records():
            if record.id in failed:
                assert (record.crashes, record.reason) == (3, "job stalled more than allowable limit")
