"""Causes that the divergent pair itself shows: a call that raised, a shape, a mask, a NaN, a scalar argument, other inputs or draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tracediff.causes.cause import Cause
from tracediff.causes.proof import recorded
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.locate import Comparison, Finding
from tracediff.metrics import Metrics
from tracediff.trace import Record, Trace, schema

_KIND_OF_ARGUMENT = {"scale": "scale", "eps": "norm.eps", "causal": "mask.wrong"}


def causes(finding: Finding, comparison: Comparison, reference: Trace, port: Trace) -> Iterator[Cause]:
    """The causes of one finding that its two records show; ``comparison`` is that of the finding's pair."""
    left, right = reference.records[comparison.pair.reference[0]], port.records[comparison.pair.port[0]]
    metrics = comparison.metrics
    if comparison.how == "raised":
        yield recorded("raised", THRESHOLDS.sure_recorded, _raised(left, right, (reference, port)))
    elif comparison.how == "shape":
        drawn = "numbers are drawn of " if left.end == "draw" else ""
        evidence = (
            f"{drawn}shape {left.shape} in the reference, {right.shape} in the port, and no layout reconciles them{_agreeing(finding)}"
        )
        sure = THRESHOLDS.sure_length_alone if drawn or _differs_in_length_alone(finding) else THRESHOLDS.sure_length_of_shapes
        yield Cause("length", sure, False, evidence)
    elif metrics is not None and (metrics.masked_reference or metrics.masked_port):
        yield _masked(metrics)
    elif metrics is not None and metrics.lone_nonfinite:
        yield recorded("nonfinite", THRESHOLDS.sure_recorded, _nonfinite(metrics, left, right))
    if left.end.startswith("attr["):
        yield from _argument(left, right)
    if finding.blame == "input" and not any(_has_computed(trace, record) for trace, record in ((reference, left), (port, right))):
        yield recorded("input", THRESHOLDS.sure_recorded, "the two runs were given different inputs: nothing was computed before this")
    if finding.blame == "random":
        evidence = "the two runs drew different random numbers; play the reference's back with --random"
        yield recorded("random", THRESHOLDS.sure_recorded, evidence)


def _agreeing(finding: Finding) -> str:
    """How far two tensors of unequal lengths agree."""
    length = finding.length
    if length is None or not length.agree:
        return ""
    return f"; along axis {length.axes[0]} the {'last' if length.at_end else 'first'} {length.agree} agree"


def _differs_in_length_alone(finding: Finding) -> bool:
    """Whether all places that both tensors have agree."""
    length = finding.length
    return length is not None and length.agree == min(length.reference, length.port)


def scalars(left: Record, right: Record) -> dict[str, Any] | None:
    """By "reference" and "port" the values themselves, where each is a single stored number; None for tensors."""
    if any(math.prod(record.shape) != 1 or not record.stored or record.dtype == "text" for record in (left, right)):
        return None
    values = [record.read().reshape(-1)[0] for record in (left, right)]
    return {side: str(value) if np.iscomplexobj(value) else value.item() for side, value in zip(("reference", "port"), values, strict=True)}


def _has_computed(trace: Trace, record: Record) -> bool:
    """Whether anything in a record's stage had returned a tensor before the record was made."""
    kinds = trace.calls.kinds[: record.row]
    return any(kind == "output" and trace.records[row].stage == record.stage for row, kind in enumerate(kinds))


def _argument(left: Record, right: Record) -> Iterator[Cause]:
    """The cause that a scalar argument tells by its name."""
    name = left.end.removeprefix("attr[").rstrip("]")
    values = scalars(left, right)
    if values is not None and name in _KIND_OF_ARGUMENT:
        kind = "mask.missing" if name == "causal" and values["reference"] else _KIND_OF_ARGUMENT[name]
        evidence = f"{name} is {values['reference']} in the reference and {values['port']} in the port"
        yield Cause(kind, THRESHOLDS.sure_of_argument, False, evidence)


def _raised(left: Record, right: Record, traces: Sequence[Trace]) -> str:
    """What was raised, where, and with which arguments on either side."""
    raised, side = (right, "port") if right.flags & schema.RAISED else (left, "reference")
    at = raised.note.get("raised_at")
    went_on = "; the run went on with what the reference returned" if raised.flags & schema.REPLACED else ""
    text = f"the {side} raised {raised.text()}" + (f" at {at}" if at else "") + went_on
    if right.site.startswith("#"):
        return f"{text}; it stopped outside of all calls, where the reference went on with {left.call} {left.end}"
    given = [_arguments(record, trace) or "none" for record, trace in zip((left, right), traces, strict=True)]
    return f"{text}; arguments: reference {given[0]}, port {given[1]}"


def _arguments(record: Record, trace: Trace) -> str:
    """The shapes and dtypes of what the record's call was handed."""
    index = trace.index
    is_same_call = (index["site"] == trace.sites[record.site]) & (index["ordinal"] == record.ordinal)
    records = (trace.records[row] for row in np.flatnonzero(is_same_call).tolist())
    return ", ".join(f"{one.end.removeprefix('input')} {one.shape} {one.dtype}" for one in records if one.end.startswith("input"))


def _masked(metrics: Metrics) -> Cause:
    """The cause of values that one side masks (-inf, -1e10) and the other does not."""
    kind = "mask.wrong" if metrics.masked_port else "mask.missing"
    sides = (("reference", metrics.masked_reference), ("port", metrics.masked_port))
    counts = " and ".join(f"{count:,} in the {side} only" for side, count in sides if count)
    evidence = f"of {metrics.count:,} values {counts} are masked (-1e4 or below)"
    return Cause(kind, THRESHOLDS.sure_mask_of_counts, False, evidence)


def _nonfinite(metrics: Metrics, left: Record, right: Record) -> str:
    ours, theirs = (f"{record.stats.nan:,} NaN and {record.stats.inf:,} infinite" for record in (left, right))
    return f"of {metrics.count:,} values {theirs} in the port, {ours} in the reference; the RMS error of the others is {metrics.rms:.1e}"
