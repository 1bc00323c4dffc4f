"""Causes told by the calls that the culprit's code makes: one left out, one more, or in another order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracediff.causes.proof import Claim
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.causes.thresholds import THRESHOLDS


def detect(scene: Scene) -> Iterable[Claim]:
    """Children that only one side calls, and a norm that stands elsewhere among them."""
    ours, theirs = (side.calls for side in scene.sides)
    if not ours or not theirs or not scene.has_frames or _loops_otherwise(ours, theirs):
        return
    candidates = scene.paired - scene.balanced
    lacking = [name for name in dict.fromkeys(ours) if name in candidates and _calls_more_often(name, *scene.sides)]
    extra = [name for name in dict.fromkeys(theirs) if name in candidates and _calls_more_often(name, *reversed(scene.sides))]
    if len(lacking) == len(extra) == 1 and scene.types.get(lacking[0]) == scene.types.get(extra[0], ""):
        evidence = f"the port calls {extra[0]} where the reference calls {lacking[0]}, both a {scene.types[extra[0]]}"
        yield Claim("order.roles", THRESHOLDS.sure_call_lacking, evidence)
        return
    for name in lacking:
        type_ = scene.types.get(name, "")
        evidence = f"the reference calls {name} ({type_}) {ours.count(name)} times here, the port {theirs.count(name)}"
        yield Claim(_kind_of_lacking(name, type_), THRESHOLDS.sure_call_lacking, evidence)
    for name in extra:
        evidence = f"the port calls {name} {theirs.count(name)} times here, the reference {ours.count(name)}"
        yield Claim("branch.extra", THRESHOLDS.sure_call_extra, evidence)
    yield from _moved(scene, ours, theirs)


def _loops_otherwise(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether the two sides call most of what both call another number of times: then the loop differs, and no call is lacking in it."""
    shared = set(ours) & set(theirs)
    unequal = [name for name in shared if ours.count(name) != theirs.count(name)]
    if len(shared) == 1:
        return any(min(ours.count(name), theirs.count(name)) > 1 for name in unequal)
    return 2 * len(unequal) > len(shared)


def _calls_more_often(name: str, one: CulpritSide, other: CulpritSide) -> bool:
    """Whether one side calls a module more often than the other, and did so before the divergence, which a later call cannot have made."""
    before, other_before = (side.calls if side.before is None else side.before for side in (one, other))
    return one.calls.count(name) > other.calls.count(name) and before.count(name) > other_before.count(name)


def _kind_of_lacking(name: str, type_: str) -> str:
    """The kind of cause that a call of this module, of this class, is when it is left out."""
    last = name.rpartition(".")[2]
    words = (type_ + last).lower()
    if "norm" in words or last.startswith("ln"):
        return "norm.missing"
    if "pos" in words or ("embed" in words and "time" not in words):
        return "position.missing"
    return "branch.missing"


def _moved(scene: Scene, ours: Sequence[str], theirs: Sequence[str]) -> Iterable[Claim]:
    """Both sides make the same calls, in another order, and one of two such calls is handed what comes of the other."""
    shared = [name for name in ours if name in theirs and ours.count(name) == theirs.count(name) == 1]
    order = [name for name in theirs if name in shared]
    if len(shared) < 2 or shared == order:
        return
    first = next(place for place, (a, b) in enumerate(zip(shared, order, strict=True)) if a != b)
    evidence = f"the reference calls {shared[first]} where the port calls {order[first]}"
    moved = [name for name in shared if shared.index(name) != order.index(name)]
    if scene.altered.isdisjoint(moved) or not scene.chained:
        return  # what they were handed and returned agrees, or none was handed what another returned: the order has no effect
    if any("norm" in scene.types.get(name, "").lower() for name in moved):
        yield Claim("norm.placement", THRESHOLDS.sure_norm_moved, evidence)
    else:
        yield Claim("order.roles", THRESHOLDS.sure_calls_reordered, evidence)
