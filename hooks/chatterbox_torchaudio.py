"""Makes torchaudio importable beside a CPU-only torch: both stacks need it, and only its parts in pure Python."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Absent(types.ModuleType):
    """Stands in for torchaudio's extension: nothing of it is available, and what it decorates stays as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return False if name.startswith("_IS_") else _unchanged


def _unchanged(function: Any) -> Any:
    return function


def import_torchaudio() -> None:
    """Imports torchaudio; where its wheel looks for CUDA libraries that a CPU-only torch does not have, without its extension."""
    try:
        import torchaudio  # noqa: F401
    except OSError:
        sys.modules["torchaudio._extension"] = _Absent("torchaudio._extension")
