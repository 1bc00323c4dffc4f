"""A brief: in at most 40 lines of plain text what is wrong first, where in the code on both sides, why, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from tracediff.project.outcome import CaseOutcome, Fault, Outcome, faults_of
from tracediff.report import Report
from tracediff.show.check import bisect, code_line, headline, relative
from tracediff.show.page.excerpts import lines_of
from tracediff.show.words import module, number
from tracediff.site import printable

MOST_LINES = 40
MOST_LETTERS = 220
"""A line is no longer."""
_IN_FULL = 3
"""So many differences are told with their code; the others in a line each."""


def of_report(report: Report) -> list[str]:
    """The brief of a comparison of two traces."""
    traces = report.reference["path"], report.port["path"]
    coverage = f"{report.coverage.compared:,} of {report.coverage.reference_records:,} records compared, {report.mode}"
    faults = faults_of(report)
    words = {"same": "SAME", "different": f"DIFFERENT: {len(faults)} introduced"}.get(report.verdict or "", "NO VERDICT")
    lines = [f"{words}; {coverage}."]
    if report.withheld is not None:
        lines.append(f"Why there is no verdict: {report.withheld.text}.")
    lines += [f"Doubtful: {line}" for line in report.caveats]
    lines += _faults(faults, report.mode, Path.cwd())
    command = shlex.join(["tracediff", "bisect", *map(str, traces)])
    if faults:
        lines.append(f"Next: mend 1, capture the port again, then {command}")
    elif report.verdict is None:
        lines.append(f"Next: {shlex.join(['tracediff', 'align', *map(str, traces), '--unpaired'])}")
    else:
        lines.append("Next: nothing to mend on these inputs.")
    return _cut(lines)


def of_outcome(outcome: Outcome) -> list[str]:
    """The brief of a check: cases that were not run first, then the first that differs, then the others by name."""
    root = Path(outcome.project).resolve().parent
    lines = [f"{headline(outcome)}."]
    for case in outcome.cases:
        if case.state in ("not run", "no verdict"):
            lines.append(f"Case {case.case}: {case.state}: {case.why}")
    wrong = [case for case in outcome.cases if case.loud]
    if wrong:
        lines += _case(wrong[0], root)
    lines += [f"Also different: case {case.case}, first at {module(case.loud[0].site)} {case.loud[0].end}" for case in wrong[1:]]
    fixed = [f"{case.case}: {module(fault.site)}" for case in outcome.cases for fault in case.faults if fault.state == "fixed"]
    lines += [f"Fixed: {', '.join(fixed[:5])}{' and more' if len(fixed) > 5 else ''}"] if fixed else []
    lines.append(f"Next: {_next(outcome, wrong)}")
    return _cut(lines)


def _next(outcome: Outcome, wrong: Sequence[CaseOutcome]) -> str:
    if wrong:
        return f"mend 1, then tracediff check {wrong[0].case}; all of it: {bisect(wrong[0])}"
    stuck = next((case for case in outcome.cases if case.state != "same"), None)
    if stuck is None:
        return "nothing to mend in these cases."
    if stuck.state == "no verdict":
        return shlex.join(["tracediff", "align", *map(relative, stuck.traces), "--unpaired"])
    return f"remove what kept it from running, then tracediff check {stuck.case}"


def _case(case: CaseOutcome, root: Path) -> Iterator[str]:
    yield f"Case {case.case}: {case.compared:,} of {case.total:,} records compared, {case.mode}."
    yield from (f"Doubtful: {line}" for line in case.caveats)
    yield from _faults(case.loud, case.mode, root)


def _faults(faults: Sequence[Fault], mode: str, root: Path) -> Iterator[str]:
    for place, fault in enumerate(faults, 1):
        name = module(fault.culprit[1])
        also = f" (reference {module(fault.culprit[0])})" if fault.culprit[0] != fault.culprit[1] else ""
        many = f", at {fault.places} places" if fault.places > 1 else ""
        size = f"{number(fault.size)}{f' where {number(fault.allowed)} is allowed' if fault.allowed else ''}"
        yield f"{place}. {name}{also}, {fault.end} of {module(fault.port)}: {size}{many}"
        if place <= _IN_FULL:
            yield f"   why: {_why(fault)}"
            yield from _code("reference", fault.source[0], root)
            yield from _code("port", fault.source[1], root)
    if len(faults) > 1 and mode == "free":
        yield "In a free run only 1 is sure; the others may follow from it."


def _why(fault: Fault) -> str:
    if not fault.cause:
        return "unknown: no known edit of the reference gives the port's values"
    return f"{fault.cause} ({'confirmed' if fault.confirmed else 'likely, not confirmed'}): {fault.evidence}"


def _code(side: str, source: str, root: Path) -> Iterator[str]:
    """Where to look on one side, and the line of code there where its file can be found."""
    if source:
        yield f"   {side}: {source}"
        found = code_line(source)
        if found is not None and (text := _line(found, root)):
            yield f"      {text}"


def _line(place: tuple[str, int], root: Path) -> str:
    file, number_of_line = place
    lines = lines_of(file, (root, Path.cwd()))
    return lines[number_of_line - 1].strip() if 0 < number_of_line <= len(lines) else ""


def _cut(lines: Sequence[str]) -> list[str]:
    """At most so many lines, the last of them kept, none of them longer than can be read."""
    short = [line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…" for line in map(printable, lines[:-1])]
    if len(short) > MOST_LINES - 1:
        left = len(short) - MOST_LINES + 2
        short = [*short[: MOST_LINES - 2], f"... and {left} more lines"]
    return [*short, printable(lines[-1])]
