"""Where modules end, and which axis holds the channels: correct ports in both frameworks give no alarm, and faults are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
mnn = pytest.importorskip("mlx.nn")
from torch import nn  # noqa: E402

import tracediff as td  # noqa: E402

CHANNELS = LENGTH = 8  # equal, so that shapes do not tell the layout


class Block(nn.Module):
    """A convolution that ends in its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm1d(CHANNELS), nn.SiLU()

    def forward(self, x: Any) -> Any:
        return self.act(self.norm(self.conv(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.head = nn.Conv1d(CHANNELS, 5, 1)

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ConvNorm(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c, self.n = mnn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), mnn.BatchNorm(CHANNELS)

    def __call__(self, x: Any) -> Any:
        return self.n(self.c(x))


class Port(mnn.Module):
    """The activation is left to the caller, which forgets it after the block ``without``."""

    def __init__(self, without: int = -1) -> None:
        super().__init__()
        self.stages, self.out, self._without = [ConvNorm() for _ in range(3)], mnn.Conv1d(CHANNELS, 5, 1), without

    def __call__(self, x: Any) -> Any:
        for number, stage in enumerate(self.stages):
            x = stage(x)
            x = x if number == self._without else mnn.silu(x)
        return self.out(x)


def report(tmp_path: Path, *, without: int = -1, spoil: bool = False, forced: bool = True) -> Any:
    torch.manual_seed(1)
    reference, port = Model().eval(), Port(without)
    weights = {}
    for name, value in reference.state_dict().items():
        name = name.replace("blocks", "stages").replace(".conv.", ".c.").replace(".norm.", ".n.").replace("head.", "out.")
        if not name.endswith("tracked"):
            weights[name] = mx.array(np.moveaxis(value.numpy(), 1, -1) if value.ndim == 3 else value.numpy())
    port.load_weights(list(weights.items()), strict=True)
    if spoil:
        port.stages[1].c.weight = port.stages[1].c.weight[::-1]
    port.eval()
    x = np.random.default_rng(0).standard_normal((2, CHANNELS, LENGTH)).astype(np.float32)
    with torch.no_grad():
        td.capture(reference, (torch.tensor(x),), to=tmp_path / "ref.h5").close()
    fed = {"feed": tmp_path / "ref.h5"} if forced else {}
    td.capture(port, (mx.array(x.transpose(0, 2, 1)),), to=tmp_path / "port.h5", **fed).close()
    return td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5", scan=True)


@pytest.mark.parametrize("forced", [True, False])
def test_an_activation_inside_the_block_on_one_side_only_is_no_divergence(tmp_path: Path, forced: bool) -> None:
    assert report(tmp_path, forced=forced).verdict == "same"


def test_an_activation_that_the_caller_forgot_is_the_callers(tmp_path: Path) -> None:
    found = report(tmp_path, without=1)
    assert [(one.culprit.reference, one.culprit.port) for one in found.divergences] == [("blocks.1.act", "")]


def test_a_wrong_convolution_is_named_although_channels_and_length_are_equal(tmp_path: Path) -> None:
    found = report(tmp_path, spoil=True)
    assert [(one.culprit.reference, one.culprit.port) for one in found.divergences] == [("blocks.1.conv", "stages.1.c")]


class Unit(nn.Module):
    """A residual unit that returns a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Any) -> Any:
        return x + self.conv(torch.tanh(x))


class Gate(nn.Module):
    """Squeeze and excitation: what it takes in goes to no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Linear(CHANNELS, 4), nn.Linear(4, CHANNELS)

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean(-1)))))[..., None]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.second = Unit(), Gate(), Unit()

    def forward(self, x: Any) -> Any:
        return self.second(torch.tanh(self.gate(self.first(x))))


class PortUnit(mnn.Module):
    """The unit; ``without`` its sum, it returns what the convolution inside does."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self._without, self._gain = mnn.Conv1d(CHANNELS, CHANNELS, 3, padding=1), False, 1.0

    def __call__(self, x: Any) -> Any:
        y = self.c(mx.tanh(x))
        return y if self._without else self._gain * (x + y)


class PortGate(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = mnn.Linear(CHANNELS, 4), mnn.Linear(4, CHANNELS)

    def __call__(self, x: Any) -> Any:
        return x * mx.expand_dims(mx.sigmoid(self.up(mnn.relu(self.down(x.mean(1))))), 1)


class PortGated(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.se, self.b = PortUnit(), PortGate(), PortUnit()

    def __call__(self, x: Any) -> Any:
        return self.b(mx.tanh(self.se(self.a(x))))


def gated(folder: Path, *, forced: bool, half: bool = False, **spoilt: Any) -> Any:
    """The comparison of the gated models; ``spoilt``: attributes of the port's first unit."""
    torch.manual_seed(1)
    ours, theirs = Gated().eval(), PortGated()
    state = {name: value.detach().numpy() for name, value in ours.state_dict().items()}
    names = {"first.conv": "a.c", "second.conv": "b.c", "gate.reduce": "se.down", "gate.expand": "se.up"}
    weights = {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in state.items()}
    theirs.load_weights([(name, mx.array(value.swapaxes(1, 2) if value.ndim == 3 else value)) for name, value in weights.items()])
    for name, value in spoilt.items():
        setattr(theirs.a, name, value)
    x = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, LENGTH)).astype(np.float32)
    theirs.set_dtype(mx.bfloat16 if half else mx.float32)
    with torch.no_grad():
        reference = td.capture(ours, torch.from_numpy(x), to=folder / "ref.h5", floor_dtypes=("float64", *(["bfloat16"] if half else [])))
    given = mx.array(x.swapaxes(1, 2)).astype(mx.bfloat16 if half else mx.float32)
    fed = {"feed": reference} if forced else {}
    return td.diff(reference, td.capture(theirs, given, to=folder / "port.h5", repeat=False, **fed))


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_a_gate_whose_axes_are_all_equally_long_is_no_divergence(tmp_path: Path, forced: bool, half: bool) -> None:
    assert gated(tmp_path, forced=forced, half=half).verdict == "same"


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("spoilt", [{"_without": True}, {"_gain": 1.3}])
def test_a_unit_that_returns_something_else_does_not_merely_end_elsewhere(tmp_path: Path, forced: bool, spoilt: dict[str, Any]) -> None:
    found = gated(tmp_path, forced=forced, **spoilt)
    assert found.first is not None
    assert (found.first.culprit.reference, found.first.culprit.port) == ("first", "a")
    assert len(found.divergences) == 1
