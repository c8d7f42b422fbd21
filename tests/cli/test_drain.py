"""When ``start --drain`` takes a queue for empty."""

from types import SimpleNamespace
from typing import Any

from workers_module.cli.process import _has_work
from workers_module.client.inspector import JobPage
from workers_module.client.queue import JobCounts
from workers_module.settings import WorkersSettings


class Moving:
    """Counts as they change from look to look, and no job on any page."""

    def __init__(self, *counts: JobCounts) -> None:
        self._counts = list(counts)

    async def counts(self, _: str) -> JobCounts:
        return self._counts.pop(0)

    async def page(self, *_: object) -> JobPage:
        return JobPage(items=[], total=0, cursor=None)


def session(inspector: Moving) -> Any:
    return SimpleNamespace(inspector=inspector, settings=WorkersSettings())


async def test_a_job_that_is_claimed_between_two_looks_is_work() -> None:
    assert await _has_work(session(Moving(JobCounts(waiting=1), JobCounts(active=1))), "mail")


async def test_a_queue_that_rests_without_ready_jobs_has_none() -> None:
    assert not await _has_work(session(Moving(JobCounts(completed=7), JobCounts(completed=7))), "mail")
