"""Tags: jobs that only some workers may run."""

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    Later,
    Q,
    add,
    by_state,
    claim,
    claim_one,
    complete,
    ids_in,
    ids_of,
    numbers,
    record,
    release,
    retry,
    settle_all,
    spec,
    step,
    sweep,
)
from workers_module.job.outcome import Completed
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import DedupSpec, Remove

EU, GPU = ("eu",), ("gpu",)


async def test_a_worker_without_tags_runs_jobs_without_tags(store: Store) -> None:
    await store.add([spec("a", tags=EU), spec("b"), spec("c", tags=("eu", "gpu"))])
    assert ids_of(await claim(store, 9)) == ["b"]


async def test_a_worker_with_tags_runs_jobs_that_share_one(store: Store) -> None:
    await store.add(
        [
            spec("none"),
            spec("eu", tags=EU),
            spec("gpu", tags=GPU),
            spec("both", tags=("eu", "gpu")),
            spec("us", tags=("us",)),
        ]
    )
    assert ids_of(await claim(store, 9, tags=EU)) == ["eu", "both"]
    assert ids_of(await claim(store, 9, tags=("gpu", "us"))) == ["gpu", "us"]
    assert ids_of(await claim(store, 9)) == ["none"]


async def test_tags_are_told_at_the_start(store: Store) -> None:
    await add(store, "a", tags=("eu", "gpu"))
    assert (await claim_one(store, tags=GPU)).record.tags == ("eu", "gpu")


async def test_a_tag_is_not_a_piece_of_another(store: Store) -> None:
    await store.add([spec("a", tags=("eu-west",)), spec("b", tags=("e",))])
    assert await claim(store, 9, tags=EU) == []


async def test_order_holds_over_all_tags_of_a_worker(store: Store) -> None:
    await store.add([spec("g1", tags=GPU), spec("e1", tags=EU), spec("g2", tags=GPU), spec("b1", tags=("eu", "gpu"))])
    await store.add(
        [spec("e0", tags=EU, priority=1), spec("g9", tags=GPU, priority=9), spec("b2", tags=("eu", "gpu"), priority=2)]
    )
    assert ids_of(await claim(store, 3, tags=("eu", "gpu"))) == ["g1", "e1", "g2"]
    assert ids_of(await claim(store, 9, tags=("eu", "gpu"))) == ["b1", "e0", "b2", "g9"]


async def test_new_tags_are_seen_by_workers_that_came_before(store: Store, other: Store) -> None:
    assert await claim(store, 1, tags=GPU) == []
    await add(other, "a", tags=("fast", "gpu"))
    assert ids_of(await claim(store, 1, tags=GPU)) == ["a"]


async def test_a_job_keeps_its_tags_wherever_it_goes(store: Store, later: Later) -> None:
    await add(store, "a", tags=EU)
    await retry(store, await claim_one(store, tags=EU), 500)
    later(500)
    assert await claim(store, 9) == []
    await release(store, await claim_one(store, tags=EU))
    assert await claim(store, 9) == []
    await claim_one(store, tags=EU)
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    assert (await sweep(store)).recovered == ("a",)
    assert await claim(store, 9) == []
    assert (await claim_one(store, tags=EU)).record.tags == EU


async def test_counts_are_the_whole_queues(store: Store) -> None:
    await store.add([spec("a"), spec("b", tags=EU), spec("c", tags=GPU, priority=1), spec("d", tags=EU, delay_ms=5)])
    await complete(store, await claim_one(store, tags=EU))
    assert await numbers(store) == {"waiting": 1, "prioritized": 1, "delayed": 1, "completed": 1}
    assert await store.queues() == [Q]


async def test_ready_jobs_are_listed_tags_by_tags_and_others_by_time(store: Store, later: Later) -> None:
    await store.add([spec("e1", tags=EU), spec("n1"), spec("e2", tags=EU), spec("n2")])
    await store.add([spec("ed", tags=EU, delay_ms=300), spec("nd", delay_ms=200), spec("gd", tags=GPU, delay_ms=400)])
    assert await ids_in(store, JobState.WAITING) == ["n1", "n2", "e1", "e2"]
    assert await ids_in(store, JobState.DELAYED) == ["nd", "ed", "gd"]


async def test_an_id_is_one_job_whatever_the_tags(store: Store) -> None:
    await add(store, "a", tags=EU)
    (again,) = await store.add([spec("a")])
    assert again.existing == "same_id"
    assert (await record(store, "a")).tags == EU


async def test_a_deduplication_key_holds_over_all_tags(store: Store) -> None:
    await store.add([spec("a", tags=EU, dedup=DedupSpec("k"))])
    (again,) = await store.add([spec("b", dedup=DedupSpec("k"))])
    assert (again.id, again.existing) == ("a", "deduplicated")


async def test_moves_reach_jobs_of_all_tags(store: Store) -> None:
    await store.add([spec("a"), spec("b", tags=EU), spec("c", tags=GPU)])
    assert sorted(await store.move(Q, by_state(JobState.WAITING), Remove(hard=True))) == ["a", "b", "c"]
    assert await numbers(store) == {}


async def test_resume_brings_jobs_whatever_their_tags(store: Store) -> None:
    await store.add([spec("a", tags=EU), spec("b", tags=EU)])
    req = step(1, tags=EU)
    await store.step(req)
    again = await store.step(step(2, tags=EU, token=req.token, resume=True))
    assert sorted(ids_of(again.jobs)) == ["a", "b"]
    assert len({job.held.fence for job in again.jobs}) == 1


async def test_a_worker_may_settle_jobs_of_any_tags(store: Store) -> None:
    await store.add([spec("a"), spec("b", tags=EU)])
    jobs = [await claim_one(store), await claim_one(store, tags=EU)]
    await settle_all(store, jobs, Completed(b"1"))
    assert await numbers(store) == {"completed": 2}
