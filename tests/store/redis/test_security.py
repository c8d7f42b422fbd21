"""Encrypted connections, users with few rights, and passwords that nobody gets to see."""

import asyncio
import re
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pytest

from tests.servers import command, free_port, redis_cluster, redis_on_port, redis_server
from tests.store.helpers import (
    LEASE,
    Q,
    add,
    assert_sound,
    by_id,
    claim,
    claim_one,
    complete,
    edit,
    fail,
    ids_of,
    listening,
    numbers,
    run,
    spec,
    step,
    sweep,
    types_of,
)
from workers_module.errors import StoreDeniedError, StoreError
from workers_module.job.state import JobState
from workers_module.store.base import Store
from workers_module.store.open import open_store
from workers_module.store.redis.peers import version_of
from workers_module.store.redis.rights import COMMANDS, rule
from workers_module.store.schedules import FireSlot, PutSchedule, ScheduleDefinition
from workers_module.store.values import Beat, Promote, QueuePatch, RenewReply, WorkerInfo

pytestmark = pytest.mark.redis

SECRET = "canary-s3cret"


# --- encrypted --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Papers:
    """An authority made for these tests, and what it has signed."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def sign(self, name: str, *alternatives: str) -> None:
        """Make a key and a certificate called ``name``."""
        subject = ("-subj", f"/CN={name}")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        openssl(
            self.folder,
            "req",
            "-x509",
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            *subject,
            *key,
            "-out",
            f"{name}.crt",
            "-days",
            "2",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            *(("-addext", f"subjectAltName={','.join(alternatives)}") if alternatives else ()),
        )


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("tls")
    openssl(
        folder,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=an authority",
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-days",
        "2",
    )
    made = Papers(folder)
    made.sign("server", "IP:127.0.0.1")
    made.sign("stranger", "DNS:elsewhere.example")
    made.sign("client")
    return made


def encrypted(papers: Papers, name: str, port: int, clients: str) -> tuple[str, ...]:
    return (
        *("--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1"),
        *("--tls-cert-file", str(papers.folder / f"{name}.crt"), "--tls-key-file", str(papers.folder / f"{name}.key")),
        *("--tls-ca-cert-file", str(papers.authority), "--tls-auth-clients", clients),
    )


@contextmanager
def encrypted_server(papers: Papers, name: str = "server", clients: str = "no") -> Generator[int]:
    """Run a server that speaks TLS only, and give its port."""
    port = free_port()
    try:
        with redis_server(*encrypted(papers, name, port, clients)):
            yield port
    except pytest.fail.Exception as error:
        if "Failed finding TLS support" in str(error):
            pytest.skip("this server was built without TLS")
        raise


async def test_a_job_goes_its_way_encrypted(papers: Papers) -> None:
    with encrypted_server(papers) as port:
        store = open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={papers.authority}")
        info = await store.open()
        assert not any("certificate" in warning for warning in info.warnings)
        renewer = store.renewer()
        async with listening(store) as ear:
            await add(store, "a")
            (job,) = (await store.wait(step(1), 5.0)).jobs
            assert renewer.renew(Q, [job.held], LEASE) == RenewReply()
            await complete(store, job)
            assert "completed" in types_of(await ear.heard())
        renewer.close()
        await store.close()


async def test_who_the_server_is_gets_checked(papers: Papers) -> None:
    with encrypted_server(papers) as port:
        with pytest.raises(StoreDeniedError, match="ssl_ca_certs"):
            await open_store(f"rediss://127.0.0.1:{port}").open()
        store = open_store(f"rediss://127.0.0.1:{port}?ssl_cert_reqs=none&ssl_check_hostname=false")
        info = await store.open()
        await store.close()
        assert any("not checked" in warning for warning in info.warnings)


async def test_a_certificate_of_another_host_is_refused(papers: Papers) -> None:
    with encrypted_server(papers, "stranger") as port, pytest.raises(StoreDeniedError, match=r"127\.0\.0\.1"):
        await open_store(f"rediss://127.0.0.1:{port}?ssl_ca_certs={papers.authority}").open()


async def test_a_server_may_want_a_certificate_too(papers: Papers) -> None:
    with encrypted_server(papers, clients="yes") as port:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={papers.authority}"
        with pytest.raises(StoreError):
            await open_store(url).open()
        mine = papers.folder / "client"
        store = open_store(f"{url}&ssl_certfile={mine}.crt&ssl_keyfile={mine}.key")
        await store.open()
        await add(store, "a")
        renewer = store.renewer()
        assert renewer.renew(Q, [(await claim_one(store)).held], LEASE) == RenewReply()
        renewer.close()
        await store.close()


# --- users ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def port() -> Iterator[int]:
    with redis_on_port() as (port, _):
        yield port


async def everything(store: Store) -> None:
    """Have a store do each thing it can do."""
    await store.open()
    renewer = store.renewer()
    async with listening(store) as ear:
        await store.add([spec("child", parent=1), spec("parent"), spec("late", delay_ms=60_000), spec(priority=3)])
        await store.add([spec("tagged", tags=("gpu", "eu")), spec("only", dedup=None)])
        (child,) = (await store.wait(step(1), 5.0)).jobs
        assert renewer.renew(Q, [child.held], LEASE) == RenewReply()
        assert await store.renew(Q, [child.held], LEASE) == RenewReply()
        assert await edit(store, "child", progress=b"1", log_lines=("line",)) == "ok"
        await complete(store, child)
        await fail(store, await claim_one(store))
        await run(store, "tagged", tags=("eu",))
        assert (await store.logs(Q, "child")).items == ["line"]
        assert (await store.children(Q, "parent")).total == 1
        assert await store.move(Q, by_id("late"), Promote()) == ["late"]
        assert "completed" in types_of(await ear.heard())
    now = await store.now()
    tick = spec(name="tick")
    put = PutSchedule(id="s", definition=ScheduleDefinition(name="tick", every_ms=1_000), slot=now, job=tick)
    assert await store.schedule(Q, [put, FireSlot(id="s", from_slot=now, slot=now + 9, job=tick)]) == [True, True]
    assert len(await store.schedules(Q)) == 1
    await sweep(store)
    await store.configure(Q, QueuePatch(paused=True))
    await store.configure(Q, QueuePatch(paused=False))
    assert await store.lease("lock", "ada", 1_000) is not None
    assert len(await store.locks()) == 1
    await store.worker(
        Beat(WorkerInfo(id="ada", host="h", pid=1, version="1", started=now, queues=(Q,), seen=now), 9_000)
    )
    assert [worker.id for worker in await store.workers()] == ["ada"]
    assert await store.queues() == [Q]
    await store.metrics(Q)
    records = (await store.page(Q, list(JobState), limit=100)).items
    await assert_sound(store)
    await store.obliterate(Q, force=True)
    assert await store.restore(records, on_conflict="error") == len(records)
    renewer.close()
    await store.close()


def granted(port: int, prefix: str = "bull") -> list[str]:
    """Return the documented rights, as the server on this port takes them."""
    return rule(prefix, version=version_of(command(port, "INFO", "server")["redis_version"])).split()


def user(port: int, *words: str) -> None:
    command(port, "ACL", "SETUSER", "jobs", "reset", "on", f">{SECRET}", *words)


async def test_a_user_with_the_documented_rights_can_do_all(port: int) -> None:
    user(port, *granted(port))
    await everything(open_store(f"redis://jobs:{SECRET}@127.0.0.1:{port}/0?wait_replicas=0"))
    assert command(port, "ACL", "LOG") == []


async def test_so_it_is_on_a_cluster() -> None:
    with redis_cluster() as nodes:
        for port, _ in nodes:
            user(port, *granted(port, "{bull}"))
        await everything(open_store(f"redis+cluster://jobs:{SECRET}@127.0.0.1:{nodes[0][0]}", prefix="{bull}"))
        assert [command(port, "ACL", "LOG") for port, _ in nodes] == [[], [], []]


def test_the_documented_rights_are_those_the_scripts_need() -> None:
    lua = files("workers_module.store.redis").joinpath("lua")
    texts = [path.read_text() for path in lua.iterdir()]
    used = {word.lower() for text in texts for word in re.findall(r"\bp?call\('([A-Z]+)'", text)}
    # These two belong to a clock of the caller's, which is for tests.
    assert used - {"pexpireat", "pexpiretime"} <= {command.partition("|")[0] for command in COMMANDS}


def test_the_readme_names_the_rights() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    found = re.search(r"ACL SETUSER jobs on >password ([^`]*)```", readme)
    assert found is not None
    assert found[1].split() == rule().split()


async def open_and_add(store: Store) -> None:
    await store.open()
    await store.add([spec("a", delay_ms=60_000)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("~bull:*", "+@all", "-evalsha"), "evalsha"),
        (("~bull:*", "+@all", "-zadd"), "zadd"),
        (("~other:*", "+@all"), "key"),
        (("~bull:*", "+@all", "-info"), "info"),
    ],
)
async def test_a_right_that_is_missing_is_named(port: int, words: tuple[str, ...], says: str) -> None:
    user(port, *words)
    store = open_store(f"redis://jobs:{SECRET}@127.0.0.1:{port}")
    with pytest.raises(StoreDeniedError, match=says) as caught:
        await open_and_add(store)
    await store.close()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("form", ["redis://jobs:{}@127.0.0.1:{}", "redis+cluster://jobs:{}@127.0.0.1:{}"])
async def test_a_wrong_password_is_seen_nowhere(port: int, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    store = open_store(form.format(SECRET, port))
    with pytest.raises(StoreDeniedError) as caught:
        await store.open()
    seen = f"{caught.value!s} {caught.value!r} {store!r} {store.__dict__!r} {caplog.text}"
    assert SECRET not in seen
    assert "jobs:***@" in str(caught.value) or "cluster" in form


async def test_a_password_that_changes_meanwhile(port: int) -> None:
    user(port, *granted(port))
    store = open_store(f"redis://jobs:{SECRET}@127.0.0.1:{port}")
    await store.open()
    await add(store, "a")
    waiting = asyncio.ensure_future(store.wait(step(1, queue="other"), 30.0))
    command(port, "ACL", "DELUSER", "jobs")
    with pytest.raises(StoreError):
        await waiting
    with pytest.raises(StoreDeniedError):
        await claim(store)
    user(port, *granted(port))
    assert ids_of(await claim(store)) == ["a"]
    assert await numbers(store) == {"active": 1}
    await store.close()


async def test_a_password_that_crosses_the_network_bare_is_warned_of() -> None:
    from workers_module.store.redis.address import Address

    def told(url: str) -> list[str]:
        return list(Address(url).warnings())

    assert any("unencrypted" in text for text in told(f"redis://jobs:{SECRET}@example.com"))
    assert any("unencrypted" in text for text in told(f"redis+cluster://:{SECRET}@10.0.0.1,10.0.0.2"))
    for url in (
        "redis://jobs:x@localhost",
        "rediss://jobs:x@example.com",
        "redis://example.com",
        "unix:///s?password=x",
    ):
        assert told(url) == []
