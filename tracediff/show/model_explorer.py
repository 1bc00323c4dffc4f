"""A report for Google's Model Explorer: the graphs of both runs, each tensor's error over what is allowed, and which belong together.

Open ``reference.json`` and ``port.json`` (adapter "builtin_json"), add ``reference_errors.json`` and ``port_errors.json`` as node data, and
load ``pairs.json`` as the mapping of synchronised navigation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tracediff.errors import TracediffError
from tracediff.report import Report, Row
from tracediff.site import INPUTS, module_of, printable
from tracediff.trace import Trace, open_trace

_SIDES = ("reference", "port")
_COLOURS = ((1.0, "#a8d5a2"), (30.0, "#f4a259"), (1e30, "#c1292e"))
"""Up to which error, as a multiple of what is allowed, a node has a colour."""


def files(report: Report) -> dict[str, str]:
    """The content of each file by its name; TracediffError where the report has no table of pairs."""
    if not report.rows:
        raise TracediffError("This report has no table of pairs (it was read from JSON, or nothing was paired); compare the traces again.")
    found: dict[str, Any] = {}
    for place, side in enumerate(_SIDES):
        with open_trace(str(getattr(report, side)["path"])) as trace:
            found[f"{side}.json"] = {"graphs": [{"id": side, "nodes": list(_nodes(trace))}]}
        results = {}
        for row in report.rows:
            if (value := _value(row)) is not None:
                results.update({str(record): {"value": value} for record in _rows(row)[place]})
        thresholds = [{"value": value, "bgColor": colour} for value, colour in _COLOURS]
        found[f"{side}_errors.json"] = {side: {"name": "error over what is allowed", "results": results, "thresholds": thresholds}}
    entries = [{"leftNodeIds": list(map(str, ours)), "rightNodeIds": list(map(str, theirs))} for ours, theirs in map(_rows, report.rows)]
    found["pairs.json"] = {"type": "sync_navigation", "mappingEntries": entries, "showDiffHighlights": False}
    return {name: printable(json.dumps(content, allow_nan=False)) for name, content in found.items()}


def _rows(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row.pair.reference), tuple(row.pair.port)


def _value(row: Row) -> float | None:
    """The error as a multiple of what is allowed, at most the last limit of a colour; None where it was not judged."""
    error = row.rel_l2 if row.rel_l2 is not None else row.at_least
    if row.diverged is None:
        return None
    if not row.limit:
        return _COLOURS[-1][0] if row.diverged else 0.0
    return min(error / row.limit, _COLOURS[-1][0])


def _nodes(trace: Trace) -> list[Mapping[str, Any]]:
    """A node for each tensor, in the namespace of its module; an edge from what made what it was given."""
    calls, kinds = trace.calls, trace.calls.kinds
    nodes: list[Mapping[str, Any]] = []
    for record in trace.records:
        producer = calls.producers[record.row]
        given = [producer] if kinds[record.row] in INPUTS else calls.inputs(int(calls.of_row[record.row]))
        nodes.append(
            {
                "id": str(record.row),
                "label": f"{record.site.rpartition('.')[2] or 'the root'} {record.end}",
                "namespace": module_of(record.site).replace(".", "/"),
                "attrs": [{"key": key, "value": str(value)} for key, value in (("call", record.call), ("dtype", record.dtype))],
                "incomingEdges": [{"sourceNodeId": str(row)} for row in given if 0 <= row != record.row],
                "outputsMetadata": [{"id": "0", "attrs": [{"key": "tensor_shape", "value": str(record.shape)}]}],
            }
        )
    return nodes
