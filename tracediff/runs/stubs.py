"""Stubs: parts of a port that are not written yet, served from a reference's trace, so that an unfinished port runs end to end.

A stub computes nothing. Call by call it gives out what the reference's trace holds of its site, and what it gave out is marked in the
port's trace: it is never compared, and a run with a stub in it is never called the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import CaptureError, TraceFileError
from tracediff.observe import frames
from tracediff.observe.adapters import registry as adapters
from tracediff.observe.containers import Nest, built
from tracediff.observe.recorder import SERVES
from tracediff.observe.types import Adapter
from tracediff.site import is_returned
from tracediff.trace import Trace, open_trace
from tracediff.trace.subtrace import calls_of

TraceLike = str | os.PathLike[str] | Trace

_fed: ContextVar[Trace | None] = ContextVar("tracediff_fed", default=None)


@contextmanager
def feeding(trace: Trace) -> Iterator[None]:
    """Inside, stubs that were given no trace serve what this one holds."""
    token = _fed.set(trace)
    try:
        yield
    finally:
        _fed.reset(token)


def stub(site: str, trace: TraceLike | None = None, *, axes: Sequence[int] | None = None, impl: str | None = None) -> Any:
    """A module without parameters that returns, call by call, what the reference's trace recorded of ``site``.

    It stands where a port has no code yet: as an attribute of a PyTorch or an MLX module, or called by itself. ``trace`` is by default
    the one that feeds the present run (``td.capture(..., feed="ref.h5")``). Values come in the dtype of the first floating-point
    argument, in the reference's containers, None where it had None; an object of which a trace holds nothing (a cache that is handed in
    and returned) is the argument of its type. ``axes`` reorders the axes of every tensor that has as many, ``(0, 2, 1)`` for (B, C, T) ->
    (B, T, C). Calls are counted anew in each observed run, and within its stage where the reference called the site there.

    ``impl`` names the framework where it cannot be told: both are loaded, and no module of either is being made. Called, a stub raises
    CaptureError where no trace is known or the reference made fewer calls, SiteError where it has no such site.

    >>> class Port(nn.Module):                                                    # doctest: +SKIP
    ...     def __init__(self):
    ...         self.encoder, self.decoder = Encoder(), td.stub("flow.decoder")
    """
    adapter = adapters.named(impl) if impl is not None else _framework(site)
    served = _Served(site, trace, None if axes is None else tuple(axes), adapter)
    module = adapter.calling(served)
    setattr(module, SERVES, True)
    return module


def _framework(site: str) -> Adapter:
    """The framework of the module whose method makes the stub, else the only one that is loaded."""
    loaded = adapters.loaded()
    frame = sys._getframe(2)
    for _ in range(4):
        owner = frame.f_locals.get("self")
        for adapter in loaded:
            if owner is not None and adapter.is_model(owner):
                return adapter
        if frame.f_back is None:
            break
        frame = frame.f_back
    if len(loaded) == 1:
        return loaded[0]
    names = " and ".join(adapter.name for adapter in loaded) or "neither torch nor mlx"
    raise CaptureError(f"{names} are loaded, so the stub of {site!r} does not know what to be; say it: td.stub({site!r}, impl='mlx').")


def _given_back(kind: str, arguments: Sequence[Any]) -> Any:
    """What stands for an object of which a trace holds nothing: the argument whose type has that name, else None."""
    return next((value for value in arguments if kind and type(value).__name__ == kind), None)


class _Served:
    """What a stub does when it is called."""

    def __init__(self, site: str, trace: TraceLike | None, axes: tuple[int, ...] | None, adapter: Adapter) -> None:
        self._site, self._trace, self._axes, self._adapter = site, trace, axes, adapter
        self._nest = Nest(adapter.is_tensor, adapter.is_model)
        self._run: Any = None
        self._counts: dict[str, int] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = self._opened()
        call = self._next(trace)
        outputs = {record.end: record for record in trace.find(self._site, call) if record.end.startswith("output")}
        missing = [end for end, record in outputs.items() if not record.stored]
        if missing or not outputs:
            what = f"the values of {missing[0]} were" if missing else "no output was"
            where = f"{what} not stored at {call!r}"
            raise TraceFileError(f"{str(trace.path)!r} cannot serve {self._site!r}: {where}. Capture it with --save full.")
        like = self._like(args, kwargs)
        own = {end: record for end, record in outputs.items() if is_returned(end)}
        parts = {end: record.text() if record.dtype == "text" else self._tensor(record.read(), like) for end, record in own.items()}
        absent = {end: kind for record in own.values() for end, kind in (record.note.get("absent") or {}).items()}
        return built(parts | {end: _given_back(kind, (*args, *kwargs.values())) for end, kind in absent.items()})

    def _opened(self) -> Trace:
        trace = self._trace if self._trace is not None else _fed.get()
        if trace is None:
            raise CaptureError(
                f"The stub of {self._site!r} knows no trace: run it in a capture that is fed by one (feed='ref.h5', --feed ref.h5), or "
                f"name one: td.stub({self._site!r}, trace='ref.h5')."
            )
        if self._trace is not None and not isinstance(trace, Trace):
            trace = self._trace = open_trace(trace)
        assert isinstance(trace, Trace)
        return trace

    def _next(self, trace: Trace) -> str:
        """The reference's call that is served now."""
        current = frames.current()
        run = current[0].session if current else None
        if run is not self._run:
            self._run, self._counts = run, {}
        stage = current[0].stage if current else ""
        all_calls = calls_of(trace, self._site)
        inside = list(dict.fromkeys(record.call for record in trace.find(self._site) if record.stage == stage))
        calls, counted = (inside, stage) if stage and inside else (all_calls, "")
        number = self._counts.get(counted, 0)
        if number >= len(calls):
            where = f" in stage {counted!r}" if counted else ""
            raise CaptureError(
                f"The stub of {self._site!r} is called for the {number + 1}. time{where}, but {str(trace.path)!r} holds "
                f"{len(calls)} calls of it there. Does the port call it more often, or on other inputs, than the reference?"
            )
        self._counts[counted] = number + 1
        return calls[number]

    def _like(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The first argument of a floating-point dtype."""
        leaves, _ = self._nest.inputs(args, kwargs)
        tensors = (tensor for _, tensor in leaves if self._adapter.is_tensor(tensor) and not isinstance(tensor, np.ndarray))
        return next((tensor for tensor in tensors if self._kind(tensor) and not dtypes.named(self._kind(tensor)).is_exact), None)

    def _kind(self, tensor: Any) -> str:
        name = self._adapter.describe(tensor)[0]
        return name if name in dtypes.BY_NAME else ""

    def _tensor(self, values: Array, like: Any) -> Any:
        if self._axes is not None and len(self._axes) == values.ndim:
            values = values.transpose(self._axes)
        if like is not None and not dtypes.of(values).is_exact and not dtypes.of(values).is_complex:
            values = values.astype(dtypes.named(self._kind(like)).view, copy=False)
        return self._adapter.from_numpy(values, None)
