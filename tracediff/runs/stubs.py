"""Stubs: parts of a port that are not written yet, served from a reference's trace, so that an unfinished port runs end to end.

A stub computes nothing. Call by call it returns what the reference's trace holds of its site. The port's trace marks what a stub
returned: that is never compared, and a run with a stub in it is never called the same.
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
from tracediff.dtype import Array, DType
from tracediff.errors import CaptureError, TraceFileError
from tracediff.observe import frames
from tracediff.observe.adapters import registry as adapters
from tracediff.observe.containers import Nest, built
from tracediff.observe.recorder import SERVES
from tracediff.observe.types import Adapter
from tracediff.site import is_returned
from tracediff.trace import Record, Trace, open_trace
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

    A stub stands where a port has no code yet: as an attribute of a PyTorch or an MLX module, or called by itself. ``trace`` is by
    default the trace that feeds the present run (``td.capture(..., feed="ref.h5")``). Values come in the dtype of the first
    floating-point argument and in the reference's containers, with None where the reference had None. In the place of an object of which
    a trace holds nothing (a cache that is given and returned) the stub returns its argument of the same type. ``axes`` reorders the
    axes of every tensor that has as many: ``(0, 2, 1)`` for (B, C, T) -> (B, T, C). Each observed run counts calls from 0, within its
    stage where the reference called the site in that stage.

    ``impl`` names the framework where both are loaded and no module of either is being made. When it is called, a stub raises
    CaptureError where no trace is known or the reference made fewer calls, SiteError where the trace has no such site.

    >>> class Port(nn.Module):                                                    # doctest: +SKIP
    ...     def __init__(self):
    ...         self.encoder, self.decoder = Encoder(), td.stub("flow.decoder")
    """
    adapter = adapters.named(impl) if impl is not None else _framework(site)
    module = adapter.calling(_Stub(site, trace, None if axes is None else tuple(axes), adapter))
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


class _Stub:
    """The forward function of a stub."""

    def __init__(self, site: str, trace: TraceLike | None, axes: tuple[int, ...] | None, adapter: Adapter) -> None:
        self._site, self._trace, self._axes, self._adapter = site, trace, axes, adapter
        self._nest = Nest(adapter.is_tensor, adapter.is_model)
        self._run: Any = None
        self._counts: dict[str, int] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = self._opened()
        outputs = self._outputs(trace, self._next_call(trace))
        dtype = self._dtype_of_first(args, kwargs)
        values = {end: record.text() if record.dtype == "text" else self._tensor(record.read(), dtype) for end, record in outputs.items()}
        absent = {end: kind for record in outputs.values() for end, kind in (record.note.get("absent") or {}).items()}
        given = (*args, *kwargs.values())
        return built(values | {end: _argument_of_type(kind, given) for end, kind in absent.items()})

    def _outputs(self, trace: Trace, call: str) -> dict[str, Record]:
        """The records of what a call returned, by end; TraceFileError where there are none, or a value was not stored."""
        outputs = {record.end: record for record in trace.find(self._site, call) if record.end.startswith("output")}
        missing = [end for end, record in outputs.items() if not record.stored]
        if missing or not outputs:
            what = f"the values of {missing[0]} were" if missing else "no output was"
            where = f"{what} not stored at {call!r}"
            raise TraceFileError(f"{str(trace.path)!r} cannot serve {self._site!r}: {where}. Capture it with --save full.")
        return {end: record for end, record in outputs.items() if is_returned(end)}

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

    def _next_call(self, trace: Trace) -> str:
        """The reference's call whose outputs are returned now; CaptureError where the reference made no further call."""
        current = frames.current()
        run = current[0].session if current else None
        if run is not self._run:
            self._run, self._counts = run, {}
        stage = current[0].stage if current else ""
        calls = calls_of(trace, self._site)
        in_stage = list(dict.fromkeys(record.call for record in trace.find(self._site) if record.stage == stage))
        if stage and in_stage:
            calls = in_stage
        else:
            stage = ""
        number = self._counts.get(stage, 0)
        if number >= len(calls):
            where = f" in stage {stage!r}" if stage else ""
            raise CaptureError(
                f"The stub of {self._site!r} is called for the {number + 1}. time{where}, but {str(trace.path)!r} holds "
                f"{len(calls)} calls of it there. Does the port call it more often, or on other inputs, than the reference?"
            )
        self._counts[stage] = number + 1
        return calls[number]

    def _dtype_of_first(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DType | None:
        """The dtype of the first tensor argument in floating point; None where there is none."""
        leaves, _ = self._nest.inputs(args, kwargs)
        tensors = [tensor for _, tensor in leaves if self._adapter.is_tensor(tensor) and not isinstance(tensor, np.ndarray)]
        names = [self._adapter.describe(tensor)[0] for tensor in tensors]
        kinds = (dtypes.named(name) for name in names if name in dtypes.BY_NAME)
        return next((kind for kind in kinds if not kind.is_exact), None)

    def _tensor(self, values: Array, dtype: DType | None) -> Any:
        if self._axes is not None and len(self._axes) == values.ndim:
            values = values.transpose(self._axes)
        kind = dtypes.of(values)
        if dtype is not None and not kind.is_exact and not kind.is_complex:
            values = values.astype(dtype.view, copy=False)
        return self._adapter.from_numpy(values, None)


def _argument_of_type(name: str, arguments: Sequence[Any]) -> Any:
    """The first argument whose type has this name; None where the name is empty or no argument is of that type."""
    return next((value for value in arguments if name and type(value).__name__ == name), None)
