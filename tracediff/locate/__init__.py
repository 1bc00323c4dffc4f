"""The first divergence of two traces: by scan, or by bisection that reads few tensors and says what its answer rests on.

A pair *diverged* if it is beyond what is allowed. An error was *introduced* at a pair that diverged while everything it can come from
agrees: for an input of a module the caller's inputs and what the caller's earlier calls returned, for an output the module's inputs and
what the calls inside it returned. A diverged output blames its module; a diverged input blames the caller's own code.

Four kinds of difference are no divergence: a *moved boundary* (an output differs, but everything that consumes it agrees, since a
scale or a bias is applied inside on one side and outside on the other), an input *without effect* (a mask of another convention: what
the module computes from it agrees), an *equivalent form* (a call around it returns numbers that agree: see `absorbed`), and what is
*borderline* (see `grades`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from tracediff.alignment import Alignment, RecordPair
from tracediff.errors import TracediffError
from tracediff.locate.absorbed import acquit, acquitted, let_through
from tracediff.locate.findings import finding
from tracediff.locate.grades import Borderline
from tracediff.locate.lengths import length_of, measured
from tracediff.locate.merging import merged, sharing
from tracediff.locate.result import EXCUSED, Again, Blame, Certificate, Comparison, Effect, Finding, How, Length, Located, Method, Mode
from tracediff.locate.search import bisected, certified, descended, in_order, introduced, look_into_stages, scanned
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts, verdicts_of
from tracediff.locate.workers import Workers
from tracediff.metrics import Metrics, tolerance
from tracediff.site import is_in_stage
from tracediff.trace import Trace

__all__ = [
    "EXCUSED",
    "Again",
    "Blame",
    "Certificate",
    "Comparison",
    "Effect",
    "Finding",
    "How",
    "Length",
    "Located",
    "Method",
    "Mode",
    "length_of",
    "locate",
]


def locate(
    alignment: Alignment,
    reference: Trace,
    port: Trace,
    *,
    scan: bool = False,
    mode: Mode | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    floors: Mapping[int, float] | None = None,
    compared: Mapping[tuple[int, int], Metrics] | None = None,
    strict: bool = False,
    stages: Sequence[str] = (),
    probes: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    again: Again | None = None,
    workers: Workers | None = None,
) -> Located:
    """Where two aligned traces first part.

    With ``scan`` every pair is compared, and all introduced divergences are found; otherwise pairs are bisected and only the first one
    is. ``mode`` is by default what the port's trace says. ``floors`` are noise floors by the reference's row; ``compared`` are metrics
    already taken (in a forced run), by the first rows of reference and port: those are not read again. With ``strict`` nothing is
    borderline. ``stages`` restricts to some stages. ``probes`` pairs before the answer are looked at (`THRESHOLDS.probes` by default),
    chosen by ``seed``. ``progress`` is called with (done, total) while scanning. ``again`` fetches values that the traces do not
    hold: the search then goes from the outermost calls inwards, one call a fetch, and nothing is borderline. ``workers`` read ahead.

    Raises TracediffError for half a tolerance, or stages of which nothing is compared.
    """
    tolerance(rtol, atol)
    mode = mode or ("forced" if port.meta.get("mode_run") == "forced" else "free")
    pairs = _of_stages(alignment, reference, stages)
    verdicts = verdicts_of(
        pairs,
        alignment,
        reference,
        port,
        mode=mode,
        tolerance=(rtol, atol),
        floors=floors or {},
        compared=compared or {},
        again=again,
        workers=workers,
    )
    method: Method = "live" if again is not None else "scan" if scan or mode == "forced" else "bisect"
    probes = THRESHOLDS.probes if probes is None else probes
    places, probed = _places(verdicts, method, probes, random.Random(seed), progress)
    absorbed: dict[int, str] = {}
    borderline = Borderline(verdicts, most=0.0 if strict else THRESHOLDS.borderline)
    while True:
        forms: dict[int, int] = {}
        if mode == "free" and again is None:
            forms = acquit(verdicts, _all_introduced(verdicts, places, method, partial(acquitted, verdicts)))
        absorbed.update((i, verdicts.flow.calls.site_of(call)) for i, call in forms.items())
        left = [i for i in places if i not in forms]
        if not borderline.excuse(left, _all_introduced(verdicts, left, method, borderline.may_hold)) and not forms:
            break
        places, probed = _places(verdicts, method, probes, random.Random(seed), None)
    findings, faint = (_findings(verdicts, of_grade) for of_grade in (places, borderline.places))
    comparisons = tuple(map(verdicts.comparison, range(len(verdicts))))
    certificate = certified(verdicts, comparisons, method, places[0] if places else None, probed, seed)
    bytes_read = verdicts.comparisons.bytes_read + verdicts.expected.bytes_read
    equivalent = absorbed if mode == "free" else let_through(verdicts, comparisons)
    return Located(
        mode,
        method,
        comparisons,
        tuple(findings),
        certificate,
        verdicts.comparisons.read,
        bytes_read,
        tuple(sorted(equivalent.items())),
        tuple(faint),
    )


def _findings(verdicts: Verdicts, places: Sequence[int]) -> list[Finding]:
    """The faults whose places were introduced, with the lengths in which shapes differ."""
    return [replace(one, length=measured(verdicts, one.place)) for one in merged(verdicts, [finding(verdicts, i) for i in places])]


def _all_introduced(
    verdicts: Verdicts, places: Sequence[int], method: Method, may_excuse: Callable[[Sequence[int]], object]
) -> Sequence[int]:
    """All introduced divergences. A bisection knows the first one only, and compares every pair where that one may be excused.

    So no other is excused with it: what is borderline, or absorbed, is so beside all others.
    """
    return introduced(verdicts, scanned(verdicts, None)) if method == "bisect" and may_excuse(places) else places


def _places(
    verdicts: Verdicts, method: Method, probes: int, chance: random.Random, progress: Callable[[int, int], None] | None
) -> tuple[list[int], int]:
    """The places of the introduced divergences, the first only unless all were compared; and how many pairs were probed.

    Runs that noise-sensitive ids may have sent different ways are scanned in any case: nothing that follows is then evidence by itself.
    """
    if method == "scan" or verdicts.effects.flipped:
        dirty = scanned(verdicts, progress)
        places = introduced(verdicts, dirty)
        if verdicts.effects.flipped and not places:
            verdicts.effects.excuse(dirty, "noise")
        return places if method == "scan" else places[:1], 0
    places, probed = (descended if method == "live" else bisected)(verdicts, probes, chance)
    places += [place for first in places for place in sharing(verdicts, first)]
    if method == "bisect":
        look_into_stages(verdicts)
    return places, probed


def _of_stages(alignment: Alignment, reference: Trace, stages: Sequence[str]) -> list[RecordPair]:
    """The pairs in the reference's execution order, of the stages asked for and those inside them."""
    pairs = in_order(alignment.records)
    if not stages:
        return pairs
    outer_of: Mapping[str, str] = reference.meta.get("stages") or {}
    known = {reference.records[pair.reference[0]].stage for pair in pairs}
    wanted = {stage for stage in known if any(not asked or is_in_stage(stage, asked, outer_of) for asked in stages)}
    if not wanted:
        raise TracediffError(f"No stage {', '.join(map(repr, stages))} among the compared ones: {', '.join(map(repr, sorted(known)))}.")
    return [pair for pair in pairs if reference.records[pair.reference[0]].stage in wanted]
