"""A forced run of one module of a port: what its site was given in a reference's trace goes in, and a trace of its own comes out.

The module runs at the recorded calls of its site, and what it holds is fed the reference's tensors, as in a forced run of a whole port.
Its trace is compared with the part of the reference's that lies at and inside the site: seconds instead of a run of the whole.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.alignment.axes import choose, layouts
from tracediff.dtype import Array
from tracediff.errors import CaptureError, SiteError
from tracediff.observe import adapter_of, stage
from tracediff.observe.adapters import registry as adapters
from tracediff.observe.containers import Nest
from tracediff.observe.options import CaptureOptions
from tracediff.observe.randomness import Playback
from tracediff.observe.tree import modules_below
from tracediff.observe.types import Adapter
from tracediff.runs.binding import Binding, bindings
from tracediff.runs.captured import captured
from tracediff.runs.recorded_call import RecordedCall, recorded_call
from tracediff.runs.thresholds import THRESHOLDS
from tracediff.site import Site, is_below
from tracediff.tensors.files import open_array_file
from tracediff.trace import Trace
from tracediff.trace.subtrace import Subtrace, calls_of, subtrace_of

Axes = tuple[int, ...]
PathLike = str | os.PathLike[str]
Say = Callable[[str], None]


def run_site(
    reference: Trace,
    site: str,
    module: Any,
    to: PathLike,
    *,
    calls: Sequence[int] = (),
    arguments: Mapping[str, str] | None = None,
    impl: str | None = None,
    force: bool = False,
    say: Say = lambda _: None,
) -> tuple[Subtrace, dict[str, Any]]:
    """Runs ``module`` on the recorded inputs of a site, and records it to the new trace ``to``.

    Returns the site's part of the reference's trace, and the mapping that pairs the site with the module.

    ``module``: a live module, or another callable. ``calls``: which of the site's calls, counted from 0; all where empty.
    ``arguments``: the module's names of the reference's arguments, where names and order do not tell. ``impl``: the framework of a
    callable that is no module and belongs to none.

    Raises SiteError for an unknown site or call, TraceFileError where its inputs were not stored, CaptureError where the inputs cannot
    be bound to the module's parameters, or ``module`` cannot be called.
    """
    kind = Site.parse(site)
    if site in reference.sites and kind.kind not in ("module", "method", "function"):
        raise SiteError(f"{site!r} is a {kind.kind}, not a module, method or function: there is nothing to try. Name the module around it.")
    chosen = _chosen_calls(reference, site, calls)
    adapter, module = _as_module(module, site, impl)
    part = subtrace_of(reference, site, chosen, kind.path)
    recorded = [recorded_call(reference, site, call) for call in chosen]
    bound = bindings(recorded, module, adapter, arguments or {}, site)
    with adapter.no_grad():
        axes = _axes(recorded[0], bound[0], module, adapter)
        if axes:
            say(f"the module takes its inputs with their axes in the order {', '.join(map(str, axes.values()))}")

        def run() -> Any:
            made = []
            for call, binding in zip(recorded, bound, strict=True):
                with stage(call.stage):
                    made.append(_call(module, call, binding, adapter, axes))
            return made[0] if len(made) == 1 else made

        meta = {"tried": site, "calls": chosen, "axes": [list(order) for order in axes.values()]}
        mapping = {"pairs": [{"reference": site, "port": kind.path}]}
        options = CaptureOptions(impl=adapter.name)
        given: dict[str, Any] = {"observers": [Playback(part)], "meta": meta, "force": force, "progress": say}
        captured(_at(kind.path, module), run, to, options=options, feed=part, mapping=mapping, **given)
    return part, mapping


def _chosen_calls(reference: Trace, site: str, numbers: Sequence[int]) -> list[str]:
    """The printed calls of a site: those with these numbers, all where there are none."""
    calls = calls_of(reference, site)
    beyond = [number for number in numbers if not 0 <= number < len(calls)]
    if beyond:
        raise SiteError(f"{site!r} has {len(calls)} calls in {str(reference.path)!r}, counted from 0; there is no call {beyond[0]}.")
    return [calls[number] for number in numbers] or calls


def _at(path: str, module: Any) -> Any:
    """The module inside nested mappings whose keys are the parts of a module path."""
    for name in reversed(path.split(".") if path else ()):
        module = {name: module}
    return module


def _as_module(module: Any, site: str, impl: str | None) -> tuple[Adapter, Any]:
    """The adapter of a callable, and a module of its framework that calls it (the callable itself where that is a module)."""
    if not callable(module):
        raise CaptureError(f"{type(module).__name__!r} cannot be called, so it cannot be tried as {site!r}; give a module or a function.")
    owner = getattr(module, "__self__", None)
    adapter = adapters.named(impl) if impl is not None else adapter_of(module, owner)
    if adapter.is_model(module):
        return adapter, module
    if adapter.name == "numpy":
        loaded = adapters.loaded()
        if len(loaded) != 1:
            raise CaptureError(f"Nothing tells of which framework the callable tried as {site!r} is; say it with impl='torch' or 'mlx'.")
        adapter = loaded[0]
    made = adapter.calling(module)
    if owner is not None and adapter.is_model(owner):
        made.owner = owner
    made.__tracediff_signature__ = inspect.signature(module)
    return adapter, made


def _call(module: Any, call: RecordedCall, binding: Binding, adapter: Adapter, axes: Mapping[int, Axes]) -> Any:
    """What the module returns for the arguments of a recorded call."""
    values = [_converted(argument.value, adapter, axes) for argument in call.arguments]
    positions, keywords = binding.laid_out(values)
    return module(*positions, **keywords)


def _converted(value: Any, adapter: Adapter, axes: Mapping[int, Axes]) -> Any:
    """An argument with its arrays as tensors of the framework, the axes of real ones reordered."""
    if isinstance(value, np.ndarray):
        order = axes.get(value.ndim) if _has_layout(value) else None
        return adapter.from_numpy(value if order is None else np.ascontiguousarray(value.transpose(order)), None)
    if isinstance(value, tuple):
        return tuple(_converted(part, adapter, axes) for part in value)
    if isinstance(value, dict):
        return type(value)({key: _converted(part, adapter, axes) for key, part in value.items()})
    return value


# ------------------------------------------------------------------------------------------------------ the order of axes

_ORDERS: tuple[dict[int, Axes], ...] = ({}, {3: (0, 2, 1), 4: (0, 2, 3, 1)}, {3: (0, 2, 1), 4: (0, 3, 1, 2)})
"""By the number of axes: as the reference has them, channels last, channels first."""


def _axes(call: RecordedCall, binding: Binding, module: Any, adapter: Adapter) -> Mapping[int, Axes]:
    """The order in which the module takes the axes of its inputs, by the number of axes.

    It is the first order in which the module's output agrees with the reference's. Where none agrees, it is the first in which the
    output has a shape that a layout reconciles; where there is none of these either, the reference's own.
    """
    fitting: list[Mapping[int, Axes]] = []
    for axes in _orders_for(call):
        error = _output_error(call, binding, module, adapter, axes)
        if error is None:
            continue
        if error < THRESHOLDS.fitting_output:
            return axes
        fitting.append(axes)
    return fitting[0] if fitting else {}


def _orders_for(call: RecordedCall) -> Iterator[Mapping[int, Axes]]:
    """The different orders that the array arguments of a call can be given in."""
    arrays = (argument.value for argument in call.arguments if isinstance(argument.value, np.ndarray))
    depths = {array.ndim for array in arrays if _has_layout(array)}
    made: list[Mapping[int, Axes]] = []
    for orders in _ORDERS:
        axes = {depth: order for depth, order in orders.items() if depth in depths}
        if axes not in made:
            made.append(axes)
            yield axes


def _has_layout(array: Array) -> bool:
    """Whether an array may have its axes in another order: ids and masks keep theirs."""
    return array.dtype.kind not in "biu"


def _output_error(call: RecordedCall, binding: Binding, module: Any, adapter: Adapter, axes: Mapping[int, Axes]) -> float | None:
    """The least relative error of the module's first output in any layout; None where it raises or no layout reconciles the shapes."""
    state = adapter.rng_state()
    try:
        returned = Nest(adapter.is_tensor, adapter.is_model).values(_call(module, call, binding, adapter, axes), "output")
        tensors = [tensor for _, tensor in returned if adapter.is_tensor(tensor)]
        if not tensors or not call.outputs:
            return None
        theirs, ours = adapter.view(tensors[0]), call.outputs[0]
        candidates = layouts(ours.shape, theirs.shape)
        return float(choose(ours.read(), theirs, candidates)[1]) if candidates and ours.stored else None
    except Exception:  # noqa: BLE001 - whatever a module raises where it is given the wrong shapes
        return None
    finally:
        adapter.set_rng_state(state)


