"""force: a port that is fed the reference's tensors shows each fault where it is made, whatever its containers, and else nothing."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.alignment.axes import likely_axes
from tracediff.report import Report
from tracediff.trace import schema

WIDTH = 8
X = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)


@dataclasses.dataclass
class Output:
    """What a module returns that answers to names, as models of `transformers` do."""

    hidden: Any
    extras: Any = None


class Fields(OrderedDict):  # type: ignore[type-arg]
    """A mapping whose values are attributes too, like a ModelOutput."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Cache:
    """Keys and values of earlier steps; no container that a trace looks into."""

    def __init__(self) -> None:
        self.keys: Any = None

    def add(self, keys: Any, join: Callable[[list[Any]], Any]) -> Any:
        self.keys = keys if self.keys is None else join([self.keys, keys])
        return self.keys


def fill(side: SimpleNamespace, model: Any, seed: int = 0) -> Any:
    """The model with weights that depend on the seed and their names only, alike on both sides."""
    values = {
        name: np.random.default_rng([seed, *name.encode()]).standard_normal(shape).astype(np.float32) / np.sqrt(WIDTH)
        for name, shape in shapes(side, model).items()
    }
    load(side, model, values)
    model.eval()
    return model


def shapes(side: SimpleNamespace, model: Any) -> dict[str, tuple[int, ...]]:
    if side.name == "torch":
        return {name: tuple(value.shape) for name, value in model.state_dict().items()}
    from mlx.utils import tree_flatten

    return {name: tuple(value.shape) for name, value in tree_flatten(model.parameters())}


def load(side: SimpleNamespace, model: Any, values: dict[str, np.ndarray[Any, Any]]) -> None:
    if side.name == "torch":
        model.load_state_dict({name: side.array(value) for name, value in values.items()})
    else:
        model.load_weights([(name, side.array(value)) for name, value in values.items()])


def add(model: Any, name: str, child: Any) -> None:
    setattr(model, name, child)


