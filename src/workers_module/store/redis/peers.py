"""The servers and the other clients: what they tell of themselves."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from time import time as unix_seconds
from typing import Any, Final

from workers_module.errors import ConfigurationError
from workers_module.store.redis.address import LIBRARY, Address
from workers_module.store.redis.connect import Links
from workers_module.store.redis.keys import Keys, hash_tag
from workers_module.store.redis.layout import Layout
from workers_module.store.redis.servers import Servers
from workers_module.store.values import Capability, StoreInfo, WorkerInfo
from workers_module.url import QueueKind

OLDEST: Final = (6, 2)
"""The oldest server this works with; a clock of the caller's needs `OLDEST_WITH_CLOCK`."""
OLDEST_WITH_CLOCK: Final = (7, 0)
_SKEW_SECONDS: Final = 2.0
"""What counts as another time: the second that matters to BullMQ, and one that the answer may take."""
_LOOKED_AT: Final = 10_000
"""How many keys are looked through at start for the settings of queues that other clients have written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What one server says of itself at start."""

    place: str
    version: str
    speaks: tuple[int, ...]
    """The version of Redis whose commands it has."""
    clustered: bool
    policy: str
    """What it does when its memory is full."""
    keeps: bool
    """Whether it writes to disk, or does not tell."""
    ahead_s: float
    """How far this machine's clock is ahead of its own."""
    peers: tuple[str, ...]
    """Versions of BullMQ that have written here and whose layout is another one."""

    def warnings(self, *, allow_eviction: bool) -> Iterator[str]:
        """Return what its operator should know.

        Raises:
            ConfigurationError: It deletes keys when its memory is full.
        """
        if self.policy != "noeviction":
            text = f"{self.place} deletes keys when its memory is full (maxmemory-policy {self.policy})"
            if not allow_eviction:
                raise ConfigurationError(
                    f"{text}, and so would lose jobs; set it to noeviction, or pass allow_eviction=True "
                    "(in a URL ?allow_eviction=true)"
                )
            yield f"{text}: jobs can be lost."
        if not self.keeps:
            yield f"{self.place} writes nothing to disk: jobs end with the server."
        if abs(self.ahead_s) > _SKEW_SECONDS:
            way = "ahead of" if self.ahead_s > 0 else "behind"
            yield (
                f"This machine's clock is {abs(self.ahead_s):.0f} s {way} that of {self.place}: this package goes by "
                "the server's, Node.js peers by their own; have all clocks set by one source."
            )
        yield from map(warning, self.peers)


async def look_around(
    servers: Servers, address: Address, layout: Layout, keys: Keys, *, own_clock: bool, allow_eviction: bool
) -> StoreInfo:
    """Ask every server about itself, find out whether they are a cluster, and return what `Store.open` is to tell.

    Raises:
        ConfigurationError: A server cannot be used.
    """
    (first, *others) = await servers.each()
    found = [await inspect(servers, first, keys.pattern())]
    if found[0].clustered and not layout.clustered:
        # Its address is that of one node only: the others are found through it.
        layout.clustered = True
        servers.doubt()
        (first, *others) = await servers.each()
        found = [await inspect(servers, first, keys.pattern())]
    found += [await inspect(servers, links, keys.pattern()) for links in others]
    keys.clustered = layout.clustered
    oldest = min(found, key=lambda one: one.speaks)
    if oldest.speaks < OLDEST:
        raise ConfigurationError(
            f"{oldest.place} is version {oldest.version}; this needs Redis 6.2, or Valkey, or newer"
        )
    if own_clock and oldest.speaks < OLDEST_WITH_CLOCK:
        raise ConfigurationError(f"{oldest.place} is version {oldest.version}; a clock of your own needs Redis 7.0")
    warnings: list[str] = []
    for one in found:
        warnings += one.warnings(allow_eviction=allow_eviction)
    if keys.clustered and not hash_tag(keys.head):
        warnings.append(
            f"{address.place} is a cluster, and the key prefix has no braces: each queue's name needs them "
            f"('{{mail}}'), or put the prefix in braces ('{{{keys.prefix}}}')."
        )
    warnings += address.warnings()
    return StoreInfo(
        kind=QueueKind.REDIS,
        version=oldest.version,
        place=f"{address.place} (prefix {keys.prefix})",
        capabilities=frozenset({Capability.DURABLE, Capability.SHARED, Capability.SERVER}),
        warnings=tuple(dict.fromkeys(warnings)),
    )


async def inspect(servers: Servers, links: Links, pattern: str) -> Inspected:
    """Ask one server about itself, and about who has written there; ``pattern`` is that of queues' settings."""
    info, clock, policy, save, scan = await servers.run(
        links,
        [
            ("INFO",),
            ("TIME",),
            ("CONFIG", "GET", "maxmemory-policy"),
            ("CONFIG", "GET", "save"),
            ("SCAN", "0", "MATCH", pattern, "COUNT", _LOOKED_AT),
        ],
    )
    told = parse_info(servers.answer(info, links))
    seconds, micros = servers.answer(clock, links)
    metas: list[bytes] = [] if isinstance(scan, Exception) else scan[1]
    versions = await servers.run(links, [("HGET", meta, "version") for meta in metas]) if metas else []
    peers = sorted({reply.decode() for reply in versions if isinstance(reply, bytes)})
    return Inspected(
        place=links.place,
        version=told.get("valkey_version") or told.get("redis_version", "0"),
        speaks=version_of(told.get("redis_version", "0")),
        clustered=told.get("cluster_enabled") == "1",
        policy=config_value(policy) or told.get("maxmemory_policy", "noeviction"),
        keeps=told.get("aof_enabled", "0") != "0" or bool(config_value(save)) or isinstance(save, Exception),
        ahead_s=unix_seconds() - int(seconds) - int(micros) / 1_000_000,
        peers=tuple(filter(is_other, peers)),
    )


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
