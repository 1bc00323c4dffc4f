"""Everything that knows MLX: where calls come in, attention, softmax and random functions, compilation, bits in and out.

Calls are seen by exchanging ``__call__`` in the class that defines it (MLX has no hooks, and Python looks it up there); the wrapper
asks for each instance whether it is observed. So types, copies and pickles stay what they are.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import FunctionType, MethodType, ModuleType
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from mlx import nn

from tracediff.dtype import Array
from tracediff.observe import exchange, frames
from tracediff.observe.adapters.arguments import argument, noted, plain, softmax_axis
from tracediff.observe.adapters.base import Calling, FrameworkAdapter, held_in
from tracediff.observe.types import (
    TRACED,
    Adapter,
    Args,
    Call,
    Function,
    Keys,
    Kwargs,
    Module,
    ParameterKind,
    Random,
    Tensor,
    Warn,
)

_INTERNAL = frozenset({"_no_grad", "_training"})
_STATISTICS = ("running_mean", "running_var")
_PACKED = ("weight", "scales", "biases")
"""What a quantised module holds in place of its weight: codes packed into integers, and for each group of them a scale and an offset."""

_TF32 = "MLX_ENABLE_TF32"
"""The variable that MLX reads when it first multiplies; later changes are without effect."""

_Compiled = type(nn.gelu)


class Mlx(FrameworkAdapter):
    """The adapter of MLX."""

    name = "mlx"
    tensor_type = mx.array
    module_type = nn.Module

    # -- tensors

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        try:
            mx.eval([tensor for tensor in tensors if isinstance(tensor, mx.array)])
        except ValueError as error:
            if "function transformations" not in str(error):
                raise
            return f"{TRACED} mx.compile (or another function transformation)"
        return ""

    def values_of(self, tensor: Tensor) -> Array:
        if tensor.dtype == mx.bfloat16:
            return np.asarray(tensor.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.asarray(tensor)

    def tensor_of(self, array: Array) -> Tensor:
        if array.dtype == ml_dtypes.bfloat16:
            return mx.array(np.ascontiguousarray(array).view(np.uint16)).view(mx.bfloat16)
        return mx.array(np.array(array, dtype=array.dtype.newbyteorder("=")))

    def fitted(self, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return tensor.reshape(shape).astype(like.dtype)

    def token_of(self, tensor: Tensor) -> Any:
        # A copy shares the memory and keeps it from being used again: as long as it lives, an unchanged tensor has the same address.
        kept = copy.copy(tensor)
        return kept, address(kept)

    def is_changed_tensor(self, tensor: Tensor, token: Any) -> bool:
        kept, start = token
        if self.unreadable([tensor]):
            return False
        return bool(tensor.shape != kept.shape or tensor.dtype != kept.dtype or (tensor.size > 0 and address(tensor) != start))

    def describe_tensor(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        return str(tensor.dtype).removeprefix("mlx.core."), tuple(tensor.shape), str(mx.default_device().type).rpartition(".")[2]

    # -- modules

    def children(self, module: Module) -> Iterator[tuple[Keys, Module]]:
        for name, value in [*module.items(), *vars(module).items()]:
            yield from held_in(value, (name,), nn.Module, closed=nn.Module)

    def parameters(self, module: Module) -> Iterator[tuple[Keys, Tensor, ParameterKind]]:
        unpacked = _unpacked(module)
        for keys, array in _arrays(module):
            if unpacked is not None and keys[0] in _PACKED:
                continue
            yield keys, array, "buffer" if str(keys[0]).startswith("_") or keys[0] in _STATISTICS else "parameter"
        if unpacked is not None:
            yield ("weight",), unpacked, "parameter"

    def tables(self, module: Module) -> list[dict[str, Any]]:
        return [module, *super().tables(module)] if isinstance(module, nn.Module) else super().tables(module)

    def attributes(self, module: Module) -> dict[str, Any]:
        both = {**module, **vars(module)}
        return {name: value for name, value in both.items() if name not in _INTERNAL}

    def calling(self, call: Call) -> Module:
        return _Calling(call)

    @contextmanager
    def cast(self, modules: Sequence[Module], dtype: str) -> Iterator[None]:
        wanted = getattr(mx, dtype)
        undo = ExitStack()
        with undo:
            for module in modules:
                for keys, array in list(_arrays(module)):
                    if mx.issubdtype(array.dtype, mx.floating):
                        holder = functools.reduce(lambda held, key: held[key], keys[:-1], module)
                        undo.callback(holder.__setitem__, keys[-1], array)
                        holder[keys[-1]] = array.astype(wanted)
            yield

    # -- products

    def devices(self) -> Sequence[Tensor | None]:
        return [mx.Device(kind) for kind in (mx.cpu, mx.gpu) if mx.is_available(kind)]

    def products(self, left: Array, right: Array, like: Tensor | None) -> tuple[Sequence[Array], str] | None:
        device = like if isinstance(like, mx.Device) else mx.default_device()  # a tensor has no device of its own
        with mx.stream(device):
            ours, theirs = mx.array(left), mx.array(right)
            made = mx.matmul(ours, theirs), mx.conv1d(ours[None], theirs.T[:, None])[0]
            return [np.array(one) for one in made], str(device.type).rpartition(".")[2]

    def product_settings(self, device: str) -> dict[str, str]:
        return {_TF32: os.environ.get(_TF32, "not set, which is 1")}

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        if _TF32 in os.environ:  # what a person has set stays
            yield
            return
        os.environ[_TF32] = "0"
        try:
            yield
        finally:
            del os.environ[_TF32]

    # -- calls

    def is_function(self, value: Any) -> bool:
        return type(value) is _Compiled

    def functions(self) -> Iterable[Function]:
        return _FUNCTIONS

    def switches(self, modules: Sequence[Module], warn: Warn, *, compile: bool | None) -> AbstractContextManager[None]:
        return nullcontext() if compile is True else _without_compilation(modules, warn, now=compile is False)

    def passed_over(self) -> frozenset[str]:
        return frozenset({nn.layers.containers.__file__})

    # -- randomness

    def randoms(self) -> Iterable[Random]:
        return _RANDOMS

    def seeding(self) -> Iterator[tuple[Any, str]]:
        yield from super().seeding()
        yield mx.random, "seed"

    def generator_state(self) -> Any:
        return np.array(_key())

    def set_generator_state(self, state: Any) -> None:
        high, low = state  # a seed is nothing but the key that it makes
        mx.random.seed(int(high) << 32 | int(low))

    def generator(self) -> Any:
        return np.array(_key()).tolist()


class _Calling(Calling, nn.Module):
    """A module whose call is a function's."""

    __call__ = Calling.run


