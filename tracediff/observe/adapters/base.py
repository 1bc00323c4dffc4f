"""What capture asks of a framework, and the choice of one by type: no framework is imported to find out.

The files `torch` and `mlx` beside this one have these methods in this order, and are the only modules that import a framework.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol

from tracediff.dtype import Array
from tracediff.errors import CaptureError, MissingDependencyError
from tracediff.observe.observer import Tensor

FRAMEWORKS = {"torch": "torch", "mlx": "mlx.core"}
"""The frameworks with an adapter, and the module whose presence in `sys.modules` tells that one is in use."""

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Function:
    """A functional site: an attribute to patch, its canonical name, and how its arguments are named.

    ``keys`` are the ends of positional arguments, ``renames`` those of keywords; ``attributes`` gives the scalars that are recorded
    as ``attr[...]`` from (args, kwargs), with defaults filled in; ``hides`` says what such a call does unseen, if anything.
    ``is_own``: it is the model's own code and no kernel. Then what it calls is seen too, a text that it takes or gives is data, and a
    call with neither arrays nor texts is none of interest. ``longer`` is the name for it where two of that name are called in one module.
    ``applies`` tells the calls that are shown; without it all are.
    """

    owner: Any
    attribute: str
    name: str
    keys: tuple[str, ...] = ()
    renames: Mapping[str, str] | None = None
    attributes: Callable[[tuple[Any, ...], Mapping[str, Any]], dict[str, Any]] | None = None
    hides: Callable[[tuple[Any, ...], Mapping[str, Any]], str] | None = None
    is_own: bool = False
    longer: str = ""
    applies: Callable[[tuple[Any, ...], Mapping[str, Any]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Random:
    """A random function: an attribute to patch, its canonical name, and what is noted of a call's arguments.

    ``arguments`` returns None where this call draws nothing. ``mask`` and ``apply`` are for functions that draw something and use it
    at once (dropout): what this call is about to draw, and the result under another draw. ``inside`` gives modules of these types
    another name for it. ``odds`` tells what a call chooses by: the weights, the axis of the choices, and whether they are logarithms.
    """

    owner: Any
    attribute: str
    name: str
    arguments: Callable[[tuple[Any, ...], Mapping[str, Any]], dict[str, Any] | None]
    mask: Callable[[tuple[Any, ...], Mapping[str, Any]], Tensor] | None = None
    apply: Callable[[tuple[Any, ...], Mapping[str, Any], Tensor], Tensor] | None = None
    inside: tuple[tuple[type, ...], str] | None = None
    odds: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, int, bool]] | None = None

    @property
    def full_name(self) -> str:
        """The function's name as it is called: ``torch.randn``, ``Tensor.normal_``."""
        return f"{self.owner.__name__}.{self.attribute}"

    def name_in(self, module: Any) -> str:
        """The canonical name of a draw that a module makes: in those of ``inside`` another one."""
        return self.inside[1] if self.inside is not None and isinstance(module, self.inside[0]) else self.name


