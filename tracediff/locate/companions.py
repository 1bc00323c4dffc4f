"""What puts a difference right: whatever takes the port's tensor in is made for it.

A normalisation takes a gain and an offset out of anything, right or wrong, so that what follows agrees excuses neither. A factor that was
moved into weights, a scale or another tensor has a companion: what takes the tensor in would go wrong with the reference's. A forced run
shows that directly. Two files show the companion itself: other weights, another scalar argument, another input that differs too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import chain

from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import module_of
from tracediff.trace import Trace


def is_put_right(verdicts: Verdicts, i: int, call: int, flagged: Collection[int] | None) -> bool:
    """Whether all that takes a pair's tensor in, inside the call that absorbs its difference, is made for the port's form of it.

    ``flagged``: the reference's rows at which a forced run of the port diverged; None where there was none.
    """
    takers = _takers(verdicts, i, call)
    first = next(takers, None)
    if flagged is None:
        return first is not None and all(_has_companion(verdicts, taker) for taker in chain([first], takers))
    return all(_is_flagged(verdicts, taker, flagged) for taker in chain([call if first is None else first], takers))


def _is_flagged(verdicts: Verdicts, call: int, flagged: Collection[int]) -> bool:
    """Whether a forced run diverged at what a call returned: given the reference's tensors, it goes wrong."""
    return any(row in flagged for row in verdicts.flow.calls.outputs(call))


def _takers(verdicts: Verdicts, i: int, call: int) -> Iterator[int]:
    """The innermost calls inside a call that are handed something that differs, from a place on, and return what agrees."""
    flow = verdicts.flow
    for child in flow.calls.children[call]:
        inner = list(_takers(verdicts, i, child))
        yield from inner
        returned = flow.pairs_at(flow.calls.outputs(child))
        if not inner and _differing(verdicts, i, child) and returned and all(map(verdicts.expected.agrees, returned)):
            yield child


def _differing(verdicts: Verdicts, i: int, call: int) -> list[int]:
    """What a call is handed that differs, from a place on."""
    handed = verdicts.flow.pairs_at(verdicts.flow.calls.inputs(call))
    return [j for j in handed if j >= i and not verdicts.expected.agrees(j)]


def _has_companion(verdicts: Verdicts, call: int) -> bool:
    """Whether a call differs from its partner in something besides one input, and is no normalisation."""
    path = module_of(verdicts.flow.calls.site_of(call))
    if "norm" in verdicts.pairs.types.get(path, "").lower():
        return False
    return len(_differing(verdicts, 0, call)) > 1 or _has_other_weights(verdicts, path)


def _has_other_weights(verdicts: Verdicts, path: str) -> bool:
    """Whether a module of the reference and its partner have parameters of other size."""
    pairs = verdicts.pairs
    partner = pairs.alignment.port_of.get(path)
    if partner is None:
        return False
    ours, theirs = _norms(pairs.reference).get(path), _norms(pairs.port).get(partner)
    return bool(ours and theirs) and not math.isclose(ours or 0.0, theirs or 0.0, rel_tol=THRESHOLDS.same_weights)


def _norms(trace: Trace) -> dict[str, float]:
    """By module path the root of the summed squares of a module's own parameters."""
    squares: dict[str, float] = defaultdict(float)
    for param in trace.params.values():
        squares[param.path] += param.stats.l2**2
    return {path: math.sqrt(square) for path, square in squares.items()}
