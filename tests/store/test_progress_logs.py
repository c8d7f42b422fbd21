"""Changing a job in place: progress, data, log, priority, cancel request."""

from typing import Any

import pytest

from tests.store.helpers import (
    INTERVAL,
    LEASE,
    Later,
    Q,
    add,
    by_id,
    claim,
    claim_one,
    complete,
    edit,
    ids_in,
    ids_of,
    numbers,
    record,
    run,
    spec,
    state,
    sweep,
    token,
)
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import EditResult, Held, JobPatch, Page, QueuePatch, Remove


async def test_progress_is_kept_as_it_was_given(store: Store) -> None:
    await add(store, "a")
    await claim_one(store)
    assert await edit(store, "a", progress=b'{"done" : 0.5}') == "ok"
    assert (await record(store, "a")).progress == b'{"done" : 0.5}'
    assert await edit(store, "a", progress=b"75") == "ok"
    assert (await record(store, "a")).progress == b"75"


async def test_progress_outlives_the_run(store: Store) -> None:
    await add(store, "a")
    job = await claim_one(store)
    await edit(store, "a", progress=b"75")
    await complete(store, job)
    assert (await record(store, "a")).progress == b"75"


async def test_data_is_replaced(store: Store) -> None:
    await add(store, "a", data=b'{"old":1}')
    large = b'"' + b"y" * 50_000 + b'"'
    assert await edit(store, "a", data=large) == "ok"
    assert (await claim_one(store)).record.data == large
    assert await edit(store, "a", data=b"[2 ]") == "ok"
    assert (await record(store, "a")).data == b"[2 ]"


async def test_a_job_that_is_not_there_is_missing(store: Store) -> None:
    assert await edit(store, "nobody", progress=b"1", log_lines=("x",)) == "missing"
    assert await numbers(store) == {}
    assert await store.logs(Q, "nobody") == Page([], 0)


async def test_results_come_in_the_order_of_the_patches(store: Store) -> None:
    await add(store, "a", "b")
    results = await store.edit(
        Q,
        [
            JobPatch(id="a", progress=b"1"),
            JobPatch(id="nobody", progress=b"1"),
            JobPatch(id="b", delay_ms=5),
            JobPatch(id="a", progress=b"2"),
        ],
    )
    assert results == [EditResult.OK, EditResult.MISSING, EditResult.WRONG_STATE, EditResult.OK]
    assert (await record(store, "a")).progress == b"2"
    assert await store.edit(Q, []) == []


async def test_a_patch_that_changes_nothing_is_fine(store: Store) -> None:
    await add(store, "a")
    before = await record(store, "a")
    assert await edit(store, "a") == "ok"
    assert await record(store, "a") == before


@pytest.mark.parametrize("refused", [{"delay_ms": 5}, {"cancel": True}])
async def test_a_refused_patch_changes_nothing_at_all(store: Store, refused: dict[str, Any]) -> None:
    await add(store, "a", data=b"1")
    before = await record(store, "a")
    assert await edit(store, "a", progress=b"1", data=b"2", log_lines=("x",), priority=3, **refused) == "wrong_state"
    assert await record(store, "a") == before
    assert await store.logs(Q, "a") == Page([], 0)


# --- under a lease ----------------------------------------------------------------------------------------------------


async def test_the_holder_may_change_its_job(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store, lease_ms=100)
    assert await edit(store, "a", progress=b"1", held=job.held) == "ok"
    later(10_000)
    assert await edit(store, "a", progress=b"2", held=job.held) == "ok"
    assert (await record(store, "a")).progress == b"2"


async def test_a_lost_lease_changes_nothing(store: Store, later: Later) -> None:
    await add(store, "a")
    job = await claim_one(store)
    thief = Held("a", token(), job.held.fence, job.held.handle)
    assert await edit(store, "a", progress=b"1", held=thief) == "lease_lost"
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    await sweep(store)
    before = await record(store, "a")
    assert await edit(store, "a", progress=b"1", log_lines=("x",), held=job.held) == "lease_lost"
    assert await record(store, "a") == before
    new = await claim_one(store)
    assert await edit(store, "a", progress=b"1", held=job.held) == "lease_lost"
    assert await edit(store, "a", progress=b"1", held=new.held) == "ok"
    assert (await store.logs(Q, "a")).total == 0


async def test_a_change_after_the_end_with_the_lease_of_before_is_refused(store: Store) -> None:
    await add(store, "a")
    job = await run(store, "a")
    assert await edit(store, "a", progress=b"1", held=job.held) == "lease_lost"
    assert await edit(store, "a", progress=b"1") == "ok"


# --- log --------------------------------------------------------------------------------------------------------------


async def test_log_lines_are_kept_in_order(store: Store) -> None:
    await add(store, "a", "b")
    await edit(store, "a", log_lines=("one", "two"))
    await edit(store, "b", log_lines=("other",))
    await edit(store, "a", log_lines=("thr\x00ee \U0001f40d\n",))
    assert await store.logs(Q, "a") == Page(["one", "two", "thr\x00ee \U0001f40d\n"], 3)
    assert await store.logs(Q, "b") == Page(["other"], 1)


