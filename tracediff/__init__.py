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
    from tracediff.api import (
        align,
        bisect,
        bisect_live,
        calibrate,
        capture,
        compare,
        convert,
        diff,
        look,
        record,
        recover,
        status,
        try_site,
        view,
        weights,
    )
    from tracediff.errors import TracediffError
    from tracediff.observe import scope, stage, tap
    from tracediff.runs.stubs import stub
    from tracediff.show.drawn import Report, Status
    from tracediff.trace import Record, Trace, open_trace

__version__ = "0.1.0"

_HOME = {
    "capture": "tracediff.api",
    "calibrate": "tracediff.api",
    "bisect": "tracediff.api",
    "bisect_live": "tracediff.api",
    "diff": "tracediff.api",
    "compare": "tracediff.api",
    "look": "tracediff.api",
    "merge": "tracediff.api",
    "status": "tracediff.api",
    "view": "tracediff.api",
    "convert": "tracediff.api",
    "align": "tracediff.api",
    "weights": "tracediff.api",
    "recover": "tracediff.api",
    "record": "tracediff.api",
    "try_site": "tracediff.api",
    "stub": "tracediff.runs.stubs",
    "tap": "tracediff.observe",
    "scope": "tracediff.observe",
    "stage": "tracediff.observe",
    "open_trace": "tracediff.trace",
    "Trace": "tracediff.trace",
    "Record": "tracediff.trace",
    "Report": "tracediff.show.drawn",
    "Status": "tracediff.show.drawn",
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
    "compare",
    "try_site",
    "stub",
    "status",
    "look",
    "merge",
    "view",
    "convert",
    "recover",
    "Trace",
    "Record",
    "Report",
    "Status",
    "TracediffError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tracediff' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


MOVED = {
    "tracediff.capture": "tracediff.observe",
    "tracediff.capture.recording": "tracediff.observe.recording",
    "tracediff.capturing": "tracediff.runs.captured",
    "tracediff.compare": "tracediff.metrics",
    "tracediff.live": "tracediff.runs.live",
}
"""Modules by their names of version 0.1, as recipes import them and as the job of a recipe's run may be named, and where they are now."""


def _moved(old: str, new: str) -> ModuleType:
    """A module under its old name: its names are those of the new one, which is loaded when the first of them is used."""

    def attribute(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # whoever looks through all modules loads nothing by it
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        return getattr(import_module(new), name)

    module = ModuleType(old, f"`{new}`, as version 0.1 called it.")
    module.__dict__["__getattr__"] = attribute
    return module


for _old, _new in MOVED.items():
    sys.modules.setdefault(_old, _moved(_old, _new))
