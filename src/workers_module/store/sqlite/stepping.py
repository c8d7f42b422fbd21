"""The consumer's calls: settle, make due jobs ready, claim, renew."""

from collections.abc import Sequence
from typing import Final, assert_never

from workers_module.job.outcome import Completed, Failed, Keep, Outcome, Release, Retry, Snooze, WaitChildren

from workers_module.store.base import Claimed, Held, RenewReply, Settle, SettleCode, Step, StepReply
from workers_module.store.sqlite import adding, flows
from workers_module.store.sqlite.rows import (
    PART_REASON,
    PART_RESULT,
    PART_TRACE,
    RECORD,
    SELECT_HEADS,
    Head,
    delete,
    heads_by_id,
    records,
    spill,
    spill_text,
    text,
    update,
)
from workers_module.store.sqlite.work import (
    ACTIVE,
    BIG,
    COMPLETED,
    DELAYED,
    FAILED,
    FROM_ACTIVE,
    FROM_DELAYED,
    FROM_WAITING,
    PARKED,
    READY,
    Many,
    Plan,
    Queue,
    Row,
    Rows,
    Work,
    chunks,
    marks,
    padded,
)

_COMPLETE: Final = (
    "UPDATE wm_job SET state = 4, ended = ?, seq = ?, attempts = attempts + 1, token = NULL, lease = NULL, lapsed = NULL, "
    "cancel = 0, result = ? WHERE n = ?"
)
_CLAIM: Final = (
    "UPDATE wm_job SET state = 3, seq = ?, token = ?, lease = ?, lapsed = NULL, started = ?, worker = ?, fence = fence + 1 "
    "WHERE n = ?"
)
_DUE: Final = (
    "SELECT n, id, priority FROM wm_job WHERE q = ? AND state = 2 AND due <= ? ORDER BY due, seq LIMIT ?"
)
_MAKE_READY: Final = "UPDATE wm_job SET state = 1, seq = ?, due = NULL WHERE n = ?"
_NEXT_DUE: Final = "SELECT due FROM wm_job WHERE q = ? AND state = 2 ORDER BY due LIMIT 1"
_NEXT_READY: Final = (
    f"SELECT {RECORD}, seq FROM wm_job WHERE q = ? AND state = 1 AND tagset = ? ORDER BY priority, seq LIMIT ?"
)
_HELD: Final = f"SELECT {RECORD} FROM wm_job WHERE q = ? AND state = 3 AND token = ? ORDER BY seq"
_RENEW: Final = "UPDATE wm_job SET lease = ?, lapsed = NULL WHERE n = ?"
_OLDEST_ENDED: Final = f"{SELECT_HEADS} WHERE q = ? AND state = ? AND state IN (4, 5) ORDER BY ended, seq LIMIT ?"
_OLD_ENDED: Final = (
    f"{SELECT_HEADS} WHERE q = ? AND state = ? AND state IN (4, 5) AND ended <= ? ORDER BY ended, seq LIMIT ?"
)

COMPLETED_KIND: Final = 0
FAILED_KIND: Final = 1


def step(work: Work, req: Step) -> Plan[StepReply]:
    """Do what `Store.step` says."""
    queue = yield from work.find(req.queue)
    if queue is None:
        return StepReply([SettleCode.MISSING] * len(req.outcomes), [], None, False, work.now)
    active_before = queue.tally[ACTIVE]
    settling = Settling(work, queue, req.metrics)
    settled = yield from settling.run(req.outcomes)
    hinted = work.hints.get(queue.name, 0)
    promoted = yield from promote(work, queue, 2 * req.take + 100)
    jobs, limited_until = yield from _claim(work, queue, req)
    if SettleCode.OK in settled and not queue.ready and not queue.tally[ACTIVE]:
        if req.take <= 0 or not queue.tally[DELAYED]:
            queue.events.append(("drained", None, None))
    freed = max(0, active_before - queue.tally[ACTIVE]) if queue.concurrency is not None else 0
    left = 0 if queue.paused else min(queue.ready, hinted + promoted + freed)
    if left:
        work.hints[queue.name] = left
    else:
        work.hints.pop(queue.name, None)
    wake_at = yield from next_due(queue)
    if limited_until is not None and (wake_at is None or limited_until < wake_at):
        wake_at = limited_until
    return StepReply(settled, jobs, wake_at, queue.paused == 1, work.now)


