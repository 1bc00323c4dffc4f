"""Appends records to a trace while a model runs: memory is bounded, and what was recorded is readable if the writer is killed."""

from __future__ import annotations

import json
import os
import secrets
import struct
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Required, Self, TypedDict, Unpack

import numpy as np
import xxhash

from tracediff import dtype as dtypes
from tracediff.dtype import Array, DType
from tracediff.errors import TracediffError, TraceExistsError, TraceFileError
from tracediff.interrupts import whole
from tracediff.outputs import check_output
from tracediff.trace import journal, schema
from tracediff.trace.background_writer import BackgroundWriter, Job
from tracediff.trace.container import Output, Place, is_file_of, is_locked, new_identity, write_at
from tracediff.trace.digest_table import DigestTable, Recent
from tracediff.trace.fingerprint import Sketch, digest, sketch, statistics
from tracediff.trace.journal import Journal, journal_of
from tracediff.trace.known import KNOWN
from tracediff.trace.links import MOST_LINKS, Texts, add_links
from tracediff.trace.meta import Meta, checked_meta, dump_meta
from tracediff.trace.reader import Param, open_trace
from tracediff.trace.tables import Tables, encode, pack_strings

IN_FLIGHT = 32 * 1024 * 1024
"""Bytes of values that may wait to be written; a tensor larger than this waits alone."""

_BEFORE, _CONTENT, _AFTER = schema.row_structs(schema.INDEX)
_PARAM_BEFORE, _, _PARAM_AFTER = schema.row_structs(schema.PARAMS)
_ROW_BYTES = schema.INDEX.itemsize
_WORDS = struct.Struct(">2Q")  # a digest as two numbers
_STATS = struct.Struct("<4Q7d")  # the end of a content
_SEGMENT, _UNSTORED = 5, struct.pack("<i", -1)  # where a content names its segment, and what it says without one
LATEST = 16_384
"""Contents that are known again by their digest where a recorder does not know them."""
_MOST_SHOWN = 4 * MOST_LINKS
_LATEST_TEXTS = 2048
"""Texts that are known again without their digest."""
_stats_cells = attrgetter(*schema.STATS_NAMES)


class Moment(TypedDict, total=False):
    """Where and when in the run a record was made: all of its row that is not its content."""

    site: Required[str]
    call: Required[str]
    ordinal: Required[int]
    end: Required[str]
    stage: str
    scope: str
    parent: int
    producer: int
    producer_how: int
    file: str
    line: int
    flags: int
    note: str


