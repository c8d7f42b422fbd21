"""The web application beside which the workers of `shop` run."""

import asyncio
import logging

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.cli.shop import make_container
from workers_module import workers_lifespan


def create_app() -> Starlette:
    async def home(request: object) -> PlainTextResponse:
        return PlainTextResponse("shop")

    async def wait(request: object) -> PlainTextResponse:
        logging.getLogger(__name__).warning("a request waits")
        await asyncio.sleep(600)
        return PlainTextResponse("at last")

    return Starlette(routes=[Route("/", home), Route("/wait", wait)], lifespan=workers_lifespan(make_container()))
