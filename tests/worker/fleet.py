"""A simulated fleet: the processes of one application on one store, which come and go while a clock runs on.

The application is an ordinary one; each process has a container, a store client and a clock of its own. It works in the
test's task, step by step, so that chance and the clock are the test's. What it should have run says
`tests.job.oracle`, which looks at a clock on the wall minute by minute and shares no code with us.
"""

import random
from collections import Counter
from datetime import timedelta
from typing import Any, Literal, cast

import anyio
from anyio.lowlevel import checkpoint
from dishka import AsyncContainer, FromDishka, Provider, Scope, ValidationSettings, make_async_container

from tests.job.oracle import watch
from tests.store.conftest import Opener
from tests.worker.loops import HOUR, MINUTE
from workers_module import FrozenClock, Job, WorkersModule, WorkersSettings, cron, interval, job
from workers_module.clock import Clock
from workers_module.job.record import JobRecord
from workers_module.job.schedule import LATE_MS, CatchUp
from workers_module.job.state import JobState
from workers_module.launch import Launcher
from workers_module.settings import WorkerMode
from workers_module.store.base import Store
from workers_module.store.values import Step, StepReply, Sweep
from workers_module.worker.stepper import Stepper
from workers_module.worker.sweeper import Sweeper

PROCESSES = 8
PATTERNS = [
    "30 2 * * *",
    "15 2 * * *",
    "0 0 * * *",
    "0 2,3 * * *",
    "*/20 2 * * *",
    "0 */6 * * *",
    "*/15 1-3 * * 6,0",
    "30 1 * * 0L",
    "0 12 L * *",
    "30 2 29 2 *",
    "45 2 * * 0#2",
    "10 0-4 * apr,sep-nov sun-tue",
]
DISTANCES = {"kept": 433 * MINUTE, "removed": 1_001 * MINUTE, "plain": 97 * MINUTE}
LOCAL = ("30 2 * * 0", "Europe/Berlin")
"""What fires in each process; on the Sundays on which the clocks are changed too."""
CATCH_UP: tuple[CatchUp, ...] = ("latest", "all", "none")
OVERLAP: tuple[Literal["allow", "skip"], ...] = ("allow", "allow", "allow", "skip")
LEASE = 30_000
"""The default of settings, of leases and sweeps alike."""

Slot = tuple[str, int]
"""A schedule's name, and an instant in milliseconds."""


class Killed(BaseException):
    """The process ends here, as by kill -9."""


class Life:
    """A process from its start to its end, and what it has run."""

    def __init__(
        self, store: Store, server: FrozenClock, *, chance: random.Random | None = None, skew: int = 0
    ) -> None:
        self.server = server
        self.clock = FrozenClock(server.now_ms() + skew)
        self.skew = skew
        self.wire = Wire(store, chance or random.Random())
        self.ran: list[tuple[Slot, int]] = []
        self.local: list[int] = []
        self.began = self.latest = 0
        self.failed: list[str] = []
        self.container: AsyncContainer | None = None
        self.stepper: Stepper | None = None

    def note(self, slot: Slot) -> None:
        """Note that the job of a slot runs here."""
        self.wire.has_run = True
        self.ran.append((slot, self.server.now_ms()))

    def fail(self, record: JobRecord, error: BaseException) -> None:
        self.failed.append(f"{record.id}: {error!r}")

    async def start(self, root: WorkersModule) -> None:
        """Start as a worker process does: schedules are written and caught up with before the first claim."""
        self.container = container_of(self, root)
        self.stepper = await (await self.container.get(Launcher)).stepper(self.fail)
        await self.stepper.begin()
        self.began = self.latest = self.clock.now_ms()

    async def work(self, *, sweeps: bool) -> None:
        """Run what is due, and sweep if it is this one's turn."""
        assert self.stepper is not None
        self.latest = max(self.latest, self.clock.now_ms())
        await self.stepper.run_due()
        if sweeps:
            ticker, wire = self.stepper._ticker, cast("Any", self.wire)
            sweeper = Sweeper(
                wire,
                ticker.queues,
                hooks=self.stepper._hooks,
                ticker=ticker,
                interval_ms=LEASE,
                lease_ms=LEASE,
                max_crashes=3,
                completed_age_ms=HOUR,
                failed_age_ms=None,
            )
            for queue in ticker.queues:
                await sweeper.sweep(Sweep(queue=queue, interval_ms=LEASE, completed_age_ms=HOUR))

    @property
    def wake_at(self) -> int | None:
        """When the store's clock shows that something is due here."""
        assert self.stepper is not None
        ticks = self.stepper._ticks
        local = None if ticks is None or ticks.wake_at is None else ticks.wake_at - self.skew
        return min((at for at in (self.stepper._wake_at, local) if at is not None), default=None)

    async def end(self) -> None:
        if self.container is not None:
            await self.container.close()
        await self.wire.store.close()


