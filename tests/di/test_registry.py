"""All features merged: contradictions, lookups, selection, and what a process runs."""

from collections.abc import Sequence
from typing import Any

import pytest
from dishka import FromDishka, Scope, make_async_container
from pydantic import BaseModel

from tests.di.conftest import Build, Objects
from workers_module.client.queue import Queue
from workers_module.di.decorators import (
    Worker,
    cron,
    interval,
    job,
    on_queue_event,
    on_worker_event,
    process,
    processor,
    timeout,
)
from workers_module.di.explorer import explore
from workers_module.di.provider import Feature, FeatureProvider
from workers_module.di.registry import WorkerRegistry
from workers_module.errors import RegistrationError, UnknownJobError, UnknownWorkerError
from workers_module.job.events import QueueEvent, WorkerEvent
from workers_module.job.job import Job
from workers_module.job.stored import read_options
from workers_module.worker.context import JobContext


class EmailJob(BaseModel):
    to: str


class Session: ...


async def merged(build: Build, *processors: object) -> WorkerRegistry:
    registry: WorkerRegistry = await build(*processors).get(WorkerRegistry)
    return registry


async def refused(build: Build, *processors: object) -> str:
    container = build(*processors)
    with pytest.raises(RegistrationError) as caught:
        await container.get(WorkerRegistry)
    return str(caught.value)


# --- contradictions ---------------------------------------------------------------------------------------------------


async def test_two_handlers_for_every_job_of_a_queue(build: Build) -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[Any]) -> None: ...

    @processor("email")
    class Q:
        async def process(self, job: Job[Any]) -> None: ...

    assert await refused(build, P, Q) == "every job of queue 'email' has two handlers: P.process and Q.process"


async def test_two_handlers_for_one_job(build: Build) -> None:
    @processor("email")
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

    @processor("email")
    class Q:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

    assert await refused(build, P, Q) == "job 'a' of queue 'email' has two handlers: P.a and Q.a"


async def test_two_handlers_of_one_label_are_told_with_their_modules(build: Build) -> None:
    def make(module: str) -> type[Worker[int, int]]:
        class C(Worker[int, int]):
            def perform(self, args: int, /) -> int:
                return args

        C.__module__ = module
        return C

    assert await refused(build, make("a"), make("b")) == "job 'C' of queue 'default' has two handlers: a.C and b.C"


async def test_concurrency_set_by_two_classes_of_a_queue(build: Build) -> None:
    @processor("email", concurrency=3)
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

        @process()
        async def b(self, job: Job[Any]) -> None: ...

    @processor("email", concurrency=4)
    class Q:
        @process()
        async def c(self, job: Job[Any]) -> None: ...

    assert await refused(build, P, Q) == (
        "concurrency of queue 'email' is set twice: by P.a and Q.c; set it on one of them"
    )


async def test_two_schedules_of_one_name(build: Build) -> None:
    class A:
        @cron("* * * * *", name="x")
        async def tick(self) -> None: ...

    class B:
        @interval("1m", name="x")
        async def tick(self) -> None: ...

    assert await refused(build, A, B) == "two schedules are named 'x'; pass name="


async def test_a_queue_registered_differently_by_two_features() -> None:
    class One(Queue[EmailJob], name="email"): ...

    class Other(Queue[EmailJob], name="email", options={"attempts": 3}): ...

    root = FeatureProvider("root", queues=[One], root=True)
    billing = FeatureProvider("billing", queues=[Other])
    container = make_async_container(root, billing, Objects())
    with pytest.raises(RegistrationError) as caught:
        await container.get(WorkerRegistry)
    await container.close()

    assert str(caught.value) == (
        "queue 'email' is registered with different payload or options by 'root' and 'billing'"
    )


async def test_two_roots() -> None:
    container = make_async_container(FeatureProvider("root", root=True), FeatureProvider("root", root=True), Objects())
    with pytest.raises(RegistrationError) as caught:
        await container.get(WorkerRegistry)
    await container.close()

    assert str(caught.value) == "two WorkersModule roots in one container; use for_feature"


