"""What a PyTorch run computes: every operation with its arguments, and which of its tensors a run shows at its boundaries.

The arithmetic of a run is written down as a graph without values. A tensor is known by where its memory begins, its shape and its strides;
so it is the same one however many objects stand for it. Where an operation writes into memory that others share, the memory itself is
the node: ``@flat`` is all of it, ``@write`` puts a tensor into it, ``@read`` takes one out.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tracediff.observe.adapters.torch_modes import WatchingMode
from tracediff.observe.adapters.torch_writes import tensors_in, written

_NOT_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
"""Where code lies that is not the model's: PyTorch, and this package."""

MOST_OPERATIONS = 60_000
"""A run of more operations is not written down."""
MOST_VALUES = ((1 << 12, 1 << 22), (1 << 16, 1 << 22))
"""Small and larger parameters and constants: so many values each, and so many bytes of them altogether, stand in the graph itself."""

Key = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]
Named = tuple[str, torch.Tensor]


class Operations(WatchingMode):
    """Writes down what is computed while it is on; ``name`` says which tensors are seen at boundaries.

    ``is_quiet``: whether what is computed now is not the run's own.
    """

    def __init__(self, parameters: Iterable[Named], is_quiet: Any) -> None:
        super().__init__()
        self._nodes: list[list[Any]] = []
        self._names: dict[int, list[tuple[str, int, str]]] = {}
        self._of_key: dict[Key, int] = {}
        self._in_memory: dict[int, set[Key]] = {}
        self._flat: dict[int, int] = {}
        self._parameters: dict[Key, Named] = {}
        self._is_quiet = is_quiet
        self._bytes = [0 for _ in MOST_VALUES]
        self._roles: dict[tuple[Any, ...], int] = {}
        self._lines: list[str] = []
        self._latest: tuple[Any, ...] = ()
        self._times: dict[str, int] = {}
        self._alive: list[torch.Tensor] = []
        self._spans: dict[tuple[str, int], list[int]] = {}
        for name, tensor in parameters:
            if _is_plain(tensor):
                self._parameters[_key(tensor)] = name, tensor

    @property
    def is_whole(self) -> bool:
        """Whether everything so far is written down."""
        return len(self._nodes) <= MOST_OPERATIONS

    def name(self, tensor: Any, site: str, ordinal: int, end: str) -> None:
        """Notes that a tensor is seen at a boundary."""
        if isinstance(tensor, torch.Tensor) and _is_plain(tensor) and self.is_whole:
            with self.unwatched():
                self._names.setdefault(self._node_of(tensor, may_be_new=True), []).append((site, ordinal, end))

    def begin(self, site: str, ordinal: int) -> None:
        """Notes that a call begins: what it takes in was named."""
        self._spans[site, ordinal] = [len(self._nodes), len(self._nodes)]

    def end(self, site: str, ordinal: int) -> None:
        """Notes that a call has ended: what it returns was not named yet."""
        if (site, ordinal) in self._spans:
            self._spans[site, ordinal][1] = len(self._nodes)

    def handed_out(self, tensor: torch.Tensor) -> None:
        if not self._is_quiet() and self.is_whole and _is_plain(tensor):
            with self.unwatched():
                self._new("@out", self._node_of(tensor))

    def graph(self) -> dict[str, Any]:
        """The graph as JSON holds it.

        ``nodes``: [operation, arguments, named arguments, role] or [kind, ...]; ``names``: by node the places (site, ordinal, end);
        ``lines``: by role the line of code; ``spans``: of each call, by site and ordinal, the first node made in it and the first behind.
        """
        names = [[node, places] for node, places in self._names.items()]
        spans = [[*call, *span] for call, span in self._spans.items()]
        return {"nodes": self._nodes, "names": names, "lines": self._lines, "spans": spans}

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self._is_quiet() or not self.is_whole:
            return func(*args, **kwargs)
        given = self._encoded(args), {name: self._encoded(value) for name, value in kwargs.items()}
        made = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func._schema.is_mutable:
            into = _plain(written(func, args, kwargs))
            if len(into) == 1 and name.endswith("_"):
                self._write(into[0], self._new(name.removesuffix("_"), *given, self._role(name)))
            else:
                for tensor in into:
                    self._write(tensor, self._new("@opaque"))
            return made
        before = {_memory(tensor) for tensor in _plain(tensors_in([*args, *kwargs.values()]))}
        node = self._new(name, *given, self._role(name))
        if isinstance(made, torch.Tensor):
            self._made(made, node, before)
        elif isinstance(made, (list, tuple)):
            for place, one in enumerate(made):
                if isinstance(one, torch.Tensor):
                    self._made(one, self._new("@item", node, place), before)
        return made

    def _role(self, name: str) -> int:
        """A number for the place in the model's code that asks for an operation: the same in every turn of a loop and every call."""
        frame = sys._getframe(3)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_OURS):
            frame = frame.f_back
        here = id(frame), frame.f_code, frame.f_lasti
        if here != self._latest:
            self._latest, self._times = here, {}
        self._times[name] = self._times.get(name, 0) + 1
        role = frame.f_code, frame.f_lasti, name, self._times[name]
        if role not in self._roles:
            self._roles[role] = len(self._roles)
            self._lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        return self._roles[role]

    def _new(self, *content: Any) -> int:
        self._nodes.append(list(content))
        return len(self._nodes) - 1

    def _made(self, tensor: torch.Tensor, node: int, before: set[int]) -> None:
        """An operation has made a tensor; in fresh memory unless that of an argument."""
        if not _is_plain(tensor):
            return
        memory = _memory(tensor)
        if memory not in before:
            self._forget(memory)
            self._flat.pop(memory, None)
        self._set(tensor, node)

    def _set(self, tensor: torch.Tensor, node: int) -> None:
        key = _key(tensor)
        self._of_key[key] = node
        self._in_memory.setdefault(key[0], set()).add(key)

    def _forget(self, memory: int) -> None:
        for key in self._in_memory.pop(memory, ()):
            self._of_key.pop(key, None)

    def _write(self, tensor: torch.Tensor, value: int) -> None:
        """A tensor's memory now holds other values; everything that shares it is read anew."""
        if not _is_plain(tensor):
            return
        memory = _memory(tensor)
        flat = self._whole(tensor)
        self._forget(memory)
        if flat is not None:
            _, offset, shape, strides, _ = _key(tensor)
            self._flat[memory] = self._new("@write", flat, offset, shape, strides, value)
        else:
            self._flat[memory] = self._new("@opaque")
        self._set(tensor, value)

    def _whole(self, tensor: torch.Tensor) -> int | None:
        """All of the memory of a tensor, as a node; None where nothing is known that covers it."""
        memory = _memory(tensor)
        if memory in self._flat:
            return self._flat[memory]
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        for key in self._in_memory.get(memory, ()):
            _, offset, shape, strides, dtype = key
            if offset == 0 and dtype == tensor.dtype and math.prod(shape) == size and strides == _contiguous(shape):
                return self._new("@flat", self._of_key[key])
        return None

    def _node_of(self, tensor: torch.Tensor, *, may_be_new: bool = False) -> int:
        """The node of a tensor: what made it, a part of memory that is known, a parameter, a constant, or nothing that is known."""
        key = _key(tensor)
        if key in self._of_key:
            return self._of_key[key]
        flat = self._whole(tensor)
        if flat is not None:
            node = self._new("@read", flat, *key[1:4])
        elif key in self._parameters:
            name, values = self._parameters[key]
            node = self._new("@param", name, self._values(values))
        elif may_be_new:
            node = self._new("@seen", _dtype(tensor.dtype))
        else:
            values = self._values(tensor)
            node = self._new("@opaque") if values is None else self._new("@constant", values)
        self._alive.append(tensor)  # what the run did not make: its memory must not become that of another tensor
        self._set(tensor, node)
        return node

    def _values(self, tensor: torch.Tensor) -> list[Any] | None:
        """The values of a small tensor: dtype, shape, bytes."""
        size = tensor.numel() * tensor.element_size()
        group = next((place for place, (values, _) in enumerate(MOST_VALUES) if tensor.numel() <= values), None)
        if group is None or self._bytes[group] + size > MOST_VALUES[group][1] or tensor.is_complex():
            return None
        self._bytes[group] += size
        kind = torch.float32 if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor.dtype
        array = tensor.detach().to(kind).contiguous().numpy(force=True)
        return [array.dtype.str, list(array.shape), base64.b64encode(array.tobytes()).decode()]

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"n": self._node_of(value) if _is_plain(value) else self._new("@opaque")}
        if isinstance(value, (list, tuple)):
            return [self._encoded(one) for one in value]
        if isinstance(value, float) and not math.isfinite(value):
            return {"f": str(value)}
        if isinstance(value, complex):
            return {"c": [repr(value.real), repr(value.imag)]}
        if isinstance(value, torch.dtype):
            return {"d": _dtype(value)}
        return value if value is None or isinstance(value, (bool, int, float, str)) else None


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_quantized


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _key(tensor: torch.Tensor) -> Key:
    return _memory(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for tensor in tensors if _is_plain(tensor)]
