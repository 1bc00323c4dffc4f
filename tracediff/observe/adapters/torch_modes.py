"""What PyTorch tells of each elementary operation, without the import of its compiler, which takes a second and more."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAYS_OUT = ("__array__", "__dlpack__", "numpy", "tolist")
"""The methods by which a tensor's values go to other code than PyTorch's."""
_WHOLE = "aten::native_batch_norm"
"""An operation that is made of others, and is elementary for us: its parts write to the running statistics."""


@cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others."""
    return bool(func._can_decompose()) and func.name() != _WHOLE


class DispatchMode(TorchDispatchMode):
    """Is handed every elementary operation while it is on: those that come whole in inference mode (`linear`) are taken apart first.

    PyTorch's compiler is kept off its code where that compiler is loaded. PyTorch itself would load it at the first operation, only to keep
    it off.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Self:
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


class WatchingMode(DispatchMode):
    """Is told, besides, of every tensor whose values the run hands to other code than PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self._undo = ExitStack()
        self._is_own = False

    def __enter__(self) -> Self:
        for name in _WAYS_OUT:
            original = getattr(torch.Tensor, name)
            self._undo.callback(setattr if name in vars(torch.Tensor) else _remove, torch.Tensor, name, original)
            setattr(torch.Tensor, name, self._way_out(original))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        before, self._is_own = self._is_own, True
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._is_own = before

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """A context in which values are handed to this code alone."""
        before, self._is_own = self._is_own, True
        try:
            yield
        finally:
            self._is_own = before

    def handed_out(self, tensor: torch.Tensor) -> None:
        """Is called with a tensor whose values other code takes."""
        raise NotImplementedError

    def _way_out(self, original: Any) -> Any:
        """A method that hands values to other code, and tells of it."""

        @functools.wraps(original)
        def handed(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._is_own:
                self.handed_out(tensor)
            return original(tensor, *args, **kwargs)

        return handed


def _remove(owner: type, name: str, original: Any) -> None:
    """Takes an attribute out of a class, which then has that of the class below again."""
    delattr(owner, name)
