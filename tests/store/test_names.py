"""Names, ids and texts are kept exactly, whatever they look like."""

import pytest

from tests.store.helpers import Q, add, by_id, claim_one, complete, ev, ids_in, listening, numbers, record, settle, spec
from workers_module.job.outcome import Completed, Failed, Retry
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.values import DedupSpec, JobPatch, QueuePatch, Remove

IDS = [
    "a",
    "A",
    "0",
    "012",
    "-1",
    "a.b-c_d",
    "x" * 128,
    "repeat:tick:1767225600000",
    "WAIT",
    "Meta",
    "50%",
    "a_b",
    "it's",
    '"; DROP TABLE wm_job; --',
    "*",
    "[a-z]",
    "\\",
    "héé",
    "日本",
    "\U0001f40d",
    "a b",
    "__proto__",
]
QUEUES = ["mail", "Mail", "{mail}", "a.b-c_d", "x" * 128, "cron.web", "50%", "it's", "0"]


async def test_ids_are_kept_and_told_apart(store: Store) -> None:
    added = await store.add([spec(id, data=b'"%d"' % n) for n, id in enumerate(IDS)])
    assert [one.id for one in added] == IDS
    assert all(one.existing is None for one in added)
    assert await ids_in(store, JobState.WAITING) == IDS
    for n, id in enumerate(IDS):
        job = await claim_one(store)
        assert (job.record.id, job.record.data) == (id, b'"%d"' % n)
        await complete(store, job)
    assert [one.id for one in await store.get(Q, IDS) if one is not None] == IDS
    for id in IDS:
        assert await store.move(Q, by_id(id), Remove()) == [id]
    assert await numbers(store) == {}


async def test_queues_are_kept_and_told_apart(store: Store) -> None:
    await store.add([spec("a", queue=queue, data=b'"%d"' % n) for n, queue in enumerate(QUEUES)])
    assert await store.queues() == sorted(QUEUES)
    for n, queue in enumerate(QUEUES):
        job = await claim_one(store, queue=queue)
        assert (job.record.queue, job.record.data) == (queue, b'"%d"' % n)
        await store.configure(queue, QueuePatch(concurrency=n + 1))
    assert [(await store.configure(queue)).concurrency for queue in QUEUES] == [n + 1 for n in range(len(QUEUES))]


@pytest.mark.parametrize(
    "text", ["", "\x00", "a\x00b", "\u2028\u202e", "\U0001f40d" * 50, "it's", "\r\n\t", '{"a":1}', "x" * 20_000]
)
async def test_texts_are_kept(store: Store, text: str) -> None:
    await add(store, "a", name=text or "send")
    await settle(store, await claim_one(store, worker=text), Retry(0, text))
    assert (await record(store, "a")).reason == text
    assert (await record(store, "a")).name == (text or "send")
    await store.edit(Q, [JobPatch(id="a", log_lines=(text, text))])
    assert (await store.logs(Q, "a")).items == [text, text]
    async with listening(store) as ear:
        await settle(store, await claim_one(store), Failed(text))
        assert ev("failed", "a", failedReason=text, prev="active") in await ear.heard()


async def test_keys_tags_schedules_locks_and_workers_take_any_text(store: Store) -> None:
    strange = "it's 50% \U0001f40d \\ *"
    await store.add([spec("a", tags=(strange,), dedup=DedupSpec(strange))])
    (again,) = await store.add([spec("b", dedup=DedupSpec(strange))])
    assert again.id == "a"
    job = await claim_one(store, tags=(strange,), worker=strange)
    assert (job.record.tags, job.record.dedup, job.record.worker) == ((strange,), strange, strange)
    await complete(store, job)
    assert await store.lease(strange, strange, 1_000) is not None
    assert [(lock.name, lock.owner) for lock in await store.locks()] == [(strange, strange)]


@pytest.mark.parametrize(
    "json",
    [
        b'"\\u0000"',
        b'"\\ud800"',
        '{"k\u2028": "\U0001f40d"}'.encode(),
        b"[" * 90 + b"]" * 90,
        b"1E400",
        b"12345678901234567890.0",
        b" {}\n",
    ],
)
async def test_json_is_never_read_or_rewritten(store: Store, json: bytes) -> None:
    await add(store, "a", data=json, opts=json)
    job = await claim_one(store)
    await store.edit(Q, [JobPatch(id="a", progress=json)])
    assert await settle(store, job, Completed(json)) is not None
    kept = await record(store, "a")
    assert (kept.data, kept.opts, kept.progress, kept.result) == (json, json, json, json)
