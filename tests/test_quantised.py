"""A quantised model against the full one: its weights are compared as the values that its codes stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402


def model(bits: int = 0) -> Any:
    """A small model of seeded weights, quantised where a number of bits is given."""
    mx.random.seed(0)
    made = nn.Sequential(nn.Embedding(20, 64), nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64), nn.LayerNorm(64))
    if bits:
        nn.quantize(made, group_size=32, bits=bits)
    return made


TOKENS = np.arange(12).reshape(2, 6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_live_weights_are_said_to_be_quantised_and_to_how_many_bits(bits: int) -> None:
    report = td.weights(model(), model(bits))
    assert {finding.port: finding.kind for finding in report.findings} == dict.fromkeys(
        ("layers.0.weight", "layers.1.weight", "layers.3.weight"), "weights.precision"
    )
    assert all(f"quantised to {bits} bits in groups of 32" in finding.evidence for finding in report.findings)
    assert not report.missing
    assert not report.unexpected


def test_a_quantised_layer_with_other_weights_is_not_excused_by_its_codes() -> None:
    port = model()
    port.layers[1].weight = mx.random.normal((96, 64))
    nn.quantize(port, group_size=32, bits=4)
    found = {finding.port: finding.kind for finding in td.weights(model(), port).findings}
    assert found["layers.1.weight"] == "weights.unloaded"
    assert found["layers.3.weight"] == "weights.precision"


@pytest.mark.parametrize("is_fed", [True, False])
def test_a_quantised_port_diverges_at_its_quantised_layers_and_the_cause_says_so(tmp_path: Path, is_fed: bool) -> None:
    td.capture(model(), TOKENS, to=tmp_path / "full.h5")
    td.capture(model(4), TOKENS, to=tmp_path / "q4.h5", **({"feed": tmp_path / "full.h5"} if is_fed else {}))
    report = td.diff(tmp_path / "full.h5", tmp_path / "q4.h5")
    assert report.first is not None
    assert report.first.culprit.port == "layers.0"
    assert report.first.causes[0].kind == "weights.precision"
    if is_fed:
        assert [(one.culprit.port, one.count) for one in report.divergences] == [("layers.0", 3)]


def test_observing_a_quantised_model_leaves_its_codes_alone(tmp_path: Path) -> None:
    port = model(4)
    before, codes = np.array(port(mx.array(TOKENS))), np.array(port.layers[1].weight)
    td.capture(port, TOKENS, to=tmp_path / "q4.h5", floor=True)
    assert np.array_equal(codes, np.array(port.layers[1].weight))
    assert before.tobytes() == np.array(port(mx.array(TOKENS))).tobytes()
