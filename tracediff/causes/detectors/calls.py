"""Causes told by the calls that the culprit's code makes: one left out, one more, or in another order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tracediff.causes.scene import Scene, Side, Suspect


def detect(scene: Scene) -> Iterable[Suspect]:
    """Children that only one side calls, and a norm that stands elsewhere among them."""
    ours, theirs = (side.calls for side in scene.sides)
    if not ours or not theirs:
        return
    for name in dict.fromkeys(ours):
        if _is_lacking(name, *scene.sides) and name in scene.paired:
            told = f"the reference calls {name} ({scene.types.get(name, '')}) {ours.count(name)} times here, the port {theirs.count(name)}"
            yield Suspect(_missing(name, scene.types.get(name, "")), 0.85, False, told)
    for name in dict.fromkeys(theirs):
        if _is_lacking(name, *reversed(scene.sides)) and name in scene.paired:
            yield Suspect(
                "branch.extra", 0.75, False, f"the port calls {name} {theirs.count(name)} times here, the reference {ours.count(name)}"
            )
    yield from _moved(scene, ours, theirs)


def _is_lacking(name: str, one: Side, other: Side) -> bool:
    """Whether one side calls it more often than the other, and did so before the divergence, which a later call cannot have made."""
    before = [side.calls if side.before is None else side.before for side in (one, other)]
    return one.calls.count(name) > other.calls.count(name) and before[0].count(name) > before[1].count(name)


def _missing(name: str, kind: str) -> str:
    words = (kind + name.rpartition(".")[2]).lower()
    if "norm" in words or name.rpartition(".")[2].startswith("ln"):
        return "norm.missing"
    if "pos" in words or ("embed" in words and "time" not in words):
        return "position.missing"
    return "branch.missing"


def _moved(scene: Scene, ours: Sequence[str], theirs: Sequence[str]) -> Iterable[Suspect]:
    """Both sides make the same calls, in another order."""
    shared = [name for name in ours if name in theirs and ours.count(name) == theirs.count(name) == 1]
    order = [name for name in theirs if name in shared]
    if len(shared) < 2 or shared == order:
        return
    norms = [name for name in shared if "norm" in scene.types.get(name, "").lower() and shared.index(name) != order.index(name)]
    place = next(i for i, (a, b) in enumerate(zip(shared, order, strict=True)) if a != b)
    told = f"the reference calls {shared[place]} where the port calls {order[place]}"
    yield Suspect("norm.placement" if norms else "order.roles", 0.85 if norms else 0.5, False, told)
