"""How the worker command writes its log: lines for people, or JSON for machines. The library configures no logging."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from workers_module.cli.output import clean, messages
from workers_module.settings import LogSettings

FIELDS: Final = ("queue", "job_id", "job_name", "attempt", "worker_id", "trace_id", "duration_ms", "outcome")
"""What our records carry beside their text."""
_STYLES: Final[Mapping[str, str]] = {
    "completed": "green",
    "failed": "red",
    "retry": "yellow",
    "lost": "red",
    "WARNING": "yellow",
    "ERROR": "red",
    "CRITICAL": "bold red",
}


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name in FIELDS if (value := getattr(record, name, None)) is not None})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class ConsoleHandler(logging.Handler):
    """Writes records for people: a job's end in columns, everything else as it is."""

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            self._console.print(line_of(record), soft_wrap=True)
            if record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info)
                self._console.print(clean(trace, keep="\n"), soft_wrap=True, style="dim")
        except Exception:
            self.handleError(record)


def line_of(record: logging.LogRecord) -> Text:
    """Return the line for people."""
    text = Text(time.strftime("%H:%M:%S ", time.localtime(record.created)), style="dim")
    outcome = getattr(record, "outcome", None)
    fields: dict[str, Any] = vars(record)
    if outcome is not None and "job_id" in fields:
        text.append(clean(f"{fields['queue']:<10} {fields['job_name']} #{fields['job_id']}  "), style="")
        text.append(outcome, style=_STYLES.get(outcome, ""))
        rest = record.getMessage().partition(": ")[2]
        if rest:
            text.append(clean(f"  {rest}"), style="")
        if outcome in {"failed", "retry"}:
            text.append(f"  (attempt {fields['attempt']})", style="dim")
        return text
    if record.levelno >= logging.WARNING:
        text.append(f"{record.levelname.lower()}: ", style=_STYLES.get(record.levelname, ""))
    text.append(clean(record.getMessage(), keep="\n"), style="")
    return text


def for_people(settings: LogSettings) -> bool:
    """Whether the log is written for people."""
    return settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())


def configure(settings: LogSettings, *, level: str | None = None) -> None:
    """Send the log of this process to standard error.

    Args:
        settings: Format and level.
        level: Another level.
    """
    handler: logging.Handler
    if for_people(settings):
        handler = ConsoleHandler(messages())
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonFormatter())
    chosen = (level or settings.level).upper()
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger().setLevel(chosen)
