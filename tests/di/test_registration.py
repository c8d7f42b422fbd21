"""What is wrong with decorated classes and functions is said when they are decorated or registered."""

import importlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from socket import socket
from typing import Annotated, Any, Generic, TypeVar

import pytest
from dishka import FromComponent, FromDishka, Scope
from pydantic import BaseModel

from workers_module.client.queue import Queue
from workers_module.di.decorators import (
    InjectQueue,
    Worker,
    cron,
    interval,
    job,
    on_queue_event,
    on_worker_event,
    process,
    processor,
    queue_component,
    timeout,
)
from workers_module.di.explorer import explore
from workers_module.errors import ConfigurationError, InvalidNameError, RegistrationError, ScheduleError
from workers_module.job.job import Job
from workers_module.worker.context import JobContext


class EmailJob(BaseModel):
    to: str


class ReportArgs(BaseModel):
    kind: str


class Dep: ...


T = TypeVar("T")


def refused(*processors: object, discover: str = ()) -> str:  # type: ignore[assignment]
    with pytest.raises(RegistrationError) as caught:
        explore(processors, discover)
    assert isinstance(caught.value, TypeError)
    return str(caught.value)


# --- decorators -------------------------------------------------------------------------------------------------------


def test_processor_without_a_queue() -> None:
    class P: ...

    with pytest.raises(RegistrationError) as caught:
        processor(P)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == "@processor needs a queue: @processor('email')"


@pytest.mark.parametrize(
    ("decorator", "text"),
    [
        (process, "@process is called: @process() or @process('name')"),
        (job, "@job is called: @job() or @job('name')"),
        (cron, "@cron is called: @cron('0 9 * * 1')"),
        (interval, "@interval is called: @interval('10s')"),
        (timeout, "@timeout is called: @timeout('5s')"),
        (on_worker_event, "@on_worker_event is called: @on_worker_event('completed')"),
        (on_queue_event, "@on_queue_event is called: @on_queue_event('completed')"),
    ],
)
def test_a_decorator_that_was_not_called(decorator: Callable[..., Any], text: str) -> None:
    def handler(job: Job[Any]) -> None: ...

    with pytest.raises(RegistrationError) as caught:
        decorator(handler)
    assert str(caught.value) == text


def test_unknown_worker_event() -> None:
    with pytest.raises(RegistrationError) as caught:
        on_worker_event("compelted")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == (
        "@on_worker_event: unknown event 'compelted'; known: active, completed, failed, retries_exhausted, progress, "
        "stalled, error, ready, drained, closed"
    )


def test_unknown_queue_event() -> None:
    with pytest.raises(
        RegistrationError, match=r"@on_queue_event: unknown event 'ready'; known: waiting, delayed, active"
    ):
        on_queue_event("ready")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_text_that_is_no_cron_expression() -> None:
    with pytest.raises(ScheduleError, match=r"^@cron: '61 \* \* \* \*' is not a cron expression"):
        cron("61 * * * *")


def test_an_unknown_time_zone() -> None:
    with pytest.raises(ScheduleError) as caught:
        cron("* * * * *", tz="Mars/Olympus")
    assert str(caught.value) == "@cron: unknown time zone 'Mars/Olympus'"


def test_an_expression_that_never_fires() -> None:
    with pytest.raises(ScheduleError, match=r"^@cron: '0 0 31 2 \*' never fires"):
        cron("0 0 31 2 *")


def test_a_bare_number_as_a_duration() -> None:
    with pytest.raises(RegistrationError, match=r"^@interval: 10 has no unit; write '10s' or '10ms'"):
        interval(10)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_an_unknown_option() -> None:
    with pytest.raises(RegistrationError, match=r"^@process: unknown option 'attemps'.*attempts"):
        process(options={"attemps": 3})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_an_option_with_a_value_that_cannot_be_used() -> None:
    with pytest.raises(ConfigurationError, match=r"^@processor: attempts -1"):
        processor("email", options={"attempts": -1})


def test_names_that_no_store_keeps() -> None:
    for wrong in (
        lambda: processor("e mail"),
        lambda: process("a/b"),
        lambda: job("", queue="email"),
        lambda: cron("* * * * *", name="x:y"),
        lambda: cron("* * * * *", lock="x y"),
        lambda: InjectQueue("e*"),
    ):
        with pytest.raises(InvalidNameError, match=r"^(@process|@processor|@job|@cron|InjectQueue): "):
            wrong()


