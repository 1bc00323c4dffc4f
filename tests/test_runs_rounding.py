"""What the noise floor sees since every operation is off by a rounding: times, running sums, and code that keeps its dtype."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.metrics import compare
from tracediff.runs.floor import measure

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from tracediff.observe.adapters.torch_rounding import Rounding  # noqa: E402

UNIT = 2.0**-24
HALF_WIDTH = 16


def embedded(times: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of whole-numbered times, in float32 throughout as diffusers' `Timesteps`, whatever the model's dtype."""
    rates = torch.exp(-np.log(1e4) * torch.arange(HALF_WIDTH, dtype=torch.float32) / HALF_WIDTH)
    phases = times[:, None].float() * rates
    return torch.cat([phases.cos(), phases.sin()], -1)


def embedded_elsewhere(times: np.ndarray) -> np.ndarray:
    """The same by another formula for the rates."""
    rates = np.float32(1e4) ** (-np.arange(HALF_WIDTH, dtype=np.float32) / np.float32(HALF_WIDTH))
    phases = times.astype(np.float32)[:, None] * rates
    return np.concatenate([np.cos(phases), np.sin(phases)], -1)


def running(rate: torch.Tensor) -> torch.Tensor:
    """The sine of a phase that adds up: PyTorch adds in float64."""
    return torch.sin(2 * torch.pi * torch.cumsum(rate / 24000, -1))


def running_elsewhere(rate: np.ndarray) -> np.ndarray:
    return np.sin(np.float32(2 * np.pi) * np.add.accumulate(rate / np.float32(24000), axis=-1, dtype=np.float32))


CODE: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., np.ndarray], np.ndarray]] = {
    "whole-numbered times": (embedded, embedded_elsewhere, np.array([937, 833, 437])),
    "a running sum": (running, running_elsewhere, np.full((1, 24000), 220.3, np.float32)),
}


class Coded(nn.Module):
    """Code of its own before a layer, as a port's code is that no hook sees."""

    def __init__(self, code: Callable[..., torch.Tensor], width: int) -> None:
        super().__init__()
        self.code, self.layer = code, nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.code(x))


@pytest.mark.parametrize("name", CODE)
def test_the_floor_explains_what_another_library_makes_of(name: str, tmp_path: Path) -> None:
    code, elsewhere, given = CODE[name]
    x = torch.from_numpy(given)
    exact = code(x).numpy()
    with torch.no_grad(), td.capture(Coded(code, exact.shape[-1]).eval(), (x,), to=tmp_path / "ref.h5") as trace:
        row = next(record.row for record in trace.records if (record.site, record.end) == ("layer", "input[0]"))
        assert trace.floor is not None
        floor = float(trace.floor["float64"][row])
    error = compare(exact, elsewhere(given)).rel_l2
    assert error > 20 * UNIT, "or this test would show nothing"
    assert error < 5 * floor < 100 * error


@pytest.mark.parametrize("name", CODE)
def test_without_these_roundings_it_does_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, elsewhere, given = CODE[name]
    x = torch.from_numpy(given)
    exact = code(x).numpy()
    model = Coded(code, exact.shape[-1]).eval()
    with torch.no_grad(), td.capture(model, (x,), to=tmp_path / "ref.h5", floor=False) as trace:
        monkeypatch.setattr(Rounding, "__torch_dispatch__", lambda self, func, types, args=(), kwargs=None: func(*args, **(kwargs or {})))
        table = measure(model, (x,), trace).table
        row = next(record.row for record in trace.records if (record.site, record.end) == ("layer", "input[0]"))
    assert compare(exact, elsewhere(given)).rel_l2 > 5 * max(table["float64"][row], table["noise"][row] * UNIT)


