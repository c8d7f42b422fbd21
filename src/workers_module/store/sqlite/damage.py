"""Rows as they cannot be: how they are noticed, and what is made of them.

SQLite keeps a value of any type in any column, and other programs may write to the file. One bad row must not stop a
queue.
"""

from typing import Any, Final, Literal, TypeAlias

from workers_module.store.sqlite.work import POLICIES, Row

Kind: TypeAlias = Literal["int", "int?", "str", "str?", "bytes", "bytes?"]

_TYPES: Final[dict[Kind, frozenset[type]]] = {
    "int": frozenset({int}),
    "int?": frozenset({int, type(None)}),
    "str": frozenset({str}),
    "str?": frozenset({str, type(None)}),
    "bytes": frozenset({bytes}),
    "bytes?": frozenset({bytes, type(None)}),
}
_POLICIES: Final = frozenset(range(len(POLICIES)))
KINDS: Final[dict[str, Kind]] = {
    **dict.fromkeys(("due", "lease", "lapsed", "started", "ended"), "int?"),
    **dict.fromkeys(("id", "name"), "str"),
    **dict.fromkeys(
        ("token", "worker", "parent_queue", "parent_id", "dedup", "schedule", "deferred", "reason"), "str?"
    ),
    **dict.fromkeys(("data", "opts"), "bytes"),
    **dict.fromkeys(("progress", "trace", "result"), "bytes?"),
}
"""What the columns of a job hold; those not named hold integers."""


class Shape:
    """The types of some columns, and the memory of which combinations of types are fine."""

    __slots__ = ("_fine", "_kinds", "_policy")

    def __init__(self, columns: str) -> None:
        names = [name.strip() for name in columns.split(",")]
        self._kinds: list[Kind] = [KINDS.get(name, "int") for name in names]
        self._policy = names.index("policy")
        self._fine: set[tuple[type, ...]] = set()

    def fits(self, row: Row) -> bool:
        """Tell whether a row is as it should be."""
        types = tuple(map(type, row))
        if types not in self._fine:
            if not all(one in _TYPES[kind] for one, kind in zip(types, self._kinds, strict=False)):
                return False
            self._fine.add(types)
        return row[self._policy] in _POLICIES

    def repaired(self, row: Row) -> Row:
        """Return a row with something harmless in place of each value that cannot be."""
        values = [_repaired(value, kind) for value, kind in zip(row, self._kinds, strict=False)]
        if values[self._policy] not in _POLICIES:
            values[self._policy] = 0
        return (*values, *row[len(values) :])


def _repaired(value: Any, kind: Kind) -> Any:
    if type(value) in _TYPES[kind]:
        return value
    match kind:
        case "int":
            return 0
        case "str":
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        case "bytes":
            return value.encode() if isinstance(value, str) else str(value).encode()
        case _:
            return None
