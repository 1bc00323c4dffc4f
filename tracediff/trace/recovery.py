"""Makes the trace of a killed writer an ordinary closed one, from its journal."""

from __future__ import annotations

import os
from pathlib import Path

from tracediff.errors import TraceFileError
from tracediff.outputs import check_output
from tracediff.trace.container import Output, Place, new_identity, read_at, write_at
from tracediff.trace.journal import journal_of
from tracediff.trace.reader import Trace, open_trace
from tracediff.trace.writer import write_tables

_CHUNK = 16 * 1024 * 1024


def recover(path: str | os.PathLike[str], to: str | os.PathLike[str] | None = None) -> Path:
    """Makes a trace whose writer was killed an ordinary closed one, and returns where that is.

    ``to`` names the new file; without it the trace is replaced and its journal removed. A trace that was closed is left as it is
    (copied, where ``to`` is given). Needs free disk of the trace's size for a while. Raises TraceFileError where nothing can be
    recovered or the disk is full, TraceExistsError where ``to`` exists; the old trace and its journal are then untouched.
    """
    path = Path(path)
    target = path if to is None else Path(to)
    if to is not None:
        check_output(target)
    part = target.with_name(f"{target.name}.recovering")
    part.unlink(missing_ok=True)
    with open_trace(path) as trace:
        if to is None and not trace.was_killed:
            return path
        try:
            _copy(trace, part)
        except (OSError, RuntimeError) as error:  # RuntimeError: HDF5 could not write its metadata
            part.unlink(missing_ok=True)
            raise TraceFileError(f"{str(path)!r} could not be recovered to {str(target)!r}: {error}") from error
    os.replace(part, target)
    if to is None:
        journal_of(path).unlink(missing_ok=True)
    return target


def _copy(trace: Trace, part: Path) -> None:
    output = Output(part)
    try:
        output.identify(new_identity())
        for number in range(trace.segments.count):
            place = trace.segments.place(number)
            _copy_segment(trace.fd, place, output.fd, output.add_segment(number, place.dtype, place.shape))
        write_tables(output, trace.tables)
    finally:
        output.close()


def _copy_segment(source: int, place: Place, target: int, into: Place) -> None:
    # A shared segment that was not filled may lie partly behind the end of the file.
    nbytes = max(0, min(place.nbytes, os.fstat(source).st_size - place.offset))
    for done in range(0, nbytes, _CHUNK):
        write_at(target, read_at(source, place.offset + done, min(_CHUNK, nbytes - done)), into.offset + done)
