"""Runs the shop's jobs once, prints what happened, and ends: ``python -m example_app``."""

import sys

import anyio

from example_app.app import Shop, make_container
from example_app.emails import EmailProcessor, Receipt
from workers_module import Dispatcher, Inspector, Scheduler, WorkersSettings, run_workers


async def main() -> int:
    """Enqueue a morning's work, wait until it is done, and show the counts; the exit code is 0 if nothing failed."""
    container = make_container()
    settings = await container.get(WorkersSettings)
    print(f"jobs rest in {settings.queue.uri or 'memory'}")
    async with run_workers(container, close_container=True) as workers:
        print(f"workers  {', '.join(workers.running)}")
        async with container() as request:
            shop = await request.get(Shop)
            welcomes = [await shop.sign_up(f"{name.lower()}@example.com", name) for name in ("Ada", "Grace", "Edsger")]
            order = await shop.buy("A-17", 4_200, "ada@example.com")
            rebuilds = [await shop.rebuild() for _ in range(3)]
            jobs = await container.get(Dispatcher)
            tick = await (await container.get(Scheduler)).trigger("update-prices")
            report = await shop.report("november")
        for handle in (*welcomes, order, tick):
            await handle.result()
        print(f"report   {report}")
        print(f"billing  {await order.result()}")
        print(f"index    asked {len(rebuilds)} times: {', '.join({await handle.result() for handle in rebuilds})}")
        # The same id means the same job: this is a handle of the receipt that the charge's handler has asked for.
        receipt = Receipt(email="ada@example.com", order="A-17")
        await (await jobs.perform_later(EmailProcessor.receipt, receipt, job_id="receipt-A-17")).result()
        inspector = await container.get(Inspector)
        failed = 0
        print("queue        waiting  delayed  active  completed  failed")
        for name in await inspector.queues():
            n = await inspector.counts(name)
            failed += n.failed
            waiting = n.waiting + n.prioritized
            print(f"{name:12} {waiting:7}  {n.delayed:7}  {n.active:6}  {n.completed:9}  {n.failed:6}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(anyio.run(main))
