"""Order: siblings are aligned in the order of their calls, and crossed only where the scores say so."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tracediff.alignment.order import assigned, in_order, matched, pieces, rising
from tracediff.alignment.split_work import regrouped


def test_alike_siblings_are_matched_one_after_the_other():
    assert matched(np.ones((5, 5))) == [(i, i) for i in range(5)]


def test_a_sibling_that_is_missing_shifts_the_rest():
    scores = np.eye(5)[:, [0, 1, 3, 4]] + 0.1
    assert matched(scores) == [(0, 0), (1, 1), (3, 2), (4, 3)]


def test_siblings_called_in_another_order_are_crossed():
    scores = np.zeros((3, 3))
    scores[[0, 1, 2], [2, 0, 1]] = 1.0
    assert matched(scores) == [(0, 2), (1, 0), (2, 1)]


def test_a_small_preference_does_not_break_the_order():
    scores = np.ones((3, 3))
    scores[0, 1] += 0.05
    assert matched(scores) == [(0, 0), (1, 1), (2, 2)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))
def test_order_never_gains_more_than_free_assignment(rows, columns, seed):
    scores = np.random.default_rng(seed).uniform(-1, 1, (rows, columns))
    kept = in_order(scores)
    assert kept == sorted(kept)
    assert len({column for _, column in kept}) == len(kept)
    assert sum(scores[pair] for pair in kept) <= sum(scores[pair] for pair in assigned(scores)) + 1e-9


def test_the_longest_rising_anchors_are_kept():
    assert rising([(0, 0), (1, 5), (2, 1), (3, 2), (4, 9)]) == [(0, 0), (2, 1), (3, 2), (4, 9)]


def test_anchors_cut_a_long_alignment_into_pieces_that_cover_the_rest():
    found = pieces(10, 12, [(2, 3), (7, 7)])
    assert [(list(rows), list(columns)) for rows, columns in found] == [
        ([0, 1], [0, 1, 2]),
        ([3, 4, 5, 6], [4, 5, 6]),
        ([8, 9], [8, 9, 10, 11]),
    ]
    assert all(len(rows) * len(columns) <= 4_000_000 for rows, columns in pieces(20_000, 20_000, []))


def test_a_prefill_in_chunks_is_found_again():
    chunks = [(4, 8), (4, 8), (2, 8), (8,)]
    pairs = regrouped(range(2), range(4), [[(10, 8), (8,)], chunks])
    assert [(pair.reference, pair.port) for pair in pairs] == [((0,), (0, 1, 2)), ((1,), (3,))]


def test_two_calls_of_one_may_be_one_call_of_two():
    (pair,) = regrouped([5, 6], [3], [[(6, 8), (6, 8)], [(2, 6, 8)]])
    assert (pair.reference, pair.port) == ((5, 6), (3,))
