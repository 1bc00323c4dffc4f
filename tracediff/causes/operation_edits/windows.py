"""Windows of short-time spectra and of filters: another shape, or symmetric in the place of periodic."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

from tracediff.causes.operation_edits.base import Change
from tracediff.causes.program import Replay
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import Values
from tracediff.trace.operations import Node

_SHAPES = ("hann", "hamming", "blackman", "bartlett", "boxcar")


@lru_cache(maxsize=64)
def _windows(length: int) -> dict[str, Array]:
    """The windows of a length in words. A periodic one (`fftbins`) is a symmetric one of one more value without the last."""
    from scipy.signal import get_window  # takes longer to load than most comparisons take

    kinds = {"periodic": True, "symmetric": False}
    return {f"{text} {shape}": get_window(shape, length, fftbins=fftbins) for shape in _SHAPES for text, fftbins in kinds.items()}


def other_window(replay: Replay, number: int, node: Node) -> Iterator[Change]:
    """A vector that is a window, as another window. What code computes of it, such as the sum of its squares, follows."""
    values = replay.values[number]
    if node.refs or not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.ndim != 1:
        return
    if not THRESHOLDS.least_window <= values.size <= THRESHOLDS.most_coordinates:
        return
    windows = _windows(values.size)
    own = next((text for text, window in windows.items() if np.allclose(window, values, atol=THRESHOLDS.same_window)), None)
    if own is None:
        return
    for text in sorted(windows, key=lambda text: text.split()[1] != own.split()[1]):
        if not np.allclose(windows[text], values, atol=THRESHOLDS.same_window):
            said = f"the port has a {text} window in the place of a {own} one"
            yield Change("transform", said, {number: partial(_instead, windows[text])})


def _instead(window: Array, values: Values) -> Array:
    """A window in the place of another, whatever the other nodes give."""
    return window
