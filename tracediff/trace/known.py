"""Fingerprints of parameters that were taken before, by their contents.

A forced capture sees a model's parameters twice and more, and a person captures the same checkpoint again and again. So each fingerprint is
kept, in this process and in files of the user's cache. What decides is the digest of the values, which is always taken anew: a
checkpoint that was changed in place, or moved, is what it holds now.
"""

from __future__ import annotations

import math
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import xxhash

from tracediff.dtype import DType
from tracediff.trace import schema
from tracediff.trace.fingerprint import LONGEST_AXIS, Sketch

LIMIT = 16 * 2**20
"""Bytes of sketches that are kept in memory, the latest."""
LEAST = 64 * 2**10
"""Bytes of a parameter whose fingerprint is kept in a file: a smaller one is fingerprinted as soon as its file is found."""
LARGEST_FOLDER = 256 * 2**20
"""Bytes of files that are kept, those that were used last."""
FOLDER_VARIABLE = "TRACEDIFF_CACHE"
"""The environment variable that names the folder; where it is empty, no file is read or written."""

_MAGIC = b"tracediff fingerprint 1\n"  # another number once statistics or sketches are worked out otherwise
_CHECK_BYTES = 16

Key = tuple[bytes, int, tuple[int, ...]]
"""Digest, code of the dtype, shape."""


def folder() -> Path | None:
    """Where fingerprints are kept between processes; None where they are not."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    found = Path(base).expanduser()
    return found / "tracediff" / "fingerprints" if found.is_absolute() else None


class KnownParameters:
    """A sketch and packed statistics for each content, in memory as long as there is room, and those of large parameters in files."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._bytes = limit, 0
        self._kept: OrderedDict[Key, tuple[Sketch, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: bytes, kind: DType, shape: tuple[int, ...]) -> tuple[Sketch, bytes] | None:
        """The sketch and the packed statistics of a content; None where they are not known any more."""
        key = digest, kind.code, shape
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _read(key) if _is_large(kind, shape) else None
        if found is not None:
            self._keep(key, *found)
        return found

    def keep(self, digest: bytes, kind: DType, shape: tuple[int, ...], sketch: Sketch, stats: bytes) -> None:
        """Keeps them; the oldest make room."""
        key = digest, kind.code, shape
        if self._keep(key, sketch, stats) and _is_large(kind, shape):
            _write(key, sketch, stats)

    def _keep(self, key: Key, sketch: Sketch, stats: bytes) -> bool:
        """Keeps them in memory; whether they were not known."""
        with self._lock:
            if key in self._kept:
                return False
            self._kept[key] = sketch, stats
            self._bytes += _nbytes(sketch)
            while self._bytes > self._limit:
                self._bytes -= _nbytes(self._kept.popitem(last=False)[1][0])
            return True


def _nbytes(sketch: Sketch) -> int:
    return sketch.quantiles.nbytes + sum(axis.nbytes for axis in sketch.axes)


def _is_large(kind: DType, shape: tuple[int, ...]) -> bool:
    return math.prod(shape) * kind.itemsize >= LEAST


def _file(key: Key) -> Path | None:
    """The file of a content."""
    where = folder()
    if where is None:
        return None
    digest, code, shape = key
    return where / xxhash.xxh3_128_hexdigest(digest + repr((code, shape)).encode())


def _read(key: Key) -> tuple[Sketch, bytes] | None:
    """What the file of a content holds; None where there is none, or it is not whole."""
    file = _file(key)
    try:
        blob = b"" if file is None else file.read_bytes()
        if file is not None:
            os.utime(file)
    except OSError:
        return None
    digest, _, shape = key
    lengths = [length if length <= LONGEST_AXIS else 0 for length in shape]
    head, body, check = blob[: len(_MAGIC)], blob[len(_MAGIC) : -_CHECK_BYTES], blob[-_CHECK_BYTES:]
    numbers = 8 * (schema.QUANTILES + sum(lengths))
    if head != _MAGIC or len(body) != _STATS_BYTES + numbers or xxhash.xxh3_128_digest(digest + head + body) != check:
        return None
    stats, values = body[:_STATS_BYTES], np.frombuffer(body, "<f8", offset=_STATS_BYTES).astype(np.float64)
    ends = np.cumsum([schema.QUANTILES, *lengths])
    quantiles, *axes = np.split(values, ends[:-1])
    return Sketch(quantiles, tuple(axes)), stats


_STATS_BYTES = 8 * len(schema.STATS_NAMES)


def _write(key: Key, sketch: Sketch, stats: bytes) -> None:
    """Writes the file of a content, at once or not at all; where no file can be written, nothing is kept."""
    file = _file(key)
    if file is None:
        return
    body = _MAGIC + stats + np.concatenate([sketch.quantiles, *sketch.axes]).astype("<f8").tobytes()
    beside = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
    with suppress(OSError):
        if not file.parent.is_dir():
            file.parent.mkdir(parents=True)
        try:
            beside.write_bytes(body + xxhash.xxh3_128_digest(key[0] + body))
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
        _room.make(file.parent, len(body))


class _Room:
    """Keeps the folder within its size: it is looked at after each so many bytes that this process writes."""

    def __init__(self) -> None:
        self._since = LARGEST_FOLDER

    def make(self, where: Path, written: int) -> None:
        """Removes the files that were not used for longest, where there are too many bytes of them."""
        self._since += written
        if self._since < LARGEST_FOLDER // 8:
            return
        self._since = 0
        files = []
        for entry in os.scandir(where):
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= LARGEST_FOLDER:
                break
            with suppress(OSError):
                os.unlink(path)
            total -= size


_room = _Room()
KNOWN = KnownParameters()
"""Those of this process."""
