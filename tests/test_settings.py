"""Where settings come from, what they may say, and what they never show."""

import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from workers_module.clock import duration_ms, duration_text
from workers_module.errors import ConfigurationError
from workers_module.job.sandbox import Sandbox
from workers_module.settings import (
    StoreSettings,
    WorkerMode,
    WorkersSettings,
    explained_settings,
    variables,
)
from workers_module.sources import Variable
from workers_module.url import QueueKind, SecretUrl, mask_url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory in which the usual files are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(WorkersSettings.model_config, "env_file", ".env")
    return tmp_path


def setenv(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def fault(**values: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        WorkersSettings(**values)
    return str(caught.value)


def uri(settings: WorkersSettings) -> str | None:
    return settings.queue.uri.get_secret_value() if settings.queue.uri else None


class TestDefaults:
    def test_are_those_of_the_documentation(self) -> None:
        settings = WorkersSettings()

        assert settings.model_dump() == {
            "environment": "development",
            "app": None,
            "app_id": None,
            "enabled": True,
            "enabled_workers": "all",
            "queue": {
                "uri": None,
                "kind": QueueKind.MEMORY,
                "prefix": "bull",
                "dangerously_flush": False,
                "allow_flush_in_production": False,
                "migrate": "auto",
                "synchronous": "full",
            },
            "in_process": False,
            "mode": WorkerMode.BACKGROUND_ASYNC,
            "concurrency": 10,
            "job_timeout": timedelta(seconds=30),
            "shutdown_grace": timedelta(seconds=25),
            "kill_after": timedelta(seconds=2),
            "lease": timedelta(seconds=30),
            "sweep_interval": timedelta(seconds=30),
            "max_crashes": 3,
            "unknown_job_grace": timedelta(minutes=10),
            "max_payload_bytes": 1_048_576,
            "retention": {
                "completed": {"age": timedelta(hours=1), "count": 1_000},
                "failed": {"age": timedelta(days=7), "count": 5_000},
            },
            "capture_logging": False,
            "cron": True,
            "auto_start": True,
            "auto_start_production": True,
            "sandbox": Sandbox.NONE,
            "tags": (),
            "dashboard": {"route": None, "read_only": True, "username": None, "password": None},
            "health": {"port": None, "host": "127.0.0.1"},
            "telemetry": {"traces": None, "metrics": None, "links": "parent"},
            "log": {"format": "auto", "level": "info"},
        }

    def test_have_no_origin(self) -> None:
        assert WorkersSettings().origins == {}


EXAMPLES: Mapping[str, tuple[str, object]] = {
    "environment": ("staging", "staging"),
    "app": ("app.main:container", "app.main:container"),
    "app_id": ("shop", "shop"),
    "enabled": ("false", False),
    "enabled_workers": ("email, reports,,", frozenset({"email", "reports"})),
    "queue.uri": ("sqlite:///jobs.db", SecretUrl("sqlite:///jobs.db")),
    "queue.kind": ("memory", QueueKind.MEMORY),
    "queue.prefix": ("shop", "shop"),
    "queue.dangerously_flush": ("yes", True),
    "queue.allow_flush_in_production": ("1", True),
    "queue.migrate": ("check", "check"),
    "queue.synchronous": ("normal", "normal"),
    "in_process": ("true", True),
    "mode": ("foreground_blocking", WorkerMode.FOREGROUND_BLOCKING),
    "concurrency": ("3", 3),
    "job_timeout": ("none", None),
    "shutdown_grace": ("1m", timedelta(minutes=1)),
    "kill_after": ("500ms", timedelta(milliseconds=500)),
    "lease": ("1.5s", timedelta(seconds=1.5)),
    "sweep_interval": ("10s", timedelta(seconds=10)),
    "max_crashes": ("1", 1),
    "unknown_job_grace": ("0s", timedelta()),
    "max_payload_bytes": ("100", 100),
    "retention.completed.age": ("none", None),
    "retention.completed.count": ("0", 0),
    "retention.failed.age": ("2d", timedelta(days=2)),
    "retention.failed.count": ("None", None),
    "capture_logging": ("on", True),
    "cron": ("false", False),
    "auto_start": ("off", False),
    "auto_start_production": ("no", False),
    "sandbox": ("thread", Sandbox.THREAD),
    "tags": (" gpu ,, eu,gpu", ("gpu", "eu")),
    "dashboard.route": ("/admin/queues", "/admin/queues"),
    "dashboard.read_only": ("false", False),
    "dashboard.username": ("ann", "ann"),
    "dashboard.password": ("hunter2", "hunter2"),
    "health.port": ("8081", 8081),
    "health.host": ("::", "::"),
    "telemetry.traces": ("false", False),
    "telemetry.metrics": ("true", True),
    "telemetry.links": ("link", "link"),
    "log.format": ("json", "json"),
    "log.level": ("debug", "debug"),
}


def at(settings: WorkersSettings, path: str) -> object:
    value: Any = settings
    for part in path.split("."):
        value = getattr(value, part)
    return value.get_secret_value() if path == "dashboard.password" else value


class TestVariables:
    def test_every_one_has_an_example_here(self) -> None:
        assert [variable.path for variable in variables()] == list(EXAMPLES)

    @pytest.mark.parametrize("variable", variables(), ids=lambda variable: str(variable.name))
    def test_each_of_its_names_is_read(self, variable: Variable, monkeypatch: pytest.MonkeyPatch) -> None:
        text, value = EXAMPLES[variable.path]
        setenv(monkeypatch, WORKERS_DASHBOARD__USERNAME="ann", WORKERS_DASHBOARD__PASSWORD="hunter2")
        for name in variable.names:
            with monkeypatch.context() as patch:
                patch.setenv(name, text)
                settings = WorkersSettings()

            assert at(settings, variable.path) == value
            assert settings.origins[variable.path] == name

    @pytest.mark.parametrize("variable", variables(), ids=lambda variable: str(variable.path))
    def test_each_field_can_be_given_by_its_own_name(self, variable: Variable) -> None:
        text, value = EXAMPLES[variable.path]
        given: Any = {"dashboard": {"username": "ann", "password": "hunter2"}}
        section = given
        *parents, leaf = variable.path.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = text

        assert at(WorkersSettings(**given), variable.path) == value

    def test_case_of_the_name_does_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("workers_concurrency", "4")

        assert WorkersSettings().concurrency == 4

    def test_empty_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, QUEUE_URL="", ENABLED_WORKERS=" ", WORKERS_CONCURRENCY="", ENVIRONMENT="")

        assert WorkersSettings() == WorkersSettings(_env_file=None)
        assert WorkersSettings().origins == {}

    def test_unknown_one_is_warned_about_with_the_nearest(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        setenv(monkeypatch, WORKERS_CONCURENCY="4", WORKERS_TEST_REDIS_URL="redis://h", OTHER="x")

        WorkersSettings()

        assert [record.getMessage() for record in caplog.records] == [
            "WORKERS_CONCURENCY is not a setting; did you mean WORKERS_CONCURRENCY?"
        ]

    def test_unknown_one_in_a_file_is_warned_about_with_the_file(
        self, here: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (here / ".env").write_text("WORKERS_X=4\nDATABASE_URL=x\n")

        WorkersSettings()

        assert [record.getMessage() for record in caplog.records] == [
            "WORKERS_X (.env) is not a setting; did you mean WORKERS?"
        ]

    def test_nothing_is_read_before_construction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, WORKERS_CONCURRENCY="4")
        first = WorkersSettings()
        setenv(monkeypatch, WORKERS_CONCURRENCY="5")

        assert (first.concurrency, WorkersSettings().concurrency) == (4, 5)


class TestAliases:
    @pytest.mark.parametrize(
        ("given", "chosen"),
        [
            (["REDIS_URL", "SQLTQ_URL", "PGQ_URL", "QUEUE_REDIS_URL", "QUEUE_URL"], "QUEUE_URL"),
            (["REDIS_URL", "SQLTQ_URL", "PGQ_URL", "QUEUE_REDIS_URL"], "QUEUE_REDIS_URL"),
            (["REDIS_URL", "SQLTQ_URL", "PGQ_URL"], "PGQ_URL"),
            (["REDIS_URL", "SQLTQ_URL"], "SQLTQ_URL"),
            (["REDIS_URL"], "REDIS_URL"),
        ],
    )
    def test_of_the_url_go_in_order(self, given: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in given:
            monkeypatch.setenv(name, f"redis://{name.lower().replace('_', '-')}")

        assert uri(WorkersSettings()) == f"redis://{chosen.lower().replace('_', '-')}"

    def test_of_the_url_in_the_environment_beat_the_first_one_in_a_file(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / ".env").write_text("QUEUE_URL=sqlite:///file.db\n")
        monkeypatch.setenv("REDIS_URL", "redis://environment")

        assert uri(WorkersSettings()) == "redis://environment"

    def test_both_selections_that_differ_are_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, ENABLED_WORKERS="email", WORKERS="reports")

        assert fault() == "ENABLED_WORKERS and WORKERS are the same setting and differ; set one of them"

    def test_both_selections_that_agree_are_fine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, ENABLED_WORKERS="email, reports", WORKERS="reports,email")

        assert WorkersSettings().enabled_workers == frozenset({"email", "reports"})

    def test_selection_on_the_command_line_beats_the_other_name_in_a_file(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / ".env").write_text("ENABLED_WORKERS=all\n")
        monkeypatch.setenv("WORKERS", "priority")

        assert WorkersSettings().enabled_workers == frozenset({"priority"})

    def test_concurrency_has_two_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, WORKERS_QUEUE__NUM_WORKERS="2")
        assert WorkersSettings().concurrency == 2

        setenv(monkeypatch, WORKERS_CONCURRENCY="3")
        assert "differ" in fault()

    def test_num_workers_is_also_an_argument(self) -> None:
        assert WorkersSettings(queue={"num_workers": 2}).concurrency == 2
        assert "differ" in fault(queue={"num_workers": 2}, concurrency=3)

    def test_environment_goes_before_app_env(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, APP_ENV="staging")
        assert WorkersSettings().environment == "staging"

        setenv(monkeypatch, ENVIRONMENT="test")
        assert WorkersSettings().environment == "test"


