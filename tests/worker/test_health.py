"""The probe server: it answers although the loop stands still, and says what is wrong."""

import json
import time
import urllib.error
import urllib.request
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from workers_module.errors import ConfigurationError, StoreUnavailableError
from workers_module.worker.health import Health, serving


async def fine() -> None:
    """Answer at once."""


async def away() -> None:
    raise StoreUnavailableError("redis://user:secret@host is not there")


def health(*, at_work: bool = True, claiming: bool = True, store: Any = fine, limit_s: float = 60.0) -> Health:
    return Health(at_work=lambda: at_work, claiming=lambda: claiming, ask_store=store, limit_s=limit_s)


def ask(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


async def asked(probed: Health, path: str) -> tuple[int, dict[str, Any]]:
    """Ask while the loop turns."""
    answer: tuple[int, dict[str, Any]] = (0, {})
    async with anyio.create_task_group() as group:
        group.start_soon(probed.turn)
        await anyio.lowlevel.checkpoint()
        with serving(probed, "127.0.0.1", 0) as port:
            answer = await run_sync(ask, port, path)
        group.cancel_scope.cancel()
    return answer


@pytest.mark.parametrize("path", ["/live", "/ready", "/startup"])
async def test_a_worker_in_order_is_200(path: str) -> None:
    probed = health()
    probed.started = True

    status, body = await asked(probed, path)

    assert (status, body["ok"], body["failing"]) == (200, True, [])


async def test_before_the_start_it_lives_and_is_not_ready() -> None:
    assert (await asked(health(), "/live"))[0] == 200
    assert (await asked(health(), "/startup"))[1]["failing"] == ["started"]
    assert (await asked(health(), "/ready"))[1]["failing"] == ["claiming"]


async def test_without_the_store_it_lives_and_is_not_ready() -> None:
    probed = health(store=away)
    probed.started = True

    assert (await asked(probed, "/live"))[0] == 200
    status, body = await asked(probed, "/ready")
    assert (status, body["failing"], body["checks"]["store"]["error"]) == (503, ["store"], "StoreUnavailableError")
    assert "secret" not in str(body)


async def test_a_worker_that_has_ended_does_not_live() -> None:
    probed = health(at_work=False)
    probed.started = True

    assert (await asked(probed, "/live"))[1]["failing"] == ["workers"]


def test_a_loop_that_stands_still_is_named() -> None:
    probed = health(limit_s=0.05)
    with serving(probed, "127.0.0.1", 0) as port:
        while time.monotonic() - probed.turned < probed.limit_s:
            time.sleep(0.01)
        status, body = ask(port, "/live")

    assert (status, body["failing"]) == (503, ["event loop"])
    assert body["checks"]["event loop"]["age_s"] >= 0


async def test_other_paths_are_404() -> None:
    assert (await asked(health(), "/metrics"))[0] == 404


def test_a_port_in_use_is_told() -> None:
    with (
        serving(health(), "127.0.0.1", 0) as port,
        pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}"),
        serving(health(), "127.0.0.1", port),
    ):
        pytest.fail("two servers on one port")
