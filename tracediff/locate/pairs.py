"""The pairs that are compared, and their records on either side."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence, Set
from functools import cached_property

from tracediff import dtype as dtypes
from tracediff.alignment import Alignment, RecordPair
from tracediff.alignment.array_files.storage import nearest
from tracediff.alignment.axes import side_by_side
from tracediff.dtype import Array, DType
from tracediff.locate.folded import folded
from tracediff.site import pattern_of
from tracediff.trace import Record, Trace, schema
from tracediff.trace.reads import Reads

Norms = dict[tuple[str, bool], float]
"""The norm of a module's own parameters together, by its path, and by whether they are matrices (and kernels) or vectors."""


class Pairs:
    """The pairs of two aligned traces in the reference's execution order, each known by its place."""

    def __init__(self, pairs: Sequence[RecordPair], alignment: Alignment, reference: Trace, port: Trace) -> None:
        self._pairs = pairs
        self.alignment, self.reference, self.port = alignment, reference, port
        self._first: dict[int, tuple[Record, Record]] = {}
        self._contents: dict[int, tuple[Hashable, ...]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, i: int) -> RecordPair:
        return self._pairs[i]

    def role(self, i: int) -> str:
        """The role of a pair's site, which siblings share: its name with a star for each number, on the side that counts more of them.

        A side may count inside of names (``block1``, ``tdnnd7``), where numbers mean nothing by themselves.
        """
        ours, theirs = (pattern_of(record.site) for record in self.records(i))
        return theirs if theirs.count("*") > ours.count("*") else ours

    def records(self, i: int) -> tuple[Record, Record]:
        """The pair's records, reference and port; the first of each side where several are joined."""
        if i not in self._first:
            pair = self._pairs[i]
            self._first[i] = self.reference.records[pair.reference[0]], self.port.records[pair.port[0]]
        return self._first[i]

    def all_records(self, i: int) -> tuple[list[Record], list[Record]]:
        """All records of the pair, of the reference and of the port."""
        if self.is_single(i):
            left, right = self.records(i)
            return [left], [right]
        pair = self._pairs[i]
        return [self.reference.records[row] for row in pair.reference], [self.port.records[row] for row in pair.port]

    def is_single(self, i: int) -> bool:
        """Whether the pair has one record on each side."""
        pair = self._pairs[i]
        return len(pair.reference) == len(pair.port) == 1

    def is_stored(self, i: int) -> bool:
        """Whether all values of the pair are in the traces."""
        return all(record.stored for records in self.all_records(i) for record in records)

    def is_exact(self, i: int) -> bool:
        """Whether the reference's values are exact: integers, booleans or text."""
        return dtypes.named(self.records(i)[0].dtype).is_exact

    def contents(self, i: int) -> tuple[Hashable, ...]:
        """What the pair holds: pairs of equal contents are read once."""
        if i not in self._contents:
            lefts, rights = self.all_records(i)
            self._contents[i] = (self._pairs[i].layout, *((one.digest, one.dtype) for one in (*lefts, *rights)))
        return self._contents[i]

    def nbytes(self, i: int) -> int:
        """The bytes of all records of the pair."""
        pair = self._pairs[i]
        sides = ((self.reference, pair.reference), (self.port, pair.port))
        return sum(int(trace.index["nbytes"][row]) for trace, rows in sides for row in rows)

    def values(self, i: int) -> tuple[Array, Array]:
        """The values of both sides in the compared shape; asked only of stored pairs that a layout reconciles."""
        layout = self._pairs[i].layout
        assert layout is not None
        return side_by_side(layout, *self.all_records(i))

    def stored_in(self, i: int) -> DType | None:
        """The half precision in which the port's tensor of a pair was stored after a run in float32; None where it was not."""
        stored = self.alignment.stored
        is_so = stored is not None and stored.in_float32 and stored.holds(self.records(i)[1].dtype)
        return dtypes.named(stored.dtype) if stored is not None and is_so else None

    def port_dtype(self, i: int) -> DType:
        """The dtype in which the port computed a tensor, as far as is known: see `Stored`."""
        own, stored = dtypes.named(self.records(i)[1].dtype), self.alignment.stored
        if stored is None or own.is_exact or not stored.holds(own.name):
            return own
        return dtypes.named("float32" if stored.in_float32 else stored.dtype)

    def restored(self, i: int) -> tuple[Array, Array]:
        """As `values`; the port's number is, of all that round to the one that was stored, the nearest to the reference's."""
        kind = self.stored_in(i)
        reference, port = self.values(i)
        return reference, port if kind is None else nearest(reference, port, kind)

    def has_raised(self, i: int) -> bool:
        """Whether a call of one side raised where the other side's returned."""
        left, right = self.records(i)
        return bool((left.flags ^ right.flags) & schema.RAISED)

    def is_replaced(self, i: int) -> bool:
        """Whether the port went on with the reference's tensor here. A draw's record always is what the port went on with."""
        pair = self._pairs[i]
        if self.reference.calls.kinds[pair.reference[0]] == "draw":
            return False
        flags = self.port.index["flags"]
        return all(int(flags[row]) & schema.REPLACED for row in pair.port)

    @cached_property
    def reads(self) -> Reads:
        """What the reference's operations say of its records."""
        return Reads(self.reference)

    @cached_property
    def digests(self) -> frozenset[bytes]:
        """The contents of the reference that belong to a pair."""
        return frozenset(self.reference.records[row].digest for pair in self._pairs for row in pair.reference)

    @cached_property
    def rows(self) -> frozenset[int]:
        """The rows of the reference that belong to a pair."""
        return frozenset(row for pair in self._pairs for row in pair.reference)

    @cached_property
    def types(self) -> dict[str, str]:
        """The class of each module of the reference, by its path."""
        return {str(module["path"]): str(module.get("type", "")) for module in self.reference.meta.get("modules") or ()}

    @cached_property
    def normalising(self) -> frozenset[str]:
        """The paths of the reference's modules that normalise by what they are handed; a batch norm does so in training only."""
        modules = self.reference.meta.get("modules") or ()
        norms = (module for module in modules if "norm" in str(module.get("type", "")).lower())
        return frozenset(str(one["path"]) for one in norms if one.get("training") or "batchnorm" not in str(one.get("type", "")).lower())

    @cached_property
    def folded(self) -> Set[str]:
        """The paths of the reference's modules whose gain or offset the port has in the weights behind."""
        return folded(self.alignment, self.reference, self.port).keys()

    @cached_property
    def norms(self) -> tuple[Norms, Norms]:
        """Of reference and port the norms of the parameters that modules own themselves."""
        return _norms(self.reference), _norms(self.port)

    @cached_property
    def roundoff(self) -> float:
        """The largest unit roundoff of the parameters of either side."""
        return max((param.roundoff for trace in (self.reference, self.port) for param in trace.params.values()), default=0.0)

    @cached_property
    def handed_ends(self) -> frozenset[tuple[str, str]]:
        """The reference's sites, each with the inputs that its partner in the port is handed too."""
        kinds = self.reference.calls.kinds
        handed = (self.records(i)[0] for i, pair in enumerate(self._pairs) if kinds[pair.reference[0]] == "input")
        return frozenset((record.site, record.end) for record in handed)


def _norms(trace: Trace) -> Norms:
    squares: dict[tuple[str, bool], float] = defaultdict(float)
    for param in trace.params.values():
        squares[param.path, len(param.shape) > 1] += param.stats.l2**2
    return {key: math.sqrt(square) for key, square in squares.items()}
