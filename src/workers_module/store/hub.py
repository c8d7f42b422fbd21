"""One listener, many waiters: brings hints about queues to the calls that wait for work.

A hint says "look again", never what there is. A waiter listens first and looks then, so a hint that comes between the
look and the sleep is kept; and a waiter that leaves with a hint it did not act on hands it on, so that none is lost.

A hub belongs to one event loop. All but `Hub.run` is called on that loop; a thread of a store says
``loop.call_soon_threadsafe(hub.hint, queue)``.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from workers_module.store.values import Step


class Ear:
    """One waiter, from `Hub.listen` to the end of its ``with`` block.

    Attributes:
        queue: What it listens to.
        req: What it would do next, if it waits for work.
        hinted: Whether a hint came that it has not acted on.
    """

    __slots__ = ("_heard", "_hub", "_sleep", "hinted", "queue", "req")

    def __init__(self, hub: "Hub", queue: str, req: Step | None) -> None:
        self._hub = hub
        self._sleep: asyncio.Future[None] | None = None
        self._heard = False
        self.queue = queue
        self.req = req
        self.hinted = False

    def __enter__(self) -> Self:
        self._hub.arrive(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.leave(self, unused=self.hinted or (self._heard and kind is not None))

    def ring(self) -> None:
        """Give the hint."""
        self.hinted = True
        self.wake()

    def wake(self) -> None:
        """End the sleep without a hint."""
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Sleep until a hint comes, or for so long; at once when one has come since the last call.

        Returns:
            Whether there was a hint; it is used up by this.
        """
        if not self.hinted and seconds > 0:
            loop = asyncio.get_running_loop()
            self._sleep = loop.create_future()
            timer = loop.call_later(seconds, self.wake)
            try:
                await self._sleep
            finally:
                timer.cancel()
                self._sleep = None
        self._heard, self.hinted = self.hinted, False
        return self._heard


class Hub:
    """The waiters of all queues of one store.

    Example:
        ::

            with hub.listen(req.queue, req) as ear:
                while True:
                    reply = await self.step(req)
                    if reply.jobs or out_of_time:
                        return reply
                    await ear.wait(seconds)
    """

    __slots__ = ("_alarms", "_ears", "_loop")

    def __init__(self) -> None:
        self._ears: dict[str, dict[Ear, None]] = {}
        self._alarms: dict[str, asyncio.TimerHandle] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, queue: str, req: Step | None = None) -> Ear:
        """Return a waiter of a queue, and what it would do next; enter it before the first look."""
        return Ear(self, queue, req)

    def hint(self, queue: str, jobs: int = 1, *, fits: Callable[[Step], bool] | None = None) -> None:
        """Wake waiters of a queue that have no hint yet: the longest waiting first, no more than there are jobs.

        Args:
            queue: The queue.
            jobs: How many jobs became ready.
            fits: Whom to wake; None wakes anybody. Where jobs have tags, give this or use `hint_all`: a waiter that
                cannot claim the job would use up its hint.
        """
        for ear in self._ears.get(queue, ()):
            if jobs <= 0:
                break
            if not ear.hinted and _suits(ear, fits):
                ear.ring()
                jobs -= 1

    def hint_all(self, queue: str | None = None) -> None:
        """Wake every waiter of a queue, or of all queues."""
        for name in list(self._ears) if queue is None else (queue,):
            for ear in self._ears.get(name, ()):
                ear.ring()

    def count(self, queue: str, *, hinted: bool, fits: Callable[[Step], bool] | None = None) -> int:
        """Return how many waiters of a queue have a hint they have not acted on yet; or how many have none."""
        return sum(ear.hinted is hinted and _suits(ear, fits) for ear in self._ears.get(queue, ()))

    def waiting(self, queue: str) -> bool:
        """Return whether anybody listens to a queue."""
        return queue in self._ears

    def queues(self) -> list[str]:
        """Return the queues somebody listens to."""
        return list(self._ears)

    def alarm(self, queue: str, seconds: float | None, call: Callable[[], object]) -> None:
        """Call ``call`` once, so many seconds from now, if somebody still listens to the queue.

        A queue has one alarm: each call replaces the last one.

        Args:
            queue: The queue.
            seconds: None only takes the last alarm back.
            call: Decides whom to wake.
        """
        if old := self._alarms.pop(queue, None):
            old.cancel()
        if seconds is not None and queue in self._ears:
            self._alarms[queue] = asyncio.get_running_loop().call_later(max(0.0, seconds), call)

    def run(self, call: Callable[[], object]) -> None:
        """Call ``call`` on the loop of those who listen; from any thread, and at once on that loop's own.

        When nobody listens, nothing is called.
        """
        loop = self._loop
        if not self._ears or loop is None or loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop() is loop
        except RuntimeError:
            here = False
        if here:
            call()
        else:
            loop.call_soon_threadsafe(call)

    def arrive(self, ear: Ear) -> None:
        """Take a waiter in."""
        self._loop = asyncio.get_running_loop()
        self._ears.setdefault(ear.queue, {})[ear] = None

    def leave(self, ear: Ear, *, unused: bool) -> None:
        """Let a waiter go; a hint it did not use goes to one who could use it as well."""
        queue = ear.queue
        ears = self._ears[queue]
        del ears[ear]
        if not ears:
            del self._ears[queue]
            if alarm := self._alarms.pop(queue, None):
                alarm.cancel()
        elif unused:
            heir = next((other for other in ears if not other.hinted and _tags(other) == _tags(ear)), None)
            for other in [heir] if heir is not None else list(ears):
                other.ring()


def _suits(ear: Ear, fits: Callable[[Step], bool] | None) -> bool:
    return fits is None or ear.req is None or fits(ear.req)


def _tags(ear: Ear) -> tuple[str, ...]:
    return () if ear.req is None else ear.req.tags