def _arrays(module: nn.Module) -> Iterator[tuple[Keys, mx.array]]:
    """The arrays that a module itself holds, with the keys that lead to each."""
    for name, value in module.items():
        yield from held_in(value, (name,), mx.array, closed=nn.Module)


def _unpacked(module: nn.Module) -> mx.array | None:
    """The weight that the codes of a quantised module stand for, in the dtype of its scales; None for any other module."""
    if not all(isinstance(module.get(name), mx.array) for name in _PACKED[:2]) or not hasattr(module, "bits"):
        return None
    packed, scales, offsets = map(module.get, _PACKED)
    sizes = {"group_size": module.group_size, "bits": module.bits, "mode": getattr(module, "mode", "affine")}
    return mx.dequantize(packed, scales, offsets, **sizes)


def _key() -> mx.array:
    """The default generator's key, which is all its state."""
    state: Any = mx.random.state
    key: mx.array = state[0]
    return key


# -- memory


def address(array: mx.array) -> int:
    """Where in memory an evaluated array starts."""
    if array.dtype == mx.bfloat16:
        return _Buffer.address(array)
    return int(np.asarray(array).__array_interface__["data"][0])


class _Buffer(ctypes.Structure):
    """The start of CPython's Py_buffer: NumPy does not know the format of bfloat16."""

    _fields_ = (
        ("start", ctypes.c_void_p),
        ("owner", ctypes.py_object),
        ("length", ctypes.c_ssize_t),
        ("rest", ctypes.c_ssize_t * 9),
    )

    @classmethod
    def address(cls, array: mx.array) -> int:
        buffer = cls()
        with_strides = 0x10 | 0x08
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(array), ctypes.byref(buffer), with_strides)
        start = buffer.start or 0
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
        return start


