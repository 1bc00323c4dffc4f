"""A made-up framework whose adapter brings only what `FrameworkAdapter` says that it must; no real framework is needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.errors import CaptureError
from tracediff.observe import Boundary, Observer, observe, record
from tracediff.observe.adapters.base import FrameworkAdapter
from tracediff.observe.adapters.registry import FRAMEWORKS, Framework, named


class Tensor:
    """The made-up framework's tensor."""

    def __init__(self, data: Any) -> None:
        self.data = np.asarray(data, np.float32)

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)

    def __matmul__(self, other: Tensor) -> Tensor:
        return Tensor(self.data @ other.data)

    def __setitem__(self, key: Any, value: Tensor) -> None:
        self.data[key] = value.data


class Module:
    """The made-up framework's module."""


class Linear(Module):
    def __init__(self, size: int) -> None:
        self.weight = Tensor(np.eye(size) * 2)

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Net(Module):
    def __init__(self) -> None:
        self.layers = [Linear(3), Linear(3)]
        self.hidden = 3

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = td.tap("step", layer(x))
        return x


class Toy(FrameworkAdapter):
    name = "toy"
    tensor_type = Tensor
    module_type = Module

    def values_of(self, tensor: Any) -> Any:
        return tensor.data

    def tensor_of(self, array: Any) -> Any:
        return Tensor(array.copy())

    def fitted(self, tensor: Any, shape: tuple[int, ...], like: Any) -> Any:
        return Tensor(tensor.data.reshape(shape))


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up framework as one that is registered and loaded."""
    module: Any = ModuleType("toy_adapter")
    module.ADAPTER = Toy()
    monkeypatch.setitem(sys.modules, "toy_adapter", module)
    monkeypatch.setitem(FRAMEWORKS, "toy", Framework(__name__, "toy_adapter"))


def test_a_model_of_the_next_framework_is_recorded(tmp_path: Path) -> None:
    net = Net()
    with record(net, tmp_path / "toy.h5"):
        out = net(Tensor(np.ones((2, 3))))
    trace = td.open_trace(tmp_path / "toy.h5")
    assert (trace.meta["impl"], trace.meta["not_seen"]) == ("toy", [])
    assert list(trace.params) == ["layers.0.weight", "layers.1.weight"]
    assert [record.site for record in trace.records] == ["", *["layers.0"] * 2, "#step", *["layers.1"] * 2, "#step", ""]
    assert (trace.records[-1].read() == out.data).all()
    assert (out.data == 4).all()


def test_its_outputs_can_be_exchanged_by_arrays() -> None:
    class Zeros(Observer):
        def see(self, boundary: Boundary) -> Any:
            return {"output": np.zeros((2, 3))} if (boundary.site, boundary.moment) == ("layers.1", "leave") else None

    net = Net()
    out = observe(net, lambda: net(Tensor(np.ones((2, 3)))), [Zeros()])
    assert type(out) is Tensor
    assert (out.data == 0).all()


def test_what_a_call_changes_in_place_is_noticed() -> None:
    class Overwriting(Module):
        def __call__(self, x: Tensor) -> None:
            x[...] = Tensor(7)

    class Mutated(Observer):
        ends: tuple[str, ...] = ()

        def see(self, boundary: Boundary) -> None:
            self.ends += boundary.mutated

    model, mutated = Overwriting(), Mutated()
    observe(model, lambda: model(Tensor(np.ones(3))), [mutated])
    assert mutated.ends == ("output.input[0]",)


def test_its_generators_are_pythons_and_numpys() -> None:
    adapter = named("toy")
    state = adapter.rng_state()
    drawn = np.random.rand()
    adapter.set_rng_state(state)
    assert np.random.rand() == drawn


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(CaptureError, match="adapter of toy makes no modules"):
        named("toy").calling(lambda x: x)
    with pytest.raises(CaptureError, match="adapter of toy gives modules no other dtype"):
        named("toy").cast([], "float64")


def test_the_docstring_names_every_method_that_an_adapter_may_bring() -> None:
    named_there = set(re.findall(r"`(\w+)`", str(FrameworkAdapter.__doc__)))
    asked_for_with_numpys = {"token", "is_changed", "assign", "describe", "view", "to_numpy", "from_numpy"}
    made_of_others = {"is_tensor", "is_model", "rng_state", "set_rng_state", "info"}
    every = {name for name, value in vars(FrameworkAdapter).items() if callable(value) and not name.startswith("_")}
    assert every - asked_for_with_numpys - made_of_others <= named_there
    assert set(FrameworkAdapter.__abstractmethods__) == {"values_of", "tensor_of", "fitted"}
