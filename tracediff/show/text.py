"""Text: reports as they are printed on a terminal, written to a file, or shown in a notebook's cell.

Each function returns something that `console` prints; `plain` gives it as a string.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

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
    listed,
    markdown_table,
    markdown_text,
    module,
    number,
    plain,
    shape,
    short_call,
    table,
)

if TYPE_CHECKING:
    from tracediff.report import Cause, Divergence, Report, Row, Stage, Where

GRADUAL = 10.0
"""An error that is less than so many times what arrives may have grown gradually."""

MOST_OTHERS = 12
_AFTER_MESSAGE = re.compile(r" at \S*:\d+ in |; the run went on|; it stopped|; arguments: ")

__all__ = [
    "HEADS",
    "PLAIN_WIDTH",
    "console",
    "diff",
    "facts",
    "headline",
    "html",
    "limit",
    "markdown",
    "pairs",
    "plain",
    "remarks",
    "report",
    "state",
]


# ------------------------------------------------------------------------------------------------------------- the report


def report(told: Report) -> RenderableType:
    """The whole report, its answer in the first line."""
    parts: list[RenderableType] = [_headline(told)]
    if told.first is not None:
        parts.append(Padding(_evidence(told, 0), (1, 0, 0, 2), expand=False))
    if len(told.divergences) > 1:
        others = len(told.divergences) - 1
        parts += ["", Text(f"Other divergences ({others:,})", LABEL), Padding(_others(told), (0, 0, 0, 2), expand=False)]
        if others > MOST_OTHERS:
            parts.append(Text(f"  and {others - MOST_OTHERS:,} more: tracediff diff lists all pairs", QUIET))
    if [stage.stage for stage in told.stages] not in ([], [""]):
        parts += ["", Padding(_stages(told), (0, 0, 0, 2), expand=False)]
    parts += ["", *_coverage(told), *_notes(told)]
    return Group(*parts)


def _headline(told: Report) -> Text:
    if told.verdict == "same" and (unseen := told.coverage.unseen_outputs):
        verb = "was" if len(unseen) == 1 else "were"
        return Text.assemble(("Same as far as compared", DOUBTFUL), f": {listed(unseen)} {verb} not; {_agreement(told)}")
    if told.verdict == "same":
        return Text.assemble(("Same", GOOD), f": {_agreement(told)}")
    if told.first is None:
        return Text.assemble(("No verdict", DOUBTFUL), f": {_no_verdict(told)}")
    return Text.assemble(("First divergence", BAD), ": ", *_named(told, 0), ": ", _size(told, 0))


def _agreement(told: Report) -> str:
    compared, total = told.coverage.compared, told.coverage.reference_records
    judged = (row for row in told.rows if row.rel_l2 is not None and not row.effect and row.by != "sensitive")
    worst = max(judged, key=lambda row: row.rel_l2 or 0.0, default=None)
    text = f"{compared:,} of {counted(total, 'record')} of the reference compared, and none diverged"
    if worst is None or not worst.rel_l2:
        return f"{text}; every bit is equal" if worst is not None else text
    place = f"{module(worst.where.reference)} {worst.where.end}"
    limit = allowance(worst.limit, worst.by, worst.floor, told.certificate)
    return f"{text}; the worst relative L2 is {number(worst.rel_l2)} at {place}, {limit}"


def _no_verdict(told: Report) -> str:
    coverage = told.coverage
    for side, trace in (("reference", told.reference), ("port", told.port)):
        if trace.get("complete") is False and coverage.compared:
            return f"the {side}'s run did not come to its end; {counted(coverage.compared, 'record')} compared up to there agree"
    if any(row.effect == "noise" for row in told.rows):
        return (
            "the two runs chose different ids where the reference itself would under noise, and all that differs comes after that; "
            "a forced run (--feed) tells more"
        )
    served = grouped(dict.fromkeys(row.where.port for row in told.rows if row.how == "served"))
    if served and coverage.compared:
        return f"{counted(coverage.compared, 'record')} compared agree, but {listed(served)} was served from a trace, not computed"
    if not coverage.paired:
        return "no record of the one side could be paired with one of the other, so nothing was compared"
    most = max((row.at_least for row in told.rows), default=0.0)
    return (
        f"no values were compared: only statistics were stored, and these differ by no more than {number(most)} (capture with --save full)"
    )


def _judged(told: Report, place: int) -> dict[str, Any]:
    """What the certificate says of a divergence; a report from elsewhere may lack it."""
    judged = told.certificate.get("judged") or []
    found: dict[str, Any] = judged[place] if place < len(judged) else {}
    return found


def _named(told: Report, place: int) -> list[str | tuple[str, str]]:
    """The culprit and where it shows."""
    divergence, blame = told.divergences[place], _judged(told, place).get("blame", "module")
    site, culprit = divergence.site, divergence.culprit
    names: list[str | tuple[str, str]] = [(module(culprit.port), LABEL), f" (reference {module(culprit.reference)})"]
    end = f"{site.end} of {site.port}" if site.port != culprit.port and blame != "random" else site.end
    if blame == "input":
        names.insert(0, "the inputs of ")
    if blame == "random":
        names = [(site.port.partition("!")[2], LABEL), " drawn in ", *names]
    return [*names, f" at call {short_call(site.call) or '0'}, {end}"]


def _size(told: Report, place: int) -> str:
    """How large an error is beside what is allowed."""
    divergence, judged = told.divergences[place], _judged(told, place)
    metrics = divergence.metrics
    if _raised(divergence):
        return _AFTER_MESSAGE.split(_raised(divergence).removeprefix("the port "))[0]
    if metrics is None and divergence.shapes["reference"] != divergence.shapes["port"]:
        return f"shape {shape(divergence.shapes['port'])}, in the reference {shape(divergence.shapes['reference'])}"
    if values := judged.get("values"):
        return f"{values['port']}, in the reference {values['reference']}"
    if judged.get("by") == "exact" and metrics is not None:
        verb = "differs" if metrics.mismatched == 1 else "differ"
        return f"{metrics.mismatched:,} of {counted(metrics.count, 'value')} {verb}, {allowance(None, 'exact')}"
    verb = "they differ by" if judged.get("blame") in ("input", "random") else "introduced"
    least = "at least " if metrics is None else ""
    limit = allowance(judged.get("limit"), judged.get("by"), divergence.floor, told.certificate)
    return f"{verb} {least}{number(divergence.introduced)}, {limit}"


def _raised(divergence: Divergence) -> str:
    """What a call raised, where that is the divergence; else the empty text."""
    return next((cause.evidence for cause in divergence.causes if cause.kind == "raised"), "")


def _introduced(divergence: Divergence, judged: dict[str, Any]) -> str:
    """The size of an error in a table's cell."""
    if _raised(divergence):
        return "raised"
    return "shape" if divergence.metrics is None and judged.get("by") == "exact" else number(divergence.introduced)


