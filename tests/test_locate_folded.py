"""What weights show without a run: a norm's gain and offset are in the layers behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tracediff as td  # noqa: E402
from tracediff.alignment import align  # noqa: E402
from tracediff.locate.folded import folded  # noqa: E402

WIDTH, OUT = 12, 7


class Gained(torch.nn.Module):
    """A matrix, and a vector of ``length`` that is no bias of it unless it is as long as what comes out."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.weight, self.vector = torch.nn.Parameter(torch.randn(OUT, WIDTH)), torch.nn.Parameter(torch.randn(length))

    def forward(self, x: Any) -> Any:
        return x @ self.weight.T + self.vector.mean()


def model(layer: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(WIDTH)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    return torch.nn.Sequential(norm, layer()).eval()


def moved(layer: Callable[[], Any], *, by: float = 1.0) -> Any:
    """The same with the norm's gain and offset in the layer behind, times ``by``."""
    one = model(layer)
    with torch.no_grad():
        norm, behind = one[0], one[1]
        if getattr(behind, "bias", None) is not None and behind.weight.ndim == 2:
            behind.bias += by * behind.weight @ norm.bias
            norm.bias.zero_()
        behind.weight *= by * norm.weight.reshape(1, -1, *[1] * (behind.weight.ndim - 2))
        norm.weight.fill_(1)
    return one


def found(reference: Any, port: Any, folder: Path) -> dict[str, frozenset[str]]:
    with torch.no_grad():
        for name, one in (("ref", reference), ("port", port)):
            td.capture(
                one, (torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)),), to=folder / f"{name}.h5", floor=False, force=True
            ).close()
    with td.open_trace(folder / "ref.h5") as ours, td.open_trace(folder / "port.h5") as theirs:
        return folded(align(ours, theirs), ours, theirs)


def linear() -> Any:
    return torch.nn.Linear(WIDTH, OUT)


def test_a_gain_and_an_offset_in_the_layer_behind_are_found_with_the_weights_concerned(tmp_path: Path) -> None:
    assert found(model(linear), moved(linear), tmp_path) == {"0": {"0.weight", "0.bias", "1.weight", "1.bias"}}


@pytest.mark.parametrize("by", [0.9, 1.001])
def test_a_layer_that_takes_back_more_or_less_does_not_count(by: float, tmp_path: Path) -> None:
    assert found(model(linear), moved(linear, by=by), tmp_path) == {}


def test_equal_weights_are_not_folded(tmp_path: Path) -> None:
    assert found(model(linear), model(linear), tmp_path) == {}


@pytest.mark.parametrize("length", [1, OUT, WIDTH, 30])
def test_a_vector_of_any_length_beside_the_matrix_proves_nothing_wrong(length: int, tmp_path: Path) -> None:
    reference, port = model(lambda: Gained(length)), moved(lambda: Gained(length))
    assert found(reference, port, tmp_path).keys() <= {"0"}
    assert found(reference, model(lambda: Gained(length)), tmp_path) == {}
