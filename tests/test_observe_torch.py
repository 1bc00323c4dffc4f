"""What only PyTorch does: fast paths, compilers, transforms, views, dtypes, hooks, its many random functions."""

from __future__ import annotations

import copy
from collections import OrderedDict
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
from tracediff.trace import open_trace

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Net(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


NET = Net()


def test_a_transformer_layer_keeps_its_fast_path() -> None:
    """Forward hooks would turn it off: its layers would be called, and the output differ by rounding."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        bare = layer(x)
        sites = Sites()
        seen = observe(layer, lambda: layer(x), [sites])
    assert torch.equal(seen, bare)
    assert "module 'linear1': never called (Linear)" in sites.run.not_seen


def test_the_fast_path_can_be_given_up_to_see_inside() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    sites = Sites()
    with torch.no_grad():
        observe(layer, torch.randn(2, 5, 16), [sites], compile=False)
    assert {"self_attn", "linear1", "norm2"} <= set(sites.sites())
    assert torch.backends.mha.get_fastpath_enabled()


def test_multi_head_attention_is_seen_inside() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x, sites = torch.randn(1, 3, 8), Sites()
    observe(attention, lambda: attention(x, x, x, need_weights=False), [sites])
    assert sites.sites() == ["!attention", ""]  # the projections are functions of the parameters


def test_other_peoples_hooks_run_and_see_what_they_saw() -> None:
    net, x, log = Net(), torch.randn(2, 4), []
    net.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net.a.register_forward_hook(lambda module, args, output: output + 1)
    net.b.register_full_backward_hook(lambda module, inputs, outputs: log.append("backward"))
    bare = net(x)
    sites = Sites()
    seen = observe(net, lambda: net(x), [sites])
    seen.sum().backward()
    assert torch.equal(seen, bare)
    assert log == ["backward"]
    assert np.array_equal(sites.values["[0]/a[0]", "input[0]"], (x * 2).numpy())
    assert len(net.a._forward_hooks) == len(net.a._forward_pre_hooks) == 1


def test_gradients_are_those_of_the_bare_run() -> None:
    net, x = Net(), torch.randn(2, 4, requires_grad=True)
    net(x).sum().backward()
    bare = x.grad.clone()
    x.grad = None
    observe(net, lambda: net(x), [Sites()]).sum().backward()
    assert torch.equal(x.grad, bare)


def test_a_module_whose_forward_was_exchanged_already_keeps_that() -> None:
    net, x = Net(), torch.randn(2, 4)
    original = net.a.forward
    net.a.forward = lambda x: original(x) * 0
    mine = net.a.forward
    sites = Sites()
    out = observe(net, lambda: net(x), [sites])
    assert (sites.values["[0]/a[0]", "output"] == 0).all()
    assert net.a.forward is mine
    assert torch.equal(out, net(x))


def test_a_forward_exchanged_during_the_run_is_left_alone() -> None:
    net, x = Net(), torch.randn(2, 4)

    def run() -> Any:
        inner = net.a.forward
        net.a.forward = lambda x: inner(x) * 0
        return net(x)

    observe(net, run, [Sites()])
    assert torch.equal(net(x), net.b(torch.zeros(2, 4)))


def test_a_forward_that_the_run_patches_and_puts_back_is_left_as_the_bare_run_would() -> None:
    """As transformers does to collect hidden states."""
    net, x = Net(), torch.randn(2, 4)

    def run() -> Any:
        original = net.a.forward
        net.a.forward = lambda x: original(x) + 1
        try:
            return net(x)
        finally:
            net.a.forward = original

    bare = run()
    del net.a.forward
    for _ in range(2):
        sites = Sites()
        assert torch.equal(observe(net, run, [sites]), bare)
        assert sites.sites().count("a") == 1
        assert net.a.forward.__func__ is nn.Linear.forward
    assert not hasattr(nn.Linear.forward, "__tracediff_original__")


def test_scripting_during_the_run_works() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    scripted = observe(net, lambda: torch.jit.script(net), [Sites()])
    assert torch.equal(scripted(x), net(x))


def test_a_direct_call_of_forward_is_seen() -> None:
    net, x, sites = Net(), torch.randn(2, 4), Sites()
    observe(net, lambda: net.forward(x), [sites])
    assert sites.sites()[-1] == ""


@pytest.mark.parametrize("how", ["wrapped", "in place", "function"])
def test_what_torch_compile_hides_is_said_and_can_be_seen(how: str) -> None:
    torch._dynamo.reset()
    net, x = Net(), torch.randn(2, 4)
    model, run = _compiled(net, x, how)
    bare = run()
    hidden, open_ = Sites(), Sites()
    assert torch.equal(observe(model, run, [hidden]), bare)
    assert "a" not in hidden.sites()
    assert "_orig_mod.a" not in hidden.sites()
    assert hidden.run.not_seen + hidden.run.warnings
    assert torch.equal(observe(model, run, [open_], compile=False), bare)
    assert sum(site.endswith("a") for site in open_.sites()) == 1
    assert torch.equal(run(), bare)
    torch._dynamo.reset()


def _compiled(net: Any, x: Any, how: str) -> tuple[Any, Callable[[], Any]]:
    if how == "wrapped":
        model = torch.compile(net, backend="eager")
        return model, lambda: model(x)
    if how == "in place":
        net.compile(backend="eager")
        return net, lambda: net(x)
    function = torch.compile(lambda x: net(x) + 1, backend="eager", fullgraph=True)
    return net, lambda: function(x)


def test_scripted_and_traced_modules_are_seen_from_outside() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    for compiled in (torch.jit.script(net), torch.jit.trace(net, x)):
        sites = Sites()
        bare = compiled(x)
        assert torch.equal(observe(compiled, x, [sites]), bare)
        assert sites.sites() == [""]
        assert sites.run.not_seen == ["modules below the root: compiled by torch.jit"]


def test_tracing_during_the_run_gives_the_same_graph() -> None:
    net, x, sites = Net(), torch.randn(2, 4), Sites()
    traced = [observe(net, lambda: torch.jit.trace(net, x, check_trace=False), [sites]), torch.jit.trace(net, x, check_trace=False)]
    kinds = [[node.kind() for node in one.inlined_graph.nodes()] for one in traced]
    assert kinds[0] == kinds[1]
    assert "the root: inside torch.jit.trace" in sites.run.not_seen


def test_transforms_and_meta_tensors_are_passed_through_and_said() -> None:
    net, x, sites = Net(), torch.randn(2, 4), Sites()
    assert torch.equal(observe(net, lambda: torch.func.vmap(net)(x), [sites]), torch.func.vmap(net)(x))
    assert any("torch.func transform" in what for what in sites.run.not_seen)
    meta, sites = Net().to("meta"), Sites()
    assert observe(meta, lambda: meta(x.to("meta")), [sites]).shape == (2, 4)
    assert any("no values" in what for what in sites.run.not_seen)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode_is_left_as_it_is(context: Any, tmp_path: Path) -> None:
    net, x, modes = Net(), torch.randn(2, 4), []
    with context():
        bare = net(x)
        with record(net, tmp_path / "x.h5"):
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            out = net(x.clone())
        assert modes == [(torch.is_grad_enabled(), torch.is_inference_mode_enabled())]
    assert torch.equal(out, bare)
    assert out.requires_grad == bare.requires_grad
    assert out.is_inference() == bare.is_inference()


@pytest.mark.parametrize("how", ["data", "numpy", "view", "method"])
def test_snapshots_are_exact_however_a_tensor_is_overwritten(how: str, tmp_path: Path) -> None:
    net, x = nn.Identity(), torch.arange(8.0).reshape(2, 4)
    change = {
        "data": lambda: x.data.add_(1),
        "numpy": lambda: np.add(x.numpy(), 1, out=x.numpy()),
        "view": lambda: x[0].add_(1),
        "method": lambda: x.add_(1),
    }[how]
    with record(net, tmp_path / "x.h5"):
        net(x)
        change()
        net(x)
    first, second = (r.read() for r in open_trace(tmp_path / "x.h5").records if r.end == "input[0]")
    assert np.array_equal(first, np.arange(8.0).reshape(2, 4))
    assert np.array_equal(second[0], first[0] + 1)


def test_an_activation_in_place_is_flagged_on_its_output(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(3, 4)
    expected = net[0](x).detach().numpy()
    with record(net, tmp_path / "x.h5"):
        net(x)
    trace = open_trace(tmp_path / "x.h5")
    by_place = {(r.site, r.end): r for r in trace.records}
    assert np.array_equal(by_place["0", "output"].read(), expected)
    assert np.array_equal(by_place["1", "output"].read(), np.maximum(expected, 0))
    assert by_place["1", "output"].flags == 1
    assert ("1", "output.input[0]") not in by_place


DTYPES = (
    "bool uint8 int8 int16 int32 int64 uint16 float16 bfloat16 float32 float64 complex64 complex128 "
    "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz"
)


@pytest.mark.parametrize("dtype", DTYPES.split())
def test_every_dtype_goes_to_numpy_and_back_bit_for_bit(dtype: str) -> None:
    adapter = named("torch")
    kind = getattr(torch, dtype)
    bits = torch.arange(256, dtype=torch.uint8).repeat(4)
    tensor = (bits % 2).to(torch.bool) if dtype == "bool" else bits.view(kind)
    array = adapter.to_numpy(tensor)
    assert adapter.describe(tensor) == (dtype, tuple(tensor.shape), "cpu")
    back = adapter.from_numpy(array, tensor)
    assert back.dtype == kind
    assert torch.equal(back.view(torch.uint8), tensor.view(torch.uint8))


def test_awkward_tensors_are_read() -> None:
    adapter = named("torch")
    x = torch.randn(3, 4, dtype=torch.complex64)
    assert np.array_equal(adapter.to_numpy(x.conj()), x.numpy().conj())
    assert np.array_equal(adapter.to_numpy(x.conj().imag), x.numpy().conj().imag)
    assert np.array_equal(adapter.to_numpy(torch.eye(3).to_sparse()), np.eye(3))
    assert np.array_equal(adapter.to_numpy(torch.arange(6).reshape(2, 3).T), np.arange(6).reshape(2, 3).T)
    assert adapter.to_numpy(torch.tensor(2.5)).shape == ()
    assert adapter.to_numpy(torch.empty(0, 3)).shape == (0, 3)
    assert adapter.to_numpy(torch.ones(3, dtype=torch.bfloat16).expand(2, 3)).dtype == ml_dtypes.bfloat16
    assert adapter.to_numpy(nn.Parameter(torch.ones(2))).tolist() == [1, 1]


def test_huggingface_outputs_are_flattened_and_replaced() -> None:
    class ModelOutput(OrderedDict):  # type: ignore[type-arg]
        """As in transformers: keys and attributes are the same."""

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            object.__setattr__(self, key, value)

    class Model(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            out = ModelOutput()
            out["last_hidden_state"], out["hidden_states"] = x, (x, x + 1)
            return out

    model, x, sites = Model(), torch.ones(2), Sites()
    zero = torch.zeros(2)
    out = observe(model, lambda: model(x), [Answers(lambda b: {"output.last_hidden_state": zero} if b.moment == "leave" else None), sites])
    assert [end for call, end in sites.values if end.startswith("output")] == [
        "output.last_hidden_state",
        "output.hidden_states[0]",
        "output.hidden_states[1]",
    ]
    assert out.last_hidden_state is zero
    assert isinstance(out, ModelOutput)


RANDOM: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "randn": ("random.normal", lambda: torch.randn(2, 3), {"mean": 0.0, "std": 1.0}),
    "randn size": ("random.normal", lambda: torch.randn((2, 3), dtype=torch.float64), {"shape": [2, 3], "dtype": "float64"}),
    "randn_like": ("random.normal", lambda: torch.randn_like(torch.ones(3)), {"function": "torch.randn_like"}),
    "rand": ("random.uniform", lambda: torch.rand(3), {"low": 0.0, "high": 1.0}),
    "rand_like": ("random.uniform", lambda: torch.rand_like(torch.ones(3)), {}),
    "randint": ("random.randint", lambda: torch.randint(5, (3,)), {"low": 0, "high": 5}),
    "randint low": ("random.randint", lambda: torch.randint(2, 5, (3,)), {"low": 2, "high": 5}),
    "randint named": ("random.randint", lambda: torch.randint(low=2, high=5, size=(3,)), {"low": 2, "high": 5}),
    "randint_like": ("random.randint", lambda: torch.randint_like(torch.ones(3), 2, 9), {"low": 2, "high": 9}),
    "randperm": ("random.permutation", lambda: torch.randperm(7), {"n": 7}),
    "normal": ("random.normal", lambda: torch.normal(1.0, 2.0, (3,)), {"mean": 1.0, "std": 2.0}),
    "normal tensors": ("random.normal", lambda: torch.normal(torch.ones(3), torch.ones(3)), {"mean": "tensor", "std": "tensor"}),
    "multinomial": ("random.categorical", lambda: torch.multinomial(torch.ones(5), 2), {"num_samples": 2}),
    "bernoulli": ("random.bernoulli", lambda: torch.bernoulli(torch.full((9,), 0.5)), {"p": "tensor"}),
    "bernoulli p": ("random.bernoulli", lambda: torch.bernoulli(torch.ones(9), 0.25), {"p": 0.25}),
    "normal_": ("random.normal", lambda: torch.empty(3).normal_(std=3), {"mean": 0.0, "std": 3, "function": "Tensor.normal_"}),
    "uniform_": ("random.uniform", lambda: torch.empty(3).uniform_(-1, 2), {"low": -1, "high": 2}),
    "uniform_ named": ("random.uniform", lambda: torch.empty(3).uniform_(to=2), {"low": 0.0, "high": 2}),
    "random_": ("random.randint", lambda: torch.empty(3).random_(4), {"low": 0, "high": 4}),
    "exponential_": ("random.exponential", lambda: torch.empty(3).exponential_(2), {"lambd": 2}),
    "bernoulli_": ("random.bernoulli", lambda: torch.empty(9).bernoulli_(0.3), {"p": 0.3}),
    "poisson": ("random.poisson", lambda: torch.poisson(torch.ones(4)), {}),
    "out": ("random.normal", lambda: torch.randn(3, out=torch.empty(3)), {}),
    "distribution normal": ("random.normal", lambda: torch.distributions.Normal(0.0, torch.ones(3)).sample(), {}),
    "distribution uniform": ("random.uniform", lambda: torch.distributions.Uniform(torch.zeros(3), 2.0).sample(), {"low": 0.0}),
    "distribution categorical": ("random.categorical", lambda: torch.distributions.Categorical(torch.ones(3)).sample(), {}),
    "gumbel softmax": ("random.exponential", lambda: F.gumbel_softmax(torch.ones(3)), {}),
    "init": ("random.uniform", lambda: nn.init.uniform_(torch.empty(3), 0.0, 2.0), {"low": 0.0, "high": 2.0}),
    "generator": ("random.normal", lambda: torch.randn(3, generator=torch.Generator().manual_seed(1)), {}),
}


@pytest.mark.parametrize("name", RANDOM)
def test_every_random_function_is_a_draw_and_draws_what_it_drew(name: str) -> None:
    canonical, draw, note = RANDOM[name]
    torch.manual_seed(1)
    bare, after = draw(), torch.randn(2)
    notes: list[dict[str, Any]] = []
    keep = Answers(lambda b: notes.append(b.note) if b.moment == "draw" and b.site == f"!{canonical}" else None)
    torch.manual_seed(1)
    assert torch.equal(observe(NET, draw, [keep]), bare)
    assert torch.equal(torch.randn(2), after)
    assert len(notes) == 1
    assert notes[0].items() >= note.items()


@pytest.mark.parametrize("name", [name for name in RANDOM if name != "gumbel softmax"])
def test_every_random_function_hands_out_what_was_supplied(name: str) -> None:
    _, draw, _ = RANDOM[name]
    out = observe(NET, draw, [Answers(lambda b: {"draw": np.ones(b.note["shape"])} if b.moment == "draw" else None)])
    assert (out == (2 if name == "distribution uniform" else 1)).all()


@pytest.mark.parametrize("function", [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout])
@pytest.mark.parametrize("inplace", [False, True])
def test_every_dropout_draws_its_mask(function: Any, inplace: bool) -> None:
    name = function.__name__
    owner = torch if function is torch.dropout else F
    x = torch.randn(2, 3, *[4] * {"dropout1d": 1, "dropout2d": 2, "dropout3d": 3}.get(name, 0))
    options = {} if owner is torch else {"inplace": inplace}

    def run(values: Any) -> Any:
        return getattr(owner, name)(values, 0.5, True, **options)

    torch.manual_seed(2)
    bare, after = run(x.clone()), torch.randn(2)
    torch.manual_seed(2)
    sites = Sites()
    assert torch.equal(observe(NET, lambda: run(x.clone()), [sites]), bare)
    assert torch.equal(torch.randn(2), after)
    mask = sites.values["!dropout[0]", "draw"]
    assert np.array_equal(bare.numpy(), (x * torch.from_numpy(mask) * 2).numpy())
    torch.manual_seed(2)
    mine = x.clone()
    out = observe(NET, lambda: run(mine), [Answers(lambda b: {"draw": ~mask} if b.moment == "draw" else None)])
    assert torch.equal(out, x * torch.from_numpy(~mask) * 2)
    assert (out is mine) == (inplace and owner is F)
    assert torch.equal(torch.randn(2), after)


def test_dropout_inside_attention_is_said_not_to_be_seen() -> None:
    q, sites = torch.randn(1, 1, 2, 4), Sites()
    observe(NET, lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5), [sites])
    assert any("dropout" in what and "attention" in what for what in sites.run.not_seen)


def test_the_four_ways_to_softmax_are_one_site() -> None:
    x, sites = torch.randn(2, 3), Sites()

    def run() -> None:
        F.softmax(x, dim=1)
        torch.softmax(x, 1)
        x.softmax(dim=-1)
        torch.softmax(input=x, dim=0)

    observe(NET, run, [sites])
    assert sites.sites() == ["!softmax"] * 4
    assert [sites.values[f"!softmax[{n}]", "attr[axis]"].item() for n in range(4)] == [-1, -1, -1, -2]
    assert all((f"!softmax[{n}]", "input[0]") in sites.values for n in range(4))


def test_causal_attention_and_its_default_scale_are_attributes() -> None:
    q, sites = torch.randn(1, 1, 2, 16), Sites()
    observe(NET, lambda: F.scaled_dot_product_attention(query=q, key=q, value=q, is_causal=True), [sites])
    assert sites.values["!attention[0]", "attr[scale]"] == 0.25
    assert sites.values["!attention[0]", "attr[causal]"]
    assert ("!attention[0]", "input[k]") in sites.values


def test_lazy_and_weight_normed_modules_are_as_bare() -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    other = copy.deepcopy(net)
    x, sites = torch.randn(2, 3), Sites()
    torch.manual_seed(4)
    bare = other(x)
    torch.manual_seed(4)
    assert torch.equal(observe(net, lambda: net(x), [Answers(lambda b: None), sites]), bare)
    assert type(net[0]) is nn.Linear


def test_a_trace_of_weight_norm_has_its_parts(tmp_path: Path) -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with record(net, tmp_path / "x.h5"):
        net(torch.randn(2, 4))
    assert set(open_trace(tmp_path / "x.h5").params) == {
        "bias",
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    }


def test_taps_work_in_compiled_code() -> None:
    torch._dynamo.reset()
    function = torch.compile(lambda x: td.tap("x", x) + 1, backend="eager")
    x = torch.ones(2)
    assert torch.equal(function(x), x + 1)
    assert torch.equal(observe(NET, lambda: function(x), [Sites()]), x + 1)
    torch._dynamo.reset()
