"""What it costs to store weights as a port does: a reference with its own weights against itself with the port's, stage by stage."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tracediff import dtype as dtypes
from tracediff.errors import TracediffError
from tracediff.site import RETURNED, stage_chain
from tracediff.trace import Record, Trace
from tracediff.trace.stored_weights import KEY

_Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class StorageCost:
    """What the stored weights make of a stage of the reference, as relative L2.

    ``at_end``: of the last real tensor that a call in it returned, all errors so far among it; None where none was stored twice.
    ``introduced``: the largest error that one layer's weights make of its input, as independent errors of this size make it; ``layer`` is
    that layer's path. None where no layer of the stage has such weights.
    """

    at_end: float | None
    introduced: float | None
    layer: str = ""


def storage_costs(full: Trace, stored: Trace) -> Mapping[str, StorageCost]:
    """The cost by stage, of the whole run under "". ``full`` ran with the reference's own weights, ``stored`` with the port's.

    Raises TracediffError where they are no such two runs.
    """
    if not stored.meta.get(KEY):
        raise TracediffError(
            f"{str(stored.path)!r} did not run with a port's weights, so there is no cost to tell; capture it with --weights-from."
        )
    if full.meta.get(KEY):
        raise TracediffError(f"{str(full.path)!r} ran with a port's weights too; give the reference's trace with its own.")
    around: Mapping[str, str] = stored.meta.get("stages") or {}
    places = {_place(record): record for record in full.records if record.site != RETURNED}
    ends: dict[str, tuple[Record, Record]] = {}
    layers: dict[str, tuple[float, str]] = {}
    sizes = {name.rpartition(".")[0]: float(error) for name, _, error in stored.meta[KEY].get("taken") or ()}
    for record in stored.records:
        ours = places.get(_place(record))
        if ours is None or not record.end.startswith("output") or ours.shape != record.shape or dtypes.named(record.dtype).is_exact:
            continue
        made = _introduced(full, ours, sizes.get(record.site))
        for stage in _stages(record.stage, around):
            ends[stage] = ours, record
            layers[stage] = max(layers.get(stage, (0.0, "")), (made, record.site))
    if not ends:
        raise TracediffError(f"{str(full.path)!r} and {str(stored.path)!r} share no tensor: they are no two runs of one model.")
    return {stage: StorageCost(_error(*pair), layers[stage][0] or None, layers[stage][1]) for stage, pair in ends.items()}


def _place(record: Record) -> _Place:
    return record.site, record.ordinal, record.end


def _stages(stage: str, around: Mapping[str, str]) -> Iterator[str]:
    """A stage, those around it, and "" for the whole run."""
    yield from dict.fromkeys((*stage_chain(stage, around), ""))


def _introduced(full: Trace, made: Record, size: float | None) -> float:
    """The relative L2 of what a layer gives whose weight is off by ``size``, independently in each value; 0 where that is not known."""
    weight = full.params.get(f"{made.site}.weight")
    given = next(iter(full.calls.inputs(int(full.calls.of_row[made.row]))), None)
    if size is None or weight is None or given is None or not made.stats.l2:
        return 0.0
    x = full.records[given]
    if dtypes.named(x.dtype).is_exact:  # an embedding: rows are looked up
        return size
    return size * float(weight.stats.l2) * x.stats.l2 * _uses(weight.shape, x.shape, made.shape) / made.stats.l2


def _uses(weight: tuple[int, ...], x: tuple[int, ...], made: tuple[int, ...]) -> float:
    """What the norms of weight and input are multiplied by to be that of the product of independent ones: (out, in) times (..., in)."""
    is_linear = len(weight) == 2 and x[-1:] == weight[1:] and made[-1:] == weight[:1]
    return 1 / math.sqrt(weight[1]) if is_linear else 0.0


def _error(ours: Record, theirs: Record) -> float | None:
    """The relative L2 of two records; None where either was not stored."""
    if not (ours.stored and theirs.stored):
        return None
    full, stored = (one.read().astype(np.float64) for one in (ours, theirs))
    size = float(np.linalg.norm(full))
    return float(np.linalg.norm(stored - full)) / size if size else None