def test_tags_given_as_one_text() -> None:
    with pytest.raises(RegistrationError, match=r"^@process: tags is a list of texts: tags=\('gpu',\)"):
        process(tags="gpu")


def test_a_decorator_on_something_it_cannot_label() -> None:
    with pytest.raises(RegistrationError, match=r"^@job goes on a function or a method, not on 3"):
        job()(3)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        RegistrationError, match=r"^@job goes on a function or method; on a class write @processor\('email'\)"
    ):
        job()(Dep)


def test_a_scope_that_is_neither_app_nor_request() -> None:
    with pytest.raises(RegistrationError, match=r"^@processor: scope is Scope\.REQUEST or Scope\.APP"):
        processor("email", scope=Scope.ACTION)


def test_decorators_return_the_object_they_were_given() -> None:
    class P:
        async def process(self, job: Job[Any]) -> None: ...

    def send(data: EmailJob) -> None: ...

    assert processor("email")(P) is P
    assert cron("* * * * *")(job()(send)) is send


def test_inject_queue_is_a_component() -> None:
    assert InjectQueue("email") == FromComponent("queue:email")
    assert queue_component("email") == "queue:email"


# --- parameters -------------------------------------------------------------------------------------------------------


def test_a_parameter_without_annotation() -> None:
    @processor("email")
    class P:
        async def process(self, job) -> None: ...  # type: ignore[no-untyped-def]

    assert refused(P) == (
        "P.process: parameter 'job' has no annotation; write 'job: Job[YourModel]' (Job[Any] for unchecked data)"
    )


def test_a_function_s_parameter_without_annotation() -> None:
    @job()
    async def send(data) -> None: ...  # type: ignore[no-untyped-def]

    assert refused(send) == (  # pyright: ignore[reportUnknownArgumentType]
        "send: parameter 'data' has no annotation; write 'data: YourModel' or 'job: Job[YourModel]' (Any for unchecked "
        "data)"
    )


def test_a_job_without_payload_type() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job) -> None: ...  # type: ignore[type-arg]

    assert refused(P) == "P.process: 'Job' has no payload type; write 'Job[YourModel]' (Job[Any] for unchecked data)"


def test_a_method_that_takes_the_payload() -> None:
    @processor("email")
    class P:
        @process()  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
        async def send(self, data: EmailJob) -> None: ...

    assert refused(P) == "P.send: a handler method takes the job: write 'data: Job[EmailJob]'"


def test_a_method_that_takes_nothing() -> None:
    @processor("email")
    class P:
        async def process(self) -> None: ...

    assert refused(P) == "P.process: a handler method takes the job: write 'job: Job[YourModel]'"


def test_a_parameter_that_is_not_injected() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[EmailJob], dep: Dep) -> None: ...

    assert refused(P) == "P.process: parameter 'dep' is neither the job nor injected; write 'dep: FromDishka[Dep]'"


def test_injected_before_the_payload() -> None:
    @job()
    async def send(dep: FromDishka[Dep], data: EmailJob) -> None: ...

    assert refused(send) == "send: the payload or the job comes first, before injected parameters"


def test_an_annotation_that_cannot_be_resolved(tmp_path: Path) -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "from workers_module.di.decorators import processor\n"
        "from workers_module.job.job import Job\n"
        "if TYPE_CHECKING:\n"
        "    from decimal import Decimal\n"
        "@processor('email')\n"
        "class P:\n"
        "    async def process(self, job: 'Job[Decimal]') -> None: ...\n"
    )
    path = tmp_path / "late.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("late", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert refused(module.P) == (
        "P.process: cannot resolve annotation 'Decimal'. Import it at run time (not under TYPE_CHECKING)."
    )


def test_a_payload_pydantic_cannot_validate() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[socket]) -> None: ...

    assert refused(P) == "P.process: pydantic cannot validate payload socket: PydanticSchemaGenerationError"


def test_a_result_pydantic_cannot_validate() -> None:
    @job()
    async def connect(data: str) -> socket:
        raise NotImplementedError

    assert refused(connect) == "connect: pydantic cannot validate result socket: PydanticSchemaGenerationError"


def test_a_generator_is_no_handler() -> None:
    @job()
    async def send(data: str) -> AsyncIterator[int]:
        yield 1

    assert refused(send) == "send is a generator; what is called here returns its result"


def test_a_context_that_can_only_be_passed_by_position() -> None:
    @job()
    async def send(data: str, ctx: JobContext, /) -> None: ...

    assert refused(send) == "send: parameter 'ctx' is passed by name; move it behind the '/'"


