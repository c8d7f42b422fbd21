"""An application whose handlers run outside of the worker: in threads with a loop of their own, or in processes."""

import os
import threading
import time

from dishka import AsyncContainer, FromDishka, Provider, Scope, make_async_container

from workers_module import JobContext, Sandbox, WorkersModule, job


class Place:
    """Built once in each container: where is that?"""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.thread = threading.current_thread().name


@job(queue="process", sandbox=Sandbox.PROCESS)
async def in_process(data: int, place: FromDishka[Place], ctx: JobContext) -> dict[str, int]:
    ctx.log.warning("in a process", data={"n": data})
    await ctx.progress(50)
    return {"n": data, "pid": os.getpid(), "container": place.pid}


@job(queue="process", sandbox=Sandbox.PROCESS)
def hang(data: float) -> None:
    time.sleep(data)


@job(queue="process", sandbox=Sandbox.PROCESS)
async def not_json(data: None) -> object:
    return object()


@job(queue="thread", sandbox=Sandbox.THREAD)
async def in_thread(data: int, place: FromDishka[Place], ctx: JobContext) -> dict[str, int | str]:
    ctx.log.warning("in a thread", data={"n": data})
    await ctx.progress(50)
    return {"n": data, "pid": os.getpid(), "thread": threading.current_thread().name, "container": place.thread}


def make_container() -> AsyncContainer:
    places = Provider(scope=Scope.APP)
    places.provide(Place)
    return make_async_container(places, WorkersModule.for_root(processors=[in_process, hang, not_json, in_thread]))