def _evidence(told: Report, place: int) -> Table:
    """What is known of a divergence, a line for each thing."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=LABEL, no_wrap=True)
    grid.add_column(overflow="fold")
    before = ""
    for label, value in _facts(told, place):
        grid.add_row(label if label != before else "", Text(value))
        before = label
    return grid


def _facts(told: Report, place: int) -> list[tuple[str, str]]:
    divergence, judged = told.divergences[place], _judged(told, place)
    facts = [
        ("Blame", _blame(told, place)),
        ("Doubt", _doubt(divergence)),
        ("Shared", _shared(judged)),
        ("Call", _call(divergence)),
        ("Error", "" if judged.get("values") else _error(divergence)),
        ("Tensor", _tensor(divergence)),
        *(("Code", line) for line in _sources(judged)),
        ("Last same", _place(divergence.last_same) if divergence.last_same else "nothing before it"),
        *(("Cause", line) for line in _causes(divergence)),
        ("Unpaired", _suspects(judged)),
    ]
    return [(label, value) for label, value in facts if value]


def _blame(told: Report, place: int) -> str:
    divergence, blame = told.divergences[place], _judged(told, place).get("blame")
    arrives = f" (worst {number(divergence.inherited)})" if divergence.inherited else ""
    if told.mode == "forced":
        arrives = " (the reference's own tensors)" if divergence.inherited == 0 else ""
    caller = module(divergence.culprit.port)
    words = {
        "module": f"the module itself: all that arrives there agrees{arrives}, what it returns does not",
        "caller": f"the code of {caller} between its calls: all it had in hand agrees{arrives}, what it hands on does not",
        "weights": f"the weights of {caller}, which the code around it uses without a call that could be compared",
        "input": "neither model: the two runs were given different inputs",
        "random": "neither model: the two runs drew different numbers",
    }
    found = words.get(str(blame), "")
    return re.sub("what it (returns|hands on) does not", "and it raises", found) if _raised(divergence) else found


def _doubt(divergence: Divergence) -> str:
    arrives = divergence.inherited
    if not arrives or divergence.introduced > GRADUAL * arrives:
        return ""
    return f"what arrives is off by {number(arrives)} already: the error may have grown over many sites, rather than be made here"


def _shared(judged: dict[str, Any]) -> str:
    calls, siblings = judged.get("calls", 1), judged.get("shared_by", 1)
    same = [f"at all {siblings} of {judged['pattern']}"] if siblings > 1 else []
    same += [f"at {counted(calls - 1, 'later call')} of this site"] if calls > 1 else []
    return f"the same {' and '.join(same)}" if same else ""


def _error(divergence: Divergence) -> str:
    metrics = divergence.metrics
    if metrics is None:
        return ""
    at = f" at {shape(metrics.argmax)}" if metrics.argmax else ""
    ulp = f", max {metrics.max_ulp:,} ULP" if metrics.max_ulp is not None and metrics.max_ulp < 10_000 else ""
    beyond = f", {metrics.mismatched:,} of {counted(metrics.count, 'value')} beyond tolerance"
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
    sides = {
        side: grouped(str(one["site"]) for one in judged.get("suspects") or () if one["side"] == side) for side in ("reference", "port")
    }
    return "; ".join(f"{side}: {listed(names)}" for side, names in sides.items() if names)


def _place(where: Where) -> str:
    call = short_call(where.call)
    return f"{module(where.reference)} {where.end}" + (f" ({call})" if call else "")


def _others(told: Report) -> Table:
    heads = ("Culprit in the port", "Reference", "Seen at", "Introduced", "Allowed", "Cause")
    lines = table(*heads, numbers=("Introduced", "Allowed"))
    for place, divergence in enumerate(told.divergences[1 : 1 + MOST_OTHERS], 1):
        judged, site = _judged(told, place), divergence.site
        seen = site.end if site.port == divergence.culprit.port else f"{site.end} of {site.port}"
        shared = f" (all {judged['shared_by']} {judged['pattern']})" if judged.get("shared_by", 1) > 1 else ""
        call = short_call(site.call)
        lines.add_row(
            Text(module(divergence.culprit.port) + shared),
            Text(module(divergence.culprit.reference)),
            Text(seen + (f" ({call})" if call else "")),
            _introduced(divergence, judged),
            "none" if judged.get("by") == "exact" else number(judged.get("limit")),
            Text(divergence.causes[0].kind if divergence.causes else "unknown"),
        )
    return lines


def _stages(told: Report) -> Table:
    has_rows = bool(told.rows)
    heads = ("Stage", "Verdict", "Worst", *(("Compared",) if has_rows else ()), "First divergence")
    lines = table(*heads, numbers=("Worst", "Compared"))
    inside: Counter[str] = Counter(row.where.stage for row in told.rows)
    compared: Counter[str] = Counter(row.where.stage for row in told.rows if row.diverged is not None)
    for stage in told.stages:
        counts = (f"{compared[stage.stage]:,}/{inside[stage.stage]:,}",) if has_rows else ()
        first = _place(stage.first) if stage.first else ""
        lines.add_row(Text(stage.stage or "(none)"), _verdict(stage), number(stage.worst), *counts, Text(first))
    return lines


def _verdict(stage: Stage) -> Text:
    return {"same": Text("same", GOOD), "different": Text("different", BAD)}.get(stage.verdict or "", Text("not told", QUIET))


def _coverage(told: Report) -> list[Text]:
    coverage, lines = told.coverage, []
    total = counted(coverage.reference_records, "record")
    text = f"Compared {coverage.compared:,} of {total} of the reference with the port's {coverage.port_records:,}"
    if coverage.compared < coverage.paired and told.method in ("bisect", "live"):
        rest = counted(coverage.paired - coverage.compared, "record")
        text += f" ({coverage.read:,} by reading their values). The other {rest} with a partner were not needed to name the first"
        sampled = told.certificate.get("sampled") or 0
        text += " divergence" + (f" (of {sampled:,} a sample of the values was looked at)" if sampled else "")
        text += "; --scan compares all." if told.method == "bisect" else "."
    elif coverage.compared < coverage.paired:
        absent = "served from a trace" if any(row.how == "served" for row in told.rows) else "not stored"
        text += f". {counted(coverage.paired - coverage.compared, 'record')} could not be compared: their values were {absent}."
    else:
        text += "."
    lines.append(Text(text))
    for side, names in (("reference", coverage.unpaired_reference), ("port", coverage.unpaired_port)):
        if names:
            count = f"{counted(len(names), 'site')} of the {side} " + ("has" if len(names) == 1 else "have")
            lines.append(Text(f"Not compared: {count} no partner: {listed(grouped(names))}.", QUIET))
    return lines


def _notes(told: Report) -> list[Text]:
    """What else has to be known to read the answer rightly."""
    lines = (*_differences_excused(told), *_runs(told), *_weights(told), *_unseen(told), *_next(told))
    return [Text(line, style) for line, style in lines]


def _differences_excused(told: Report) -> Iterable[tuple[str, str]]:
    moved, harmless = (
        grouped(f"{where['reference']} {where['end']}" for where in told.certificate.get(name) or ())
        for name in ("moved", "without_effect")
    )
    if moved:
        yield f"Moved: {listed(moved)}: the output differs, but all that uses it agrees.", QUIET
    if sensitive := grouped(f"{where['reference']} {where['end']}" for where in told.certificate.get("sensitive") or ()):
        yield f"Noise-sensitive: {listed(sensitive)}: ids differ where noise changes them in the reference too; no divergence.", DOUBTFUL
    if harmless:
        yield f"Without effect: {listed(harmless)}: the input differs, but what is computed from it agrees.", QUIET


def _runs(told: Report) -> Iterable[tuple[str, str]]:
    yield from ((text, DOUBTFUL) for text in told.certificate.get("notes") or ())
    for side, trace in (("reference", told.reference), ("port", told.port)):
        if trace.get("complete") is False and told.verdict is not None:
            yield f"The {side}'s run did not come to its end.", DOUBTFUL
        if trace.get("repeats") is False:
            yield f"The {side} does not repeat itself: two runs of it differ.", DOUBTFUL
    if told.mode == "forced" and told.verdict == "same":
        yield "Each part was fed the reference's tensors: that the whole works takes a run of its own too.", DOUBTFUL


def _weights(told: Report) -> Iterable[tuple[str, str]]:
    weights = told.weights
    for label, lines in (
        ("differ", weights.different),
        ("are missing in the port", weights.missing),
        ("are unexpected in the port", weights.unexpected),
    ):
        if lines:
            yield f"Weights that {label}: {listed(list(lines))}.", DOUBTFUL
    if weights.equal:
        yield f"Weights: {weights.equal:,} equal.", QUIET


def _unseen(told: Report) -> Iterable[tuple[str, str]]:
    if told.coverage.not_seen:
        yield f"Not seen: {listed(list(told.coverage.not_seen), 3)}.", QUIET


def _next(told: Report) -> Iterable[tuple[str, str]]:
    """The command that shows more of the first divergence; a live bisection leaves no traces to draw."""
    if told.first is not None and told.first.metrics is not None and told.method != "live":
        yield f"See it: tracediff plot {told.reference['path']} {told.port['path']} --culprit", QUIET


# ------------------------------------------------------------------------------------------------------------- Markdown


def markdown(told: Report) -> str:
    """The report as Markdown: what a pull request or an issue quotes. Names cannot be read as Markdown or HTML."""
    lines = [f"**{markdown_text(headline(told))}**", ""]
    if told.first is not None:
        lines += [f"- {label}: {markdown_text(value)}" for label, value in _facts(told, 0)]
    if len(told.divergences) > 1:
        heads = ("Culprit in the port", "Reference", "Introduced", "Allowed", "Likely cause")
        others = (
            (module(one.culprit.port), module(one.culprit.reference), *_judged_cells(told, place)) for place, one in _after_first(told)
        )
        lines += ["", *_plain_table(heads, others)]
    if [stage.stage for stage in told.stages] not in ([], [""]):
        lines += ["", *_plain_table(("Stage", "Verdict", "Worst", "Floor", "First divergence"), map(_stage_line, told.stages))]
    return "\n".join([*lines, "", *(f"{markdown_text(line)}  " for line in remarks(told))]).rstrip() + "\n"


def _after_first(told: Report) -> Iterable[tuple[int, Divergence]]:
    return enumerate(told.divergences[1:], 1)


def _judged_cells(told: Report, place: int) -> tuple[str, str, str]:
    divergence = told.divergences[place]
    return number(divergence.introduced), limit(told, place), divergence.causes[0].kind if divergence.causes else "unknown"


def _stage_line(stage: Stage) -> tuple[str, ...]:
    first = _place(stage.first) if stage.first else ""
    return stage.stage or "(none)", stage.verdict or "not told", number(stage.worst), number(stage.floor), first


def _plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return markdown_table(heads, ([markdown_text(cell) for cell in row] for row in rows))


# ---------------------------------------------------------------------------------------- the same words for other views of a report


def headline(told: Report) -> str:
    """The answer in a sentence."""
    return _headline(told).plain


def facts(told: Report, place: int) -> list[tuple[str, str]]:
    """What is known of a divergence: labels and texts, a label repeated where it has several."""
    return _facts(told, place)


def limit(told: Report, place: int) -> str:
    """What was allowed at a divergence, as a cell of a table."""
    judged = _judged(told, place)
    return "none" if judged.get("by") == "exact" else number(judged.get("limit"))


def remarks(told: Report, *, brief: bool = False) -> list[str]:
    """How much was compared, and what else has to be known; where ``brief``, without what was not seen and the weights."""
    if not brief:
        return [line.plain for line in (*_coverage(told), *_notes(told))]
    return [line.plain for line in _coverage(told)] + [line for line, _ in (*_differences_excused(told), *_runs(told))]


def pairs(told: Report, *, most: int = 1000) -> list[tuple[tuple[str, ...], str]]:
    """The cells of the table of all pairs and each one's state; of more than ``most`` pairs those that tell something."""
    shown = range(len(told.rows)) if len(told.rows) <= most else sorted(_telling(told.rows))[:most]
    return [(_cells(told.rows[place]), state(told.rows[place])) for place in shown]


