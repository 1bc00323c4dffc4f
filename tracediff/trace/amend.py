"""Adds to a closed trace what is only known after its run: whether it repeats, its noise floor.

The values stay where they are; only tables are written anew. While that happens a journal of the whole trace lies beside it, so that
a kill in between loses nothing: the reader then finds the trace as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import TraceFileError
from tracediff.interrupts import whole
from tracediff.trace import journal, schema
from tracediff.trace.container import Output
from tracediff.trace.journal import Journal, journal_of
from tracediff.trace.meta import Meta, checked_meta, dump_meta
from tracediff.trace.reader import Trace, open_trace


@whole
def amend(path: str | os.PathLike[str], *, identity: bytes | None = None, meta: Mapping[str, Any] | None = None, **tables: Array) -> None:
    """Merges items into the meta of a closed trace, and adds or replaces its optional tables (`schema.OPTIONAL_TABLES`).

    With ``identity`` only the trace that has it is amended, and not what was put in its place meanwhile: TraceFileError.
    Raises TraceFileError where the trace is not closed (recover it first) or cannot be written (it is then as it was, if need be by
    recovering it); TracediffError for a meta item that JSON cannot hold.
    """
    path = Path(path)
    new = {name: np.ascontiguousarray(table, schema.OPTIONAL_TABLES[name]) for name, table in tables.items()}
    with open_trace(path) as trace:
        if trace.was_killed:
            raise TraceFileError(f"{str(path)!r} was not closed, so nothing can be added to it; first run: tracediff recover {path}")
        if identity not in (None, trace.identity[0]):
            raise TraceFileError(f"{str(path)!r} is no longer the file of this run: it was replaced meanwhile. Nothing was added to it.")
        new[schema.META] = np.frombuffer(dump_meta({**trace.meta, **checked_meta(meta or {})}), np.uint8)
        before = trace.identity, trace.meta, b"".join(_frames(trace)), len(trace.index)
        segments = trace.segments
    try:
        output = Output(path, amend=True)
        try:
            log = _journal(path, *before)
        except BaseException:
            output.close()
            raise
    except OSError as error:
        raise TraceFileError(f"Nothing could be added to {str(path)!r}, which is as it was: {error}.") from error
    try:
        _replace(output, new)
    except (OSError, RuntimeError) as error:
        log.close(remove=False)
        raise TraceFileError(f"{str(path)!r} could not be added to ({error}). To have it as it was: tracediff recover {path}") from error
    segments.stay()
    log.close(remove=True)


def _replace(output: Output, tables: Mapping[str, Array]) -> None:
    try:
        for name, table in tables.items():
            output.add_table(name, table)
        output.seal()
    finally:
        output.close()


def _frames(trace: Trace) -> Iterator[bytes]:
    """The whole trace but its values, as a journal says it."""
    tables = trace.tables
    yield from (journal.string_frame(number, text) for number, text in enumerate(tables.strings))
    yield from (journal.segment_frame(trace.segments.place(number)) for number in range(trace.segments.count))
    yield from (journal.frame(journal.ROW, row.tobytes()) for row in tables.index)
    for row in tables.params:
        pool = tables.sketches[int(row["sketch_start"]) :][: int(row["sketch_length"])]
        yield journal.frame(journal.PARAM, row.tobytes() + pool.tobytes())
    yield from (journal.table_frame(name, table) for name, table in tables.optional.items())


def _journal(path: Path, identity: tuple[bytes, int], meta: Meta, frames: bytes, rows: int) -> Journal:
    """A journal beside the trace, in its place only once it is whole."""
    log = Journal(journal_of(path.with_name(f"{path.name}.amending")), *identity, meta, rows=rows)
    try:
        log.append(frames)
        log.rename(journal_of(path))
    except BaseException:
        log.close(remove=True)
        raise
    return log
