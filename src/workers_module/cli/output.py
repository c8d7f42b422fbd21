"""What commands print: tables for people, plain text for pipes, JSON for programs.

Results go to standard output, everything else to standard error. Nothing that comes from a store reaches a terminal
with control characters in it.
"""

import json
import sys
import time
import unicodedata
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from workers_module.cli.failures import UsageError
from workers_module.cli.options import options

_STATE_STYLES: Final[Mapping[str, str]] = {
    "active": "blue",
    "completed": "green",
    "failed": "red",
    "delayed": "yellow",
    "prioritized": "magenta",
    "waiting-children": "cyan",
    "paused": "yellow",
    "ok": "green",
    "warn": "yellow",
    "fail": "red",
}
PLAIN_EVERY_S: Final = 5.0
"""How far apart the lines are that tell of progress where there is no terminal."""
_ROOMY: Final = 120
_LEAST: Final = 8
"""No column is cut to less."""
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_JOINERS: Final = "\u200c\u200d"


def clean(text: str, *, keep: str = "") -> str:
    r"""Return text whose control characters are written out, as ``\x1b``: what is stored must not steer a terminal.

    Args:
        text: Any text.
        keep: Control characters that are meant.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one if one in keep or one in _JOINERS or unicodedata.category(one) not in _UNSAFE else _escaped(one)
        for one in text
    )


def _escaped(one: str) -> str:
    code = ord(one)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x1_0000 else f"\\U{code:08x}"


def console() -> Console:
    """Return what writes to standard output."""
    return _console(sys.stdout)


def messages() -> Console:
    """Return what writes to standard error."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    return Console(file=stream, no_color=None if options().color else True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Tell people something that is no result."""
    if not options().quiet:
        sys.stderr.write(f"{clean(text, keep=chr(10))}\n")
        sys.stderr.flush()


def emit(value: object) -> None:
    """Print one JSON document."""
    text = json.dumps(value, ensure_ascii=True, indent=2 if sys.stdout.isatty() else None, default=_plain)
    _write(text.replace("\x7f", "\\u007f"))


def emit_line(value: object) -> None:
    """Print one line of JSON Lines."""
    _write(json.dumps(value, ensure_ascii=True, default=_plain).replace("\x7f", "\\u007f"))