def promote(work: Work, queue: Queue, limit: int) -> Plan[int]:
    """Make due jobs ready, in the order of their instants; how many."""
    if not queue.tally[DELAYED]:
        return 0
    due = yield _DUE, (queue.q, work.now, limit)
    if due:
        yield Many(_MAKE_READY, [(queue.behind(), n) for n, _, _ in due])
        tally = queue.tally
        for _, id_, priority in due:
            queue.count(READY, priority, 1)
            queue.events.append(("waiting", id_, FROM_DELAYED))
        tally[DELAYED] -= len(due)
    return len(due)


def next_due(queue: Queue) -> Plan[int | None]:
    """Return when the next delayed job is due."""
    if not queue.tally[DELAYED]:
        return None
    rows = yield _NEXT_DUE, (queue.q,)
    return rows[0][0] if rows else None


# --- claiming ---------------------------------------------------------------------------------------------------------


def _claim(work: Work, queue: Queue, req: Step) -> Plan[tuple[list[Claimed], int | None]]:
    """Claim what may be claimed; the jobs, and when a limit that stood in the way ends."""
    jobs: list[Claimed] = []
    now = work.now
    if req.resume:
        jobs = yield from _resume(work, queue, req)
    take = req.take - len(jobs)
    if queue.concurrency is not None:
        take = min(take, queue.concurrency - queue.tally[ACTIVE])
    if queue.paused or not queue.ready:
        return jobs, None
    if queue.limited_until > now:
        return jobs, queue.limited_until
    most = queue.rate_max if queue.rate_max is not None else (req.rate.max if req.rate is not None else None)
    allowed: int | None = None
    if most is not None:
        live = queue.rate_until > now
        allowed = most - queue.rate_used if live else most
        if allowed <= 0:
            return jobs, queue.rate_until if live else None
    if take <= 0:
        return jobs, None
    rows = yield from _ready_rows(work, queue, req.tags, take)
    limited: int | None = None
    if allowed is not None:
        window = req.rate.window_ms if req.rate is not None else queue.rate_ms
        rows, limited = _within_rate(queue, rows, allowed, now, window or 0)
    if rows:
        jobs += yield from _start(work, queue, req, rows)
    return jobs, limited


def _resume(work: Work, queue: Queue, req: Step) -> Plan[list[Claimed]]:
    rows = yield _HELD, (queue.q, req.token)
    if not rows:
        return []
    yield Many(_RENEW, [(work.now + req.lease_ms, row[0]) for row in rows])
    found = yield from records(work, queue, rows)
    return [
        Claimed(record, Held(record.id, req.token, record.fence, row[0]))
        for record, row in zip(found, rows, strict=True)
    ]


def _ready_rows(work: Work, queue: Queue, tags: tuple[str, ...], take: int) -> Plan[Rows]:
    """Return the best rows of all sets of tags a worker serves, with their place at the end of each."""
    if not tags:
        return (yield _NEXT_READY, (queue.q, 0, take))
    wanted = set(tags)
    tagsets = yield from work.tagsets.of(queue.q, queue.tagsets)
    found: Rows = []
    for number, tagset in enumerate(tagsets):
        if not wanted.isdisjoint(tagset):
            found += yield _NEXT_READY, (queue.q, number, take)
    found.sort(key=lambda row: (row[6], row[-1]))
    return found[:take]


def _within_rate(queue: Queue, rows: Rows, allowed: int, now: int, window_ms: int) -> tuple[Rows, int | None]:
    """Cut the rows to what the window lets through. A job that will only be failed uses no start."""
    used = 0
    kept: Rows = []
    for row in rows:
        deferred = row[24] is not None
        if not deferred:
            if used == allowed:
                break
            used += 1
        kept.append(row)
    if used:
        if queue.rate_until <= now:
            queue.rate_used, queue.rate_until = 0, now + window_ms
        queue.rate_used += used
    exhausted = used == allowed and queue.ready > len(kept)
    return kept, queue.rate_until if exhausted else None


