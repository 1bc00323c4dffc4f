"""Writes a reference's tensors as a port names and lays them out, so that a port in Swift, C++ or Rust feeds itself by a look-up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment import RecordPair, align
from tracediff.alignment.axes import apply_reference, restore
from tracediff.dtype import Array
from tracediff.errors import AlignmentError, TracediffError
from tracediff.parameters.diagnosis import weights
from tracediff.parameters.layout_rules import Origin
from tracediff.site import End
from tracediff.trace import Record, Trace
from tracediff.trace.calls import TOP
from tracediff.trace.conversion import Name, NamedArray, write_named

PathLike = str | os.PathLike[str]


def write_feed(
    reference: Trace, port: Trace, to: PathLike, *, mapping: PathLike | Mapping[str, Any] | None = None, force: bool = False
) -> Path:
    """Writes the reference's inputs, draws, outputs and parameters under the port's names, in its axis order, shape and dtype.

    What the run was given and drew, and the port's file does not hold, is written as the reference has it, under the reference's name.
    ``mapping`` overrides the alignment. Returns ``to``, an .npz, a .safetensors or a folder of .npy. Raises AlignmentError where nothing of
    the two can be paired, TracediffError where the reference's values were not stored.
    """
    named = dict(_records(reference, port, align(reference, port, mapping=mapping).records))
    if not named:
        raise AlignmentError(
            f"Nothing of {str(port.path)!r} could be read as the reference {str(reference.path)!r} has it, so there is nothing to feed. "
            "State pairs in a mapping file: --map FILE"
        )
    for name, array in (*_given(reference, port), *_parameters(reference, port)):
        named.setdefault(name, array)
    return write_named(named, to, meta={"impl": str(reference.meta.get("impl", "")), "like": Path(port.path).name}, force=force)


def _records(reference: Trace, port: Trace, pairs: Sequence[RecordPair]) -> Iterator[tuple[str, NamedArray]]:
    """Each paired record of the port, with the reference's values in its place."""
    names = _names(port)
    for pair in pairs:
        bare = next((row for row in pair.reference if not reference.records[row].stored), None)
        if bare is not None:
            raise TracediffError(
                f"{reference.records[bare]!r} was recorded without its values, so it cannot feed a port. Capture with --save full."
            )
        if pair.layout is not None and all(port.records[row].stored for row in pair.port):
            for place, row in enumerate(pair.port):
                record = port.records[row]
                yield names[row], NamedArray(record.dtype, record.shape, partial(_values, reference, port, pair, place))


def _names(port: Trace) -> list[str]:
    """How the port's program names each record: as its file did, else as one does in a file."""
    known = (port.meta.get("converted") or {}).get("arrays")
    if isinstance(known, list) and len(known) == len(port.records):
        return [str(name) for name in known]
    return [_plain_name(record) for record in port.records]


def _plain_name(record: Record) -> str:
    """A site where the output of its first call is meant, else with call and end."""
    is_plain = record.end == "output" and not record.ordinal and record.site
    return record.site if is_plain else str(Name(record.site, record.ordinal, record.end))


def _values(reference: Trace, port: Trace, pair: RecordPair, place: int) -> Array:
    """The reference's values as one of the port's records of a pair has them: its shape, its axes, its dtype."""
    assert pair.layout is not None
    ours = apply_reference([reference.records[row].read() for row in pair.reference], pair.layout)
    records = [port.records[row] for row in pair.port]
    made = restore(ours, pair.layout, [record.read() for record in records])[place]
    return _cast(made, records[place].dtype, records[place].shape)


def _cast(values: Array, dtype: str, shape: tuple[int, ...]) -> Array:
    kind = dtypes.named(dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        return dtypes.bits(np.ascontiguousarray(values).reshape(shape).astype(kind.view))


def _given(reference: Trace, port: Trace) -> Iterator[tuple[str, NamedArray]]:
    """What the reference's run was given and drew, as the reference names and holds it."""
    calls = reference.calls
    rows = [row for call in calls.children[TOP] for row in calls.inputs(call)]
    rows += [row for row, kind in enumerate(calls.kinds) if kind == "draw"]
    for row in rows:
        record: Record = reference.records[row]
        if record.stored and record.dtype != "text" and calls.kinds[row] in ("input", "draw"):
            yield str(Name(record.site, record.ordinal, record.end)), NamedArray(record.dtype, record.shape, record.read)


def _parameters(reference: Trace, port: Trace) -> Iterator[tuple[str, NamedArray]]:
    """The parameters that the port's file holds, with the reference's values, where these were stored."""
    if not port.params or not any(param.stored for param in reference.params.values()):
        return
    for pair in weights(reference, port).pairs:
        param = port.params.get(pair.port)
        if param is not None and all(name in reference.params and reference.params[name].stored for name in pair.reference):
            local = param.name[len(param.path) + 1 :] if param.path else param.name
            name = str(Name(param.path, 0, str(End("param", (local,)))))
            yield name, NamedArray(param.dtype, param.shape, partial(_parameter, reference, pair.origin, param.dtype, param.shape))


def _parameter(reference: Trace, origin: Origin, dtype: str, shape: tuple[int, ...]) -> Array:
    def read(name: str) -> Array:
        param = reference.params[name]
        return dtypes.view(param.read(), dtypes.named(param.dtype))

    return _cast(origin.values(read), dtype, shape)
