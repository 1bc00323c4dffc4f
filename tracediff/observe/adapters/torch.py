"""Everything that knows PyTorch: where calls come in, attention, softmax and random functions, bits in and out.

Calls are seen by exchanging ``forward`` in the class that defines it; the wrapper asks for each instance whether it is observed. So
types, copies and pickles stay what they are. Forward hooks would not do: `TransformerEncoderLayer` takes another path through its
arithmetic when it finds one, hooks cannot answer for a call that raised, and what goes wrong inside one after an exception is only a
warning.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tracediff.dtype import BY_NAME, Array
from tracediff.interrupts import allowed, held
from tracediff.observe import exchange
from tracediff.observe.adapters import torch_subclasses
from tracediff.observe.adapters.arguments import Note, argument, constant, noted, plain, softmax_axis
from tracediff.observe.adapters.base import Calling, FrameworkAdapter, held_in
from tracediff.observe.types import (
    TRACED,
    Adapter,
    Args,
    Call,
    Casts,
    Choosing,
    Function,
    Keys,
    Kwargs,
    Module,
    Operations,
    ParameterKind,
    Placed,
    Random,
    Tensor,
    Warn,
)
from tracediff.tensors.mantissa import Way

_INTERNAL = frozenset(vars(nn.Module())) | {"_is_hf_initialized", "_compiled_call_impl", "forward"}
_UNSEEN_BITS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    torch.float8_e4m3fnuz: (torch.uint8, ml_dtypes.float8_e4m3fnuz),
    torch.float8_e5m2fnuz: (torch.uint8, ml_dtypes.float8_e5m2fnuz),
}
_RECORDED = frozenset(getattr(torch, name) for name in (*BY_NAME, "complex32") if hasattr(torch, name))
_BITS_OF = {np.dtype(view): (bits, dtype) for dtype, (bits, view) in _UNSEEN_BITS.items()}


class Torch(FrameworkAdapter):
    """The adapter of PyTorch."""

    name = "torch"
    tensor_type = torch.Tensor
    module_type = nn.Module

    # -- tensors

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return next((why for tensor in tensors if isinstance(tensor, torch.Tensor) and (why := _unreadable(tensor))), "")

    def placed(self, tensor: Tensor) -> Placed | None:
        return torch_subclasses.placed(tensor) if isinstance(tensor, torch.Tensor) else None

    def values_of(self, tensor: Tensor) -> Array:
        tensor = torch_subclasses.plain(tensor)
        if tensor.layout != torch.strided:
            tensor = tensor.detach().to_dense()
        if tensor.dtype in _UNSEEN_BITS:
            bits, view = _UNSEEN_BITS[tensor.dtype]
            return tensor.detach().contiguous().view(bits).numpy(force=True).view(view)  # type: ignore[no-any-return]
        if tensor.dtype == torch.complex32:
            tensor = tensor.to(torch.complex64)
        elif tensor.is_quantized:
            tensor = tensor.detach().dequantize()
        if not tensor.is_cpu or tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
            return tensor.numpy(force=True)  # type: ignore[no-any-return]  # which takes several operations
        if type(tensor) is not torch.Tensor:
            return tensor.numpy()  # type: ignore[no-any-return]
        with _undispatched():
            return tensor.numpy()  # type: ignore[no-any-return]

    def tensor_of(self, array: Array) -> Tensor:
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype in _BITS_OF:
            bits, dtype = _BITS_OF[array.dtype]
            return torch.from_numpy(array.view(torch.empty(0, dtype=bits).numpy().dtype).copy()).view(dtype)
        return _from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))

    def fitted(self, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch_subclasses.distributed_as(tensor.reshape(shape).to(device=like.device, dtype=like.dtype), like)

    def beside(self, array: Array, like: Tensor) -> Tensor:
        if not isinstance(like, torch.Tensor):
            return super().beside(array, like)
        return torch_subclasses.distributed_as(self.tensor_of(array).to(like.device), like)

    def owning(self, array: Array, like: Tensor) -> Tensor:
        if not isinstance(like, torch.Tensor) or array.dtype in _BITS_OF or not array.dtype.isnative or not array.flags.writeable:
            return self.beside(array, like)
        return torch_subclasses.distributed_as(_from_numpy(array).to(like.device), like)

    def token_of(self, tensor: Tensor) -> Any:
        try:
            return tensor._version
        except RuntimeError:  # it was made in inference mode
            return super().token_of(tensor)

    def assign_tensor(self, tensor: Tensor, values: Tensor) -> None:
        with torch.no_grad():
            tensor.copy_(values)

    def describe_tensor(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), str(tensor.device)

    # -- modules

    def children(self, module: Module) -> Iterator[tuple[Keys, Module]]:
        yield from (((name,), child) for name, child in module._modules.items() if child is not None)
        for name, value in list(vars(module).items()):
            if name not in _INTERNAL and isinstance(value, (list, tuple, dict)):
                yield from held_in(value, (name,), nn.Module, closed=nn.Module)

    def parameters(self, module: Module) -> Iterator[tuple[Keys, Tensor, ParameterKind]]:
        yield from (((name,), value, "parameter") for name, value in module._parameters.items() if value is not None)
        yield from (((name,), value, "buffer") for name, value in module._buffers.items() if value is not None)

    def tables(self, module: Module) -> list[dict[str, Any]]:
        own = [module._parameters, module._buffers] if isinstance(module, nn.Module) else []
        return [*(table for table in own if isinstance(table, dict)), *super().tables(module)]  # a ScriptModule has none

    def gradient(self, tensor: Tensor) -> Tensor | None:
        return tensor.grad if isinstance(tensor, torch.Tensor) and tensor.is_leaf else None

    def set_gradient(self, tensor: Tensor, gradient: Tensor | None) -> None:
        if self.gradient(tensor) is not gradient:
            tensor.grad = gradient

    def attributes(self, module: Module) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if name not in _INTERNAL}

    def calling(self, call: Call) -> Module:
        return _Calling(call)

    @contextmanager
    def cast(self, modules: Sequence[Module], dtype: str) -> Iterator[None]:
        with self.casts(dtype) as casts:
            for module in modules:
                casts.cast(module)
            yield

    @contextmanager
    def casts(self, dtype: str) -> Iterator[Casts]:
        from tracediff.observe.adapters.torch_casts import TorchCasts

        wanted, usual = getattr(torch, dtype), torch.get_default_dtype()
        casts = TorchCasts(wanted, self.tables)
        if wanted.itemsize > usual.itemsize:  # what the code itself makes (a time, a window) is to be as exact
            torch.set_default_dtype(wanted)
        try:
            yield casts
        finally:
            torch.set_default_dtype(usual)
            casts.undo()

    def rounding(self, units: float, is_quiet: Callable[[], bool]) -> AbstractContextManager[Choosing | None]:
        from tracediff.observe.adapters.torch_rounding import Rounding

        context: AbstractContextManager[Choosing | None] = Rounding(units, is_quiet)
        return context

    def operations(self, parameters: Iterable[tuple[str, Tensor]], is_quiet: Callable[[], bool]) -> Operations | None:
        from tracediff.observe.adapters import torch_operations

        return torch_operations.Operations(parameters, is_quiet)

    # -- products

    def devices(self) -> Sequence[Tensor | None]:
        names = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), *(["mps"] if torch.backends.mps.is_available() else [])]
        return [torch.empty(0, device=name) for name in names]

    def products(self, left: Array, right: Array, like: Tensor | None) -> tuple[Sequence[Array], str] | None:
        device = like.device if isinstance(like, torch.Tensor) and not like.is_meta else torch.get_default_device()
        with torch.no_grad():
            ours, theirs = (torch.from_numpy(one).to(device) for one in (left, right))
            made = torch.matmul(ours, theirs), F.conv1d(ours.T[None], theirs.T[:, :, None])[0].T
        return [one.numpy(force=True) for one in made], str(device)

    def product_settings(self, device: str) -> dict[str, str]:
        from tracediff.observe.adapters import torch_products

        return torch_products.settings(device)

    def full_precision(self) -> AbstractContextManager[None]:
        from tracediff.observe.adapters import torch_products

        return torch_products.full_precision()

    def coarse_products(self, bits: int, way: Way, is_quiet: Callable[[], bool]) -> AbstractContextManager[Any] | None:
        from tracediff.observe.adapters.torch_products import CoarseProducts

        context: AbstractContextManager[Any] = CoarseProducts(bits, way, is_quiet)
        return context

    # -- calls

    def entry(self, module: Module) -> str | None:
        if getattr(module, "_compiled_call_impl", None) is not None:
            return "_compiled_call_impl"
        forward = getattr(module, "forward", None)
        has_forward = forward is not None and getattr(forward, "__func__", forward) is not nn.Module.forward
        return "forward" if has_forward else None

    def hidden(self, module: Module, *, compile: bool | None) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "compiled by torch.jit"
        if compile is not False and _is_compiled(module):
            return "compiled by torch.compile"
        return ""

    def changed_later(self, module: Module) -> str:
        hooks = getattr(module, "_forward_hooks", None)
        return "a forward hook runs after it, and may change what its caller gets" if hooks else ""

    def compiling(self) -> Callable[[], bool]:
        return torch.compiler.is_compiling  # type: ignore[no-any-return]

    def blind(self) -> str:
        if torch.compiler.is_compiling():
            return f"{TRACED} torch.compile"
        if torch._C._get_tracing_state() is not None:
            return "inside torch.jit.trace"
        return ""

    def rank(self) -> tuple[int, int]:
        return torch_subclasses.rank()

    def once(self, modules: Sequence[Module]) -> str:
        if any(map(torch_subclasses.is_sharded, modules)):
            return "FSDP shards the parameters, and its own state cannot be put back"
        processes = torch_subclasses.processes()
        return f"{processes} processes run together, and each would have to run again" if processes > 1 else ""

    def functions(self) -> Iterable[Function]:
        return _FUNCTIONS

    def switches(self, modules: Sequence[Module], warn: Warn, *, compile: bool | None) -> AbstractContextManager[None]:
        return _switches(warn, compile)

    def passed_over(self) -> frozenset[str]:
        return frozenset(filter(None, (nn.modules.module.__file__, nn.modules.container.__file__)))

    # -- randomness

    def randoms(self) -> Iterable[Random]:
        return _RANDOMS

    def seeding(self) -> Iterator[tuple[Any, str]]:
        yield from super().seeding()
        yield torch, "manual_seed"

    def generator_state(self) -> Any:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices]

    def set_generator_state(self, state: Any) -> None:
        on_cpu, on_devices = state
        torch.set_rng_state(on_cpu)
        for device, kept in enumerate(on_devices):
            torch.cuda.set_rng_state(kept, device)

    def generator(self) -> Any:
        return torch.initial_seed()

    # -- the rest

    def no_grad(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.no_grad()
        return context


class _Calling(Calling, nn.Module):
    """A module whose call is a function's."""

    forward = Calling.run


