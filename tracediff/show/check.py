"""What a check found, as text, as GitHub's annotations, as a Markdown comment, and as JUnit's XML."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tracediff.project.outcome import CaseOutcome, Fault, Outcome
from tracediff.show.words import BAD, DOUBTFUL, GOOD, LABEL, QUIET, counted, markdown_table, markdown_text, module, number, table
from tracediff.site import printable

STYLES = {"same": GOOD, "different": BAD, "not run": DOUBTFUL, "no verdict": DOUBTFUL}
FAULT_STYLES = {"new": BAD, "still": BAD, "grown": BAD, "accepted": QUIET, "fixed": GOOD}
_LINE = re.compile(r"([^\s:][^:]*):(\d+)$")


def render(outcome: Outcome) -> RenderableType:
    """The outcome as text, its answer in the first line."""
    parts: list[RenderableType] = [Text(headline(outcome), STYLES.get(outcome.verdict or "no verdict", DOUBTFUL)), ""]
    for case in outcome.cases:
        parts.append(Text.assemble((case.case, LABEL), ": ", (case.state, STYLES[case.state]), f", {_compared(case)}"))
        parts += [Text(f"  {line}", DOUBTFUL) for line in (case.why, *case.caveats) if line]
        parts += [Text(f"  {line}", QUIET) for line in case.notes]
        if case.faults:
            parts.append(Padding(_faults(case), (0, 0, 0, 2), expand=False))
    return Group(*parts, *(Text(line, QUIET) for line in _next(outcome)))


def headline(outcome: Outcome) -> str:
    """The answer in one line."""
    states = [fault.state for case in outcome.cases if case.state != "not run" for fault in case.faults]
    counts = [f"{states.count(state)} {state}" for state in FAULT_STYLES if state in states]
    untold = [case.case for case in outcome.cases if case.state in ("not run", "no verdict")]
    words = {"same": "Same", "different": "Different"}.get(outcome.verdict or "", "No verdict")
    told = [counted(len(outcome.cases), "case"), *counts, *([f"without a verdict: {', '.join(untold)}"] if untold else [])]
    return f"{words}: {'; '.join(told)}"


def _compared(case: CaseOutcome) -> str:
    if case.state == "not run":
        return "nothing compared"
    return f"{case.compared:,} of {counted(case.total, 'record')} compared, {case.mode}"


def _faults(case: CaseOutcome) -> RenderableType:
    rows = table("", "where", "culprit", "size", "cause")
    for fault in case.faults:
        cells = (fault.state, _where(fault), module(fault.culprit[1]) if fault.port else "", _size(fault), _cause(fault))
        rows.add_row(*(Text(cell, FAULT_STYLES[fault.state] if place == 0 else "") for place, cell in enumerate(cells)))
    return rows


def _where(fault: Fault) -> str:
    return f"{module(fault.site)} {fault.end}".strip()


def _size(fault: Fault) -> str:
    if fault.state == "fixed":
        return f"was {number(fault.was)}"
    places = f", {fault.places} places" if fault.places > 1 else ""
    was = f" (was {number(fault.was)})" if fault.was is not None else f" (allowed {number(fault.allowed)})" if fault.allowed else ""
    return f"{number(fault.size)}{was}{places}"


def _cause(fault: Fault) -> str:
    if fault.state == "fixed":
        return "accepted until now: tracediff accept --forget" if fault.because else ""
    return f"accepted: {fault.because}" if fault.state == "accepted" else cause(fault)


def cause(fault: Fault) -> str:
    """The likely cause of a difference, with its evidence."""
    if not fault.cause:
        return "cause unknown"
    return f"{fault.cause}{' (confirmed)' if fault.confirmed else ''}: {fault.evidence}"


def _next(outcome: Outcome) -> Iterator[str]:
    loud = [(case, fault) for case in outcome.cases for fault in case.loud]
    if loud:
        case, fault = loud[0]
        yield ""
        yield f"The first in full: {bisect(case)}; in short, with the code on both sides: tracediff brief"
        yield f"To live with it: tracediff accept {fault.site or '(root)'} --case {case.case} --because REASON"


def bisect(case: CaseOutcome) -> str:
    """The command that tells all of a case."""
    return shlex.join(["tracediff", "bisect", *map(relative, case.traces)])


# ---------------------------------------------------------------------------------------------------------------- in the code


def code_line(text: str) -> tuple[str, int] | None:
    """The file and line with which a place in the code ends; None where it names none.

    >>> code_line("Norm in nets/norm.py, called at nets/net.py:12"), code_line("Norm")
    (('nets/net.py', 12), None)
    """
    found = _LINE.search(text.rpartition("called at ")[2])
    return (found[1], int(found[2])) if found else None


def relative(file: str) -> str:
    """A file as seen from the current folder, where it lies below it."""
    path, here = Path(file), Path.cwd()
    return os.fspath(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else file


# -------------------------------------------------------------------------------------------------------------------- formats


def github(outcome: Outcome) -> str:
    """A line for each thing that GitHub is to show beside the code: errors, and notices of what is fixed."""
    lines = []
    for case in outcome.cases:
        if case.state in ("not run", "no verdict"):
            lines.append(_annotation("error", {"title": f"tracediff: {case.case}: {case.state}"}, case.why))
        for fault in case.faults:
            if fault.state == "accepted":
                continue
            found = code_line(fault.source[1])
            place = {"file": relative(found[0]), "line": str(found[1])} if found else {}
            title = {"title": f"tracediff: {case.case}: {fault.state}: {_where(fault)}"}
            kind = "notice" if fault.state == "fixed" else "error"
            lines.append(_annotation(kind, place | title, f"{_size(fault)}. {_cause(fault)}".strip(" .")))
    lines.append(_annotation("notice" if outcome.verdict == "same" else "error", {"title": "tracediff"}, headline(outcome)))
    return "".join(f"{printable(line)}\n" for line in lines)


def _annotation(kind: str, properties: Mapping[str, str], message: str) -> str:
    """One command of GitHub's workflows."""

    def escaped(text: str, *marks: str) -> str:
        text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
        for mark in marks:
            text = text.replace(mark, f"%{ord(mark):02X}")
        return text

    given = ",".join(f"{key}={escaped(value, ':', ',')}" for key, value in properties.items())
    return f"::{kind} {given}::{escaped(message)}"