class TestRounding:
    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_operations_are_off_in_inference_mode_too(self, context: Callable[[], Any]) -> None:
        x, w = torch.randn(4, 16, 32), torch.randn(32, 32)
        for operation in (lambda: nn.functional.linear(x, w), lambda: nn.functional.scaled_dot_product_attention(x, x, x)):
            with context():
                exact = operation()
                with Rounding(2.0):
                    off = operation()
            assert UNIT < (off - exact).norm() / exact.norm() < 10 * UNIT

    def test_each_operation_is_off_by_its_units_and_equal_results_equally(self) -> None:
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).repeat(2)
        with Rounding(2.0):
            off = torch.sin(x)
        error = (off.double() - torch.sin(x.double())).abs() / torch.sin(x.double()).abs()
        assert UNIT < error.max() < 4 * UNIT
        assert torch.equal(off[:1000], off[1000:])

    @pytest.mark.parametrize(
        "exact",
        [
            lambda x: torch.arange(20).float() * 0.5,
            lambda x: x.relu().abs().T.contiguous().flip(0),
            lambda x: torch.where(x > 0, x, -torch.inf),
            lambda x: (x > 0).float() * torch.finfo(torch.float32).min,
            lambda x: torch.cat([x, x]).index_select(0, torch.tensor([3, 1])).clamp(-0.5, 0.5),
        ],
    )
    def test_what_rounds_nothing_stays_bit_for_bit(self, exact: Callable[[torch.Tensor], torch.Tensor]) -> None:
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
        with Rounding(2.0):
            off = exact(x)
        assert torch.equal(off, exact(x))

    def test_an_operation_in_place_changes_its_tensor_and_the_views_of_it(self) -> None:
        x = torch.randn(6, generator=torch.Generator().manual_seed(0))
        y, z = x.clone(), x.clone()
        view = y.view(2, 3)
        with Rounding(2.0):
            y.mul_(0.3)
            torch.mul(x, 0.3, out=z)
        assert torch.equal(view.reshape(-1), y)
        assert not torch.equal(y, x * 0.3)
        assert torch.allclose(y, x * 0.3, rtol=1e-6)
        assert torch.allclose(z, x * 0.3, rtol=1e-6)

    def test_no_generator_moves(self) -> None:
        torch.manual_seed(0)
        first = torch.randn(3)
        torch.manual_seed(0)
        with Rounding(2.0):
            torch.sin(torch.ones(3)).sum()
        assert torch.equal(torch.randn(3), first)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
    def test_every_dtype_is_off_by_its_own_unit_but_wide_ones_by_that_of_float32(self, dtype: torch.dtype) -> None:
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
        with Rounding(2.0):
            off = x * 0.3
        unit = max(torch.finfo(dtype).eps / 2, UNIT)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        error = float((off.to(wide) - x.to(wide) * 0.3).norm() / (x.to(wide) * 0.3).norm())
        assert 0.5 * unit < error < 4 * unit


class TestChoices:
    """A run without operations that make exact values of real ones, or jump, chooses nothing."""

    @pytest.mark.parametrize(
        ("run", "chooses"),
        [
            (lambda x: torch.softmax(x @ x.T, -1).relu().sum(), False),
            (lambda x: torch.where(torch.arange(4) > 1, x, 0.0), False),
            (lambda x: x[torch.tensor([2, 0])], False),
            (lambda x: x.argmax(-1), True),
            (lambda x: torch.where(x > 0, x, 0.0), True),
            (lambda x: x.round(), True),
            (lambda x: x.sum().item(), True),
            (lambda x: x.numpy(), True),
            (lambda x: x.tolist(), True),
            (np.asarray, True),
        ],
    )
    def test_it_is_told_by_its_operations_and_by_what_leaves_them(self, run: Callable[[torch.Tensor], Any], chooses: bool) -> None:
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        before = {name: vars(torch.Tensor).get(name) for name in ("numpy", "tolist", "__array__", "__dlpack__")}
        with Rounding(2.0) as rounding:
            run(x)
        assert rounding.chooses is chooses
        assert {name: vars(torch.Tensor).get(name) for name in before} == before

    def test_what_is_computed_while_it_is_quiet_is_left_alone(self) -> None:
        x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        with Rounding(2.0, lambda: True) as rounding:
            off = x * 0.3
            x.argmax()
        assert torch.equal(off, x * 0.3)
        assert not rounding.chooses


