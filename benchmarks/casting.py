"""A pair's port in another dtype, its inputs with it, as its user would run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import mlx.core as mx


@contextmanager
def in_dtype(pair: Any, dtype: str) -> Iterator[None]:
    """The pair's port in a dtype, for good; inside the block its run makes its real inputs in that dtype, too."""
    if dtype == "float32":
        yield
        return
    wanted = getattr(mx, dtype)
    for module in pair.port.modules():
        for key, value in module.items():  # what is kept under a private name is no parameter to MLX, and is cast all the same
            if isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating):
                module[key] = value.astype(wanted)
    with patch.dict(pair.run_port.__globals__, {"mx": Arrays(wanted)}):
        yield


class Arrays:
    """`mlx.core` for the code that runs a port: real arrays are made in the dtype."""

    def __init__(self, wanted: mx.Dtype) -> None:
        self.wanted = wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    def array(self, values: Any, *more: Any) -> mx.array:
        made = mx.array(values, *more)
        return made.astype(self.wanted) if made.dtype == mx.float32 else made
