# ruff: noqa: S608 - statements are put together from constants of this package and question marks alone
"""The consumer's calls: settle, make due jobs ready, claim, renew."""

import operator
from collections.abc import Sequence
from functools import cache
from typing import Final, assert_never

from workers_module.job.outcome import Completed, Failed, Keep, Outcome, Release, Retry, Snooze, WaitChildren
from workers_module.job.record import JobRecord, ParentRef
from workers_module.job.state import JobState
from workers_module.store.planning import earliest, leads_to, rate_of
from workers_module.store.sqlite import adding, flows
from workers_module.store.sqlite.rows import (
    PART_REASON,
    PART_RESULT,
    PART_TRACE,
    RECORD,
    RECORDS,
    SELECT_HEADS,
    Head,
    delete,
    delete_ended,
    delete_rows,
    fill,
    head_by_number,
    head_of,
    heads_by_id,
    records,
    spill,
    spill_text,
    text,
    update,
)
from workers_module.store.sqlite.work import (
    ACTIVE,
    ALL,
    BIG,
    COMPLETED,
    DELAYED,
    FAILED,
    FROM_ACTIVE,
    FROM_DELAYED,
    FROM_WAITING,
    MANUAL,
    PARKED,
    POLICIES,
    PRIORITIZED,
    READY,
    Many,
    Plan,
    Queue,
    Row,
    Rows,
    Statement,
    Work,
    chunks,
    marks,
    padded,
    with_ids,
)
from workers_module.store.values import Claimed, Held, RateLimit, RenewReply, Settle, SettleCode, Step, StepReply

# One statement for many rows where it can be: between two rows of `Many`, the writer's thread has to get hold of the
# interpreter again, which the jobs of the same process keep busy.
_CLAIM_COLUMNS: Final = "token = ?, lease = ?, lapsed = NULL, started = ?, worker = ?, fence = fence + 1"
_CLAIM: Final = f"UPDATE wm_job SET state = 3, {_CLAIM_COLUMNS}, seq = ? WHERE n = ?"
_CLAIM_IN_ORDER: Final = f"UPDATE wm_job SET state = 3, {_CLAIM_COLUMNS}, seq = seq + ? WHERE n IN"
_MOST_CASES: Final = 64
"""Rows a statement finds by comparing one after the other."""
_DUE: Final = "SELECT n, id, priority FROM wm_job WHERE q = ? AND state = 2 AND due <= ? ORDER BY due, seq LIMIT ?"
_MAKE_READY: Final = "UPDATE wm_job SET state = 1, seq = ?, due = NULL WHERE n = ?"
_NEXT_DUE: Final = "SELECT due FROM wm_job WHERE q = ? AND state = 2 ORDER BY due LIMIT 1"
_NEXT_READY: Final = (
    f"SELECT {RECORD}, seq FROM wm_job WHERE q = ? AND state = 1 AND tagset = ? ORDER BY priority, seq LIMIT ?"
)
_HELD: Final = f"SELECT {RECORD} FROM wm_job WHERE q = ? AND state = 3 AND token = ? ORDER BY seq"
# Without relatives, key, log or values outside its row: its end changes nothing else.
_PLAIN: Final = "state = 3 AND parent_queue IS NULL AND dedup IS NULL AND children = 0 AND big = 0 AND logged = 0"
_LOOK: Final = f"SELECT n, q, token, {_PLAIN}, id FROM wm_job WHERE"
_COUNT_PLAIN: Final = f"SELECT count(*) FROM wm_job WHERE {_PLAIN} AND q = ? AND token = ? AND n IN"
_RENEW: Final = "UPDATE wm_job SET lease = ?, lapsed = NULL WHERE n = ?"
# Written as the index has it, with literals, so that it is used.
_ENDED: Final = {
    COMPLETED: "FROM wm_job WHERE q = ? AND state = 4 AND state IN (4, 5)",
    FAILED: "FROM wm_job WHERE q = ? AND state = 5 AND state IN (4, 5)",
}
_OLDEST: Final = {state: f"{sql} ORDER BY ended, seq LIMIT ?" for state, sql in _ENDED.items()}
_OLD: Final = {state: f"{sql} AND ended <= ? ORDER BY ended, seq LIMIT ?" for state, sql in _ENDED.items()}

