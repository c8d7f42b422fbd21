"""The settings: one small class per part, read from environment and files when they are constructed, never before.

Strongest first: arguments, environment, ``.env.<environment>``, ``.env``, ``workers.<environment>.toml``,
``workers.toml``, a directory of secret files (``/run/secrets``), defaults. Files lie in the current directory.

To make them part of an application's own settings, give the field any name but ``workers``: pydantic-settings would
read the variable ``WORKERS``, which selects workers, as that field's JSON::

    class AppSettings(BaseSettings):
        jobs: WorkersSettings = Field(default_factory=WorkersSettings)
"""

import logging
import os
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from workers_module.clock import duration_ms
from workers_module.errors import ConfigurationError
from workers_module.job.sandbox import Sandbox
from workers_module.sources import Names, Sources, Variable, fault_lines, variables_of
from workers_module.url import QueueKind, SecretUrl, check_url, url_kind

_log = logging.getLogger(__name__)


class WorkerMode(StrEnum):
    """Where a job goes when it is enqueued.

    Source: Loco ``workers.mode``.
    """

    BACKGROUND_QUEUE = "background_queue"
    """Into the store the URL names; any process with workers takes it."""
    BACKGROUND_ASYNC = "background_async"
    """Into this process' memory, whatever URL is set; this process' workers take it."""
    FOREGROUND_BLOCKING = "foreground_blocking"
    """Nowhere: the enqueueing call runs it and raises its error."""


def _span(value: Any) -> timedelta:
    try:
        # duration_ms refuses every type it does not know.
        return timedelta(milliseconds=duration_ms(value, ""))
    except ConfigurationError as error:
        raise ValueError(str(error).removeprefix(": ")) from None


def _none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _span_or_none(value: object) -> timedelta | None:
    value = _none(value)
    return None if value is None else _span(value)


def _is_several(value: object) -> TypeGuard[Collection[object]]:
    return isinstance(value, list | tuple | set | frozenset)


def _words(value: object) -> object:
    """Split a comma-separated list; drop blanks and repetitions, keep the order."""
    parts = value.split(",") if isinstance(value, str) else value
    if not _is_several(parts):
        return value
    return tuple(dict.fromkeys(word for part in parts if (word := str(part).strip())))


def _selection(value: object) -> object:
    words = _words(value)
    if not _is_several(words):
        return value
    if not words:
        raise ValueError("names no worker; write 'all' or some names (WORKERS_ENABLED=false starts none)")
    return "all" if "all" in words else frozenset(words)