class TraceWriter:
    """Writes a new trace. A context manager: an exception in its block closes the trace as incomplete, keeping what was recorded.

    ``path`` must not exist unless ``force``, but for the trace of a run that failed; an old file is replaced only once the new one is
    open. ``meta`` is a JSON object without NaN. With ``save="stats"`` no values are stored, only their statistics and digests.
    ``identity``: the bytes that tell this file from any other, by which `tracediff.trace.amend` knows it again; by default random ones.

    Values are digested, measured and written on a thread of the writer's own, in order; an error there is raised by the next call.
    After `flush` returned, every record is readable even if the process is killed. Raises TraceExistsError, TraceFileError
    (a full disk among them: what was written is kept).

    >>> import tempfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/a.h5"
    >>> with TraceWriter(path, meta={"impl": "numpy"}) as writer:
    ...     row = writer.add(site="enc", call="enc[0]", ordinal=0, end="output", values=np.arange(3.0))
    >>> from tracediff.trace import open_trace
    >>> open_trace(path).records[row].read()
    array([0., 1., 2.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        force: bool = False,
        meta: Mapping[str, Any] | None = None,
        save: Literal["full", "stats"] = "full",
        identity: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.identity = identity or new_identity()
        self._save = save
        self._meta = checked_meta({"format_version": schema.FORMAT_VERSION, "complete": False, **(meta or {})})
        self._output, self._journal = _open(self.path, force, self._meta, self.identity)
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._new_strings: list[bytes] = []
        self._texts = _Texts(self._new_strings)
        self._number = self._texts.number
        self._count = 0
        self._closed = False
        self._segments = _Segments(self._output, self._journal)
        self._places = array("Q")  # where in the journal each row lies
        self._linked = bytearray()  # the first rows with values of their own, for the links for people
        self._params = bytearray()
        self._sketches = bytearray()
        self._stats = Recent[tuple[bytes, int], bytes](LATEST)
        self._background = BackgroundWriter(IN_FLIGHT)
        weakref.finalize(self, _let_go, self._background, self._journal, self._output, os.getpid())

    @whole
    def add(self, *, values: Any, dtype: str | None = None, store: bool = True, code: bytes | None = None, **moment: Unpack[Moment]) -> int:
        """Records an array and returns its row number.

        ``values`` must not change afterwards. They are values (bfloat16 and float8 by `ml_dtypes`), or, where ``dtype`` names the
        dtype, its stored bits (bfloat16 as uint16). ``code`` is the digest of its little-endian bits in C order, of a caller that has
        it already. Raises TracediffError for an array that no trace can hold.
        """
        bits, kind = _bits(values, dtype)
        with self._lock:
            shape = self._number(schema.shape_text(bits.shape))
            return self._append(lambda: self._content(bits, kind, shape, store, code), bits.nbytes, moment)

    @whole
    def add_again(self, row: int, **moment: Unpack[Moment]) -> int:
        """Records the content of an earlier row once more, at another moment: nothing is hashed or written."""
        with self._lock:
            if not 0 <= row < self._count:
                raise TracediffError(f"No row {row!r} yet to record again; {self._count} rows were recorded.")
            return self._append(lambda: self._content_of(row), 0, moment)

    def add_text(self, *, text: str, **moment: Unpack[Moment]) -> int:
        """Records a text, as UTF-8 bytes of dtype ``text``."""
        moment["flags"] = moment.get("flags", 0) | schema.TEXT
        blob = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        return self.add(values=blob, dtype="text", **moment)

    @whole
    def add_param(
        self,
        name: str,
        values: Any,
        *,
        path: str,
        kind: Literal["parameter", "buffer"],
        aliases: Sequence[str] = (),
        store: bool = False,
        dtype: str | None = None,
    ) -> None:
        """Records a parameter or buffer of the module at ``path``: fingerprint and sketch, and its values where ``store``.

        Done when it returns, so ``values`` may be the live parameter.
        """
        bits, row_dtype = _bits(values, dtype)
        with self._lock:
            texts = [self._number(text) for text in (name, path, json.dumps(list(aliases)), schema.shape_text(bits.shape))]
            frames = b"".join(self._new_strings)
            before = _PARAM_BEFORE.pack(texts[0], texts[1], schema.KINDS.index(kind), texts[2])
            content: list[bytes] = []
            code = digest(bits)
            known = KNOWN.get(code, row_dtype, bits.shape)
            stats = known[1] if known else None
            self._put(lambda: content.append(self._content(bits, row_dtype, texts[3], store, code, stats)), bits.nbytes)
            drawn = known[0] if known else sketch(bits, row_dtype)  # meanwhile
            self._put(lambda: self._write_param(frames, before + content[0], drawn))
            self._drain()
            if taken := self._stats.get((code, row_dtype.code)):
                KNOWN.keep(code, row_dtype, bits.shape, drawn, taken)
            self._new_strings.clear()

    @whole
    def add_param_of(self, param: Param) -> None:
        """Records a parameter of another trace without its values: what that trace says of it."""
        kind, stats = dtypes.named(param.dtype), _stats_cells(param.stats)
        with self._lock:
            texts = [self._number(text) for text in (param.name, param.path, json.dumps(param.aliases), schema.shape_text(param.shape))]
            frames, words = b"".join(self._new_strings), (int.from_bytes(param.digest[:8], "big"), int.from_bytes(param.digest[8:], "big"))
            before = _PARAM_BEFORE.pack(texts[0], texts[1], schema.KINDS.index(param.kind), texts[2])
            content = _CONTENT.pack(kind.code, texts[3], -1, 0, param.nbytes, *words, *stats)
            self._put(lambda: self._write_param(frames, before + content, param.sketch))
            self._drain()
            self._new_strings.clear()

    @whole
    def set_meta(self, **items: Any) -> None:
        """Merges items into the trace's meta; TracediffError where JSON cannot hold one."""
        frame = journal.meta_frame(checked_meta(items))
        with self._lock:
            self._meta.update(items)
            self._put(lambda: self._journal.append(frame), len(frame))

    @whole
    def flush(self) -> None:
        """Returns when every record so far is written, so that a kill cannot lose it; raises what went wrong since the last call."""
        with self._lock:
            self._drain()

    @whole
    def close(self, complete: bool = True) -> None:
        """Writes the tables and removes the journal. Without ``complete`` the trace says that its run did not come to its end."""
        if os.getpid() != self._owner:  # a forked child's: the parent goes on writing
            self._closed = True
            return
        with self._lock:
            if self._closed:
                return
            try:
                frames = b"".join(self._new_strings)  # of a row that was refused
                self._put(lambda: self._journal.append(frames), len(frames))
                self.set_meta(complete=complete)
                self._drain()
            except BaseException:
                self._abandon()
                raise
            self._finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        with suppress(TraceFileError):  # the block's own exception says more, and the journal keeps the records
            self.close(complete=False)

    # -- in the caller's thread --

    def _append(self, content: Callable[[], bytes], nbytes: int, moment: Moment) -> int:
        row = self._count
        before, after = self._moment(row, **moment)
        frames = b"".join(self._new_strings)
        try:
            self._put(lambda: self._write_row(frames, before, content, after), nbytes)
        except BaseException:  # Ctrl-C, before or after the row was queued
            self._background.settle()
            self._count = self._written
            raise
        self._new_strings.clear()
        self._count += 1
        return row

    def _moment(
        self,
        row: int,
        *,
        site: str,
        call: str,
        ordinal: int,
        end: str,
        stage: str = "",
        scope: str = "",
        parent: int = -1,
        producer: int = -1,
        producer_how: int = schema.PRODUCER_NONE,
        file: str = "",
        line: int = 0,
        flags: int = 0,
        note: str = "",
    ) -> tuple[bytes, bytes]:
        if not (-1 <= parent < row and -1 <= producer < row):
            name, other = ("producer", producer) if -1 <= parent < row else ("parent", parent)
            raise TracediffError(f"The {name} of row {row} must be an earlier row or -1, not {other!r}.")
        text = self._number
        try:
            before = _BEFORE.pack(row, text(site), text(call), ordinal, text(end), text(stage), text(scope), parent, producer, producer_how)
            return before, _AFTER.pack(text(file), line, flags, text(note))
        except struct.error as error:
            numbers = f"ordinal {ordinal!r}, producer_how {producer_how!r}, line {line!r}, flags {flags!r}"
            raise TracediffError(f"Row {row} at {site!r} has a number out of range ({numbers}): {error}.") from error

    def _put(self, job: Job, nbytes: int = 0) -> None:
        if self._closed:
            raise TraceFileError(f"The trace {str(self.path)!r} is closed; nothing more can be recorded in it.")
        try:
            self._background.put(job, nbytes)
        except (OSError, struct.error) as error:
            raise self._failure(error) from error

    def _drain(self) -> None:
        try:
            self._background.drain()
        except (OSError, struct.error) as error:
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> TraceFileError:
        path = str(self.path)
        kept = f"The first {self._written} records are kept and can be read. Make room, then: tracediff recover {path}"
        return TraceFileError(f"Could not write to {path!r}: {error}. {kept}")

    @property
    def _written(self) -> int:
        return len(self._places)

    # -- in the writer's own thread --

    def _write_row(self, frames: bytes, before: bytes, content: Callable[[], bytes], after: bytes) -> None:
        row = before + (found := content()) + after
        place = self._journal.size + len(frames) + journal.HEAD
        self._journal.append(frames + journal.frame(journal.ROW, row))
        self._places.append(place)
        if len(self._linked) < MOST_LINKS * _ROW_BYTES and not found.startswith(_UNSTORED, _SEGMENT):
            self._linked += row

    def _write_param(self, frames: bytes, described: bytes, drawn: Sketch) -> None:
        pool = np.concatenate([np.empty(0), *drawn.axes]).astype(schema.SKETCH).tobytes()
        start = len(self._sketches) // schema.SKETCH.itemsize
        row = described + _PARAM_AFTER.pack(start, len(pool) // schema.SKETCH.itemsize, *drawn.quantiles.tolist())
        self._journal.append(frames + journal.frame(journal.PARAM, row + pool))
        self._params += row
        self._sketches += pool

    def _content(self, bits: Array, kind: DType, shape: int, store: bool, code: bytes | None = None, known: bytes | None = None) -> bytes:
        code = code or digest(bits)
        stats = self._stats.get((code, kind.code)) or known
        if stats is None:
            stats = _STATS.pack(*_stats_cells(statistics(bits, kind)))
            self._stats[code, kind.code] = stats
        segment, offset = -1, 0
        if store and self._save == "full" and bits.nbytes:
            segment, offset = self._segments.store(bits, kind, code)
        return _CONTENT.pack(kind.code, shape, segment, offset, bits.nbytes, *_WORDS.unpack(code), *_STATS.unpack(stats))

    def _content_of(self, row: int) -> bytes:
        return self._journal.read(self._places[row] + _BEFORE.size, _CONTENT.size)

    # -- the end --

    def _finish(self) -> None:
        self._closed = True
        self._background.close()
        path = str(self.path)
        if not self._output.is_intact():
            self._abandon()
            raise TraceFileError(f"Another program has overwritten {path!r} while it was being written: record it again, to another file.")
        is_in_place = is_file_of(self._output.fd, self.path)
        try:
            self._write_tables()
            self._output.close()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError | RuntimeError):
                raise self._failure(error) from error
            raise
        self._journal.close(remove=True)
        if not is_in_place:
            raise TraceFileError(f"{path!r} is not this run's: its file was removed, renamed or replaced meanwhile. Record it again.")

    def _abandon(self) -> None:
        """Lets go of both files, leaving the journal: the trace can be recovered from it."""
        self._closed = True
        _let_go(self._background, self._journal, self._output, os.getpid())

    def _write_tables(self) -> None:
        """As `write_tables`; rows and texts, of which there may be millions, come from the journal."""
        output = self._output
        rows = output.add_later(schema.INDEX_TABLE, schema.INDEX, self._written)
        texts = output.add_later(schema.STRINGS, np.dtype("u1"), self._texts.ends[-1])
        output.add_table(schema.STRING_ENDS, np.frombuffer(self._texts.ends, schema.STRING_END))
        for kind, payload in self._journal.frames():
            if kind == journal.ROW:
                rows.append(payload)
            elif kind == journal.STRING:
                number, text = journal.string_in(payload)
                if texts.count + 1 == number:  # text 0 is empty; one that was appended twice (after an error) has its place already
                    texts.append(text)
        rows.close()
        texts.close()
        params, sketches = np.frombuffer(self._params, schema.PARAMS), np.frombuffer(self._sketches, schema.SKETCH)
        _write_behind_rows(output, params, sketches, {}, np.frombuffer(self._linked, schema.INDEX), self._texts, self._meta)


