"""Traces of processes that ran one model together, made one trace: as if one process had run it.

Each process, a *rank*, has a place in a *mesh* with named axes: tensor-, sequence-, expert-, pipeline-, data-parallel. Along an axis each
tensor is placed in one of five ways:

- ``replicate``: every rank has all of it. They are compared, and a rank that has something else is a finding of its own;
- ``shard(d)``: each has a part of its axis ``d``; the parts are joined;
- ``partial``: each has a term of a sum; the terms are added in float64;
- ``chain``: the ranks are the stages of one call, in order. What it was given is the first one's, what it returned the last one's.

What only some ranks saw (a pipeline's stages, a rank's own experts) is taken from these. DTensors say how they are placed; what a rank was
handed lies as what made it; all else is in a small table, or a replica.
"""

from __future__ import annotations

import fnmatch
import os
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array
from tracediff.errors import TracediffError, TraceFileError
from tracediff.metrics import compare
from tracediff.observe.record_writer import PLACED
from tracediff.site import INPUTS, is_returned, listed
from tracediff.trace import Param, Record, Trace, open_trace, schema
from tracediff.trace.writer import TraceWriter

PathLike: TypeAlias = "str | os.PathLike[str]"
Ways = Mapping[str, str]
"""How a tensor is placed, by the names of axes; along any other axis it is replicated."""
Place = tuple[int, ...]
Key = tuple[str, str, str]
"""What names a record on every rank: its site, its printed call, and its end."""

KEY = "merged"
"""The item of meta: how many ``ranks`` there were, their ``mesh``, and where which of them ``differ`` from their replicas."""
_NO_NUMBER = 1e300
"""Stands for an error that is no number: of shapes, of texts."""
_REST = "replica"
"""The axis of ranks that have one place otherwise."""
_WAY = re.compile(r"replicate|partial|chain|shard\((-?\d+)\)")
_WAYS = "'replicate', 'shard(0)' (any axis, also counted from the end), 'partial' or 'chain'"
_OF_ONE_RUN = ("mesh", "operations", "floor_methods", "own_floor", "wall_seconds", "repeats", "repeats_first", "budget")


@dataclass(frozen=True, slots=True)
class Table:
    """What the user says of a run: the ``mesh`` (lengths by axis, the last one fastest in the order of ranks), and how tensors are placed.

    ``records``: by a glob on ``SITE/END`` (``SITE`` stands for all that it returns); ``parameters``: by a glob on names. The first that
    fits counts, and comes before what traces say.
    """

    mesh: Mapping[str, int] = field(default_factory=dict)
    records: Mapping[str, Ways] = field(default_factory=dict)
    parameters: Mapping[str, Ways] = field(default_factory=dict)

    def of_record(self, record: Record) -> Ways | None:
        """How a record is placed; None where the table says nothing of it."""
        names = [f"{record.site}/{record.end}", *([record.site] if record.end.startswith(("output", "value")) else [])]
        return next((ways for glob, ways in self.records.items() if any(fnmatch.fnmatchcase(name, glob) for name in names)), None)

    def of_parameter(self, name: str) -> Ways | None:
        """How a parameter is placed; None where the table says nothing of it."""
        return next((ways for glob, ways in self.parameters.items() if fnmatch.fnmatchcase(name, glob)), None)


def read_table(given: PathLike | Mapping[str, Any] | None) -> Table:
    """The table in a TOML file, or of its content. Raises TracediffError, naming what is wrong, where it is none.

    >>> read_table({"mesh": {"tp": 2}, "records": {"up": "tp: shard(-1)"}}).records
    {'up': {'tp': 'shard(-1)'}}
    """
    if given is None:
        return Table()
    if not isinstance(given, Mapping):
        path = Path(given)
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TracediffError(f"{str(path)!r} is no table of ranks: {error}.") from error
    if unknown := set(given) - {"mesh", "records", "parameters"}:
        raise TracediffError(f"A table of ranks has mesh, records and parameters, and no {min(unknown)!r}.")
    mesh = {str(axis): size for axis, size in given.get("mesh", {}).items()}
    if wrong := [axis for axis, size in mesh.items() if not isinstance(size, int) or isinstance(size, bool) or size < 1]:
        raise TracediffError(f"The axis {wrong[0]!r} of the mesh has the length {mesh[wrong[0]]!r}; write a number of ranks.")
    return Table(
        mesh, *({str(glob): _ways(ways, mesh) for glob, ways in given.get(part, {}).items()} for part in ("records", "parameters"))
    )


