"""Brings back abandoned jobs, applies the age limits, and finds schedules that have stopped."""

import logging
import random
import time
from collections.abc import Sequence

import anyio

from workers_module.job.events import WorkerEvent
from workers_module.job.job import Job
from workers_module.store.base import Store
from workers_module.store.values import Sweep
from workers_module.worker.hooks import Hooks
from workers_module.worker.outage import WAITED_OUT, Outage
from workers_module.worker.ticker import Ticker

_log = logging.getLogger(__name__)


class Sweeper:
    """Sweeps the queues of one process; the store lets one sweep per queue and interval do something, whoever asks."""

    def __init__(
        self,
        store: Store,
        queues: Sequence[str],
        *,
        hooks: Hooks,
        ticker: Ticker,
        interval_ms: int,
        lease_ms: int,
        max_crashes: int,
        completed_age_ms: int | None,
        failed_age_ms: int | None,
    ) -> None:
        """Prepare; nothing is swept before `run` or `sweep`."""
        self._store = store
        self._queues = queues
        self._hooks = hooks
        self._ticker = ticker
        self.interval_ms = interval_ms
        self._lease_s = lease_ms / 1_000
        self._requests = [
            Sweep(
                queue=queue,
                interval_ms=interval_ms,
                max_crashes=max_crashes,
                completed_age_ms=completed_age_ms,
                failed_age_ms=failed_age_ms,
            )
            for queue in queues
        ]
        self._outage = Outage("sweep")
        self._heard = time.monotonic()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            for request in self._requests:
                await self._sweep_patiently(request)
            # A little apart from other processes, which then find the work done.
            await anyio.sleep(self.interval_ms / 1_000 * random.uniform(0.9, 1.1))  # noqa: S311

    async def sweep_all(self) -> None:
        """Sweep every queue once; an outage is the caller's."""
        for request in self._requests:
            await self.sweep(request)

    async def sweep(self, request: Sweep) -> None:
        """Sweep one queue until nothing is left to do, and pass on what was found."""
        while True:
            reply = await self._store.sweep(request)
            self._heard = time.monotonic()
            if reply.recovered:
                _log.warning(
                    "queue %s: %d jobs taken back from workers that died or froze: %s",
                    request.queue,
                    len(reply.recovered),
                    ", ".join(reply.recovered[:10]),
                )
                await self._tell_stalled(request.queue, reply.recovered)
            if reply.idle:
                await self._ticker.revive(request.queue, reply.idle, reply.now)
            if not reply.more:
                return

    async def _sweep_patiently(self, request: Sweep) -> None:
        failed = False
        while True:
            if self._holders_may_have_missed(time.monotonic() - self._heard, failed=failed):
                await self._let_holders_renew()
            try:
                await self.sweep(request)
            except WAITED_OUT as error:
                failed = True
                await anyio.sleep(self._outage.pause(error))
            else:
                self._outage.over()
                return

    def _holders_may_have_missed(self, silent_s: float, *, failed: bool) -> bool:
        if failed:
            # Leases are renewed every third, so that one may have had a third less to run when the store went away.
            return silent_s > self._lease_s / 2
        # Longer than the pause between two sweeps explains: this process, or the whole machine, stood still.
        return silent_s > max(self._lease_s, 2 * self.interval_ms / 1_000)

    async def _let_holders_renew(self) -> None:
        # Nobody could renew while the store was away: leases that lapsed then say nothing about their holders.
        _log.info(
            "no contact with the store for %.0f s; sweeping again after one lease", time.monotonic() - self._heard
        )
        while True:
            try:
                await self._store.counts([self._requests[0].queue])
            except WAITED_OUT as error:
                await anyio.sleep(self._outage.pause(error))
            else:
                break
        self._outage.over()
        await anyio.sleep(self._lease_s)
        self._heard = time.monotonic()

    async def _tell_stalled(self, queue: str, ids: Sequence[str]) -> None:
        if not self._hooks.wants("stalled", queue):
            return
        for record in await self._store.get(queue, ids):
            if record is not None:
                self._hooks.tell(WorkerEvent(name="stalled", queue=queue, job=Job(record, None)))
