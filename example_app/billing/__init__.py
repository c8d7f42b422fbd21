"""Billing: a feature with a queue and a processor of its own, added to the application by one line in `app`."""

from dishka import Provider, Scope

from example_app.billing.charges import ChargeProcessor
from example_app.services import PaymentGateway
from workers_module import WorkersModule


def billing_feature() -> tuple[Provider, Provider]:
    """Return what the application adds to its container."""
    own = Provider(scope=Scope.APP)
    own.provide(PaymentGateway)
    return own, WorkersModule.for_feature("billing", processors=[ChargeProcessor])
