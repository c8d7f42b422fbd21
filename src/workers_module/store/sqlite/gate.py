"""Fair turns between processes.

SQLite's own busy handler sleeps and tries again, so whoever writes all the time starves the others. The kernel queues
those who want an exclusive ``flock``. It is for fairness only: without it, as on Windows, everything stays correct.
"""

import sys
import threading
from pathlib import Path
from typing import Final

from workers_module.errors import StoreUnavailableError

PATIENCE: Final = 10.0
"""Seconds to wait for a turn; as long as SQLite waits for its own lock."""

if sys.platform != "win32":
    import fcntl
    import os

    class Gate:
        """The turn of one connection to write.

        A blocked ``flock`` cannot be given up, so when the lock is taken the waiting is done by a thread of its own: a
        process that was frozen while it held the lock makes others wait for `PATIENCE`, not for ever.
        """

        def __init__(self, path: Path) -> None:
            self._path = path
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._state = threading.Condition()
            self._waiter: threading.Thread | None = None
            self._wanted = False
            self._granted = False
            self._closed = False

        def enter(self, patience: float = PATIENCE) -> None:
            """Wait for the turn.

            Raises:
                StoreUnavailableError: It did not come in time.
            """
            with self._state:
                if self._waiter is None:
                    try:
                        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        self._waiter = threading.Thread(target=self._wait, name="workers-sqlite-turn", daemon=True)
                        self._waiter.start()
                    else:
                        return
                self._wanted = True
                granted = self._state.wait_for(lambda: self._granted, patience)
                self._wanted = False
                if not granted:
                    raise StoreUnavailableError(
                        f"{self._path}: another process has held its turn to write for {patience:g} s; "
                        "it may be stopped or stuck"
                    )
                self._granted = False

        def leave(self) -> None:
            """End the turn."""
            fcntl.flock(self._file, fcntl.LOCK_UN)

        def close(self) -> None:
            """Let go of the file."""
            with self._state:
                self._closed = True
                if self._waiter is None:
                    os.close(self._file)

        def _wait(self) -> None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            with self._state:
                self._waiter = None
                if self._wanted:
                    self._granted = True
                    self._state.notify_all()
                    return
                # Whoever asked has given up, and nobody must wait for a turn that is not used.
                fcntl.flock(self._file, fcntl.LOCK_UN)
                if self._closed:
                    os.close(self._file)

else:

    class Gate:
        """No turns: SQLite's own lock decides."""

        def __init__(self, path: Path) -> None:
            self._path = path

        def enter(self, patience: float = PATIENCE) -> None:
            """Return at once."""

        def leave(self) -> None:
            """Do nothing."""

        def close(self) -> None:
            """Do nothing."""
