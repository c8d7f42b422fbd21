"""``workers shell``: a Python prompt with ``await``, on the application."""

import ast
import asyncio
import code
import concurrent.futures
import contextlib
import inspect
import signal
import types
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import anyio.to_thread

from workers_module.cli.app import Face
from workers_module.cli.output import clean, result, say, table
from workers_module.cli.selecting import document, find_job
from workers_module.cli.session import Session, opened
from workers_module.cli.stats import COLUMNS, cells, heads, rows
from workers_module.di.dispatcher import Dispatcher

face = Face(single=True)

_HELP: Final = ".jobs  figures by worker   .queues  names of queues   .job ID  one job   .help  this   Ctrl-D leaves"


@face.command("shell")
async def shell() -> None:
    """Open a Python prompt with await on the application: inspector, admin, scheduler, dispatcher, queue(name)."""
    async with opened(shared=False, new=True) as session:
        names: dict[str, Any] = {
            "__name__": "__console__",
            "__doc__": None,
            "container": session.container,
            "settings": session.settings,
            "inspector": session.inspector,
            "admin": session.admin,
            "scheduler": session.scheduler,
            "dispatcher": await session.container.get(Dispatcher),
            "queue": session.queue,
        }
        prompt = Prompt(names, asyncio.get_running_loop(), _commands(session))
        public = ", ".join(name for name in names if not name.startswith("_"))
        say(f"{session.info.place}; here: {public}\n{_HELP}")
        with _interruptible(prompt):
            await anyio.to_thread.run_sync(prompt.talk, abandon_on_cancel=True)


Dot = Callable[[str], Coroutine[Any, Any, None]]


class Prompt(code.InteractiveConsole):
    """Reads in a thread and runs on the event loop, so that jobs and awaits go on while a person thinks."""

    def __init__(self, names: dict[str, Any], loop: asyncio.AbstractEventLoop, dots: Mapping[str, Dot]) -> None:
        """Take what is known at the prompt, the loop, and the commands that begin with a dot."""
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._loop = loop
        self._dots = dots
        self._running: concurrent.futures.Future[None] | None = None

    def talk(self) -> None:
        """Read and run lines until the end of input."""
        with contextlib.suppress(SystemExit):
            self.interact(banner="", exitmsg="")

    def interrupt(self) -> None:
        """Cancel what runs; Ctrl-D leaves."""
        if self._running is not None:
            self._running.cancel()
        else:
            say("\nCtrl-D leaves")

    def push(self, line: str, *args: Any, **kwargs: Any) -> bool:
        """Run a command that begins with a dot, or give the line to Python."""
        name, _, rest = line.strip().partition(" ")
        if self.buffer or not name.startswith(".") or not name[1:].isalpha():
            return super().push(line, *args, **kwargs)
        dot = self._dots.get(name)
        if dot is None:
            say(f"no command {name}; {_HELP}")
        else:
            self._run(dot(rest.strip()))
        return False

    def runcode(self, code: types.CodeType) -> None:
        """Run what was compiled, on the event loop."""
        self._run(self._evaluated(code))

    async def _evaluated(self, code: types.CodeType) -> None:
        value = types.FunctionType(code, self.locals)()
        if inspect.isawaitable(value):
            await value

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._running = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            self._running.result()
        except concurrent.futures.CancelledError:
            say("interrupted")
        except SystemExit:
            raise
        except BaseException:
            self.showtraceback()
        finally:
            self._running = None


def _commands(session: Session) -> dict[str, Dot]:
    async def jobs(_: str) -> None:
        table(heads(COLUMNS), cells(await rows(session), COLUMNS), empty="no jobs")

    async def queues(_: str) -> None:
        for name in await session.queues():
            result(clean(name), None)

    async def job(id: str) -> None:
        if not id:
            say(".job ID, or .job QUEUE/ID")
            return
        try:
            found = await find_job(session, id, None)
        except Exception as error:
            say(str(error))
            return
        for key, value in document(found).items():
            result(clean(f"{key:<14}{value}"), None)

    async def help_(_: str) -> None:
        say(_HELP)

    return {".jobs": jobs, ".queues": queues, ".job": job, ".help": help_}


@contextlib.contextmanager
def _interruptible(prompt: Prompt) -> Any:
    before = signal.getsignal(signal.SIGINT)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, prompt.interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
