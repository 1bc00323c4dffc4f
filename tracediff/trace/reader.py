"""Trace, Record and Param: a recorded run, its records in execution order, each read on demand."""

from __future__ import annotations

import difflib
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, overload

import numpy as np

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import DamagedRecordError, SiteError, TracediffError, TraceFileError, TraceNotFoundError, UnsafeTraceError
from tracediff.json_text import parse_json
from tracediff.site import is_returned, module_of
from tracediff.trace import schema
from tracediff.trace.calls import CallTree
from tracediff.trace.container import Input, Place, is_locked, read_at
from tracediff.trace.digest_table import Recent
from tracediff.trace.fingerprint import LONGEST_AXIS, Floats, Sketch, Stats, digest
from tracediff.trace.journal import journal_of, replay
from tracediff.trace.meta import Meta, load_meta
from tracediff.trace.tables import Tables, check, decode, unpack_strings

if TYPE_CHECKING:
    import pandas as pd

EAGER_SEGMENTS = 2000
"""Of so many segments each is checked when a trace is opened, of more each when it is first read (100 us a segment)."""


def open_trace(path: str | os.PathLike[str] | Trace) -> Trace:
    """The trace in a file; a trace that is open already is returned as it is.

    A trace whose writer was killed is read through its journal (``complete`` is then False); `recover` makes that permanent.
    Raises TraceNotFoundError; TraceFileError where the file is no trace, cut short, of a newer version, or in progress;
    UnsafeTraceError where it holds what a trace never holds.
    """
    return path if isinstance(path, Trace) else Trace(Path(path))


