"""Text: reports as they are printed on a terminal, written to a file, or shown in a notebook's cell.

Each function returns something that `console` prints; `plain` gives it as a string.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracediff.show.pair_table import HEADS, PairTable, cells_of, state, telling
from tracediff.show.words import (
    BAD,
    DOUBTFUL,
    GOOD,
    LABEL,
    PLAIN_WIDTH,
    QUIET,
    allowance,
    console,
    counted,
    grouped,
    html,
    lengths,
    markdown_table,
    markdown_text,
    module,
    number,
    plain,
    same,
    shape,
    short_call,
    short_length,
    table,
)
from tracediff.site import RETURNED, listed

if TYPE_CHECKING:
    from tracediff.report import Cause, Divergence, Report, Stage, Where

GRADUAL = 10.0
"""An error that is less than so many times what arrives may have grown gradually."""

MOST_OTHERS = 12
_AFTER_MESSAGE = re.compile(r" at \S*:\d+ in |; the run went on|; it stopped|; arguments: ")

__all__ = [
    "HEADS",
    "PLAIN_WIDTH",
    "blame",
    "console",
    "diff",
    "facts",
    "headline",
    "html",
    "introduced",
    "judged_at",
    "limit",
    "markdown",
    "pairs",
    "plain",
    "remarks",
    "report",
    "size",
    "state",
]


# ------------------------------------------------------------------------------------------------------------- the report


def report(result: Report) -> RenderableType:
    """The whole report, its answer in the first line."""
    parts: list[RenderableType] = [_headline(result), *_caveats(result)]
    if result.first is not None:
        parts.append(Padding(_evidence(result, 0), (1, 0, 0, 2), expand=False))
    if len(result.divergences) > 1:
        others = len(result.divergences) - 1
        parts += ["", Text(f"Other divergences ({others:,})", LABEL), Padding(_others(result), (0, 0, 0, 2), expand=False)]
        if others > MOST_OTHERS:
            parts.append(Text(f"  and {others - MOST_OTHERS:,} more: tracediff diff lists all pairs", QUIET))
    if result.has_stages:
        parts += ["", Padding(_stages(result), (0, 0, 0, 2), expand=False)]
    parts += ["", *_coverage(result), *_notes(result)]
    return Group(*parts)


def _headline(result: Report) -> Text:
    if result.verdict == "same":
        unseen, words = result.coverage.unseen_outputs, same(result)
        missed = f"{listed(unseen)} {'was' if len(unseen) == 1 else 'were'} not; " if unseen else ""
        missed += _not_returned(result, besides=unseen)
        return Text.assemble((words, GOOD if words == "Same" else DOUBTFUL), f": {missed}{_agreement(result)}")
    if result.first is None:
        return Text.assemble(("No verdict", DOUBTFUL), f": {_not_returned(result, besides=_withheld(result))}{_no_verdict(result)}")
    return Text.assemble(("First divergence", BAD), ": ", *_named(result, 0), ": ", size(result, 0))


def _withheld(result: Report) -> Sequence[str]:
    """The names that the reason for no verdict gives."""
    return result.withheld.names if result.withheld is not None else ()


def _not_returned(result: Report, besides: Sequence[str] = ()) -> str:
    """What the reference returned and the port did not, as the beginning of a sentence; without names that stand there already."""
    names = [name for name in result.coverage.not_returned if name not in besides]
    return f"the port does not return {listed(names)}; " if names else ""


def _caveats(result: Report) -> list[Text]:
    """What makes the answer doubtful, a line for each thing."""
    return [Text(line, DOUBTFUL) for line in result.caveats]


def _agreement(result: Report) -> str:
    compared, total = result.coverage.compared, result.coverage.reference_records
    judged = (row for row in result.rows if row.rel_l2 is not None and not row.effect and row.by not in ("sensitive", "cannot tell"))
    worst = max(judged, key=lambda row: row.rel_l2 or 0.0, default=None)
    text = (
        f"{compared:,} of {counted(total, 'record')} of the reference compared, and none diverged{_borderline(result)}{_quantised(result)}"
    )
    if worst is None or not worst.rel_l2:
        return f"{text}; every bit is equal" if worst is not None else text
    place = f"{module(worst.where.reference)} {worst.where.end}"
    limit = allowance(worst.limit, worst.by, worst.floor, result.certificate)
    return f"{text}; the worst relative L2 is {number(worst.rel_l2)} at {place}, {limit}"


def _borderline(result: Report) -> str:
    """The end of the sentence that none diverged: how many are borderline, and how far the worst of them is."""
    if not result.borderline:
        return ""
    worst = max(divergence.times or 0.0 for divergence in result.borderline)
    return f"; {counted(len(result.borderline), 'place')} borderline, up to {worst:.1f} times what is allowed"


def _quantised(result: Report) -> str:
    """The end of the sentence that none diverged: at how many places codes explain the difference."""
    if not result.quantised:
        return ""
    worst = max(one.introduced for one in result.quantised)
    return f"; {counted(len(result.quantised), 'output')} of quantised layers off by what their codes explain, up to {number(worst)}"


def _no_verdict(result: Report) -> str:
    """Why nothing is said of the whole, and how much agrees."""
    why = result.withheld.text if result.withheld else "the report does not say why"
    compared = result.coverage.compared
    is_known = result.withheld is None or result.withheld.code in ("noise", "nothing paired", "no values")
    return f"{why}; {counted(compared, 'record')} compared {'agrees' if compared == 1 else 'agree'}" if compared and not is_known else why


def judged_at(result: Report, place: int) -> dict[str, Any]:
    """What the certificate says of a divergence; a report from elsewhere may lack it."""
    judged = result.certificate.get("judged") or []
    found: dict[str, Any] = judged[place] if place < len(judged) else {}
    return found


def _named(result: Report, place: int) -> list[str | tuple[str, str]]:
    """The culprit and where it shows; the stretch since the last same site where it is not known what arrived."""
    divergence, judged = result.divergences[place], judged_at(result, place)
    whose, site, culprit = judged.get("blame", "module"), divergence.site, divergence.culprit
    if judged.get("arrives") == "not recorded":
        since = _place(divergence.last_same) if divergence.last_same else "the start"
        return ["between ", (since, LABEL), " and ", (_place(site), LABEL)]
    if whose == "run":
        return [("the run's own code", LABEL), f", {_place(site)}"]
    names: list[str | tuple[str, str]] = [(module(culprit.port), LABEL), f" (reference {module(culprit.reference)})"]
    end = f"{site.end} of {site.port}" if site.port != culprit.port and whose != "random" else site.end
    if whose == "input":
        names.insert(0, "the inputs of ")
    if whose == "random":
        names = [(site.port.partition("!")[2], LABEL), " drawn in ", *names]
    return [*names, f" at call {short_call(site.call) or '0'}, {end}"]


def size(result: Report, place: int) -> str:
    """How large an error is beside what is allowed."""
    divergence, judged = result.divergences[place], judged_at(result, place)
    metrics = divergence.metrics
    if _raised(divergence):
        return _AFTER_MESSAGE.split(_raised(divergence).removeprefix("the port "))[0]
    if divergence.length is not None:
        return lengths(divergence.length)
    if metrics is None and divergence.shapes["reference"] != divergence.shapes["port"]:
        return f"shape {shape(divergence.shapes['port'])}, in the reference {shape(divergence.shapes['reference'])}"
    if values := judged.get("values"):
        return f"{values['port']}, in the reference {values['reference']}"
    if judged.get("by") == "exact" and metrics is not None:
        verb = "differs" if metrics.mismatched == 1 else "differ"
        return f"{metrics.mismatched:,} of {counted(metrics.count, 'value')} {verb}, {allowance(None, 'exact')}"
    if metrics is not None and math.isinf(metrics.rel_l2):
        return (
            "a value is not finite on one side only" if math.isinf(metrics.max_abs) else "the reference is zero throughout, the port is not"
        )
    is_stretch = judged.get("arrives") == "not recorded"
    verb = "they differ by" if judged.get("blame") in ("input", "random") or is_stretch else "introduced"
    least = "at least " if metrics is None else ""
    limit = allowance(judged.get("limit"), judged.get("by"), divergence.floor, result.certificate)
    return f"{verb} {least}{number(divergence.introduced)}, {limit}"


def _raised(divergence: Divergence) -> str:
    """What a call raised, where that is the divergence; else the empty text."""
    return next((cause.evidence for cause in divergence.causes if cause.kind == "raised"), "")


def introduced(divergence: Divergence) -> str:
    """The size of an error in a table's cell."""
    if _raised(divergence):
        return "raised"
    if divergence.length is not None:
        return f"length {short_length(divergence.length)}"
    return "shape" if divergence.metrics is None and math.isinf(divergence.introduced) else number(divergence.introduced)


