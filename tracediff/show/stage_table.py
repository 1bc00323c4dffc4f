"""Status as text and as Markdown: the page on which a port's author keeps how far it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracediff.show.words import (
    BAD,
    DOUBTFUL,
    GOOD,
    LABEL,
    PLAIN_WIDTH,
    QUIET,
    UNWRAPPED,
    counted,
    ended,
    grouped,
    markdown_table,
    markdown_text,
    module,
    number,
    plain,
    short_call,
    table,
)
from tracediff.site import listed, printable
from tracediff.stage_table import MODES, Mode, Outcome, RunInfo, StageStatus, Status
from tracediff.storage_cost import StorageCost

if TYPE_CHECKING:
    from tracediff.report import Where

STYLES = {"same": GOOD, "different": BAD}
_TOLD = ("same", "repeatable", "different")
"""The states of a stage of which all was compared."""
WHOLE = "the whole run"
NUMBERS = ("worst", "floor", "compared")
SHORTEST = 24
"""Names of stages are cut to so many characters before a column is left out."""
WIDE = 110
"""From so many columns on, where and why stages differ is a table."""


# ------------------------------------------------------------------------------------------------------------------- text


def render(status: Status) -> RenderableType:
    """The verdict in the first line, then a row a stage, what was compared and what to do next."""
    parts: list[RenderableType] = [
        _headline(status),
        *(Text(line, DOUBTFUL) for line in status.caveats),
        "",
        Padding(_Stages(status), (0, 0, 0, 2)),
    ]
    if causes := list(_causes(status)):
        parts += ["", Padding(_Causes(causes), (0, 0, 0, 2))]
    parts += ["", *(Text(line, QUIET) for line in _compared(status))]
    parts += [Text(f"Note: {line}.", DOUBTFUL) for line in status.notes]
    if status.verdict != "same":
        parts += [Text(f"Not told: {line}.", DOUBTFUL) for line in status.why]
        parts += [Text(f"Next: {line}", LABEL) for line in status.next]
    return Group(*parts)


def written(status: Status, form: str) -> str:
    """The status as ``text``, ``markdown`` or ``json``, with its last line end."""
    forms = {
        "text": lambda: plain(render(status)),
        "markdown": lambda: printable(markdown(status)),
        "json": lambda: status.to_json() + "\n",
    }
    return forms[form]()


def headline(status: Status) -> str:
    """The verdict in a sentence."""
    return _headline(status).plain


def _headline(status: Status) -> Text:
    if status.verdict == "same":
        return Text.assemble(("Same", GOOD), f": {_each(status)} agrees, forced and free")
    if status.verdict == "different":
        return Text.assemble(("Different", BAD), f": {_each_different(status)}")
    return Text.assemble((undecided(status).capitalize(), DOUBTFUL), f": {_undecided(status)}")


def undecided(status: Status) -> str:
    """The word for no verdict: something was not compared, or what was compared cannot tell of the whole."""
    states = {stage.state(mode) for stage in status.stages for mode in MODES} - {None, *_TOLD}
    return "not compared" if states else "cannot tell"


def _each(status: Status) -> str:
    return f"each of {counted(len(status.stages), 'stage')}" if status.has_stages else WHOLE


def _each_different(status: Status) -> str:
    """Which stages differ, of how many that have none inside them."""
    if not status.has_stages:
        return WHOLE
    different = [stage for stage in status.stages if any(stage.state(mode) == "different" for mode in MODES)]
    around_different = {stage.outer for stage in different}
    names = [stage.stage for stage in different if stage.stage not in around_different]
    around = {stage.outer for stage in status.stages}
    innermost = [stage.stage for stage in status.stages if not stage.stage or stage.stage not in around]
    return f"{len(names)} of {counted(len(innermost), 'stage')} ({listed([name or '(no stage)' for name in names])})"


def _undecided(status: Status) -> str:
    """What can be said where nothing differs and yet not all is the same."""
    ran = [mode for mode in MODES if status.side(mode)]
    states = {stage.state(mode) for stage in status.stages for mode in ran} - {None}
    if not states <= {*_TOLD}:
        return "what was compared agrees, but not everything was compared"
    if "repeatable" in states:
        return "the port repeats itself; its reference ran the same code, so this does not show that it is right"
    if ran == ["forced"]:
        return "every compared part is right; run the port free to show that the whole works"
    if ran == ["free"]:
        return "the whole gives what the reference gives; run the port forced to show that each part does by itself"
    return "what was compared agrees, but the two runs do not show it of the whole port"


class _Stages:
    """The table of stages in the columns that there is room for; the name of a stage is cut at its beginning last of all."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = max(len(_name(self.status, stage)) for stage in self.status.stages)
        unbounded = options.update(max_width=UNWRAPPED)
        for spared in ((), ("floor",), ("floor", "compared"), NUMBERS):
            excess = console.measure(_stages(self.status, spared), options=unbounded).maximum - options.max_width
            if excess <= max(names - SHORTEST, 0) or spared == NUMBERS:
                yield _stages(self.status, spared, names - max(excess, 0))
                return