async def test_several_contradictions_are_one_error(build: Build) -> None:
    @job()
    def a(data: int) -> None: ...

    @job("a")
    def b(data: int) -> None: ...

    @cron("* * * * *", name="x")
    def c() -> None: ...

    @cron("* * * * *", name="x")
    def d() -> None: ...

    def backoff(attempt: int, error: Exception, job: Job[Any]) -> str:
        return "1s"

    features = [
        Feature(name="root", is_root=True, explored=explore([a, c]), backoffs={"slow": backoff}),
        Feature(name="other", explored=explore([b, d]), backoffs={"slow": backoff}),
    ]
    with pytest.raises(RegistrationError) as caught:
        WorkerRegistry(features, build())

    assert str(caught.value).splitlines() == [
        "job 'a' of queue 'default' has two handlers: a and b",
        "two schedules are named 'x'; pass name=",
        "two backoffs are named 'slow'",
    ]


# --- lookups ----------------------------------------------------------------------------------------------------------


class Shared:
    @process()
    async def ping(self, job: Job[None]) -> None: ...


@processor("email")
class Email(Shared):
    @process()
    async def welcome(self, job: Job[EmailJob]) -> bool:
        return True

    async def process(self, job: Job[Any]) -> None: ...


@processor("crm")
class Crm(Shared):
    @process()
    async def welcome(self, job: Job[EmailJob]) -> int:
        return 1


class Calculator(Worker[int, int]):
    def perform(self, args: int, /) -> int:
        return args


@job(queue="reports.daily")
async def build_report(data: str) -> str:
    return data


class Ticker:
    @cron("* * * * *")
    async def tick(self) -> None: ...


ALL = (Email, Crm, Calculator, build_report, Ticker)


async def test_handlers_by_reference(build: Build) -> None:
    registry = await merged(build, *ALL)

    assert registry.find(Email.welcome).kind.full_name == "email.welcome"
    assert registry.find(Email().welcome).kind.full_name == "email.welcome"
    assert registry.find(Crm.welcome).kind.full_name == "crm.welcome"
    assert registry.find(Calculator).kind.full_name == "default.Calculator"
    assert registry.find(Calculator.perform).kind.full_name == "default.Calculator"
    assert registry.find(build_report).kind.full_name == "reports.daily.build_report"
    assert registry.find(Ticker.tick).kind.full_name == "cron.ticker.Ticker.tick"


async def test_a_bound_inherited_method_means_that_of_its_object_s_class(build: Build) -> None:
    registry = await merged(build, *ALL)

    assert registry.find(Crm().ping).kind.full_name == "crm.ping"


async def test_a_method_of_a_base_class_means_its_one_override(build: Build) -> None:
    class Base:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

    @processor("email")
    class P(Base):
        async def a(self, job: Job[Any]) -> None: ...

    registry = await merged(build, P)

    assert registry.find(Base.a).handler.entry.function is P.a


async def test_an_inherited_method_that_fits_several_handlers(build: Build) -> None:
    registry = await merged(build, *ALL)

    with pytest.raises(UnknownJobError) as caught:
        registry.find(Shared.ping)

    assert str(caught.value) == "'Shared.ping' fits several handlers: crm.ping, email.ping; pass the full name"


async def test_handlers_by_name(build: Build) -> None:
    registry = await merged(build, *ALL)

    assert registry.find("build_report").handler.spec.target is build_report
    assert registry.find("reports.daily.build_report").handler.spec.target is build_report
    assert registry.find("crm.welcome").handler.spec.target is Crm.welcome


async def test_a_name_that_fits_several_handlers(build: Build) -> None:
    registry = await merged(build, *ALL)

    with pytest.raises(UnknownJobError) as caught:
        registry.find("welcome")

    assert str(caught.value) == "'welcome' fits several handlers: crm.welcome, email.welcome; pass the full name"
    assert isinstance(caught.value, LookupError)


async def test_an_unknown_name_lists_what_there_is(build: Build) -> None:
    @processor("email")
    class P:
        @process()
        async def welcome(self, job: Job[Any]) -> None: ...

        async def process(self, job: Job[Any]) -> None: ...

    registry = await merged(build, P, Calculator)

    with pytest.raises(UnknownJobError) as caught:
        registry.find("nope")

    assert str(caught.value) == "no handler 'nope'; available: default.Calculator, email.*, email.welcome"
    assert (caught.value.name, caught.value.known) == ("nope", ("default.Calculator", "email.*", "email.welcome"))


