"""The first divergence of two traces: by scan, or by bisection that reads few tensors and says what its answer rests on.

A pair *diverged* if it is beyond what is allowed. An error was *introduced* at a pair that diverged while everything it can come from
agrees: for an input of a module the caller's inputs and what the caller's earlier calls returned, for an output the module's inputs and
what the calls inside it returned. A diverged output blames its module; a diverged input blames the caller's own code.

Two kinds of difference are no divergence: a *moved boundary* (an output differs, but everything that consumes it agrees, since a scale
or a bias is applied inside on one side and outside on the other) and an input *without effect* (a mask of another convention: what
the module computes from it agrees).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from tracediff.alignment import Alignment, RecordPair
from tracediff.compare import Metrics, tolerance
from tracediff.errors import TracediffError
from tracediff.locate.findings import finding, merged, sharing
from tracediff.locate.result import INPUTS, Again, Blame, Certificate, Comparison, Effect, Finding, How, Located, Method, Mode
from tracediff.locate.search import bisected, certified, descended, introduced, look_into_stages, scanned
from tracediff.locate.verdicts import Judge
from tracediff.trace import Trace

__all__ = ["INPUTS", "Again", "Blame", "Certificate", "Comparison", "Effect", "Finding", "How", "Located", "Method", "Mode", "locate"]

PROBES = 16


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
    stages: Sequence[str] = (),
    probes: int = PROBES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    again: Again | None = None,
) -> Located:
    """Where two aligned traces first part.

    With ``scan`` every pair is compared, and all introduced divergences are found; otherwise pairs are bisected and only the first one
    is. ``mode`` is by default what the port's trace says. ``floors`` are noise floors by the reference's row; ``compared`` are metrics
    already taken (in a forced run), by the first rows of reference and port: those are not read again. ``stages`` restricts to some stages.
    ``progress`` is told (done, total) while scanning. ``again`` fetches values that the traces do not hold: the search then goes from the
    outermost calls inwards, one frame a fetch.
    """
    tolerance(rtol, atol)
    mode = mode or ("forced" if port.meta.get("mode_run") == "forced" else "free")
    pairs = _in_order(alignment, reference, stages)
    judge = Judge(pairs, alignment, reference, port, mode=mode, given=(rtol, atol), floors=floors or {}, compared=compared or {})
    judge.again = again
    method: Method = "live" if again is not None else "scan" if scan or mode == "forced" else "bisect"
    if method == "scan":
        dirty = scanned(judge, progress)
        places, probed = introduced(judge, dirty), 0
        if judge.flipped and not places:
            judge.excuse(dirty)
    elif judge.flipped:
        dirty = scanned(judge, progress)
        places, probed = introduced(judge, dirty)[:1], 0
        if not places:
            judge.excuse(dirty)
    else:
        places, probed = (descended if method == "live" else bisected)(judge, probes, random.Random(seed))
        places += [place for first in places for place in sharing(judge, first)]
        if method == "bisect":
            look_into_stages(judge)
    found = merged(judge, [finding(judge, place) for place in places])
    comparisons = tuple(judge.comparison(i) for i in range(len(judge)))
    certificate = certified(judge, comparisons, method, places[0] if places else None, probed, seed)
    return Located(mode, method, comparisons, tuple(found), certificate, judge.read, judge.bytes_read)


def _in_order(alignment: Alignment, reference: Trace, stages: Sequence[str]) -> list[RecordPair]:
    """The pairs in the reference's execution order, of the stages asked for and those inside them."""
    pairs = sorted(alignment.records, key=lambda pair: (max(pair.reference), pair.port[0]))
    if not stages:
        return pairs
    around: Mapping[str, str] = reference.meta.get("stages") or {}
    known = {reference.records[pair.reference[0]].stage for pair in pairs}
    wanted = {stage for stage in known if any(_is_inside(stage, asked, around) for asked in stages)}
    if not wanted:
        raise TracediffError(f"No stage {', '.join(map(repr, stages))} among the compared ones: {', '.join(map(repr, sorted(known)))}.")
    return [pair for pair in pairs if reference.records[pair.reference[0]].stage in wanted]


def _is_inside(stage: str, asked: str, around: Mapping[str, str]) -> bool:
    """Whether a stage is the one asked for or lies inside it (or has it as the first part of a dotted name)."""
    seen: set[str] = set()
    while stage and stage not in seen:
        if stage == asked or stage.startswith(asked + "."):
            return True
        seen.add(stage)
        stage = around.get(stage, "")
    return stage == asked
