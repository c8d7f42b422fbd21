"""What a feature provides: queues by class and by name, classes in their scope, and a key for all that is called."""

import asyncio
import traceback
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from dishka import STRICT_VALIDATION, AsyncContainer, FromDishka, Provider, Scope, make_async_container
from dishka.exceptions import ExitError, GraphMissingFactoryError, NoContextValueError
from pydantic import BaseModel

from tests.di.conftest import Build, Objects
from workers_module.client.queue import Queue
from workers_module.di.decorators import InjectQueue, Worker, cron, job, on_worker_event, processor
from workers_module.di.dispatcher import Dispatcher
from workers_module.di.provider import Attempt, Feature, FeatureProvider
from workers_module.di.registry import WorkerRegistry
from workers_module.errors import InvalidNameError, RegistrationError
from workers_module.job.job import Job
from workers_module.worker.context import JobContext, JobLogger, Progress


class EmailJob(BaseModel):
    to: str


class EmailQueue(Queue[EmailJob], name="email"): ...


class OtherJob(BaseModel):
    n: int


class Mailer: ...


BARE: Any = Queue


class Session: ...


async def test_a_queue_is_one_object_by_class_and_by_name(build: Build) -> None:
    seen: list[object] = []

    class Service:
        def __init__(self, mails: EmailQueue) -> None:
            seen.append(mails)

    @job()
    async def send(
        data: str,
        by_class: FromDishka[EmailQueue],
        by_name: Annotated[Queue[EmailJob], InjectQueue("email")],
        unchecked: Annotated[Queue[Any], InjectQueue("email")],
        service: FromDishka[Service],
    ) -> None:
        seen.extend([by_class, by_name, unchecked])

    container = build(send, queues=(EmailQueue,), provide={Service: Scope.REQUEST})

    await (await container.get(Dispatcher)).perform_now(send, "x")

    assert len(seen) == 4
    assert len({id(one) for one in seen}) == 1
    assert isinstance(seen[0], EmailQueue)


def consumer_of(hint: Any) -> Provider:
    class Service:
        def __init__(self, queue: Any) -> None: ...

    Service.__init__.__annotations__["queue"] = hint
    own = Provider()
    own.provide(Service, scope=Scope.APP)
    return own


async def test_a_queue_of_a_wrong_payload_type_is_refused_at_creation(build: Build) -> None:
    with pytest.raises(GraphMissingFactoryError, match=r"Queue\[.*OtherJob.*component='queue:email'"):
        build(queues=(EmailQueue,), provide=(consumer_of(Annotated[Queue[OtherJob], InjectQueue("email")]),))


async def test_an_unknown_queue_name_is_refused_at_creation(build: Build) -> None:
    with pytest.raises(GraphMissingFactoryError, match=r"component='queue:emial'"):
        build(queues=(EmailQueue,), provide=(consumer_of(Annotated[Queue[Any], InjectQueue("emial")]),))


async def test_the_bare_queue_is_no_key(build: Build) -> None:
    with pytest.raises(GraphMissingFactoryError):
        build(queues=(EmailQueue,), provide=(consumer_of(Annotated[BARE, InjectQueue("email")]),))


async def test_a_queue_known_by_name_alone_serves_any_view(build: Build) -> None:
    container = build(queues=("audio",))

    typed = await container.get(Queue[EmailJob], component="queue:audio")
    unchecked = await container.get(Queue[Any], component="queue:audio")

    assert (typed.name, unchecked.name) == ("audio", "audio")


async def test_a_handler_implies_its_queue_with_its_payload(build: Build) -> None:
    @job(queue="priority")
    async def a(data: EmailJob) -> None: ...

    @job(queue="priority")
    async def b(data: OtherJob) -> None: ...

    container = build(a, b)

    by_payload = await container.get(Queue[EmailJob | OtherJob], component="queue:priority")
    assert by_payload is await container.get(Queue[Any], component="queue:priority")
    with pytest.raises(GraphMissingFactoryError):
        build(a, b, provide=(consumer_of(Annotated[Queue[EmailJob], InjectQueue("priority")]),))


