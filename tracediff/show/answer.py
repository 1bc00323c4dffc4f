"""The answer in a minute: what differs, where, by how much, why, what to change, what it rests on, and the next command.

`tracediff bisect` prints it, and each card of the page begins with it. `tracediff.show.text` has all that is known.
"""

from __future__ import annotations

import os
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from tracediff.causes.catalogue import CATALOGUE
from tracediff.show import text
from tracediff.show.words import BAD, DOUBTFUL, GOOD, LABEL, counted, ended, module, number, short_call, shortened, verdict_word

if TYPE_CHECKING:
    from tracediff.report import Cause, Divergence, Report, Where

REPEATS = {
    True: "reference repeats itself",
    False: "reference does NOT repeat itself",
    None: "not known whether the reference repeats itself",
}
STYLES = {"same": GOOD, "different": BAD}
MOST_LINES = 15
"""The answer takes no more lines of a terminal than this, so that it is seen at once; `-v` has all of it."""
LONGEST = 2
"""So many lines one fact takes at most."""
SPARED = ("Rests on", "Change", "Why", "Error")
"""What is cut to one line first where all would take too many."""


def render(result: Report) -> RenderableType:
    """The answer in at most `MOST_LINES` lines of a terminal."""
    return _Answer(result)


class _Answer:
    """Labels and facts in two columns, each fact cut to the lines that it may take; a command is never cut."""

    def __init__(self, result: Report) -> None:
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        word, known = verdict_word(self.result), lines(self.result)
        margin = 2 + max((len(label) for label, _ in known), default=0) + 2
        room = max(options.max_width - margin, 20)
        head = _wrapped(f"{word.capitalize()}: {headline(self.result)}", options.max_width, LONGEST)
        told = [Text(line, STYLES.get(word, DOUBTFUL)) for line in head]
        told += [Text(line, DOUBTFUL) for line in _wrapped(_doubts(self.result.caveats), options.max_width, LONGEST)]
        taken = {label: _broken(label, value, room) for label, value in known}
        for spared in SPARED:
            if sum(map(len, taken.values())) + len(told) + 1 > MOST_LINES and spared in taken:
                taken[spared] = _wrapped(dict(known)[spared], room, 1)
        yield from told
        for label, broken in taken.items():
            for place, line in enumerate(broken):
                before = f"  {'' if place else label}".ljust(margin)
                yield Text.assemble((before, LABEL), (line, LABEL if label == "Next" else ""), no_wrap=True, overflow="ignore")


def _doubts(caveats: Sequence[str]) -> str:
    """The first of what makes the verdict doubtful, and how much more there is."""
    more = f" (and {len(caveats) - 1} more: -v)" if len(caveats) > 1 else ""
    return f"{caveats[0]}{more}" if caveats else ""


def _broken(label: str, value: str, room: int) -> list[str]:
    """The lines of a fact: a place and its line of code, or a sentence broken between words."""
    if label == "Next":
        return [value]
    if len(value) <= room:
        return [value]
    if label in ("Port", "Reference", "Before"):
        return [ended(part, room) for part in value.split("  ")]
    return _wrapped(value, room, LONGEST)


def _wrapped(text: str, room: int, most: int) -> list[str]:
    """The first lines of a sentence, the last one with a mark where there are more."""
    broken = textwrap.wrap(text, room, break_on_hyphens=False)
    return broken if len(broken) <= most else [*broken[: most - 1], shortened(f"{broken[most - 1]} {broken[most]}", room)]


def headline(result: Report) -> str:
    """How many faults, at how many places; or what is said where nothing differs."""
    if result.first is None:
        return text.headline(result).partition(": ")[2]
    count, places = len(result.divergences), sum(one.count for one in result.divergences)
    faults = counted(count, "fault") if result.method == "scan" or count > 1 else "the first fault"
    first = result.first
    where = f"in {module(first.culprit.port)}" if count == 1 else f"first in {module(first.culprit.port)}"
    return f"{faults} at {counted(places, 'place')}, {where}"


def lines(result: Report) -> list[tuple[str, str]]:
    """Labels and facts of the answer, in the order in which they are read."""
    if result.first is None:
        return [("Rests on", "; ".join(rests_on(result))), *(("Next", line) for line in _next_without(result))]
    return [
        *of_divergence(result, 0),
        ("Rests on", "; ".join(rests_on(result))),
        ("Next", next_command(result, 0)),
        ("More", details(result)),
    ]


def of_divergence(result: Report, place: int) -> list[tuple[str, str]]:
    """What is said first of one divergence: both places, the error, why, what to change, what was the same before."""
    divergence, judged = result.divergences[place], text.judged_at(result, place)
    sources = judged.get("source") or {}
    known = [
        ("Port", _side(seen(divergence, "port"), sources.get("port", ""))),
        ("Reference", _side(seen(divergence, "reference"), sources.get("reference", ""))),
        ("Error", error(result, place)),
        ("Why", why(result, place)),
        ("Change", change(divergence)),
        ("Before", f"the same up to {_same(divergence.last_same)}" if divergence.last_same else "nothing before it was compared"),
    ]
    return [(label, value) for label, value in known if value]


def seen(divergence: Divergence, side: str) -> str:
    """The culprit of a side, and the end at which its error shows."""
    culprit, site = (getattr(of, side) for of in (divergence.culprit, divergence.site))
    at = divergence.site.end if site == culprit else f"{divergence.site.end} of {module(site)}"
    call = short_call(divergence.site.call)
    return f"{module(culprit)}, {at}" + (f" ({call})" if call and side == "port" else "")


