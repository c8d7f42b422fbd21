"""Node.js for the tests: its packages, its process, and the line to it."""

import asyncio
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers import Server

HERE = Path(__file__).parent
PACKAGES = HERE / "package.json"
CACHE = HERE.parents[1] / ".cache" / "interop"
PATIENCE = 60.0
"""Seconds any one answer of Node may take."""
_LINE_LIMIT = 64 * 1024 * 1024


def packages() -> Path:
    """Return the folder with the packages that `PACKAGES` pins; installed once for all processes of all runs."""
    reason = next((f"{name} is not on PATH" for name in ("node", "npm") if shutil.which(name) is None), None)
    if reason is not None:
        text = f"Node.js: {reason}; install Node.js 20 or newer to test beside BullMQ"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    pinned = PACKAGES.read_bytes()
    folder = CACHE / hashlib.sha256(pinned).hexdigest()[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _install(pinned, folder)
    return folder


def _install(pinned: bytes, folder: Path) -> None:
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
    (fresh / "package.json").write_bytes(pinned)
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--prefer-offline"]
    # Bull Board's interface is a peer of its API, and twenty times as large; no test shows it.
    done = subprocess.run(
        [*command, "--legacy-peer-deps"], cwd=fresh, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(fresh)
        pytest.fail(f"npm install failed in {fresh}:\n{done.stdout}{done.stderr}")
    # Under its name only when it is whole.
    fresh.rename(folder)


@contextmanager
def node_process(modules: Path) -> Generator[Server]:
    """Run a Node process that takes connections of `connect`."""
    with tempfile.TemporaryDirectory(prefix="wm-") as name:
        folder = Path(name)
        socket = folder / "s"
        command = [shutil.which("node") or "node", str(HERE / "peer.mjs"), str(modules), str(socket)]
        server = Server(command, folder, socket)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class NodeError(Exception):
    """An error that a script threw."""

    def __init__(self, message: str, name: str, code: object) -> None:
        super().__init__(message)
        self.name = name
        self.code = code


class Node:
    """One test's part of a Node process. What its scripts see as ``t`` is described in ``peer.mjs``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        while line := await self._reader.readline():
            message: dict[str, Any] = json.loads(line)
            answer = self._answers.pop(message["id"], None)
            if answer is None or answer.done():
                continue
            if "error" in message:
                answer.set_exception(NodeError(message["error"], message["name"], message.get("code")))
            else:
                answer.set_result(message.get("value"))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the Node process is gone"))

    async def _ask(self, id: int, message: dict[str, Any]) -> Any:
        answer = self._answers[id] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(message).encode() + b"\n")
        async with asyncio.timeout(PATIENCE):
            return await answer

    async def begin(self, url: str, prefix: str) -> None:
        """Say where Redis is."""
        parts = urlsplit(url)
        connection: object = {"path": parts.path} if parts.scheme == "unix" else url
        if parts.scheme == "redis+cluster":
            pairs = [node.rpartition(":") for node in parts.netloc.split(",")]
            connection = {"cluster": [{"host": host, "port": int(port)} for host, _, port in pairs]}
        await self._ask(0, {"connection": connection, "prefix": prefix})

    async def run(self, code: str, /, **args: Any) -> Any:
        """Run a script (the body of an async function) and return what it returns, as JSON.

        Args:
            code: Sees ``t`` and the arguments by their names.
            args: JSON.

        Raises:
            NodeError: It threw.
        """
        id = next(self._ids)
        return await self._ask(id, {"id": id, "code": code, "args": args})

    async def work(self, queue: str = "mail", code: str = "", /, **options: Any) -> None:
        """Start a worker whose handler has this body; it runs until the test ends."""
        await self.run("await t.worker(queue, code, options)", queue=queue, code=code, options=options)

    async def ran(self) -> list[dict[str, Any]]:
        """Return what the workers have started, in order: queue, id, name, data, at."""
        found: list[dict[str, Any]] = await self.run("return t.ran")
        return found

    async def close(self) -> None:
        """Close everything that was opened, and wait until Node has done so."""
        self._writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            await self._reading
        self._writer.close()


@asynccontextmanager
async def connect(server: Server, url: str, prefix: str) -> AsyncGenerator[Node]:
    """Give a test its part of a process."""
    reader, writer = await asyncio.open_unix_connection(server.address, limit=_LINE_LIMIT)
    node = Node(reader, writer)
    try:
        await node.begin(url, prefix)
        yield node
    finally:
        if server.process is not None and server.process.poll() is None:
            await node.close()
        else:
            writer.close()
            await node._reading