# -------------------------------------------------------------------------------------------------------- the table of all pairs


def diff(told: Report, *, every: bool = False) -> RenderableType:
    """The pairs in execution order: all, or those that diverged with what came just before."""
    shown = range(len(told.rows)) if every else sorted(_telling(told.rows))
    rest = len(told.rows) - len(shown)
    hidden = Text(f"{counted(rest, 'further pair')} agree or were not compared; --all lists them.", QUIET) if rest else Text("")
    parts: list[RenderableType] = [_headline(told)]
    if shown:
        parts += [Text(""), _Pairs([told.rows[place] for place in shown])]
    return Group(*parts, Text(""), *([hidden] if rest else []), *_coverage(told))


def _telling(rows: Sequence[Row]) -> set[int]:
    """Pairs that diverged, and the two before each that was introduced."""
    found = {place for place, row in enumerate(rows) if row.diverged and not row.effect}
    return (
        found
        | {place for place, row in enumerate(rows) if row.effect}
        | {before for place, row in enumerate(rows) if row.introduced for before in range(max(0, place - 2), place)}
    )


class _Pairs:
    """Lines of a table that may be long: measured once, written as they are, in the columns that there is room for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [_cells(row) for row in self.rows]
        widths = _widths(cells, options.max_width)
        yield Segment(_line(HEADS, widths) + "\n", console.get_style(LABEL))
        stage = ""
        for row, line in zip(self.rows, cells, strict=True):
            if row.where.stage != stage:
                stage = row.where.stage
                yield Segment(f"{stage or '(no stage)'}\n", console.get_style(QUIET))
            yield Segment(_line(line, widths) + "\n", _style(row, console))


HEADS = ("reference", "port", "end", "call", "rel L2", "max abs", "allowed", "")
_NAMES, _NUMBERS = (0, 1, 2, 3), (4, 5, 6)
_DISPENSABLE = (6, 1, 3, 5)
"""Columns that are left out of narrow tables, the first one first."""
_NARROWEST = 18


def _cells(row: Row) -> tuple[str, ...]:
    where = row.where
    port = "=" if where.port == where.reference else where.port or "the root"
    error = f">{number(row.at_least)}" if row.rel_l2 is None and row.at_least else number(row.rel_l2)
    limit = "none" if row.by == "exact" else "noise" if row.by == "sensitive" else number(row.limit)
    return (module(where.reference), port, where.end, short_call(where.call), error, number(row.max_abs), limit, state(row))


def state(row: Row) -> str:
    """A pair in a word."""
    if row.diverged is None:
        return "not compared"
    if row.diverged:
        return row.effect if row.effect in ("moved", "no effect", "untold", "noise") else "INTRODUCED" if row.introduced else "differs"
    if row.rel_l2 and row.by == "sensitive":
        return "noise-sensitive"
    return "identical" if row.rel_l2 == 0 else "rounding" if row.by == "rounding" else "same"


def _style(row: Row, console: Console) -> Style | None:
    if row.diverged and not row.effect:
        return console.get_style(BAD if row.introduced else "red")
    return console.get_style(QUIET) if row.diverged is None or row.effect else None


def _widths(cells: Sequence[tuple[str, ...]], total: int) -> dict[int, int]:
    """The width of each column shown: names give way first, then columns that can be spared."""
    widths = {column: max(len(line[column]) for line in (*cells, HEADS)) for column in range(len(HEADS))}
    for spared in (None, *_DISPENSABLE):
        widths.pop(spared, None)  # type: ignore[arg-type]
        names = [column for column in _NAMES if column in widths]
        least = {column: min(widths[column], _NARROWEST) for column in names}
        room = total - 2 * (len(widths) - 1) - sum(width for column, width in widths.items() if column not in names)
        if sum(least.values()) <= room:
            break
    excess = sum(widths[column] for column in names) - room
    while excess > 0:
        widest = max(names, key=lambda column: widths[column])
        if widths[widest] <= 8:
            break
        widths[widest] -= 1
        excess -= 1
    return widths


def _line(cells: Sequence[str], widths: Mapping[int, int]) -> str:
    shown = (
        _fitted(cells[column], width).rjust(width) if column in _NUMBERS else _fitted(cells[column], width).ljust(width)
        for column, width in widths.items()
    )
    return "  ".join(shown).rstrip()


def _fitted(text: str, width: int) -> str:
    """A name cut at its beginning, since its end tells more."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]
