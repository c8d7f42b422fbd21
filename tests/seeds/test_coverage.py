"""Every promise of the guides is shown by tests that exist."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.seed_coverage import ROWS

ROOT = Path(__file__).parents[2]
DASHBOARD = {36, 37, 160, 164, 165, 166, 167}


def test_the_list_has_every_row_once() -> None:
    assert list(ROWS) == list(range(1, 181))
    titles = [row.title for row in ROWS.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_only_the_dashboard_is_somebody_else_s() -> None:
    assert {number for number, row in ROWS.items() if row.subject} == DASHBOARD
    assert {row.subject for row in ROWS.values() if row.subject} == {"dashboard"}


@pytest.mark.parametrize("number", ROWS)
def test_a_row_is_shown_by_tests_that_exist(number: int) -> None:
    row = ROWS[number]
    assert bool(row.tests) != bool(row.subject), "it has tests, or a subject whose tests show it"
    assert len(set(row.tests)) == len(row.tests)
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name in collected(path), f"{test} does not exist"


def test_a_missing_test_would_be_noticed() -> None:
    found = collected("tests/seeds/test_coverage.py")
    assert "test_a_missing_test_would_be_noticed" in found
    assert "collected" not in found
    assert "TestDrain::test_tells_listeners" in collected("tests/testing/test_harness.py")


@cache
def collected(path: str) -> frozenset[str]:
    """Return the tests of a file, as pytest would collect them: ``test_x``, ``TestX::test_y``."""
    return frozenset(_names(ast.parse((ROOT / path).read_text(encoding="utf-8")).body))


def _names(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name.startswith("test"):
                yield name
            case ast.ClassDef(name=name) if name.startswith("Test"):
                yield from (f"{name}::{inner}" for inner in _names(node.body))
            case _:
                pass
