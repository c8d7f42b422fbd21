"""Short words for what the suite says all the time: a spec, a claim, an outcome, a look."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Final

import anyio

from workers_module.job.events import Event, EventBatch
from workers_module.job.outcome import Completed, Failed, Outcome, Release, Retry
from workers_module.job.record import JobRecord, Token
from workers_module.job.state import ALL_STATES, JobState
from workers_module.store.base import Store
from workers_module.store.values import (
    ByIds,
    ByState,
    Claimed,
    Held,
    JobPatch,
    JobSpec,
    Settle,
    SettleCode,
    Step,
    StepReply,
    Sweep,
    SweepReply,
)

Q: Final = "mail"
LEASE: Final = 30_000
INTERVAL: Final = 1_000
PATIENCE: Final = 10
"""Seconds after which something that should have happened counts as not happening."""

Later = Callable[[int], int]
"""The fixture ``later``: lets so many milliseconds pass and answers the new instant."""

_tokens = count(1)
_marks = count(1)


def token() -> Token:
    """Return a token nobody has."""
    return Token(f"token-{next(_tokens)}")


# --- jobs -------------------------------------------------------------------------------------------------------------


def spec(id: str | None = None, *, queue: str = Q, name: str = "send", data: bytes = b"{}", **options: Any) -> JobSpec:
    """Return a job to add."""
    return JobSpec(id=id, queue=queue, name=name, data=data, **options)


async def add(store: Store, *ids: str, **options: Any) -> list[str]:
    """Add a job for each id; the ids."""
    return [added.id for added in await store.add([spec(id, **options) for id in ids])]


async def record(store: Store, id: str, *, queue: str = Q) -> JobRecord:
    """Read a job that is there."""
    (found,) = await store.get(queue, [id])
    assert found is not None, f"job {id} is gone"
    return found


async def state(store: Store, id: str, *, queue: str = Q) -> JobState | None:
    """Return a job's state; None when it is not there."""
    (found,) = await store.get(queue, [id], payload=False)
    return None if found is None else found.state


async def ids_in(store: Store, *states: JobState, queue: str = Q, **options: Any) -> list[str]:
    """Return the ids of a page of jobs, in order; without states those of all."""
    page = await store.page(queue, states or ALL_STATES, **options)
    return [item.id for item in page.items]


async def numbers(store: Store, queue: str = Q) -> dict[str, int]:
    """Return the counts of a queue that are not zero."""
    (counts,) = await store.counts([queue])
    named = {state: getattr(counts, state.replace("-", "_")) for state in ALL_STATES}
    return {str(state): number for state, number in named.items() if number}


async def assert_sound(store: Store) -> None:
    """Check the invariants of every queue."""
    for queue in await store.queues():
        assert await store.verify(queue) == [], f"queue {queue!r} is unsound"


# --- working ----------------------------------------------------------------------------------------------------------


def step(take: int = 0, *, queue: str = Q, **options: Any) -> Step:
    """Return a request with a fresh token."""
    options.setdefault("token", token())
    options.setdefault("worker", "ada")
    options.setdefault("lease_ms", LEASE)
    return Step(queue=queue, take=take, **options)


async def claim(store: Store, take: int = 1, **options: Any) -> list[Claimed]:
    """Claim up to ``take`` jobs."""
    return (await store.step(step(take, **options))).jobs


async def claim_one(store: Store, **options: Any) -> Claimed:
    """Claim the one job that is next."""
    jobs = await claim(store, 1, **options)
    assert len(jobs) == 1, "nothing to claim"
    return jobs[0]


def ids_of(jobs: Iterable[Claimed]) -> list[str]:
    """Return the ids of claimed jobs."""
    return [job.record.id for job in jobs]


async def settle(store: Store, job: Claimed | Held, outcome: Outcome, *, queue: str = Q, **options: Any) -> SettleCode:
    """Settle one job and claim none."""
    held = job if isinstance(job, Held) else job.held
    reply = await store.step(step(queue=queue, outcomes=[Settle(held, outcome)], **options))
    (code,) = reply.settled
    return code


async def settle_all(store: Store, jobs: Sequence[Claimed], outcome: Outcome, *, queue: str = Q) -> list[SettleCode]:
    """Settle several jobs in one step."""
    return (await store.step(step(queue=queue, outcomes=[Settle(job.held, outcome) for job in jobs]))).settled


