"""The HDF5 side of a trace: makes contiguous datasets and tells where in the file their bytes lie; refuses whatever else a file holds.

Only this module touches h5py. Values never go through HDF5: they are written and read at file offsets. So they are readable whatever
state a killed writer left the HDF5 metadata in, and no filter and no external file is ever consulted.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from tracediff.dtype import BY_CODE, Array
from tracediff.errors import TraceFileError, UnsafeTraceError
from tracediff.interrupts import whole
from tracediff.trace import schema

_STORED = frozenset(row.stored for row in BY_CODE.values())
_TABLES = schema.TABLES | schema.OPTIONAL_TABLES | {schema.DIGEST: np.dtype("u1")}
_DIGESTED = _TABLES.keys() - {schema.DIGEST}
_PART = 1 << 22  # bytes of a table that are held at once
_AT_ONCE = 1 << 30  # bytes of one write; macOS takes less than 2 GB
_MOST_AXES = 32  # of an HDF5 dataset
_TRIES, _PAUSE = 10, 0.02  # seconds; while a program starts
_LIBVER = ("v108", "v108")  # "latest" marks the file as open, and a kill leaves that mark


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run of bytes lies in a file, and as what HDF5 shows it."""

    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _digest(tables: Mapping[str, Iterable[Array]]) -> bytes:
    """The bytes that vouch for tables, given by their names, each in parts."""
    state = xxhash.xxh3_128()
    for name in sorted(tables):
        state.update(name.encode())
        for part in tables[name]:
            state.update(np.ascontiguousarray(part).view(np.uint8).data)
    return state.digest()


def _parts_of(fd: int, offset: int, nbytes: int) -> Iterator[Array]:
    """The bytes at a file offset, a few at a time."""
    for done in range(0, nbytes, _PART):
        yield read_at(fd, offset + done, min(_PART, nbytes - done))


def new_identity() -> bytes:
    """Random bytes that tell a file from any other."""
    return secrets.token_bytes(schema.IDENTITY_BYTES)


