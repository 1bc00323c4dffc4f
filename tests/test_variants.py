"""The benchmark of variants is honest: only what leaves a port's answer as it was counts, and whatever is not the same is an alarm."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import mlx.core as mx
import pairs

from benchmarks.variants.catalogue import EVERY, selected
from benchmarks.variants.joints import split
from benchmarks.variants.measure import UNCHANGED, Bench, Case, moved
from benchmarks.variants.surgery import flow, spots
from benchmarks.variants.table import rate, rows, table
from benchmarks.variants.variant import Made, Trial, answer, is_same

small = partial(pairs.gpt, layers=1)


def case(**given: object) -> Case:
    return Case(**{"pair": "gpt", "transformation": "split", "dtype": "float32", "mode": "free", "seed": 0, "where": "a", **given})  # type: ignore[arg-type]


def test_a_change_that_alters_the_answer_is_taken_back() -> None:
    pair = small()
    before, layer = answer(pair), pair.port.layers[0].feed_forward.up
    kept = layer.weight

    def change() -> None:
        layer.weight = layer.weight * 1.001

    assert not Trial(pair).keeps(change)
    assert layer.weight is kept
    assert is_same(before, answer(pair), 0.0)


def test_a_change_of_which_a_part_alone_does_nothing_is_taken_back() -> None:
    pair = small()
    before, layer = answer(pair), pair.port.layers[0].feed_forward.up
    kept = layer.weight

    def times(factor: float) -> None:
        layer.weight = layer.weight * factor

    def both() -> None:
        times(2.0), times(0.5)

    assert Trial(pair).keeps(both)
    assert Trial(pair).keeps(both, partial(times, 2.0), partial(times, 0.5))
    layer.weight = kept
    assert not Trial(pair).keeps(both, partial(times, 2.0), lambda: None)
    assert layer.weight is kept
    assert is_same(before, answer(pair), 0.0)


def test_a_change_that_raises_is_taken_back() -> None:
    pair = small()
    before = answer(pair)
    assert not Trial(pair).keeps(pair.port.layers.clear)
    assert is_same(before, answer(pair), 0.0)


def test_a_module_that_is_put_aside_stays_in_the_tree_and_its_caller_runs_other_code() -> None:
    pair = small()
    paths = [path for path, _ in pair.port.named_modules()]
    spot = next(one for one in spots(pair.port) if one.path == "layers.0.feed_forward.up")
    spot.aside(lambda module, x: mx.zeros_like(module(x)))
    assert [path for path, _ in pair.port.named_modules()] == paths
    calls = {one.path: one for one in flow(pair.port, pair.run_port)}
    assert float(mx.abs(calls["layers.0.feed_forward.up"].result).max()) > 0
    assert float(mx.abs(calls["layers.0.feed_forward.down"].x).max()) == 0


def test_a_pair_is_made_anew_bit_for_bit(tmp_path: Path) -> None:
    bench = Bench("gpt", small, 0, tmp_path)
    assert all(np.array_equal(one, other) for one, other in zip(answer(bench.fresh()), answer(bench.fresh()), strict=True))


def test_a_place_is_followed_to_where_a_variant_has_it() -> None:
    pair = small()
    made = split(pair, random.Random(0))
    assert made is not None
    paths = {path for path, _ in pair.port.named_modules()}
    assert {moved(made, path) for path in made.moved} <= paths
    assert moved(Made("", {"a.b": "c", "": "root"}), "a.b.d") == "c.d"
    assert moved(Made("", {"a.b": "c", "": "root"}), "a.d") == "root.a.d"


def test_whatever_is_not_the_same_is_an_alarm_and_a_variant_alarms_once() -> None:
    cases = [case(verdict="same"), case(verdict="none", mode="forced"), case(verdict="same", where="b"), case(verdict="raised", where="c")]
    assert [one.is_alarm for one in cases] == [False, True, False, True]
    (row,) = rows(cases)
    assert (row["variants"], row["alarming variants"], row["runs"], row["alarms"]) == (3, 2, 4, 2)
    assert rate(cases) == pytest.approx(200 / 3)
    assert list(table(cases))[-1] == "66.7 % of the 3 variants alarm"


def test_what_the_pair_as_it_is_alarms_of_is_told_apart_and_counted() -> None:
    own = case(transformation=UNCHANGED, verdict="different", dtype="bfloat16")
    likewise, another = case(verdict="different", dtype="bfloat16"), case(verdict="different", dtype="bfloat16", mode="forced", where="b")
    assert [(row["alarming variants"], row["of the pair"]) for row in rows([own, likewise, another])] == [(1, 1), (2, 1)]
    assert rate([own, likewise, another]) == 100


def test_a_fault_that_is_not_found_at_its_place_is_lost_and_no_alarm() -> None:
    cases = [case(verdict="different", fault="scale", outcome="exact"), case(verdict="same", fault="scale", outcome="missed")]
    assert [(one.is_alarm, one.is_lost) for one in cases] == [(False, False), (False, True)]


def test_names_of_transformations_are_unique_and_unknown_ones_are_refused() -> None:
    assert len({one.name for one in EVERY}) == len(EVERY)
    with pytest.raises(SystemExit, match="No transformation 'none'"):
        selected(["none"])
