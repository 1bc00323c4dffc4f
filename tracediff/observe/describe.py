"""What is recorded of a model before its run: modules with their scalar attributes, parameters with their aliases, versions."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.observe import frames
from tracediff.observe.observer import Run
from tracediff.observe.products import probed
from tracediff.observe.provenance import digest_of_bytes, provenance
from tracediff.observe.tree import path_of
from tracediff.observe.types import Adapter, Node, ParameterKind, Tensor
from tracediff.site import join

LONGEST_TEXT = 200
"""Characters of a text that is recorded as an attribute."""

LONGEST_ROW = 32
"""Numbers of a row that is recorded as an attribute."""


@dataclass(slots=True)
class Parameter:
    """One parameter or buffer: its name, the path of the module that holds it, and the other names of the same tensor."""

    name: str
    tensor: Tensor
    path: str
    kind: ParameterKind
    aliases: list[str] = field(default_factory=list)


def parameters(run: Run) -> list[Parameter]:
    """The parameters and buffers of a run's models whose values can be read, in tree order."""
    found: dict[int, Parameter] = {}
    for node in run.modules:
        if not node.is_model:
            continue
        for keys, tensor, kind in run.adapter.parameters(node.module):
            names = [join(path, path_of(keys)) for path in (node.path, *node.aliases)]
            known = found.get(id(tensor))
            if known is not None:
                known.aliases += names
            elif not (why := run.adapter.unreadable([tensor])):
                found[id(tensor)] = Parameter(names[0], tensor, node.path, kind, names[1:])
            else:
                run.miss(f"parameter {names[0]!r}: {why}")
    return list(found.values())


def meta(run: Run) -> dict[str, Any]:
    """The meta of a trace that is known before the run."""
    dtypes: Counter[str] = Counter()
    devices: Counter[str] = Counter()
    held = parameters(run)
    for parameter in held:
        dtype, shape, device = run.adapter.describe(parameter.tensor)
        dtypes[dtype] += math.prod(shape)
        devices[device] += math.prod(shape)
    models = [node for node in run.modules if node.is_model]
    info = run.adapter.info()
    made = provenance(sorted({type(node.module).__module__.partition(".")[0] for node in models} - {"builtins", "__main__"}))
    made["versions"].update(info["versions"])
    return {
        **made,
        "impl": run.adapter.name,
        "dtype": _most(dtypes),
        "device": _most(devices),
        "mode": "train" if models and run.adapter.is_training(models[0].module) else "eval",
        "generator": info["generator"],
        "modules": [module(node, run.adapter) for node in models],
        "sources": _sources(type(node.module) for node in models),
        "mode_run": "free",
        **probed(run.adapter, held[0].tensor if held else None),
    }


def module(node: Node, adapter: Adapter) -> dict[str, Any]:
    """What a trace says of one module."""
    kind = type(node.module)
    return {
        "path": node.path,
        "type": kind.__name__,
        "package": kind.__module__,
        "file": _file_of(kind),
        "training": adapter.is_training(node.module),
        "arguments": _arguments(node.module, adapter),
        "attrs": attributes(node.module, adapter),
        "aliases": list(node.aliases),
        "children": list(node.children),
    }


def attributes(module: Any, adapter: Adapter) -> dict[str, Any]:
    """The scalar attributes of a module, public or private: numbers, short texts, None, and short rows of numbers."""
    return {name: plain(value) for name, value in adapter.attributes(module).items() if is_scalar(value) or _is_row(value)}


def is_scalar(value: Any) -> bool:
    """Whether a value is a number, a bool, None or a short text."""
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= LONGEST_TEXT)


def plain(value: Any) -> Any:
    """A value that JSON holds: NaN and infinities as texts, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    return int(value) if isinstance(value, int) else str(value)


def _is_row(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list)) and 0 < len(value) <= LONGEST_ROW and all(isinstance(part, (bool, int, float)) for part in value)
    )


def _most(counter: Counter[str]) -> str:
    return counter.most_common(1)[0][0] if counter else ""


def _file_of(kind: type) -> str:
    file = _source_of(kind)
    return frames.short(file) if file else ""


@lru_cache(4096)
def _source_of(kind: type) -> str:
    """The file that a class was read from; "" where it came from none."""
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return ""


def _sources(kinds: Iterable[type]) -> dict[str, str]:
    """The digests of the files that some classes come from, as far as they can be read."""
    found = {}
    for file in dict.fromkeys(map(_source_of, kinds)):
        if Path(file).is_file():
            found[frames.short(file)] = digest_of_bytes(Path(file).read_bytes()).hex()
    return found


def _arguments(module: Any, adapter: Adapter) -> list[str]:
    """The names of a module's positional parameters, so that positions and keywords can be told to be the same."""
    entry = adapter.entry(module)
    try:
        signature = inspect.signature(getattr(type(module), entry)) if entry else None
    except (TypeError, ValueError, AttributeError):  # written in C, or what torch.jit made
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature.parameters.items() if parameter.kind in kinds][1:] if signature else []
