"""What statistics and samples let expect of a pair is near what reading it gives, in every layout."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracediff.alignment.axes import Join, Layout, Part, side_by_side
from tracediff.dtype import Array
from tracediff.locate import samples
from tracediff.locate.estimates import expected
from tracediff.locate.samples import can_sample, sampled
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.trace import Record, open_trace
from tracediff.trace.writer import TraceWriter

Shapes = list[tuple[int, ...]]

RNG = np.random.default_rng(3)


def recorded(folder: Path, *arrays: Array) -> list[Record]:
    """Records of the arrays, in one trace."""
    path = folder / f"{len(list(folder.iterdir()))}.h5"
    with TraceWriter(path) as writer:
        for number, values in enumerate(arrays):
            writer.add(site="x", call=f"x[{number}]", ordinal=number, end="output", values=values)
    return list(open_trace(path).records)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


LAYOUTS = {
    "same": (Layout((6, 8, 10)), [(6, 8, 10)], [(6, 8, 10)]),
    "permuted": (Layout((6, 8, 10), permutation=(0, 2, 1)), [(6, 8, 10)], [(6, 10, 8)]),
    "heads apart": (Layout((6, 8, 10), split=(6, 8, 2, 5), permutation=(0, 1, 2, 3)), [(6, 8, 10)], [(6, 8, 2, 5)]),
    "taken apart": (Layout((6, 2, 8, 5), split=(6, 8, 2, 5), permutation=(0, 2, 1, 3)), [(6, 2, 8, 5)], [(6, 8, 10)]),
    "window": (Layout((6, 8, 10), split=(6, 14, 8), permutation=(0, 2, 1), window=((0, 6), (0, 8), (2, 12))), [(6, 8, 10)], [(6, 14, 8)]),
    "part": (Layout((6, 8, 10), part=Part(2, 10, 20)), [(6, 8, 10)], [(6, 8, 30)]),
    "part by heads": (Layout((6, 8, 10), part=Part(2, 5, 10, 2)), [(6, 8, 10)], [(6, 8, 30)]),
    "part of the reference": (Layout((6, 8, 10), part_reference=Part(1, 8, 16)), [(6, 24, 10)], [(6, 8, 10)]),
    "stacked": (Layout((6, 8, 10), join=Join(1, "stack")), [(6, 8, 10)], [(6, 10)] * 8),
    "joined": (Layout((6, 8, 10), join_reference=Join(1)), [(6, 3, 10), (6, 5, 10)], [(6, 8, 10)]),
    "repeated": (Layout((6, 8, 10), repeat="port"), [(6, 8, 10)], [(6, 1, 10)]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sample_compares_the_same_places_as_reading_does(tmp_path: Path, name: str) -> None:
    layout, ours, theirs = LAYOUTS[name]
    reference = recorded(tmp_path, *(normal(*shape) for shape in ours))
    port = recorded(tmp_path, *(normal(*shape) for shape in theirs))
    left, right = side_by_side(layout, reference, port)
    whole = float(np.linalg.norm(right - left) / np.linalg.norm(left))
    errors = [sampled(reference, port, layout, random.Random(seed))[0] for seed in range(200)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(whole, rel=0.12)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("repeated", "window")])
def test_a_sample_of_equal_values_shows_no_error(tmp_path: Path, name: str) -> None:
    layout, ours, theirs = LAYOUTS[name]
    assert sampled(*_agreeing(tmp_path, layout, ours, theirs), layout, random.Random(0))[0] == 0.0


def _agreeing(folder: Path, layout: Layout, ours: Shapes, theirs: Shapes) -> tuple[list[Record], list[Record]]:
    """Records of both sides that the layout reads as equal."""
    whole = normal(*layout.shape)
    reference = [whole] if len(ours) == 1 else np.split(whole, np.cumsum([shape[1] for shape in ours])[:-1], 1)
    if layout.part_reference is not None:
        wide = normal(*ours[0])
        part = layout.part_reference
        wide[:, part.start : part.stop] = whole
        reference = [wide]
    if layout.join is not None:
        port = list(np.moveaxis(whole, 1, 0))
    elif layout.part is not None:
        wide = normal(*theirs[0])
        runs = wide.reshape(*wide.shape[:-1], layout.part.groups, -1)
        runs[..., layout.part.start : layout.part.stop] = whole.reshape(*whole.shape[:-1], layout.part.groups, -1)
        port = [runs.reshape(wide.shape)]
    elif layout.permutation is not None:
        split = layout.split or theirs[0]
        turned = whole.reshape([split[axis] for axis in layout.permutation])
        port = [np.ascontiguousarray(turned.transpose(np.argsort(layout.permutation))).reshape(theirs[0])]
    else:
        port = [whole]
    return recorded(folder, *map(np.ascontiguousarray, reference)), recorded(folder, *map(np.ascontiguousarray, port))


@pytest.mark.parametrize("error", [1e-6, 1e-3, 0.3])
def test_statistics_tell_an_error_to_within_a_small_factor(tmp_path: Path, error: float) -> None:
    ratios = []
    for _ in range(30):
        values = normal(40, 50)
        reference, port = recorded(tmp_path, values.astype(np.float64)), recorded(tmp_path, values + error * RNG.standard_normal((40, 50)))
        told = expected(reference, port, Layout((40, 50)))
        assert told is not None
        ratios.append(told / error)
    assert min(ratios) > 0.15
    assert max(ratios) < 8


def test_statistics_tell_of_one_wrong_value_and_not_of_values_that_changed_places(tmp_path: Path) -> None:
    values = normal(40, 50)
    wrong = values.copy()
    wrong[20, 20] += 2
    reference, layout = recorded(tmp_path, values), Layout((40, 50))
    error = 2 / float(np.linalg.norm(values))
    told = expected(reference, recorded(tmp_path, wrong), layout)
    assert told is not None
    assert told > error / 4
    turned = recorded(tmp_path, np.ascontiguousarray(values[:, ::-1]))
    assert expected(reference, turned, layout) == pytest.approx(0, abs=1e-9)
    assert sampled(reference, turned, layout, random.Random(0))[0] > 0.5


def test_a_lone_infinity_is_expected_to_differ_and_masks_tell_nothing(tmp_path: Path) -> None:
    values = normal(40, 50)
    infinite, masked = values.copy(), values.copy()
    infinite[0, 0], masked[0, :5] = np.inf, -1e9
    layout, reference = Layout((40, 50)), recorded(tmp_path, values)
    assert expected(reference, recorded(tmp_path, infinite), layout) == math.inf
    assert expected(reference, recorded(tmp_path, masked), layout) is None
    assert not can_sample(reference, recorded(tmp_path, masked), layout)


def test_a_sample_is_small_and_a_small_tensor_has_none(tmp_path: Path) -> None:
    large, small = (recorded(tmp_path, normal(*shape)) for shape in ((400, 500), (5, 6)))
    assert sampled(large, large, Layout((400, 500)), random.Random(0))[1] == THRESHOLDS.most_sampled_values
    assert not can_sample(small, small, Layout((5, 6)))


def test_whole_numbers_agree_only_where_all_that_are_seen_are_equal(tmp_path: Path) -> None:
    values = RNG.integers(0, 9, (40, 50))
    reference, layout = recorded(tmp_path, values), Layout((40, 50))
    assert sampled(reference, recorded(tmp_path, values.astype(np.int32)), layout, random.Random(0))[0] == 0
    assert sampled(reference, recorded(tmp_path, values[::-1].copy()), layout, random.Random(0))[0] == math.inf


def test_a_threshold_changed_for_a_while_changes_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, port = recorded(tmp_path, normal(64, 64), normal(64, 64))
    monkeypatch.setattr(samples, "THRESHOLDS", replace(THRESHOLDS, most_sampled_values=5))
    assert sampled([reference], [port], Layout((64, 64)), random.Random(0))[1] == 5
