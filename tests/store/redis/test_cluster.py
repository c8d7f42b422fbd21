"""A Redis Cluster: what lies where, and what happens when a slot or a master goes to another node.

The suite of all stores runs on a cluster too, among the long tests; there all keys of a store lie in one slot.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import anyio
import pytest
from redis.crc import key_slot

from tests.servers import Server, command, redis_cluster, redis_on_port, shared_cluster, until
from tests.store.helpers import (
    PATIENCE,
    Q,
    add,
    assert_sound,
    claim,
    claim_one,
    complete,
    ids_of,
    listening,
    numbers,
    run,
    spec,
    step,
    sweep,
    types_of,
)
from tests.store.redis.helpers import produce, renewed, stubborn, until_blocked, work
from workers_module.errors import (
    ConfigurationError,
    JobNotFoundError,
    StoreOutcomeUnknownError,
    StoreUnavailableError,
)
from workers_module.job.record import ParentRef, Token
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.open import open_store
from workers_module.store.redis.store import RedisStore
from workers_module.store.schedules import FireSlot, PutSchedule, ScheduleDefinition
from workers_module.store.values import Beat, RenewReply, WorkerInfo

pytestmark = pytest.mark.redis

LONG = 60.0
# Three queues that lie on three nodes: a third of the slots each.
FAR = ("{a}", "{b}", "{c}")


@pytest.fixture
def ports() -> list[int]:
    """Return the ports of a cluster of three masters that other tests use too."""
    return shared_cluster()


@pytest.fixture
async def store(ports: list[int]) -> AsyncIterator[RedisStore]:
    """Return a store whose queues lie where their names say."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    store = RedisStore(f"redis+cluster://{hosts}", prefix=f"wm-{uuid4().hex[:12]}")
    await store.open()
    yield store
    await assert_sound(store)
    await store.close()


def owner(ports: list[int], key: str) -> int:
    """Return the port of the node that has a key's slot."""
    slot = key_slot(key.encode())
    for first, last, (_, port, *_), *_ in command(ports[0], "CLUSTER", "SLOTS"):
        if first <= slot <= last:
            return int(port)
    raise AssertionError(slot)


# --- queues in several slots ------------------------------------------------------------------------------------------


def test_the_queues_of_these_tests_lie_on_three_nodes(ports: list[int]) -> None:
    assert len({owner(ports, queue) for queue in FAR}) == 3


async def test_one_call_adds_to_queues_of_all_nodes(store: RedisStore) -> None:
    specs = [spec(f"j{n}", queue=FAR[n % 3]) for n in range(30)] + [spec(None, queue=queue) for queue in FAR]
    added = await store.add(specs)
    assert [one.id for one in added] == [*(f"j{n}" for n in range(30)), "11", "11", "11"]
    counts = await store.counts([*FAR, "{nothing}"])
    assert [(one.queue, one.waiting) for one in counts] == [(FAR[0], 11), (FAR[1], 11), (FAR[2], 11), ("{nothing}", 0)]
    assert await store.queues() == sorted(FAR)
    for n, queue in enumerate(FAR):
        assert ids_of(await claim(store, 3, queue=queue)) == [f"j{n}", f"j{n + 3}", f"j{n + 6}"]


async def test_a_job_goes_its_way_on_each_node(store: RedisStore) -> None:
    renewer = store.renewer()
    for queue in FAR:
        async with listening(store, queue) as ear:
            sleeper = asyncio.ensure_future(store.wait(step(1, queue=queue), LONG))
            await store.add([spec("a", queue=queue), spec("tagged", queue=queue, tags=("gpu",))])
            (job,) = (await sleeper).jobs
            assert renewer.renew(queue, [job.held], 30_000) == RenewReply()
            assert await store.renew(queue, [job.held], 30_000) == RenewReply()
            await complete(store, job, queue=queue)
            await run(store, "tagged", queue=queue, tags=("gpu",))
            await sweep(store, queue=queue)
            assert types_of(await ear.heard()).count("completed") == 2
    renewer.close()
    for queue in FAR:
        assert await store.obliterate(queue)
    assert await store.queues() == []


