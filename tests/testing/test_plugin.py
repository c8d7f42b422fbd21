"""The pytest plugin in a project of somebody else's, under each of the async plugins there are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = """
import pytest
from workers_module import WorkersModule, cron, job

@job()
@cron("0 * * * *", data=1)
async def double(data: int) -> int:
    return data * 2

@pytest.fixture
def worker_providers():
    return WorkersModule.for_root(processors=[double])
"""

TESTS = """
import pytest
from shop import double
from workers_module.testing import worker_test

{mark}
async def test_the_fixture(workers):
    handle = await workers.dispatcher.perform_later(double, 4, delay="30m")
    assert await workers.drain() == 0
    assert await workers.advance("30m") == 1
    assert await handle.result() == 8

{mark}
@pytest.mark.store("sqlite")
async def test_the_store_marker(workers):
    assert await workers.advance("2h") == 2

{mark}
@pytest.mark.workers_mode("foreground_blocking")
async def test_the_mode_marker(workers):
    assert await (await workers.dispatcher.perform_later(double, 4)).result() == 8

{mark}
async def test_without_the_fixture():
    async with worker_test(processors=[double]) as t:
        await t.dispatcher.perform_later(double, 4)
        assert await t.drain() == 1
"""

ANYIO, ASYNCIO = ["-p", "anyio"], ["-p", "asyncio"]
SCOPE = "asyncio_default_fixture_loop_scope = function"
RUNNERS = {
    "anyio": ("anyio_mode = auto", [""], ANYIO),
    "pytest-asyncio": (f"asyncio_mode = auto\n{SCOPE}", [""], ASYNCIO),
    "both, by marks": (f"asyncio_mode = strict\n{SCOPE}", ["anyio", "asyncio"], [*ASYNCIO, *ANYIO]),
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_kit_works_under(runner: str, tmp_path: Path) -> None:
    setting, marks, options = RUNNERS[runner]
    (tmp_path / "shop.py").write_text(JOBS, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(
        "import pytest\nfrom shop import worker_providers\n\n"
        "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n",
        encoding="utf-8",
    )
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{setting}\nfilterwarnings = error\n", encoding="utf-8")
    for mark in marks:
        text = TESTS.format(mark=f"@pytest.mark.{mark}" if mark else "")
        (tmp_path / f"test_{mark or 'plain'}.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "workers_module", *options]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )

    assert f"{4 * len(marks)} passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


def test_a_suite_that_uses_nothing_of_it_loads_nothing_of_it() -> None:
    program = "import sys, workers_module.testing.plugin; print('dishka' in sys.modules, 'anyio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
