"""tracediff: where a port of a neural network first parts from its reference, and why.

The public names, each loaded on first use, so that importing the package is cheap:

    import tracediff as td

    td.capture(torch_model, run, to="ref.h5")
    td.capture(mlx_model, run, to="mlx.h5")
    report = td.bisect("ref.h5", "mlx.h5")
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracediff.api import align, bisect, capture, diff, record, recover, weights
    from tracediff.capture import scope, stage, tap
    from tracediff.errors import TracediffError
    from tracediff.report import Report
    from tracediff.trace import Record, Trace, open_trace

__version__ = "0.1.0"

_HOME = {
    "capture": "tracediff.api",
    "bisect": "tracediff.api",
    "diff": "tracediff.api",
    "align": "tracediff.api",
    "weights": "tracediff.api",
    "recover": "tracediff.api",
    "record": "tracediff.api",
    "tap": "tracediff.capture",
    "scope": "tracediff.capture",
    "stage": "tracediff.capture",
    "open_trace": "tracediff.trace",
    "Trace": "tracediff.trace",
    "Record": "tracediff.trace",
    "Report": "tracediff.report",
    "TracediffError": "tracediff.errors",
}

__all__ = [
    "capture",
    "record",
    "tap",
    "scope",
    "stage",
    "open_trace",
    "align",
    "weights",
    "bisect",
    "diff",
    "recover",
    "Trace",
    "Record",
    "Report",
    "TracediffError",
]


class _Package(ModuleType):
    """This package, whose functions `capture` and `align` go before its folders of the same name.

    Python binds a submodule to its package's attribute on import; without this, ``td.capture`` would be a function
    until something imports ``tracediff.capture.observer``, and a module from then on.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tracediff' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


sys.modules[__name__].__class__ = _Package
