"""What the recipes of the MLX ports share: inputs as arrays, stages, and ways to put something in the place of a part of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import chatterbox_shared as shared

import tracediff as td


def arrays(inputs: Mapping[str, Any], dtype: str | None = None) -> dict[str, Any]:
    """NumPy inputs as arrays, the real ones in the model's dtype, each tapped by its name."""
    import mlx.core as mx

    made = {name: mx.array(value) for name, value in inputs.items()}
    if dtype is not None:
        made = {name: value.astype(getattr(mx, dtype)) if value.dtype == mx.float32 else value for name, value in made.items()}
    return {name: td.tap(name, value) for name, value in made.items()}


@contextlib.contextmanager
def steps(estimator: Any) -> Iterator[None]:
    """Each evaluation of the velocity is a scope ``ode=k``."""
    taken = 0

    def step(evaluate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        with td.scope("ode", taken):
            taken += 1
            return evaluate(*args, **kwargs)

    with around(estimator, step):
        yield


@contextlib.contextmanager
def around(module: Any, function: Callable[..., Any]) -> Iterator[None]:
    """For a while a module's call is ``function(call, ...)``, which may make the module's own call."""
    original = type(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        now = type(module)
        module.__class__ = original  # who observes it knows it by its own class
        try:
            return module(*args, **kwargs)
        finally:
            module.__class__ = now

    with instead(module, lambda *args, **kwargs: function(call, *args, **kwargs)):
        yield


@contextlib.contextmanager
def instead(module: Any, function: Callable[..., Any]) -> Iterator[None]:
    """For a while a module's call is ``function``."""
    original = type(module)
    module.__class__ = type(original.__name__, (original,), {"__call__": lambda self, *args, **kwargs: function(*args, **kwargs)})
    try:
        yield
    finally:
        module.__class__ = original


def classes(module: Any, **changed: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """For a while a module's classes are built with other arguments than it gives; None leaves the part out."""
    return shared.classes(module, _left_out, **changed)


def _left_out(*_: Any, **__: Any) -> Any:
    import mlx.nn as nn

    return nn.Module()


def cast(module: Any, dtype: str | None) -> None:
    """Puts a model into another dtype; the vocoder stays in float32, as the reference's must."""
    import mlx.core as mx

    if dtype is not None:
        for name, part in module.children().items():
            if name != "mel2wav" and hasattr(part, "set_dtype"):
                part.set_dtype(getattr(mx, dtype))


# --- stages that both ports run alike ---


def run_encoder(models: Mapping[str, Any], context: Any) -> Any:
    given = arrays(shared.encoder_inputs(context), context.dtype)
    return models["s3gen"].flow.encoder(given["xs"], given["xs_lens"])


def run_vocoder(models: Mapping[str, Any], context: Any) -> Any:
    import mlx.core as mx

    given = arrays(shared.vocoder_inputs(context))
    return models["s3gen"].mel2wav.inference(speech_feat=given["speech_feat"], cache_source=mx.zeros((1, 1, 0)))
