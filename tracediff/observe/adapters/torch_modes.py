"""What PyTorch tells of each elementary operation, without the import of its compiler, which takes a second and more."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WHOLE = "aten::native_batch_norm"
"""An operation that is made of others, and is elementary for us: its parts write to the running statistics."""


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others."""
    return bool(func._can_decompose()) and func.name() != _WHOLE


class DispatchMode(TorchDispatchMode):
    """Is handed every elementary operation while it is on: those that come whole in inference mode (`linear`) are taken apart first.

    PyTorch's compiler is kept off its code where that compiler is loaded.

    PyTorch itself would load it at the first operation, only to keep it off.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> DispatchMode:
        if dynamo := sys.modules.get("torch._dynamo"):
            self.dispatched = dynamo.disable(self.dispatched)  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if torch.is_inference_mode_enabled() and _is_composite(func):
            TorchDispatchMode.__enter__(self)
            try:
                made = func.decompose(*args, **(kwargs or {}))
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)
            if made is not NotImplemented:
                return made
        return self.dispatched(func, args, kwargs or {})

    def dispatched(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of an operation that is called with these arguments."""
        raise NotImplementedError