def _ways(text: Any, mesh: Mapping[str, int]) -> Ways:
    """The ways that a text such as ``tp: shard(0), dp: partial`` names; of a mesh of one axis its name may be left out."""
    found = {}
    for part in str(text).split(","):
        axis, mark, way = part.rpartition(":")
        axis = axis.strip() if mark else next(iter(mesh)) if len(mesh) == 1 else ""
        if not axis or not _WAY.fullmatch(way.strip()) or (mesh and axis not in mesh):
            axes = f" Axes are {', '.join(mesh)}." if mesh else ""
            raise TracediffError(f"{str(text)!r} does not say how a tensor is placed; write AXIS: WAY, the way being {_WAYS}.{axes}")
        found[axis] = way.strip()
    return found


def merge(
    traces: Sequence[PathLike | Trace], to: PathLike, *, table: PathLike | Mapping[str, Any] | None = None, force: bool = False
) -> Path:
    """Writes one trace of the traces of all ranks, and returns its path; one tensor at a time is in memory.

    The traces say their ranks, or are given in their order. Raises TracediffError where they are no ranks of one run, parts do not fit
    together, or values were not stored; TraceExistsError where the output is there and not ``force``.
    """
    said = read_table(table)
    with ExitStack() as stack:
        opened = [one if isinstance(one, Trace) else stack.enter_context(open_trace(one)) for one in traces]
        ranks = _in_order(opened)
        places, mesh = _places(ranks, said)
        with TraceWriter(to, force=force, meta=_meta(ranks)) as writer:
            _Merge(ranks, places, mesh, said, writer).run()
    return Path(to)


def _in_order(traces: Sequence[Trace]) -> list[Trace]:
    """The traces by rank. TracediffError where one is missing, given twice, or of another run than the first."""
    if len(traces) < 2:
        raise TracediffError("Give the traces of all ranks, two at least.")
    said = [trace.meta.get("mesh") or {} for trace in traces]
    ordered = list(traces)
    if all(said):
        ordered = [trace for _, trace in sorted(zip((one["rank"] for one in said), traces, strict=True), key=lambda pair: pair[0])]
        ranks = [trace.meta["mesh"]["rank"] for trace in ordered]
        if ranks != list(range(said[0]["ranks"])):
            raise TracediffError(f"These are the ranks {', '.join(map(str, ranks))} of {said[0]['ranks']}; give each once.")
    for trace in ordered[1:]:
        for item in ("impl", "mode_run", "save"):
            if trace.meta.get(item, "full") != ordered[0].meta.get(item, "full"):
                raise TracediffError(
                    f"{str(trace.path)!r} is no rank of the run of {str(ordered[0].path)!r}: {item} is {trace.meta.get(item)!r}, not "
                    f"{ordered[0].meta.get(item)!r}."
                )
    for trace in ordered:
        if bare := [record for record in trace.records if not record.stored]:
            raise TraceFileError(
                f"{str(trace.path)!r} does not hold the values of {bare[0]}; capture each rank with --save full, no budget."
            )
    return ordered


def _places(ranks: Sequence[Trace], table: Table) -> tuple[list[Place], dict[str, int]]:
    """The place of each rank, and the length of each axis. Ranks of one place are told apart along an axis of their own."""
    if table.mesh:
        if (count := int(np.prod(list(table.mesh.values())))) != len(ranks):
            raise TracediffError(f"The mesh {dict(table.mesh)} has {count} ranks, and {len(ranks)} traces were given.")
        return list(product(*(range(size) for size in table.mesh.values()))), dict(table.mesh)
    axes: dict[str, int] = {}
    said = [(trace.meta.get("mesh") or {}).get("axes", {}) for trace in ranks]
    for one in said:
        axes.update({axis: size for axis, (size, _) in one.items()})
    places = [tuple(one.get(axis, (0, 0))[1] for axis in axes) for one in said]
    count_of: defaultdict[Place, int] = defaultdict(int)
    numbered = []
    for place in places:
        numbered.append((*place, count_of[place]))
        count_of[place] += 1
    return numbered, {**axes, _REST: max(count_of.values())}


