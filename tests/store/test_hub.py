"""Waiters and hints."""

import asyncio
import threading
from collections.abc import Callable

import anyio
import pytest

from workers_module.job.record import Token
from workers_module.store.hub import Ear, Hub
from workers_module.store.values import Step

LONG = 60.0


def req(queue: str = "q", tags: tuple[str, ...] = ()) -> Step:
    return Step(queue=queue, worker="w", token=Token("t"), take=1, tags=tags)


class Sleeper:
    """A task that listens, and tells when it was hinted."""

    def __init__(self, hub: Hub, tags: tuple[str, ...] = (), queue: str = "q") -> None:
        self._hub = hub
        self._req = req(queue, tags)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> bool:
        with self._hub.listen(self._req.queue, self._req) as ear:
            return await ear.wait(LONG)

    @property
    def woken(self) -> bool:
        return self.task.done()


async def settle() -> None:
    await anyio.wait_all_tasks_blocked()


async def end(*sleepers: Sleeper) -> None:
    for sleeper in sleepers:
        sleeper.task.cancel()
    await asyncio.gather(*(sleeper.task for sleeper in sleepers), return_exceptions=True)


async def test_a_hint_between_the_look_and_the_sleep_is_kept() -> None:
    hub = Hub()
    with hub.listen("q", req()) as ear:
        hub.hint("q")
        with anyio.fail_after(5):
            assert await ear.wait(LONG) is True
        assert await ear.wait(0.001) is False


async def test_a_hint_wakes_the_longest_waiting_only() -> None:
    hub = Hub()
    sleepers = [Sleeper(hub) for _ in range(4)]
    await settle()
    hub.hint("q", 2)
    hub.hint("elsewhere", 5)
    await settle()
    assert [one.woken for one in sleepers] == [True, True, False, False]
    await end(*sleepers)


async def test_two_hints_wake_two() -> None:
    hub = Hub()
    sleepers = [Sleeper(hub) for _ in range(3)]
    await settle()
    hub.hint("q")
    hub.hint("q")
    await settle()
    assert [one.woken for one in sleepers] == [True, True, False]
    await end(*sleepers)


async def test_a_hint_goes_to_those_it_fits() -> None:
    hub = Hub()
    plain, tagged = Sleeper(hub), Sleeper(hub, ("gpu",))
    await settle()
    hub.hint("q", fits=lambda step: step.tags == ("gpu",))
    await settle()
    assert (plain.woken, tagged.woken) == (False, True)
    await end(plain, tagged)


async def test_hint_all_wakes_every_waiter_of_a_queue_or_of_all() -> None:
    hub = Hub()
    here = [Sleeper(hub) for _ in range(3)]
    there = Sleeper(hub, queue="there")
    await settle()
    hub.hint_all("q")
    await settle()
    assert all(one.woken for one in here)
    assert not there.woken
    hub.hint_all()
    await settle()
    assert there.woken
    assert hub.queues() == []


@pytest.mark.parametrize("hinted_first", [True, False])
async def test_a_waiter_cancelled_with_a_hint_hands_it_on(hinted_first: bool) -> None:
    hub = Hub()
    first, second = Sleeper(hub), Sleeper(hub)
    await settle()
    if hinted_first:
        hub.hint("q")
        first.task.cancel()
    else:
        first.task.cancel()
        hub.hint("q")
    await settle()
    assert first.task.cancelled()
    assert second.woken
    await end(second)


async def test_a_hint_is_handed_on_when_the_look_after_it_fails() -> None:
    hub = Hub()
    second = Sleeper(hub)
    await settle()

    async def look() -> None:
        with hub.listen("q", req()) as ear:
            ear.ring()
            await ear.wait(LONG)
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await look()
    await settle()
    assert second.woken


async def test_a_hint_that_was_acted_on_is_not_handed_on() -> None:
    hub = Hub()
    second = Sleeper(hub)
    await settle()
    with hub.listen("q", req()) as ear:
        ear.ring()
        await ear.wait(LONG)
    await settle()
    assert not second.woken
    await end(second)


async def test_a_hint_is_handed_to_one_with_the_same_tags_or_else_to_all() -> None:
    hub = Hub()
    plain, gpu, cpu = Sleeper(hub), Sleeper(hub, ("gpu",)), Sleeper(hub, ("cpu",))
    await settle()

    def leave(tags: tuple[str, ...]) -> None:
        with hub.listen("q", req(tags=tags)) as ear:
            ear.ring()

    leave(("gpu",))
    await settle()
    assert (plain.woken, gpu.woken, cpu.woken) == (False, True, False)
    leave(("gpu",))
    await settle()
    assert plain.woken
    assert cpu.woken


async def test_an_alarm_rings_while_somebody_listens() -> None:
    hub = Hub()
    rung: list[str] = []

    def ring(name: str) -> Callable[[], None]:
        return lambda: rung.append(name)

    hub.alarm("q", 0.0, ring("nobody listens"))
    with hub.listen("q", req()) as ear:
        hub.alarm("q", 0.0, ring("replaced"))
        hub.alarm("q", 0.001, ring("kept"))
        await ear.wait(0.02)
        hub.alarm("q", 0.0, ring("taken back"))
        hub.alarm("q", None, ring("nothing"))
        hub.alarm("q", 0.01, ring("left behind"))
    await anyio.sleep(0.02)
    assert rung == ["kept"]


async def test_a_call_from_a_thread_runs_on_the_listeners_loop() -> None:
    hub = Hub()
    here = threading.get_ident()
    ran: list[int] = []
    hub.run(lambda: ran.append(0))
    assert ran == []
    with hub.listen("q", req()) as ear:
        hub.run(lambda: ran.append(threading.get_ident()))

        def call() -> None:
            ran.append(threading.get_ident())
            ear.ring()

        await anyio.to_thread.run_sync(hub.run, call)
        with anyio.fail_after(5):
            assert await ear.wait(LONG)
    assert ran == [here, here]


async def test_waiters_are_counted_by_their_hint() -> None:
    hub = Hub()
    ears: list[Ear] = [hub.listen("q", req()), hub.listen("q", req(tags=("gpu",)))]
    with ears[0], ears[1]:
        hub.hint("q")
        assert (hub.count("q", hinted=True), hub.count("q", hinted=False)) == (1, 1)
        assert hub.count("q", hinted=True, fits=lambda step: bool(step.tags)) == 0
        ears[0].hinted = False
    assert not hub.waiting("q")