# ------------------------------------------------------------------------------------------------------ modules by name


def port_module(
    reference: Trace,
    site: str,
    name: str | None,
    *,
    impl: str,
    recipe: str | None,
    path: str | None,
    weights: str | os.PathLike[str] | None,
) -> tuple[str, Any]:
    """The module of a port that stands for a site, and its path in the port ("" where ``name`` makes it).

    ``name``: as in `load_object`; the module is put into evaluation mode where the reference was. Without it the port's recipe is
    loaded and searched, as in `find_module`, where ``path`` is what the user names. ``weights``: a file that the module loads.
    """
    if name is not None:
        found, module = "", load_object(name)
    else:
        found, module = find_module(_recipe_models(impl, recipe, reference), reference, site, adapters.named(impl), path)
    if weights is not None:
        load_weights(module, weights)
    if name is not None and reference.meta.get("mode") == "eval" and adapter_of(module).is_model(module):
        module.eval()
    return found, module


def _recipe_models(impl: str, recipe: str | None, reference: Trace) -> Mapping[str, Any]:
    """The models that a recipe loads for the stages and with the seed and weights of the reference's run."""
    from tracediff.observe import recipe as recipes

    meta = reference.meta
    context = recipes.Context(
        seed=int(meta.get("seed") or 0),
        weights=str(meta.get("weights") or "seeded"),
        stages=tuple(meta.get("wanted") or ()),
        reference=reference,
    )
    return recipes.load_recipe(recipe or meta.get("recipe"), impl).load(context)


