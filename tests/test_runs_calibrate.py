"""Adding a noise floor to a trace later: in place, of the very run that the trace holds, and of no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tracediff as td
from tracediff.cli import main
from tracediff.errors import CaptureError, RecipeError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)

RECIPE = '''
"""A small model."""
import torch, tracediff as td
IMPL = "torch"
STAGES = {"first": "The first layer", "second": "The second layer"}

def load(context):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.from_numpy(context.weight(name, tuple(value.shape))))
    return {"model": model}

def run(models, context):
    for place, stage in enumerate(STAGES):
        if context.wants(stage):
            with torch.no_grad(), td.stage(stage):
                models["model"][place](torch.from_numpy(context.array(stage, "x", lambda rng: rng.standard_normal((2, 8), "float32"))))
'''


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU(), nn.Linear(8, 8))


def captured(folder: Path, **options: Any) -> Path:
    with torch.no_grad():
        td.capture(model().eval(), X, to=folder / "ref.h5", **options).close()
    return folder / "ref.h5"


def calibrated(path: Path, given: nn.Module | None = None, x: Any = X, **options: Any) -> td.Trace:
    with torch.no_grad():
        return td.calibrate(model().eval() if given is None else given, x, path, **options)


def columns(trace: td.Trace) -> dict[str, np.ndarray]:
    assert trace.floor is not None
    return {name: trace.floor[name].copy() for name in trace.floor.dtype.names}


def test_a_trace_without_floor_gets_the_one_that_its_capture_would_have_measured(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    with td.open_trace(captured(tmp_path / "with", floor_dtypes=("float64", "bfloat16"))) as expected:
        wanted = columns(expected)
    path = captured(tmp_path, floor=False)
    with calibrated(path, dtypes=("float64", "bfloat16")) as trace:
        for name, values in columns(trace).items():
            assert np.array_equal(values, wanted[name], equal_nan=True), name


def test_columns_that_were_measured_before_are_kept_and_values_stay_where_they_are(tmp_path: Path) -> None:
    path = captured(tmp_path)
    with td.open_trace(path) as trace:
        before, values = columns(trace), [record.read() for record in trace.records]
    with calibrated(path, dtypes=("bfloat16",)) as trace:
        after = columns(trace)
        assert all(np.array_equal(one, record.read()) for one, record in zip(values, trace.records, strict=True))
    assert np.isnan(before["bfloat16"]).all()
    assert np.isfinite(after["bfloat16"]).all()
    for name in ("noise", "free", "float64"):
        assert np.array_equal(before[name], after[name])


def test_random_draws_are_those_of_the_trace(tmp_path: Path) -> None:
    with torch.no_grad():
        td.capture(model().train(), X, to=tmp_path / "ref.h5", floor=False).close()
    torch.manual_seed(99)
    with calibrated(tmp_path / "ref.h5", model().train(), dtypes=("float64",)) as trace:
        assert trace.floor is not None


def test_a_run_that_was_never_checked_is_known_to_repeat_afterwards(tmp_path: Path) -> None:
    path = captured(tmp_path, floor=False, repeat=False)
    with calibrated(path, dtypes=("float64",)) as trace:
        assert trace.meta["repeats"] is True


class TestRefused:
    """Nothing is written where the trace and this run do not go together."""

    def test_other_weights(self, tmp_path: Path) -> None:
        path = captured(tmp_path)
        before = path.read_bytes()
        with pytest.raises(CaptureError, match=r"The parameter '0\.weight' is not the one that"):
            calibrated(path, model(seed=1).eval())
        assert path.read_bytes() == before

    def test_another_model(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"no parameter '3.weight'.*another model"):
            calibrated(captured(tmp_path), nn.Sequential(*list(model())[:2]).eval())

    def test_other_inputs(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"At the root input\[0\].*gives other values than.*Calibrate with the inputs"):
            calibrated(captured(tmp_path), x=X + 1)

    def test_a_trace_without_values(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"holds no values.*--save full"):
            calibrated(captured(tmp_path, save="stats"))

    def test_a_run_that_does_not_repeat(self, tmp_path: Path) -> None:
        layer, count = nn.Linear(4, 4), iter(range(100))
        with torch.no_grad():
            td.capture(layer, lambda: layer(torch.full((1, 4), float(next(count)))), to=tmp_path / "ref.h5").close()
        with pytest.raises(CaptureError, match="does not repeat itself, first at"):
            td.calibrate(layer, torch.ones(1, 4), tmp_path / "ref.h5")

    def test_a_run_that_did_not_come_to_its_end(self, tmp_path: Path) -> None:
        given = model().eval()

        def fail() -> None:
            given(torch.from_numpy(X))
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            td.capture(given, fail, to=tmp_path / "ref.h5")
        with pytest.raises(CaptureError, match="not complete"):
            calibrated(tmp_path / "ref.h5", given)

    def test_a_forced_run(self, tmp_path: Path) -> None:
        path = captured(tmp_path)
        with torch.no_grad():
            td.capture(model().eval(), X, to=tmp_path / "port.h5", feed=path).close()
        with pytest.raises(CaptureError, match="forced run of a port; a noise floor is measured on its reference"):
            calibrated(tmp_path / "port.h5")


class TestCommand:
    def recorded(self, tmp_path: Path, *more: str) -> Path:
        (tmp_path / "small_torch.py").write_text(RECIPE, encoding="utf-8")
        recipe = ["--recipe", str(tmp_path / "small_torch.py"), "--seed", "3", "--stage", "second"]
        done = CliRunner().invoke(main, ["capture", "--impl", "torch", "-o", str(tmp_path / "ref.h5"), *recipe, *more])
        assert done.exit_code == 0, done.output
        return tmp_path / "ref.h5"

    def test_the_recipe_runs_again_as_the_trace_says(self, tmp_path: Path) -> None:
        path = self.recorded(tmp_path)
        arguments = ["calibrate", str(path), "--recipe", str(tmp_path / "small_torch.py"), "--dtype", "bfloat16", "--dtype", "float16"]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output
        with td.open_trace(path) as trace:
            assert {record.stage for record in trace.records} == {"second"}
            assert all(np.isfinite(values).all() for name, values in columns(trace).items() if name != "sensitive")

    def test_capture_measures_a_further_dtype_at_once(self, tmp_path: Path) -> None:
        with td.open_trace(self.recorded(tmp_path, "--floor-dtype", "bfloat16")) as trace:
            assert np.isfinite(columns(trace)["bfloat16"]).all()
            assert np.isnan(columns(trace)["float16"]).all()

    def test_a_trace_that_no_recipe_made_is_trouble(self, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["calibrate", str(captured(tmp_path))])
        assert done.exit_code == 2
        assert "was not made by a recipe" in done.output

    def test_the_python_call_says_so_too(self, tmp_path: Path) -> None:
        from tracediff.api import calibrate_recipe

        with pytest.raises(RecipeError, match=r"td\.calibrate\(model, run, trace\)"):
            calibrate_recipe(captured(tmp_path))
