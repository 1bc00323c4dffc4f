"""Small models located end to end: state in a cache, layers each wrong for itself, masks of two conventions, numbers made in code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import tracediff as td  # noqa: E402

WIDTH = 6


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wk = nn.Linear(WIDTH, WIDTH)
        self.wo = nn.Linear(WIDTH, WIDTH)

    def kept(self, k: torch.Tensor) -> torch.Tensor:
        return k

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        k = self.wk(x)
        every = torch.cat([*cache, k], 1)
        cache[:] = [self.kept(every)]
        return self.wo(torch.softmax(x @ every.transpose(1, 2), -1) @ every)


class Layer(nn.Module):
    def __init__(self, attention: type[Attention]) -> None:
        super().__init__()
        self.attention = attention()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor]) -> torch.Tensor:
        return x + self.attention(self.norm(x), cache)


class Steps(nn.Module):
    def __init__(self, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(attention) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        caches: list[list[torch.Tensor]] = [[], []]
        for _ in range(3):
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, cache)
        return x


class Spoils(Attention):
    def kept(self, k: torch.Tensor) -> torch.Tensor:
        return k.flip(2)


def both(reference: nn.Module, port: nn.Module, inputs: Any, folder: Path, *, is_forced: bool = True) -> td.Report:
    port.load_state_dict(reference.state_dict(), strict=False)
    td.capture(reference.eval(), inputs, to=folder / "ref.h5").close()
    fed: dict[str, Any] = {"feed" if is_forced else "random": folder / "ref.h5"}
    td.capture(port.eval(), inputs, to=folder / "port.h5", floor=False, repeat=False, **fed).close()
    return td.diff(folder / "ref.h5", folder / "port.h5")


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("is_forced", [True, False])
def test_what_is_wrong_in_a_cache_is_charged_to_the_module_that_keeps_it(tmp_path: Path, is_forced: bool) -> None:
    torch.manual_seed(0)
    reference, port = Steps(), Steps()
    port.layers[1].attention.__class__ = Spoils
    found = both(reference, port, values(2, 3, WIDTH), tmp_path, is_forced=is_forced)
    assert found.first is not None
    assert found.first.culprit.reference == "layers.1.attention"


def test_a_wrong_projection_is_not_told_again_for_what_it_left_in_the_cache(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference, port = Steps(), Steps()
    port.load_state_dict(reference.state_dict())
    port.layers[0].attention.wk.forward = lambda x, one=port.layers[0].attention.wk: nn.functional.linear(x, one.weight, one.bias) * 1.5
    found = both(reference, port, values(2, 3, WIDTH), tmp_path)
    assert [one.culprit.reference for one in found.divergences] == ["layers.0.attention.wk"]


def test_a_projection_that_is_wrong_in_every_layer_is_not_charged_to_what_calls_the_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference, port = Steps(), Steps()
    for layer in port.layers:
        layer.attention.wk.forward = lambda x, one=layer.attention.wk: nn.functional.linear(x, one.weight, one.bias) * 1.5
    found = both(reference, port, values(2, 3, WIDTH), tmp_path)
    assert found.first is not None
    assert found.first.culprit.reference == "layers.0.attention.wk"


class Masked(nn.Module):
    """Takes a mask that is true where to look; ``Adds`` one that is added."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax((x @ x.transpose(1, 2)).masked_fill(~mask, float("-inf")), -1) @ x


class Adds(Masked):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x @ x.transpose(1, 2) + mask, -1) @ x


class Looks(nn.Module):
    def __init__(self, inner: type[Masked]) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, WIDTH)
        self.inner = inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if isinstance(self.inner, Adds):
            mask = torch.where(mask, 0.0, -1e9)
        return self.inner(self.before(x), mask)


def test_a_mask_of_another_convention_is_neither_handed_over_nor_an_alarm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    assert both(Looks(Masked), Looks(Adds), values(2, 4, WIDTH), tmp_path).verdict == "same"


def test_a_fault_beside_a_mask_of_another_convention_is_named_and_not_the_mask(tmp_path: Path) -> None:
    torch.manual_seed(0)
    port = Looks(Adds)
    inner = port.inner.forward
    port.inner.forward = lambda x, mask: inner(x, mask) * 1.5  # type: ignore[method-assign]
    found = both(Looks(Masked), port, values(2, 4, WIDTH), tmp_path)
    assert [one.culprit.reference for one in found.divergences] == ["inner"]


