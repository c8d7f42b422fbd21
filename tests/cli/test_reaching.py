"""``workers start`` where the store is away at first, or refuses: a worker waits for the one and ends at the other."""

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.cli.conftest import HERE, TARGET, Cli
from tests.cli.processes import running, until
from tests.cli.test_start import LOG, status
from tests.servers import Server, free_port, postgres_server, redis_server

KINDS: Final = [pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("redis", "postgres")]


@contextmanager
def server_of(kind: str) -> Generator[tuple[Server, str]]:
    """Run a server of one's own; gives it and its URL."""
    if kind == "redis":
        with redis_server() as server:
            yield server, f"unix://{server.address}"
    else:
        with postgres_server() as postgres:
            yield postgres, postgres.url


@pytest.fixture(scope="module", params=KINDS)
def own_server(request: pytest.FixtureRequest) -> Iterator[tuple[Server, str]]:
    """Run a server for the tests of this module, one after the other."""
    with server_of(request.param) as pair:
        yield pair


@pytest.fixture
def server(own_server: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Server:
    """Return a server that is away, and which the commands know of."""
    server, url = own_server
    monkeypatch.setenv("QUEUE_URL", url)
    server.kill()
    return server


@pytest.fixture
def cli(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("WORKERS_APP", TARGET)
    monkeypatch.syspath_prepend(str(HERE))
    return bare


def test_a_worker_waits_for_its_store(cli: Cli, here: Path, server: Server) -> None:
    port = str(free_port())
    with running(here, "start", "-w", "--health-port", port, environment=LOG) as worker:
        worker.wait_for("trying again until it works")
        answers = {probe: status(port, probe) for probe in ("live", "ready", "startup")}
        assert answers == {"live": 200, "ready": 503, "startup": 503}
        server.start()
        worker.wait_for("Ready in")
        until(lambda: status(port, "ready") == 200, "readiness")
        cli.add("mail", "send", {"to": "ann"})
        worker.wait_for(r"mail +send #1 +completed")
        worker.send()

        assert worker.end() == 0
    assert worker.said.count("trying again") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_waits_ends_when_it_is_told_to(
    here: Path, cli: Cli, server: Server, number: signal.Signals
) -> None:
    with running(here, "start", "-w", environment=LOG) as worker:
        worker.wait_for("trying again until it works")
        worker.send(number)

        assert worker.end() == 0


def test_a_producer_does_not_wait(cli: Cli, server: Server) -> None:
    done = cli("jobs add mail send {}")

    assert done.code == 4
    assert "the store cannot be reached" in done.err


@contextmanager
def wrong_password() -> Generator[str]:
    with redis_server("--requirepass", "right") as server:
        yield f"unix://:wrong@{server.address}"


@contextmanager
def too_few_rights() -> Generator[str]:
    with redis_server(lines=["user few on >few ~bull:* +ping +info"]) as server:
        yield f"unix://few:few@{server.address}"


@contextmanager
def no_database() -> Generator[str]:
    with postgres_server() as server:
        head, _, query = server.url.partition("?")
        yield f"{head.rpartition('/')[0]}/nowhere" + (f"?{query}" if query else "")


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        pytest.param(wrong_password, 4, "the store refuses us", marks=pytest.mark.redis),
        pytest.param(too_few_rights, 4, "Grant the right", marks=pytest.mark.redis),
        pytest.param(no_database, 3, "Create the database first, or correct the URL", marks=pytest.mark.postgres),
    ],
)
def test_a_worker_that_no_waiting_helps_ends(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, place: Callable[[], AbstractContextManager[str]], code: int, says: str
) -> None:
    with place() as url:
        monkeypatch.setenv("QUEUE_URL", url)
        done = cli("start --worker")

    assert done.code == code
    assert says in done.err
