"""Blind spots of a run: faults that could not have shown in it, found from the statistics and shapes of its trace.

A mask that lets everything through hides a fault in masking, a zero bias hides one that was never loaded, two axes of one size hide a
transposition. Nothing here says that something is wrong; each line says what to vary in another run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from tracediff import dtype as dtypes
from tracediff.site import is_below, module_of
from tracediff.trace import Param, Trace, open_trace, schema
from tracediff.trace.amend import amend

_CACHE = re.compile(r"cache|past_key|past_kv|layer_past")
_SCALES = frozenset({"weight", "gamma", "scale", "g", "alpha", "original0"})

SiteEnd = tuple[str, str]
"""A site and an end."""
Shape = tuple[int, ...]


def blind_spots(trace: Trace) -> list[str]:
    """What the run of a trace could not have shown, one line for each kind: how many places, one of them, and what would not show."""
    seen = _Seen(trace)
    return [line for kind in KINDS for line in kind(seen)] if len(trace.records) else []


class _Seen:
    """The records of a trace, as far as their places, shapes and ranges are concerned."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.strings = trace.strings
        index = trace.index
        is_text = (index["flags"] & (schema.TEXT | schema.RAISED)) != 0
        self.index = index[~is_text]
        inexact = [code for code, kind in dtypes.BY_CODE.items() if not kind.is_exact]
        self.exact = ~np.isin(self.index["dtype"], inexact)

    @cached_property
    def modules(self) -> list[Mapping[str, Any]]:
        """What the trace says of its modules."""
        return list(self.trace.meta.get("modules") or ())

    @cached_property
    def shapes(self) -> dict[int, Shape]:
        """The shape that each text number stands for."""
        return {number: schema.shape_of(self.strings[number]) for number in np.unique(self.index["shape"]).tolist()}

    @cached_property
    def varies(self) -> Any:
        """Which records hold more than one value."""
        return ~((self.index["min"] == self.index["max"]) & (self.index["nan"] == 0) & (self.index["inf"] == 0))

    @cached_property
    def places(self) -> list[tuple[SiteEnd, Any]]:
        """Each (site, end) with its rows, in the order of the first ones."""
        pairs = self.index["site"].astype(np.int64) << 32 | self.index["end"]
        codes, inverse = np.unique(pairs, return_inverse=True)
        if not codes.size:  # texts alone
            return []
        order = np.argsort(inverse, kind="stable")
        rows = np.split(order, np.cumsum(np.bincount(inverse, minlength=len(codes)))[:-1])
        found = [((self.strings[code >> 32], self.strings[code & 0xFFFFFFFF]), own) for code, own in zip(codes.tolist(), rows, strict=True)]
        return sorted(found, key=lambda place_and_rows: int(place_and_rows[1][0]))

    def rows_like(self, wanted: Callable[[str, str], bool]) -> dict[SiteEnd, Any]:
        """The rows of each (site, end) for which ``wanted`` says so."""
        return {place: rows for place, rows in self.places if wanted(*place)}

    def shapes_of(self, rows: Any) -> list[Shape]:
        """The different shapes among some rows."""
        return [self.shapes[number] for number in dict.fromkeys(self.index["shape"][rows].tolist())]


def _masks(seen: _Seen) -> Iterator[str]:
    masks = {place: rows[seen.index["count"][rows] > 1] for place, rows in seen.rows_like(_is_mask).items()}
    masks = {place: rows for place, rows in masks.items() if rows.size}
    plain = [place for place, rows in masks.items() if not seen.varies[rows].any()]
    if plain:
        yield _line("masks", plain, len(masks), "mask", "of one value throughout", "a fault in masking would not show there")


def _constant_inputs(seen: _Seen) -> Iterator[str]:
    given = seen.rows_like(lambda site, end: end.startswith(("input", "value")) and not _is_mask(site, end) and "!" not in site)
    given = {place: rows[seen.index["count"][rows] > 1] for place, rows in given.items()}
    plain = [place for place, rows in given.items() if rows.size and not seen.varies[rows].any()]
    if plain:
        yield _line("inputs", plain, len(given), "input", "of one value throughout", "what is done to its elements would not show there")


def _is_bias(param: Param) -> bool:
    return "bias" in _last(param)


def _is_scale(param: Param) -> bool:
    return len(param.shape) == 1 and _last(param) in _SCALES


def _is_weight(param: Param) -> bool:
    return len(param.shape) > 1 and param.kind == "parameter" and not _is_bias(param)


def _is_statistic(param: Param) -> bool:
    return _last(param) in ("running_mean", "running_var")


def _initial(param: Param) -> float:
    """The value with which a parameter does nothing."""
    return 1.0 if _is_scale(param) or _last(param) == "running_var" else 0.0


_IDLE = (
    ("biases", "bias", _is_bias, "zero throughout", "a missing one would not show"),
    ("scales", "scale", _is_scale, "one throughout", "a missing one would not show"),
    ("weights", "weight", _is_weight, "zero throughout", "what goes into it would not show"),
    ("statistics", "running statistic", _is_statistic, "still 0 or 1", "statistics that were never loaded would not show"),
)
"""Parameters that hide a fault while they have their initial value throughout: kind, name, which, what they are, what would not show."""


def _parameters(seen: _Seen) -> Iterator[str]:
    parameters = [param for param in seen.trace.params.values() if param.stats.count > 0]
    for kind, name, includes, what, hidden in _IDLE:
        group = [param for param in parameters if includes(param)]
        idle = [(param.name, "") for param in group if param.stats.min == param.stats.max == _initial(param)]
        if idle:
            yield _line(kind, idle, len(group), name, what, hidden)