class Wire:
    """A process' way to the store: others may get ahead at each call, and at one of them the process may be killed.

    Attributes:
        calls_left: The call at which the process is killed, before or after it is carried out; None lets it live.
        claimed: The slot whose job was claimed last.
        holds: Whether that job is not settled yet.
        has_run: Whether its handler has run.
    """

    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.calls_left: int | None = None
        self.claimed: Slot = ("", 0)
        self.holds = self.has_run = False
        self._is_dead = False
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.store, name)
        if name not in {"step", "schedule", "schedules", "sweep", "lease", "queues", "now"}:
            return real

        async def call(*args: Any, **kwargs: Any) -> Any:
            for _ in range(self._chance.randrange(3)):
                await checkpoint()
            if self.calls_left is not None:
                self.calls_left -= 1
            strikes = self.calls_left == 0
            if self._is_dead or (strikes and self._chance.random() < 0.5):
                self._is_dead = True
                raise Killed
            reply = await real(*args, **kwargs)
            if name == "step":
                self._note(args[0], reply)
            if strikes:
                self._is_dead = True
                raise Killed
            return reply

        return call

    def _note(self, request: Step, reply: StepReply) -> None:
        if request.outcomes:
            self.holds = self.has_run = False
        for claimed in reply.jobs:
            self.claimed, self.holds = slot_of(claimed.record.id), True


class Environment(Provider):
    """What differs between the processes of one application."""

    def __init__(self, life: Life) -> None:
        super().__init__(scope=Scope.APP)
        self.provide(lambda: life, provides=Life)
        self.provide(lambda: life.clock, provides=Clock, override=True)
        self.provide(lambda: life.wire, provides=Store, override=True)


def container_of(life: Life, root: WorkersModule) -> AsyncContainer:
    """Return the container of one process of the application."""
    checks = ValidationSettings(nothing_overridden=True)
    return make_async_container(root, Environment(life), validation_settings=checks)


class Plain:
    """A schedule on a plain method: its ticks are jobs too."""

    @interval(timedelta(milliseconds=DISTANCES["plain"]), name="plain")
    async def tick(self, life: FromDishka[Life]) -> None:
        # A plain method is not told its job; what the process has claimed last is it.
        life.note(life.wire.claimed)


