"""An idle worker asks little: its statements are counted in the server's own log."""

import re
from collections import Counter

import anyio
import pytest
from dishka import make_async_container

from tests.servers import PostgresServer, postgres_server
from tests.store.helpers import PATIENCE
from workers_module import Job, WorkersModule, WorkersSettings, process, processor, run_workers

pytestmark = pytest.mark.postgres

SECONDS = 5
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*): (?:SELECT .* FROM \"workers_module\"\.)?(\w+)")


@processor("mail")
class Clerk:
    """Has nothing to do."""

    @process("send")
    async def send(self, job: Job[int]) -> None:
        """Do nothing."""


def statements(server: PostgresServer, after: int = 0) -> Counter[str]:
    """Count what the server was asked, from a line of its log on."""
    return Counter(_STATEMENT.findall("\n".join(server.log().splitlines()[after:])))


async def test_an_idle_worker_asks_once_a_second_at_most() -> None:
    with postgres_server("log_statement=all") as server:
        settings = WorkersSettings(queue={"uri": server.url})
        container = make_async_container(WorkersModule.for_root(settings, processors=[Clerk]))
        async with run_workers(container, close_container=True):
            # It has begun when it has swept, and waits for jobs.
            with anyio.fail_after(PATIENCE):
                while not (statements(server)["sweep_1"] and statements(server)["step_1"]):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            begun = len(server.log().splitlines())
            await anyio.sleep(SECONDS)
            asked = statements(server, begun)
    assert asked["step_1"] >= 2
    # One more than there are seconds: what is asked twice a minute may come just now.
    assert asked.total() <= SECONDS + 1, asked
