import json
import logging
import os
import shlex
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from tests.servers import empty_schema, shared_redis
from workers_module.cli import process
from workers_module.cli.app import app
from workers_module.job.record import Token
from workers_module.store.open import open_store
from workers_module.store.values import Step

HERE = Path(__file__).parents[2]
TARGET = "tests.cli.shop:make_container"


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs commands in this process, as they would be typed."""

    def __call__(self, line: str, *more: str, stdin: str | None = None) -> Done:
        environment, path = dict(os.environ), list(sys.path)
        done = CliRunner().invoke(app, [*shlex.split(line), *more], input=stdin)
        # What options set is for the process of their command.
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(environment)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Done(done.exit_code, done.stdout, done.stderr)

    def ok(self, line: str, *more: str, stdin: str | None = None) -> str:
        done = self(line, *more, stdin=stdin)
        assert done.code == 0, done.err + done.out
        return done.out

    def add(self, queue: str, name: str, data: Mapping[str, Any], *options: str) -> str:
        told = json.loads(self.ok(f"jobs add {queue} {name}", json.dumps(data), "--json", *options))
        return str(told["id"])


@dataclass(frozen=True)
class Place:
    """A store on some server, and commands on it."""

    cli: Cli
    url: str
    prefix: str


@pytest.fixture(
    params=[pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("sqlite", "redis", "postgres")]
)
def place(request: pytest.FixtureRequest, here: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Commands on an empty store of each kind that other processes see, with the application of these tests."""
    prefix = "bull"
    match request.param:
        case "redis":
            address, prefix = shared_redis()
            prefix = f"{prefix}-{uuid4().hex[:12]}"
            monkeypatch.setenv("WORKERS_QUEUE__PREFIX", prefix)
        case "postgres":
            server, schema = empty_schema()
            address = f"{server}{'&' if '?' in server else '?'}schema={schema}"
        case _:
            address = f"sqlite:///{here}/jobs.db"
    monkeypatch.setenv("QUEUE_URL", address)
    monkeypatch.setenv("WORKERS_APP", TARGET)
    monkeypatch.syspath_prepend(str(HERE))
    cli = Cli()
    if request.param != "redis":
        cli.ok("migrations up")
    return Place(cli, address, prefix)


_MADE: dict[str, bytes] = {}
"""Files of stores, made once."""


def whole(file: Path) -> bytes:
    """Return a closed store's file with all that is in its log: connections that close at once leave some there."""
    with closing(sqlite3.connect(file)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert not busy
    return file.read_bytes()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; what commands do to this process is undone."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield tmp_path
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``--drain`` find out soon that nothing is left."""
    monkeypatch.setattr(process, "LOOK_S", 0.02)


@pytest.fixture
def bare(here: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands without a store and an application."""
    return Cli()


@pytest.fixture
def url(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty store in a file, which commands work on."""
    address = f"sqlite:///{here}/jobs.db"
    monkeypatch.setenv("QUEUE_URL", address)
    file = here / "jobs.db"
    if "empty" not in _MADE:
        Cli().ok("migrations up")
        _MADE["empty"] = whole(file)
    file.write_bytes(_MADE["empty"])
    return address


@pytest.fixture
def cli(url: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands on a store in a file, with the application of these tests."""
    monkeypatch.setenv("WORKERS_APP", TARGET)
    monkeypatch.syspath_prepend(str(HERE))
    return Cli()


@pytest.fixture
def ended(cli: Cli, here: Path) -> Cli:
    """Five jobs of `mail` have completed, three have failed."""
    file = here / "jobs.db"
    if "ended" in _MADE:
        file.write_bytes(_MADE["ended"])
        return cli
    for number in range(5):
        cli.add("mail", "send", {"to": f"ann{number}@example.org"}, "--id", f"good{number}")
    for number in range(3):
        cli.add("mail", "bounce", {"to": f"bob{number}"}, "--id", f"bad{number}")
    work(cli)
    _MADE["ended"] = whole(file)
    return cli


def work(cli: Cli, *options: str) -> Done:
    """Run a worker in this process until nothing is left to do."""
    done = cli("start --worker --drain", *options)
    assert done.code == 0, done.err
    return done


async def claim_and_vanish(url: str, queue: str, prefix: str = "bull") -> None:
    """Start a job as a worker does that is killed right after."""
    store = open_store(url, prefix=prefix)
    await store.open()
    reply = await store.step(Step(queue=queue, worker="gone:1:aa", token=Token("gone"), take=1, lease_ms=1))
    assert len(reply.jobs) == 1
    await store.close()