@contextmanager
def _switches(warn: Callable[[str], None], compile: bool | None) -> Iterator[None]:
    """Turns `torch.compile` off, or else says whether it compiled anything meanwhile: of that, nothing can be seen."""
    before = _frames_compiled()
    key = exchange.apply(torch.jit, "script", _scripting_originals)
    try:
        with _uncompiled() if compile is False else nullcontext():
            yield
    finally:
        exchange.release(key)
        if _frames_compiled() > before:
            warn("torch.compile compiled code during the run, and what runs in it was not seen; with compile=False it is.")


@contextmanager
def _uncompiled() -> Iterator[None]:
    """No compiled graphs, and no transformer layers that run as one kernel."""
    is_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(is_fast)


def _scripting_originals(original: Any) -> Any:
    """`torch.jit.script` compiles the source of the functions that it finds: it finds the model's own."""

    @functools.wraps(original)
    def script(*args: Any, **kwargs: Any) -> Any:
        with held(), exchange.suspended(), allowed():
            return original(*args, **{**kwargs, "_frames_up": kwargs.get("_frames_up", 0) + 1})

    return script


def _frames_compiled() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return sum(dynamo.counters["frames"].values()) if dynamo is not None else 0


_undispatched = torch._C._DisableTorchDispatch
"""A context in which what watches a run's operations is not handed those of ours."""


