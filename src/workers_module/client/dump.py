"""Jobs as a file: one document in the schema ``workers.jobs/v1``, as JSON or YAML, made to be read and edited.

The last field is a checksum of everything before it, so that a damaged file is not taken for an edited one.
"""

import base64
import json
import os
import re
import stat
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, cast, get_args
from uuid import uuid4

import anyio
from anyio.to_thread import run_sync
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

from workers_module.clock import to_datetime, to_ms
from workers_module.errors import ConfigurationError, TooLargeError
from workers_module.job.record import ChildPolicy, JobRecord, OnCrash, ParentRef
from workers_module.job.state import READY, JobState

SCHEMA: Final = "workers.jobs/v1"
DumpFormat = Literal["json", "yaml"]
DUMP_FORMATS: Final[tuple[DumpFormat, ...]] = get_args(DumpFormat)
YAML_SUFFIXES: Final = frozenset({".yaml", ".yml"})

_CHECKSUM: Final = re.compile(rb'\n"?checksum"?: "sha256:([0-9a-f]{64})"\n\}?\s*\Z')


class _Form(NamedTuple):
    """How a format puts jobs together."""

    head: str
    first: str
    between: str
    end: str
    empty: str
    checksum: str


_FORMS: Final[Mapping[DumpFormat, _Form]] = {
    "json": _Form(
        head='{{"schema": "{schema}", "exported_at": "{now}", "jobs": [',
        first="\n",
        between=",\n",
        end="\n],\n",
        empty="],\n",
        checksum='"checksum": "sha256:{sum}"\n}}\n',
    ),
    "yaml": _Form(
        head="schema: {schema}\nexported_at: '{now}'\njobs:",
        first="\n",
        between="",
        end="",
        empty=" []\n",
        checksum='checksum: "sha256:{sum}"\n',
    ),
}


class _Parent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queue: str = Field(min_length=1, max_length=512)
    id: str = Field(min_length=1, max_length=1_024)


_BYTES: Final = TypeAdapter(dict[Literal["data", "options", "progress", "result", "traces"], str])