def _meta(ranks: Sequence[Trace]) -> dict[str, Any]:
    """What the merged trace says of its run: what the first rank says, the modules of all, and whether all came to their end."""
    metas = [trace.meta for trace in ranks]
    modules: dict[str, Any] = {}
    for meta in metas:
        for module in meta.get("modules") or ():
            known = modules.setdefault(module["path"], {**module})
            children = dict.fromkeys((*known.get("children", ()), *module.get("children", ())))
            known["children"] = list(children)
    repeats = [meta.get("repeats") for meta in metas]
    returned = [one for meta in metas if (one := meta.get("returned")) and one["call"]]
    made = {name: value for name, value in metas[0].items() if name not in _OF_ONE_RUN}
    made |= {"modules": list(modules.values()), "stages": {**{k: v for meta in metas for k, v in (meta.get("stages") or {}).items()}}}
    for name in ("not_seen", "warnings"):
        made[name] = list(dict.fromkeys(text for meta in metas for text in meta.get(name) or ()))
    made["repeats"] = False if False in repeats else None if None in repeats else True
    return {**made, **({"returned": returned[-1]} if returned else {})}


class _Merge:
    """A merged trace under way. ``rows``: by rank its rows, each with the row that it became."""

    def __init__(self, ranks: Sequence[Trace], places: Sequence[Place], mesh: Mapping[str, int], table: Table, writer: TraceWriter) -> None:
        self._ranks, self._places, self._mesh, self._table, self._writer = ranks, places, mesh, table, writer
        self._rows: list[dict[int, int]] = [{} for _ in ranks]
        self._made_by: dict[bytes, int] = {}
        self._ways: list[dict[bytes, Ways]] = [{} for _ in ranks]  # by rank, of contents that were seen, how they are placed
        self._differ: dict[tuple[str, str, tuple[int, ...]], dict[str, Any]] = {}
        self._missed: list[str] = []

    def run(self) -> None:
        """Writes everything."""
        self._parameters()
        for held in _together([[_key(record) for record in trace.records] for trace in self._ranks]):
            self._record({rank: self._ranks[rank].records[row] for rank, row in held.items()})
        merged = {"ranks": len(self._ranks), "mesh": dict(self._mesh), "differ": list(self._differ.values())}
        not_seen = [text for trace in self._ranks for text in trace.meta.get("not_seen") or ()]
        lost = [] if all(trace.floor is None for trace in self._ranks) else ["noise floor: that of one rank is none of the whole"]
        self._writer.set_meta(merged=merged, not_seen=list(dict.fromkeys([*not_seen, *self._missed, *lost])))
        if not all(trace.complete for trace in self._ranks):
            self._writer.close(complete=False)

    # -- parameters

    def _parameters(self) -> None:
        names = dict.fromkeys(name for trace in self._ranks for name in trace.params)
        for name in names:
            held = {rank: trace.params[name] for rank, trace in enumerate(self._ranks) if name in trace.params}
            first = next(iter(held.values()))
            ways = self._table.of_parameter(name) or self._said_of_parameter(name)
            if not any(way != "replicate" for way in ways.values()):
                self._compared(name, "", "", {rank: param.digest for rank, param in held.items()})
                if first.stored:
                    self._param(first, first.read())
                else:
                    self._writer.add_param_of(first)
            elif not all(param.stored for param in held.values()):
                self._missed.append(f"parameter {name!r}: its parts were not stored; capture the ranks with --save-params")
            else:
                self._param(first, self._joined(name, {rank: param.read() for rank, param in held.items()}, ways, is_input=False))

    def _param(self, like: Param, values: Array) -> None:
        kind: Literal["parameter", "buffer"] = "parameter" if like.kind == "parameter" else "buffer"
        self._writer.add_param(like.name, values, path=like.path, kind=kind, aliases=like.aliases, store=like.stored)

    def _said_of_parameter(self, name: str) -> Ways:
        return next((ways for trace in self._ranks if (ways := (trace.meta.get("mesh") or {}).get("parameters", {}).get(name))), {})

    # -- records

    def _record(self, held: Mapping[int, Record]) -> None:
        """Writes one record of those of some ranks."""
        first = next(iter(held.values()))
        ways = self._ways_of(held)
        for rank, record in held.items():
            self._ways[rank][record.digest] = ways
        is_input = not is_returned(first.end) and any(first.end.startswith(kind) for kind in INPUTS)
        parts = self._chosen(held, ways, is_input=is_input)
        moment = self._moment(held, parts)
        own = next(iter(parts.values()))
        if own.dtype == "text":
            self._compared(first.site, first.call, first.end, {rank: record.digest for rank, record in parts.items()})
            row = self._writer.add_text(text=own.text(), **moment)
        else:
            if len(parts) == 1 or (len({(record.digest, record.shape) for record in parts.values()}) == 1 and not _is_split(ways)):
                values = own.read()
            else:
                arrays = {rank: record.read() for rank, record in parts.items()}
                values = self._joined(str(first), arrays, ways, is_input=is_input, at=(first.site, first.call, first.end))
            row = self._writer.add(values=values, **moment)
        for rank, record in held.items():
            self._rows[rank][record.row] = row
            self._made_by.setdefault(record.digest, row)

    def _ways_of(self, held: Mapping[int, Record]) -> Ways:
        """How a record is placed: as the table says, as its tensors said, or as what made it."""
        first = next(iter(held.values()))
        stated = self._table.of_record(first)
        if stated is not None:
            return stated
        said = next((ways for record in held.values() if (ways := record.note.get(PLACED))), None)
        if said is not None:
            return dict(said)
        before = [self._ways[rank].get(record.digest) for rank, record in held.items()]
        return before[0] if before[0] is not None and all(ways == before[0] for ways in before) else {}

    def _chosen(self, held: Mapping[int, Record], ways: Ways, *, is_input: bool) -> Mapping[int, Record]:
        """The records that count: along the axis of a chain those of its first stage, or of its last."""
        for number, axis in enumerate(self._mesh):
            if ways.get(axis) == "chain":
                ends = [self._places[rank][number] for rank in held]
                end = min(ends) if is_input else max(ends)
                held = {rank: record for rank, record in held.items() if self._places[rank][number] == end}
        return held

    def _moment(self, held: Mapping[int, Record], parts: Mapping[int, Record]) -> Any:
        """Where and when the record was made, in the rows of the merged trace."""
        rank, one = next(iter(parts.items()))
        parent = next((row for r, record in held.items() if (row := self._rows[r].get(record.parent, -1)) >= 0), -1)
        producer, how = self._rows[rank].get(one.producer, -1), one.producer_how
        if producer < 0:
            producer = self._made_by.get(one.digest, -1)  # what another rank sent
            how = schema.PRODUCER_NONE if producer < 0 else schema.PRODUCER_DIGEST
        note = self._ranks[rank].strings[int(self._ranks[rank].index["note"][one.row])]
        named = {name: getattr(one, name) for name in ("site", "call", "ordinal", "end", "stage", "scope", "file", "line")}
        return {**named, "parent": parent, "producer": producer, "producer_how": how, "flags": one.flags & ~schema.TEXT, "note": note}

    # -- values

    def _joined(self, name: str, arrays: Mapping[int, Array], ways: Ways, *, is_input: bool, at: Key = ("", "", "")) -> Array:
        """What the values of some ranks are together, axis by axis of the mesh."""
        left = {self._places[rank]: (rank, values) for rank, values in arrays.items()}
        for number, axis in reversed(list(enumerate(self._mesh))):
            groups: defaultdict[Place, list[tuple[int, int, Array]]] = defaultdict(list)
            for place, (rank, values) in left.items():
                groups[(*place[:number], 0, *place[number + 1 :])].append((place[number], rank, values))
            way = ways.get(axis, "replicate")
            left = {
                place: (min(rank for _, rank, _ in group), self._reduced(name, sorted(group, key=lambda one: one[0]), way, axis, at))
                for place, group in groups.items()
            }
        return next(iter(left.values()))[1]

    def _reduced(self, name: str, group: Sequence[tuple[int, int, Array]], way: str, axis: str, at: Key) -> Array:
        """What the values along one axis are together: (index, rank, values) in the order of the axis."""
        first = group[0][2]
        if way in ("replicate", "chain"):
            self._compared(at[0] or name, at[1], at[2], {rank: values for _, rank, values in group})
            return first
        if len(group) != self._mesh[axis]:
            self._missed.append(
                f"{name}: of {self._mesh[axis]} parts along {axis} only those of ranks {', '.join(str(rank) for _, rank, _ in group)}"
            )
        if way == "partial":
            if any(values.shape != first.shape for _, _, values in group):
                raise TracediffError(f"The terms of {name} have the shapes {_shapes(group)}, which cannot be summed.")
            wide = [values.astype(dtypes.wide_type(values)) for _, _, values in group]
            return np.asarray(reduce(np.add, wide)).astype(first.dtype)
        along = int(way[len("shard(") : -1])
        try:
            return np.concatenate([values for _, _, values in group], axis=along)
        except (ValueError, IndexError) as error:
            raise TracediffError(f"The parts of {name} have the shapes {_shapes(group)}, which do not join along axis {along}.") from error

    def _compared(self, site: str, call: str, end: str, held: Mapping[int, Array | bytes]) -> None:
        """Notes the ranks that differ from the first of some replicas by more than rounding; digests by anything."""
        first = next(iter(held.values()))
        sizes = {rank: _difference(first, one) for rank, one in held.items()}
        wrong = tuple(rank for rank, size in sizes.items() if size > 0)
        if not wrong:
            return
        known = self._differ.setdefault(
            (site, end, wrong), {"site": site, "call": call, "end": end, "ranks": list(wrong), "rel_l2": 0.0, "places": 0}
        )
        known["rel_l2"] = max(known["rel_l2"], *(min(size, _NO_NUMBER) for size in sizes.values()))
        known["places"] += 1


