"""`FlowProducer`: trees of jobs, all or none."""

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.client.helpers import Kit, Q, everything
from workers_module.client.flow import FlowProducer, flow_job
from workers_module.errors import ConfigurationError, JobFailedError, TooLargeError
from workers_module.job.kind import JobKind
from workers_module.job.options import Dedup, JobOptions, Repeat
from workers_module.job.outcome import Failed
from workers_module.job.record import ChildPolicy, ParentRef
from workers_module.job.state import JobState
from workers_module.store.base import Store


class Page(BaseModel):
    url: str


async def crawl(data: Page) -> int:
    return len(data.url)


def resolve(handler: object) -> tuple[str, str]:
    assert handler is crawl
    return Q, "page"


def tree(**options: Any) -> Any:
    return flow_job(
        (Q, "report"),
        {"title": "x"},
        children=[
            flow_job((Q, "page"), {"url": "a"}, children=[flow_job(("images", "image"), 1)]),
            flow_job((Q, "page"), {"url": "b"}),
        ],
        **options,
    )


async def test_a_parent_runs_after_its_children(any_kit: Kit) -> None:
    root = await FlowProducer(any_kit.producer).add(tree())
    assert await root.state() is JobState.WAITING_CHILDREN
    assert (await any_kit.complete(b"1")).record.data == b'{"url":"b"}'
    assert await any_kit.claim() == []
    await any_kit.complete(b"2", queue="images")
    assert (await any_kit.complete(b"3")).record.data == b'{"url":"a"}'
    last = await any_kit.complete(b'"all"')
    assert last.record.id == root.id
    assert await root.result() == "all"


async def test_a_failing_child_fails_its_parent_unless_told_otherwise(any_kit: Kit) -> None:
    flows = FlowProducer(any_kit.producer)
    root = await flows.add(flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1)]))
    (child,) = (await any_kit.store.children(Q, root.id)).items
    record = await any_kit.record(child.id)
    assert (record.policy, record.parent) == (ChildPolicy.FAIL_PARENT, ParentRef(Q, root.id))
    assert json.loads(record.opts) == {"fpof": True}
    await any_kit.fail(ValueError("x"))
    (claimed,) = await any_kit.claim()
    assert claimed.record.deferred is not None
    lenient = await flows.add(flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1, on_failure="ignore")]))
    await any_kit.fail(ValueError("x"))
    assert (await any_kit.complete()).record.id == lenient.id


async def test_a_policy_of_the_handler_counts(store: Store) -> None:
    kit = Kit(store, kinds=[JobKind(queue=Q, name="c", options=JobOptions(on_failure="remove"))])
    root = await FlowProducer(kit.producer).add(flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1)]))
    (child,) = (await store.children(Q, root.id)).items
    assert (await kit.record(child.id)).policy is ChildPolicy.REMOVE


async def test_handlers_are_resolved_and_their_types_hold(store: Store) -> None:
    kit = Kit(store, kinds=[JobKind(queue=Q, name="page", payload=Page, result=int)])
    flows = FlowProducer(kit.producer, resolve)
    handle = await flows.add(flow_job(crawl, Page(url="a")))
    await kit.complete(b"3")
    assert await handle.result() == 3
    before = await everything(store)
    with pytest.raises(ValidationError) as caught:
        await flows.add(flow_job((Q, "p"), 1, children=[flow_job((Q, "page"), {"link": "a"})]))
    assert "mail.page in a flow of 2" in caught.value.__notes__[0]
    assert await everything(store) == before


async def test_what_has_no_place_in_a_flow_is_refused(any_kit: Kit) -> None:
    flows = FlowProducer(any_kit.producer)
    child = flow_job((Q, "c"), 1)
    for flow in (
        flow_job((Q, "p"), 1, children=[child], repeat=Repeat("* * * * *")),
        flow_job((Q, "p"), 1, children=[child], deduplication=Dedup.simple("x")),
        flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1, deduplication=Dedup.simple("x"))]),
        flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1, parent=ParentRef(Q, "1"))]),
    ):
        with pytest.raises(ConfigurationError):
            await flows.add(flow)
    assert await everything(any_kit.store) == {}


async def test_a_singleton_may_stand_alone_but_not_in_a_tree(store: Store) -> None:
    kit = Kit(store, kinds=[JobKind(queue=Q, name="one", singleton=True)])
    flows = FlowProducer(kit.producer)
    await flows.add(flow_job((Q, "one"), 1))
    with pytest.raises(ConfigurationError, match=r"mail\.one"):
        await flows.add(flow_job((Q, "p"), 1, children=[flow_job((Q, "one"), 1)]))


async def test_a_root_may_have_a_parent(any_kit: Kit) -> None:
    flows = FlowProducer(any_kit.producer)
    outer = await flows.add(flow_job((Q, "outer"), 1, children=[flow_job((Q, "c"), 1)]))
    await any_kit.claim()
    inner = await flows.add(flow_job((Q, "inner"), 1, children=[flow_job((Q, "c"), 1)], parent=ParentRef(Q, outer.id)))
    assert (await any_kit.record(inner.id)).parent == ParentRef(Q, outer.id)


async def test_too_large_a_tree_is_refused(kit: Kit) -> None:
    flows = FlowProducer(kit.producer)
    leaf = flow_job((Q, "c"), 1)
    with pytest.raises(TooLargeError, match="10,000 jobs"):
        await flows.add(flow_job((Q, "p"), 1, children=[leaf] * 10_000))
    deep = leaf
    for _ in range(100):
        deep = flow_job((Q, "p"), 1, children=[deep])
    with pytest.raises(TooLargeError, match="100 levels"):
        await flows.add(deep)
    heavy = flow_job((Q, "c"), "x" * 1_000_000)
    with pytest.raises(TooLargeError, match="bytes of payload"):
        await flows.add(flow_job((Q, "p"), 1, children=[heavy] * 70))
    assert await everything(kit.store) == {}


async def test_a_reference_that_cannot_be_looked_up_is_refused(kit: Kit) -> None:
    with pytest.raises(ConfigurationError, match="cannot be looked up"):
        await FlowProducer(kit.producer).add(flow_job("page", 1))


async def test_a_cancelled_child_fails_the_tree(any_kit: Kit) -> None:
    root = await FlowProducer(any_kit.producer).add(flow_job((Q, "p"), 1, children=[flow_job((Q, "c"), 1)]))
    (child,) = (await any_kit.store.children(Q, root.id)).items
    assert await any_kit.queue.cancel(child.id)
    (claimed,) = await any_kit.claim()
    assert claimed.record.deferred is not None
    await any_kit.settle(claimed, Failed(claimed.record.deferred))
    with pytest.raises(JobFailedError):
        await root.result()
