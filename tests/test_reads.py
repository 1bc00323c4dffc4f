"""An input that the reference's code does not read has no effect; of what it reads in part, input or output, that part counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402

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


def report(reference: Any, port: Any, mode: str, folder: Path) -> td.Report:
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


# -- values that leave the framework ----------------------------------------------------------------------------------------------------

WAYS: dict[str, Any] = {
    "a list": lambda n: n.tolist()[0],
    "an array": lambda n: int(n.numpy()[0]),
    "a number": lambda n: n[0].item(),
    "an index": lambda n: int(n[0]),
}


class Times(torch.nn.Module):
    """A layer times a count that its code takes out of a tensor."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        self.layer, self.way = torch.nn.Linear(WIDTH, WIDTH), way

    def forward(self, x: Any, count: Any) -> Any:
        return self.layer(x) * self.way(count)


class Counted(torch.nn.Module):
    def __init__(self, way: Any) -> None:
        super().__init__()
        self.first, self.times = torch.nn.Linear(WIDTH, WIDTH), Times(way)

    def forward(self, x: Any) -> Any:
        return self.times(self.first(x), torch.tensor([5]) + 0 * x[:1, 0].long())


class TimesPort(nn.Module):
    def __init__(self, reference: Times) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.layer.weight, self.layer.bias = (mx.array(one.detach().numpy()) for one in (reference.layer.weight, reference.layer.bias))

    def __call__(self, x: Any, count: Any) -> Any:
        return self.layer(x) * count.tolist()[0]


class CountedPort(nn.Module):
    """The same; its code counts four where the reference counts five: a fault."""

    def __init__(self, reference: Counted) -> None:
        super().__init__()
        self.first, self.times = nn.Linear(WIDTH, WIDTH), TimesPort(reference.times)
        self.first.weight, self.first.bias = (mx.array(one.detach().numpy()) for one in (reference.first.weight, reference.first.bias))

    def __call__(self, x: Any) -> Any:
        return self.times(self.first(x), mx.array([4]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["forced", "free"])
def test_what_code_takes_out_of_a_tensor_is_read(mode: str, way: str, tmp_path: Path) -> None:
    reference = Counted(WAYS[way])
    first = report(reference, CountedPort(reference), mode, tmp_path).divergences[0]
    assert (first.site.reference, first.site.end) == ("times", "input[1]")


# -- an argument that each side reads for something else -----------------------------------------------------------------------------------

IDS = np.random.default_rng(1).integers(0, 20, (2, 6))


class Places(torch.nn.Embedding):
    """Embeds the places of a sequence; the ids that it is handed give the length alone."""

    def forward(self, ids: Any) -> Any:
        return super().forward(torch.arange(ids.shape[1]).expand(len(ids), -1))


class Embedded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.places, self.out = torch.nn.Embedding(20, WIDTH), Places(20, WIDTH), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Any) -> Any:
        return self.out(self.tokens(ids) + self.places(ids))


class EmbeddedPort(nn.Module):
    """The same; its embedding of places is handed the places."""

    def __init__(self, reference: Embedded, *, shift: int = 0) -> None:
        super().__init__()
        self.tokens, self.places, self.out = nn.Embedding(20, WIDTH), nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)
        for name in ("tokens", "places", "out"):
            getattr(self, name).weight = mx.array(getattr(reference, name).weight.detach().numpy())
        self.out.bias = mx.array(reference.out.bias.detach().numpy())
        self.shift = shift

    def __call__(self, ids: Any) -> Any:
        return self.out(self.tokens(ids) + self.places(mx.arange(ids.shape[1])[None] + self.shift))