async def test_a_log_is_read_in_pieces(store: Store) -> None:
    await add(store, "a")
    await edit(store, "a", log_lines=tuple(f"{n}" for n in range(10)))
    assert await store.logs(Q, "a", start=0, limit=3) == Page(["0", "1", "2"], 10)
    assert await store.logs(Q, "a", start=8, limit=3) == Page(["8", "9"], 10)
    assert await store.logs(Q, "a", start=10) == Page([], 10)


async def test_a_log_keeps_its_newest_lines(store: Store) -> None:
    await add(store, "a")
    await edit(store, "a", log_lines=("1", "2", "3", "4"), keep_logs=3)
    assert (await store.logs(Q, "a")).items == ["2", "3", "4"]
    await edit(store, "a", log_lines=("5",), keep_logs=3)
    assert await store.logs(Q, "a") == Page(["3", "4", "5"], 3)
    await edit(store, "a", keep_logs=1)
    assert await store.logs(Q, "a") == Page(["5"], 1)


async def test_a_log_never_grows_over_a_thousand_lines(store: Store) -> None:
    await add(store, "a")
    await edit(store, "a", log_lines=tuple(f"{n}" for n in range(990)))
    await edit(store, "a", log_lines=tuple(f"{n}" for n in range(990, 1_050)), keep_logs=5_000)
    log = await store.logs(Q, "a", limit=2_000)
    assert log == Page([f"{n}" for n in range(50, 1_050)], 1_000)


async def test_a_log_is_emptied_before_lines_are_appended(store: Store) -> None:
    await add(store, "a")
    await edit(store, "a", log_lines=("1", "2"))
    await edit(store, "a", clear_logs=True, log_lines=("3",))
    assert await store.logs(Q, "a") == Page(["3"], 1)
    await edit(store, "a", clear_logs=True)
    assert await store.logs(Q, "a") == Page([], 0)


async def test_a_log_goes_with_its_job(store: Store) -> None:
    await add(store, "a")
    await edit(store, "a", log_lines=("1",))
    await store.move(Q, by_id("a"), Remove())
    await add(store, "a")
    assert await store.logs(Q, "a") == Page([], 0)


# --- priority ---------------------------------------------------------------------------------------------------------


async def test_a_changed_priority_moves_a_waiting_job(store: Store) -> None:
    await store.add([spec("a"), spec("b"), spec("c1", priority=1), spec("d5", priority=5)])
    assert await edit(store, "a", priority=3) == "ok"
    assert await state(store, "a") is JobState.PRIORITIZED
    assert (await record(store, "a")).priority == 3
    assert await edit(store, "d5", priority=0) == "ok"
    assert await state(store, "d5") is JobState.WAITING
    assert await numbers(store) == {"waiting": 2, "prioritized": 2}
    assert ids_of(await claim(store, 9)) == ["b", "d5", "c1", "a"]


async def test_a_job_comes_to_its_new_priority_behind(store: Store) -> None:
    await store.add([spec("a1", priority=1), spec("b2", priority=2), spec("c2", priority=2)])
    await edit(store, "a1", priority=2)
    assert ids_of(await claim(store, 9)) == ["b2", "c2", "a1"]


async def test_a_job_that_does_not_wait_has_its_new_priority_for_later(store: Store, later: Later) -> None:
    await store.add([spec("d", delay_ms=100), spec("x", delay_ms=100)])
    await edit(store, "d", priority=4)
    assert await state(store, "d") is JobState.DELAYED
    later(100)
    jobs = await claim(store, 9)
    assert ids_of(jobs) == ["x", "d"]
    assert await edit(store, "d", priority=1) == "ok"
    kept = await record(store, "d")
    assert (kept.state, kept.priority) == (JobState.ACTIVE, 1)


async def test_a_changed_priority_holds_in_a_paused_queue(store: Store) -> None:
    await store.configure(Q, QueuePatch(paused=True))
    await add(store, "a", "b")
    await edit(store, "a", priority=1)
    assert await ids_in(store, JobState.WAITING, JobState.PRIORITIZED) == ["b", "a"]


# --- cancel request ---------------------------------------------------------------------------------------------------


async def test_a_running_job_can_be_asked_to_stop(store: Store) -> None:
    await add(store, "a")
    await claim_one(store)
    assert await edit(store, "a", cancel=True) == "ok"
    assert await edit(store, "a", cancel=True) == "ok"
    kept = await record(store, "a")
    assert (kept.state, kept.cancelled) == (JobState.ACTIVE, True)


async def test_a_job_that_does_not_run_cannot_be_asked_to_stop(store: Store) -> None:
    await add(store, "a")
    assert await edit(store, "a", cancel=True) == "wrong_state"
    await run(store, "a")
    assert await edit(store, "a", cancel=True) == "wrong_state"
    assert (await record(store, "a")).cancelled is False


async def test_a_cancel_request_does_not_outlive_a_crash(store: Store, later: Later) -> None:
    await add(store, "a")
    await claim_one(store)
    await edit(store, "a", cancel=True)
    later(LEASE + 1)
    await sweep(store)
    later(INTERVAL + 1)
    assert (await sweep(store)).recovered == ("a",)
    assert (await claim_one(store)).record.cancelled is False