# --- classes ----------------------------------------------------------------------------------------------------------


def test_a_static_method() -> None:
    @processor("email")
    class P:
        @staticmethod  # type: ignore[type-var]
        @process()  # pyright: ignore[reportArgumentType, reportUntypedFunctionDecorator]
        async def send(job: Job[Any]) -> None: ...

    assert refused(P) == "P.send is a staticmethod; handlers are plain methods"


def test_a_class_method_with_the_label_outside() -> None:
    @processor("email")
    class P:
        @process()
        @classmethod
        async def send(cls, job: Job[Any]) -> None: ...

    assert refused(P) == "P.send is a classmethod; handlers are plain methods"


def test_a_processor_without_handler() -> None:
    @processor("email")
    class P:
        async def send(self, job: Job[Any]) -> None: ...

    assert refused(P) == (
        "P has @processor('email') but no handler: define 'async def process(self, job: Job[...])' or methods with "
        "@process('name')"
    )


def test_a_handler_without_processor() -> None:
    class P:
        @process()
        async def handle(self, job: Job[Any]) -> None: ...

    assert refused(P) == "P.handle has @process but P has no @processor(queue)"


def test_a_class_that_inherits_from_a_processor() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[Any]) -> None: ...

    class Q(P): ...

    assert refused(Q) == (
        "Q is not decorated: it inherits from P, whose @processor('email') is not inherited. Decorate Q itself."
    )


def test_a_worker_without_types() -> None:
    class C(Worker):  # type: ignore[type-arg]
        def perform(self, args: Any, /) -> Any: ...

    assert refused(C) == "C: Worker needs its types: class C(Worker[Args, Result])"


def test_a_worker_whose_types_stay_open() -> None:
    class C(Worker[T, int], Generic[T]):
        def perform(self, args: T, /) -> int:
            return 1

    assert refused(C) == "C: Worker needs its types: class C(Worker[Args, Result])"


def test_an_abstract_worker() -> None:
    class C(Worker[EmailJob, int]): ...

    assert refused(C) == "C is abstract: implement perform"


def test_a_perform_with_more_than_its_payload() -> None:
    class C(Worker[EmailJob, int]):
        def perform(self, args: EmailJob, ctx: JobContext) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            return 1

    assert refused(C) == "C.perform takes only its payload; ask for 'ctx' in __init__"


def test_a_payload_that_is_a_type_variable() -> None:
    class Base(Generic[T]):
        @process()
        async def a(self, job: Job[T]) -> None: ...

    @processor("email")
    class C(Base): ...  # type: ignore[type-arg]

    assert refused(C) == "C.a: payload is the type variable T; override a in C with a concrete type"


def test_a_job_label_on_a_method() -> None:
    @processor("email")
    class P:
        @job()
        async def send(self, job: Job[Any]) -> None: ...

    assert refused(P).splitlines()[0] == "P.send is a method; in a class write @process()"


def test_a_process_label_on_a_function() -> None:
    def send(self: Any, job: Job[Any]) -> None: ...

    assert (
        refused(process()(send))
        == "send has @process, which is for methods of a @processor class; on a function write @job()"
    )


def test_nothing_to_run() -> None:
    class P: ...

    assert refused(P) == (
        "P has nothing to run: expected @processor, Worker[...], @cron, @interval, @timeout or an event listener"
    )


def test_what_is_neither_class_nor_function() -> None:
    assert refused("app.jobs") == "'app.jobs' is neither a class nor a function"


def test_several_faults_are_one_error_with_a_line_each() -> None:
    @processor("email")
    class P:
        @process()
        async def a(self, job: Job) -> None: ...  # type: ignore[type-arg]

        @process()
        async def b(self, job: Job[Any], x: int, y: int) -> None: ...

    class Q: ...

    lines = refused(P, Q).splitlines()

    assert [line.split(":")[0] for line in lines] == ["P.a", "P.b", "P.b", "Q has nothing to run"]


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_listener_with_a_field_the_event_does_not_have() -> None:
    @processor("email")
    class P:
        async def process(self, job: Job[Any]) -> None: ...

        @on_worker_event("completed")
        async def done(self, error: Exception) -> None: ...

    assert refused(P) == (
        "P.done: @on_worker_event('completed') has no field 'error'; it offers: job, result, event (anything else must "
        "be FromDishka[...])"
    )


