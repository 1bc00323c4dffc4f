"""Other inputs on both sides, and other ways to run the port on the same: rows one by one, padding, chunks, containers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CellType
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn

from benchmarks.variants.variant import Made, Transformation, Trial, answer

# -- both sides ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """An array that a run's code has in hand: in a cell of its closure, or in a list there."""

    cell: CellType
    index: int | None

    @property
    def value(self) -> np.ndarray:
        held = self.cell.cell_contents
        found: np.ndarray = held if self.index is None else held[self.index]
        return found

    def set(self, value: np.ndarray) -> None:
        if self.index is None:
            self.cell.cell_contents = value
        else:
            self.cell.cell_contents[self.index] = value


def held_arrays(run: Callable[[], Any]) -> list[Held]:
    """The arrays that a run's code holds."""
    found = []
    for cell in run.__closure__ or ():
        held = cell.cell_contents
        if isinstance(held, np.ndarray):
            found.append(Held(cell, None))
        elif isinstance(held, list):
            found += [Held(cell, index) for index, one in enumerate(held) if isinstance(one, np.ndarray)]
    return found


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
    layouts = [_found_in(one.value, before) for one in others]
    for one, value in zip(ours, changed, strict=True):
        one.set(value)
    for one, (place, order) in zip(others, layouts, strict=True):
        one.set(np.ascontiguousarray(changed[place].transpose(order)))


def drawn_to(value: np.ndarray, axis: int, size: int) -> np.ndarray:
    """As many places along an axis, by cutting or by repeating, each repetition rolled along the last axis so that no two are alike."""
    have = value.shape[axis]
    parts = [np.roll(value, turn, axis=-1) if axis != value.ndim - 1 else np.roll(value, turn) for turn in range(-(-size // have))]
    return np.ascontiguousarray(np.concatenate(parts, axis=axis).take(range(size), axis=axis))


def _found_in(value: np.ndarray, known: Sequence[np.ndarray]) -> tuple[int, tuple[int, ...]]:
    """Which of the arrays this one is, and in which order of axes."""
    for place, one in enumerate(known):
        for order in itertools.permutations(range(one.ndim)):
            if one.ndim == value.ndim and one.transpose(order).shape == value.shape and np.array_equal(one.transpose(order), value):
                return place, order
    raise LookupError("an input that only the port has")


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


# -- the port alone ------------------------------------------------------------------------------------------------------------------------


class Outer(nn.Module):
    """A root around the root, which runs it in another way on the same."""

    def __init__(self, model: Any, way: Callable[..., Any]) -> None:
        super().__init__()
        self["model"] = model
        object.__setattr__(self, "_way", way)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_way"](self["model"], *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self[name] if name in self else getattr(self["model"], name)


def around_the_root(way: Callable[..., Any]) -> Callable[[Any, random.Random], Made | None]:
    """A transformation: the port's root lies in another one, which calls it by ``way(root, *args, **kwargs)``."""

    def make(pair: Any, chance: random.Random) -> Made | None:
        trial, root = Trial(pair), pair.port
        cells = [cell for cell in pair.run_port.__closure__ or () if cell.cell_contents is root]
        if not cells:
            return None
        outer = replace(pair, port=Outer(root, way))
        for cell in cells:
            cell.cell_contents = outer.port
        if trial.keeps(lambda: None):
            return Made("the root", {"": "model"}, pair=outer)
        for cell in cells:
            cell.cell_contents = root
        return None

    return make


def plainly(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model(*args, **kwargs)


def warmed_up(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Once for nothing, then once more."""
    mx.eval([one for _, one in _leaves(model(*args, **kwargs))])
    return model(*args, **kwargs)


def row_by_row(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Every row of the batch by itself."""
    rows = _batch(args)
    if rows < 2:
        raise ValueError("one row")
    made = [model(*(one[row : row + 1] for one in args), **kwargs) for row in range(rows)]
    return _mapped(lambda *parts: mx.concatenate(parts, axis=0), *made)


def with_an_extra_row(model: Any, *args: Any, **kwargs: Any) -> Any:
    """One row more in the batch, which is thrown away."""
    rows = _batch(args)
    more = [mx.concatenate([one, one[:1, ::-1] if one.ndim > 1 else one[:1]]) for one in args]
    return _mapped(lambda part: part[:rows] if part.shape[:1] == (rows + 1,) else part, model(*more, **kwargs))


def padded(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The sequence padded on the right, and the result cut."""
    length = args[0].shape[1]
    longer = [mx.pad(one, [(0, 0), (0, 3), *[(0, 0)] * (one.ndim - 2)]) if one.ndim > 1 and one.shape[1] == length else one for one in args]
    return _mapped(lambda part: part[:, :length], model(*longer, **kwargs))


def padded_batch(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Beside a longer row, padded on the right."""
    return with_an_extra_row(lambda *more, **named: padded(model, *more, **named), *args, **kwargs)


def by_chunks(*sizes: int) -> Callable[..., Any]:
    """The prompt of a language model in chunks of these sizes, the last one over and over, with a cache."""

    def way(model: Any, ids: mx.array, **kwargs: Any) -> Any:
        from mlx_lm.models.cache import make_prompt_cache

        cache, made, start = make_prompt_cache(model), [], 0
        for size in itertools.chain(sizes, itertools.repeat(sizes[-1])):
            if start >= ids.shape[1]:
                return mx.concatenate(made, axis=1)
            made.append(model(ids[:, start : start + size], cache=cache))
            start += size
        raise AssertionError

    return way


def returned_in_a_dict(model: Any, *args: Any, **kwargs: Any) -> Any:
    return {"result": model(*args, **kwargs)}


def _batch(args: Sequence[Any]) -> int:
    if any(not isinstance(one, mx.array) or not one.ndim or one.shape[0] != args[0].shape[0] for one in args):
        raise ValueError("not every argument has the batch on its first axis")
    return int(args[0].shape[0])


def _mapped(change: Callable[..., Any], *values: Any) -> Any:
    first = values[0]
    if isinstance(first, mx.array):
        return change(*values)
    if isinstance(first, list | tuple):
        return type(first)(_mapped(change, *parts) for parts in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _mapped(change, *(value[key] for value in values)) for key in first}
    if first is None:
        return None
    raise TypeError(type(first).__name__)


def _leaves(value: Any) -> list[tuple[str, mx.array]]:
    from mlx.utils import tree_flatten

    return [(name, one) for name, one in tree_flatten([value]) if isinstance(one, mx.array)]


TRANSFORMATIONS = (
    Transformation("length equal to a width", of_size("length", widths, None)),
    Transformation("batch equal to heads", of_size("batch", lambda pair: (4,), 0)),
    Transformation("batch equal to length", of_size("batch", lambda pair: _lengths(held_arrays(pair.run_reference)[0].value), 0)),
    Transformation("length of one", of_size("length", lambda pair: (1,), None)),
    Transformation("batch of one", of_size("batch", lambda pair: (1,), 0)),
    Transformation("two threads", threads),
    Transformation("root nested", around_the_root(plainly)),
    Transformation("root returns a dict", around_the_root(returned_in_a_dict)),
    Transformation("warmed up", around_the_root(warmed_up)),
    Transformation("row by row", around_the_root(row_by_row)),
    Transformation("an extra row", around_the_root(with_an_extra_row)),
    Transformation("sequence padded", around_the_root(padded)),
    Transformation("batch padded", around_the_root(padded_batch)),
    Transformation("prefill in chunks", around_the_root(by_chunks(5, 3))),
    Transformation("token by token", around_the_root(by_chunks(1))),
)
