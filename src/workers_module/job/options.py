"""How a job is to be treated: the options of a call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self, TypedDict, cast, get_args

from workers_module.clock import MAX_MS, Duration, duration_ms, to_ms
from workers_module.errors import ConfigurationError
from workers_module.job.checks import check_keys, date_of, instant, nearest, whole
from workers_module.job.names import check_job_id, check_key, check_name
from workers_module.job.outcome import Keep
from workers_module.job.record import OnCrash, ParentRef
from workers_module.job.retry import Backoff
from workers_module.job.schedule import Schedule

OnFailure = Literal["fail_parent", "continue_parent", "ignore", "remove"]
DedupMode = Literal["simple", "throttle", "extend", "debounce", "reschedule", "keep_latest"]

MAX_ATTEMPTS: Final = 1_000
MAX_PRIORITY: Final = 2**21 - 1
MAX_LOG_LINES: Final = 1_000
"""A job's log never keeps more."""


@dataclass(frozen=True, slots=True)
class Dedup:
    """One job for several calls: what a further `add` with the same ``id`` does while the first one counts.

    Source: BullMQ deduplication; wire format §8.
    """

    id: str
    mode: DedupMode = "simple"
    ttl_ms: int | None = None

    def __post_init__(self) -> None:
        check_key("Dedup", self.id)
        if self.mode not in _DEDUP_MODES:
            raise ConfigurationError(f"Dedup: unknown mode {self.mode!r}; known: {', '.join(_DEDUP_MODES)}")
        if self.ttl_ms is None and self.mode in {"throttle", "extend"}:
            raise ConfigurationError(f"Dedup.{self.mode} needs a ttl: Dedup.{self.mode}('id', '1m')")
        if self.ttl_ms is not None:
            whole("Dedup: ttl", self.ttl_ms, low=1, high=MAX_MS, unit=" ms")

    @classmethod
    def simple(cls, id: str) -> Self:
        """Drop further calls until the job ends."""
        return cls(id, "simple")

    @classmethod
    def throttle(cls, id: str, ttl: Duration) -> Self:
        """Drop further calls for a time, whether or not the job has ended."""
        return cls(id, "throttle", duration_ms(ttl, "Dedup.throttle"))

    @classmethod
    def extend(cls, id: str, ttl: Duration) -> Self:
        """Drop further calls for a time that each of them starts anew."""
        return cls(id, "extend", duration_ms(ttl, "Dedup.extend"))

    @classmethod
    def debounce(cls, id: str, ttl: Duration) -> Self:
        """Let a further call replace the job while that is still delayed; give the job a ``delay``."""
        return cls(id, "debounce", duration_ms(ttl, "Dedup.debounce"))

    @classmethod
    def reschedule(cls, id: str) -> Self:
        """Let a further call move the due time of the job while that is still delayed."""
        return cls(id, "reschedule")

    @classmethod
    def keep_latest(cls, id: str) -> Self:
        """While the job runs, keep the last further call as its one successor."""
        return cls(id, "keep_latest")

    def to_bullmq(self) -> dict[str, Any]:
        """Return BullMQ's JSON: ``{"id", "ttl"?, "extend"?, "replace"?, "reschedule"?, "keepLastIfActive"?}``."""
        value: dict[str, Any] = {"id": self.id}
        if self.ttl_ms is not None:
            value["ttl"] = self.ttl_ms
        return value | dict.fromkeys(_DEDUP_FLAGS[self.mode], True)

    @classmethod
    def from_bullmq(cls, value: Mapping[str, Any]) -> Self:
        """Read BullMQ's JSON; ``ttl`` in milliseconds.

        Raises:
            ConfigurationError: The value has another shape, or no ``id``.
        """
        check_keys("deduplication", value, {"id", "ttl", "extend", "replace", "reschedule", "keepLastIfActive"})
        mode: DedupMode = "simple"
        if value.get("keepLastIfActive"):
            mode = "keep_latest"
        elif value.get("replace"):
            mode = "debounce"
        elif value.get("reschedule"):
            mode = "reschedule"
        elif value.get("ttl"):
            mode = "extend" if value.get("extend") else "throttle"
        ttl = value.get("ttl") or None
        if ttl is not None:
            ttl = whole("deduplication.ttl", ttl, high=MAX_MS, unit=" ms")
        return cls(value.get("id", ""), mode, ttl)


