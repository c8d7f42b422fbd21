"""No secret of the settings is printed by any command, in any form, whatever goes wrong."""

from pathlib import Path

import pytest

from tests.cli.conftest import HERE, TARGET, Cli
from tests.cli.processes import running
from workers_module.settings import WorkersSettings

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


@pytest.fixture
def shop(bare: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands with the application of these tests, and no store yet."""
    monkeypatch.setenv("WORKERS_APP", TARGET)
    monkeypatch.syspath_prepend(str(HERE))
    return bare


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
        worker.wait_for("trying again")
        worker.send()
        assert worker.end() == 0
    assert "127.0.0.1:1" in worker.said
    assert CANARY not in worker.said


URLS = [
    f"rediss://user:{CANARY}@127.0.0.1:1/0?ssl_ca_certs=/nowhere.pem",
    f"redis://127.0.0.1:1/0?password={CANARY}",
    f"redis://user:{CANARY}@host:port/0",
    f"redis+cluster://user:{CANARY}@127.0.0.1:1",
    f"redis+sentinel://user:{CANARY}@127.0.0.1:1/mymaster/0?sentinel_password={CANARY}",
    f"unix://user:{CANARY}@/nowhere.sock",
    f"postgresql://user:{CANARY}@127.0.0.1:1/shop",
    f"postgres://127.0.0.1:1/shop?user=ann&password={CANARY}",
    f"postgresql://user:{CANARY}@ho st:x/shop",
    f"sqlite://user:{CANARY}@host/jobs.db",
    f"memory://user:{CANARY}@host",
]
LOOKS = ("config show", "config show --json", "check -v", "stats -v", "doctor", "migrations status -v", "cron sync -v")


@pytest.mark.parametrize("url", URLS)
def test_whatever_form_the_address_has(shop: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUEUE_URL", url)
    for line in LOOKS:
        done = shop(line)
        assert CANARY not in done.out + done.err, line
        assert done.out + done.err


@pytest.mark.parametrize("way", ["option", "QUEUE_REDIS_URL", "REDIS_URL", ".env", "toml"])
def test_wherever_it_is_said(shop: Cli, here: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://user:{CANARY}@127.0.0.1:1/0"
    options: tuple[str, ...] = ()
    match way:
        case "option":
            options = ("--url", url)
        case ".env":
            (here / ".env").write_text(
                f"QUEUE_URL={url}\nWORKERS_DASHBOARD__USERNAME=ann\nWORKERS_DASHBOARD__PASSWORD={CANARY}\n"
            )
            monkeypatch.setitem(WorkersSettings.model_config, "env_file", ".env")
        case "toml":
            text = f'[queue]\nuri = "{url}"\n[dashboard]\nusername = "ann"\npassword = "{CANARY}"\n'
            (here / "workers.toml").write_text(text)
        case _:
            monkeypatch.setenv(way, url)
    for line in LOOKS:
        done = shop(line, *options)
        assert CANARY not in done.out + done.err, line
    assert "127.0.0.1:1" in shop("stats", *options).err


def test_nor_is_a_payload_in_what_is_said_of_it(shop: Cli, url: str) -> None:
    done = shop("jobs add mail send", f'{{"too": "{CANARY}"}}')

    assert done.code == 2
    assert "does not fit Mail" in done.err
    assert CANARY not in done.err