def _side(place: str, source: str) -> str:
    line = source.rpartition("called at ")[2]
    return f"{place}  {line}" if line else place


def _same(where: Where) -> str:
    return f"{module(where.reference)} {where.end}"


def error(result: Report, place: int) -> str:
    """The error as a multiple of what is allowed, or what else there is to say of its size."""
    divergence = result.divergences[place]
    size = text.size(result, place)
    if divergence.times is None:
        return size
    return f"{times(divergence.times)} what is allowed: relative L2 {number(divergence.introduced)}, allowed {text.limit(result, place)}"


def times(value: float) -> str:
    """A multiple in words: ``2.3 times``, ``820,000 times``.

    >>> times(2.34), times(56.1), times(823456.0), times(3e12)
    ('2.3 times', '56 times', '820,000 times', '3e+12 times')
    """
    if value >= 1e9:
        return f"{value:.0e} times"
    return f"{value:.1f} times" if value < 10 else f"{float(f'{value:.2g}'):,.0f} times"


def why(result: Report, place: int) -> str:
    """The likeliest cause, and whether it is proved; without one whose code it is."""
    divergence = result.divergences[place]
    if not divergence.causes:
        return f"cause unknown; {text.blame(result, place)}"
    cause = divergence.causes[0]
    return f"{cause.kind}, {proved(cause)}: {cause.evidence}"


def proved(cause: Cause) -> str:
    """Whether a cause is proved, else how likely it is."""
    return "proved" if cause.confirmed else f"{cause.confidence:.0%} likely, not proved"


def change(divergence: Divergence) -> str:
    """What to change, as the catalogue says it of the likeliest cause."""
    kind = CATALOGUE.get(divergence.causes[0].kind) if divergence.causes else None
    return kind.remedy if kind else "compare the code of the two places, operation by operation"


def rests_on(result: Report) -> list[str]:
    """What the verdict rests on: the run, the floor, whether the reference repeats itself, inputs, weights, what was not compared."""
    coverage, weights = result.coverage, result.weights
    known = [
        f"{result.mode} run",
        REPEATS[result.reference.get("repeats")],
        _inputs(result),
    ]
    if weights.equal or weights.unequal:
        known.append(f"{weights.equal:,}/{weights.equal + weights.unequal:,} weights equal")
    known.append(f"{coverage.compared:,}/{coverage.reference_records:,} records compared")
    alone = len(coverage.unpaired_reference) + len(coverage.unpaired_port)
    if alone:
        known.append(f"{counted(alone, 'site')} unpaired")
    if coverage.not_seen:
        known.append(f"{len(coverage.not_seen):,} not seen")
    return [one for one in known if one]


def _inputs(result: Report) -> str:
    """Whether the two runs were handed the same."""
    if any(text.judged_at(result, place).get("blame") == "input" for place in range(len(result.divergences))):
        return "inputs differ"
    outermost = [row for row in result.rows if "/" not in row.where.call and row.where.end.startswith("input") and row.diverged is not None]
    return "inputs equal" if outermost and not any(row.diverged for row in outermost) else ""


def next_command(result: Report, place: int, *, on_page: bool = False) -> str:
    """What to run next for a divergence: its weights, its module alone, the page or, ``on_page``, why its tensors are a pair."""
    divergence, judged = result.divergences[place], text.judged_at(result, place)
    ours, theirs = str(result.reference.get("path")), str(result.port.get("path"))
    if _is_gone(ours) and _is_gone(theirs):  # two ways of one model, compared without keeping their traces
        return "keep the traces with -o ways, then: tracediff view ways/first.h5 ways/second.h5"
    if _is_gone(theirs):  # a site that was tried, its trace not kept
        return "keep its trace with -o tried.h5, then: " + shlex.join(["tracediff", "view", ours, "tried.h5"])
    if result.method == "live":
        return f"tracediff capture --impl torch --include {shlex.quote(divergence.culprit.reference or '**')} -o ref.h5"
    if divergence.causes and divergence.causes[0].kind.startswith("weights."):
        return shlex.join(["tracediff", "weights", ours, theirs])
    if judged.get("blame") == "module" and result.reference.get("recipe") and divergence.culprit.reference:
        return shlex.join(["tracediff", "try", ours, divergence.culprit.reference, "--recipe", str(result.reference["recipe"])])
    if on_page:
        return shlex.join(["tracediff", "align", ours, theirs, "--why", divergence.site.reference])
    return shlex.join(["tracediff", "view", ours, theirs])


def _is_gone(path: str) -> bool:
    """Whether a trace lay in a temporary folder that is no more."""
    return os.path.isabs(path) and not os.path.exists(path)


def details(result: Report) -> str:
    """How to see the rest."""
    more = "-v shows all that is known"
    return f"{more}, tracediff diff every fault" if result.method == "bisect" else more


def _next_without(result: Report) -> Iterable[str]:
    """What to run next where nothing differs."""
    if result.method == "live":
        return
    ours, theirs = str(result.reference.get("path")), str(result.port.get("path"))
    if result.verdict == "same" and result.mode == "forced":
        yield f"record a free run too, to show that the whole works, then: {shlex.join(['tracediff', 'status', ours, theirs, 'free.h5'])}"
    elif result.verdict is None and result.withheld and result.withheld.code in ("nothing paired", "outputs", "port outputs", "modules"):
        yield shlex.join(["tracediff", "align", ours, theirs, "--unpaired"])
