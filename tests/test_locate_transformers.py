"""Faults that a port of a transformer is likely to have, in pairs of the benchmark, are charged to the module that they were made in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")
torch = pytest.importorskip("torch")

import tracediff as td  # noqa: E402
from benchmarks.faults.plant import Fault, planted  # noqa: E402

Located = Callable[..., list[tuple[str, str]]]


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> Located:
    """The culprits of a forced run of a pair with one of its own faults, told by a piece of what it becomes; of the clean port without."""
    made: dict[str, tuple[Any, Path]] = {}

    def run(name: str, becomes: str = "", path: str | None = None) -> list[tuple[str, str]]:
        if name not in made:
            pair = importlib.import_module(f"benchmarks.faults.pairs.{name}").make(0)
            folder = tmp_path_factory.mktemp(name)
            with torch.no_grad():
                td.capture(pair.reference, pair.run_reference, to=folder / "ref.h5", floor=False).close()
            made[name] = pair, folder
        pair, folder = made[name]
        faults: list[Fault] = [edit.fault for edit in pair.edits if becomes and becomes in edit.new and path in (None, edit.path)]
        assert len(faults) == bool(becomes)
        with planted(pair.port, *faults):
            td.capture(pair.port, pair.run_port, to=folder / "port.h5", feed=folder / "ref.h5", repeat=False, force=True).close()
        report = td.bisect(folder / "ref.h5", folder / "port.h5")
        return [(one.culprit.reference, one.culprit.port) for one in report.divergences]

    return run


@pytest.mark.parametrize("name", ["chat", "translator", "detector", "classifier"])
def test_a_clean_port_gives_no_alarm(located: Located, name: str) -> None:
    assert located(name) == []


def test_a_mask_that_a_block_does_not_hand_on_is_charged_to_the_block(located: Located) -> None:
    assert located("chat", "self.pre_attn(x), None, cache") == [("model.layers.1", "trunk.blocks.1")]


def test_a_wrong_mask_that_layers_only_hand_on_is_charged_to_the_model_that_made_it(located: Located) -> None:
    assert set(located("chat", "full", path="trunk")) == {("model", "trunk")}


def test_keys_of_grouped_heads_are_compared_with_repeated_ones(located: Located) -> None:
    assert located("chat", "k = self.rope(k)") == [("model.layers.1.self_attn", "trunk.blocks.1.attention")]


def test_a_bias_that_no_layer_is_handed_any_more_is_charged_to_the_stack_that_made_it(located: Located) -> None:
    assert set(located("translator", "layer(x, None)")) == {("encoder", "encoder")}


def test_a_fault_in_the_encoder_leaves_the_cache_of_the_decoder_as_it_is(located: Located) -> None:
    assert located("translator", "HEAD, HEADS).transpose(0, 3, 1, 2)") == [
        ("encoder.block.1.layer.0.SelfAttention", "encoder.layers.1.attention")
    ]


@pytest.mark.parametrize("becomes", ["self.attention(asked, x, asked)", "memory, memory + positions"])
def test_keys_and_values_exchanged_by_a_block_are_charged_to_the_block(located: Located, becomes: str) -> None:
    assert {one.partition(".")[0] for one, _ in located("detector", becomes)} <= {"encoder", "decoder"}
    assert all(other.count(".") == 1 for _, other in located("detector", becomes))
