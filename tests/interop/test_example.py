"""The example beside a NestJS service: its producer in Node.js, our processor; and the plan's coverage."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.apps import Place
from tests.interop.peer import HERE, PACKAGES
from tests.interop.raw import Raw

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "example_app" / "node"


def play(folder: Path, modules: Path, place: Place) -> tuple[list[str], str]:
    """Run both commands of the README; what the producer says, and what the application says."""
    shutil.copy(EXAMPLE / "producer.mjs", folder)
    (folder / "node_modules").symlink_to(modules / "node_modules")
    env = {**os.environ, "QUEUE_URL": place.url, "WORKERS_QUEUE__PREFIX": place.prefix}
    command = [sys.executable, "-m", "uvicorn", "--factory", "example_app.app:create_app", "--uds", str(folder / "s")]
    producer = ["node", "producer.mjs", "grace@example.org", "Grace"]
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)
    try:
        done = subprocess.run(producer, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr + log.read_text()
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    finally:
        server.kill()
        server.wait()
    return done.stdout.splitlines(), log.read_text()


async def test_the_examples_processor_runs_what_a_node_service_adds(
    place: Place, raw: Raw, modules: Path, tmp_path: Path
) -> None:
    said, log = play(tmp_path, modules, place)
    assert said == ["welcome #1 added", "sent as <1@shop.example>"]
    assert "email    welcome #1 completed: <1@shop.example> to grace@example.org" in log
    found = await raw.job("1", "email")
    assert json.loads(found["returnvalue"]) == {"message_id": "<1@shop.example>"}


def test_the_example_pins_what_is_tested() -> None:
    tested = json.loads(PACKAGES.read_text())["dependencies"]
    shown = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    assert shown == {name: tested[name] for name in shown}
    assert all(re.fullmatch(r"(npm:bullmq@)?\d+\.\d+\.\d+", version) for version in tested.values())


def test_the_readme_shows_both_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Beside a NestJS service")[2].partition("\n## ")[0].partition("\n### ")[0]
    assert "uvicorn --factory example_app.app:create_app" in section
    assert "node producer.mjs" in section


def test_every_scenario_of_the_plan_is_played() -> None:
    played: set[int] = set()
    for file in HERE.glob("test_*.py"):
        for numbers in re.findall(
            r"^@pytest\.mark\.scenario\(([\d, ]+)\)", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            played |= {int(number) for number in numbers.split(",")}
    assert played == {*range(1, 56)}


@pytest.mark.parametrize("lock", ["package-lock.json", "npm-shrinkwrap.json", "yarn.lock"])
def test_no_lock_file_is_kept(lock: str) -> None:
    assert not [path for folder in (HERE, EXAMPLE) for path in folder.rglob(lock) if "node_modules" not in path.parts]