class TestSources:
    def test_stronger_ones_win(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        secrets = here / "secrets"
        secrets.mkdir()
        writers: list[tuple[str, Path, str]] = [
            ("WORKERS_CONCURRENCY ({0}/secrets)", secrets / "WORKERS_CONCURRENCY", "{0}"),
            ("WORKERS_CONCURRENCY (concurrency in workers.toml)", here / "workers.toml", "concurrency = {0}"),
            (
                "WORKERS_CONCURRENCY (concurrency in workers.staging.toml)",
                here / "workers.staging.toml",
                "concurrency = {0}",
            ),
            ("WORKERS_CONCURRENCY (.env)", here / ".env", "WORKERS_CONCURRENCY={0}"),
            ("WORKERS_CONCURRENCY (.env.staging)", here / ".env.staging", "WORKERS_CONCURRENCY={0}"),
        ]
        monkeypatch.setenv("ENVIRONMENT", "staging")
        for number, (origin, file, text) in enumerate(writers, 1):
            file.write_text(text.format(number))
            settings = WorkersSettings(_secrets_dir=secrets)
            assert settings.concurrency == number
            assert settings.origins["concurrency"] == origin.format(here)
        monkeypatch.setenv("WORKERS_CONCURRENCY", "6")
        assert WorkersSettings().concurrency == 6
        settings = WorkersSettings(concurrency=7)
        assert settings.concurrency == 7
        assert settings.origins["concurrency"] == "WORKERS_CONCURRENCY (argument concurrency)"

    def test_each_fills_in_what_stronger_ones_leave_open(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (here / "workers.toml").write_text('[queue]\nprefix = "shop"\n[retention.completed]\nage = "2h"\n')
        (here / ".env").write_text("WORKERS_RETENTION__COMPLETED__COUNT=5\n")
        monkeypatch.setenv("QUEUE_URL", "sqlite:///jobs.db")

        settings = WorkersSettings(queue=StoreSettings(synchronous="normal"))

        assert (settings.queue.prefix, settings.queue.synchronous, settings.queue.kind) == ("shop", "normal", "sqlite")
        assert settings.retention.completed.age == timedelta(hours=2)
        assert settings.retention.completed.count == 5

    def test_toml_has_lists_tables_and_the_alias(self, here: Path) -> None:
        (here / "workers.toml").write_text(
            'enabled_workers = ["email", "reports"]\ntags = ["gpu"]\n[queue]\nnum_workers = 4\nuri = "redis://h"\n'
        )

        settings = WorkersSettings()

        assert settings.enabled_workers == frozenset({"email", "reports"})
        assert (settings.tags, settings.concurrency, uri(settings)) == (("gpu",), 4, "redis://h")

    @pytest.mark.parametrize(
        ("file", "text"),
        [(".env", "APP_ENV=staging"), ("workers.toml", 'environment = "staging"')],
    )
    def test_file_may_name_the_environment_whose_files_are_read(self, here: Path, file: str, text: str) -> None:
        (here / file).write_text(text)
        (here / ".env.staging").write_text("WORKERS_CONCURRENCY=4\nENVIRONMENT=production\n")

        settings = WorkersSettings()

        assert (settings.environment, settings.concurrency) == ("staging", 4)

    def test_argument_names_the_environment_whose_files_are_read(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ENVIRONMENT", "production")
        (here / ".env.test").write_text("WORKERS_CONCURRENCY=4\n")

        assert WorkersSettings(environment="test").concurrency == 4

    def test_other_env_file_can_be_named(self, here: Path) -> None:
        (here / "jobs.env").write_text("WORKERS_CONCURRENCY=4\n")

        assert WorkersSettings(_env_file="jobs.env").concurrency == 4
        assert WorkersSettings(_env_file=here / "jobs.env").concurrency == 4

    def test_secret_files_may_be_in_lower_case(self, here: Path) -> None:
        (here / "queue_url").write_text("redis://:hunter2@h\n")

        assert uri(WorkersSettings(_secrets_dir=here)) == "redis://:hunter2@h"

    def test_missing_secrets_directory_is_nothing(self, here: Path) -> None:
        assert WorkersSettings(_secrets_dir=here / "no") == WorkersSettings()

    def test_unreadable_secret_file_is_named(self, here: Path) -> None:
        (here / "QUEUE_URL").write_bytes(b"\xff")

        assert fault(_secrets_dir=here) == f"{here}/QUEUE_URL: cannot be read: UnicodeDecodeError"

    def test_broken_toml_is_named(self, here: Path) -> None:
        (here / "workers.toml").write_text("concurrency = \n")

        assert fault().startswith("workers.toml: Invalid value")


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "text", "says"),
        [
            ("WORKERS_JOB_TIMEOUT", "30", "'30' has no unit; write '30s' or '30ms', or a timedelta"),
            ("WORKERS_JOB_TIMEOUT", "soon", "'soon' is not a duration; write '500ms', '30s', '5m', '2h' or '1d'"),
            ("WORKERS_JOB_TIMEOUT", "0s", "Input should be greater than 0 seconds"),
            ("WORKERS_SHUTDOWN_GRACE", "none", "'none' is not a duration; write '500ms', '30s', '5m', '2h' or '1d'"),
            ("WORKERS_RETENTION__FAILED__AGE", "7", "'7' has no unit; write '7s' or '7ms', or a timedelta"),
            ("WORKERS_CONCURRENCY", "0", "Input should be greater than or equal to 1"),
            (
                "WORKERS_MODE",
                "queue",
                "Input should be 'background_queue', 'background_async' or 'foreground_blocking'",
            ),
            ("WORKERS_LOG_LEVEL", "loud", "Input should be 'debug', 'info', 'warning', 'error' or 'critical'"),
            ("WORKERS_DASHBOARD__ROUTE", "admin", "String should match pattern '^/'"),
            (
                "ENABLED_WORKERS",
                " , ",
                "names no worker; write 'all' or some names (WORKERS_ENABLED=false starts none)",
            ),
        ],
    )
    def test_names_the_variable(self, name: str, text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, text)

        assert fault() == f"{name}: {says}"

    def test_names_the_alias_that_was_set_and_its_file(self, here: Path) -> None:
        (here / ".env").write_text("PGQ_URL=mysql://h\n")

        assert fault().startswith("PGQ_URL (.env): unknown scheme 'mysql'; known: memory, postgres, ")

    @pytest.mark.parametrize(
        ("name", "url", "says"),
        [
            (
                "QUEUE_URL",
                "redis://ada:hunter2@host/zero",
                "redis://ada:***@host/zero: its database is no number; write redis://host:6379/0",
            ),
            (
                "PGQ_URL",
                "postgresql://ada:hunter2@host:many/shop",
                "postgresql://ada:***@host:many/shop: its port cannot be read; write a number from 1 to 65535",
            ),
            ("SQLTQ_URL", "sqlite:///jobs.db?mode=ro", "sqlite:///jobs.db?mode=ro: mode=ro; write rwc, or rw"),
        ],
    )
    def test_of_a_url_that_can_never_work_names_the_variable_and_the_next_step(
        self, name: str, url: str, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, url)

        assert fault().startswith(f"{name}: {says}")

    def test_of_several_settings_has_a_line_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, WORKERS_LEASE="4", QUEUE_URL="jobs.db")

        assert fault(concurrency=0).splitlines() == [
            "QUEUE_URL: this is not a URL; write sqlite:///jobs.db, redis://host:6379/0 or postgresql://host/database",
            "WORKERS_CONCURRENCY (argument concurrency): Input should be greater than or equal to 1",
            "WORKERS_LEASE: '4' has no unit; write '4s' or '4ms', or a timedelta",
        ]

    def test_unknown_argument_is_told_with_the_nearest(self) -> None:
        assert fault(concurency=1) == "argument concurency: there is no such setting; did you mean concurrency?"

    def test_unknown_key_in_toml_is_told_with_the_file(self, here: Path) -> None:
        (here / "workers.toml").write_text("[queue]\nprefx = 1\n")

        assert fault() == "queue.prefx in workers.toml: there is no such setting; did you mean queue.prefix?"

    def test_section_that_is_no_section_is_told(self) -> None:
        assert fault(queue="redis://:hunter2@h").startswith("argument queue: Input should be a valid dictionary")

    def test_bare_number_of_seconds_is_refused_in_code_too(self) -> None:
        assert "30 has no unit" in fault(job_timeout=30)

    @pytest.mark.parametrize("environment", ["../etc", "a b", ""])
    def test_environment_that_is_no_name_is_refused(self, environment: str) -> None:
        assert "environment" in fault(environment=environment).lower()

    def test_user_without_password_is_refused(self) -> None:
        assert "WORKERS_DASHBOARD__PASSWORD" in fault(dashboard={"username": "ann"})


