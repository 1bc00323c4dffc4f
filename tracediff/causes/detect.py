"""Names likely causes of divergences: every detector is shown every finding, and what they have evidence for is put in order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.alignment import Alignment
from tracediff.causes import formulas, where_in_tensor
from tracediff.causes.detectors import (
    arrangement,
    attention,
    attributes,
    calls,
    combination,
    normalisation,
    pointwise,
    rotation,
    rounding,
    timesteps,
)
from tracediff.causes.scene import Detector, Scene, Suspect
from tracediff.causes.scene_reader import Evidence
from tracediff.locate import Located
from tracediff.trace import Trace

DETECTORS: tuple[Detector, ...] = tuple(
    module.detect
    for module in (
        attention,
        rotation,
        timesteps,
        normalisation,
        pointwise,
        combination,
        arrangement,
        calls,
        attributes,
        rounding,
        where_in_tensor,
    )
)
SURE = 0.88
"""What a confirmed cause must be worth for no formulas to be tried any more."""
BLAMES = ("module", "caller")
MOST = 24
"""So many findings are explained; where there are more, the later ones are seldom causes of their own."""


def suspects(located: Located, alignment: Alignment, reference: Trace, port: Trace) -> dict[int, list[Suspect]]:
    """The likely causes of each finding, best first, by its place among `Located.findings`."""
    evidence = Evidence(located, alignment, reference, port)
    scenes = ((number, evidence.scene(finding)) for number, finding in enumerate(located.findings[:MOST]) if finding.blame in BLAMES)
    return {number: ranked(scene_suspects(scene)) for number, scene in scenes if not scene.end.startswith("attr[")}


def scene_suspects(scene: Scene) -> Iterable[Suspect]:
    """What all detectors say of one divergence."""
    with np.errstate(all="ignore"):  # trials that divide by zero or overflow are merely no good
        found = [suspect for detector in DETECTORS for suspect in detector(scene)]
        yield from found
        if not any(suspect.confirmed and suspect.confidence >= SURE for suspect in found):
            yield from formulas.detect(scene)


def ranked(found: Iterable[Suspect]) -> list[Suspect]:
    """One suspect a kind, its surest; those whose edit reproduced the port come first."""
    best: dict[str, Suspect] = {}
    for suspect in sorted(found, key=lambda one: (-one.confirmed, -one.confidence)):
        best.setdefault(suspect.kind, suspect)
    return list(best.values())