@pytest.mark.parametrize(("shift", "verdict"), [(0, "same"), (1, "different")])
@pytest.mark.parametrize("mode", ["forced", "free"])
def test_what_the_reference_does_not_read_is_not_fed(mode: str, shift: int, verdict: str, tmp_path: Path) -> None:
    reference = Embedded().eval()
    with torch.no_grad():
        td.capture(reference, (torch.tensor(IDS),), to=tmp_path / "ref.h5").close()
    port, fed = EmbeddedPort(reference, shift=shift), {"feed" if mode == "forced" else "random": tmp_path / "ref.h5"}
    td.capture(port, (mx.array(IDS),), to=tmp_path / "port.h5", **fed).close()
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == verdict


# -- a port that hands over what the reference reads, and no more -----------------------------------------------------------------

AXES = np.random.default_rng(2).integers(0, 9, (4, 6))


class Turned(torch.nn.Module):
    """Sines of three rows of places; the first row is read where ``reads``, and only looked at otherwise."""

    def __init__(self, *, reads: bool = False) -> None:
        super().__init__()
        self.reads = reads

    def forward(self, x: Any, places: Any) -> Any:
        text, others = places[0], places[1:]
        angles = others.float().sum(0)[:, None] * torch.arange(1, 1 + WIDTH)
        return x * torch.sin(angles + (text.float()[:, None] if self.reads else 0.0))


class Spread(torch.nn.Module):
    def __init__(self, *, reads: bool = False) -> None:
        super().__init__()
        self.first, self.turned, self.last = torch.nn.Linear(WIDTH, WIDTH), Turned(reads=reads), torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any, places: Any) -> Any:
        return self.last(self.turned(self.first(x), places))


class TurnedPort(nn.Module):
    def __init__(self, *, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def __call__(self, x: Any, places: Any) -> Any:
        return x * mx.sin((places + self.shift).astype(mx.float32).sum(0)[:, None] * mx.arange(1, 1 + WIDTH))


class SpreadPort(nn.Module):
    """The same; its code hands over the last three rows alone. ``handed`` and ``taken`` move them before the call and in it: faults."""

    def __init__(self, reference: Spread, *, handed: int = 0, taken: int = 0) -> None:
        super().__init__()
        self.first, self.turned, self.last = nn.Linear(WIDTH, WIDTH), TurnedPort(shift=taken), nn.Linear(WIDTH, WIDTH)
        for name in ("first", "last"):
            for kind in ("weight", "bias"):
                setattr(getattr(self, name), kind, mx.array(getattr(getattr(reference, name), kind).detach().numpy()))
        self.handed = handed

    def __call__(self, x: Any, places: Any) -> Any:
        return self.last(self.turned(self.first(x), places[1:] + self.handed))


def spread(reference: Spread, port: SpreadPort, mode: str, folder: Path) -> td.Report:
    x = np.random.default_rng(3).standard_normal((6, WIDTH)).astype(np.float32)
    with torch.no_grad():
        td.capture(reference.eval(), (torch.tensor(x), torch.tensor(AXES)), to=folder / "ref.h5").close()
    fed = {"feed" if mode == "forced" else "random": folder / "ref.h5"}
    td.capture(port, (mx.array(x), mx.array(AXES)), to=folder / "port.h5", **fed).close()
    return td.diff(folder / "ref.h5", folder / "port.h5")


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_what_the_reference_hands_over_beyond_what_is_read_is_no_difference(mode: str, tmp_path: Path) -> None:
    reference = Spread()
    assert spread(reference, SpreadPort(reference), mode, tmp_path).verdict == "same"
    layouts = [pair.layout for pair in td.align(tmp_path / "ref.h5", tmp_path / "port.h5").records]
    assert ((1, 4), (0, 6)) in [layout.window_reference for layout in layouts if layout is not None]


@pytest.mark.parametrize(("fault", "end"), [("handed", "input[1]"), ("taken", "output")])
@pytest.mark.parametrize("mode", ["forced", "free"])
def test_of_what_is_read_in_part_that_part_is_compared_and_fed(mode: str, fault: str, end: str, tmp_path: Path) -> None:
    reference = Spread()
    first = spread(reference, SpreadPort(reference, **{fault: 1}), mode, tmp_path).divergences[0]
    assert (first.site.reference, first.site.end) == ("turned", end)


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_a_row_that_is_read_and_not_handed_over_is_a_fault(mode: str, tmp_path: Path) -> None:
    reference = Spread(reads=True)
    first = spread(reference, SpreadPort(reference), mode, tmp_path).divergences[0]
    assert (first.site.reference, first.site.end) == ("turned", "input[1]")


# -- outputs that are read in part --------------------------------------------------------------------------------------------------------

LENGTH, KERNEL = 9, 4


class Causal(torch.nn.Module):
    """A convolution that pads both ends, of whose output code takes the front: a state space model's."""

    def __init__(self, *, reads_all: bool = False) -> None:
        super().__init__()
        self.conv, self.last = torch.nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL - 1), torch.nn.Linear(WIDTH, WIDTH)
        self.reads_all = reads_all

    def forward(self, x: Any) -> Any:
        y = self.conv(x.transpose(1, 2))
        front = y[..., : x.shape[1]] + (y.mean(-1, keepdim=True) if self.reads_all else 0.0)
        return self.last(front.transpose(1, 2))