def _from_numpy(array: Array) -> torch.Tensor:
    """A tensor that shares an array's memory."""
    with _undispatched():
        return torch.from_numpy(array)


def _unreadable(tensor: torch.Tensor) -> str:
    if nn.parameter.is_lazy(tensor):
        return "it has no shape before its first call"
    if tensor.is_meta or type(tensor).__name__ in ("FakeTensor", "FunctionalTensor"):
        return "its tensors have no values (meta device)"
    if why := torch_subclasses.why_unreadable(tensor):
        return why
    if tensor.dtype not in _RECORDED and not tensor.is_quantized:
        return f"no trace holds {tensor.dtype}"
    if tensor.is_nested:
        return "no trace holds nested tensors"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "inside a torch.func transform (vmap, grad)"
    if tensor.layout == torch.strided and _is_freed(tensor):
        return "its memory was given back (by FSDP, as a rule)"
    return ""


def _is_freed(tensor: torch.Tensor) -> bool:
    """Whether a tensor reaches behind the end of its memory."""
    plain = torch_subclasses.plain(tensor)
    return bool(plain.numel() and not plain.untyped_storage().nbytes())


def _is_compiled(module: nn.Module) -> bool:
    """Whether what a module does is compiled: wrapped by `torch.compile`, by its own method, or by a decorator on its forward."""
    wrapper = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    return (
        (wrapper is not None and isinstance(module, wrapper))
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(type(module).forward, "_torchdynamo_orig_callable")
    )


