"""What puts a difference right: whatever takes the port's tensor in is made for it.

A normalisation takes a gain and an offset out of anything, right or wrong, so that what follows agrees excuses neither. A factor that was
moved into weights, a scale or another tensor has a companion: what takes the tensor in would go wrong with the reference's. A forced run
shows that directly. Two files show the companion itself: other weights, another scalar argument, another input that differs too. Weights
alone prove it where a gain and an offset for each channel are in those of the layers behind (`folded`), or where the port's caller has the
last layer of what returned the tensor, and weights and values together where channels come in the order of the inputs of the layers behind
(`orders`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Set
from itertools import chain

from tracediff.locate.masks import may_mask
from tracediff.locate.orders import is_made_for_order
from tracediff.locate.pairs import Pairs
from tracediff.locate.structure import whole_gain
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import INPUTS, is_below, module_of
from tracediff.trace.calls import TOP
from tracediff.trace.fingerprint import Fingerprinted


def is_put_right(verdicts: Verdicts, i: int, call: int, flagged: Collection[int] | None) -> bool:
    """Whether all that takes a pair's tensor in, inside the call that absorbs its difference, is made for the port's form of it.

    ``flagged``: the reference's rows at which a forced run of the port diverged; None where there was none.
    """
    is_output = verdicts.flow.kind(i) == "output"
    if is_output and (verdicts.pairs.records(i)[0].site in verdicts.pairs.folded or _is_finished_behind(verdicts, i)):
        return True
    taken = {taker for row in verdicts.pairs[i].reference for taker in verdicts.flow.calls.takers.get(row, ())}
    takers = _takers(verdicts, i, call, taken)
    first = next(takers, None)
    if first is None and verdicts.flow.kind(i) in INPUTS and call != TOP:
        return _is_made_for(verdicts, call, flagged)
    if first is None:
        is_shown = flagged is not None and (_is_flagged(verdicts, call, flagged) or _is_put_right_by_code(verdicts, i, flagged))
        return is_shown or _is_made_up_for(verdicts, i)
    return all(_is_made_for(verdicts, taker, flagged) for taker in chain([first], takers))


def _is_put_right_by_code(verdicts: Verdicts, i: int, flagged: Collection[int]) -> bool:
    """Whether the caller's code makes of an output what it hands on: of the port's right, of the reference's something else."""
    if verdicts.flow.kind(i) != "output":
        return False
    calls = verdicts.flow.calls
    beside = calls.children[calls.outer[verdicts.flow.call(i)]]
    handed = (j for j in verdicts.flow.pairs_at(row for child in beside for row in calls.inputs(child)) if j > i)
    made = (j for j in handed if any(row in flagged for row in verdicts.pairs[j].reference) and _may_carry(verdicts, j, i))
    return any(verdicts.expected.agrees(j) and not verdicts.pairs.is_exact(j) for j in made)


def _is_finished_behind(verdicts: Verdicts, i: int) -> bool:
    """Whether what takes in a call's output in the port owns weights that the reference's call owns, and stands nowhere else there."""
    (left, right), pairs, calls = verdicts.pairs.records(i), verdicts.pairs, verdicts.flow.port_calls
    takers = {module_of(calls.site_of(int(calls.of_row[row]))) for row in calls.takers.get(right.row, ())}
    partner_of = pairs.alignment.reference_of
    behind = {path for path in takers if not is_below(path, right.module) and is_below(partner_of.get(path, left.module), left.module)}
    own = [param for param in pairs.reference.params.values() if is_below(param.path, left.module)]
    theirs = [param for param in pairs.port.params.values() if any(is_below(param.path, path) for path in behind)]
    return any(_are_one(one, other) for one in own for other in theirs)


def has_other_weights(verdicts: Verdicts, i: int) -> bool:
    """Whether a call's output was made with weights that are none of the reference's, though of their shapes."""
    pairs = verdicts.pairs
    left, right = pairs.records(i)
    if verdicts.flow.kind(i) != "output":
        return False
    own, theirs = (
        [param for param in trace.params.values() if param.path == path]
        for trace, path in ((pairs.reference, left.module), (pairs.port, right.module))
    )
    return any(alike and not any(_are_one(one, other) for one in alike) for other in theirs for alike in [_of_shape(own, other)])


def is_reordered(verdicts: Verdicts, i: int) -> bool:
    """Whether a call's output is the reference's with its channels in another order, and the weights that made it are so too."""
    is_output = verdicts.flow.kind(i) == "output"
    return is_output and is_made_for_order(verdicts.pairs, verdicts.pairs.records(i)[0].module, i, _allowed(verdicts, i))


def _of_shape(params: Iterable[Fingerprinted], other: Fingerprinted) -> list[Fingerprinted]:
    return [one for one in params if sorted(one.shape) == sorted(other.shape)]