async def test_a_handler_with_unchecked_data_implies_a_queue_of_any_view(build: Build) -> None:
    @processor("legacy")
    class Legacy:
        async def process(self, job: Job[Any]) -> None: ...

    container = build(Legacy)

    assert (await container.get(Queue[OtherJob], component="queue:legacy")).name == "legacy"


async def test_a_queue_class_named_by_a_processor_is_offered(build: Build) -> None:
    @processor(EmailQueue)
    class P:
        async def process(self, job: Job[EmailJob]) -> None: ...

    container = build(P)

    assert isinstance(await container.get(EmailQueue), EmailQueue)


async def test_two_classes_for_one_queue_are_refused() -> None:
    class Other(Queue[OtherJob], name="email"): ...

    with pytest.raises(RegistrationError, match=r"^queue 'email' has two classes: EmailQueue and Other"):
        FeatureProvider("root", queues=(EmailQueue, Other))


async def test_what_is_no_queue_is_refused() -> None:
    class Nameless(Queue[int]): ...

    with pytest.raises(RegistrationError, match=r"^queues=: Nameless has no name; write class Nameless"):
        FeatureProvider("root", queues=(Nameless,))
    with pytest.raises(RegistrationError, match=r"^queues=: 3 is no queue; write its name, or a class EmailQueue"):
        FeatureProvider("root", queues=(3,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidNameError, match=r"^queues=: queue name 'e mail'"):
        FeatureProvider("root", queues=("e mail",))


async def test_a_feature_offers_its_own_queues_and_the_root_what_handlers_imply(build: Build) -> None:
    @job(queue="implied")
    async def send(data: str) -> None: ...

    feature = FeatureProvider("billing", queues=("invoices",), processors=[send])

    container = build(features=(feature,))

    assert (await container.get(Queue[Any], component="queue:invoices")).name == "invoices"
    with pytest.raises(Exception, match=r"queue:implied"):
        await container.get(Queue[Any], component="queue:implied")


async def test_a_transactional_queue_lives_in_the_scope_of_its_session(build: Build) -> None:
    class Ledger(Queue[EmailJob], name="ledger", transactional=Session): ...

    container = build(queues=(Ledger,), provide={Session: Scope.REQUEST})

    async with container() as request:
        queue = await request.get(Ledger)
        assert queue._tx is await request.get(Session)
        assert queue is await request.get(Queue[EmailJob], component="queue:ledger")


async def test_a_transactional_queue_is_refused_to_an_app_object(build: Build) -> None:
    class Ledger(Queue[EmailJob], name="ledger", transactional=Session): ...

    sessions = Provider()
    sessions.provide(Session, scope=Scope.REQUEST)
    with pytest.raises(GraphMissingFactoryError, match=r"Ledger"):
        build(queues=(Ledger,), provide=(sessions, consumer_of(Ledger)))


# --- the graph --------------------------------------------------------------------------------------------------------


async def test_what_a_handler_method_has_injected_is_part_of_the_graph(build: Build) -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[Any], mailer: FromDishka[Mailer]) -> None: ...

    with pytest.raises(GraphMissingFactoryError, match=r"P\.process[\s\S]*Mailer"):
        build(P)


async def test_what_a_constructor_needs_is_part_of_the_graph(build: Build) -> None:
    class P(Worker[int, int]):
        def __init__(self, mailer: Mailer) -> None: ...

        def perform(self, args: int, /) -> int:
            return args

    with pytest.raises(GraphMissingFactoryError, match=r"Mailer"):
        build(P)


async def test_what_listeners_and_ticks_have_injected_is_part_of_the_graph(build: Build) -> None:
    class Metrics:
        @on_worker_event("completed")
        async def count(self, mailer: FromDishka[Mailer]) -> None: ...

    class Ticker:
        @cron("* * * * *")
        async def tick(self, mailer: FromDishka[Mailer]) -> None: ...

    for cls, label in ((Metrics, r"Metrics\.count"), (Ticker, r"Ticker\.tick")):
        with pytest.raises(GraphMissingFactoryError, match=label):
            build(cls)


async def test_an_app_class_that_needs_a_request_object_is_refused(build: Build) -> None:
    @processor("email", scope=Scope.APP)
    class P:
        def __init__(self, session: Session) -> None: ...

        async def process(self, job: Job[Any]) -> None: ...

    with pytest.raises(GraphMissingFactoryError, match=r"Session"):
        build(P, provide={Session: Scope.REQUEST})