_COLUMNS: Final = [name.strip() for name in RECORD.split(",")]
DAMAGED: Final = "StoreCorruptError: the stored job has values it cannot have"

COMPLETED_KIND: Final = 0
FAILED_KIND: Final = 1
TOTAL, FIRST, KEPT = -1, -2, -3
"""What `wm_metric` holds besides the numbers of minutes."""


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
    jobs = (yield from _resume(work, queue, req)) if req.resume else []
    room = _room(queue, req, work.now, len(jobs))
    if room > 0:
        rows = yield from _ready_rows(work, queue, req.tags, room)
        rows = _within_rate(queue, req, rows, work.now)
        if rows:
            jobs += yield from _start(work, queue, req, rows)
    if settling.ended and not queue.ready and not queue.tally[ACTIVE] and not (req.take and queue.tally[DELAYED]):
        queue.events.append(("drained", None, None))
    freed = max(0, active_before - queue.tally[ACTIVE]) if queue.concurrency is not None else 0
    left = 0 if queue.paused else min(queue.ready, hinted + promoted + freed)
    if left:
        work.hints[queue.name] = ALL if queue.tagsets else left
    else:
        work.hints.pop(queue.name, None)
    wake_at = earliest((yield from next_due(queue)), _closed_until(queue, req, work.now) if queue.ready else None)
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


def _rate(queue: Queue, req: Step) -> RateLimit | None:
    own = None
    if queue.rate_max is not None and queue.rate_ms is not None:
        own = RateLimit(queue.rate_max, queue.rate_ms)
    return rate_of(own, req.rate)


def _closed_until(queue: Queue, req: Step, now: int) -> int | None:
    """Return the end of the rate window that keeps a step from claiming."""
    if queue.rate_until <= now:
        return None
    rate = _rate(queue, req)
    return queue.rate_until if queue.rate_used >= (MANUAL if rate is None else rate.max) else None


def _room(queue: Queue, req: Step, now: int, taken: int) -> int:
    """Return how many jobs may be claimed, as far as pause, concurrency and closed windows are concerned."""
    if queue.paused or not queue.ready or _closed_until(queue, req, now) is not None:
        return 0
    room = req.take - taken
    return room if queue.concurrency is None else min(room, queue.concurrency - queue.tally[ACTIVE])


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


def _within_rate(queue: Queue, req: Step, rows: Rows, now: int) -> Rows:
    """Cut the rows to what the window lets through. A job that will only be failed uses no start."""
    rate = _rate(queue, req)
    if queue.rate_until <= now:
        queue.rate_used = 0
    if rate is None:
        return rows
    for place, row in enumerate(rows):
        if queue.rate_used >= rate.max:
            return rows[:place]
        if row[24] is None:
            queue.rate_used += 1
            if queue.rate_used == 1:
                queue.rate_until = now + rate.window_ms
    return rows


def _start(work: Work, queue: Queue, req: Step, rows: Rows) -> Plan[list[Claimed]]:
    now, token, worker = work.now, req.token, req.worker
    lease = now + req.lease_ms
    fine = [row for row in rows if RECORDS.fits(row)]
    if len(fine) < len(rows):
        yield from _park_damaged(work, queue, [row for row in rows if not RECORDS.fits(row)])
        rows = fine
    yield from _take(queue, rows, (token, lease, now, worker))
    prioritized = sum(1 for row in rows if row[6] > 0)
    queue.tally[PRIORITIZED] -= prioritized
    queue.tally[READY] -= len(rows) - prioritized
    queue.tally[ACTIVE] += len(rows)
    if any(row[30] for row in rows):
        rows = yield from fill(rows)
    tagsets = yield from work.tagsets.of(queue.q, queue.tagsets)
    name, events = queue.name, queue.events
    jobs: list[Claimed] = []
    for row in rows:
        id_, fence = row[1], row[11] + 1
        parent = row[20]
        # By position, and past the keyword handling of the classes: two of these are made for each claim.
        record = tuple.__new__(
            JobRecord,
            (
                name,
                id_,
                row[2],
                JobState.ACTIVE,
                row[4],
                row[5],
                row[6],
                tagsets[row[7]],
                row[8],
                row[9],
                row[10],
                fence,
                row[12],
                None,
                now,
                None,
                row[16] == 1,
                "fail" if row[17] else "retry",
                False,
                worker,
                None if parent is None else ParentRef(parent, row[29]),
                POLICIES[row[21]],
                *row[22:29],
            ),
        )
        held = tuple.__new__(Held, (id_, token, fence, row[0]))
        jobs.append(tuple.__new__(Claimed, (record, held)))
        events.append(("active", id_, FROM_WAITING))
    return jobs


