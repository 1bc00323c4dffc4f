"""Observing changes nothing: outputs, generators, classes, attributes and switches are those of the bare run."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest

import tracediff as td
from tracediff.observe import Observer, observe, record
from tracediff.observe.observer import Boundary


class Sites(Observer):
    """Keeps what it was shown, with a copy of the values."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.values: dict[tuple[str, str], Any] = {}

    def start(self, run: Any) -> None:
        self.run = run

    def see(self, boundary: Boundary) -> None:
        self.seen.append((boundary.site, boundary.moment, boundary.call))
        for end, tensor in boundary.leaves:
            self.values[boundary.call, end] = tensor if isinstance(tensor, str) else self.run.adapter.to_numpy(tensor)

    def sites(self, moment: str = "leave") -> list[str]:
        return [site for site, when, _ in self.seen if when == moment]


MODELS = ["Net", "Holder", "Attention", "Middle", "Changed", "Draws", "Dropping"]


def flat(side: SimpleNamespace, value: Any) -> list[np.ndarray[Any, Any]]:
    return [side.numpy(part) for part in (value if isinstance(value, tuple) else (value,))]


def state_of(model: Any, side: SimpleNamespace) -> list[Any]:
    """Everything about a model's objects and classes that a session might leave behind."""
    modules = [module for _, module in model.named_modules()]
    classes = {cls for module in modules for cls in type(module).__mro__}
    return [
        [(type(module), dict(vars(module)).keys()) for module in modules],
        {(cls, name): value for cls in classes for name, value in vars(cls).items() if name in ("__call__", "forward")},
        repr(model),
    ]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_generators_are_bit_for_bit_those_of_the_bare_run(side: SimpleNamespace, x: Any, name: str) -> None:
    model = getattr(side, name)()
    side.seed(1)
    bare = flat(side, model(copy.copy(x)))
    after = side.numpy(side.normal(5))
    before = state_of(model, side)
    side.seed(1)
    seen = flat(side, observe(model, lambda: model(copy.copy(x)), [Sites()]))
    assert [part.tobytes() for part in seen] == [part.tobytes() for part in bare]
    assert side.numpy(side.normal(5)).tobytes() == after.tobytes()
    assert state_of(model, side) == before


def test_functions_are_put_back(side: SimpleNamespace, x: Any) -> None:
    before = [getattr(owner, name) for owner, name in patched(side)]
    during: list[Any] = []
    observe(side.Net(), lambda: during.extend(getattr(owner, name) for owner, name in patched(side)), [Sites()])
    assert all(new is not old for new, old in zip(during, before, strict=True))
    assert [getattr(owner, name) for owner, name in patched(side)] == before


def patched(side: SimpleNamespace) -> list[tuple[Any, str]]:
    if side.name == "torch":
        import torch

        return [(torch.nn.functional, "softmax"), (torch, "randn"), (torch.Tensor, "uniform_"), (torch.nn.functional, "dropout")]
    import mlx.core as mx

    return [(mx, "softmax"), (mx.random, "normal"), (mx.fast, "scaled_dot_product_attention"), (mx, "compile")]


def test_inherited_attributes_are_removed_and_not_replaced_by_copies() -> None:
    torch = pytest.importorskip("torch")
    before = set(vars(torch.Tensor))
    observe(torch.nn.Linear(2, 2), lambda: None, [Sites()])
    assert set(vars(torch.Tensor)) == before