# -- compilation


class _Compilation:
    """`mx.compile` during a run: on until a reason turns it off, and on again afterwards. The run is warned of the first reason."""

    def __init__(self, warn: Warn) -> None:
        self._warn = warn
        self._is_off = False

    def turn_off(self, why: str) -> None:
        if not self._is_off:
            self._is_off = True
            mx.disable_compile()
            self._warn(f"mx.compile was off during the run: {why}.")

    def turn_off_for(self, function: Any, observed: set[int]) -> None:
        """Turns compilation off if a function that is compiled reaches an observed module."""
        if reaches(function, observed):
            self.turn_off(f"{_name(function)} is compiled and reaches observed modules")

    def restore(self) -> None:
        if self._is_off:
            mx.enable_compile()


@contextmanager
def _without_compilation(modules: Sequence[Any], warn: Warn, *, now: bool) -> Iterator[None]:
    """Turns `mx.compile` off for the run: at once with ``now``, else where compiled code reaches an observed module."""
    if not is_compiling():
        yield
        return
    observed = {id(module) for module in modules}
    compilation = _Compilation(warn)

    def watching(original: Any) -> Any:
        def compile(fun: Any, *args: Any, **kwargs: Any) -> Any:
            compilation.turn_off_for(fun, observed)
            return original(fun, *args, **kwargs)

        return compile

    if now:
        compilation.turn_off("as asked")
    compiled = [function for function in gc.get_referrers(_Compiled) if type(function) is _Compiled]
    for function in compiled:
        compilation.turn_off_for(function, observed)
    drawing = _places_of([function for function in compiled if draws(function)])
    keys = [exchange.apply(mx, "compile", watching), *(exchange.apply(*place, _uncompiled) for place in drawing)]
    try:
        yield
    finally:
        for key in keys:
            exchange.release(key)
        compilation.restore()


def is_compiling() -> bool:
    """Whether `mx.compile` is on: a compiled function's Python code then runs once for two calls."""
    runs = 0

    def count(x: mx.array) -> mx.array:
        nonlocal runs
        runs += 1
        return x

    compiled, one = mx.compile(count), mx.array(1.0)
    compiled(one)
    compiled(one)
    return runs == 1


def reaches(function: Any, observed: set[int], depth: int = 5) -> bool:
    """Whether a function's code can get hold of one of the observed modules: its instance, its closure, the globals it names."""
    if isinstance(function, nn.Module):
        return any(id(module) in observed for module in function.modules())
    return depth > 0 and any(reaches(part, observed, depth - 1) for part in _within(function))


def draws(function: Any) -> bool:
    """Whether a compiled function's own code names a random function, as samplers do: inside the compiled graph no draw can be seen."""
    codes = [part.__code__ for part in gc.get_referents(function) if isinstance(part, FunctionType)]
    return any("random" in code.co_names and not _DRAWING.isdisjoint(code.co_names) for code in codes)


def _places_of(functions: Sequence[Any]) -> list[tuple[ModuleType, str]]:
    """The modules that hold these functions, and by what name."""
    wanted = {id(function) for function in functions}
    modules = [module for module in list(sys.modules.values()) if wanted and isinstance(module, ModuleType)]
    return [(module, name) for module in modules for name, value in list(vars(module).items()) if id(value) in wanted]


def _uncompiled(original: Any) -> Any:
    """How to wrap a compiled function that draws: where a session observes, its Python code runs, and the draw is seen."""

    def called(*args: Any, **kwargs: Any) -> Any:
        if not frames.current() or not is_compiling():
            return original(*args, **kwargs)
        mx.disable_compile()
        try:
            return original(*args, **kwargs)
        finally:
            mx.enable_compile()

    called.__tracediff_original__ = original  # type: ignore[attr-defined]
    return called