def _equal_sizes(seen: _Seen) -> Iterator[str]:
    attention = {place: rows for place, rows in seen.rows_like(_is_attention_input).items() if place[1] in ("input[q]", "input[k]")}
    modules = seen.rows_like(lambda site, end: "!" not in site and not _is_mask(site, end) and not end.startswith("attr["))
    square: dict[SiteEnd, Shape] = {}
    total = 0
    for place, rows in {**modules, **attention}.items():
        sizes = 4 if place in attention else 3
        shapes = [shape for shape in seen.shapes_of(rows[~seen.exact[rows]]) if len(shape) in (sizes, sizes - 1)]
        total += bool(shapes)
        if shapes and all(_is_square(shape, place in attention) for shape in shapes):
            square[place] = shapes[0]
    if square:
        shape = next(iter(square.values()))
        yield _line("sizes", list(square), total, "tensor", "the same along two axes", f"axes exchanged there would keep the shape {shape}")


def _is_square(shape: Shape, is_attention: bool) -> bool:
    """Whether two axes of different meaning have the same size above 1: of the last two, or of attention's (heads, positions, channels)."""
    inner = [size for size in (shape[-3:] if is_attention else shape[-2:]) if size > 1]
    return len(set(inner)) < len(inner)


def _batch_of_one(seen: _Seen) -> Iterator[str]:
    modules = seen.rows_like(lambda site, end: not re.search("[!#]", site) and not end.startswith("attr["))
    shapes = {shape for rows in modules.values() for shape in seen.shapes_of(rows[~seen.exact[rows]]) if len(shape) >= 3}
    if shapes and all(shape[0] == 1 for shape in shapes):
        yield "batch: of 1 in every tensor of three or more axes; rows or axes mixed up there would not show"


def _single_positions(seen: _Seen) -> Iterator[str]:
    keys = {place: rows for place, rows in seen.rows_like(_is_attention_input).items() if place[1] == "input[k]"}
    single = [place for place, rows in keys.items() if all(len(shape) > 1 and shape[-2] == 1 for shape in seen.shapes_of(rows))]
    if single:
        yield _line("length", single, len(keys), "attention", "over a single position", "what attention weighs would not show there")


def _unused_cache(seen: _Seen) -> Iterator[str]:
    caching = [module["path"] for module in seen.modules if any(_CACHE.search(name) for name in module.get("arguments") or ())]
    inputs = seen.rows_like(_is_attention_input)
    sites = [site for site, end in inputs if end == "input[q]" and any(is_below(module_of(site), path) for path in caching)]
    if sites and not any(_lengths(seen, inputs, site, "input[q]") < _lengths(seen, inputs, site, "input[k]") for site in sites):
        able = f"{_counted(len(caching), 'module')} such as {caching[0] or '(root)'!r}"
        yield f"cache: no attention saw earlier positions, though {able} can take a cache; a fault in it would not show"


def _lengths(seen: _Seen, inputs: Mapping[SiteEnd, Any], site: str, end: str) -> int:
    """The shortest queries or the longest keys of an attention's calls, in positions."""
    lengths = [shape[-2] for shape in seen.shapes_of(inputs.get((site, end), np.array([], int))) if len(shape) > 1]
    return (min if end == "input[q]" else max)(lengths, default=0)


def _dropout(seen: _Seen) -> Iterator[str]:
    modules = [module for module in seen.modules if str(module.get("type", "")).startswith("Dropout")]
    idle = [(str(module["path"]), "") for module in modules if not module.get("training") or (module.get("attrs") or {}).get("p") == 0]
    if idle:
        yield _line("dropout", idle, len(modules), "dropout", "idle (evaluation mode, or p = 0)", "a fault in it would not show")


def _is_mask(site: str, end: str) -> bool:
    own = re.split("[#!:]", site)[-1] if re.search("[#!:]", site) and not end.startswith("input") else ""
    return "mask" in end or "mask" in own


def _is_attention_input(site: str, end: str) -> bool:
    return site.endswith("!attention") and end.startswith("input[")


def _last(param: Param) -> str:
    return param.name.rpartition(".")[2]


def _line(kind: str, places: list[SiteEnd], total: int, name: str, what: str, hidden: str) -> str:
    """One kind of blind spot in one line."""
    site, end = places[0]
    where = repr(f"{site or '(root)'} {end}".strip())
    every = f"all {total:,} {_plural(name)}" if total > 1 else f"the {name}"
    share = f"{len(places):,} of {_counted(total, name)}" if len(places) < total else every
    verb = "is" if len(places) == 1 else "are"
    example = f", such as {where}" if len(places) > 1 else f", {where}"
    return f"{kind}: {share} {verb} {what}{example}; {hidden}"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name if count == 1 else _plural(name)}"


def _plural(name: str) -> str:
    return "attentions" if name == "attention" else f"{name}es" if name.endswith("s") else f"{name}s"


KINDS: tuple[Callable[[_Seen], Iterable[str]], ...] = (
    _masks,
    _constant_inputs,
    _parameters,
    _equal_sizes,
    _batch_of_one,
    _single_positions,
    _unused_cache,
    _dropout,
)
"""The kinds of blind spots, in the order of their lines."""


def blind_spots_meta(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """What the meta of a closed trace is to say of its run's blind spots."""
    with open_trace(path) as trace:
        return {"blind_spots": blind_spots(trace)}


def note_blind_spots(path: str | os.PathLike[str], identity: bytes, **items: Any) -> None:
    """Writes the blind spots of a closed trace's run into its meta, and further items; ``identity`` is the trace's."""
    amend(path, identity=identity, meta={**blind_spots_meta(path), **items})
