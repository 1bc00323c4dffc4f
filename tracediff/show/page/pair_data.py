"""Every pair of records as columns of numbers, for the page's script: names once, calls as a tree, three digits of each error."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tracediff.show.pair_table import state
from tracediff.site import printable

if TYPE_CHECKING:
    from tracediff.report import Report, Row
    from tracediff.trace import Trace

DIGITS = 3
"""Significant digits of an error."""
LARGEST = 1e300
"""What stands for infinity, which JSON cannot hold."""


class Names:
    """Texts by number, each once; a control character in one is shown, not obeyed."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text."""
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(printable(text))
        return self._numbers[text]


class Calls:
    """Calls by number, each as the number of the call around it and what it adds; -1 is no call."""

    def __init__(self, names: Names) -> None:
        self.nodes: list[tuple[int, int]] = []
        self._names, self._numbers = names, {"": -1}

    def number(self, call: str) -> int:
        """The number of a printed call."""
        if call not in self._numbers:
            before, _, own = call.rpartition("/")
            around = self.number(before)
            self._numbers[call] = len(self.nodes)
            self.nodes.append((around, self._names.number(own)))
        return self._numbers[call]


def columns(report: Report, names: Names, calls: Calls, traces: Sequence[Trace]) -> dict[str, Any]:
    """The pairs of a report in execution order, a list for each thing known of them; ``traces``: both, or none where they are gone."""
    rows = report.rows
    data: dict[str, Any] = {
        "mode": report.mode,
        "paths": [printable(shlex.quote(str(side.get("path", "")))) for side in (report.reference, report.port)],
        "reference": [names.number(row.where.reference) for row in rows],
        "port": [names.number(row.where.port) for row in rows],
        "call": [calls.number(row.where.call) for row in rows],
        "end": [names.number(row.where.end) for row in rows],
        "stage": [names.number(row.where.stage) for row in rows],
        "state": [names.number(state(row)) for row in rows],
        "error": [rounded(_error(row)) for row in rows],
        "most": [rounded(row.max_abs) for row in rows],
        "limit": [rounded(row.limit) for row in rows],
        "floor": [rounded(row.floor) for row in rows],
        "by": [names.number(row.by or "") for row in rows],
        "how": [names.number(row.how) for row in rows],
        "layout": [names.number(row.layout) for row in rows],
        "evidence": [names.number(row.pair.evidence) for row in rows],
        "sure": [rounded(row.pair.confidence) for row in rows],
        "unpaired": {
            "reference": [names.number(name) for name in report.coverage.unpaired_reference],
            "port": [names.number(name) for name in report.coverage.unpaired_port],
        },
    }
    if traces:
        sides = zip(("reference", "port"), traces, strict=True)
        data |= {f"{side}_{what}": column for side, trace in sides for what, column in _of_records(rows, side, trace, names)}
    return data


def _error(row: Row) -> float | None:
    """The error of a pair: what was measured, else what its statistics prove at least; None where nothing is known."""
    return row.rel_l2 if row.rel_l2 is not None else row.at_least or None


def _of_records(rows: Sequence[Row], side: str, trace: Trace, names: Names) -> Iterable[tuple[str, list[int]]]:
    """What the records of one side say of each pair: the shape and dtype, and the line that made the call."""
    records = [trace.records[getattr(row.pair, side)[0]] for row in rows]
    yield "tensor", [names.number(f"{tuple(record.shape)} {record.dtype}") for record in records]
    yield "line", [names.number(f"{record.file}:{record.line}" if record.file else "") for record in records]


def rounded(value: float | None) -> float | None:
    """A number for JSON: with `DIGITS` digits, infinities as `LARGEST`, None for what is no number."""
    if value is None or math.isnan(value):
        return None
    if abs(value) >= LARGEST:
        return math.copysign(LARGEST, value)
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) and abs(short) < 1e6 else short
