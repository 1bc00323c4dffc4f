"""Tensors of PyTorch that are made of other tensors: distributed ones, those that wait for another process, and any other wrapper.

Of a distributed tensor what this process holds is read, and a new one is made in its place in the same layout. Nothing here sends or waits
for anything that the run itself would not: how the parts make up the tensor is noted (`placed`), and they are joined later.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from tracediff.observe.types import Placed

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
    if _size(tensor) > 1 and _ways(tensor) is None:
        return f"a part of it is in each of {_size(tensor)} processes, in a way that no trace holds: {tensor.placements}"
    return why_unreadable(_local(tensor))


def placed(tensor: torch.Tensor) -> Placed | None:
    """How a distributed tensor lies over its mesh; None for any other, and in one process.

    The axes of a mesh without names are called ``ranks``, or ``ranks0`` and so on.
    """
    if is_plain(tensor) or not _is_distributed(tensor) or _size(tensor) == 1 or (ways := _ways(tensor)) is None:
        return None
    mesh: Any = tensor.device_mesh
    names = mesh.mesh_dim_names or (("ranks",) if mesh.ndim == 1 else tuple(f"ranks{axis}" for axis in range(mesh.ndim)))
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    axes = {name: (int(mesh.size(axis)), int(coordinate[axis])) for axis, name in enumerate(names)}
    return Placed(axes, dict(zip(names, ways, strict=True)))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor of this process that holds the values of a readable one."""
    if is_plain(tensor):
        return tensor
    return plain(_local(tensor) if _is_distributed(tensor) else tensor.wait())


def distributed_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A plain tensor with the values of a readable one, in the layout of that one."""
    if is_plain(like) or not _is_distributed(like):
        return tensor
    whole = {"shape": like.shape, "stride": like.stride()}
    made: torch.Tensor = type(like).from_local(tensor, like.device_mesh, like.placements, run_check=False, **whole)
    return made


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether FSDP exchanges a module's parameters while it runs."""
    is_wrapped = _is(module, "torch.distributed.fsdp", "FullyShardedDataParallel")
    return _is(module, "torch.distributed.fsdp", "FSDPModule") or (is_wrapped and processes() > 1)


def rank() -> tuple[int, int]:
    """The number of this process and how many run together; (0, 1) outside of a process group."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return int(distributed.get_rank()), int(distributed.get_world_size())


def processes() -> int:
    """How many processes run together; 1 outside of a process group."""
    return rank()[1]


def _local(tensor: Any) -> torch.Tensor:
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()
        return local


def _ways(tensor: Any) -> list[str] | None:
    """How a distributed tensor is placed along each axis of its mesh; None where that is none of the ways that `Placed` knows."""
    ways = [_way(placement) for placement in tensor.placements]
    return None if None in ways else [way for way in ways if way is not None]


def _way(placement: Any) -> str | None:
    if placement.is_replicate():
        return "replicate"
    if type(placement).__name__ == "Shard":
        return f"shard({placement.dim})"
    return "partial" if type(placement).__name__ == "Partial" and placement.reduce_op == "sum" else None


def _size(tensor: Any) -> int:
    return int(tensor.device_mesh.size())


def _is_distributed(tensor: Any) -> bool:
    return _is(tensor, "torch.distributed.tensor", "DTensor")


def _is(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of a module that may not be imported."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