async def complete(store: Store, job: Claimed, result: bytes = b"null", *, queue: str = Q, **options: Any) -> None:
    """Complete a job, which must work."""
    assert await settle(store, job, Completed(result, **options), queue=queue) is SettleCode.OK


async def fail(store: Store, job: Claimed, reason: str = "boom", *, queue: str = Q, **options: Any) -> None:
    """Fail a job for good, which must work."""
    assert await settle(store, job, Failed(reason, **options), queue=queue) is SettleCode.OK


async def retry(store: Store, job: Claimed, delay_ms: int = 0, reason: str = "boom", *, queue: str = Q) -> None:
    """Fail an attempt, which must work."""
    assert await settle(store, job, Retry(delay_ms, reason), queue=queue) is SettleCode.OK


async def release(store: Store, job: Claimed, *, queue: str = Q) -> None:
    """Hand a job back, which must work."""
    assert await settle(store, job, Release(), queue=queue) is SettleCode.OK


async def run(store: Store, id: str, *, queue: str = Q, result: bytes = b"null", tags: tuple[str, ...] = ()) -> Claimed:
    """Claim the next job, which must be this one, and complete it."""
    job = await claim_one(store, queue=queue, tags=tags)
    assert job.record.id == id
    await complete(store, job, result, queue=queue)
    return job


async def run_to_failure(store: Store, id: str, *, queue: str = Q, reason: str = "boom") -> Claimed:
    """Claim the next job, which must be this one, and fail it for good."""
    job = await claim_one(store, queue=queue)
    assert job.record.id == id
    await fail(store, job, reason, queue=queue)
    return job


async def sweep(store: Store, *, queue: str = Q, interval_ms: int = INTERVAL, **options: Any) -> SweepReply:
    """Sweep a queue once."""
    return await store.sweep(Sweep(queue=queue, interval_ms=interval_ms, **options))


async def empty_wait(store: Store, seconds: float = 0.05, **options: Any) -> StepReply:
    """Wait for a job that does not come."""
    return await store.wait(step(1, **options), seconds)


# --- changing ---------------------------------------------------------------------------------------------------------


def by_id(*ids: str) -> ByIds:
    """Select these jobs."""
    return ByIds(ids)


def by_state(*states: JobState, **options: Any) -> ByState:
    """Select the jobs in these states."""
    return ByState(states, **options)


async def edit(store: Store, id: str, *, queue: str = Q, **changes: Any) -> str:
    """Change one job; the result's text."""
    (result,) = await store.edit(queue, [JobPatch(id=id, **changes)])
    return result.value


# --- events -----------------------------------------------------------------------------------------------------------

Heard = tuple[str, str | None, dict[str, str]]
"""An event as the tests write it: type, job id, fields."""


def ev(kind: str, id: str | None = None, **fields: str) -> Heard:
    """Return an event as the tests write it."""
    return kind, id, fields


class Ear:
    """Hears a queue's events.

    To know that nothing more comes, `heard` publishes an event of its own and reads up to that.
    """

    def __init__(self, store: Store, queue: str, batches: AsyncIterator[EventBatch]) -> None:
        self._store = store
        self._queue = queue
        self._batches = batches
        self._waiting: list[Event] = []
        self.cursor: str | None = None

    async def heard(self) -> list[Heard]:
        """Return what happened since the last call, in order."""
        mark = f"mark-{next(_marks)}"
        await self._store.publish(self._queue, [Event(mark)])
        found = await self.until(mark)
        return found[:-1]

    async def until(self, kind: str) -> list[Heard]:
        """Read up to the next event of a type, and with it."""
        found: list[Heard] = []
        with anyio.fail_after(PATIENCE):
            while True:
                while self._waiting:
                    event = self._waiting.pop(0)
                    found.append((str(event.type), event.job_id, dict(event.fields)))
                    if event.type == kind:
                        return found
                batch = await anext(self._batches)
                self.cursor = batch.cursor
                self._waiting.extend(batch.events)


@asynccontextmanager
async def listening(store: Store, queue: str = Q, *, after: str | None = None) -> AsyncGenerator[Ear]:
    """Hear a queue's events from now on, or from a cursor."""
    async with store.events(queue, after=after) as batches:
        yield Ear(store, queue, batches)


def types_of(heard: Iterable[Heard]) -> list[str]:
    """Return the types of events, in order."""
    return [kind for kind, _, _ in heard]