def _name(status: Status, stage: StageStatus) -> str:
    return "  " * stage.depth + (stage.stage or _unnamed(status))


def _stages(status: Status, spared: Sequence[str] = (), most: int = PLAIN_WIDTH) -> Table:
    """A row a stage, without the columns that are spared, names of at most so many characters."""
    ran = [mode for mode in MODES if status.side(mode)]
    kept = [name for name in NUMBERS if name not in spared]
    heads = [("Stage", False)]
    for mode in MODES:
        heads += [(mode.capitalize(), False)]
        heads += [(name, True) for name in kept] if mode in ran else []
    has_cost = any(stage.storage for stage in status.stages)
    heads += [("stored weights: one layer", True), ("at the end", True)] if has_cost else []
    lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=LABEL)
    for head, is_number in heads:
        lines.add_column(head, justify="right" if is_number else "left", no_wrap=True)
    for stage in status.stages:
        cells: list[Text] = [Text(ended(_name(status, stage), max(most, 8)))]
        for mode in MODES:
            outcome = stage.outcome(mode)
            if outcome is None:
                cells += [Text("not run", QUIET)]
                continue
            told = dict(zip(NUMBERS, numbers(outcome), strict=True))
            cells += [_state(outcome), *(Text(told[name]) for name in kept)]
        if has_cost:
            cells += map(Text, ("-", "-") if stage.storage is None else _cost(stage.storage))
        lines.add_row(*cells)
    return lines


def _cost(storage: StorageCost) -> tuple[str, str]:
    return number(storage.introduced), number(storage.at_end)


def _unnamed(status: Status) -> str:
    return WHOLE if len(status.stages) == 1 else "(no stage)"


def _state(outcome: Outcome) -> Text:
    return Text(outcome.state, STYLES.get(outcome.state, DOUBTFUL))


def numbers(outcome: Outcome) -> tuple[str, str, str]:
    """The worst error, the noise floor there and how much was compared, as cells."""
    worst = "other" if outcome.state == "different" and outcome.worst is None else number(outcome.worst)
    return worst, number(outcome.floor), f"{outcome.compared:,}/{outcome.total:,}"


def _causes(status: Status) -> Iterable[tuple[str, Mode, Outcome]]:
    """The stages that differ, each run by itself; an outer stage only where none inside it does."""
    for mode in MODES:
        different = [stage for stage in status.stages if stage.state(mode) == "different"]
        around = {stage.outer for stage in different}
        for stage in different:
            outcome = stage.outcome(mode)
            if outcome and (not stage.stage or stage.stage not in around):
                yield stage.stage or _unnamed(status), mode, outcome


