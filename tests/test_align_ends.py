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
    assert [(one.culprit.reference, one.culprit.port) for one in found.divergences] == [("", "")]


def test_a_wrong_convolution_is_named_although_channels_and_length_are_equal(tmp_path: Path) -> None:
    found = report(tmp_path, spoil=True)
    assert [(one.culprit.reference, one.culprit.port) for one in found.divergences] == [("blocks.1.conv", "stages.1.c")]
