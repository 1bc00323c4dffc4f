"""What numbered siblings say of one another, and what faults no longer deceive: planted in pairs of the benchmark and looked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")
pytest.importorskip("torch")

import tracediff as td
from benchmarks.faults.catalogue import all_faults
from benchmarks.faults.measure import Bench, Options
from benchmarks.faults.pairs import known
from benchmarks.faults.plant import planted
from tracediff.alignment.votes import in_classes, in_rows

NAMES = [f"layers.{i}.{part}" for i in range(4) for part in ("q", "k")]


def moved(told: dict[tuple[int, int], float], partner: dict[int, int]) -> set[tuple[int, int]]:
    """The pairs that are told of and are none so far."""
    return {(a, b) for a, b in told if partner.get(a) != b}


def test_a_site_that_pairs_otherwise_than_its_siblings_is_told() -> None:
    partner = {i: i for i in range(8)} | {4: 5, 5: 4}
    assert moved(in_rows(NAMES, NAMES, partner), partner) == {(4, 4), (5, 5)}


def test_a_constant_shift_of_numbers_is_a_way_to_pair() -> None:
    theirs = [f"blocks.{i + 1}.{part}" for i in range(4) for part in ("query", "key")]
    partner = {i: i for i in range(8) if i not in (2, 3)}
    assert moved(in_rows(NAMES, theirs, partner), partner) == {(2, 2), (3, 3)}


@pytest.mark.parametrize("partner", [{0: 0, 2: 2, 4: 6, 6: 4}, {0: 0}, {}, {0: 2, 2: 0, 4: 6, 6: 4}])
def test_siblings_that_do_not_agree_say_nothing(partner: dict[int, int]) -> None:
    assert in_rows(NAMES, NAMES, partner) == {}


def test_numbers_that_are_no_part_of_the_path_are_none() -> None:
    assert in_rows(["up0", "up1", "up2"], ["up0", "up1", "up2"], {0: 0, 1: 1, 2: 0}) == {}


@cache
def _made(name: str) -> Any:
    return known()[name].make(0)


@pytest.fixture
def culprits(tmp_path: Path) -> Callable[..., list[str]]:
    """The culprits on the port's side of a forced run (a free one with ``forced=False``) with one fault planted into a pair."""

    def run(name: str, fault: str = "", *, forced: bool = True) -> list[str]:
        import torch

        pair = _made(name)
        bench = Bench(name, pair, 0, tmp_path, Options())
        with torch.no_grad():
            td.capture(pair.reference, pair.run_reference, to=tmp_path / "ref.h5", force=True, floor_dtypes=("float64",)).close()
        chosen = (
            [one for one in all_faults(pair) if one.text.startswith(fault.partition(" at ")[0]) and one.text.endswith(fault)]
            if fault
            else []
        )
        assert bool(chosen) == bool(fault)
        with planted(pair.port, *chosen[:1]), bench._captured("port", tmp_path / "ref.h5" if forced else None) as port:
            report = td.bisect(tmp_path / "ref.h5", port, scan=True)
        return [one.culprit.port for one in report.divergences]

    return run


def test_a_block_without_its_residual_is_not_taken_for_its_last_part(culprits: Any) -> None:
    assert culprits("conv", "left operand of a sum dropped: x + self.conv2(self.conv1(mnn.silu(h))) at blocks.0") == ["blocks.0"]


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("wrapper", ["up1", "blocks.0.conv2"])
def test_a_wrapper_that_spoils_what_its_only_call_returned_is_named(culprits: Any, wrapper: str, forced: bool) -> None:
    found = culprits("conv", f"output of a composite scaled at {wrapper}", forced=forced)
    assert found[0] == wrapper
    assert not forced or found == [wrapper]  # in a free run what a norm leaves of the error may show once more, just above what is allowed


def test_what_follows_a_call_that_raised_is_handed_its_own_layout(culprits: Any) -> None:
    assert culprits("conv", "raises at blocks.3.norm") == ["blocks.3.norm"]


def test_weights_loaded_into_each_others_place_do_not_move_the_pair(culprits: Any) -> None:
    path = "model.layers.0.self_attn"
    assert culprits("sampler", f"weights swapped with {path}.q_proj at {path}.o_proj") == [f"{path}.q_proj", f"{path}.o_proj"]


@pytest.mark.parametrize("forced", [True, False])
def test_a_mask_that_no_layer_was_handed_blames_who_should_have(culprits: Any, forced: bool) -> None:
    (culprit,) = culprits("sampler", "mask left out: layer(x, mask, cache) at model", forced=forced)
    assert "layers" not in culprit


def test_experts_that_own_two_projections_are_neither(culprits: Any) -> None:
    pytest.importorskip("mlx_lm")
    assert culprits("olmoe") == []


def test_a_module_pairs_as_in_the_other_modules_of_its_class() -> None:
    ours = ["a", "a.k", "a.v", "b", "b.k", "b.v", "c", "c.k", "c.v"]
    theirs = ["x", "x.key", "x.value", "y", "y.key", "y.value", "z", "z.key", "z.value"]
    sides = (ours, ["Mine", "", ""] * 3), (theirs, ["Yours", "", ""] * 3)
    partner = {i: i for i in range(9)} | {7: 8, 8: 7}
    assert moved(in_classes(*sides, partner), partner) == {(7, 7), (8, 8)}
    few = {number: other for number, other in partner.items() if number not in (0, 1, 2)}
    assert in_classes(*sides, few) == {}
