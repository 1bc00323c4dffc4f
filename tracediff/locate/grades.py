"""How clear a divergence is: *borderline* where it is little more than noise in size, and like noise in kind.

Noise has a tail, and a floor is measured: a factor above what is allowed alone tells no rounding from a fault. A fault leaves a structure
in the error (a gain, an offset, one for each channel or row), and a fault of a module's code shows at the module's siblings too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from tracediff.locate.result import Comparison
from tracediff.locate.structure import left_by_affine
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts


def times_allowed(comparison: Comparison) -> float | None:
    """How many times what is allowed an error is; None where no limit on the relative L2 is set, or no error was measured."""
    metrics, judgement = comparison.metrics, comparison.judgement
    if metrics is None or judgement is None or judgement.by not in ("floor", "no floor") or not judgement.limit:
        return None
    return metrics.rel_l2 / judgement.limit


class Borderline:
    """The borderline divergences among those introduced, found round by round: what lies behind one is judged anew without it.

    ``most``: times what is allowed up to which an error may be borderline. ``places`` are those that come from no other one; the others
    only carry on what an earlier one began.
    """

    def __init__(self, verdicts: Verdicts, most: float) -> None:
        self._verdicts, self._most = verdicts, most
        self._excused: set[int] = set()
        self.places: list[int] = []

    def excuse(self, places: Collection[int], introduced: Sequence[int]) -> bool:
        """Excuses what is borderline among ``places``; whether there was any. ``introduced`` are all divergences introduced so far."""
        faint = [i for i in places if self._is_faint(i) and not self._has_like_sibling(i, introduced)]
        self.places += [i for i in faint if not self._carries_on(i)]
        self._excused.update(faint)
        self._verdicts.effects.excuse(faint, "borderline")
        return bool(faint)

    def may_hold(self, places: Collection[int]) -> bool:
        """Whether some of the places may be borderline, so that their siblings have to be known."""
        return any(map(self._is_faint, places))

    def _is_faint(self, i: int) -> bool:
        """Whether an error is little more than what is allowed, and without structure."""
        times = times_allowed(self._verdicts.comparisons.measure(i))
        if times is None or not math.isfinite(times) or times > self._most:
            return False
        left = left_by_affine(self._verdicts.pairs, i)
        return left is not None and left > THRESHOLDS.left_of_structure

    def _has_like_sibling(self, i: int, introduced: Sequence[int]) -> bool:
        """Whether another site of the same role introduced an error at the same end."""
        left = self._verdicts.pairs.records(i)[0]
        pairs, role = self._verdicts.pairs, self._verdicts.pairs.role(i)
        others = ((pairs.records(j)[0], pairs.role(j)) for j in introduced)
        return any(one.site != left.site and one.end == left.end and other == role for one, other in others)

    def _carries_on(self, i: int) -> bool:
        """Whether something borderline, with which the port went on, arrives at a place."""
        pairs = self._verdicts.pairs
        return any(j in self._excused and not pairs.is_replaced(j) for j in self._verdicts.flow.predecessors(i))
