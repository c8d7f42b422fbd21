"""One kind of job: what its payload and result are, and how it is enqueued."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from workers_module.job.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """What a producer and a consumer must agree on for jobs of one name in one queue.

    Attributes:
        queue: The queue's name.
        name: The job's name; None is every name that no other kind of this queue takes.
        payload: The payload's type: any type pydantic can validate, None for no payload, `Any` for unchecked data.
        result: The result's type; `Any` when it is not declared.
        options: The handler's own defaults (queue and settings are merged below them, the call above).
        tags: Put on every job of this kind.
        singleton: True for one job in flight per name, or a function of the payload that gives a key.
    """

    queue: str
    name: str | None
    payload: Any = Any
    result: Any = Any
    options: JobOptions = field(default_factory=JobOptions)
    tags: tuple[str, ...] = ()
    singleton: bool | Callable[[Any], object] = False

    @property
    def full_name(self) -> str:
        """``queue.name``, or ``queue.*`` for the kind that takes every other name."""
        return f"{self.queue}.{self.name or '*'}"

    @cached_property
    def payload_adapter(self) -> TypeAdapter[Any]:
        """The one validator of the payload, made at first use.

        Raises:
            pydantic.PydanticSchemaGenerationError: pydantic cannot validate this type.
        """
        return TypeAdapter(self.payload)

    @cached_property
    def result_adapter(self) -> TypeAdapter[Any]:
        """The one validator of the result, made at first use."""
        return TypeAdapter(self.result)