def _start(work: Work, queue: Queue, req: Step, rows: Rows) -> Plan[list[Claimed]]:
    now, token, worker = work.now, req.token, req.worker
    lease = now + req.lease_ms
    first = queue.back + 1
    queue.back += len(rows)
    yield Many(_CLAIM, [(seq, token, lease, now, worker, row[0]) for seq, row in enumerate(rows, first)])
    prioritized = sum(1 for row in rows if row[6] > 0)
    queue.tally[7] -= prioritized
    queue.tally[READY] -= len(rows) - prioritized
    queue.tally[ACTIVE] += len(rows)
    events = queue.events
    jobs: list[Claimed] = []
    started: Rows = []
    for row in rows:
        events.append(("active", row[1], FROM_WAITING))
        started.append((*row[:3], ACTIVE, *row[4:11], row[11] + 1, row[12], None, now, *row[15:19], worker, *row[20:31]))
    for record, row in zip((yield from records(work, queue, started)), rows, strict=True):
        jobs.append(Claimed(record, Held(record.id, token, record.fence, row[0])))
    return jobs


# --- settling ---------------------------------------------------------------------------------------------------------


class Settling:
    """Settles the outcomes of one step, in order.

    The usual case, a job without relatives that completes, is gathered and written in one statement; everything else is
    written at once. That changes nothing for the others: such a job touches only itself.
    """

    __slots__ = ("_completed", "_gathered", "_keeps", "_metrics", "_queue", "_work")

    def __init__(self, work: Work, queue: Queue, metrics: int) -> None:
        self._work = work
        self._queue = queue
        self._metrics = metrics
        self._completed: list[Row] = []
        self._gathered: set[int] = set()
        self._keeps: dict[tuple[int, Keep], None] = {}

    def run(self, outcomes: Sequence[Settle]) -> Plan[list[SettleCode]]:
        """Settle; a code for each outcome."""
        if not outcomes:
            return []
        heads = yield from heads_held(self._queue.q, [held for held, _ in outcomes])
        now = self._work.now
        queue = self._queue
        codes: list[SettleCode] = []
        ended = [0, 0]
        alone = True
        for held, outcome in outcomes:
            head = heads.get(held.id)
            if head is None:
                codes.append(SettleCode.MISSING)
                continue
            if not alone or head.n in self._gathered:
                yield from self._write()
                head = yield from self._fresh(head)
                if head is None:
                    codes.append(SettleCode.MISSING)
                    continue
            if not is_held(head, held, now):
                codes.append(_late(head, held, outcome))
                continue
            plain = head.parent is None and head.dedup is None and not head.children and not head.big
            if (
                plain
                and type(outcome) is Completed
                and len(outcome.result) <= BIG
                and (outcome.keep is None or outcome.keep.count != 0)
            ):
                self._gathered.add(head.n)
                self._completed.append((now, queue.behind(), outcome.result, head.n))
                queue.events.append(("completed", head.id, _returned(outcome.result)))
                if outcome.keep is not None:
                    self._keeps[COMPLETED, outcome.keep] = None
                code = SettleCode.OK
                ended[COMPLETED_KIND] += 1
            else:
                yield from self._write()
                code = yield from self._settle(head, outcome)
                if code is SettleCode.OK:
                    # From here on rows read before may be stale: this one's relatives, and the same job once more.
                    alone = alone and plain
                    self._gathered.add(head.n)
                    if type(outcome) is Completed:
                        ended[COMPLETED_KIND] += 1
                    elif type(outcome) is Failed:
                        ended[FAILED_KIND] += 1
            codes.append(code)
        yield from self._write()
        for state, keep in self._keeps:
            yield from retain(self._work, queue, state, keep)
        if self._metrics > 0:
            yield from _measure(self._work, queue, ended, self._metrics)
        return codes

    def _write(self) -> Plan[None]:
        if self._completed:
            yield Many(_COMPLETE, self._completed)
            self._queue.tally[ACTIVE] -= len(self._completed)
            self._queue.tally[COMPLETED] += len(self._completed)
            self._completed = []

    def _fresh(self, head: Head) -> Plan[Head | None]:
        rows = yield f"{SELECT_HEADS} WHERE n = ?", (head.n,)
        return Head(*rows[0]) if rows else None

    def _settle(self, head: Head, outcome: Outcome) -> Plan[SettleCode]:
        match outcome:
            case Completed():
                return (yield from self._complete(head, outcome))
            case Failed():
                return (yield from self._fail(head, outcome))
            case Retry():
                yield from self._retry(head, outcome)
            case Snooze():
                yield from self._put_off(head, outcome.delay_ms)
            case Release():
                yield from self._leave(head, READY, seq=self._queue.ahead())
                self._queue.events.append(("waiting", head.id, FROM_ACTIVE))
                self._work.hint(self._queue, 1)
            case WaitChildren():
                return (yield from self._wait(head, outcome.child))
            case _:
                assert_never(outcome)
        return SettleCode.OK

    def _leave(self, head: Head, state: int, **values: object) -> Plan[None]:
        """Write a job's new state; its lease and the request to cancel it end."""
        yield from update(head.n, state=state, token=None, lease=None, lapsed=None, cancel=0, **values)
        self._queue.count(ACTIVE, 0, -1)
        self._queue.count(state, head.priority, 1)

    def _complete(self, head: Head, outcome: Completed) -> Plan[SettleCode]:
        if head.pending > 0:
            return SettleCode.PENDING
        if head.broken > 0:
            return SettleCode.CHILD_FAILED
        if head.dedup is not None:
            yield from adding.free_key(self._work, self._queue, head)
        yield from flows.child_completed(self._work, self._queue.name, head, outcome.result)
        if outcome.keep is not None and outcome.keep.count == 0:
            yield from delete(self._work, [head])
        else:
            result, big = yield from spill(head.n, head.big, PART_RESULT, outcome.result)
            yield from self._leave(
                head,
                COMPLETED,
                ended=self._work.now,
                seq=self._queue.behind(),
                attempts=head.attempts + 1,
                result=result,
                big=big,
            )
        self._queue.events.append(("completed", head.id, _returned(outcome.result)))
        if outcome.keep is not None and outcome.keep.count != 0:
            self._keeps[COMPLETED, outcome.keep] = None
        return SettleCode.OK

    def _fail(self, head: Head, outcome: Failed) -> Plan[SettleCode]:
        reason = text(outcome.reason)
        if head.dedup is not None:
            yield from adding.free_key(self._work, self._queue, head)
        yield from flows.child_failed(self._work, self._queue.name, head, reason)
        if outcome.keep is not None and outcome.keep.count == 0:
            yield from delete(self._work, [head])
        else:
            failure = yield from failure_values(head, reason, outcome.trace)
            yield from self._leave(
                head,
                FAILED,
                ended=self._work.now,
                seq=self._queue.behind(),
                attempts=head.attempts + 1,
                deferred=None,
                **failure,
            )
        self._queue.events.append(("failed", head.id, {"failedReason": reason, "prev": "active"}))
        if head.attempts + 1 >= head.max_attempts:
            attempts = {"attemptsMade": str(head.attempts + 1)}
            self._queue.events.append(("retries-exhausted", head.id, attempts))
        if outcome.keep is not None and outcome.keep.count != 0:
            self._keeps[FAILED, outcome.keep] = None
        return SettleCode.OK

    def _retry(self, head: Head, outcome: Retry) -> Plan[None]:
        failure = yield from failure_values(head, text(outcome.reason), outcome.trace)
        if outcome.delay_ms > 0:
            yield from self._put_off(head, outcome.delay_ms, attempts=head.attempts + 1, **failure)
            return
        seq = self._queue.ahead() if head.lifo and head.priority == 0 else self._queue.behind()
        yield from self._leave(head, READY, seq=seq, attempts=head.attempts + 1, **failure)
        self._queue.events.append(("waiting", head.id, FROM_ACTIVE))
        self._work.hint(self._queue, 1)

    def _put_off(self, head: Head, delay_ms: int, **values: object) -> Plan[None]:
        due = self._work.now + delay_ms
        yield from self._leave(head, DELAYED, seq=self._queue.behind(), due=due, **values)
        self._queue.events.append(("delayed", head.id, {"delay": str(due)}))

    def _wait(self, head: Head, child: str | None) -> Plan[SettleCode]:
        if head.broken > 0:
            return SettleCode.CHILD_FAILED
        if child is None:
            waits = head.pending > 0
        else:
            rows = yield (
                "SELECT 1 FROM wm_dep WHERE parent = ? AND state = 0 AND (id = ? OR queue || ':' || id = ?)",
                (head.n, child, child),
            )
            waits = bool(rows)
        if not waits:
            return SettleCode.NOTHING_PENDING
        yield from self._leave(head, PARKED, seq=self._queue.behind(), delay=0)
        self._queue.events.append(("waiting-children", head.id, FROM_ACTIVE))
        return SettleCode.OK


