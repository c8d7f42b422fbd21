"""Worker processes that can be killed, frozen and stopped, and what they say of their runs."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.faults import worker
from tests.faults.waiting import until

SLOTS: Final = 8


class Line(NamedTuple):
    """A line of a process' diary about a run."""

    process: str
    word: str
    id: str
    fence: int


class Hand:
    """One worker process."""

    def __init__(self, name: str, folder: Path, process: BaseProcess) -> None:
        self.name = name
        self._folder = folder
        self._process = process
        self.killed = False

    @property
    def alive(self) -> bool:
        """Whether it runs, or is frozen."""
        return self._process.is_alive()

    @property
    def exit_code(self) -> int | None:
        """How it ended; None before that."""
        return self._process.exitcode

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.killed = True
        self._process.kill()
        self._process.join()

    @contextmanager
    def frozen(self) -> Generator[None]:
        """Stop the process meanwhile."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def words(self) -> list[list[str]]:
        """Return its diary, split at blanks; a line that a kill cut short is left out."""
        path = self._folder / f"{self.name}.runs"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [line.split() for line in lines if line.endswith("\n")]

    def lines(self) -> list[Line]:
        """Return what its diary says of runs."""
        return [Line(self.name, word, rest[0], int(rest[1])) for word, *rest in self.words() if rest]

    def in_flight(self) -> set[str]:
        """Return the ids of jobs that it has started, and neither finished nor given up."""
        lines = self.lines()
        return {line.id for line in lines if line.word == "start"} - {line.id for line in lines if line.word != "start"}

    def log(self) -> str:
        """Return what it has logged."""
        path = self._folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


class Fleet:
    """Worker processes on one store.

    Attributes:
        hands: All that were started, in order; also those that have ended.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self._settings = settings
        self.hands: list[Hand] = []
        # Processes are forked from one that has everything imported: a start costs a moment.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.worker"])

    async def start(self, url: str, *, slots: int = SLOTS, **settings: Any) -> Hand:
        """Start a process; return when it is at work."""
        (hand,) = await self.start_all([url], slots=slots, **settings)
        return hand

    async def start_all(self, urls: Iterable[str], *, slots: int = SLOTS, **settings: Any) -> list[Hand]:
        """Start a process for each URL; return when all are at work."""
        hands = [self.begin(url, slots=slots, **settings) for url in urls]
        await self._until_ready(hands)
        return hands

    async def _until_ready(self, hands: Iterable[Hand]) -> None:
        for hand in hands:
            await until(lambda hand=hand: ["ready"] in hand.words() or not hand.alive)
            assert hand.alive, hand.log()

    def begin(self, url: str, *, slots: int = SLOTS, **settings: Any) -> Hand:
        """Start a process, and do not wait."""
        name = f"worker-{len(self.hands) + 1}"
        given = {
            "queue": {"uri": url},
            "concurrency": slots,
            "job_timeout": "none",
            "retention": {"completed": {"age": "none", "count": "none"}, "failed": {"age": "none", "count": "none"}},
            **self._settings,
            **settings,
        }
        process = self._context.Process(target=worker.main, args=(name, str(self.folder), given), name=name)
        process.start()
        hand = Hand(name, self.folder, process)
        self.hands.append(hand)
        return hand

    @property
    def living(self) -> list[Hand]:
        """Those that run, or are frozen."""
        return [hand for hand in self.hands if hand.alive]

    async def stop(self, *hands: Hand, within: float | None = None) -> None:
        """Send SIGTERM; each must end cleanly, in time."""
        chosen = hands or tuple(self.living)
        await self._until_ready(chosen)
        for hand in chosen:
            hand.signal(signal.SIGTERM)
        await until(lambda: not any(hand.alive for hand in chosen), within=within)
        assert [hand.exit_code for hand in chosen] == [0] * len(chosen), "".join(hand.log() for hand in chosen)

    def assert_none_died(self) -> None:
        """No process may have ended that was not killed here."""
        for hand in self.hands:
            assert hand.killed or hand.exit_code in {None, 0}, f"{hand.name} died: {hand.log()}"

    # what they say

    def lines(self, word: str) -> list[Line]:
        """Return all lines of one kind."""
        return [line for hand in self.hands for line in hand.lines() if line.word == word]

    def starts(self) -> Counter[str]:
        """Return how often each job was started."""
        return Counter(line.id for line in self.lines("start"))

    def repeated(self) -> int:
        """Return how many starts were not the first of their job."""
        starts = self.starts()
        return starts.total() - len(starts)

    def last_words(self) -> str:
        """Return what people want to know when a test fails."""
        tails = [
            f"--- {hand.name} (exit code {hand.exit_code}), in flight {sorted(hand.in_flight())[:20]}\n"
            + "\n".join(hand.log().splitlines()[-25:])
            for hand in self.hands[-8:]
        ]
        return "\n".join(tails)


@contextmanager
def fleet(folder: Path, **settings: Any) -> Generator[Fleet]:
    """Give a fleet without processes, and leave none behind."""
    fleet = Fleet(folder, **settings)
    try:
        yield fleet
    except BaseException as error:
        error.add_note(fleet.last_words())
        raise
    finally:
        for hand in fleet.living:
            hand.kill()
