"""PyTorch modules whose tensors have another dtype for as long as they are called, so that one module's are held twice, not a model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Tables = Callable[[Any], list[dict[str, Any]]]


@dataclass(slots=True)
class _Cast:
    """A tensor in another dtype: where it is held, its own values, by which changes show, and how many calls need it."""

    table: dict[str, Any]
    name: str
    tensor: torch.Tensor
    own: torch.Tensor
    version: int | None
    is_weight: bool
    needed: int = 0

    def is_changed(self) -> bool:
        """Whether the module put another tensor in its place, or changed it: a buffer is compared, since not every change is counted."""
        if id(self.table.get(self.name)) != id(self.tensor) or self.version != _version(self.tensor):
            return True
        return not (self.is_weight and self.version is not None) and not torch.equal(self.tensor.data, self.own.to(self.tensor.dtype))


class TorchCasts:
    """Casts the floating parameters, buffers and plain tensors of modules to ``wanted``; ``tables`` says where a module holds them."""

    def __init__(self, wanted: torch.dtype, tables: Tables) -> None:
        self._wanted, self._tables = wanted, tables
        self._casts: dict[int, _Cast] = {}
        self._of_module: dict[int, list[list[_Cast]]] = {}

    def cast(self, module: Any) -> None:
        """The module's own tensors have the other dtype from now on."""
        found = []
        for table in self._tables(module):
            for name, value in list(table.items()):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    found.append(self._one(table, name, value))
        for one in found:
            one.needed += 1
        self._of_module.setdefault(id(module), []).append(found)

    def release(self, module: Any) -> None:
        """The module's own tensors are as they were, unless another call needs them still, or the module changed them."""
        for one in self._of_module[id(module)].pop():
            one.needed -= 1
            if not one.needed and not one.is_changed():
                one.tensor.data = one.own
                del self._casts[id(one.tensor)]

    def undo(self) -> None:
        """Every tensor is as it was."""
        for one in self._casts.values():
            one.table[one.name] = one.tensor
            one.tensor.data = one.own
        self._casts.clear()

    def _one(self, table: dict[str, Any], name: str, tensor: torch.Tensor) -> _Cast:
        if id(tensor) not in self._casts:
            own = tensor.data
            tensor.data = own.to(self._wanted)
            self._casts[id(tensor)] = _Cast(table, name, tensor, own, _version(tensor), isinstance(tensor, nn.Parameter))
        return self._casts[id(tensor)]


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was changed in place, as far as PyTorch counts; None for one that was made in inference mode."""
    return None if tensor.is_inference() else tensor._version