def net(side: SimpleNamespace, forward: Callable[..., Any], **children: Any) -> Any:
    """A module with these children, whose forward is the function given."""

    class Net(side.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            for name, child in children.items():
                setattr(self, name, child)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return forward(self, *args, **kwargs)

    return Net()


def linear(side: SimpleNamespace) -> Any:
    return side.nn.Linear(WIDTH, WIDTH)


def plain(side: SimpleNamespace) -> Any:
    """Three layers with a tanh after each."""

    def forward(self: Any, x: Any) -> Any:
        for layer in (self.first, self.second, self.third):
            x = side.tanh(layer(x))
        return x

    return net(side, forward, first=linear(side), second=linear(side), third=linear(side))


def scaled(side: SimpleNamespace, layer: Any, factor: float = 1.5) -> Any:
    """A layer whose result is a planted fault too large."""
    load(side, layer, {"weight": side.numpy(layer.weight) * np.float32(factor), "bias": side.numpy(layer.bias)})
    return layer


def raising(side: SimpleNamespace, layer: Any, error: Exception | None = None) -> Any:
    """A layer with the same weights, which raises."""

    def forward(self: Any, *args: Any) -> Any:
        raise error or ValueError("no such axis: 7")

    return owning(side, layer, forward)


def owning(side: SimpleNamespace, layer: Any, forward: Callable[..., Any]) -> Any:
    """A module with the weights of a layer, and a forward of its own."""
    module = net(side, forward)
    module.weight, module.bias = layer.weight, layer.bias
    module.eval()
    return module


@pytest.fixture
def forced(side: SimpleNamespace, tmp_path: Path) -> Callable[..., Report]:
    """Captures a reference and a port of one framework, the port fed, and compares them."""

    def run(reference: Any, port: Any, inputs: Any = X, port_inputs: Any = None, raises: type[Exception] | None = None) -> Report:
        td.capture(reference, inputs, to=tmp_path / "ref.h5", floor=False, repeat=False, force=True).close()
        given = inputs if port_inputs is None else port_inputs
        if raises is None:
            td.capture(port, given, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5", force=True).close()
        else:
            with pytest.raises(raises):
                td.capture(port, given, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5", force=True)
        return td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")

    return run


def culprits(report: Report) -> list[tuple[str, str]]:
    return [(divergence.culprit.reference, divergence.culprit.port) for divergence in report.divergences]


def cause(report: Report, place: int = 0) -> str:
    kinds = [found.kind for found in report.divergences[place].causes]
    return "raised" if "raised" in kinds else kinds[0] if kinds else ""


def evidence(report: Report, kind: str = "raised") -> str:
    return next(found.evidence for divergence in report.divergences for found in divergence.causes if found.kind == kind)


# ------------------------------------------------------------------------------------------------------ calls that raise


def test_a_call_that_raises_is_the_finding_with_its_arguments_and_the_run_goes_on(
    side: SimpleNamespace, forced: Any, tmp_path: Path
) -> None:
    port = fill(side, plain(side))
    port.second = raising(side, port.second)
    report = forced(fill(side, plain(side)), port)
    assert report.verdict == "different"
    assert culprits(report) == [("second", "second")]
    assert cause(report) == "raised"
    told = evidence(report)
    assert "raised ValueError: no such axis: 7 at " in told
    assert "test_runs_forcing.py:" in told
    assert "arguments: reference [0] (3, 8) float32, port [0] (3, 8) float32" in told
    assert "went on with what the reference returned" in told
    assert report.first is not None
    assert report.first.last_same is not None
    assert report.first.last_same.reference == "second"
    with td.open_trace(tmp_path / "port.h5") as trace:
        assert trace.complete
        assert trace.meta["raised"] == ["[0]/second[0]"]
        assert [record.site for record in trace.records if record.flags & schema.RAISED] == ["second"]
        assert trace.records[-1].site == ""
    assert "raised ValueError: no such axis: 7" in str(report).splitlines()[0]


def test_a_fault_behind_a_call_that_raises_is_named_too(side: SimpleNamespace, forced: Any) -> None:
    port = fill(side, plain(side))
    port.first = raising(side, port.first)
    scaled(side, port.third)
    report = forced(fill(side, plain(side)), port)
    assert culprits(report) == [("first", "first"), ("third", "third")]
    assert cause(report) == "raised"


def test_an_exception_from_deep_inside_is_one_finding_at_the_innermost_paired_call(side: SimpleNamespace, forced: Any) -> None:
    def model() -> Any:
        inner = plain(side)
        middle = net(side, lambda self, x: self.inner(x) + x, inner=inner)
        return fill(side, net(side, lambda self, x: self.last(self.middle(x)), middle=middle, last=linear(side)))

    port = model()
    port.middle.inner.second = raising(side, port.middle.inner.second)
    report = forced(model(), port)
    assert culprits(report) == [("middle.inner.second", "middle.inner.second")]


def test_an_exception_in_a_module_without_partner_is_charged_to_the_nearest_paired_caller(side: SimpleNamespace, forced: Any) -> None:
    def block(extra: Any) -> Any:
        return net(
            side, lambda self, x: self.extra(self.lin(x)) if extra is not None else side.tanh(self.lin(x)), lin=linear(side), extra=extra
        )

    def model(extra: Any = None) -> Any:
        return fill(side, net(side, lambda self, x: self.last(self.block(x)), block=block(extra), last=linear(side)))

    broken = net(side, lambda self, x: 1 / 0)
    report = forced(model(), model(broken))
    assert culprits(report) == [("block", "block")]
    assert "ZeroDivisionError" in evidence(report)


def test_a_free_run_that_ends_with_an_exception_says_where_it_stopped(side: SimpleNamespace, tmp_path: Path) -> None:
    port = fill(side, plain(side))
    port.second = raising(side, port.second)
    td.capture(fill(side, plain(side)), X, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    with pytest.raises(ValueError, match="no such axis"):
        td.capture(port, X, to=tmp_path / "free.h5")
    for scan in (False, True):
        report = td.bisect(tmp_path / "ref.h5", tmp_path / "free.h5", scan=scan)
        assert report.verdict == "different"
        assert culprits(report) == [("second", "second")]
        assert cause(report) == "raised"
        assert "The port's run did not come to its end" in str(report)


def test_an_exception_between_the_calls_of_a_free_run_stands_beside_what_the_reference_did_next(
    side: SimpleNamespace, tmp_path: Path
) -> None:
    parts = {name: fill(side, linear(side)) for name in ("encoder", "decoder")}

    def run(is_broken: bool) -> Any:
        hidden = parts["encoder"](side.array(X))
        if is_broken:
            raise RuntimeError("cannot be reshaped")
        return parts["decoder"](hidden)

    td.capture(parts, lambda: run(False), to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    with pytest.raises(RuntimeError, match="reshaped"):
        td.capture(parts, lambda: run(True), to=tmp_path / "free.h5")
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "free.h5")
    assert report.verdict == "different"
    assert report.first is not None
    assert report.first.site.reference == "decoder"
    assert report.first.last_same is not None
    assert report.first.last_same.reference == "encoder"
    assert "RuntimeError: cannot be reshaped" in evidence(report)


def test_so_does_a_call_that_raises_with_another_shape_though_it_could_be_bridged(side: SimpleNamespace, forced: Any) -> None:
    def forward(self: Any, x: Any, rows: int) -> Any:
        y = self.first(x)
        if y.shape[0] != rows:
            raise ValueError("made for another length")
        return self.second(y)

    def model(rows: int) -> Any:
        made = fill(side, net(side, lambda self, x: forward(self, x, rows), first=linear(side), second=linear(side)))
        if rows < len(X):
            made.first = owning(side, made.first, lambda layer, x: (x @ layer.weight.T + layer.bias)[:rows])
            scaled(side, made.second)
        return fill_outer(made)

    def fill_outer(inner: Any) -> Any:
        return net(side, lambda self, x: self.inner(x), inner=inner)

    report = forced(model(len(X)), model(len(X) - 1))
    assert culprits(report)[:1] == [("inner.first", "inner.first")]
    assert any(row.where.reference == "inner.second" and row.where.end == "output" for row in report.rows)
    assert "raised" not in [cause.kind for divergence in report.divergences for cause in divergence.causes]


def test_a_forced_run_that_nothing_can_bridge_keeps_its_trace_and_the_finding(side: SimpleNamespace, forced: Any) -> None:
    parts = {name: fill(side, linear(side)) for name in ("encoder", "decoder")}

    def run(is_broken: bool) -> Any:
        hidden = parts["encoder"](side.array(X))
        if is_broken:
            raise RuntimeError("cannot be reshaped")
        return parts["decoder"](hidden)

    report = forced(parts, parts, lambda: run(False), lambda: run(True), raises=RuntimeError)
    assert report.mode == "forced"
    assert report.verdict == "different"
    assert cause(report) == "raised"


def test_what_a_caller_catches_is_no_divergence_where_all_it_returns_agrees(side: SimpleNamespace, tmp_path: Path) -> None:
    def forward(self: Any, x: Any) -> Any:
        try:
            y = self.fast(x)
        except ValueError:
            y = self.slow(x)
        return side.tanh(y)

    def model(*, can_be_fast: bool) -> Any:
        made = fill(side, net(side, forward, fast=linear(side), slow=linear(side)))
        load(side, made.slow, {"weight": side.numpy(made.fast.weight), "bias": side.numpy(made.fast.bias)})
        made.fast = made.fast if can_be_fast else raising(side, made.fast)
        return made

    td.capture(model(can_be_fast=True), X, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    td.capture(model(can_be_fast=False), X, to=tmp_path / "port.h5", floor=False, repeat=False).close()
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "same"


def test_only_the_call_that_raises_is_bridged_where_a_module_is_called_in_a_loop(side: SimpleNamespace, forced: Any) -> None:
    calls: list[int] = []

    def forward(self: Any, x: Any) -> Any:
        calls.clear()
        for _ in range(4):
            x = side.tanh(self.step(x))
        return x

    def model(step: Any) -> Any:
        return net(side, forward, step=step)

    layer = fill(side, linear(side))

    def third_fails(self: Any, x: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("the third time")
        return self.lin(x)

    report = forced(model(net(side, lambda self, x: self.lin(x), lin=layer)), model(net(side, third_fails, lin=layer)))
    assert [(divergence.site.port, divergence.site.call) for divergence in report.divergences] == [("step", "[0]/step[2]")]


# ------------------------------------------------------------------------------------------------ shapes that nothing reconciles


def test_a_shape_that_no_layout_reconciles_is_one_finding_and_the_run_goes_on(side: SimpleNamespace, forced: Any) -> None:
    port = fill(side, plain(side))
    port.second = owning(side, port.second, lambda layer, x: (x @ layer.weight.T + layer.bias)[:2])
    scaled(side, port.third)
    report = forced(fill(side, plain(side)), port)
    first, second = report.divergences
    assert first.culprit.reference == "second"
    assert first.shapes == {"reference": (3, 8), "port": (2, 8)}
    assert (second.culprit.reference, second.shapes["port"]) == ("third", (3, 8))
    assert {row.how for row in report.rows if row.introduced} == {"shape", "read"}


def test_a_port_that_only_gets_along_with_its_own_shape_keeps_it(side: SimpleNamespace, tmp_path: Path) -> None:
    def parts() -> dict[str, Any]:
        return {name: fill(side, linear(side)) for name in ("first", "second")}

    reference, port = parts(), parts()
    rows = len(X) - 1
    port["first"] = owning(side, port["first"], lambda layer, x: (x @ layer.weight.T + layer.bias)[:rows])
    scaled(side, port["second"])

    def run_port() -> Any:
        y = port["first"](side.array(X))
        if y.shape[0] != rows:
            raise ValueError("made for another length")
        return port["second"](y)

    def run_reference() -> Any:
        return reference["second"](reference["first"](side.array(X)))

    td.capture(reference, run_reference, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    td.capture(port, run_port, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.first is not None
    assert report.first.culprit.reference == "first"


def test_a_shape_that_goes_wrong_between_two_calls_is_one_finding_too(side: SimpleNamespace, forced: Any) -> None:
    def model(rows: int) -> Any:
        parts = {name: linear(side) for name in ("first", "second", "third")}
        return fill(side, net(side, lambda self, x: self.third(self.second(self.first(x)[:rows])), **parts))

    port = model(2)
    scaled(side, port.third)
    report = forced(model(3), port)
    assert culprits(report) == [("", ""), ("third", "third")]
    assert report.divergences[0].site.reference == "second"


def test_the_axes_of_a_tensor_of_another_shape_are_taken_in_the_order_in_which_lengths_agree() -> None:
    assert likely_axes((2, 80, 100), (2, 101, 80)) == (0, 2, 1)
    assert likely_axes((2, 80, 100), (2, 80, 101)) == (0, 1, 2)
    assert likely_axes((4, 5), (4, 5, 1)) == (0, 1)


# --------------------------------------------------------------------------------------------------- containers and arguments


def nested(side: SimpleNamespace, kind: str) -> Callable[[], Any]:
    """Models that hand tensors on in containers of one kind."""

    def wrap(y: Any, x: Any) -> Any:
        made: dict[str, Callable[[], Any]] = {
            "tuple": lambda: (y, (x, y)),
            "list": lambda: [y, [x, y]],
            "dict": lambda: {"hidden": y, "more": {"x": x}},
            "dataclass": lambda: Output(y, {"x": x}),
            "fields": lambda: Fields(hidden=y, x=x),
        }
        return made[kind]()

    def hidden(value: Any) -> Any:
        return value[0] if kind in ("tuple", "list") else value["hidden"] if kind == "dict" else value.hidden

    def model() -> Any:
        inner = net(side, lambda self, given, *, options: wrap(self.lin(given[0]) + options["bias"][0], given[1]), lin=linear(side))
        outer = net(
            side,
            lambda self, x: self.last(hidden(self.inner((self.first(x), x), options={"bias": [x, None, 3]}))),
            first=linear(side),
            inner=inner,
            last=linear(side),
        )
        return fill(side, outer)

    return model


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "dataclass", "fields"])
def test_tensors_in_containers_and_keywords_are_forced(side: SimpleNamespace, forced: Any, kind: str) -> None:
    model = nested(side, kind)
    clean = forced(model(), model())
    assert (clean.verdict, clean.mode) == ("same", "forced")
    port = model()
    scaled(side, port.first)
    scaled(side, port.inner.lin)
    assert culprits(forced(model(), port)) == [("first", "first"), ("inner.lin", "inner.lin")]


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "dataclass", "fields"])
def test_a_call_that_raises_is_bridged_with_what_its_caller_can_take_apart(side: SimpleNamespace, forced: Any, kind: str) -> None:
    model = nested(side, kind)
    port = model()
    port.inner.lin = raising(side, port.inner.lin)
    assert culprits(forced(model(), port)) == [("inner.lin", "inner.lin")]
    port = model()

    def forward(self: Any, given: Any, *, options: Any) -> Any:
        raise TypeError("unexpected keyword")

    port.inner = net(side, forward, lin=port.inner.lin)
    report = forced(model(), port)
    assert culprits(report) == [("inner", "inner")]
    assert "[options].bias[0] (3, 8) float32" in evidence(report)


# --------------------------------------------------------------------------------------------------- in-place programs and caches


def in_place(side: SimpleNamespace) -> Any:
    """Changes what it was handed, and goes on with it."""

    def change(self: Any, x: Any) -> Any:
        y = self.lin(x)
        side.add_in_place(x, 1.0)
        side.set_item(x, 0, 7.0)
        return y

    def forward(self: Any, x: Any) -> Any:
        h = self.first(x)
        y = self.change(h)
        h = side.add_in_place(h, 0.5)
        return self.last(h) + y

    return fill(side, net(side, forward, first=linear(side), change=net(side, change, lin=linear(side)), last=linear(side)))


def test_a_tensor_that_is_changed_after_it_was_handed_over_does_not_change_the_reference(side: SimpleNamespace, forced: Any) -> None:
    for _ in range(2):  # the second time all is as at first
        assert forced(in_place(side), in_place(side)).verdict == "same"
    port = in_place(side)
    scaled(side, port.change.lin)
    assert culprits(forced(in_place(side), port)) == [("change.lin", "change.lin")]


def test_a_change_in_place_that_one_side_leaves_out_is_charged_to_the_call_that_makes_it(side: SimpleNamespace, forced: Any) -> None:
    port = in_place(side)
    lin = port.change.lin

    def forgets(self: Any, x: Any) -> Any:
        y = self.lin(x)
        side.set_item(x, 0, 7.0)
        return y

    port.change = net(side, forgets, lin=lin)
    assert culprits(forced(in_place(side), port)) == [("change", "change")]


def decoder(side: SimpleNamespace, join: Callable[[list[Any]], Any], scale: float = 1.0) -> Any:
    """Attention over a cache that grows by one step each call."""

    def attend(self: Any, x: Any, cache: Any) -> Any:
        q, k = self.q(x), self.k(x)
        keys = cache.add(k, join)
        return side.attention(q[None, None] * scale, keys[None, None], keys[None, None])[0, 0]

    def forward(self: Any, x: Any) -> Any:
        cache, out = Cache(), x[:1]
        for step in range(3):
            with td.scope("token", step):
                out = self.last(self.attention(out, cache=cache))
        return out

    attention = net(side, attend, q=linear(side), k=linear(side))
    return fill(side, net(side, forward, attention=attention, last=linear(side)))


def join_of(side: SimpleNamespace) -> Callable[[list[Any]], Any]:
    if side.name == "torch":
        import torch

        return lambda parts: torch.cat(parts, 0)
    import mlx.core as mx

    return lambda parts: mx.concatenate(parts, 0)


def test_a_cache_object_stays_what_it_is_and_faults_around_it_are_named(side: SimpleNamespace, forced: Any) -> None:
    join = join_of(side)
    assert forced(decoder(side, join), decoder(side, join)).verdict == "same"
    port = decoder(side, join)
    scaled(side, port.attention.k)
    assert culprits(forced(decoder(side, join), port)) == [("attention.k", "attention.k")]
    report = forced(decoder(side, join), decoder(side, join, scale=2.0))
    assert culprits(report) == [("attention", "attention")]


def test_a_cache_that_forgets_shows_at_the_attention_that_reads_it(side: SimpleNamespace, forced: Any) -> None:
    report = forced(decoder(side, join_of(side)), decoder(side, lambda parts: parts[-1]))
    assert report.verdict == "different"
    assert report.first is not None
    assert report.first.culprit.reference == "attention"
    assert "token=1" in report.first.site.call


# ------------------------------------------------------------------------------------------------------ loops and shared modules


def test_a_shared_module_in_a_loop_is_forced_at_every_call(side: SimpleNamespace, forced: Any) -> None:
    def model(factor: float = 1.0) -> Any:
        shared = linear(side)

        def forward(self: Any, x: Any) -> Any:
            for step in range(3):
                x = side.tanh(self.a(x)) + side.tanh(self.b(x)) * (factor if step == 1 else 1.0)
            return x

        return fill(side, net(side, forward, a=shared, b=shared))

    assert forced(model(), model()).verdict == "same"
    report = forced(model(), model(1.5))
    assert culprits(report) == [("", "")]
    assert report.first is not None
    assert report.first.site.call == "[0]/a[4]"


# --------------------------------------------------------------------------------- a refactor against its original, quantised models


def test_a_refactor_with_renamed_and_fused_modules_agrees_with_its_original_and_its_faults_are_named(
    side: SimpleNamespace, forced: Any
) -> None:
    def attend(q: Any, k: Any, v: Any) -> Any:
        return side.attention(q[None, None], k[None, None], v[None, None])[0, 0]

    def original() -> Any:
        attention = net(
            side,
            lambda self, x: self.out(attend(self.q(x), self.k(x), self.v(x))),
            **{name: linear(side) for name in ("q", "k", "v", "out")},
        )
        return fill(side, net(side, lambda self, x: self.up(self.attention(x) + x), attention=attention, up=linear(side)))

    def refactored() -> Any:
        model = original()
        fused = side.nn.Linear(WIDTH, 3 * WIDTH)
        parts = [getattr(model.attention, name) for name in ("q", "k", "v")]
        load(side, fused, {what: np.concatenate([side.numpy(getattr(part, what)) for part in parts]) for what in ("weight", "bias")})

        def forward(self: Any, x: Any) -> Any:
            both = self.qkv(x)
            return self.proj(attend(both[:, :WIDTH], both[:, WIDTH : 2 * WIDTH], both[:, 2 * WIDTH :]))

        mixer = net(side, forward, qkv=fused, proj=model.attention.out)
        return net(side, lambda self, x: self.dense(self.mixer(x) + x), mixer=mixer, dense=model.up)

    assert forced(original(), refactored()).verdict == "same"
    port = refactored()
    scaled(side, port.mixer.proj)
    assert culprits(forced(original(), port)) == [("attention.out", "mixer.proj")]
    port = refactored()
    weight = np.array(side.numpy(port.mixer.qkv.weight))
    weight[WIDTH : 2 * WIDTH] *= 1.5
    load(side, port.mixer.qkv, {"weight": weight, "bias": side.numpy(port.mixer.qkv.bias)})
    assert culprits(forced(original(), port)) == [("attention.k", "mixer.qkv")]


def test_a_quantised_model_shows_its_rounding_at_the_quantised_layers_only_and_a_fault_beside_them(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")

    def model(*, quantised: bool = False, factor: float = 1.0) -> Any:
        mx.random.seed(0)
        made = nn.Sequential(nn.Linear(64, 64), nn.RMSNorm(64), nn.Linear(64, 64), nn.RMSNorm(64))
        made.layers[3].weight = made.layers[3].weight * factor
        if quantised:
            nn.quantize(made, group_size=64, bits=8)
        made.eval()
        return made

    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    td.capture(model(), x, to=tmp_path / "ref.h5", repeat=False).close()
    td.capture(model(quantised=True, factor=1.2), x, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
    found = {divergence.culprit.port: divergence.introduced for divergence in report.divergences}
    assert list(found) == ["layers.3"]
    assert abs(found["layers.3"] - 0.2) < 1e-3
    quantised = {one.where.port: one.introduced for one in report.quantised}
    assert list(quantised) == ["layers.0", "layers.2"]
    assert 1e-4 < quantised["layers.0"] < 2e-2
    loose = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5", rtol=0.02, atol=0.02)
    assert culprits(loose) == [("layers.3", "layers.3")]


# ------------------------------------------------------------------------------------------------------------- across frameworks


def test_a_port_in_another_framework_is_bridged_in_its_own_layout(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")
    torch.manual_seed(0)
    reference = torch.nn.Sequential(OrderedDict(a=torch.nn.Conv1d(4, 6, 3, padding=1), b=torch.nn.Conv1d(6, 6, 3, padding=1))).eval()

    class Port(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
            for name in ("a", "b"):
                mine, theirs = getattr(self, name), getattr(reference, name)
                mine.weight = mx.array(theirs.weight.detach().numpy().transpose(0, 2, 1))
                mine.bias = mx.array(theirs.bias.detach().numpy())

        def __call__(self, x: Any) -> Any:
            return self.b(self.a(x.transpose(0, 2, 1))).transpose(0, 2, 1)

    x = np.random.default_rng(0).standard_normal((2, 4, 20)).astype(np.float32)
    td.capture(reference, x, to=tmp_path / "ref.h5").close()
    for fault in ("", "b"):
        port = Port()
        port.eval()
        if fault:
            port.b.bias = port.b.bias + 0.1
        td.capture(port, x, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5", force=True).close()
        report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
        assert [culprit for culprit, _ in culprits(report)] == ([fault] if fault else [])


def test_a_free_run_that_raises_in_a_later_call_of_a_loop_is_paired_with_that_call(side: SimpleNamespace, tmp_path: Path) -> None:
    calls: list[int] = []

    def forward(self: Any, x: Any) -> Any:
        calls.clear()
        for _ in range(5):
            x = side.tanh(self.step(x))
        return x

    def third_fails(self: Any, x: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("the third time")
        return x @ self.weight.T + self.bias

    layer = fill(side, linear(side))
    td.capture(net(side, forward, step=layer), X, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    with pytest.raises(ValueError, match="third"):
        td.capture(net(side, forward, step=owning(side, layer, third_fails)), X, to=tmp_path / "free.h5", floor=False)
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "free.h5")
    assert [(divergence.site.call, cause(report)) for divergence in report.divergences] == [("[0]/step[2]", "raised")]
