"""The crash journal: a file beside a trace that is being written, from which the trace can be read if its writer is killed.

``<trace>.journal`` is append-only. A record's row is appended after its bytes were written to the trace, so every row that stands
here completely can be read, whatever state the HDF5 metadata is in. After a magic line the journal is a sequence of frames: kind
(1 byte), payload length and CRC-32 of the payload (4 bytes each, little-endian), payload. An incomplete last frame is ignored.
A clean close removes the journal.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import TraceFileError
from tracediff.json_text import parse_json
from tracediff.trace import schema
from tracediff.trace.container import Place, is_file_of, lock
from tracediff.trace.meta import Meta, check_meta, dump_meta
from tracediff.trace.tables import Tables, decode, encode

MAGIC = b"tracediff journal 1\n"
HEADER, META, STRING, SEGMENT, ROW, PARAM, TABLE = b"HMSGRPT"
_STORED = {row.stored.str: row.stored for row in BY_CODE.values()}
_FRAME = struct.Struct("<BII")
HEAD = _FRAME.size
"""Bytes of a frame before its payload."""
_NUMBER = struct.Struct("<I")
_PLACE = struct.Struct("<QQ")
_MOST_BYTES = 1 << 60  # of a file
_AT_ONCE = 1 << 20  # bytes that are read at once


def journal_of(path: Path) -> Path:
    """Where the journal of a trace lies.

    >>> str(journal_of(Path("a/ref.h5")))
    'a/ref.h5.journal'
    """
    return path.with_name(path.name + ".journal")


def frame(kind: int, payload: bytes) -> bytes:
    """One frame, ready to be appended."""
    return _FRAME.pack(kind, len(payload), zlib.crc32(payload)) + payload


def string_frame(number: int, text: str) -> bytes:
    """The frame of a text and its number."""
    return frame(STRING, _NUMBER.pack(number) + encode(text))


def string_in(payload: bytes) -> tuple[int, bytes]:
    """The number and the bytes of the text in a frame's payload."""
    return _NUMBER.unpack_from(payload)[0], payload[_NUMBER.size :]


def segment_frame(place: Place) -> bytes:
    """The frame of the next segment."""
    return frame(SEGMENT, _PLACE.pack(place.offset, place.nbytes) + f"{place.dtype.str}|{schema.shape_text(place.shape)}".encode())


def table_frame(name: str, table: Array) -> bytes:
    """The frame of an optional table, whole."""
    return frame(TABLE, name.encode() + b"\0" + table.tobytes())


def meta_frame(meta: Meta) -> bytes:
    """The frame of meta items, which a reader merges."""
    return frame(META, dump_meta(meta))


