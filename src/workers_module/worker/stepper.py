"""Runs what is due in the caller's own task: for tests, and for the testing kit."""

from typing import Final

from workers_module.errors import JobFailedError, LeaseLostError, ScheduleError
from workers_module.job.outcome import Release
from workers_module.job.state import READY, JobState
from workers_module.store.base import Store
from workers_module.store.values import Claimed, Settle, SettleCode, Step
from workers_module.worker.executor import Executor
from workers_module.worker.handler import WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.intake import ConsumerSettings, Intake, Tokens, Unrun
from workers_module.worker.locks import RunLocks
from workers_module.worker.run import Run
from workers_module.worker.sweeper import Sweeper
from workers_module.worker.ticker import Ticker
from workers_module.worker.ticks import LocalTicks

_PAGE: Final = 1_000


class Stepper:
    """Runs everything that is due, one job at a time.

    The same decisions, schedules and settling as `Consumer`, without its loop, renewals and waiting: meant for a store
    whose clock stands still meanwhile.
    """

    def __init__(
        self,
        store: Store,
        plan: WorkPlan,
        *,
        executor: Executor,
        hooks: Hooks,
        settings: ConsumerSettings,
        ticker: Ticker,
        ticks: LocalTicks | None = None,
        sweeper: Sweeper | None = None,
        every_tag: bool = False,
    ) -> None:
        """Prepare; the ticker's `prepare` and the ticks' `begin` are called by `begin`.

        Args:
            store: Open.
            plan: The queues and their handlers.
            executor: Runs the jobs.
            hooks: Who is told; listeners are called in the caller's task too.
            settings: As a consumer's.
            ticker: Asked about the jobs of schedules.
            ticks: What fires past the store.
            sweeper: Brings back what others have abandoned.
            every_tag: Take every job, whatever its tags, unless the settings name some.
        """
        self._store = store
        self._queues = [(queue, Intake(queue, executor, settings)) for queue in plan.queues]
        self._executor = executor
        self._hooks = hooks
        self._settings = settings
        self._ticker = ticker
        self._ticks = ticks
        self._sweeper = sweeper
        self._every_tag = every_tag and not settings.tags
        self._tags: dict[str, set[str]] = {queue.queue: set() for queue in plan.queues}
        self._tokens = Tokens()
        self._wake_at: int | None = None

    @property
    def wake_at(self) -> int | None:
        """The next instant something becomes due, as `run_due` left it; None when nothing will by itself."""
        local = self._ticks.wake_at if self._ticks is not None else None
        return min((at for at in (self._wake_at, local) if at is not None), default=None)

    async def begin(self) -> None:
        """Write the declared schedules and catch up with missed slots."""
        await self._ticker.prepare()
        if self._ticks is not None:
            self._ticks.begin()

    async def run_due(self) -> int:
        """Run everything that is due, and what that makes due in turn; how many handlers and ticks ran."""
        if self._sweeper is not None:
            await self._sweeper.sweep_all()
        ran = 0
        while True:
            ticked = await self._ticks.run_due() if self._ticks is not None else 0
            claimed = 0
            self._wake_at = None
            for queue, intake in self._queues:
                for tags in self._shares(queue.queue):
                    reply = await self._store.step(self._request(queue.queue, take=1, tags=tags))
                    self._wake_by(reply.wake_at)
                    for job in reply.jobs:
                        claimed += 1
                        ran += await self._run_one(intake, job, reply.now)
            ran += ticked
            # What runs told of meanwhile, such as progress.
            await self._hooks.idle()
            if not claimed and not ticked and not await self._finds_tags():
                break
        await self._wake_for_sweeps()
        return ran

    def _shares(self, queue: str) -> list[tuple[str, ...]]:
        """Return the tags of each claim that together bring every job of a queue."""
        if not self._every_tag:
            return [self._settings.tags]
        tags = self._tags[queue]
        return [(), tuple(sorted(tags))] if tags else [()]

    async def _finds_tags(self) -> bool:
        """Look at what was left for tags that no claim has asked for yet."""
        found = False
        for queue, known in self._tags.items() if self._every_tag else ():
            start, more = 0, True
            while more:
                page = await self._store.page(queue, (*READY, JobState.DELAYED), start=start, limit=_PAGE)
                tags = {tag for record in page.items for tag in record.tags}
                found = found or not tags <= known
                known.update(tags)
                start += len(page.items)
                more = bool(page.items) and start < page.total
        return found

    async def _wake_for_sweeps(self) -> None:
        """Let the next sweep be waited for where a job is active: nobody here runs one now."""
        if self._sweeper is None:
            return
        counts = await self._store.counts([queue.queue for queue, _ in self._queues])
        if any(one.active for one in counts):
            self._wake_by(await self._store.now() + self._sweeper.interval_ms)

    def _wake_by(self, at: int | None) -> None:
        self._wake_at = min((one for one in (at, self._wake_at) if one is not None), default=None)

    async def _run_one(self, intake: Intake, claimed: Claimed, now: int) -> bool:
        decision = intake.decide(claimed, now)
        locks: RunLocks | None = None
        if not isinstance(decision, Unrun) and claimed.record.schedule is not None:
            try:
                admission = await self._ticker.admit(claimed, now)
            except ScheduleError as error:
                text = f"schedule {claimed.record.schedule!r} cannot go on: {error}"
                decision = intake.failed(claimed, JobFailedError(text, job_id=claimed.record.id))
            else:
                locks = admission.locks
                if admission.outcome is not None:
                    decision = Unrun(claimed, admission.outcome)
        if isinstance(decision, Unrun):
            await self._settle(decision)
            return False
        try:
            run = await self._executor.execute_here(decision, claimed)
        finally:
            if locks is not None:
                await locks.release()
        await self._settle(run)
        return True

    async def _settle(self, item: Run | Unrun) -> None:
        while item.outcome is not None:
            outcome = Settle(item.claimed.held, item.outcome)
            reply = await self._store.step(self._request(item.claimed.record.queue, outcomes=[outcome]))
            code = reply.settled[0]
            if code is SettleCode.OK:
                for event in item.worker_events:
                    await self._hooks.deliver(event)
                return
            if code is SettleCode.NOTHING_PENDING:
                item.outcome = Release()
            elif not isinstance(item, Run) or self._executor.refused(item, code) is None:
                record = item.claimed.record
                raise LeaseLostError(f"job {record.id} of queue {record.queue!r} was taken over ({code.value})")

    def _request(
        self, queue: str, *, take: int = 0, tags: tuple[str, ...] = (), outcomes: list[Settle] | None = None
    ) -> Step:
        return Step(
            queue=queue,
            worker=self._settings.worker,
            token=self._tokens.fresh(),
            outcomes=outcomes or [],
            take=take,
            lease_ms=self._settings.lease_ms,
            tags=tags,
            metrics=self._settings.metrics,
        )
