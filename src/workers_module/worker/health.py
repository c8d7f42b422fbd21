"""The probe server of a worker: ``/live``, ``/ready`` and ``/startup``, each 200 or 503 with its checks as JSON.

It answers from a thread of its own, so that it can tell of an event loop that stands still. Whether a process is alive
never depends on the store; whether it is ready does.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from concurrent.futures import TimeoutError as NoAnswerError
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from workers_module.errors import ConfigurationError

_log = logging.getLogger(__name__)

LOOP_LIMIT_S: Final = 60.0
"""An event loop that has not turned for so long is taken for dead, as leases are (reliability §3.3)."""
TURN_S: Final = 1.0
ANSWER_S: Final = 2.0
"""How long the store may take to answer a probe."""

Check = Mapping[str, Any]


@dataclass(slots=True)
class Health:
    """What the probes look at; the worker's loop writes it, the server's threads read it.

    Attributes:
        started: Whether wiring is over.
        turned: When the event loop last turned, on the monotonic clock.
        at_work: Whether the loops of the worker run.
        claiming: Whether new jobs are taken.
        ask_store: Answers when the store does, and raises when it cannot; None before it was ever reached.
        limit_s: A loop that has not turned for so long is dead.
    """

    at_work: Callable[[], bool]
    claiming: Callable[[], bool]
    ask_store: Callable[[], Awaitable[object]] | None = None
    limit_s: float = LOOP_LIMIT_S
    started: bool = False
    turned: float = field(default_factory=time.monotonic)
    _loop: asyncio.AbstractEventLoop | None = None

    async def turn(self) -> None:
        """Show that the event loop turns, until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self.turned = time.monotonic()
            await asyncio.sleep(TURN_S)

    def live(self) -> dict[str, Check]:
        """Return whether each loop turns, and when it last did."""
        age = time.monotonic() - self.turned
        checks: dict[str, Check] = {
            "event loop": {"ok": age < self.limit_s, "age_s": round(age, 1), "limit_s": self.limit_s}
        }
        if self.started:
            checks["workers"] = {"ok": self.at_work()}
        return checks

    def ready(self) -> dict[str, Check]:
        """Return whether new jobs are taken and the store answers."""
        return {"claiming": {"ok": self.started and self.claiming()}, "store": self._asked()}

    def startup(self) -> dict[str, Check]:
        """Return whether the application is built and its workers run."""
        return {"started": {"ok": self.started}}

    def _asked(self) -> Check:
        loop = self._loop
        if loop is None or not loop.is_running():
            return {"ok": False, "error": "the event loop does not run"}
        if self.ask_store is None:
            return {"ok": False, "error": "not reached yet"}
        begun = time.monotonic()
        asking = asyncio.run_coroutine_threadsafe(_awaited(self.ask_store), loop)
        try:
            asking.result(ANSWER_S)
        except NoAnswerError:
            asking.cancel()
            return {"ok": False, "error": f"no answer within {ANSWER_S:g} s"}
        except Exception as error:
            # Whatever it is, it is the answer to the probe. Its text may tell more than a probe should.
            return {"ok": False, "error": type(error).__name__}
        return {"ok": True, "ms": round((time.monotonic() - begun) * 1_000, 1)}


async def _awaited(ask: Callable[[], Awaitable[object]]) -> None:
    await ask()


@contextmanager
def serving(health: Health, host: str, port: int) -> Generator[int]:
    """Serve probes meanwhile; gives the port.

    Args:
        health: What is asked.
        host: Where to listen.
        port: 0 takes any free one.

    Raises:
        ConfigurationError: The port cannot be listened on.
    """
    handler = type("Probe", (_Probe,), {"health": health})
    try:
        server = ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise ConfigurationError(
            f"the probe server cannot listen on {host}:{port}: {error.strerror}; choose another --health-port"
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="probes", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


class _Probe(BaseHTTPRequestHandler):
    health: Health
    timeout = 5.0

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/live":
                self._answer(self.health.live())
            case "/ready":
                self._answer(self.health.ready())
            case "/startup":
                self._answer(self.health.startup())
            case _:
                self._send(404, {"error": "there are /live, /ready and /startup"})

    def _answer(self, checks: Mapping[str, Check]) -> None:
        failing = [name for name, check in checks.items() if not check["ok"]]
        self._send(503 if failing else 200, {"ok": not failing, "failing": failing, "checks": checks})

    def _send(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(raw)

    def version_string(self) -> str:
        return "workers"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's word
        _log.debug(format, *args)
