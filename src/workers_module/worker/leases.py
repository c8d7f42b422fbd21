"""Keeps the leases of claimed jobs alive, from a thread with a connection of its own.

Neither a blocked event loop nor an exhausted pool stops it. Renewal comes every third of a lease, and at least every
`CANCEL_NOTICED_MS` while something runs, because a renewal is also how a worker learns that somebody cancelled a
running job: that is the longest it takes. While nothing is held, nothing is sent.
"""

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread

from workers_module.errors import StoreError
from workers_module.store.base import Renewer, Store
from workers_module.store.values import Held, RenewReply
from workers_module.worker.consumer import Consumer
from workers_module.worker.run import Run

_log = logging.getLogger(__name__)

CANCEL_NOTICED_MS: Final = 5_000
"""A running job is told of its cancellation within this time (or a third of its lease, if that is less)."""
MAX_BLOCK_MS: Final = 60_000
"""A loop that has not turned for so long is taken for dead: its jobs' leases are left to lapse."""


class Leases:
    """Renews what the consumers of one process hold, all of a queue in one call.

    A renewal that the store refuses cancels the run. One that does not reach the store leaves it going: when the lease
    may have run out, on this process' own monotonic clock and counted from the moment the last confirmed renewal was
    *sent*, the job's ``lease_in_doubt`` is set, and the final write decides.
    """

    def __init__(
        self, store: Store, consumers: Sequence[Consumer], *, lease_ms: int, max_block_ms: int = MAX_BLOCK_MS
    ) -> None:
        """Prepare; the thread starts with `run`."""
        self._store = store
        self._consumers = consumers
        self._lease_ms = lease_ms
        self._max_block_s = max_block_ms / 1_000
        self._every_s = min(lease_ms / 3, CANCEL_NOTICED_MS) / 1_000
        margin_ms = min(max(1_000, lease_ms / 10), lease_ms / 2)
        self._doubt_after_s = (lease_ms - margin_ms) / 1_000
        self._turn_s = min(1.0, lease_ms / 10_000)
        self._confirmed: dict[Consumer, dict[Held, float]] = {consumer: {} for consumer in consumers}
        self._turned = time.monotonic()
        self._awake = False
        self._woken = asyncio.Event()
        self._go = threading.Event()
        self._closing = threading.Event()
        self._fault: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Begin renewing; called on the loop whenever jobs were claimed, so it is cheap when awake already."""
        if not self._awake:
            self._awake = True
            self._turned = time.monotonic()
            self._woken.set()
            self._go.set()

    async def run(self) -> None:
        """Renew until cancelled."""
        loop = asyncio.get_running_loop()
        self._fault = loop.create_future()
        thread = threading.Thread(
            target=self._renew_all, args=(loop, threading.get_ident()), name="workers-leases", daemon=True
        )
        thread.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._turn)
                await self._fault
        finally:
            self._closing.set()
            self._go.set()
            # A thread that hangs in its connection ends with the process.
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(thread.join, 0.2)

    async def _turn(self) -> None:
        """Show the thread that the loop turns, and judge which leases are in doubt."""
        while True:
            await self._woken.wait()
            while any(consumer.held for consumer in self._consumers):
                self._turned = time.monotonic()
                self._judge()
                await anyio.sleep(self._turn_s)
            self._go.clear()
            self._woken.clear()
            self._awake = False

    def _judge(self) -> None:
        now = time.monotonic()
        for consumer in self._consumers:
            confirmed = self._confirmed[consumer]
            for item in consumer.held.values():
                if not isinstance(item, Run):
                    continue
                held = item.claimed.held
                since = confirmed.get(held) or consumer.sent_at(held.token)
                doubt = since is not None and now - since >= self._doubt_after_s
                if doubt != item.lease_in_doubt and not item.ended:
                    item.lease_in_doubt = doubt
                    if doubt:
                        _log.warning("queue %s: the lease of job %s may have run out", consumer.queue, held.id)

    def _renewed(self, consumer: Consumer, sent: float, held: Sequence[Held], reply: RenewReply) -> None:
        lost = frozenset(reply.lost)
        self._confirmed[consumer] = {item: sent for item in held if item.id not in lost}
        by_id: Mapping[str, Held] = {item.id: item for item in held} if lost or reply.cancelled else {}
        for id in lost:
            consumer.lose(by_id[id])
        for id in reply.cancelled:
            consumer.cancel(by_id[id])

    # --- in the thread ------------------------------------------------------------------------------------------------

    def _renew_all(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        renewer: Renewer | None = None
        try:
            renewer = self._store.renewer()
            blocked = False
            while True:
                self._go.wait()
                if self._closing.wait(self._every_s):
                    return
                blocked = self._loop_is_blocked(loop_thread, told=blocked)
                if not blocked:
                    for consumer in self._consumers:
                        self._renew(renewer, consumer, loop)
        except BaseException as error:
            _in_loop(loop, self._fail, error)
        finally:
            if renewer is not None:
                renewer.close()

    def _renew(self, renewer: Renewer, consumer: Consumer, loop: asyncio.AbstractEventLoop) -> None:
        held = consumer.leased()
        if not held:
            return
        sent = time.monotonic()
        try:
            reply = renewer.renew(consumer.queue, held, self._lease_ms)
        except StoreError as error:
            _log.warning("queue %s: %d leases are not renewed: %s", consumer.queue, len(held), error)
        else:
            _in_loop(loop, self._renewed, consumer, sent, held, reply)

    def _loop_is_blocked(self, loop_thread: int, *, told: bool) -> bool:
        still_s = time.monotonic() - self._turned
        if not self._awake or still_s < self._max_block_s:
            return False
        if not told:
            frame = sys._current_frames().get(loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)\n"
            _log.error(
                "the event loop has been blocked for %.0f s; leases are no longer renewed. It is at:\n%s",
                still_s,
                stack,
            )
        return True

    def _fail(self, error: BaseException) -> None:
        if self._fault is not None and not self._fault.done():
            self._fault.set_exception(error)


def _in_loop(loop: asyncio.AbstractEventLoop, call: object, *args: object) -> None:
    try:
        loop.call_soon_threadsafe(call, *args)  # type: ignore[arg-type]
    except RuntimeError:
        # The loop is closed: nobody is left to be told.
        _log.debug("a renewal ended after the event loop")