class Trace:
    """A recorded run, read-only. A context manager; closing it ends reading.

    ``records`` in execution order, ``params`` by name, ``meta`` the run's description, ``index`` the table behind the records
    (columns of `schema.INDEX`, texts as numbers into ``strings``), ``complete`` whether the run came to its end. ``damaged``: what was
    found by now not to hold what was written, by segment and offset, each with the first record or parameter that met it.

    >>> import tempfile
    >>> from tracediff.trace import TraceWriter
    >>> path = tempfile.mkdtemp() + "/ref.h5"
    >>> with TraceWriter(path) as writer:
    ...     row = writer.add(site="encoder.0", call="encoder[0]/.0[0]", ordinal=0, end="output", values=np.ones(2))
    >>> with open_trace(path) as trace:
    ...     trace.find("encoder.0", end="output")[0].read()
    array([1., 1.])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.tables, self.segments, self.was_killed = _load(path)
            self.fd = os.open(path, os.O_RDONLY)
        except PermissionError as error:
            raise TraceFileError(f"{str(path)!r} cannot be read: {error}.") from error
        for table in (self.tables.index, self.tables.params, self.tables.sketches, *self.tables.optional.values()):
            table.flags.writeable = False
        self._shapes: dict[int, tuple[int, ...]] = {}
        self.damaged: dict[tuple[int, int], str] = {}

    @property
    def meta(self) -> Meta:
        return self.tables.meta

    @property
    def complete(self) -> bool:
        return bool(self.meta.get("complete"))

    @property
    def index(self) -> Array:
        return self.tables.index

    @property
    def strings(self) -> Sequence[str]:
        return self.tables.strings

    @property
    def floor(self) -> Array | None:
        """The noise floor, one row of `schema.FLOOR` a record; None where it was not measured."""
        return self.tables.optional.get(schema.FLOOR_TABLE)

    @property
    def floor_products(self) -> Array | None:
        """The floor of coarse products, one row of `schema.FLOOR_PRODUCTS` a record; None where it was not measured."""
        return self.tables.optional.get(schema.PRODUCTS_TABLE)

    @property
    def floor_free(self) -> Array | None:
        """The floor of free runs in half precision, one row of `schema.FLOOR_FREE` a record; None where it was not measured."""
        return self.tables.optional.get(schema.FREE_TABLE)

    @property
    def through(self) -> Array | None:
        """What became of each record of a forced run when it was let through, a row of `schema.THROUGH` each; None where nobody looked."""
        return self.tables.optional.get(schema.THROUGH_TABLE)

    @property
    def samples(self) -> Array | None:
        """A few values of each record of a thin trace, a row of `schema.SAMPLES` each; None where the trace is none."""
        return self.tables.optional.get(schema.SAMPLES_TABLE)

    @property
    def records(self) -> Records:
        return Records(self)

    def check_is_reference(self, port: Trace | None = None) -> None:
        """TracediffError where this trace cannot be the reference: it was fed by another trace, or it is the file of the port."""
        if self.meta.get("mode_run") == "forced":
            fed = f", fed by {self.meta['feed']!r}" if self.meta.get("feed") else ""
            raise TracediffError(
                f"{str(self.path)!r} is a forced run{fed}: its tensors are not its own, so it is no reference. "
                "Are the arguments swapped? The reference comes first."
            )
        if port is not None and self.path.resolve() == port.path.resolve():
            raise TracediffError(f"{str(self.path)!r} is given as reference and as port. Give the reference's trace, then the port's.")

    @cached_property
    def calls(self) -> CallTree:
        """The calls of the run as a tree, and who made and who takes each record."""
        return CallTree(self.index, self.strings)

    @cached_property
    def returned(self) -> tuple[int, ...] | None:
        """The rows of what the run returned: of the call that returned it, or of the reserved tap `tracediff.site.RETURNED`.

        None of them where it returned nothing that can be recorded, or a selection left that out. None where the trace does not say: it
        is older than that, or nobody captured it.
        """
        said = self.meta.get("returned")
        if not isinstance(said, dict):
            return None
        texts, call = self.strings, said.get("call")
        rows = np.flatnonzero(self.index["call"] == texts.index(call)).tolist() if call and call in texts else []
        return tuple(row for row in rows if is_returned(end := texts[self.index["end"][row]]) or end.startswith("value"))

    @cached_property
    def params(self) -> Mapping[str, Param]:
        params = (Param(self, row) for row in range(self.tables.params.size))
        return {param.name: param for param in params}

    @cached_property
    def sites(self) -> dict[str, int]:
        """Every site recorded, in order of its first record, with its number in ``strings``."""
        numbers, first = np.unique(self.index["site"], return_index=True)
        return {self.strings[number]: number for number in numbers[np.argsort(first)].tolist()}

    def find(self, site: str, call: str | None = None, end: str | None = None) -> list[Record]:
        """The records of a site, of one call or end where given; SiteError, naming the nearest, where there is none."""
        if site not in self.sites:
            self._not_found("site", site, list(self.sites))
        rows = np.flatnonzero(self.index["site"] == self.sites[site])
        for column, text in (("call", call), ("end", end)):
            if text is None:
                continue
            there = self.index[column][rows]
            kept = rows[np.array([self.strings[number] == text for number in there.tolist()], bool)]
            if not kept.size:
                self._not_found(column, text, [self.strings[number] for number in dict.fromkeys(there.tolist())], f" of site {site!r}")
            rows = kept
        return [self.records[row] for row in rows.tolist()]

    def _not_found(self, what: str, name: str, known: list[str], of: str = "") -> NoReturn:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
        listed = ", ".join(map(repr, nearest))
        hint = f"; nearest: {listed}" if listed else ""
        raise SiteError(
            f"No {what} {name!r}{of} in {str(self.path)!r} ({len(known)} {what}s{hint}). List them with: tracediff show {self.path}"
        )

    def verify(self) -> list[str]:
        """Compares all stored values with their digests, and returns the names of the records and parameters that are damaged."""
        for one in chain(self.records, self.params.values()):
            with suppress(DamagedRecordError):
                if one.stored:
                    one.verify()
        return list(self.damaged.values())

    @property
    def identity(self) -> tuple[bytes, int]:
        """The 16 bytes that tell this file from any other, and where in it they lie."""
        return self.segments.identity

    def shape(self, number: int) -> tuple[int, ...]:
        """The shape with this number in ``strings``."""
        if number not in self._shapes:
            self._shapes[number] = schema.shape_of(self.strings[number])
        return self._shapes[number]

    def to_frame(self) -> pd.DataFrame:
        """One row a record, in execution order: its names, dtype, shape and statistics."""
        import pandas as pd

        texts = np.array([*self.strings, None], object)[:-1]
        index = self.index
        names = (*schema.INDEX_STRINGS[:5], "file")  # as objects: pandas' own texts hold no lone surrogates
        columns: dict[str, Any] = {name: pd.Series(texts[index[name]], dtype=object) for name in names}
        columns["dtype"] = [BY_CODE[code].name for code in index["dtype"].tolist()]
        columns["shape"] = [self.shape(number) for number in index["shape"].tolist()]
        columns |= {name: index[name] for name in (*schema.STATS_NAMES, "ordinal", "parent", "producer", "nbytes", "flags", "line")}
        columns["stored"] = (index["segment"] >= 0) | (index["nbytes"] == 0)
        return pd.DataFrame(columns, index=pd.RangeIndex(index.size, name="row"))

    def __repr__(self) -> str:
        return f"<Trace {str(self.path)!r}: {self._summary()}>"

    def _summary(self) -> str:
        impl = self.meta.get("impl", "unknown framework")
        state = "" if self.complete else ", incomplete"
        return f"{impl}, {len(self.records)} records of {len(self.sites)} sites, {len(self.params)} parameters{state}"

    def _repr_html_(self) -> str:
        """The first records as a table, for a notebook."""
        shown = [self.records[row] for row in range(min(20, len(self.records)))]
        head = ("call", "end", "dtype", "shape", "mean", "std")
        lines = [_html_row("th", head)]
        lines += [_html_row("td", (r.call, r.end, r.dtype, r.shape, f"{r.stats.mean:.4g}", f"{r.stats.std:.4g}")) for r in shown]
        more = len(self.records) - len(shown)
        rest = f"<p>and {more} more</p>" if more else ""
        return f"<p>{html.escape(str(self.path))}: {html.escape(self._summary())}</p><table>{''.join(lines)}</table>{rest}"

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.segments.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_trace, (self.path,)


def _html_row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


class Records(Sequence["Record"]):
    """The records of a trace in execution order, made as they are asked for."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __len__(self) -> int:
        return int(self._trace.index.size)

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> list[Record]: ...
    def __getitem__(self, row: int | slice) -> Record | list[Record]:
        if isinstance(row, slice):
            return [self[number] for number in range(*row.indices(len(self)))]
        count = len(self)
        if not -count <= row < count:
            raise IndexError(f"No record {row!r} in {str(self._trace.path)!r}, which has {count}.")
        return Record(self._trace, int(row) % count)


