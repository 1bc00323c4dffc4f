"""What the plain properties of two sites say: roles, classes, shapes, stages, neighbours, parameters' axes and functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.features import Features
from tracediff.alignment.thresholds import THRESHOLDS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PROPERTIES = ("role", "type", "outputs", "inputs", "stage", "near", "around", "projection", "kind", "call_count")
"""Codes among the `Features`, which are merely equal or not. `THRESHOLDS` holds what each is worth: NAME_equal and NAME_different."""


def worth() -> tuple[Floats, Floats]:
    """What each of `PROPERTIES` is worth where two sites share it, and where they differ in it: (properties,) each."""
    equal = np.array([getattr(THRESHOLDS, f"{name}_equal") for name in PROPERTIES])
    return equal, np.array([getattr(THRESHOLDS, f"{name}_different") for name in PROPERTIES])


def scored(ours: Features, theirs: Features, a: Ints, b: Ints, worths: tuple[Floats, Floats]) -> Floats:
    """What the properties say of every two of the sites ``a`` and ``b``: (a, b). ``worths``: `worth`."""
    codes = np.stack([getattr(ours, name)[a] for name in PROPERTIES]), np.stack([getattr(theirs, name)[b] for name in PROPERTIES])
    scores = _by_codes(*codes, *worths)
    same_role = (ours.role[a][:, None] == theirs.role[b][None, :]) & (ours.role[a] != 0)[:, None]
    is_excused = both_have_roles(ours, theirs, a, b) & ~same_role & _have_one_matrix(ours, theirs, a, b)
    scores -= THRESHOLDS.role_different * is_excused
    scores += _by_parameters(ours, theirs, a, b)
    functions, other_functions = ours.function[a][:, None], theirs.function[b][None, :]
    if functions.any() or other_functions.any():
        differing = np.where(same_role, THRESHOLDS.function_as_module, THRESHOLDS.function_different)
        worth = np.where(functions == other_functions, THRESHOLDS.function_equal, differing)
        scores += np.where((functions != 0) | (other_functions != 0), worth, 0.0)
    return scores


def both_have_roles(ours: Features, theirs: Features, a: Ints, b: Ints) -> Flags:
    """Whether the classes of every two sites say what both do: (a, b)."""
    known: Flags = (ours.role[a] != 0)[:, None] & (theirs.role[b] != 0)[None, :]
    return known


def _by_codes(rows: Ints, columns: Ints, equal: Floats, different: Floats) -> Floats:
    """What `PROPERTIES` say of every two sites, given their codes (properties, a) and (properties, b): (a, b)."""
    if rows.shape[1] * columns.shape[1] <= THRESHOLDS.scores_at_once:
        return _weighed(rows, columns, equal, different)
    scores = np.zeros((rows.shape[1], columns.shape[1]))
    for place in range(len(PROPERTIES)):  # one after the other, so that no more is held than the scores
        kind = slice(place, place + 1)
        scores += _weighed(rows[kind], columns[kind], equal[kind], different[kind])
    return scores


def _weighed(rows: Ints, columns: Ints, equal: Floats, different: Floats) -> Floats:
    same = rows[:, :, None] == columns[:, None, :]  # (properties, a, b)
    present = (rows != 0)[:, :, None] & (columns != 0)[:, None, :]
    scores: Floats = np.einsum("krc,k->rc", present, different) + np.einsum("krc,k->rc", same & present, equal - different)
    return scores


def _by_parameters(ours: Features, theirs: Features, a: Ints, b: Ints) -> Floats:
    """What the axes of the largest own parameters say of every two sites: (a, b)."""
    keys, other_keys = ours.key[a][:, None], theirs.key[b][None, :]
    are_leaves = ours.leaf[a][:, None] & theirs.leaf[b][None, :]
    both_own, neither_owns = (keys != 0) & (other_keys != 0), (keys == 0) & (other_keys == 0)
    of_owners = np.where(keys == other_keys, THRESHOLDS.largest_equal, THRESHOLDS.largest_different)
    of_others = np.where(neither_owns, THRESHOLDS.neither_owns, np.where(are_leaves, THRESHOLDS.one_leaf_owns, 0.0))
    return np.where(both_own, of_owners, of_others)


def _have_one_matrix(ours: Features, theirs: Features, a: Ints, b: Ints) -> Flags:
    """Whether every two sites multiply by a matrix of the same lengths: a convolution of one step is a linear layer. (a, b)"""
    same: Flags = ours.matrix[a][:, None] & theirs.matrix[b][None, :] & (ours.key[a][:, None] == theirs.key[b][None, :])
    return same
