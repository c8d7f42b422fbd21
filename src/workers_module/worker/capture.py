"""Brings what a handler logs to the log that is kept with its job."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from workers_module.worker.context import JobContext

current_run: ContextVar[JobContext | None] = ContextVar("workers_module_run", default=None)
"""The context of the job this task or thread runs; set only where log records are captured."""


class JobLogHandler(logging.Handler):
    """Writes records to the log of the job in whose run they were made; those made elsewhere, and ours, stay out."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        context = current_run.get()
        if context is None or record.name.partition(".")[0] == "workers_module":
            return
        context.log.add_record(record.levelname, self.format(record))


@contextmanager
def capturing() -> Generator[None]:
    """Capture the records of all loggers meanwhile; which are made is for the application's logging set-up to say."""
    handler = JobLogHandler()
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
