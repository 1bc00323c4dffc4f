"""The comparison of two sets of weights as text: the answer in the first line, then what is wrong in groups, then what was compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tracediff.show.words import BAD, DOUBTFUL, GOOD, LABEL, QUIET, counted, plain
from tracediff.site import listed

if TYPE_CHECKING:
    from tracediff.parameters.diagnosis import Compared, FindingGroup, WeightsReport

MOST_GROUPS = 40
_SIDES = {"reference": "the reference departs from the checkpoint", "port": "the port departs from the checkpoint", "both": "both depart"}


def render(report: WeightsReport) -> RenderableType:
    """The whole comparison."""
    parts: list[RenderableType] = [_headline(report)]
    wrong = [group for group in report.groups if group.category != "unexpected" and not _is_expected(group)]
    for group in wrong[:MOST_GROUPS]:
        parts.append(Padding(_group(group), (1, 0, 0, 2)))
    if len(wrong) > MOST_GROUPS:
        parts.append(Padding(Text(f"and {counted(len(wrong) - MOST_GROUPS, 'more group')}; --json lists all", QUIET), (1, 0, 0, 2)))
    parts += ["", *_rest(report), *_coverage(report)]
    return Group(*parts)


def text(report: WeightsReport, *, width: int = 120) -> str:
    """What `render` prints, without colour."""
    return plain(render(report), width=width)


def _headline(report: WeightsReport) -> Text:
    word, _, rest = report.headline().partition(": ")
    style = {"same": GOOD, "different": BAD}.get(report.verdict or "", DOUBTFUL)
    return Text.assemble((word.capitalize(), style), f": {rest}")


def _is_expected(group: FindingGroup) -> bool:
    return all(finding.expected for finding in group.findings)


def _group(group: FindingGroup) -> Text:
    """A group in three lines: how many and what, where in the port, and the evidence of the first."""
    first = group.findings[0]
    shown = Text.assemble((f"{group.count:,} x {group.pattern}", LABEL), f"  {group.label}", (f"  {group.kind}", QUIET))
    port = group.port or first.port
    if port and port != group.pattern:
        more = "" if group.port or group.count == 1 else f" and {group.count - 1:,} more"
        shown.append(f"\n  in the port: {port}{more}")
    shown.append(f"\n  {_whose(group)}{first.evidence}")
    shown.append(f"\n  {_sureness(group)}", QUIET)
    return shown


def _whose(group: FindingGroup) -> str:
    if group.count == 1:
        return ""
    first = group.findings[0]
    return f"{first.port or first.reference}: "


def _sureness(group: FindingGroup) -> str:
    low, high = min(f.confidence for f in group.findings), max(f.confidence for f in group.findings)
    sure = f"confidence {low:.2f}" if round(low, 2) == round(high, 2) else f"confidence {low:.2f} to {high:.2f}"
    confirmed = sum(finding.confirmed for finding in group.findings)
    if confirmed == group.count:
        sure += "; confirmed: this one edit gives the port's values"
    elif confirmed:
        sure += f"; {confirmed:,} of {group.count:,} confirmed"
    sides = Counter(finding.wrong_side for finding in group.findings if finding.wrong_side)
    return "; ".join([sure, *(_SIDES[side] + ("" if count == group.count else f" ({count:,})") for side, count in sides.items())])


def _rest(report: WeightsReport) -> Iterable[RenderableType]:
    """What is no fault: roundings to the port's dtype, what the port has besides, ties."""
    for group in report.groups:
        if group.category != "unexpected" and _is_expected(group):
            yield Text(f"{group.count:,} x {group.pattern}: {group.label}; {group.findings[0].evidence}", QUIET)
    besides = [group for group in report.groups if group.category == "unexpected"]
    extra = [f"{group.count:,} x {group.pattern}" if group.count > 1 else group.pattern for group in besides]
    if extra:
        yield Text(f"Not in the reference ({len(report.unexpected):,}): {listed(extra, 8)}")
    if report.tied:
        name, twin = next(iter(report.tied.items()))
        yield Text(f"Tied ({len(report.tied):,}): {name} is {twin}" + (" ..." if len(report.tied) > 1 else ""))


def _coverage(report: WeightsReport) -> Iterable[RenderableType]:
    yield Text(f"Compared: {report.compared:,} of {counted(report.total, 'tensor')} of the port. {_layouts(report)}")
    for name, side in (("reference", report.reference), ("port", report.port), ("checkpoint", report.checkpoint)):
        if side is not None:
            yield Text(f"{name.capitalize()}: {_side(side)}", QUIET)
    for note in report.notes:
        yield Text(f"Note: {note}", QUIET)


def _layouts(report: WeightsReport) -> str:
    """In which layouts the equal tensors are equal."""
    layouts = Counter(_layout(pair.layout) for pair in report.pairs if pair.equal)
    counts = ", ".join(f"{count:,} {layout}" for layout, count in layouts.most_common(6))
    return f"Equal: {counts}." if counts else ""


def _layout(text: str) -> str:
    if text == "same":
        return "as they are"
    head, _, last = text.rpartition("; ")
    return f"{head}; permuted {last}" if head and last.startswith("(") else f"permuted {text}" if text.startswith("(") else text


def _side(side: Compared) -> str:
    values = "" if side.readable else ", fingerprints only"
    return f"{side.source} ({counted(side.tensors, 'tensor')}, {_amount(side.values)} values{values})"


def _amount(count: int) -> str:
    """A number of values in words.

    >>> _amount(532_000_000), _amount(12_000), _amount(12)
    ('532 M', '12 k', '12')
    """
    for size, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if count >= 10 * size:
            return f"{count / size:.0f}{unit}"
    return f"{count:,}"