# -- functional sites


def _attention_attributes(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    query = argument(args, kwargs, 0, "query")
    scale = kwargs.get("scale")
    return {
        "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        "causal": bool(argument(args, kwargs, 5, "is_causal", False)),
    }


def _attention_dropout(args: Args, kwargs: Kwargs) -> str:
    p = argument(args, kwargs, 4, "dropout_p", 0.0)
    return f"dropout of p={p} draws inside the attention kernel" if p else ""


_ATTENTION = Function(
    F,
    "scaled_dot_product_attention",
    "attention",
    ("q", "k", "v", "mask", "dropout_p", "is_causal"),
    {"query": "q", "key": "k", "value": "v", "attn_mask": "mask"},
    _attention_attributes,
    _attention_dropout,
)
_SOFTMAX = functools.partial(
    Function, attribute="softmax", name="softmax", keys=("0", "dim"), renames={"input": "0"}, attributes=softmax_axis("input", "dim")
)


def _is_ranked(args: Args, kwargs: Kwargs) -> bool:
    """Whether the sorted values are scores: integers tie, and no framework promises the order of equal values."""
    return bool(argument(args, kwargs, 0, "input").is_floating_point())


_SELECTIONS: dict[str, tuple[tuple[str, ...], Callable[[Args, Kwargs], bool] | None]] = {
    "argmax": (("dim", "keepdim"), None),
    "argmin": (("dim", "keepdim"), None),
    "topk": (("k", "dim"), _is_ranked),
    "argsort": (("dim", "descending"), _is_ranked),
}
_FUNCTIONS = (
    _ATTENTION,
    *(_SOFTMAX(owner) for owner in (F, torch, torch.Tensor)),
    *(
        Function(owner, name, name, ("0", *keys), {"input": "0"}, applies=applies)
        for name, (keys, applies) in _SELECTIONS.items()
        for owner in (torch, torch.Tensor)
    ),
)


# -- random functions


def _bounds(first: int, low: Any, high: Any, names: tuple[str, str]) -> Note:
    """Notes ``low`` and ``high`` of functions that call them by other names."""

    def arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        return {
            "low": plain(argument(args, kwargs, first, names[0], low)),
            "high": plain(argument(args, kwargs, first + 1, names[1], high)),
        }

    return arguments


def _integer_bounds(first: int) -> Note:
    """``randint([low,] high, ...)`` and ``random_([low,] high)``."""

    def arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        given = [value for value in args[first:] if isinstance(value, int)][:2]
        low = kwargs.get("low", kwargs.get("from", given[0] if len(given) > 1 else 0))
        high = kwargs.get("high", kwargs.get("to", given[-1] if given else None))
        return {"low": low, "high": high}

    return arguments


def _dropout_arguments(args: Args, kwargs: Kwargs) -> dict[str, Any] | None:
    p = argument(args, kwargs, 1, "p", 0.5)
    is_training = argument(args, kwargs, 2, "training" if "train" not in kwargs else "train", True)
    return {"p": p} if is_training and 0 < p < 1 else None


def _dropout(owner: Any, attribute: str) -> Random:
    original = getattr(owner, attribute)

    def mask(args: Args, kwargs: Kwargs) -> Tensor:
        """The mask that the call is about to draw; the generator is put back to where it was."""
        values = argument(args, kwargs, 0, "input").detach()
        state = _generator_state(values.device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = original(torch.ones_like(values), argument(args, kwargs, 1, "p", 0.5), True) != 0
        _set_generator_state(values.device, state)
        return kept

    def apply(args: Args, kwargs: Kwargs, kept: Tensor) -> Tensor:
        values, p = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "p", 0.5)
        mask(args, kwargs)
        original(torch.ones_like(values.detach()), p, True)  # moves the generator on as the call would have
        factor = kept.to(values.dtype).div(1 - p)
        in_place = attribute.endswith("_") or argument(args, kwargs, 3, "inplace", False)
        return values.mul_(factor) if in_place else values * factor

    return Random(owner, attribute, "dropout", _dropout_arguments, mask, apply)


def _generator_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _odds(args: Args, kwargs: Kwargs) -> tuple[Tensor, int, bool]:
    return argument(args, kwargs, 0, "input"), -1, False


_NORMAL = constant(mean=0.0, std=1.0)
_UNIFORM = constant(low=0.0, high=1.0)
_T = torch.Tensor
_RANDOMS = (
    Random(torch, "randn", "random.normal", _NORMAL),
    Random(torch, "randn_like", "random.normal", _NORMAL),
    Random(torch, "rand", "random.uniform", _UNIFORM),
    Random(torch, "rand_like", "random.uniform", _UNIFORM),
    Random(torch, "randint", "random.randint", _integer_bounds(0)),
    Random(torch, "randint_like", "random.randint", _integer_bounds(1)),
    Random(torch, "randperm", "random.permutation", noted(n=None)),
    Random(torch, "normal", "random.normal", noted(mean=0.0, std=1.0)),
    Random(torch, "multinomial", "random.categorical", noted(1, num_samples=None, replacement=False), odds=_odds),
    Random(torch, "bernoulli", "random.bernoulli", noted(1, p="tensor")),
    Random(torch, "poisson", "random.poisson", constant()),
    Random(_T, "normal_", "random.normal", noted(1, mean=0.0, std=1.0)),
    Random(_T, "uniform_", "random.uniform", _bounds(1, 0.0, 1.0, ("from", "to"))),
    Random(_T, "random_", "random.randint", _integer_bounds(1)),
    Random(_T, "exponential_", "random.exponential", noted(1, lambd=1.0)),
    Random(_T, "bernoulli_", "random.bernoulli", noted(1, p=0.5)),
    Random(_T, "bernoulli", "random.bernoulli", noted(1, p="tensor")),
    Random(_T, "multinomial", "random.categorical", noted(1, num_samples=None, replacement=False), odds=_odds),
    Random(_T, "cauchy_", "random.cauchy", noted(1, median=0.0, sigma=1.0)),
    Random(_T, "log_normal_", "random.log_normal", noted(1, mean=1.0, std=2.0)),
    Random(_T, "geometric_", "random.geometric", noted(1, p=None)),
    _dropout(F, "dropout"),
    _dropout(F, "dropout1d"),
    _dropout(F, "dropout2d"),
    _dropout(F, "dropout3d"),
    _dropout(torch, "dropout"),
    _dropout(torch, "dropout_"),
    Random(F, "alpha_dropout", "alpha_dropout", _dropout_arguments),
    Random(F, "feature_alpha_dropout", "alpha_dropout", _dropout_arguments),
)

ADAPTER: Adapter = Torch()
