"""Layouts: which ways of reading a port's tensor there are, which the values support, and that none merely excuses an error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracediff.alignment.axes import (
    Join,
    Layout,
    Part,
    apply,
    apply_reference,
    choose,
    layouts,
    parse_permutation,
    relative_error,
    restore,
)
from tracediff.errors import AlignmentError


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_equal_shapes_are_read_as_they_are():
    assert layouts((2, 3, 5), (2, 3, 5))[0] == Layout((2, 3, 5))
    assert str(layouts((2, 3, 5), (2, 3, 5))[0]) == "same"


def test_channels_last_is_read_as_channels_first():
    x = drawn(2, 40, 64)
    layout, error = choose(x, x.transpose(0, 2, 1), layouts((2, 40, 64), (2, 64, 40)))
    assert str(layout) == "(0, 2, 1)"
    assert error == 0


def test_a_reshape_where_a_transpose_was_meant_is_no_layout():
    x = drawn(1, 64, 40)
    mistaken = x.reshape(1, 40, 64)
    layout, error = choose(x, mistaken, layouts(x.shape, mistaken.shape))
    assert str(layout) == "(0, 2, 1)"
    assert error > 1


@pytest.mark.parametrize(("reference", "port"), [((2, 3), (3, 5)), ((4, 9), (6, 6)), ((2, 3), ())])
def test_shapes_whose_axes_cannot_be_reconciled_have_no_layout(reference, port):
    assert not [layout for layout in layouts(reference, port) if layout.window is None]


def test_merged_heads_are_taken_apart():
    x = drawn(2, 5, 4, 8)
    layout, error = choose(x.transpose(0, 2, 1, 3), x.reshape(2, 5, 32), layouts((2, 4, 5, 8), (2, 5, 32)))
    assert error == 0
    assert np.array_equal(apply(x.reshape(2, 5, 32), layout), x.transpose(0, 2, 1, 3))


def test_heads_in_the_batch_are_found_in_the_channels():
    x = drawn(2, 50, 8, 16)
    ours, theirs = x.transpose(0, 2, 1, 3).reshape(16, 50, 16), x.reshape(2, 50, 128)
    assert choose(ours, theirs, layouts(ours.shape, theirs.shape))[1] == 0


def test_of_equal_axes_the_plain_layout_is_kept_unless_another_is_clearly_better():
    x = drawn(3, 8, 8)
    candidates = layouts(x.shape, x.shape)
    assert choose(x, x + 0.5 * drawn(3, 8, 8), candidates)[0].is_same
    assert str(choose(x, x.transpose(0, 2, 1), candidates)[0]) == "(0, 2, 1)"


def test_padding_before_the_call_is_cut_off_wherever_it_was_put():
    x = drawn(2, 6, 10)
    for before, behind in ((1, 1), (2, 0), (0, 2)):
        padded = np.pad(x, ((0, 0), (0, 0), (before, behind))).transpose(0, 2, 1)
        layout, error = choose(x, padded, layouts(x.shape, padded.shape))
        assert error == 0
        assert "window" in str(layout)


def test_a_mask_given_once_is_repeated():
    mask = drawn(2, 1, 7)
    (layout, *_) = layouts((2, 1, 7), (2, 7, 7))
    assert layout.repeat == "reference"
    assert apply_reference(mask, layout).shape == apply(np.repeat(mask, 7, 1), layout).shape == (2, 7, 7)


def test_parts_and_runs_of_a_fused_projection_are_taken_out():
    q, k, v = drawn(3, 4, 8)
    whole = np.concatenate([q, k, v], -1)
    assert np.array_equal(apply(whole, Layout((4, 8), part=Part(1, 8, 16))), k)
    by_head = np.stack([part.reshape(4, 2, 4) for part in (q, k, v)], 2).reshape(4, 24)
    assert np.array_equal(apply(by_head, Layout((4, 8), part=Part(1, 4, 8, groups=2))), k)
    assert np.array_equal(Join(1, groups=2)([q, k, v]), by_head)


@st.composite
def permuted(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    return np.arange(int(np.prod(shape)), dtype=np.float64).reshape(shape), draw(st.permutations(range(len(shape))))


@settings(max_examples=60, deadline=None)
@given(permuted())
def test_every_permutation_is_among_the_layouts_and_is_undone_by_restore(case):
    x, order = case
    port = x.transpose(order)
    layout, error = choose(x, port, layouts(x.shape, port.shape))
    assert error == 0
    (back,) = restore(apply_reference(x, layout), layout, [port])
    assert back.shape == port.shape
    assert np.array_equal(back, port)


def test_restore_hands_back_what_the_port_had_and_keeps_its_padding():
    x, own = drawn(2, 6, 10), np.full((2, 12, 6), 7.0, np.float32)
    layout = Layout(x.shape, split=(2, 12, 6), permutation=(0, 2, 1), window=((0, 2), (0, 6), (1, 11)))
    (given_back,) = restore(x, layout, [own])
    assert np.array_equal(given_back[:, 1:11].transpose(0, 2, 1), x)
    assert (given_back[:, [0, 11]] == 7).all()


def test_restore_deals_a_joined_tensor_out_to_its_calls():
    x = drawn(1, 4, 3)
    parts = restore(x, Layout(x.shape, join=Join(1, "stack")), [np.zeros((1, 3), np.float32)] * 4)
    assert [part.tolist() for part in parts] == [x[:, step].tolist() for step in range(4)]


def test_masks_of_minus_infinity_and_of_large_negative_numbers_are_alike():
    assert relative_error(np.array([0.0, -np.inf]), np.array([0.0, -1e10])) == 0


def test_a_layout_that_is_no_permutation_is_refused_with_what_to_write():
    assert parse_permutation("(0, 2, 1)") == (0, 2, 1)
    assert parse_permutation("same") is None
    for text in ("(0, 2)", "channels last", "(0, 0, 1)"):
        with pytest.raises(AlignmentError, match="permutation"):
            parse_permutation(text)
