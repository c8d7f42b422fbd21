"""The loop of one queue: settle what has ended and claim what there is room for, in one call; run what came.

Self-clocking: a call carries whatever ended while the one before was under way. The next call is sent before the jobs
that just came are started, and to a store with a process of its own a second one beside it, so that store and worker
work at the same time. Nothing polls: a dry queue is waited for.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import anyio

from workers_module.errors import StoreError
from workers_module.job.events import WorkerEvent, WorkerEventName
from workers_module.job.outcome import Release
from workers_module.job.record import Token
from workers_module.store.base import Store
from workers_module.store.values import Claimed, Held, Settle, SettleCode, Step, StepReply
from workers_module.worker.eager import begin
from workers_module.worker.executor import Executor
from workers_module.worker.gate import Gate
from workers_module.worker.handler import Handler, QueuePlan
from workers_module.worker.hooks import Hooks
from workers_module.worker.intake import ConsumerSettings, Intake, Tokens, Unrun
from workers_module.worker.outage import WAITED_OUT, Outage
from workers_module.worker.run import CancelReason, Run
from workers_module.worker.scheduled import Parked, ScheduledJobs
from workers_module.worker.ticker import Ticker

_log = logging.getLogger(__name__)


BATCH: Final = 50
"""The most jobs one call settles, and claims."""
AHEAD_FROM: Final = 20
"""From this concurrency on a call claims half of the slots, so that the other half can be asked for while the first one
runs.

