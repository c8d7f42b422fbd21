# ruff: noqa: S608 - statements are put together from constants of this package and the checked prefix alone
"""Making a file ready: pragmas that stay in it, and migrations."""

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Final

from workers_module.store.migrate import MigrateMode, Migration, SchemaState, between, outstanding, read_migrations
from workers_module.store.sqlite.connect import Connection

PACKAGE: Final = "workers_module.store.sqlite"
COMMAND: Final = "workers migrations up"
_TRIES: Final = 50
_META: Final = "CREATE TABLE IF NOT EXISTS wm_meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


def prepare(connection: Connection, *, mode: MigrateMode, place: str) -> tuple[str, ...]:
    """Make a file ready for use; to be called under the gate.

    A file that has tables of an application keeps its settings, but for the journal: readers and writers must not block
    each other, so that becomes a write-ahead log.

    Returns:
        What should be shown at start.

    Raises:
        ConfigurationError: The schema does not fit this code.
    """
    raw = connection.raw
    warnings: list[str] = []
    before: str = raw.execute("PRAGMA journal_mode").fetchone()[0]
    empty = raw.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if empty and raw.execute("PRAGMA page_count").fetchone()[0] == 0:
        raw.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if before != "wal":
        after = _write_ahead(raw)
        if after != "wal":
            warnings.append(
                f"{place} cannot have a write-ahead log (its journal mode is {after!r}), perhaps because it lies on a "
                "network drive; workers of several processes will wait for each other"
            )
        elif not empty:
            warnings.append(f"the journal mode of {place} was {before!r} and is 'wal' now")
    _migrate(connection, mode=mode, place=place)
    return tuple(warnings)


def _write_ahead(raw: sqlite3.Connection) -> str:
    # Another process that is just opening the file makes this fail at once, whatever the busy timeout.
    for attempt in range(_TRIES):
        try:
            mode: str = raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or attempt == _TRIES - 1:
                raise
            raw.execute("BEGIN IMMEDIATE")
            raw.execute("COMMIT")
        else:
            return mode
    raise AssertionError


def state_of(connection: Connection) -> SchemaState:
    """Return which migrations a file has."""
    raw = connection.raw
    table = connection.sql("wm_meta")
    if not raw.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone():
        return SchemaState(0, 0)
    found = dict(
        raw.execute(connection.sql("SELECT key, value FROM wm_meta WHERE key IN ('schema', 'min_code')")).fetchall()
    )
    return SchemaState(int(found.get("schema", 0)), int(found.get("min_code", 0)))


def _migrate(connection: Connection, *, mode: MigrateMode, place: str) -> None:
    migrations = read_migrations(PACKAGE)
    if not outstanding(migrations, state_of(connection), mode=mode, place=place, command=COMMAND):
        return
    while True:
        connection.begin("IMMEDIATE")
        try:
            # Somebody else may have been faster.
            missing = outstanding(migrations, state_of(connection), mode=mode, place=place, command=COMMAND)
            if missing:
                apply(connection, missing[0])
            connection.raw.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise
        if len(missing) <= 1:
            return


def whole_script(prefix: str, after: int, up_to: int | None) -> str:
    """Return what leads from one schema to another as SQL, a transaction each."""
    pieces = between(read_migrations(PACKAGE), after, up_to)
    return "".join(
        f"-- {piece.number:04} {piece.name}\nBEGIN IMMEDIATE;\n{_META};\n{piece.sql}\n"
        f"INSERT OR REPLACE INTO wm_meta (key, value) VALUES ('schema', '{piece.number}'), "
        f"('min_code', '{piece.min_code}');\nCOMMIT;\n\n"
        for piece in pieces
    ).replace("wm_", prefix)


def apply(connection: Connection, migration: Migration) -> None:
    """Apply one migration in the transaction that is open."""
    execute = connection.raw.execute
    execute(connection.sql(_META))
    for statement in statements(migration.sql):
        execute(connection.sql(statement))
    marks: Sequence[tuple[str, int]] = (("schema", migration.number), ("min_code", migration.min_code))
    for key, value in marks:
        execute(connection.sql("INSERT OR REPLACE INTO wm_meta (key, value) VALUES (?, ?)"), (key, str(value)))


def statements(script: str) -> Iterator[str]:
    """Cut a script into its statements; `sqlite3.Connection.executescript` would end the transaction."""
    gathered = ""
    for line in script.splitlines(keepends=True):
        gathered += line
        if sqlite3.complete_statement(gathered):
            yield gathered
            gathered = ""
