"""The base class of the adapters, the adapter of bare NumPy arrays, and what two adapters or more need."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.observe import python_rng
from tracediff.observe.containers import is_array
from tracediff.observe.provenance import digest_of, version_of
from tracediff.observe.types import Call, Casts, Choosing, Function, Keys, Module, Operations, ParameterKind, Placed, Random, Tensor, Warn
from tracediff.tensors.mantissa import Way

DEEPEST = 6
"""Nested lists and dicts below a module's attribute that are searched for modules and tensors; it also ends lists that hold themselves."""


class Arrays:
    """Reads, makes and changes NumPy arrays, which models of every framework may take and return."""

    def is_tensor(self, value: Any) -> bool:
        return is_array(value)

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return ""

    def view(self, tensor: Tensor) -> Array:
        return tensor  # type: ignore[no-any-return]

    def to_numpy(self, tensor: Tensor) -> Array:
        return np.array(tensor, order="C", copy=True)

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        return np.array(array) if like is None else np.array(array, dtype=like.dtype).reshape(shape_like(array, like))

    def beside(self, array: Array, like: Tensor) -> Tensor:
        return np.array(array)

    def owning(self, array: Array, like: Tensor) -> Tensor:
        return array

    def token(self, tensor: Tensor) -> Any:
        return digest_of(tensor)

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        return bool(digest_of(tensor) != token)

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        tensor[...] = values

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        return str(tensor.dtype), tuple(tensor.shape), "cpu"

    def placed(self, tensor: Tensor) -> Placed | None:
        return None


ARRAYS = Arrays()


