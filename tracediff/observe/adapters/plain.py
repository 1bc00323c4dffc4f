"""The adapter for runs without a model: NumPy arrays, and the tensors of whatever framework the process has loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.observe import python_rng
from tracediff.observe.adapters.base import Adapter, Function, Random, loaded
from tracediff.observe.containers import is_array
from tracediff.observe.observer import Tensor
from tracediff.observe.provenance import digest_of


class Plain:
    """Hands each tensor to the adapter that knows it; NumPy arrays are its own."""

    name = "numpy"

    def __init__(self) -> None:
        self.adapters = loaded()

    def _of(self, value: Any) -> Adapter | None:
        if isinstance(value, np.ndarray):
            return None
        return next((adapter for adapter in self.adapters if adapter.is_tensor(value) or adapter.is_model(value)), None)

    def _one(self, value: Any) -> Adapter:
        adapter = self._of(value)
        assert adapter is not None
        return adapter

    def is_tensor(self, value: Any) -> bool:
        return is_array(value) or any(adapter.is_tensor(value) for adapter in self.adapters)

    def is_model(self, value: Any) -> bool:
        return any(adapter.is_model(value) for adapter in self.adapters)

    def children(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        return self._one(module).children(module)

    def parameters(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Tensor, Literal["parameter", "buffer"]]]:
        return self._one(module).parameters(module)

    def attributes(self, module: Any) -> dict[str, Any]:
        return self._one(module).attributes(module)

    def is_training(self, module: Any) -> bool:
        return self._one(module).is_training(module)

    def entry(self, module: Any) -> str | None:
        return self._one(module).entry(module)

    def hidden(self, module: Any, *, compile: bool | None) -> str:
        return self._one(module).hidden(module, compile=compile)

    def compiling(self) -> Callable[[], bool]:
        tests = [adapter.compiling() for adapter in self.adapters]
        return tests[0] if len(tests) == 1 else lambda: any(test() for test in tests)

    def blind(self) -> str:
        return next((why for adapter in self.adapters if (why := adapter.blind())), "")

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return next((why for tensor in tensors if (adapter := self._of(tensor)) and (why := adapter.unreadable([tensor]))), "")

    def view(self, tensor: Tensor) -> Array:
        adapter = self._of(tensor)
        return adapter.view(tensor) if adapter else tensor

    def to_numpy(self, tensor: Tensor) -> Array:
        return np.array(self.view(tensor), order="C", copy=True)

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        adapter = self._of(like) if like is not None else None
        if adapter:
            return adapter.from_numpy(array, like)
        if like is None:
            return np.array(array)
        return np.array(array, dtype=like.dtype).reshape(like.shape if array.size == like.size else array.shape)

    def token(self, tensor: Tensor) -> Any:
        adapter = self._of(tensor)
        return adapter.token(tensor) if adapter else digest_of(tensor)

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        adapter = self._of(tensor)
        return adapter.is_changed(tensor, token) if adapter else digest_of(tensor) != token

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        adapter = self._of(tensor)
        if adapter:
            adapter.assign(tensor, values)
        else:
            tensor[...] = self.view(values)

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        adapter = self._of(tensor)
        return adapter.describe(tensor) if adapter else (str(tensor.dtype), tuple(tensor.shape), "cpu")

    def is_function(self, value: Any) -> bool:
        return any(adapter.is_function(value) for adapter in self.adapters)

    def functions(self) -> Iterator[Function]:
        return (function for adapter in self.adapters for function in adapter.functions())

    def randoms(self) -> Iterator[Random]:
        return (random for adapter in self.adapters for random in adapter.randoms())

    def rng_state(self) -> Any:
        return python_rng.state(), [adapter.rng_state() for adapter in self.adapters]

    def set_rng_state(self, state: Any) -> None:
        python_rng.restore(state[0])
        for adapter, part in zip(self.adapters, state[1], strict=True):
            adapter.set_rng_state(part)

    def switches(self, modules: Sequence[Any], warn: Callable[[str], None], *, compile: bool | None) -> AbstractContextManager[None]:
        stack = ExitStack()
        for adapter in self.adapters:
            stack.enter_context(adapter.switches(modules, warn, compile=compile))
        return stack  # type: ignore[return-value]

    def calling(self, call: Callable[..., Any]) -> Any:
        if len(self.adapters) != 1:
            raise CaptureError("Nothing tells which framework a module is to be of; name it with impl='torch' or impl='mlx'.")
        return self.adapters[0].calling(call)

    def no_grad(self) -> AbstractContextManager[None]:
        stack = ExitStack()
        for adapter in self.adapters:
            stack.enter_context(adapter.no_grad())
        return stack  # type: ignore[return-value]

    def cast(self, modules: Sequence[Any], dtype: str) -> AbstractContextManager[None]:
        stack = ExitStack()
        for adapter in self.adapters:
            stack.enter_context(adapter.cast([module for module in modules if adapter.is_model(module)], dtype))
        return stack  # type: ignore[return-value]

    def info(self) -> dict[str, Any]:
        versions = {name: version for adapter in self.adapters for name, version in adapter.info()["versions"].items()}
        return {"versions": versions, "generator": None}