def failure_values(head: Head, reason: str, trace: bytes | None) -> Plan[dict[str, object]]:
    """Return the columns that tell of a failure."""
    kept_reason, big = yield from spill_text(head.n, head.big, PART_REASON, reason)
    values: dict[str, object] = {"reason": kept_reason}
    if trace is not None:
        values["trace"], big = yield from spill(head.n, big, PART_TRACE, trace)
    if big != head.big:
        values["big"] = big
    return values


def heads_held(q: int, held: Sequence[Held]) -> Plan[dict[str, Head]]:
    """Read the jobs a worker names, by number where it has one."""
    found: dict[str, Head] = {}
    handles = [one.handle for one in held if one.handle is not None]
    for piece in chunks(handles):
        rows = yield f"{SELECT_HEADS} WHERE n IN ({marks(len(piece))})", padded(piece)
        for row in rows:
            if row[1] == q:
                found[row[2]] = Head(*row)
    missing = [one.id for one in held if one.id not in found]
    if missing:
        found.update((yield from heads_by_id(q, missing)))
    return found


def is_held(head: Head, held: Held, now: int) -> bool:
    """Tell whether this holder may still write about the job."""
    if head.state != ACTIVE:
        return False
    if head.token == held.token:
        return True
    return head.fence == held.fence and head.lease is not None and head.lease <= now


