"""What the page says in text: the verdict, a card for each finding, the stages of all runs side by side, what was compared, both runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from tracediff.project.outcome import LOUD, CaseOutcome, checked
from tracediff.show import answer, stage_table, text
from tracediff.show.words import counted, grouped, module, number, verdict_word
from tracediff.stage_table import MODES

if TYPE_CHECKING:
    from tracediff.report import Divergence, Report, Where
    from tracediff.show.page.panels import Panels
    from tracediff.stage_table import Status


def content(reports: Sequence[Report], status: Status | None, panels: Panels) -> dict[str, Any]:
    """What the template fills in."""
    first = reports[0]
    cases = [checked(str(report.port.get("path"))) for report in reports]
    word = verdict_word(first) if status is None else status.verdict or stage_table.undecided(status)
    return {
        "title": f"{_name(reports[-1].port)} against {_name(first.reference)}",
        "verdict": word,
        "headline": _headline(reports, status),
        "answer": text.headline(next((report for report in reports if report.first is not None), first)),
        "modes": [report.mode for report in reports],
        "caveats": list(dict.fromkeys(line for report in reports for line in report.caveats)),
        "rests_on": [(report.mode, answer.rests_on(report)) for report in reports],
        "runs": [
            {
                "mode": report.mode,
                "number": run,
                "cards": [_card(report, run, place, panels, case) for place in range(len(report.divergences))],
            }
            for run, (report, case) in enumerate(zip(reports, cases, strict=True))
        ],
        "since": [line for case in cases if case is not None for line in _since(case)],
        "stage_modes": [report.mode for report in reports] if status is None else list(MODES),
        "stages": _stages(reports[0]) if status is None else _stages_of_status(status),
        "open_questions": () if status is None or status.verdict == "same" else status.why,
        "notes": () if status is None else [line.rstrip(".") for line in status.notes],
        "next": () if status is None else status.next,
        "remarks": [(report.mode, text.remarks(report, brief=True)) for report in reports],
        "unpaired": [
            (report.mode, side, counted(len(names), "site"), [name or "the root" for name in grouped(names)])
            for report in reports
            for side, names in (("reference", report.coverage.unpaired_reference), ("port", report.coverage.unpaired_port))
            if names
        ],
        "not_seen": list(dict.fromkeys(line for report in reports for line in report.coverage.not_seen)),
        "equal_weights": first.weights.equal,
        "weights": _weights(first),
        "sides": _sides(reports),
        "total_pairs": sum(len(report.rows) for report in reports),
        "no_pairs": _no_pairs(reports),
    }


def _headline(reports: Sequence[Report], status: Status | None) -> str:
    if status is not None and len(reports) > 1 and (status.has_stages or status.verdict != "different"):
        return stage_table.headline(status).partition(": ")[2]
    return answer.headline(next((report for report in reports if report.first is not None), reports[0]))


def _no_pairs(reports: Sequence[Report]) -> str:
    """Why nothing can be drawn of all pairs."""
    is_bare = not any(report.rows for report in reports)
    return "This report has no table of pairs (it was read from JSON, or nothing was paired); compare the traces again." if is_bare else ""


def _name(side: Mapping[str, Any]) -> str:
    return f"{Path(str(side.get('path', ''))).name}" + (f" ({side['impl']})" if side.get("impl") else "")


def _since(case: CaseOutcome) -> list[tuple[str, str, list[str]]]:
    """What became of a case's differences since the check before: by state how many, and where."""
    found: dict[str, list[str]] = {}
    for fault in case.faults:
        found.setdefault(fault.state, []).append(f"{module(fault.site)} {fault.end}".strip())
    return [(state, f"{len(found[state])} {state}", found[state]) for state in ("fixed", *LOUD, "accepted") if state in found]


def _card(report: Report, run: int, place: int, panels: Panels, case: CaseOutcome | None) -> dict[str, Any]:
    """A card: what is said first of a finding, then all that is known of it; and its state since the check before."""
    divergence = report.divergences[place]
    faults = () if case is None else case.faults
    facts: dict[str, list[str]] = {}
    for label, value in text.facts(report, place):
        facts.setdefault(label, []).append(value)
    said = dict(answer.of_divergence(report, place))
    return {
        "number": place + 1,
        "culprit": _named(divergence),
        "reference": module(divergence.culprit.reference),
        "places": counted(divergence.count, "place") if divergence.count > 1 else "",
        "stage": divergence.site.stage,
        "since": next((fault.state for fault in faults if fault.key == (divergence.site.reference, divergence.site.end)), ""),
        "times": _times(report, place),
        "is_multiple": divergence.times is not None,
        "said": said,
        "causes": [
            {"kind": cause.kind, "sure": "confirmed" if cause.confirmed else f"{cause.confidence:.0%}", "evidence": cause.evidence}
            for cause in divergence.causes
        ],
        "facts": facts,
        "command": answer.next_command(report, place, on_page=True),
        "code": [(side, excerpt) for side in ("reference", "port") if (excerpt := panels.code.get(f"class {side} {run} {place}"))],
        "no_picture": panels.why.get((run, place), ""),
        "row": panels.cards[run][place],
    }


