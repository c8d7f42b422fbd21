"""Adding jobs, also inside a transaction of the application's."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import asyncpg
from anyio.from_thread import start_blocking_portal

from workers_module.errors import ConfigurationError, JobNotFoundError
from workers_module.job.state import JobState
from workers_module.store.postgres.asking import add_args, joined
from workers_module.store.postgres.calls import ALL, Calls
from workers_module.store.postgres.connect import translate
from workers_module.store.postgres.foreign import add_inside, add_inside_sync
from workers_module.store.postgres.notify import channel_of
from workers_module.store.postgres.reading import SHOWN
from workers_module.store.values import Added, JobSpec

_EXISTING: Final[tuple[Literal["same_id", "deduplicated"] | None, ...]] = (None, "same_id", "deduplicated")


class Guest:
    """Adds jobs inside transactions of others.

    Args:
        calls: The store's.
        listens: Whether workers are woken by notifications.

    Attributes:
        home: What tells the store's database from another; known once the store is open.
    """

    def __init__(self, calls: Calls, *, listens: bool) -> None:
        self._calls = calls
        self.home = ""
        self._listens = listens
        self._made: set[tuple[str, str | None]] = set()

    async def add(self, specs: Sequence[JobSpec], tx: object, now: int | None) -> list[Added]:
        """Do what `Store.add` says, with ``tx``."""
        calls = self._calls
        if new := self._new_places(specs):
            # Now: inside the other transaction, they would keep everybody waiting for it.
            await calls.fetch(calls.sql.make, *zip(*new, strict=True))
            self._made.update(new)
        rows = await add_inside(tx, calls.sql.add, self._args(specs, now=now, notify=True), calls.address.place)
        return read_added(specs, rows)

    def add_sync(self, specs: Sequence[JobSpec], tx: object, *, notify: bool, now: int | None) -> list[Added]:
        """Do the same in a synchronous transaction, from any thread."""
        if new := self._new_places(specs):
            with start_blocking_portal() as portal:
                portal.call(self._make_apart, new)
            self._made.update(new)
        args = self._args(specs, now=now, notify=notify)
        return read_added(specs, add_inside_sync(tx, self._calls.sql.add, args, self._calls.address.place))

    def _args(self, specs: Sequence[JobSpec], *, now: int | None, notify: bool) -> list[Any]:
        channel = channel_of(self._calls.address.schema) if notify and self._listens else None
        return add_args(specs, home=self.home, channel=channel, now=self._calls.instant(now))

    def _new_places(self, specs: Sequence[JobSpec]) -> list[tuple[str, str | None]]:
        """Return queues and sets of tags that this store has not yet made, in one order for all."""
        return sorted({(spec.queue, joined(spec.tags)) for spec in specs} - self._made, key=str)

    async def _make_apart(self, new: Sequence[tuple[str, str | None]]) -> None:
        """Make queues and sets of tags from a thread that has no part in the store's loop."""
        address = self._calls.address
        connection = await address.connect("queues")
        try:
            await connection.fetch(self._calls.sql.make, *zip(*new, strict=True))
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise translate(error, address.place) from error
        finally:
            connection.terminate()


def tell_added(calls: Calls, specs: Sequence[JobSpec], added: Sequence[Added]) -> None:
    """Wake those who wait for what was added."""
    ready: dict[str, int] = {}
    for spec, one in zip(specs, added, strict=True):
        # A delayed job changes how long everybody may sleep; a tagged one is for some waiter nobody knows here.
        jobs = ALL if spec.tags or one.state not in {JobState.WAITING, JobState.PRIORITIZED} else 1
        ready[spec.queue] = ready.get(spec.queue, 0) + jobs
        if spec.parent is not None and not isinstance(spec.parent, int):
            ready[spec.parent.queue] = ALL
    for queue, jobs in ready.items():
        calls.changed(queue, jobs)


def read_added(specs: Sequence[JobSpec], rows: Sequence[Any]) -> list[Added]:
    """Turn the rows of ``add_1`` into what became of each spec.

    Raises:
        JobNotFoundError: A parent is unknown.
        ConfigurationError: A job would have two parents, or the transaction belongs to another database.
    """
    first = rows[0]
    if first[0] == -4:
        raise ConfigurationError(
            "tx belongs to another database than this store: a transaction cannot reach over two of them"
        )
    if first[0] == -1:
        raise JobNotFoundError(first[4], first[1])
    if first[0] < 0:
        place: int = first[5]
        spec = specs[place - 1]
        what = "names itself as its parent" if first[0] == -2 else f"is already a child of {first[4]}:{first[1]}"
        raise ConfigurationError(
            f"queue {spec.queue!r}: job {spec.id} {what}; give the child another id, or leave its parent out"
        )
    found = {row[0]: row for row in rows}
    return [
        Added(found[place][1], SHOWN[found[place][2]], _EXISTING[found[place][3]]) for place in range(1, len(specs) + 1)
    ]
