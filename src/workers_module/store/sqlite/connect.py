"""Connections: how they are opened, and how a plan runs on one."""

import os
import sqlite3
from pathlib import Path
from typing import Final, Literal, TypeVar

from workers_module.store.sqlite.work import Many, Plan, Rows

T = TypeVar("T")

Synchronous = Literal["full", "normal"]
"""``full`` survives a power cut; ``normal`` may lose the last commits to one, never half of a commit."""

BUSY_MS: Final = 10_000
PAGES: Final = 1_000
"""Pages that are given back at once, and how many must be free for it."""
_CACHED_STATEMENTS: Final = 512


class Connection:
    """A connection of ours: SQLite's own, and the prefix of our tables."""

    __slots__ = ("_prefix", "_texts", "raw")

    def __init__(self, path: Path, prefix: str, *, synchronous: Synchronous, busy_ms: int = BUSY_MS) -> None:
        self.raw = sqlite3.connect(
            os.fspath(path),
            timeout=busy_ms / 1_000,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=_CACHED_STATEMENTS,
        )
        self._prefix = prefix
        self._texts: dict[str, str] = {}
        try:
            self.raw.execute(f"PRAGMA synchronous = {synchronous}")
            self.raw.execute("PRAGMA cache_size = -16000")
            self.raw.execute("PRAGMA temp_store = MEMORY")
            self.raw.execute("PRAGMA journal_size_limit = 67108864")
            # The checkpointer does it, on a thread of its own.
            self.raw.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            self.raw.close()
            raise

    def sql(self, text: str) -> str:
        """Return a statement with the prefix of our tables in place of the default one."""
        if self._prefix == "wm_":
            return text
        known = self._texts.get(text)
        if known is None:
            known = self._texts[text] = text.replace("wm_", self._prefix)
        return known

    def run(self, plan: Plan[T]) -> T:
        """Run a plan to its end."""
        execute, executemany, sql = self.raw.execute, self.raw.executemany, self.sql
        rows: Rows = []
        try:
            statement = next(plan)
            while True:
                if type(statement) is Many:
                    executemany(sql(statement.sql), statement.rows)
                    rows = []
                else:
                    rows = execute(sql(statement[0]), statement[1]).fetchall()
                statement = plan.send(rows)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            plan.close()

    def version(self) -> int:
        """Return a number that changes when another connection has committed."""
        number: int = self.raw.execute("PRAGMA data_version").fetchone()[0]
        return number

    def begin(self, how: Literal["IMMEDIATE", "DEFERRED"]) -> None:
        """Begin a transaction."""
        self.raw.execute("BEGIN IMMEDIATE" if how == "IMMEDIATE" else "BEGIN")

    def rollback(self) -> None:
        """Undo the transaction, if there still is one: SQLite ends some of itself when a statement fails."""
        if self.raw.in_transaction:
            self.raw.execute("ROLLBACK")

    def give_back(self) -> None:
        """Give free pages back to the disk, at most 4 MB of them at a time; outside of a transaction.

        Some are left, as a queue needs them again.
        """
        free: int = self.raw.execute("PRAGMA freelist_count").fetchone()[0]
        if free < PAGES:
            return
        pages: int = self.raw.execute("PRAGMA page_count").fetchone()[0]
        if free > pages // 10:
            # Through `execute` it would free a single page.
            self.raw.executescript(f"PRAGMA incremental_vacuum({PAGES})")

    def close(self) -> None:
        """Let go of the file."""
        self.raw.close()
