"""What decorated classes and functions compile to."""

import functools
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import pytest
from dishka import FromComponent, FromDishka, Scope
from pydantic import BaseModel, Field

from workers_module.client.queue import Queue
from workers_module.di.decorators import (
    InjectQueue,
    Worker,
    WorkerHost,
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
from workers_module.di.found import FoundHandler
from workers_module.job.job import Job
from workers_module.job.sandbox import Sandbox
from workers_module.worker.context import JobContext


class EmailJob(BaseModel):
    to: str


class Dep: ...


T = TypeVar("T")

Reports = Annotated[Queue[Any], InjectQueue("reports")]
EmailJobOf = Job[EmailJob]


def only(*targets: object) -> FoundHandler:
    (handler,) = explore(targets).handlers
    return handler


# --- names and types --------------------------------------------------------------------------------------------------


def test_a_method_is_a_handler_of_its_name() -> None:
    @processor("email")
    class P:
        @process()
        async def welcome(self, job: Job[EmailJob]) -> bool:
            return True

    handler = only(P)

    assert (handler.kind.queue, handler.kind.name, handler.kind.payload, handler.kind.result) == (
        "email",
        "welcome",
        EmailJob,
        bool,
    )
    assert (handler.spec.label, handler.spec.worker, handler.spec.is_async) == ("P.welcome", "email", True)
    assert handler.spec.target is P.welcome


def test_a_method_with_a_name_of_its_own() -> None:
    @processor("email", name="mailer")
    class P:
        @process("welcome-mail")
        def welcome(self, job: Job[None]) -> None: ...

    handler = only(P)

    assert (handler.kind.full_name, handler.spec.worker, handler.spec.is_async) == (
        "email.welcome-mail",
        "mailer",
        False,
    )
    assert handler.kind.payload is None


def test_an_undecorated_process_takes_every_name() -> None:
    @processor("legacy")
    class Legacy(WorkerHost):
        async def process(self, job: Job[Any]) -> Any: ...

    handler = only(Legacy)

    assert (handler.kind.full_name, handler.job_name) == ("legacy.*", "process")


def test_a_decorated_process_takes_its_name_only() -> None:
    @processor("legacy")
    class Legacy:
        @process()
        async def process(self, job: Job[Any]) -> None: ...

    assert only(Legacy).kind.full_name == "legacy.process"


def test_a_processor_function_takes_every_name() -> None:
    @processor("legacy")
    async def handle(data: EmailJob) -> None: ...

    handler = only(handle)

    assert (handler.kind.full_name, handler.job_name, handler.entry.parameters.first) == ("legacy.*", "handle", "data")


def test_a_function_may_take_the_payload_or_the_job() -> None:
    @job()
    async def a(data: EmailJob) -> None: ...

    @job("b-job", queue="priority")
    def b(job: Job[EmailJob]) -> None: ...

    first, second = explore([a, b]).handlers

    assert (first.kind.full_name, first.entry.parameters.first, first.kind.payload) == ("default.a", "data", EmailJob)
    assert (second.kind.full_name, second.entry.parameters.first, second.kind.payload) == (
        "priority.b-job",
        "job",
        EmailJob,
    )


def test_a_function_without_parameters_has_no_payload() -> None:
    @job()
    async def tidy() -> None: ...

    handler = only(tidy)

    assert (handler.kind.payload, handler.entry.parameters.first) == (None, "none")


def test_a_worker_is_named_after_its_class() -> None:
    class report_worker(Worker[EmailJob, int]):  # noqa: N801
        def perform(self, args: EmailJob, /) -> int:
            return 1

    @processor("calculator")
    class Other(Worker[int, str]):
        job_name: ClassVar[str] = "calculate"

        async def perform(self, number: int, /) -> str:
            return ""

    first, second = explore([report_worker, Other]).handlers

    assert (first.kind.full_name, first.kind.payload, first.kind.result) == ("default.ReportWorker", EmailJob, int)
    assert (first.spec.worker, first.spec.is_async, first.spec.target) == ("default", False, report_worker)
    assert (second.kind.full_name, second.kind.result, second.spec.worker) == (
        "calculator.calculate",
        str,
        "calculator",
    )


def test_a_worker_s_types_come_through_generic_bases() -> None:
    class Base(Worker[list[T], int], Generic[T]):
        def perform(self, args: list[T], /) -> int:
            return len(args)

    class Mails(Base[EmailJob]): ...

    assert only(Mails).kind.payload == list[EmailJob]


def test_a_payload_s_type_variable_is_known_through_the_base() -> None:
    class Base(Generic[T]):
        @process()
        async def a(self, job: Job[T], repo: FromDishka[list[T]]) -> T:
            return job.data

    @processor("email")
    class P(Base[EmailJob]): ...

    handler = only(P)

    assert (handler.kind.payload, handler.kind.result) == (EmailJob, EmailJob)
    assert handler.entry.parameters.injected["repo"] == Annotated[list[EmailJob], FromComponent()]


def test_an_override_gives_a_type_variable_its_type() -> None:
    class Base(Generic[T]):
        @process()
        async def a(self, job: Job[T]) -> None: ...

    @processor("email")
    class C(Base[Any]):
        async def a(self, job: Job[EmailJob]) -> None: ...

    handler = only(C)

    assert handler.kind.payload is EmailJob
    assert handler.spec.target is C.a


def test_what_pydantic_reads_from_annotated_belongs_to_the_payload() -> None:
    @job()
    async def count(n: Annotated[int, Field(ge=1)]) -> None: ...

    adapter = only(count).kind.payload_adapter

    assert adapter.validate_python(1) == 1
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        adapter.validate_python(0)


def test_a_sync_function_that_returns_an_awaitable() -> None:
    @job()
    def later(data: str) -> Awaitable[int]:
        raise NotImplementedError

    assert only(later).kind.result is int


def test_a_wrapper_around_an_async_function_runs_on_the_loop() -> None:
    def traced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @traced
    @job()
    async def send(data: EmailJob) -> int:
        return 1

    handler = only(send)

    assert (handler.spec.is_async, handler.kind.payload, handler.spec.target) == (True, EmailJob, send)


# --- parameters -------------------------------------------------------------------------------------------------------


def test_parameters_are_sorted_by_what_they_receive() -> None:
    @job()
    async def send(
        data: EmailJob,
        again: Job[Any],
        ctx: JobContext,
        dep: FromDishka[Dep],
        reports: Reports,
        *args: int,
        retries: int = 3,
        **more: int,
    ) -> None: ...

    parameters = only(send).entry.parameters

    assert (parameters.first, parameters.jobs, parameters.contexts) == ("data", ("again",), ("ctx",))
    assert parameters.injected == {
        "dep": Annotated[Dep, FromComponent()],
        "reports": Annotated[Queue[Any], FromComponent("queue:reports")],
    }


def test_plain_aliases_of_annotations() -> None:
    @processor("email")
    class P:
        @process()
        async def a(self, job: EmailJobOf, reports: FromDishka[Reports]) -> None: ...

    handler = only(P)

    assert handler.kind.payload is EmailJob
    assert handler.entry.parameters.injected == {"reports": Annotated[Queue[Any], FromComponent("queue:reports")]}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type aliases are syntax of Python 3.12")
def test_type_aliases_of_annotations() -> None:
    names = dict(globals())
    source = """
type Mail = EmailJob
type JobOf[X] = Job[X]
type Swapped[A, B] = dict[B, A]
type ReportQueue = Annotated[Queue[Any], InjectQueue("reports")]
type Context = JobContext
type Needed = Dep

@processor("email")
class P:
    @process()
    async def a(
        self, job: JobOf[Mail], ctx: Context, dep: FromDishka[Needed], one: ReportQueue, two: FromDishka[ReportQueue]
    ) -> Mail: ...

@job()
async def b(data: Swapped[int, str]) -> None: ...
"""
    exec(source, names)

    first, second = explore([names["P"], names["b"]]).handlers

    assert (first.kind.payload_adapter.validate_python({"to": "ada"}), first.kind.result) == (
        EmailJob(to="ada"),
        EmailJob,
    )
    assert first.entry.parameters.contexts == ("ctx",)
    assert first.entry.parameters.injected == {
        "dep": Annotated[Dep, FromComponent()],
        "one": Annotated[Queue[Any], FromComponent("queue:reports")],
        "two": Annotated[Queue[Any], FromComponent("queue:reports")],
    }
    assert second.kind.payload == dict[str, int]


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_class_gives_its_handlers_defaults() -> None:
    def key(data: EmailJob) -> object:
        return data.to

    @processor(
        "email",
        options={"attempts": 3, "timeout": "1m", "tags": ["a"]},
        tags=["b"],
        singleton=True,
        sandbox=Sandbox.THREAD,
        concurrency=5,
    )
    class P:
        @process(options={"attempts": 5}, tags=["c"], singleton=key)
        async def one(self, job: Job[EmailJob]) -> None: ...

        @process()
        async def two(self, job: Job[EmailJob]) -> None: ...

    one, two = explore([P]).handlers

    assert one.kind.options == {"attempts": 5, "timeout": "1m"}
    assert (one.kind.tags, one.kind.singleton) == (("a", "b", "c"), key)
    assert (two.kind.options.get("attempts"), two.kind.tags, two.kind.singleton) == (3, ("a", "b"), True)
    assert {(one.spec.sandbox, one.spec.concurrency) for one in (one, two)} == {(Sandbox.THREAD, 5)}


# --- inheritance ------------------------------------------------------------------------------------------------------


def test_the_nearest_label_counts_and_the_most_derived_function_runs() -> None:
    class Far:
        @process("far", tags=["far"])
        async def a(self, job: Job[Any]) -> None: ...

    class Near(Far):
        @process("near")
        async def a(self, job: Job[Any]) -> None: ...

    @processor("email")
    class C(Near):
        async def a(self, job: Job[EmailJob]) -> None: ...

    handler = only(C)

    assert (handler.kind.full_name, handler.kind.tags, handler.kind.payload) == ("email.near", (), EmailJob)
    assert handler.entry.function is C.a
    assert handler.sources == (C.a, Near.a, Far.a)


def test_two_classes_share_inherited_methods() -> None:
    class Shared:
        @process()
        async def ping(self, job: Job[None]) -> None: ...

    @processor("a")
    class A(Shared): ...

    @processor("b")
    class B(Shared): ...

    assert [one.kind.full_name for one in explore([A, B]).handlers] == ["a.ping", "b.ping"]


def test_a_subclass_can_take_a_method_away() -> None:
    class Shared:
        @process()
        async def ping(self, job: Job[None]) -> None: ...

        @process()
        async def pong(self, job: Job[None]) -> None: ...

    @processor("a")
    class A(Shared):
        ping = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    assert only(A).kind.name == "pong"


def test_a_decorated_subclass_of_a_processor_stands_for_itself() -> None:
    @processor("a", tags=["x"])
    class A:
        @process()
        async def ping(self, job: Job[None]) -> None: ...

    @processor("b")
    class B(A): ...

    handler = only(B)

    assert (handler.kind.full_name, handler.kind.tags) == ("b.ping", ())


def test_dataclasses_in_either_order() -> None:
    @processor("a")
    @dataclass(slots=True)
    class Inside:
        dep: Dep
        seen: list[int] = field(default_factory=list[int])

        @process()
        async def ping(self, job: Job[int]) -> None:
            self.seen.append(job.data)

    @dataclass(slots=True, frozen=True)
    @processor("b")
    class Outside:
        dep: Dep

        @process()
        async def ping(self, job: Job[int]) -> None: ...

    @dataclass(slots=True)
    class Calculator(Worker[int, int]):
        dep: Dep

        def perform(self, args: int, /) -> int:
            return args

    handlers = explore([Inside, Outside, Calculator]).handlers

    assert [one.kind.full_name for one in handlers] == ["a.ping", "b.ping", "default.Calculator"]
    assert [one.entry.owner for one in handlers] == [Inside, Outside, Calculator]


# --- static -----------------------------------------------------------------------------------------------------------


def test_which_handlers_are_static() -> None:
    @job()
    async def bare(data: str, ctx: JobContext) -> None: ...

    @job()
    async def injected(data: str, dep: FromDishka[Dep]) -> None: ...

    @processor("app", scope=Scope.APP)
    class App:
        @process()
        async def bare_method(self, job: Job[Any]) -> None: ...

        @process()
        async def injected_method(self, job: Job[Any], dep: FromDishka[Dep]) -> None: ...

        @interval("10s")
        async def tick(self) -> None: ...

    @processor("request")
    class Request:
        @process()
        async def method(self, job: Job[Any]) -> None: ...

    static = {one.spec.label: one.is_static for one in explore([bare, injected, App, Request]).handlers}

    assert static == {
        "bare": True,
        "injected": False,
        "App.bare_method": True,
        "App.injected_method": False,
        "App.tick": True,
        "Request.method": False,
    }


# --- schedules --------------------------------------------------------------------------------------------------------


def test_a_schedule_on_a_handler_enqueues_it_in_any_order_of_decorators() -> None:
    @job()
    @cron("0 9 * * 1", data=EmailJob(to="a"))
    def inside(data: EmailJob) -> None: ...

    @cron("0 9 * * 1", data={"to": "b"}, tz="Europe/Riga")
    @job()
    def outside(data: EmailJob) -> None: ...

    first, second = explore([inside, outside]).schedules

    assert [(one.name, one.handler.kind.full_name, one.data, one.handler.is_tick) for one in (first, second)] == [
        ("inside", "default.inside", b'{"to":"a"}', False),
        ("outside", "default.outside", b'{"to":"b"}', False),
    ]


def test_a_schedule_on_process_perform_and_a_method() -> None:
    @processor("email")
    class P:
        @cron("@daily", data=None)
        @process()
        async def clean(self, job: Job[None]) -> None: ...

        @interval("1h")
        async def process(self, job: Job[Any]) -> None: ...

    class W(Worker[int, int]):
        @interval("5m", data=3)
        def perform(self, args: int, /) -> int:
            return args

    found = explore([P, W]).schedules

    assert {(one.name, one.handler.kind.full_name, one.handler.job_name, one.data) for one in found} == {
        ("P.process", "email.*", "process", b"null"),
        ("P.clean", "email.clean", "clean", b"null"),
        ("W", "default.W", "W", b"3"),
    }


def test_a_schedule_on_a_plain_method_is_the_handler_of_its_own_jobs() -> None:
    class TickerWorker:
        @cron("* * * * *")
        async def update(self, dep: FromDishka[Dep], n: int = 3) -> int:
            return n

    explored = explore([TickerWorker])
    (handler,) = explored.handlers
    (schedule,) = explored.schedules

    assert (handler.kind.full_name, handler.spec.worker, handler.is_tick) == (
        "cron.ticker.TickerWorker.update",
        "ticker",
        True,
    )
    assert (handler.kind.payload, handler.kind.result) == (None, int)
    assert (schedule.name, schedule.handler, schedule.data) == ("TickerWorker.update", handler, b"null")
    assert dict(explored.classes) == {TickerWorker: Scope.REQUEST}


def test_a_scheduled_function_is_its_own_worker() -> None:
    @cron("* * * * *")
    async def report() -> None: ...

    handler = only(report)

    assert (handler.kind.full_name, handler.spec.worker) == ("cron.report.report", "report")


@pytest.mark.parametrize(
    ("class_name", "worker"),
    [
        ("TickerWorker", "ticker"),
        ("EmailProcessor", "email"),
        ("UserSyncService", "user_sync"),
        ("NightlyTasks", "nightly"),
        ("HTTPPoller", "http_poller"),
        ("Worker", "worker"),
        ("Homework", "homework"),
    ],
)
def test_the_worker_name_of_a_class_with_schedules_only(class_name: str, worker: str) -> None:
    @cron("* * * * *")
    async def tick(self: Any) -> None: ...

    assert only(type(class_name, (), {"tick": tick})).spec.worker == worker


def test_a_plain_schedule_in_a_processor_ticks_with_its_worker() -> None:
    @processor("email", name="mailer", concurrency=3)
    class P:
        async def process(self, job: Job[Any]) -> None: ...

        @timeout("5s")
        async def warm_up(self) -> None: ...

    tick = next(one for one in explore([P]).handlers if one.is_tick)

    assert (tick.kind.full_name, tick.spec.worker, tick.spec.concurrency) == ("cron.mailer.P.warm_up", "mailer", None)


def test_stacked_schedules_are_numbered_as_they_stand_in_the_code() -> None:
    class T:
        @cron("0 1 * * *")
        @cron("0 2 * * *", name="own")
        @cron("0 3 * * *")
        async def tick(self) -> None: ...

    found = {one.name: one.label.schedule and one.label.schedule.expression for one in explore([T]).schedules}

    assert found == {"T.tick": "0 1 * * *", "own": "0 2 * * *", "T.tick-2": "0 3 * * *"}


def test_what_is_missed_is_caught_up_with_where_jobs_are_stored() -> None:
    class T:
        @cron("* * * * *")
        async def stored(self) -> None: ...

        @cron("* * * * *", every_instance=True)
        async def local(self) -> None: ...

        @interval("10s")
        async def often(self) -> None: ...

    found = {one.name: one.label.catch_up for one in explore([T]).schedules}

    assert found == {"T.stored": "latest", "T.local": "none", "T.often": "none"}


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_listener_of_a_processor_hears_its_jobs() -> None:
    @processor("email")
    class P:
        @process()
        async def a(self, job: Job[Any]) -> None: ...

        @on_worker_event("failed")
        @on_worker_event("retries_exhausted")
        async def oops(self, job: Job[Any], error: Exception, event: Any, dep: FromDishka[Dep]) -> None: ...

        @on_queue_event("completed")
        async def done(self, job_id: str, result: Any) -> None: ...

    explored = explore([P])
    listeners = explored.listeners

    assert [one.label.decorator for one in listeners] == [
        "@on_worker_event('failed')",
        "@on_worker_event('retries_exhausted')",
        "@on_queue_event('completed')",
    ]
    assert {one.queue for one in listeners} == {"email"}
    assert {one.handlers for one in listeners} == {explored.handlers}
    assert listeners[0].entry.parameters.fields == ("job", "error", "event")


def test_a_listener_of_a_class_without_handlers_hears_all() -> None:
    class Metrics:
        @on_worker_event("completed")
        async def count(self, job: Job[Any]) -> None: ...

        @on_queue_event("failed", queue="email")
        async def failed(self, error: str) -> None: ...

        @interval("1m")
        async def flush(self) -> None: ...

    first, second = explore([Metrics]).listeners

    assert (first.handlers, first.queue) == (None, None)
    assert second.label.queue == "email"
