"""Which tensors of the reference an error would follow from, as far as the port's arrays show what came of them.

Where all that follows from a tensor agrees, the port's array that resembles it in shape alone is another tensor: one that the reference
does not record, or records in another form. To compare the two would be a false alarm, and a true difference without effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracediff.alignment.array_files.contents import Contents
from tracediff.site import INPUTS

OF_SHAPE = ("rope", "position")
"""Roles of modules whose outputs depend on the shape and the dtype of what they take in, and not on its values."""


class Consequences:
    """What is known of what follows from each content of the reference.

    ``settled``: contents that the port holds just so; ``doubtful``: contents that it seems to hold with other values.
    """

    def __init__(self, reference: Contents, settled: Iterable[int], doubtful: Iterable[int]) -> None:
        self._reference, self._settled = reference, set(settled)
        good = dict.fromkeys(self._settled)
        bad = dict.fromkeys(a for a in doubtful if a not in good)
        bits = {a: 1 << place for place, a in enumerate([*good, *bad])}
        self._good = (1 << len(good)) - 1
        marks = {row: bit for a, bit in bits.items() for row in reference.all[a].rows}
        self._reached = reference.side.trace.calls.reached_from(marks)
        returned = {reference.of_row[row] for row in reference.side.trace.returned or () if row in reference.of_row}
        self._returned = sum(bits[a] for a in returned if a in good)

    def agree(self, a: int) -> bool:
        """Whether what follows from a content agrees: what some call computed from it, what the run returned, or most of what is known."""
        if any(one in self._settled for one in self._computed_from(a)):
            return True
        behind = self._behind(a)
        return bool(behind & self._returned) or (behind & self._good).bit_count() > (behind & ~self._good).bit_count()

    def differ(self, a: int) -> bool:
        """Whether most of what is known to follow from a content differs."""
        behind = self._behind(a)
        return not behind & self._returned and (behind & ~self._good).bit_count() > (behind & self._good).bit_count()

    def all_differ(self, a: int) -> bool:
        """Whether something is known to follow from a content, and all of it differs: the content itself may be wrong."""
        behind = self._behind(a)
        return bool(behind & ~self._good) and not behind & self._good

    def _computed_from(self, a: int) -> Iterator[int]:
        """The contents that calls computed from the values of a content, not by handing it on, or from its shape."""
        side, of_row = self._reference.side, self._reference.of_row
        calls = side.trace.calls
        for row in self._reference.all[a].rows:
            call = int(calls.of_row[row])
            if calls.kinds[row] in INPUTS and side.role[int(calls.site[call])] not in OF_SHAPE:
                yield from (of_row[one] for one in calls.outputs(call) if of_row.get(one, a) != a)

    def _behind(self, a: int) -> int:
        behind = 0
        for row in self._reference.all[a].rows:
            behind |= self._reached[row]
        return behind
