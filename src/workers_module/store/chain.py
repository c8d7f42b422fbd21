"""A stored schedule's chain: its slots, its rules, and the job of each slot. Pure.

A schedule stores its next job ahead; whoever claims that job stores the one after it. Producers begin chains and
consumers go on with them, so what both must agree on is here.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Self, cast

from workers_module.errors import ScheduleError, StoreCorruptError
from workers_module.job.schedule import CatchUp, Schedule
from workers_module.job.stored import read_options, write_slot_options
from workers_module.store.schedules import ScheduleDefinition
from workers_module.store.values import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a schedule behaves, as far as BullMQ has no place for it: `ScheduleDefinition.extra`.

    Attributes:
        owner: The application that declares it, and may remove it; None for one that was added at run time.
        catch_up: What becomes of missed slots. None is Node's rule: the late job runs, then the next slot after now.
        overlap: Whether a run starts while the last one has not ended.
        threshold_ms: A slot later than this is ended unrun.
        initial_delay_ms: No slot before the process has run so long.
        jitter_ms: Each job starts up to so much after its slot.
        lock: The distributed lock its run holds.
        disabled: It was declared so; lets a later declaration tell that from a person's pause.
    """

    owner: str | None = None
    catch_up: CatchUp | None = None
    overlap: Literal["skip", "allow"] = "allow"
    threshold_ms: int | None = None
    initial_delay_ms: int | None = None
    jitter_ms: int | None = None
    lock: str | None = None
    disabled: bool = False

    def write(self) -> bytes:
        """Return the rules as JSON; equal rules give equal bytes."""
        values: dict[str, object] = {
            "owner": self.owner,
            "catchUp": self.catch_up,
            "overlap": self.overlap,
            "threshold": self.threshold_ms,
            "initialDelay": self.initial_delay_ms,
            "jitter": self.jitter_ms,
            "lock": self.lock,
            "disabled": self.disabled or None,
        }
        kept = {key: value for key, value in values.items() if value is not None}
        return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def read(cls, extra: bytes) -> Self:
        """Return what `write` wrote; what Node or a newer version wrote counts as far as it is understood."""
        try:
            loaded: object = json.loads(extra or b"{}")
        except ValueError:
            loaded = {}
        values = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}

        def text(key: str) -> str | None:
            value = values.get(key)
            return value if isinstance(value, str) else None

        def ms(key: str) -> int | None:
            value = values.get(key)
            return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

        catch_up = text("catchUp")
        return cls(
            owner=text("owner"),
            catch_up=cast("CatchUp", catch_up) if catch_up in {"latest", "all", "none"} else None,
            overlap="skip" if values.get("overlap") == "skip" else "allow",
            threshold_ms=ms("threshold"),
            initial_delay_ms=ms("initialDelay"),
            jitter_ms=ms("jitter"),
            lock=text("lock"),
            disabled=values.get("disabled") is True,
        )


@lru_cache(maxsize=1_024)
def rules_of(definition: ScheduleDefinition) -> Rules:
    """Return the rules a stored schedule carries."""
    return Rules.read(definition.extra)


@lru_cache(maxsize=1_024)
def schedule_of(definition: ScheduleDefinition) -> Schedule:
    """Return the slots of a stored schedule.

    Raises:
        ScheduleError: The definition holds an expression, zone or distance that cannot be used here.
    """
    if definition.pattern is not None:
        return Schedule.cron(definition.pattern, tz=definition.tz or "UTC", start=definition.start, end=definition.end)
    if definition.every_ms is None:
        raise ScheduleError(f"schedule of {definition.name!r} has neither a pattern nor a distance")
    return Schedule.every(
        definition.every_ms, offset_ms=definition.offset_ms or None, start=definition.start, end=definition.end
    )


def slot_id(id: str, slot: int) -> str:
    """Return the id of the job of a slot."""
    return f"repeat:{id}:{slot}"


def slot_job(queue: str, id: str, definition: ScheduleDefinition, *, slot: int, count: int, now: int) -> JobSpec:
    """Return the job of a slot, with the options Node reads to find the next slot by itself.

    Args:
        queue: The schedule's queue.
        id: The schedule's id.
        definition: What it is; name, data and options are taken from it.
        slot: The instant, in milliseconds.
        count: The number of this job, from 1.
        now: The store's clock.

    Raises:
        ScheduleError: The stored options are no JSON object.

    Source: wire format §7.4.
    """
    try:
        template = read_options(definition.opts)
    except StoreCorruptError as error:
        raise ScheduleError(f"schedule {id!r}: {error}") from None
    options = write_slot_options(
        definition.opts,
        schedule_id=id,
        slot=slot,
        count=count,
        delay_ms=max(0, slot - now),
        now=now,
        pattern=definition.pattern,
        every_ms=definition.every_ms,
        offset_ms=definition.offset_ms,
        tz=definition.tz,
        start=definition.start,
        end=definition.end,
        limit=definition.limit,
    )
    return JobSpec(
        queue=queue,
        id=slot_id(id, slot),
        name=definition.name,
        data=definition.data,
        opts=options,
        timestamp=now,
        due=slot,
        priority=template.priority,
        lifo=template.lifo,
        max_attempts=template.attempts,
        tags=template.tags,
        on_crash=template.on_crash,
        schedule=id,
    )


def slot_of(job_id: str) -> int | None:
    """Return the slot a job's id names; None when it is no slot's."""
    number = job_id.rpartition(":")[2]
    return int(number) if number.isascii() and number.isdigit() else None
