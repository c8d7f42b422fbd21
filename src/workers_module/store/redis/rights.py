"""What a Redis user may do at least to be this store's."""

from typing import Final

COMMANDS: Final = (
    # what is sent
    *("eval", "evalsha", "bzpopmin", "xread", "scan", "unlink", "hgetall", "hget", "smembers", "time", "info", "ping"),
    *(
        "select",
        "client|setname",
        "client|id",
        "client|unblock",
        "client|list",
        "config|get",
        "cluster|slots",
        "asking",
        "role",
    ),
    "wait",
    # what the scripts run
    *("del", "exists", "get", "mget", "set", "incr", "incrby", "persist", "pexpire", "pttl"),
    *("hdel", "hexists", "hincrby", "hkeys", "hlen", "hmget", "hset", "hsetnx", "sadd", "scard", "srem"),
    *("lindex", "llen", "lpos", "lpush", "lrange", "lrem", "ltrim", "rpop", "rpush"),
    *("zadd", "zcard", "zcount", "zpopmin", "zrange", "zrangebyscore", "zrem", "zremrangebyrank"),
    *("zrevrangebyscore", "zscore", "xadd", "xinfo|stream", "xrange", "xrevrange", "xtrim"),
    "memory|usage",
)
"""All commands, as ``ACL SETUSER`` names them.

``client|list`` and ``config|get`` may be left out: then Node's workers are not listed, and the server's settings not
looked at. So may ``client|id`` and ``client|unblock``: then delayed jobs start up to a tenth of a second late; and
``memory|usage``: then nobody warns of a queue that takes too much memory.
``cluster|slots`` and ``asking`` are for a cluster, ``role`` is for sentinels, ``wait`` for replicas.
"""
_KNOWS_LIBRARIES: Final = (7, 2)


def rule(prefix: str = "bull", *, version: tuple[int, ...] = _KNOWS_LIBRARIES) -> str:
    """Return the words behind ``ACL SETUSER <name> on ><password>``.

    Args:
        prefix: The store's key prefix.
        version: The server's: those before 7.2 refuse to hear of ``client|setinfo``.

    Example:
        ``ACL SETUSER jobs on >secret``, and then ``~bull:* +eval +evalsha …``
    """
    further = ("client|setinfo",) if version >= _KNOWS_LIBRARIES else ()
    return " ".join([f"~{prefix}:*", *(f"+{command}" for command in (*COMMANDS, *further))])
