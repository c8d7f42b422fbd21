"""Workers that are told to stop: in mid-work, with a job that never ends, without the store, and idle (P13, P14)."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Size
from tests.faults.fleet import Fleet
from tests.faults.launcher import RedisServer, launched
from tests.faults.office import office
from tests.faults.proxy import Proxy
from tests.faults.waiting import until

PROCESSES = 2
MARGIN = 3.0
"""Seconds a stop may take beyond its grace, whatever the store does."""
IDLE = 1.0
"""Seconds in which an idle process stops."""
SCHEDULING = 2.0
"""Seconds that a machine with other work may add."""


@pytest.fixture(params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("sqlite", "redis")])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return the URL of each place that processes can share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
        return
    with launched() as server:
        yield server.url


async def test_all_stopped_in_mid_work_repeat_nothing(url: str, workers: Fleet, size: Size) -> None:
    """P13."""
    async with office(url) as there:
        for _ in range(3):
            await there.add(size.of(400, 50), ms=200)
            before = workers.starts().total()
            await workers.start_all([url] * PROCESSES)
            await until(lambda before=before: workers.starts().total() > before + 20)
            await workers.stop()
            assert "active" not in await there.numbers()
            # What was started has ended, and what has ended is known to have.
            assert await there.ended() == workers.starts().total()
        await workers.start_all([url] * PROCESSES)
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers)
        assert workers.starts() == Counter(there.ids)


async def test_a_job_that_never_ends_is_handed_back(url: str, workers: Fleet) -> None:
    """P14."""
    async with office(url) as there:
        await there.add(1, forever=True)
        worker = await workers.start(url, shutdown_grace="500ms")
        await until(lambda: worker.in_flight() != set())
        await workers.stop(within=0.5 + MARGIN + SCHEDULING)
        assert await there.numbers() == {"waiting": 1}
        (record,) = await there.records()
        assert (record.attempts_made, record.crashes) == (0, 0)


async def test_a_second_signal_skips_the_grace(url: str, workers: Fleet) -> None:
    async with office(url) as there:
        await there.add(1, forever=True)
        worker = await workers.start(url, shutdown_grace="1h")
        await until(lambda: worker.in_flight() != set())
        worker.signal(signal.SIGTERM)
        await until(lambda: ["stopping"] in worker.words())
        await workers.stop(within=MARGIN + SCHEDULING)
        assert await there.numbers() == {"waiting": 1}


async def test_an_idle_process_stops_at_once(url: str, workers: Fleet) -> None:
    """P14."""
    await workers.start_all([url] * PROCESSES)
    await workers.stop(within=IDLE + SCHEDULING)


@pytest.mark.redis
@pytest.mark.parametrize("how", ["gone", "frozen", "silent"])
async def test_without_the_store_a_process_ends_all_the_same(
    server: RedisServer, workers: Fleet, size: Size, how: str
) -> None:
    """P14."""
    async with Proxy(server.address) as proxy, office(server.url) as there:
        await there.add(20, ms=300)
        worker = await workers.start(proxy.url, shutdown_grace="500ms")
        await until(lambda: worker.in_flight() != set())
        async with proxy.broken(cut=how == "gone", frozen=how == "frozen", mute=how == "silent"):
            await workers.stop(within=0.5 + MARGIN + SCHEDULING)
        # What it could not tell is found out by others.
        await workers.start(server.url)
        await there.until_ended()
        await workers.stop()
        await there.assert_clean(workers, server=server, repeated=lambda number: number <= len(there.ids))
