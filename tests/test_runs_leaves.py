"""Calls of stateless leaves are measured on some of their rows: which calls are, what that says, and what is left to a run."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tracediff as td
from tracediff.observe import observe
from tracediff.observe.observer import Boundary, Observer
from tracediff.runs import variations
from tracediff.runs.leaves import LeafWatch

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

ROWS = np.random.default_rng(0).standard_normal((2, 64, 8)).astype(np.float32)


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


class Sizes:
    """Notes what no run puts back."""

    seen: ClassVar[list[int]] = []


class Counting(nn.Linear):
    """Notes on how many values it is called."""

    def forward(self, x: Any) -> Any:
        Sizes.seen.append(x.numel())
        return super().forward(x)


class Remembers(nn.Module):
    """Gives what it was handed the last time too."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(2, 64, 8)

    def forward(self, x: Any) -> Any:
        before, self.last = self.last, x
        return x + 0.5 * before


class AddsUp(nn.Module):
    """Each row is the sum of those before it."""

    def forward(self, x: Any) -> Any:
        return x.cumsum(-2)


class InPlace(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mul_(0.5)


class Calls(nn.Module):
    """No leaf: it calls another module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: Any) -> Any:
        return self.inner(x).tanh()


def methods(trace: td.Trace, column: str) -> dict[str, Any]:
    return {site: row[column] for row in trace.meta["floor_methods"] for site in row["sites"]}


def captured(model: Any, folder: Path, name: str = "ref.h5", x: Any = ROWS, **options: Any) -> td.Trace:
    with torch.no_grad():
        return td.capture(model.eval(), x, to=folder / name, **options)


def test_only_modules_that_call_nothing_and_keep_nothing_are_stateless_leaves() -> None:
    model = nn.Sequential(linear(), Calls(), Remembers(), InPlace(), nn.GELU(), nn.BatchNorm1d(64)).eval()
    model[5].train()
    watch = LeafWatch()
    with torch.no_grad():
        observe(model, torch.from_numpy(ROWS), [watch])
    assert watch.sites == {"0", "1.inner", "4"}


class Keeps(nn.Module):
    """Keeps what it was handed where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = type("Kept", (), {"last": 0.0})()

    def forward(self, x: Any) -> Any:
        before, self.kept.last = self.kept.last, x
        return x + 0.5 * before


class Closure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        kept: list[Any] = []
        self.by = lambda x: kept.append(x) or x

    def forward(self, x: Any) -> Any:
        return self.by(x)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dtype, self.by, self.own, self.sizes = torch.float32, torch.tanh, self.doubled, (1, 2)

    def doubled(self, x: Any) -> Any:
        return 2 * x

    def forward(self, x: Any) -> Any:
        return self.own(self.by(x))


def test_a_module_with_objects_that_may_keep_something_is_none() -> None:
    watch = LeafWatch()
    with torch.no_grad():
        observe(nn.Sequential(Keeps(), Closure(), Plain()).eval(), torch.from_numpy(ROWS), [watch])
    assert watch.sites == {"2"}


def test_a_leaf_that_counts_on_all_rows_in_its_caller_is_measured_by_a_run(tmp_path: Path) -> None:
    class Seen:
        rows: ClassVar[int] = 0

    class Tells(nn.Module):
        def forward(self, x: Any) -> Any:
            Seen.rows = x.shape[-2]
            return 2 * x

    class Minds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tells = Tells()

        def forward(self, x: Any) -> Any:
            y = self.tells(x)
            assert Seen.rows == x.shape[-2]
            return y

    with captured(nn.Sequential(linear(), Minds()), tmp_path) as trace:
        assert set(methods(trace, "noise").values()) == {"run"}
        assert not [text for text in trace.meta["not_seen"] if "floor" in text]
        assert np.isfinite(trace.floor["noise"]).all()
        assert np.isfinite(trace.floor["float64"]).all()


def test_a_leaf_that_a_run_never_left_is_none() -> None:
    class Raises(nn.Module):
        def forward(self, x: Any) -> Any:
            raise RuntimeError("no")

    watch = LeafWatch()
    with pytest.raises(RuntimeError, match="no"):
        observe(nn.Sequential(linear(), Raises()).eval(), torch.from_numpy(ROWS), [watch])
    assert watch.sites == {"0"}


def test_a_leaf_is_called_on_few_rows_for_noise_and_for_another_dtype(tmp_path: Path) -> None:
    Sizes.seen.clear()
    captured(nn.Sequential(Counting(8, 8), nn.GELU()), tmp_path, repeat=False).close()
    whole, some = ROWS.size, 2 * 16 * 8
    assert sorted(Sizes.seen) == [some, some, whole, whole, whole]  # noise and float64; recorded, accumulated noise, operations


def test_some_rows_tell_what_all_rows_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(linear(), nn.LayerNorm(8), nn.GELU(), Calls(), linear())
    few = captured(model, tmp_path, floor_dtypes=("float64", "bfloat16"))
    monkeypatch.setattr(variations, "rows_of", lambda *_: None)
    every = captured(model, tmp_path, "every.h5", floor_dtypes=("float64", "bfloat16"))
    with few, every:
        assert "rows" in methods(few, "noise").values()
        assert set(methods(every, "noise").values()) == {"run"}
        for column in ("noise", "float64", "bfloat16"):
            measured = every.floor[column] > 0
            assert np.array_equal(measured, few.floor[column] > 0), column
            ratio = few.floor[column][measured] / every.floor[column][measured]
            assert 0.5 < ratio.min() <= ratio.max() < 2, column
        assert np.array_equal(few.floor["free"], every.floor["free"])


@pytest.mark.parametrize("odd", [AddsUp, Remembers, InPlace, Calls])
def test_what_depends_on_other_rows_or_calls_is_measured_by_a_run(tmp_path: Path, odd: type) -> None:
    with captured(nn.Sequential(linear(), odd(), linear()), tmp_path) as trace:
        assert methods(trace, "noise")["1"] == methods(trace, "float64")["1"] == "run"
        assert methods(trace, "noise")["2"] == methods(trace, "float64")["2"] == "rows"
        assert not [text for text in trace.meta["not_seen"] if "floor" in text]


def test_few_rows_are_all_called(tmp_path: Path) -> None:
    with captured(nn.Sequential(linear(), nn.GELU()), tmp_path, x=ROWS[:, :31]) as trace:
        assert set(methods(trace, "noise").values()) == {"run"}


def test_every_site_has_its_methods_and_no_column_goes_unsaid(tmp_path: Path) -> None:
    with captured(nn.Sequential(linear(), Calls()), tmp_path) as trace:
        listed = [site for row in trace.meta["floor_methods"] for site in row["sites"]]
        assert sorted(listed) == sorted(set(trace.sites))
        for column in ("noise", "free", "float64", "float16", "bfloat16"):
            said = methods(trace, column)
            for record in trace.records:
                assert (said[record.site] is not None) or np.isnan(trace.floor[column][record.row])
        assert set(methods(trace, "bfloat16").values()) == {None}


def test_a_column_that_is_measured_later_says_its_method_and_leaves_those_of_others(tmp_path: Path) -> None:
    model = nn.Sequential(linear(), Calls())
    captured(model, tmp_path).close()
    with torch.no_grad(), td.calibrate(model, ROWS, tmp_path / "ref.h5", dtypes=("bfloat16",)) as trace:
        assert methods(trace, "noise") == methods(trace, "float64") == methods(trace, "bfloat16")
        assert methods(trace, "noise")["0"] == "rows"


def test_what_stands_in_for_a_call_counts_as_the_call() -> None:
    class Stands(Observer):
        def __init__(self) -> None:
            self.left: list[np.ndarray] = []

        def see(self, boundary: Boundary) -> None:
            if boundary.moment == "enter" and boundary.site == "0":
                boundary.instead = lambda call, args, kwargs: call(*args, **kwargs) * 0
            if boundary.moment == "leave" and boundary.site == "0":
                self.left.append(boundary.leaves[0][1].numpy())

    stands = Stands()
    with torch.no_grad():
        given = observe(nn.Sequential(linear(), nn.Softmax(-1)), torch.from_numpy(ROWS), [stands])
    assert not stands.left[0].any()
    assert torch.equal(given, torch.full_like(given, 1 / 8))


def test_a_capture_holds_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    """NumPy's memory is counted: the copies of what a run may change, statistics, and stored values."""
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(24))).eval()  # 25 MB
    captured(nn.Sequential(linear()), tmp_path, "first.h5").close()  # what is loaded once
    x = np.zeros((1, 512), np.float32)
    tracemalloc.start()
    try:
        captured(model, tmp_path, x=x).close()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12e6
