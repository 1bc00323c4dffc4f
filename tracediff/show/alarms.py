"""A look at a trace as text: an alarm, where it is first seen, and the next command."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tracediff.alarms import Look
from tracediff.show.words import DOUBTFUL, LABEL, QUIET, counted, module, short_call


def render(found: Look) -> RenderableType:
    """The alarms, the answer in the first line."""
    beside = f", beside {found.like}" if found.like else ""
    looked = f"{counted(found.records, 'record')} of {found.path} looked at{beside}, {found.read:,} by their values"
    if not found.alarms:
        return Group(Text(f"No alarm: {looked}. This is no verdict: tracediff bisect REFERENCE PORT gives one.", LABEL))
    lines = [Text(f"{counted(sum(alarm.count for alarm in found.alarms), 'alarm')}: {looked}", DOUBTFUL)]
    for alarm in found.alarms:
        place = " ".join(part for part in (module(alarm.site), alarm.end, short_call(alarm.call)) if part) if alarm.call else ""
        more = f" (and {counted(alarm.count - 1, 'further place')})" if alarm.count > 1 else ""
        lines.append(Text.assemble("", (alarm.symptom, LABEL), f": {place}{': ' if place else ''}{alarm.text}{more}"))
        lines.append(Text(f"    next: {alarm.next}", QUIET))
    return Group(*lines, Text("An alarm is no verdict: a clean model may show it, and a wrong one none.", QUIET))
