"""The server and the other clients: what they tell of themselves."""

from collections.abc import Iterable, Iterator
from typing import Any

from workers_module.store.base import WorkerInfo
from workers_module.store.redis.connect import LIBRARY
from workers_module.store.redis.keys import Keys


def parse_info(raw: bytes) -> dict[str, str]:
    """Read the answer to INFO."""
    lines = (line.partition(":") for line in raw.decode("utf-8", "replace").splitlines())
    return {name: value for name, _, value in lines}


def version_of(text: str) -> tuple[int, ...]:
    """Return a version's first two numbers."""
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def config_value(reply: Any) -> str:
    """Return the value in a reply to CONFIG GET; empty when it was refused or is unknown."""
    if isinstance(reply, Exception) or not reply:
        return ""
    value: bytes = reply[1]
    return value.decode()


def is_other(version: str) -> bool:
    """Return whether what a queue's settings call their writer is another BullMQ than the one whose layout this is."""
    return version.startswith("bullmq:") and not version.startswith("bullmq:6.")


def warning(version: str) -> str:
    """Return what to say of such a peer."""
    if version.startswith("bullmq:5."):
        return f"A peer is {version}: pausing a queue can lose jobs in a fleet with BullMQ 5; upgrade it to 6."
    return f"A peer is {version}, which this version does not know; jobs are kept in the layout of BullMQ 6."


def node_workers(keys: Keys, listing: str, now: int, ours: Iterable[WorkerInfo]) -> Iterator[WorkerInfo]:
    """Read Node's workers out of the list of clients; those of this package (``ours``) have told of themselves."""
    # A server before 7.2 does not say which library a client uses.
    known = {keys.client_name(queue, worker.id) for worker in ours for queue in worker.queues}
    for line in listing.splitlines():
        client = {field: value for field, _, value in (part.partition("=") for part in line.split(" "))}
        name = client.get("name", "")
        if not name.startswith(keys.head) or name.endswith(":qe") or name in known or client.get("lib-name") == LIBRARY:
            continue
        encoded, _, worker = name[len(keys.head) :].partition(":w:")
        queue = keys.decoded(encoded)
        if queue is not None:
            age = client.get("age", "0")
            started = now - int(age) * 1_000 if age.isdigit() else now
            yield WorkerInfo(
                id=f"node-{client.get('id', '')}",
                host=client.get("addr", "").rpartition(":")[0],
                pid=0,
                version=worker or "node",
                started=started,
                queues=(queue,),
                seen=now,
            )