def _take(queue: Queue, rows: Rows, values: Row) -> Plan[None]:
    """Write that jobs are claimed, behind all that are active and in the order given."""
    places = [row[-1] for row in rows]
    first = queue.back + 1
    if rows and all(type(place) is int for place in places) and all(map(operator.lt, places, places[1:])):
        span = places[-1] - places[0] + 1
        # Over a gap the places would grow too fast.
        if span <= 2 * len(rows):
            queue.back += span
            for piece in chunks([row[0] for row in rows]):
                sql = f"{_CLAIM_IN_ORDER} ({marks(len(piece))})"
                yield sql, (*values, first - places[0], *padded(piece))
            return
    queue.back += len(rows)
    yield Many(_CLAIM, [(*values, seq, row[0]) for seq, row in enumerate(rows, first)])


def _park_damaged(work: Work, queue: Queue, rows: Rows) -> Plan[None]:
    """Fail jobs whose rows cannot be, with harmless values in them, so that the queue goes on."""
    for row in rows:
        harmless = RECORDS.repaired(row)
        queue.tally[PRIORITIZED if not isinstance(row[6], int) or row[6] > 0 else READY] -= 1
        queue.tally[FAILED] += 1
        columns = {
            name: harmless[place] for place, name in enumerate(_COLUMNS) if place and row[place] != harmless[place]
        }
        columns.update(state=FAILED, ended=work.now, seq=queue.behind(), reason=DAMAGED)
        yield from update(row[0], **columns)
        queue.events.append(("failed", harmless[1], {"failedReason": DAMAGED, "prev": "waiting"}))


# --- settling ---------------------------------------------------------------------------------------------------------


