"""What the parts of `tracediff.observe` hand each other: tensors, functional sites, random functions, modules, and the adapter protocols.

Everything here is a type without behaviour of its own, so that adapters, the tree, observers and the session need not import each other.
`Adapter` is the whole of what a run asks of a framework; it is put together from five smaller protocols, for code that needs one of them.
`tracediff.observe.adapters.base` has the class that the adapters of frameworks are made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tracediff.dtype import Array
from tracediff.tensors.mantissa import Way

Tensor = Any
"""A framework's tensor, a NumPy array, or (in a tap and in what a call returns) a text."""

Module = Any
"""A framework's module; in a `Node` also a plain object that holds modules."""

Keys = tuple[str | int, ...]
"""What leads from a module to something it holds: the attribute's name, then the keys of nested containers."""

Call = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
ParameterKind = Literal["parameter", "buffer"]

Warn = Callable[[str], None]
"""Takes a sentence that becomes a warning of the run."""


@dataclass(frozen=True, slots=True)
class Function:
    """A functional site: an attribute to patch, its canonical name, and how the arguments of a call are named.

    - ``keys`` names positional arguments, ``renames`` keyword arguments, in the ends of what is recorded;
    - ``attributes`` returns the scalars to record as ``attr[...]``, defaults filled in;
    - ``hides`` returns what a call does unseen, or the empty text;
    - ``applies`` says whether a call is shown; without it all are;
    - ``is_own``: the function is the model's own code and not a kernel. Then the calls inside it are seen too, and its texts are data.
      A call of an own function with neither arrays nor texts is not shown;
    - ``longer`` replaces ``name`` where a module calls two own functions of that name.
    """

    owner: Any
    attribute: str
    name: str
    keys: tuple[str, ...] = ()
    renames: Mapping[str, str] | None = None
    attributes: Callable[[Args, Kwargs], dict[str, Any]] | None = None
    hides: Callable[[Args, Kwargs], str] | None = None
    is_own: bool = False
    longer: str = ""
    applies: Callable[[Args, Kwargs], bool] | None = None


@dataclass(frozen=True, slots=True)
class Random:
    """A random function: an attribute to patch, its canonical name, and what is noted of a call's arguments.

    - ``arguments`` returns what to note, or None where a call draws nothing;
    - ``mask`` and ``apply`` serve functions that draw and use the draw at once (dropout). ``mask`` returns what a call is about to draw,
      ``apply`` the result of the call under another draw;
    - ``inside`` gives another name for draws in modules of the given types;
    - ``odds`` returns what a call chooses by: the weights, the axis of the choices, and whether the weights are logarithms.
    """

    owner: Any
    attribute: str
    name: str
    arguments: Callable[[Args, Kwargs], dict[str, Any] | None]
    mask: Callable[[Args, Kwargs], Tensor] | None = None
    apply: Callable[[Args, Kwargs, Tensor], Tensor] | None = None
    inside: tuple[tuple[type, ...], str] | None = None
    odds: Callable[[Args, Kwargs], tuple[Tensor, int, bool]] | None = None

    @property
    def full_name(self) -> str:
        """The function's name as it is called: ``torch.randn``, ``Tensor.normal_``."""
        return f"{self.owner.__name__}.{self.attribute}"

    def name_in(self, module: Module) -> str:
        """The canonical name of a draw that a module makes: that of ``inside`` for its types."""
        return self.inside[1] if self.inside is not None and isinstance(module, self.inside[0]) else self.name


@dataclass(slots=True)
class Node:
    """One module and where it is, or (``is_model`` False) a plain object that holds modules.

    ``path`` is where the walk met the module first; ``aliases`` are the other paths of the same object. ``hidden`` says why calls at
    and below it cannot be seen; ``is_inside`` that a module above it is the reason.
    """

    path: str
    module: Module
    is_model: bool = True
    hidden: str = ""
    is_inside: bool = False
    aliases: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Placed:
    """How a tensor lies over the processes of a mesh.

    ``axes``: by the name of each axis of the mesh its length, and where along it this process is. ``how``: by axis "shard(0)" (a part of
    the tensor's axis 0), "partial" (a term of a sum) or "replicate" (all of it).
    """

    axes: Mapping[str, tuple[int, int]]
    how: Mapping[str, str]

    @property
    def parts(self) -> dict[str, str]:
        """``how`` without the axes along which every process has all of it; empty where that is so along each."""
        return {axis: how for axis, how in self.how.items() if how != "replicate"}


