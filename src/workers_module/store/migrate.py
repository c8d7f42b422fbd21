"""Numbered migrations: finding them, and deciding which are to be applied.

A migration is a file ``0001_name.sql`` in a store's ``migrations`` folder. Its first lines may hold ``-- min_code: N``:
code that knows migrations up to ``N`` still works with the schema it makes (default: its own number, that is, only
newer code does). Each is applied in one transaction and recorded in the store's ``meta`` as ``schema`` and
``min_code``; how that is done, and what keeps two openers apart, is the store's business.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

from workers_module.errors import ConfigurationError, SchemaOutdatedError

MigrateMode = Literal["auto", "check"]
"""``auto`` applies what is missing when the store is opened; ``check`` refuses to start."""

_FILE = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")
_MIN_CODE = re.compile(r"^-- min_code: (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of a schema.

    Attributes:
        number: Its place, from 1 on, without gaps.
        name: What it is about.
        sql: Its statements, with the default prefix in names.
        min_code: The oldest code, by the newest migration it knows, that works with the schema afterwards.
    """

    number: int
    name: str
    sql: str
    min_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus:
    """What a database has, beside what this code knows.

    Attributes:
        place: The database, without secrets, for people.
        state: Which migrations it has.
        known: All migrations of this code, in order.
        exists: Whether the database is there.
    """

    place: str
    state: "SchemaState"
    known: "tuple[Migration, ...]"
    exists: bool = True

    @property
    def missing(self) -> "tuple[Migration, ...]":
        """The migrations that are to be applied."""
        return self.known[self.state.number :]


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database says of its schema: the last migration applied (0: none) and the oldest code that may use it."""

    number: int
    min_code: int


def read_migrations(package: str) -> tuple[Migration, ...]:
    """Read the migrations that lie in the folder ``migrations`` of a store's package, in order.

    Raises:
        ConfigurationError: A number is missing or there twice: the installation is damaged.
    """
    found: list[Migration] = []
    for entry in files(package).joinpath("migrations").iterdir():
        match = _FILE.fullmatch(entry.name)
        if match is not None:
            sql = entry.read_text(encoding="utf-8")
            oldest = _MIN_CODE.search(sql)
            number = int(match[1])
            found.append(
                Migration(number=number, name=match[2], sql=sql, min_code=int(oldest[1]) if oldest else number)
            )
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)) or not found:
        numbers = [migration.number for migration in found]
        raise ConfigurationError(f"{package}: migrations {numbers} have gaps or doubles; install the package again")
    return tuple(found)


def between(migrations: Sequence[Migration], after: int, up_to: int | None) -> Sequence[Migration]:
    """Return the migrations that lead from one schema to another.

    Args:
        migrations: All that this code knows.
        after: The schema a database has; 0 for none.
        up_to: The schema it is to have; None for the newest.

    Raises:
        ConfigurationError: This code does not know one of the two, or they are the wrong way round.
    """
    known = migrations[-1].number
    end = known if up_to is None else up_to
    if not 0 <= after <= end <= known:
        raise ConfigurationError(f"from schema {after} to {end}: this code knows 0 to {known}, and no way back")
    return migrations[after:end]


def outstanding(
    migrations: Sequence[Migration], state: SchemaState, *, mode: MigrateMode, place: str, command: str
) -> Sequence[Migration]:
    """Decide what is to be applied to a database.

    Args:
        migrations: All that this code knows.
        state: What the database has.
        mode: Whether they may be applied now.
        place: The database, for the message.
        command: What applies them, for the message.

    Returns:
        The migrations to apply, in order; empty when the schema is up to date, or newer and still usable.

    Raises:
        SchemaOutdatedError: The schema is older, and ``mode`` is ``check``.
        ConfigurationError: It is newer than this code can work with.
    """
    known = migrations[-1].number
    if state.number > known:
        if state.min_code > known:
            raise ConfigurationError(
                f"{place} has schema {state.number}, which needs code that knows schema {state.min_code}; "
                f"this code knows {known}. Upgrade workers_module"
            )
        return ()
    missing = migrations[state.number :]
    if missing and mode == "check":
        raise SchemaOutdatedError(
            f"{place} has schema {state.number}, this code needs {known}, and migrations are not applied at start "
            f"here. Run: {command}",
            number=state.number,
            needed=known,
        )
    return missing
