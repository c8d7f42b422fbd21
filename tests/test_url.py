"""What the URL of a store says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers_module.errors import ConfigurationError
from workers_module.url import SCHEMES, QueueKind, check_url, mask_url


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("memory://", QueueKind.MEMORY),
        ("MEMORY://orders", QueueKind.MEMORY),
        ("sqlite:///jobs.db", QueueKind.SQLITE),
        ("sqlite:////var/lib/a%23b.db?mode=rw&prefix=app_", QueueKind.SQLITE),
        ("redis://", QueueKind.REDIS),
        ("redis://host", QueueKind.REDIS),
        ("redis://host:/", QueueKind.REDIS),
        ("redis://ada:hunter2@[::1]:6379/15/", QueueKind.REDIS),
        ("rediss://host?db=3&socket_timeout=5&allow_eviction=Yes&wait_replicas=0", QueueKind.REDIS),
        ("unix:///run/redis.sock?db=1", QueueKind.REDIS),
        ("unix://ada:hunter2@/run/redis.sock", QueueKind.REDIS),
        ("redis+cluster://one:7000,[::1]:7001,three/0", QueueKind.REDIS),
        ("redis+sentinel://ada:hunter2@one,two:26380/my-master", QueueKind.REDIS),
        ("rediss+sentinel://one/mymaster/3", QueueKind.REDIS),
        ("postgres://", QueueKind.POSTGRES),
        ("postgresql:///shop?host=/run/postgresql", QueueKind.POSTGRES),
        ("postgresql://%2Frun%2Fpostgresql/shop", QueueKind.POSTGRES),
        ("postgresql://ada@one:5432,two:5433/shop?pool_max=2&wakeup=poll&prepare=off", QueueKind.POSTGRES),
    ],
)
def test_what_can_work_is_taken(url: str, kind: QueueKind) -> None:
    assert check_url(url) is kind


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "this is not a URL; write sqlite:///jobs.db"),
        ("jobs.db", "this is not a URL"),
        ("redis:hunter2@host", "this is not a URL"),
        ("hunter2?x://host", "this is not a URL"),
        ("mysql://ada:hunter2@host/db", "unknown scheme 'mysql'; known: memory, "),
        ("redis+other://ada:hunter2@host", "unknown scheme 'redis+other'"),
        ("memory://?size=1", "no parameters"),
        ("memory://[::1", "cannot be read"),
        ("sqlite://", "memory://"),
        ("sqlite:///", "memory://"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite://:memory:", "memory://"),
        ("sqlite://jobs.db", "three slashes"),
        ("sqlite:///jobs.db?mode=ro", "mode=ro; write rwc, or rw"),
        ("sqlite:///jobs.db?cache=shared&mode=rw", "not cache"),
        ("sqlite:///jobs#1.db", "%23"),
        ("redis://[::1", "its host cannot be read"),
        ("redis://ada:hunter2@host:many/0", "its port cannot be read; write a number"),
        ("redis://ada:hunter2@host:0/0", "its port cannot be read"),
        ("redis://ada:hunter2@host:65536", "its port cannot be read"),
        ("redis://ada:hunter2", "its port cannot be read"),
        ("redis://ada:hunter2/@host", "its port cannot be read"),
        ("redis://ada:hunter2?x@host", "its port cannot be read"),
        ("redis://ada:hunter2#x@host", "its port cannot be read"),
        ("redis://ada:hunter2@one,two:7000", "write redis+cluster:// or redis+sentinel://"),
        ("redis://ada:hunter2@host/zero", "redis://ada:***@host/zero: its database is no number; write redis://"),
        ("redis://host/-1", "its database is no number"),
        ("redis://host/1/2", "its database is no number"),
        ("redis://host?db=zero", "db=zero; write a number"),
        ("redis://host?wait_replicas=-1", "wait_replicas=-1; write a number from 0 up"),
        ("redis://host?queue_bytes=much", "queue_bytes=much; write a number from 0 up"),
        ("redis://host?connections=0", "connections=0; write a number from 1 up"),
        ("redis://host?allow_eviction=perhaps", "allow_eviction=perhaps; write true or false"),
        ("redis://host/0#main", "'#'"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("redis+cluster://one,,two", "names no host"),
        ("redis+cluster://one:many,two", "its port cannot be read"),
        ("redis+cluster://one,two/3", "one database"),
        ("redis+cluster://one?db=3", "one database"),
        ("redis+sentinel:///mymaster", "names no host"),
        ("redis+sentinel://host", "names the master"),
        ("redis+sentinel://host/0/mymaster", "names the master"),
        ("redis+sentinel://host/mymaster/zero", "names the master"),
        ("postgresql://ada:hunter2@host:many/shop", "its port cannot be read"),
        ("postgresql://one:5432,two:many/shop", "its port cannot be read"),
        ("postgresql://host/shop?pool_max=0", "pool_max=0; write a number from 1 up"),
        ("postgresql://host/shop?wakeup=never", "wakeup=never; write listen or poll"),
        ("postgresql://host/shop?prepare=", "prepare=; write on or off"),
        ("postgresql://host/shop#main", "'#'"),
    ],
)
def test_what_can_never_work_is_refused_without_a_secret(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_url(url)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


@given(scheme=st.sampled_from(sorted(SCHEMES)), rest=st.text(alphabet="a0:/?#@[],=&%.", max_size=12))
def test_what_is_refused_is_refused_as_configuration(scheme: str, rest: str) -> None:
    try:
        kind = check_url(f"{scheme}://{rest}")
    except ConfigurationError:
        return
    assert kind is SCHEMES[scheme]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pw@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:pw@host", "redis://:***@host"),
        ("redis://user@host", "redis://user@host"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("redis://u:p/w#y@host/0", "redis://u:***@host/0"),
        ("redis://u:p?password=x@host/0", "redis://u:***"),
        ("redis://u?password=x:y@host/0", "redis://u:***"),
        ("postgresql://h:1/d?password=x@y&a=b", "postgresql://h:***"),
        ("postgresql://h/d?password=x@y&a=b", "postgresql://h/d?password=***&a=b"),
        ("redis://u:p@w@host/0", "redis://u:***@host/0"),
        ("redis://u:p://w@host/0", "redis://u:***@host/0"),
        ("postgresql://h/d?user=u&password=pw&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://h/d?sslpassword=pw", "postgresql://h/d?sslpassword=***"),
        ("sqlite:///home/a:b@c/jobs.db", "sqlite:///home/a:b@c/jobs.db"),
        ("u:pw@host", "u:***@host"),
        ("memory://", "memory://"),
        ("redis://u:pw", "redis://u:***"),
        ("redis://h:6379x/0", "redis://h:***"),
        ("redis+cluster://h:1,u:pw/0", "redis+cluster://h:1,u:***"),
        ("redis+cluster://h:1,[::1]:2,h/0", "redis+cluster://h:1,[::1]:2,h/0"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@given(password=st.text(min_size=1), user=st.from_regex(r"[a-z]*", fullmatch=True))
def test_passwords_are_masked_whatever_they_are(password: str, user: str) -> None:
    shown = mask_url(f"redis://{user}:{password}@host.example:1/0")

    assert shown in {f"redis://{user}:***@host.example:1/0", f"redis://{user}:***"}
    assert shown.endswith("/0") or "?" in password
