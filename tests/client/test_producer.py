"""`Producer` and its way into the store: layers of options, singletons, and calls that share one trip."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ValidationError

from tests.client.helpers import Kit, Q, everything
from workers_module.client.handle import JobHandle
from workers_module.client.producer import Producer, QueueSpec, Ran, StoreIntake
from workers_module.client.queue import Queue
from workers_module.errors import (
    ConfigurationError,
    JobNotFoundError,
    NotSupportedError,
    SingletonKeyError,
    StoreFullError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.kind import JobKind
from workers_module.job.options import Dedup, JobOptions, Repeat
from workers_module.job.record import ParentRef
from workers_module.job.retry import Backoff
from workers_module.job.state import JobState
from workers_module.job.stored import read_options
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.values import Added, JobSpec


class Mail(BaseModel):
    to: str
    copies: int = 1


def kind(name: str | None = "welcome", **fields: Any) -> JobKind:
    return JobKind(queue=Q, name=name, **fields)


# --- layers ----------------------------------------------------------------------------------------------------------


async def test_options_merge_settings_queue_handler_call(store: Store) -> None:
    kit = Kit(
        store,
        defaults=JobOptions(attempts=2, priority=1, keep_logs=1, remove_on_fail=1),
        queues=[QueueSpec(name=Q, options=JobOptions(priority=2, keep_logs=2, remove_on_fail=2))],
        kinds=[kind(options=JobOptions(keep_logs=3, remove_on_fail=3))],
    )
    handle = await kit.queue.add("welcome", None, remove_on_fail=4)
    record = await kit.record(handle.id)
    stored = json.loads(record.opts)
    assert (stored["attempts"], stored["priority"], stored["kl"], stored["removeOnFail"]) == (2, 2, 3, 4)
    assert (record.max_attempts, record.priority) == (2, 2)
    other = await kit.record((await kit.queue.add("other", None)).id)
    assert json.loads(other.opts)["kl"] == 2


async def test_tags_of_all_layers_add_up_and_the_call_overrides(store: Store) -> None:
    kit = Kit(
        store,
        queues=[QueueSpec(name=Q, options=JobOptions(tags=["queue"]))],
        kinds=[kind(tags=("handler",), options=JobOptions(tags=["own"]))],
    )
    assert (await kit.record((await kit.queue.add("welcome", None)).id)).tags == ("handler", "own", "queue")
    assert (await kit.record((await kit.queue.add("welcome", None, attempts=2)).id)).tags == ("handler", "own", "queue")
    assert (await kit.record((await kit.queue.add("welcome", None, tags=["call"])).id)).tags == ("call",)
    assert (await kit.record((await kit.queue.add("welcome", None, tags=[])).id)).tags == ()


@pytest.mark.parametrize("name", ["job_id", "parent", "repeat", "run_at"])
def test_defaults_that_only_fit_one_job_are_refused(name: str) -> None:
    options: Any = {name: "x"}
    store = MemoryStore()
    with pytest.raises(ConfigurationError, match=f"settings: {name}"):
        Producer(store, defaults=options)
    with pytest.raises(ConfigurationError, match=f"mail.welcome: {name}"):
        Producer(store, kinds=[kind(options=options)])
    with pytest.raises(ConfigurationError, match=f"'mail': {name}"):
        Producer(store, queues=[QueueSpec(name=Q, options=options)])


async def test_the_handlers_type_counts_before_the_queues(store: Store) -> None:
    kit = Kit(store, kinds=[kind(payload=Mail)], queues=[QueueSpec(name=Q, payload=int)])
    handle = await kit.queue.add("welcome", {"to": "a", "copies": "2"})
    assert json.loads((await kit.record(handle.id)).data) == {"to": "a", "copies": 2}
    await kit.queue.add("other", 3)
    with pytest.raises(ValidationError):
        await kit.queue.add("other", {"to": "a"})


async def test_a_catch_all_takes_every_other_name(store: Store) -> None:
    kit = Kit(store, kinds=[kind(None, payload=int), kind("welcome", payload=str)])
    await kit.queue.add("anything", 3)
    await kit.queue.add("welcome", "x")
    with pytest.raises(ValidationError):
        await kit.queue.add("anything", "x")


async def test_many_different_names_do_not_pile_up(kit: Kit) -> None:
    for number in range(5_000):
        kit.producer.prepare(Q, f"name-{number}", None)
    assert len(kit.producer._plans) <= 4_096


# --- singletons ------------------------------------------------------------------------------------------------------


async def test_a_singleton_has_one_job_in_flight(any_store: Store) -> None:
    kit = Kit(any_store, kinds=[kind(singleton=True)])
    first = await kit.queue.add("welcome", 1)
    second = await kit.queue.add("welcome", 2)
    assert (first.deduplicated, second.deduplicated, second.id) == (False, True, first.id)
    await kit.complete()
    assert not (await kit.queue.add("welcome", 3)).deduplicated


async def test_a_singleton_of_its_data_has_one_job_per_value(any_store: Store) -> None:
    def key(mail: Mail) -> object:
        return {"to": mail.to, "b": 1}

    kit = Kit(any_store, kinds=[kind(payload=Mail, singleton=key)])
    first = await kit.queue.add("welcome", Mail(to="ann"))
    same = await kit.queue.add("welcome", Mail(to="ann", copies=2))
    other = await kit.queue.add("welcome", {"to": "bob"})
    assert (same.id, same.deduplicated, other.deduplicated) == (first.id, True, False)
    record = await kit.record(first.id)
    assert record.dedup == 'welcome:{"b":1,"to":"ann"}'
    assert read_options(record.opts).dedup == Dedup.simple(record.dedup)


@pytest.mark.parametrize("value", [{1, 2}, b"x", float("nan"), {1: 2}, object()])
async def test_a_key_that_is_not_json_is_refused(store: Store, value: object) -> None:
    def key(data: object) -> object:
        return value

    kit = Kit(store, kinds=[kind(singleton=key)])
    with pytest.raises(SingletonKeyError, match=r"singleton key of mail\.welcome"):
        await kit.queue.add("welcome", 1)
    assert await everything(store) == {}


async def test_a_long_key_is_hashed(store: Store) -> None:
    def key(data: object) -> object:
        return data

    kit = Kit(store, kinds=[kind(singleton=key)])
    first = await kit.queue.add("welcome", "x" * 5_000)
    assert (await kit.queue.add("welcome", "x" * 5_000)).id == first.id
    assert (await kit.queue.add("welcome", "x" * 5_001)).id != first.id
    assert len((await kit.record(first.id)).dedup or "") < 100


async def test_the_calls_own_deduplication_counts_before_a_singleton(store: Store) -> None:
    kit = Kit(store, kinds=[kind(singleton=True)])
    handle = await kit.queue.add("welcome", 1, deduplication=Dedup.simple("mine"))
    assert (await kit.record(handle.id)).dedup == "mine"


async def test_a_singleton_can_be_repeated(store: Store) -> None:
    kit = Kit(store, kinds=[kind(singleton=True)])
    handle = await kit.queue.add("welcome", 1, repeat=Repeat("* * * * *"))
    assert await handle.state() is JobState.DELAYED


# --- calls that share one trip ---------------------------------------------------------------------------------------


class Watched(MemoryStore):
    """A memory store that remembers the sizes of its add calls, and fails as told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.faults: list[BaseException | None] = []
        self.before: Callable[[], Any] | None = None

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        self.calls.append(len(specs))
        if self.before is not None:
            await self.before()
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise fault
        return await super().add(specs, tx=tx, now=now)


