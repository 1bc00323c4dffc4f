"""A tensor that arrives as a varied run handed it out is that run's variation of the stored value already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.observe import observe
from tracediff.runs import variations
from tracediff.runs.variations import AccumulatedNoise, LocalNoise, Variation

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

X = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32))


class AddsInPlace(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.add_(1.25)


class KeepsItsDtype(nn.Module):
    """Runs in float32 alone."""

    def forward(self, x: Any) -> Any:
        assert x.dtype == torch.float32
        return x * 0.75


class Takers(nn.Module):
    """Several calls take one tensor; one of them changes it before the last takes it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.q, self.k, self.v = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.own, self.adds = KeepsItsDtype(), AddsInPlace()

    def forward(self, x: Any) -> Any:
        x = self.norm(x)
        sums = self.q(x) + self.k(x) + self.own(x)
        self.adds(x)
        return sums + self.v(x)


@pytest.fixture
def trace(tmp_path: Path) -> td.Trace:
    return recorded(tmp_path / "ref.h5")


def recorded(to: Path, **options: Any) -> td.Trace:
    model = Takers().eval()

    def run() -> Any:
        with torch.no_grad():
            return model(X)

    return td.capture(model, run, to=to, **options)


def varied(trace: td.Trace, variation: Variation) -> Variation:
    model = Takers().eval()
    with torch.no_grad():
        observe(model, lambda: model(X), [variation])
    return variation


def row(trace: td.Trace, site: str, end: str = "input[0]") -> int:
    return next(record.row for record in trace.records if (record.site, record.end) == (site, end))


def test_it_is_measured_once_for_all_calls_that_take_it(trace: td.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    class Counting(LocalNoise):
        def _measure(self, row: int, stored: Any, arrived: Any) -> None:
            measured.append(row)
            super()._measure(row, stored, arrived)

    errors = varied(trace, Counting(trace, 0)).errors
    rows = [row(trace, site) for site in ("q", "k", "own")]
    assert len(set(rows) & set(measured)) == 1
    assert len({float(errors[one]) for one in rows}) == 1
    assert errors[rows[0]] > 0


def test_one_that_a_call_changed_is_measured_anew(trace: td.Trace) -> None:
    errors = varied(trace, LocalNoise(trace, 0)).errors
    assert np.isfinite(errors).all()
    assert errors[row(trace, "v")] != errors[row(trace, "q")]


def test_noise_goes_on_growing_in_a_run_that_accumulates_it(trace: td.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    known = varied(trace, AccumulatedNoise(trace, 2)).errors
    monkeypatch.setattr(variations._HandedOut, "of", lambda *_: None)
    assert np.array_equal(known, varied(trace, AccumulatedNoise(trace, 2)).errors)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_the_column_of_a_dtype_is_what_it_would_be_without_this(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = recorded(tmp_path / "known.h5", floor_dtypes=(dtype,)).floor
    monkeypatch.setattr(variations._HandedOut, "of", lambda *_: None)
    unknown = recorded(tmp_path / "unknown.h5", floor_dtypes=(dtype,)).floor
    assert known is not None
    assert unknown is not None
    assert np.array_equal(known[dtype], unknown[dtype], equal_nan=True)
    assert np.isfinite(known[dtype]).all()