async def test_schedules_locks_and_workers(store: RedisStore) -> None:
    now = await store.now()
    for queue in FAR:
        job = spec(queue=queue, name="tick")
        definition = ScheduleDefinition(name="tick", every_ms=1_000)
        assert await store.schedule(queue, [PutSchedule(id="s", definition=definition, slot=now, job=job)]) == [True]
        assert await store.schedule(queue, [FireSlot(id="s", from_slot=now, slot=now + 9, job=job)]) == [True]
        assert (await store.schedules(queue))[0].slot == now + 9
    fences = [await store.lease(name, "ada", 10_000) for name in ("one", "two")]
    assert await store.lease("one", "bob", 10_000) is None
    assert [(lock.name, lock.fence) for lock in await store.locks()] == [("one", fences[0]), ("two", fences[1])]
    info = WorkerInfo(id="w", host="h", pid=1, version="1", started=now, queues=FAR, seen=now)
    await store.worker(Beat(info, 10_000))
    assert [worker.id for worker in await store.workers()] == ["w"]


async def test_a_queue_whose_keys_would_lie_in_several_slots_is_refused(store: RedisStore) -> None:
    info = await store.open()
    assert any("braces" in warning for warning in info.warnings)
    for call in (add(store, "a"), claim(store), store.counts([Q]), empty(store), store.verify(Q)):
        with pytest.raises(ConfigurationError, match=r"'\{mail\}'"):
            await call
    with pytest.raises(ConfigurationError, match="braces"):
        await store.add([spec("a", queue="{a}"), spec("b", queue="mail")])
    assert await numbers(store, "{a}") == {}


async def empty(store: Store) -> None:
    async with store.events(Q):
        pass


async def test_a_flow_in_one_slot(store: RedisStore) -> None:
    await store.add(
        [
            spec("far", queue="{b}"),
            spec("child", queue="{a}-mail", parent=2),
            spec("parent", queue="{a}-news"),
            spec("near", queue="{a}-mail"),
        ]
    )
    await store.add([spec("late", queue="{a}-mail", parent=ParentRef("{a}-news", "parent"))])
    assert await numbers(store, "{a}-news") == {"waiting-children": 1}
    for id in ("child", "near", "late"):
        await run(store, id, queue="{a}-mail")
    await run(store, "parent", queue="{a}-news")
    await run(store, "far", queue="{b}")


@pytest.mark.parametrize("parent", [1, ParentRef("{b}", "parent")])
async def test_a_flow_over_slots_is_refused_before_anything_is_sent(store: RedisStore, parent: int | ParentRef) -> None:
    with pytest.raises(ConfigurationError, match=r"'\{a\}'.*'child'.*'\{b\}'.*share the part in braces"):
        await store.add([spec("child", queue="{a}", parent=parent), spec("parent", queue="{b}"), spec(queue="{c}")])
    assert await store.queues() == []


async def test_jobs_of_another_slot_are_not_added_twice_by_a_refusal(store: RedisStore) -> None:
    orphan = spec("orphan", queue="{a}", parent=ParentRef("{a}", "nobody"))
    with pytest.raises(JobNotFoundError):
        await store.add([spec(None, queue="{b}"), orphan])
    assert await numbers(store, "{b}") == {}
    nested = [spec(None, queue="{c}", parent=1), spec("parent", queue="{c}")]
    with pytest.raises(StoreOutcomeUnknownError, match="have been added"):
        await store.add([*nested, spec("again", queue="{a}", parent=ParentRef("{a}", "nobody"))])


async def test_a_dump_goes_back_to_all_nodes(store: RedisStore) -> None:
    await store.add([spec(f"{queue[1]}{n}", queue=queue) for n in range(3) for queue in FAR])
    records = [one for queue in FAR for one in (await store.page(queue, [JobState.WAITING])).items]
    for queue in FAR:
        await store.obliterate(queue)
    assert await store.restore(records[::-1]) == 9
    assert [one.waiting for one in await store.counts(FAR)] == [3, 3, 3]


# --- which URL --------------------------------------------------------------------------------------------------------


async def test_one_node_under_a_plain_url_will_do(ports: list[int]) -> None:
    store = open_store(f"redis://127.0.0.1:{ports[0]}", prefix=f"wm-{uuid4().hex[:12]}")
    await store.open()
    await store.add([spec("a", queue=queue) for queue in FAR])
    for queue in FAR:
        await run(store, "a", queue=queue)
    renewer = store.renewer()
    await store.add([spec("b", queue=queue) for queue in FAR])
    for queue in FAR:
        assert renewer.renew(queue, [(await claim_one(store, queue=queue)).held], 9_000) == RenewReply()
    renewer.close()
    await store.close()


async def test_a_node_that_is_not_there_is_passed_over(ports: list[int]) -> None:
    store = open_store(f"redis+cluster://127.0.0.1:1,127.0.0.1:{ports[1]}", prefix="{wm}")
    await store.open()
    await store.close()