def result(text: str, value: object) -> None:
    """Print what a command did: a line for people, or a JSON document."""
    if options().json:
        emit(value)
    else:
        _write(clean(text, keep="\n"))


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    match value:
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case timedelta():
            return value.total_seconds()
        case set() | frozenset():
            return sorted(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case _:
            return str(value)


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Its title.
        right: Whether it ends at the right.
        shrinks: Whether it may be narrower than its text where the terminal is.
        keeps: What is then left of the text: its beginning, its end, or all of it, on several lines.
    """

    title: str
    right: bool = False
    shrinks: bool = False
    keeps: Literal["start", "end", "all"] = "start"


def table(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows, as wide as the terminal allows: a table, or a block a row where not even that fits.

    Args:
        columns: Their titles.
        rows: Their cells; None is shown as ``-``.
        empty: What is said, to people, when there are no rows.
    """
    heads = [Column(one) if isinstance(one, str) else one for one in columns]
    cells = [[_cell(one) for one in row] for row in rows]
    if not cells:
        say(empty)
        return
    out = console()
    if out.is_terminal:
        _print_fitting(out, heads, cells)
    else:
        _print_plain(heads, cells)


def fitting(columns: Sequence[Column | str], rows: Iterable[Sequence[object]], width: int) -> RenderableType:
    """Return a table of at most this width, or a block a row where there is none."""
    heads = [Column(one) if isinstance(one, str) else one for one in columns]
    cells = [[_cell(one) for one in row] for row in rows]
    return _table(heads, cells, width) or Group(*_blocks(heads, cells))


def _cell(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case _:
            return clean(str(value))


def _print_plain(heads: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    titles = [head.title.replace(" ", "-") for head in heads]
    widths = [max(map(cell_len, column)) for column in zip(titles, *cells, strict=True)]
    for row in [titles, *cells]:
        parts = [
            " " * (width - cell_len(text)) + text if head.right else text + " " * (width - cell_len(text))
            for head, text, width in zip(heads, row, widths, strict=True)
        ]
        _write("  ".join(parts).rstrip())


def _print_fitting(out: Console, heads: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    made = _table(heads, cells, out.width)
    if made is not None:
        out.print(made)
        return
    for line in _blocks(heads, cells):
        out.print(line, soft_wrap=True)


def _blocks(heads: Sequence[Column], cells: Sequence[Sequence[str]]) -> Iterator[Text]:
    label = max(len(head.title) for head in heads)
    for row in cells:
        # Who has a narrow terminal has no room for what is not there.
        is_said = [text not in {"-", "0"} for text in row]
        for head, text, said in zip(heads, row, is_said, strict=True):
            if said or not any(is_said):
                yield Text(f"{head.title:>{label}}  ", style="dim") + _styled(text)
        yield Text()


def _table(heads: Sequence[Column], cells: Sequence[Sequence[str]], width: int) -> Table | None:
    titles = [head.title if width >= _ROOMY else head.title.replace("-", "-\n") for head in heads]
    widths = [
        max(map(cell_len, [*title.splitlines(), *(row[number] for row in cells)]))
        for number, title in enumerate(titles)
    ]
    gap = 2 if sum(widths) + 2 * (len(heads) - 1) <= width else 1
    fits = _shrunk(widths, [head.shrinks for head in heads], width - gap * (len(heads) - 1))
    if not fits:
        return None
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0), header_style="bold")
    for head, title, size in zip(heads, titles, widths, strict=True):
        folds = head.keeps == "all"
        made.add_column(
            title,
            justify="right" if head.right else "left",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
            width=size,
        )
    for row in cells:
        made.add_row(
            *(
                _styled(tail(text, size) if head.keeps == "end" else text)
                for head, text, size in zip(heads, row, widths, strict=True)
            )
        )
    return made


def _shrunk(widths: list[int], shrinks: Sequence[bool], room: int) -> bool:
    """Cut the widest of the columns that may be, in place, until all fit; whether they do."""
    while sum(widths) > room:
        able = [number for number, may in enumerate(shrinks) if may and widths[number] > _LEAST]
        if not able:
            return False
        widths[max(able, key=widths.__getitem__)] -= 1
    return True


def _styled(text: str) -> Text:
    return Text(text, style=_STATE_STYLES.get(text, "dim" if text in {"-", "0"} else ""))


def tail(id: str, most: int = 16) -> str:
    """Return an id, or the end of a long one: ids of schedules and of other programs differ there."""
    return id if len(id) <= most else f"…{id[1 - most :]}"


def some(count: int, what: str) -> str:
    """Return a count with its noun: ``1 job``, ``2 jobs``."""
    plural = f"{what}es" if what.endswith("ss") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is deleted or done to many.

    Raises:
        UsageError: Nobody can be asked, and ``--yes`` was not given; or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is here to answer: pass --yes to do it, or --dry-run to look")
    sys.stderr.write(f"{clean(question)} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise UsageError("nothing was changed")


@contextmanager
def progress(label: str, total: int | None, *, stays: bool = True) -> Generator[Callable[[int], None]]:
    """Show how far a work on many jobs is; gives what is called with the number done more. See `phases`."""
    with phases([label], total, stays=stays) as (advance,):
        yield advance


@contextmanager
def phases(
    labels: Sequence[str], total: int | None, *, stays: bool = True
) -> Generator[tuple[Callable[[int], None], ...]]:
    """Show how far a work on many jobs is that goes over them several times.

    On a terminal a bar for each phase; elsewhere a plain line now and then, so that short works say nothing.

    Args:
        labels: What is done in each phase.
        total: To how many; None where that is not known.
        stays: Whether it is still seen when the work is done.

    Yields:
        For each phase what is called with the number done more.
    """
    err = messages()
    if options().quiet or options().json:
        yield tuple(_untold for _ in labels)
        return
    if not err.is_terminal:
        yield tuple(_PlainProgress(label, total).advance for label in labels)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars = Progress(*columns, console=err, transient=not stays)
    tasks = [bars.add_task(label, total=total) for label in labels]

    def advance(task: TaskID, count: int) -> None:
        # Not before: work that is refused at once has no progress.
        bars.start()
        bars.advance(task, count)

    try:
        yield tuple(partial(advance, task) for task in tasks)
        if total is None:
            for task in bars.tasks:
                task.total = task.completed
    finally:
        if bars.live.is_started:
            bars.stop()


def _untold(_: int) -> None:
    """Take note of nothing."""


class _PlainProgress:
    """Says how far a work is, at most every `PLAIN_EVERY_S`."""

    def __init__(self, label: str, total: int | None) -> None:
        self._label = label
        self._of = "" if total is None else f"/{total:,}"
        self._done = 0
        self._said = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if count and now - self._said >= PLAIN_EVERY_S:
            self._said = now
            say(f"{self._label} {self._done:,}{self._of}")


# --- times -----------------------------------------------------------------------------------------------------------


def span(ms: float) -> str:
    """Return a span of time as people say it: ``212 ms``, ``1.2 s``, ``4 h 40 min``."""
    if round(ms) < 1_000:
        return f"{ms:.0f} ms"
    if ms < 10_000:
        return f"{ms / 1_000:.1f}".removesuffix(".0") + " s"
    seconds = round(ms / 1_000)
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for number, (unit, size) in enumerate(units):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            if number + 1 < len(units):
                smaller, smaller_size = units[number + 1]
                if whole < 10 and rest >= smaller_size:
                    return f"{whole} {unit} {rest // smaller_size} {smaller}"
            return f"{whole} {unit}"
    return "0 s"


def fires(pattern: str | None, tz: str | None, every_ms: float | None, after_ms: float | None) -> str:
    """Return when a schedule fires: its pattern, with its time zone where that is not UTC; or its distance."""
    if pattern is not None:
        return pattern if tz in {None, "UTC"} else f"{pattern}  {tz}"
    if every_ms is not None:
        return f"every {span(every_ms)}"
    return "once" if after_ms is None else f"once, {span(after_ms)} after start"


def when(instant: datetime | None, now: datetime) -> str | None:
    """Return an instant relative to now: ``3 min ago``, ``in 2 h``."""
    if instant is None:
        return None
    ms = (instant - now) / timedelta(milliseconds=1)
    if abs(ms) < 1_000:
        return "now"
    return f"in {span(ms)}" if ms > 0 else f"{span(-ms)} ago"
