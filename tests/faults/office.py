"""The test's own side of a queue: it adds jobs as an application would, and audits what became of them."""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from dishka import Provider, Scope, make_async_container

from tests.faults.fleet import Fleet
from tests.faults.launcher import RedisServer
from tests.faults.waiting import until
from tests.faults.worker import NAME, QUEUE, Task
from tests.store.helpers import Ear, Heard, numbers
from workers_module import Queue, Store, WorkersModule, WorkersSettings
from workers_module.job.events import Event
from workers_module.job.record import JobRecord
from workers_module.job.state import ALL_STATES
from workers_module.store.values import QueuePatch

KEPT_EVENTS: Final = 1_000_000
_PAGE: Final = 1_000
_OF_A_QUEUE: Final = frozenset(
    {"meta", "id", "events", "completed", "failed", "stalled-check", "marker", "pc", "wait", "delayed", "prioritized"}
)
_PREFIX: Final = "bull:"


class Mail(Queue[Task], name=QUEUE):
    """The queue of the fault tests."""


class Office:
    """One queue and its store.

    Attributes:
        ids: Every job added here.
        queue: What an application holds.
        store: The same, from below.
        fleet: Processes of which none may die while jobs are waited for.
    """

    def __init__(self, queue: Mail, store: Store) -> None:
        self.queue = queue
        self.store = store
        self.ids: list[str] = []
        self.fleet: Fleet | None = None
        self._ears: list[Ear] = []

    async def add(self, count: int, task: Task | None = None, **fields: Any) -> list[str]:
        """Add so many jobs alike; their ids."""
        return await self.add_tasks([task or Task(**fields)] * count)

    async def add_tasks(self, tasks: Sequence[Task]) -> list[str]:
        """Add a job for each task; their ids."""
        ids = [f"j{len(self.ids) + n}" for n in range(len(tasks))]
        for start in range(0, len(tasks), _PAGE):
            pairs = zip(tasks[start : start + _PAGE], ids[start : start + _PAGE], strict=True)
            await self.queue.add_many([(NAME, task, {"job_id": id}) for task, id in pairs])
        self.ids += ids
        return ids

    async def numbers(self) -> dict[str, int]:
        """Return the counts that are not zero."""
        return await numbers(self.store)

    async def ended(self) -> int:
        """Return how many jobs have ended."""
        found = await self.numbers()
        return found.get("completed", 0) + found.get("failed", 0)

    async def until_ended(self, count: int | None = None, *, within: float | None = None) -> None:
        """Return when so many jobs have ended; all, unless said otherwise."""
        wanted = len(self.ids) if count is None else count

        async def enough() -> bool:
            if self.fleet is not None:
                self.fleet.assert_none_died()
            return await self.ended() >= wanted

        try:
            await until(enough, within=within)
        except TimeoutError as error:
            error.add_note(f"{await self.numbers()} of {len(self.ids)} jobs; waited for {wanted} to end")
            raise

    async def records(self) -> list[JobRecord]:
        """Return every job."""
        found: list[JobRecord] = []
        while True:
            page = await self.store.page(QUEUE, ALL_STATES, start=len(found), limit=_PAGE)
            found += page.items
            if not page.items:
                return found

    # audit

    async def heard(self) -> list[Heard]:
        """Return the events since the last call."""
        await self.store.publish(QUEUE, [Event("heard")])
        return (await self._ears[0].until("heard"))[:-1]

    async def assert_clean(
        self,
        fleet: Fleet | None = None,
        *,
        server: RedisServer | None = None,
        failed: Collection[str] = (),
        repeated: Callable[[int], bool] | None = None,
    ) -> None:
        """Check that nothing was lost, ended twice, or left over.

        Args:
            fleet: Who ran the jobs.
            server: Where all keys are those of this queue.
            failed: The jobs that must have failed; all others must have completed.
            repeated: Whether so many starts that were not the first of their job are allowed; without it there must be
                none, and no lease may have been lost.
        """
        wrong = frozenset(failed)
        records = await self.records()
        by_state = {(record.id, record.state, record.reason, record.crashes) for record in records}
        unexpected = [one for one in by_state if one[1] != ("failed" if one[0] in wrong else "completed")]
        assert unexpected == []
        expected = {"completed": len(self.ids) - len(wrong), "failed": len(wrong)}
        assert await self.numbers() == {state: number for state, number in expected.items() if number}
        assert await self.store.verify(QUEUE) == []
        await self._assert_ended_once(wrong)
        if fleet is not None:
            self._assert_runs(fleet, wrong, records, repeated)
        if server is not None:
            assert self.left_over(await server.keys()) == set()

    async def _assert_ended_once(self, wrong: Collection[str]) -> None:
        heard = await self.heard()
        for kind, ids in (("added", set(self.ids)), ("completed", set(self.ids) - set(wrong)), ("failed", set(wrong))):
            told = Counter(id for one, id, _ in heard if one == kind)
            assert (kind, set(told) ^ ids) == (kind, set())
            assert (kind, [id for id, times in told.items() if times > 1]) == (kind, [])

    def _assert_runs(
        self, fleet: Fleet, wrong: Collection[str], records: list[JobRecord], repeated: Callable[[int], bool] | None
    ) -> None:
        fleet.assert_none_died()
        starts = Counter((line.id, line.fence) for line in fleet.lines("start"))
        assert [run for run, times in starts.items() if times > 1] == [], "one claim was run twice"
        fences = {record.id: record.fence for record in records}
        assert [run for run in starts if run[1] > fences[run[0]]] == []
        # What was accepted is the end of the newest run.
        told = {record.id: int(record.result) for record in records if record.result is not None}
        assert {id: fence for id, fence in told.items() if fence != fences[id]} == {}
        done = {line.id for line in fleet.lines("end")}
        assert set(fences) - set(wrong) - done == set(), "jobs completed that nobody ran"
        number = fleet.repeated()
        if repeated is None:
            assert [record.id for record in records if record.crashes] == []
        assert number == 0 if repeated is None else repeated(number), (number, fleet.starts().most_common(5))

    def left_over(self, keys: set[str]) -> set[str]:
        """Return the keys that belong to nothing."""
        own = {f"{_PREFIX}{QUEUE}:{name}" for name in _OF_A_QUEUE} | {f"{_PREFIX}{QUEUE}:{id}" for id in self.ids}
        return {key for key in keys - own if not re.fullmatch(rf"{_PREFIX}:wm:workers", key)}


@asynccontextmanager
async def office(url: str, *, store: Store | None = None) -> AsyncGenerator[Office]:
    """Open an office on a store; its jobs are heard of from the beginning."""
    module = WorkersModule.for_root(WorkersSettings(queue={"uri": url}), queues=[Mail])
    more = Provider(scope=Scope.APP)
    if store is not None:
        more.provide(lambda: store, provides=Store, override=True)
    container = make_async_container(module, more)
    try:
        queue, chosen = await container.get(Mail), await container.get(Store)
        await chosen.open()
        await chosen.configure(QUEUE, QueuePatch(event_cap=KEPT_EVENTS))
        one = Office(queue, chosen)
        async with chosen.events(QUEUE) as batches:
            one._ears.append(Ear(chosen, QUEUE, batches))
            yield one
    finally:
        await container.close()
        if store is not None:
            await store.close()