def _within(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        named = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
        return [part for part in (*held, *named, *(value.__defaults__ or ())) if _may_reach(part)]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if type(value) is _Compiled:
        return [part for part in gc.get_referents(value) if _may_reach(part)]
    if isinstance(value, (list, tuple)):
        return list(value)
    return []


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _may_reach(value: Any) -> bool:
    return isinstance(value, (FunctionType, MethodType, functools.partial, list, tuple, nn.Module)) or type(value) is _Compiled


def _name(function: Any) -> str:
    inner = next((part for part in gc.get_referents(function) if isinstance(part, (FunctionType, MethodType))), function)
    return repr(getattr(inner, "__qualname__", type(inner).__name__))


# -- functional sites


def _attention_attributes(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    mask = kwargs.get("mask")
    return {"scale": _plain(kwargs.get("scale")), "causal": isinstance(mask, str) and mask == "causal"}


def _is_ranked(args: Args, kwargs: Kwargs) -> bool:
    """Whether the sorted values are scores: integers tie, and no framework promises the order of equal values."""
    return bool(mx.issubdtype(argument(args, kwargs, 0, "a").dtype, mx.floating))


_FUNCTIONS = (
    Function(mx.fast, "scaled_dot_product_attention", "attention", ("q", "k", "v"), None, _attention_attributes),
    Function(mx, "softmax", "softmax", ("0", "axis"), None, softmax_axis("a", "axis")),
    *(Function(owner, name, name, ("0", "axis", "keepdims"), {"a": "0"}) for name in ("argmax", "argmin") for owner in (mx, mx.array)),
    Function(mx, "topk", "topk", ("0", "k", "axis"), {"a": "0"}, applies=_is_ranked),
    Function(mx, "argsort", "argsort", ("0", "axis"), {"a": "0"}, applies=_is_ranked),
    Function(mx, "argpartition", "argpartition", ("0", "kth", "axis"), {"a": "0"}, applies=_is_ranked),
)


# -- random functions


def _plain(value: Any) -> Any:
    """An argument as it is noted: numbers as they are, arrays of one number as the number, others as the word."""
    if isinstance(value, mx.array):
        return value.item() if value.size == 1 else "tensor"
    return plain(value)


_noted = functools.partial(noted, as_noted=_plain)


def _normal_arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    mean, std = argument(args, kwargs, 2, "loc"), argument(args, kwargs, 3, "scale")
    return {"mean": 0.0 if mean is None else _plain(mean), "std": 1.0 if std is None else _plain(std)}


def _laplace_arguments(args: Args, kwargs: Kwargs) -> dict[str, Any]:
    return {"mean": _plain(argument(args, kwargs, 2, "loc", 0.0)), "scale": _plain(argument(args, kwargs, 3, "scale", 1.0))}


def _odds(args: Args, kwargs: Kwargs) -> tuple[Tensor, int, bool]:
    return argument(args, kwargs, 0, "logits"), argument(args, kwargs, 1, "axis", -1), True


_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_RANDOMS = (
    Random(mx.random, "normal", "random.normal", _normal_arguments),
    Random(mx.random, "uniform", "random.uniform", _noted(low=0.0, high=1.0)),
    Random(mx.random, "randint", "random.randint", _noted(low=None, high=None)),
    Random(mx.random, "categorical", "random.categorical", _noted(1, axis=-1), odds=_odds),
    Random(mx.random, "bernoulli", "random.bernoulli", _noted(p=0.5), inside=(_DROPOUTS, "dropout")),
    Random(mx.random, "permutation", "random.permutation", _noted()),
    Random(mx.random, "gumbel", "random.gumbel", _noted()),
    Random(mx.random, "truncated_normal", "random.truncated_normal", _noted(lower=None, upper=None)),
    Random(mx.random, "laplace", "random.laplace", _laplace_arguments),
    Random(mx.random, "multivariate_normal", "random.multivariate_normal", _noted()),
)

_DRAWING = frozenset(random.attribute for random in _RANDOMS)

ADAPTER: Adapter = Mlx()
