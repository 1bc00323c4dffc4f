"""Causes that are a matter of numbers: values rounded to a coarser dtype, random ones, dropped ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

import ml_dtypes
import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_COARSER = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
_NORMAL_KURTOSIS = 3
_FLOAT32 = 32


def detect(scene: Scene) -> Iterable[Claim]:
    """A port that was rounded, that dropped values, or that does not repeat itself."""
    if scene.port_repeats is False:
        evidence = "the port does not repeat itself: it gives other values in a second run"
        yield Claim("random", THRESHOLDS.sure_port_varies, evidence)
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    yield from _dropped(scene, port)
    if not _is_computed(scene):
        yield from _drawn(reference, port)
    yield from _rounded(scene, reference, port)
    yield from _coarse_products(scene, reference, port)


def _dropped(scene: Scene, port: Array) -> Iterable[Claim]:
    """Some values, of the tensor or of what is added in it, are 0 and the others larger by one factor."""
    for name, ours, rest in scene.summands():
        theirs = port - rest
        counted = np.abs(ours) > THRESHOLDS.counts_as_value * np.abs(ours).max(initial=0)
        gone = (np.abs(theirs) <= THRESHOLDS.is_dropped * np.abs(ours)) & counted
        share = gone.sum() / max(counted.sum(), 1)
        if not THRESHOLDS.least_dropped < share < THRESHOLDS.most_dropped or gone.sum() < THRESHOLDS.fewest_dropped:
            continue
        ratios = theirs[counted & ~gone] / ours[counted & ~gone]
        factor = float(np.median(ratios))
        has_one_factor = factor > 1 and np.abs(ratios - factor).max() < THRESHOLDS.same_dropout_factor * factor
        if has_one_factor and _is_rate(1 - 1 / factor, share, gone):
            where = f"of {name} " if name else ""
            evidence = (
                f"{int(gone.sum()):,} of {int(counted.sum()):,} values {where}are 0 in the port, the others {factor:.4g} times larger"
            )
            edit = Edit(np.where(gone, 0, factor * ours) + rest)
            if scene.sides[1].is_training and not scene.sides[0].is_training:
                training = f"{evidence}, and the port's module is in training mode: call eval()"
                yield Claim("mode.train", THRESHOLDS.sure_left_in_training, training, edit)
            yield Claim("dropout", THRESHOLDS.sure_dropped, evidence, edit)
            return


def _is_rate(rate: float, share: float, gone: Array) -> bool:
    """Whether a share of dropped values is what a dropout of this rate makes, up to chance.

    Whole channels or positions may be dropped together: what stands alike along an axis was drawn once.
    """
    alike = [axis for axis in range(gone.ndim) if (gone == np.take(gone, [0], axis)).all()]
    draws = math.prod(size for axis, size in enumerate(gone.shape) if axis not in alike)
    uncertain = THRESHOLDS.standard_errors * math.sqrt(share * (1 - share) / max(draws, 1))
    return rate > THRESHOLDS.least_dropped and abs(rate - share) < uncertain


def _is_computed(scene: Scene) -> bool:
    """Whether a module's output was made from a tensor that it was handed, of at least half its size: then it was not drawn."""
    reference, _ = scene.tensors()
    handed = (one.values for one in scene.in_hand if one.is_input)
    return scene.blame == "module" and any(values.dtype.kind == "f" and 2 * values.size >= reference.size for values in handed)


def _drawn(reference: Array, port: Array) -> Iterable[Claim]:
    """Both look like standard normal draws, and have nothing to do with each other."""
    if reference.size < THRESHOLDS.fewest_distributed or not reference.std() or not port.std():
        return
    uncertain = THRESHOLDS.standard_errors / np.sqrt(reference.size)
    correlation = float(np.corrcoef(reference.reshape(-1), port.reshape(-1))[0, 1])
    if abs(correlation) < uncertain and _is_standard_normal(reference, uncertain) and _is_standard_normal(port, uncertain):
        evidence = f"on both sides {reference.size:,} standard normal numbers, with a correlation of {correlation:+.2f}"
        yield Claim("random", THRESHOLDS.sure_drawn, evidence)


def _is_standard_normal(values: Array, uncertain: float) -> bool:
    """Whether mean, standard deviation and kurtosis are those of standard normal numbers, within what is uncertain."""
    excess = ((values - values.mean()) ** 4).mean() / values.var() ** 2 - _NORMAL_KURTOSIS
    has_moments = abs(values.mean()) < uncertain and abs(values.std() - 1) < uncertain
    return bool(has_moments and abs(excess) < THRESHOLDS.kurtosis_errors * uncertain)


