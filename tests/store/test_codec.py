"""Values of the contract as text, and back."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers_module.errors import StoreCorruptError
from workers_module.job.events import Event
from workers_module.job.record import ChildPolicy, JobRecord, ParentRef
from workers_module.job.state import JobState
from workers_module.store.codec import (
    dump_definition,
    dump_events,
    dump_record,
    dump_spec,
    dump_tags,
    dump_worker,
    load_definition,
    load_events,
    load_record,
    load_spec,
    load_tags,
    load_worker,
)
from workers_module.store.schedules import ScheduleDefinition
from workers_module.store.values import DedupSpec, JobSpec, WorkerInfo

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
instants = st.integers(0, 2**53 - 1)
optional_bytes = st.one_of(st.none(), st.binary(max_size=40))
records = st.builds(
    JobRecord,
    queue=texts,
    id=texts,
    name=texts,
    state=st.sampled_from(JobState),
    data=st.binary(max_size=40),
    opts=st.binary(max_size=40),
    priority=st.integers(0, 2**21 - 1),
    tags=st.lists(texts, max_size=3).map(tuple),
    attempts_made=st.integers(0, 9),
    max_attempts=st.integers(1, 9),
    crashes=st.integers(0, 9),
    fence=instants,
    added=instants,
    due=st.one_of(st.none(), instants),
    started=st.one_of(st.none(), instants),
    finished=st.one_of(st.none(), instants),
    lifo=st.booleans(),
    on_crash=st.sampled_from(["retry", "fail"]),
    cancelled=st.booleans(),
    worker=st.one_of(st.none(), texts),
    parent=st.one_of(st.none(), st.builds(ParentRef, texts, texts)),
    policy=st.sampled_from(ChildPolicy),
    schedule=st.one_of(st.none(), texts),
    dedup=st.one_of(st.none(), texts),
    deferred=st.one_of(st.none(), texts),
    progress=optional_bytes,
    reason=st.one_of(st.none(), texts),
    trace=optional_bytes,
    result=optional_bytes,
)


@given(records)
def test_a_record_comes_back_as_it_was(record: JobRecord) -> None:
    again = load_record(dump_record(record))
    assert again == record
    assert type(again.state) is JobState
    assert type(again.policy) is ChildPolicy


@given(st.lists(st.tuples(texts, st.one_of(st.none(), texts), st.dictionaries(texts, texts, max_size=3)), max_size=4))
def test_events_come_back_as_they_were(events: list[tuple[str, str | None, dict[str, str]]]) -> None:
    assert load_events(dump_events(events)) == [Event(*one) for one in events]


def test_an_event_without_fields_has_none() -> None:
    assert load_events(dump_events([("drained", None, None)])) == [Event("drained")]


def test_a_definition_comes_back_as_it_was() -> None:
    definition = ScheduleDefinition(
        name="tick", pattern="* * * * *", tz="Europe/Berlin", start=5, limit=3, data=b"\xff{", opts=b"{ }", extra=b"1"
    )
    assert load_definition(dump_definition(definition)) == definition
    assert dump_definition(definition) == dump_definition(replace(definition))
    assert dump_definition(definition) != dump_definition(replace(definition, extra=b"2"))


def test_a_job_that_is_put_off_comes_back_as_it_was() -> None:
    spec = JobSpec(
        queue="q",
        name="n",
        data=b'{"a": [ ]}',
        opts=b"{}",
        id="7",
        priority=3,
        lifo=True,
        delay_ms=5,
        due=9,
        max_attempts=2,
        tags=("a", "b"),
        dedup=DedupSpec("k", "keep_latest"),
        on_crash="fail",
    )
    assert load_spec(dump_spec(spec)) == spec


def test_a_worker_comes_back_as_it_was() -> None:
    info = WorkerInfo(id="w", host="h", pid=1, version="1", started=2, queues=("a",), tags=("b",), slots=3, busy=1)
    assert load_worker(dump_worker(info)) == info


def test_tags_come_back_as_they_were() -> None:
    assert load_tags(dump_tags(("a", "b"))) == ("a", "b")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": 1}', "5", '{"state": "nowhere"}'])
def test_what_is_no_record_is_corrupt(text: str) -> None:
    with pytest.raises(StoreCorruptError):
        load_record(text)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": 1}'])
def test_what_is_no_definition_is_corrupt(text: str) -> None:
    with pytest.raises(StoreCorruptError):
        load_definition(text)
