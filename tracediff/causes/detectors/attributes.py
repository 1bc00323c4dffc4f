"""Causes told by the scalar attributes of the culprit's two modules: another eps, slope, base or padding, or another mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracediff.causes.scene import Scene, Suspect

_KINDS = (
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


def detect(scene: Scene) -> Iterable[Suspect]:
    """Attributes of one name, or of one meaning, with different values; and a port that is in training mode."""
    reference, port = scene.sides
    for word, kind in _KINDS:
        ours, theirs = _one(reference.attributes, word), _one(port.attributes, word)
        if ours is not None and theirs is not None and _plain(ours[1]) != _plain(theirs[1]):
            told = f"{ours[0]} is {ours[1]!r} in the reference and {theirs[0]} {theirs[1]!r} in the port"
            yield Suspect(kind, 0.85 if kind == "norm.eps" else 0.7, False, told)
    if port.is_training and not reference.is_training:
        kind = "dropout" if "dropout" in port.type.lower() else "mode.train"
        told = f"{port.trains or 'the module'} of the port is in training mode, the reference is not: call eval()"
        yield Suspect(kind, 0.9 if port.trains == port.path else 0.5, False, told)


def _one(attributes: Mapping[str, Any], word: str) -> tuple[str, Any] | None:
    """The attribute that a word names, where there is just one."""
    found = [(name, value) for name, value in attributes.items() if word in name.lower() and not isinstance(value, str | type(None))]
    exact = [item for item in found if item[0].lower().strip("_") == word]
    return exact[0] if exact else found[0] if len(found) == 1 else None


def _plain(value: Any) -> Any:
    """A value as it is compared: a row of equal numbers is that number, as the two frameworks write kernel sizes differently."""
    if isinstance(value, list | tuple):
        return value[0] if len(set(map(str, value))) == 1 else list(value)
    return float(value) if isinstance(value, int | float) else value