class Settling:
    """Settles the outcomes of one step, in order.

    The usual case, a job without relatives that completes, is gathered and written in one statement; everything else is
    written at once. That changes nothing for the others: such a job touches only itself.
    """

    __slots__ = ("_completed", "_gathered", "_keeps", "_metrics", "_queue", "_removed", "_work", "ended")

    def __init__(self, work: Work, queue: Queue, metrics: int) -> None:
        self._work = work
        self._queue = queue
        self._metrics = metrics
        self.ended = 0
        """How many jobs ended."""
        self._completed: list[Row] = []
        self._removed: list[int] = []
        self._gathered: set[int] = set()
        self._keeps: dict[tuple[int, Keep], None] = {}

    def run(self, outcomes: Sequence[Settle]) -> Plan[list[SettleCode]]:
        """Settle; a code for each outcome."""
        if not outcomes:
            return []
        holders = [held for held, _ in outcomes]
        found = yield from _plain_ones(self._queue.q, holders)
        if found is None:
            found = yield from _looks(self._queue.q, holders)
        queue = self._queue
        codes: list[SettleCode] = []
        ended = [0, 0]
        last: Keep | None = None
        alone = True
        gathered = self._gathered
        for held, outcome in outcomes:
            look = found.get(held.id)
            if look is None:
                codes.append(SettleCode.MISSING)
                continue
            n, _, token, plain = look
            if (
                plain
                and alone
                and type(outcome) is Completed
                and token == held.token
                and n not in gathered
                and len(outcome.result) <= BIG
            ):
                gathered.add(n)
                keep = outcome.keep
                if keep is not None and keep.count == 0:
                    self._removed.append(n)
                else:
                    self._completed.append((n, queue.behind(), outcome.result))
                    if keep is not last:
                        last = keep
                        self._keep(COMPLETED, keep)
                queue.events.append(("completed", held.id, _returned(outcome.result)))
                ended[COMPLETED_KIND] += 1
                codes.append(SettleCode.OK)
                continue
            yield from self._write()
            head = yield from head_by_number(n)
            if head is None:
                code = SettleCode.MISSING
            elif not is_held(head, held, self._work.now):
                code = _late(head, held, outcome)
            else:
                code = yield from self._settle(head, outcome)
            if code is SettleCode.OK:
                # From here on a look taken before may be stale: at this job, and at its relatives.
                alone = alone and bool(plain)
                gathered.add(n)
                if type(outcome) is Completed:
                    ended[COMPLETED_KIND] += 1
                elif type(outcome) is Failed:
                    ended[FAILED_KIND] += 1
            codes.append(code)
        yield from self._write()
        for state, keep in self._keeps:
            yield from retain(self._work, queue, state, keep)
        self.ended = sum(ended)
        if self._metrics > 0:
            yield from _measure(self._work, queue, ended, self._metrics)
        return codes

    def _write(self) -> Plan[None]:
        """Write what was gathered; all of it was active, and has nothing outside its row."""
        queue = self._queue
        if self._completed:
            for piece in chunks(self._completed, _MOST_CASES):
                yield _completion(piece, self._work.now)
            queue.tally[ACTIVE] -= len(self._completed)
            queue.tally[COMPLETED] += len(self._completed)
            self._completed = []
        if self._removed:
            yield from delete_rows(self._removed)
            queue.tally[ACTIVE] -= len(self._removed)
            self._removed = []

    def _keep(self, state: int, keep: Keep | None) -> None:
        if keep is not None and keep.count != 0:
            self._keeps[state, keep] = None

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
        if head.broken > 0:
            return SettleCode.CHILD_FAILED
        if head.pending > 0:
            return SettleCode.PENDING
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
        self._keep(COMPLETED, outcome.keep)
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
        self._keep(FAILED, outcome.keep)
        return SettleCode.OK

    def _retry(self, head: Head, outcome: Retry) -> Plan[None]:
        failure = yield from failure_values(head, text(outcome.reason), outcome.trace)
        yield from self._put_off(head, outcome.delay_ms, attempts=head.attempts + 1, **failure)

    def _put_off(self, head: Head, delay_ms: int, **values: object) -> Plan[None]:
        if delay_ms <= 0:
            seq = self._queue.ahead() if head.lifo and head.priority == 0 else self._queue.behind()
            yield from self._leave(head, READY, seq=seq, **values)
            self._queue.events.append(("waiting", head.id, FROM_ACTIVE))
            self._work.hint(self._queue, 1)
            return
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
                "SELECT 1 FROM wm_dep WHERE parent = ? AND state = 0 AND id = ?",
                (head.n, child),
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


@cache
def _complete(size: int) -> str:
    """Return the statement that completes so many jobs."""
    cases = " ".join(["WHEN ? THEN ?"] * size)
    return (
        f"UPDATE wm_job SET state = 4, ended = ?, seq = CASE n {cases} END, attempts = attempts + 1, token = NULL, "
        f"lease = NULL, lapsed = NULL, cancel = 0, result = CASE n {cases} END WHERE n IN ({marks(size)})"
    )


def _completion(jobs: Sequence[Row], now: int) -> Statement:
    """Complete jobs, given as number, place and result."""
    rows = padded(jobs)
    values: list[object] = [now]
    for n, seq, _ in rows:
        values += (n, seq)
    for n, _, result in rows:
        values += (n, result)
    values += [row[0] for row in rows]
    return _complete(len(rows)), values


