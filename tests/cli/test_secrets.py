"""No secret of the settings is printed by any command, in any form, whatever goes wrong."""

from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.processes import running

CANARY = "c4n4ry"
LINES = [
    "config show",
    "config show --json",
    "config env",
    "jobs list",
    "jobs list -v",
    "stats",
    "doctor -v",
    "check",
    "check -v --json",
    "queues pause mail -v",
    "cron list -v",
    "migrations status -v",
    "health",
    "shell",
    "start --worker -v",
    "start --worker --only nobody -v",
]


@pytest.mark.parametrize(
    "url", [f"redis://user:{CANARY}@127.0.0.1:1/0", f"nothing://user:{CANARY}@host/0", f"{CANARY}"]
)
def test_secrets_are_in_no_output(bare: Cli, here: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERS_APP", "tests.cli.shop:make_container")
    monkeypatch.setenv("QUEUE_URL", url)
    monkeypatch.setenv("WORKERS_DASHBOARD__USERNAME", "ann")
    monkeypatch.setenv("WORKERS_DASHBOARD__PASSWORD", CANARY)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    for line in LINES:
        if line.startswith("start --worker -v") and url.startswith("redis"):
            continue  # it waits for the store, below
        done = bare(line, stdin="settings\nsettings.queue\n")
        assert CANARY not in done.out + done.err, line
        assert done.out + done.err


def test_nor_in_the_log_of_a_worker_without_its_store(bare: Cli, here: Path) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:1/0"
    with running(here, "start", "-w", "-v", environment={"QUEUE_URL": url}) as worker:
        assert worker.end() == 4
    assert "127.0.0.1:1" in worker.said
    assert CANARY not in worker.said
