"""Prices: a schedule in a class that has no queue, under a lock that the whole fleet shares."""

from example_app.services import Journal, Prices
from workers_module import CronExpression, DistributedLockService, cron


class TickerWorker:
    """Selected as ``ticker`` in ENABLED_WORKERS. Each tick runs once in the whole fleet, in a scope of its own."""

    def __init__(self, prices: Prices, locks: DistributedLockService, journal: Journal) -> None:
        self.prices = prices
        self.locks = locks
        self.journal = journal

    @cron(CronExpression.EVERY_10_SECONDS, name="update-prices")
    async def update_prices(self) -> None:
        async with self.locks.hold("prices", ttl="30s") as lock:
            if lock is None:
                return
            version = await self.prices.refresh()
            self.journal.write(f"ticker   prices are at version {version}")