async def test_an_unknown_name_that_is_close_to_a_known_one(build: Build) -> None:
    @job()
    def send_welcome_email(data: str) -> None: ...

    registry = await merged(build, send_welcome_email)

    with pytest.raises(UnknownJobError) as caught:
        registry.find("send_wellcome_email")

    assert str(caught.value) == (
        "no handler 'send_wellcome_email'. Did you mean 'send_welcome_email'?\n  available: default.send_welcome_email"
    )


async def test_an_unknown_reference(build: Build) -> None:
    class Unregistered:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

    registry = await merged(build)

    with pytest.raises(UnknownJobError) as caught:
        registry.find(Unregistered.a)

    assert str(caught.value) == "no handler 'Unregistered.a'; available: none"


async def test_names_are_compared_whole(build: Build) -> None:
    registry = await merged(build, Calculator)

    for name in ("calculator", "Calc", "default", "default.", "x.default.Calculator", ""):
        with pytest.raises(UnknownJobError):
            registry.find(name)


async def test_a_handler_of_any_name(build: Build) -> None:
    registry = await merged(build, *ALL)

    assert registry.find(Email.process).kind.full_name == "email.process"
    assert registry.find("email.anything").kind.full_name == "email.anything"
    assert registry.find("email.anything").kind.payload_adapter is registry.find(Email.process).kind.payload_adapter
    assert registry.kind_of(Email.process).name is None
    assert registry.kind_of("email.anything").name == "anything"
    with pytest.raises(UnknownJobError):
        registry.find("email.*")


async def test_handlers_by_queue_and_name(build: Build) -> None:
    registry = await merged(build, *ALL)

    def label(queue: str, name: str) -> str | None:
        found = registry.handler_for(queue, name)
        return None if found is None else found.spec.label

    assert label("email", "welcome") == "Email.welcome"
    assert label("email", "other") == "Email.process"
    assert label("crm", "other") is None
    assert label("nowhere", "other") is None
    kind = registry.kind_for("email", "other")
    assert kind is not None
    assert kind.full_name == "email.other"


# --- selection --------------------------------------------------------------------------------------------------------


async def test_worker_names(build: Build) -> None:
    @processor("email", name="mailer")
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

    registry: WorkerRegistry = await build(P, Calculator, Ticker, queues=("audio",)).get(WorkerRegistry)

    assert registry.workers == ("audio", "default", "email", "mailer", "ticker")


async def test_an_unknown_worker_stops_the_start(build: Build) -> None:
    registry: WorkerRegistry = await build(Calculator, Ticker, queues=("email",)).get(WorkerRegistry)

    with pytest.raises(UnknownWorkerError) as caught:
        registry.select({"email", "candles"})

    assert str(caught.value) == "ENABLED_WORKERS names 'candles'; known workers: default, email, ticker"


async def test_a_job_s_name_in_place_of_its_worker_s(build: Build) -> None:
    registry = await merged(build, Calculator)

    with pytest.raises(UnknownWorkerError) as caught:
        registry.select(only=["calculator"])

    assert str(caught.value) == (
        "only= names 'calculator'; known workers: default; 'calculator' is a job of worker 'default'"
    )


async def test_selecting(build: Build) -> None:
    registry = await merged(build, Calculator, Ticker)
    everything = frozenset({"default", "ticker"})

    assert registry.select() == everything
    assert registry.select({" ticker ", ""}) == {"ticker"}
    assert registry.select(enabled=False) == frozenset()
    assert registry.select(enabled=False, force=True) == everything
    assert registry.select({"ticker"}, only=["default"]) == {"default"}
    assert registry.select({"ticker"}, only="all") == everything
    assert registry.select({"nonsense"}, enabled=False) == frozenset()


# --- plans ------------------------------------------------------------------------------------------------------------