def application(zones: list[str], *, plain: bool = True) -> WorkersModule:
    """Return an application that declares each pattern in each zone, some distances, and a schedule of each process."""

    @interval(timedelta(milliseconds=DISTANCES["kept"]), name="kept")
    @job("kept", queue="kept")
    async def kept(job: Job[None], life: FromDishka[Life]) -> None:
        life.note(slot_of(job.id))

    @interval(timedelta(milliseconds=DISTANCES["removed"]), name="removed")
    @job("removed", queue="removed", options={"remove_on_complete": True})
    async def removed(job: Job[None], life: FromDishka[Life]) -> None:
        life.note(slot_of(job.id))

    @cron(LOCAL[0], tz=LOCAL[1], every_instance=True)
    async def local(life: FromDishka[Life]) -> None:
        life.local.append(life.clock.now_ms())

    for number, (zone, pattern) in enumerate((zone, pattern) for zone in zones for pattern in PATTERNS):
        declare = cron(
            pattern,
            name=schedule_name(zone, pattern),
            tz=zone,
            catch_up=CATCH_UP[number % len(CATCH_UP)],
            overlap=OVERLAP[number % len(OVERLAP)],
        )
        declare(kept if number % 2 else removed)
    settings = WorkersSettings(mode=WorkerMode.BACKGROUND_ASYNC)
    return WorkersModule.for_root(settings, processors=[kept, removed, local, *([Plain] if plain else [])])


def slot_of(job_id: str) -> Slot:
    schedule, slot = job_id.removeprefix("repeat:").rsplit(":", 1)
    return schedule, int(slot)


def schedule_name(zone: str, pattern: str) -> str:
    return f"{zone.replace('/', '.')}-{PATTERNS.index(pattern)}"