def _evidence(result: Report, place: int) -> Table:
    """What is known of a divergence, a line for each thing."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=LABEL, no_wrap=True)
    grid.add_column(overflow="fold")
    before = ""
    for label, value in facts(result, place):
        grid.add_row(label if label != before else "", Text(value))
        before = label
    return grid


def facts(result: Report, place: int) -> list[tuple[str, str]]:
    """What is known of a divergence: labels and texts, a label repeated where it has several."""
    divergence, judged = result.divergences[place], judged_at(result, place)
    known = [
        ("Blame", blame(result, place)),
        ("Doubt", _doubt(divergence)),
        ("Shared", _shared(divergence, judged)),
        ("Call", _call(divergence)),
        ("Error", "" if judged.get("values") else _error(divergence)),
        ("Tensor", _tensor(divergence)),
        *(("Code", line) for line in _sources(judged)),
        ("Last same", _place(divergence.last_same) if divergence.last_same else "nothing before it"),
        *(("Cause", line) for line in _causes(divergence)),
        ("Unpaired", _suspects(judged)),
    ]
    return [(label, value) for label, value in known if value]


def blame(result: Report, place: int) -> str:
    """Whose code a divergence is, and what arrived there."""
    divergence, judged = result.divergences[place], judged_at(result, place)
    if judged.get("arrives") == "not recorded":
        return _stretch(divergence, judged)
    arrives = f" (worst {number(divergence.inherited)})" if divergence.inherited else ""
    if result.mode == "forced":
        arrives = " (the reference's own tensors)" if divergence.inherited == 0 else ""
    caller = module(divergence.culprit.port)
    arriving, held = "all that arrives there", "all it had in hand"
    if judged.get("arrives") == "in part":
        arriving, held = "what was compared of what arrives there", "what was compared of what it had in hand"
    words = {
        "module": f"the module itself: {arriving} agrees{arrives}, what it returns does not",
        "caller": f"the code of {caller} between its calls: {held} agrees{arrives}, what it hands on does not",
        "run": f"the code around the models' calls: all that they returned agrees{arrives}, what it makes of that does not",
        "weights": f"the weights of {caller}, which the code around it uses without a call that could be compared",
        "input": "neither model: the two runs were given different inputs",
        "random": "neither model: the two runs drew different numbers",
    }
    found = words.get(str(judged.get("blame")), "")
    return re.sub("what it (returns|hands on) does not", "and it raises", found) if _raised(divergence) else found


def _stretch(divergence: Divergence, judged: dict[str, Any]) -> str:
    """What is blamed where it is not known what arrived, and what to record to know it."""
    last = divergence.last_same
    since = f"since {_place(last)}, the last that agrees" if last else "before it, since nothing before it was compared"
    sites = listed(judged.get("record") or ())
    return f"all that happens {since}: what arrives here was not recorded; to narrow it, record {sites} too"


def _doubt(divergence: Divergence) -> str:
    arrives = divergence.inherited
    if not arrives or divergence.introduced > GRADUAL * arrives:
        return ""
    return f"what arrives is off by {number(arrives)} already: the error may have grown over many sites, rather than be made here"


def _shared(divergence: Divergence, judged: dict[str, Any]) -> str:
    """At how many places a fault shows, and at which."""
    calls = judged.get("calls", 1)
    where = [_siblings(judged), f"{counted(calls - 1, 'later call')} of this site" if calls > 1 else ""]
    told = ", ".join(filter(None, where))
    if divergence.count == 1:
        return f"the same at {told}" if told else ""
    return f"one fault at {counted(divergence.count, 'place')}{f': {told}' if told else ''}"


def _siblings(judged: dict[str, Any]) -> str:
    """At how many siblings of its role a fault shows: all of them, or some."""
    shared_by = judged.get("shared_by", 1)
    of = judged.get("siblings", shared_by)
    count = f"all {of}" if shared_by == of else f"{shared_by} of {of}"
    return f"{count} of {judged['pattern']}" if shared_by > 1 else ""


def _places(divergence: Divergence, judged: dict[str, Any]) -> str:
    """The same behind a name in a table."""
    told = [counted(divergence.count, "place") if divergence.count > 1 else "", _siblings(judged)]
    shown = ", ".join(filter(None, told))
    return f" ({shown})" if shown else ""


def _error(divergence: Divergence) -> str:
    metrics = divergence.metrics
    if metrics is None:
        return ""
    at = f" at {shape(metrics.argmax)}" if metrics.argmax else ""
    ulp = f", max {metrics.max_ulp:,} ULP" if metrics.max_ulp is not None and metrics.max_ulp < 10_000 else ""
    beyond = f", {metrics.mismatched:,} of {counted(metrics.count, 'value')} beyond tolerance"
    beyond += f"; {number(divergence.times)} times what is allowed" if divergence.times is not None else ""
    return f"relative L2 {number(metrics.rel_l2)}, max abs {number(metrics.max_abs)}{at}, cosine {metrics.cosine:.6f}{ulp}{beyond}"


def _tensor(divergence: Divergence) -> str:
    if _raised(divergence):
        return ""
    shapes, dtypes = divergence.shapes, divergence.dtypes
    sides = [f"{shape(shapes[side])} {dtypes[side]}" for side in ("reference", "port")]
    text = sides[0] if sides[0] == sides[1] else f"reference {sides[0]}, port {sides[1]}"
    return text if divergence.layout in ("same", "no layout") else f"{text}, the port's axes read as {divergence.layout}"


def _sources(judged: dict[str, Any]) -> list[str]:
    sources = judged.get("source") or {}
    return [f"{side}: {sources[side]}" for side in ("port", "reference") if sources.get(side)]


def _causes(divergence: Divergence) -> list[str]:
    def sure(cause: Cause) -> str:
        return "confirmed" if cause.confirmed else f"{cause.confidence:.0%}"

    return [f"{cause.kind} ({sure(cause)}): {cause.evidence}" for cause in divergence.causes] or ["unknown"]


def _call(divergence: Divergence) -> str:
    stage = f" in stage {divergence.site.stage}" if divergence.site.stage else ""
    return f"{divergence.site.call}{stage}"


def _suspects(judged: dict[str, Any]) -> str:
    """Sites without partner at the culprit, side by side."""
    texts = []
    for side in ("reference", "port"):
        sites = [str(suspect["site"]) for suspect in judged.get("suspects") or () if suspect["side"] == side]
        if sites:
            texts.append(f"{side}: {listed(grouped(sites))}")
    return "; ".join(texts)


def _place(where: Where) -> str:
    call = short_call(where.call)
    if RETURNED in (where.reference, where.port):
        key = where.end.removeprefix("value").removeprefix("output")
        return module(RETURNED) + (f" ({key.lstrip('.')})" if key else "")
    return f"{module(where.reference)} {where.end}" + (f" ({call})" if call else "")


def _others(result: Report) -> Table:
    heads = ("Culprit in the port", "Reference", "Seen at", "Introduced", "Allowed", "Cause")
    lines = table(*heads, numbers=("Introduced", "Allowed"))
    for place, divergence in enumerate(result.divergences[1 : 1 + MOST_OTHERS], 1):
        judged, site = judged_at(result, place), divergence.site
        seen = site.end if site.port == divergence.culprit.port else f"{site.end} of {site.port}"
        call = short_call(site.call)
        lines.add_row(
            Text(module(divergence.culprit.port) + _places(divergence, judged)),
            Text(module(divergence.culprit.reference)),
            Text(seen + (f" ({call})" if call else "")),
            introduced(divergence),
            limit(result, place),
            Text(divergence.causes[0].kind if divergence.causes else "unknown"),
        )
    return lines


def _stages(result: Report) -> Table:
    has_rows = bool(result.rows)
    heads = ("Stage", "Verdict", "Worst", *(("Compared",) if has_rows else ()), "First divergence")
    lines = table(*heads, numbers=("Worst", "Compared"))
    inside: Counter[str] = Counter(row.where.stage for row in result.rows)
    compared: Counter[str] = Counter(row.where.stage for row in result.rows if row.diverged is not None)
    for stage in result.stages:
        counts = (f"{compared[stage.stage]:,}/{inside[stage.stage]:,}",) if has_rows else ()
        first = _place(stage.first) if stage.first else ""
        lines.add_row(Text(stage.stage or "(none)"), _verdict(stage), number(stage.worst), *counts, Text(first))
    return lines


def _verdict(stage: Stage) -> Text:
    return {"same": Text("same", GOOD), "different": Text("different", BAD)}.get(stage.verdict or "", Text("not told", QUIET))


def _coverage(result: Report) -> list[Text]:
    """How much was compared, and what has no partner."""
    coverage = result.coverage
    total = counted(coverage.reference_records, "record")
    text = f"Compared {coverage.compared:,} of {total} of the reference with the port's {coverage.port_records:,}{_not_compared(result)}"
    lines = [Text(text)]
    for side, names in (("reference", coverage.unpaired_reference), ("port", coverage.unpaired_port)):
        if names:
            count = f"{counted(len(names), 'site')} of the {side} " + ("has" if len(names) == 1 else "have")
            lines.append(Text(f"Not compared: {count} no partner: {listed(grouped(names))}.", QUIET))
    return lines


def _not_compared(result: Report) -> str:
    """The end of the sentence on how much was compared: why the rest of what has a partner was not."""
    coverage = result.coverage
    if coverage.compared >= coverage.paired:
        return "."
    rest = counted(coverage.paired - coverage.compared, "record")
    if result.method not in ("bisect", "live"):
        is_damaged = result.reference.get("damaged") or result.port.get("damaged")
        absent = "served from a trace" if any(row.how == "served" for row in result.rows) else "damaged" if is_damaged else "not stored"
        return f". {rest} could not be compared: their values were {absent}."
    text = f" ({coverage.read:,} by reading their values). The other {rest} with a partner were not needed to name the first divergence"
    sampled = result.certificate.get("sampled") or 0
    text += f" (of {sampled:,} a sample of the values was looked at)" if sampled else ""
    return text + ("; --scan compares all." if result.method == "bisect" else ".")


def _notes(result: Report) -> list[Text]:
    """What else has to be known to read the answer rightly."""
    lines = (*_differences_excused(result), *_runs(result), *_weights(result), *_unseen(result), *_next(result))
    return [Text(line, style) for line, style in lines]


def _differences_excused(result: Report) -> Iterable[tuple[str, str]]:
    moved, sensitive, harmless = (_certified(result, name) for name in ("moved", "sensitive", "without_effect"))
    if moved:
        yield f"Moved: {listed(moved)}: the output differs, but all that uses it agrees.", QUIET
    if sensitive:
        yield f"Noise-sensitive: {listed(sensitive)}: ids differ where noise changes them in the reference too; no divergence.", DOUBTFUL
    if untold := _certified(result, "cannot_tell"):
        yield (
            f"Cannot tell: {listed(untold)}: rounding alone changes the reference by as much as its values; no fault would show.",
            DOUBTFUL,
        )
    if harmless:
        yield f"Without effect: {listed(harmless)}: the input differs, but what is computed from it agrees.", QUIET
    for divergence in result.borderline:
        excess = f"{divergence.times or 0.0:.1f} times what is allowed, and like noise"
        yield f"Borderline: {_place(divergence.site)}: {excess}; --strict counts it as a divergence.", DOUBTFUL
    if result.quantised:
        places = grouped(f"{module(one.where.reference)} {one.where.end}" for one in result.quantised)
        yield (
            f"Quantisation: {listed(places)}: off by what the codes of the port's weights explain; no divergence. A reference with these "
            "weights judges them exactly: tracediff capture --weights-from.",
            QUIET,
        )
    by_absorber: dict[str, list[str]] = {}
    for form in result.equivalent:
        by_absorber.setdefault(form.absorber, []).append(f"{module(form.where.reference)} {form.where.end}")
    for absorber, places in by_absorber.items():
        yield f"Equivalent form: {listed(grouped(places))}: the tensor differs, but all that {module(absorber)} returns agrees.", QUIET


def _certified(result: Report, name: str) -> list[str]:
    """The boundaries that the certificate lists under a name, those that differ only in numbers as one."""
    return grouped(f"{module(where['reference'])} {where['end']}" for where in result.certificate.get(name) or ())


def _runs(result: Report) -> Iterable[tuple[str, str]]:
    yield from ((text, DOUBTFUL) for text in result.certificate.get("notes") or ())
    for side, trace in (("reference", result.reference), ("port", result.port)):
        if trace.get("complete") is False and result.verdict is not None:
            yield f"The {side}'s run did not come to its end.", DOUBTFUL
    if result.mode == "forced" and result.verdict == "same":
        yield "Each part was fed the reference's tensors: that the whole works takes a run of its own too.", DOUBTFUL


def _weights(result: Report) -> Iterable[tuple[str, str]]:
    weights = result.weights
    for label, lines in (
        ("differ", weights.different),
        ("are missing in the port", weights.missing),
        ("are unexpected in the port", weights.unexpected),
    ):
        if lines:
            yield f"Weights that {label}: {listed(list(lines))}.", DOUBTFUL
    if weights.equal:
        yield f"Weights: {weights.equal:,} equal.", QUIET


def _unseen(result: Report) -> Iterable[tuple[str, str]]:
    if result.coverage.not_seen:
        yield f"Not seen: {listed(list(result.coverage.not_seen), 3)}.", QUIET


def _next(result: Report) -> Iterable[tuple[str, str]]:
    """The command that shows more of the first divergence; a live bisection leaves no traces to draw."""
    port = str(result.port.get("path"))
    is_gone = os.path.isabs(port) and not os.path.exists(port)  # of a site that was tried the trace is not kept
    if result.first is not None and result.first.metrics is not None and result.method != "live" and not is_gone:
        yield f"See it: tracediff plot {result.reference['path']} {result.port['path']} --culprit", QUIET


# ------------------------------------------------------------------------------------------------------------- Markdown


def markdown(result: Report) -> str:
    """The report as Markdown: what a pull request or an issue quotes. Names cannot be read as Markdown or HTML."""
    lines = [f"**{markdown_text(headline(result))}**", *(f"\n**{markdown_text(line)}**" for line in result.caveats), ""]
    if result.first is not None:
        lines += [f"- {label}: {markdown_text(value)}" for label, value in facts(result, 0)]
    if len(result.divergences) > 1:
        heads = ("Culprit in the port", "Reference", "Introduced", "Allowed", "Likely cause")
        lines += ["", *_plain_table(heads, (_divergence_line(result, place) for place in range(1, len(result.divergences))))]
    if result.has_stages:
        lines += ["", *_plain_table(("Stage", "Verdict", "Worst", "Floor", "First divergence"), map(_stage_line, result.stages))]
    return "\n".join([*lines, "", *(f"{markdown_text(line)}  " for line in remarks(result))]).rstrip() + "\n"


def _divergence_line(result: Report, place: int) -> tuple[str, ...]:
    divergence = result.divergences[place]
    cause = divergence.causes[0].kind if divergence.causes else "unknown"
    port = module(divergence.culprit.port) + _places(divergence, judged_at(result, place))
    return port, module(divergence.culprit.reference), introduced(divergence), limit(result, place), cause


def _stage_line(stage: Stage) -> tuple[str, ...]:
    first = _place(stage.first) if stage.first else ""
    return stage.stage or "(none)", stage.verdict or "not told", number(stage.worst), number(stage.floor), first


def _plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return markdown_table(heads, ([markdown_text(cell) for cell in row] for row in rows))


# ---------------------------------------------------------------------------------------- the same words for other views of a report


def headline(result: Report) -> str:
    """The answer in a sentence."""
    return _headline(result).plain


def limit(result: Report, place: int) -> str:
    """What was allowed at a divergence, as a cell of a table."""
    judged = judged_at(result, place)
    return "none" if judged.get("by") == "exact" else number(judged.get("limit"))


def remarks(result: Report, *, brief: bool = False) -> list[str]:
    """How much was compared, and what else has to be known; where ``brief``, without what was not seen and the weights."""
    if not brief:
        return [line.plain for line in (*_coverage(result), *_notes(result))]
    return [line.plain for line in _coverage(result)] + [line for line, _ in (*_differences_excused(result), *_runs(result))]


def pairs(result: Report, *, most: int = 1000) -> list[tuple[tuple[str, ...], str]]:
    """The cells of the table of all pairs and each one's state; of more than ``most`` pairs those that tell something."""
    shown = range(len(result.rows)) if len(result.rows) <= most else sorted(telling(result.rows))[:most]
    return [(cells_of(result.rows[place]), state(result.rows[place])) for place in shown]


# -------------------------------------------------------------------------------------------------------- the table of all pairs


def diff(result: Report, *, every: bool = False) -> RenderableType:
    """The pairs in execution order: all, or those that diverged with what came just before."""
    shown = range(len(result.rows)) if every else sorted(telling(result.rows))
    rest = len(result.rows) - len(shown)
    hidden = Text(f"{counted(rest, 'further pair')} agree or were not compared; --all lists them.", QUIET) if rest else Text("")
    parts: list[RenderableType] = [_headline(result), *_caveats(result)]
    if shown:
        parts += [Text(""), PairTable([result.rows[place] for place in shown])]
    return Group(*parts, Text(""), *([hidden] if rest else []), *_coverage(result))
