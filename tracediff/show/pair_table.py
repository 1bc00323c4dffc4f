"""The table of all pairs: a line a pair in execution order, in the columns that there is room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from tracediff.locate import EXCUSED
from tracediff.show.words import BAD, LABEL, QUIET, ended, module, number, short_call, short_length

if TYPE_CHECKING:
    from tracediff.report import Row

HEADS = ("reference", "port", "end", "call", "rel L2", "max abs", "allowed", "")
_NAMES, _NUMBERS = (0, 1, 2, 3), (4, 5, 6)
_DISPENSABLE = (6, 1, 3, 5)
"""Columns that are left out of narrow tables, the first one first."""
_NARROWEST, _SHORTEST = 18, 8
"""Names are cut to 18 characters before a column is left out, and to 8 where none is left to spare."""


def telling(rows: Sequence[Row]) -> set[int]:
    """The places of pairs that diverged, or have an effect to tell, and of the two before each pair that introduced an error."""
    places: set[int] = set()
    for place, row in enumerate(rows):
        if row.diverged or row.effect:
            places.add(place)
        if row.introduced:
            places |= set(range(max(0, place - 2), place))
    return places


class PairTable:
    """Lines of a table that may be long: measured once, written as they are, in the columns that there is room for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [cells_of(row) for row in self.rows]
        widths = _widths(cells, options.max_width)
        yield Segment(_line(HEADS, widths) + "\n", console.get_style(LABEL))
        stage = ""
        for row, line in zip(self.rows, cells, strict=True):
            if row.where.stage != stage:
                stage = row.where.stage
                yield Segment(f"{stage or '(no stage)'}\n", console.get_style(QUIET))
            yield Segment(_line(line, widths) + "\n", _style(row, console))


def cells_of(row: Row) -> tuple[str, ...]:
    """The cells of a pair, under `HEADS`."""
    where = row.where
    port = "=" if where.port == where.reference else where.port or "the root"
    limit = "none" if row.by == "exact" else "noise" if row.by == "sensitive" else number(row.limit)
    return (module(where.reference), port, where.end, short_call(where.call), error(row), number(row.max_abs), limit, state(row))


def error(row: Row) -> str:
    """The error of a pair in a cell: its relative L2, at least so much where it was not read, two lengths, or what else there is of it."""
    if row.length is not None:
        return short_length(row.length)
    if row.how in ("shape", "raised"):
        return row.how
    return f">{number(row.at_least)}" if row.rel_l2 is None and row.at_least else number(row.rel_l2)


def state(row: Row) -> str:
    """A pair in a word."""
    if row.diverged is None:
        return "not compared"
    if row.diverged and row.effect in EXCUSED:
        return row.effect
    if row.diverged:
        return "INTRODUCED" if row.introduced else "differs"
    if row.rel_l2 and row.by == "sensitive":
        return "noise-sensitive"
    if row.by == "cannot tell":
        return "cannot tell"
    return "identical" if row.rel_l2 == 0 else "rounding" if row.by == "rounding" else "same"


def _style(row: Row, console: Console) -> Style | None:
    if row.diverged and not row.effect:
        return console.get_style(BAD if row.introduced else "red")
    return console.get_style(QUIET) if row.diverged is None or row.effect else None


def _widths(cells: Sequence[tuple[str, ...]], total: int) -> dict[int, int]:
    """The width of each column that is shown: columns that can be spared are left out, then names are cut, the longest first."""
    widths = {column: max(len(line[column]) for line in (*cells, HEADS)) for column in range(len(HEADS))}
    for spared in _DISPENSABLE:
        if _needed({column: min(width, _NARROWEST) if column in _NAMES else width for column, width in widths.items()}) <= total:
            break
        del widths[spared]
    names = [column for column in _NAMES if column in widths]
    while _needed(widths) > total:
        widest = max(names, key=lambda column: widths[column])
        if widths[widest] <= _SHORTEST:
            break
        widths[widest] -= 1
    return widths


def _needed(widths: Mapping[int, int]) -> int:
    """The width of a line, with two blanks between columns."""
    return sum(widths.values()) + 2 * (len(widths) - 1)


def _line(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    shown = (
        ended(cells[column], width).rjust(width) if column in _NUMBERS else ended(cells[column], width).ljust(width)
        for column, width in widths.items()
    )
    return "  ".join(shown).rstrip()
