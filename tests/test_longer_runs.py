"""A port whose run has more rows or places than the reference's is read at the front; what it returns has to be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracediff.alignment.axes import Layout, Part, apply, restore

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402

WIDTH, ROWS, PLACES = 8, 2, 5
X = np.random.default_rng(0).standard_normal((ROWS, PLACES, WIDTH)).astype(np.float32)
MODES = ("forced", "free")


class Reference(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mixing, self.last = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Any) -> Any:
        x = torch.tanh(self.first(x))
        return self.last(x + torch.cumsum(self.mixing(x), 1))


class Port(nn.Module):
    """The same on more rows and places, of which it returns the reference's; ``cuts``: unless it forgets to."""

    def __init__(self, reference: Reference, *, cuts: bool = True, factor: float = 1.0) -> None:
        super().__init__()
        self.first, self.mixing, self.last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for name in ("first", "mixing", "last"):
            layer, theirs = getattr(self, name), getattr(reference, name)
            layer.weight, layer.bias = mx.array(theirs.weight.detach().numpy()), mx.array(theirs.bias.detach().numpy())
        self.mixing.weight = factor * self.mixing.weight
        self.cuts = cuts

    def __call__(self, x: Any) -> Any:
        x = mx.tanh(self.first(x))
        made = self.last(x + mx.cumsum(self.mixing(x), 1))
        return made[:ROWS, :PLACES] if self.cuts else made


def padded(rows: int, places: int) -> Any:
    """The inputs with more rows and places behind."""
    more = np.random.default_rng(1).standard_normal((ROWS + rows, PLACES + places, WIDTH)).astype(np.float32)
    more[:ROWS, :PLACES] = X
    return mx.array(more)


def report(folder: Path, mode: str, rows: int = 1, places: int = 2, **options: Any) -> Any:
    reference = Reference().eval()
    with torch.no_grad():
        td.capture(reference, (torch.tensor(X),), to=folder / "ref.h5").close()
    given = {"feed" if mode == "forced" else "random": folder / "ref.h5"}
    td.capture(Port(reference, **options), (padded(rows, places),), to=folder / "port.h5", **given).close()
    return td.bisect(folder / "ref.h5", folder / "port.h5")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "places"), [(1, 0), (0, 3), (2, 1)])
def test_rows_and_places_that_are_cut_off_behind_are_no_difference(rows: int, places: int, mode: str, tmp_path: Path) -> None:
    found = report(tmp_path, mode, rows, places)
    assert (found.verdict, found.divergences) == ("same", ())
    assert found.coverage.compared == found.coverage.reference_records


@pytest.mark.parametrize("mode", MODES)
def test_a_fault_among_them_is_found_at_its_place(mode: str, tmp_path: Path) -> None:
    found = report(tmp_path, mode, factor=1.01)
    assert (found.verdict, found.first.culprit.reference) == ("different", "mixing")
    assert "cut to" in found.first.layout


@pytest.mark.parametrize("mode", MODES)
def test_what_the_run_returns_has_to_be_cut(mode: str, tmp_path: Path) -> None:
    found = report(tmp_path, mode, rows=0, cuts=False)
    assert (found.verdict, found.first.culprit.reference) == ("different", "")
    assert "length 7, in the reference 5" in str(found)


@pytest.mark.parametrize(
    "layout",
    [
        Layout((2, 3), crop=(2, 3)),
        Layout((3, 2), crop=(2, 3), permutation=(1, 0)),
        Layout((2, 2), crop=(2, 3), part=Part(1, 1, 3)),
    ],
    ids=str,
)
def test_what_is_put_back_stands_at_the_front_and_leaves_the_rest(layout: Layout) -> None:
    port = np.arange(20.0).reshape(4, 5)
    seen = apply(port, layout)
    (whole,) = restore(-seen - 1, layout, [port])
    assert np.array_equal(apply(whole, layout), -seen - 1)
    assert np.count_nonzero(whole != port) == seen.size


class Padding(nn.Module):
    """Pads what it is handed, as a port does to compile for few shapes, and cuts what comes of it."""

    def __init__(self, reference: Reference, **options: Any) -> None:
        super().__init__()
        self.inner = Port(reference, cuts=False, **options)

    def __call__(self, x: Any) -> Any:
        return self.inner(mx.pad(2 * x / 2, [(0, 1), (0, 2), (0, 0)]))[:ROWS, :PLACES]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("factor", "culprit"), [(1.0, None), (1.01, "mixing")])
def test_what_the_ports_own_code_pads_and_cuts_is_read_at_the_front(mode: str, factor: float, culprit: str | None, tmp_path: Path) -> None:
    reference = Reference().eval()
    with torch.no_grad():
        td.capture(reference, (torch.tensor(X),), to=tmp_path / "ref.h5").close()
    given = {"feed" if mode == "forced" else "random": tmp_path / "ref.h5"}
    td.capture(Padding(reference, factor=factor), (mx.array(X),), to=tmp_path / "port.h5", **given).close()
    found = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert found.first is None if culprit is None else found.first.culprit.reference == culprit
    assert found.coverage.paired == found.coverage.reference_records


def test_what_is_repeated_is_put_back_at_the_front() -> None:
    port = np.arange(24.0).reshape(3, 1, 8)
    layout = Layout((2, 4, 5), crop=(2, 1, 5), repeat="port")
    reference = np.broadcast_to(100 + np.arange(10.0).reshape(2, 1, 5), (2, 4, 5))
    (put,) = restore(reference, layout, [port])
    assert np.array_equal(put[:2, :, :5], reference[:, :1])
    assert np.array_equal(put[2:], port[2:])
    assert np.array_equal(put[:, :, 5:], port[:, :, 5:])
