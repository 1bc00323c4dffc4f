"""Copies of tensors' values that a run may change: small ones in memory, others in a temporary file, so that no model is held twice."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np

from tracediff.dtype import Array
from tracediff.observe.provenance import digest_of

SMALL = 64 * 1024
"""Bytes up to which a copy stays in memory."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The values of an array as they were: in ``array``, or in ``file`` from ``start`` on."""

    dtype: np.dtype
    shape: tuple[int, ...]
    digest: bytes
    array: Array | None = None
    file: IO[bytes] | None = None
    start: int = 0

    def is_of(self, values: Array) -> bool:
        """Whether an array holds the same bytes."""
        return (self.dtype, self.shape) == (values.dtype, values.shape) and digest_of(values) == self.digest

    def read(self) -> Array:
        """The values; not to be written to."""
        if self.array is not None or self.file is None:
            assert self.array is not None
            return self.array
        made = np.empty(self.shape, self.dtype)
        into = made.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(into):
            count = os.preadv(self.file.fileno(), [into[done:]], self.start + done)
            if not count:
                raise OSError("The temporary file with copies of the model's tensors ends early.")
            done += count
        return made


class Copies:
    """Makes copies. The temporary file is gone with the last of them."""

    def __init__(self) -> None:
        self._end = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(prefix="tracediff-", buffering=0)

    def of(self, values: Array) -> Copy:
        """A copy of an array's values; in memory where it is small, or no file can be written."""
        digest = digest_of(values)
        if values.nbytes > SMALL:
            try:
                return Copy(values.dtype, values.shape, digest, file=self._file, start=self._written(values))
            except OSError:
                pass
        return Copy(values.dtype, values.shape, digest, np.array(values, order="C", copy=True))

    def _written(self, values: Array) -> int:
        """Where in the file an array's values begin, which are written to its end."""
        start, rest = self._end, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        while rest:
            count = os.pwrite(self._file.fileno(), rest, self._end)
            self._end += count
            rest = rest[count:]
        return start
