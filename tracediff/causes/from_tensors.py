"""Causes that the tensors of a divergence show: every detector is shown every finding, and its causes are put in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    operations,
    pointwise,
    rotation,
    rounding,
    timesteps,
    where_in_tensor,
)
from tracediff.causes.proof import Detector, Proven, judged
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
        operations,
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
_BLAMES = ("module", "caller", "run")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tensors show: the causes of each finding that code made, best first and one of each kind, by the finding's place.

    ``unsearched``: at so many findings that no detector is sure of no formula was looked for. ``changes``: by the finding's place the
    evidence of each proven change of the reference's operations, and the reference's module in which it lies, where that has no partner.
    """

    causes: dict[int, list[Cause]]
    unsearched: int
    changes: dict[int, dict[str, str | None]]


def causes(located: Located, reader: SceneReader) -> Seen:
    """The causes of all findings that code made; formulas are looked for in order of execution, at so many findings at most."""
    explained: dict[int, list[Cause]] = {}
    changes: dict[int, dict[str, str | None]] = {}
    open_ones = 0
    for place, finding in enumerate(located.findings):
        if finding.blame in _BLAMES:
            scene = reader.scene(finding)
            if not scene.end.startswith("attr["):
                found, is_sure, proven = _detected(scene)
                changes[place] = {evidence: reader.maker(one.nodes) for evidence, one in proven.items() if one.nodes}
                open_ones += not is_sure
                if not is_sure and open_ones <= THRESHOLDS.formulas_searched:
                    found += _formulas(scene)
                explained[place] = one_of_each_kind(without_other_words(found))
        elif finding.blame == "input":  # made by the run's own code, before anything was called
            with np.errstate(all="ignore"):
                explained[place] = list(judged(reader.scene(finding), operations.detect))
    return Seen(explained, max(0, open_ones - THRESHOLDS.formulas_searched), changes)


def causes_of_scene(scene: Scene) -> list[Cause]:
    """What all detectors say of one divergence; formulas are looked for where none is sure."""
    found, is_sure, _ = _detected(scene)
    return without_other_words(found if is_sure else [*found, *_formulas(scene)])


def _detected(scene: Scene) -> tuple[list[Cause], bool, dict[str, Proven]]:
    """What all detectors say of one divergence, whether one of them is sure, and what is known of the proven edits by their evidence."""
    proven: dict[str, Proven] = {}
    with np.errstate(all="ignore"):  # trials that divide by zero or overflow are merely no good
        asked = [detector for detector in DETECTORS if not (scene.sides[0].is_training and detector in _OF_FIXED_FUNCTIONS)]
        found = [cause for detector in asked for cause in judged(scene, detector, proven)]
    found = _without_coincidences(scene, found, proven)
    return found, any(cause.confirmed and cause.confidence >= THRESHOLDS.sure_enough for cause in found), proven


def _without_coincidences(scene: Scene, causes: Sequence[Cause], proven: Mapping[str, Proven]) -> list[Cause]:
    """The causes without confirmed ones whose edit leaves far more of the difference than another proven edit, and more than noise.

    Where an error is one number times a known tensor (a solver's step), some of many edits give nearly that number by chance.
    """
    if len(proven) < 2 or not scene.is_numeric:
        return list(causes)
    least = min(one.leaves for one in proven.values())
    allowed = max(THRESHOLDS.coincidence * least, scene.noise_share(*scene.tensors()) or 0.0, THRESHOLDS.coincidence_at_least)
    return [cause for cause in causes if cause.evidence not in proven or proven[cause.evidence].leaves <= allowed]


def _formulas(scene: Scene) -> list[Cause]:
    """What formulas say; none of a reference in training mode, which is no function of what it had in hand."""
    if scene.sides[0].is_training:
        return []
    with np.errstate(all="ignore"):
        return list(judged(scene, formulas.detect))


def without_other_words(causes: Sequence[Cause]) -> list[Cause]:
    """The causes without confirmed ones that say in other words what another confirmed one says.

    All confirmed edits give the same tensor, the port's: the likeliest speaks for them, and of equally likely ones the gravest.
    """
    proven = (cause for cause in causes if cause.confirmed)
    best = min(proven, key=lambda cause: (-cause.confidence, CATALOGUE[cause.kind].gravity), default=None)
    return [cause for cause in causes if not cause.confirmed or cause is best]
