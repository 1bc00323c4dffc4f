"""The recorder: an observer that appends every wanted boundary that it is shown to a trace."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from tracediff.observe import describe
from tracediff.observe.observer import Boundary, Observer, Run
from tracediff.observe.options import DEFAULTS, CaptureOptions
from tracediff.observe.record_writer import RecordWriter
from tracediff.observe.selection import Selection
from tracediff.site import stage_chain
from tracediff.trace import schema
from tracediff.trace.writer import TraceWriter

SERVES = "__tracediff_serves__"
"""The attribute of a module that computes nothing, but serves what another trace holds."""


@dataclass(slots=True)
class _OpenCall:
    """A call that was entered and not left: its first row, else that of the nearest enclosing call with one; the note of its next row."""

    row: int
    note: dict[str, Any] = field(default_factory=dict)


class Recorder(Observer):
    """Records into ``writer`` what a run shows: parameters and attributes before it, then every boundary that the options select."""

    def __init__(self, writer: TraceWriter, options: CaptureOptions = DEFAULTS) -> None:
        self._writer, self._options = writer, options
        self._selection = Selection(options)
        self._open: dict[int, _OpenCall] = {}
        self._errors: list[BaseException | None] = []
        self._went_on: set[int] = set()
        self._parameters: dict[str, dict[str, str]] = {}  # of which this process holds a part
        self._served: set[str] = set()
        self._stage = ""
        self._started = 0.0

    @property
    def records(self) -> int:
        """How many records were written."""
        return self._recorded.count

    def start(self, run: Run) -> None:
        self._run = run
        self._recorded = RecordWriter(self._writer, run, store=self._options.save == "full")
        self._served = {node.path for node in run.modules if node.is_model and getattr(node.module, SERVES, False) is True}
        for path in sorted(self._served):
            run.miss(f"{path or 'the root'}: served from a trace, not computed and not compared")
        self._writer.set_meta(**describe.meta(run))
        for parameter in describe.parameters(run):
            if parts := self._recorded.parts_of(parameter.tensor):
                self._parameters[parameter.name] = parts
            self._writer.add_param(
                parameter.name,
                run.adapter.view(parameter.tensor),
                path=parameter.path,
                kind=parameter.kind,
                aliases=parameter.aliases,
                store=self._options.save_params or bool(parts),
            )
        self._writer.flush()
        self._started = time.perf_counter()

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "enter":
            self._enter(boundary)
            return
        self._stage = boundary.stage
        left = self._open.pop(boundary.frame_id, None) if boundary.moment in ("leave", "raise") else None
        if boundary.moment == "leave" and boundary.frame_id in self._went_on:
            self._went_on.remove(boundary.frame_id)  # the record of what the call raised stands for its output
        elif self._selection.wants(boundary, self._stages):
            note = {**(left.note if left else {}), **boundary.note}
            if boundary.moment == "raise":
                self._raised(boundary, note)
            else:
                flags = schema.SERVED if boundary.moment == "leave" and boundary.site in self._served else 0
                is_made = boundary.moment != "return"
                self._recorded.boundary(boundary, self._parent(boundary), note, is_made=is_made, flags=flags)
        if boundary.parent_id == 0 and boundary.moment == "leave":
            self._writer.flush()

    def finish(self, run: Run) -> None:
        seconds = time.perf_counter() - self._started
        self._recorded.producers.clear()
        for line in self._selection.unmatched():
            run.miss(line)
        if not self.records and self._selection.left_out:
            run.warnings.append(self._selection.chose_nothing())
        for error, stage in [*run.raised, (run.error, self._stage)]:
            if error is not None and all(error is not known for known in self._errors):
                self._errors.append(error)
                self._recorded.stopped(error, stage)
        if (place := self._place()) is not None:
            self._writer.set_meta(mesh=place)
        self._writer.set_meta(returned=asdict(run.returned), left_out=self._selection.left_out, bypassed=run.bypassed)
        self._writer.set_meta(not_seen=run.not_seen, warnings=run.warnings, stages=run.stages, wall_seconds=seconds)

    def _place(self) -> dict[str, Any] | None:
        """What meta says of the place of this process among those that run together; None where it runs alone."""
        rank, ranks = self._run.adapter.rank()
        axes = {name: list(where) for name, where in self._recorded.axes.items()}
        if ranks == 1 and not axes:
            return None
        parts = self._recorded.parts + len(self._parameters)
        return {"rank": rank, "ranks": ranks, "axes": axes, "parameters": self._parameters, "parts": parts}

    def _stages(self, stage: str) -> list[str]:
        """A stage and those around it; last "", which stands for what is outside of all stages."""
        return [*stage_chain(stage, self._run.stages), ""]

    def _parent(self, boundary: Boundary) -> int:
        """The row of the enclosing call; -1 where there is none."""
        around = self._open.get(boundary.parent_id)
        return around.row if around else -1

    def _enter(self, boundary: Boundary) -> None:
        first, parent, note = self.records, self._parent(boundary), dict(boundary.note)
        if self._selection.wants(boundary, self._stages):
            self._recorded.boundary(boundary, parent, note, is_made=False)
        has_records = self.records > first
        self._open[boundary.frame_id] = _OpenCall(first if has_records else parent, {} if has_records else note)

    def _raised(self, boundary: Boundary, note: dict[str, Any]) -> None:
        """Records an exception once, at the innermost call that it left; and again at a call that went on with replaced outputs."""
        went_on = bool(boundary.replaced)
        if self._errors and boundary.error is self._errors[-1] and not went_on:
            return
        self._errors.append(boundary.error)
        self._recorded.raised(boundary, self._parent(boundary), note)
        if went_on:
            self._went_on.add(boundary.frame_id)
