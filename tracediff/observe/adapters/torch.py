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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tracediff.dtype import BY_NAME, Array
from tracediff.observe import frames, python_rng
from tracediff.observe.adapters.base import Function, Random
from tracediff.observe.containers import is_array
from tracediff.observe.observer import Tensor
from tracediff.observe.patching import patch
from tracediff.observe.provenance import digest_of

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

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

for _module in (nn.modules.module, nn.modules.container):
    if _module.__file__:
        frames.passed_over.add(_module.__file__)


class Torch:
    """The adapter of PyTorch."""

    name = "torch"

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor) or is_array(value)

    def is_model(self, value: Any) -> bool:
        return isinstance(value, nn.Module)

    def children(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        yield from (((name,), child) for name, child in module._modules.items() if child is not None)
        for name, value in list(vars(module).items()):
            if name not in _INTERNAL and isinstance(value, (list, tuple, dict)):
                yield from _modules_in(value, (name,))

    def parameters(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Tensor, Literal["parameter", "buffer"]]]:
        yield from (((name,), value, "parameter") for name, value in module._parameters.items() if value is not None)
        yield from (((name,), value, "buffer") for name, value in module._buffers.items() if value is not None)

    def attributes(self, module: Any) -> dict[str, Any]:
        return {name: value for name, value in vars(module).items() if name not in _INTERNAL}

    def is_training(self, module: Any) -> bool:
        return bool(module.training)

    def entry(self, module: Any) -> str | None:
        if getattr(module, "_compiled_call_impl", None) is not None:
            return "_compiled_call_impl"
        forward = getattr(module, "forward", None)
        has_forward = forward is not None and getattr(forward, "__func__", forward) is not nn.Module.forward
        return "forward" if has_forward else None

    def hidden(self, module: Any, *, compile: bool | None) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "compiled by torch.jit"
        if compile is not False and _is_compiled(module):
            return "compiled by torch.compile"
        return ""

    def compiling(self) -> Callable[[], bool]:
        return torch.compiler.is_compiling  # type: ignore[no-any-return]

    def blind(self) -> str:
        if torch.compiler.is_compiling():
            return "inside a region compiled by torch.compile"
        if torch._C._get_tracing_state() is not None:
            return "inside torch.jit.trace"
        return ""

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return next((why for tensor in tensors if isinstance(tensor, torch.Tensor) and (why := _unreadable(tensor))), "")

    def view(self, tensor: Tensor) -> Array:
        if isinstance(tensor, np.ndarray):
            return tensor
        if tensor.layout != torch.strided:
            tensor = tensor.detach().to_dense()
        if tensor.dtype in _UNSEEN_BITS:
            bits, view = _UNSEEN_BITS[tensor.dtype]
            return tensor.detach().contiguous().view(bits).numpy(force=True).view(view)  # type: ignore[no-any-return]
        if tensor.dtype == torch.complex32:
            tensor = tensor.to(torch.complex64)
        elif tensor.is_quantized:
            tensor = tensor.detach().dequantize()
        return tensor.numpy(force=True)  # type: ignore[no-any-return]

    def to_numpy(self, tensor: Tensor) -> Array:
        return np.array(self.view(tensor), order="C", copy=True)

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        if isinstance(like, np.ndarray):
            return np.array(array, dtype=like.dtype).reshape(_shape(array, like.shape))
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype in _BITS_OF:
            bits, dtype = _BITS_OF[array.dtype]
            tensor = torch.from_numpy(array.view(torch.empty(0, dtype=bits).numpy().dtype).copy()).view(dtype)
        else:
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
        if like is None:
            return tensor
        return tensor.reshape(_shape(array, tuple(like.shape))).to(device=like.device, dtype=like.dtype)

    def token(self, tensor: Tensor) -> Any:
        try:
            return tensor._version
        except (RuntimeError, AttributeError):  # made in inference mode, or NumPy's
            return digest_of(self.view(tensor))

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        return bool(self.token(tensor) != token)

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        if isinstance(tensor, np.ndarray):
            tensor[...] = self.view(values)
            return
        with torch.no_grad():
            tensor.copy_(values)

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        device = str(tensor.device) if isinstance(tensor, torch.Tensor) else "cpu"
        return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), device

    def is_function(self, value: Any) -> bool:
        return False

    def functions(self) -> Iterator[Function]:
        return iter(_FUNCTIONS)

    def randoms(self) -> Iterator[Random]:
        return iter(_RANDOMS)

    def rng_state(self) -> Any:
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in devices], python_rng.state()

    def set_rng_state(self, state: Any) -> None:
        torch.set_rng_state(state[0])
        for device, kept in enumerate(state[1]):
            torch.cuda.set_rng_state(kept, device)
        python_rng.restore(state[2])

    def switches(self, modules: Sequence[Any], warn: Callable[[str], None], *, compile: bool | None) -> AbstractContextManager[None]:
        return _switches(warn, compile)

    def calling(self, call: Callable[..., Any]) -> Any:
        return _Calling(call)

    def no_grad(self) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = torch.no_grad()
        return context

    @contextmanager
    def cast(self, modules: Sequence[Any], dtype: str) -> Iterator[None]:
        wanted = getattr(torch, dtype)
        undo = ExitStack()
        with undo:
            if wanted.itemsize > torch.get_default_dtype().itemsize:  # what the code itself makes (a time, a window) is to be as exact
                undo.callback(torch.set_default_dtype, torch.get_default_dtype())
                torch.set_default_dtype(wanted)
            for module in modules:
                for table in (module._parameters, module._buffers, vars(module)):
                    for name, value in list(table.items()):
                        if isinstance(value, torch.Tensor) and value.is_floating_point():
                            undo.callback(table.__setitem__, name, value)
                            undo.callback(setattr, value, "data", value.data)
                            value.data = value.data.to(wanted)
            yield

    def info(self) -> dict[str, Any]:
        return {"versions": {"torch": torch.__version__}, "generator": torch.initial_seed()}


