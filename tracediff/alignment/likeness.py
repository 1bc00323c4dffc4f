"""How alike two things of the same sort are: what lies below two callers, their scalar attributes, the words of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.features import Bag, size_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class KindLikeness:
    """How alike kinds are, two at a time. Each likeness is worked out when it is first needed, and kept.

    A *kind* is a number that all sites with the same thing share (the same bag, the same attributes).
    """

    def __init__(self, likeness: Callable[[int, int], float]) -> None:
        self._likeness = likeness
        self._known: dict[tuple[int, int], float] = {}

    def of(self, ours: int, theirs: int) -> float:
        """The likeness of two kinds."""
        if (ours, theirs) not in self._known:
            self._known[ours, theirs] = self._likeness(ours, theirs)
        return self._known[ours, theirs]

    def of_pairs(self, ours: Ints, theirs: Ints) -> Floats:
        """The likenesses of many pairs of kinds: (pairs,)."""
        kinds, places = np.unique(ours << 32 | theirs, return_inverse=True)
        return np.array([self.of(kind >> 32, kind & 0xFFFFFFFF) for kind in kinds.tolist()])[places] if len(ours) else np.zeros(0)


def bag_likeness(ours: Bag, theirs: Bag) -> float:
    """The share of sites that two bags have in common, 0 to 1 (Jaccard).

    >>> bag_likeness(((1, 2),), ((1, 1), (2, 1)))
    0.3333333333333333
    """
    counts, others = dict(ours), dict(theirs)
    common = sum(min(count, others.get(key, 0)) for key, count in counts.items())
    total = size_of(ours) + size_of(theirs) - common
    return common / total if total else 0.0


def attribute_agreement(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """How far the scalar attributes that both have agree: 1 where all do, -1 where none does, 0 where they have none in common."""
    common = [key for key in ours if key in theirs and key != "training"]
    return sum(1.0 if _is_equal(ours[key], theirs[key]) else -1.0 for key in common) / len(common) if common else 0.0


def _is_equal(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal; a list of equal entries, as of a kernel's sizes, is equal to one of them."""
    return bool(_flat(ours) == _flat(theirs))


def _flat(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(set(map(repr, value))) == 1:
        return value[0]
    return value


def word_likeness(ours: Sequence[frozenset[str]], theirs: Sequence[frozenset[str]], a: Ints, b: Ints) -> Floats:
    """How alike the words of the names of ``a`` among ours and ``b`` among theirs are, 0 to 1 (Dice): (pairs,)."""
    from scipy.sparse import csr_array

    vocabulary: dict[str, int] = {}
    tables, counts = [], []
    for side in (ours, theirs):
        columns = [vocabulary.setdefault(word, len(vocabulary)) for words in side for word in words]
        counts.append(np.array([len(words) for words in side], np.int64))
        starts = np.concatenate([[0], np.cumsum(counts[-1])])
        tables.append((np.ones(len(columns), np.int64), np.array(columns, np.int64), starts))
    rows = [csr_array(table, shape=(len(table[2]) - 1, max(1, len(vocabulary))))[of] for table, of in zip(tables, (a, b), strict=True)]
    common = np.asarray(rows[0].multiply(rows[1]).sum(axis=1)).ravel()
    likeness: Floats = 2.0 * common / np.maximum(counts[0][a] + counts[1][b], 1)
    return likeness
