"""The shop's jobs, tested with the testing kit; and the example, run as its reader would."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from dishka import Provider, Scope

from example_app.app import Shop, create_app
from example_app.billing import billing_feature
from example_app.billing.charges import ChargeProcessor
from example_app.emails import EmailProcessor, EmailQueue, Welcome
from example_app.prices import TickerWorker
from example_app.reports import ReportArgs, ReportWorker, rebuild_index
from example_app.services import Journal, Mailer, PaymentGateway, Prices
from workers_module import DistributedLockService, Job, WorkersModule
from workers_module.testing import WorkerTest, worker_test

ROOT = Path(__file__).parents[2]


class Silent(Journal):
    def write(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def journal() -> Journal:
    return Silent()


@pytest.fixture
async def t(journal: Journal) -> AsyncIterator[WorkerTest]:
    shop = Provider(scope=Scope.APP)
    shop.provide_all(Mailer, Prices, Journal)
    shop.provide(Shop)
    module = WorkersModule.for_root(
        queues=[EmailQueue], processors=[EmailProcessor, ReportWorker, rebuild_index, TickerWorker]
    )
    async with worker_test(shop, module, *billing_feature(), overrides={Journal: journal}) as t:
        yield t


async def test_signing_up_sends_a_welcome(t: WorkerTest) -> None:
    await (await t.get(Shop)).sign_up("ada@example.com", "Ada")
    assert [job.data for job in t.enqueued(EmailProcessor.welcome)] == [Welcome(email="ada@example.com", name="Ada")]
    assert await t.drain() == 1
    assert (await t.get(Mailer)).sent == [("ada@example.com", "Welcome, Ada!")]


async def test_a_payment_fails_twice_then_a_receipt_is_sent(t: WorkerTest, journal: Journal) -> None:
    handle = await (await t.get(Shop)).buy("A-1", 100, "ada@example.com")
    await t.advance("2s")
    assert await handle.result() == "paid-A-1-100"
    assert [line.split(" failed")[0] for line in journal.lines if "billing" in line][:2] == [
        "billing  A-1 attempt 1 of 5",
        "billing  A-1 attempt 2 of 5",
    ]
    assert (await t.get(Mailer)).sent == [("ada@example.com", "Your order A-1")]


async def test_charging_twice_sends_one_receipt(t: WorkerTest) -> None:
    gateway = await t.get(PaymentGateway)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await gateway.charge("A-2", 1)
    await t.assert_idempotent(
        ChargeProcessor.charge,
        {"order": "A-2", "cents": 1, "email": "ada@example.com"},
        lambda: [job.id for job in t.enqueued(EmailProcessor.receipt)],
    )


async def test_reports_tell_their_progress(t: WorkerTest, journal: Journal) -> None:
    await t.dispatcher.perform_later(ReportWorker, ReportArgs(title="q3", pages=2))
    await t.drain()
    assert journal.lines == ["reports  q3: 50 %", "reports  q3: 100 %"]


async def test_the_index_is_rebuilt_once_however_often_asked(t: WorkerTest) -> None:
    shop = await t.get(Shop)
    handles = [await shop.rebuild() for _ in range(3)]
    assert [handle.deduplicated for handle in handles] == [False, True, True]
    assert await t.drain() == 1
    assert len({await handle.result() for handle in handles}) == 1


async def test_prices_are_refreshed_every_ten_seconds_unless_somebody_else_does(t: WorkerTest) -> None:
    prices = await t.get(Prices)
    await t.advance("20s")
    assert prices.version == 2
    locks = await t.get(DistributedLockService)
    lock = await locks.acquire("prices", ttl="1h")
    assert lock is not None
    await t.advance("20s")
    assert prices.version == 2


async def test_a_handler_alone_is_a_method() -> None:
    mailer = Mailer()
    sent = await EmailProcessor(mailer).welcome(Job.fake(Welcome(email="a@b.c", name="Ann")))
    assert sent.message_id == "<1@shop.example>"


async def test_the_web_application_runs_the_workers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUEUE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    app = create_app()
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://shop") as web:
        assert (await web.post("/users", params={"email": "a@b.c", "name": "Ann"})).status_code == 202
        assert (await web.post("/reports/q4")).json() == {"file": "q4.pdf"}
    assert "reports  q4: 100 %" in capsys.readouterr().out


@pytest.mark.parametrize("url", [None, "sqlite:///jobs.db"])
def test_the_demo_runs_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if url is not None:
        monkeypatch.setenv("QUEUE_URL", url)
    done = subprocess.run(
        [sys.executable, "-m", "example_app"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "A-17 attempt 3: paid-A-17-4200" in done.stdout
    assert "index    asked 3 times: index built by job" in done.stdout