def _url(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


Span = Annotated[timedelta, BeforeValidator(_span)]
OptionalSpan = Annotated[timedelta | None, BeforeValidator(_span_or_none)]
OptionalCount = Annotated[int | None, BeforeValidator(_none)]
_ZERO = timedelta()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class StoreSettings(_Section):
    """Where the jobs rest."""

    uri: Annotated[
        SecretUrl | None,
        BeforeValidator(_url),
        Names(("QUEUE_URL", "QUEUE_REDIS_URL", "PGQ_URL", "SQLTQ_URL", "REDIS_URL"), ordered=True),
    ] = Field(default=None, description="where the jobs are kept; unset: in the memory of this process")
    kind: QueueKind = Field(
        default_factory=lambda data: _kind(data.get("uri")),
        description="redis, postgres, sqlite, memory; follows from the URL",
    )
    prefix: str = Field(default="bull", min_length=1, description="what the names of all our keys begin with")
    dangerously_flush: bool = Field(default=False, description="delete all jobs at start")
    allow_flush_in_production: bool = Field(default=False, description="let dangerously_flush happen in production")
    migrate: Literal["auto", "check"] = Field(
        default="auto",
        description="auto: bring the schema up to date at start; check (the default in production): refuse to start",
    )
    synchronous: Literal["full", "normal"] = Field(
        default="full", description="SQLite: full survives a power cut, normal may lose the last moments"
    )

    @field_validator("uri")
    @classmethod
    def _usable(cls, uri: SecretUrl | None) -> SecretUrl | None:
        if uri is not None:
            try:
                check_url(uri.get_secret_value())
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return uri

    @field_validator("kind")
    @classmethod
    def _kind_fits(cls, kind: QueueKind, info: ValidationInfo) -> QueueKind:
        if "uri" not in info.data:
            return kind
        uri: SecretUrl | None = info.data["uri"]
        if uri is None and kind is not QueueKind.MEMORY:
            raise ValueError(f"{kind} needs a URL; set QUEUE_URL")
        if kind is not _kind(uri):
            raise ValueError(f"{kind} contradicts the URL {uri}; change one, or leave the kind out")
        return kind


class RetentionLimits(_Section):
    """How long jobs that ended are kept, and at most how many."""

    age: OptionalSpan = None
    count: OptionalCount = None


class CompletedRetention(RetentionLimits):
    """The limits for jobs that completed."""

    age: OptionalSpan = Field(
        default=timedelta(hours=1), description="completed jobs older than this are deleted; none: no limit"
    )
    count: OptionalCount = Field(
        default=1_000, ge=0, description="at most this many completed jobs are kept; none: no limit"
    )


class FailedRetention(RetentionLimits):
    """The limits for jobs that failed."""

    age: OptionalSpan = Field(
        default=timedelta(days=7), description="failed jobs older than this are deleted; none: no limit"
    )
    count: OptionalCount = Field(
        default=5_000, ge=0, description="at most this many failed jobs are kept; none: no limit"
    )


class RetentionSettings(_Section):
    """How long jobs that ended are kept."""

    completed: CompletedRetention = Field(default_factory=CompletedRetention)
    failed: FailedRetention = Field(default_factory=FailedRetention)


class DashboardSettings(_Section):
    """The web pages over the queues."""

    route: str | None = Field(
        default=None, pattern="^/", description="path of the dashboard, e.g. /admin/queues; giving one turns it on"
    )
    read_only: bool = Field(default=True, description="the dashboard shows but changes nothing")
    username: str | None = Field(default=None, description="who may log in to the dashboard")
    password: SecretStr | None = Field(default=None, description="and with which password")


class HealthSettings(_Section):
    """The probe server inside the worker."""

    port: int | None = Field(
        default=None, ge=0, le=65_535, description="port of the probe server; unset: off, 0: any free one"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address the probe server listens on")


class TelemetrySettings(_Section):
    """OpenTelemetry."""

    traces: bool | None = Field(default=None, description="OpenTelemetry spans; unset: on if OpenTelemetry is set up")
    metrics: bool | None = Field(
        default=None, description="OpenTelemetry metrics; unset: on if OpenTelemetry is set up"
    )
    links: Literal["parent", "link"] = Field(
        default="parent",
        description="parent: a job continues its sender's trace; link: it starts its own and links to it",
    )


class LogSettings(_Section):
    """How the worker command writes its log; the library itself configures no logging."""

    format: Annotated[Literal["auto", "console", "json"], Names(("WORKERS_LOG_FORMAT",))] = Field(
        default="auto", description="console, json; auto: console on a terminal, else json"
    )
    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], Names(("WORKERS_LOG_LEVEL",))] = Field(
        default="info", description="debug, info, warning, error, critical"
    )