class FrontOnly(nn.Module):
    """Pads the front alone, in bfloat16, so that no value agrees to many digits. ``ahead``: how far it looks ahead, a fault."""

    def __init__(self, reference: Causal, ahead: int) -> None:
        super().__init__()
        self.weight = mx.array(reference.conv.weight.detach().numpy().transpose(0, 2, 1))
        self.bias = mx.array(reference.conv.bias.detach().numpy())
        self.ahead = ahead

    def __call__(self, x: Any) -> Any:
        return mx.conv1d(mx.pad(x, ((0, 0), (KERNEL - 1 - self.ahead, self.ahead), (0, 0))), self.weight) + self.bias


class CausalPort(nn.Module):
    def __init__(self, reference: Causal, ahead: int = 0) -> None:
        super().__init__()
        self.conv, self.last = FrontOnly(reference, ahead), nn.Linear(WIDTH, WIDTH)
        self.last.weight, self.last.bias = (mx.array(one.detach().numpy()) for one in (reference.last.weight, reference.last.bias))
        self.set_dtype(mx.bfloat16)

    def __call__(self, x: Any) -> Any:
        return self.last(self.conv(x.astype(mx.bfloat16)))


def causal(ahead: int, mode: str, folder: Path, *, reads_all: bool = False) -> td.Report:
    torch.manual_seed(0)
    reference, x = Causal(reads_all=reads_all), np.random.default_rng(1).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)
    with torch.no_grad():
        td.capture(reference, (torch.tensor(x),), to=folder / "ref.h5", floor_dtypes=("float64", "bfloat16")).close()
    feed = {"feed" if mode == "forced" else "random": folder / "ref.h5"}
    td.capture(CausalPort(reference, ahead), (mx.array(x),), to=folder / "port.h5", **feed).close()
    return td.diff(folder / "ref.h5", folder / "port.h5")


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_an_output_is_compared_as_far_as_code_reads_it(mode: str, tmp_path: Path) -> None:
    report = causal(0, mode, tmp_path)
    assert report.verdict == "same"
    [pair] = [pair for pair in report.pairs_to_dict() if pair["reference"] == "conv" and pair["end"] == "output"]
    assert pair["layout"].startswith("reference [0:2, 0:8, 0:9]")


@pytest.mark.parametrize("mode", ["forced", "free"])
def test_what_is_wrong_in_that_part_is_found_there(mode: str, tmp_path: Path) -> None:
    report = causal(1, mode, tmp_path)
    assert (report.verdict, report.divergences[0].site.reference) == ("different", "conv")


def test_an_output_of_which_code_reads_all_is_compared_whole(tmp_path: Path) -> None:
    assert causal(0, "free", tmp_path, reads_all=True).verdict == "different"
