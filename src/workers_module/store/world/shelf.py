"""Where the jobs of one queue lie in memory: a collection per state, and the queue's settings and events beside them.

Nothing here decides. A job that leaves a heap stays there as a dead entry until it comes to the top or the heap is
rebuilt: an entry is alive while the job still has its number.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Final, TypeAlias

from workers_module.job.events import Event, EventType
from workers_module.job.record import ChildPolicy, JobRecord, OnCrash, ParentRef, Token
from workers_module.job.state import JobState
from workers_module.store.planning import rate_of, ready_state, wants
from workers_module.store.values import MAX_EVENTS, Counts, Held, JobSpec, Problem, RateLimit, Step
from workers_module.store.world.tally import Tally
from workers_module.store.world.ties import Chain, Deps, Key

Raw: TypeAlias = tuple[str, str | None, Mapping[str, str] | bytes | str | int | None]
"""An event before somebody reads it: type, job id, and what its fields are made of."""

MANUAL: Final = 2**53 - 1
"""So many starts are never allowed: a rate window counted as this full is a limit set by hand."""

FROM_ACTIVE: Final = {"prev": "active"}
FROM_CHILDREN: Final = {"prev": "waiting-children"}
FROM_DELAYED: Final = {"prev": "delayed"}
FROM_WAITING: Final = {"prev": "waiting"}

_COMPLETED: Final = JobState.COMPLETED
_SPARE: Final = 64
"""So many dead entries of a heap are not worth a look."""


class Job:
    """A job; `JobRecord` says what most of this means.

    Attributes:
        shelf: The queue it lies in.
        delay_ms: How long a parent waits after its children.
        number: Its place among the ready or delayed jobs; 0 while it is neither.
        token: Who runs it; None unless active.
        lease: When its lease ends; 0 unless active.
        lapsed: When a sweep first found the lease run out.
        deps: Its children, once it has some.
        log: Its lines, oldest first.
    """

    __slots__ = (
        "added",
        "attempts",
        "cancelled",
        "crashes",
        "data",
        "dedup",
        "deferred",
        "delay_ms",
        "deps",
        "due",
        "fence",
        "finished",
        "id",
        "lapsed",
        "lease",
        "lifo",
        "log",
        "max_attempts",
        "name",
        "number",
        "on_crash",
        "opts",
        "parent",
        "policy",
        "priority",
        "progress",
        "reason",
        "result",
        "schedule",
        "shelf",
        "started",
        "state",
        "tags",
        "token",
        "trace",
        "worker",
    )

    def __init__(self, shelf: "Shelf", id: str, spec: JobSpec, now: int) -> None:
        self.shelf = shelf
        self.id = id
        self.name = spec.name
        self.state = JobState.WAITING
        self.data = spec.data
        self.opts = spec.opts
        self.priority = spec.priority
        self.tags = spec.tags
        self.attempts = 0
        self.max_attempts = spec.max_attempts
        self.crashes = 0
        self.fence = 0
        self.added = now if spec.timestamp is None else spec.timestamp
        self.due: int | None = None
        self.started: int | None = None
        self.finished: int | None = None
        self.lifo = spec.lifo
        self.on_crash: OnCrash = spec.on_crash
        self.cancelled = False
        self.worker: str | None = None
        self.parent: ParentRef | None = None
        self.policy: ChildPolicy = spec.policy
        self.schedule = spec.schedule
        self.dedup = None if spec.dedup is None else spec.dedup.key
        self.deferred: str | None = None
        self.progress: bytes | None = None
        self.reason: str | None = None
        self.trace: bytes | None = None
        self.result: bytes | None = None
        self.delay_ms = 0
        self.number = 0
        self.token: Token | None = None
        self.lease = 0
        self.lapsed: int | None = None
        self.deps: Deps | None = None
        self.log: list[str] | None = None

    @property
    def ref(self) -> ParentRef:
        """What its children and its parent call it."""
        return ParentRef(self.shelf.name, self.id)

    def held_by(self, held: Held, now: int) -> bool:
        """Return whether the active job is in the run that ``held`` names."""
        return self.token == held.token or (self.fence == held.fence and self.lease <= now)

    @property
    def touched(self) -> int:
        """When something last happened to it, as far as its age is concerned."""
        return self.finished or self.started or self.added

    def record(self, *, payload: bool = True) -> JobRecord:
        """Return the job as it is now."""
        # One per claim: built without the keyword handling of the class, which costs more than all the rest.
        return tuple.__new__(
            JobRecord,
            (
                self.shelf.name,
                self.id,
                self.name,
                self.state,
                self.data if payload else b"",
                self.opts,
                self.priority,
                self.tags,
                self.attempts,
                self.max_attempts,
                self.crashes,
                self.fence,
                self.added,
                self.due,
                self.started,
                self.finished,
                self.lifo,
                self.on_crash,
                self.cancelled,
                self.worker,
                self.parent,
                self.policy,
                self.schedule,
                self.dedup,
                self.deferred,
                self.progress,
                self.reason,
                self.trace,
                self.result,
            ),
        )


class Ready:
    """The jobs with one set of tags that may be claimed: those without a priority first, then the heap."""

    __slots__ = ("heap", "prioritized", "tags", "waiting")

    def __init__(self, tags: tuple[str, ...]) -> None:
        self.tags = tags
        self.waiting: OrderedDict[str, Job] = OrderedDict()
        self.heap: list[tuple[int, int, Job]] = []
        self.prioritized = 0

    def __len__(self) -> int:
        return len(self.waiting) + self.prioritized

    def first(self) -> Job | None:
        """Return the job to be claimed next."""
        if self.waiting:
            return next(iter(self.waiting.values()))
        while self.heap:
            _, number, job = self.heap[0]
            if job.number == number:
                return job
            heappop(self.heap)
        return None

    def take(self) -> Job | None:
        """Take the job to be claimed next out of here."""
        if self.waiting:
            return self.waiting.popitem(last=False)[1]
        while self.heap:
            _, number, job = heappop(self.heap)
            if job.number == number:
                self.prioritized -= 1
                return job
        return None

    def in_order(self, state: JobState) -> list[Job]:
        """Return the waiting or the prioritized jobs in the order of claiming."""
        if state is JobState.WAITING:
            return list(self.waiting.values())
        return [job for _, number, job in sorted(self.heap) if job.number == number]


class Shelf:
    """One queue.

    Attributes:
        jobs: All of its jobs by id.
        parked: The jobs in ``waiting-children``.
        fresh: Events of the call under way; `flush` appends them.
        written: How many events there ever were.
        epoch: Tells this queue from an earlier one of the same name.
        rate_used: Starts in the rate window that ends at ``rate_until``.
        swept: When a sweep last did something.
        completions: How many jobs were completed, where that is counted; ``failures`` likewise.
    """

    __slots__ = (
        "_back",
        "_front",
        "_last_end",
        "_last_id",
        "_matches",
        "_touched",
        "_unsorted",
        "active",
        "completed",
        "completions",
        "concurrency",
        "dedup",
        "delayed",
        "delays",
        "epoch",
        "events",
        "failed",
        "failures",
        "fresh",
        "jobs",
        "listed",
        "name",
        "parked",
        "paused",
        "rate",
        "rate_until",
        "rate_used",
        "schedules",
        "swept",
        "tagged",
        "untagged",
        "written",
    )

    def __init__(self, name: str, epoch: int, touched: "dict[Shelf, None]") -> None:
        self.name = name
        self.epoch = epoch
        self.listed = False
        self.jobs: dict[str, Job] = {}
        self.untagged = Ready(())
        self.tagged: dict[tuple[str, ...], Ready] = {}
        self.delays: list[tuple[int, int, Job]] = []
        self.delayed = 0
        self.active: dict[str, Job] = {}
        self.completed: OrderedDict[str, Job] = OrderedDict()
        self.failed: OrderedDict[str, Job] = OrderedDict()
        self.parked: dict[str, Job] = {}
        self.dedup: dict[str, Key] = {}
        self.schedules: dict[str, Chain] = {}
        self.paused = False
        self.concurrency: int | None = None
        self.rate: RateLimit | None = None
        self.rate_used = 0
        self.rate_until = 0
        self.swept: int | None = None
        self.completions = Tally()
        self.failures = Tally()
        self.events: deque[Raw] = deque(maxlen=MAX_EVENTS)
        self.fresh: list[Raw] = []
        self.written = 0
        self._touched = touched
        self._matches: dict[tuple[str, ...], list[Ready]] = {}
        self._back = 0
        self._front = 0
        self._last_id = 0
        self._last_end = 0
        self._unsorted = False

    # placing

    def next_id(self) -> str:
        """Return an id nobody has."""
        while True:
            self._last_id += 1
            if (id := str(self._last_id)) not in self.jobs:
                return id

    def put_behind(self, job: Job) -> None:
        """Make a job ready, behind the others of its priority."""
        self._back += 1
        self._put_ready(job, self._back)

    def put_in_front(self, job: Job) -> None:
        """Make a job ready, in front of the others of its priority."""
        self._front -= 1
        self._put_ready(job, self._front)
        if job.state is JobState.WAITING:
            self.ready(job.tags).waiting.move_to_end(job.id, last=False)

    def _put_ready(self, job: Job, number: int) -> None:
        self._touched[self] = None
        job.number = number
        job.due = None
        job.delay_ms = 0
        ready = self.ready(job.tags)
        if job.priority > 0:
            job.state = JobState.PRIORITIZED
            ready.prioritized += 1
            heappush(ready.heap, (job.priority, number, job))
        else:
            job.state = JobState.WAITING
            ready.waiting[job.id] = job

    def put_delayed(self, job: Job, due: int) -> None:
        """Let a job wait for an instant."""
        self._touched[self] = None
        self._back += 1
        job.state = JobState.DELAYED
        job.number = self._back
        job.due = due
        self.delayed += 1
        heappush(self.delays, (due, self._back, job))

    def park(self, job: Job) -> None:
        """Let a job wait for its children."""
        job.state = JobState.WAITING_CHILDREN
        self.parked[job.id] = job

    def end(self, job: Job, state: JobState, now: int) -> None:
        """Put a job to those that ended."""
        job.state = state
        job.finished = now
        if now < self._last_end:
            self._unsorted = True
        self._last_end = now
        (self.completed if state is _COMPLETED else self.failed)[job.id] = job

    def leave(self, job: Job) -> None:
        """Take a job out of the collection it lies in."""
        id = job.id
        match job.state:
            case JobState.WAITING:
                del self.ready(job.tags).waiting[id]
            case JobState.PRIORITIZED:
                ready = self.ready(job.tags)
                ready.prioritized -= 1
                job.number = 0
                if len(ready.heap) > 2 * ready.prioritized + _SPARE:
                    ready.heap = [entry for entry in ready.heap if entry[2].number == entry[1]]
                    heapify(ready.heap)
            case JobState.DELAYED:
                self.delayed -= 1
                job.number = 0
                job.due = None
                if len(self.delays) > 2 * self.delayed + _SPARE:
                    self.delays = [entry for entry in self.delays if entry[2].number == entry[1]]
                    heapify(self.delays)
            case JobState.ACTIVE:
                self.stop(job)
            case JobState.COMPLETED:
                del self.completed[id]
            case JobState.FAILED:
                del self.failed[id]
            case JobState.WAITING_CHILDREN:
                del self.parked[id]
        job.number = 0

    def stop(self, job: Job) -> None:
        """Take an active job out of its collection, and its lease from it."""
        del self.active[job.id]
        job.token = None
        job.lease = 0
        job.lapsed = None
        job.cancelled = False

    def forget(self, job: Job) -> None:
        """Delete a job that lies in no collection (any more)."""
        del self.jobs[job.id]

    def promote_due(self, now: int, most: int) -> None:
        """Make delayed jobs ready whose time has come."""
        while most > 0 and (job := self.next_delayed()) is not None and (job.due or 0) <= now:
            most -= 1
            self.leave(job)
            self.put_behind(job)
            self.emit(EventType.WAITING, job.id, FROM_DELAYED)

    # finding

    def ready(self, tags: tuple[str, ...]) -> Ready:
        """Return where jobs with exactly these tags wait."""
        if not tags:
            return self.untagged
        ready = self.tagged.get(tags)
        if ready is None:
            ready = self.tagged[tags] = Ready(tags)
            self._matches.clear()
        return ready

    def matching(self, wanted: tuple[str, ...]) -> list[Ready]:
        """Return where the jobs wait that a worker started with these tags takes."""
        found = self._matches.get(wanted)
        if found is None:
            every = (self.untagged, *self.tagged.values())
            found = self._matches[wanted] = [ready for ready in every if wants(wanted, ready.tags)]
        return found

    def tidy_tags(self) -> None:
        """Forget sets of tags that no ready job has."""
        if gone := [tags for tags, ready in self.tagged.items() if not len(ready)]:
            for tags in gone:
                del self.tagged[tags]
            self._matches.clear()

    def next_delayed(self) -> Job | None:
        """Return the delayed job that is due first."""
        while self.delays:
            _, number, job = self.delays[0]
            if job.number == number:
                return job
            heappop(self.delays)
        return None

    def next_due(self) -> int | None:
        """Return when the next delayed job is due."""
        job = self.next_delayed() if self.delayed else None
        return None if job is None else job.due

    @property
    def claimable(self) -> int:
        """How many jobs are ready."""
        return self.count(JobState.WAITING) + self.count(JobState.PRIORITIZED)

    def room(self, req: Step, now: int, taken: int = 0) -> int:
        """Return how many jobs a step may still claim, as far as pause and limits are concerned."""
        if self.paused or self.closed_until(req, now) is not None:
            return 0
        room = req.take - taken
        return room if self.concurrency is None else min(room, self.concurrency - len(self.active))

    def closed_until(self, req: Step, now: int) -> int | None:
        """Return the end of the rate window, if that keeps a step from claiming."""
        if self.rate_until <= now:
            return None
        rate = rate_of(self.rate, req.rate)
        return self.rate_until if self.rate_used >= (MANUAL if rate is None else rate.max) else None

    def ended(self, state: JobState) -> OrderedDict[str, Job]:
        """Return the completed or the failed jobs."""
        return self.completed if state is JobState.COMPLETED else self.failed

    def ended_in_order(self, state: JobState) -> OrderedDict[str, Job]:
        """Return the completed or the failed jobs, sorted by their end."""
        if self._unsorted:
            self.completed = _by_end(self.completed)
            self.failed = _by_end(self.failed)
            self._unsorted = False
        return self.ended(state)

    def count(self, state: JobState) -> int:
        """Return how many jobs are in a state."""
        match state:
            case JobState.WAITING:
                return len(self.untagged.waiting) + sum(len(ready.waiting) for ready in self.tagged.values())
            case JobState.PRIORITIZED:
                return self.untagged.prioritized + sum(ready.prioritized for ready in self.tagged.values())
            case JobState.DELAYED:
                return self.delayed
            case JobState.ACTIVE:
                return len(self.active)
            case JobState.COMPLETED | JobState.FAILED:
                return len(self.ended(state))
            case JobState.WAITING_CHILDREN:
                return len(self.parked)

    def counts(self) -> Counts:
        """Count the jobs by state."""
        return Counts(
            queue=self.name,
            waiting=self.count(JobState.WAITING),
            prioritized=self.count(JobState.PRIORITIZED),
            delayed=self.delayed,
            active=len(self.active),
            completed=len(self.completed),
            failed=len(self.failed),
            waiting_children=len(self.parked),
            paused=self.paused,
        )

    def in_order(self, state: JobState, *, newest_first: bool = False) -> Iterator[Job]:
        """Go through the jobs in a state; `Store.page` says in which order."""
        match state:
            case JobState.WAITING | JobState.PRIORITIZED:
                every = [self.untagged, *(self.tagged[tags] for tags in sorted(self.tagged))]
                jobs = [job for ready in every for job in ready.in_order(state)]
                return reversed(jobs) if newest_first else iter(jobs)
            case JobState.DELAYED:
                jobs = [job for _, number, job in sorted(self.delays) if job.number == number]
                return reversed(jobs) if newest_first else iter(jobs)
            case JobState.ACTIVE:
                found = self.active
            case JobState.COMPLETED | JobState.FAILED:
                found = self.ended_in_order(state)
            case JobState.WAITING_CHILDREN:
                found = self.parked
        return reversed(found.values()) if newest_first else iter(found.values())

    # events

    def emit(
        self, kind: str, id: str | None = None, extra: Mapping[str, str] | bytes | str | int | None = None
    ) -> None:
        """Note an event; `unfold` says what ``extra`` means."""
        self._touched[self] = None
        self.fresh.append((kind, id, extra))

    def flush(self) -> bool:
        """Append the events of the call that is over; whether there were any."""
        if not self.fresh:
            return False
        self.events.extend(self.fresh)
        self.written += len(self.fresh)
        self.fresh.clear()
        return True

    def read(self, after: int, limit: int) -> tuple[list[Event], int]:
        """Return events behind a number, and the number of the last one."""
        oldest = self.written - len(self.events)
        lost = after < oldest or after > self.written
        start = 0 if lost else after - oldest
        stop = min(start + limit, len(self.events))
        found = [Event(EventType.GAP)] if lost else []
        found.extend(unfold(raw) for raw in islice(self.events, start, stop))
        return found, oldest + stop

    def keep_events(self, cap: int) -> None:
        """Keep so many events from now on."""
        self.events = deque(self.events, maxlen=cap)

    # the truth

    def problems(self) -> Iterator[Problem]:
        """Check this queue's collections and counters against its jobs."""
        places: dict[str, list[JobState]] = {id: [] for id in self.jobs}
        for state in JobState:
            listed = list(self.in_order(state))
            if len(listed) != self.count(state):
                yield Problem(
                    "I5", None, f"{self.count(state)} jobs are counted as {state}, and {len(listed)} are there"
                )
            for job in listed:
                if self.jobs.get(job.id) is not job:
                    yield Problem("I1", job.id, f"is listed as {state} but is not there")
                else:
                    places[job.id].append(state)
        for id, states in places.items():
            if states != [self.jobs[id].state]:
                listed_as = ", ".join(states) or "nothing"
                yield Problem("I1", id, f"is {self.jobs[id].state} and listed as {listed_as}")
        for job in self.jobs.values():
            yield from self._job_problems(job)
        for key, entry in self.dedup.items():
            if entry.until is None and entry.owner not in self.jobs:
                yield Problem("I7", None, f"deduplication key {key!r} belongs to job {entry.owner}, which is gone")

    def _job_problems(self, job: Job) -> Iterator[Problem]:
        active = job.state is JobState.ACTIVE
        if active and (job.token is None or job.lease <= 0):
            yield Problem("I2", job.id, "is active without a lease")
        if not active and (job.token is not None or job.lease):
            yield Problem("I4" if job.state.ended else "I3", job.id, f"is {job.state} and has a lease")
        if job.state.ended is (job.finished is None):
            yield Problem("I4", job.id, f"is {job.state} and its end is {job.finished}")
        if (job.state is JobState.DELAYED) is (job.due is None):
            yield Problem("I1", job.id, f"is {job.state} and due at {job.due}")
        if job.state in {JobState.WAITING, JobState.PRIORITIZED} and job.state is not ready_state(job.priority):
            yield Problem("I1", job.id, f"is {job.state} with priority {job.priority}")
        if job.deps is not None:
            pending = sum(child.state == "pending" for child in job.deps.children.values())
            if pending != job.deps.pending:
                yield Problem("I5", job.id, f"waits for {pending} children and counts {job.deps.pending}")


def unfold(raw: Raw) -> Event:
    """Return an event as readers see it; its fields are made only now, because most events are never read."""
    kind, id, extra = raw
    match extra:
        case None:
            return Event(kind, id)
        case str():
            return Event(kind, id, {"name": extra})
        case int():
            return Event(kind, id, {"delay" if kind == EventType.DELAYED else "attemptsMade": str(extra)})
        case bytes():
            text = extra.decode("utf-8", "replace")
            if kind == EventType.PROGRESS:
                return Event(kind, id, {"data": text})
            return Event(kind, id, {"returnvalue": text, "prev": "active"})
        case _:
            return Event(kind, id, extra)


def _by_end(jobs: OrderedDict[str, Job]) -> OrderedDict[str, Job]:
    return OrderedDict(sorted(jobs.items(), key=lambda item: item[1].finished or 0))