class WorkersSettings(BaseSettings):
    """Everything that can be set without touching code.

    Fields hold what is in effect: ``mode`` and ``queue.kind`` are worked out from the URL when nothing says them.

    Args:
        values: Fields by name, stronger than every other source. Sections are mappings (``queue={"uri": ...}``) or
            instances of their class; durations are text or `timedelta`. ``_env_file`` and ``_secrets_dir`` name other
            files, or none.

    Raises:
        ConfigurationError: Something is wrong with the settings: a line for each fault, which names the variable.

    Example:
        ``WorkersSettings(queue={"uri": "sqlite:///jobs.db"}, job_timeout="2m")``
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_nested_delimiter="__",
        env_prefix="WORKERS_",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        secrets_dir="/run/secrets",
    )

    environment: Annotated[str, Names(("ENVIRONMENT", "APP_ENV"), ordered=True)] = Field(
        default="development", pattern=r"^\w[\w.-]*$", description="prod and production mean production"
    )
    app: str | None = Field(default=None, description="the application for the command line: module:attribute")
    app_id: str | None = Field(
        default=None,
        description="owner of the schedules; set it when applications share a store; unset: the top package",
    )
    enabled: bool = Field(default=True, description="false: this process runs no worker, it only enqueues")
    enabled_workers: Annotated[
        Literal["all"] | frozenset[str], BeforeValidator(_selection), Names(("ENABLED_WORKERS", "WORKERS"))
    ] = Field(default="all", description="which workers run here, e.g. email,reports")
    queue: StoreSettings = Field(default_factory=StoreSettings, validate_default=True)
    in_process: bool = Field(default=False, description="short for WORKERS_MODE=foreground_blocking")
    mode: WorkerMode = Field(
        default_factory=lambda data: _mode(data.get("queue"), in_process=data.get("in_process", False)),
        description="background_queue (with a URL), background_async (without one) or foreground_blocking",
    )
    concurrency: Annotated[int, Names(("WORKERS_CONCURRENCY", "WORKERS_QUEUE__NUM_WORKERS"))] = Field(
        default=10, ge=1, description="jobs at the same time, per processor"
    )
    job_timeout: OptionalSpan = Field(
        default=timedelta(seconds=30), gt=_ZERO, description="how long a job may run; none: no limit"
    )
    shutdown_grace: Span = Field(
        default=timedelta(seconds=25),
        description="how long running jobs may go on at shutdown; below the platform's kill delay",
    )
    kill_after: Span = Field(
        default=timedelta(seconds=2), description="how long a job that was told to stop may take to do so"
    )
    lease: Span = Field(
        default=timedelta(seconds=30), gt=_ZERO, description="how long a job stays with a worker that went silent"
    )
    sweep_interval: Span = Field(
        default=timedelta(seconds=30), gt=_ZERO, description="how often abandoned jobs are looked for"
    )
    max_crashes: int = Field(default=3, ge=1, description="how many workers a job may take down before it fails")
    unknown_job_grace: Span = Field(
        default=timedelta(minutes=10),
        description="how long a job waits for a worker that knows its name; 0s: not at all",
    )
    max_payload_bytes: int = Field(default=1_048_576, ge=1, description="larger payloads are refused")
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    capture_logging: bool = Field(default=False, description="a handler's log records also go to the job's log")
    cron: bool = Field(default=True, description="schedules tick where their worker runs; false: not in this process")
    auto_start: bool = Field(default=True, description="workers start together with the web server")
    auto_start_production: bool = Field(default=True, description="and in production too")
    sandbox: Sandbox = Field(default=Sandbox.NONE, description="where handlers run: none, thread, process")
    tags: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        default=(), description="take only jobs with one of these tags, e.g. gpu,eu; unset: only jobs without tags"
    )
    dashboard: DashboardSettings = Field(default_factory=DashboardSettings)
    health: HealthSettings = Field(default_factory=HealthSettings)
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    log: LogSettings = Field(default_factory=LogSettings)
    origins: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
    """Where each value that is not a default was found, by field path: ``{"queue.uri": "PGQ_URL (.env)"}``."""

    # Durations may be text and sections mappings, which the generated signature would forbid.
    def __init__(self, **values: Any) -> None:
        super().__init__(**values)

    @property
    def is_production(self) -> bool:
        """Whether the environment is a production one."""
        return _is_production(self.environment)

    @property
    def in_memory(self) -> bool:
        """Whether jobs live and end with this process."""
        return self.mode is not WorkerMode.BACKGROUND_QUEUE

    @property
    def starts_with_server(self) -> bool:
        """Whether workers start together with the web server."""
        return self.enabled and self.auto_start and (self.auto_start_production or not self.is_production)

    @field_validator("queue")
    @classmethod
    def _careful_in_production(cls, queue: StoreSettings, info: ValidationInfo) -> StoreSettings:
        if "migrate" in queue.model_fields_set or not _is_production(info.data.get("environment", "")):
            return queue
        return queue.model_copy(update={"migrate": "check"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = list(self._faults())
        if faults:
            raise ValueError("\n".join(faults))
        if self.is_production and self.in_memory:
            _log.warning("WORKERS_MODE is %s in production: jobs end with this process", self.mode)
        return self

    def _faults(self) -> Iterator[str]:
        said = "mode" in self.model_fields_set
        if self.in_process and self.mode is not WorkerMode.FOREGROUND_BLOCKING:
            yield f"WORKERS_IN_PROCESS=true means foreground_blocking, but WORKERS_MODE is {self.mode}; set one of them"
        if self.mode is WorkerMode.BACKGROUND_QUEUE and self.queue.kind is QueueKind.MEMORY:
            yield (
                "WORKERS_MODE is background_queue, but no store is named; set QUEUE_URL, e.g. sqlite:///jobs.db, "
                "or WORKERS_MODE=background_async"
            )
        if self.is_production and self.in_memory and not said and not self.in_process:
            yield (
                f"ENVIRONMENT is {self.environment}, but no store is named: jobs would end with this process; "
                "set QUEUE_URL, e.g. sqlite:///jobs.db, or accept it with WORKERS_MODE=background_async"
            )
        if self.is_production and self.queue.dangerously_flush and not self.queue.allow_flush_in_production:
            yield (
                f"WORKERS_QUEUE__DANGEROUSLY_FLUSH deletes all jobs, and ENVIRONMENT is {self.environment}; unset it, "
                "or set WORKERS_QUEUE__ALLOW_FLUSH_IN_PRODUCTION=true"
            )
        if (self.dashboard.username is None) != (self.dashboard.password is None):
            yield "WORKERS_DASHBOARD__USERNAME and WORKERS_DASHBOARD__PASSWORD go together; set both or none"

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, str):
            raise ConfigurationError(_EMBEDDED)
        try:
            return handler(data)
        except ValidationError as error:
            raise ConfigurationError("\n".join(fault_lines(variables(cls), error, data))) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Say where values come from, strongest first."""
        dotenv = dotenv_settings.env_file if isinstance(dotenv_settings, DotEnvSettingsSource) else None
        secrets = file_secret_settings.secrets_dir if isinstance(file_secret_settings, SecretsSettingsSource) else None
        environ = env_settings.env_vars if isinstance(env_settings, EnvSettingsSource) else dict[str, str | None]()
        found = Sources(settings_cls, variables(cls)).read(
            init_settings(), environ, dotenv, secrets, environment=cls.model_fields["environment"].default
        )
        return tuple(InitSettingsSource(settings_cls, init_kwargs=values) for values in found)