_DEDUP_MODES: Final[tuple[DedupMode, ...]] = get_args(DedupMode)
_DEDUP_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "simple": (),
    "throttle": (),
    "extend": ("extend",),
    "debounce": ("extend", "replace"),
    "reschedule": ("reschedule",),
    "keep_latest": ("keepLastIfActive",),
}


@dataclass(frozen=True, slots=True)
class KeepJobs:
    """How long the records of ended jobs stay.

    Attributes:
        age: No older than this.
        count: The newest so many.
        limit: At most so many are removed each time a job ends.
    """

    age: Duration | None = None
    count: int | None = None
    limit: int = 1_000

    def __post_init__(self) -> None:
        if self.age is not None:
            duration_ms(self.age, "KeepJobs.age")
        if self.count is not None:
            whole("KeepJobs.count", self.count, high=MAX_MS)
        whole("KeepJobs.limit", self.limit, low=1, high=MAX_MS)

    def keep(self) -> Keep:
        """Return what the store is told."""
        age = None if self.age is None else duration_ms(self.age, "KeepJobs.age")
        return Keep(count=self.count, age_ms=age, limit=self.limit)


@dataclass(frozen=True, slots=True)
class Repeat:
    """A job that comes again and again: a cron ``pattern`` or a fixed distance, ``every``.

    Attributes:
        pattern: Five or six fields, seconds first when six.
        every: The distance between two jobs.
        tz: The IANA zone of the pattern; UTC unless given.
        limit: No more than so many jobs.
        start: No job before this instant.
        end: No job after this instant.
        immediately: The first job comes at once.
    """

    pattern: str | None = None
    every: Duration | None = None
    tz: str | None = None
    limit: int | None = None
    start: datetime | None = None
    end: datetime | None = None
    immediately: bool = False

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.every is None):
            raise ConfigurationError(
                "Repeat needs either a pattern or every=: Repeat('*/5 * * * *'), Repeat(every='5m')"
            )
        if self.every is not None:
            if self.tz is not None:
                raise ConfigurationError("Repeat: tz belongs to a pattern; a fixed distance has no zone")
            if duration_ms(self.every, "Repeat.every") < 1:
                raise ConfigurationError(f"Repeat.every: {self.every!r} is not longer than nothing")
        if self.limit is not None:
            whole("Repeat.limit", self.limit, low=1, high=MAX_MS)
        for name in ("start", "end"):
            instant(f"Repeat.{name}", getattr(self, name))
        if self.immediately and self.start is not None:
            raise ConfigurationError("Repeat: immediately=True and start= exclude each other")

    def schedule(self) -> Schedule:
        """Return the slots this repetition has.

        Raises:
            ScheduleError: The pattern or the time zone cannot be used, or the repetition never fires.
        """
        start = None if self.start is None else to_ms(self.start)
        end = None if self.end is None else to_ms(self.end)
        if self.pattern is not None:
            return Schedule.cron(self.pattern, tz=self.tz or "UTC", start=start, end=end)
        return Schedule.every(duration_ms(self.every or "", "Repeat.every"), start=start, end=end)

    @classmethod
    def from_bullmq(cls, value: Mapping[str, Any]) -> Self:
        """Read BullMQ's JSON: ``pattern`` or ``every``, ``tz``, ``limit``, ``startDate``, ``endDate``, ``immediately``.

        Times are in milliseconds.

        Raises:
            ConfigurationError: The value has another shape.
        """
        check_keys("repeat", value, {"pattern", "every", "tz", "limit", "startDate", "endDate", "immediately"})
        every = value.get("every")
        limit = value.get("limit")
        return cls(
            pattern=value.get("pattern"),
            every=None if every is None else f"{whole('repeat.every', every, low=1, high=MAX_MS, unit=' ms')}ms",
            tz=value.get("tz"),
            limit=None if limit is None else whole("repeat.limit", limit, low=1, high=MAX_MS),
            start=date_of("repeat.startDate", value.get("startDate")),
            end=date_of("repeat.endDate", value.get("endDate")),
            immediately=bool(value.get("immediately")),
        )