def _rounded(scene: Scene, reference: Array, port: Array) -> Iterable[Claim]:
    """The port's tensor is of a coarser dtype than its run, or all its values are numbers of a coarser one."""
    run_bits = _bits(scene.run_dtypes[1])
    if _bits(scene.dtypes[1]) < min(_bits(scene.dtypes[0]), run_bits):
        evidence = f"the port has {scene.dtypes[1]} here, in a run of {scene.run_dtypes[1]}; the reference has {scene.dtypes[0]}"
        yield Claim("precision", THRESHOLDS.sure_coarser_dtype, evidence)
        return
    handed = next((one for one in scene.in_hand if _bits(one.dtypes[1]) < min(_bits(one.dtypes[0]), run_bits)), None)
    if handed is not None:
        evidence = f"{handed.name} is {handed.dtypes[0]} in the reference and {handed.dtypes[1]} in the port"
        yield Claim("precision", THRESHOLDS.sure_handed_coarser, evidence)
        return
    if len(np.unique(port)) < THRESHOLDS.fewest_distributed:
        return
    for name, dtype in _COARSER.items():
        is_finer = name not in scene.dtypes and min(_bits(one) for one in scene.dtypes) > _bits(name)
        if is_finer and _is_exact_in(dtype, port) and not _is_exact_in(dtype, reference):
            evidence = f"all of the port's values are {name} numbers, the reference's are not: it was computed in {name}"
            yield Claim("precision", THRESHOLDS.sure_coarser_dtype, evidence)
            return


def _coarse_products(scene: Scene, reference: Array, port: Array) -> Iterable[Claim]:
    """All that multiplies is off by what products of numbers of 10 bits of mantissa are, and what does not is not.

    It is no more than likely: what was multiplied is not known, else the products would have been taken again.
    """
    own = scene.sides[0].path
    if scene.program is not None or scene.wrong_weights or not scene.multiplies.get(own) or _bits(scene.dtypes[1]) != _FLOAT32:
        return
    multiplying = {site for site, does in scene.multiplies.items() if does}
    others = scene.multiplies.keys() - multiplying
    off, others_off = multiplying & scene.altered, others & scene.altered
    are_apart = len(off) >= THRESHOLDS.fewest_coarse * len(multiplying) and len(others_off) <= THRESHOLDS.most_fine_off * len(others)
    if len(off) < THRESHOLDS.fewest_products or not others or not are_apart:
        return
    gain = float(np.vdot(reference, port) / (np.vdot(reference, reference) or 1.0))
    left = port - gain * reference
    size = float(np.linalg.norm(left) / (np.linalg.norm(reference) or 1.0))
    is_cut = -THRESHOLDS.most_coarse < gain - 1 < THRESHOLDS.least_coarse  # what is cut off makes products smaller
    if is_cut and THRESHOLDS.least_coarse < size < THRESHOLDS.most_coarse and _is_like_noise(reference, left):
        evidence = (
            f"off by {size:.1e} as by chance, as are {len(off)} of the {len(multiplying)} modules that multiply, and {len(others_off)} of "
            f"the {len(others)} that do not: TF32's products, of 10 bits of mantissa, err so"
        )
        yield Claim("precision", THRESHOLDS.sure_coarse_products, evidence)


def _is_like_noise(reference: Array, error: Array) -> bool:
    """Whether no factor or offset for each index of an axis explains most of an error."""
    total = float(np.vdot(error, error))
    for axis in range(error.ndim):
        if error.size < THRESHOLDS.values_a_factor * error.shape[axis]:
            continue
        rest = tuple(one for one in range(error.ndim) if one != axis)
        along, size = (reference * error).sum(rest), (reference * reference).sum(rest)
        factors = float((along**2 / np.where(size, size, 1)).sum())
        offsets = float((error.mean(rest) ** 2).sum()) * error.size / error.shape[axis]
        if max(factors, offsets) > total / 2:
            return False
    return True


def _is_exact_in(dtype: type, values: Array) -> bool:
    """Whether all values are numbers of a coarser dtype."""
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float32).astype(dtype).astype(np.float64), values)


def _bits(name: str) -> int:
    if name.startswith("float8"):
        return 8
    return {"float16": 16, "bfloat16": 16, "float64": 64}.get(name, 32)
