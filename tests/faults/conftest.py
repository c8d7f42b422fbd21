"""Seeds, sizes and places of the fault tests.

``WORKERS_TEST_FAULT_SEEDS="1 2 3"`` runs each test of chance with each of these seeds, and all in their full size;
``make faults`` does so.
"""

import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet, fleet
from tests.faults.launcher import RedisServer, launched
from tests.faults.waiting import SEEDS


@dataclass(frozen=True, slots=True)
class Size:
    """How much a test does.

    Attributes:
        full: As much as the contract asks for; else so much that the ordinary run stays short.
        lease_ms: How long a claim holds without renewal.
        sweep_ms: How often abandoned jobs are looked for.
    """

    full: bool
    lease_ms: int
    sweep_ms: int

    def of(self, full: int, quick: int) -> int:
        """Return one of two numbers."""
        return full if self.full else quick

    @property
    def past_lease_s(self) -> float:
        """Seconds after which every lease that nobody renewed has run out."""
        return self.of(10_000, self.lease_ms + 600) / 1_000

    @property
    def past_recovery_s(self) -> float:
        """Seconds after which whatever a silent worker held has been taken back."""
        return (self.lease_ms + 3 * self.sweep_ms) / 1_000


@pytest.fixture
def size() -> Size:
    return (
        Size(full=True, lease_ms=3_000, sweep_ms=2_000) if SEEDS else Size(full=False, lease_ms=2_000, sweep_ms=1_000)
    )


@pytest.fixture(params=[int(word) for word in SEEDS or ["1"]], ids=lambda seed: f"seed{seed}")
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Return chance that can be repeated."""
    seed: int = request.param
    return random.Random(seed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "dice" in getattr(item, "fixturenames", ()):
        seed = getattr(item, "callspec").params["dice"]  # noqa: B009 - only parametrised items have one
        report.sections.append(
            (
                "to repeat",
                f'WORKERS_TEST_FAULT_SEEDS="{seed}" python -m pytest "{item.nodeid}" (or without it, in short)',
            )
        )
    return report


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Return a server of this test's own, which keeps its data over a restart."""
    with launched() as server:
        yield server


@pytest.fixture
def workers(tmp_path: Path, size: Size) -> Iterator[Fleet]:
    """Return a fleet without processes yet."""
    with fleet(tmp_path, lease=f"{size.lease_ms}ms", sweep_interval=f"{size.sweep_ms}ms") as workers:
        yield workers