def _named(divergence: Divergence) -> str:
    """What a card is called: the culprit, or, where the run's own code outside of all modules is at fault, what it made."""
    if divergence.culprit.port or divergence.culprit.reference:
        return module(divergence.culprit.port)
    return f"{module(divergence.site.port)} {divergence.site.end}, made by the run's own code"


def _link(where: Where | None, mode: str) -> str:
    """The address on the page at which a pair is open; "" for none."""
    if where is None:
        return ""
    asked = {"site": where.reference, "call": where.call, "end": where.end, "run": mode}
    return f"#{urlencode(asked, quote_via=quote, errors='replace')}"


def _times(report: Report, place: int) -> str:
    """How large an error is, in few words."""
    divergence = report.divergences[place]
    if divergence.times is not None:
        return answer.times(divergence.times)
    if text.judged_at(report, place).get("by") == "exact" and divergence.metrics is not None:
        return f"{divergence.metrics.mismatched:,} of {divergence.metrics.count:,} differ"
    return text.introduced(divergence)


def _stages(report: Report) -> list[dict[str, Any]]:
    """A row for each stage, unless the run has none."""
    if not report.has_stages:
        return []
    paired = Counter(row.where.stage for row in report.rows)
    compared = Counter(row.where.stage for row in report.rows if row.diverged is not None)
    return [
        {
            "name": stage.stage or "(no stage)",
            "depth": 0,
            "cells": [
                {
                    "state": stage.verdict or "not told",
                    "worst": number(stage.worst),
                    "floor": number(stage.floor),
                    "compared": f"{compared[stage.stage]:,}/{paired[stage.stage]:,}" if report.rows else "",
                    "first": f"{stage.first.end} of {module(stage.first.port)}" if stage.first else "",
                    "link": _link(stage.first, report.mode),
                    "why": "",
                }
            ],
        }
        for stage in report.stages
    ]


def _stages_of_status(status: Status) -> list[dict[str, Any]]:
    """A row for each stage with a cell for each run, forced beside free."""
    rows = []
    for stage in status.stages:
        cells: list[dict[str, str]] = []
        for mode in MODES:
            outcome = stage.outcome(mode)
            if outcome is None:
                cells.append({"state": "not run", "worst": "", "floor": "", "compared": "", "first": "", "why": "", "link": ""})
                continue
            worst, floor, compared = stage_table.numbers(outcome)
            where = stage_table.first_place(outcome)
            cells.append(
                {
                    "state": outcome.state,
                    "worst": worst,
                    "floor": floor,
                    "compared": compared,
                    "first": where,
                    "why": outcome.why,
                    "link": _link(outcome.first, mode),
                }
            )
        name = stage.stage or ("the whole run" if len(status.stages) == 1 else "(no stage)")
        rows.append({"name": name, "depth": stage.depth, "cells": cells})
    return rows


def _weights(report: Report) -> list[tuple[str, tuple[str, ...]]]:
    weights = report.weights
    found = (("different", weights.different), ("missing in the port", weights.missing), ("unexpected in the port", weights.unexpected))
    return [(label, lines) for label, lines in found if lines]


def _sides(reports: Sequence[Report]) -> dict[str, Any]:
    """What is known of all runs, a line for each thing that one of them knows."""
    runs = {"Reference": reports[0].reference, **{f"Port, {report.mode}": report.port for report in reports}}
    keys = dict.fromkeys(key for side in runs.values() for key in side)
    lines = [(key, [_worded(side.get(key)) for side in runs.values()]) for key in keys if any(side.get(key) for side in runs.values())]
    return {"heads": list(runs), "lines": lines}


def _worded(value: Any) -> str:
    return {True: "yes", False: "no", None: "-"}[value] if value is None or isinstance(value, bool) else str(value)