class _Recorded:
    """What records and parameters share: a row, and the array that it describes."""

    __slots__ = ("_cells", "_trace", "row")
    _columns: ClassVar[dict[str, int]]

    def __init__(self, trace: Trace, row: int, table: Array) -> None:
        self._trace = trace
        self._cells: tuple[Any, ...] = table[row].item()
        self.row = row

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._trace is self._trace and other.row == self.row

    def __hash__(self) -> int:
        return hash((id(self._trace), self.row))

    def _cell(self, name: str) -> Any:
        return self._cells[self._columns[name]]

    def _text(self, name: str) -> str:
        number: int = self._cell(name)
        return self._trace.strings[number]

    @property
    def dtype(self) -> str:
        return BY_CODE[self._cell("dtype")].name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._trace.shape(self._cell("shape"))

    @property
    def nbytes(self) -> int:
        return int(self._cell("nbytes"))

    @property
    def stats(self) -> Stats:
        start = self._columns["count"]
        return Stats(*self._cells[start : start + len(schema.STATS_NAMES)])

    @property
    def digest(self) -> bytes:
        high, low = self._cell("digest").tolist()
        return int(high).to_bytes(8, "big") + int(low).to_bytes(8, "big")

    @property
    def stored(self) -> bool:
        """Whether the values are in the file, not only their statistics; not so once they were found damaged."""
        return (self._cell("segment") >= 0 or not self.nbytes) and self._place not in self._trace.damaged

    @property
    def _place(self) -> tuple[int, int]:
        return self._cell("segment"), self._cell("offset")

    def read(self) -> Array:
        """The values, as a new array of the dtype that was seen (bfloat16 and float8 by `ml_dtypes`).

        Raises TraceFileError if they are not stored, DamagedRecordError if they are not what was written.
        """
        kind = BY_CODE[self._cell("dtype")]
        return self._whole().view(kind.view).reshape(self.shape)

    def verify(self) -> None:
        """Compares the values with their digest; DamagedRecordError where they are not what was written."""
        self._whole()

    def blocks(self, size: int = 65536) -> Iterator[Array]:
        """The values in C order, as flat arrays of so many elements (the last one shorter), not compared with their digest."""
        kind = BY_CODE[self._cell("dtype")]
        for start in range(0, self.nbytes, size * kind.itemsize):
            yield self._bytes(start, min(size * kind.itemsize, self.nbytes - start)).view(kind.view)

    def at(self, places: Array) -> Array:
        """The values at some flat places (integers, in C order), each read by itself: a flat array as long as ``places``."""
        kind = BY_CODE[self._cell("dtype")]
        parts = [self._bytes(place * kind.itemsize, kind.itemsize) for place in places.tolist()]
        return np.concatenate([np.empty(0, np.uint8), *parts]).view(kind.view)

    def text(self) -> str:
        """The text of a record of dtype ``text``."""
        if self.dtype != "text":
            raise TracediffError(f"{self!r} holds {self.dtype} values, not text; use read().")
        try:
            return decode(self._whole().tobytes())
        except UnicodeDecodeError as error:
            raise UnsafeTraceError(f"{self!r} holds bytes that are no text ({error.reason}): the trace is not sound.") from error

    def _whole(self) -> Array:
        """All bytes, compared with their digest."""
        found = self._bytes(0, self.nbytes)
        if found.size and digest(found) != self.digest:
            self._trace.damaged[self._place] = str(self)
            raise DamagedRecordError(
                f"{self!r} is damaged: its values in {str(self._trace.path)!r} are not those that were written. Record the run again."
            )
        return found

    def _bytes(self, start: int, nbytes: int) -> Array:
        if self._place in self._trace.damaged:
            raise DamagedRecordError(f"{self!r} is damaged: its values in {str(self._trace.path)!r} are not those that were written.")
        if not self.stored:
            raise TraceFileError(f"{self!r} was recorded without its values (statistics only). Capture again with --save full.")
        if not self.nbytes:
            return np.empty(0, np.uint8)
        if self._trace.fd < 0:
            raise TraceFileError(f"{str(self._trace.path)!r} was closed; open it again to read values.")
        place = self._trace.segments.place(self._cell("segment"))
        offset = self._cell("offset")
        if offset + self.nbytes > place.nbytes:
            raise UnsafeTraceError(f"{self!r} reaches beyond its segment of {place.nbytes} bytes: the trace is not sound.")
        return read_at(self._trace.fd, place.offset + offset + start, nbytes)


