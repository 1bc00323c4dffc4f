"""What names and a mapping file state of a port's arrays: these pairs need no evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from tracediff.alignment.array_files.agreement import Agreement
from tracediff.alignment.array_files.contents import Contents
from tracediff.alignment.mapping import Stated, StatedMap
from tracediff.alignment.structure import Side
from tracediff.site import End


def stated_rows(sides: tuple[Contents, Contents], agreement: Agreement, mapped: StatedMap) -> dict[int, int]:
    """The reference's row of each row of the port whose partner is stated: by the mapping, else by the name of a site."""
    reference, port = sides[0].side, sides[1].side
    ours, theirs = _by_site(reference, sides[0].of_row), _by_site(port, range(len(port.index)))
    found: dict[int, int] = {}
    for entry in mapped.pairs:
        for row, ordinal, end in _rows_of(port, theirs[entry.port], entry):
            other = _partner(sides, agreement, row, ours[entry.reference], _ordinal(entry, ordinal), _end(entry, end))
            if other is not None:
                found[row] = other
    taken = {entry.port for entry in mapped.pairs}
    for row in sides[1].of_row:
        number = port.number[port.text("site", row)]
        own = reference.number.get(port.names[number], reference.called)
        if row not in found and number not in taken and own < reference.called:
            other = _partner(sides, agreement, row, ours[own], _ordinal_of(port, row), port.text("end", row))
            if other is not None:
                found[row] = other
    return found


def _by_site(side: Side, rows: Iterable[int]) -> Mapping[int, list[int]]:
    """Some rows of a side by the number of their site."""
    found: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        found[side.number[side.text("site", row)]].append(row)
    return found


def _rows_of(port: Side, rows: Iterable[int], entry: Stated) -> Iterator[tuple[int, int, str]]:
    """Of the rows of the port's site those that an entry of a mapping names, each with its call's number and its end."""
    for row in rows:
        ordinal, end = _ordinal_of(port, row), port.text("end", row)
        is_meant = entry.ends is None or not entry.ends[1] or entry.ends[1] in (end, f"{ordinal}/{end}")
        if is_meant:
            yield row, ordinal, end


def _ordinal_of(side: Side, row: int) -> int:
    return int(side.index["ordinal"][row])


def _ordinal(entry: Stated, own: int) -> int:
    """The number of the reference's call that an entry names, by default the port's."""
    number, slash, _ = (entry.ends or ("", ""))[0].partition("/")
    return int(number) if slash else own


def _end(entry: Stated, own: str) -> str:
    """The reference's end that an entry names, by default the port's."""
    return (entry.ends or ("", ""))[0].rpartition("/")[2] or own


def _partner(sides: tuple[Contents, Contents], agreement: Agreement, row: int, own: Iterable[int], ordinal: int, end: str) -> int | None:
    """The row of a call of the reference that has the end, else the one of its kind whose values are nearest; None where there is none.

    ``own``: the rows of its site.
    """
    reference = sides[0].side
    rows = [one for one in own if _ordinal_of(reference, one) == ordinal]
    kinds = reference.trace.calls.kinds
    exact = next((one for one in rows if reference.text("end", one) == end), None)
    if exact is not None:
        return exact
    alike = [one for one in rows if kinds[one] == End.parse(end).kind]
    b = sides[1].of_row[row]
    return min(alike, key=lambda one: (agreement.error[sides[0].of_row[one], b], one), default=None)


def by_content(sides: tuple[Contents, Contents], rows: Mapping[int, int]) -> dict[int, int]:
    """The reference's content of each content of the port of which some row's partner is stated; the first counts."""
    found: dict[int, int] = {}
    for row, other in rows.items():
        found.setdefault(sides[1].of_row[row], sides[0].of_row[other])
    return found
