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
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracediff.api import align, bisect, bisect_live, calibrate, capture, convert, diff, record, recover, status, try_site, weights
    from tracediff.capture import scope, stage, tap
    from tracediff.errors import TracediffError
    from tracediff.report import Report
    from tracediff.serving import stub
    from tracediff.status import Status
    from tracediff.trace import Record, Trace, open_trace

__version__ = "0.1.0"

_HOME = {
    "capture": "tracediff.api",
    "calibrate": "tracediff.api",
    "bisect": "tracediff.api",
    "bisect_live": "tracediff.api",
    "diff": "tracediff.api",
    "status": "tracediff.api",
    "convert": "tracediff.api",
    "align": "tracediff.api",
    "weights": "tracediff.api",
    "recover": "tracediff.api",
    "record": "tracediff.api",
    "try_site": "tracediff.api",
    "stub": "tracediff.serving",
    "tap": "tracediff.capture",
    "scope": "tracediff.capture",
    "stage": "tracediff.capture",
    "open_trace": "tracediff.trace",
    "Trace": "tracediff.trace",
    "Record": "tracediff.trace",
    "Report": "tracediff.report",
    "Status": "tracediff.status",
    "TracediffError": "tracediff.errors",
}

__all__ = [
    "capture",
    "calibrate",
    "record",
    "tap",
    "scope",
    "stage",
    "open_trace",
    "align",
    "weights",
    "bisect",
    "bisect_live",
    "diff",
    "try_site",
    "stub",
    "status",
    "convert",
    "recover",
    "Trace",
    "Record",
    "Report",
    "Status",
    "TracediffError",
]


class _Package(ModuleType):
    """This package, whose functions `capture` and `align` go before its folders of the same name.

    Python binds a submodule to its package's attribute on import; without this, ``td.capture`` would be a function
    until something imports ``tracediff.capture.observer``, and a module from then on. The functions bear the folders' full names, by which
    Python finds the modules in them: so ``import tracediff.capture.observer as observer`` works too.
    """

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tracediff' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        if isinstance(value, FunctionType) and find_spec(f"{self.__name__}.{name}") is not None:
            value.__name__ = f"{self.__name__}.{name}"
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *__all__})


sys.modules[__name__].__class__ = _Package