class _Causes:
    """The stages that differ with where and why: a table, or where there is too little room for one three lines each."""

    def __init__(self, causes: Sequence[tuple[str, Mode, Outcome]]) -> None:
        self.causes = causes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width >= WIDE:
            yield _cause_table(self.causes)
            return
        for stage, mode, outcome in self.causes:
            yield Text.assemble((f"{stage}, {mode}", LABEL), f": {_first_of(outcome)}", overflow="fold")
            yield Padding(Text(_cause(outcome), overflow="fold"), (0, 0, 0, 2))


def _cause_table(causes: Iterable[tuple[str, Mode, Outcome]]) -> Table:
    lines = table("Stage", "Run", "First divergence", "Likely cause")
    for stage, mode, outcome in causes:
        lines.add_row(Text(stage), Text(mode), Text(_first_of(outcome)), Text(_cause(outcome)))
    return lines


def first_place(outcome: Outcome) -> str:
    """Where a stage first differs: the culprit in the port where one was found, and the end it shows at."""
    if outcome.first is None:
        return ""
    place = _place(outcome.first)
    is_tap_of_the_run = outcome.first.port.startswith("#")
    if outcome.culprit is None or outcome.culprit.port == outcome.first.port or (is_tap_of_the_run and not outcome.culprit.port):
        return place
    return f"{module(outcome.culprit.port)} (seen at {place})"


def _first_of(outcome: Outcome) -> str:
    """The same with how many more faults were introduced in the stage."""
    more = outcome.introduced - 1
    return first_place(outcome) + (f", and {counted(more, 'more fault')}" if more > 0 else "")


def _place(where: Where) -> str:
    call = short_call(where.call)
    return f"{module(where.port)} {where.end}" + (f" ({call})" if call else "")


def _cause(outcome: Outcome) -> str:
    if not outcome.introduced:
        return "may be inherited: something before it is off already"
    if not outcome.causes:
        return "unknown"
    cause = outcome.causes[0]
    sure = "confirmed" if cause.confirmed else f"{cause.confidence:.0%}"
    return f"{cause.kind} ({sure}): {cause.evidence}"


def _compared(status: Status) -> Iterable[str]:
    """How much was compared in each run, and what found no partner."""
    for mode, coverage in status.coverage.items():
        alone = " and ".join(
            f"{counted(len(names), 'site')} of the {name}"
            for name, names in (("reference", coverage.unpaired_reference), ("port", coverage.unpaired_port))
            if names
        )
        total = counted(coverage.reference_records, "record")
        yield f"{mode.capitalize()}: compared {coverage.compared:,} of {total} of the reference" + (
            f"; no partner: {alone}" if alone else ""
        )


# --------------------------------------------------------------------------------------------------------------- Markdown