class DumpedJob(BaseModel):
    """The schema ``workers.jobs/v1`` of one job; the docstrings of `JobRecord` tell the meanings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queue: str = Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]+$")
    id: str = Field(min_length=1, max_length=1_024, pattern=r"^[^\x00-\x1f\x7f]+$")
    name: str = Field(min_length=1, max_length=512)
    state: JobState = Field(strict=False)
    data: Any = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])
    priority: int = Field(0, ge=0, lt=2**21)
    lifo: bool = False
    tags: list[str] = Field(default_factory=list[str])
    attempts_made: int = Field(0, ge=0)
    attempts: int = Field(1, ge=0, le=1_000)
    crashes: int = Field(0, ge=0)
    starts: int = Field(0, ge=0)
    created_at: AwareDatetime | None = Field(None, strict=False)
    run_at: AwareDatetime | None = Field(None, strict=False)
    started_at: AwareDatetime | None = Field(None, strict=False)
    finished_at: AwareDatetime | None = Field(None, strict=False)
    on_crash: OnCrash = "retry"
    worker: str | None = None
    parent: _Parent | None = None
    on_failure: ChildPolicy = Field(ChildPolicy.FAIL_PARENT, strict=False)
    schedule: str | None = None
    deduplication: str | None = None
    deferred: str | None = None
    progress: Any = None
    error: str | None = None
    traces: list[str] = Field(default_factory=list[str])
    result: Any = None
    raw: dict[str, str] = Field(default_factory=dict[str, str])
    """Base64 of what is stored and is not JSON, by field."""
    logs: tuple[str, ...] = Field((), strict=False)

    def record(self) -> JobRecord:
        """Return the job as a store keeps it, consistent also where a person changed the state."""
        raw = {name: base64.b64decode(text, validate=True) for name, text in _BYTES.validate_python(self.raw).items()}
        ended = self.state.ended
        added = datetime.now(UTC) if self.created_at is None else self.created_at
        state = self.state
        if state is JobState.DELAYED and self.run_at is None:
            state = JobState.WAITING
        if state in READY:
            state = JobState.PRIORITIZED if self.priority else JobState.WAITING
        return JobRecord(
            queue=self.queue,
            id=self.id,
            name=self.name,
            state=state,
            data=raw.get("data", _json(self.data)),
            opts=raw.get("options", _json(self.options)),
            priority=self.priority,
            tags=tuple(sorted(set(self.tags))),
            attempts_made=self.attempts_made,
            max_attempts=self.attempts,
            crashes=self.crashes,
            fence=self.starts,
            added=to_ms(added),
            due=_ms(self.run_at) if state is JobState.DELAYED else None,
            started=_ms(self.started_at),
            finished=_ms(self.finished_at or added) if ended else None,
            lifo=self.lifo,
            on_crash=self.on_crash,
            worker=self.worker,
            parent=None if self.parent is None else ParentRef(self.parent.queue, self.parent.id),
            policy=self.on_failure,
            schedule=self.schedule,
            dedup=self.deduplication,
            deferred=self.deferred,
            progress=raw.get("progress", None if self.progress is None else _json(self.progress)),
            reason=self.error,
            trace=raw.get("traces", _json(self.traces) if self.traces else None),
            result=raw.get("result", _json(self.result) if self.state is JobState.COMPLETED else None),
        )


def document_of(record: JobRecord, logs: list[str]) -> dict[str, Any]:
    """Return all that is known about a job, in the schema."""
    raw: dict[str, str] = {}

    def value(name: str, stored: bytes | None) -> Any:
        if not stored:
            return None
        try:
            return json.loads(stored)
        except (ValueError, RecursionError):
            raw[name] = base64.b64encode(stored).decode()
            return None

    job: dict[str, Any] = {
        "queue": record.queue,
        "id": record.id,
        "name": record.name,
        "state": record.state.value,
        "data": value("data", record.data),
        "options": value("options", record.opts) or {},
        "priority": record.priority,
        "lifo": record.lifo,
        "tags": list(record.tags),
        "attempts_made": record.attempts_made,
        "attempts": record.max_attempts,
        "crashes": record.crashes,
        "starts": record.fence,
        "created_at": _iso(record.added),
        "run_at": _iso(record.due),
        "started_at": _iso(record.started),
        "finished_at": _iso(record.finished),
        "on_crash": record.on_crash,
        "worker": record.worker,
        "parent": None if record.parent is None else record.parent._asdict(),
        "on_failure": record.policy.value,
        "schedule": record.schedule,
        "deduplication": record.dedup,
        "deferred": record.deferred,
        "progress": value("progress", record.progress),
        "error": record.reason,
        "traces": value("traces", record.trace) or [],
        "result": value("result", record.result),
        "logs": logs,
    }
    if raw:
        job["raw"] = raw
    return job


def _as_json(job: Mapping[str, Any]) -> str:
    text = json.dumps(job, ensure_ascii=False, indent=1)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Node writes lone surrogates; escaped they are text.
        text = json.dumps(job, indent=1)
    return text


def _as_yaml() -> Callable[[Mapping[str, Any]], str]:
    yaml = _yaml()

    def write(job: Mapping[str, Any]) -> str:
        text: str = yaml.safe_dump([dict(job)], sort_keys=False, allow_unicode=True, width=120)
        return text

    return write


def _yaml() -> Any:
    try:
        import yaml  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise ConfigurationError("yaml needs PyYAML: pip install 'workers_module[cli]'") from None
    return yaml


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _iso(ms: int | None) -> str | None:
    return None if ms is None else to_datetime(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(instant: datetime | None) -> int | None:
    return None if instant is None else to_ms(instant)


# --- files -----------------------------------------------------------------------------------------------------------


def target_of(path: str | os.PathLike[str]) -> Path:
    """Return where a file is to be read or written, or refuse a place that could surprise.

    A relative path stays below the current directory, links included; ``..`` and a link at the end are never followed.
    """
    given = Path(path)
    if ".." in given.parts:
        raise ConfigurationError(f"{given}: '..' is not followed; write the directory itself")
    root = Path.cwd().resolve()
    parent = (root / given).parent.resolve()
    if not given.is_absolute() and not parent.is_relative_to(root):
        raise ConfigurationError(f"{given}: a link leads out of {root}; write the directory itself")
    target = parent / given.name
    if target.is_symlink():
        raise ConfigurationError(f"{given}: is a link; write what it points to")
    return target


class DumpFile:
    """A dump that is being written: under a temporary name, and in its place when it is whole."""

    def __init__(self, target: Path, format: DumpFormat = "json") -> None:  # noqa: A002 - the public word
        """Prepare; nothing is written before the context is entered."""
        self._target = target
        self._text: Callable[[Mapping[str, Any]], str] = _as_json if format == "json" else _as_yaml()
        self._form = _FORMS[format]
        self._temporary = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
        self._descriptor = -1
        self._buffer: list[str] = []
        self._size = 0
        self._first = True
        self._sum = sha256()

    async def __aenter__(self) -> Self:
        try:
            self._descriptor = await run_sync(self._open)
        except OSError as error:
            raise ConfigurationError(f"{self._target}: cannot be written: {error.strerror}") from None
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._buffer.append(self._form.head.format(schema=SCHEMA, now=now))
        return self

    async def write(self, job: Mapping[str, Any]) -> None:
        """Append a job."""
        text = self._text(job)
        self._buffer.append((self._form.first if self._first else self._form.between) + text)
        self._first = False
        self._size += len(text)
        if self._size > 1_048_576:
            await self._flush()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            if error is None:
                self._buffer.append(self._form.empty if self._first else self._form.end)
                try:
                    await self._flush()
                    self._buffer.append(self._form.checksum.format(sum=self._sum.hexdigest()))
                    await self._flush()
                    await run_sync(self._finish)
                except OSError as failure:
                    await run_sync(self._discard)
                    raise ConfigurationError(f"{self._target}: cannot be written: {failure.strerror}") from None
                return
            await run_sync(self._discard)

    async def _flush(self) -> None:
        raw, self._buffer, self._size = "".join(self._buffer).encode(), [], 0
        self._sum.update(raw)
        await run_sync(self._append, raw)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        return os.open(self._temporary, flags, 0o600)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _finish(self) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        os.replace(self._temporary, self._target)

    def _discard(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


def read_dump(path: Path, *, max_bytes: int, edited: bool = False) -> list[object]:
    """Read the jobs of a dump; each is still to be checked.

    Args:
        path: The file.
        max_bytes: A larger one is refused.
        edited: Its checksum need not be right.

    Raises:
        ConfigurationError: It cannot be read, is not ours, is cut off, or its checksum is wrong.
        TooLargeError: It is larger than ``max_bytes``.
    """
    raw = _read(path, max_bytes)
    found = _parse_yaml(path, raw) if path.suffix in YAML_SUFFIXES else _parse_json(path, raw)
    document: Mapping[str, Any] = found if isinstance(found, dict) else {}  # pyright: ignore[reportUnknownVariableType]
    if document.get("schema") != SCHEMA:
        raise ConfigurationError(f"{path}: is no dump of jobs (no schema {SCHEMA!r}); nothing was imported")
    if not isinstance(document.get("jobs"), list):
        raise ConfigurationError(f"{path}: has no list of jobs; nothing was imported")
    # JSON that is cut off is no JSON; YAML that is cut off may be, so there the checksum must be.
    if not edited and ("checksum" in document or path.suffix in YAML_SUFFIXES):
        match = _CHECKSUM.search(raw)
        # What was summed ends with the line break that the pattern begins with.
        if match is None or sha256(raw[: match.start() + 1]).hexdigest() != match[1].decode():
            raise ConfigurationError(
                f"{path}: its checksum is wrong: it was edited, cut off or damaged; nothing was imported. "
                "If you edited it, import it as edited (--edited)"
            )
    return cast("list[object]", document["jobs"])


def _parse_json(path: Path, raw: bytes) -> object:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigurationError(f"{path}: is not JSON, or cut off{where}; nothing was imported") from None


def _parse_yaml(path: Path, raw: bytes) -> object:
    yaml = _yaml()
    try:
        text = raw.decode()
        # A few references to references can stand for more than any memory holds; no dump has one.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ConfigurationError(f"{path}: has YAML references (*name), which no dump has; nothing was imported")
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"{path}: is not YAML, or cut off{where}; nothing was imported") from None


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise ConfigurationError(f"{path}: is no file; name one that jobs dump or purge wrote")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > max_bytes:
            raise TooLargeError(f"{path}: {found.st_size:,} bytes; the limit is {max_bytes:,}")
        return file.read(max_bytes + 1)
