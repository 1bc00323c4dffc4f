"""The adapter for runs without a model: NumPy arrays, and the tensors of whatever framework the process has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.observe import python_rng
from tracediff.observe.adapters.base import ARRAYS
from tracediff.observe.types import (
    Adapter,
    Call,
    Casts,
    Choosing,
    Function,
    Keys,
    Module,
    Operations,
    ParameterKind,
    Placed,
    Random,
    Tensor,
    Tensors,
    Warn,
)
from tracediff.tensors.mantissa import Way


class Plain:
    """Asks the adapter that knows a tensor or a module; NumPy arrays are `ARRAYS`'s. ``adapters`` are those of the loaded frameworks."""

    name = "numpy"

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self.adapters = adapters

    def _tensors(self, value: Tensor) -> Tensors:
        """What reads a tensor."""
        if isinstance(value, np.ndarray):
            return ARRAYS
        return next((adapter for adapter in self.adapters if adapter.is_tensor(value)), ARRAYS)

    def _modules(self, module: Module) -> Adapter:
        """The adapter of a module."""
        return next(adapter for adapter in self.adapters if adapter.is_model(module))

    # -- tensors

    def is_tensor(self, value: Any) -> bool:
        return ARRAYS.is_tensor(value) or any(adapter.is_tensor(value) for adapter in self.adapters)

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return next((why for tensor in tensors if (why := self._tensors(tensor).unreadable([tensor]))), "")

    def placed(self, tensor: Tensor) -> Placed | None:
        return self._tensors(tensor).placed(tensor)

    def view(self, tensor: Tensor) -> Array:
        return self._tensors(tensor).view(tensor)

    def to_numpy(self, tensor: Tensor) -> Array:
        return self._tensors(tensor).to_numpy(tensor)

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        return self._tensors(like).from_numpy(array, like)

    def beside(self, array: Array, like: Tensor) -> Tensor:
        return self._tensors(like).beside(array, like)

    def owning(self, array: Array, like: Tensor) -> Tensor:
        return self._tensors(like).owning(array, like)

    def token(self, tensor: Tensor) -> Any:
        return self._tensors(tensor).token(tensor)

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        return self._tensors(tensor).is_changed(tensor, token)

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        tensors = self._tensors(tensor)
        tensors.assign(tensor, self.view(values) if tensors is ARRAYS else values)

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        return self._tensors(tensor).describe(tensor)

    # -- modules

    def is_model(self, value: Any) -> bool:
        return any(adapter.is_model(value) for adapter in self.adapters)

    def children(self, module: Module) -> Iterator[tuple[Keys, Module]]:
        return self._modules(module).children(module)

    def parameters(self, module: Module) -> Iterator[tuple[Keys, Tensor, ParameterKind]]:
        return self._modules(module).parameters(module)

    def tables(self, module: Module) -> list[dict[str, Any]]:
        return self._modules(module).tables(module)

    def gradient(self, tensor: Tensor) -> Tensor | None:
        return next((gradient for adapter in self.adapters if (gradient := adapter.gradient(tensor)) is not None), None)

    def set_gradient(self, tensor: Tensor, gradient: Tensor | None) -> None:
        for adapter in self.adapters:
            adapter.set_gradient(tensor, gradient)

    def attributes(self, module: Module) -> dict[str, Any]:
        return self._modules(module).attributes(module)

    def is_training(self, module: Module) -> bool:
        return self._modules(module).is_training(module)

    def calling(self, call: Call) -> Module:
        if len(self.adapters) != 1:
            raise CaptureError("Nothing tells which framework a module is to be of; name it with impl='torch' or impl='mlx'.")
        return self.adapters[0].calling(call)

    def cast(self, modules: Sequence[Module], dtype: str) -> AbstractContextManager[None]:
        own = ([module for module in modules if adapter.is_model(module)] for adapter in self.adapters)
        return _all_of([adapter.cast(modules, dtype) for adapter, modules in zip(self.adapters, own, strict=True)])

    def casts(self, dtype: str) -> AbstractContextManager[Casts] | None:
        return self.adapters[0].casts(dtype) if len(self.adapters) == 1 else None

    def rounding(self, units: float, is_quiet: Callable[[], bool]) -> AbstractContextManager[Choosing | None]:
        return _all_of([adapter.rounding(units, is_quiet) for adapter in self.adapters])

    def operations(self, parameters: Iterable[tuple[str, Tensor]], is_quiet: Callable[[], bool]) -> Operations | None:
        given = list(parameters)
        return next((found for adapter in self.adapters if (found := adapter.operations(given, is_quiet)) is not None), None)

    # -- products

    def devices(self) -> Sequence[Tensor | None]:
        return [like for adapter in self.adapters for like in adapter.devices()]

    def products(self, left: Array, right: Array, like: Tensor | None) -> tuple[Sequence[Array], str] | None:
        return next((made for adapter in self.adapters if (made := adapter.products(left, right, like)) is not None), None)

    def product_settings(self, device: str) -> dict[str, str]:
        return {name: value for adapter in self.adapters for name, value in adapter.product_settings(device).items()}

    def full_precision(self) -> AbstractContextManager[None]:
        return _all_of([adapter.full_precision() for adapter in self.adapters])

    def coarse_products(self, bits: int, way: Way, is_quiet: Callable[[], bool]) -> AbstractContextManager[Any] | None:
        contexts = [context for adapter in self.adapters if (context := adapter.coarse_products(bits, way, is_quiet)) is not None]
        return _all_of(contexts) if contexts else None

    # -- calls

    def entry(self, module: Module) -> str | None:
        return self._modules(module).entry(module)

    def hidden(self, module: Module, *, compile: bool | None) -> str:
        return self._modules(module).hidden(module, compile=compile)

    def changed_later(self, module: Module) -> str:
        return self._modules(module).changed_later(module)

    def rank(self) -> tuple[int, int]:
        return max((adapter.rank() for adapter in self.adapters), key=lambda one: one[1], default=(0, 1))

    def once(self, modules: Sequence[Module]) -> str:
        kinds = {id(adapter): adapter for adapter in map(self._modules, modules)}
        return next((why for adapter in kinds.values() if (why := adapter.once(modules))), "")

    def compiling(self) -> Callable[[], bool]:
        tests = [adapter.compiling() for adapter in self.adapters]
        return tests[0] if len(tests) == 1 else lambda: any(test() for test in tests)

    def blind(self) -> str:
        return next((why for adapter in self.adapters if (why := adapter.blind())), "")

    def is_function(self, value: Any) -> bool:
        return any(adapter.is_function(value) for adapter in self.adapters)

    def functions(self) -> Iterator[Function]:
        return (function for adapter in self.adapters for function in adapter.functions())

    def switches(self, modules: Sequence[Module], warn: Warn, *, compile: bool | None) -> AbstractContextManager[None]:
        return _all_of([adapter.switches(modules, warn, compile=compile) for adapter in self.adapters])

    def passed_over(self) -> frozenset[str]:
        return frozenset().union(*(adapter.passed_over() for adapter in self.adapters))

    # -- randomness

    def randoms(self) -> Iterator[Random]:
        return (random for adapter in self.adapters for random in adapter.randoms())

    def rng_state(self) -> Any:
        return python_rng.state(), [adapter.rng_state() for adapter in self.adapters]

    def set_rng_state(self, state: Any) -> None:
        pythons, states = state
        python_rng.restore(pythons)
        for adapter, part in zip(self.adapters, states, strict=True):
            adapter.set_rng_state(part)

    def seeding(self) -> Iterator[tuple[Any, str]]:
        found = [*python_rng.SEEDING, *(one for adapter in self.adapters for one in adapter.seeding())]
        yield from {(id(holder), name): (holder, name) for holder, name in found}.values()

    # -- the rest

    def no_grad(self) -> AbstractContextManager[None]:
        return _all_of([adapter.no_grad() for adapter in self.adapters])

    def info(self) -> dict[str, Any]:
        versions = {name: version for adapter in self.adapters for name, version in adapter.info()["versions"].items()}
        return {"versions": versions, "generator": None}


@contextmanager
def _all_of(contexts: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    """Several contexts as one."""
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