class _Calling(nn.Module):
    """A module whose call is a function's."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self._call = call
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)


@contextmanager
def _switches(warn: Callable[[str], None], compile: bool | None) -> Iterator[None]:
    """Turns `torch.compile` off, or else says whether it compiled anything meanwhile: of that, nothing can be seen."""
    before = _frames_compiled()
    key = patch.apply(torch.jit, "script", _scripting_originals)
    try:
        with _uncompiled() if compile is False else nullcontext():
            yield
    finally:
        patch.release(key)
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
        with patch.suspended():
            return original(*args, **{**kwargs, "_frames_up": kwargs.get("_frames_up", 0) + 1})

    return script


def _frames_compiled() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return sum(dynamo.counters["frames"].values()) if dynamo is not None else 0


def _unreadable(tensor: torch.Tensor) -> str:
    if tensor.is_meta or type(tensor).__name__ in ("FakeTensor", "FunctionalTensor"):
        return "its tensors have no values (meta device)"
    if tensor.dtype not in _RECORDED and not tensor.is_quantized:
        return f"no trace holds {tensor.dtype}"
    if tensor.is_nested:
        return "no trace holds nested tensors"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "inside a torch.func transform (vmap, grad)"
    return ""


def _is_compiled(module: nn.Module) -> bool:
    """Whether what a module does is compiled: wrapped by `torch.compile`, by its own method, or by a decorator on its forward."""
    wrapper = getattr(sys.modules.get("torch._dynamo"), "OptimizedModule", None)
    return (
        (wrapper is not None and isinstance(module, wrapper))
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(type(module).forward, "_torchdynamo_orig_callable")
    )


def _modules_in(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(part, nn.Module):
            yield (*keys, key), part
        elif isinstance(part, (list, tuple, dict)) and len(keys) < 6:
            yield from _modules_in(part, (*keys, key))


def _shape(array: Array, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape) if array.size == math.prod(shape) else array.shape


# -- functional sites


def _argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _attention_attributes(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    query = _argument(args, kwargs, 0, "query")
    scale = kwargs.get("scale")
    return {
        "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        "causal": bool(_argument(args, kwargs, 5, "is_causal", False)),
    }


def _attention_dropout(args: Args, kwargs: Kwargs) -> str:
    p = _argument(args, kwargs, 4, "dropout_p", 0.0)
    return f"dropout of p={p} draws inside the attention kernel" if p else ""


def _softmax_attributes(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    values, axis = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "dim")
    return {"axis": axis - values.ndim if isinstance(axis, int) and axis >= 0 else axis}


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
    Function, attribute="softmax", name="softmax", keys=("0", "dim"), renames={"input": "0"}, attributes=_softmax_attributes
)


def _is_ranked(args: Args, kwargs: Kwargs) -> bool:
    """Whether what is sorted are scores; whole numbers tie, and the order of equal ones is no framework's promise."""
    return bool(_argument(args, kwargs, 0, "input").is_floating_point())


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


def _plain(value: Any) -> Any:
    """An argument as it is noted: numbers as they are, tensors as the word."""
    return value if isinstance(value, (int, float, bool, str)) or value is None else "tensor"


def _noted(first: int = 0, **defaults: Any) -> Callable[[Args, Kwargs], dict[str, Any]]:
    """Notes the arguments of these names, given by position from ``first`` on or by keyword."""

    def arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        names = enumerate(defaults.items(), first)
        return {name: _plain(_argument(args, kwargs, position, name, default)) for position, (name, default) in names}

    return arguments


