"""What a trace says of a reference that ran with its port's weights as they are stored: codes of a few bits, or a coarser dtype."""

from __future__ import annotations

from collections import Counter
from typing import Final

from tracediff.site import listed
from tracediff.trace.reader import Trace

KEY: Final = "weights_from"
"""The item of meta: ``source``; ``taken``, for each parameter that has the port's values its name, how the port stores it and the relative
L2 by which that is off; ``left``, the port's parameters that differ otherwise than by storage."""


def stored_weights_note(reference: Trace, port: Trace) -> str:
    """What a reader has to know of a reference that ran with its port's weights, or of a free run whose weights are codes; "" else."""
    found = reference.meta.get(KEY)
    if not found:
        return _codes_note(port)
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


def _codes_note(port: Trace) -> str:
    """What to do about a free run of quantised layers, in which nothing tells their errors from faults."""
    attributes = (module.get("attrs") or {} for module in port.meta.get("modules") or ())
    has_codes = any(isinstance(one.get("bits"), int) and isinstance(one.get("group_size"), int) for one in attributes)
    if not has_codes or port.meta.get("mode_run") == "forced":
        return ""
    return (
        "The port's weights are quantised, and a free run hands their errors on to all that follows. To tell them from faults, capture the "
        "reference with these weights: tracediff capture --weights-from"
    )
