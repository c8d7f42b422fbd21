"""What every store decides alike: pure answers, without a place to keep anything."""

from collections.abc import Mapping, Sequence
from typing import Final

from workers_module.errors import ConfigurationError
from workers_module.job.outcome import Completed, Failed, Outcome
from workers_module.job.state import JobState
from workers_module.store.values import (
    MAX_OUTCOMES,
    Action,
    Fail,
    JobSpec,
    Promote,
    RateLimit,
    Remove,
    RetryAgain,
    Step,
)

MAX_LOG_LINES: Final = 1_000
MAX_LINE_BYTES: Final = 64 * 1024
MAX_MOVED: Final = 10_000
"""The most jobs one `Store.move` takes."""
MAX_TRIMMED: Final = 1_000
"""The most jobs one sweep removes for their age, per state."""
MOVED_TO: Final[Mapping[type[Action], str]] = {
    Remove: "removed",
    RetryAgain: "waiting",
    Promote: "waiting",
    Fail: "failed",
}
"""Where an action of `Store.move` takes jobs, in the words of `IllegalMoveError`."""
CRASHED: Final = "job stalled more than allowable limit"
"""Why a job that crashed too often fails; BullMQ's text."""


def wants(wanted: tuple[str, ...], tags: tuple[str, ...]) -> bool:
    """Return whether a worker started with tags ``wanted`` takes jobs tagged ``tags``."""
    return not tags if not wanted else not set(wanted).isdisjoint(tags)


def due_of(spec: JobSpec, now: int) -> int | None:
    """Return when a new job becomes ready; None when that is now."""
    if spec.due is not None:
        due = spec.due
    elif spec.delay_ms > 0:
        due = (now if spec.timestamp is None else spec.timestamp) + spec.delay_ms
    else:
        return None
    return due if due > now else None


def ready_state(priority: int) -> JobState:
    """Return where a job that may run lies."""
    return JobState.PRIORITIZED if priority > 0 else JobState.WAITING


def leads_to(outcome: Outcome, state: JobState) -> bool:
    """Return whether a job found in ``state`` may have come there by ``outcome``."""
    match outcome:
        case Completed():
            return state is JobState.COMPLETED
        case Failed():
            return state is JobState.FAILED
        case _:
            return not state.ended


def rate_of(queue: RateLimit | None, worker: RateLimit | None) -> RateLimit | None:
    """Return the limit that holds: the queue's ``max`` before the worker's, the worker's window before the queue's.

    Source: BullMQ's fetch; wire format §10.1.
    """
    if queue is None or worker is None:
        return queue or worker
    return RateLimit(queue.max, worker.window_ms)


def earliest(*instants: int | None) -> int | None:
    """Return the first of some instants, leaving out those that are None."""
    return min((instant for instant in instants if instant is not None), default=None)


def slot_job_id(schedule: str, slot: int) -> str:
    """Return the id of the job of a schedule's slot."""
    return f"repeat:{schedule}:{slot}"


def child_failed(queue: str, id: str) -> str:
    """Return why a parent fails whose child failed."""
    return f"child {queue}:{id} failed"


def cut_line(line: str) -> str:
    """Return a log line cut to 64 KiB, marked with ``…`` where it was longer."""
    raw = line.encode("utf-8", "replace")
    if len(raw) <= MAX_LINE_BYTES:
        return line
    return raw[: MAX_LINE_BYTES - 3].decode("utf-8", "ignore") + "…"


def check_step(req: Step) -> None:
    """Refuse a step that carries too much.

    Raises:
        ConfigurationError: More than `MAX_OUTCOMES` outcomes.
    """
    if len(req.outcomes) > MAX_OUTCOMES:
        raise ConfigurationError(
            f"queue {req.queue!r}: {len(req.outcomes)} outcomes in one step; "
            f"send at most {MAX_OUTCOMES} and the rest in the next"
        )


def check_specs(specs: Sequence[JobSpec]) -> frozenset[int]:
    """Check what the specs of a call say of one another; the indexes of those that others name as parent.

    Raises:
        ConfigurationError: A parent index that does not point behind its child, or deduplication of a job with a
            parent or children.
    """
    parents: set[int] = set()
    deduplicated: list[int] = []
    for index, spec in enumerate(specs):
        parent = spec.parent
        if isinstance(parent, int):
            if not index < parent < len(specs):
                raise ConfigurationError(
                    f"queue {spec.queue!r}: the spec at {index} names {parent} as its parent; "
                    "a parent stands behind its children"
                )
            parents.add(parent)
        if spec.dedup is not None:
            deduplicated.append(index)
    for index in deduplicated:
        spec = specs[index]
        if spec.parent is not None or index in parents:
            raise ConfigurationError(
                f"queue {spec.queue!r}: job {spec.name!r} has a parent or children and cannot be deduplicated; "
                "leave the deduplication out, or add it on its own"
            )
    return frozenset(parents)
