"""Which migrations are applied, and which schema is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers_module.errors import ConfigurationError
from workers_module.store.migrate import MigrateMode, Migration, SchemaState, outstanding, read_migrations

KNOWN = [Migration(number=n, name=f"m{n}", sql=f"-- {n}", min_code=n) for n in (1, 2, 3)]


def needed(number: int, min_code: int, mode: MigrateMode = "auto") -> list[int]:
    found = outstanding(KNOWN, SchemaState(number, min_code), mode=mode, place="jobs.db", command="run this")
    return [one.number for one in found]


def test_what_is_missing_is_applied_in_order() -> None:
    assert needed(0, 0) == [1, 2, 3]
    assert needed(2, 2) == [3]
    assert needed(3, 3) == []


def test_a_check_refuses_what_is_missing_and_says_what_to_run() -> None:
    assert needed(3, 3, "check") == []
    with pytest.raises(ConfigurationError, match=r"jobs\.db has schema 2, this code needs 3.*run this"):
        needed(2, 2, "check")


def test_a_newer_schema_is_used_if_it_allows_that() -> None:
    assert needed(5, 3) == []
    assert needed(5, 2, "check") == []
    with pytest.raises(ConfigurationError, match=r"knows schema 4; this code knows 3.*Upgrade"):
        needed(5, 4)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the migrations folder of a package of its own."""
    folder = tmp_path / "made_for_migrations" / "migrations"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("made_for_migrations", None)


def test_files_are_read_in_order_with_what_their_first_lines_say(package: Path) -> None:
    (package / "0002_second_step.sql").write_text("CREATE TABLE b (x);", encoding="utf-8")
    (package / "0001_first.sql").write_text("-- min_code: 1\n--\nCREATE TABLE a (x);", encoding="utf-8")
    (package / "notes.txt").touch()
    first, second = read_migrations("made_for_migrations")
    assert (first.number, first.name, first.min_code) == (1, "first", 1)
    assert (second.number, second.name, second.min_code) == (2, "second_step", 2)
    assert second.sql == "CREATE TABLE b (x);"


@pytest.mark.parametrize("names", [[], ["0002_a.sql"], ["0001_a.sql", "0003_b.sql"], ["0001_a.sql", "0001_b.sql"]])
def test_gaps_and_doubles_are_refused(package: Path, names: list[str]) -> None:
    for name in names:
        (package / name).touch()
    with pytest.raises(ConfigurationError, match="gaps or doubles"):
        read_migrations("made_for_migrations")


def test_the_migrations_of_sqlite_are_there() -> None:
    assert read_migrations("workers_module.store.sqlite")[0].number == 1
