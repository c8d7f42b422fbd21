"""The child's half of the line, spoken to as a parent does."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers_module.di.target import child_command
from workers_module.job.job import Job
from workers_module.job.record import JobRecord
from workers_module.store.values import EditResult
from workers_module.worker.messages import (
    HEAD,
    Answer,
    Ask,
    Cancel,
    Done,
    Fault,
    FromChild,
    Line,
    Order,
    Ready,
    SetProgress,
    Started,
    ToChild,
    frame,
    from_child,
    length_of,
)

APP = """
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
from dishka import FromDishka, Provider, Scope, make_async_container, provide

from workers_module.di.decorators import cron, job, processor, process
from workers_module.job.job import Job
from workers_module.module import WorkersModule
from workers_module.worker.context import JobContext
from workers_module.worker.runtime import Workers


class Things(Provider):
    @provide(scope=Scope.APP)
    async def thing(self) -> AsyncIterator[str]:
        yield "thing"
        Path("closed").touch()


@processor("child")
class Child:
    @process("add")
    async def add(self, job: Job[list[int]], thing: FromDishka[str]) -> int:
        return sum(job.data)

    @process("report")
    async def report(self, job: Job[None], context: JobContext) -> str:
        context.log("begun")
        await context.progress(7)
        return "reported"

    @process("asleep")
    async def asleep(self, job: Job[None], context: JobContext) -> None:
        context.log("asleep")
        time.sleep(60)

    @process("wait")
    async def wait(self, job: Job[None], context: JobContext) -> None:
        context.log("waiting")
        await anyio.sleep(60)

    @process("spawn")
    async def spawn(self, job: Job[None]) -> list[bool]:
        return [os.get_inheritable(fd) for fd in range(3, 50) if _is_open(fd)]

    @process("running")
    async def running(self, job: Job[None], workers: FromDishka[Workers]) -> list[str]:
        return [*workers.running]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Ticks:
    @cron("* * * * * *")
    async def tick(self) -> None:
        Path("ticked").touch()


print("imported, and said so")


def make():
    return make_async_container(Things(), WorkersModule.for_root(processors=[Child, Ticks]))


def broken():
    raise RuntimeError("no wood")
