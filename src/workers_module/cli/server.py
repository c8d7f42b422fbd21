"""``start --all``: a web server in this process, whose lifespan runs the workers."""

import asyncio
import inspect
import os
import socket
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import anyio
import uvicorn
from uvicorn.importer import ImportFromStringError, import_from_string

from workers_module.cli import logs
from workers_module.cli.failures import ExitCode
from workers_module.cli.options import options
from workers_module.cli.output import say
from workers_module.cli.process import Wish
from workers_module.cli.stopping import Stop
from workers_module.clock import span_ms
from workers_module.errors import ConfigurationError
from workers_module.settings import WorkersSettings


class _Server(uvicorn.Server):
    """The web server. A signal stops its workers too, not only when the last connection is closed."""

    def __init__(self, config: uvicorn.Config, settings: WorkersSettings) -> None:
        super().__init__(config)
        self._stop = Stop(settings, before=lambda: None)
        self._loop = asyncio.get_running_loop()
        self._patience = anyio.CancelScope()

    def tell_end(self) -> None:
        """Log what became of the jobs that ran when it was told to stop."""
        self._stop.tell_end()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in good order; at the second signal wait for no connection."""
        self._stop.obey(sig, frame)
        if self.should_exit:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._patience.cancel)
        self.should_exit = True

    async def shutdown(self, sockets: Any = None) -> None:
        """End the server, and then, however it was asked to, the lifespan: jobs are handed back in it."""
        with self._patience:
            await super().shutdown(sockets)
        if self.force_exit:
            for request in self.server_state.tasks:
                request.cancel()
            await self.lifespan.shutdown()

    async def serve(self, sockets: Any = None) -> None:
        """Serve until told to stop, or until the supervisor is gone."""
        # uvicorn puts its own in place of these, all but that of a closed terminal.
        with self._stop.obeying(self.handle_exit):
            async with anyio.create_task_group() as group:
                group.start_soon(self._follow_supervisor)
                # uvicorn's way to say that it could not start; the reason is in the log.
                with suppress(SystemExit):
                    await super().serve(sockets)
                group.cancel_scope.cancel()

    async def _follow_supervisor(self) -> None:
        await self._stop.follow_supervisor()
        self.should_exit = self._stop.asked


async def serve(wish: Wish) -> int:
    """Serve a web application, whose lifespan runs the workers; returns the exit code."""
    settings = WorkersSettings()
    logs.configure(settings.log, level="debug" if options().verbose else None)
    target = wish.server or ""
    config = uvicorn.Config(
        target,
        host=wish.host,
        port=wish.port,
        factory=_is_factory(target),
        log_config=None,
        timeout_graceful_shutdown=max(1, span_ms(settings.shutdown_grace) // 1_000),
    )
    _must_be_free(wish.host, wish.port)
    say(f"{target} on http://{wish.host}:{wish.port}, with its workers")
    server = _Server(config, settings)
    await server.serve()
    server.tell_end()
    return ExitCode.DONE if server.started else ExitCode.FAILED


def _must_be_free(host: str, port: int) -> None:
    """Refuse a place to listen that cannot be had, before workers start and take jobs."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        # Python adds the address, which is said already.
        why = str(error.strerror).partition(" (while")[0]
        raise ConfigurationError(
            f"the web server cannot listen on {host}:{port}: {why}; choose another --host or --port"
        ) from None


def _is_factory(target: str) -> bool:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        value: Any = import_from_string(target)
    except ImportFromStringError as error:
        raise ConfigurationError(f"{target!r}: {error}") from None
    except Exception as error:
        raise ConfigurationError(f"{target!r} cannot be imported: {type(error).__name__}: {error}") from error
    return inspect.isfunction(value) and not inspect.signature(value).parameters
