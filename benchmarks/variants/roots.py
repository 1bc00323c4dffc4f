"""Other ways to run the port on the same inputs: rows one by one, padding, chunks, a root around the root."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from benchmarks.variants.variant import Made, Transformation, Trial


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
    return [(name, one) for name, one in tree_flatten([value]) if isinstance(one, mx.array)]


TRANSFORMATIONS = (
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