Below, whole batches save more than working at the same time does, unless two calls may be under way.
"""
ABREAST: Final = 2
"""So many calls are under way at once where the store is a server: it works on one while the reply to the other is read
and its jobs run."""
IDLE_WAIT_S: Final = 10.0
"""How long a wait on a dry queue lasts when nothing is due earlier."""
LAST_WORDS_S: Final = 0.5
"""How long a stopping consumer tries to reach the store when nothing runs any more."""

_END_EVENTS: Final[tuple[WorkerEventName, ...]] = ("completed", "failed", "retries_exhausted")
_DONE_BY_REPEAT: Final = frozenset({SettleCode.OK, SettleCode.ALREADY, SettleCode.MISSING})


Holding = Run | Unrun | Parked
"""A claimed job, from claim to settling."""


@dataclass(slots=True)
class _Call:
    """A step under way; ``alone`` as long as no other one was at the same time."""

    request: Step
    batch: list[Run | Unrun]
    task: asyncio.Task[StepReply]
    alone: bool
    repeated: bool = False


class Consumer:
    """Runs the jobs of one queue; `run` once, `stop` any time."""

    def __init__(
        self,
        store: Store,
        plan: QueuePlan,
        *,
        executor: Executor,
        hooks: Hooks,
        settings: ConsumerSettings,
        gate: Gate,
        ticker: Ticker,
        tokens: Tokens | None = None,
        on_hold: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is claimed before `run`.

        Args:
            store: Open.
            plan: The queue and its handlers.
            executor: Runs the jobs.
            hooks: Who is told.
            settings: What all consumers of the process share.
            gate: Shared by all consumers of the process.
            ticker: Asked about the jobs of schedules.
            tokens: Shared by all consumers of the process.
            on_hold: Called whenever jobs were claimed, so that their leases are kept.
        """
        self.queue = plan.queue
        self.concurrency = plan.concurrency
        self.held: dict[str, Holding] = {}
        """Every job that runs, is parked, or has ended and is not settled, by id."""
        self._store = store
        self._plan = plan
        self._executor = executor
        self._hooks = hooks
        self._settings = settings
        self._gate = gate
        self._tokens = tokens or Tokens()
        self._on_hold = on_hold
        self._intake = Intake(plan, executor, settings)
        concurrency = plan.concurrency
        self._abreast = 1
        self._burst = min(BATCH, concurrency if concurrency < AHEAD_FROM else concurrency // 2)
        self._tells_end = any(hooks.wants(name, plan.queue) for name in _END_EVENTS)
        self._outage = Outage(f"queue {plan.queue}", self._tell_error)
        # Jobs that take up a slot: running, parked, or received and not yet started.
        self._busy = 0
        # Slots promised to calls under way.
        self._coming = 0
        self._arrived: deque[Claimed] = deque()
        self._starting: Claimed | None = None
        self._out: list[Run | Unrun] = []
        self._suspect: Parked | None = None
        self._scheduled = ScheduledJobs(plan.queue, self, ticker=ticker, intake=self._intake)
        self._calls: list[_Call] = []
        self._wait: asyncio.Task[StepReply] | None = None
        self._wait_request: Step | None = None
        # The token of a wait whose reply is unknown: what it may have claimed is asked for.
        self._unsure: Token | None = None
        self._dry = True
        # Whether `_dry` and `_wake_at` come from a call that was alone: of two at once, either may have been first.
        self._sure = False
        self._fed = False
        self._wake_at: int | None = None
        # The store's clock, and when it was told on ours.
        self._now = 0
        self._heard = 0.0
        self._claims: dict[Token, float] = {}
        self._wake = asyncio.Event()
        self._fault: BaseException | None = None
        self._draining = False
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._scope: anyio.CancelScope | None = None

    # --- what others ask and tell; always on the loop -----------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many jobs run or are about to."""
        return self._busy

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._deadline < math.inf

    @property
    def quiet(self) -> bool:
        """Whether it holds nothing but a suspect and no call is under way."""
        return (
            self._busy == len(self.held) == (self._suspect is not None)
            and not self._out
            and not self._arrived
            and not self._calls
            and self._wait is None
            and self._unsure is None
        )

    def wake(self) -> None:
        """Have the loop look at its state again."""
        self._wake.set()

    def drain(self) -> None:
        """Claim nothing more; what runs goes on."""
        self._draining = True
        self._wake.set()

    def stop(self, deadline: float) -> None:
        """Claim no more, hand back what has not started, end by the deadline; a later call may only bring it forward.

        Args:
            deadline: When running jobs are cancelled, on the event loop's clock.
        """
        if deadline >= self._deadline:
            return
        self._deadline = deadline
        if self._scope is not None:
            self._scope.deadline = self._cutoff
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(max(deadline, loop.time()), self._cancel_runs)
        self._wake.set()

    def leased(self) -> list[Held]:
        """Return what has a lease to be kept; for the thread that renews, so it only reads copies made in one step.

        A job claimed anew while an older run of it is still here counts once, as it was claimed last.
        """
        leased = {id: item.claimed.held for id, item in self.held.copy().items()}
        waiting, starting = list(self._arrived.copy()), self._starting
        if starting is not None:
            waiting.append(starting)
        for _, held in waiting:
            if held.id not in leased or leased[held.id].fence < held.fence:
                leased[held.id] = held
        return list(leased.values())

    def sent_at(self, token: Token) -> float | None:
        """Return when the claim with this token was sent (`time.monotonic`), as far as that is still known."""
        return self._claims.get(token)

    def lose(self, held: Held) -> None:
        """Give up a job whose lease the store says is another's."""
        item = self._holding(held)
        if isinstance(item, Run) and not item.ended:
            _log.warning("queue %s: the lease of job %s is lost; its run is cancelled", self.queue, held.id)
            item.cancel(CancelReason.LEASE_LOST)
        elif isinstance(item, Parked):
            self._drop(item)

    def cancel(self, held: Held) -> None:
        """Stop a running job because somebody asked for it."""
        item = self._holding(held)
        if isinstance(item, Run):
            item.cancel(CancelReason.CANCELLED)

    def run_suspect(self) -> bool:
        """Start the suspect, if it keeps one; called by the gate when all is quiet."""
        parked, self._suspect = self._suspect, None
        if parked is None:
            return False
        record = parked.claimed.record
        _log.warning("queue %s: job %s has lost %d workers; it runs alone", self.queue, record.id, record.crashes)
        self.start(parked.handler, parked.claimed)
        self._wake.set()
        return True

    def fail(self, fault: Exception) -> None:
        """End the loop with this fault."""
        self._fault = fault
        self._wake.set()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self, *, abreast: int = 1) -> None:
        """Consume until stopped.

        Cancelling it is a stop without grace: what runs is cancelled and handed back, which takes ``kill_after`` and
        half a second at most.

        Args:
            abreast: How many calls may be under way at once.

        Raises:
            StoreError: The store refuses for good (`StoreDeniedError`, …); an outage is waited out.
        """
        self._abreast = abreast
        if abreast > 1:
            self._burst = min(BATCH, max(1, self.concurrency // 2))
        self._gate.join(self)
        self._tell("ready")
        try:
            try:
                with anyio.CancelScope(deadline=self._cutoff) as self._scope:
                    await self._loop()
            except BaseException:
                self.stop(asyncio.get_running_loop().time())
                with anyio.CancelScope(deadline=self._cutoff, shield=True) as self._scope:
                    await self._wind_up()
                raise
        finally:
            self._close()
            self._tell("closed")

    @property
    def _cutoff(self) -> float:
        return self._deadline + self._settings.kill_after_ms / 1_000 + LAST_WORDS_S

    async def _wind_up(self) -> None:
        # A second fault would hide the first one, which says more.
        try:
            await self._loop()
        except Exception:
            _log.exception("queue %s: stopping failed", self.queue)

    async def _loop(self) -> None:
        # Every await below leaves a state that a new call of this method can go on from.
        while True:
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
            if self._wait is not None:
                self._look_at_wait()
            if self.stopping:
                self._hand_back()
            self._send()
            if self._arrived:
                self._start_arrived()
                self._send()
            if self._calls:
                await self._finish_calls()
                continue
            if self._is_over():
                return
            if not self._gate.open:
                self._gate.look()
            self._listen()
            await self._wake.wait()
            self._wake.clear()

    @property
    def _may_claim(self) -> bool:
        return self._gate.open and not self._draining and not self.stopping

    def _is_over(self) -> bool:
        return (
            self.stopping
            and not self._busy
            and not self._out
            and not self._scheduled
            and self._wait is None
            and self._unsure is None
        )

    def _next_call(self) -> _Call | None:
        """Send what has ended, and ask for what there is room for; None when there is nothing to say."""
        room = self.concurrency - self._busy - self._coming if self._may_claim else 0
        calls, unsure = self._calls, self._unsure
        if calls and len(self._out) < self._burst and (self._dry or room < self._burst):
            # Beside another call only a whole batch is worth one.
            return None
        if not self._out and unsure is None and (room <= 0 or (self._dry and self._sure)):
            return None
        batch = self._next_batch()
        take = max(0, min(room, self._burst))
        if not batch and not take and unsure is None:
            return None
        request = Step(
            queue=self.queue,
            worker=self._settings.worker,
            token=self._tokens.fresh() if unsure is None else unsure,
            outcomes=[Settle(item.claimed.held, item.outcome) for item in batch if item.outcome is not None],
            take=take,
            lease_ms=self._settings.lease_ms,
            tags=self._settings.tags,
            rate=self._settings.rate,
            metrics=self._settings.metrics,
            resume=unsure is not None,
        )
        self._unsure = None
        self._coming += take
        self._note_claim(request)
        for call in calls:
            call.alone = False
        task = begin(self._store.step(request))
        task.add_done_callback(self._call_over)
        return _Call(request, batch, task, alone=not calls)

    def _call_over(self, _: asyncio.Task[StepReply]) -> None:
        self._wake.set()

    def _next_batch(self) -> list[Run | Unrun]:
        batch = self._out[:BATCH]
        del self._out[:BATCH]
        if any(item.outcome is None for item in batch):
            # Their leases are lost: there is nothing to settle.
            for item in batch:
                if item.outcome is None:
                    self._forget(item)
            batch = [item for item in batch if item.outcome is not None]
        return batch

    def _send(self) -> None:
        """Send as many calls as there is something to say in, and may be under way."""
        while len(self._calls) < self._abreast:
            call = self._next_call()
            if call is None:
                return
            self._calls.append(call)

    async def _finish_calls(self) -> None:
        """Wait until a call is over or another one may be sent, and take in what has come."""
        if any(call.task.done() for call in self._calls):
            # A store that answers without waiting would keep the loop from everybody else.
            await asyncio.sleep(0)
        else:
            self._wake.clear()
            await self._wake.wait()
        for call in tuple(self._calls):
            if call.task.done():
                await self._finish_call(call)

    async def _finish_call(self, call: _Call) -> None:
        try:
            reply = call.task.result()
        except WAITED_OUT as error:
            await self._sleep(self._outage.pause(error))
            # The same outcomes under the same token: what the lost call did is not done twice.
            request = replace(call.request, resume=call.request.resume or call.request.take > 0)
            call.request, call.repeated = request, True
            call.task = begin(self._store.step(request))
            call.task.add_done_callback(self._call_over)
        except Exception:
            # The last words of this consumer may still get through.
            self._calls.remove(call)
            self._coming -= call.request.take
            self._out = [*call.batch, *self._out]
            raise
        else:
            self._outage.over()
            self._calls.remove(call)
            self._receive(call, reply)

    def _receive(self, call: _Call, reply: StepReply) -> None:
        held, tells = self.held, self._tells_end
        for item, code in zip(call.batch, reply.settled, strict=True):
            if code is not SettleCode.OK and not (call.repeated and code in _DONE_BY_REPEAT):
                self._not_settled(item, code)
                continue
            id = item.claimed.record.id
            if held.get(id) is item:
                del held[id]
            if tells:
                for event in item.worker_events:
                    self._hooks.tell(event)
        self._take_in(reply, call.request, alone=call.alone)

    def _take_in(self, reply: StepReply, request: Step, *, alone: bool = True) -> None:
        """Note what a step or a wait has brought."""
        jobs = reply.jobs
        self._coming -= request.take
        self._now, self._heard = reply.now, time.monotonic()
        if request.take:
            self._dry, self._sure = len(jobs) < request.take, alone
            self._wake_at = reply.wake_at
        if jobs:
            self._arrived.extend(jobs)
            self._busy += len(jobs)
            self._fed = True
            self._on_hold()
        elif self._fed and self._dry and not reply.paused and not self._busy:
            self._fed = False
            self._tell("drained")

    def _not_settled(self, item: Run | Unrun, code: SettleCode) -> None:
        record = item.claimed.record
        if isinstance(item, Run):
            if code is SettleCode.NOTHING_PENDING:
                # The children it wanted to wait for are over: it starts again at once.
                item.outcome = Release()
                self._out.append(item)
                return
            if self._executor.refused(item, code) is not None:
                self._out.append(item)
                return
        self._forget(item)
        _log.warning(
            "queue %s: job %s had been taken over (%s); its %s is dropped", self.queue, record.id, code.value,
            type(item.outcome).__name__,
        )  # fmt: skip

    # --- starting jobs ------------------------------------------------------------------------------------------------

    def _start_arrived(self) -> None:
        arrived, held, start, ended = self._arrived, self.held, self._executor.start, self._ended
        handlers, catch_all = self._plan.handlers, self._plan.catch_all
        while arrived:
            # Seen by the thread that renews leases: this start may block the loop, and keep the jobs behind it waiting.
            self._starting = claimed = arrived.popleft()
            record = claimed.record
            handler = handlers.get(record.name, catch_all)
            if (
                handler is None
                or record.crashes
                or record.schedule is not None
                or record.deferred is not None
                or record.id in held
            ):
                self._start_special(claimed)
            else:
                held[record.id] = start(handler, claimed, ended)
        self._starting = None

    def _start_special(self, claimed: Claimed) -> None:
        record = claimed.record
        older = self.held.get(record.id)
        if older is not None:
            if older.claimed.held.fence == claimed.held.fence:
                self._busy -= 1
                return
            # Claimed anew while an older start of it is still here: that one's lease was lost.
            self.lose(older.claimed.held)
        decision = self._intake.decide(claimed, self._now)
        if isinstance(decision, Unrun):
            self.end_unrun(decision)
        elif record.schedule is not None:
            parked = self.held[record.id] = Parked(claimed, decision)
            self._scheduled.run(parked, self._now)
        elif self._intake.is_suspect(record):
            if self._gate.shut():
                self._suspect = self.held[record.id] = Parked(claimed, decision)
            else:
                self.end_unrun(Unrun(claimed, Release()))
        else:
            self.start(decision, claimed)

    def start(self, handler: Handler, claimed: Claimed, over: Callable[[], None] | None = None) -> Run:
        """Run a job that was held back, and call ``over`` when it has ended."""

        def ended(run: Run) -> None:
            if over is not None:
                over()
            self._ended(run)

        run = self.held[claimed.record.id] = self._executor.start(handler, claimed, ended)
        return run

    def _ended(self, run: Run) -> None:
        self._busy -= 1
        self._out.append(run)
        if not self._calls or len(self._out) >= self._burst:
            self._wake.set()

    def end_unrun(self, item: Unrun) -> None:
        """Have a job settled that does not run."""
        self._busy -= 1
        self.held[item.claimed.record.id] = item
        self._out.append(item)
        self._wake.set()

    # --- waiting ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Wait for a dry queue with whatever room there is."""
        room = self.concurrency - self._busy - self._coming
        if self._wait is not None or not self._may_claim or room <= 0:
            return
        timeout = IDLE_WAIT_S
        if self._wake_at is not None:
            # Whole milliseconds on both sides, so the wait cannot end before the moment it is for.
            left = (self._wake_at - self._now) / 1_000 - (time.monotonic() - self._heard)
            timeout = min(timeout, max(0.0, left))
        request = Step(
            queue=self.queue,
            worker=self._settings.worker,
            token=self._tokens.fresh(),
            take=min(room, self._burst),
            lease_ms=self._settings.lease_ms,
            tags=self._settings.tags,
            rate=self._settings.rate,
            metrics=self._settings.metrics,
        )
        self._coming += request.take
        self._note_claim(request)
        self._wait_request = request
        self._wait = begin(self._store.wait(request, timeout))
        self._wait.add_done_callback(lambda _: self._wake.set())

    def _look_at_wait(self) -> None:
        wait, request = self._wait, self._wait_request
        if wait is None or request is None:
            return
        if not wait.done():
            if not self._may_claim:
                wait.cancel()
            return
        self._wait = self._wait_request = None
        error = None if wait.cancelled() else wait.exception()
        if not wait.cancelled() and error is None:
            self._take_in(wait.result(), request)
            return
        self._coming -= request.take
        if error is None or isinstance(error, WAITED_OUT):
            # It may have claimed: the next call asks under its token.
            self._unsure = request.token
        else:
            raise error

    async def _sleep(self, seconds: float) -> None:
        # Woken by a stop only: a job that ends in an outage is no reason to try earlier.
        deadline = self._deadline
        until = asyncio.get_running_loop().time() + seconds
        while (left := until - asyncio.get_running_loop().time()) > 0 and self._deadline == deadline:
            with anyio.move_on_after(left):
                await self._wake.wait()
                self._wake.clear()

    # --- stopping -----------------------------------------------------------------------------------------------------

    def _hand_back(self) -> None:
        """Return to the store what has not started."""
        while self._arrived:
            self.end_unrun(Unrun(self._arrived.popleft(), Release()))
        if self._suspect is not None:
            suspect, self._suspect = self._suspect, None
            self.end_unrun(Unrun(suspect.claimed, Release()))
        for item in tuple(self.held.values()):
            if isinstance(item, Parked) and item.task is not None:
                item.task.cancel()
                item.lost = True
                self.end_unrun(Unrun(item.claimed, Release()))

    def _cancel_runs(self) -> None:
        runs = [item for item in self.held.values() if isinstance(item, Run) and not item.ended]
        if runs:
            _log.warning("queue %s: the grace is over; jobs cancelled: %d", self.queue, len(runs))
        for run in runs:
            run.cancel(CancelReason.SHUTDOWN)

    def _close(self) -> None:
        self._gate.leave(self)
        if self._timer is not None:
            self._timer.cancel()
        for task in (self._wait, *(call.task for call in self._calls)):
            if task is not None and not task.done():
                task.cancel()
        self._scheduled.cancel()
        if self.held:
            _log.error(
                "queue %s: %d jobs could not be settled or handed back; their leases lapse, and they run again",
                self.queue,
                len(self.held),
            )

    # --- small things -------------------------------------------------------------------------------------------------

    def _holding(self, held: Held) -> Holding | None:
        item = self.held.get(held.id)
        return item if item is not None and item.claimed.held == held else None

    def _forget(self, item: Holding) -> None:
        id = item.claimed.record.id
        if self.held.get(id) is item:
            del self.held[id]

    def _drop(self, parked: Parked) -> None:
        parked.lost = True
        self._forget(parked)
        self._busy -= 1
        if parked is self._suspect:
            self._suspect = None
        self._wake.set()

    def _note_claim(self, request: Step) -> None:
        if not request.take and not request.resume:
            return
        claims = self._claims
        claims[request.token] = time.monotonic()
        if len(claims) > 256 + 2 * self.concurrency:
            used = {item.claimed.held.token for item in self.held.values()}
            recent = list(claims)[-64:]
            self._claims = {token: claims[token] for token in claims if token in used or token in recent}

    def _tell(self, name: WorkerEventName) -> None:
        if self._hooks.wants(name, self.queue):
            self._hooks.tell(WorkerEvent(name=name, queue=self.queue))

    def _tell_error(self, error: StoreError) -> None:
        if self._hooks.wants("error", self.queue):
            self._hooks.tell(WorkerEvent(name="error", queue=self.queue, error=error))
