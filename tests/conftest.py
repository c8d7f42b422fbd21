"""What all tests share: one event loop library, one seed in CI, and no settings but their own."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from workers_module.settings import WorkersSettings, variables

_CI = bool(os.environ.get("CI"))
settings.register_profile("quick", max_examples=50, deadline=None, derandomize=_CI)
settings.register_profile(
    "full", max_examples=1_000, deadline=None, derandomize=_CI, suppress_health_check=[HealthCheck.too_slow]
)
# Who runs tests in the background may ignore what a terminal sends; the processes that tests start would too.
for number, answer in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, answer)
settings.load_profile("full" if os.environ.get("WORKERS_TEST_FULL") else "quick")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no variable and no file outside of the test steer it."""
    known = {name for variable in variables() for name in variable.names}
    for name in list(os.environ):
        if name in known or (name.startswith(("WORKERS_", "QUEUE_")) and not name.startswith("WORKERS_TEST_")):
            monkeypatch.delenv(name)
    monkeypatch.setitem(WorkersSettings.model_config, "env_file", None)
    monkeypatch.setitem(WorkersSettings.model_config, "secrets_dir", None)
