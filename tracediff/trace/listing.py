"""What a trace holds, as a table for people: its records in execution order, its modules, or its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracediff.errors import DamagedRecordError, SiteError
from tracediff.site import listed, module_of
from tracediff.trace.reader import Param, Record, Trace

_MOST_NAMES = 10
Cell = str | int | float | None

RECORDS = ("row", "site", "number", "end", "stage", "dtype", "shape", "min", "max", "mean", "std", "note")
MODULES = ("module", "type", "parameters", "training", "attributes")
PARAMS = ("parameter", "kind", "dtype", "shape", "min", "max", "mean", "std")


@dataclass(frozen=True, slots=True)
class Listing:
    """A table: its title, its columns, its rows, how many more rows there are, and what there is to say besides."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    more: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The table as one JSON object."""
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"schema": "tracediff.listing/1", "title": self.title, "rows": rows, "more": self.more, "notes": list(self.notes)}


def listing(
    trace: Trace,
    pattern: str = "",
    *,
    stages: Sequence[str] = (),
    modules: bool = False,
    params: bool = False,
    limit: int = 200,
    verify: bool = False,
) -> Listing:
    """The records whose site fits ``pattern`` (a glob in which ``*`` stays inside one name and ``**`` does not), or the modules or the
    parameters that do; at most ``limit`` rows, all if 0. Raises SiteError where nothing fits; with ``verify``, DamagedRecordError where
    stored values, of the whole trace, are not those that were written.
    """
    if verify and (damaged := trace.verify()):
        raise DamagedRecordError(
            f"{str(trace.path)!r} is damaged: the values of {len(damaged)} of its tensors are not those that were written: "
            f"{listed(damaged, _MOST_NAMES)}. Record the run again."
        )
    if modules:
        return _cut(trace, f"modules of {trace.path}", MODULES, _modules(trace, pattern), pattern, limit)
    if params:
        return _cut(trace, f"parameters of {trace.path}", PARAMS, _params(trace, pattern), pattern, limit)
    table = _cut(trace, repr(trace), RECORDS, _records(trace, pattern, stages), pattern, limit)
    blind = () if pattern or stages else tuple(f"blind spot: {text}" for text in trace.meta.get("blind_spots") or ())
    return replace(table, notes=blind)


def summary(trace: Trace) -> dict[str, Any]:
    """What a trace is, as one JSON object: how much it holds and what it says of its run, without the module tree."""
    described = {name: value for name, value in trace.meta.items() if name != "modules"}
    sizes = {"records": len(trace.records), "sites": len(trace.sites), "parameters": len(trace.params), "bytes": trace.path.stat().st_size}
    return {"schema": "tracediff.trace/1", "path": str(trace.path), **sizes, **described}


def _cut(trace: Trace, title: str, columns: tuple[str, ...], rows: Iterable[tuple[Cell, ...]], pattern: str, limit: int) -> Listing:
    kept: list[tuple[Cell, ...]] = []
    count = 0
    for row in rows:
        count += 1
        if limit <= 0 or count <= limit:
            kept.append(row)
    if not count and (pattern or len(trace.records)):
        raise SiteError(
            f"Nothing in {str(trace.path)!r} fits {pattern!r} (and the stages asked for). List all with: tracediff show {trace.path}"
        )
    return Listing(title, columns, tuple(kept), count - len(kept))


def _records(trace: Trace, pattern: str, stages: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    fits = _fitting(pattern)
    wanted = {number: fits(text) or fits(module_of(text)) for number, text in enumerate(trace.strings)}
    for row, number in enumerate(trace.index["site"].tolist()):
        record = trace.records[row]
        if wanted[number] and (not stages or any(record.stage == stage or record.stage.startswith(stage + ".") for stage in stages)):
            yield _record_row(record)


def _record_row(record: Record) -> tuple[Cell, ...]:
    number = f"{record.ordinal} @{record.scope}" if record.scope else str(record.ordinal)
    head = (record.row, record.site, number, record.end, record.stage, record.dtype, _shape(record.shape))
    if record.dtype == "text":
        return (*head, None, None, None, None, record.text() if record.stored else "")
    bad = ", ".join(f"{count:,} {what}" for count, what in ((record.stats.nan, "NaN"), (record.stats.inf, "infinite")) if count)
    return (*head, *_numbers(record), bad)


def _params(trace: Trace, pattern: str) -> Iterator[tuple[Cell, ...]]:
    fits = _fitting(pattern)
    for param in trace.params.values():
        if fits(param.name):
            yield (param.name, param.kind, param.dtype, _shape(param.shape), *_numbers(param))


def _modules(trace: Trace, pattern: str) -> Iterator[tuple[Cell, ...]]:
    fits = _fitting(pattern)
    owned: dict[str, int] = {}
    for param in trace.params.values():
        owned[param.path] = owned.get(param.path, 0) + 1
    for module in trace.meta.get("modules") or ():
        if fits(module["path"]):
            attributes = ", ".join(f"{name}={value}" for name, value in (module.get("attrs") or {}).items() if name != "training")
            yield (
                module["path"],
                module.get("type") or "",
                owned.get(module["path"], 0),
                "train" if module.get("training") else "eval",
                attributes,
            )


def _numbers(entry: Record | Param) -> tuple[Cell, ...]:
    stats = entry.stats
    finite = stats.count - stats.nan - stats.inf
    return (stats.min, stats.max, stats.mean, stats.std) if finite else (None, None, None, None)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _fitting(pattern: str) -> Any:
    """Whether a name fits the pattern; everything fits the empty one."""
    if not pattern:
        return lambda name: True
    parts = (
        ".*" if part == "**" else r"[^.]*" if part == "*" else "." if part == "?" else re.escape(part)
        for part in re.split(r"(\*\*|\*|\?)", pattern)
    )
    compiled = re.compile("".join(parts))
    return lambda name: compiled.fullmatch(name) is not None
