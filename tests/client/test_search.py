"""The filter language of jobs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.client.helpers import Kit, Q
from workers_module.client.inspector import Inspector
from workers_module.client.search import JobFilter, find_jobs
from workers_module.clock import to_ms
from workers_module.errors import ConfigurationError
from workers_module.job.job import Job
from workers_module.job.state import ALL_STATES, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def fake(data: Any = None, **fields: Any) -> Job[Any]:
    return Job.fake(data, added=to_ms(NOW - timedelta(hours=2)), **fields)


@pytest.mark.parametrize(
    ("text", "job", "fits"),
    [
        ("", fake(), True),
        ("WELC", fake(name="welcome"), True),
        ("41", fake(id="x-41"), True),
        ("name:welcome", fake(name="welcome2"), False),
        ("name:welc*", fake(name="welcome"), True),
        ("id:41", fake(id="41"), True),
        ("tag:vip", fake(tags=("eu", "vip")), True),
        ("tag:vip", fake(), False),
        ("worker:web-*", fake(worker="web-1:7"), True),
        ("worker:web-*", fake(), False),
        ("schedule:nightly", fake(schedule="nightly"), True),
        ("error:timeout", fake(reason="Read Timeout"), True),
        ("error:KeyError", fake(reason="'x'", trace=b"[\"Traceback\\nKeyError: 'x'\"]"), True),
        ("error:timeout", fake(), False),
        ("attempts:2", fake(attempts_made=2), True),
        ("attempts:>2", fake(attempts_made=2), False),
        ("attempts:>=2", fake(attempts_made=2), True),
        ("priority:<5", fake(priority=4), True),
        ("age:>1h", fake(), True),
        ("age:<1h", fake(), False),
        ("data.to:*@example.org", fake({"to": "ann@example.org"}), True),
        ("data.user.id:42", fake({"user": {"id": 42}}), True),
        ("data.list.1:b", fake({"list": ["a", "b"]}), True),
        ("data.list.7:b", fake({"list": ["a", "b"]}), False),
        ("data.none:x", fake(5), False),
        ("name:a attempts:1", fake(name="a", attempts_made=0), False),
        ("'error:no mailbox'", fake(reason="no mailbox here"), True),
    ],
)
def test_fits(text: str, job: Job[Any], fits: bool) -> None:
    assert JobFilter(text).fits(job, NOW) is fits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour:red", "no key 'colour'; there are: name, id"),
        ("name:", "says nothing"),
        ("attempts:x", "is no number"),
        ("age:1h", "needs a sign"),
        ("age:>1", "has no unit"),
        ("data.:1", "no key 'data.'"),
        ("'open", "no closing quotation"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        JobFilter(text)


async def test_finds_each_job_once_over_many_pages(any_kit: Kit) -> None:
    await any_kit.queue.add_many([("even" if number % 2 == 0 else "odd", number) for number in range(1_100)])
    inspector = Inspector(any_kit.store)

    async def found(wanted: JobFilter, limit: int | None = None) -> list[Any]:
        jobs = find_jobs(inspector, Q, (JobState.WAITING, JobState.WAITING), wanted, now=NOW, limit=limit)
        return [job.data async for job in jobs]

    assert await found(JobFilter("name:odd")) == list(range(1, 1_100, 2))
    assert await found(JobFilter(names=["odd"]), limit=3) == [1, 3, 5]
    assert [job async for job in find_jobs(inspector, "none", ALL_STATES, JobFilter(), now=NOW)] == []