@pytest.fixture
async def watched() -> Watched:
    store = Watched()
    await store.open()
    return store


async def test_the_calls_of_one_tick_are_one_call(watched: Watched) -> None:
    kit = Kit(watched)
    handles = await asyncio.gather(*(kit.queue.add("a", number) for number in range(50)))
    assert watched.calls == [50]
    assert len({handle.id for handle in handles}) == 50
    jobs = await kit.claim(take=50)
    assert [json.loads(job.record.data) for job in jobs] == list(range(50))


async def test_a_large_tick_goes_in_several_calls(watched: Watched) -> None:
    kit = Kit(watched)
    await asyncio.gather(*(kit.queue.add("a", number) for number in range(1_200)))
    assert watched.calls == [500, 500, 200]


async def test_add_many_is_one_call_whatever_its_size(watched: Watched) -> None:
    kit = Kit(watched)
    await kit.queue.add_many([("a", number) for number in range(1_200)])
    assert watched.calls == [1_200]


async def test_a_call_in_a_transaction_is_not_merged(watched: Watched) -> None:
    kit = Kit(watched)
    await asyncio.gather(*(kit.queue.add("a", number, tx=object()) for number in range(3)))
    assert watched.calls == [1, 1, 1]


async def test_a_queue_with_a_session_adds_inside_it(watched: Watched) -> None:
    kit = Kit(watched)
    seen: list[object] = []

    async def add(specs: Sequence[JobSpec], *, tx: object = None, now: int | None = None) -> list[Added]:
        seen.append(tx)
        return await MemoryStore.add(watched, specs, now=now)

    watched.add = add  # type: ignore[method-assign]
    session = object()
    queue: Queue[Any] = Queue(kit.producer, watched, name=Q, tx=session)
    await queue.add("a", 1)
    await queue.add_many([("a", 1)])
    await queue.add("a", 1, tx="other")
    assert seen == [session, session, "other"]