@cache
def variables(settings: type[WorkersSettings] = WorkersSettings) -> tuple[Variable, ...]:
    """Return every setting there is, in the order of the fields."""
    return tuple(variables_of(settings))


def url_for_tests(kind: QueueKind) -> str:
    """Return the URL of the server that tests may use: ``WORKERS_TEST_<KIND>_URL``, or the one of the settings.

    Raises:
        ConfigurationError: No server of that kind is named.
    """
    name = f"WORKERS_TEST_{kind.name}_URL"
    if given := os.environ.get(name, "").strip():
        return given
    queue = WorkersSettings().queue
    if queue.uri is None or queue.kind is not kind:
        raise ConfigurationError(f"a test wants {kind}, but no server is named; set {name} or QUEUE_URL")
    return queue.uri.get_secret_value()


@contextmanager
def explained_settings() -> Generator[None]:
    """Turn the errors of building an application's own settings, with ours as a field, into one that says what to do.

    Raises:
        ConfigurationError: The field is called ``workers``, and the variable ``WORKERS`` was read as its JSON.
    """
    try:
        yield
    except SettingsError as error:
        if 'field "workers"' in str(error):
            raise ConfigurationError(_EMBEDDED) from error
        raise


_EMBEDDED = (
    "a settings field called 'workers' is read from the variable WORKERS, which selects workers; "
    "call the field something else: jobs: WorkersSettings = Field(default_factory=WorkersSettings)"
)


def _kind(uri: SecretUrl | None) -> QueueKind:
    return QueueKind.MEMORY if uri is None else url_kind(uri.get_secret_value())


def _mode(queue: StoreSettings | None, *, in_process: bool) -> WorkerMode:
    if in_process:
        return WorkerMode.FOREGROUND_BLOCKING
    in_memory = queue is None or queue.kind is QueueKind.MEMORY
    return WorkerMode.BACKGROUND_ASYNC if in_memory else WorkerMode.BACKGROUND_QUEUE


def _is_production(environment: str) -> bool:
    return environment.lower() in {"prod", "production"}