def _always(**noted: Any) -> Callable[[Args, Kwargs], dict[str, Any]]:
    return lambda args, kwargs: dict(noted)


def _bounds(first: int, low: Any, high: Any, names: tuple[str, str]) -> Callable[[Args, Kwargs], dict[str, Any]]:
    """Notes ``low`` and ``high`` of functions that call them by other names."""

    def arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        return {
            "low": _plain(_argument(args, kwargs, first, names[0], low)),
            "high": _plain(_argument(args, kwargs, first + 1, names[1], high)),
        }

    return arguments


def _integer_bounds(first: int) -> Callable[[Args, Kwargs], dict[str, Any]]:
    """``randint([low,] high, ...)`` and ``random_([low,] high)``."""

    def arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
        given = [value for value in args[first:] if isinstance(value, int)][:2]
        low = kwargs.get("low", kwargs.get("from", given[0] if len(given) > 1 else 0))
        high = kwargs.get("high", kwargs.get("to", given[-1] if given else None))
        return {"low": low, "high": high}

    return arguments


def _dropout_arguments(args: Args, kwargs: Kwargs) -> dict[str, Any] | None:
    p = _argument(args, kwargs, 1, "p", 0.5)
    is_training = _argument(args, kwargs, 2, "training" if "train" not in kwargs else "train", True)
    return {"p": p} if is_training and 0 < p < 1 else None


def _dropout(owner: Any, attribute: str) -> Random:
    original = getattr(owner, attribute)

    def mask(args: Args, kwargs: Kwargs) -> Tensor:
        """The mask that the call is about to draw; the generator is put back to where it was."""
        values = _argument(args, kwargs, 0, "input").detach()
        state = _generator_state(values.device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = original(torch.ones_like(values), _argument(args, kwargs, 1, "p", 0.5), True) != 0
        _set_generator_state(values.device, state)
        return kept

    def apply(args: Args, kwargs: Kwargs, kept: Tensor) -> Tensor:
        values, p = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "p", 0.5)
        mask(args, kwargs)
        original(torch.ones_like(values.detach()), p, True)  # moves the generator on as the call would have
        factor = kept.to(values.dtype).div(1 - p)
        in_place = attribute.endswith("_") or _argument(args, kwargs, 3, "inplace", False)
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
    return _argument(args, kwargs, 0, "input"), -1, False


_NORMAL = _always(mean=0.0, std=1.0)
_UNIFORM = _always(low=0.0, high=1.0)
_T = torch.Tensor
_RANDOMS = (
    Random(torch, "randn", "random.normal", _NORMAL),
    Random(torch, "randn_like", "random.normal", _NORMAL),
    Random(torch, "rand", "random.uniform", _UNIFORM),
    Random(torch, "rand_like", "random.uniform", _UNIFORM),
    Random(torch, "randint", "random.randint", _integer_bounds(0)),
    Random(torch, "randint_like", "random.randint", _integer_bounds(1)),
    Random(torch, "randperm", "random.permutation", _noted(n=None)),
    Random(torch, "normal", "random.normal", _noted(mean=0.0, std=1.0)),
    Random(torch, "multinomial", "random.categorical", _noted(1, num_samples=None, replacement=False), odds=_odds),
    Random(torch, "bernoulli", "random.bernoulli", _noted(1, p="tensor")),
    Random(torch, "poisson", "random.poisson", _always()),
    Random(_T, "normal_", "random.normal", _noted(1, mean=0.0, std=1.0)),
    Random(_T, "uniform_", "random.uniform", _bounds(1, 0.0, 1.0, ("from", "to"))),
    Random(_T, "random_", "random.randint", _integer_bounds(1)),
    Random(_T, "exponential_", "random.exponential", _noted(1, lambd=1.0)),
    Random(_T, "bernoulli_", "random.bernoulli", _noted(1, p=0.5)),
    Random(_T, "bernoulli", "random.bernoulli", _noted(1, p="tensor")),
    Random(_T, "multinomial", "random.categorical", _noted(1, num_samples=None, replacement=False), odds=_odds),
    Random(_T, "cauchy_", "random.cauchy", _noted(1, median=0.0, sigma=1.0)),
    Random(_T, "log_normal_", "random.log_normal", _noted(1, mean=1.0, std=2.0)),
    Random(_T, "geometric_", "random.geometric", _noted(1, p=None)),
    _dropout(F, "dropout"),
    _dropout(F, "dropout1d"),
    _dropout(F, "dropout2d"),
    _dropout(F, "dropout3d"),
    _dropout(torch, "dropout"),
    _dropout(torch, "dropout_"),
    Random(F, "alpha_dropout", "alpha_dropout", _dropout_arguments),
    Random(F, "feature_alpha_dropout", "alpha_dropout", _dropout_arguments),
)

ADAPTER = Torch()
