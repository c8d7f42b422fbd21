"""How a claimed job is read: the short way for one without peculiarities, and the long way, which says the same."""

import random

import pytest

from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.store.redis.fields import Started, read_record
from workers_module.store.redis.keys import Keys

FRESH = {
    b"name": b"welcome",
    b"data": b'{"to":"ada@example.com"}',
    b"opts": b'{"attempts":3,"lifo":true}',
    b"timestamp": b"1700000000000",
    b"delay": b"0",
    b"priority": b"7",
}


def read(fields: dict[bytes, bytes], tags: bytes = b"") -> JobRecord:
    flat = [text for pair in fields.items() for text in pair]
    started = Started(1, 1_700_000_000_500, "ada")
    return read_record(Keys("bull"), "mail", "41", tags, JobState.ACTIVE, flat, started=started)


@pytest.mark.parametrize("tags", [b"", b"eu+gpu"])
def test_a_job_without_peculiarities_is_read_alike_in_any_order_of_its_fields(tags: bytes) -> None:
    shuffled = list(FRESH.items())
    while list(dict(shuffled)) == list(FRESH):
        random.shuffle(shuffled)
    assert read(FRESH, tags) == read(dict(shuffled), tags)
    assert read(FRESH, tags) == read(FRESH | {b"unknown": b"?"}, tags)


def test_what_a_job_says_is_read() -> None:
    record = read(FRESH)
    assert (record.queue, record.id, record.name, record.state) == ("mail", "41", "welcome", JobState.ACTIVE)
    assert (record.data, record.priority, record.max_attempts, record.lifo) == (FRESH[b"data"], 7, 3, True)
    assert (record.added, record.started, record.worker, record.fence) == (
        1_700_000_000_000,
        1_700_000_000_500,
        "ada",
        1,
    )
    assert (record.attempts_made, record.crashes, record.due, record.finished, record.result) == (
        0,
        0,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        (b"atm", b"2", "attempts_made"),
        (b"deid", b"k", "dedup"),
        (b"defa", b"no", "deferred"),
        (b"rjk", b"s", "schedule"),
    ],
)
def test_a_peculiarity_is_not_overlooked(field: bytes, value: bytes, found: str) -> None:
    assert getattr(read(FRESH | {field: value}), found) in {value.decode(), 2}
    assert getattr(read({field: value} | FRESH), found) in {value.decode(), 2}