def _are_one(one: Fingerprinted, other: Fingerprinted) -> bool:
    """Whether two parameters hold the same values, up to a transposition and to how they are stored, as far as statistics tell."""
    if not _of_shape([one], other):
        return False
    tolerance = max(THRESHOLDS.same_weights, THRESHOLDS.same_weights_roundings * max(one.roundoff, other.roundoff))
    gaps = (abs(getattr(one.stats, name) - getattr(other.stats, name)) for name in ("mean", "std", "min", "max"))
    return bool(max(gaps) <= tolerance * max(abs(one.stats.min), abs(one.stats.max)))


def _is_made_for(verdicts: Verdicts, taker: int, flagged: Collection[int] | None) -> bool:
    """Whether what takes a difference in is made for it: a forced run shows that where what it returns was compared.

    It does not where another input makes up for the difference (queries and keys): the forced run exchanges both.
    """
    if flagged is None or not _returned(verdicts, taker):
        return _has_companion(verdicts, taker)
    if _is_flagged(verdicts, taker, flagged) or _is_flagged_inside(verdicts, taker, flagged):
        return True
    return len(_differing(verdicts, taker)) > 1


def is_proved(verdicts: Verdicts, i: int, call: int) -> bool:
    """Whether weights prove that a pair's difference is put right inside the call that absorbs it, so that no control is needed.

    A pair that agrees, since it was let through, is proved where what made it was.
    """
    if verdicts.comparisons.judged(i).diverged:
        taken = {taker for row in verdicts.pairs[i].reference for taker in verdicts.flow.calls.takers.get(row, ())}
        takers = list(_takers(verdicts, i, call, taken))
    else:
        takers = [verdicts.flow.call(i)] if verdicts.flow.kind(i) == "output" else []
    differing = [(taker, _differing(verdicts, taker)) for taker in takers]
    return bool(takers) and all(len(handed) == 1 and _puts_in_order(verdicts, taker, handed[0]) for taker, handed in differing)


def _puts_in_order(verdicts: Verdicts, call: int, taken: int) -> bool:
    """Whether a call's module is handed channels in another order, and is made for that order."""
    return is_made_for_order(verdicts.pairs, module_of(verdicts.flow.calls.site_of(call)), taken, _allowed(verdicts, taken))


def _is_flagged(verdicts: Verdicts, call: int, flagged: Collection[int]) -> bool:
    """Whether a forced run diverged at what a call returned: given the reference's tensors, it goes wrong."""
    return any(row in flagged for row in verdicts.flow.calls.outputs(call))


def _is_flagged_inside(verdicts: Verdicts, call: int, flagged: Collection[int]) -> bool:
    """Whether a forced run diverged inside a call: what it made wrong there was exchanged, so that what it returned is right again."""
    calls = verdicts.flow.calls
    rows = (row for child in calls.children[call] for row in (*calls.inputs(child), *calls.outputs(child)))
    return any(row in flagged for row in rows) or any(_is_flagged_inside(verdicts, child, flagged) for child in calls.children[call])


def _is_made_up_for(verdicts: Verdicts, i: int) -> bool:
    """Whether another output that the same code has in hand lacks the factor that a pair's output has too much: queries and keys."""
    gain = whole_gain(verdicts.pairs, i) if verdicts.flow.kind(i) == "output" else None
    if gain is None:
        return False
    calls, call = verdicts.flow.calls, verdicts.flow.call(i)
    rows = (row for child in calls.children[calls.outer[call]] if child != call for row in calls.outputs(child))
    others = (j for j in verdicts.flow.pairs_at(rows) if not verdicts.pairs.is_exact(j) and not verdicts.expected.agrees(j))
    gains = ((whole_gain(verdicts.pairs, j), _allowed(verdicts, i) + _allowed(verdicts, j)) for j in others)
    return any(abs(gain * other - 1.0) <= max(allowed, THRESHOLDS.same_weights) for other, allowed in gains if other is not None)


def _allowed(verdicts: Verdicts, i: int) -> float:
    """The relative error that is allowed at a pair, up to which its gain is known."""
    judgement = verdicts.comparisons.judged(i).judgement
    return judgement.limit if judgement is not None else 0.0


def _takers(verdicts: Verdicts, i: int, call: int, taken: Set[int]) -> Iterator[int]:
    """The innermost calls inside a call that take in what differs at a place and return what agrees, or what the port has no partner of.

    ``taken``: the reference's rows at which the place's own tensors are taken in. A call without partner and without weights is looked
    through: an attention hands on the factor of its values.
    """
    calls = verdicts.flow.calls
    for child in calls.children[call]:
        inner = list(_takers(verdicts, i, child, taken))
        yield from inner
        returned = _returned(verdicts, child)
        is_alone = not returned and not taken.isdisjoint(calls.inputs(child)) and _tells_alone(verdicts, child)
        agrees = bool(returned) and bool(_carried(verdicts, i, child)) and all(map(verdicts.expected.agrees, returned))
        if not inner and (is_alone or agrees):
            yield child


