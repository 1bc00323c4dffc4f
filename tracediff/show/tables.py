"""Tables that are no report: what a capture recorded, what a trace holds, what corresponds, what the doctor found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracediff.show.words import counted, number
from tracediff.site import listed
from tracediff.trace.budget import budget_note
from tracediff.trace.products import products_of, told

if TYPE_CHECKING:
    from tracediff.alignment import Alignment, SitePair
    from tracediff.alignment.result import Why
    from tracediff.doctor import Check
    from tracediff.trace import Trace
    from tracediff.trace.listing import Listing

STATES = {"ok": "bold green", "slow": "yellow", "coarse": "yellow", "missing": "yellow"}
DOUBTFUL = 0.6
"""Pairs below this confidence are marked."""


def captured(trace: Trace) -> RenderableType:
    """What a capture recorded, whether the run repeats itself, and what it did not see."""
    meta = trace.meta
    size = trace.path.stat().st_size / 1e6
    held = (
        f"{counted(len(trace.records), 'record')} of {counted(len(trace.sites), 'site')}, {len(trace.params):,} parameters, {size:.1f} MB"
    )
    run = (
        f"{', '.join(str(meta.get(name)) for name in ('impl', 'dtype', 'device', 'mode'))} mode, run in {meta.get('wall_seconds', 0):.1f} s"
    )
    lines = [Text(f"{trace.path}: {held}", "bold"), Text(run)]
    lines += [Text(line, style) for line, style in _repeats(meta)]
    if products_of(trace) != "float32":
        lines.append(Text(f"products of float32 numbers: {told(meta)}", "yellow"))
    if told_of_budget := budget_note(trace, "trace"):
        lines.append(Text(told_of_budget, "yellow"))
    lines += [Text(f"warning: {warning}", "yellow") for warning in meta.get("warnings") or ()]
    missed = meta.get("not_seen") or ()
    if missed:
        lines.append(Text(f"not seen: {listed(list(missed), 8)}", "dim"))
    lines += [Text(f"blind spot: {text}", "dim") for text in meta.get("blind_spots") or ()]
    return Group(*lines)


def merged(trace: Trace, differences: Sequence[str]) -> RenderableType:
    """What a merged trace holds, and which ranks differ from their replicas."""
    meta = trace.meta
    said = meta.get("merged") or {}
    mesh = " x ".join(f"{axis} {size}" for axis, size in said.get("mesh", {}).items())
    held = f"{counted(len(trace.records), 'record')} of {counted(len(trace.sites), 'site')}, {len(trace.params):,} parameters"
    lines = [Text(f"{trace.path}: {held}", "bold"), Text(f"{said.get('ranks')} ranks ({mesh})")]
    lines += [Text(line, "bold red") for line in differences] or [Text("all replicas agree", "green")]
    if missed := meta.get("not_seen") or ():
        lines.append(Text(f"not seen: {listed(list(missed), 8)}", "dim"))
    return Group(*lines)


def _repeats(meta: dict[str, Any]) -> Iterable[tuple[str, str]]:
    if meta.get("repeats") is True:
        yield "a second run gave the same bits", "green"
    elif meta.get("repeats") is False:
        site, call, end = ((meta.get("repeats_first") or {}).get(name) for name in ("site", "call", "end"))
        yield f"it does not repeat itself: a second run first differs at {site!r} {end} ({call})", "bold red"
    else:
        yield "not run a second time, so it is not known whether it repeats itself", "dim"


def listing(contents: Listing) -> RenderableType:
    """A listing as a table."""
    table = _table(*contents.columns)
    for row in contents.rows:
        table.add_row(*(_cell(value) for value in row))
    more = [Text(f"and {contents.more:,} more; --limit 0 lists all", "dim")] if contents.more else []
    notes = [Text(note, "dim") for note in contents.notes]
    return Group(Text(contents.title, "bold"), table, *more, *notes)


def alignment(aligned: Alignment, *, unpaired: bool = False) -> RenderableType:
    """Which sites correspond, with evidence and confidence; with ``unpaired`` only what has no partner or is ambiguous."""
    shown = [(place, pair) for place, pair in enumerate(aligned.pairs) if not unpaired or not pair.is_paired or pair.ambiguous]
    table = _table("reference", "port", "layout", "evidence", "sure")
    for place, pair in shown:
        table.add_row(*_pair_cells(aligned, place, pair), style=None if pair.is_paired and pair.confidence >= DOUBTFUL else "yellow")
    paired = sum(pair.is_paired for pair in aligned.pairs)
    alone = f"{counted(len(aligned.pairs) - paired, 'site')} without partner"
    head = f"{counted(paired, 'pair')} of sites, {counted(len(aligned.records), 'pair')} of records; {alone}"
    return Group(Text(head, "bold"), table, *(Text(warning, "yellow") for warning in aligned.warnings))


def why(told: Why) -> RenderableType:
    """Why a site is paired as it is, and who says what of the layouts that shapes leave open, in nats."""
    lines: list[RenderableType] = []
    for pair in told.pairs:
        names = " | ".join("-" if side is None else side or "(root)" for side in (pair.reference, pair.port))
        rivals = f"; or {listed(list(pair.ambiguous), 3)}" if pair.ambiguous else ""
        lines.append(Text(f"{names}: {pair.evidence or 'no partner'}{rivals} ({pair.confidence:.2f})", "bold"))
        if pair.voices:
            lines.append(_voices(pair))
    for layout, account in told.layouts:
        head = f"{account.ends[0]} | {account.ends[1]}: read as {layout} rather than {account.rival}, {account.probability:.1%} sure"
        table = _table("", layout, account.rival)
        for source, chosen, rival in account.voices:
            table.add_row(Text(source), *(Text(f"{worth + 0.0:.2f}") for worth in (chosen, rival)))
        lines += [Text(head), table]
    return Group(*lines)


def _voices(pair: SitePair) -> Table:
    """What each source says of a pair of sites, and of the nearest rival; sources that say nothing of either are left out."""
    rival = " | ".join(name or "(root)" for name in pair.rival) if pair.rival else "no rival"
    table = _table("", "this pair", rival)
    in_all = ("all", sum(ours for _, ours, _ in pair.voices), sum(theirs for *_, theirs in pair.voices))
    for source, ours, theirs in (*pair.voices, in_all):
        if ours or (theirs and pair.rival):
            table.add_row(Text(source.replace("_", " ")), Text(f"{ours:+.2f}"), Text(f"{theirs:+.2f}" if pair.rival else ""))
    return table


def _pair_cells(aligned: Alignment, place: int, pair: SitePair) -> tuple[Text, ...]:
    candidates = f" (or {listed(list(pair.ambiguous), 2)})" if pair.ambiguous else ""
    nearest = f"nearest: {listed(list(pair.ambiguous), 3)}" if pair.ambiguous else ""
    evidence = pair.evidence + candidates if pair.is_paired else nearest or pair.evidence
    sure = f"{pair.confidence:.2f}" if pair.is_paired else ""
    names = ("-" if side is None else side or "(root)" for side in (pair.reference, pair.port))
    return tuple(Text(text) for text in (*names, aligned.layout_of(place) if pair.is_paired else "", evidence, sure))


def checks(results: Iterable[Check]) -> RenderableType:
    """The doctor's checks: what was seen, and the cure where there is one."""
    table = _table("", "", "")
    table.show_header = False
    for check in results:
        cure = Text(f"\n  {check.cure}", "dim") if check.cure and check.state != "ok" else Text()
        table.add_row(Text(check.state, STATES[check.state]), Text(check.name), Text(check.seen).append(cure))
    return table


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", "dim")
    return Text(number(value) if isinstance(value, float) else str(value))