class Operations(AbstractContextManager[Any], Protocol):
    """Operations that are being written down."""

    @property
    def is_whole(self) -> bool:
        """Whether everything so far is written down; very long runs are not."""

    def name(self, tensor: Tensor, site: str, ordinal: int, end: str) -> None:
        """Notes that a tensor is seen at a boundary."""

    def begin(self, site: str, ordinal: int) -> None:
        """Notes that a call begins: what it takes in was named."""

    def end(self, site: str, ordinal: int) -> None:
        """Notes that a call has ended: what it returns was not named yet."""

    def graph(self) -> dict[str, Any]:
        """The operations as `tracediff.trace.operations` reads them."""


TRACED = "inside a region compiled by"
"""How a reason begins for which tensors cannot be read while code is only traced: a later run does not pass there at all."""


class Tensors(Protocol):
    """Reads, makes and changes the tensors of a framework, and NumPy arrays."""

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor of this framework, or a NumPy array that a trace can hold."""

    def unreadable(self, tensors: Sequence[Tensor]) -> str:
        """Why the values of some of the tensors cannot be read, or the empty text; afterwards the tensors are evaluated."""

    def view(self, tensor: Tensor) -> Array:
        """A tensor's values as a NumPy array of the same shape that may share its memory; bfloat16 and float8 by ml_dtypes."""

    def to_numpy(self, tensor: Tensor) -> Array:
        """A tensor's values at this moment: a NumPy array in C order with memory of its own."""

    def from_numpy(self, array: Array, like: Tensor | None) -> Tensor:
        """A tensor with an array's values: of the dtype and device of ``like``, and of its shape where the sizes agree."""

    def beside(self, array: Array, like: Tensor) -> Tensor:
        """A tensor with an array's values, dtype and shape, on the device of ``like``."""

    def owning(self, array: Array, like: Tensor) -> Tensor:
        """As `beside`, of an array that nobody else needs: the tensor may have its memory."""

    def token(self, tensor: Tensor) -> Any:
        """A token by which `is_changed` can tell later whether the tensor was changed in place."""

    def is_changed(self, tensor: Tensor, token: Any) -> bool:
        """Whether the tensor may have been changed in place since `token`; never False where it was."""

    def assign(self, tensor: Tensor, values: Tensor) -> None:
        """Gives a tensor other values in place."""

    def describe(self, tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
        """A tensor's dtype name, shape and device; nothing is evaluated."""

    def placed(self, tensor: Tensor) -> Placed | None:
        """How a tensor lies over several processes, of which `view` shows this one's part; None where nothing says so."""


class Modules(Protocol):
    """Walks the modules of a framework, and changes or makes them."""

    def is_model(self, value: Any) -> bool:
        """Whether a value is one of this framework's modules."""

    def children(self, module: Module) -> Iterator[tuple[Keys, Module]]:
        """The modules that a module holds itself, with the keys that lead to each, also in lists, dicts and private attributes."""

    def parameters(self, module: Module) -> Iterator[tuple[Keys, Tensor, ParameterKind]]:
        """The module's own parameters and buffers, with the keys that lead to each."""

    def tables(self, module: Module) -> list[dict[str, Any]]:
        """The tables in which a module holds all that it has: tensors, modules, other attributes."""

    def gradient(self, tensor: Tensor) -> Tensor | None:
        """The gradient that was accumulated for a tensor."""

    def set_gradient(self, tensor: Tensor, gradient: Tensor | None) -> None:
        """Gives a tensor the very gradient that `gradient` returned earlier."""

    def attributes(self, module: Module) -> dict[str, Any]:
        """The module's own attributes apart from parameters, buffers and modules."""

    def is_training(self, module: Module) -> bool:
        """Whether a module is in training mode."""

    def calling(self, call: Call) -> Module:
        """A module without parameters whose call is the given one."""

    def cast(self, modules: Sequence[Module], dtype: str) -> AbstractContextManager[None]:
        """A context in which the floating parameters, buffers and plain tensors of the modules have another dtype; then as they were."""

    def casts(self, dtype: str) -> AbstractContextManager[Casts] | None:
        """As `cast`, of modules that are named one after the other, as they are called; None where a framework cannot."""


class Interception(Protocol):
    """Says where calls come in, what cannot be seen, and what a run must switch off."""

    def entry(self, module: Module) -> str | None:
        """The attribute through which calls of a module come in; None where it cannot be called."""

    def hidden(self, module: Module, *, compile: bool | None) -> str:
        """Why nothing below a module can be seen ("compiled by torch.compile"), or the empty text; ``compile`` as in `switches`."""

    def changed_later(self, module: Module) -> str:
        """Why what a module returns may reach its caller as something else ("changed by a hook"), or the empty text."""

    def compiling(self) -> Callable[[], bool]:
        """A function that says whether code is being compiled; the framework's own compiler understands it."""

    def blind(self) -> str:
        """Why nothing can be seen at present ("inside torch.jit.trace"), or the empty text."""

    def rank(self) -> tuple[int, int]:
        """The number of this process, and how many run together."""

    def once(self, modules: Sequence[Module]) -> str:
        """Why this process cannot run the modules again as it did the first time, or the empty text."""

    def is_function(self, value: Any) -> bool:
        """Whether a value is a function that this framework made of a Python function (a compiled one)."""

    def functions(self) -> Iterable[Function]:
        """The functional sites: attention, softmax, and the selections, whose outputs are ids."""

    def switches(self, modules: Sequence[Module], warn: Warn, *, compile: bool | None) -> AbstractContextManager[None]:
        """Framework switches for the length of a run: compiled regions with observed modules inside are not used.

        ``compile`` False turns compilation and fused layers off wherever that can be done, True leaves them on.
        """

    def passed_over(self) -> frozenset[str]:
        """The framework's source files that stand between a module and the code that calls it; they are never shown as the caller."""


class Randomness(Protocol):
    """Knows the random functions and the state of the generators."""

    def randoms(self) -> Iterable[Random]:
        """The random functions."""

    def rng_state(self) -> Any:
        """The state of the framework's default generators, and of Python's and NumPy's."""

    def set_rng_state(self, state: Any) -> None:
        """Puts all of them back into a state."""

    def seeding(self) -> Iterable[tuple[Any, str]]:
        """The functions by which code seeds all of them: what holds each, and its name there."""


class Casts(Protocol):
    """Casts the tensors of single modules for as long as they need it."""

    def cast(self, module: Module) -> None:
        """The module's own floating tensors have the other dtype from now on."""

    def release(self, module: Module) -> None:
        """They are as they were once each `cast` of them was released; those that the module changed meanwhile stay until the end."""


class Choosing(Protocol):
    """Knows of every operation so far whether it made exact values of real ones, or jumped."""

    @property
    def chooses(self) -> bool:
        """Whether any did, or values went where operations are not seen."""


class Products(Protocol):
    """Multiplies float32 matrices as the framework's models do, and knows what rules the precision."""

    def devices(self) -> Sequence[Tensor | None]:
        """A tensor on each device that is there, or a device itself; None stands for the default one."""

    def products(self, left: Array, right: Array, like: Tensor | None) -> tuple[Sequence[Array], str] | None:
        """The product of two float32 matrices, once as such and once as a convolution makes it, and the name of the device.

        It is taken where ``like`` is, for None on the default device. None where a framework multiplies no matrices.
        """

    def product_settings(self, device: str) -> dict[str, str]:
        """The switches and variables that rule the precision of products on a device, by name, as they are now."""

    def full_precision(self) -> AbstractContextManager[None]:
        """A context in which products are taken in full float32 wherever that can still be asked for; afterwards all is as it was."""

    def coarse_products(self, bits: int, way: Way, is_quiet: Callable[[], bool]) -> AbstractContextManager[Any] | None:
        """A context in which what float32 products and convolutions multiply is cut to so many explicit bits of mantissa.

        What is computed while ``is_quiet`` is left alone. None where a framework has no such thing.
        """


class Adapter(Tensors, Modules, Interception, Randomness, Products, Protocol):
    """One framework, seen from outside."""

    name: str

    def no_grad(self) -> AbstractContextManager[None]:
        """A context in which no gradients are recorded."""

    def rounding(self, units: float, is_quiet: Callable[[], bool]) -> AbstractContextManager[Choosing | None]:
        """A context in which each elementary operation's result is off by up to so many unit roundoffs, the same for equal results.

        So float32 arithmetic is off in another library or in another order. What is computed while ``is_quiet`` is left alone. What the
        context gives says whether the run chose anything. Where a framework has no such thing it is without effect, and gives None.
        """

    def operations(self, parameters: Iterable[tuple[str, Tensor]], is_quiet: Callable[[], bool]) -> Operations | None:
        """A context that writes down every operation that is computed in it, unless ``is_quiet``; None where a framework shows none."""

    def info(self) -> dict[str, Any]:
        """What a trace says of the framework: ``versions``, and the seed or state of its ``generator``."""