def markdown(status: Status) -> str:
    """The verification page: verdict, both sides, a row a stage, causes, what was not compared or seen, how to reproduce it."""
    parts = [
        [f"# {_title(status)}"],
        [f"**{markdown_text(headline(status))}.**"],
        [f"**{markdown_text(line)}**" for line in status.caveats],
        [f"- {markdown_text(line)}" for line in (*(status.why if status.verdict != "same" else ()), *status.notes)],
        ["## Stages", "", *_stage_lines(status)],
        _cause_lines(status),
        ["## The runs", "", *_side_lines(status)],
        ["## Compared", "", *_coverage_lines(status)],
        _weight_lines(status),
        ["## Reproduce", "", "```sh", *_commands(status), "```"],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _title(status: Status) -> str:
    port = status.free or status.forced
    name = f"{status.reference.recipe}: " if status.reference.recipe else ""
    sides = f"{port.impl if port else ''} port against the {status.reference.impl} reference".strip()
    return markdown_text(name + sides)


def _stage_lines(status: Status) -> list[str]:
    has_cost = any(stage.storage for stage in status.stages)
    heads = ["Stage", *(f"{mode.capitalize()}{what}" for mode in MODES for what in ("", ": worst (floor)", ": compared"))]
    heads += ["Stored weights: one layer", "at the end"] if has_cost else []
    rows = []
    for stage in status.stages:
        cells = ["&nbsp;&nbsp;" * stage.depth + _code(stage.stage or _unnamed(status))]
        for mode in MODES:
            outcome = stage.outcome(mode)
            if outcome is None:
                cells += ["not run", "", ""]
                continue
            worst, floor, compared = numbers(outcome)
            cells += [f"**{outcome.state}**" if outcome.state == "different" else outcome.state, f"{worst} ({floor})", compared]
        if has_cost:
            cells += ["-", "-"] if stage.storage is None else _cost(stage.storage)
        rows.append(cells)
    return markdown_table(heads, rows)


def _cause_lines(status: Status) -> list[str]:
    rows = [(_code(stage), mode, _code(_first_of(outcome)), markdown_text(_cause(outcome))) for stage, mode, outcome in _causes(status)]
    return ["## Divergences", "", *markdown_table(("Stage", "Run", "First divergence", "Likely cause"), rows)] if rows else []


def _side_lines(status: Status) -> list[str]:
    runs = {"Reference": status.reference, **{f"Port, {mode}": status.side(mode) for mode in MODES}}
    facts = {name: _facts(run) for name, run in runs.items() if run is not None}
    labels = dict.fromkeys(label for of_run in facts.values() for label in of_run)
    rows = [(label, *(of_run[label] for of_run in facts.values())) for label in labels]
    return markdown_table(("", *facts), [row for row in rows if any(row[1:])])


def _facts(run: RunInfo) -> dict[str, str]:
    """What is known of a run, by label; "" where a fact is not."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    repeats = {True: "yes", False: "no", None: ""}[run.repeats]
    facts = {
        "trace": _code(run.path),
        "framework": run.impl,
        "versions": versions,
        "dtype": run.dtype,
        "device": run.device,
        "mode": run.mode,
        "weights": run.weights,
        "seed": "" if run.seed is None else str(run.seed),
        "recorded": run.created,
        "git": run.git,
        "came to its end": "yes" if run.complete else "no",
        "repeats itself": repeats,
        "stages started from": _code(run.start) if run.start else "",
    }
    return {name: text if text.startswith("`") else markdown_text(text) for name, text in facts.items()}


def _coverage_lines(status: Status) -> list[str]:
    lines = [f"- {markdown_text(line)}." for line in _compared(status)]
    for mode, coverage in status.coverage.items():
        for name, sites in (("reference", coverage.unpaired_reference), ("port", coverage.unpaired_port)):
            if sites:
                groups = grouped(sites)
                lines.append(f"- {mode}: without partner in the {name}: {_some(groups)}")
        if coverage.not_seen:
            lines.append(f"- {mode}: not seen: {_some(list(coverage.not_seen))}")
    return lines


def _some(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(_code(name or "the root") for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def _weight_lines(status: Status) -> list[str]:
    weights = status.weights
    lines = [f"- {weights.equal:,} equal"] if weights.equal else []
    for label, found in (("different", weights.different), ("missing in the port", weights.missing), ("unexpected", weights.unexpected)):
        lines += [f"- {label}: {_code(line)}" for line in found]
    return ["## Weights", "", *lines] if lines else []


def _commands(status: Status) -> list[str]:
    """The command lines that made the traces, and the one that made this page; what no command line made is a remark."""
    sides = [side for side in (status.reference, status.forced, status.free) if side is not None]
    lines = []
    for side in sides:
        command = " ".join(side.command.split())
        lines.append(
            command if command.startswith(("tracediff ", "python -m tracediff ")) else f"# {side.path}: recorded by {command or '-'}"
        )
    this_page = shlex.join(["tracediff", "status", *(side.path for side in sides), "--format", "markdown"])
    return [line.replace("```", "` ` `") for line in (*lines, this_page)]


def _code(text: str) -> str:
    """A name in code type, which neither Markdown nor HTML reads into; a table's bars are its own affair."""
    plain = " ".join(text.split()).replace("`", "'")
    return f"`{plain}`" if plain else ""