async def test_no_node_there_is_unavailable() -> None:
    store = open_store("redis+cluster://:hunter2@127.0.0.1:1,127.0.0.1:2", prefix="{wm}")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1.*127\.0\.0\.1:2|127\.0\.0\.1:2") as caught:
        await store.open()
    assert "hunter2" not in str(caught.value)


async def test_a_server_that_is_no_cluster_is_refused() -> None:
    with redis_on_port() as (port, _):
        store = open_store(f"redis+cluster://127.0.0.1:{port}")
        with pytest.raises(ConfigurationError, match=f"{port} is no node of a cluster; write redis://"):
            await store.open()


async def hold(held: threading.Event) -> None:
    await anyio.to_thread.run_sync(held.wait)


async def test_handlers_that_hold_all_threads_do_not_hold_the_store(ports: list[int]) -> None:
    held = threading.Event()
    store = open_store(f"redis+cluster://127.0.0.1:{ports[0]}", prefix="{wm}")
    async with anyio.create_task_group() as group:
        for _ in range(int(anyio.to_thread.current_default_thread_limiter().total_tokens)):
            group.start_soon(hold, held)
        await anyio.lowlevel.checkpoint()
        try:
            with anyio.fail_after(PATIENCE):
                await store.open()
        finally:
            held.set()
    await store.close()


# --- a slot on its way ------------------------------------------------------------------------------------------------