class Output:
    """A new HDF5 file (or an old one, to amend its tables): hands out places in it, to be filled with `write_at`."""

    def __init__(self, path: Path, *, amend: bool = False) -> None:
        self.file = h5py.File(path, "r+" if amend else "x", libver=_LIBVER)
        self.fd = os.open(path, os.O_RDWR)
        self._tensors = self.file.require_group(schema.TENSORS).id
        self._plist = _contiguous_early_unfilled()
        self._identity: tuple[bytes, int] | None = None

    def identify(self, identity: bytes) -> int:
        """Gives the file its identity, and returns where that lies."""
        place = self.add_table(schema.IDENTITY, np.frombuffer(identity, np.uint8))
        self._identity = identity, place.offset
        return place.offset

    def is_intact(self) -> bool:
        """Whether the identity is where it was written: another program that wrote this file anew has overwritten it."""
        if self._identity is None:
            return True
        identity, offset = self._identity
        return os.pread(self.fd, len(identity), offset) == identity

    def add_segment(self, number: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Place:
        """A new segment, not yet written."""
        shape = shape if len(shape) <= _MOST_AXES else (math.prod(shape),)
        return self._create(self._tensors, schema.segment_name(number), dtype, shape)

    def add_table(self, name: str, table: Array) -> Place:
        """One of the root's tables, written whole, in the place of an old one."""
        if name in self.file:
            del self.file[name]
        place = self._create(self.file.id, name, table.dtype, table.shape)
        write_at(self.fd, table, place.offset)
        return place

    def add_later(self, name: str, dtype: np.dtype[Any], rows: int) -> Filling:
        """One of the root's tables of so many rows, which are yet to come."""
        return Filling(self.fd, self._create(self.file.id, name, dtype, (rows,)))

    def seal(self) -> None:
        """Writes the digest of all tables, by which a reader knows them again."""
        found = {name: self.file[name].id for name in _DIGESTED if name in self.file}
        parts = {name: _parts_of(self.fd, dataset.get_offset() or 0, dataset.get_storage_size()) for name, dataset in found.items()}
        self.add_table(schema.DIGEST, np.frombuffer(_digest(parts), np.uint8))

    def _create(self, group: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Place:
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        dataset = h5py.h5d.create(group, name.encode(), _hdf5_type(dtype), space, self._plist)
        nbytes = math.prod(shape) * dtype.itemsize
        return Place(int(dataset.get_offset()) if nbytes else 0, nbytes, dtype, shape)

    def link(self, folder: str, links: Mapping[str, str]) -> None:
        """Soft links for people in the folder ``/sites/<folder>``: name to target; none where its name is taken by a link."""
        for name, target in links.items():
            with contextlib.suppress(OSError):  # what HDF5 raises where a step of the path is taken
                self.file.id.links.create_soft(f"{schema.SITES}/{folder}/{name}".encode(), target.encode(), lcpl=_nested())

    def close(self) -> None:
        """Writes the HDF5 metadata and lets go of the file, even where the disk is full; nothing where that was done."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self.file.close()


class Filling:
    """A table that is written from its beginning to its end; ``count``: how many pieces it was given."""

    def __init__(self, fd: int, place: Place) -> None:
        self.count = 0
        self._fd, self._place = fd, place
        self._written, self._waits = 0, bytearray()

    def append(self, piece: bytes) -> None:
        """The next bytes."""
        self.count += 1
        self._waits += piece
        if len(self._waits) >= _PART:
            self._write()

    def close(self) -> None:
        """Writes what waits; TraceFileError where the table has another size than was said."""
        self._write()
        if self._written != self._place.nbytes:
            raise TraceFileError(f"A table of {self._place.nbytes} bytes was given {self._written}: its journal was changed meanwhile.")

    def _write(self) -> None:
        write_at(self._fd, bytes(self._waits), self._place.offset + self._written)
        self._written += len(self._waits)
        self._waits.clear()


@cache
def _hdf5_type(dtype: np.dtype[Any]) -> Any:
    return h5py.h5t.py_create(dtype, logical=True)


@cache
def _nested() -> Any:
    """Makes the groups on the way to a link: ten times as fast as asking for each."""
    plist = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    plist.set_create_intermediate_group(True)
    plist.set_char_encoding(h5py.h5t.CSET_UTF8)
    return plist


def _contiguous_early_unfilled() -> Any:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    return plist


def lock(fd: int) -> None:
    """Holds a file as its writer, until the descriptor is closed or the process ends however it ends."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_file_of(fd: int, path: Path) -> bool:
    """Whether the file that is open lies at this path: it may have been removed, renamed or replaced."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


def is_locked(path: Path) -> bool:
    """Whether a live process writes this file (HDF5 takes the same lock).

    A process that another thread is just starting holds the locks of this one for a moment, until it runs its own program.
    """
    for _ in range(_TRIES):
        try:
            with path.open("rb") as file:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_PAUSE)
        except OSError:  # a file system without locks, or a file that may not be read
            return False
        else:
            return False
    return True


def write_at(fd: int, values: Array | bytes, offset: int) -> None:
    """Writes all bytes at a file offset; OSError where the disk is full."""
    flat = np.frombuffer(values, np.uint8) if isinstance(values, bytes) else np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    view = flat.data
    while view:
        written = os.pwrite(fd, view[:_AT_ONCE], offset)
        view, offset = view[written:], offset + written


def read_at(fd: int, offset: int, nbytes: int) -> Array:
    """The bytes at a file offset, as a new uint8 array; TraceFileError where the file ends before them."""
    out = np.empty(nbytes, np.uint8)
    view = out.data
    while view:
        got = os.preadv(fd, [view[:_AT_ONCE]], offset)
        if not got:
            raise TraceFileError(f"The trace ends at byte {offset}, inside values that its index promises: it was cut short.")
        view, offset = view[got:], offset + got
    return out


class Input:
    """An HDF5 file being read: finds the places of tables and segments, and refuses a file that holds what a trace never holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.file = h5py.File(path, "r")
        self._tensors: Any = None
        self.segments: int = 0

    def close(self) -> None:
        self.file.close()

    def names(self) -> set[str]:
        """The names at the root; UnsafeTraceError where one is not a hard link."""
        return self._links(self.file.id, "/")

    def count_segments(self) -> int:
        """How many segments there are, their links checked."""
        if not isinstance(self.file.get(schema.TENSORS), h5py.Group):
            raise UnsafeTraceError(f"/{schema.TENSORS} in {str(self.path)!r} is no group.")
        self._tensors = self.file[schema.TENSORS].id
        names = self._links(self._tensors, f"/{schema.TENSORS}/")
        expected = {schema.segment_name(number) for number in range(len(names))}
        if names != expected:
            raise UnsafeTraceError(f"/{schema.TENSORS} in {str(self.path)!r} holds {min(names - expected)!r}, which is no segment's name.")
        return len(names)

    @whole  # HDF5 cannot hand on what is raised in a function that it calls
    def _links(self, group: Any, where: str) -> set[str]:
        links: list[tuple[bytes, int]] = []
        group.links.iterate(lambda name, info: links.append((name, info.type)), info=True)
        for name, kind in links:
            if kind != h5py.h5l.TYPE_HARD:
                raise UnsafeTraceError(f"{where}{_text(name)} in {str(self.path)!r} is a link to elsewhere; a trace holds none there.")
        return {_text(name) for name, _ in links}

    def segment(self, number: int) -> Place:
        """Where a segment lies."""
        place = self._place(self._tensors, schema.segment_name(number))
        if place.dtype not in _STORED:
            raise UnsafeTraceError(f"Segment {number} in {str(self.path)!r} has type {place.dtype}, which no trace stores.")
        return place

    def identity(self) -> tuple[bytes, int]:
        """The identity, and where in the file it lies."""
        return self.table(schema.IDENTITY).tobytes(), self._place(self.file.id, schema.IDENTITY).offset

    def table(self, name: str) -> Array:
        """One of the root's tables, read whole."""
        place = self._place(self.file.id, name)
        if place.dtype != _TABLES[name] or len(place.shape) != 1:
            raise UnsafeTraceError(f"/{name} in {str(self.path)!r} has type {place.dtype} and shape {place.shape}, not a trace's.")
        with open(self.path, "rb", buffering=0) as file:
            return read_at(file.fileno(), place.offset, place.nbytes).view(place.dtype)

    def tables(self, names: Set[str]) -> dict[str, Array]:
        """Those of the root's tables that are among ``names``, each read whole; UnsafeTraceError where they are not what was written.

        Files of version 0.1.0 do not say what that was.
        """
        found = {name: self.table(name) for name in _DIGESTED & names}
        if schema.DIGEST in names and _digest({name: [table] for name, table in found.items()}) != self.table(schema.DIGEST).tobytes():
            raise UnsafeTraceError(f"{str(self.path)!r} is damaged: its tables are not those that were written. Record the run again.")
        return found

    def _place(self, group: Any, name: str) -> Place:
        where = f"Dataset {name!r} in {str(self.path)!r}"
        try:
            dataset = h5py.h5d.open(group, name.encode())
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise UnsafeTraceError(f"{where} cannot be opened as a dataset ({error}).") from error
        plist = dataset.get_create_plist()
        if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters() or plist.get_external_count():
            raise UnsafeTraceError(f"{where} is chunked, filtered, virtual or stored in another file; a trace's datasets are none of that.")
        kind = dataset.get_type()
        if kind.get_class() not in (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.COMPOUND, h5py.h5t.ENUM):
            raise UnsafeTraceError(f"{where} holds neither numbers nor rows of numbers.")
        dtype, shape = np.dtype(kind.dtype), tuple(dataset.shape or ())
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes:
            return Place(0, 0, dtype, shape)
        offset, stored = dataset.get_offset(), dataset.get_storage_size()
        if offset is None or stored != nbytes or offset + nbytes > self.size:
            raise UnsafeTraceError(f"{where} promises {nbytes} bytes but stores {stored} at {offset}, of a file of {self.size}.")
        return Place(int(offset), nbytes, dtype, shape)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
