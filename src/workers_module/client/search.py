"""The filter language of the command line and the dashboard: ``welcome attempts:>2 age:<1h data.customer_id:42``.

Free words are looked for in name and id. ``key:value`` compares: ``name``, ``id``, ``tag``, ``worker``, ``schedule``
whole (``*`` stands for anything), ``error`` anywhere in the text of the failure, ``attempts`` and ``priority`` as
numbers and ``age`` as a duration, each with ``<`` or ``>`` where wanted, ``data.path`` in the payload. All must hold.
"""

import json
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final

from workers_module.client.inspector import Inspector
from workers_module.clock import duration_ms, span_ms
from workers_module.errors import ConfigurationError
from workers_module.job.job import Job
from workers_module.job.state import JobState

Test = Callable[[Job[Any], datetime], bool]

KEYS: Final = ("name", "id", "tag", "worker", "schedule", "error", "attempts", "priority", "age", "data.<path>")
_PAGE: Final = 500
_COMPARED: Final = re.compile(r"(<=|>=|<|>|=)?(.+)")
_SIGNS: Final[Mapping[str, Callable[[int, int], bool]]] = {
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
    "=": lambda one, other: one == other,
}


class JobFilter:
    """A filter that was read."""

    def __init__(self, text: str = "", *, names: Sequence[str] = (), older_ms: int = 0) -> None:
        """Read a filter.

        Args:
            text: In the filter language; empty lets every job through.
            names: Also, the job has one of these names.
            older_ms: Also, it was last touched longer ago than so many milliseconds.

        Raises:
            ConfigurationError: A key is unknown, or a value is none it can have.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigurationError(f"filter {text!r}: {str(error).lower()}") from None
        self._tests = [_test(word) for word in words]
        if names:
            wanted = frozenset(names)
            self._tests.append(lambda job, _: job.name in wanted)
        if older_ms:
            self._tests.append(lambda job, now: span_ms(now - _touched(job)) > older_ms)

    def fits(self, job: Job[Any], now: datetime) -> bool:
        """Whether a job has all that is asked for."""
        return all(test(job, now) for test in self._tests)


async def find_jobs(
    inspector: Inspector,
    queue: str,
    states: Sequence[JobState],
    wanted: JobFilter,
    *,
    now: datetime,
    limit: int | None = None,
    newest_first: bool = False,
) -> AsyncIterator[Job[Any]]:
    """Yield the jobs of a queue that fit, each once, however the lists move meanwhile.

    Args:
        inspector: Reads them.
        queue: The queue.
        states: Their states, one after the other.
        wanted: The filter.
        now: What ages count from.
        limit: At most so many.
        newest_first: Turn each state's list round.
    """
    seen: set[str] = set()
    cursor: str | None = None
    while True:
        page = await inspector.page(queue, states, cursor, _PAGE, newest_first=newest_first)
        for job in page.items:
            if job.id not in seen and wanted.fits(job, now):
                if limit is not None and len(seen) >= limit:
                    return
                seen.add(job.id)
                yield job
        cursor = page.cursor
        if cursor is None:
            return


def _touched(job: Job[Any]) -> datetime:
    return job.finished_at or job.started_at or job.created_at


def _test(word: str) -> Test:
    key, colon, value = word.partition(":")
    if not colon:
        low = word.lower()
        return lambda job, _: low in job.name.lower() or low in job.id.lower()
    if not value:
        raise ConfigurationError(f"filter: {word!r} says nothing; write {key}:value")
    if key.startswith("data.") and len(key) > len("data."):
        path = key.split(".")[1:]
        return lambda job, _: _in_data(job.data, path, value)
    match key:
        case "name":
            return lambda job, _: fnmatchcase(job.name, value)
        case "id":
            return lambda job, _: fnmatchcase(job.id, value)
        case "tag":
            return lambda job, _: any(fnmatchcase(tag, value) for tag in job.tags)
        case "worker":
            return lambda job, _: fnmatchcase(job.record.worker or "", value)
        case "schedule":
            return lambda job, _: fnmatchcase(job.schedule or "", value)
        case "error":
            low = value.lower()
            return lambda job, _: low in (job.error or "").lower() or low in _last_line(job).lower()
        case "attempts" | "priority":
            return _number(key, value)
        case "age":
            return _age(value)
        case _:
            raise ConfigurationError(f"filter: no key {key!r}; there are: {', '.join(KEYS)}")


def _last_line(job: Job[Any]) -> str:
    # A trace ends with the name of the error's class.
    return (job.record.trace or b"").decode("utf-8", "replace").rpartition("\\n")[2]


def _number(key: str, value: str) -> Test:
    sign, text = _split(value)
    if not text.isdigit():
        raise ConfigurationError(f"filter: {key}:{value} is no number; write {key}:3 or '{key}:>2'")
    number, compare = int(text), _SIGNS[sign]
    if key == "priority":
        return lambda job, _: compare(job.priority, number)
    return lambda job, _: compare(job.record.attempts_made, number)


def _age(value: str) -> Test:
    sign, text = _split(value)
    if sign == "=":
        raise ConfigurationError(f"filter: age:{value} needs a sign; write 'age:>{text}' or 'age:<{text}'")
    ms, compare = duration_ms(text, "filter: age"), _SIGNS[sign]
    return lambda job, now: compare(span_ms(now - job.created_at), ms)


def _split(value: str) -> tuple[str, str]:
    match = _COMPARED.fullmatch(value)
    return ("=", value) if match is None else (match[1] or "=", match[2])


def _in_data(data: Any, path: Sequence[str], value: str) -> bool:
    for name in path:
        if isinstance(data, Mapping) and name in data:
            data = data[name]  # pyright: ignore[reportUnknownVariableType]
        elif isinstance(data, list) and name.isdigit() and int(name) < len(data):  # pyright: ignore[reportUnknownArgumentType]
            data = data[int(name)]  # pyright: ignore[reportUnknownVariableType]
        else:
            return False
    return fnmatchcase(data if isinstance(data, str) else json.dumps(data), value)