class Journal:
    """A journal being written."""

    def __init__(self, path: Path, identity: bytes, offset: int, meta: Meta, *, rows: int | None = None) -> None:
        """``rows``: how many rows it will hold, where that is known."""
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self.size = 0
        lock(self.fd)
        header = {"identity": identity.hex(), "offset": offset, "pid": os.getpid(), "format_version": schema.FORMAT_VERSION, "rows": rows}
        self.append(MAGIC + frame(HEADER, json.dumps(header).encode()) + meta_frame(meta))

    def append(self, frames: bytes) -> None:
        """Appends whole frames; OSError where the disk is full."""
        view = memoryview(frames)
        while view:
            written = os.write(self.fd, view)
            view, self.size = view[written:], self.size + written

    def read(self, place: int, nbytes: int) -> bytes:
        """Bytes that were appended; OSError where another program cut the file short."""
        found = os.pread(self.fd, nbytes, place)
        if len(found) != nbytes:
            raise OSError(f"the journal {str(self.path)!r} was cut short")
        return found

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """All frames that were appended, with little memory."""
        place, rest = len(MAGIC), b""
        while place + len(rest) < self.size:
            rest += self.read(place + len(rest), min(_AT_ONCE, self.size - place - len(rest)))
            used = 0
            while used + HEAD <= len(rest):
                kind, length, _ = _FRAME.unpack_from(rest, used)
                if used + HEAD + length > len(rest):
                    break
                yield kind, rest[used + HEAD : used + HEAD + length]
                used += HEAD + length
            place, rest = place + used, rest[used:]

    def rename(self, path: Path) -> None:
        os.replace(self.path, path)
        self.path = path

    def close(self, *, remove: bool) -> None:
        """Lets go of the file, or removes it since the trace does without; nothing where that was done."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if remove and is_file_of(fd, self.path):
            self.path.unlink(missing_ok=True)
        os.close(fd)


@dataclass(slots=True)
class Replay:
    """What the frames of a journal have given so far: the tables' rows as bytes, the texts, and where the segments lie."""

    strings: list[str] = field(default_factory=lambda: [""])
    segments: list[Place] = field(default_factory=list)
    meta: Meta = field(default_factory=dict)
    rows: bytearray = field(default_factory=bytearray)
    params: bytearray = field(default_factory=bytearray)
    sketches: bytearray = field(default_factory=bytearray)
    optional: dict[str, Array] = field(default_factory=dict)

    def take(self, kind: int, payload: bytes) -> None:
        if kind == ROW:
            self.rows += _exactly(payload, schema.INDEX.itemsize)
        elif kind == STRING:
            self._take_string(_NUMBER.unpack_from(payload)[0], decode(payload[_NUMBER.size :]))
        elif kind == SEGMENT:
            self.segments.append(_segment(payload))
        elif kind == PARAM:
            self.params += _exactly(payload[: schema.PARAMS.itemsize], schema.PARAMS.itemsize)
            self.sketches += payload[schema.PARAMS.itemsize :]
        elif kind == TABLE:
            name, _, rows = payload.partition(b"\0")
            self.optional[name.decode()] = np.frombuffer(rows, schema.OPTIONAL_TABLES[name.decode()])
        elif kind == META:
            self.meta.update(parse_json(payload))
        else:
            raise ValueError(f"frame of unknown kind {kind}")

    def _take_string(self, number: int, text: str) -> None:
        if number > len(self.strings):
            raise ValueError(f"text {number} follows text {len(self.strings) - 1}")
        if number == len(self.strings):  # else it was appended twice: the writer was interrupted in between
            self.strings.append(text)

    def tables(self, trace: Path) -> Tables:
        index, params = np.frombuffer(self.rows, schema.INDEX), np.frombuffer(self.params, schema.PARAMS)
        sketches, meta = np.frombuffer(self.sketches, schema.SKETCH), check_meta(self.meta, str(trace))
        return Tables(index, params, sketches, self.strings, meta, self.optional)


def _segment(payload: bytes) -> Place:
    offset, nbytes = _PLACE.unpack_from(payload)
    dtype, _, text = payload[_PLACE.size :].decode().rpartition("|")  # "|u1|2,3"
    shape = schema.shape_of(text)
    if math.prod(shape) * _STORED[dtype].itemsize != nbytes or offset + nbytes > _MOST_BYTES:
        raise ValueError(f"a segment of {nbytes} bytes at {offset} that holds {text!r} of {dtype}")
    return Place(offset, nbytes, _STORED[dtype], shape)


def _exactly(payload: bytes, size: int) -> bytes:
    if len(payload) != size:
        raise ValueError(f"a row of {len(payload)} bytes instead of {size}")
    return payload


def replay(path: Path, trace: Path) -> tuple[Tables, list[Place]] | None:
    """What the journal at ``path`` says of ``trace``: all but the values, and where the segments lie.

    None where the journal belongs to another file (it was left behind); TraceFileError where it is damaged.
    """
    parts = frames(path.read_bytes())
    kind, header = next(parts, (HEADER, b""))
    if kind != HEADER or not _belongs(header, trace):
        return None
    try:
        said = parse_json(header)
        replayed = Replay(meta={"format_version": said["format_version"]})
        for kind, payload in parts:
            replayed.take(kind, payload)
        tables = replayed.tables(trace)
        if said.get("rows") not in (None, tables.index.size):
            raise ValueError(f"it ends after {tables.index.size} of {said['rows']} rows")
        return tables, replayed.segments
    except (TraceFileError, ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
        raise TraceFileError(f"The journal {str(path)!r} is damaged ({error!r}); the trace cannot be recovered from it.") from error


def frames(blob: bytes) -> Iterator[tuple[int, bytes]]:
    """The complete frames of a journal, in order, up to the first that is not."""
    position = len(MAGIC) if blob.startswith(MAGIC) else len(blob)
    while position + _FRAME.size <= len(blob):
        kind, length, checksum = _FRAME.unpack_from(blob, position)
        start, position = position + _FRAME.size, position + _FRAME.size + length
        payload = blob[start:position]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield kind, payload


def _belongs(header: bytes, trace: Path) -> bool:
    """Whether the trace carries the identity that the journal's header claims, where it says."""
    try:
        claimed = parse_json(header)
        identity = bytes.fromhex(claimed["identity"])
        with trace.open("rb") as file:
            file.seek(claimed["offset"])
            return len(identity) == schema.IDENTITY_BYTES and file.read(len(identity)) == identity
    except (ValueError, LookupError, TypeError, OverflowError, OSError):
        return False