def _late(head: Head, held: Held, outcome: Outcome) -> SettleCode:
    """Tell an outcome that was carried out before from one whose lease is lost."""
    if head.state == ACTIVE or head.fence != held.fence:
        return SettleCode.LEASE_LOST
    if type(outcome) is Completed:
        done = head.state == COMPLETED
    elif type(outcome) is Failed:
        done = head.state == FAILED
    else:
        done = head.state not in {COMPLETED, FAILED}
    return SettleCode.ALREADY if done else SettleCode.LEASE_LOST


def _returned(result: bytes) -> dict[str, str]:
    return {"returnvalue": result.decode("utf-8", "surrogateescape"), "prev": "active"}


def retain(work: Work, queue: Queue, state: int, keep: Keep) -> Plan[None]:
    """Delete the oldest ended jobs a retention does not keep; no events, and deduplication keys stay."""
    if keep.age_ms is not None:
        rows = yield _OLD_ENDED, (queue.q, state, work.now - keep.age_ms, keep.limit)
        if rows:
            yield from delete(work, [Head(*row) for row in rows])
    if keep.count is not None and queue.tally[state] > keep.count:
        rows = yield _OLDEST_ENDED, (queue.q, state, min(queue.tally[state] - keep.count, keep.limit))
        if rows:
            yield from delete(work, [Head(*row) for row in rows])


def _measure(work: Work, queue: Queue, ended: Sequence[int], minutes: int) -> Plan[None]:
    minute = work.now // 60_000
    for kind, number in enumerate(ended):
        if number:
            yield Many(
                "INSERT INTO wm_metric (q, kind, minute, num) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (q, kind, minute) DO UPDATE SET num = num + excluded.num",
                [(queue.q, kind, minute, number), (queue.q, kind, -1, number)],
            )
            yield (
                "DELETE FROM wm_metric WHERE q = ? AND kind = ? AND minute >= 0 AND minute < ?",
                (queue.q, kind, minute - minutes),
            )


# --- leases -----------------------------------------------------------------------------------------------------------


def renew(work: Work, name: str, held: Sequence[Held], lease_ms: int) -> Plan[RenewReply]:
    """Do what `Store.renew` says."""
    queue = yield from work.find(name)
    if queue is None:
        return RenewReply(tuple(one.id for one in held), ())
    heads = yield from heads_held(queue.q, held)
    lost: list[str] = []
    kept: list[Head] = []
    for one in held:
        head = heads.get(one.id)
        if head is None or not is_held(head, one, work.now):
            lost.append(one.id)
        else:
            kept.append(head)
    cancelled: list[str] = []
    if kept:
        yield Many(_RENEW, [(work.now + lease_ms, head.n) for head in kept])
        for piece in chunks([head.n for head in kept]):
            rows = yield f"SELECT id FROM wm_job WHERE cancel = 1 AND n IN ({marks(len(piece))})", padded(piece)
            cancelled += [id_ for (id_,) in rows]
    return RenewReply(tuple(lost), tuple(cancelled))


