"""The README's code runs as it stands."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.pages import blocks, execute

README = Path(__file__).parent.parent / "README.md"
BLOCKS = [block.text for block in blocks(README, "python")]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    return execute(README, "readme_page")


def test_every_block_runs(page: ModuleType) -> None:
    assert len(BLOCKS) > 5
    assert {"EmailProcessor", "ImageProcessor", "TickerWorker", "create_app"} <= vars(page).keys()


def test_the_testing_block_passes(page: ModuleType) -> None:
    test: Callable[[], Awaitable[None]] = vars(page)["test_welcome"]

    async def run() -> None:
        await test()

    asyncio.run(run())


@pytest.mark.parametrize("url", [None, "sqlite:///jobs.db"])
def test_the_quickstart_runs_when_pasted(tmp_path: Path, url: str | None) -> None:
    (tmp_path / "app.py").write_text(BLOCKS[0], encoding="utf-8")
    env = {**os.environ} | ({} if url is None else {"QUEUE_URL": url})
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["to ada@example.org: Welcome, Ada!", "message_id='<1@mail>'"]
