"""How alike two things of the same sort are: what lies below two callers, their scalar attributes, the words of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.features import Bag, size_of
from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class KindLikeness:
    """How alike kinds are, two at a time. Each likeness is worked out when it is first needed, and kept.

    A *kind* is a number that all sites with the same thing share (the same bag, the same attributes).
    """

    def __init__(self, count: int, likeness: Callable[[int, int], float]) -> None:
        self._likeness = likeness
        is_dense = count <= THRESHOLDS.dense_kinds
        self._table: Floats = np.full((count, count) if is_dense else (0, 0), np.nan, np.float32)  # (kinds, kinds)
        self._known: dict[tuple[int, int], float] = {}  # instead of the table where there are too many kinds

    def of(self, ours: int, theirs: int) -> float:
        """The likeness of two kinds."""
        if self._table.size:
            if np.isnan(self._table[ours, theirs]):
                self._table[ours, theirs] = self._likeness(ours, theirs)
            return float(self._table[ours, theirs])
        if (ours, theirs) not in self._known:
            self._known[ours, theirs] = self._likeness(ours, theirs)
        return self._known[ours, theirs]

    def table(self, rows: Ints, columns: Ints) -> Floats:
        """The likenesses of the kinds of several sites, ``rows`` and ``columns``: (rows, columns)."""
        if not self._table.size:
            return np.array([[self.of(int(ours), int(theirs)) for theirs in columns] for ours in rows])
        kinds = np.unique(rows), np.unique(columns)
        for i, j in np.argwhere(np.isnan(self._table[np.ix_(*kinds)])).tolist():
            self.of(int(kinds[0][i]), int(kinds[1][j]))
        table: Floats = self._table[rows[:, None], columns[None, :]]
        return table


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


def word_likeness(rows: Sequence[frozenset[str]], columns: Sequence[frozenset[str]]) -> Floats:
    """How alike the words of every two names are, 0 to 1 (Dice): (rows, columns)."""
    if len(rows) * len(columns) <= THRESHOLDS.few_pairs:
        return np.array([[2 * len(ours & theirs) / (len(ours) + len(theirs) or 1) for theirs in columns] for ours in rows])
    vocabulary = {word: place for place, word in enumerate(set().union(*rows) & set().union(*columns))}
    tables = []
    for names in (rows, columns):
        table = np.zeros((len(names), len(vocabulary)), np.float32)
        for row, words in enumerate(names):
            table[row, [vocabulary[word] for word in words if word in vocabulary]] = 1.0
        tables.append(table)
    total = np.array([len(words) for words in rows])[:, None] + np.array([len(words) for words in columns])[None, :]
    likeness: Floats = 2.0 * (tables[0] @ tables[1].T) / np.maximum(total, 1)
    return likeness