class TestCannotTell:
    """A sine of a phase of a million turns: rounding of the phase alone makes any number of it."""

    class Wave(nn.Module):
        def __init__(self, turns: float, *, is_last: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.turns, self.layer, self.is_last = turns, nn.Linear(8, 8), is_last

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wave = td.tap("wave", torch.sin(self.layer(x) * self.turns))
            return wave if self.is_last else torch.stack([x, x.square()])

    def report(self, folder: Path, turns: float, *, is_last: bool) -> td.Report:
        """Of a port that rounds its phase otherwise."""
        model = self.Wave(turns, is_last=is_last).eval()
        port = self.Wave(turns * (1 + 2.0**-22), is_last=is_last).eval()
        x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
        with torch.no_grad():
            td.capture(model, x, to=folder / "ref.h5").close()
            td.capture(port, x, to=folder / "port.h5", feed=folder / "ref.h5").close()
        return td.diff(folder / "ref.h5", folder / "port.h5")

    def test_where_rounding_is_as_large_as_the_values_nothing_is_called_the_same(self, tmp_path: Path) -> None:
        report = self.report(tmp_path, 1e7, is_last=True)
        assert report.verdict is None
        assert {row.by for row in report.rows if row.where.reference == "#wave"} == {"cannot tell"}
        assert str(report).startswith("No verdict: cannot tell output, which the run returned")
        assert report.to_dict()["certificate"]["cannot_tell_returned"][0]["reference"] == ""

    def test_what_the_run_returns_besides_is_judged_and_the_place_is_named(self, tmp_path: Path) -> None:
        report = self.report(tmp_path, 1e7, is_last=False)
        assert report.verdict == "same"
        assert "Cannot tell: #wave value: rounding alone changes the reference by as much as its values" in " ".join(str(report).split())

    def test_where_it_is_small_an_error_is_told(self, tmp_path: Path) -> None:
        assert self.report(tmp_path, 10.0, is_last=True).verdict == "same"


class TestWholeNumbers:
    """A time of 937 that a port in bfloat16 makes 936 of: no rounding, another time."""

    class Timed(nn.Module):
        def __init__(self, dtype: torch.dtype, time: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.dtype, self.time, self.net = dtype, time, Coded(embedded, 2 * HALF_WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.net(torch.full((3,), self.time).to(self.dtype))

    @pytest.mark.parametrize("mode", ["forced", "free"])
    @pytest.mark.parametrize(("time", "first"), [(937.0, [""]), (936.0, [])])
    def test_a_time_that_a_dtype_does_not_hold_is_charged_to_who_made_it(
        self, mode: str, time: float, first: list[str], tmp_path: Path
    ) -> None:
        x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
        with torch.no_grad():
            td.capture(self.Timed(torch.float32, time).eval(), x, to=tmp_path / "ref.h5").close()
            fed = {"feed" if mode == "forced" else "random": tmp_path / "ref.h5"}
            td.capture(self.Timed(torch.bfloat16, time).eval(), x, to=tmp_path / "port.h5", **fed).close()
        report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert [one.culprit.reference for one in report.divergences][:1] == first
        assert report.verdict == ("different" if first else "same")


@pytest.mark.parametrize(("factor", "verdict"), [(1 + 2.0**-23, "same"), (1 + 2e-5, "different")])
def test_what_a_port_computes_before_it_is_first_fed_is_judged_by_all_that_led_there(factor: float, verdict: str, tmp_path: Path) -> None:
    """The reference's wave passes a tap that the port does not have: the port's error there is not reset, and grows behind it."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 4).eval()
    x = torch.rand(16, 8, generator=torch.Generator().manual_seed(0)) + 0.5

    def run(x: torch.Tensor, *, is_tapped: bool) -> Callable[[], torch.Tensor]:
        def centred() -> torch.Tensor:
            wave = torch.sin(x * 1000) + 100
            wave = td.tap("wave", wave) if is_tapped else wave
            return layer(wave - wave.mean(0))

        return centred

    with torch.no_grad():
        td.capture(layer, run(x, is_tapped=True), to=tmp_path / "ref.h5").close()
        td.capture(layer, run(x * factor, is_tapped=False), to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == verdict
