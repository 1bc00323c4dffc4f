"""Causes in times and their sinusoidal embeddings: another schedule, another scale, sine and cosine exchanged, other frequencies.

sin and cos of ``scale * t * base ** (-i / d)`` for i in 0..h-1, with d = h or h - 1 and h half the width (Vaswani et al., 2017,
section 3.5; Ho et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from tracediff.causes.scene import Scene, Suspect
from tracediff.dtype import Array

_SCALES = (1.0, 1000.0, 1e-3, 100.0, 0.01, 10.0, 0.1, 2.0, 0.5)


def detect(scene: Scene) -> Iterable[Suspect]:
    """The form that gives the reference's values, against the one that gives the port's."""
    if not scene.is_numeric:
        return
    reference, _ = scene.tensors()
    if reference.ndim == 1:
        yield from _schedule(scene)
    if scene.blame != "module" or not reference.ndim:
        return
    width = reference.shape[-1]
    if width < 4 or width % 2:
        return
    for one in scene.in_hand:
        t = one.values.reshape(-1)
        if t.dtype.kind == "b" or t.size * width != reference.size:
            continue
        forms = list(_forms(t.astype(np.float64), width // 2, reference.shape))
        ours = next((told for told, values in forms if scene.is_reference(values)), None)
        theirs = next((told for told, values in forms if told != ours and scene.reproduces(values)), None)
        if ours is not None and theirs is not None:
            kind = "time.scale" if ours[0] != theirs[0] else "order.concat" if ours[1] != theirs[1] else "position.offset"
            yield Suspect(kind, 0.95, True, f"the reference embeds {_spelled(ours)}, the port {_spelled(theirs)}")
        return


def _schedule(scene: Scene) -> Iterable[Suspect]:
    """The times of an ODE solver's steps run otherwise."""
    reference, port = scene.tensors()
    if len(reference) < 3 or any(np.any(np.diff(one) * np.sign(one[-1] - one[0]) <= 0) for one in (reference, port)):
        return
    share = np.linspace(0, 1, len(reference))
    courses = {
        "linearly": share,
        "as 1 - cos(pi t / 2)": 1 - np.cos(0.5 * np.pi * share),
        "as sin(pi t / 2)": np.sin(0.5 * np.pi * share),
        "as a square": share**2,
        "as a square root": np.sqrt(share),
    }

    def course(times: Array) -> str:
        placed = (times - times[0]) / (times[-1] - times[0])
        return next((name for name, values in courses.items() if np.abs(placed - values).max() < 1e-3), "")

    ours, theirs = (f"{course(one) or 'otherwise'} from {one[0]:.4g} to {one[-1]:.4g}" for one in (reference, port))
    yield Suspect("ode.schedule", 0.8, False, f"{len(reference)} growing or falling numbers: in the reference {ours}, in the port {theirs}")


Form = tuple[float, str, str]


def _forms(t: Array, half: int, shape: tuple[int, ...]) -> Iterator[tuple[Form, Array]]:
    for scale, base, last in product(_SCALES, (10_000.0, 1_000.0, 100_000.0), (half, max(half - 1, 1))):
        angles = scale * t[:, None] * base ** (-np.arange(half) / last)
        sine, cosine = np.sin(angles), np.cos(angles)
        frequencies = f"base {base:g}, over {'h' if last == half else 'h - 1'}"
        yield (scale, "sine first", frequencies), np.concatenate([sine, cosine], -1).reshape(shape)
        yield (scale, "cosine first", frequencies), np.concatenate([cosine, sine], -1).reshape(shape)
        yield (scale, "sine and cosine in turn", frequencies), np.stack([sine, cosine], -1).reshape(shape)


def _spelled(form: Form) -> str:
    return f"{form[0]:g} * t, {form[1]}, {form[2]}"
