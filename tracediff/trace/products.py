"""What a trace says of the precision in which its run multiplied float32 numbers: hardware may cut what it multiplies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from tracediff.trace.reader import Trace

KEY: Final = "products"
"""The item of meta: what a probe found before the run (`tracediff.observe.products.probed`)."""

TF32: Final = "tf32"
"""Float32 whose products multiply numbers of 10 bits of mantissa; also the column of the floor (`schema.FLOOR_PRODUCTS`)."""
Precision = Literal["float32", "tf32", "bfloat16"]
SHOWN: Final[Mapping[Precision, str]] = {"float32": "float32", "tf32": "TF32-class", "bfloat16": "bfloat16-class"}
ROUNDOFF: Final[Mapping[Precision, float]] = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""The unit roundoff of what is multiplied."""


def products_of(trace: Trace) -> Precision:
    """The precision of a run's products of float32 numbers; "float32" where the trace says nothing of it."""
    found = (trace.meta.get(KEY) or {}).get("precision")
    return next((name for name in SHOWN if name == found), "float32")


def told(meta: Mapping[str, Any]) -> str:
    """What a probe found, in words: precision, error, device and what rules it; "" where nothing was probed.

    >>> told({"products": {"precision": "tf32", "error": 2.94e-4, "device": "gpu", "settings": {"MLX_ENABLE_TF32": "1"}}})
    'TF32-class on gpu (relative error 2.9e-04; MLX_ENABLE_TF32 = 1)'
    """
    found = meta.get(KEY) or {}
    if not found:
        return ""
    settings = "".join(f"; {name} = {value}" for name, value in (found.get("settings") or {}).items())
    return f"{SHOWN.get(found['precision'], found['precision'])} on {found['device']} (relative error {found['error']:.1e}{settings})"


_CURES: Final[Mapping[str, str]] = {
    "mlx": "MLX reads MLX_ENABLE_TF32 when it first multiplies: set MLX_ENABLE_TF32=0 before Python starts",
}


def unpinned(trace: Trace) -> str:
    """What to say of a run that was to multiply in full precision and did not; "" of any other."""
    if not trace.meta.get("precise") or products_of(trace) == "float32":
        return ""
    cure = _CURES.get(str(trace.meta.get("impl")), "what was set keeps it from doing so")
    return f"float32 products were to be taken in full precision, and were {told(trace.meta)}. {cure[0].upper()}{cure[1:]}."
