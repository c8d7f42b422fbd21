"""Where the jobs of a test rest: in memory, or on a real store in a place of their own."""

import asyncio
import os
import tempfile
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never
from urllib.parse import parse_qsl, urlencode, urlsplit
from uuid import uuid4

from workers_module.clock import FrozenClock
from workers_module.job.record import JobRecord
from workers_module.job.state import JobState
from workers_module.settings import url_for_tests
from workers_module.store.base import Store
from workers_module.store.memory import MemoryStore
from workers_module.store.open import drop_store, open_store
from workers_module.url import QueueKind, url_kind

Reader = Callable[[str, tuple[JobState, ...]], list[JobRecord]]
"""Reads the jobs of a queue in some states without awaiting."""

_PAGE: Final = 1_000
_NAME: Final = "workers_test"


async def open_place(
    stack: AsyncExitStack, store: str | None, clock: FrozenClock, *, truncate: bool
) -> tuple[Store, Reader]:
    """Return an open store, and a way to read jobs from it; see `worker_test` for the arguments.

    Args:
        stack: Closes the store, and deletes what was only for this test.
        store: A kind of store, or a URL.
        clock: The time on that store.
        truncate: Empty the place first and keep it.
    """
    if store is None or store == QueueKind.MEMORY:
        memory = MemoryStore(clock=clock)
        await memory.open()
        stack.push_async_callback(memory.close)
        return memory, lambda queue, states: _at_once(_records(memory, queue, states))
    if store == QueueKind.SQLITE:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="worker-test-"))
        store = f"sqlite:///{Path(folder) / 'jobs.db'}"
    url = store if "://" in store else url_for_tests(QueueKind(store))
    make = _maker(url, _shared_place() if truncate else f"{_NAME}_{uuid4().hex[:12]}", clock)
    opened = make()
    await opened.open()
    stack.push_async_callback(opened.close)
    if truncate:
        for queue in await opened.queues():
            while not await opened.obliterate(queue, force=True):
                pass
    else:
        stack.push_async_callback(drop_store, opened)
    return opened, partial(_in_thread, make)


def _shared_place() -> str:
    """Return where tests that truncate keep their jobs; processes of pytest-xdist would empty each other's."""
    process = os.environ.get("PYTEST_XDIST_WORKER")
    return f"{_NAME}_{process}" if process else _NAME


def _maker(url: str, place: str, clock: FrozenClock) -> Callable[[], Store]:
    """Return what makes clients of one place on a store."""
    kind = url_kind(url)
    match kind:
        case QueueKind.REDIS:
            # In braces, so that it is one slot on a cluster.
            return partial(open_store, url, prefix=f"{{{place}}}", clock=clock)
        case QueueKind.POSTGRES:
            parts = urlsplit(url)
            given = dict(parse_qsl(parts.query, keep_blank_values=True)) | {"schema": place}
            return partial(open_store, parts._replace(query=urlencode(given)).geturl(), clock=clock)
        case QueueKind.SQLITE | QueueKind.MEMORY:
            # No test outlives a power cut, and waiting for the disk takes most of its time.
            return partial(open_store, url, clock=clock, synchronous="normal")
        case _:
            assert_never(kind)


async def _records(store: Store, queue: str, states: tuple[JobState, ...]) -> list[JobRecord]:
    found: list[JobRecord] = []
    while True:
        page = await store.page(queue, states, start=len(found), limit=_PAGE)
        found += page.items
        if not page.items or len(found) >= page.total:
            return found


def _at_once(call: Coroutine[Any, Any, list[JobRecord]]) -> list[JobRecord]:
    """Return what a coroutine of the memory store returns; none of its calls ever waits."""
    try:
        call.send(None)
    except StopIteration as end:
        records: list[JobRecord] = end.value
        return records
    call.close()
    raise AssertionError("the memory store waited")


def _in_thread(make: Callable[[], Store], queue: str, states: tuple[JobState, ...]) -> list[JobRecord]:
    """Read with a client and an event loop of its own, so that a test can look without awaiting."""
    found: list[JobRecord] = []

    async def read() -> None:
        store = make()
        await store.open()
        try:
            found.extend(await _records(store, queue, states))
        finally:
            await store.close()

    thread = threading.Thread(target=asyncio.run, args=(read(),), name="reading jobs")
    thread.start()
    thread.join()
    return found
