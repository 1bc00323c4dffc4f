"""Thresholds, pairing steps and detectors are data: each is looked up when it is used, and can be changed or left out."""

from __future__ import annotations

import numpy as np
import pytest
from weights_pairs import Named, port, transformer, values

from tracediff.parameters import findings, pairing
from tracediff.parameters.diagnosis import weights
from tracediff.parameters.thresholds import THRESHOLDS
from tracediff.tensors.thresholds import THRESHOLDS as TENSOR_THRESHOLDS
from tracediff.thresholds import changed, described

HEAD = "head.weight"


def faulty(**changed: float) -> Named:
    return port(transformer()) | {HEAD: values(HEAD, 50, 24) * np.float32(changed.get("scale", 1))}


def test_a_threshold_is_read_when_it_is_used() -> None:
    assert weights(transformer(), faulty(scale=2)).different[0].confidence == 0.97
    with changed(THRESHOLDS, "sure_scaled", 0.5):
        assert weights(transformer(), faulty(scale=2)).different[0].confidence == 0.5
    with changed(THRESHOLDS, "scale_margin", 1e9):
        assert weights(transformer(), faulty(scale=2)).different[0].label != "scaled by 2"


@pytest.mark.parametrize("step", pairing.STEPS, ids=lambda step: step.name)
def test_a_pairing_goes_on_without_any_one_of_its_steps(monkeypatch: pytest.MonkeyPatch, step: pairing.Step) -> None:
    monkeypatch.setattr(pairing, "STEPS", tuple(other for other in pairing.STEPS if other is not step))
    report = weights(transformer(), faulty(scale=2))
    assert report.total == len(port(transformer()))


def test_without_likeness_of_names_a_lone_tensor_of_other_values_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    other = port(transformer()) | {"lone.weight": values("x", 7, 3)}
    reference = transformer() | {"lonely.weight": values("y", 7, 3)}
    assert [finding.port for finding in weights(reference, other).different] == ["lone.weight"]
    monkeypatch.setattr(
        pairing, "STEPS", tuple(step for step in pairing.STEPS if "likeness" not in step.name and "leftovers" not in step.name)
    )
    assert weights(reference, other).unexpected == ("lone.weight",)


def test_a_detector_that_is_left_out_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(detector for detector in findings.DETECTORS if detector.__name__ != "_scaled")
    assert len(others) == len(findings.DETECTORS) - 1
    monkeypatch.setattr(findings, "DETECTORS", others)
    assert weights(transformer(), faulty(scale=2)).different[0].label == "other values"


@pytest.mark.parametrize("table", [THRESHOLDS, TENSOR_THRESHOLDS], ids=["parameters", "tensors"])
def test_every_threshold_says_what_it_means_and_what_it_was_measured_on(table: object) -> None:
    rows = described(table)
    assert len({name for name, *_ in rows}) == len(rows) > 1
    assert all(means and measured_on for _, _, means, measured_on in rows)
