"""How those who wait are woken: by what a call changed, and by time."""

from functools import partial

from workers_module.clock import Clock, FrozenClock
from workers_module.store.hub import Hub
from workers_module.store.planning import MAX_MOVED, earliest
from workers_module.store.values import Problem, Step
from workers_module.store.world.ledger import Ledger
from workers_module.store.world.shelf import Shelf


class Waking:
    """Ends every call.

    Attributes:
        jobs: Those who wait for jobs.
        events: Those who wait for events.
    """

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self.jobs = Hub()
        self.events = Hub()
        self._ledger = ledger
        self._clock = clock
        self._frozen = isinstance(clock, FrozenClock)
        if isinstance(clock, FrozenClock):
            clock.on_change(self._clock_moved)

    def finish(self, now: int) -> None:
        """End a call: show its events and wake who can go on because of it."""
        while self._ledger.touched:
            shelf, _ = self._ledger.touched.popitem()
            if shelf.flush() and self.events.waiting(shelf.name):
                self.events.hint_all(shelf.name)
            if self.jobs.waiting(shelf.name):
                self._wake(shelf, now)

    def _wake(self, shelf: Shelf, now: int) -> None:
        """Wake as many waiters as there are jobs for them, and look again when time brings more."""
        ready = shelf.claimable
        if ready:
            fits = partial(_can_claim, shelf, now)
            self.jobs.hint(shelf.name, ready - self.jobs.count(shelf.name, hinted=True, fits=fits), fits=fits)
        if not self._frozen:
            at = earliest(shelf.next_due(), shelf.rate_until if ready and shelf.rate_until > now else None)
            # Rounded up by the milliseconds that have begun: the alarm never rings early.
            seconds = None if at is None else (at - self._clock.now_ms()) / 1_000
            self.jobs.alarm(shelf.name, seconds, partial(self._look_again, shelf.name))

    def listen(self, queue: str, now: int) -> None:
        """Let a waiter that just began to sleep be woken by time."""
        if shelf := self._ledger.shelves.get(queue):
            self._wake(shelf, now)

    def problems(self, queue: str, now: int) -> list[Problem]:
        """Return whether somebody sleeps who could work, and nobody is about to."""
        shelf = self._ledger.find(queue)
        if shelf is None or not shelf.claimable:
            return []
        fits = partial(_can_claim, shelf, now)
        asleep = self.jobs.count(queue, hinted=False, fits=fits)
        if not asleep or self.jobs.count(queue, hinted=True, fits=fits):
            return []
        return [Problem("I6", None, f"jobs can be claimed, and {asleep} wait for them unwoken")]

    def _look_again(self, queue: str) -> None:
        if shelf := self._ledger.shelves.get(queue):
            now = self._clock.now_ms()
            shelf.promote_due(now, MAX_MOVED)
            self._ledger.touched[shelf] = None
            self.finish(now)

    def _clock_moved(self) -> None:
        self.jobs.run(self._look_at_all)

    def _look_at_all(self) -> None:
        for queue in self.jobs.queues():
            self._look_again(queue)


def _can_claim(shelf: Shelf, now: int, req: Step) -> bool:
    then = now if req.now is None else req.now
    return shelf.room(req, then) > 0 and any(map(len, shelf.matching(req.tags)))
