"""Observing a run: every boundary of it is shown to observers, which may hand back other values.

    observe(model, run, [observer])          # runs, and returns what the run returned
    with record(model, "x.h5"): ...          # any code, loops included, into a trace
    x = tap("name", x)                       # inside: marks a value
    with scope("ode", step), stage("flow"): ...

`tap`, `scope` and `stage` do nothing where nothing observes. Outputs are bit for bit those of the same run unobserved, and afterwards
every attribute, class and switch is as before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeVar, Unpack

from tracediff.errors import CaptureError
from tracediff.interrupts import allowed, held, owning
from tracediff.observe import frames
from tracediff.observe.adapters import registry
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.options import BlockKeywords, block_options, lists_options
from tracediff.observe.products import pinned
from tracediff.observe.session import Session
from tracediff.observe.types import Adapter

__all__ = ["Boundary", "Observer", "Run", "adapter_of", "observe", "record", "scope", "stage", "tap"]

T = TypeVar("T")


def observe(
    models: Any,
    run: Any,
    observers: Sequence[Observer],
    *,
    methods: Iterable[str] = (),
    functions: Iterable[str] = (),
    impl: str | None = None,
    compile: bool | None = None,
) -> Any:
    """Runs and returns what the run returned, with every boundary shown to the observers.

    ``models``: a module, a tuple, list or mapping of them (whose keys begin the paths), an object whose attributes are modules, or
    None where only taps, functions and draws are of interest. ``run``: a callable without arguments; or the inputs of a single
    model: an array, a tuple of positional ones, a dict of named ones, NumPy arrays being converted. ``methods``: ``path:method``,
    globs allowed on both sides. ``functions``: globs on dotted names of functions. ``impl``: the framework, where ``models`` does not
    tell. ``compile``: False turns compilation and fused layers off for the run, so that everything inside is seen, in other arithmetic;
    True leaves them on; by default MLX's is turned off where observed modules would be hidden in it, and the run says so. Gradients are
    recorded or not as the caller has set it.

    Raises CaptureError where there is nothing to observe or to run, and whatever the run or an observer raises.
    """
    adapter = adapter_of(models, run, impl=impl)
    call = _without_arguments(run) if callable(run) and not adapter.is_tensor(run) else _call_of(models, run, adapter)
    with held(), Session(models, observers, adapter, methods=methods, functions=functions, compile=compile) as session:
        with allowed():
            returned = call()
        return session.returned(returned, run)


@owning
@lists_options(BlockKeywords)
def record(
    models: Any,
    to: str | PathLike[str] | Sequence[Observer],
    *,
    observers: Sequence[Observer] = (),
    force: bool = False,
    **options: Unpack[BlockKeywords],
) -> Iterator[Run]:
    """As `observe`, for the code of a ``with`` block, recorded into a new trace (or shown to the observers given for ``to``).

    ``options`` are those of `tracediff.observe.options.CaptureOptions`, without those of further runs (``repeat``, ``floor``,
    ``floor_dtypes``). ``force`` replaces a trace at ``to``. Further ``observers`` come before the recorder. An exception in the block
    closes the trace as incomplete and goes on.
    """
    chosen = block_options(options)
    adapter = adapter_of(models, impl=chosen.impl)

    def session(*seen_by: Observer) -> Session:
        every = (*observers, *seen_by)
        return Session(models, every, adapter, methods=chosen.methods, functions=chosen.functions, compile=chosen.compile)

    if not isinstance(to, (str, PathLike)):
        with pinned(adapter, wanted=bool(chosen.precise)), session(*to) as opened:
            yield opened.run
        return
    from tracediff.observe.blind_spots import note_blind_spots
    from tracediff.observe.recorder import Recorder
    from tracediff.trace.budget import within
    from tracediff.trace.container import new_identity
    from tracediff.trace.writer import TraceWriter

    meta, identity = {"precise": True} if chosen.precise else {}, new_identity()
    with within(to, identity, chosen.budget):
        with (
            pinned(adapter, wanted=bool(chosen.precise)),
            TraceWriter(to, force=force, meta=meta, save=chosen.save, identity=identity) as writer,
            session(Recorder(writer, chosen)) as opened,
        ):
            yield opened.run
        note_blind_spots(to, identity)


def tap(name: str, value: T) -> T:
    """Returns ``value``, having marked it as the site ``path#name`` of the module that runs; an observer may exchange it.

    ``value`` is a tensor, a NumPy array, a text, a number, a list of numbers, or a container of such.
    """
    for frame in frames.current():
        value = frame.session.tap(frame, name, value)
    return value


@contextmanager
def scope(name: str, value: Any) -> Iterator[None]:
    """Names the part of the run inside the block, as in ``scope("token", 17)``: it becomes part of each call there."""
    yield from _inside(lambda frame: frame.scoped(name, value))


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Makes the part of the run inside the block a stage, which has a verdict of its own; stages nest."""

    def enter(frame: frames.Frame) -> frames.Frame:
        frame.session.run.stages.setdefault(name, frame.stage)
        return frame.staged(name)

    yield from _inside(enter)


def _inside(enter: Callable[[frames.Frame], frames.Frame]) -> Iterator[None]:
    entered = [enter(frame) for frame in frames.current()]
    for frame in entered:
        frames.push(frame)
    try:
        yield
    finally:
        for frame in reversed(entered):
            frames.pop(frame)


def adapter_of(*values: Any, impl: str | None = None) -> Adapter:
    """The adapter for these models and inputs; the plain one where they tell no framework."""
    if impl is not None:
        return registry.named(impl)
    return registry.of(*(value for value in values if value is not None)) or registry.named("plain")


def _without_arguments(run: Callable[..., T]) -> Callable[[], T]:
    """The callable as it is. Raises CaptureError where it cannot be called without arguments."""
    try:
        inspect.signature(run).bind()
    except TypeError as error:
        name = getattr(run, "__name__", type(run).__name__)
        raise CaptureError(
            f"The run {name!r} is called without arguments and cannot be ({error}); give `lambda: model(x)`, or the inputs of the model."
        ) from error
    except ValueError:  # what is written in C may not tell its arguments
        pass
    return run


def _call_of(models: Any, inputs: Any, adapter: Adapter) -> Callable[[], Any]:
    """The call of a single model on the given inputs."""
    model = models
    if isinstance(models, Mapping) and not adapter.is_model(models) and len(models) == 1:
        model = next(iter(models.values()))
    if not callable(model):
        raise CaptureError(f"Inputs were given for {type(models).__name__!r}, which is no single model; give a callable that runs it.")
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
    args = tuple(_tensor(value, adapter) for value in args)
    named = {key: _tensor(value, adapter) for key, value in kwargs.items()}
    return lambda: model(*args, **named)


def _tensor(value: Any, adapter: Adapter) -> Any:
    is_array = type(value).__module__.partition(".")[0] == "numpy" and adapter.is_tensor(value)
    return adapter.from_numpy(value, None) if is_array else value
