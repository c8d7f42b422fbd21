"""SQLite's errors as ours, with the file's path."""

import sqlite3
from pathlib import Path

from workers_module.errors import StoreCorruptError, StoreDeniedError, StoreError, StoreFullError, StoreUnavailableError

_FULL = frozenset({sqlite3.SQLITE_FULL})
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_DENIED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH})


def translate(error: sqlite3.Error, path: Path) -> StoreError:
    """Return our error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    primary = None if code is None else code & 0xFF
    what = f"SQLite file {path}: {error} ({name})"
    if primary in _FULL:
        return StoreFullError(f"{what}. Free some disk space, or raise max_page_count")
    if primary in _CORRUPT:
        return StoreCorruptError(
            f"{what}. Restore the file from a backup, or salvage it with the sqlite3 shell's .recover"
        )
    if primary in _DENIED:
        return StoreDeniedError(f"{what}. The process needs to write to the file and to its folder")
    if primary == sqlite3.SQLITE_CANTOPEN:
        return StoreUnavailableError(f"{what}. Check that the folder exists and may be written to")
    if primary in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return StoreUnavailableError(f"{what}. Another connection holds the file; keep its transactions short")
    if primary == sqlite3.SQLITE_ERROR and "no such" in str(error):
        return StoreCorruptError(f"{what}. The schema is not the one this store made")
    return StoreUnavailableError(what)
