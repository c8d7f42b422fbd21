"""Several processes on one schema: each job is claimed once and ended once, and nobody starves (P09)."""

from pathlib import Path

import pytest

from tests.store.test_processes import PATIENCE, kill_and_replace, share_a_backlog
from workers_module.store.postgres.store import PostgresStore

pytestmark = pytest.mark.postgres


@pytest.fixture
def url(place: tuple[str, str]) -> str:
    """Return the URL other processes open."""
    server, schema = place
    return f"{server}{'&' if '?' in server else '?'}schema={schema}"


async def test_killed_processes_lose_nothing_and_end_nothing_twice(
    live: PostgresStore, tmp_path: Path, url: str
) -> None:
    await kill_and_replace(live, tmp_path, url, kills=6)


async def test_processes_share_a_backlog_fairly_without_doubles(live: PostgresStore, tmp_path: Path, url: str) -> None:
    await share_a_backlog(live, tmp_path, url, 3_000, PATIENCE)


@pytest.mark.slow
async def test_processes_share_a_large_backlog_fairly_without_doubles(
    live: PostgresStore, tmp_path: Path, url: str
) -> None:
    await share_a_backlog(live, tmp_path, url, 30_000, 10 * PATIENCE)
