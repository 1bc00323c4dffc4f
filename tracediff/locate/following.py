"""What follows from an earlier finding, or is the same slip of the code.

State that its module keeps, a variable that its code uses again, another turn of the same line of code, a table that others use too.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.locate.made_of import MadeOf
from tracediff.locate.result import Finding
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.locate.verdicts import Verdicts
from tracediff.site import INPUTS, is_below
from tracediff.trace import Param
from tracediff.trace.calls import TOP


class Following:
    """Says of two findings whether the later one follows from the earlier one. Few errors are read value by value, the latest are kept."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts, self._made = verdicts, MadeOf(verdicts)
        self._error = lru_cache(maxsize=THRESHOLDS.errors_kept)(partial(_error, verdicts))

    def follows(self, earlier: Finding, later: Finding) -> bool:
        if earlier.culprit == later.culprit and self._made.is_same_code(earlier.place, later.place):
            return True
        return self._is_kept_state(earlier, later) or self._is_carried(earlier, later) or _uses_table_of(self._verdicts, earlier, later)

    def _is_kept_state(self, earlier: Finding, later: Finding) -> bool:
        """Whether a module's state is wrong after an earlier finding blamed the module, or a part of it: that made the state wrong."""
        is_state = later.blame == "module" and self._verdicts.flow.kind(later.place) in INPUTS
        return is_state and is_below(earlier.culprit[0], later.culprit[0])

    def _is_carried(self, earlier: Finding, later: Finding) -> bool:
        """Whether a forced run's later error is one that the code of the same call may only carry on.

        What the code hands a call is replaced there, not in the code's own variable: what it makes of the variable later is wrong too. That
        it is made of it the recorded operations say, or a like error.
        """
        flow, place = self._verdicts.flow, earlier.place
        if flow.kind(place) != "input" or not self._verdicts.pairs.is_replaced(place):
            return False
        if self._made.is_made_of(place, later.place):
            return True
        origins = [{call for call in flow.origins(i) if call != TOP} for i in (place, later.place)]
        if not origins[0] & origins[1]:
            return False
        first, second = self._error(place), self._error(later.place)
        return first is not None and second is not None and _are_alike(first, second)


def _are_alike(first: Array, second: Array) -> bool:
    """Whether two errors, flat, point the same way; of a batch that holds a state twice only the first is likened."""
    size = min(first.size, second.size)
    if size < THRESHOLDS.fewest_error_values or max(first.size, second.size) % size:
        return False
    first, second = first[:size], second[:size]
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(np.vdot(first, second)) / scale if scale else 0.0
    return cosine > max(THRESHOLDS.alike, THRESHOLDS.alike_by_chance / math.sqrt(size))


def _error(verdicts: Verdicts, i: int) -> Array | None:
    """The port's values minus the reference's, flat float64, zero where not finite; None where not stored, too many, or no numbers."""
    pairs = verdicts.pairs
    is_large = pairs.records(i)[0].nbytes > THRESHOLDS.most_error_bytes
    if pairs[i].layout is None or pairs.is_exact(i) or is_large or not pairs.is_stored(i):
        return None
    reference, port = pairs.values(i)
    with np.errstate(invalid="ignore"):
        error = port.astype(np.float64) - reference.astype(np.float64)
    return np.nan_to_num(error.reshape(-1), posinf=0.0, neginf=0.0)


def _uses_table_of(verdicts: Verdicts, earlier: Finding, later: Finding) -> bool:
    """Whether the later finding's output is made with the earlier culprit's wrong table.

    The later output is as wide as the table has rows, and the later culprit owns no other table of that shape.
    """
    flow = verdicts.flow
    if any(one.blame != "module" or flow.kind(one.place) != "output" for one in (earlier, later)):
        return False
    if earlier.culprit[1] == later.culprit[1] or not _is_asked_by_ids(verdicts, flow.call(earlier.place)):
        return False
    tables = _wrong_tables(verdicts, earlier, width=verdicts.pairs.records(later.place)[1].shape[-1:])
    shapes = {tuple(sorted(table.shape)) for table in tables}
    own = [param for param in _matrices(verdicts, later.culprit[1]) if tuple(sorted(param.shape)) in shapes]
    return bool(tables) and all(param.digest == tables[0].digest for param in own)


def _is_asked_by_ids(verdicts: Verdicts, call: int) -> bool:
    """Whether all that a call of the reference was handed is exact, as what is looked up in a table is."""
    asked = [verdicts.pairs.reference.records[row] for row in verdicts.flow.calls.inputs(call)]
    return bool(asked) and all(dtypes.named(record.dtype).is_exact for record in asked)


def _wrong_tables(verdicts: Verdicts, finding: Finding, width: tuple[int, ...]) -> list[Param]:
    """The matrices with ``width`` rows that a culprit owns in the port and not in the reference."""
    reference = verdicts.pairs.reference.params.values()
    right = {param.digest for param in reference if param.path == finding.culprit[0]}
    return [param for param in _matrices(verdicts, finding.culprit[1]) if param.shape[:1] == width and param.digest not in right]


def _matrices(verdicts: Verdicts, path: str) -> list[Param]:
    """The matrices among the parameters of a module of the port."""
    return [param for param in verdicts.pairs.port.params.values() if param.path == path and len(param.shape) == 2]