class Adapter(Protocol):
    """One framework, seen from outside."""

    name: str

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor of this framework, or a NumPy array."""

    def is_model(self, value: Any) -> bool:
        """Whether a value is one of this framework's modules."""

    def children(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
        """The modules that a module holds itself, with the keys that lead to each, also in lists, dicts and private attributes."""

    def parameters(self, module: Any) -> Iterator[tuple[tuple[str | int, ...], Tensor, Literal["parameter", "buffer"]]]:
        """The module's own parameters and buffers, with the keys that lead to each."""

    def attributes(self, module: Any) -> dict[str, Any]:
        """The module's own attributes apart from parameters, buffers and modules."""

    def is_training(self, module: Any) -> bool:
        """Whether a module is in training mode."""

    def entry(self, module: Any) -> str | None:
        """The attribute through which calls of a module come in; None where it cannot be called."""

    def hidden(self, module: Any, *, compile: bool | None) -> str:
        """Why nothing below a module can be seen ("compiled by torch.compile"), or the empty text; ``compile`` as in `switches`."""

    def compiling(self) -> Callable[[], bool]:
        """A function that says whether code is being compiled; the framework's own compiler understands it."""

    def blind(self) -> str:
        """Why nothing can be seen at present ("inside torch.jit.trace"), or the empty text."""

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        """Why the values of some of the tensors cannot be read, or the empty text; afterwards they are evaluated."""

    def view(self, tensor: Tensor) -> Array:
        """A tensor's values as a NumPy array that may share its memory; bfloat16 and float8 by ml_dtypes."""

    def to_numpy(self, tensor: Tensor) -> Array:
        """A tensor's values at this moment, as a NumPy array of one's own."""

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        """A tensor with an array's values, of the dtype and device of ``like`` and its shape where the sizes agree."""

    def token(self, tensor: Tensor) -> Any:
        """What tells later whether the tensor was changed in place."""

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        """Whether the tensor may have been changed in place since `token`; never False where it was."""

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        """Gives a tensor other values in place."""

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        """A tensor's dtype name, shape and device; nothing is evaluated."""

    def is_function(self, value: Any) -> bool:
        """Whether a value is a function that this framework made of a Python function (a compiled one)."""

    def functions(self) -> Iterable[Function]:
        """The functional sites: attention, softmax, and the selections, whose outputs are ids."""

    def randoms(self) -> Iterable[Random]:
        """The random functions."""

    def rng_state(self) -> Any:
        """The state of the framework's default generators, and of Python's and NumPy's."""

    def set_rng_state(self, state: Any) -> None:
        """Puts all of them back into a state."""

    def switches(self, modules: Sequence[Any], warn: Callable[[str], None], *, compile: bool | None) -> AbstractContextManager[None]:
        """Framework switches for the length of a run: compiled regions with observed modules inside are not used.

        ``compile`` False turns compilation and fused layers off wherever that can be done, True leaves them on.
        """

    def calling(self, call: Callable[..., Any]) -> Any:
        """A module without parameters whose call is the given one."""

    def no_grad(self) -> AbstractContextManager[None]:
        """A context in which no gradients are recorded."""

    def cast(self, modules: Sequence[Any], dtype: str) -> AbstractContextManager[None]:
        """A context in which the modules' floating parameters, buffers and plain tensors are of another dtype; then as they were."""

    def info(self) -> dict[str, Any]:
        """What a trace says of the framework: ``versions``, and the seed or state of its generators."""


def named(name: str) -> Adapter:
    """The adapter of that name; the framework is imported."""
    if name in ("plain", "numpy"):
        return import_module("tracediff.observe.adapters.plain").Plain()  # type: ignore[no-any-return]
    if name not in FRAMEWORKS:
        raise CaptureError(f"No adapter {name!r}; there are: {', '.join(FRAMEWORKS)}.")
    try:
        module = import_module(f"tracediff.observe.adapters.{name}")
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} cannot be imported here ({error}). Install it with: pip install 'tensor-tracediff[{name}]'"
        ) from error
    return module.ADAPTER  # type: ignore[no-any-return]


def loaded() -> list[Adapter]:
    """The adapters of the frameworks that this process has imported."""
    return [named(name) for name, module in FRAMEWORKS.items() if module in sys.modules]


def of(*values: Any) -> Adapter | None:
    """The adapter of the first tensor or module found among the values and what they hold; None where there is none."""
    adapters = loaded()
    for value in values:
        for adapter in adapters:
            if _holds(adapter, value, 3):
                return adapter
    return None


def _holds(adapter: Adapter, value: Any, depth: int) -> bool:
    if adapter.is_model(value) or (adapter.is_tensor(value) and type(value).__module__.partition(".")[0] != "numpy"):
        return True
    if depth == 0 or isinstance(value, (str, bytes, int, float, type)):
        return False
    return any(_holds(adapter, part, depth - 1) for part in parts(value))


def parts(value: Any) -> list[Any]:
    """What a container or a plain object holds."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") and not callable(value) else []
