"""Which pairs are drawn: the first of each finding, what is asked for, what the runs returned, and what each finding was given."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tracediff.alignment.names import nearest
from tracediff.errors import SiteError, TracediffError
from tracediff.show.page import excerpts, tensors
from tracediff.site import RETURNED, module_of
from tracediff.trace import Trace, open_trace

if TYPE_CHECKING:
    from tracediff.report import Report, Row

MOST_PANELS = 32
"""So many pairs of each run are drawn by themselves."""
MOST_TEXT = 3_200_000
"""Characters of all panels together, so that a page stays below 5 MB."""


class Panels:
    """The panels of all runs of a page, the code beside them, and why a finding has none.

    ``traces``: by run the reference and the port, open until `close`; none where a file is gone. ``cards``: by run and
    finding the place of its pair among the rows, -1 where it has none. ``drawn``: each with its ``run`` and ``row``. ``code``: excerpts by
    ``FILE:LINE``, and by ``class SIDE RUN FINDING`` the code of a culprit.
    """

    def __init__(self, reports: Sequence[Report], sites: Sequence[str] = ()) -> None:
        self.drawn: list[dict[str, Any]] = []
        self.code: dict[str, Any] = {}
        self.why: dict[tuple[int, int], str] = {}
        self.cards = [_cards(report) for report in reports]
        self.traces: list[tuple[Trace, ...]] = []
        self._room = MOST_TEXT
        _check_sites(reports, sites)
        for run, report in enumerate(reports):
            self.traces.append(self._of_run(run, report, sites))

    def _of_run(self, run: int, report: Report, sites: Sequence[str]) -> tuple[Trace, ...]:
        """Draws the pairs of one run, and returns its traces."""
        try:
            traces = tuple(open_trace(side["path"]) for side in (report.reference, report.port))
        except (TracediffError, OSError, KeyError) as error:
            self.why |= {(run, card): str(error) for card in range(len(self.cards[run]))}
            return ()
        if report.rows:
            for row in _chosen(report, self.cards[run], sites):
                self._draw(run, row, report.rows[row], traces)
            self._add_code(run, report, traces)
        return traces

    def _draw(self, run: int, place: int, row: Row, traces: tuple[Trace, ...]) -> None:
        """Draws one pair, where there is room for it."""
        if self._room <= 0:
            return
        try:
            drawn = tensors.panel(row, traces[0], traces[1])
        except OSError as error:
            drawn = {"kind": "none", "why": str(error)}
        self._room -= len(json.dumps(drawn))
        self.drawn.append({"run": run, "row": place, **drawn})
        if drawn["kind"] == "none" and place in self.cards[run]:
            self.why[run, self.cards[run].index(place)] = drawn["why"]

    def _add_code(self, run: int, report: Report, traces: tuple[Trace, ...]) -> None:
        """The code of each finding's culprit on both sides, and the lines that made the calls of what is drawn."""
        for side, trace in zip(("reference", "port"), traces, strict=True):
            folders = (trace.path.parent,)
            for card, divergence in enumerate(report.divergences):
                found = excerpts.of_module(getattr(divergence.culprit, side), trace.meta.get("modules") or (), folders)
                if found is None and self.cards[run][card] >= 0:
                    found = excerpts.around_line(_line(report.rows[self.cards[run][card]], side, trace), folders)
                if found is not None:
                    self.code[f"class {side} {run} {card}"] = found
            for panel in (panel for panel in self.drawn if panel["run"] == run):
                place = _line(report.rows[panel["row"]], side, trace)
                if place not in self.code and (found := excerpts.around_line(place, folders)) is not None:
                    self.code[place] = found

    def close(self) -> None:
        """Closes the traces."""
        for traces in self.traces:
            for trace in traces:
                trace.close()


def _line(row: Row, side: str, trace: Trace) -> str:
    """The line that made the call of a side of a pair, as ``FILE:LINE``."""
    record = trace.records[getattr(row.pair, side)[0]]
    return f"{record.file}:{record.line}"


def _cards(report: Report) -> list[int]:
    """The row of each finding, -1 where the report has no table of pairs."""
    places = {row.where: place for place, row in reversed(list(enumerate(report.rows))) if row.introduced}
    return [places.get(divergence.site, -1) for divergence in report.divergences]


def _chosen(report: Report, cards: Sequence[int], sites: Sequence[str]) -> Iterable[int]:
    """The rows to draw, those that tell most first."""
    found = dict.fromkeys(row for row in cards if row >= 0)
    asked = dict.fromkeys(place for place, row in enumerate(report.rows) if {row.where.reference, row.where.port} & set(sites))
    further = dict.fromkeys((*_returned(report), *_around(report, cards), *_worst(report)))
    wanted = list(dict.fromkeys((*list(found)[: MOST_PANELS // 2], *asked, *found, *further)))
    return wanted[: max(MOST_PANELS, len(asked) + MOST_PANELS // 2)]


def _returned(report: Report) -> Iterator[int]:
    """What the runs returned: at the reserved tap, else by the outermost calls."""
    at_tap = [place for place, row in enumerate(report.rows) if row.where.reference == RETURNED]
    outermost = [place for place, row in enumerate(report.rows) if "/" not in row.where.call and row.where.end.startswith("output")]
    yield from (at_tap or outermost)[-4:]


def _around(report: Report, cards: Sequence[int]) -> Iterator[int]:
    """What the call of each finding was handed, and the last that agrees before it."""
    places = {row.where: place for place, row in enumerate(report.rows)}
    for divergence, card in zip(report.divergences, cards, strict=True):
        same_call = (
            place
            for place in range(max(0, card - 6), card)
            if report.rows[place].where.call == divergence.site.call and report.rows[place].where.end.startswith("input")
        )
        yield from list(same_call)[:2]
        if divergence.last_same in places:
            yield places[divergence.last_same]


def _worst(report: Report) -> list[int]:
    """What differs, the largest errors first, one of each module."""
    differing = [place for place, row in enumerate(report.rows) if row.diverged and not row.effect and row.rel_l2 is not None]
    differing.sort(key=lambda place: -(report.rows[place].rel_l2 or 0.0))
    return list({module_of(report.rows[place].where.port): place for place in reversed(differing)}.values())[::-1][:8]


def _check_sites(reports: Sequence[Report], sites: Sequence[str]) -> None:
    known = {name for report in reports for row in report.rows for name in (row.where.reference, row.where.port)}
    for site in sites:
        if site not in known:
            close = ", ".join(map(repr, nearest(site, dict.fromkeys(sorted(known)))))
            raise SiteError(f"No pair of records has the site {site!r}; nearest: {close or 'none'}. List them with: tracediff diff --all")
