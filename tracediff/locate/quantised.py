"""Which errors of a forced run are quantisation: what layers whose weights are codes of a few bits give, off by what codes explain.

Codes put each weight off by up to half a step, by chance. What a layer of such weights gives is off by as much as independent errors of the
weights make of its input: that is known without any weight's value. The error does not go with what the layer gives: a factor is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tracediff.locate.pairs import Pairs
from tracediff.locate.structure import correlation_of_error
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.metrics import Metrics
from tracediff.parameters.sources import codes_of
from tracediff.parameters.thresholds import THRESHOLDS as PARAMETERS
from tracediff.site import module_of
from tracediff.trace import Record


class Quantised:
    """What codes explain at the outputs of quantised layers; of a forced run alone, since elsewhere errors are handed on."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs
        self._is_forced = pairs.port.meta.get("mode_run") == "forced"

    @property
    def is_there(self) -> bool:
        """Whether the run is forced, and any of its layers is quantised."""
        return bool(self._bits)

    @cached_property
    def _bits(self) -> Mapping[str, int]:
        """The bits of the codes of each of the reference's modules whose weights the port holds so, those of shared weights among them."""
        if not self._is_forced:
            return {}
        modules = self._pairs.port.meta.get("modules") or ()
        port = {module["path"]: codes[0] for module in modules if (codes := codes_of(module.get("attrs") or {})) is not None}
        found = {}
        for pair in self._pairs.alignment.pairs:
            if pair.is_paired and pair.port in port and pair.reference == module_of(str(pair.reference)):
                found[str(pair.reference)] = port[str(pair.port)]
        for name, param in self._pairs.reference.params.items():
            paths = {one.rpartition(".")[0] for one in (name, *param.aliases) if one.endswith(".weight")}
            if bits := next((found[path] for path in paths if path in found), None):
                found.update(dict.fromkeys(paths, bits))
        return found

    def explains(self, i: int, metrics: Metrics | None) -> bool:
        """Whether the error of a pair is what the codes of the layer that made it explain, and nothing else."""
        if metrics is None or metrics.exact or metrics.lone_nonfinite:
            return False
        made = self._made_by(self._pairs.records(i)[0])
        explained = None if made is None else self._explained(made)
        if explained is None or metrics.rel_l2 > explained:
            return False
        found = correlation_of_error(self._pairs, i)
        if found is None:
            return False
        correlation, count = found
        by_chance = THRESHOLDS.gain_by_chance / math.sqrt(count)
        return abs(correlation) <= max(THRESHOLDS.gain_of_quantisation, by_chance)

    def _made_by(self, record: Record) -> Record | None:
        """The output of a quantised layer that a record is, or hands on as it is."""
        trace = self._pairs.reference
        for row in (record.row, int(trace.index["producer"][record.row])):
            one = trace.records[row] if row >= 0 else None
            if one is not None and one.site in self._bits and one.end.startswith("output"):
                return one
        return None

    def _explained(self, made: Record) -> float | None:
        """The relative L2 by which the output of a layer may be off, at most; None where its input or its weight is not known."""
        trace = self._pairs.reference
        steps: int = 2 ** self._bits[made.site] - 1
        of_weight = PARAMETERS.widest_group / (steps * math.sqrt(12))
        weight = self._weight(made.site)
        given = next((row for row in trace.calls.inputs(int(trace.calls.of_row[made.row]))), None)
        if weight is None or given is None:
            return None
        x = trace.records[given]
        if x.stats.l2 == 0 or made.stats.l2 == 0 or x.dtype.startswith(("int", "uint")):
            return of_weight
        gain = float(weight.stats.l2) * x.stats.l2 / (math.sqrt(weight.shape[-1]) * made.stats.l2)
        return of_weight * gain

    def _weight(self, path: str) -> Any:
        """The reference's weight of a module, under whichever name it is known."""
        wanted = f"{path}.weight"
        params = self._pairs.reference.params
        return params.get(wanted) or next((one for one in params.values() if wanted in one.aliases), None)
