"""What only MLX does: lazy arrays that are overwritten, classes, compilation, transformations, dtypes, its random functions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from test_observe_inert import Sites
from test_observe_replace import Answers

import tracediff as td
from tracediff.observe import observe, record
from tracediff.observe.adapters.registry import named
from tracediff.site import RETURNED
from tracediff.trace import open_trace

mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    mx.random.seed(0)


class Net(nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Sequential(nn.Linear(4, 4), nn.GELU())

    def __call__(self, x: Any) -> Any:
        return self.b(self.a(x))


class Base(nn.Module):  # type: ignore[misc, name-defined]
    def __call__(self, x: Any) -> Any:
        return x + 1


class Derived(Base):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 2


def same(a: Any, b: Any) -> bool:
    return bool(mx.array_equal(a, b).item())


X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)


def test_a_call_handed_up_to_the_base_class_is_one_call() -> None:
    model, sites = Derived(), Sites()
    observe({"m": model}, lambda: model(mx.ones(2)), [sites])
    assert sites.sites() == ["m"]


def test_other_instances_of_an_observed_class_are_not_seen() -> None:
    model, other, sites = nn.Linear(4, 4), nn.Linear(4, 4), Sites()
    observe({"m": model}, lambda: other(model(mx.array(X))), [sites])
    assert sites.sites() == ["m"]


def test_classes_are_as_before_during_and_after() -> None:
    net = Net()
    calls = {cls: vars(cls)["__call__"] for cls in (Net, nn.Linear, nn.Sequential)}

    def run() -> None:
        assert (type(net.a) is nn.Linear, nn.Linear.__call__.__name__, nn.Linear.__call__.__doc__) == (
            True,
            "__call__",
            calls[nn.Linear].__doc__,
        )
        assert type(pickle.loads(pickle.dumps(copy.deepcopy(net.a)))) is nn.Linear

    observe(net, run, [Sites()])
    assert {cls: vars(cls)["__call__"] for cls in calls} == calls


def test_snapshots_are_exact_under_in_place_updates(tmp_path: Path) -> None:
    net, x = nn.Identity(), mx.array(X)

    def run() -> None:
        nonlocal x
        net(x)
        x += 1
        net(x)
        x[0] = 5
        net(x)
        x = mx.array(X)
        net(x)

    with record(net, tmp_path / "x.h5"):
        run()
    values = [r.read() for r in open_trace(tmp_path / "x.h5").records if r.end == "input[0]"]
    expected = [X, X + 1, np.vstack([np.full((1, 4), 5, np.float32), X[1:] + 1]), X]
    assert all(np.array_equal(value, other) for value, other in zip(values, expected, strict=True))


def test_a_change_in_place_is_noticed_even_where_memory_is_used_again() -> None:
    adapter = named("mlx")
    for dtype in (mx.float32, mx.bfloat16, mx.bool_, mx.int8):
        x = mx.ones((64, 64)).astype(dtype)
        mx.eval(x)
        token = adapter.token(x)
        assert not adapter.is_changed(x, token)
        x[0] = 0
        mx.eval(x)
        assert adapter.is_changed(x, token)


def test_tokens_of_views_and_empty_arrays() -> None:
    adapter = named("mlx")
    for x in (mx.zeros((0, 3)), mx.arange(12).reshape(3, 4).T, mx.array(1.5), mx.arange(10)[3:]):
        mx.eval(x)
        assert not adapter.is_changed(x, adapter.token(x))


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16", "float32", "complex64"],
)
def test_every_dtype_goes_to_numpy_and_back_bit_for_bit(dtype: str) -> None:
    adapter = named("mlx")
    kind = mx.bool_ if dtype == "bool" else getattr(mx, dtype)
    bits = mx.tile(mx.arange(256).astype(mx.uint8), 4)
    array = (bits % 2).astype(mx.bool_) if dtype == "bool" else bits.view(kind)
    values = adapter.to_numpy(array)
    assert adapter.describe(array)[:2] == (dtype, tuple(array.shape))
    assert (values.dtype == ml_dtypes.bfloat16) == (dtype == "bfloat16")
    back = adapter.from_numpy(values, array)
    assert back.dtype == kind
    assert same(back.view(mx.uint8), array.view(mx.uint8))


@pytest.fixture
def compiling() -> Callable[[], bool]:
    """Whether `mx.compile` is on, which it is again after the test."""
    from tracediff.observe.adapters.mlx import is_compiling

    mx.enable_compile()
    return is_compiling


def test_compilation_stays_on_where_it_hides_nothing(compiling: Callable[[], bool]) -> None:
    net, sites, during = Net(), Sites(), []
    unrelated = mx.compile(lambda x: mx.exp(x) * 2)

    def run() -> Any:
        during.append(compiling())
        return unrelated(net(mx.array(X)))

    bare = run()
    assert same(observe(net, run, [sites]), bare)
    assert during == [True, True]
    assert sites.run.warnings == []


@pytest.mark.parametrize("how", ["closure", "method", "module", "global", "nested", "partial", "during"])
def test_compilation_is_off_for_the_run_where_it_would_hide_observed_modules(how: str, compiling: Callable[[], bool]) -> None:
    net, sites, during = Net(), Sites(), []
    run_compiled = _compiled(net, how)

    def run() -> Any:
        during.append(compiling())
        return run_compiled(mx.array(X))

    run()
    observe(net, run, [sites])
    assert "a" in sites.sites()
    assert during[0]
    assert compiling()
    assert "mx.compile was off during the run" in sites.run.warnings[0]


GLOBAL_NET = Net()


def _compiled(net: Any, how: str) -> Callable[[Any], Any]:
    import functools

    def inner(x: Any) -> Any:
        return net(x)

    if how == "closure":
        return mx.compile(lambda x: net(x) + 1)  # type: ignore[no-any-return]
    if how == "method":
        return mx.compile(net.__call__)  # type: ignore[no-any-return]
    if how == "module":
        return mx.compile(net)  # type: ignore[no-any-return]
    if how == "global":
        GLOBAL_NET.update(net)
        net.a, net.b = GLOBAL_NET.a, GLOBAL_NET.b
        return mx.compile(_call_global)  # type: ignore[no-any-return]
    if how == "nested":
        return mx.compile(lambda x: inner(x) * 2)  # type: ignore[no-any-return]
    if how == "partial":
        return mx.compile(functools.partial(lambda model, x: model(x), net))  # type: ignore[no-any-return]

    def compile_and_call(x: Any) -> Any:
        return mx.compile(lambda x: net(x) + 1)(x)

    return compile_and_call


def _call_global(x: Any) -> Any:
    return GLOBAL_NET(x)


def test_compilation_that_was_off_stays_off(compiling: Callable[[], bool]) -> None:
    mx.disable_compile()
    net = Net()
    compiled = mx.compile(net)
    observe(net, lambda: compiled(mx.array(X)), [Sites()])
    assert not compiling()
    mx.enable_compile()


def test_compilation_may_be_left_on_and_what_it_hid_is_said(compiling: Callable[[], bool]) -> None:
    net, sites = Net(), Sites()
    compiled = mx.compile(lambda x: mx.random.bernoulli(mx.sigmoid(net(x))))
    observe(net, lambda: compiled(mx.array(X)), [sites], compile=True)
    assert compiling()
    assert [site for site, *_ in sites.seen] == [RETURNED]
    assert any(what.startswith("a input[0]: inside a region compiled by mx.compile") for what in sites.run.not_seen)
    assert any(what.startswith("!random.bernoulli draw: inside") for what in sites.run.not_seen)


def test_a_call_that_is_only_traced_makes_no_run_seem_not_to_repeat(tmp_path: Path) -> None:
    net = Net()
    attended = mx.compile(lambda q, k: mx.fast.scaled_dot_product_attention(q, k, k, scale=0.5))
    shaped = mx.array(X).reshape(1, 1, -1, X.shape[-1])

    def run() -> Any:
        return attended(shaped, shaped) + net(mx.array(X)).sum()

    td.capture(net, run, to=tmp_path / "a.h5", compile=True)
    trace = open_trace(tmp_path / "a.h5")
    assert trace.meta["repeats"]
    assert not [record.site for record in trace.records if record.site.endswith("!attention")]
    assert any("!attention input[q]: inside a region" in what for what in trace.meta["not_seen"])


def test_compilation_is_on_again_after_an_exception(compiling: Callable[[], bool]) -> None:
    net = Net()
    compiled = mx.compile(lambda x: net(x).no_such_attribute)
    with pytest.raises(AttributeError):
        observe(net, lambda: compiled(mx.array(X)), [Sites()])
    assert compiling()


def test_gradients_are_those_of_the_bare_run() -> None:
    net, sites = Net(), Sites()
    gradient = mx.grad(lambda x: net(x).sum())
    bare = gradient(mx.array(X))
    assert same(observe(net, lambda: gradient(mx.array(X)), [sites]), bare)
    assert "a" in sites.sites()


def test_vmap_is_passed_through_and_said() -> None:
    net, sites = Net(), Sites()
    bare = mx.vmap(net)(mx.array(X))
    assert same(observe(net, lambda: mx.vmap(net)(mx.array(X)), [sites]), bare)
    assert any("function transformation" in what for what in sites.run.not_seen)


def test_nothing_is_kept_alive_by_having_been_seen(tmp_path: Path) -> None:
    net = nn.Identity()
    with record(net, tmp_path / "x.h5"):
        net(mx.zeros((1000, 1000)))
        mx.synchronize()
        before = mx.get_active_memory()
        for n in range(20):
            net(mx.full((1000, 1000), float(n)))
        assert mx.get_active_memory() - before < 20e6


RANDOM: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "normal": ("random.normal", lambda: mx.random.normal((3,)), {"mean": 0.0, "std": 1.0, "shape": [3]}),
    "normal scaled": ("random.normal", lambda: mx.random.normal((3,), loc=1.0, scale=2.0), {"mean": 1.0, "std": 2.0}),
    "normal by array": ("random.normal", lambda: mx.random.normal((3,), scale=mx.ones(3)), {"std": "tensor"}),
    "uniform": ("random.uniform", lambda: mx.random.uniform(shape=(3,)), {"low": 0.0, "high": 1.0}),
    "uniform bounds": ("random.uniform", lambda: mx.random.uniform(-1, 2, (3,)), {"low": -1, "high": 2}),
    "uniform by array": ("random.uniform", lambda: mx.random.uniform(mx.array(-1.0), 2, (3,)), {"low": -1.0, "high": 2}),
    "randint": ("random.randint", lambda: mx.random.randint(1, 9, (3,)), {"low": 1, "high": 9, "dtype": "int32"}),
    "categorical": ("random.categorical", lambda: mx.random.categorical(mx.zeros((2, 5))), {"axis": -1}),
    "bernoulli": ("random.bernoulli", lambda: mx.random.bernoulli(0.25, (9,)), {"p": 0.25}),
    "permutation": ("random.permutation", lambda: mx.random.permutation(6), {}),
    "gumbel": ("random.gumbel", lambda: mx.random.gumbel((3,)), {}),
    "truncated_normal": ("random.truncated_normal", lambda: mx.random.truncated_normal(-1.0, 1.0, (3,)), {"lower": -1.0, "upper": 1.0}),
    "laplace": ("random.laplace", lambda: mx.random.laplace((3,), scale=2.0), {"mean": 0.0, "scale": 2.0}),
    "keyed": ("random.normal", lambda: mx.random.normal((3,), key=mx.random.key(3)), {}),
    "half": ("random.normal", lambda: mx.random.normal((3,), dtype=mx.bfloat16), {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("name", RANDOM)
def test_every_random_function_is_a_draw_and_draws_what_it_drew(name: str) -> None:
    canonical, draw, note = RANDOM[name]
    mx.random.seed(1)
    bare, after = draw(), mx.random.normal((2,))
    mx.eval(bare, after)
    notes: list[dict[str, Any]] = []
    keep = Answers(lambda b: notes.append(b.note) if b.moment == "draw" and b.site == f"!{canonical}" else None)
    mx.random.seed(1)
    assert same(observe(nn.Identity(), draw, [keep]), bare)
    assert same(mx.random.normal((2,)), after)
    assert len(notes) == 1
    assert notes[0].items() >= note.items()


@pytest.mark.parametrize("name", RANDOM)
def test_every_random_function_hands_out_what_was_supplied(name: str) -> None:
    out = observe(nn.Identity(), RANDOM[name][1], [Answers(lambda b: {"draw": np.ones(b.note["shape"])} if b.moment == "draw" else None)])
    assert same(out, mx.ones(out.shape).astype(out.dtype))


def test_the_generator_can_be_put_back() -> None:
    adapter = named("mlx")
    mx.random.normal((3,))
    state = adapter.rng_state()
    first = mx.random.normal((3,))
    mx.eval(first)
    adapter.set_rng_state(state)
    assert same(mx.random.normal((3,)), first)


def test_a_causal_mask_by_name_is_an_attribute() -> None:
    q, sites = mx.ones((1, 1, 2, 16)), Sites()
    observe(nn.Identity(), lambda: mx.fast.scaled_dot_product_attention(q, q, q, scale=0.5, mask="causal"), [sites])
    assert sites.values["!attention[0]", "attr[scale]"] == 0.5
    assert sites.values["!attention[0]", "attr[causal]"]
    assert ("!attention[0]", "input[mask]") not in sites.values


def test_private_arrays_are_buffers_and_quantised_layers_are_seen(tmp_path: Path) -> None:
    class Rope(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._freqs = mx.arange(4)
            self.weights = [mx.ones(2), {"deep": mx.zeros(3)}]
            self.proj = nn.QuantizedLinear(64, 8)

        def __call__(self, x: Any) -> Any:
            return self.proj(x)

    model = Rope()
    with record(model, tmp_path / "x.h5"):
        model(mx.ones((1, 64)))
    trace = open_trace(tmp_path / "x.h5")
    kinds = {name: parameter.kind for name, parameter in trace.params.items()}
    assert kinds["_freqs"] == "buffer"
    assert {"weights.0", "weights.1.deep", "proj.weight", "proj.bias"} <= set(kinds)
    assert {"proj.scales", "proj.biases"}.isdisjoint(kinds), "they are in the weight that they stand for"
    assert (trace.params["proj.weight"].dtype, trace.params["proj.weight"].shape) == ("float32", (8, 64))
    assert {"bits": 4, "group_size": 64}.items() <= trace.meta["modules"][1]["attrs"].items()
