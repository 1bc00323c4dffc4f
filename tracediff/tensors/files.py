"""Array files: the named arrays of .npz, .safetensors and .npy files, each read only when it is asked for.

Everything is checked when a file is opened: the names occur once, each array has a shape and a dtype, and its bytes lie in the file.
Nothing is unpickled. The file stays open for as long as one of its arrays is kept, so a file that replaces it is never read by half.
"""

from __future__ import annotations

import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import ml_dtypes
import numpy as np

from tracediff import dtype as dtypes
from tracediff.dtype import Array, DType
from tracediff.errors import TracediffError
from tracediff.json_text import parse_json

Shape = tuple[int, ...]

MOST_HEADER = 100_000_000
"""Bytes that the header of a .safetensors file may take: the format's own limit."""
_DAMAGED = (
    ValueError, TypeError, EOFError, OSError, RuntimeError, MemoryError, OverflowError, SyntaxError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for a damaged, encrypted or oddly compressed file."""


class ArrayFileError(TracediffError, OSError):
    """A file of arrays cannot be read. ``reason`` says why, without the file's name."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class StoredArray:
    """One array of a file. ``dtype`` is None where no dtype of ours holds its values; ``offset`` is where a .safetensors file has them.

    ``raw`` reads the array as the file holds it, little-endian: bfloat16 and float8 as bits or as NumPy's void.
    """

    name: str
    shape: Shape
    dtype: DType | None
    raw: Callable[[], Array]
    offset: int = 0

    def read(self) -> Array:
        """The values (bfloat16 and float8 by ml_dtypes). Raises ArrayFileError where they are damaged or of no dtype of ours."""
        if self.dtype is None:
            raise ArrayFileError(f"The values of {self.name!r} have a dtype that is not known.", "a dtype is not known")
        return dtypes.view(self.raw(), self.dtype)


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """The arrays of one file in the file's order, the texts of a .safetensors' metadata, and an .npz's members that are no arrays."""

    path: Path
    arrays: tuple[StoredArray, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()


def open_array_file(path: Path) -> ArrayFile:
    """The arrays of an .npz or .safetensors file, told apart by suffix. Raises ArrayFileError where it is neither, or damaged."""
    if path.suffix == ".npz":
        return open_npz(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    raise ArrayFileError(f"{os.fspath(path)!r} is no .npz or .safetensors file.", "its suffix is neither .npz nor .safetensors")


# -- .npz and .npy -----------------------------------------------------------------------------------------------------


def open_npz(path: Path) -> ArrayFile:
    """The arrays of an .npz file, in the order of its members. Raises ArrayFileError where it is none, or one would need unpickling."""
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise _no_file(path, ".npz", error) from error
    arrays, foreign = [], []
    for member in archive.infolist():
        if member.filename.endswith("/"):
            continue
        name = member.filename.removesuffix(".npy")
        open_member = partial(archive.open, member)
        if name == member.filename and not _is_npy(open_member, name, path):
            foreign.append(name)
        else:
            arrays.append(_npy_array(open_member, name, path, member.file_size))
    _refuse_twice((array.name for array in arrays), path, ".npz")
    return ArrayFile(path, tuple(arrays), foreign=tuple(foreign))


def open_npy(path: Path, name: str, folder: Path) -> StoredArray:
    """The array of an .npy file, named as its ``folder`` names it. Raises ArrayFileError where it is none, or would need unpickling."""
    return _npy_array(lambda: path.open("rb"), name, folder, path.stat().st_size)


def _is_npy(open_stream: Callable[[], IO[bytes]], name: str, where: Path) -> bool:
    """Whether a member without the suffix holds an array all the same."""
    magic: bytes = np.lib.format.MAGIC_PREFIX
    try:
        with open_stream() as stream:
            return stream.read(len(magic)) == magic
    except _DAMAGED as error:
        raise _unreadable(name, where, str(error)) from error


def _npy_array(open_stream: Callable[[], IO[bytes]], name: str, where: Path, nbytes: int) -> StoredArray:
    """The array of one .npy stream of ``nbytes`` bytes, its header read."""
    try:
        with open_stream() as opened:
            stream = cast(BinaryIO, opened)
            version = np.lib.format.read_magic(stream)
            read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, numpy_dtype = read_header(stream)
            begin = stream.tell()
    except _DAMAGED as error:
        raise _unreadable(name, where, str(error)) from error
    if numpy_dtype.hasobject:
        raise _refused(
            name, where, "is an object array: pickled Python objects, which are not read since they can run code; save plain arrays"
        )
    if min((0, *shape)) < 0 or begin + math.prod(shape) * numpy_dtype.itemsize > nbytes:
        raise _unreadable(name, where, f"its shape {list(shape)} of {numpy_dtype} does not fit into its {nbytes:,} bytes")
    return StoredArray(name, shape, _npy_dtype(numpy_dtype), partial(_read_npy, open_stream, name, where))


def _npy_dtype(dtype: np.dtype[Any]) -> DType | None:
    if dtype == np.dtype("V2"):  # how NumPy writes the bfloat16 of ml_dtypes
        dtype = np.dtype(ml_dtypes.bfloat16)
    try:
        return dtypes.of(np.empty(0, dtype))
    except TracediffError:
        return None


def _read_npy(open_stream: Callable[[], IO[bytes]], name: str, where: Path) -> Array:
    try:
        with open_stream() as stream:
            values: Array = np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGED as error:
        raise _unreadable(name, where, str(error)) from error
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


# -- .safetensors ------------------------------------------------------------------------------------------------------


def open_safetensors(path: Path) -> ArrayFile:
    """The arrays of a .safetensors file, in the order of its header, mapped from disk. Raises ArrayFileError where it is none."""
    try:
        header, begin = _safetensors_header(path)
    except ArrayFileError:
        raise
    except _DAMAGED as error:
        raise _no_file(path, ".safetensors", error) from error
    metadata = header.pop("__metadata__", {})
    mapped: Array = np.memmap(path, np.uint8, "r")
    arrays = tuple(_safetensors_array(mapped[begin:], name, entry, path) for name, entry in header.items())
    _check_as_library(path)
    return ArrayFile(path, arrays, metadata if isinstance(metadata, dict) else {})


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a .safetensors file, and where its values begin. Raises ValueError where the file has no such header."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice((name for name, _ in pairs), path, ".safetensors")
        return dict(pairs)

    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = path.stat().st_size
        if size < 8:
            raise ValueError(f"it is only {size} bytes long")
        if length > min(MOST_HEADER, size - 8):
            raise ValueError(f"its header would be {length} bytes long")
        header = parse_json(stream.read(length), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, 8 + length


def _safetensors_array(values: Array, name: str, entry: Any, path: Path) -> StoredArray:
    """One array, its dtype, shape and place checked against ``values``, the bytes that follow the header: (bytes,) uint8."""
    try:
        dtype = dtypes.BY_SAFETENSORS.get(entry["dtype"])
        shape = tuple(int(length) for length in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, *_DAMAGED) as error:
        raise _no_file(path, ".safetensors", f"{name!r} is not described as the format asks ({error})") from error
    nbytes = stop - start if dtype is None else math.prod(shape) * dtype.itemsize
    if min((0, *shape)) < 0 or not 0 <= start <= stop <= values.size or stop - start != nbytes:
        why = f"{name!r} does not fit into the file: bytes {start} to {stop}, shape {list(shape)}"
        raise _no_file(path, ".safetensors", why)
    stored = values[start:stop]
    return StoredArray(name, shape, dtype, lambda: stored if dtype is None else stored.view(dtype.stored).reshape(shape), start)


def _check_as_library(path: Path) -> None:
    """Leaves to the library what is left of the format's rules: that the arrays fill the file without overlaps or gaps."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise _no_file(path, ".safetensors", error) from error


# -- what is refused ---------------------------------------------------------------------------------------------------


def _refuse_twice(names: Iterable[str], path: Path, form: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise _no_file(path, form, f"it holds {twice!r} twice, where every array needs a name of its own")


def _no_file(path: Path, form: str, reason: object) -> ArrayFileError:
    return ArrayFileError(f"{os.fspath(path)!r} is no {form} file: {reason}.", str(reason))


def _unreadable(name: str, where: Path, why: str) -> ArrayFileError:
    return _refused(name, where, f"cannot be read: {why}")


def _refused(name: str, where: Path, what: str) -> ArrayFileError:
    return ArrayFileError(f"{name!r} in {os.fspath(where)!r} {what}.", f"{name!r} in it {what}")
