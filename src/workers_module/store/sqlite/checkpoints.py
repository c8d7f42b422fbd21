"""Moving the write-ahead log into the file beside the writer, not inside its commits.

A commit that moves a thousand pages, which lie all over a large file, takes several times as long as the others.
"""

import logging
import sqlite3
import threading
from pathlib import Path
from typing import Final

from workers_module.store.sqlite.connect import Connection, Synchronous
from workers_module.store.sqlite.faults import translate
from workers_module.store.sqlite.gate import Gate

EVERY: Final = 1_000
"""Pages in the log between two checkpoints, about."""
RESTART: Final = 4_000
"""Pages in the log from which on writers are kept out for a moment, so that it can begin anew."""
HELD_UP: Final = 16_000
"""Pages in the log from which on readers are waited for as well."""
READERS_MS: Final = 250
"""How long they are waited for; writers wait too."""
_A_COMMIT: Final = 8
"""Pages a commit writes however small it is: the ends of the indexes, and the queue's row."""
_ROWS_A_PAGE: Final = 8
_PAGE: Final = 4_096

_log = logging.getLogger(__name__)


class Checkpointer:
    """A thread with a connection that moves the log into the file.

    Usually it does so while others read and write. As the log can begin anew only when all of it is moved, which never
    is so while somebody keeps writing, a long log is finished under the gate. What goes wrong is logged and tried again
    after as many writes: the log is safe where it is, and only grows.
    """

    def __init__(self, path: Path, prefix: str, *, synchronous: Synchronous) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._prefix = prefix
        self._synchronous: Synchronous = synchronous
        self._changes = 0
        self._written = 0
        self._size_seen = 0
        self._ill = False
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="workers-sqlite-checkpointer", daemon=True)
        self._thread.start()

    def committed(self, changes: int) -> None:
        """Note a commit; on the writer's thread.

        Args:
            changes: How many rows the writer's connection has changed so far.
        """
        # An estimate, as there is no cheap way to ask; what it misses, the growth of the log's file shows.
        self._written += _A_COMMIT + (changes - self._changes) // _ROWS_A_PAGE
        self._changes = changes
        if self._written >= EVERY or self._size() - self._size_seen >= EVERY * _PAGE:
            self._written = 0
            self._wake.set()

    def stop(self) -> None:
        """Let the thread end; a long log is moved once more."""
        self._ending = True
        self._wake.set()

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()

    def _size(self) -> int:
        try:
            return self._wal.stat().st_size
        except OSError:
            # Asked after a commit, which nothing may make look as if it had failed.
            return 0

    def _run(self) -> None:
        connection: Connection | None = None
        gate: Gate | None = None
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                ending = self._ending
                if not ending or self._size() >= EVERY * _PAGE:
                    try:
                        if gate is None:
                            gate = Gate(self._path.with_name(self._path.name + ".lock"))
                        if connection is None:
                            connection = Connection(self._path, self._prefix, synchronous=self._synchronous, busy_ms=0)
                        self._checkpoint(connection.raw, gate)
                    except Exception as error:
                        # Whatever it was: without this thread the log would grow for ever.
                        self._failed(error)
                if ending:
                    break
        finally:
            if connection is not None:
                connection.close()
            if gate is not None:
                gate.close()

    def _checkpoint(self, raw: sqlite3.Connection, gate: Gate) -> None:
        self._size_seen = self._size()
        _, pages, _ = raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        busy = 0
        if pages >= RESTART:
            patience = READERS_MS if pages >= HELD_UP else 0
            raw.execute(f"PRAGMA busy_timeout = {patience}")
            gate.enter()
            try:
                busy, pages, _ = raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            finally:
                gate.leave()
        if busy and pages >= HELD_UP:
            self._complain(
                "The write-ahead log %s has %d pages, and a transaction that reads or writes keeps it from being moved "
                "into the file; it grows until that ends. Keep transactions on the file short.",
                self._wal,
                pages,
            )
        elif self._ill:
            self._ill = False
            _log.info("The write-ahead log %s is moved into the file again.", self._wal)

    def _failed(self, error: Exception) -> None:
        told = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
        self._complain("The write-ahead log %s could not be moved into the file, and grows: %s", self._wal, told)

    def _complain(self, text: str, *values: object) -> None:
        """Say once what is wrong, until it is well again."""
        if not self._ill:
            self._ill = True
            _log.warning(text, *values)
