"""A trace within a size: of what does not fit, a few values of each tensor and its statistics are kept.

What tells most is kept whole first: texts, draws, what the run was given and what it returned. Then come the first calls of each site, of
layers that are alike the first ones first; then the second calls, and so on. So it is what repeats that is sampled.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Final

from tracediff.errors import TracediffError
from tracediff.outputs import write_output
from tracediff.site import pattern_of
from tracediff.trace import schema
from tracediff.trace.calls import TOP
from tracediff.trace.reader import Param, Record, Trace, open_trace
from tracediff.trace.thinning import OF_VALUES, aligned, is_whole, samples_of, write_part

KEY: Final = "budget"
"""The item of meta: ``bytes`` that the file may take; of how many records ``values``, ``samples`` and ``statistics`` alone were kept."""
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", re.IGNORECASE)
SMALLEST: Final = 2**16
"""No run fits in fewer bytes."""
_OF_SEGMENT, _OF_LINK = 1024, 256
"""Bytes that HDF5 takes for a dataset, and for a link to it, at most on the average."""
_TRIES = 8


def size_of(given: int | str) -> int:
    """The bytes of a size: a whole number of bytes, or a text with a unit (kB, MB, GB, TB; KiB, MiB, GiB, TiB). ValueError for no size.

    >>> size_of("1.5GB"), size_of("64 KiB"), size_of(100_000)
    (1500000000, 65536, 100000)
    """
    found = _SIZE.fullmatch(str(given)) if isinstance(given, (int, str)) and not isinstance(given, bool) else None
    if not found:
        raise ValueError(f"{given!r} is no size; write for instance 500MB, 2GB or 1.5GiB, or a number of bytes")
    size = int(float(found[1]) * _UNITS[found[2].lower()])
    if size < SMALLEST:
        raise ValueError(f"{given!r} is too small for any trace; the smallest budget is {SMALLEST:,} bytes")
    return size


@contextmanager
def within(path: str | os.PathLike[str], identity: bytes, budget: int | None) -> Iterator[None]:
    """A context for a capture to ``path``: its trace, which has this identity, is made to `fit` in the end, also where the run raised."""
    try:
        yield
    except BaseException:
        if budget is not None:
            with suppress(TracediffError, OSError):  # the run's own exception says more
                fit(path, budget, identity=identity)
        raise
    if budget is not None:
        fit(path, budget, identity=identity)


def fit(path: str | os.PathLike[str], budget: int, *, identity: bytes | None = None) -> None:
    """Rewrites a closed trace so that its file takes at most ``budget`` bytes; one that takes no more is left as it is.

    So is one whose writer was killed, or with another ``identity`` than is given. While it is rewritten both files lie on the disk. Raises
    TracediffError, leaving the trace as it is, where its tables alone take more; TraceFileError where it cannot be written.
    """
    with open_trace(path) as trace:
        if trace.was_killed or identity not in (None, trace.identity[0]) or trace.path.stat().st_size <= budget:
            return
        write_output(path, _Kept(trace, budget).write, force=True)


def budget_note(trace: Trace, side: str) -> str:
    """What a reader has to know of a trace that holds but some of its values; "" of one that holds all. ``side``: what it is called."""
    found = trace.meta.get(KEY)
    if not found:
        return ""
    total = found["values"] + found["samples"] + found["statistics"]
    of_all = f"all values of {found['values']:,} of {total:,} records"
    few = f" of {found['samples']:,} it holds {schema.SAMPLED} values and the statistics" if found["samples"] else ""
    none = f" of {found['statistics']:,} the statistics alone" if found["statistics"] else ""
    return (
        f"The {side} was kept within {found['bytes']:,} bytes: it holds {of_all};{' and'.join(filter(None, (few, none)))}. "
        "There the verdict is weaker: a few wrong values among many do not show, and no cause that takes values is found."
    )


class _Kept:
    """What of a trace is kept within a budget."""

    def __init__(self, trace: Trace, budget: int) -> None:
        self._trace, self._budget = trace, budget

    def write(self, part: Path) -> None:
        """Writes the trace to a new file, with as many whole values as there is room for."""
        for meta, with_samples in self._tables():
            self._write(part, (), meta, with_samples=with_samples)
            size = part.stat().st_size
            part.unlink()
            if size <= self._budget:
                break
        else:
            raise TracediffError(
                f"{str(self._trace.path)!r} does not fit in a budget of {self._budget:,} bytes: without any values its "
                f"{len(self._trace.records):,} records take {size:,}. It was left whole. Give a larger budget, or record less (--calls, "
                "--include, --exclude)."
            )
        room = self._budget - size
        for _ in range(_TRIES):
            self._write(part, self._that_fit(room), meta, with_samples=with_samples)
            over = part.stat().st_size - self._budget
            if over <= 0:
                return
            part.unlink()
            room = max(0, room - 2 * over)
        self._write(part, (), meta, with_samples=with_samples)

    def _tables(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """What may stand in the file beside whole values, the fullest first: its meta, and whether it has samples."""
        meta = self._trace.meta
        bare = {name: value for name, value in meta.items() if name not in OF_VALUES}
        yield from ((meta, True), (bare, True), (bare, False))

    def _write(self, part: Path, kept: Sequence[Record | Param], meta: dict[str, Any], *, with_samples: bool) -> None:
        whole = {one.row for one in kept if isinstance(one, Record)}
        whole |= {record.row for record in self._trace.records if record.stored and not record.nbytes}
        samples = samples_of(self._trace, without=whole) if with_samples else None
        few = int((samples["count"] > 0).sum()) if samples is not None else 0
        rest = len(self._trace.records) - len(whole) - few
        said = {KEY: {"bytes": self._budget, "values": len(whole), "samples": few, "statistics": rest}}
        write_part(self._trace, part, kept, samples=samples, meta={**meta, **said})

    def _that_fit(self, room: int) -> list[Record | Param]:
        """What is kept whole, in so many bytes: calls in the order of what they tell, each with all of its records or not at all."""
        kept: list[Record | Param] = []
        known: set[bytes] = set()
        for group in chain(self._first(), self._calls()):
            new = {one.digest: one.nbytes for one in group if one.digest not in known}
            cost = sum(_cost(nbytes) for nbytes in new.values()) + _OF_LINK * len(group)
            if cost <= room:
                room -= cost
                known |= new.keys()
                kept += group
        return list(dict.fromkeys(kept))

    def _first(self) -> Iterator[Sequence[Record | Param]]:
        """What comes before all calls: what is never sampled, what the run was given and returned, and parameters that were asked for."""
        trace = self._trace
        returned, outermost = set(trace.returned or ()), set(trace.calls.children[TOP])
        for record in trace.records:
            is_given = record.end.startswith("input") and record.ordinal == 0 and int(trace.calls.of_row[record.row]) in outermost
            is_end = record.row in returned or is_given
            if record.stored and (is_whole(record) or is_end):
                yield [record]
        yield from ([param] for param in trace.params.values() if param.stored)

    def _calls(self) -> Iterator[Sequence[Record | Param]]:
        """The records of each call: by the number of the call among its site's, then by how many alike sites come before its own."""
        groups: defaultdict[tuple[str, int], list[Record | Param]] = defaultdict(list)
        for record in self._trace.records:
            if record.stored:
                groups[record.site, record.ordinal].append(record)
        alike: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for site in self._trace.sites:
            alike[pattern_of(site)][site] = len(alike[pattern_of(site)])
        order = sorted(groups, key=lambda key: (key[1], alike[pattern_of(key[0])][key[0]]))  # else as they were executed
        yield from (groups[key] for key in order)


def _cost(nbytes: int) -> int:
    return aligned(nbytes) if nbytes <= schema.PACK_LIMIT else nbytes + _OF_SEGMENT