async def test_an_app_class_may_have_request_objects_in_its_methods(build: Build) -> None:
    seen: list[object] = []

    @processor("email", scope=Scope.APP)
    class P:
        async def process(self, job: Job[Any], session: FromDishka[Session]) -> None:
            seen.extend([self, session])

    dispatcher = await build(P, provide={Session: Scope.REQUEST}).get(Dispatcher)
    await dispatcher.perform_now(P.process, None)
    await dispatcher.perform_now(P.process, None)

    assert seen[0] is seen[2]
    assert seen[1] is not seen[3]


async def test_a_class_the_application_provides_itself(build: Build) -> None:
    @processor("email", provide=False)
    class P:
        def __init__(self, name: str) -> None:
            self.name = name

        async def process(self, job: Job[Any]) -> str:
            return self.name

    own = Provider()
    own.provide(lambda: P("own"), provides=P, scope=Scope.REQUEST)
    dispatcher = await build(P, provide=(own,)).get(Dispatcher)

    assert await dispatcher.perform_now(P.process, None) == "own"


async def test_an_app_object_cannot_ask_for_the_job(build: Build) -> None:
    for key in (Job, Job[EmailJob], JobContext, Progress, JobLogger):
        with pytest.raises(GraphMissingFactoryError):
            build(provide=(consumer_of(key),))


async def test_the_job_outside_of_a_job(build: Build) -> None:
    container = build()

    async with container() as request:
        for key in (Job, Job[EmailJob], JobContext, Progress, JobLogger):
            with pytest.raises(NoContextValueError):
                await request.get(key)


async def test_any_dependency_may_ask_for_the_job(build: Build) -> None:
    class Audit:
        def __init__(self, job: Job[EmailJob], ctx: JobContext, progress: Progress, log: JobLogger) -> None:
            self.job = job
            self.same = (ctx.job is job, progress._context is ctx, log is ctx.log)

    @job()
    async def send(data: EmailJob, audit: FromDishka[Audit], job: Job[Any], ctx: JobContext) -> list[Any]:
        return [audit.job is job, ctx.job is job, audit.job.data == data, *audit.same]

    dispatcher = await build(send, provide={Audit: Scope.REQUEST}).get(Dispatcher)

    assert await dispatcher.perform_now(send, EmailJob(to="ada")) == [True] * 6


async def test_features_in_any_order_and_in_two_containers_at_once() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[Any]) -> str:
            return "p"

    @job(queue="billing")
    async def bill(data: int) -> int:
        return data + 1

    root = FeatureProvider("root", processors=[P], root=True)
    feature = FeatureProvider("billing", processors=[bill], queues=["invoices"])
    settings = STRICT_VALIDATION
    one = make_async_container(root, feature, Objects(), validation_settings=settings)
    two = make_async_container(Objects(), feature, root, validation_settings=settings)
    try:
        first, second = [await container.get(Dispatcher) for container in (one, two)]
        results = await asyncio.gather(first.perform_now(bill, 1), second.perform_now(bill, 2))
        assert [*results] == [2, 3]
        names = [(await container.get(WorkerRegistry)).names for container in (one, two)]
        assert names == [("billing.bill", "email.*")] * 2
        assert [f.name for f in await one.get(Sequence[Feature])] == ["root", "billing"]
        assert (await one.get(WorkerRegistry)) is not (await two.get(WorkerRegistry))
    finally:
        await one.close()
        await two.close()


# --- attempts ---------------------------------------------------------------------------------------------------------


class Closings(Provider):
    """Two resources with finalizers; ``fail`` makes the inner one's commit fail."""

    def __init__(self, *, fail: bool = False, fail_to_build: bool = False) -> None:
        super().__init__(scope=Scope.REQUEST)
        self.closed: list[tuple[str, BaseException | None]] = []
        self.fail = fail
        self.fail_to_build = fail_to_build
        self.provide(self.session)
        self.provide(self.mailer)

    async def session(self) -> AsyncGenerator[Session, BaseException | None]:
        error = yield Session()
        await anyio.lowlevel.checkpoint()
        self.closed.append(("session", error))

    def mailer(self, session: Session) -> Generator[Mailer, BaseException | None]:
        if self.fail_to_build:
            raise OSError("smtp is down")
        error = yield Mailer()
        self.closed.append(("mailer", error))
        if self.fail:
            raise ValueError("commit failed")