async def test_a_plan_has_the_queues_of_the_selected_workers(build: Build) -> None:
    @processor("email", concurrency=3)
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

        async def process(self, job: Job[Any]) -> None: ...

        @interval("1m")
        async def tick(self) -> None: ...

    registry = await merged(build, P, Calculator)
    plan = await registry.plan({"email"}, concurrency=7)
    everything = await registry.plan(registry.select(), concurrency=7)

    assert [one.queue for one in plan.queues] == ["cron.email", "email"]
    email = plan.queues[1]
    assert (list(email.handlers), email.catch_all is not None, email.concurrency) == (["a"], True, 3)
    assert email.worker_names == ("email",)
    assert [(one.queue, one.concurrency) for one in everything.queues] == [
        ("cron.email", 7),
        ("default", 7),
        ("email", 3),
    ]
    assert [one.name for one in plan.schedules] == ["P.tick"]


async def test_a_queue_is_consumed_with_all_of_its_handlers(build: Build) -> None:
    @processor("email", name="mailer")
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

        @cron("* * * * *", data=1)
        @process()
        async def scheduled(self, job: Job[Any]) -> None: ...

    @processor("email", name="bulk")
    class Q:
        @process()
        async def b(self, job: Job[Any]) -> None: ...

    registry = await merged(build, P, Q)
    plan = await registry.plan({"bulk"})

    assert sorted(plan.queues[0].handlers) == ["a", "b", "scheduled"]
    assert plan.queues[0].worker_names == ("bulk", "mailer")
    assert plan.schedules == ()


async def test_a_plan_of_nothing(build: Build) -> None:
    class Metrics:
        @on_worker_event("completed")
        async def count(self) -> None: ...

    registry: WorkerRegistry = await build(Calculator, Metrics, queues=("audio",)).get(WorkerRegistry)

    assert (await registry.plan(frozenset())).queues == ()
    assert (await registry.plan(frozenset())).listeners == ()
    assert (await registry.plan({"audio"})).queues == ()


async def test_a_handler_is_bound_once(build: Build) -> None:
    made: list[object] = []

    @processor("app", scope=Scope.APP)
    class P:
        def __init__(self) -> None:
            made.append(self)

        async def process(self, job: Job[Any]) -> None: ...

    registry = await merged(build, P)
    (found,) = registry.handlers
    assert made == []

    first, second = await registry.bound(found), await registry.bound(found)

    assert first is second
    assert first.static is not None
    assert first.opening is None
    assert len(made) == 1


async def test_a_schedule_carries_the_options_of_queue_and_handler(build: Build) -> None:
    class EmailQueue(Queue[int], name="email", options={"attempts": 3, "tags": ["q"]}): ...

    @processor(EmailQueue, tags=["p"], options={"priority": 2})
    class P:
        @cron("* * * * *", data=1, threshold="5s", jitter="1s", lock="l", overlap="allow", initial_delay="1m")
        @process()
        async def a(self, job: Job[int]) -> None: ...

    registry = await merged(build, P)
    (spec,) = registry.schedules
    stored = read_options(spec.options)

    assert (spec.name, spec.queue, spec.job_name, spec.worker, spec.data) == ("P.a", "email", "a", "email", b"1")
    assert (stored.attempts, stored.priority, stored.tags) == (3, 2, ("p", "q"))
    assert (spec.threshold_ms, spec.jitter_ms, spec.initial_delay_ms, spec.lock, spec.overlap) == (
        5_000,
        1_000,
        60_000,
        "l",
        "allow",
    )


# --- listeners and ticks ----------------------------------------------------------------------------------------------


def event(queue: str, name: str, **more: Any) -> WorkerEvent:
    return WorkerEvent(name="completed", queue=queue, job=Job.fake(1, queue=queue, name=name), **more)


async def test_a_listener_is_called_with_fields_by_name_in_a_scope_of_its_own(build: Build) -> None:
    seen: list[Any] = []

    @processor("email")
    class P:
        def __init__(self, session: Session) -> None:
            self.session = session

        async def process(self, job: Job[Any]) -> None: ...

        @on_worker_event("completed")
        async def done(self, result: int, job: Job[Any], again: FromDishka[Job[int]], own: FromDishka[Session]) -> None:
            seen.append((result, job is again, own is self.session))
            seen.append(own)

    container = build(P, provide={Session: Scope.REQUEST})
    (listener,) = (await container.get(WorkerRegistry)).listeners
    for _ in range(2):
        await listener.call(event("email", "a", result=3))

    assert (listener.queue, listener.worker_event) == ("email", "completed")
    assert set(listener.jobs or ()) == {("email", None)}
    assert seen[0] == (3, True, True)
    assert seen[1] is not seen[3]


