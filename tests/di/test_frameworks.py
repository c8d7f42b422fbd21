"""A queue is the same object in a service, a FastAPI handler, a Litestar handler and a handler method."""

from typing import Annotated, Any

import fastapi
import httpx
import litestar
from dishka import FromDishka, Scope
from dishka.integrations.fastapi import DishkaRoute
from dishka.integrations.fastapi import setup_dishka as setup_fastapi
from dishka.integrations.litestar import inject as inject_litestar
from dishka.integrations.litestar import setup_dishka as setup_litestar

from tests.di.conftest import Build
from workers_module.client.queue import Queue
from workers_module.di.decorators import InjectQueue, process, processor
from workers_module.di.dispatcher import Dispatcher
from workers_module.job.job import Job


class EmailQueue(Queue[int], name="email"): ...


ByName = Annotated[Queue[int], InjectQueue("email")]
seen: list[object] = []


class Service:
    def __init__(self, by_class: EmailQueue, by_name: ByName) -> None:
        seen.extend([by_class, by_name])


@processor("email")
class P:
    @process()
    async def note(self, job: Job[int], by_class: FromDishka[EmailQueue], by_name: ByName) -> None:
        seen.extend([by_class, by_name])


router = fastapi.APIRouter(route_class=DishkaRoute)


@router.post("/note")
async def note_in_fastapi(by_class: FromDishka[EmailQueue], by_name: ByName, service: FromDishka[Service]) -> None:
    seen.extend([by_class, by_name])


@litestar.post("/note")
@inject_litestar
async def note_in_litestar(by_class: FromDishka[EmailQueue], by_name: ByName) -> None:
    seen.extend([by_class, by_name])


async def test_a_queue_is_one_object_everywhere(build: Build) -> None:
    seen.clear()
    container = build(P, queues=(EmailQueue,), provide={Service: Scope.REQUEST})
    fast = fastapi.FastAPI()
    fast.include_router(router)
    setup_fastapi(container, fast)
    lite = litestar.Litestar([note_in_litestar], openapi_config=None)
    setup_litestar(container, lite)

    for app in (fast, lite):
        transport = httpx.ASGITransport(app=_asgi(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.post("/note")).is_success
    await (await container.get(Dispatcher)).perform_now(P.note, 1)

    assert len(seen) == 8
    assert {id(one) for one in seen} == {id(await container.get(EmailQueue))}


def _asgi(app: Any) -> Any:
    return app
