"""Causes told by the scalar attributes of the culprit's two modules: another eps, slope, base or padding, or another mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracediff.causes.proof import Claim
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.causes.thresholds import THRESHOLDS

_KIND_OF_WORD = (
    ("eps", "norm.eps"),
    ("slope", "activation"),
    ("approximate", "activation"),
    ("scaling", "scale"),
    ("scale", "scale"),
    ("theta", "rope.variant"),
    ("traditional", "rope.variant"),
    ("base", "rope.variant"),
    ("causal", "mask.wrong"),
    ("heads", "heads.layout"),
    ("padding_mode", "padding.mode"),
    ("padding", "padding.shift"),
    ("dilation", "padding.shift"),
    ("stride", "padding.shift"),
    ("output_padding", "padding.shift"),
)


def detect(scene: Scene) -> Iterable[Claim]:
    """Attributes of one name, or of one meaning, with different values; and a port that is in training mode."""
    reference, port = scene.sides
    for word, kind in _KIND_OF_WORD:
        ours, theirs = _named(reference.attributes, word), _named(port.attributes, word)
        if ours is not None and theirs is not None and _comparable(ours[1]) != _comparable(theirs[1]):
            evidence = f"{ours[0]} is {ours[1]!r} in the reference and {theirs[0]} {theirs[1]!r} in the port"
            sure = THRESHOLDS.sure_eps_attribute if kind == "norm.eps" else THRESHOLDS.sure_attribute
            yield Claim(kind, sure, evidence)
    if port.is_training and not reference.is_training:
        yield _training(port)


def _training(port: CulpritSide) -> Claim:
    kind = "dropout" if "dropout" in port.type.lower() else "mode.train"
    evidence = f"{port.trains or 'the module'} of the port is in training mode, the reference is not: call eval()"
    sure = THRESHOLDS.sure_training_itself if port.trains == port.path else THRESHOLDS.sure_training_inside
    return Claim(kind, sure, evidence)


def _named(attributes: Mapping[str, Any], word: str) -> tuple[str, Any] | None:
    """The attribute (name, value) that a word names: the one of that very name, or the only one whose name contains the word."""
    found = [(name, value) for name, value in attributes.items() if word in name.lower() and not isinstance(value, str | type(None))]
    exact = [item for item in found if item[0].lower().strip("_") == word]
    if exact:
        return exact[0]
    return found[0] if len(found) == 1 else None


def _comparable(value: Any) -> Any:
    """A value as it is compared: a row of equal numbers is that number, as the two frameworks write kernel sizes differently."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(map(str, value))) == 1 else list(value)
    return float(value) if isinstance(value, int | float) else value