async def test_a_plain_listener_runs_in_a_thread(build: Build) -> None:
    import threading

    seen: list[int] = []

    class Metrics:
        @on_worker_event("completed")
        def count(self, event: WorkerEvent) -> None:
            seen.append(threading.get_ident())

        @on_queue_event("completed", queue="email")
        def stored(self, job_id: str, result: int) -> None:
            seen.append(int(job_id) + result)

    registry = await merged(build, Metrics)
    local, stored = registry.listeners
    await local.call(event("email", "a"))
    await stored.call(QueueEvent(name="completed", queue="email", job_id="1", result=2))

    assert seen[0] != threading.get_ident()
    assert seen[1] == 3
    assert (local.jobs, local.queue, stored.queue_event, stored.queue) == (None, None, "completed", "email")


async def test_a_listener_of_a_catch_all_does_not_hear_the_jobs_of_others(build: Build) -> None:
    heard: list[str] = []

    @processor("email")
    class Named:
        @process()
        async def welcome(self, job: Job[Any]) -> None: ...

    @processor("email")
    class Rest:
        async def process(self, job: Job[Any]) -> None: ...

        @on_worker_event("completed")
        async def done(self, job: Job[Any]) -> None:
            heard.append(job.name)

    registry = await merged(build, Named, Rest)
    (listener,) = registry.listeners
    await listener.call(event("email", "welcome"))
    await listener.call(event("email", "other"))

    assert heard == ["other"]


async def test_a_listener_hears_the_ticks_of_its_processor_too(build: Build) -> None:
    @processor("email")
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

        @cron("* * * * *")
        async def tick(self) -> None: ...

        @on_worker_event("failed")
        async def oops(self, error: Exception) -> None: ...

    registry = await merged(build, P)

    heard = sorted((one.queue, *(one.jobs or ())) for one in registry.listeners)
    assert heard == [("cron.email", ("cron.email", "P.tick")), ("email", ("email", "a"))]


async def test_direct_ticks_open_a_scope_and_call(build: Build) -> None:
    seen: list[Any] = []

    class Ticker:
        @cron("* * * * *", every_instance=True)
        async def a(self, session: FromDishka[Session]) -> None:
            seen.append(session)

        @timeout("5s")
        def b(self) -> None:
            seen.append("b")

    @cron("* * * * *", every_instance=True)
    async def c() -> None:
        seen.append("c")

    container = build(Ticker, c, provide={Session: Scope.REQUEST})
    registry: WorkerRegistry = await container.get(WorkerRegistry)
    plan = await registry.plan(registry.select())
    for name in ("Ticker.a", "Ticker.a", "Ticker.b", "c"):
        await plan.ticks[name]()

    assert seen[0] is not seen[1]
    assert seen[2:] == ["b", "c"]


async def test_a_direct_tick_of_a_handler_performs_it(build: Build) -> None:
    performed: list[Any] = []

    @job()
    @cron("* * * * *", data=3, every_instance=True)
    async def send(job: Job[int]) -> None:
        performed.append((job.queue, job.name, job.data))
        if len(performed) == 2:
            raise LookupError("nobody")

    registry = await merged(build, send)
    plan = await registry.plan({"default"})
    await plan.ticks["send"]()
    with pytest.raises(LookupError, match="nobody"):
        await plan.ticks["send"]()

    assert performed == [("default", "send", 3)] * 2


async def test_a_listener_may_ask_for_the_context_of_the_job(build: Build) -> None:
    seen: list[object] = []

    class Metrics:
        @on_worker_event("completed")
        async def count(self, ctx: JobContext) -> None:
            seen.append(ctx)

    registry = await merged(build, Metrics)
    context: Any = object.__new__(JobContext)
    told = WorkerEvent(name="completed", queue="q", job=Job.fake(1), context=context)
    await registry.listeners[0].call(told)

    assert seen == [context]


async def test_the_features_are_collected(build: Build) -> None:
    feature = FeatureProvider("billing", processors=[Calculator])
    container = build(Ticker, features=(feature,))

    assert {one.name for one in await container.get(Sequence[Feature])} == {"root", "billing"}
    assert (await container.get(WorkerRegistry)).names == ("default.Calculator",)
