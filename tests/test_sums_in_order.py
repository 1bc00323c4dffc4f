"""A port whose library adds up one term after the other is the same; a fault of the size of its rounding's tenfold is not hidden."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402
from tracediff.observe.adapters.torch_sums import in_order  # noqa: E402

CHANNELS, LENGTH = 8, 40_000


class Reference(torch.nn.Module):
    """A layer that adds up many terms, between two projections."""

    def __init__(self, layer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(CHANNELS, CHANNELS), torch.nn.Linear(CHANNELS, 2)
        self.layer = layer

    def forward(self, x: Any) -> Any:
        return self.last(self.layer(self.first(x)))


class Port(nn.Module):
    def __init__(self, reference: Reference, layer: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2)
        for name in ("first", "last"):
            for kind in ("weight", "bias"):
                setattr(getattr(self, name), kind, mx.array(getattr(getattr(reference, name), kind).detach().numpy()))
        self.layer = layer

    def __call__(self, x: Any) -> Any:
        return self.last(self.layer(self.first(x)))


def group_norm(x: Any) -> Any:
    return torch.nn.functional.group_norm(x.transpose(1, 2), 1).transpose(1, 2)


def group_norm_port(x: Any, eps: float = 1e-5) -> Any:
    return mx.fast.layer_norm(x.reshape(len(x), -1), None, None, eps).reshape(x.shape)


def instance_norm(x: Any) -> Any:
    return torch.nn.functional.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def instance_norm_port(x: Any) -> Any:
    return mx.fast.layer_norm(x.swapaxes(1, 2), None, None, 1e-5).swapaxes(1, 2)


def root_mean_square(x: Any) -> Any:
    flat = x.flatten(1)
    return (flat * torch.rsqrt(flat.pow(2).mean(-1, keepdim=True) + 1e-6)).view(x.shape)


def root_mean_square_port(x: Any) -> Any:
    return mx.fast.rms_norm(x.reshape(len(x), -1), None, 1e-6).reshape(x.shape)


LAYERS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "a group norm": (group_norm, group_norm_port),
    "an instance norm": (instance_norm, instance_norm_port),
    "a root mean square": (root_mean_square, root_mean_square_port),
    "a pooled mean": (lambda x: x + x.mean(1, keepdim=True), lambda x: x + x.mean(1, keepdims=True)),
    "a softmax": (lambda x: LENGTH * torch.softmax(x, 1), lambda x: LENGTH * mx.softmax(x, axis=1)),
    "a length of one": (lambda x: torch.nn.functional.normalize(x, dim=1), lambda x: x / mx.linalg.norm(x, axis=1, keepdims=True)),
}


def verdicts(reference: Any, port: Any, folder: Path) -> list[str | None]:
    """The verdicts on a port, forced and free."""
    x = (np.random.default_rng(0).standard_normal((1, LENGTH, CHANNELS)) + 2.0).astype(np.float32)
    with torch.no_grad():
        td.capture(reference, (torch.tensor(x),), to=folder / "ref.h5").close()
    td.capture(port, (mx.array(x),), to=folder / "forced.h5", feed=folder / "ref.h5").close()
    td.capture(port, (mx.array(x),), to=folder / "free.h5").close()
    return [td.diff(folder / "ref.h5", folder / f"{mode}.h5").verdict for mode in ("forced", "free")]


@pytest.mark.parametrize("name", LAYERS)
def test_a_port_that_adds_up_in_order_is_the_same(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours, theirs = LAYERS[name]
    reference = Reference(ours).eval()
    assert verdicts(reference, Port(reference, theirs), tmp_path) == ["same", "same"]


def test_a_fault_in_what_it_adds_up_is_not_hidden(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = Reference(group_norm).eval()
    wrong = Port(reference, lambda x: group_norm_port(x, eps=1e-3))
    assert verdicts(reference, wrong, tmp_path) == ["different", "different"]


class TestInOrder:
    """What an operation gives whose sums are taken in order."""

    X = torch.randn(2, 6, 3000, generator=torch.Generator().manual_seed(0)) + 3

    @pytest.mark.parametrize(
        "asked",
        [
            ("sum", lambda x: x.sum((0, 2)), (X, [0, 2])),
            ("mean", lambda x: x.mean(), (X,)),
            ("mean", lambda x: x.mean(-1, keepdim=True), (X, [-1], True)),
            ("std", lambda x: x.std(-1), (X, [-1])),
            ("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=2), (X, 2, [2])),
            ("_softmax", lambda x: x.softmax(2), (X, 2, False)),
            ("_log_softmax", lambda x: x.log_softmax(2), (X, 2, False)),
            ("cumsum", lambda x: x.cumsum(2), (X, 2)),
        ],
    )
    def test_is_near_what_it_gives_and_not_the_same(self, asked: tuple[str, Callable[[Any], Any], tuple[Any, ...]]) -> None:
        name, operation, args = asked
        made = operation(self.X)
        found = in_order(name, args, {}, made)
        error = float((found.double() - made.double()).norm() / made.double().norm())
        assert found.shape == made.shape
        assert 1e-7 < error < 1e-4

    def test_is_nearer_to_what_mlx_gives(self) -> None:
        x = (torch.randn(64, 40_000, generator=torch.Generator().manual_seed(0)) + 30).float()
        made = torch.ops.aten.native_layer_norm(x, [40_000], None, None, 1e-5)
        found = in_order("native_layer_norm", (x, [40_000], None, None, 1e-5), {}, made)[0]
        theirs = torch.from_numpy(np.array(mx.fast.layer_norm(mx.array(x.numpy()), None, None, 1e-5)))
        assert (found - theirs).norm() < 0.5 * (made[0] - theirs).norm()

    def test_leaves_other_operations_and_whole_numbers_alone(self) -> None:
        made = self.X.sin()
        assert in_order("sin", (self.X,), {}, made) is made
        whole = torch.arange(10).sum()
        assert in_order("sum", (torch.arange(10),), {}, whole) is whole