class FrameworkAdapter(ABC):
    """The adapter of one framework, made from the few things that only the framework knows.

    The next framework NAME is a file ``adapters/NAME.py`` with a subclass and ``ADAPTER = Subclass()``, and a row in `FRAMEWORKS`
    (``adapters/registry.py``). The subclass must bring

    - ``name``: the framework's name in messages and traces, and of its distribution;
    - ``tensor_type``, ``module_type``: the classes of its tensors and of its modules;
    - `values_of`: a tensor's values as a NumPy array;
    - `tensor_of`: a new tensor with a NumPy array's values;
    - `fitted`: a new tensor in the shape, and of the dtype and device, of another one.

    With these alone modules in attributes (also in lists and dicts), calls of ``__call__``, taps, inputs and outputs are recorded, and
    other values can be handed back. Everything else has a default, which the subclass replaces where its framework

    - holds modules, parameters or attributes otherwise than in ``vars(module)``: `children`, `parameters`, `attributes`, `tables`,
      `is_training`;
    - lets calls come in elsewhere: `entry`; changes what they gave: `changed_later`; has files of its own between a module and its
      caller: `passed_over`;
    - computes lazily, or has tensors without values: `unreadable`;
    - can tell a change in place without reading the values: `token_of`, `is_changed_tensor`; does not take ``tensor[...] = values``:
      `assign_tensor`; has devices, or dtypes that print otherwise than NumPy's: `describe_tensor`, `beside`,
      `owning`;
    - compiles code: `hidden`, `compiling`, `blind`, `is_function`, `switches`; runs one model in several processes: `once`, `rank`,
      `placed`;
    - has attention, softmax and selections as functions: `functions`; has random functions: `randoms`, and generators:
      `generator_state`, `set_generator_state`, `generator`, `seeding`;
    - records gradients: `no_grad`, `gradient`, `set_gradient`; is to serve stubs and single sites: `calling`; has several floating
      dtypes: `cast`, `casts`; shows every operation: `rounding`, `operations`, `coarse_products`; multiplies matrices, perhaps in less than
      full precision: `products`, `devices`, `product_settings`, `full_precision`.
    """

    name: str
    tensor_type: type
    module_type: type

    # -- what a framework must bring

    @abstractmethod
    def values_of(self, tensor: Tensor) -> Array:
        """A tensor's values as a NumPy array of the same shape that may share its memory; NumPy has what it lacks from ml_dtypes."""

    @abstractmethod
    def tensor_of(self, array: Array) -> Tensor:
        """A tensor with a copy of an array's values, of the array's shape and dtype, on the default device."""

    @abstractmethod
    def fitted(self, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor's values in a shape of the same size, of the dtype and device of ``like``."""

    # -- tensors

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, self.tensor_type) or is_array(value)

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        return ""

    def placed(self, tensor: Tensor) -> Placed | None:
        return None

    def view(self, tensor: Tensor) -> Array:
        return tensor if isinstance(tensor, np.ndarray) else self.values_of(tensor)

    def to_numpy(self, tensor: Tensor) -> Array:
        return np.array(self.view(tensor), order="C", copy=True)

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        if isinstance(like, np.ndarray):
            return ARRAYS.from_numpy(array, like)
        tensor = self.tensor_of(array)
        return tensor if like is None else self.fitted(tensor, shape_like(array, like), like)

    def beside(self, array: Array, like: Tensor) -> Tensor:
        return self.tensor_of(array)

    def owning(self, array: Array, like: Tensor) -> Tensor:
        return self.beside(array, like)

    def token(self, tensor: Tensor) -> Any:
        return ARRAYS.token(tensor) if isinstance(tensor, np.ndarray) else self.token_of(tensor)

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        if isinstance(tensor, np.ndarray):
            return ARRAYS.is_changed(tensor, token)
        return self.is_changed_tensor(tensor, token)

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        if isinstance(tensor, np.ndarray):
            ARRAYS.assign(tensor, self.view(values))
        else:
            self.assign_tensor(tensor, values)

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        return ARRAYS.describe(tensor) if isinstance(tensor, np.ndarray) else self.describe_tensor(tensor)

    def token_of(self, tensor: Tensor) -> Any:
        """As `token`, of the framework's own tensors."""
        return digest_of(self.values_of(tensor))

    def is_changed_tensor(self, tensor: Tensor, token: Any) -> bool:
        """As `is_changed`, of the framework's own tensors."""
        return bool(self.token_of(tensor) != token)

    def assign_tensor(self, tensor: Tensor, values: Tensor) -> None:
        """As `assign`, to the framework's own tensors."""
        tensor[...] = values

    def describe_tensor(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        """As `describe`, of the framework's own tensors."""
        return ARRAYS.describe(tensor)

    # -- modules

    def is_model(self, value: Any) -> bool:
        return isinstance(value, self.module_type)

    def children(self, module: Module) -> Iterator[tuple[Keys, Module]]:
        yield from self._held(module, self.module_type)

    def parameters(self, module: Module) -> Iterator[tuple[Keys, Tensor, ParameterKind]]:
        yield from ((keys, tensor, "parameter") for keys, tensor in self._held(module, self.tensor_type))

    def _held(self, module: Module, kind: type) -> Iterator[tuple[Keys, Any]]:
        for name, value in list(vars(module).items()):
            yield from held_in(value, (name,), kind, closed=self.module_type)

    def tables(self, module: Module) -> list[dict[str, Any]]:
        own = getattr(module, "__dict__", None)
        return [own] if isinstance(own, dict) else []

    def gradient(self, tensor: Tensor) -> Tensor | None:
        return None

    def set_gradient(self, tensor: Tensor, gradient: Tensor | None) -> None:
        return None

    def attributes(self, module: Module) -> dict[str, Any]:
        return dict(vars(module))

    def is_training(self, module: Module) -> bool:
        return bool(getattr(module, "training", False))

    def calling(self, call: Call) -> Module:
        raise CaptureError(f"The adapter of {self.name} makes no modules.")

    def cast(self, modules: Sequence[Module], dtype: str) -> AbstractContextManager[None]:
        raise CaptureError(f"The adapter of {self.name} gives modules no other dtype.")

    # -- calls

    def entry(self, module: Module) -> str | None:
        return "__call__" if callable(module) else None

    def hidden(self, module: Module, *, compile: bool | None) -> str:
        return ""

    def changed_later(self, module: Module) -> str:
        return ""

    def compiling(self) -> Callable[[], bool]:
        return _never

    def blind(self) -> str:
        return ""

    def rank(self) -> tuple[int, int]:
        return 0, 1

    def once(self, modules: Sequence[Module]) -> str:
        return ""

    def is_function(self, value: Any) -> bool:
        return False

    def functions(self) -> Iterable[Function]:
        return ()

    def switches(self, modules: Sequence[Module], warn: Warn, *, compile: bool | None) -> AbstractContextManager[None]:
        return nullcontext()

    def passed_over(self) -> frozenset[str]:
        return frozenset()

    # -- randomness

    def randoms(self) -> Iterable[Random]:
        return ()

    def rng_state(self) -> Any:
        return self.generator_state(), python_rng.state()

    def set_rng_state(self, state: Any) -> None:
        own, pythons = state
        self.set_generator_state(own)
        python_rng.restore(pythons)

    def seeding(self) -> Iterator[tuple[Any, str]]:
        yield from python_rng.SEEDING

    def generator_state(self) -> Any:
        """The state of the framework's default generators."""
        return None

    def set_generator_state(self, state: Any) -> None:
        """Puts the framework's default generators back into a state."""
        assert state is None, "an adapter with generators brings both methods"

    def generator(self) -> Any:
        """What a trace says of the default generator: its seed or state, as plain data."""
        return None

    # -- the rest

    def no_grad(self) -> AbstractContextManager[None]:
        return nullcontext()

    def casts(self, dtype: str) -> AbstractContextManager[Casts] | None:
        return None

    def rounding(self, units: float, is_quiet: Callable[[], bool]) -> AbstractContextManager[Choosing | None]:
        return nullcontext()

    def operations(self, parameters: Iterable[tuple[str, Tensor]], is_quiet: Callable[[], bool]) -> Operations | None:
        return None

    def devices(self) -> Sequence[Tensor | None]:
        return (None,)

    def products(self, left: Array, right: Array, like: Tensor | None) -> tuple[Sequence[Array], str] | None:
        return None

    def product_settings(self, device: str) -> dict[str, str]:
        return {}

    def full_precision(self) -> AbstractContextManager[None]:
        return nullcontext()

    def coarse_products(self, bits: int, way: Way, is_quiet: Callable[[], bool]) -> AbstractContextManager[Any] | None:
        return None

    def info(self) -> dict[str, Any]:
        return {"versions": {self.name: version_of(self.name)}, "generator": self.generator()}


class Calling:
    """What makes a module, of whichever module class stands behind it, whose call is a function's: ``forward = Calling.run``."""

    eval: Callable[[], Any]

    def __init__(self, call: Call) -> None:
        super().__init__()
        self._call = call
        self.eval()

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self._call(*args, **kwargs)


def held_in(value: Any, keys: Keys, kind: type, *, closed: type) -> Iterator[tuple[Keys, Any]]:
    """The values of a kind in an attribute: the value itself, or what nested lists, tuples and dicts hold, with the keys that lead there.

    Objects of the class ``closed`` are not entered, though they may be dicts.
    """
    if isinstance(value, kind):
        yield keys, value
    elif len(keys) > DEEPEST or isinstance(value, closed):
        return
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from held_in(part, (*keys, index), kind, closed=closed)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from held_in(part, (*keys, key), kind, closed=closed)


def shape_like(array: Array, like: Tensor) -> tuple[int, ...]:
    """The shape of ``like`` where it has as many elements as the array, else the array's own."""
    shape = tuple(like.shape)
    return shape if array.size == math.prod(shape) else array.shape


def _never() -> bool:
    return False
