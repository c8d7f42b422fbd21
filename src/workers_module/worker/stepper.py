"""Runs what is due in the caller's own task: for tests, and for the testing kit."""

from workers_module.errors import JobFailedError, LeaseLostError, ScheduleError
from workers_module.job.outcome import Release
from workers_module.store.base import Claimed, Settle, SettleCode, Step, Store
from workers_module.worker.executor import Executor
from workers_module.worker.handler import WorkPlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.intake import ConsumerSettings, Intake, Tokens, Unrun
from workers_module.worker.locks import RunLocks
from workers_module.worker.run import Run
from workers_module.worker.ticker import Ticker
from workers_module.worker.ticks import LocalTicks


class Stepper:
    """Runs everything that is due, one job at a time.

    The same decisions, schedules and settling as `Consumer`, without its loop, leases and waiting: meant for a store
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
        """
        self._store = store
        self._queues = [(queue, Intake(queue, executor, settings)) for queue in plan.queues]
        self._executor = executor
        self._hooks = hooks
        self._settings = settings
        self._ticker = ticker
        self._ticks = ticks
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
        ran = 0
        while True:
            ticked = await self._ticks.run_due() if self._ticks is not None else 0
            claimed = 0
            self._wake_at = None
            for queue, intake in self._queues:
                reply = await self._store.step(self._request(queue.queue, take=1))
                if reply.wake_at is not None:
                    self._wake_at = min(reply.wake_at, self._wake_at or reply.wake_at)
                for job in reply.jobs:
                    claimed += 1
                    ran += await self._run_one(intake, job, reply.now)
            ran += ticked
            # What runs told of meanwhile, such as progress.
            await self._hooks.idle()
            if not claimed and not ticked:
                return ran

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

    def _request(self, queue: str, *, take: int = 0, outcomes: list[Settle] | None = None) -> Step:
        return Step(
            queue=queue,
            worker=self._settings.worker,
            token=self._tokens.fresh(),
            outcomes=outcomes or [],
            take=take,
            lease_ms=self._settings.lease_ms,
            tags=self._settings.tags,
            metrics=self._settings.metrics,
        )
