"""What a trace says of a reference that ran with its port's weights as they are stored: codes of a few bits, or a coarser dtype."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tracediff.site import listed
from tracediff.trace.reader import Trace

KEY: Final = "weights_from"
"""The item of meta: ``source``; ``taken``, for each parameter that has the port's values its name, how the port stores it and the relative
L2 by which that is off; ``left``, the port's parameters that differ otherwise than by storage."""


def stored_weights_note(reference: Trace) -> str:
    """What a reader has to know of a reference that ran with its port's weights; "" of any other."""
    found = reference.meta.get(KEY)
    if not found:
        return ""
    taken = found.get("taken") or ()
    if not taken:
        return f"The reference ran with its own weights: the port's, from {found['source']!r}, differ nowhere by how they are stored alone."
    kinds = ", ".join(f"{count:,} of {how}" for how, count in Counter(how for _, how, _ in taken).items())
    worst = max(error for _, _, error in taken)
    left = found.get("left") or ()
    besides = f" {len(left):,} that differ otherwise kept the reference's: {listed(list(left), 3)}." if left else ""
    return (
        f"The reference ran with the port's weights as they are stored ({kinds}; off by {worst:.1e} of their size at most), so nothing "
        f"that differs here is quantisation or rounding of weights.{besides}"
    )