def test_a_queue_listener_without_a_queue() -> None:
    class Metrics:
        @on_queue_event("completed")
        async def count(self, job_id: str) -> None: ...

    assert refused(Metrics) == (
        "Metrics.count: @on_queue_event('completed') needs queue=, because Metrics has no handlers"
    )


def test_a_listener_that_is_a_function() -> None:
    @on_worker_event("completed")
    async def done(job: Job[Any]) -> None: ...

    assert refused(done) == "done is a function; event listeners are methods of a class in processors="


# --- schedules --------------------------------------------------------------------------------------------------------


def test_a_scheduled_handler_without_data() -> None:
    @job()
    @cron("0 9 * * 1")
    def report(data: ReportArgs) -> str:
        return data.kind

    assert refused(report) == "@cron on report: payload ReportArgs needs data="


def test_a_scheduled_handler_with_wrong_data() -> None:
    @cron("0 9 * * 1", data={"kind": 3})
    @job()
    def report(data: ReportArgs) -> str:
        return data.kind

    assert refused(report) == "@cron on report: data= does not fit ReportArgs: kind: Input should be a valid string"


def test_a_tick_with_arguments() -> None:
    class T:
        @cron("* * * * *")
        async def tick(self, n: int) -> None: ...

    assert refused(T) == (
        "T.tick: @cron calls it without arguments, but 'n' is not FromDishka[...]; to enqueue a job add @process"
    )


def test_a_tick_with_data() -> None:
    class T:
        @interval("5s", data=3)
        async def tick(self) -> None: ...

    assert refused(T) == ("T.tick: @interval has data=, but calls it without arguments; to enqueue a job add @process")


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def write(name: str, **modules: str) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        for loaded in [one for one in sys.modules if one.split(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        return name

    return write


def test_a_package_without_anything_decorated(package: Callable[..., str]) -> None:
    name = package("empty_jobs", plain="def f(): ...\n")

    assert refused(discover=name) == "discover='empty_jobs' found no decorated class or function"


def test_a_package_that_does_not_exist() -> None:
    assert refused(discover="no_such_package.jobs") == (
        "discover='no_such_package.jobs': there is no module 'no_such_package'"
    )


def test_an_import_error_inside_a_package_is_not_hidden(package: Callable[..., str]) -> None:
    name = package("broken_jobs", broken="import no_such_module\n")

    with pytest.raises(ModuleNotFoundError, match=r"no_such_module"):
        explore(discover=name)


def test_discovery_takes_what_is_defined_in_the_package(package: Callable[..., str]) -> None:
    name = package(
        "found_jobs",
        a=(
            "from typing import Any\n"
            "from workers_module.di.decorators import Worker, job, on_worker_event, process, processor\n"
            "from workers_module.job.job import Job\n"
            "@job()\n"
            "def send(data: str) -> None: ...\n"
            "class Mixin:\n"
            "    @process()\n"
            "    async def shared(self, job: Job[Any]) -> None: ...\n"
            "@processor('email')\n"
            "class P(Mixin): ...\n"
            "class Base(Worker[int, int]): ...\n"
            "class Calculator(Base):\n"
            "    def perform(self, args: int, /) -> int: return args\n"
            "class Metrics:\n"
            "    @on_worker_event('completed')\n"
            "    def done(self) -> None: ...\n"
        ),
        b="from found_jobs.a import send\n",
        __main__="raise SystemExit('ran')\n",
    )

    explored = explore(discover=name)

    assert sorted(one.kind.full_name for one in explored.handlers) == [
        "default.Calculator",
        "default.send",
        "email.shared",
    ]
    assert [cls.__name__ for cls in explored.classes] == ["P", "Calculator", "Metrics"]


def test_what_is_both_given_and_discovered_counts_once(package: Callable[..., str]) -> None:
    name = package(
        "twice_jobs", a="from workers_module.di.decorators import job\n@job()\ndef send(data: str) -> None: ...\n"
    )
    send = importlib.import_module(f"{name}.a").send

    assert len(explore([send, send], [name, f"{name}.a"]).handlers) == 1


# --- not faults -------------------------------------------------------------------------------------------------------


def test_inject_queue_marks_a_parameter_as_injected() -> None:
    @job()
    async def send(data: str, mails: Annotated[Queue[EmailJob], InjectQueue("email")]) -> None: ...

    (handler,) = explore([send]).handlers

    assert handler.entry.parameters.injected == {"mails": Annotated[Queue[EmailJob], FromComponent("queue:email")]}
