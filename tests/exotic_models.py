"""Small odd models of both frameworks, each a way of writing models that real code has; `tests/test_exotic_models.py` captures them all.

A row is a name and what makes a model and its arguments; ``unseen`` is what the trace says of it where something cannot be seen.
"""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import enum
import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as mnn
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


@dataclass(frozen=True)
class Odd:
    """One odd model: ``make`` gives the model and the arguments of its call."""

    name: str
    make: Callable[[], tuple[Any, tuple[Any, ...]]]
    unseen: str = ""
    backward: bool = False


TORCH: list[Odd] = []
MLX: list[Odd] = []


def odd(table: list[Odd], unseen: str = "", backward: bool = False) -> Callable[[Any], Any]:
    """Enters a class (called without arguments) or a function that makes a model under its name."""

    def enter(made: Any) -> Any:
        def make() -> tuple[Any, tuple[Any, ...]]:
            torch.manual_seed(0)
            mx.random.seed(0)
            model = made()
            if isinstance(model, tuple):
                return model
            return model, (torch.tensor(X) if table is TORCH else mx.array(X),)

        table.append(Odd(made.__name__.strip("_").replace("_", " "), make, unseen, backward))
        return made

    return enter


class Base(nn.Module):
    """A layer, and what a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(8, 8), nn.Linear(8, 8)


# -- PyTorch: how calls come in ------------------------------------------------------------------------------------------------------------


@odd(TORCH)
class overrides_call(Base):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x) * 2

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class calls_forward_directly(Base):
    def forward(self, x: Any) -> Any:
        return self.other.forward(self.layer.forward(x))


@odd(TORCH)
class forward_in_instance(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layer.forward = functools.partial(F.linear, weight=self.layer.weight)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class forward_is_partial(Base):
    def forward(self, x: Any, scale: float) -> Any:
        return self.layer(x) * scale

    def __init__(self) -> None:
        super().__init__()
        self.forward = functools.partial(self.forward, scale=3.0)


@odd(TORCH)
class forward_is_lambda(Base):
    forward = lambda self, x: self.layer(x)  # noqa: E731


@odd(TORCH)
class forward_is_decorated(Base):
    @functools.lru_cache(None)  # noqa: B019
    def scale(self) -> float:
        return 2.0

    @torch.no_grad()
    def forward(self, x: Any) -> Any:
        return self.layer(x) * self.scale()


@odd(TORCH)
class static_forward(Base):
    @staticmethod
    def double(x: Any) -> Any:
        return 2 * x

    def forward(self, x: Any) -> Any:
        return self.double(self.layer(x))


@odd(TORCH)
class calls_itself(Base):
    def forward(self, x: Any, depth: int = 3) -> Any:
        return self(self.layer(x), depth - 1) if depth else x


@odd(TORCH)
class keyword_only(Base):
    def forward(self, *, x: Any) -> Any:
        return self.layer(x)

    def __call__(self, x: Any) -> Any:
        return super().__call__(x=x)


@odd(TORCH)
class takes_anything(Base):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)


@odd(TORCH)
class method_besides_forward(Base):
    def encode(self, x: Any) -> Any:
        return self.layer(x)

    def forward(self, x: Any) -> Any:
        return self.other(self.encode(x))


@odd(TORCH)
class generator_inside(Base):
    def steps(self, x: Any) -> Any:
        for _ in range(3):
            x = self.layer(x)
            yield x

    def forward(self, x: Any) -> Any:
        return torch.stack(list(self.steps(x)))


@odd(TORCH)
class coroutine_inside(Base):
    async def step(self, x: Any) -> Any:
        await asyncio.sleep(0)
        return self.layer(x)

    def forward(self, x: Any) -> Any:
        return asyncio.run(self.step(x))


@odd(TORCH)
class thread_inside(Base):
    def forward(self, x: Any) -> Any:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self.layer(x)))
        thread.start()
        thread.join()
        return found[0]


@odd(TORCH)
class raises_and_goes_on(Base):
    def forward(self, x: Any) -> Any:
        try:
            return self.layer(x[:, :3])
        except RuntimeError:
            return self.layer(x)


@odd(TORCH)
class deletes_a_module(Base):
    def forward(self, x: Any) -> Any:
        if hasattr(self, "other"):
            x = self.other(x)
            self.__dict__.setdefault("kept", self.other)
        return self.layer(x)


@odd(TORCH)
class exchanges_its_class(Base):
    def forward(self, x: Any) -> Any:
        before = type(self.layer)
        self.layer.__class__ = Doubling
        try:
            return self.layer(x)
        finally:
            self.layer.__class__ = before


class Doubling(nn.Linear):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


# -- PyTorch: how modules are held ---------------------------------------------------------------------------------------------------------


@odd(TORCH)
class shares_a_module(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = self.layer

    def forward(self, x: Any) -> Any:
        return self.other(self.layer(x))


@odd(TORCH)
class shares_a_weight(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other.weight = self.layer.weight

    def forward(self, x: Any) -> Any:
        return self.other(self.layer(x))


@odd(TORCH)
class holds_its_parent(Base):
    def __init__(self) -> None:
        super().__init__()
        self.layer.__dict__["parent"] = self

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class modules_in_a_list(Base):
    def __init__(self) -> None:
        super().__init__()
        self.__dict__["layers"] = [nn.Linear(8, 8), (nn.Linear(8, 8), {"x": nn.Linear(8, 8)})]

    def forward(self, x: Any) -> Any:
        return self.layers[1][1]["x"](self.layers[1][0](self.layers[0](x)))


@odd(TORCH)
class private_module(Base):
    def __init__(self) -> None:
        super().__init__()
        self._inner, self.__mangled = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return self.__mangled(self._inner(x))


@odd(TORCH)
class module_in_an_object(Base):
    class Holder:
        def __init__(self) -> None:
            self.net = nn.Linear(8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.holder = self.Holder()

    def forward(self, x: Any) -> Any:
        return self.holder.net(x)


@odd(TORCH)
class none_for_a_module(Base):
    def __init__(self) -> None:
        super().__init__()
        self.other = None

    def forward(self, x: Any) -> Any:
        return self.layer(x) if self.other is None else x


@odd(TORCH)
class dotted_names(Base):
    def __init__(self) -> None:
        super().__init__()
        self._modules["a.b/c d"] = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        return self._modules["a.b/c d"](x)


@odd(TORCH, unseen="made during the run")
class made_in_forward(Base):
    def forward(self, x: Any) -> Any:
        if "late" not in self._modules:
            self.late = nn.Identity()
        return self.late(self.layer(x))


@odd(TORCH, unseen="bypassed")
class bypasses_a_module(nn.Module):
    class Inner(Base):
        def forward(self, x: Any) -> Any:
            raise AssertionError

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Any) -> Any:
        return self.inner.layer(x)


@odd(TORCH, unseen="never called")
class never_calls_a_module(Base):
    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class module_dict_and_list(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8, 8)]), "b": nn.Sequential(nn.ReLU())})

    def forward(self, x: Any) -> Any:
        return self.layers["b"](self.layers["a"][0](x))


@odd(TORCH)
class parameters_in_lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))])
        self.named = nn.ParameterDict({"b": nn.Parameter(torch.ones(8))})

    def forward(self, x: Any) -> Any:
        return x * self.weights[0] + self.weights[1] * self.named["b"]


@odd(TORCH)
class traps_in_getattr(Base):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("trap"):
            raise RuntimeError("touched")
        return super().__getattr__(name)

    @property
    def trapped(self) -> Any:
        raise RuntimeError("touched")

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class strange_bool_eq_repr(Base):
    def __bool__(self) -> bool:
        raise RuntimeError("touched")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("touched")

    __hash__ = nn.Module.__hash__

    def __repr__(self) -> str:
        raise RuntimeError("touched")

    def __len__(self) -> int:
        return 0

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class slots_and_metaclass(Base, metaclass=type("Meta", (type(nn.Module),), {})):
    __slots__ = ("kept",)

    def forward(self, x: Any) -> Any:
        self.kept = x
        return self.layer(x)


# -- PyTorch: what goes in and comes out ---------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Result:
    value: Any
    extra: Any = None


class Colour(enum.Enum):
    RED = 1


class Bag(collections.OrderedDict[str, Any]):
    __getattr__ = dict.__getitem__


def _returning(name: str, made: Callable[[Any], Any], unseen: str = "") -> None:
    class model(Base):
        def forward(self, x: Any) -> Any:
            return made(self.layer(x))

    model.__name__ = f"returns_{name}"
    odd(TORCH, unseen)(model)


_returning("a_named_tuple", lambda x: Pair(x, x + 1))
_returning("a_dataclass", Result)
_returning("a_dict_of_lists", lambda x: {"a": [x, (x, None)], 1: x})
_returning("an_ordered_dict", lambda x: Bag(a=x, b=x))
_returning("a_number", lambda x: float(x.sum()))
_returning("none", lambda x: None)
_returning("a_text", lambda x: "text")
_returning("an_enum", lambda x: Colour.RED, "nothing in it is a tensor")
_returning("a_numpy_array", lambda x: x.detach().numpy().copy())
_returning("an_empty_tensor", lambda x: x[:0])
_returning("a_scalar_tensor", lambda x: x.sum())
_returning("complex_values", torch.fft.fft)
_returning("half_values", lambda x: x.to(torch.bfloat16))
_returning("whole_numbers", lambda x: x.argmax(-1))
_returning("truth_values", lambda x: x > 0)
_returning("a_view", lambda x: x.T[::2])
_returning("an_expanded_tensor", lambda x: x[:1].expand(5, 8))
_returning("nan_and_inf", lambda x: torch.stack([x / 0, x * torch.nan]))
_returning("a_sparse_tensor", lambda x: x.to_sparse())
_returning("a_nested_tensor", lambda x: torch.nested.nested_tensor([x.detach(), x.detach()[:1]]), "no trace holds nested tensors")
_returning("a_meta_tensor", lambda x: [x, torch.empty(2, device="meta")], "meta device")


@odd(TORCH)
class changes_its_input(Base):
    def forward(self, x: Any) -> Any:
        x = x.clone()
        return self.layer(x.mul_(2).add_(1))


@odd(TORCH)
class writes_into_its_buffer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(8))
        self.register_buffer("hidden", torch.zeros(8), persistent=False)

    def forward(self, x: Any) -> Any:
        self.sums += x.sum(0)
        self.hidden = self.hidden + 1
        return self.layer(x) + self.sums + self.hidden


@odd(TORCH)
class counts_in_its_class(Base):
    calls = 0

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@odd(TORCH)
class keeps_a_deque(Base):
    def __init__(self) -> None:
        super().__init__()
        self.kept, self.seen = collections.deque([0.0], 2), set[int]()

    def forward(self, x: Any) -> Any:
        self.kept.append(self.kept[-1] + 1)
        self.seen.add(len(self.seen))
        return self.layer(x) * self.kept[-1] + len(self.seen)


@odd(TORCH)
class generator_of_its_own(Base):
    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(3)
        self.numbers = np.random.default_rng(3)

    def forward(self, x: Any) -> Any:
        noise = torch.randn(x.shape, generator=self.random)
        return self.layer(x) + noise + float(self.numbers.standard_normal())


@odd(TORCH)
class draws(Base):
    def forward(self, x: Any) -> Any:
        noise = torch.randn_like(x) + torch.rand(1) + torch.randint(0, 9, (1,)) + torch.empty(1).normal_()
        return self.layer(x) + noise + float(np.random.rand()) + torch.bernoulli(torch.full((1,), 0.5))


@odd(TORCH)
class copies_itself(Base):
    def forward(self, x: Any) -> Any:
        return copy.deepcopy(self.layer)(x) + copy.copy(self.other)(x)


@odd(TORCH)
class loads_weights(Base):
    def forward(self, x: Any) -> Any:
        self.other.load_state_dict(self.layer.state_dict())
        return self.other(x)


@odd(TORCH)
class steps_an_optimiser(Base):
    def __init__(self) -> None:
        super().__init__()
        self.optimiser = torch.optim.Adam(self.layer.parameters(), lr=0.1)

    def forward(self, x: Any) -> Any:
        with torch.enable_grad():
            self.layer(x).square().sum().backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
        return self.layer(x)


@odd(TORCH, unseen="a forward hook runs after it")
def forward_hook() -> Any:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_forward_hook(lambda module, given, made: made * 2)
    return model


@odd(TORCH)
def pre_hook() -> Any:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].register_forward_pre_hook(lambda module, given: (given[0] * 2,))
    return model


@odd(TORCH, backward=True)
def backward_hooks() -> Any:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    model[1].register_full_backward_hook(lambda module, into, out: None)
    return model


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        return gradient * 3


@odd(TORCH, backward=True)
class own_autograd_function(Base):
    def forward(self, x: Any) -> Any:
        return Doubled.apply(self.layer(x))


@odd(TORCH, backward=True)
class checkpointed(Base):
    def forward(self, x: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        return checkpoint(self.layer, x, use_reentrant=False)


@odd(TORCH, backward=True)
def batch_norm_in_training() -> Any:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).train()


@odd(TORCH, backward=True)
def dropout_in_training() -> Any:
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.AlphaDropout(0.2)).train()


@odd(TORCH)
def weight_norm() -> Any:
    return parametrizations.weight_norm(nn.Linear(8, 8))


@odd(TORCH)
def spectral_norm_in_training() -> Any:
    return parametrizations.spectral_norm(nn.Linear(8, 8)).train()


class Symmetric(nn.Module):
    def forward(self, weight: Any) -> Any:
        return weight.triu() + weight.triu(1).T


@odd(TORCH)
def parametrised() -> Any:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


@odd(TORCH)
def inside_autocast() -> Any:
    class model(Base):
        def forward(self, x: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x)

    return model()


@odd(TORCH)
def inference_mode() -> Any:
    class model(Base):
        @torch.inference_mode()
        def forward(self, x: Any) -> Any:
            return self.layer(x)

    return model()


@odd(TORCH, unseen="torch.func transform")
def inside_vmap() -> Any:
    class model(Base):
        def forward(self, x: Any) -> Any:
            return torch.vmap(self.layer)(x)

    return model()


@odd(TORCH, unseen="torch.func transform")
def inside_grad() -> Any:
    class model(Base):
        def forward(self, x: Any) -> Any:
            return torch.func.grad(lambda x: self.layer(x).sum())(x)

    return model()


@odd(TORCH)
def functional_call() -> Any:
    class model(Base):
        def forward(self, x: Any) -> Any:
            return torch.func.functional_call(self.layer, {"weight": self.other.weight, "bias": self.other.bias}, (x,))

    return model()


@odd(TORCH, unseen="compiled by torch.jit")
def scripted() -> Any:
    return nn.Sequential(nn.Linear(8, 8), torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU())))


@odd(TORCH, unseen="compiled by torch.jit")
def traced() -> Any:
    return nn.Sequential(nn.Linear(8, 8), torch.jit.trace(nn.Sequential(nn.Linear(8, 8)).eval(), torch.tensor(X)))


@odd(TORCH, unseen="inside torch.jit.trace")
def traces_inside() -> Any:
    class model(Base):
        def forward(self, x: Any) -> Any:
            return torch.jit.trace(self.layer, x)(x)

    return model()


@odd(TORCH, unseen="compiled by torch.compile")
def compiled() -> Any:
    return nn.Sequential(nn.Linear(8, 8), torch.compile(nn.Sequential(nn.Linear(8, 8)), backend="eager"))


@odd(TORCH)
def graph_module() -> Any:
    return torch.fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))


@odd(TORCH, unseen="no shape before its first call")
def lazy() -> Any:
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU())


@odd(TORCH)
def recurrent() -> Any:
    return nn.LSTM(8, 4, 2, bidirectional=True, batch_first=True), (torch.tensor(X)[None],)


@odd(TORCH)
def recurrent_cells() -> Any:
    class model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(8, 8)

        def forward(self, x: Any) -> Any:
            state = torch.zeros(1, 8)
            for row in x:
                state = self.cell(row[None], state)
            return state

    return model()


@odd(TORCH)
def fused_attention() -> Any:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), (torch.tensor(X)[None],)


@odd(TORCH)
def attention_with_weights() -> Any:
    x = torch.tensor(X)[None]
    return nn.MultiheadAttention(8, 2, batch_first=True).eval(), (x, x, x)


@odd(TORCH)
def packed_sequences() -> Any:
    class model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.RNN(8, 4, batch_first=True)

        def forward(self, x: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x[None].expand(2, 3, 8), [3, 2], batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)

    return model()


@odd(TORCH)
def double_precision() -> Any:
    return nn.Linear(8, 8).double(), (torch.tensor(X).double(),)


@odd(TORCH)
def complex_weights() -> Any:
    return nn.Linear(8, 8, dtype=torch.complex64), (torch.tensor(X).to(torch.complex64),)


@odd(TORCH)
def embedding_bag() -> Any:
    return nn.EmbeddingBag(10, 4), (torch.tensor([[1, 2], [3, 4]]),)


@odd(TORCH)
def data_parallel() -> Any:
    return nn.DataParallel(nn.Linear(8, 8))


@odd(TORCH)
def without_parameters() -> Any:
    return nn.Sequential(nn.ReLU(), nn.Flatten(0))


@odd(TORCH)
def frozen_and_sliced() -> Any:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))).requires_grad_(False)
    return model[1:4]


@odd(TORCH)
def dynamically_quantised() -> Any:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), {nn.Linear})


# -- MLX -----------------------------------------------------------------------------------------------------------------------------------


class MlxBase(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = mnn.Linear(8, 8), mnn.Linear(8, 8)


def _mlx(name: str, call: Callable[[Any, Any], Any], unseen: str = "", **attributes: Callable[[], Any]) -> None:
    """Enters an MLX model of two layers whose call is ``call(model, x)``."""

    class model(MlxBase):
        def __init__(self) -> None:
            super().__init__()
            for key, make in attributes.items():
                setattr(self, key, make())

        def __call__(self, x: Any) -> Any:
            return call(self, x)

    model.__name__ = name
    odd(MLX, unseen)(model)


def _kept(model: Any, x: Any) -> Any:
    made = model.layer(x)
    model.cache["kept"] = made if model.cache["kept"] is None else mx.concatenate([model.cache["kept"], made])
    model.number += 1
    return model.cache["kept"] * model.number


def _raising(model: Any, x: Any) -> Any:
    try:
        return model.layer(x[:, :3])
    except ValueError:
        return model.layer(x)


def _made_late(model: Any, x: Any) -> Any:
    if "late" not in model:
        model.late = mnn.Identity()
    return model.late(model.layer(x))


def _written(model: Any, x: Any) -> Any:
    model.sums[0] = x.sum()
    return model.layer(x) + model.sums


def _threaded(model: Any, x: Any) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: (found.append(x * 2), mx.eval(found)))
    thread.start()
    thread.join()
    return model.layer(found[0])


def _drawing(model: Any, x: Any) -> Any:
    return model.layer(x) + mx.random.normal(x.shape) + mx.random.randint(0, 9, (1,))


_mlx("plain", lambda m, x: m.other(m.layer(x)))
_mlx("calls_twice", lambda m, x: m.layer(m.layer(x)))
_mlx("never_calls_a_module", lambda m, x: m.layer(x), "never called")
_mlx("method_as_function", lambda m, x: mnn.gelu(m.layer(x)))
_mlx(
    "modules_in_nested_lists",
    lambda m, x: m.layers[0][0](m.layers[1]["a"](x)),
    layers=lambda: [[mnn.Linear(8, 8)], {"a": mnn.Linear(8, 8)}],
)
_mlx("keeps_a_cache", _kept, cache=lambda: {"kept": None}, number=lambda: 0)
_mlx("raises_and_goes_on", _raising)
_mlx("made_in_call", _made_late, "made during the run")
_mlx("writes_into_an_array", _written, sums=lambda: mx.zeros((8,)))
_mlx("thread_inside", _threaded)
_mlx("draws", _drawing)
_mlx("private_attribute", lambda m, x: m._inner(m.layer(x)), _inner=lambda: mnn.Linear(8, 8))
_mlx("none_for_a_module", lambda m, x: m.layer(x) if m.gone is None else x, gone=lambda: None)
_mlx("compiled_function", lambda m, x: mx.compile(lambda x: mx.tanh(x) * 2)(m.layer(x)))
_mlx("evaluates_inside", lambda m, x: (mx.eval(made := m.layer(x)), made)[1])
_mlx("grad_inside", lambda m, x: mx.grad(lambda x: (x * x).sum())(m.layer(x)))
_mlx("vmap_inside", lambda m, x: mx.vmap(lambda row: row * 2)(m.layer(x)))
_mlx("custom_function", lambda m, x: mx.custom_function(lambda x: x * 2)(m.layer(x)))
_mlx("stop_gradient", lambda m, x: mx.stop_gradient(m.layer(x)))
_mlx("batch_norm_in_training", lambda m, x: m.norm(m.layer(x)), norm=lambda: mnn.BatchNorm(8))
_mlx("dropout_in_training", lambda m, x: m.dropout(m.layer(x)), dropout=lambda: mnn.Dropout(0.4))
_mlx("recurrent", lambda m, x: m.rnn(x[None]), rnn=lambda: mnn.LSTM(8, 4))
_mlx("attention", lambda m, x: m.attention(x[None], x[None], x[None]), attention=lambda: mnn.MultiHeadAttention(8, 2))
_mlx("returns_a_dict", lambda m, x: {"a": [m.layer(x), None], "b": (x,)})
_mlx("returns_a_dataclass", lambda m, x: Result(m.layer(x)))
_mlx("returns_a_numpy_array", lambda m, x: np.array(m.layer(x)))
_mlx("returns_a_number", lambda m, x: m.layer(x).sum().item())
_mlx("returns_half_values", lambda m, x: m.layer(x).astype(mx.bfloat16))
_mlx("returns_an_empty_array", lambda m, x: m.layer(x)[:0])
_mlx("returns_complex_values", lambda m, x: mx.fft.fft(m.layer(x)))
_mlx("holds_an_object", lambda m, x: m.layer(x) * m.held.value, held=lambda: Result(3.0))


@odd(MLX)
def sequential() -> Any:
    return mnn.Sequential(mnn.Linear(8, 8), mnn.ReLU(), lambda x: x * 2)


@odd(MLX)
def quantised() -> Any:
    model = mnn.Sequential(mnn.Linear(64, 64), mnn.ReLU())
    mnn.quantize(model, group_size=64, bits=4)
    return model, (mx.ones((2, 64)),)


@odd(MLX)
def module_held_twice() -> Any:
    layer = mnn.Linear(8, 8)
    return mnn.Sequential(layer, mnn.Tanh(), layer)


@odd(MLX)
def iterates_over_layers() -> Any:
    class model(MlxBase):
        def __iter__(self) -> Any:
            return iter([self.layer, self.other])

        def __call__(self, x: Any) -> Any:
            for layer in self:
                x = layer(x)
            return x

    return model()
