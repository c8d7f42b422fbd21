"""How jobs are worked on: settled, claimed, renewed and swept."""

from collections.abc import Iterable, Sequence
from typing import Final, assert_never

from workers_module.job.events import EventType
from workers_module.job.outcome import Completed, Failed, Keep, Release, Retry, Snooze, WaitChildren
from workers_module.job.state import JobState
from workers_module.store.planning import (
    CRASHED,
    MAX_MOVED,
    MAX_TRIMMED,
    check_step,
    earliest,
    leads_to,
    rate_of,
)
from workers_module.store.values import (
    Claimed,
    Held,
    RenewReply,
    Settle,
    SettleCode,
    Step,
    StepReply,
    Sweep,
    SweepReply,
)
from workers_module.store.world.ledger import Ledger, key_is_free
from workers_module.store.world.schedules import is_idle
from workers_module.store.world.shelf import FROM_ACTIVE, FROM_WAITING, Job, Ready, Shelf
from workers_module.store.world.ties import Deps

# Looking up a member of an enum costs more than most of what is done with it for each job.
_ACTIVE: Final = JobState.ACTIVE
_STARTED: Final = EventType.ACTIVE
_COMPLETED: Final = EventType.COMPLETED
_OK: Final = SettleCode.OK


class Work:
    """What consumers ask for."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def step(self, req: Step, now: int) -> StepReply:
        """Do what `Store.step` says."""
        check_step(req)
        shelf = self._ledger.shelves.get(req.queue)
        if shelf is None:
            return StepReply([SettleCode.MISSING] * len(req.outcomes), [], None, paused=False, now=now)
        settled: list[SettleCode] = []
        ended = False
        if req.outcomes:
            settled, ended = self._settle_all(shelf, req, now)
        if shelf.delayed:
            shelf.promote_due(now, 2 * req.take + 100)
        jobs = self._resume(shelf, req, now) if req.resume else []
        if req.take and (room := shelf.room(req, now, len(jobs))) > 0:
            self._claim(shelf, req, now, room, jobs)
        if ended and not shelf.active and not (req.take and shelf.delayed) and not shelf.claimable:
            shelf.emit(EventType.DRAINED)
        closed = shelf.closed_until(req, now) if shelf.rate_until > now and shelf.claimable else None
        return StepReply(settled, jobs, earliest(shelf.next_due(), closed), shelf.paused, now)

    def _settle_all(self, shelf: Shelf, req: Step, now: int) -> tuple[list[SettleCode], bool]:
        """Settle outcomes in order; their codes, and whether a job ended."""
        self._ledger.touched[shelf] = None
        codes: list[SettleCode] = []
        keeps: list[tuple[JobState, Keep]] = []
        last: tuple[type, Keep | None] = (Completed, None)
        completed = failed = 0
        for settle in req.outcomes:
            code = self._settle(shelf, settle, now)
            codes.append(code)
            outcome = settle.outcome
            if code is not _OK:
                continue
            if isinstance(outcome, Completed):
                completed += 1
            elif isinstance(outcome, Failed):
                failed += 1
            else:
                continue
            keep = outcome.keep
            # Nearly always one and the same object: comparing identities spares hashing it for each job.
            if keep is not None and (keep is not last[1] or type(outcome) is not last[0]) and keep.count != 0:
                last = type(outcome), keep
                keeps.append((_end_of(outcome), keep))
        if req.metrics:
            for tally, number in ((shelf.completions, completed), (shelf.failures, failed)):
                if number:
                    tally.add(number, now, req.metrics)
        for state, keep in dict.fromkeys(keeps):
            self._trim(shelf, state, keep, now)
        return codes, completed + failed > 0

    def _settle(self, shelf: Shelf, settle: Settle, now: int) -> SettleCode:
        held, outcome = settle
        job = shelf.jobs.get(held.id)
        if job is None:
            return SettleCode.MISSING
        if job.token is None:
            repeated = job.fence == held.fence and leads_to(outcome, job.state)
            return SettleCode.ALREADY if repeated else SettleCode.LEASE_LOST
        if job.token != held.token and not job.held_by(held, now):
            return SettleCode.LEASE_LOST
        match outcome:
            case Completed():
                if job.deps is not None and (job.deps.failed or job.deps.pending):
                    return SettleCode.CHILD_FAILED if job.deps.failed else SettleCode.PENDING
                shelf.stop(job)
                job.attempts += 1
                job.result = outcome.result
                if job.dedup is not None:
                    self._ledger.free_key(job, now)
                if job.parent is not None:
                    self._ledger.child_completed(job, now)
                shelf.fresh.append((_COMPLETED, job.id, outcome.result))
                if outcome.keep is not None and outcome.keep.count == 0:
                    shelf.forget(job)
                else:
                    shelf.end(job, JobState.COMPLETED, now)
            case Failed():
                job.attempts += 1
                self._ledger.fail(job, outcome.reason, outcome.trace, now)
                if outcome.keep is not None and outcome.keep.count == 0:
                    self._ledger.delete(job)
            case Retry(delay_ms, reason, trace):
                job.attempts += 1
                job.reason = reason
                job.trace = job.trace if trace is None else trace
                self._put_off(job, delay_ms, now)
            case Snooze(delay_ms):
                self._put_off(job, delay_ms, now)
            case Release():
                shelf.leave(job)
                shelf.put_in_front(job)
                shelf.emit(EventType.WAITING, job.id, FROM_ACTIVE)
            case WaitChildren(child):
                if job.deps is not None and job.deps.failed:
                    return SettleCode.CHILD_FAILED
                if job.deps is None or not _pends(job.deps, child):
                    return SettleCode.NOTHING_PENDING
                shelf.leave(job)
                shelf.park(job)
                shelf.emit(EventType.WAITING_CHILDREN, job.id, FROM_ACTIVE)
            case _:
                assert_never(outcome)
        return _OK

    def _put_off(self, job: Job, delay_ms: int, now: int) -> None:
        job.shelf.leave(job)
        if delay_ms > 0:
            job.shelf.put_delayed(job, now + delay_ms)
            job.shelf.emit(EventType.DELAYED, job.id, now + delay_ms)
        else:
            self._ledger.queue_up(job)
            job.shelf.emit(EventType.WAITING, job.id, FROM_ACTIVE)

    def _trim(self, shelf: Shelf, state: JobState, keep: Keep, now: int) -> None:
        """Remove the oldest ended jobs that are too many or too old."""
        jobs = shelf.ended_in_order(state)
        surplus = 0 if keep.count is None else len(jobs) - keep.count
        before = 0 if keep.age_ms is None else now - keep.age_ms
        for _ in range(min(keep.limit, len(jobs))):
            oldest = next(iter(jobs.values()))
            if surplus <= 0 and (oldest.finished or 0) > before:
                break
            surplus -= 1
            del jobs[oldest.id], shelf.jobs[oldest.id]
            if oldest.parent is not None:
                self._ledger.child_gone(oldest, now)

    def _claim(self, shelf: Shelf, req: Step, now: int, room: int, jobs: list[Claimed]) -> None:
        """Claim up to ``room`` jobs."""
        rate = rate_of(shelf.rate, req.rate)
        if shelf.rate_until <= now:
            shelf.rate_used = 0
        places = shelf.matching(req.tags)
        only = places[0] if len(places) == 1 else None
        token, worker, lease = req.token, req.worker, now + req.lease_ms
        active, fresh = shelf.active, shelf.fresh
        self._ledger.touched[shelf] = None
        while room > 0 and (rate is None or shelf.rate_used < rate.max):
            place = _best(places) if only is None else only
            if place is None or (job := place.take()) is None:
                break
            room -= 1
            id = job.id
            job.state = _ACTIVE
            job.number = 0
            job.token = token
            job.lease = lease
            job.fence = fence = job.fence + 1
            job.started = now
            job.worker = worker
            active[id] = job
            fresh.append((_STARTED, id, FROM_WAITING))
            if rate is not None and job.deferred is None:
                shelf.rate_used += 1
                if shelf.rate_used == 1:
                    shelf.rate_until = now + rate.window_ms
            # Built without the keyword handling of their classes, which costs more than all the rest.
            jobs.append(tuple.__new__(Claimed, (job.record(), tuple.__new__(Held, (id, token, fence, None)))))

    def _resume(self, shelf: Shelf, req: Step, now: int) -> list[Claimed]:
        """Return what is already active under a token; its holder counts its lease from this call."""
        found: list[Claimed] = []
        for job in shelf.active.values():
            if job.token == req.token:
                job.lease = now + req.lease_ms
                job.lapsed = None
                found.append(Claimed(job.record(), Held(job.id, req.token, job.fence)))
        return found

    def renew(self, queue: str, held: Sequence[Held], lease_ms: int, now: int) -> RenewReply:
        """Do what `Store.renew` says."""
        shelf = self._ledger.shelves.get(queue)
        lost: list[str] = []
        cancelled: list[str] = []
        for one in held:
            job = None if shelf is None else shelf.jobs.get(one.id)
            if job is None or job.state is not JobState.ACTIVE or not job.held_by(one, now):
                lost.append(one.id)
                continue
            job.lease = now + lease_ms
            job.lapsed = None
            if job.cancelled:
                cancelled.append(one.id)
        return RenewReply(tuple(lost), tuple(cancelled))

    def sweep(self, req: Sweep, now: int) -> SweepReply:
        """Do what `Store.sweep` says."""
        shelf = self._ledger.shelves.get(req.queue)
        if shelf is None:
            return SweepReply((), (), None, more=False, now=now)
        if shelf.swept is not None and shelf.swept <= now < shelf.swept + req.interval_ms:
            return SweepReply((), (), shelf.next_due(), more=False, now=now)
        self._ledger.touched[shelf] = None
        recovered = self._recover(shelf, req, now)
        shelf.promote_due(now, MAX_MOVED)
        for name in [name for name, key in shelf.dedup.items() if key_is_free(shelf, key, now)]:
            del shelf.dedup[name]
        for state, age_ms in ((JobState.COMPLETED, req.completed_age_ms), (JobState.FAILED, req.failed_age_ms)):
            if age_ms is not None:
                self._trim(shelf, state, Keep(age_ms=age_ms, limit=MAX_TRIMMED), now)
        shelf.tidy_tags()
        due = shelf.next_due()
        more = due is not None and due <= now
        shelf.swept = None if more else now
        idle = tuple(one.id for one in shelf.schedules.values() if not one.paused and is_idle(shelf, one))
        return SweepReply(tuple(recovered), idle, due, more=more, now=now)

    def _recover(self, shelf: Shelf, req: Sweep, now: int) -> list[str]:
        """Take back the jobs whose lease an earlier sweep found run out already."""
        abandoned: list[Job] = []
        for job in shelf.active.values():
            if job.lease > now:
                continue
            if job.lapsed is None:
                job.lapsed = now
            elif job.lapsed + req.interval_ms <= now:
                abandoned.append(job)
        # The last one put in front comes first; those who started first shall.
        for job in reversed(abandoned):
            shelf.leave(job)
            job.crashes += 1
            spared = job.schedule is not None and job.schedule in shelf.schedules
            if job.on_crash == "fail" or (job.crashes >= req.max_crashes and not spared):
                job.deferred = CRASHED
            shelf.put_in_front(job)
            shelf.emit(EventType.WAITING, job.id, FROM_ACTIVE)
            shelf.emit(EventType.STALLED, job.id)
        return [job.id for job in abandoned]


def _best(places: Iterable[Ready]) -> Ready | None:
    """Return where the job lies that goes first of all."""
    best: tuple[tuple[int, int], Ready] | None = None
    for place in places:
        if (job := place.first()) is not None and (best is None or (job.priority, job.number) < best[0]):
            best = (job.priority, job.number), place
    return None if best is None else best[1]


def _pends(deps: Deps, child: str | None) -> bool:
    """Return whether any child, or the one of this id, has not ended."""
    if child is None:
        return deps.pending > 0
    return any(one.id == child and one.state == "pending" for one in deps.children.values())


def _end_of(outcome: Completed | Failed) -> JobState:
    return JobState.COMPLETED if isinstance(outcome, Completed) else JobState.FAILED
