"""Writes what one boundary holds as records of a trace: each leaf as it is at that moment, equal content once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tracediff.observe import describe
from tracediff.observe.observer import Boundary, Run, raised_note
from tracediff.observe.producers import Producers
from tracediff.observe.provenance import digest_of, digest_of_bytes
from tracediff.observe.types import Tensor
from tracediff.site import RETURNED
from tracediff.trace import schema
from tracediff.trace.digest_table import DigestTable
from tracediff.trace.writer import TraceWriter

PLACED = "placed"
"""The item of a record's note that says along which axis of the mesh the process held which part: ``{"tp": "shard(0)"}``."""
STOPPED = "#raised"
"""The site of an exception that ended the run outside of all calls."""


class RecordWriter:
    """Appends records to ``writer``; ``count`` were written so far.

    Each tensor is copied. Content seen before is not copied again, which a digest decides. ``store``: whether values are kept.
    """

    def __init__(self, writer: TraceWriter, run: Run, *, store: bool) -> None:
        self.count = 0
        self.producers = Producers()
        self._writer, self._run, self._store = writer, run, store
        self._rows = DigestTable()
        self._own: dict[int, int] = {}  # of a row in whose tensor's place the run went on with another: the row of the run's own tensor
        self._stops = 0
        self.axes: dict[str, tuple[int, int]] = {}  # of the meshes over which tensors lay: each axis' length, and where this process is
        self.parts = 0

    def boundary(self, boundary: Boundary, parent: int, note: dict[str, Any], *, is_made: bool, flags: int = 0) -> None:
        """Records every leaf of a boundary; the first carries the ``note``. ``parent`` is the row of the enclosing call, -1 for none.

        ``is_made``: whether the boundary made its leaves, as outputs and draws are made, and inputs are not.
        """
        for end, tensor in boundary.leaves:
            if parts := self.parts_of(tensor):
                note = {**note, PLACED: parts}
                self.parts += 1
            moment = _moment(boundary, end, parent, note)
            replacement = boundary.replaced.get(end)
            moment["flags"] = flags
            moment["flags"] |= schema.REPLACED if replacement is not None and end not in boundary.in_part else 0
            moment["flags"] |= schema.MUTATED if end in boundary.mutated else 0
            self._leaf(boundary, tensor, replacement, moment, is_made)
            note = {}

    def parts_of(self, tensor: Tensor) -> dict[str, str]:
        """Along which axes of its mesh this process holds a part of a tensor, and which; nothing where it holds all."""
        placed = None if isinstance(tensor, str) else self._run.adapter.placed(tensor)
        self.axes.update({} if placed is None else placed.axes)
        return {} if placed is None else placed.parts

    def raised(self, boundary: Boundary, parent: int, note: dict[str, Any]) -> None:
        """Records what a call raised in the place of its output; an observer may have replaced that output, so that the run goes on."""
        row = self.count
        flags = schema.RAISED | (schema.REPLACED if boundary.replaced else 0)
        self._text(str(note.get("error", "")), flags=flags, **_moment(boundary, "output", parent, note))
        for replacement in boundary.replaced.values():
            if self._run.adapter.is_tensor(replacement):
                self._remember_replacement(replacement, row)

    def stopped(self, error: Exception, stage: str) -> None:
        """Records what ended the run, or a stage of it, outside of all calls."""
        note = raised_note(error)
        number = self._stops
        self._stops += 1
        self._text(
            note["error"],
            site=STOPPED,
            call=f"{STOPPED}[{number}]",
            ordinal=number,
            end="value",
            stage=stage,
            flags=schema.RAISED,
            note=_packed(note),
        )

    def _leaf(self, boundary: Boundary, tensor: Tensor, replacement: Tensor | None, moment: dict[str, Any], is_made: bool) -> None:
        if isinstance(tensor, str):
            self._text(tensor, **moment)
        elif replacement is not None and boundary.moment == "draw":  # the supplied values go into the tensor that was drawn
            self._array(replacement, tensor, moment, is_made)
        else:
            row = self.count
            producer = self._array(tensor, tensor, moment, is_made)
            if replacement is not None:
                self._own[row] = self._own.get(producer, row)
                self._remember_replacement(replacement, row)

    def _text(self, text: str, **moment: Any) -> None:
        self._writer.add_text(text=text, **moment)
        self.count += 1

    def _array(self, tensor: Tensor, live: Tensor, moment: dict[str, Any], is_made: bool) -> int:
        """Records what ``tensor`` holds now, and returns the row that made it; ``live`` goes on through the run with that content.

        Of what the run returned, a tensor that it was handed in the place of its own is recorded as its own.
        """
        view = self._run.adapter.view(tensor)
        array = view if view.flags.c_contiguous else np.ascontiguousarray(view).reshape(view.shape)
        digest, row = digest_of(array), self.count
        producer = self.producers.of(live, digest, array, is_made=is_made)
        content = digest_of_bytes(digest + repr((array.dtype.num, array.shape)).encode())
        earlier = self._rows.get(content)
        if moment["site"] == RETURNED and producer[0] in self._own:
            earlier = self._own[producer[0]]
            producer = earlier, producer[1]
        moment["producer"], moment["producer_how"] = producer
        if earlier is not None:
            self._writer.add_again(earlier, **moment)
        else:
            self._rows[content] = row
            self._writer.add(values=array.copy() if array is view else array, store=self._store, code=digest, **moment)
        self.producers.recorded(live, digest, row, producer, is_made=is_made)
        self.count += 1
        return producer[0]

    def _remember_replacement(self, replacement: Tensor, row: int) -> None:
        digest = digest_of(self._run.adapter.view(replacement))
        self.producers.remember(replacement, digest, (row, schema.PRODUCER_IDENTITY), is_made=True)


def _moment(boundary: Boundary, end: str, parent: int, note: dict[str, Any]) -> dict[str, Any]:
    """What a record says of its place and moment."""
    return {
        "site": boundary.site,
        "call": boundary.call,
        "ordinal": boundary.ordinal,
        "end": end,
        "stage": boundary.stage,
        "scope": boundary.scope,
        "parent": parent,
        "file": boundary.file,
        "line": boundary.line,
        "note": _packed(describe.plain(note)) if note else "",
    }


def _packed(note: Any) -> str:
    return json.dumps(note, separators=(",", ":"))