def load_object(text: str) -> Any:
    """The module that ``FILE:CLASS`` or ``FILE:FACTORY`` names: the Python file imported, and what is named called without arguments.

    Raises CaptureError where there is no such file or name, or it cannot be called so.
    """
    return make_object(text, find_object(text))


def find_object(text: str) -> Any:
    """What ``FILE:NAME`` names, the Python file imported. Raises CaptureError where there is no such file or name."""
    from tracediff.observe.recipe import load_file

    file, mark, name = text.rpartition(":")
    if not mark or not name:
        raise CaptureError(f"{text!r} names no module; write FILE:CLASS or FILE:FACTORY, for instance 'port.py:Decoder'.")
    path = Path(file)
    if not path.is_file():
        raise CaptureError(f"There is no Python file {file!r}.")
    held = load_file(path)
    if not hasattr(held, name):
        nearest = difflib.get_close_matches(name, [key for key in vars(held) if not key.startswith("_")], n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(map(repr, nearest))}" if nearest else ""
        raise CaptureError(f"{file!r} has no {name!r}{hint}.")
    return getattr(held, name)


def make_object(text: str, value: Any) -> Any:
    """A module as it is, and of anything else what it returns, called without arguments; CaptureError where it cannot be."""
    if not isinstance(value, type) and adapter_of(value).is_model(value):
        return value
    try:
        return value()
    except TypeError as error:
        what = f"{text!r} cannot be called without arguments ({error})"
        raise CaptureError(f"{what}; name a function that returns what is to be tried.") from error


def load_weights(module: Any, file: PathLike) -> None:
    """Loads a .safetensors or .npz file through the module's own ``load_weights`` (after its ``sanitize``) or ``load_state_dict``.

    Raises CaptureError where the file is neither or the module has neither method, and what the module raises.
    """
    path = Path(file)
    adapter = adapter_of(module)
    arrays = {name: adapter.from_numpy(values, None) for name, values in _arrays(path).items()}
    if hasattr(module, "sanitize"):
        arrays = module.sanitize(arrays)
    if hasattr(module, "load_weights"):
        module.load_weights(list(arrays.items()))
    elif hasattr(module, "load_state_dict"):
        module.load_state_dict(arrays)
    else:
        raise CaptureError(f"{type(module).__name__!r} has neither load_weights nor load_state_dict, so {str(path)!r} cannot be loaded.")


def _arrays(path: Path) -> dict[str, Array]:
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        raise CaptureError(f"{str(path)!r} is no .safetensors or .npz file that is there.")
    return {array.name: np.array(array.read()) for array in open_array_file(path).arrays}


def find_module(models: Any, reference: Trace, site: str, adapter: Adapter, wanted: str | None = None) -> tuple[str, Any]:
    """The path and the module among ``models`` that stands for the reference's site.

    It is the module at that path (at ``wanted`` if given), else the one that holds parameters of the same sizes; of several the one
    whose path is nearest. Raises SiteError, naming the nearest paths, where there is none, and for an unknown site.
    """
    calls_of(reference, site)
    path = Site.parse(site).path if wanted is None else wanted
    nodes = [node for node in modules_below(models, adapter) if node.is_model]
    known = {name: node.module for node in nodes for name in (node.path, *node.aliases)}
    if path in known:
        return path, known[path]
    owner = site.partition(":")[0]
    sizes = _sizes(param.shape for param in reference.params.values() if is_below(param.path, owner))
    alike = [node for node in nodes if sizes and sizes == _sizes(_shapes(node.module, adapter))] if wanted is None else []
    if alike:
        nearest_node = max(alike, key=lambda node: difflib.SequenceMatcher(None, node.path, path).ratio())
        return nearest_node.path, nearest_node.module
    nearest = ", ".join(map(repr, difflib.get_close_matches(path, list(known), n=3, cutoff=0.2) or list(known)[:3]))
    raise SiteError(f"No module of the port stands for {path!r} by its name or its parameters; nearest: {nearest}. Name it: --module PATH")


def _shapes(module: Any, adapter: Adapter) -> Iterator[tuple[int, ...]]:
    """The shapes of all parameters of a module and those inside it."""
    for node in modules_below(module, adapter):
        if node.is_model:
            yield from (adapter.describe(tensor)[1] for _, tensor, _ in adapter.parameters(node.module))


def _sizes(shapes: Iterable[tuple[int, ...]]) -> list[int]:
    return sorted(int(np.prod(shape)) for shape in shapes)
