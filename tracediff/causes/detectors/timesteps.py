"""Causes in times and their sinusoidal embeddings: another schedule, another scale, sine and cosine exchanged, other frequencies.

sin and cos of ``scale * t * base ** (-i / d)`` for i in 0..h-1, with d = h or h - 1 and h half the width (Vaswani et al., 2017,
section 3.5; Ho et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import NamedTuple

import numpy as np

from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array

_SCALES = (1.0, 1000.0, 1e-3, 100.0, 0.01, 10.0, 0.1, 2.0, 0.5)
_BASES = (10_000.0, 1_000.0, 100_000.0)


class _Form(NamedTuple):
    """How a sinusoidal embedding is written."""

    scale: float
    order: str
    frequencies: str

    def __str__(self) -> str:
        return f"{self.scale:g} * t, {self.order}, {self.frequencies}"


def detect(scene: Scene) -> Iterable[Claim]:
    """The form that gives the reference's values, against the one that gives the port's."""
    if not scene.is_numeric:
        return
    reference, _ = scene.tensors()
    if reference.ndim == 1:
        yield from _schedule(scene)
    if scene.blame != "module" or not reference.ndim:
        return
    width = reference.shape[-1]
    if width < THRESHOLDS.least_sinusoidal or width % 2:
        return
    for one in scene.in_hand:
        t = one.values.reshape(-1)
        if t.dtype.kind != "b" and t.size * width == reference.size:
            yield from _embedded(scene, t.astype(np.float64), width // 2)
            return


def _embedded(scene: Scene, t: Array, half: int) -> Iterable[Claim]:
    """Both sides embed the times ``t`` (T,), in different forms."""
    reference, _ = scene.tensors()
    forms = list(_forms(t, half, reference.shape))
    first = next(((form, values) for form, values in forms if scene.is_reference(values)), None)
    second = next(((form, values) for form, values in forms if (first is None or form != first[0]) and scene.reproduces(values)), None)
    if first is None or second is None:
        return
    (ours, before), (theirs, after) = first, second
    kind = "position.offset"
    if ours.scale != theirs.scale:
        kind = "time.scale"
    elif ours.order != theirs.order:
        kind = "order.concat"
    yield Claim(kind, THRESHOLDS.sure_embedding, f"the reference embeds {ours}, the port {theirs}", Edit(after, before))


def _forms(t: Array, half: int, shape: tuple[int, ...]) -> Iterator[tuple[_Form, Array]]:
    """Every form with the embedding (T, 2 * half) of ``t`` (T,) in it, in the shape asked for."""
    for scale, base, last in product(_SCALES, _BASES, (half, max(half - 1, 1))):
        angles = scale * t[:, None] * base ** (-np.arange(half) / last)
        sine, cosine = np.sin(angles), np.cos(angles)
        frequencies = f"base {base:g}, over {'h' if last == half else 'h - 1'}"
        yield _Form(scale, "sine first", frequencies), np.concatenate([sine, cosine], -1).reshape(shape)
        yield _Form(scale, "cosine first", frequencies), np.concatenate([cosine, sine], -1).reshape(shape)
        yield _Form(scale, "sine and cosine in turn", frequencies), np.stack([sine, cosine], -1).reshape(shape)


def _schedule(scene: Scene) -> Iterable[Claim]:
    """The times of an ODE solver's steps run otherwise."""
    reference, port = scene.tensors()
    if len(reference) < THRESHOLDS.fewest_times or not (_is_monotone(reference) and _is_monotone(port)):
        return
    ours, theirs = (f"{_course(times) or 'otherwise'} from {times[0]:.4g} to {times[-1]:.4g}" for times in (reference, port))
    evidence = f"{len(reference)} growing or falling numbers: in the reference {ours}, in the port {theirs}"
    yield Claim("ode.schedule", THRESHOLDS.sure_schedule, evidence)


def _is_monotone(times: Array) -> bool:
    return not np.any(np.diff(times) * np.sign(times[-1] - times[0]) <= 0)


def _course(times: Array) -> str:
    """How times run from the first to the last; "" where no usual course fits."""
    share = np.linspace(0, 1, len(times))
    courses = {
        "linearly": share,
        "as 1 - cos(pi t / 2)": 1 - np.cos(0.5 * np.pi * share),
        "as sin(pi t / 2)": np.sin(0.5 * np.pi * share),
        "as a square": share**2,
        "as a square root": np.sqrt(share),
    }
    placed = (times - times[0]) / (times[-1] - times[0])
    return next((name for name, values in courses.items() if np.abs(placed - values).max() < THRESHOLDS.same_course), "")