def _key(record: Record) -> Key:
    return record.site, record.call, record.end


def _together(sequences: Sequence[Sequence[Key]]) -> Iterator[dict[int, int]]:
    """The entries of several ranks in one order that keeps each rank's own: those of one key together, by rank the place of each.

    Ranks that saw the same in another order are not held up by each other: what the first of them comes to next is taken.

    >>> a, b, c = (("a", "", ""), ("b", "", ""), ("c", "", ""))
    >>> list(_together([[a, c], [b, c]]))
    [{0: 0}, {1: 0}, {0: 1, 1: 1}]
    """
    rows = [{key: row for row, key in enumerate(keys)} for keys in sequences]
    at, done = [0] * len(sequences), set[Key]()

    def next_of(rank: int) -> Key | None:
        while at[rank] < len(sequences[rank]) and sequences[rank][at[rank]] in done:
            at[rank] += 1
        return sequences[rank][at[rank]] if at[rank] < len(sequences[rank]) else None

    while any(next_of(rank) is not None for rank in range(len(sequences))):
        waiting = [key for rank in range(len(sequences)) if (key := next_of(rank)) is not None]
        ready = (key for key in waiting if all(next_of(rank) == key for rank, own in enumerate(rows) if key in own))
        chosen = next(ready, waiting[0])
        done.add(chosen)
        yield {rank: own[chosen] for rank, own in enumerate(rows) if chosen in own}


