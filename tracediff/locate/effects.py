"""Which differences are no divergence: at a moved boundary, without effect, in an equivalent form, or sent another way by noise."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from tracediff import dtype as dtypes
from tracediff.locate.comparisons import Comparisons
from tracediff.locate.expectations import Expectations
from tracediff.locate.flow import PairFlow, is_moved_boundary
from tracediff.locate.limits import Limits
from tracediff.locate.masks import has_two_conventions, may_mask
from tracediff.locate.pairs import Pairs
from tracediff.locate.quantised import Quantised
from tracediff.locate.result import Comparison, Effect
from tracediff.locate.structure import is_affine
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import rounding
from tracediff.site import INPUTS, module_of
from tracediff.trace import schema


class Effects:
    """Says of pairs that diverged why they are no divergence, "" where they are."""

    def __init__(self, pairs: Pairs, flow: PairFlow, limits: Limits, comparisons: Comparisons, expectations: Expectations) -> None:
        self._pairs, self._flow, self._limits, self._comparisons, self._expected = pairs, flow, limits, comparisons, expectations
        self._effects: dict[int, Effect] = {}
        self._quantised = Quantised(pairs)

    @cached_property
    def flipped(self) -> tuple[int, ...]:
        """The pairs of ids, or of other choices, that differ where noise changes the reference's too.

        They are no divergences, but the runs may part there.
        """
        floor = self._pairs.reference.floor
        sensitive = {i for i in range(len(self._pairs)) if self._limits.floor(i) and self._pairs.is_exact(i)}
        if floor is not None:
            marks = floor["sensitive"].tolist()
            sensitive |= {i for i in range(len(self._pairs)) if marks[self._pairs[i].reference[0]]}
        return tuple(i for i in sorted(sensitive) if self._is_flipped(i))

    def _is_flipped(self, i: int) -> bool:
        return is_flipped(self._comparisons.judged(i), rounding(dtypes.coarser(*self._limits.dtypes(i))))

    def excuse(self, dirty: Iterable[int], effect: Effect) -> None:
        """Says of pairs that diverged why they are no divergence, where that shows in no pair alone."""
        self._effects.update(dict.fromkeys(dirty, effect))

    def so_far(self, i: int) -> Effect:
        """The effect of a pair if somebody has asked, else "unchecked"."""
        return self._effects.get(i, "unchecked")

    def of(self, i: int) -> Effect:
        """Why a pair that diverged is no divergence; "" where it is a divergence."""
        if i not in self._effects:
            self._effects[i] = ""  # a loop of consumers cannot excuse itself
            self._effects[i] = self._effect(i)
        return self._effects[i]

    def _is_acquitted(self, i: int) -> bool:
        """Whether the capture of a forced run let the port's tensor through, and nothing followed."""
        through = self._pairs.port.through
        return through is not None and all(int(through["state"][row]) == schema.ACQUITTED for row in self._pairs[i].port)

    def _effect(self, i: int) -> Effect:
        if self._is_acquitted(i):
            return "equivalent"
        if self._flow.kind(i) in INPUTS and all(map(self._pairs.reads.is_unread, self._pairs[i].reference)):
            return "no effect"
        if self._pairs.has_raised(i):
            return "no effect" if self._is_caught(i) else ""
        if self._quantised.is_there and self._quantised.explains(i, self._comparisons.measure(i).metrics):
            return "quantised"
        if self._pairs.is_replaced(i) or self._comparisons.judged(i).how == "forced":
            return ""
        kind = self._flow.kind(i)
        if kind in INPUTS:
            if self._is_without_effect(i):
                return "no effect"
            return "unclear" if self._is_unclear(i) or has_two_conventions(self._pairs, i) else ""
        return "moved" if kind in ("output", "value") and self._is_moved(i) else ""

    def _is_caught(self, i: int) -> bool:
        """Whether the code of the caller caught what a call raised, and all that it returned agrees."""
        calls = self._flow.calls
        returned = self._flow.pairs_at(calls.outputs(calls.outer[self._flow.call(i)]))
        return not self._pairs.is_replaced(i) and bool(returned) and all(self._comparisons.judged(j).diverged is False for j in returned)

    def _is_moved(self, i: int) -> bool:
        """Whether an output is a moved boundary, by the consumers that were recorded on either side.

        Where none was recorded, an output that differs by a mere factor is moved if all that its caller did afterwards agrees.
        """
        recorded = self._flow.recorded_consumers(i, only_later=True, only_last_of_row=False)
        consumers = self._expected.doubtful_first(recorded or self._flow.possible_consumers(i))
        return is_moved_boundary(consumers, self._agrees_or_moved) and (bool(recorded) or self._differs_by_a_factor(i))

    def _agrees_or_moved(self, i: int) -> bool:
        if self._expected.vouches(i):
            return not self._is_longer(i) or self._gives_right_lengths(self._flow.call(i))
        return self._flow.kind(i) == "output" and self.of(i) == "moved"

    def _is_longer(self, i: int) -> bool:
        """Whether the port hands a call more places than are compared, as where it pads before the call."""
        layout = self._pairs[i].layout
        return layout is not None and layout.window is not None

    def _gives_right_lengths(self, call: int) -> bool:
        """Whether what a call makes of an input that is longer in the port has the reference's lengths, or comes to have them behind."""
        outputs = self._flow.pairs_at(self._flow.calls.outputs(call))
        return all(self._comparisons.judged(j).how != "shape" or self.of(j) == "moved" for j in outputs)

    def _differs_by_a_factor(self, i: int) -> bool:
        metrics = self._comparisons.measure(i).metrics
        if metrics is None or metrics.exact or metrics.lone_nonfinite:
            return False
        return metrics.cosine > 1 - THRESHOLDS.mere_factor

    def _is_without_effect(self, i: int) -> bool:
        """Whether all that a call computes from an input agrees although the input differs.

        Not so for a gain or an offset, which anything that normalises hides, a mask apart, and for a call that returns ids alone: it chose
        by what differs.
        """
        calls, call = self._flow.calls, self._flow.call(i)
        if module_of(calls.site_of(call)) in self._pairs.normalising:
            return False
        is_seen = bool(self._flow.pairs_at(calls.outputs(call))) or self._is_handed_on(i)
        outputs = list(self._flow.outputs_within(call)) if is_seen else []
        if all(map(self._pairs.is_exact, outputs)):
            return False
        agree = all(map(self._expected.vouches, self._expected.doubtful_first(outputs)))
        return agree and (may_mask(self._pairs.records(i)[0]) or not is_affine(self._pairs, i))

    def _is_handed_on(self, i: int) -> bool:
        """Whether a call inside takes in the very tensor of an input, and there it agrees or nothing follows from it."""
        calls, call = self._flow.calls, self._flow.call(i)
        rows = self._pairs[i].reference
        takers = (taker for row in rows for taker in calls.takers.get(calls.producers[row] if calls.producers[row] >= 0 else row, ()))
        inner = (taker for taker in takers if taker > rows[-1] and call in calls.above(int(calls.of_row[taker])))
        return any(self._expected.agrees(j) or self.of(j) == "no effect" for j in self._flow.pairs_at(inner) if j > i)

    def _is_unclear(self, i: int) -> bool:
        """Whether what an input does cannot be told, since the call was handed something else that differs.

        So for exact values beside a tensor that differs, and for a tensor of a shape that nothing reconciles (heads repeated before the
        call or inside it) beside whatever differs in its values.
        """
        calls, call = self._flow.calls, self._flow.call(i)
        others = [j for j in self._flow.pairs_at(calls.inputs(call)) if j != i]
        differ = (j for j in self._expected.doubtful_first(others) if self._differs_in_values(j))
        if self._comparisons.judged(i).how == "shape":
            return not self._pairs.has_raised(i) and self._returns_right_shapes(call) and any(True for _ in differ)
        if not self._pairs.is_exact(i) and self._flow.kind(i) != "attr":
            return False
        return any(self._flow.kind(j) == "input" and not self._pairs.is_exact(j) for j in differ)

    def _differs_in_values(self, i: int) -> bool:
        return not self._expected.agrees(i) and self._comparisons.judged(i).how != "shape"

    def _returns_right_shapes(self, call: int) -> bool:
        """Whether all outputs of a call have shapes that a layout reconciles."""
        outputs = self._flow.pairs_at(self._flow.calls.outputs(call))
        return bool(outputs) and all(self._pairs[j].layout is not None for j in outputs)


def is_flipped(comparison: Comparison, explained: float) -> bool:
    """Whether ids, or other choices, differ within what noise changes; real ones by more than rounding explains."""
    judgement, metrics = comparison.judgement, comparison.metrics
    if judgement is None or metrics is None or judgement.diverged:
        return False
    if judgement.by == "sensitive":
        return metrics.mismatched > 0
    return judgement.by in ("floor", "cannot tell") and not metrics.exact and metrics.rel_l2 > explained