class Record(_Recorded):
    """One tensor at one site at one call. ``parent`` and ``producer`` are row numbers, -1 where there is none."""

    __slots__ = ()
    _columns: ClassVar = {name: position for position, name in enumerate(schema.INDEX.names or ())}

    def __init__(self, trace: Trace, row: int) -> None:
        super().__init__(trace, row, trace.index)

    @property
    def order(self) -> int:
        return int(self._cell("order"))

    @property
    def site(self) -> str:
        return self._text("site")

    @property
    def module(self) -> str:
        """The module path of the site."""
        return module_of(self.site)

    @property
    def call(self) -> str:
        return self._text("call")

    @property
    def ordinal(self) -> int:
        return int(self._cell("ordinal"))

    @property
    def end(self) -> str:
        return self._text("end")

    @property
    def stage(self) -> str:
        return self._text("stage")

    @property
    def scope(self) -> str:
        return self._text("scope")

    @property
    def parent(self) -> int:
        return int(self._cell("parent"))

    @property
    def producer(self) -> int:
        return int(self._cell("producer"))

    @property
    def producer_how(self) -> int:
        return int(self._cell("producer_how"))

    @property
    def file(self) -> str:
        return self._text("file")

    @property
    def line(self) -> int:
        return int(self._cell("line"))

    @property
    def flags(self) -> int:
        return int(self._cell("flags"))

    @property
    def note(self) -> dict[str, Any]:
        text = self._text("note")
        note = _json(text, self) if text else {}
        return note if isinstance(note, dict) else {"note": note}

    def __str__(self) -> str:
        return f"{self.call or '(root)'} {self.end}"

    def __repr__(self) -> str:
        return f"<Record {self.row} {self.call} {self.end}: {self.dtype} {self.shape}>"