def _tells_alone(verdicts: Verdicts, call: int) -> bool:
    """Whether a call without partner, which makes no calls, has weights that may put a difference right, or normalises."""
    path = module_of(verdicts.flow.calls.site_of(call))
    is_telling = path in verdicts.pairs.normalising or _has_weights(verdicts, path)
    return is_telling and not verdicts.flow.calls.children[call]


def _has_weights(verdicts: Verdicts, path: str) -> bool:
    return any((path, is_matrix) in verdicts.pairs.norms[0] for is_matrix in (False, True))


def _returned(verdicts: Verdicts, call: int) -> list[int]:
    """The pairs of what a call returned."""
    return verdicts.flow.pairs_at(verdicts.flow.calls.outputs(call))


def _carried(verdicts: Verdicts, i: int, call: int) -> list[int]:
    """What a call is handed that differs, and may carry on what differs at a place."""
    return [j for j in _differing(verdicts, call) if j >= i and _may_carry(verdicts, j, i)]


def _may_carry(verdicts: Verdicts, j: int, i: int) -> bool:
    """Whether some tensors of a pair were made after a place, and may come from its."""
    calls, reads, sources = verdicts.flow.calls, verdicts.pairs.reads, verdicts.pairs[i].reference
    made_before = (0 <= calls.producers[row] < min(sources) for row in verdicts.pairs[j].reference)
    later = [row for row, is_older in zip(verdicts.pairs[j].reference, made_before, strict=True) if not is_older]
    return any(reads.may_come_from(row, own) for row in later for own in sources)


def _differing(verdicts: Verdicts, call: int) -> list[int]:
    """What a call is handed that differs; masks do by convention."""
    handed = verdicts.flow.pairs_at(verdicts.flow.calls.inputs(call))
    return [j for j in handed if not may_mask(verdicts.pairs.records(j)[0]) and not verdicts.expected.agrees(j)]


def _has_companion(verdicts: Verdicts, call: int) -> bool:
    """Whether a call differs from its partner in something besides one input, or has weights and no partner; a normalisation never does."""
    path = module_of(verdicts.flow.calls.site_of(call))
    if path in verdicts.pairs.normalising:
        return False
    if not _returned(verdicts, call):
        return _has_weights(verdicts, path)
    differing = _differing(verdicts, call)
    if len(differing) != 1:
        return bool(differing)
    return _has_other_weights(verdicts, path, differing[0]) or _puts_in_order(verdicts, call, differing[0])


def _has_other_weights(verdicts: Verdicts, path: str, taken: int) -> bool:
    """Whether a module and its partners, of which a fused one has several, have parameters of another size than the reference's.

    What one side owns itself the other may have in modules inside it, as an attention its projections. Where what is taken in is the
    reference's times a factor, they have to take this factor back.
    """
    pairs = verdicts.pairs
    partners = {pair.port for pair in pairs.alignment.pairs if pair.reference == path and pair.port is not None}
    gain = whole_gain(pairs, taken)
    for is_matrix in (False, True):
        ours, theirs = _sizes(pairs, {path}, partners, is_matrix)
        if ours and theirs and not _are_equal(pairs, ours, theirs) and (gain is None or _are_equal(pairs, ours, theirs * abs(gain))):
            return True
    return False


def _sizes(pairs: Pairs, paths: Set[str], partners: Set[str], is_matrix: bool) -> tuple[float, float]:
    """The norms of the parameters that modules of either side own themselves; where one side's own none, with those inside."""
    kinds = [{path: norm for (path, kind), norm in norms.items() if kind == is_matrix} for norms in pairs.norms]
    own = [[of_kind[path] for path in one if path in of_kind] for of_kind, one in zip(kinds, (paths, partners), strict=True)]
    if not all(own):
        own = [
            [norm for inner, norm in of_kind.items() if any(is_below(inner, path) for path in one)]
            for of_kind, one in zip(kinds, (paths, partners), strict=True)
        ]
    return math.hypot(*own[0]), math.hypot(*own[1])


def _are_equal(pairs: Pairs, one: float, other: float) -> bool:
    """Whether two norms of parameters, or a norm and one times a gain, are equal as far as the parameters' dtype tells."""
    return math.isclose(one, other, rel_tol=max(THRESHOLDS.same_weights, THRESHOLDS.same_weights_roundings * pairs.roundoff))
