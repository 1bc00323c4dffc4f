"""Causes that the tensors of a divergence show: every detector is shown every finding, and its causes are put in order."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tracediff.alignment import Alignment
from tracediff.causes import formulas
from tracediff.causes.cause import Cause, one_of_each_kind
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
    where_in_tensor,
)
from tracediff.causes.scene import Detector, Scene
from tracediff.causes.scene_reader import SceneReader
from tracediff.causes.thresholds import THRESHOLDS
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
"""Among causes that are equally sure, those of an earlier detector come first."""
_BLAMES = ("module", "caller", "run")


def causes(located: Located, alignment: Alignment, reference: Trace, port: Trace) -> dict[int, list[Cause]]:
    """The causes of each finding that code made, best first and one of each kind, by the finding's place in ``located.findings``."""
    reader = SceneReader(located, alignment, reference, port)
    explained: dict[int, list[Cause]] = {}
    for place, finding in enumerate(located.findings[: THRESHOLDS.findings_explained]):
        if finding.blame in _BLAMES:
            scene = reader.scene(finding)
            if not scene.end.startswith("attr["):
                explained[place] = one_of_each_kind(causes_of_scene(scene))
    return explained


def causes_of_scene(scene: Scene) -> Iterable[Cause]:
    """What all detectors say of one divergence; formulas are looked for where none is sure."""
    with np.errstate(all="ignore"):  # trials that divide by zero or overflow are merely no good
        found = [cause for detector in DETECTORS for cause in detector(scene)]
        yield from found
        if not any(cause.confirmed and cause.confidence >= THRESHOLDS.sure_enough for cause in found):
            yield from formulas.detect(scene)