async def test_each_caller_of_a_refused_call_gets_its_own_answer(any_kit: Kit) -> None:
    calls = [
        any_kit.queue.add("a", 1),
        any_kit.queue.add("a", 2, parent=ParentRef(Q, "nobody")),
        any_kit.queue.add("a", 3),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [JobHandle, JobNotFoundError, JobHandle]
    assert (await any_kit.queue.get_job_counts()).waiting == 2


async def test_an_error_of_the_store_reaches_each_caller_as_its_own(watched: Watched) -> None:
    kit = Kit(watched)
    watched.faults = [StoreFullError("no room")]
    errors = await asyncio.gather(*(kit.queue.add("a", 1) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [StoreFullError] * 3
    assert len({id(error) for error in errors}) == 3
    assert watched.calls == [3]


async def test_a_cancelled_caller_leaves_the_others_alone(watched: Watched) -> None:
    kit = Kit(watched)
    sent, go_on = anyio.Event(), anyio.Event()

    async def hold() -> None:
        sent.set()
        await go_on.wait()

    watched.before = hold
    first = asyncio.create_task(kit.queue.add("a", 1))
    second = asyncio.create_task(kit.queue.add("a", 2))
    await sent.wait()
    first.cancel()
    go_on.set()
    assert not (await second).deduplicated
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await kit.queue.get_job_counts()).waiting == 2


async def test_a_caller_cancelled_before_the_trip_adds_nothing(watched: Watched) -> None:
    kit = Kit(watched)
    task = asyncio.create_task(kit.queue.add("a", 1))
    other = asyncio.create_task(kit.queue.add("a", 2))
    await asyncio.sleep(0)
    task.cancel()
    await other
    assert watched.calls == [1]
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_unreachable_store_is_tried_again(watched: Watched) -> None:
    kit = Kit(watched)
    watched.faults = [StoreUnavailableError("down"), StoreUnavailableError("down")]
    await kit.queue.add("a", 1)
    assert watched.calls == [1, 1, 1]
    assert (await kit.queue.get_job_counts()).waiting == 1


async def test_an_unreachable_store_is_given_up_in_the_end(watched: Watched) -> None:
    kit = Kit(watched, add_timeout="100ms")
    watched.faults = [StoreUnavailableError("down") for _ in range(100)]
    with pytest.raises(StoreUnavailableError), anyio.fail_after(10):
        await kit.queue.add("a", 1)
    assert 1 < len(watched.calls) < 100


async def test_an_unknown_outcome_is_not_repeated(watched: Watched) -> None:
    kit = Kit(watched)
    watched.faults = [StoreOutcomeUnknownError("no reply")]
    with pytest.raises(StoreOutcomeUnknownError):
        await kit.queue.add("a", 1)
    assert watched.calls == [1]


async def test_a_failed_transaction_is_not_repeated(watched: Watched) -> None:
    kit = Kit(watched)
    watched.faults = [StoreUnavailableError("down")]
    with pytest.raises(StoreUnavailableError):
        await kit.queue.add("a", 1, tx=object())
    assert watched.calls == [1]


async def test_an_unforeseen_error_leaves_no_caller_waiting(watched: Watched) -> None:
    kit = Kit(watched)
    watched.faults = [RuntimeError("bug")]
    with anyio.fail_after(10):
        errors = await asyncio.gather(*(kit.queue.add("a", 1) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["bug"] * 3


def test_one_producer_serves_one_loop_after_another() -> None:
    store = MemoryStore()
    intake = StoreIntake(store)
    spec = JobSpec(queue=Q, name="a", data=b"1")

    async def add() -> list[Added]:
        return await intake.add([spec])

    assert [asyncio.run(add())[0].id for _ in range(2)] == ["1", "2"]


# --- other intakes ---------------------------------------------------------------------------------------------------


class AtOnce:
    """An intake that runs jobs itself."""

    async def add(self, specs: Sequence[JobSpec], *, tx: object = None) -> list[Ran]:
        return [Ran(f"ran-{index}", spec.data) for index, spec in enumerate(specs)]


async def test_an_intake_may_run_the_job_instead(store: Store) -> None:
    kit = Kit(store, intake=AtOnce(), kinds=[kind(payload=Mail, result=Mail)])
    handle = await kit.queue.add("welcome", Mail(to="a"))
    assert handle.id == "ran-0"
    assert await handle.result() == Mail(to="a")
    assert await handle.state() is JobState.COMPLETED
    assert not await handle.cancel()
    assert await kit.producer.run(Q, "other", 5) == 5
    assert await everything(store) == {}
    with pytest.raises(NotSupportedError):
        kit.queue.add_sync("welcome", Mail(to="a"), tx=object())


class Synchronous(MemoryStore):
    """A memory store that also adds without an event loop."""

    def add_sync(self, specs: Sequence[JobSpec], *, tx: object, notify: bool = True) -> list[Added]:
        assert (tx, notify) == ("tx", False)
        return [Added("9", JobState.WAITING) for _ in specs]


def test_add_sync_hands_checked_jobs_to_the_store() -> None:
    store = Synchronous()
    kit = Kit(store, kinds=[kind(payload=Mail)])
    assert kit.queue.add_sync("welcome", Mail(to="a"), tx="tx", notify=False, attempts=2).id == "9"
    with pytest.raises(ValidationError):
        kit.queue.add_sync("welcome", 3, tx="tx", notify=False)
    with pytest.raises(ConfigurationError, match="repeat"):
        kit.queue.add_sync("welcome", Mail(to="a"), tx="tx", repeat=Repeat("* * * * *"))


async def test_repeat_belongs_to_single_calls(kit: Kit) -> None:
    options = JobOptions(repeat=Repeat("* * * * *"))
    with pytest.raises(ConfigurationError, match="repeat"):
        await kit.queue.add_many([("a", 1, options)])
    with pytest.raises(ConfigurationError, match="repeat"):
        await kit.producer.run(Q, "a", 1, options)
    with pytest.raises(ConfigurationError, match="transaction"):
        await kit.queue.add("a", 1, tx=object(), **options)
    assert await everything(kit.store) == {}


async def test_backoff_and_timeout_are_stored_for_the_worker(kit: Kit) -> None:
    handle = await kit.queue.add("a", 1, backoff=Backoff.exponential("1s", max="1m"), timeout="2m")
    stored = read_options((await kit.record(handle.id)).opts)
    assert (stored.backoff, stored.timeout_ms) == (Backoff.exponential("1s", max="1m"), 120_000)
