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

from workers_module.cli.output import clean, messages, span, tail
from workers_module.settings import LogSettings

FIELDS: Final = (
    *("queue", "job_id", "job_name", "attempt", "attempts", "worker_id", "trace_id"),
    *("duration_ms", "outcome", "reason", "delay_ms"),
)
"""What our records carry beside their text."""
_WORDS: Final[Mapping[str, str]] = {
    "retried": "failed",
    "timed_out": "timed out",
    "released": "handed back",
    "waiting_children": "waits for its children",
}
"""Outcomes that people are told in other words."""
_STYLES: Final[Mapping[str, str]] = {
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "retried": "yellow",
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
    text = Text()
    text.append(time.strftime("%H:%M:%S ", time.localtime(record.created)), style="dim")
    if "outcome" in vars(record):
        return text + _end_of(vars(record))
    if record.levelno >= logging.WARNING:
        text.append(f"{record.levelname.lower()}: ", style=_STYLES.get(record.levelname, ""))
    text.append(clean(record.getMessage(), keep="\n"), style="")
    return text


def _end_of(fields: Mapping[str, Any]) -> Text:
    """Return how an attempt ended, in columns: queue, job, outcome, time, and what there is to say of a failure."""
    outcome = str(fields["outcome"])
    text = Text(clean(f"{fields['queue']:<10} {fields['job_name']} #{tail(fields['job_id'])}  "))
    text.append(f"{_WORDS.get(outcome, outcome):<9}", style=_STYLES.get(outcome, ""))
    if fields["duration_ms"] is not None:
        text.append(f"  {span(fields['duration_ms'])}", style="dim")
    if fields["reason"]:
        text.append(clean(f"  {fields['reason'].partition(chr(10))[0]}"))
    notes: list[str] = []
    if fields["reason"] and fields["attempts"] > 1:
        notes.append(f"attempt {fields['attempt']} of {fields['attempts']}")
    if fields["delay_ms"] is not None:
        notes.append(f"again in {span(fields['delay_ms'])}" if fields["delay_ms"] else "again at once")
    if notes:
        text.append(f"  ({', '.join(notes)})", style="dim")
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