def test_an_exception_passes_unchanged_and_everything_is_put_back(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Failing(), Sites()
    before = state_of(model, side)
    with pytest.raises(ValueError, match="no such axis"):
        observe(model, lambda: model(x), [sites])
    assert state_of(model, side) == before
    assert sites.sites("raise") == ["broken", ""]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_early_puts_everything_back(side: SimpleNamespace, x: Any, error: type[BaseException]) -> None:
    model = side.Net()
    before = state_of(model, side)

    def leave_early() -> None:
        with record(model, [Sites()]):
            model(x)
            raise error

    with pytest.raises(error):
        leave_early()
    assert state_of(model, side) == before
    assert td.tap("free", x) is x


def test_an_inner_session_leaves_the_outer_one_in_place(side: SimpleNamespace, x: Any) -> None:
    model, outer, inner = side.Net(), Sites(), Sites()
    bare = side.numpy(model(x))
    with record(model, [outer]):
        model(x)
        with record(model, [inner]):
            assert side.numpy(model(x)).tobytes() == bare.tobytes()
        model(x)
    assert outer.sites().count("first.lin") == 3
    assert inner.sites().count("first.lin") == 1
    assert [call for site, moment, call in inner.seen if (site, moment) == ("", "leave")] == ["[0]"]


def test_sessions_that_do_not_nest_are_both_complete(side: SimpleNamespace, x: Any) -> None:
    model, one, two = side.Net(), Sites(), Sites()
    before = state_of(model, side)
    first, second = record(model, [one]), record(model, [two])
    first.__enter__()
    second.__enter__()
    model(x)
    first.__exit__(None, None, None)
    model(x)
    second.__exit__(None, None, None)
    assert (one.sites().count(""), two.sites().count("")) == (1, 2)
    assert state_of(model, side) == before


@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_made_during_the_run_is_a_plain_module(side: SimpleNamespace, x: Any, way: str, monkeypatch: Any) -> None:
    model, sites = side.Block(), Sites()
    monkeypatch.setattr(models, "Block", type(model), raising=False)
    type(model).__qualname__ = "Block"
    copies: list[Any] = []

    def run() -> Any:
        copies.append(copy.deepcopy(model) if way == "copied" else pickle.loads(pickle.dumps(model)))
        for name in ("weight", "bias"):
            values = getattr(copies[0].lin, name)
            setattr(copies[0].lin, name, side.nn.Parameter(values * 0) if side.name == "torch" else values * 0)
        return copies[0](x), model(x)

    with_copy, own = observe(model, run, [sites])
    assert (side.numpy(with_copy) == side.numpy(x)).all()
    assert (side.numpy(own) != side.numpy(x)).any()
    assert sites.sites() == ["lin", ""]
    assert type(copies[0]) is type(model)
    assert (side.numpy(copies[0](x)) == side.numpy(x)).all()


def test_a_shallow_copy_uses_its_own_parts(side: SimpleNamespace, x: Any) -> None:
    model = side.Block()

    mine = side.nn.Linear(4, 4)

    def run() -> Any:
        other = copy.copy(model)
        if side.name == "torch":
            other._modules = dict(other._modules)
        other.lin = mine
        return other(x)

    assert (side.numpy(observe(model, run, [Sites()])) == side.numpy(x + side.tanh(mine(x)))).all()


def test_types_are_what_they_are_during_the_run(side: SimpleNamespace, x: Any) -> None:
    model = side.Holder()
    types = [type(module) for _, module in model.named_modules()]

    def run() -> Any:
        assert [type(module) for _, module in model.named_modules()] == types
        assert repr(model) == printed

    printed = repr(model)
    observe(model, run, [Sites()])


def test_modules_run_by_other_threads_are_seen_and_bystanders_are_not(side: SimpleNamespace, x: Any) -> None:
    model, bystander, sites = side.Block(), side.Block(), Sites()

    def run() -> Any:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda _: side.numpy(model(x)), range(6)))
            list(pool.map(lambda _: side.numpy(bystander(x)), range(6)))
            pool.submit(side.normal, 3).result()

    for module in (model, bystander):
        side.numpy(module(x))  # MLX's lazy weights belong to the thread that made them
    observe(model, run, [sites])
    assert sites.sites().count("") == 6
    assert sites.sites().count("lin") == 6
    assert sorted({call for site, _, call in sites.seen if site == ""}) == [f"[{n}]" for n in range(6)]
    assert all("random" not in site for site, _, _ in sites.seen)


def test_what_an_observer_runs_is_not_observed(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()

    class Nosy(Sites):
        def see(self, boundary: Boundary) -> None:
            super().see(boundary)
            model(x)
            side.normal(2)

    nosy = Nosy()
    observe(model, lambda: model(x), [nosy])
    assert nosy.sites().count("") == 1


def test_what_an_observer_raises_arrives_even_where_the_model_catches_it(side: SimpleNamespace, x: Any) -> None:
    class Full(Observer):
        def see(self, boundary: Boundary) -> None:
            raise OSError("disk full")

    model = side.Net()
    with pytest.raises(OSError, match="disk full"):
        observe(model, lambda: contextlib.suppress(OSError).__enter__() or _swallow(model, x), [Full()])


def _swallow(model: Any, x: Any) -> None:
    with contextlib.suppress(OSError):
        model(x)


def test_observers_are_finished_also_where_a_later_one_cannot_start(side: SimpleNamespace) -> None:
    finished = []

    class Good(Observer):
        def finish(self, run: Any) -> None:
            finished.append("good")

    class Bad(Observer):
        def start(self, run: Any) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        observe(side.Net(), lambda: None, [Good(), Bad()])
    assert finished == ["good"]


def test_taps_scopes_and_stages_do_nothing_where_nothing_observes(x: Any) -> None:
    with td.stage("a"), td.scope("n", 1):
        assert td.tap("x", x) is x
        assert td.tap("text", "hello") == "hello"


def test_a_thread_of_its_own_sees_no_taps(side: SimpleNamespace, x: Any) -> None:
    sites = Sites()

    def run() -> None:
        thread = threading.Thread(target=lambda: td.tap("elsewhere", x))
        thread.start()
        thread.join()

    observe(side.Net(), run, [sites])
    assert sites.seen == []
