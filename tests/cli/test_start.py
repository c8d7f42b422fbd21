"""``workers start`` as a process: it works, it ends when it is told to, and it says what it does."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, work
from tests.cli.processes import Running, running, until

LOG = {"WORKERS_LOG_FORMAT": "console"}


def states(cli: Cli, queue: str) -> list[str]:
    found = cli(f"jobs list --queue {queue} --json").json
    return sorted(job["state"] for job in found)


def begun(worker: Running, mark: Path) -> int:
    """Wait until a job has said that it runs, and return the id of its process."""
    until(lambda: (mark.exists() and mark.read_text()) or worker.process.poll() is not None, "the job to begin")
    return int(mark.read_text())


class TestOneProcess:
    def test_tells_what_runs_and_ends_at_sigterm(self, cli: Cli, here: Path) -> None:
        with running(here, "start", "--worker", "--only", "mail,slow,night", environment=LOG) as worker:
            worker.wait_for("Ready in")
            text = worker.said
            cli.add("mail", "send", {"to": "ann"})
            worker.wait_for(r"mail +send #1 +completed")
            worker.send()

            assert worker.end() == 0
            assert "stopped; no job was running" in worker.said
        assert "MailProcessor" in text
        assert "send, bounce" in text
        assert "nightly" in text
        assert "Europe/Warsaw" in text
        assert "LogWorker" not in text
        assert states(cli, "mail") == ["completed"]

    def test_a_job_has_its_grace_and_is_then_handed_back(self, cli: Cli, here: Path) -> None:
        mark = here / "mark"
        id = cli.add("slow", "nap", {"seconds": 600, "mark": str(mark)})
        with running(here, "start", "-w", "--grace", "100ms", "--no-cron", environment=LOG) as worker:
            begun(worker, mark)
            worker.send()

            assert worker.end() == 0
            assert "stopped; 0 finished, 1 handed back" in worker.said
        job = cli(f"jobs show slow/{id} --json").json
        assert (job["state"], job["attempts_made"], job["crashes"]) == ("waiting", 0, 0)

    def test_a_second_signal_stops_at_once(self, cli: Cli, here: Path) -> None:
        mark = here / "mark"
        cli.add("slow", "nap", {"seconds": 600, "mark": str(mark)})
        with running(here, "start", "-w", "--grace", "10m", environment=LOG) as worker:
            begun(worker, mark)
            worker.send(signal.SIGINT)
            worker.wait_for("once more stops at once")
            worker.send(signal.SIGINT)

            assert worker.end() == 0
        assert states(cli, "slow") == ["waiting"]

    @pytest.mark.parametrize("order", ["alone", "beside a web server", "under a supervisor"])
    def test_one_that_blocks_the_event_loop_is_ended_by_force(self, cli: Cli, here: Path, order: str) -> None:
        mark = here / "mark"
        id = cli.add("slow", "seize", {"seconds": 600, "mark": str(mark)})
        options = {
            "alone": ("-w",),
            "beside a web server": ("--all", "tests.cli.shop_site:create_app", "--port", "0"),
            "under a supervisor": ("-w", "--processes", "2"),
        }[order]
        with running(
            here, "start", *options, "--grace", "100ms", environment={"WORKERS_KILL_AFTER": "200ms"}
        ) as worker:
            child = begun(worker, mark)
            worker.send()

            assert worker.end() == 1
        assert "ended by force" in worker.said
        assert not alive(child)
        # Its lease lapses, and then another worker takes it.
        assert cli(f"jobs show slow/{id} --json").json["state"] == "active"

    def test_handlers_that_do_not_end_keep_no_process(self, cli: Cli, here: Path) -> None:
        marks = {name: here / name for name in ("stubborn", "block")}
        for name, mark in marks.items():
            cli.add("slow", name, {"seconds": 600, "mark": str(mark)})
        with running(here, "start", "-w", "--grace", "100ms", environment={"WORKERS_KILL_AFTER": "200ms"}) as worker:
            for mark in marks.values():
                begun(worker, mark)
            worker.send()

            assert worker.end() == 0
        assert states(cli, "slow") == ["waiting", "waiting"]

    def test_runs_on_uvloop(self, cli: Cli, here: Path) -> None:
        pytest.importorskip("uvloop")
        cli.add("mail", "send", {"to": "ann"})
        with running(here, "start", "-w", "--drain", "--loop", "uvloop") as worker:
            assert worker.end() == 0
        assert states(cli, "mail") == ["completed"]

    def test_ends_when_drained(self, cli: Cli) -> None:
        for number in range(3):
            cli.add("mail", "send", {"to": f"ann{number}"})
        cli.add("mail", "send", {"to": "later"}, "--delay", "1d")

        work(cli)

        assert states(cli, "mail") == ["completed", "completed", "completed", "delayed"]

    def test_ends_after_so_many_jobs(self, cli: Cli) -> None:
        for number in range(3):
            cli.add("mail", "send", {"to": f"ann{number}"})

        assert cli("start --worker --concurrency 1 --max-jobs 1").code == 0
        assert states(cli, "mail").count("completed") in {1, 2}

    def test_takes_jobs_of_its_tags_alone(self, cli: Cli) -> None:
        cli.add("tagged", "render", {"to": "gpu"})
        cli.add("mail", "send", {"to": "ann"})

        work(cli)
        assert states(cli, "tagged") == ["waiting"]

        cli.ok("start --worker=gpu,cpu --drain")
        assert states(cli, "tagged") == ["completed"]

    def test_no_cron_writes_no_schedule(self, cli: Cli) -> None:
        work(cli, "--no-cron")
        assert not cli("cron list --json").json[0]["stored"]
        work(cli)
        assert cli("cron list --json").json[0]["stored"]

    def test_run_is_short_for_it(self, url: str, here: Path) -> None:
        with running(here, "run", "tests.cli.shop:make_container", environment={**LOG, "WORKERS_APP": ""}) as worker:
            worker.wait_for("Ready in")
            worker.send()
            assert worker.end() == 0

    def test_stats_shows_figures_and_ends(self, cli: Cli) -> None:
        assert cli.ok("start --worker --stats").split()[0] == "name"

    def test_log_for_machines_is_json(self, cli: Cli, here: Path) -> None:
        cli.add("mail", "bounce", {"to": "ann"})
        with running(here, "start", "-w", "--drain", environment={"WORKERS_LOG_FORMAT": "json"}) as worker:
            assert worker.end() == 0
        lines = [json.loads(line) for line in worker.said.splitlines()]
        ended = next(line for line in lines if line.get("outcome") == "failed")
        assert (ended["queue"], ended["job_name"], ended["job_id"], ended["level"]) == (
            "mail",
            "bounce",
            "1",
            "warning",
        )
        assert ended["duration_ms"] > 0
        assert (ended["attempt"], ended["attempts"]) == (1, 1)
        assert str(worker.process.pid) in ended["worker_id"]


class TestProbes:
    def test_follow_the_life_of_a_worker(self, cli: Cli, here: Path) -> None:
        mark = here / "mark"
        cli.add("slow", "nap", {"seconds": 600, "mark": str(mark)})
        with running(here, "start", "-w", "--health-port", "0", "--grace", "10m", environment=LOG) as worker:
            port = worker.wait_for(r"127.0.0.1:(\d+)/live")[1]
            worker.wait_for("Ready in")
            begun(worker, mark)
            for probe in ("live", "ready", "startup"):
                assert f"is {probe}" in cli.ok(f"health --port {port} --probe {probe}")
            worker.send()
            until(lambda: status(port, "ready") == 503, "readiness to end")
            assert status(port, "live") == 200
            done = cli(f"health --port {port} --probe ready")
            assert (done.code, "not ready: claiming" in done.out) == (1, True)
            worker.send()
            assert worker.end() == 0
        done = cli(f"health --port {port}")
        assert (done.code, "no worker answers" in done.err) == (1, True)

    def test_a_port_in_use_is_told(self, cli: Cli, here: Path) -> None:
        with running(here, "start", "-w", "--health-port", "0", environment=LOG) as worker:
            port = worker.wait_for(r"127.0.0.1:(\d+)/live")[1]
            done = cli(f"start -w --health-port {port}")
            worker.send()
            worker.end()
        assert done.code == 3
        assert f"cannot listen on 127.0.0.1:{port}" in done.err


def status(port: str, probe: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{probe}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


class TestSupervisor:
    def test_starts_again_what_dies_and_passes_signals_on(self, cli: Cli, here: Path) -> None:
        marks = [here / "one", here / "two"]
        cli.add("slow", "die", {"mark": str(marks[0])})
        with running(here, "start", "-w", "--processes", "2", "--no-cron", "--grace", "1s") as supervisor:
            first = begun(supervisor, marks[0])
            supervisor.wait_for(r"process \d ended with exit code 9; starting it again")
            cli.ok("jobs cancel --name die --yes")
            cli.add("slow", "nap", {"seconds": 600, "mark": str(marks[1])})
            second = begun(supervisor, marks[1])
            supervisor.send()

            assert supervisor.end() == 0
        assert first != second
        assert not alive(second)
        assert "stopping 2 processes" in supervisor.said
        assert f"pid {second} stopped; 0 finished, 1 handed back" in supervisor.said

    def test_what_cannot_start_is_not_tried_again(self, cli: Cli, here: Path) -> None:
        with running(here, "start", "-w", "--processes", "2", "--only", "nobody") as supervisor:
            assert supervisor.end() == 3
        assert "only= names 'nobody'" in supervisor.said
        assert "starting it again" not in supervisor.said

    def test_children_end_with_it(self, cli: Cli, here: Path) -> None:
        mark = here / "mark"
        cli.add("slow", "nap", {"seconds": 600, "mark": str(mark)})
        with running(here, "start", "-w", "--processes", "2", "--grace", "100ms") as supervisor:
            child = begun(supervisor, mark)
            supervisor.send(signal.SIGKILL)
            supervisor.end()
            until(lambda: not alive(child), "the child to end")
        assert states(cli, "slow") == ["waiting"]

    def test_reload_starts_anew_when_a_file_changes(self, cli: Cli, here: Path) -> None:
        code = here / "code"
        code.mkdir()
        (code / "late.py").write_text("from tests.cli.shop import make_container\nprint('first', flush=True)\n")
        options = (
            "start",
            "-w",
            "--reload",
            "--reload-dir",
            "code",
            "--app",
            "late:make_container",
            "--app-dir",
            "code",
        )
        with running(here, *options, environment=LOG) as supervisor:
            supervisor.wait_for("Ready in")
            (code / "late.py").write_text("from tests.cli.shop import make_container\nprint('second', flush=True)\n")
            supervisor.wait_for(r"late\.py changed")
            supervisor.wait_for(r"second[\s\S]*Ready in")
            supervisor.send()
            assert supervisor.end() == 0


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class TestServer:
    def test_serves_and_works_in_one_process(self, cli: Cli, here: Path) -> None:
        options = ("start", "--all", "tests.cli.shop_site:create_app", "--port", "0")
        with running(here, *options, environment=LOG) as server:
            port = server.wait_for(r"running on http://127.0.0.1:(\d+)")[1]
            cli.add("mail", "send", {"to": "ann"})
            server.wait_for(r"mail +send #1 +completed")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                assert answer.read() == b"shop"
            server.send()
            assert server.end() == 0

    @pytest.mark.parametrize("option", ["--all", "--server-and-worker"])
    def test_jobs_are_handed_back_and_keep_no_process(self, cli: Cli, here: Path, option: str) -> None:
        marks = {name: here / name for name in ("nap", "stubborn", "block")}
        for name, mark in marks.items():
            cli.add("slow", name, {"seconds": 600, "mark": str(mark)})
        options = ("start", option, "tests.cli.shop_site:create_app", "--port", "0", "--grace", "100ms")
        with running(here, *options, environment={"WORKERS_KILL_AFTER": "200ms"}) as server:
            for mark in marks.values():
                begun(server, mark)
            server.send()

            assert server.end() == 0
            assert "stopped; 0 finished, 3 handed back" in server.said
        assert states(cli, "slow") == ["waiting"] * 3

    def test_a_second_signal_stops_at_once_with_a_request_under_way(self, cli: Cli, here: Path) -> None:
        mark = here / "mark"
        cli.add("slow", "nap", {"seconds": 600, "mark": str(mark)})
        options = ("start", "--all", "tests.cli.shop_site:create_app", "--port", "0", "--grace", "10m")
        with running(here, *options, environment=LOG) as server:
            port = server.wait_for(r"running on http://127.0.0.1:(\d+)")[1]
            begun(server, mark)
            with socket.create_connection(("127.0.0.1", int(port))) as open_request:
                open_request.sendall(b"GET /wait HTTP/1.1\r\nHost: shop\r\n\r\n")
                server.wait_for("a request waits")
                server.send(signal.SIGINT)
                server.wait_for("once more stops at once")
                server.send(signal.SIGINT)

                assert server.end() == 0
        assert states(cli, "slow") == ["waiting"]

    @pytest.mark.parametrize(
        ("line", "code", "says"),
        [
            ("start", 2, "say what to start"),
            ("start --worker --all tests.cli.shop_site:create_app", 2, "one of"),
            ("start --worker=gpu --all tests.cli.shop_site:create_app", 2, "tags do not go with a web server"),
            ("start --all tests.cli.shop_site:create_app --drain", 2, "--drain goes with --worker"),
            ("start --all tests.cli.shop_site:create_app --processes 2", 2, "--processes goes with --worker"),
            ("start --all tests.cli.shop_site:nothing", 3, "nothing"),
            ("start --all nowhere:app", 3, "nowhere"),
            ("start --worker --loop trio", 2, "asyncio and uvloop"),
            ("start --worker --grace 5", 2, "has no unit"),
            ("start --worker --only nobody", 3, "known workers"),
            ("start --worker --health-port 99999", 2, "65535"),
            ("start --worker --sideways", 2, "--sideways"),
        ],
    )
    def test_what_cannot_be_meant_is_told(self, cli: Cli, line: str, code: int, says: str) -> None:
        done = cli(line)

        assert done.code == code, done.err
        assert says in done.err

    def test_a_port_in_use_is_told_before_a_job_is_taken(self, cli: Cli) -> None:
        cli.add("mail", "send", {"to": "ann"})
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = cli(f"start --all tests.cli.shop_site:create_app --port {port}")

        assert done.code == 3
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another" in done.err
        assert states(cli, "mail") == ["waiting"]

    def test_an_application_that_does_not_start_is_a_line_and_a_code(self, cli: Cli, here: Path) -> None:
        (here / "sick.py").write_text(
            "from contextlib import asynccontextmanager\nfrom starlette.applications import Starlette\n"
            "@asynccontextmanager\nasync def lifespan(app):\n    raise RuntimeError('no database')\n    yield\n"
            "app = Starlette(lifespan=lifespan)\n"
        )
        with running(here, "start", "--all", "sick:app", "--port", "0", environment=LOG) as server:
            assert server.end() == 1
        assert "no database" in server.said
        assert "ExceptionGroup" not in server.said

    def test_tags_of_the_environment_do_not_go_with_it(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORKERS_TAGS", "gpu")

        done = cli("start --all tests.cli.shop_site:create_app")

        assert done.code == 2
        assert "unset it" in done.err