class Move:
    """Takes a slot from the node that has it to another one, step by step."""

    def __init__(self, ports: list[int], key: str) -> None:
        self.ports = ports
        self.slot = key_slot(key.encode())
        self.source = owner(ports, key)
        self.target = next(port for port in ports if port != self.source)

    def begin(self) -> None:
        source, target = self._id(self.source), self._id(self.target)
        command(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", source)
        command(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", target)

    def left(self) -> list[str]:
        found: list[str] = command(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, 10_000)
        return found

    def carry(self, *keys: str) -> None:
        command(self.source, "MIGRATE", "127.0.0.1", self.target, "", 0, 5_000, "KEYS", *keys)

    def end(self) -> None:
        while keys := self.left():
            self.carry(*keys)
        new = self._id(self.target)
        for port in (self.target, self.source, *self.ports):
            command(port, "CLUSTER", "SETSLOT", self.slot, "NODE", new)

    def _id(self, port: int) -> str:
        return str(command(port, "CLUSTER", "MYID"))


async def test_a_slot_that_has_moved_is_followed(store: RedisStore, ports: list[int]) -> None:
    queue = "{d}"
    renewer = store.renewer()
    await store.add([spec("a", queue=queue), spec("b", queue=queue)])
    first = await claim_one(store, queue=queue)
    assert renewer.renew(queue, [first.held], 30_000) == RenewReply()
    async with listening(store, queue) as ear:
        move = Move(ports, queue)
        move.begin()
        move.end()
        assert renewer.renew(queue, [first.held], 30_000) == RenewReply()
        await complete(store, first, queue=queue)
        (second,) = (await store.wait(step(1, queue=queue), LONG)).jobs
        await complete(store, second, queue=queue)
        assert types_of(await ear.heard()).count("completed") == 2
    assert await store.queues() == [queue]
    renewer.close()


async def test_a_worker_that_sleeps_is_woken_on_the_new_node(store: RedisStore, ports: list[int]) -> None:
    queue = "{e}"
    await store.add([spec("a", queue=queue)])
    await run(store, "a", queue=queue)
    waiting = asyncio.ensure_future(store.wait(step(1, queue=queue), LONG))
    move = Move(ports, queue)
    await anyio.to_thread.run_sync(until_blocked, move.source)
    move.begin()
    move.end()
    with anyio.fail_after(PATIENCE):
        await store.add([spec("b", queue=queue)])
        assert ids_of((await waiting).jobs) == ["b"]
    assert command(move.target, "CLUSTER", "COUNTKEYSINSLOT", move.slot) > 0
    await run_claimed(store, queue, "b")


async def run_claimed(store: Store, queue: str, id: str) -> None:
    (found,) = await store.get(queue, [id])
    assert found is not None
    assert found.state is JobState.ACTIVE


@pytest.mark.parametrize("moved", ["meta", "1", "wait", "wm:tagsets"])
async def test_no_script_runs_on_half_of_a_queue(store: RedisStore, ports: list[int], moved: str) -> None:
    queue = f"{{half-{moved.replace(':', '-')}}}"
    await store.add([spec(None, queue=queue), spec(None, queue=queue), spec("t", queue=queue, tags=("gpu",))])
    await store.lease("still", "ada", 10_000)
    move = Move(ports, queue)
    move.begin()
    prefix = move.left()[0].partition("{")[0]
    move.carry(f"{prefix}{queue}:{moved}")
    try:
        for call in (
            store.add([spec("n", queue=queue)]),
            claim(store, 2, queue=queue),
            store.wait(step(1, queue=queue), 0.1),
            sweep(store, queue=queue),
            store.counts([queue]),
        ):
            with pytest.raises(StoreUnavailableError, match="TRYAGAIN"):
                await call
        assert await store.lease("still", "ada", 10_000) is not None
    finally:
        move.end()
    assert await numbers(store, queue) == {"waiting": 3}
    assert ids_of(await claim(store, 3, queue=queue)) == ["1", "2"]


async def test_a_slot_moves_under_load(store: RedisStore, ports: list[int]) -> None:
    queue, total = "{load}", 600
    done: list[str] = []
    move = Move(ports, queue)
    async with anyio.create_task_group() as group:
        group.start_soon(produce, store, queue, total)
        for _ in range(3):
            group.start_soon(work, store, queue, done, total)
        await anyio.to_thread.run_sync(until, lambda: len(done) >= 50, "the workers are at work")
        await anyio.to_thread.run_sync(move.begin)
        for key in move.left():
            await anyio.to_thread.run_sync(move.carry, key)
        await anyio.to_thread.run_sync(move.end)
    assert sorted(done) == sorted(f"job-{n}" for n in range(total))
    assert await numbers(store, queue) == {"completed": total}
    assert owner(ports, queue) == move.target


# --- a node that fails ------------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> Iterator[list[tuple[int, Server]]]:
    """Return a cluster of this test's own, which keeps its data."""
    with redis_cluster("--appendonly", "yes", "--appendfsync", "always") as nodes:
        yield nodes


async def test_a_failed_node_is_unavailable_and_used_again(own: list[tuple[int, Server]]) -> None:
    ports = [port for port, _ in own]
    store = RedisStore(f"redis+cluster://127.0.0.1:{ports[0]}")
    await store.open()
    renewer = store.renewer()
    await store.add([spec("a", queue=queue) for queue in FAR])
    victim = owner(ports, FAR[1])
    server = dict(own)[victim]
    job = await claim_one(store, queue=FAR[1])
    server.kill()
    with pytest.raises(StoreUnavailableError):
        await claim(store, queue=FAR[1])
    with pytest.raises(StoreUnavailableError):
        renewer.renew(FAR[1], [job.held], 30_000)
    server.start()
    assert await stubborn(store.renew, FAR[1], [job.held], 30_000) == RenewReply()
    assert await stubborn(renewed, renewer, FAR[1], job.held) == RenewReply()
    await complete(store, job, queue=FAR[1])
    for queue in (FAR[0], FAR[2]):
        await stubborn(store.counts, [queue])
        await run(store, "a", queue=queue)
    renewer.close()
    await store.close()


async def test_a_replica_takes_over() -> None:
    with redis_cluster(replicas=1) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0][0]},127.0.0.1:{nodes[1][0]}"
        store, sure = RedisStore(url), RedisStore(f"{url}?wait_replicas=1")
        await store.open()
        await sure.open()
        renewer = store.renewer()
        queue = FAR[2]
        await sure.add([spec(f"{n}", queue=queue) for n in range(10)])
        token = Token("t")
        first = (await sure.step(step(10, queue=queue, token=token))).jobs
        assert await renewed(renewer, queue, first[0].held) == RenewReply()
        asleep = asyncio.ensure_future(store.wait(step(1, queue=queue), LONG))
        victim = owner([port for port, _ in nodes], queue)
        await anyio.to_thread.run_sync(until_blocked, victim)
        dict(nodes)[victim].kill()
        with pytest.raises(StoreUnavailableError):
            await asleep
        jobs = (await stubborn(store.step, step(10, queue=queue, token=token, resume=True))).jobs
        assert sorted(ids_of(jobs), key=int) == [f"{n}" for n in range(10)]
        assert await stubborn(renewed, renewer, queue, jobs[0].held) == RenewReply()
        for job in jobs:
            await complete(store, job, queue=queue)
        await stubborn(sure.counts, [queue])
        # The new master has no replica: what is written now is in doubt, and there all the same.
        with pytest.raises(StoreOutcomeUnknownError, match="0 of 1 replicas"):
            await sure.add([spec(None, queue=queue)])
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas"):
            await sure.add([spec("last", queue=queue)])
        assert await numbers(store, queue) == {"completed": 10, "waiting": 2}
        renewer.close()
        await store.close()
        await sure.close()
