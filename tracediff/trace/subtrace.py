"""A subtrace: some calls of an open trace, with all that lies inside them, as a trace of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tracediff.site import is_below
from tracediff.trace.reader import Trace
from tracediff.trace.tables import Tables


class Subtrace(Trace):
    """The records of some rows of an open trace, and the modules and parameters at and below ``path``.

    Nothing is copied but the tables: values are read from the whole, which must stay open. Ordinals count from 0 in the subtrace.
    """

    def __init__(self, whole: Trace, rows: Sequence[int], path: str) -> None:
        self._whole, self._rows, self._below = whole, list(rows), path
        self.path, self.segments, self.was_killed, self.damaged = whole.path, whole.segments, whole.was_killed, whole.damaged
        modules = [module for module in whole.meta.get("modules") or () if is_below(str(module["path"]), path)]
        not_seen = [what for what in whole.meta.get("not_seen") or () if path in what]
        meta = {**whole.meta, "modules": modules, "not_seen": not_seen, "returned": None}  # the whole run's, which is not the part's
        owners = [is_below(whole.strings[number], path) for number in whole.tables.params["path"].tolist()]
        kept = np.asarray(self._rows, np.int64)
        optional = {name: table[kept] for name, table in whole.tables.optional.items()}
        params = whole.tables.params[np.array(owners, bool)]
        self.tables = Tables(_renumbered(whole.index, kept), params, whole.tables.sketches, whole.strings, meta, optional)
        self._shapes: dict[int, tuple[int, ...]] = {}

    @property
    def fd(self) -> int:  # type: ignore[override]
        """The whole's file."""
        return self._whole.fd

    def close(self) -> None:
        """Leaves the whole open."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Subtrace, (self._whole, self._rows, self._below)


def _renumbered(index: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rows kept, their references to other rows renumbered (-1 where those are not kept), the calls of each site counted anew."""
    place = np.full(len(index) + 1, -1, np.int64)
    place[kept] = np.arange(len(kept))
    rows: np.ndarray[Any, Any] = index[kept].copy()
    for column in ("parent", "producer"):
        rows[column] = place[rows[column]]
    for site in np.unique(rows["site"]):
        own = rows["site"] == site
        rows["ordinal"][own] = np.unique(rows["ordinal"][own], return_inverse=True)[1]
    rows.flags.writeable = False
    return rows


def calls_of(trace: Trace, site: str) -> list[str]:
    """The calls of a site in execution order, as they are printed; SiteError, naming the nearest, where there is no such site."""
    return list(dict.fromkeys(record.call for record in trace.find(site)))


def subtrace_of(trace: Trace, site: str, calls: Sequence[str], path: str) -> Subtrace:
    """The records of these calls of a site, and all inside them; ``path`` is the site's module path."""
    wanted = set(calls)
    texts = trace.strings
    inside = {number: _is_inside(texts[number], wanted) for number in np.unique(trace.index["call"]).tolist()}
    return Subtrace(trace, [row for row, number in enumerate(trace.index["call"].tolist()) if inside[number]], path)


def _is_inside(call: str, wanted: set[str]) -> bool:
    while call:
        if call in wanted:
            return True
        call = call.rpartition("/")[0]
    return False
