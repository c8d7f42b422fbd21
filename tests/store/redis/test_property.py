"""P01 for Redis: the calls of `tests.store.test_property`, fitted to what BullMQ leaves open.

* Ids are always given: BullMQ's counter counts every attempt, also one with an id of its own.
* All jobs have the same tags, in one of two runs none, and so has every worker: events of several streams that fall on
  one millisecond have no order (the suite tests jobs of several sets of tags side by side).
* A claim is asked after again only while its leases hold: the token of a lapsed one is gone with its key
  (reliability §3.7). A token whose jobs were given back claims nothing more: a job could be claimed twice under it, and
  once the lease has lapsed only its fence is left to tell the two runs apart.
* A queue is swept at one interval: the mark of the last sweep lasts as long as that one asked for.
* Children are named by their keys in the reason of a parent that fails for them.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.servers import shared_redis
from tests.store.test_property import Fleet as Common
from tests.store.test_property import picks
from workers_module.job.record import JobRecord
from workers_module.store.base import (
    Added,
    Claimed,
    DropSchedule,
    FireSlot,
    JobSpec,
    Page,
    PutSchedule,
    Step,
    StepReply,
    Store,
    Sweep,
    SweepReply,
)

pytestmark = pytest.mark.redis


class Fitted:
    """A store behind which calls are fitted; both stores get the same ones."""

    def __init__(self, store: Store, tags: tuple[str, ...], prefix: str = "") -> None:
        self._store = store
        self._tags = tags
        self._named = 0
        self._child = re.compile(rf"^child {re.escape(prefix)}:([^:@]+)(?:@[^:]*)?:") if prefix else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _spec(self, spec: JobSpec) -> JobSpec:
        id = spec.id
        if id is None:
            self._named += 1
            id = f"x{self._named}"
        return spec._replace(id=id, tags=self._tags)

    def _plain(self, record: JobRecord | None) -> Any:
        if record is None or record.deferred is None or self._child is None:
            return record
        return record._replace(deferred=self._child.sub(r"child \1:", record.deferred))

    async def add(self, specs: Sequence[JobSpec]) -> list[Added]:
        return await self._store.add([self._spec(spec) for spec in specs])

    async def step(self, req: Step) -> StepReply:
        reply = await self._store.step(replace(req, tags=self._tags))
        return replace(reply, jobs=[Claimed(self._plain(job.record), job.held) for job in reply.jobs])

    async def sweep(self, req: Sweep) -> SweepReply:
        return await self._store.sweep(replace(req, interval_ms=1_000))

    async def get(self, queue: str, ids: Sequence[str]) -> list[JobRecord | None]:
        return [self._plain(record) for record in await self._store.get(queue, ids)]

    async def page(self, queue: str, states: Any, **options: Any) -> Page[JobRecord]:
        page = await self._store.page(queue, states, **options)
        return Page([self._plain(record) for record in page.items], page.total)

    async def schedule(self, queue: str, changes: Sequence[PutSchedule | FireSlot | DropSchedule]) -> list[bool]:
        fitted = [one if isinstance(one, DropSchedule) else replace(one, job=self._spec(one.job)) for one in changes]
        return await self._store.schedule(queue, fitted)


class Fleet(Common):
    """Memory and Redis."""

    tags: ClassVar[tuple[str, ...]] = ()

    def reference(self) -> Store:
        return Fitted(super().reference(), self.tags)  # type: ignore[return-value]

    def tested(self) -> Store:
        from workers_module.store.redis.store import RedisStore

        url, prefix = shared_redis()
        prefix = f"{prefix}-{uuid4().hex[:12]}"
        return Fitted(RedisStore(url, prefix=prefix, clock=self.clock), self.tags, prefix)  # type: ignore[return-value]

    @precondition(lambda self: self.steps)
    @rule(pick=picks, take=st.integers(0, 3))
    def resume(self, pick: int, take: int) -> None:
        req = self.steps[pick % len(self.steps)]
        shelf: Any = cast("Any", self.stores[0])._ledger.find(req.queue)
        held: list[Any] = [] if shelf is None else [job for job in shelf.active.values() if job.token == req.token]
        kept = {job.id for job in held}
        mine = [claimed[0].held for _, claimed in self.claims if claimed[0].held.token == req.token]
        if all(job.lease > self.clock.now_ms() for job in held):
            super().resume(pick, take if all(one.id in kept for one in mine) else 0)


class TaggedFleet(Fleet):
    """The same, where all is done by jobs with tags."""

    tags = ("eu", "gpu")

    async def events(self, store: Store) -> dict[str, Any]:
        heard = await super().events(store)
        return {
            queue: ([one for one in told if one[1]], [one for one in told if not one[1]])
            for queue, told in heard.items()
        }


Fleet.TestCase.settings = Common.TestCase.settings
TaggedFleet.TestCase.settings = Common.TestCase.settings
TestRedisIsLikeMemory = Fleet.TestCase
TestRedisIsLikeMemoryWithTags = TaggedFleet.TestCase