class Param(_Recorded):
    """A parameter or buffer of a module, as it was before the run."""

    __slots__ = ()
    _columns: ClassVar = {name: position for position, name in enumerate(schema.PARAMS.names or ())}

    def __init__(self, trace: Trace, row: int) -> None:
        super().__init__(trace, row, trace.tables.params)

    @property
    def name(self) -> str:
        return self._text("name")

    @property
    def path(self) -> str:
        """The module path."""
        return self._text("path")

    @property
    def kind(self) -> str:
        return schema.KINDS[self._cell("kind")]

    @property
    def roundoff(self) -> float:
        """Its dtype's unit roundoff."""
        return BY_CODE[self._cell("dtype")].roundoff

    @property
    def aliases(self) -> list[str]:
        aliases = _json(self._text("aliases") or "[]", self)
        if not isinstance(aliases, list):
            raise UnsafeTraceError(f"{self!r} has aliases that are no list of names: the trace is not sound.")
        return [str(alias) for alias in aliases]

    @property
    def sketch(self) -> Sketch:
        start = self._cell("sketch_start")
        pool = self._trace.tables.sketches[start : start + self._cell("sketch_length")]
        axes: list[Floats] = []
        for length in self.shape:
            kept = length if length <= LONGEST_AXIS else 0
            axes.append(pool[:kept])
            pool = pool[kept:]
        return Sketch(self._cell("quantiles"), tuple(axes))

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<Param {self.name}: {self.dtype} {self.shape}>"


def _json(text: str, where: object) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise TraceFileError(f"{where!r} carries a note that is not JSON ({error}).") from error


class _ClosedSegments:
    """The segments of a closed file, each checked before it is read."""

    def __init__(self, source: Input) -> None:
        self._source = source
        self.identity = source.identity()
        known = _CHECKED.get(state := _state_of(source.path))
        self.count = source.count_segments() if known is None else len(known)
        self._places = {} if known is None else known
        self.limits = np.full(self.count, source.size, np.uint64)
        if self.count <= EAGER_SEGMENTS:
            self.limits[:] = [self.place(number).nbytes for number in range(self.count)]
            source.close()
            _CHECKED[state] = self._places

    def place(self, number: int) -> Place:
        if number not in self._places:
            self._places[number] = self._source.segment(number)
        return self._places[number]

    def close(self) -> None:
        self._source.close()

    def stay(self) -> None:
        """Notes that tables were added to the file, which has its segments where they were."""
        if len(self._places) == self.count <= EAGER_SEGMENTS:
            _CHECKED[_state_of(self._source.path)] = self._places


