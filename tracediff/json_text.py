"""JSON that comes from a file: parsed as the standard has it, and no deeper than what reads it can follow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np

MOST_DEPTH: Final = 64
"""How deep objects and lists may lie inside one another."""


def parse_json(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text (bytes: UTF-8, in which a lone surrogate stands for itself).

    Raises ValueError for what is no JSON, deeper than `MOST_DEPTH`, or holds NaN or an infinity. ``object_pairs_hook`` as in `json.loads`.

    >>> parse_json('{"eps": 1e-5}')
    {'eps': 1e-05}
    """
    text = text.decode("utf-8", "surrogatepass") if isinstance(text, bytes) else text
    if _depth(text) > MOST_DEPTH:
        raise ValueError(f"lists and objects lie more than {MOST_DEPTH} deep in one another")
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=object_pairs_hook)


def _depth(text: str) -> int:
    """How deep lists and objects lie inside one another."""
    marks = re.sub(r"[^][{}]+", "", re.sub(r'"[^"\\]*(?:\\.[^"\\]*)*"', "", text, flags=re.DOTALL)).encode()  # long texts in one step
    opened = np.isin(np.frombuffer(marks, np.uint8), (ord("["), ord("{")))
    return int(np.cumsum(np.where(opened, 1, -1)).max(initial=0))


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no finite number")
