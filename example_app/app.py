"""The wiring: one container for the web application and its workers."""

from dishka import AsyncContainer, Provider, Scope, make_async_container
from dishka.integrations.fastapi import DishkaRoute, FromDishka, setup_dishka
from fastapi import APIRouter, FastAPI

from example_app.billing import billing_feature
from example_app.billing.charges import Charge, ChargeProcessor
from example_app.emails import EmailProcessor, EmailQueue, Welcome
from example_app.prices import TickerWorker
from example_app.reports import ReportArgs, ReportWorker, rebuild_index
from example_app.services import Journal, Mailer, Prices
from workers_module import Dispatcher, JobHandle, WorkersModule, workers_lifespan


class Shop:
    """What the web handlers call: ordinary code that enqueues by naming the handler."""

    def __init__(self, emails: EmailQueue, jobs: Dispatcher) -> None:
        self.emails = emails
        self.jobs = jobs

    async def sign_up(self, email: str, name: str) -> JobHandle[object]:
        return await self.emails.add("welcome", Welcome(email=email, name=name), priority=1)

    async def buy(self, order: str, cents: int, email: str) -> JobHandle[str]:
        return await self.jobs.perform_later(ChargeProcessor.charge, Charge(order=order, cents=cents, email=email))

    async def report(self, title: str) -> str:
        return await self.jobs.run_job(ReportWorker, ReportArgs(title=title), timeout="5s", wait="20s")

    async def rebuild(self) -> JobHandle[str]:
        return await self.jobs.perform_later(rebuild_index, None)


def make_container() -> AsyncContainer:
    """Build the container: services, the workers module, and the billing feature."""
    shop = Provider(scope=Scope.APP)
    shop.provide_all(Mailer, Prices, Journal)
    shop.provide(Shop, scope=Scope.REQUEST)
    module = WorkersModule.for_root(
        queues=[EmailQueue],
        processors=[EmailProcessor, ReportWorker, rebuild_index, TickerWorker],
    )
    return make_async_container(shop, module, *billing_feature())


router = APIRouter(route_class=DishkaRoute)


@router.post("/users", status_code=202)
async def sign_up(email: str, name: str, shop: FromDishka[Shop]) -> dict[str, str]:
    handle = await shop.sign_up(email, name)
    return {"job": handle.id}


@router.post("/orders/{order}", status_code=202)
async def buy(order: str, cents: int, email: str, shop: FromDishka[Shop]) -> dict[str, str]:
    handle = await shop.buy(order, cents, email)
    return {"job": handle.id}


@router.post("/reports/{title}")
async def report(title: str, shop: FromDishka[Shop]) -> dict[str, str]:
    return {"file": await shop.report(title)}


def create_app() -> FastAPI:
    """Return the web application; it runs the workers too, unless WORKERS_AUTO_START says otherwise.

    ``uvicorn --factory example_app.app:create_app``
    """
    container = make_container()
    app = FastAPI(title="Shop", lifespan=workers_lifespan(container))
    app.include_router(router)
    setup_dishka(container, app)
    return app