def _state_of(path: Path) -> tuple[int, int, int, int]:
    """What tells a file in its present state from any other, and from itself once it is written to."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


_CHECKED: Recent[tuple[int, int, int, int], dict[int, Place]] = Recent(4)
"""The segments of the files that were checked last, by the state of the file: a capture opens its trace seven times."""


class _KilledSegments:
    """The segments of a file whose writer was killed, as the journal lists them."""

    def __init__(self, places: list[Place]) -> None:
        self._places = places
        self.identity = (b"", 0)
        self.count = len(places)
        self.limits = np.array([place.nbytes for place in places], np.uint64)

    def place(self, number: int) -> Place:
        return self._places[number]

    def close(self) -> None:
        pass

    def stay(self) -> None:
        pass


def _load(path: Path) -> tuple[Tables, _ClosedSegments | _KilledSegments, bool]:
    if not path.exists():
        raise TraceNotFoundError(f"No trace {str(path)!r}. Record one with: tracediff capture -o {path}")
    if not path.is_file():
        raise TraceFileError(f"{str(path)!r} is a folder or a device, not a trace.")
    log = journal_of(path)
    if is_locked(path) or (log.exists() and is_locked(log)):
        raise TraceFileError(f"{str(path)!r} is in progress: another process is still writing it. Wait for it to end, or end it.")
    replayed = replay(log, path) if log.exists() else None
    if replayed is None:
        return (*_load_closed(path), False)
    tables, places = replayed
    check(tables, _KilledSegments(places).limits, str(path))
    return _without_lost(tables, places, path.stat().st_size), _KilledSegments(places), True


def _without_lost(tables: Tables, places: list[Place], size: int) -> Tables:
    """The tables of a killed trace, in which rows whose values the file does not reach (power failed) are marked as not stored."""
    starts = np.array([*(place.offset for place in places), 0], np.uint64)
    for table in (tables.index, tables.params):
        lost = (table["segment"] >= 0) & (starts[table["segment"]] + table["offset"] + table["nbytes"] > size)
        if lost.any():
            table["segment"][lost] = -1
            warning = f"the file is cut short: the values of {int(lost.sum())} rows are lost, their statistics kept"
            tables.meta.setdefault("warnings", []).append(warning)
    return tables


def _load_closed(path: Path) -> tuple[Tables, _ClosedSegments]:
    with path.open("rb") as file:
        signature = file.read(8)
    if not signature:
        raise TraceFileError(f"{str(path)!r} is empty: its writer was killed at once, or the disk was full. Record it again.")
    if signature != b"\x89HDF\r\n\x1a\n":
        raise TraceFileError(f"{str(path)!r} is not a trace: it is no HDF5 file.")
    try:
        source = Input(path)
    except OSError as error:
        raise _damaged(path, error) from error
    try:
        return _read(source)
    except (KeyError, TypeError, RuntimeError) as error:  # h5py's words for metadata that it cannot follow
        source.close()
        raise _damaged(path, error) from error
    except BaseException:
        source.close()
        raise


def _damaged(path: Path, error: Exception) -> TraceFileError:
    how = "was cut short" if "truncated" in str(error) else f"is damaged, or its writer was killed and {journal_of(path).name!r} is gone"
    return TraceFileError(f"{str(path)!r} {how} ({error}). Record it again.")


def _read(source: Input) -> tuple[Tables, _ClosedSegments]:
    path = str(source.path)
    names = source.names()
    if schema.META not in names:
        if schema.IDENTITY in names:
            raise TraceFileError(f"{path!r} was never closed, and its journal {str(journal_of(source.path))!r} is gone: it cannot be read.")
        raise TraceFileError(f"{path!r} is an HDF5 file but not a trace (it has no /{schema.META}).")
    meta = load_meta(source.table(schema.META).tobytes(), path)
    missing = {*schema.TABLES, schema.TENSORS} - names
    if missing:
        raise TraceFileError(f"{path!r} is not a whole trace: it lacks /{min(missing)}.")
    found = source.tables(names)
    strings = unpack_strings(found[schema.STRINGS], found[schema.STRING_ENDS], path)
    index, params, sketches = (found[name] for name in (schema.INDEX_TABLE, schema.PARAM_TABLE, schema.SKETCHES))
    optional = {name: found[name] for name in names & set(schema.OPTIONAL_TABLES)}
    tables = Tables(index, params, sketches, strings, meta, optional)
    segments = _ClosedSegments(source)
    check(tables, segments.limits, path)
    return tables, segments
