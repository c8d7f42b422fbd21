"""What a script is asked: values of the contract as the arguments its file lists."""

from collections.abc import Sequence
from typing import assert_never

from workers_module.job.outcome import Completed, Failed, Keep, Release, Retry, Snooze, WaitChildren
from workers_module.store.planning import cut_line
from workers_module.store.redis.fields import spec_extras, to_json
from workers_module.store.redis.keys import Keys
from workers_module.store.redis.scripts import Argument
from workers_module.store.schedules import ScheduleDefinition
from workers_module.store.values import (
    UNSET,
    Action,
    Fail,
    Held,
    JobPatch,
    JobSpec,
    Promote,
    QueuePatch,
    RateLimit,
    Remove,
    RetryAgain,
    Settle,
)


def add_args(keys: Keys, specs: Sequence[JobSpec]) -> list[Argument]:
    """Return what ``add-2.lua`` is asked: neighbours that differ in their data only are one group."""
    groups: list[Argument] = []
    data: list[Argument] = []
    parents = "0"
    number = 0
    last: tuple[str, str, str, bytes, str] | None = None
    for spec in specs:
        extras = spec_extras(spec)
        if spec.parent is not None:
            parents = "1"
            if isinstance(spec.parent, int):
                extras["pi"] = spec.parent + 1
            else:
                extras["pq"], extras["pid"] = spec.parent
        group = (
            keys.place(spec.queue, spec.tags),
            "" if spec.id is None else spec.id,
            spec.name,
            spec.opts,
            to_json(extras) if extras else "",
        )
        if group != last or spec.id is not None:
            if last is not None:
                groups += (len(data), *last, *data)
                data.clear()
            last = group
            number += 1
        data.append(spec.data)
    if last is not None:
        groups += (len(data), *last, *data)
    return [number, parents, *groups]


def write_outcomes(args: list[Argument], outcomes: Sequence[Settle]) -> None:
    """Append how runs ended: how many groups, and each; jobs that were claimed together mostly end together."""
    groups: list[Argument] = []
    members: list[Argument] = []
    last: tuple[str, str, Keep | None] | None = None
    number = size = 0
    for (id, token, fence, plain), outcome in outcomes:
        keep: Keep | None = None
        texts: tuple[Argument, ...]
        match outcome:
            case Completed(result, keep):
                kind, texts = "C" if plain else "c", (id, fence, result)
            case Failed(reason, trace, keep):
                kind, texts = "f", (id, fence, reason, trace or "")
            case Retry(delay_ms, reason, trace):
                kind, texts = "r", (id, fence, delay_ms, reason, trace or "")
            case Snooze(delay_ms):
                kind, texts = "s", (id, fence, delay_ms)
            case Release():
                kind, texts = "l", (id, fence)
            case WaitChildren(child):
                kind, texts = "w", (id, fence, child or "", "1" if child is None else "")
            case _:
                assert_never(outcome)
        group = (kind, token, keep)
        if group != last:
            if last is not None:
                groups += (*_head(last), size, *members)
                members.clear()
            last, size = group, 0
            number += 1
        size += 1
        members += texts
    if last is not None:
        groups += (*_head(last), size, *members)
    args.append(number)
    args += groups


def _head(group: tuple[str, str, Keep | None]) -> tuple[str, str, str]:
    kind, token, keep = group
    return kind, token, _keep(keep)


def _keep(keep: Keep | None) -> str:
    if keep is None:
        return ""
    count = "" if keep.count is None else keep.count
    return f"{count}:{'' if keep.age_ms is None else keep.age_ms}:{keep.limit}"


def renew_args(held: Sequence[Held], lease_ms: int) -> list[Argument]:
    """Return what ``renew-2.lua`` is asked."""
    args: list[Argument] = [lease_ms]
    for id, token, fence, _ in held:
        args += (id, token, fence)
    return args


def write_patch(args: list[Argument], patch: JobPatch) -> None:
    """Append a change to a job."""
    extras: dict[str, object] = {"n": len(patch.log_lines)}
    if patch.priority is not None:
        extras["p"] = patch.priority
    if patch.delay_ms is not None:
        extras["d"] = patch.delay_ms
    if patch.cancel:
        extras["c"] = 1
    if patch.detach:
        extras["x"] = 1
    if patch.keep_logs is not None:
        extras["k"] = patch.keep_logs
    if patch.clear_logs:
        extras["e"] = 1
    if patch.progress is not None:
        extras["hp"] = 1
    if patch.data is not None:
        extras["hd"] = 1
    held = patch.held
    args += (
        patch.id,
        "" if held is None else held.token,
        "" if held is None else held.fence,
        to_json(extras),
        patch.progress or b"",
        patch.data or b"",
        *map(cut_line, patch.log_lines),
    )


def action_args(action: Action) -> tuple[Argument, Argument, Argument]:
    """Return an action: its name, and two words to it."""
    match action:
        case Remove(children, hard):
            return "remove", "1" if children else "", "1" if hard else ""
        case RetryAgain(reset):
            return "retry", "1" if reset else "", ""
        case Promote():
            return "promote", "", ""
        case Fail(reason, trace):
            return "fail", reason, trace or b""
        case _:
            assert_never(action)


def patch_args(patch: QueuePatch) -> dict[str, object]:
    """Return a change to a queue's settings, as ``configure-2.lua`` names its parts."""
    args: dict[str, object] = {}
    if patch.paused is not None:
        args["pause"] = patch.paused
    if patch.concurrency is not UNSET:
        args["c"] = patch.concurrency or 0
    if patch.rate is None:
        args["m"] = 0
    elif isinstance(patch.rate, RateLimit):
        args["m"], args["w"] = patch.rate.max, patch.rate.window_ms
    if patch.event_cap is not None:
        args["e"] = patch.event_cap
    if patch.limit_for_ms is not None:
        args["l"] = patch.limit_for_ms
    if patch.free_dedup is not None:
        args["k"] = patch.free_dedup
    return args


def definition_values(definition: ScheduleDefinition) -> list[str]:
    """Return a definition's fields in the order ``schedule-2.lua`` names them; an absent one is empty."""
    values = (
        definition.name,
        definition.pattern,
        definition.every_ms,
        definition.offset_ms,
        definition.tz,
        definition.start,
        definition.end,
        definition.limit,
    )
    extra = "" if definition.extra == b"{}" else definition.extra.decode("utf-8", "surrogateescape")
    return [*("" if value is None else str(value) for value in values), extra]
