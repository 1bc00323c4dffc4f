"""Trying one module of a port on what its site was handed in a reference's trace.

The module is run on the recorded inputs of its site, call by call, forced inside as any port is, and leaves a trace of its own that
is judged against that part of the reference's: seconds instead of a run of the whole.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.alignment.axes import choose, layouts
from tracediff.alignment.names import tokens
from tracediff.dtype import Array
from tracediff.errors import CaptureError, SiteError, TraceFileError
from tracediff.observe import adapter_of, stage
from tracediff.observe.adapters import registry as adapters
from tracediff.observe.containers import Nest, built
from tracediff.observe.options import CaptureOptions
from tracediff.observe.randomness import Playback
from tracediff.observe.tree import modules_below
from tracediff.observe.types import Adapter
from tracediff.runs.captured import captured
from tracediff.site import End, Site, is_returned
from tracediff.tensors.files import open_array_file
from tracediff.trace import Record, Trace
from tracediff.trace.subtrace import Subtrace, calls_of, subtrace_of

Axes = tuple[int, ...]
_FITS = 1e-2
"""Relative error of an output at which the order of its inputs' axes is taken to be right."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One recorded call: its arguments in order, each with its name in the reference where it is known, and its stage.

    ``named``: the places of those that were handed over by name. ``unseen``: the names of arguments of which nothing was recorded.
    """

    text: str
    stage: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    outputs: tuple[Record, ...]
    named: frozenset[int] = frozenset()
    unseen: tuple[str, ...] = ()


def tried(
    reference: Trace,
    site: str,
    module: Any,
    to: str | os.PathLike[str],
    *,
    calls: Sequence[int] = (),
    arguments: Mapping[str, str] | None = None,
    impl: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Subtrace, dict[str, Any]]:
    """Runs ``module`` on the recorded inputs of a site, and records it to the new trace ``to``.

    Returns that part of the reference, and the mapping that states which site is meant.

    ``module``: a live module, or another callable. ``calls``: which of the site's calls, counted from 0; all where empty.
    ``arguments``: what the module calls the reference's arguments, where names and order do not tell. ``impl``: the framework of a
    callable that is no module and belongs to none.

    Raises SiteError for an unknown site or call, TraceFileError where its inputs were not stored, CaptureError where they cannot be
    bound to the module's parameters, or ``module`` cannot be called.
    """
    kind = Site.parse(site)
    if site in reference.sites and kind.kind not in ("module", "method", "function"):
        raise SiteError(f"{site!r} is a {kind.kind}, not a module, method or function: there is nothing to try. Name the module around it.")
    chosen = _chosen(reference, site, calls)
    adapter, module = _callable(module, site, impl)
    part = subtrace_of(reference, site, chosen, kind.path)
    recorded = [_recorded(reference, site, text) for text in chosen]
    bound = _bindings(recorded, module, adapter, arguments or {}, site)
    with adapter.no_grad():
        axes = _axes(recorded[0], module, adapter, bound[0])
        if axes:
            say(f"the module takes its inputs with their axes in the order {', '.join(map(str, axes.values()))}")

        def run() -> None:
            for one, bind in zip(recorded, bound, strict=True):
                with stage(one.stage):
                    _called(one, module, adapter, bind, axes)

        meta = {"tried": site, "calls": chosen, "axes": [list(order) for order in axes.values()]}
        mapping = {"pairs": [{"reference": site, "port": kind.path}]}
        options = CaptureOptions(impl=adapter.name)
        given: dict[str, Any] = {"observers": [Playback(part)], "meta": meta, "force": force, "progress": say}
        captured(_at(kind.path, module), run, to, options=options, feed=part, mapping=mapping, **given)
    return part, mapping


def _chosen(reference: Trace, site: str, calls: Sequence[int]) -> list[str]:
    """The printed calls that are asked for."""
    known = calls_of(reference, site)
    beyond = [number for number in calls if not 0 <= number < len(known)]
    if beyond:
        raise SiteError(f"{site!r} has {len(known)} calls in {str(reference.path)!r}, counted from 0; there is no call {beyond[0]}.")
    return [known[number] for number in calls] or known


def _at(path: str, module: Any) -> Any:
    """The module where its site says: nested mappings, whose keys make the path."""
    for name in reversed(path.split(".") if path else ()):
        module = {name: module}
    return module


def _callable(module: Any, site: str, impl: str | None) -> tuple[Adapter, Any]:
    """The adapter, and a module that does what ``module`` does."""
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


# ------------------------------------------------------------------------------------------------------ what was recorded


def _recorded(reference: Trace, site: str, call: str) -> _Call:
    """The arguments of one recorded call."""
    records = reference.find(site, call)
    inputs = [record for record in records if record.end.startswith("input")]
    absent = next((record for record in inputs if not record.stored), None)
    if absent is not None or not inputs:
        what = f"the values of {absent.end} were not stored" if absent is not None else "no inputs were recorded"
        raise TraceFileError(
            f"{str(reference.path)!r} does not hold what {site or 'the root'!r} was handed at {call!r}: {what}. Capture the reference with "
            "--save full and without leaving the site out."
        )
    parts: dict[str, Any] = {record.end: record.text() if record.dtype == "text" else record.read() for record in inputs}
    parts |= {end: value for record in records for end, value in (record.note.get("scalars") or {}).items() if end.startswith("input")}
    keyed: dict[int | str, dict[str, Any]] = {}
    for end, value in parts.items():
        keyed.setdefault(End.parse(end).keys[0], {})[end] = value
    known = next((one.get("arguments") or [] for one in reference.meta.get("modules") or () if one["path"] == site), [])
    numbers = sorted(key for key in keyed if isinstance(key, int))
    names = [known[key] if key < len(known) else "" for key in numbers]
    values = [_argument(keyed[key], key) for key in numbers]
    for key in keyed:
        if isinstance(key, str):
            names.append(key)
            values.append(_argument(keyed[key], key))
    outputs = tuple(record for record in records if is_returned(record.end))
    named = frozenset(range(len(numbers), len(names)))
    unseen = tuple(name for name in known if name not in names)
    return _Call(call, records[0].stage, tuple(names), tuple(values), outputs, named, unseen)


def _argument(parts: Mapping[str, Any], key: int | str) -> Any:
    """One argument, its containers rebuilt."""
    own = next(iter(parts))
    if len(parts) == 1 and len(End.parse(own).keys) == 1:
        return parts[own]
    value = built(parts)
    return value[key] if isinstance(value, dict) else value[0]


# ------------------------------------------------------------------------------------------------------ binding


@dataclass(frozen=True, slots=True)
class _Binding:
    """For each of the reference's arguments where it goes: a position, a name, or None where the module has no use for it."""

    places: tuple[int | str | None, ...]


