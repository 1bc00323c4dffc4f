"""What a variant is, and the proof that it must stay the same: the port's answer is what it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from benchmarks.clean import reordered
from benchmarks.variants.surgery import flow
from tracediff.runs.planting import restore

CLOSE, TIMES = 2e-6, 5.0
"""Two answers in float32 are the same within this relative L2, or within so many times what another order of sums does to the pair."""


@dataclass(frozen=True)
class Made:
    """What a transformation did to a pair.

    ``text`` says where. ``moved``: the port's paths that are now others, by the old one; what lies below goes along. ``mixed``: modules
    whose weights became others', so that a fault in one of them would move. ``around``: what must be in force while the port runs.
    ``reference``: set where the reference's run is another one too; variants with the same text then share its trace.
    """

    text: str
    moved: Mapping[str, str] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()
    around: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    reference: str = ""
    around_reference: Callable[[], AbstractContextManager[Any]] | None = None
    pair: Any = None
    """The pair, where it had to be made anew."""


@dataclass(frozen=True)
class Transformation:
    """A way to say the same otherwise. ``make`` changes a fresh pair in place; None where it fits nowhere in that pair."""

    name: str
    make: Callable[[Any, random.Random], Made | None]


@contextmanager
def in_force(made: Made) -> Iterator[None]:
    """What a variant needs while its port runs."""
    with ExitStack() as stack:
        for one in made.around:
            stack.enter_context(one())
        yield


# -- answers -------------------------------------------------------------------------------------------------------------------------------


class _Evaluated:
    """`mlx.core`, or what stands for it, for the code that runs a port: what it evaluates is kept."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.kept: tuple[Any, ...] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def eval(self, *values: Any) -> None:
        self.kept = values
        mx.eval(*(value for _, value in tree_flatten(list(values)) if isinstance(value, mx.array)))


def answer(pair: Any) -> list[np.ndarray]:
    """What a plain run of the port computes: its arrays in order.

    Where it returns integers alone, they would hide much: then the numbers that the root's modules hand to it belong to the answer.
    """
    found = _returned(pair)
    if any(one.dtype.kind in "fc" for one in found):
        return found
    inner = flow(pair.port, lambda: _returned(pair))
    return [*found, *(_numpy(array) for one in inner if one.caller == "" and one.path for array in _arrays(one.result))]


def _returned(pair: Any) -> list[np.ndarray]:
    mx.random.seed(0)
    seen = _Evaluated(pair.run_port.__globals__["mx"])
    with patch.dict(pair.run_port.__globals__, {"mx": seen}):
        returned = pair.run_port()
    return [_numpy(one) for one in _arrays([*seen.kept] if seen.kept else returned)]


def _numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array)


def _arrays(value: Any) -> list[mx.array]:
    if isinstance(value, mx.array):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    elif hasattr(value, "__dataclass_fields__"):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        return [array for one in value for array in _arrays(one)]
    return []


def is_same(before: Sequence[np.ndarray], after: Sequence[np.ndarray], close: float = CLOSE) -> bool:
    """Whether two answers say the same, to rounding in float32."""
    return bool(before) and apart(before, after) <= close


def apart(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The largest distance of two answers' arrays."""
    if len(before) != len(after):
        return math.inf
    return max((distance(one, other) for one, other in zip(before, after, strict=True)), default=0.0)


def noise(pair: Any) -> float:
    """How far apart two answers of a clean port may be: what another order of sums does, several times."""
    before, found = answer(pair), CLOSE
    for order in ("permuted", "split"):
        with reordered(order):
            moved = apart(before, answer(pair))
        found = max(found, TIMES * moved) if moved < 1e-3 else found
    return found


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The relative L2 of two arrays; infinite where shapes, integers or what is finite differ."""
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return math.inf
    if one.dtype.kind not in "fc":
        return 0.0 if np.array_equal(one, other) else math.inf
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return math.inf
    norm = float(np.linalg.norm(one[finite]))
    return float(np.linalg.norm(other[finite] - one[finite])) / norm if norm else float(np.linalg.norm(other[finite]))


@dataclass
class Trial:
    """Changes of a port's weights and constants that are kept only where the answer stays what it was."""

    pair: Any

    def __post_init__(self) -> None:
        self.before, self.close = answer(self.pair), noise(self.pair)

    def keeps(self, change: Callable[[], Any], *parts: Callable[[], Any]) -> bool:
        """Makes the change; takes it back and returns False where the answer is another, or there is none.

        So it does where one of the ``parts`` of the change alone leaves the answer as it was: what a normalisation takes out anyway makes
        up for nothing, and is a fault that does not show.
        """
        if parts and (not self._is_kept(change, for_good=False) or any(self._is_kept(part, for_good=False) for part in parts)):
            return False
        return self._is_kept(change)

    def _is_kept(self, change: Callable[[], Any], *, for_good: bool = True) -> bool:
        """Whether a change leaves the answer as it was; it is taken back where it does not, or not ``for_good``."""
        kept = [(module, type(module), _copied(dict(module)), _copied(dict(vars(module)))) for module in self.pair.port.modules()]
        is_kept = False
        try:
            change()
            is_kept = is_same(self.before, answer(self.pair), self.close)
        except Exception:  # noqa: BLE001 - a change that does not fit raises whatever the port raises
            pass
        if not (is_kept and for_good):
            restore(kept)
        return is_kept


def _copied(value: Any) -> Any:
    """Lists and dicts anew, what they hold as it is: a module taken out of one is back afterwards."""
    if type(value) is list:
        return [_copied(one) for one in value]
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    return value


def several(chance: random.Random, found: Sequence[Any], most: int = 3) -> list[Any]:
    """Some of what was found, at most so many, drawn."""
    return chance.sample(list(found), min(most, len(found)))
