"""What is to be expected of a pair that was not read: from its statistics, and from a sample of its values."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable

from tracediff import dtype as dtypes
from tracediff.locate import estimates, samples
from tracediff.locate.comparisons import Comparisons
from tracediff.locate.limits import Limits
from tracediff.locate.pairs import Pairs
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import THRESHOLDS as COMPARING


class Expectations:
    """Says which pairs seem to agree and which seem to differ. ``bytes_read`` counts the values of samples.

    ``is_live``: values are fetched by running both sides again, and a sample would cost as much as the whole.
    """

    def __init__(self, pairs: Pairs, limits: Limits, comparisons: Comparisons, *, is_live: bool, chance: random.Random) -> None:
        self._pairs, self._limits, self._comparisons, self._is_live, self._chance = pairs, limits, comparisons, is_live, chance
        self.bytes_read = 0
        self._suspicion: dict[int, float | None] = {}
        self._samples: dict[tuple[Hashable, ...], tuple[float, int]] = {}

    def tells(self, i: int) -> bool:
        """Whether a sample can say something of a pair: stored tensors of plain numbers, judged as a whole, not value by value."""
        layout = self._pairs[i].layout
        if layout is None or self._is_live or self._limits.rtol is not None or self._pairs.stored_in(i) is not None:
            return False
        return self._pairs.is_stored(i) and samples.can_sample(*self._pairs.all_records(i), layout)

    def suspicion(self, i: int) -> float | None:
        """The error that the statistics let expect, in parts of what is allowed; None where they do not tell."""
        if i not in self._suspicion:
            layout, error = self._pairs[i].layout, None
            if layout is not None and self._limits.rtol is None and self._pairs.stored_in(i) is None:
                error = estimates.expected(*self._pairs.all_records(i), layout)
            self._suspicion[i] = None if error is None else self._limits.share(i, error)
        return self._suspicion[i]

    def sample(self, i: int) -> tuple[float, int] | None:
        """The relative L2 of a few values of a pair, and the number of values; None where a sample tells nothing."""
        layout, contents = self._pairs[i].layout, self._pairs.contents(i)
        if layout is None or not self.tells(i):
            return None
        if contents not in self._samples:
            self._samples[contents] = samples.sampled(*self._pairs.all_records(i), layout, self._chance)
            size = sum(dtypes.named(record.dtype).itemsize for record in self._pairs.records(i))
            self.bytes_read += self._samples[contents][1] * size
        return self._samples[contents]

    def seems_same(self, i: int, *, sample: bool = True) -> bool:
        """Whether a pair is known to agree, or its statistics and a sample of its values let expect it.

        Without ``sample`` no value is looked at where the statistics are clear by themselves.
        """
        known = self._comparisons.known(i)
        if known is None and self._comparisons.is_read(i):
            known = self._comparisons.judged(i)
        if known is not None and known.diverged is not None:
            return not known.diverged
        expected = self.suspicion(i)
        if expected is not None and expected < THRESHOLDS.well_below and not sample:
            return True
        return self._sample_agrees(i, expected)

    def _sample_agrees(self, i: int, expected: float | None) -> bool:
        """Whether a sample of a pair lets expect that the pair agrees, given what its statistics let expect."""
        seen = self.sample(i)
        if seen is None:
            return False
        error, count = seen
        # What errors have in common along an axis makes statistics expect too much: against a telling sample they may be well beyond.
        most_expected = THRESHOLDS.far_beyond if count >= THRESHOLDS.telling_sample else THRESHOLDS.well_below
        limit = THRESHOLDS.well_below if expected is not None else THRESHOLDS.well_below_by_sample_alone
        return (expected or 0.0) < most_expected and self._limits.share(i, error) < limit

    def seems_different(self, i: int) -> bool:
        """Whether the statistics of a pair let expect far more than is allowed, and no sample tells otherwise."""
        if (self.suspicion(i) or 0.0) <= THRESHOLDS.far_beyond:
            return False
        seen = self.sample(i)
        return seen is None or seen[1] < THRESHOLDS.telling_sample or self._limits.share(i, seen[0]) >= THRESHOLDS.well_below

    def agrees(self, i: int) -> bool:
        """Whether a pair seems the same, or is the same once it was read."""
        return self.seems_same(i) or not self._comparisons.judged(i).diverged

    def vouches(self, i: int) -> bool:
        """Whether a pair agrees, and this says something: where noise explains an error of the size of the values it does not."""
        if not self.agrees(i):
            return False
        if self._limits.unjudged(i).limit <= COMPARING.cannot_tell:
            return True
        judgement = self._comparisons.judged(i).judgement
        return judgement is None or judgement.by != "cannot tell"

    def doubtful_first(self, places: Iterable[int]) -> list[int]:
        """The pairs in the order in which one that diverged is met soonest: by what statistics prove, then by what they let expect."""

        def rank(i: int) -> tuple[bool, float]:
            known = self._comparisons.known(i)
            return known is None or not known.diverged, -(self.suspicion(i) or 0.0)

        return sorted(places, key=rank)

    def is_sampled(self, i: int) -> bool:
        """Whether a sample of a pair was looked at that nobody judged by all its values."""
        return not self._comparisons.is_judged(i) and bool(self._samples) and self._pairs.contents(i) in self._samples

    def known_error(self, i: int) -> float | None:
        """The relative L2 of a pair, without reading more: as read, else as a sample showed it; None where nobody looked."""
        metrics = self._comparisons.so_far(i).metrics
        if metrics is not None:
            return metrics.rel_l2
        return self._samples[self._pairs.contents(i)][0] if self.is_sampled(i) else None
