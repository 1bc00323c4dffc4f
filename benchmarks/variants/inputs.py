"""Other inputs on both sides: axes made equally long, sizes of one; and the reference run with other threads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn

from benchmarks.held_inputs import found_in, held_arrays
from benchmarks.variants.variant import Made, Transformation, answer


def resized(pair: Any, size: int, axis_of: Callable[[np.ndarray], int | None]) -> None:
    """Gives an axis of the reference's inputs another size, and the port's likewise. LookupError where there is no such axis."""
    ours, theirs = held_arrays(pair.run_reference), held_arrays(pair.run_port)
    others = [one for one in theirs if all(one.cell is not other.cell for other in ours)]
    before, changed = [one.value for one in ours], []
    for value in before:
        axis = axis_of(value)
        changed.append(value if axis is None else drawn_to(value, axis, size))
    if all(new.shape == old.shape for new, old in zip(changed, before, strict=True)):
        raise LookupError("no such axis")
    layouts = [found_in(one.value, before) for one in others]
    for one, value in zip(ours, changed, strict=True):
        one.set(value)
    for one, (place, order) in zip(others, layouts, strict=True):
        one.set(np.ascontiguousarray(changed[place].transpose(order)))


def drawn_to(value: np.ndarray, axis: int, size: int) -> np.ndarray:
    """As many places along an axis, by cutting or by repeating, each repetition rolled along the last axis so that no two are alike."""
    have = value.shape[axis]
    parts = [np.roll(value, turn, axis=-1) if axis != value.ndim - 1 else np.roll(value, turn) for turn in range(-(-size // have))]
    return np.ascontiguousarray(np.concatenate(parts, axis=axis).take(range(size), axis=axis))


def says_the_same(pair: Any) -> bool:
    """Whether both sides compute the same numbers on the inputs that they have, whatever the layout: the port's among the reference's."""
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = [one.detach().float().numpy() for one in _tensors(pair.run_reference())]
    for ours in answer(pair):
        if ours.dtype.kind == "f" and not any(one.size == ours.size and _near(np.sort(one, None), np.sort(ours, None)) for one in theirs):
            return False
    return bool(theirs)


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    finite = np.isfinite(one) & np.isfinite(other)
    return float(np.linalg.norm(one[finite] - other[finite])) <= 1e-4 * float(np.linalg.norm(one[finite]))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for one in value for tensor in _tensors(one)]
    return []


def of_size(what: str, sizes: Callable[[Any], Sequence[int]], axis: int | None) -> Callable[[Any, random.Random], Made | None]:
    """A transformation: an axis of all inputs is of the first of these sizes with which both sides run; ``axis`` None: the longest one."""

    def make(pair: Any, chance: random.Random) -> Made | None:
        known = held_arrays(pair.run_reference)
        if not known:
            return None
        first = known[0].value
        length = first.shape[0] if axis == 0 else next((size for size in _lengths(first)), 0)
        kept = [(one, one.value) for one in (*known, *held_arrays(pair.run_port))]

        def axis_of(value: np.ndarray) -> int | None:
            if axis == 0:
                return 0 if value.ndim > 1 and value.shape[0] == length else None
            return next((place for place in range(value.ndim - 1, 0, -1) if value.shape[place] == length), None)

        for size in sizes(pair):
            if length in (0, size):
                continue
            try:
                resized(pair, size, axis_of)
                if says_the_same(pair):
                    return Made(f"{what} {size}", reference=f"{what} {size}")
            except Exception:  # noqa: BLE001 - a size that a model does not take raises whatever it raises
                pass
            for one, value in kept:
                one.set(value)
        return None

    return make


def _lengths(value: np.ndarray) -> list[int]:
    """The sizes that may be a sequence's length, the likeliest first: of integers the last axis, of numbers any but the first."""
    return [value.shape[-1]] if value.dtype.kind in "iu" else sorted(value.shape[1:], reverse=True)


def widths(pair: Any) -> list[int]:
    """Sizes that are axes already: of the channels of norms and inputs, of heads; each once, the most frequent first."""
    shapes = [one.shape[0] for _, one in _flat(pair.port) if one.ndim == 1 and 1 < one.shape[0] <= 64]
    shapes += [size for one in held_arrays(pair.run_reference) for size in one.value.shape[1:] if size <= 64]
    return sorted(set(shapes), key=lambda size: -shapes.count(size))


def _flat(port: nn.Module) -> Iterator[tuple[str, mx.array]]:
    for path, module in port.named_modules():
        for name, value in module.items():
            if isinstance(value, mx.array):
                yield f"{path}.{name}", value


@contextmanager
def two_threads() -> Iterator[None]:
    """PyTorch computes with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads(pair: Any, chance: random.Random) -> Made:
    """The reference was captured with two threads."""
    return Made("the reference", reference="two threads", around_reference=two_threads)


TRANSFORMATIONS = (
    Transformation("length equal to a width", of_size("length", widths, None)),
    Transformation("batch equal to heads", of_size("batch", lambda pair: (4,), 0)),
    Transformation("batch equal to length", of_size("batch", lambda pair: _lengths(held_arrays(pair.run_reference)[0].value), 0)),
    Transformation("length of one", of_size("length", lambda pair: (1,), None)),
    Transformation("batch of one", of_size("batch", lambda pair: (1,), 0)),
    Transformation("two threads", threads),
)