"""


class Wire:
    """A parent's end of the line."""

    def __init__(self, target: str, kill_after_ms: int = 5_000) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        with theirs:
            self.process = subprocess.Popen(
                [*child_command(target), str(theirs.fileno()), str(kill_after_ms)],
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                stdout=2,
            )

    def send(self, message: ToChild) -> None:
        self.socket.sendall(frame(message))

    def order(self, name: str, data: bytes = b"null", number: int = 1, **settings: Any) -> None:
        record: JobRecord = Job.fake(None, queue="child", name=name, data=data).record
        settings = {"timeout_ms": None, "max_bytes": 1_000, **settings}
        self.send(Order(number=number, record=record, **settings))

    def hear(self) -> FromChild:
        return from_child.validate_json(self._read(length_of(self._read(HEAD))))

    def ended(self) -> int:
        return self.process.wait(30)

    def _read(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            part = self.socket.recv(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts

    def close(self) -> None:
        self.socket.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "child_app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def line(app: Path) -> Iterator[Wire]:
    line = Wire("child_app:make")
    yield line
    line.close()


def test_orders_are_run_one_after_the_other(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("add", b"[1,2]", number=1)
    line.order("add", b"[3,4]", number=2)
    heard = [line.hear() for _ in range(4)]
    assert Done(number=1, result=b"3") in heard
    assert Done(number=2, result=b"7") in heard
    assert [one.number for one in heard if isinstance(one, Started)] == [1, 2]


def test_what_the_handler_says_is_passed_on(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("report", number=5)
    assert line.hear() == Started(number=5)
    said = line.hear()
    assert isinstance(said, Line)
    assert said.text.endswith("INFO begun")
    asked = line.hear()
    assert isinstance(asked, Ask)
    assert (asked.number, asked.call) == (5, SetProgress(value=b"7"))
    line.send(Answer(ask=asked.ask, edited=EditResult.OK))
    assert line.hear() == Done(number=5, result=b'"reported"')


@pytest.mark.parametrize(
    ("answer", "error_type"),
    [({"edited": EditResult.LEASE_LOST}, "LeaseLostError"), ({"error": "no connection"}, "StoreError")],
)
def test_what_the_worker_cannot_do_is_raised_in_the_handler(
    line: Wire, answer: dict[str, Any], error_type: str
) -> None:
    assert line.hear() == Ready()
    line.order("report")
    while not isinstance(asked := line.hear(), Ask):
        pass
    line.send(Answer(ask=asked.ask, **answer))
    fault = line.hear()
    assert isinstance(fault, Fault)
    assert fault.error_type == error_type


def test_a_cancelled_run_says_so_and_the_next_one_runs(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("wait", number=1)
    while not isinstance(line.hear(), Line):
        pass
    line.send(Cancel(number=1))
    fault = line.hear()
    assert isinstance(fault, Fault)
    assert (fault.error_type, fault.unrecoverable) == ("JobCancelledError", True)
    line.order("add", b"[1]", number=2)
    assert [line.hear(), line.hear()] == [Started(number=2), Done(number=2, result=b"1")]


def test_a_cancel_for_an_earlier_run_stops_nothing(line: Wire) -> None:
    assert line.hear() == Ready()
    line.send(Cancel(number=1))
    line.order("add", b"[1]", number=2)
    line.send(Cancel(number=1))
    assert [line.hear(), line.hear()] == [Started(number=2), Done(number=2, result=b"1")]


def test_its_limit_is_kept_in_the_child(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("wait", timeout_ms=50)
    while not isinstance(fault := line.hear(), Fault):
        pass
    assert (fault.error_type, fault.timed_out) == ("JobTimeoutError", True)
    assert "child_app.py" in fault.message


def test_no_worker_and_no_schedule_is_started(line: Wire, app: Path) -> None:
    assert line.hear() == Ready()
    line.order("running")
    assert [line.hear(), line.hear()] == [Started(number=1), Done(number=1, result=b"[]")]
    assert not (app / "ticked").exists()


def test_the_line_is_not_handed_on_to_grandchildren(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("spawn")
    assert line.hear() == Started(number=1)
    done = line.hear()
    assert isinstance(done, Done)
    assert b"true" not in done.result


def test_the_end_of_the_line_closes_the_application(line: Wire, app: Path) -> None:
    assert line.hear() == Ready()
    line.order("add", b"[1]")
    assert [line.hear(), line.hear()] == [Started(number=1), Done(number=1, result=b"1")]
    line.socket.close()
    assert line.ended() == 0
    assert (app / "closed").exists()


def test_the_end_of_the_line_stops_a_run(line: Wire) -> None:
    assert line.hear() == Ready()
    line.order("wait")
    while not isinstance(line.hear(), Line):
        pass
    line.socket.shutdown(socket.SHUT_WR)
    assert isinstance(line.hear(), Fault)
    assert line.ended() == 0


def test_the_end_of_the_line_ends_a_child_that_does_not_answer(app: Path) -> None:
    line = Wire("child_app:make", kill_after_ms=50)
    try:
        assert line.hear() == Ready()
        line.order("asleep")
        while not isinstance(line.hear(), Line):
            pass
        line.socket.close()
        assert line.ended() == -signal.SIGKILL
    finally:
        line.close()


def test_what_is_no_message_ends_the_child(line: Wire) -> None:
    assert line.hear() == Ready()
    line.socket.sendall(b"\x00\x00\x00\x02{}")
    assert line.ended() == 0


def test_an_application_that_cannot_be_built_is_told(app: Path) -> None:
    line = Wire("child_app:broken")
    try:
        fault = line.hear()
        assert isinstance(fault, Fault)
        assert (fault.number, fault.error_type, fault.message) == (0, "RuntimeError", "no wood")
        assert "child_app.py" in fault.trace
        assert line.ended() == 1
    finally:
        line.close()


def test_a_missing_application_is_told(app: Path) -> None:
    line = Wire("child_nowhere:make")
    try:
        fault = line.hear()
        assert isinstance(fault, Fault)
        assert fault.message.startswith("'child_nowhere:make': no module 'child_nowhere'")
    finally:
        line.close()


def test_importing_the_child_starts_nothing() -> None:
    code = "import workers_module.di.child, threading; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "1\n"