class TestSelection:
    @pytest.mark.parametrize(
        ("given", "means"),
        [
            ("all", "all"),
            (" all ", "all"),
            ("email,all", "all"),
            (["email"], frozenset({"email"})),
            (frozenset({"email"}), frozenset({"email"})),
            ("Email", frozenset({"Email"})),
        ],
    )
    def test_reads(self, given: object, means: object) -> None:
        assert WorkersSettings(enabled_workers=given).enabled_workers == means

    def test_of_nothing_in_code_is_refused(self) -> None:
        assert "names no worker" in fault(enabled_workers=[])


class TestMode:
    def test_is_the_queue_with_a_url(self) -> None:
        settings = WorkersSettings(queue={"uri": "sqlite:///jobs.db"})

        assert settings.mode is WorkerMode.BACKGROUND_QUEUE
        assert not settings.in_memory

    def test_is_in_process_with_the_memory_url(self) -> None:
        assert WorkersSettings(queue={"uri": "memory://"}).mode is WorkerMode.BACKGROUND_ASYNC

    def test_may_ignore_the_url(self) -> None:
        settings = WorkersSettings(queue={"uri": "sqlite:///jobs.db"}, mode="background_async")

        assert settings.in_memory

    def test_of_the_queue_needs_a_url(self) -> None:
        assert fault(mode="background_queue") == (
            "WORKERS_MODE is background_queue, but no store is named; set QUEUE_URL, e.g. sqlite:///jobs.db, "
            "or WORKERS_MODE=background_async"
        )

    def test_in_process_is_short_for_foreground(self) -> None:
        settings = WorkersSettings(in_process=True, queue={"uri": "redis://h"})

        assert settings.mode is WorkerMode.FOREGROUND_BLOCKING
        assert settings.in_memory

    def test_in_process_contradicts_other_modes(self) -> None:
        assert fault(in_process=True, mode="background_async") == (
            "WORKERS_IN_PROCESS=true means foreground_blocking, but WORKERS_MODE is background_async; set one of them"
        )