async def test_finalizers_run_in_reverse_and_see_no_error(build: Build) -> None:
    closings = Closings()

    @job()
    async def send(data: str, mailer: FromDishka[Mailer]) -> None:
        assert not closings.closed

    await (await build(send, provide=(closings,)).get(Dispatcher)).perform_now(send, "x")

    assert closings.closed == [("mailer", None), ("session", None)]


async def test_a_failing_finalizer_fails_the_job_and_the_others_close(build: Build) -> None:
    closings = Closings(fail=True)

    @job()
    async def send(data: str, mailer: FromDishka[Mailer]) -> None: ...

    dispatcher = await build(send, provide=(closings,)).get(Dispatcher)
    with pytest.raises(ExitError) as caught:
        await dispatcher.perform_now(send, "x")

    assert "ValueError: commit failed" in "".join(traceback.format_exception(caught.value))
    assert [name for name, _ in closings.closed] == ["mailer", "session"]


async def test_a_handler_s_own_error_is_not_hidden_by_a_failing_finalizer(build: Build) -> None:
    closings = Closings(fail=True)

    @job()
    async def send(data: str, mailer: FromDishka[Mailer]) -> None:
        raise LookupError("nobody")

    dispatcher = await build(send, provide=(closings,)).get(Dispatcher)
    with pytest.raises(LookupError, match=r"nobody") as caught:
        await dispatcher.perform_now(send, "x")

    assert any("commit failed" in note for note in caught.value.__notes__)
    assert [type(error) for _, error in closings.closed] == [LookupError, LookupError]


async def test_what_was_built_is_closed_when_the_rest_cannot_be_built(build: Build) -> None:
    closings = Closings(fail_to_build=True)

    @job()
    async def send(data: str, mailer: FromDishka[Mailer]) -> None: ...

    dispatcher = await build(send, provide=(closings,)).get(Dispatcher)
    with pytest.raises(OSError, match=r"smtp is down"):
        await dispatcher.perform_now(send, "x")

    assert [(name, type(error)) for name, error in closings.closed] == [("session", OSError)]


async def test_a_cancelled_job_closes_every_finalizer(build: Build) -> None:
    closings = Closings()
    started = anyio.Event()

    @job()
    async def send(data: str, mailer: FromDishka[Mailer]) -> None:
        started.set()
        await anyio.sleep_forever()

    dispatcher = await build(send, provide=(closings,)).get(Dispatcher)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.perform_now, send, "x")
            await started.wait()
            group.cancel_scope.cancel()

    assert [name for name, _ in closings.closed] == ["mailer", "session"]


async def test_a_job_over_its_time_closes_every_finalizer(build: Build) -> None:
    closings = Closings()

    @job(options={"timeout": "20ms"})
    async def send(data: str, mailer: FromDishka[Mailer]) -> None:
        await anyio.sleep_forever()

    dispatcher = await build(send, provide=(closings,)).get(Dispatcher)
    with anyio.fail_after(5), pytest.raises(Exception, match=r"passed its limit"):
        await dispatcher.perform_now(send, "x")

    assert [name for name, _ in closings.closed] == ["mailer", "session"]


async def test_concurrent_jobs_never_share_a_request_object(build: Build) -> None:
    seen: set[int] = set()
    kept: list[Session] = []
    together = anyio.Event()

    @job()
    async def send(data: int, session: FromDishka[Session]) -> None:
        kept.append(session)
        seen.add(id(session))
        if len(kept) == 20:
            together.set()
        await together.wait()

    dispatcher = await build(send, provide={Session: Scope.REQUEST}).get(Dispatcher)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(dispatcher.perform_now, send, n)

    assert len(seen) == 20


async def test_an_attempt_gives_the_bound_call(build: Build) -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[int]) -> int:
            return job.data

    container: AsyncContainer = build(P)
    registry = await container.get(WorkerRegistry)
    job_ = Job.fake(3)
    async with Attempt(container, registry.find(P.process).handler.entry.key, {Job: job_}) as call:
        assert await call(job_, None) == 3  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
