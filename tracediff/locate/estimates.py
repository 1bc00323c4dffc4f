"""What the statistics of a pair say of its error before the pair is read: they prove differences, and let expect agreement.

Norms, means and extremes of two tensors differ by no more than the tensors do: what these moved by is a lower bound of the error. An error
that has nothing to do with the tensor moves them by about the error over the root of the number of values. From how far they moved the
error can be told to within a small factor, even where a single value is wrong. Statistics cannot see values that changed places: heads
merged in another order, a sequence turned round. Such an error shows in a sample (`tracediff.locate.samples`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tracediff.alignment.axes import Layout
from tracediff.dtype import MASKED, named
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.trace import Record
from tracediff.trace.fingerprint import Stats


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the statistics in the index prove without reading: the errors are at least so large. ``differs``: some value differs."""

    rel_l2: float = 0.0
    max_abs: float = 0.0
    differs: bool = False


def at_least(reference: Record, port: Record, layout: Layout) -> Bounds:
    """Lower bounds of the errors of two records, from their statistics; zeros where these say nothing.

    They do not depend on the order of the axes.
    """
    r, p = reference.stats, port.stats
    if layout.is_joined or layout.is_partial or r.count != p.count or not r.count:
        return Bounds()
    differs = layout.is_same and reference.dtype == port.dtype and named(reference.dtype).is_exact and reference.digest != port.digest
    if r.nan != p.nan:
        return Bounds(math.inf, math.inf, True)
    if r.nan or r.inf or p.inf or min(r.min, p.min) <= MASKED:
        return Bounds(differs=differs)
    rounding = THRESHOLDS.statistics_rounding
    least = max(map(abs, (*_gaps(r, p), math.sqrt(r.count) * (r.std - p.std)))) - rounding * max(r.l2, p.l2)
    if least <= 0:
        return Bounds(differs=differs)
    furthest = max(abs(r.max - p.max), abs(r.min - p.min), abs(r.mean - p.mean)) - rounding * max(abs(r.max), abs(r.min))
    return Bounds(least / r.l2 if r.l2 else math.inf, max(furthest, 0.0), True)


def expected(references: Sequence[Record], ports: Sequence[Record], layout: Layout) -> float | None:
    """The relative L2 that the statistics of a pair's records let expect; None where they do not tell.

    They do not where the two sides do not hold the same values (a part, a window, a repeated mask), and where as many infinite or missing
    values, or masked ones, stand among them.
    """
    if layout.is_partial or layout.repeat or references[0].dtype == "text":
        return None
    r, p = _joined([record.stats for record in references]), _joined([record.stats for record in ports])
    if r.count != p.count or not r.count or min(r.min, p.min) <= MASKED:
        return None
    if r.nan or r.inf or p.nan or p.inf:
        return None if (r.nan, r.inf) == (p.nan, p.inf) else math.inf
    spread = math.sqrt(r.count)
    cube = 3 * max(r.l2, p.l2) ** 2 / r.count
    gaps = (*_gaps(r, p), spread * (r.cube - p.cube) / cube if cube else 0.0)
    moved = math.hypot(*gaps) / math.sqrt(len(gaps))
    if r.l2:
        return spread * moved / r.l2
    return math.inf if moved else 0.0


def _gaps(r: Stats, p: Stats) -> tuple[float, ...]:
    """By how much norm, means and extremes moved, each as the L2 of the least error that moves it so far."""
    spread = math.sqrt(r.count)
    return (r.l2 - p.l2, spread * (r.mean - p.mean), spread * (r.absmean - p.absmean), r.max - p.max, r.min - p.min)


def _joined(stats: Sequence[Stats]) -> Stats:
    """The statistics of several tensors together, but for the standard deviation."""
    if len(stats) == 1:
        return stats[0]
    count = sum(part.count for part in stats)

    def mean(name: str) -> float:
        return sum(getattr(part, name) * part.count for part in stats) / count if count else 0.0

    return Stats(
        count,
        nan=sum(part.nan for part in stats),
        inf=sum(part.inf for part in stats),
        zero=sum(part.zero for part in stats),
        min=min(part.min for part in stats),
        max=max(part.max for part in stats),
        mean=mean("mean"),
        std=0.0,
        l2=math.hypot(*(part.l2 for part in stats)),
        absmean=mean("absmean"),
        cube=mean("cube"),
    )