class JobOptions(TypedDict, total=False):
    """The options of `Queue.add` and its relatives; all optional.

    Values that BullMQ writes as an object may be given in BullMQ's own JSON instead, with BullMQ's units.
    """

    attempts: int
    """Runs allowed in all; 1 unless given."""
    backoff: Backoff | Mapping[str, Any]
    """How long a failed job waits before its next attempt; not at all unless given."""
    delay: Duration
    """Not before so long from now."""
    run_at: datetime
    """Not before this instant, which has a time zone; in place of ``delay``."""
    priority: int
    """1 goes first, 2,097,151 last; 0 means none and goes before all."""
    lifo: bool
    """Goes to the head of the queue, before those that wait already."""
    job_id: str
    """A name of your own; a job that has it already is returned in place of a second one."""
    deduplication: Dedup | Mapping[str, Any]
    """One job for several calls."""
    repeat: Repeat | Mapping[str, Any]
    """Comes again and again."""
    timeout: Duration | None
    """The limit of a run; None for none, the setting's unless given."""
    tags: Sequence[str]
    """Only workers with one of these tags take the job; without tags, only workers without."""
    remove_on_complete: bool | int | KeepJobs | Mapping[str, Any]
    """True removes the record at once, False keeps all, a number the newest so many; the setting's unless given."""
    remove_on_fail: bool | int | KeepJobs | Mapping[str, Any]
    """The same for a job that failed for good."""
    keep_logs: int
    """At most so many lines of its log are kept, the newest."""
    on_crash: OnCrash
    """``retry`` runs the job again when its worker died, ``fail`` ends it: at most one run."""
    parent: ParentRef
    """The job that waits for this one."""
    on_failure: OnFailure
    """What a failed child does to its parent: ``fail_parent`` (unless given), ``continue_parent`` runs it at once,
    ``ignore`` counts the child as done, ``remove`` forgets the child."""


OPTION_NAMES: Final[tuple[str, ...]] = tuple(JobOptions.__annotations__)
_ON_CRASH: Final[tuple[str, ...]] = get_args(OnCrash)
_ON_FAILURE: Final[tuple[str, ...]] = get_args(OnFailure)


def check(options: JobOptions, where: str) -> JobOptions:
    """Return the options with BullMQ's shapes turned into ours, or refuse them.

    Args:
        options: Any of the options; this mapping is left as it is.
        where: What error messages begin with, for example ``email.welcome``.

    Raises:
        TypeError: An option of this name does not exist.
        ConfigurationError: A value cannot be used; the message names option, value and limit.
    """
    checked: dict[str, Any] = {}
    for name, value in options.items():
        match name:
            case "attempts":
                checked[name] = max(1, whole(f"{where}: attempts", value, high=MAX_ATTEMPTS))
            case "priority":
                checked[name] = whole(f"{where}: priority", value, high=MAX_PRIORITY)
            case "keep_logs":
                checked[name] = whole(f"{where}: keep_logs", value, high=MAX_MS)
            case "delay":
                duration_ms(value, f"{where}: delay")  # type: ignore[arg-type]
                checked[name] = value
            case "run_at":
                checked[name] = instant(f"{where}: run_at", value)
            case "timeout":
                if value is not None and duration_ms(value, f"{where}: timeout") < 1:  # type: ignore[arg-type]
                    raise ConfigurationError(f"{where}: timeout {value!r} leaves no time to run; None sets no limit")
                checked[name] = value
            case "lifo":
                checked[name] = _typed(f"{where}: lifo", value, bool)
            case "job_id":
                checked[name] = check_job_id(value)
            case "tags":
                checked[name] = _tags(f"{where}: tags", value)
            case "backoff":
                checked[name] = value if isinstance(value, Backoff) else _backoff(f"{where}: backoff", value)
            case "deduplication":
                checked[name] = _shape(f"{where}: deduplication", value, Dedup)
            case "repeat":
                checked[name] = _shape(f"{where}: repeat", value, Repeat)
            case "remove_on_complete" | "remove_on_fail":
                checked[name] = _retention(f"{where}: {name}", value)
            case "on_crash":
                checked[name] = _one_of(f"{where}: on_crash", value, _ON_CRASH)
            case "on_failure":
                checked[name] = _one_of(f"{where}: on_failure", value, _ON_FAILURE)
            case "parent":
                checked[name] = _parent(f"{where}: parent", value)
            case _:
                raise TypeError(f"{where}: unknown option {name!r}{nearest(name, OPTION_NAMES)}")
    if "delay" in checked and "run_at" in checked:
        raise ConfigurationError(f"{where}: delay and run_at both say when the job runs; give one of them")
    if "deduplication" in checked and "parent" in checked:
        raise ConfigurationError(f"{where}: a job with a parent cannot be deduplicated")
    if "repeat" in checked:
        for name in ("delay", "run_at", "job_id", "deduplication", "parent"):
            if name in checked:
                raise ConfigurationError(f"{where}: repeat makes many jobs, and {name} is about a single one")
    return cast("JobOptions", checked)