def markdown(outcome: Outcome) -> str:
    """A comment for a pull request: the answer, a row a difference, and what was accepted, folded."""
    marks = {"same": "✅", "different": "❌"}
    lines = [f"### {marks.get(outcome.verdict or '', '❔')} tracediff: {markdown_text(headline(outcome))}", ""]
    rows = [(case, fault) for case in outcome.cases for fault in case.faults]
    shown = [(case, fault) for case, fault in rows if fault.state != "accepted"]
    if shown:
        lines += [*markdown_table(("case", "", "where", "size", "cause", "code"), map(_markdown_row, shown)), ""]
    for case in outcome.cases:
        lines += [f"- **{markdown_text(case.case)}**: {case.state}: {markdown_text(case.why)}" for _ in [0] if case.why]
    if accepted := [(case, fault) for case, fault in rows if fault.state == "accepted"]:
        lines += ["<details><summary>" + counted(len(accepted), "accepted difference") + "</summary>", ""]
        lines += [*markdown_table(("case", "", "where", "size", "cause", "code"), map(_markdown_row, accepted)), "", "</details>"]
    return printable("\n".join(lines).rstrip() + "\n")


def _markdown_row(row: tuple[CaseOutcome, Fault]) -> tuple[str, ...]:
    case, fault = row
    found = code_line(fault.source[1])
    code = f"`{relative(found[0])}:{found[1]}`" if found else ""
    return (*map(markdown_text, (case.case, fault.state, _where(fault), _size(fault), _cause(fault))), code)


def junit(outcome: Outcome) -> str:
    """JUnit's XML: a suite a case, in it a test for the case and one for each difference."""
    suites = ElementTree.Element("testsuites", name="tracediff")
    for case in outcome.cases:
        suite = ElementTree.SubElement(suites, "testsuite", name=printable(case.case))
        test = ElementTree.SubElement(suite, "testcase", classname=printable(case.case), name="runs and is compared")
        if case.state in ("not run", "no verdict"):
            ElementTree.SubElement(test, "error", message=printable(f"{case.state}: {case.why}"))
        for fault in case.faults:
            test = ElementTree.SubElement(suite, "testcase", classname=printable(case.case), name=printable(_where(fault)))
            kind = {"accepted": "skipped", "fixed": ""}.get(fault.state, "failure")
            if kind:
                told = ElementTree.SubElement(test, kind, message=printable(f"{fault.state}: {_size(fault)}"))
                told.text = printable(f"{_cause(fault)}\nreference: {fault.source[0]}\nport: {fault.source[1]}")
        for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


FORMATS: Mapping[str, Callable[[Outcome], str]] = {"github": github, "markdown": markdown, "junit": junit}
"""The forms besides text and JSON."""


def listed(accepted: Iterable[tuple[str, str, float]]) -> RenderableType:
    """What was accepted: case, site and size."""
    rows = table("case", "site", "size")
    for case, site, size in accepted:
        rows.add_row(*(Text(cell) for cell in (case, site or "(root)", number(size))))
    return rows