class Timed(nn.Module):
    """Makes its own times, and sines of a thousand times them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = 1 - torch.cos(torch.linspace(0.1, 1, 4) * 1.3)
        angles = 1000 * t[:, None] * torch.exp(-torch.arange(4) / 3.0)
        return x + self.linear(torch.cat([angles.sin(), angles.cos()], -1))


def test_what_code_makes_itself_is_measured_in_float64_and_passed_on_in_a_free_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trace = td.capture(Timed().eval(), values(2, 4, WIDTH), to=tmp_path / "ref.h5")
    rows = {(record.site, record.end): row for row, record in enumerate(trace.records)}
    handed = next(row for (site, end), row in rows.items() if site == "linear" and end.startswith("input"))
    assert trace.floor is not None
    assert trace.floor["float64"][handed] > 20 * 2**-24
    assert trace.floor["free"][rows["linear", "output"]] > 20
    assert torch.get_default_dtype() == torch.float32


class Embeds(nn.Module):
    """Embeds times by sines, whose arguments are exact to seven digits of a thousand, through layers in a module of their own or not."""

    def __init__(self, *, wrapped: bool, base: float = 1e4) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)
        self.first, self.base, self.wrapped = nn.Linear(WIDTH, WIDTH), base, wrapped
        if wrapped:
            self.mlp = nn.Sequential(*layers)
        else:
            self.into, self.out = layers[0], layers[2]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.wrapped:
            args = t[:, None] * torch.exp(-np.log(self.base) * torch.arange(8) / 8)
            return x + self.mlp(torch.cat([args.cos(), args.sin()], -1))
        args = t[:, None] * self.base ** (-torch.arange(8) / 8)
        return x + self.out(nn.functional.silu(self.into(torch.cat([args.cos(), args.sin()], -1))))


@pytest.mark.parametrize("mode", ["free", "forced"])
@pytest.mark.parametrize(("base", "verdict"), [(1e4, "same"), (1.002e4, "different")])
def test_the_noise_of_what_code_makes_reaches_the_layer_that_takes_it_in_through_a_module_that_the_port_lacks(
    base: float, verdict: str, mode: str, tmp_path: Path
) -> None:
    given = values(2, WIDTH), torch.tensor([731.0, 912.3])
    td.capture(Embeds(wrapped=True).eval(), given, to=tmp_path / "ref.h5").close()
    feed = {"feed": tmp_path / "ref.h5"} if mode == "forced" else {}
    td.capture(Embeds(wrapped=False, base=base).eval(), given, to=tmp_path / "port.h5", **feed).close()
    assert td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == verdict


# -- code between calls that goes wrong once ---------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """Adds to one half of the channels what a layer makes of the other half; `back` takes it away, and is called without a call of this."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, WIDTH)

    def shift(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.net(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept, moved = x.chunk(2, -1)
        return torch.cat([kept, moved + self.shift(kept)], -1)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        kept, moved = x.chunk(2, -1)
        return torch.cat([kept, moved - self.shift(kept)], -1)


class PlainShift(Shift):
    def shift(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class ThereAndBack(nn.Module):
    """Steps with the halves exchanged between them, and the same steps back; ``order``: of the channels on the way back."""

    def __init__(self, steps: tuple[type[Shift], ...] = (Shift, Shift, Shift), order: Any = None) -> None:
        super().__init__()
        self.steps = nn.ModuleList([made() for made in steps])
        there = torch.arange(2 * WIDTH).roll(WIDTH - 1)
        self.there, self.back = there, there.argsort() if order is None else order

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = x
        for step in self.steps:
            z = step(z)[:, self.there]
        y = 0.7 * z
        for step in reversed(self.steps):
            y = step.back(y[:, self.back])
        return z, y


def findings_of(port: nn.Module, folder: Path) -> list[tuple[str, int]]:
    """The culprit of each finding of a forced run, and the number of its places."""
    torch.manual_seed(0)
    found = both(ThereAndBack(), port, values(4, 2 * WIDTH), folder)
    return [(one.culprit.port, one.count) for one in found.divergences]


def test_what_code_makes_of_its_own_wrong_variable_is_no_further_finding(tmp_path: Path) -> None:
    ((culprit, places),) = findings_of(ThereAndBack(order=torch.arange(2 * WIDTH).roll(WIDTH - 1)), tmp_path)
    assert culprit == ""
    assert places == 4


def test_one_wrong_line_is_one_finding_wherever_it_is_run(tmp_path: Path) -> None:
    ((culprit, places),) = findings_of(ThereAndBack((Shift, PlainShift, Shift)), tmp_path)
    assert culprit == "steps.1"
    assert places > 1


# -- wrong weights of code that is no known layer ----------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Two matrices that code multiplies with, one of them transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x @ self.gate) * torch.tanh(x @ self.mix.T)


class LouderGate(Gate):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 + x.abs())


@pytest.mark.parametrize(("made", "stored", "proved"), [(Gate, True, True), (Gate, False, False), (LouderGate, True, False)])
def test_a_wrong_weight_is_proved_by_the_references_operations_alone(made: type[Gate], stored: bool, proved: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference, port = (nn.Sequential(nn.Linear(WIDTH, WIDTH), one()).eval() for one in (Gate, made))
    port.load_state_dict(reference.state_dict() | {"1.gate": torch.randn(WIDTH, WIDTH)})
    td.capture(reference, (torch.tensor(values(4, WIDTH)),), to=tmp_path / "ref.h5").close()
    fed: dict[str, Any] = {"feed": tmp_path / "ref.h5", "save_params": stored, "repeat": False}
    td.capture(port, (torch.tensor(values(4, WIDTH)),), to=tmp_path / "port.h5", **fed).close()
    (one,) = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5").divergences
    assert one.culprit.port == "1"
    assert (one.causes[0].kind, one.causes[0].confirmed) == ("weights.value", proved)