def merge(*layers: JobOptions) -> JobOptions:
    """Return the options of all layers; what a later one says counts.

    ``delay`` and ``run_at`` answer one question, so the later of the two displaces the earlier.
    """
    merged = JobOptions()
    for layer in layers:
        if "delay" in layer:
            merged.pop("run_at", None)
        elif "run_at" in layer:
            merged.pop("delay", None)
        merged.update(layer)
    return merged


def _typed(what: str, value: object, kind: type[bool]) -> bool:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{what} {value!r} is neither True nor False")
    return value


def _tags(what: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
        raise ConfigurationError(f"{what} {value!r} is not a list of names; write tags=['gpu']")
    tags: list[object] = list(value)  # pyright: ignore[reportUnknownArgumentType]
    return tuple(sorted({check_name("tag", tag) for tag in tags}))


def _backoff(what: str, value: object) -> Backoff:
    if isinstance(value, Mapping):
        given: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        check_keys(what, given, {"type", "delay", "jitter", "max"})
        return Backoff.from_bullmq(given)
    raise ConfigurationError(f"{what} {value!r}: write Backoff.fixed('5s') or Backoff.exponential('1m')")


def _shape(what: str, value: object, kind: type[Dedup] | type[Repeat]) -> Dedup | Repeat:
    if isinstance(value, kind):
        return value
    if isinstance(value, Mapping):
        return kind.from_bullmq(value)  # pyright: ignore[reportUnknownArgumentType]
    raise ConfigurationError(f"{what} {value!r} is neither a {kind.__name__} nor BullMQ's JSON")


def _retention(what: str, value: object) -> bool | int | KeepJobs:
    if isinstance(value, bool | KeepJobs):
        return value
    if isinstance(value, Mapping):
        given: Mapping[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        check_keys(what, given, {"age", "count", "limit"})
        age = given.get("age")
        count = given.get("count")
        return KeepJobs(
            age=None if age is None else f"{whole(f'{what}: age', age, high=MAX_MS // 1_000, unit=' s')}s",
            # BullMQ's -1 keeps all.
            count=None if count is None or count == -1 else whole(f"{what}: count", count, high=MAX_MS),
            limit=whole(f"{what}: limit", given.get("limit", 1_000), low=1, high=MAX_MS),
        )
    return whole(what, value, high=MAX_MS)


def _one_of(what: str, value: object, known: Sequence[str]) -> str:
    if value not in known:
        raise ConfigurationError(f"{what} {value!r} is unknown; known: {', '.join(known)}")
    return str(value)


def _parent(what: str, value: object) -> ParentRef:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) and part for part in value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        queue, id = value  # pyright: ignore[reportUnknownVariableType]
        return ParentRef(check_name("queue", queue), str(id))  # pyright: ignore[reportUnknownArgumentType]
    raise ConfigurationError(f"{what} {value!r} names no job; write ParentRef('queue', 'id')")
