"""Weights that code uses without calling their module: an error of theirs is charged to the module that owns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")

import tracediff as td  # noqa: E402


class Reference(torch.nn.Module):
    """Attention of PyTorch's own, whose output projection is never called as a module, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.attn(x, x, x, need_weights=False)[0])


class Port(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiHeadAttention(16, 2, bias=True)
        self.classifier = nn.Linear(16, 5)

    def __call__(self, x: Any) -> Any:
        return self.classifier(self.attention(x, x, x))


@pytest.fixture
def pair() -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    reference, port = Reference().eval(), Port()
    for value in reference.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    ours = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    q, k, v = np.split(ours["attn.in_proj_weight"], 3)
    biases = np.split(ours["attn.in_proj_bias"], 3)
    named = {"query_proj": (q, biases[0]), "key_proj": (k, biases[1]), "value_proj": (v, biases[2])}
    named["out_proj"] = ours["attn.out_proj.weight"], ours["attn.out_proj.bias"]
    theirs = [
        (f"attention.{name}.{kind}", mx.array(value))
        for name, pair in named.items()
        for kind, value in zip(("weight", "bias"), pair, strict=True)
    ]
    port.load_weights([*theirs, ("classifier.weight", mx.array(ours["head.weight"])), ("classifier.bias", mx.array(ours["head.bias"]))])
    return reference, port, np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)


def report(folder: Path, pair: tuple[Any, Any, Any], *, is_fed: bool) -> td.Report:
    reference, port, x = pair
    with torch.no_grad():
        ours = td.capture(reference, torch.from_numpy(x), to=folder / "ref.h5")
    fed = {"feed": folder / "ref.h5"} if is_fed else {}
    return td.diff(ours, td.capture(port, mx.array(x), to=folder / "port.h5", **fed))


@pytest.mark.parametrize("is_fed", [True, False])
class TestUncalled:
    def test_the_clean_pair_is_the_same(self, tmp_path: Path, pair: Any, is_fed: bool) -> None:
        assert report(tmp_path, pair, is_fed=is_fed).verdict == "same"

    def test_a_projection_that_was_not_loaded_is_named_though_only_the_port_calls_it(self, tmp_path: Path, pair: Any, is_fed: bool) -> None:
        pair[1].attention.out_proj.bias = mx.zeros(16)
        told = report(tmp_path, pair, is_fed=is_fed)
        assert [(one.culprit.reference, one.culprit.port) for one in told.divergences] == [("attn.out_proj", "attention.out_proj")]
        assert told.first is not None
        assert told.first.causes[0].kind == "weights.missing_bias"
        assert "the weights of attention.out_proj" in str(told)

    def test_wrong_code_around_right_weights_is_still_charged_to_that_code(self, tmp_path: Path, pair: Any, is_fed: bool) -> None:
        attention = pair[1].attention
        kind = type(attention)

        def scaled(self: Any, *args: Any) -> Any:
            return 1.5 * kind.__call__(self, *args)

        attention.__class__ = type(kind.__name__, (kind,), {"__call__": scaled, "__module__": kind.__module__})
        told = report(tmp_path, pair, is_fed=is_fed)
        assert told.first is not None
        assert told.first.culprit.reference == "attn"
