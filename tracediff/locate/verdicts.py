"""Whether a pair diverged, and whether that counts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tracediff.alignment import Alignment, RecordPair
from tracediff.locate.comparisons import Comparisons
from tracediff.locate.effects import Effects
from tracediff.locate.expectations import Expectations
from tracediff.locate.flow import PairFlow
from tracediff.locate.limits import Limits
from tracediff.locate.pairs import Pairs
from tracediff.locate.proofs import Proofs
from tracediff.locate.result import Again, Comparison, Mode
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.workers import Workers
from tracediff.metrics import Metrics
from tracediff.trace import Trace


@dataclass(frozen=True, slots=True)
class Verdicts:
    """All that answers for the pairs: what they hold, what they come from, what is known or expected of them, and what it means."""

    mode: Mode
    is_live: bool
    pairs: Pairs
    flow: PairFlow
    limits: Limits
    comparisons: Comparisons
    expected: Expectations
    effects: Effects

    def __len__(self) -> int:
        return len(self.pairs)

    def is_dirty(self, i: int) -> bool:
        """Whether the pair is a divergence, introduced or inherited; reads what it must."""
        return bool(self.comparisons.judged(i).diverged) and not self.effects.of(i)

    def seems_dirty(self, i: int) -> bool:
        """As `is_dirty`, but a pair that seems the same by its statistics and a sample is not read."""
        return not self.expected.seems_same(i) and self.is_dirty(i)

    def diverged_unread(self, i: int) -> bool | None:
        """Whether the pair diverged, where that can be told without reading; None otherwise."""
        known = self.comparisons.known(i)
        return None if known is None else known.diverged

    def least_shown(self, i: int) -> float:
        """The relative L2 that an error must leave at a pair to be told from what the port's own difference may have left there."""
        comparison = self.comparisons.measure(i)
        own = 0.0 if comparison.metrics is None else comparison.metrics.rel_l2
        limit = comparison.judgement.limit if comparison.judgement is not None else 0.0
        return max(limit, THRESHOLDS.clearly_shown * own)

    def comparison(self, i: int) -> Comparison:
        """What is known of a pair by now."""
        known = self.comparisons.so_far(i)
        return replace(known, effect=self.effects.so_far(i)) if known.diverged else known


def verdicts_of(
    pairs: Sequence[RecordPair],
    alignment: Alignment,
    reference: Trace,
    port: Trace,
    *,
    mode: Mode,
    tolerance: tuple[float | None, float | None],
    floors: Mapping[int, float],
    compared: Mapping[tuple[int, int], Metrics],
    again: Again | None,
    workers: Workers | None = None,
    seed: int = 0,
) -> Verdicts:
    """The verdicts on pairs in execution order. ``tolerance`` is rtol and atol; ``seed`` chooses the values of samples."""
    material, flow = Pairs(pairs, alignment, reference, port), PairFlow(reference, port, pairs)
    limits = Limits(material, flow, floors, mode=mode, rtol=tolerance[0], atol=tolerance[1])
    comparisons = Comparisons(material, flow, limits, Proofs(material, limits, compared), again, workers)
    expected = Expectations(material, limits, comparisons, is_live=again is not None, chance=random.Random(seed))
    effects = Effects(material, flow, limits, comparisons, expected)
    return Verdicts(mode, again is not None, material, flow, limits, comparisons, expected, effects)
