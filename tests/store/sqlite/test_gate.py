"""Turns between processes: each waits its turn, and none waits for ever."""

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.helpers import PATIENCE
from workers_module.errors import StoreUnavailableError
from workers_module.store.sqlite.gate import Gate

pytestmark = pytest.mark.sqlite


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[tuple[Gate, Gate]]:
    """Return two gates on one lock, as two processes have them."""
    one, two = Gate(tmp_path / "jobs.db.lock"), Gate(tmp_path / "jobs.db.lock")
    yield one, two
    one.close()
    two.close()


def is_free(path: Path) -> bool:
    """Tell whether nobody has the lock."""
    file = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(file)


def test_a_turn_can_be_taken_again_and_again(gates: tuple[Gate, Gate], tmp_path: Path) -> None:
    one, two = gates
    for gate in (one, one, two, one, two):
        gate.enter(PATIENCE)
        assert not is_free(tmp_path / "jobs.db.lock")
        gate.leave()
    assert is_free(tmp_path / "jobs.db.lock")


def test_who_comes_second_waits(gates: tuple[Gate, Gate]) -> None:
    one, two = gates
    order: list[str] = []
    one.enter(PATIENCE)

    def second() -> None:
        two.enter(PATIENCE)
        order.append("second")
        two.leave()

    thread = threading.Thread(target=second)
    thread.start()
    with two._state:
        assert two._state.wait_for(lambda: two._waiter is not None or order, 0.2) or two._waiter is None
    order.append("first")
    one.leave()
    thread.join(PATIENCE)
    assert order == ["first", "second"]


def test_a_turn_that_does_not_come_is_given_up(gates: tuple[Gate, Gate]) -> None:
    one, two = gates
    one.enter(PATIENCE)
    with pytest.raises(StoreUnavailableError, match=r"jobs\.db\.lock.*turn to write"):
        two.enter(0.01)
    with pytest.raises(StoreUnavailableError):
        two.enter(0.01)
    one.leave()
    two.enter(PATIENCE)
    two.leave()
    one.enter(PATIENCE)
    one.leave()


def test_a_turn_given_up_is_not_kept_when_it_comes_late(gates: tuple[Gate, Gate], tmp_path: Path) -> None:
    one, two = gates
    one.enter(PATIENCE)
    with pytest.raises(StoreUnavailableError):
        two.enter(0.01)
    waiter = two._waiter
    assert waiter is not None
    one.leave()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert is_free(tmp_path / "jobs.db.lock")


def test_a_gate_closed_while_it_waits_lets_go_of_its_file(tmp_path: Path) -> None:
    one, two = Gate(tmp_path / "lock"), Gate(tmp_path / "lock")
    one.enter(PATIENCE)
    with pytest.raises(StoreUnavailableError):
        two.enter(0.01)
    waiter = two._waiter
    assert waiter is not None
    two.close()
    one.leave()
    waiter.join(PATIENCE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(two._file)
    one.close()


def test_turns_are_shared_by_many(tmp_path: Path) -> None:
    gates = [Gate(tmp_path / "lock") for _ in range(4)]
    inside: list[int] = []
    most: list[int] = []

    def work(gate: Gate, name: int) -> None:
        for _ in range(50):
            gate.enter(PATIENCE)
            inside.append(name)
            most.append(len(inside))
            inside.remove(name)
            gate.leave()

    threads = [threading.Thread(target=work, args=(gate, name)) for name, gate in enumerate(gates)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert most == [1] * 200
    for gate in gates:
        gate.close()
