"""Tensors of PyTorch that are made of other tensors: distributed ones, those that wait for another process, and any other wrapper.

A distributed tensor is read where this process holds all of it, and a new one is made in its place in the same layout. Nothing here
sends or waits for anything that the run itself would not: of a part of a tensor nothing is known but that it is a part.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds its values itself, whatever its class."""
    return type(tensor) in _PLAIN or not torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python)


def why_unreadable(tensor: torch.Tensor) -> str:
    """Why the values of a tensor that is not plain cannot be had here, or the empty text."""
    if is_plain(tensor) or _is(tensor, "torch.distributed._functional_collectives", "AsyncCollectiveTensor"):
        return ""
    if not _is_distributed(tensor):
        return f"no trace holds tensors of class {type(tensor).__qualname__}"
    if _is_whole(tensor):
        return why_unreadable(_local(tensor))
    return f"a part of it is in each of {_size(tensor)} processes"


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of this process that holds the values of a readable one."""
    if is_plain(tensor):
        return tensor
    return plain(_local(tensor) if _is_distributed(tensor) else tensor.wait())


def distributed_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A plain tensor with the values of a readable one, in the layout of that one."""
    if is_plain(like) or not _is_distributed(like):
        return tensor
    made: torch.Tensor = type(like).from_local(tensor, like.device_mesh, like.placements, run_check=False)
    return made


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP exchanges a module's parameters while it runs."""
    is_wrapped = _is(module, "torch.distributed.fsdp", "FullyShardedDataParallel")
    return _is(module, "torch.distributed.fsdp", "FSDPModule") or (is_wrapped and processes() > 1)


def processes() -> int:
    """How many processes run together; 1 outside of a process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 1
    return int(distributed.get_world_size())


def _local(tensor: Any) -> torch.Tensor:
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
        return local


def _is_whole(tensor: Any) -> bool:
    return _size(tensor) == 1 or all(placement.is_replicate() for placement in tensor.placements)


def _size(tensor: Any) -> int:
    return int(tensor.device_mesh.size())


def _is_distributed(tensor: Any) -> bool:
    return _is(tensor, "torch.distributed.tensor", "DTensor")


def _is(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of a module that may not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
