"""What a worker and its child processes say to each other: JSON texts, each behind its length.

Nothing that is read becomes code: a message is one of the records below, or an error.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from workers_module.job.record import JobRecord
from workers_module.store.values import Child, EditResult

HEAD: Final = 4
"""So many bytes, big-endian, say how long the message behind them is."""
MAX_MESSAGE: Final = 1024 * 1024 * 1024
"""More than any payload that can be allowed; a larger number means that something else wrote on the line."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class Order(_Message):
    """To the child: run a job.

    Attributes:
        number: Names this run on this line; everything that is said about it carries it.
        record: The job as it was claimed.
        timeout_ms: Its limit, or None.
        max_bytes: The largest result and progress.
        capture_logging: Whether the handler's log records go to the job's log.
    """

    kind: Literal["order"] = "order"
    number: int
    record: JobRecord
    timeout_ms: int | None
    max_bytes: int
    capture_logging: bool = False


class Cancel(_Message):
    """To the child: stop the run."""

    kind: Literal["cancel"] = "cancel"
    number: int


class Doubt(_Message):
    """To the child: whether the job's lease may have run out."""

    kind: Literal["doubt"] = "doubt"
    number: int
    value: bool


class Answer(_Message):
    """To the child: what became of an `Ask`; one of the fields behind its number is set."""

    kind: Literal["answer"] = "answer"
    ask: int
    edited: EditResult | None = None
    children: tuple[Child, ...] | None = None
    total: int = 0
    jobs: tuple[JobRecord | None, ...] | None = None
    error: str | None = None


class SetProgress(_Message):
    """How far the job is, as JSON."""

    kind: Literal["progress"] = "progress"
    value: bytes


class ReadChildren(_Message):
    """A piece of the list of the job's children."""

    kind: Literal["children"] = "children"
    start: int
    limit: int


class ReadJobs(_Message):
    """Jobs by id, without their payloads."""

    kind: Literal["jobs"] = "jobs"
    queue: str
    ids: tuple[str, ...]


class Ready(_Message):
    """From the child: the application is built, jobs may come."""

    kind: Literal["ready"] = "ready"


class Started(_Message):
    """From the child: the order arrived; if the process dies from now on, this job may be why."""

    kind: Literal["started"] = "started"
    number: int


class Line(_Message):
    """From the child: a line for the job's log."""

    kind: Literal["line"] = "line"
    number: int
    text: str


class Ask(_Message):
    """From the child: something only the worker can do; answered by an `Answer` with the same ``ask``."""

    kind: Literal["ask"] = "ask"
    number: int
    ask: int
    call: Annotated[SetProgress | ReadChildren | ReadJobs, Field(discriminator="kind")]


class Done(_Message):
    """From the child: the handler returned; ``result`` is JSON."""

    kind: Literal["done"] = "done"
    number: int
    result: bytes


class Fault(_Message):
    """From the child: the run failed, or, as number 0, the application could not be built.

    Attributes:
        error_type: The name of the error's class, for people.
        message: Its text.
        trace: Its traceback, as it is stored with the job.
        unrecoverable: No further attempt will help.
        retry_ms: The handler asked to be run again later.
        timed_out: The run passed its limit.
    """

    kind: Literal["fault"] = "fault"
    number: int
    error_type: str
    message: str
    trace: str
    unrecoverable: bool = False
    retry_ms: int | None = None
    timed_out: bool = False


ToChild = Order | Cancel | Doubt | Answer
FromChild = Ready | Started | Line | Ask | Done | Fault

to_child: Final[TypeAdapter[ToChild]] = TypeAdapter(Annotated[ToChild, Field(discriminator="kind")])
"""Reads what a child is told."""
from_child: Final[TypeAdapter[FromChild]] = TypeAdapter(Annotated[FromChild, Field(discriminator="kind")])
"""Reads what a child says."""


def frame(message: ToChild | FromChild) -> bytes:
    """Return a message as it goes over the line."""
    body = message.model_dump_json().encode()
    return len(body).to_bytes(HEAD, "big") + body


def length_of(head: bytes) -> int:
    """Return how many bytes the message behind a head has.

    Raises:
        ValueError: No message is that long.
    """
    length = int.from_bytes(head, "big")
    if length > MAX_MESSAGE:
        raise ValueError(f"a message of {length:,} bytes is none of ours")
    return length
