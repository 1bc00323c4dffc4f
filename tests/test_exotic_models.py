"""A hundred odd models: each is captured as it runs bare, or the trace says what was not seen, and is left as one bare run leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import mlx.core as mx
import torch
from exotic_models import MLX, TORCH, Odd

import tracediff as td
from tracediff.observe.adapters import registry
from tracediff.observe.containers import Nest
from tracediff.observe.reachable import Holders


def arrays(value: Any, framework: str) -> list[Any]:
    """The tensors, numbers and texts in what a run returned, as lists or bits."""
    adapter = registry.named(framework)
    leaves = Nest(adapter.is_tensor, adapter.is_model).values(value, "output")
    return [_bits(leaf, adapter) for _, leaf in leaves]


def _bits(leaf: Any, adapter: Any) -> Any:
    if isinstance(leaf, str):
        return leaf
    return adapter.unreadable([leaf]) or (adapter.view(leaf).dtype.str, adapter.view(leaf).shape, np.array(adapter.view(leaf)).tobytes())


def state(model: Any, framework: str) -> dict[str, Any]:
    """All that a run may change: tensors that the model holds, with their gradients, and what modules are."""
    adapter = registry.named(framework)
    found = Holders(adapter)
    found.walk([("", model)])
    tensors = {name: (_bits(tensor, adapter), _gradient(tensor, adapter)) for name, tensor in found.tensors.values()}
    return {**tensors, "random": _random(), "class": type(model), "forward": getattr(type(model), "forward", None)}


def _gradient(tensor: Any, adapter: Any) -> Any:
    gradient = adapter.gradient(tensor)
    return None if gradient is None else _bits(gradient, adapter)


def _random() -> Any:
    return torch.rand(1).item(), mx.random.uniform().item(), float(np.random.rand())


def seed() -> None:
    torch.manual_seed(1)
    mx.random.seed(1)
    np.random.seed(1)


def run_of(odd: Odd) -> tuple[Any, Any]:
    model, given = odd.make()

    def run() -> Any:
        made = model(*given)
        if odd.backward:
            made.sum().backward()
        return made

    return model, run


@pytest.mark.parametrize("further", [{"repeat": False, "floor": False}, {}], ids=["once", "again"])
@pytest.mark.parametrize("odd", [*TORCH, *MLX], ids=lambda odd: odd.name.replace(" ", "-"))
@pytest.mark.filterwarnings("ignore")
def test_an_odd_model_is_captured_as_it_runs_bare(odd: Odd, further: dict[str, Any], tmp_path: Path) -> None:
    framework = "torch" if odd in TORCH else "mlx"
    bare, run = run_of(odd)
    seed()
    expected, left = arrays(run(), framework), state(bare, framework)
    model, run = run_of(odd)
    seed()
    gave: dict[str, Any] = {}

    def observed() -> Any:
        gave["value"] = run()
        return gave["value"]

    with td.capture(model, observed, to=tmp_path / "a.h5", **further) as trace:
        now, sites = state(model, framework), {record.site for record in trace.records}
        assert sites or not expected
        not_seen = [*trace.meta["not_seen"], *trace.meta["warnings"]]
        assert bool(odd.unseen) <= any(odd.unseen in text for text in not_seen)
        assert all(record.read() is not None for record in trace.records)
    assert now.keys() == left.keys()
    assert [key for key in left if key not in ("class", "forward") and now[key] != left[key]] == []
    assert (now["class"].__name__, getattr(now["forward"], "__qualname__", "")) == (
        left["class"].__name__,
        getattr(left["forward"], "__qualname__", ""),
    )
    if "value" in gave:
        assert arrays(gave["value"], framework) == expected


def test_there_are_a_hundred_of_them() -> None:
    assert len(TORCH) + len(MLX) >= 100
    assert len({odd.name for odd in TORCH}) == len(TORCH)
    assert len({odd.name for odd in MLX}) == len(MLX)
