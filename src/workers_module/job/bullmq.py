"""Options by the names a Node.js producer gives them, as ours."""

from collections.abc import Mapping
from typing import Any, Final, cast

from workers_module.clock import MAX_MS
from workers_module.errors import ConfigurationError
from workers_module.job.checks import nearest, whole
from workers_module.job.options import JobOptions, OnFailure, check
from workers_module.job.record import ParentRef
from workers_module.job.retry import Backoff


def from_bullmq(value: Mapping[str, Any]) -> JobOptions:
    """Return BullMQ's options, by the names a Node.js producer gives them, as ours.

    Its units are milliseconds, and seconds in ``age``.

    Raises:
        TypeError: An option of this name does not exist.
        ConfigurationError: A value cannot be used, or the option has no counterpart here.
    """
    options: dict[str, Any] = {}
    for name, item in value.items():
        match name:
            case "attempts" | "priority" | "lifo" | "repeat":
                options[name] = item
            case "backoff":
                options[name] = Backoff.from_bullmq(item)
            case "delay":
                options[name] = f"{whole('delay', item, high=MAX_MS, unit=' ms')}ms"
            case "timeout":
                options[name] = None if item is None else f"{whole('timeout', item, low=1, high=MAX_MS, unit=' ms')}ms"
            case "jobId":
                options["job_id"] = item
            case "removeOnComplete":
                options["remove_on_complete"] = item
            case "removeOnFail":
                options["remove_on_fail"] = item
            case "deduplication" | "de":
                options["deduplication"] = item
            case "keepLogs" | "kl":
                options["keep_logs"] = item
            case "onCrash":
                options["on_crash"] = item
            case "parent":
                options["parent"] = _bullmq_parent(item)
            case "failParentOnFailure" | "fpof":
                _flag(options, item, "fail_parent")
            case "continueParentOnFailure" | "cpof":
                _flag(options, item, "continue_parent")
            case "ignoreDependencyOnFailure" | "idof":
                _flag(options, item, "ignore")
            case "removeDependencyOnFailure" | "rdof":
                _flag(options, item, "remove")
            case "timestamp" | "sizeLimit" | "stackTraceLimit" | "telemetry":
                raise ConfigurationError(f"the BullMQ option {name!r} has no counterpart here; leave it out")
            case _:
                raise TypeError(f"unknown BullMQ option {name!r}{nearest(name, _BULLMQ_NAMES)}")
    return check(cast("JobOptions", options), "options")


_BULLMQ_NAMES: Final = (
    "attempts",
    "backoff",
    "continueParentOnFailure",
    "deduplication",
    "delay",
    "failParentOnFailure",
    "ignoreDependencyOnFailure",
    "jobId",
    "keepLogs",
    "lifo",
    "onCrash",
    "parent",
    "priority",
    "removeDependencyOnFailure",
    "removeOnComplete",
    "removeOnFail",
    "repeat",
    "timeout",
)


def _bullmq_parent(value: object) -> ParentRef:
    if isinstance(value, Mapping):
        given: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        queue = given.get("queue")
        if isinstance(queue, str) and isinstance(given.get("id"), str):
            # BullMQ writes the prefix before the queue's name.
            return ParentRef(queue.rpartition(":")[2], given["id"])
    raise ConfigurationError(f'parent {value!r} names no job; write {{"queue": "bull:email", "id": "7"}}')


def _flag(options: dict[str, Any], given: object, policy: OnFailure) -> None:
    if given:
        if "on_failure" in options:
            raise ConfigurationError("at most one of the options about a failing child may be set")
        options["on_failure"] = policy