def _let_go(background: BackgroundWriter, log: Journal, output: Output, owner: int) -> None:
    """Writes what waits and closes both files, leaving the journal; nothing in a forked child, which does not own them."""
    if os.getpid() != owner:
        return
    background.close()
    log.close(remove=False)
    with suppress(OSError, RuntimeError):  # no room for HDF5's metadata, which recovery does without
        output.close()


class _Texts:
    """The numbers of the texts so far: a digest of each, and of those that links show the text itself. ``ends`` as in the file.

    ``number`` gives that of any text. The journal's frames of those that are new are appended to ``new``.
    """

    def __init__(self, new: list[bytes]) -> None:
        self.ends = array("Q", [0])
        self.number = lru_cache(_LATEST_TEXTS)(self._looked_up)
        self._new = new
        self._digests = DigestTable()
        self._shown: dict[int, str] = {0: ""}

    def _looked_up(self, text: str) -> int:
        """The number of a text that was not asked for lately."""
        if not text:
            return 0
        blob = encode(text)
        new = len(self.ends)
        number = self._digests.entered(xxhash.xxh3_128_digest(blob), new)
        if number == new:
            self.ends.append(self.ends[-1] + len(blob))
            self._new.append(journal.string_frame(number, text))
            if number < _MOST_SHOWN:
                self._shown[number] = text
        return number

    def __getitem__(self, number: int) -> str:
        """A text that links show; any other is shown by its number."""
        return self._shown.get(number, f"text {number}")