class TestProduction:
    @pytest.mark.parametrize(("environment", "production"), [("prod", True), ("Production", True), ("staging", False)])
    def test_is_known_by_its_name(self, environment: str, production: bool) -> None:
        settings = WorkersSettings(environment=environment, queue={"uri": "redis://h"})

        assert settings.is_production is production

    def test_needs_a_store(self, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(monkeypatch, ENVIRONMENT="production")

        assert fault() == (
            "ENVIRONMENT is production, but no store is named: jobs would end with this process; "
            "set QUEUE_URL, e.g. sqlite:///jobs.db, or accept it with WORKERS_MODE=background_async"
        )

    @pytest.mark.parametrize("explicit", [{"mode": "background_async"}, {"in_process": True}])
    def test_takes_memory_when_told_so_with_a_warning(
        self, explicit: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        settings = WorkersSettings(environment="production", **explicit)

        assert settings.in_memory
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.WARNING, f"WORKERS_MODE is {settings.mode} in production: jobs end with this process")
        ]

    def test_refuses_to_flush(self) -> None:
        queue = {"uri": "redis://h", "dangerously_flush": True}

        assert "WORKERS_QUEUE__ALLOW_FLUSH_IN_PRODUCTION=true" in fault(environment="prod", queue=queue)
        assert WorkersSettings(queue=queue).queue.dangerously_flush
        allowed = WorkersSettings(environment="prod", queue={**queue, "allow_flush_in_production": True})
        assert allowed.queue.dangerously_flush

    def test_checks_the_schema_unless_told_otherwise(self) -> None:
        queue = {"uri": "sqlite:///jobs.db"}

        assert WorkersSettings(environment="prod", queue=queue).queue.migrate == "check"
        assert WorkersSettings(environment="prod", queue={**queue, "migrate": "auto"}).queue.migrate == "auto"
        assert WorkersSettings(queue=queue).queue.migrate == "auto"

    @pytest.mark.parametrize(
        ("given", "starts"),
        [
            ({}, True),
            ({"auto_start": False}, False),
            ({"auto_start_production": False}, True),
            ({"environment": "prod", "auto_start_production": False}, False),
            ({"environment": "prod"}, True),
            ({"environment": "prod", "auto_start": False}, False),
            ({"enabled": False}, False),
        ],
    )
    def test_workers_start_with_the_server(self, given: dict[str, Any], starts: bool) -> None:
        assert WorkersSettings(queue={"uri": "redis://h"}, **given).starts_with_server is starts


