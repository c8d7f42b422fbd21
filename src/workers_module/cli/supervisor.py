"""``start --processes`` and ``--reload``: keeps worker processes, restarts those that die, and passes signals on."""

import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final

import anyio
import anyio.abc

from workers_module.cli.failures import ExitCode
from workers_module.cli.output import say, some

QUICK_S: Final = 10.0
"""A process that ends within this time of its start ended quickly."""
QUICK_ENDS: Final = 5
"""So many quick ends in a row are forgiven; then restarts wait (reliability §4)."""
MOST_PAUSE_S: Final = 60.0
SUPERVISOR: Final = "SUPERVISOR_OF_WORKERS"
"""The variable in which a process finds the id of the one that started it, and ends with it."""
PROCESS: Final = "PROCESS_OF_WORKERS"
"""The variable in which it finds its number among those, from 0."""
_FINAL: Final = frozenset({ExitCode.USAGE, ExitCode.TARGET})
_LAST_S: Final = 5.0
_RELOAD_S: Final = 2.0

Command = Callable[[int], tuple[Sequence[str], Mapping[str, str]]]


def pause_s(quick_ends: int) -> float:
    """Return how long a restart waits after so many quick ends in a row."""
    return 0.0 if quick_ends < QUICK_ENDS else min(MOST_PAUSE_S, 2.0 ** (quick_ends - QUICK_ENDS))


class Supervisor:
    """Keeps processes alive until it is told to stop."""

    def __init__(
        self,
        command: Command,
        count: int,
        *,
        grace_s: float,
        changes: Callable[[], AsyncIterator[str]] | None = None,
        once: bool = False,
    ) -> None:
        """Prepare; nothing is started before `run`.

        Args:
            command: What process number 0, 1, … runs, and what its environment has more.
            count: How many.
            grace_s: How long they may take to stop; what is left then is killed.
            changes: Tells of changed files; each restarts all.
            once: A process that ends well is not started again.
        """
        self._command = command
        self._count = count
        self._grace_s = grace_s
        self._changes = changes
        self._once = once
        self._processes: dict[int, anyio.abc.Process] = {}
        self._stopping = False
        self._stopped = anyio.Event()
        self._renewed = [anyio.Event() for _ in range(count)]
        self._code: int = ExitCode.DONE

    async def run(self) -> int:
        """Run until told to stop, or until no process is left to keep; returns the exit code."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._obey, group)
            if self._changes is not None:
                group.start_soon(self._follow, self._changes)
            async with anyio.create_task_group() as keeping:
                for number in range(self._count):
                    keeping.start_soon(self._keep, number)
            group.cancel_scope.cancel()
        return self._code

    async def _keep(self, number: int) -> None:
        quick = 0
        while not self._stopping:
            begun = time.monotonic()
            renewed = self._renewed[number] = anyio.Event()
            code = await self._run_one(number)
            if self._stopping:
                if code not in {0, -signal.SIGTERM, -signal.SIGINT}:
                    self._code = self._code or ExitCode.FAILED
                return
            if renewed.is_set():
                continue
            if code == 0 and self._once:
                return
            if code in _FINAL and self._changes is None:
                # It would say the same again, and so would its siblings.
                self._code = code
                self._stop(signal.SIGTERM)
                return
            if self._changes is not None and code != 0:
                say("waiting for a change")
                await self._either(renewed)
                continue
            quick = quick + 1 if time.monotonic() - begun < QUICK_S else 0
            pause = pause_s(quick)
            if code != 0:
                say(f"process {number + 1} {_end(code)}; starting it again" + (f" in {pause:g} s" if pause else ""))
            with anyio.move_on_after(pause):
                await self._stopped.wait()

    async def _run_one(self, number: int) -> int:
        command, more = self._command(number)
        environment = {**os.environ, **more, SUPERVISOR: str(os.getpid()), PROCESS: str(number)}
        # In a session of its own: Ctrl-C on the terminal reaches it through us alone, once.
        process = await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, env=environment, start_new_session=True
        )
        self._processes[number] = process
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            self._processes.pop(number, None)

    async def _either(self, renewed: anyio.Event) -> None:
        async with anyio.create_task_group() as group:

            async def wait(event: anyio.Event) -> None:
                await event.wait()
                group.cancel_scope.cancel()

            group.start_soon(wait, renewed)
            group.start_soon(wait, self._stopped)

    async def _obey(self, group: anyio.abc.TaskGroup) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for received in signals:
                if not self._stopping:
                    say(f"stopping {some(len(self._processes), 'process')}")
                    group.start_soon(self._kill_late)
                self._stop(signal.SIGTERM if received == signal.SIGHUP else received)

    async def _kill_late(self) -> None:
        # They end by themselves within their grace; one that hangs in native code does not.
        await anyio.sleep(self._grace_s + _LAST_S)
        for process in list(self._processes.values()):
            process.kill()

    def _stop(self, received: signal.Signals) -> None:
        self._stopping = True
        self._stopped.set()
        _send(self._processes.values(), received)

    async def _follow(self, changes: Callable[[], AsyncIterator[str]]) -> None:
        async for change in changes():
            say(f"{change} changed; starting anew")
            for event in self._renewed:
                event.set()
            old = list(self._processes.values())
            _send(old, signal.SIGTERM)
            with anyio.move_on_after(_RELOAD_S):
                await self._stopped.wait()
            # A second one hands running jobs back at once: they run again with the new code.
            _send([process for process in old if process.returncode is None], signal.SIGTERM)


def _send(processes: Iterable[anyio.abc.Process], received: signal.Signals) -> None:
    for process in list(processes):
        try:
            process.send_signal(received)
        except ProcessLookupError:
            continue


def _end(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
