"""An input that the reference's code takes and does not read has no effect; one that it reads has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402

pytestmark = pytest.mark.frameworks
WIDTH = 8
X = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)


class Table(torch.nn.Module):
    """Sines at some places; what it is handed besides gives the dtype, and is added up where ``reads``."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, like: Any, places: Any) -> Any:
        made = torch.sin(places[:, None] * torch.arange(1, 1 + WIDTH)).to(like.dtype)
        return made + 0.0 * like.abs().sum() if self.reads else made


class Reference(torch.nn.Module):
    def __init__(self, *, reads: bool = False) -> None:
        super().__init__()
        self.table, self.first, self.last = Table(reads=reads), torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return self.last(y + self.table(y, torch.arange(3.0)))


class PortTable(nn.Module):
    def __call__(self, like: Any, places: Any) -> Any:
        return mx.sin(places[:, None] * mx.arange(1, 1 + WIDTH)).astype(like.dtype)


class Port(nn.Module):
    """The same; its table is handed ``x``, before the first layer. ``shift`` moves the places: a fault."""

    def __init__(self, reference: Reference, *, shift: float = 0.0) -> None:
        super().__init__()
        self.table, self.first, self.last = PortTable(), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        for name in ("first", "last"):
            for kind in ("weight", "bias"):
                setattr(getattr(self, name), kind, mx.array(getattr(getattr(reference, name), kind).detach().numpy()))
        self.shift = shift

    def __call__(self, x: Any) -> Any:
        return self.last(self.first(x) + self.table(x, mx.arange(3.0) + self.shift))


def report(reference: Reference, port: Port, mode: str, folder: Path) -> td.Report:
    torch.manual_seed(0)
    with torch.no_grad():
        td.capture(reference.eval(), (torch.tensor(X),), to=folder / "ref.h5").close()
    td.capture(port, (mx.array(X),), to=folder / "port.h5", **{"feed" if mode == "forced" else "random": folder / "ref.h5"}).close()
    return td.diff(folder / "ref.h5", folder / "port.h5")


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_what_is_handed_over_for_its_dtype_alone_has_no_effect(mode: str, tmp_path: Path) -> None:
    reference = Reference()
    found = report(reference, Port(reference), mode, tmp_path)
    assert found.verdict == "same"
    assert not found.equivalent


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_another_input_of_the_same_call_is_still_a_fault(mode: str, tmp_path: Path) -> None:
    reference = Reference()
    found = report(reference, Port(reference, shift=1.0), mode, tmp_path)
    assert found.verdict == "different"
    assert (found.divergences[0].site.reference, found.divergences[0].site.end) == ("table", "input[1]")


def test_what_the_reference_reads_is_not_excused(tmp_path: Path) -> None:
    reference = Reference(reads=True)
    found = report(reference, Port(reference), "forced", tmp_path)
    assert found.verdict == "different"
    assert found.divergences[0].site.reference == "table"
