"""Causes that the tensors of a divergence show: every detector is shown every finding, and its causes are put in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracediff.causes import formulas
from tracediff.causes.catalogue import CATALOGUE
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
from tracediff.causes.proof import Detector, judged
from tracediff.causes.scene import Scene
from tracediff.causes.scene_reader import SceneReader
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.locate import Located

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
_OF_FIXED_FUNCTIONS = (normalisation.detect, pointwise.detect)
"""Detectors that take the reference for a function of what it had in hand; in training mode it drops values at random, and is none."""
_BLAMES = ("module", "caller")


def causes(located: Located, reader: SceneReader) -> dict[int, list[Cause]]:
    """The causes of each finding that code made, best first and one of each kind, by the finding's place in ``located.findings``."""
    explained: dict[int, list[Cause]] = {}
    for place, finding in enumerate(located.findings[: THRESHOLDS.findings_explained]):
        if finding.blame in _BLAMES:
            scene = reader.scene(finding)
            if not scene.end.startswith("attr["):
                explained[place] = one_of_each_kind(causes_of_scene(scene))
    return explained


def causes_of_scene(scene: Scene) -> list[Cause]:
    """What all detectors say of one divergence; formulas are looked for where none is sure."""
    with np.errstate(all="ignore"):  # trials that divide by zero or overflow are merely no good
        asked = [detector for detector in DETECTORS if not (scene.sides[0].is_training and detector in _OF_FIXED_FUNCTIONS)]
        found = [cause for detector in asked for cause in judged(scene, detector)]
        is_told = any(cause.confirmed and cause.confidence >= THRESHOLDS.sure_enough for cause in found)
        if not is_told and not scene.sides[0].is_training:
            found += judged(scene, formulas.detect)
    return without_other_words(found)


def without_other_words(causes: Sequence[Cause]) -> list[Cause]:
    """The causes without confirmed ones that say in other words what another confirmed one says.

    All confirmed edits give the same tensor, the port's: the likeliest speaks for them, and of equally likely ones the gravest.
    """
    proven = (cause for cause in causes if cause.confirmed)
    best = min(proven, key=lambda cause: (-cause.confidence, CATALOGUE[cause.kind].gravity), default=None)
    return [cause for cause in causes if not cause.confirmed or cause is best]