def _signature(module: Any, adapter: Adapter) -> inspect.Signature | None:
    """What a module may be called with; None where it does not tell."""
    told = getattr(module, "__tracediff_signature__", None)
    entry = adapter.entry(module)
    try:
        return told or inspect.signature(getattr(module, entry) if entry is not None else module)
    except (TypeError, ValueError):
        return None


_OPAQUE = (
    " (the reference was handed {0!r} too, but an object of its own kind, of which a trace holds nothing: try a callable that makes it, "
    "such as a module around this one)"
)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _bindings(calls: Sequence[_Call], module: Any, adapter: Adapter, stated: Mapping[str, str], site: str) -> list[_Binding]:
    """A binding for each call: a module may be handed other arguments from call to call (a mask, a cache, only at some)."""
    signature = _signature(module, adapter)
    if signature is None:
        return [_Binding(tuple(range(len(call.values)))) for call in calls]
    known = {label for call in calls for label in _labels(call)}
    nowhere = [name for name in stated if name not in known]
    given = [{name: theirs for name, theirs in stated.items() if name in nowhere or name in _labels(call)} for call in calls]
    return [_binding(call, signature, own, site) for call, own in zip(calls, given, strict=True)]


def _binding(call: _Call, signature: inspect.Signature, stated: Mapping[str, str], site: str) -> _Binding:
    """Where each of the reference's arguments goes: where stated, by its name, then by order among those that are left.

    What is None or False is left out where the module does not ask for it, unless it takes any number of arguments.
    """
    parameters = signature.parameters
    free = [one for one in parameters.values() if one.kind in (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
    rest = any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values())
    any_name = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    places: list[int | str | None] = [None] * len(call.values)
    taken: set[str] = set()

    def fail(why: str) -> CaptureError:
        return CaptureError(
            f"The inputs of {site or 'the root'!r} cannot be bound: {why}. The reference was called with ({_told(call)}); the module takes "
            f"{signature}. Say which is which: arguments={{'reference_name': 'its_name'}}, or --arg REFERENCE=ITS_NAME."
        )

    wrong = [name for name in stated if name not in _labels(call)]
    wrong += [] if any_name else [name for name in stated.values() if name not in parameters]
    if wrong:
        raise fail(f"there is no argument {wrong[0]!r}")
    for place, label in enumerate(_labels(call)):
        own = (one.name for one in free if one.name not in taken and _is_named_alike(call.names[place], one.name))
        found = stated.get(label) or next(own, "")
        if found and found not in taken:
            places[place] = found
            taken.add(found)
    left = [one for one in free if one.name not in taken and one.kind in _POSITIONAL]
    for place, value in enumerate(call.values):
        if places[place] is not None or _is_idle(value):
            continue
        if left:
            places[place] = left.pop(0).name
        elif any_name and place in call.named:
            places[place] = call.names[place]
        elif rest:
            places[place] = place
        elif any_name and call.names[place]:
            places[place] = call.names[place]
        elif not _is_plain(value):
            raise fail(f"nothing takes the reference's {_labels(call)[place]!r}")
    for place in range(len(places)) if rest else ():  # what is handed over by position alone keeps its place
        places[place] = place if places[place] is None and place not in call.named else places[place]
    bound = {place for place in places if isinstance(place, str)}
    missing = [one.name for one in free if one.default is one.empty and one.name not in bound]
    idle = [place for place, where in enumerate(places) if where is None and _is_idle(call.values[place])]
    for place in idle[: len(missing)]:
        places[place] = missing.pop(0)
    if missing:
        unseen = [name for name in missing if name in call.unseen]
        raise fail(f"nothing is left for {', '.join(map(repr, missing))}" + (_OPAQUE.format(unseen[0]) if unseen else ""))
    return _Binding(tuple(places))


def _labels(call: _Call) -> list[str]:
    """How each argument is called: its name, or its position."""
    return [name or str(place) for place, name in enumerate(call.names)]


def _is_named_alike(ours: str, theirs: str) -> bool:
    return bool(ours) and (ours == theirs or tokens(ours) == tokens(theirs))


def _is_plain(value: Any) -> bool:
    """Whether a value is no tensor and holds none: a switch that the module may well do without."""
    return value is None or isinstance(value, (bool, int, float, str))


def _is_idle(value: Any) -> bool:
    return value is None or value is False


def _told(call: _Call) -> str:
    """The arguments of a call in words."""
    shown = [f"{tuple(value.shape)} {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__ for value in call.values]
    return ", ".join(f"{label}: {text}" for label, text in zip(_labels(call), shown, strict=True))


def _called(call: _Call, module: Any, adapter: Adapter, bind: _Binding, axes: Mapping[int, Axes]) -> Any:
    """Calls the module as the reference was."""
    names = {place for place in bind.places if isinstance(place, str)}
    signature = _signature(module, adapter)
    order = [one.name for one in signature.parameters.values() if one.kind in _POSITIONAL] if signature else []
    values = [(place, _converted(value, adapter, axes)) for place, value in zip(bind.places, call.values, strict=True)]
    by_name = {place: value for place, value in values if isinstance(place, str)}
    leading = []
    for name in order:  # by position as far as there are no gaps, since names may be positional only
        if name not in names:
            break
        leading.append(by_name.pop(name))
    return module(*leading, *(value for place, value in values if isinstance(place, int)), **by_name)


def _converted(value: Any, adapter: Adapter, axes: Mapping[int, Axes]) -> Any:
    """An argument with its arrays as tensors of the framework, their axes reordered."""
    if isinstance(value, np.ndarray):
        moved = axes.get(value.ndim) if value.dtype.kind not in "biu" else None
        return adapter.from_numpy(value if moved is None else np.ascontiguousarray(value.transpose(moved)), None)
    if isinstance(value, tuple):
        return tuple(_converted(part, adapter, axes) for part in value)
    if isinstance(value, dict):
        return type(value)({key: _converted(part, adapter, axes) for key, part in value.items()})
    return value


# ------------------------------------------------------------------------------------------------------ the order of axes

_ORDERS: tuple[dict[int, Axes], ...] = ({}, {3: (0, 2, 1), 4: (0, 2, 3, 1)}, {3: (0, 2, 1), 4: (0, 3, 1, 2)})
"""As the reference has them, channels last, channels first."""


def _axes(call: _Call, module: Any, adapter: Adapter, bind: _Binding) -> Mapping[int, Axes]:
    """In which order the module takes the axes of its inputs, by their number: the first in which what it returns agrees with the
    reference; where none does, the first in which it runs and returns the right shape, or else the reference's own.
    """
    depths = {value.ndim for value in call.values if isinstance(value, np.ndarray) and value.dtype.kind not in "biu"}
    orders = [{depth: order for depth, order in orders.items() if depth in depths} for orders in _ORDERS]
    runs: list[Mapping[int, Axes]] = []
    for axes in (order for place, order in enumerate(orders) if order not in orders[:place]):
        state = adapter.rng_state()
        try:
            result = _called(call, module, adapter, bind, axes)
            error = _error(call, result, adapter)
        except Exception:  # noqa: BLE001 - whatever a module raises where it is handed the wrong shapes
            continue
        finally:
            adapter.set_rng_state(state)
        if error is not None and error < _FITS:
            return axes
        if error is not None:
            runs.append(axes)
    return runs[0] if runs else {}


def _error(call: _Call, result: Any, adapter: Adapter) -> float | None:
    """The least relative error of the first output in any layout; None where no layout reconciles the shapes."""
    returned = [tensor for _, tensor in Nest(adapter.is_tensor, adapter.is_model).values(result, "output") if adapter.is_tensor(tensor)]
    if not returned or not call.outputs:
        return None
    theirs, ours = adapter.view(returned[0]), call.outputs[0]
    candidates = layouts(ours.shape, theirs.shape)
    if not candidates or not ours.stored:
        return None
    return float(choose(ours.read(), theirs, candidates)[1])


# ------------------------------------------------------------------------------------------------------ modules by name


def load_object(text: str) -> Any:
    """The module that ``FILE:CLASS`` or ``FILE:FACTORY`` names: the Python file imported, and what is named called without arguments.

    Raises CaptureError where there is no such file or name, or it cannot be called so.
    """
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
    value = getattr(held, name)
    if not isinstance(value, type) and adapter_of(value).is_model(value):
        return value
    try:
        return value()
    except TypeError as error:
        what = f"{text!r} cannot be called without arguments ({error})"
        raise CaptureError(f"{what}; name a function that returns what is to be tried.") from error


def load_weights(module: Any, file: str | os.PathLike[str]) -> None:
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


def find_module(models: Any, part: Trace, site: str, adapter: Adapter, wanted: str | None = None) -> tuple[str, Any]:
    """The path and the module among ``models`` that stands for the reference's site: the one of that path (``wanted`` if given), else
    the one that holds as many parameters of the same sizes; of several the one whose name is nearest.

    Raises SiteError, naming the nearest paths, where there is none.
    """
    path = Site.parse(site).path if wanted is None else wanted
    nodes = [node for node in modules_below(models, adapter) if node.is_model]
    known = {name: node.module for node in nodes for name in (node.path, *node.aliases)}
    if path in known:
        return path, known[path]
    sizes = _sizes(param.shape for param in part.params.values())
    alike = [node for node in nodes if sizes and sizes == _sizes(_shapes(node.module, adapter))] if wanted is None else []
    if alike:
        best = max(alike, key=lambda node: difflib.SequenceMatcher(None, node.path, path).ratio())
        return best.path, best.module
    nearest = ", ".join(map(repr, difflib.get_close_matches(path, list(known), n=3, cutoff=0.2) or list(known)[:3]))
    raise SiteError(f"No module of the port stands for {path!r} by its name or its parameters; nearest: {nearest}. Name it: --module PATH")


def _shapes(module: Any, adapter: Adapter) -> Iterable[tuple[int, ...]]:
    for node in modules_below(module, adapter):
        if node.is_model:
            yield from (adapter.describe(tensor)[1] for _, tensor, _ in adapter.parameters(node.module))


def _sizes(shapes: Iterable[tuple[int, ...]]) -> list[int]:
    return sorted(int(np.prod(shape)) for shape in shapes)