def _plain_ones(q: int, held: Sequence[Held]) -> Plan[dict[str, Row] | None]:
    """Do what `_looks` does if all jobs are active, under the tokens given, and stand alone; else return None."""
    numbers: dict[str, set[int]] = {}
    for one in held:
        if one.handle is None:
            return None
        numbers.setdefault(one.token, set()).add(one.handle)
    for token, some in numbers.items():
        for piece in chunks(list(some)):
            rows = yield f"{_COUNT_PLAIN} ({marks(len(piece))})", (q, token, *padded(piece))
            if rows[0][0] != len(piece):
                return None
    return {one.id: (one.handle, q, one.token, 1) for one in held}


def _looks(q: int, held: Sequence[Held]) -> Plan[dict[str, Row]]:
    """Take a first look at the jobs a worker names: number, queue, token if active, and whether it stands alone."""
    found: dict[str, Row] = {}
    for piece in chunks([one.handle for one in held if one.handle is not None]):
        rows = yield f"{_LOOK} n IN ({marks(len(piece))})", padded(piece)
        for row in rows:
            if row[1] == q:
                found[row[4]] = row[:4]
    missing = [one.id for one in held if one.id not in found]
    for condition, values in with_ids(q, missing):
        rows = yield f"{_LOOK} {condition}", values
        for row in rows:
            found[row[4]] = row[:4]
    return found


def heads_held(q: int, held: Sequence[Held]) -> Plan[dict[str, Head]]:
    """Read the jobs a worker names, by number where it has one."""
    found: dict[str, Head] = {}
    handles = [one.handle for one in held if one.handle is not None]
    for piece in chunks(handles):
        rows = yield f"{SELECT_HEADS} WHERE n IN ({marks(len(piece))})", padded(piece)
        for row in rows:
            if row[1] == q:
                found[row[2]] = head_of(row)
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
    return SettleCode.ALREADY if leads_to(outcome, head.shown_state) else SettleCode.LEASE_LOST


def _returned(result: bytes) -> dict[str, str]:
    return {"returnvalue": result.decode("utf-8", "surrogateescape"), "prev": "active"}


def retain(work: Work, queue: Queue, state: int, keep: Keep) -> Plan[None]:
    """Delete the oldest ended jobs that are too many or too old; no events, and deduplication keys stay."""
    left = keep.limit
    if keep.count is not None and queue.tally[state] > keep.count:
        too_many = min(queue.tally[state] - keep.count, left)
        left -= yield from delete_ended(queue, state, _OLDEST[state], (queue.q, too_many))
    if keep.age_ms is not None and left > 0:
        yield from expire(work, queue, state, keep.age_ms, left)


def expire(work: Work, queue: Queue, state: int, age_ms: int, limit: int) -> Plan[int]:
    """Delete the oldest jobs that ended so long ago; how many."""
    return (yield from delete_ended(queue, state, _OLD[state], (queue.q, work.now - age_ms, limit)))


_COUNT: Final = (
    "INSERT INTO wm_metric (q, kind, minute, num) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (q, kind, minute) DO UPDATE SET num = num + excluded.num"
)
_FORGET_MINUTES: Final = "DELETE FROM wm_metric WHERE q = ? AND kind = ? AND minute >= 0 AND minute < ?"


def _measure(work: Work, queue: Queue, ended: Sequence[int], minutes: int) -> Plan[None]:
    minute = work.now // 60_000
    for kind, number in enumerate(ended):
        if number:
            yield Many(_COUNT, [(queue.q, kind, minute, number), (queue.q, kind, TOTAL, number)])
            yield (
                "INSERT OR IGNORE INTO wm_metric (q, kind, minute, num) VALUES (?, ?, ?, ?)",
                (queue.q, kind, FIRST, minute),
            )
            yield (
                "INSERT OR REPLACE INTO wm_metric (q, kind, minute, num) VALUES (?, ?, ?, ?)",
                (queue.q, kind, KEPT, minutes),
            )
            yield _FORGET_MINUTES, (queue.q, kind, minute - minutes)


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
