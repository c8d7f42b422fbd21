"""The web application beside which the workers of `shop` run."""

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.cli.shop import make_container
from workers_module import workers_lifespan


def create_app() -> Starlette:
    async def home(request: object) -> PlainTextResponse:
        return PlainTextResponse("shop")

    return Starlette(routes=[Route("/", home)], lifespan=workers_lifespan(make_container()))