class _Segments:
    """Where values go: a segment of its own for a large array, the open shared one for a small; identical content once."""

    def __init__(self, output: Output, log: Journal) -> None:
        self._output, self._journal = output, log
        self._count = 0
        self._stored = Recent[bytes, tuple[int, int]](LATEST)
        self._shared: Place | None = None
        self._shared_number = -1
        self._used = 0
        self._next_shared = schema.FIRST_SEGMENT_BYTES

    def store(self, bits: Array, kind: DType, code: bytes) -> tuple[int, int]:
        """The segment, and the offset in it, at which these bits lie; writes them if no equal ones do."""
        found = self._stored.get(code)
        if found is None:
            place, number, offset = self._room(bits, kind)
            write_at(self._output.fd, bits, place.offset + offset)
            found = number, offset
            self._stored[code] = found
        return found

    def _room(self, bits: Array, kind: DType) -> tuple[Place, int, int]:
        if bits.nbytes > schema.PACK_LIMIT:
            return self._new(kind, bits.shape), self._count - 1, 0
        if self._shared is None or self._used + bits.nbytes > self._shared.nbytes:
            self._shared = self._new(dtypes.named("uint8"), (self._next_shared,))
            self._shared_number, self._used = self._count - 1, 0
            self._next_shared = min(2 * self._next_shared, schema.SEGMENT_BYTES)
        offset = self._used
        self._used += -(-bits.nbytes // schema.ALIGNMENT) * schema.ALIGNMENT
        return self._shared, self._shared_number, offset

    def _new(self, kind: DType, shape: tuple[int, ...]) -> Place:
        place = self._output.add_segment(self._count, kind.stored, shape)
        self._journal.append(journal.segment_frame(place))
        self._count += 1
        return place


def write_tables(output: Output, tables: Tables) -> None:
    """Writes all tables and the links for people behind the values; /meta last."""
    blob, ends = pack_strings(tables.strings)
    output.add_table(schema.STRINGS, blob)
    output.add_table(schema.STRING_ENDS, ends)
    output.add_table(schema.INDEX_TABLE, tables.index)
    linked = tables.index[tables.index["segment"] >= 0][:MOST_LINKS]
    _write_behind_rows(output, tables.params, tables.sketches, tables.optional, linked, tables.strings, tables.meta)


def _write_behind_rows(
    output: Output, params: Array, sketches: Array, optional: Mapping[str, Array], linked: Array, texts: Texts, meta: Meta
) -> None:
    """Writes what comes behind rows and texts; ``linked``: the rows that links for people show."""
    output.add_table(schema.PARAM_TABLE, params)
    output.add_table(schema.SKETCHES, sketches)
    for name, table in optional.items():
        output.add_table(name, table)
    add_links(output, linked, texts)
    output.add_table(schema.META, np.frombuffer(dump_meta(meta), np.uint8))
    output.seal()


def check_trace_output(path: Path, *, force: bool = False, sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Raises what `TraceWriter` would raise, before anything runs, where it could not write this file.

    The trace of a run that failed may be replaced, none of the ``sources``, which are the traces that the run reads: TracediffError.
    """
    check_output(path, force=True)
    for source in map(Path, sources):
        if path.exists() and source.exists() and path.samefile(source):
            raise TracediffError(f"{str(path)!r} is what this run is fed from, so it cannot be its output too. Name another file with -o.")
    if not force and not _is_of_failed_run(path):
        check_output(path)
    if path.exists() and is_locked(path):
        raise TraceFileError(f"{str(path)!r} is in progress: another process is writing it, so it cannot be replaced now.")


def _is_of_failed_run(path: Path) -> bool:
    """Whether this is the closed trace of a run that raised, which holds no answer."""
    try:
        with open_trace(path) as trace:
            return not trace.complete and not trace.was_killed
    except TracediffError:
        return False


def _open(path: Path, force: bool, meta: Meta, identity: bytes) -> tuple[Output, Journal]:
    check_trace_output(path, force=force)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new") if path.exists() else path
    try:
        return _open_new(new, path, meta, identity)
    except FileExistsError as error:
        raise TraceExistsError(f"{str(path)!r} was created by another process just now; name another file.") from error
    except OSError as error:
        raise TraceFileError(f"{str(path)!r} cannot be written: {error}.") from error


def _open_new(new: Path, path: Path, meta: Meta, identity: bytes) -> tuple[Output, Journal]:
    output = Output(new)
    try:
        log = Journal(journal_of(new), identity, output.identify(identity), meta)
        if new != path:  # journal first: in between, it belongs to no file, and the old trace stands
            log.rename(journal_of(path))
            os.replace(new, path)
    except BaseException:
        output.close()
        new.unlink(missing_ok=True)
        journal_of(new).unlink(missing_ok=True)
        raise
    return output, log


def _bits(values: Any, dtype: str | None) -> tuple[Array, DType]:
    array: Array = np.asarray(values)
    if dtype is None:
        return dtypes.bits(array), dtypes.of(array)
    kind = dtypes.named(dtype)
    if array.dtype.newbyteorder("<") == kind.stored:
        return np.ascontiguousarray(array, kind.stored).reshape(array.shape), kind
    if array.dtype != kind.view:
        raise TracediffError(f"An array of {array.dtype} holds neither values nor bits of {dtype!r}; bits would be {kind.stored}.")
    return dtypes.bits(array), kind
