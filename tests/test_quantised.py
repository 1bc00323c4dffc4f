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


def captured(port: Any, folder: Path, *, is_fed: bool = True) -> td.Report:
    """The report of a port against the full model."""
    td.capture(model(), TOKENS, to=folder / "full.h5", force=True)
    td.capture(port, TOKENS, to=folder / "q4.h5", force=True, **({"feed": folder / "full.h5"} if is_fed else {}))
    return td.diff(folder / "full.h5", folder / "q4.h5")


def test_a_free_run_of_a_quantised_port_diverges_at_its_first_quantised_layer_and_the_cause_says_so(tmp_path: Path) -> None:
    report = captured(model(4), tmp_path, is_fed=False)
    assert report.first is not None
    assert report.first.culprit.port == "layers.0"
    assert report.first.causes[0].kind == "weights.precision"
    assert "capture --weights-from" in report.certificate["notes"][0]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_codes_explain_is_said_apart_and_is_no_divergence(tmp_path: Path, bits: int) -> None:
    report = captured(model(bits), tmp_path)
    assert report.verdict == "same"
    assert [one.where.reference for one in report.quantised] == ["layers.0", "layers.1", "layers.3"]
    text = " ".join(str(report).split())
    assert "3 outputs of quantised layers off by what their codes explain" in text
    assert "capture --weights-from" in text
    assert type(report).from_json(report.to_json()).quantised == report.quantised


class Scaled(nn.QuantizedLinear):
    def __call__(self, x: Any) -> Any:
        return 1.1 * super().__call__(x)


def faulty(change: str) -> Any:
    """The model of 4 bits with a fault in a quantised layer."""
    port = model()
    if change == "weights":
        port.layers[1].weight = mx.random.normal((96, 64), key=mx.random.key(5)) / 8
    nn.quantize(port, group_size=32, bits=4)
    if change == "factor":
        port.layers[3].__class__ = Scaled
    return port


@pytest.mark.parametrize(("change", "culprit"), [("weights", "layers.1"), ("factor", "layers.3")])
def test_codes_excuse_no_fault_of_the_layer_that_has_them(tmp_path: Path, change: str, culprit: str) -> None:
    report = captured(faulty(change), tmp_path)
    assert [one.culprit.port for one in report.divergences] == [culprit]
    assert culprit not in {one.where.reference for one in report.quantised}


def test_a_bias_that_is_zero_beside_codes_is_never_the_same(tmp_path: Path) -> None:
    port = model(4)
    port.layers[1].bias = mx.zeros(96)
    report = captured(port, tmp_path)
    assert report.verdict != "same"
    assert any("layers.1.bias" in line for line in report.weights.different)


def test_observing_a_quantised_model_leaves_its_codes_alone(tmp_path: Path) -> None:
    port = model(4)
    before, codes = np.array(port(mx.array(TOKENS))), np.array(port.layers[1].weight)
    td.capture(port, TOKENS, to=tmp_path / "q4.h5", floor=True)
    assert np.array_equal(codes, np.array(port.layers[1].weight))
    assert before.tobytes() == np.array(port(mx.array(TOKENS))).tobytes()
