"""How a worker process stops: once in good order, once more at once, and in the end whatever its handlers do."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import anyio

from workers_module.cli.ending import end_within
from workers_module.cli.failures import ExitCode
from workers_module.cli.supervisor import PROCESS, SUPERVISOR
from workers_module.clock import span_ms
from workers_module.settings import WorkersSettings
from workers_module.worker.leaving import StopCounts
from workers_module.worker.runtime import Runtime, overseer

LAST_S: Final = 1.0
"""What a stopping process has, over the grace and the time to kill, before it is ended hard (reliability §5.3)."""
_STUCK: Final = "a handler does not end; the process is ended by force"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S: Final = 0.5

_log = logging.getLogger(__name__)


class Stop:
    """Stops all workers that are started after it in this context.

    Attributes:
        asked: Whether it was asked to.
    """

    def __init__(self, settings: WorkersSettings, *, before: Callable[[], None]) -> None:
        """Prepare, on the event loop.

        Args:
            settings: They say how long a stop may take.
            before: Called when it is asked while nothing is at work yet.
        """
        self.asked = False
        self._grace = settings.shutdown_grace
        self._kill_s = span_ms(settings.kill_after) / 1_000 + LAST_S
        self._before = before
        self._loop = asyncio.get_running_loop()
        self._runtimes: list[Runtime] = []
        overseer.set(self._attend)

    def ask(self) -> None:
        """Stop with the usual grace; repeatable."""
        if self.asked:
            return
        self.asked = True
        end_within(span_ms(self._grace) / 1_000 + self._kill_s, ExitCode.FAILED, why=_STUCK)
        self._loop.call_soon_threadsafe(self._begin)

    def obey(self, *_: object) -> None:
        """Stop at the first signal; at once at the second.

        A handler of `signal.signal`: it is called, and sets the time of the end, also while a job blocks the loop.
        """
        if not self.asked:
            self.ask()
            return
        end_within(self._kill_s, ExitCode.FAILED, why=_STUCK)
        self._loop.call_soon_threadsafe(self._hurry)

    def tell_end(self) -> None:
        """Log what became of the jobs that ran when the stop was asked for."""
        counts = sum((runtime.left for runtime in self._runtimes), StopCounts())
        # Of several processes on one terminal each has its own line.
        who = f"pid {os.getpid()} stopped" if PROCESS in os.environ else "stopped"
        if not any(counts):
            _log.info("%s; no job was running", who)
            return
        lost = f", {counts.lost} lost: they run again when their leases lapse" if counts.lost else ""
        _log.info("%s; %d finished, %d handed back%s", who, counts.finished, counts.handed_back, lost)

    @contextmanager
    def obeying(self, obey: Callable[[int, FrameType | None], None] | None = None) -> Generator[None]:
        """Obey signals meanwhile, those of a closed terminal too unless this process is to outlive it (``nohup``).

        Args:
            obey: What is called in place of the method `obey`.
        """
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, obey or self.obey) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def follow_supervisor(self) -> None:
        """Stop when the supervisor that started this process is gone."""
        supervisor = os.environ.get(SUPERVISOR)
        while supervisor is not None:
            await anyio.sleep(_LOOK_S)
            if str(os.getppid()) != supervisor:
                _log.warning("the supervisor is gone; stopping")
                self.ask()
                return

    def _attend(self, runtime: Runtime) -> None:
        self._runtimes.append(runtime)
        if self.asked:
            runtime.request_stop()

    def _begin(self) -> None:
        busy = any(runtime.busy for runtime in self._runtimes)
        _log.info("stopping; once more stops at once" if busy else "stopping")
        if not self._runtimes:
            self._before()
        for runtime in self._runtimes:
            runtime.request_stop()

    def _hurry(self) -> None:
        _log.info("stopping at once: running jobs are handed back")
        for runtime in self._runtimes:
            runtime.request_stop(0)
