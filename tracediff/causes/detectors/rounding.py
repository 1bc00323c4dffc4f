"""Causes that are a matter of numbers: values rounded to a coarser dtype, random ones, dropped ones."""

from __future__ import annotations

from collections.abc import Iterable

import ml_dtypes
import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

_FEWEST = 64  # values from which something can be told of how they are distributed
_COARSER = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}


def detect(scene: Scene) -> Iterable[Suspect]:
    """A port that was rounded, that dropped values, or that does not repeat itself."""
    if scene.port_repeats is False:
        yield Suspect("random", 0.8, False, "the port does not repeat itself: it gives other values in a second run")
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    yield from _dropped(scene, port)
    yield from _drawn(reference, port)
    yield from _rounded(scene, reference, port)


def _dropped(scene: Scene, port: Array) -> Iterable[Suspect]:
    """Some values, of the tensor or of what is added in it, are 0 and the others larger by one factor."""
    for name, ours, rest in scene.summands():
        theirs = port - rest
        told = np.abs(ours) > 1e-3 * np.abs(ours).max(initial=0)
        gone = (np.abs(theirs) <= 1e-4 * np.abs(ours)) & told
        share = gone.sum() / max(told.sum(), 1)
        if not 0.005 < share < 0.95 or gone.sum() < 2:
            continue
        ratios = theirs[told & ~gone] / ours[told & ~gone]
        factor = float(np.median(ratios))
        if factor >= 1 and np.abs(ratios - factor).max() < 1e-2 * factor and abs(factor * (1 - share) - 1) < 0.35:
            where = f"of {name} " if name else ""
            evidence = f"{int(gone.sum()):,} of {int(told.sum()):,} values {where}are 0 in the port, the others {factor:.4g} times larger"
            if scene.sides[1].is_training and not scene.sides[0].is_training:
                yield Suspect("mode.train", 0.97, True, f"{evidence}, and the port's module is in training mode: call eval()")
            yield Suspect("dropout", 0.95, True, evidence)
            return


def _drawn(reference: Array, port: Array) -> Iterable[Suspect]:
    """Both look like standard normal draws, and have nothing to do with each other."""
    if reference.size < _FEWEST:
        return
    uncertain = 4 / np.sqrt(reference.size)
    likeness = float(np.corrcoef(reference.reshape(-1), port.reshape(-1))[0, 1]) if reference.std() and port.std() else 1.0
    moments = [(one.mean(), one.std() - 1, ((one - one.mean()) ** 4).mean() / one.var() ** 2 - 3) for one in (reference, port) if one.std()]
    if abs(likeness) < uncertain and all(abs(a) < uncertain and abs(b) < uncertain and abs(c) < 6 * uncertain for a, b, c in moments):
        yield Suspect(
            "random", 0.8, False, f"on both sides {reference.size:,} standard normal numbers, with a correlation of {likeness:+.2f}"
        )


def _rounded(scene: Scene, reference: Array, port: Array) -> Iterable[Suspect]:
    """The port's tensor is of a coarser dtype than its run, or all its values are numbers of one."""
    if _bits(scene.dtypes[1]) < min(_bits(scene.dtypes[0]), _bits(scene.run_dtypes[1])):
        told = f"the port has {scene.dtypes[1]} here, in a run of {scene.run_dtypes[1]}; the reference has {scene.dtypes[0]}"
        yield Suspect("precision", 0.9, False, told)
        return
    handed = next((one for one in scene.in_hand if _bits(one.dtypes[1]) < min(_bits(one.dtypes[0]), _bits(scene.run_dtypes[1]))), None)
    if handed is not None:
        yield Suspect("precision", 0.8, False, f"{handed.name} is {handed.dtypes[0]} in the reference and {handed.dtypes[1]} in the port")
        return
    if len(np.unique(port)) < _FEWEST:
        return
    for name, kind in _COARSER.items():
        if name in scene.dtypes or min(_bits(one) for one in scene.dtypes) <= _bits(name):
            continue
        with np.errstate(over="ignore"):
            is_coarse = np.array_equal(port.astype(np.float32).astype(kind).astype(np.float64), port)
            was_coarse = np.array_equal(reference.astype(np.float32).astype(kind).astype(np.float64), reference)
        if is_coarse and not was_coarse:
            yield Suspect(
                "precision", 0.9, False, f"all of the port's values are {name} numbers, the reference's are not: it was computed in {name}"
            )
            return


def _bits(name: str) -> int:
    return 8 if name.startswith("float8") else 16 if name in ("float16", "bfloat16") else 64 if name == "float64" else 32