def _is_split(ways: Ways) -> bool:
    return any(way == "partial" or way.startswith("shard") for way in ways.values())


def _difference(first: Array | bytes, other: Array | bytes) -> float:
    """By how much a replica differs, as relative L2; 0 where rounding explains it, infinite where no number says it."""
    if isinstance(first, bytes) or isinstance(other, bytes):
        return 0.0 if first == other else np.inf
    if first.shape != other.shape or first.dtype != other.dtype:
        return np.inf
    metrics = compare(first, other, ulp=False)
    if metrics.exact:
        return metrics.mismatched / max(metrics.count, 1)
    return metrics.rel_l2 if not metrics.rel_l2 <= dtypes.of(first).rtol else 0.0


def _shapes(group: Sequence[tuple[int, int, Array]]) -> str:
    return " and ".join(str(values.shape) for _, _, values in group)


def ranks_note(trace: Trace, side: str) -> str:
    """What is to be said of ranks that differ from their replicas; "" where none does. ``side``: what the trace is called."""
    found = (trace.meta.get(KEY) or {}).get("differ") or []
    if not found:
        return ""
    first, places = found[0], sum(one["places"] for one in found)
    where = f"{first['site'] or 'the root'} {first['end']}".strip()
    return f"{_named(first['ranks'])} of the {side} differs from its replicas, first at {where} ({places:,} places)."


def differences(trace: Trace) -> list[str]:
    """The ranks of a merged trace that differ from their replicas, a line for each place."""
    found = (trace.meta.get(KEY) or {}).get("differ") or []
    return [
        f"{_named(one['ranks'])} differs from its replicas at {one['call'] or one['site'] or 'the root'} {one['end']}".rstrip()
        + (f": relative L2 {one['rel_l2']:.1e}" if one["rel_l2"] < _NO_NUMBER else "")
        + (f", and {one['places'] - 1:,} more times" if one["places"] > 1 else "")
        for one in found
    ]


def check_ranks(reference: Trace, port: Trace) -> None:
    """TracediffError where a trace holds one rank's parts of tensors, and the other is not of that rank of as many."""
    places = [(one["rank"], one["ranks"]) if (one := trace.meta.get("mesh")) and one["parts"] else None for trace in (reference, port)]
    for trace, place in zip((reference, port), places, strict=True):
        if place is not None and places[0] != places[1]:
            raise TracediffError(
                f"{str(trace.path)!r} is rank {place[0]} of {place[1]}, and holds parts of tensors. Make one trace of all ranks first: "
                "tracediff merge RANK0 RANK1 ... -o WHOLE"
            )


def _named(ranks: Sequence[int]) -> str:
    return f"Rank {ranks[0]}" if len(ranks) == 1 else f"Each of the ranks {listed([str(rank) for rank in ranks], 4)}"