def expected_slots(zones: list[str], begin: int, end: int, *, plain: bool = True) -> set[Slot]:
    """Return every slot later than ``begin``, up to ``end``, as an independent observer notes it."""
    slots = {
        (schedule_name(zone, pattern), second * 1_000)
        for zone in zones
        for pattern, seconds in watch(PATTERNS, zone, begin // 1_000, end // 1_000).items()
        for second in seconds
    }
    slots |= {(name, at) for name, every in DISTANCES.items() for at in range(begin + every, end + 1, every)}
    return {(name, at) for name, at in slots if at > begin and (plain or name != "plain")}


class Fleet:
    """Eight processes on one store, that come and go while a simulated clock runs from event to event."""

    def __init__(self, opener: Opener, zones: list[str], begin: int, *, seed: int, unrest: float) -> None:
        self.server = FrozenClock(begin)
        self.chance = random.Random(seed)
        self.root = application(zones)
        self.names = {*DISTANCES, *(schedule_name(zone, pattern) for zone in zones for pattern in PATTERNS)}
        self.lives: list[Life] = []
        self.alive: dict[int, Life] = {}
        self.back_at = dict.fromkeys(range(PROCESSES), begin)
        self.skews = [0, *(self.chance.randrange(-90_000, 90_001) for _ in range(PROCESSES - 1))]
        self.struck: Counter[Slot] = Counter()
        self.repeats: Counter[Slot] = Counter()
        self.latest = begin
        self.rounds = self.kills = self.stops = self.jumps = 0
        self.passed_over = 0
        self.unrest = unrest
        self.recover_at: int | None = None
        self._opener = opener
        self._looker = opener(self.server)

    def __repr__(self) -> str:
        return (
            f"{self.rounds} rounds, {sum(len(life.ran) for life in self.lives)} runs in {len(self.lives)} processes; "
            f"{self.kills} killed, {len(self.struck)} of them with a job, {self.repeats.total()} after its run; "
            f"{self.stops} stopped, the clock set back {self.jumps} times"
        )

    async def run(self, end: int) -> None:
        """Let the clock run up to an instant, and then until nothing is abandoned."""
        await self._looker.open()
        await self._round(self.server.now_ms())
        while (at := self._next_event()) <= end:
            if self.recover_at is None and self.chance.random() < self.unrest / 5:
                # As by a wrong hand at the server's clock.
                self.jumps += 1
                self._set_clock(self.server.now_ms() - HOUR)
                await self._round(self.server.now_ms())
                continue
            late = self.chance.choice((0, 0, 0, 1, LATE_MS - 100))
            await self._round(min(at + late, end))
        for life in self.alive.values():
            life.wire.calls_left = None
        while self.recover_at is not None:
            assert self.recover_at < end + 2 * HOUR, "a job is never taken back"
            await self._round(self.recover_at)

    def _next_event(self) -> int:
        times = [life.wake_at for life in self.alive.values()]
        at = min(at for at in (*times, self.recover_at) if at is not None)
        now = self.server.now_ms()
        # Postgres passes over what another process is just claiming, and tells it as due all the same.
        self.passed_over = self.passed_over + 1 if at <= now else 0
        assert self.passed_over < 20, "something is due, and nobody has run it"
        return max(at, now + 1)

    def _set_clock(self, now: int) -> None:
        self.server.set(now)
        self.latest = max(self.latest, now)
        for life in self.alive.values():
            life.clock.set(now + life.skew)

    async def _round(self, now: int) -> None:
        """Let all processes work at one moment, in an order that chance makes."""
        self.rounds += 1
        await self._come_and_go()
        self._set_clock(now)
        workers = list(self.alive.items())
        self.chance.shuffle(workers)
        sweeper = self.chance.choice(workers)[0] if self.recover_at or self.chance.random() < 0.2 else None
        kills = self.kills
        async with anyio.create_task_group() as group:
            for number, life in workers:
                group.start_soon(self._work, number, life, number == sweeper)
        counts = await self._looker.counts(await self._looker.queues())
        self.recover_at = None
        if any(count.active for count in counts):
            self.recover_at = now + LEASE + self.chance.randrange(1, 5_000)
        if any(count.waiting or count.prioritized for count in counts):
            # The sweep has brought it back when others had looked already; consumers that wait are woken by that.
            self.recover_at = now + 1
        if self.kills > kills:
            # So are they by the next job of a schedule, which perhaps nobody but the killed process has seen.
            self.recover_at = now + 1

    async def _work(self, number: int, life: Life, sweeps: bool) -> None:
        try:
            if life.stepper is None:
                await life.start(self.root)
            await life.work(sweeps=sweeps)
        except Killed:
            self.kills += 1
            if life.wire.holds:
                self.struck[life.wire.claimed] += 1
            if life.wire.has_run:
                self.repeats[life.wire.claimed] += 1
            await self._leave(number)

    async def _come_and_go(self) -> None:
        """Start those that were away long enough; let one stop, be struck at a call to come, or set its clock."""
        chance, alive = self.chance, self.alive
        if len(alive) > 2 and chance.random() < self.unrest:
            self.stops += 1
            await self._leave(chance.choice(list(alive)))
        if len(alive) > 2 and chance.random() < self.unrest:
            alive[chance.choice(list(alive))].wire.calls_left = chance.randrange(1, 30)
        if 0 in alive and chance.random() < self.unrest:
            alive[0].skew = -HOUR if alive[0].skew == 0 else 0
        for number, back_at in self.back_at.items():
            if number not in alive and back_at <= self.server.now_ms():
                store = self._opener(self.server)
                await store.open()
                alive[number] = life = Life(store, self.server, chance=chance, skew=self.skews[number])
                self.lives.append(life)
                if len(alive) > 2 and chance.random() < 0.1:
                    life.wire.calls_left = chance.randrange(1, 600)

    async def _leave(self, number: int) -> None:
        life = self.alive.pop(number)
        self.back_at[number] = self.server.now_ms() + self.chance.choice((0, MINUTE, HOUR, 24 * HOUR, 168 * HOUR))
        await life.end()

    async def assert_chains(self, fired: Counter[str]) -> None:
        """Each schedule has stored a job for each slot, and the next one ahead; the store is sound."""
        queues = await self._looker.queues()
        records = [record for queue in queues for record in await self._looker.schedules(queue, limit=1_000)]
        assert {record.id for record in records} == self.names
        assert {record.id: record.count for record in records} == {name: fired[name] + 1 for name in self.names}
        assert {record.job_state for record in records} == {JobState.DELAYED}
        assert [await self._looker.verify(queue) for queue in queues] == [[]] * len(queues)

    async def close(self) -> None:
        for number in list(self.alive):
            await self._leave(number)
        await self._looker.close()