class TestKind:
    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("redis://h:6379/0", QueueKind.REDIS),
            ("rediss://h", QueueKind.REDIS),
            ("unix:///run/redis.sock", QueueKind.REDIS),
            ("postgres://h/d", QueueKind.POSTGRES),
            ("postgresql://h/d", QueueKind.POSTGRES),
            ("SQLITE:///jobs.db?mode=rwc", QueueKind.SQLITE),
            ("memory://", QueueKind.MEMORY),
        ],
    )
    def test_follows_from_the_url(self, url: str, kind: QueueKind) -> None:
        assert WorkersSettings(queue={"uri": url}).queue.kind is kind

    def test_may_not_contradict_the_url(self) -> None:
        assert fault(queue={"uri": "redis://u:hunter2@h", "kind": "sqlite"}) == (
            "WORKERS_QUEUE__KIND (argument queue.kind): sqlite contradicts the URL redis://u:***@h; "
            "change one, or leave the kind out"
        )

    def test_needs_a_url(self) -> None:
        assert "redis needs a URL; set QUEUE_URL" in fault(queue={"kind": "redis"})


class TestSecrets:
    def shown(self, settings: WorkersSettings) -> str:
        return "".join(
            (
                repr(settings),
                str(settings),
                repr(settings.queue),
                str(settings.queue.uri),
                f"{settings.queue.uri!r}",
                repr(settings.model_dump()),
                repr(settings.model_dump(mode="json")),
                settings.model_dump_json(),
                repr(settings.origins),
                repr(settings.dashboard),
            )
        )

    @pytest.mark.parametrize("url", ["redis://u:hunter2@h:6379/0", "postgresql://h/d?user=u&password=hunter2"])
    def test_are_never_shown(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        setenv(
            monkeypatch,
            QUEUE_URL=url,
            WORKERS_DASHBOARD__USERNAME="ann",
            WORKERS_DASHBOARD__PASSWORD="hunter2",
        )
        settings = WorkersSettings()

        assert uri(settings) == url
        assert mask_url(url) in repr(settings)
        assert "hunter2" not in self.shown(settings)
        assert "hunter2" not in self.shown(WorkersSettings(queue=settings.queue, dashboard=settings.dashboard))

    @pytest.mark.parametrize(
        "given",
        [
            {"uri": "mysql://u:hunter2@h"},
            {"uri": "u:hunter2@h"},
            {"uri": ["hunter2"]},
            {"uri": "redis://u:hunter2@h", "kind": "sqlite"},
            {"uri": "redis://u:hunter2@h", "kind": "hunter2"},
            {"uri": "redis://u:hunter2@h", "hunter": 1},
        ],
    )
    def test_are_not_in_errors_nor_tracebacks(self, given: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            WorkersSettings(queue=given)

        text = "".join(traceback.format_exception(caught.value))
        assert "hunter2" not in text

    def test_are_not_in_the_log_of_pydantic_settings(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        (here / "QUEUE_URL").write_text("redis://u:hunter2@h\n")
        monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")

        WorkersSettings(_secrets_dir=here)

        # Older releases of pydantic-settings have no such log.
        assert not caplog.text or "redis://u:***@h" in caplog.text
        assert "hunter2" not in caplog.text

    def test_survive_a_copy(self) -> None:
        settings = WorkersSettings(queue={"uri": "redis://u:hunter2@h"})

        assert uri(settings.model_copy()) == "redis://u:hunter2@h"
        assert pickle.loads(pickle.dumps(settings)) == settings


class TestEmbedding:
    @pytest.fixture(autouse=True)
    def no_jobs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take away what `make test JOBS=…` hands down, for the field is named like it."""
        monkeypatch.delenv("JOBS", raising=False)

    def test_in_other_settings_reads_the_same_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            name: str = "shop"
            jobs: WorkersSettings = Field(default_factory=WorkersSettings)

        setenv(monkeypatch, WORKERS_CONCURRENCY="4", WORKERS="email")

        assert App().jobs.concurrency == 4
        assert App().jobs.enabled_workers == frozenset({"email"})

    def test_in_other_settings_takes_their_nested_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            model_config = SettingsConfigDict(env_nested_delimiter="__")
            jobs: WorkersSettings = Field(default_factory=WorkersSettings)

        setenv(monkeypatch, JOBS__CONCURRENCY="4", JOBS__QUEUE__URI="redis://h")

        settings = App().jobs

        assert (settings.concurrency, uri(settings)) == (4, "redis://h")

    def test_fault_is_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            jobs: WorkersSettings = Field(default_factory=WorkersSettings)

        monkeypatch.setenv("WORKERS_LEASE", "4")

        with pytest.raises(ConfigurationError, match=r"^WORKERS_LEASE: '4' has no unit"):
            App()

    def test_under_the_name_of_the_selection_is_explained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            workers: WorkersSettings = Field(default_factory=WorkersSettings)

        monkeypatch.setenv("WORKERS", "email,reports")

        with pytest.raises(ConfigurationError, match="call the field something else"), explained_settings():
            App()

    def test_optional_under_that_name_is_explained_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            workers: WorkersSettings | None = None

        monkeypatch.setenv("WORKERS", "email,reports")

        with pytest.raises(ConfigurationError, match="read from the variable WORKERS"):
            App()

    def test_other_settings_errors_stay_as_they_are(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class App(BaseSettings):
            other: list[int] = []

        monkeypatch.setenv("OTHER", "x")

        with pytest.raises(SettingsError), explained_settings():
            App()


class TestDurationText:
    @pytest.mark.parametrize("text", ["0s", "1ms", "1500ms", "90s", "10m", "25h", "7d"])
    def test_is_the_shortest_that_reads_back(self, text: str) -> None:
        assert duration_text(timedelta(milliseconds=duration_ms(text))) == text

    @given(ms=st.integers(0, 10**12))
    def test_reads_back(self, ms: int) -> None:
        assert duration_ms(duration_text(timedelta(milliseconds=ms))) == ms


def test_dump_is_json() -> None:
    assert json.loads(WorkersSettings(tags="a").model_dump_json())["tags"] == ["a"]


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        WorkersSettings().concurrency = 4
    with pytest.raises(ValueError, match="frozen"):
        WorkersSettings().queue.prefix = "x"


def test_import_needs_no_driver() -> None:
    code = (
        "import sys, workers_module.settings; print([m for m in ('redis', 'croniter', 'dishka') if m in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"
