"""The recorder: an observer that appends every boundary it is shown to a trace."""

from __future__ import annotations

import fnmatch
import json
import math
import re
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from tracediff.dtype import Array
from tracediff.errors import CaptureError
from tracediff.observe import describe
from tracediff.observe.observer import Boundary, Observer, Run, Tensor, raised_note
from tracediff.observe.provenance import digest_of
from tracediff.site import module_of, stage_chain
from tracediff.trace import schema
from tracediff.trace.writer import TraceWriter

STOPPED = "#raised"
"""The site of an exception that ended the run outside of all calls."""

SERVES = "__tracediff_serves__"
"""The attribute of a module that computes nothing, but serves what another trace holds."""

LEAST_TRACED = 32
"""Bytes below which equal content is no evidence that one record produced another."""


class Selection:
    """Which boundaries are wanted: globs on sites or module paths, on stages, and calls by number or glob.

    >>> selection = Selection(include=["encoder*"], calls=["0-2", "5"])
    >>> selection.wants(Boundary("encoder", "encoder[3]", 3, "enter", []), lambda stage: [stage])
    False
    """

    def __init__(
        self,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        calls: Iterable[str] = (),
        stages: Iterable[str] = (),
    ) -> None:
        self._include = _Patterns("include", include, "site")
        self._exclude = _Patterns("exclude", exclude, "site")
        self._stages = _Patterns("stages", stages, "stage")
        self._calls = [_call_test(text) for text in calls]
        self._sites: dict[str, bool] = {}

    def wants(self, boundary: Boundary, stages: Callable[[str], Iterable[str]]) -> bool:
        """Whether a boundary is wanted; ``stages`` gives a stage and those around it."""
        if not self._wants_site(boundary.site):
            return False
        if self._stages and not self._stages.match(*stages(boundary.stage)):
            return False
        return not self._calls or any(test(boundary) for test in self._calls)

    def unmatched(self) -> list[str]:
        """The globs that matched nothing so far."""
        return [what for patterns in (self._include, self._exclude, self._stages) for what in patterns.unmatched()]

    def _wants_site(self, site: str) -> bool:
        """Whether the site, or the module it belongs to, is included and not excluded."""
        if site not in self._sites:
            names = (site, module_of(site))
            is_excluded = self._exclude.match(*names)
            self._sites[site] = (not self._include or self._include.match(*names)) and not is_excluded
        return self._sites[site]


class _Patterns:
    """The globs of one option, and which of them ever matched."""

    def __init__(self, option: str, globs: Iterable[str], kind: str) -> None:
        if isinstance(globs, str):
            raise CaptureError(f"{option} is a list of patterns, not one text; write {option}=[{globs!r}].")
        self._option, self._kind = option, kind
        self._left = {glob: re.compile(fnmatch.translate(glob)) for glob in globs}
        self._used: list[re.Pattern[str]] = []

    def __bool__(self) -> bool:
        return bool(self._left or self._used)

    def match(self, *names: str) -> bool:
        """Whether a glob matches one of the names."""
        found = [glob for glob, pattern in self._left.items() if any(pattern.match(name) for name in names)]
        self._used += [self._left.pop(glob) for glob in found]
        return bool(found) or any(pattern.match(name) for pattern in self._used for name in names)

    def unmatched(self) -> list[str]:
        return [f"{self._option} {glob!r}: matched no {self._kind}" for glob in self._left]


def _call_test(text: str) -> Callable[[Boundary], bool]:
    """A test on a call: ``3`` and ``2-5`` and ``7-`` count the site's calls; anything else is a glob on the printed call."""
    numbers = re.fullmatch(r"(\d+)(-?)(\d*)", text.strip())
    if numbers is None:
        pattern = re.compile(fnmatch.translate(text))
        return lambda boundary: pattern.match(boundary.call) is not None
    first = int(numbers[1])
    last = int(numbers[3]) if numbers[3] else math.inf if numbers[2] else first
    if last < first:
        raise CaptureError(f"The calls {text!r} end before they begin; write for instance '2-5'.")
    return lambda boundary: first <= boundary.ordinal <= last


@dataclass(slots=True)
class _Seen:
    """A live tensor, its content when it was last met, and the record that it comes from, with how that is known.

    That is the record that made it; or, if none did, the first one into which it went.
    """

    tensor: Callable[[], Any]
    code: bytes
    row: int
    how: int
    is_made: bool


@dataclass(slots=True)
class _Open:
    """A call that was entered: its first row (or that of the nearest enclosing call with one), and what its next row notes."""

    row: int
    note: dict[str, Any] = field(default_factory=dict)


class Recorder(Observer):
    """Records into ``writer`` what a run shows: parameters and attributes before it, then every selected boundary.

    Each tensor is copied as it is at that moment. Content seen before is not copied again, which a digest decides. The record that
    produced an input is found by the tensor's identity, else by equal content. ``save="stats"`` keeps no values;
    ``save_params`` keeps those of parameters too.
    """

    def __init__(
        self,
        writer: TraceWriter,
        *,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        calls: Iterable[str] = (),
        stages: Iterable[str] = (),
        save: Literal["full", "stats"] = "full",
        save_params: bool = False,
    ) -> None:
        self.writer = writer
        self.records = 0
        self._selection = Selection(include=include, exclude=exclude, calls=calls, stages=stages)
        self._store = save == "full"
        self._save_params = save_params
        self._rows: dict[tuple[bytes, int, tuple[int, ...]], int] = {}
        self._made: dict[bytes, int] = {}
        self._live: dict[int, _Seen] = {}
        self._open: dict[int, _Open] = {}
        self._errors: list[BaseException | None] = []
        self._stops = 0
        self._bridged: set[int] = set()
        self._served: set[str] = set()
        self._stage = ""
        self._started = 0.0

    def start(self, run: Run) -> None:
        self._run = run
        self._served = {node.path for node in run.modules if node.is_model and getattr(node.module, SERVES, False) is True}
        for path in sorted(self._served):
            run.miss(f"{path or 'the root'}: served from a trace, not computed and not compared")
        self.writer.set_meta(**describe.meta(run))
        for parameter in describe.parameters(run):
            self.writer.add_param(
                parameter.name,
                run.adapter.view(parameter.tensor),
                path=parameter.path,
                kind=parameter.kind,
                aliases=parameter.aliases,
                store=self._save_params,
            )
        self.writer.flush()
        self._started = time.perf_counter()

    def see(self, boundary: Boundary) -> None:
        if boundary.moment == "enter":
            self._enter(boundary)
            return
        self._stage = boundary.stage
        left = self._open.pop(boundary.frame_id, None) if boundary.moment in ("leave", "raise") else None
        if boundary.moment == "leave" and boundary.frame_id in self._bridged:
            self._bridged.remove(boundary.frame_id)  # what it raised stands in the place of what it returned
        elif self._selection.wants(boundary, self._stages):
            note = {**(left.note if left else {}), **boundary.note}
            if boundary.moment == "raise":
                self._raised(boundary, note)
            else:
                self._record(boundary, note, is_made=True)
        if boundary.parent_id == 0 and boundary.moment == "leave":
            self.writer.flush()

    def finish(self, run: Run) -> None:
        seconds = time.perf_counter() - self._started
        self._live.clear()
        for what in self._selection.unmatched():
            run.miss(what)
        for error, stage in [*run.raised, (run.error, self._stage)]:
            if error is not None and all(error is not known for known in self._errors):
                self._stopped(error, stage)
        self.writer.set_meta(not_seen=run.not_seen, warnings=run.warnings, stages=run.stages, wall_seconds=seconds)

    def _stages(self, stage: str) -> list[str]:
        """A stage and those around it; last "", which stands for what is outside of all stages."""
        return [*stage_chain(stage, self._run.stages), ""]

    def _enter(self, boundary: Boundary) -> None:
        around = self._open.get(boundary.parent_id)
        first = self.records
        note = dict(boundary.note)
        if self._selection.wants(boundary, self._stages):
            self._record(boundary, note, is_made=False)
        row = first if self.records > first else around.row if around else -1
        self._open[boundary.frame_id] = _Open(row, {} if self.records > first else note)

    def _record(self, boundary: Boundary, note: dict[str, Any], *, is_made: bool) -> None:
        for end, tensor in boundary.leaves:
            self._record_leaf(boundary, end, tensor, note, is_made)
            note = {}

    def _record_leaf(self, boundary: Boundary, end: str, tensor: Tensor, note: dict[str, Any], is_made: bool) -> None:
        handed = boundary.replaced.get(end)
        moment = self._moment(boundary, end, note)
        moment["flags"] = (schema.REPLACED if handed is not None else 0) | (schema.MUTATED if end in boundary.mutated else 0)
        if boundary.moment == "leave" and boundary.site in self._served:
            moment["flags"] |= schema.SERVED
        if isinstance(tensor, str):
            self.writer.add_text(text=tensor, **moment)
        elif handed is not None and boundary.moment == "draw":  # what was supplied goes into the tensor that was drawn
            self._record_array(handed, tensor, moment, is_made)
        else:
            self._record_array(tensor, tensor, moment, is_made)
            if handed is not None:
                self._remember(handed, self._code(handed), self.records, schema.PRODUCER_IDENTITY, is_made=True)
        self.records += 1

    def _moment(self, boundary: Boundary, end: str, note: dict[str, Any]) -> dict[str, Any]:
        around = self._open.get(boundary.parent_id)
        return {
            "site": boundary.site,
            "call": boundary.call,
            "ordinal": boundary.ordinal,
            "end": end,
            "stage": boundary.stage,
            "scope": boundary.scope,
            "parent": around.row if around else -1,
            "file": boundary.file,
            "line": boundary.line,
            "note": json.dumps(describe.plain(note), separators=(",", ":")) if note else "",
        }

    def _record_array(self, tensor: Tensor, live: Tensor, moment: dict[str, Any], is_made: bool) -> None:
        """Records what ``tensor`` holds now; ``live`` is the object that goes on through the run with it."""
        view = self._run.adapter.view(tensor)
        array = view if view.flags.c_contiguous else np.ascontiguousarray(view).reshape(view.shape)
        code = digest_of(array)
        row = self.records
        producer, how = self._producer(live, code, array, is_made)
        moment["producer"], moment["producer_how"] = producer, how
        key = (code, array.dtype.num, array.shape)
        earlier = self._rows.get(key)
        if earlier is not None:
            self.writer.add_again(earlier, **moment)
        else:
            self._rows[key] = row
            self.writer.add(values=array.copy() if array is view else array, store=self._store, code=code, **moment)
        if is_made or producer < 0:
            self._remember(live, code, row, schema.PRODUCER_IDENTITY, is_made)
        elif how == schema.PRODUCER_DIGEST:
            self._remember(live, code, producer, how, is_made)

    def _code(self, tensor: Tensor) -> bytes:
        return digest_of(self._run.adapter.view(tensor))

    def _producer(self, tensor: Tensor, code: bytes, array: Array, is_made: bool) -> tuple[int, int]:
        seen = self._live.get(id(tensor))
        if seen is not None and seen.tensor() is tensor and seen.code == code:
            return seen.row, seen.how
        if is_made or array.nbytes < LEAST_TRACED:
            return -1, schema.PRODUCER_NONE
        made = self._made.get(code)
        if made is None or _is_constant(array):
            return -1, schema.PRODUCER_NONE
        return made, schema.PRODUCER_DIGEST

    def _remember(self, tensor: Tensor, code: bytes, row: int, how: int, is_made: bool) -> None:
        """Notes where a live tensor comes from."""
        if is_made:
            self._made[code] = row
        key = id(tensor)
        try:
            self._live[key] = _Seen(weakref.ref(tensor, lambda _: self._live.pop(key, None)), code, row, how, is_made)
        except TypeError:
            self._live.pop(key, None)

    def _raised(self, boundary: Boundary, note: dict[str, Any]) -> None:
        """What a call raised, in the place of its output: of the innermost call that an exception left, and of one that went on."""
        is_bridged = bool(boundary.replaced)
        if self._errors and boundary.error is self._errors[-1] and not is_bridged:
            return
        self._errors.append(boundary.error)
        row = self.records
        flags = schema.RAISED | (schema.REPLACED if is_bridged else 0)
        self.writer.add_text(text=str(note.get("error", "")), flags=flags, **self._moment(boundary, "output", note))
        self.records += 1
        if is_bridged:
            self._bridged.add(boundary.frame_id)
            for handed in boundary.replaced.values():
                if self._run.adapter.is_tensor(handed):
                    self._remember(handed, self._code(handed), row, schema.PRODUCER_IDENTITY, is_made=True)

    def _stopped(self, error: Exception, stage: str) -> None:
        """What ended the run, or a stage of it, outside of all calls."""
        note = raised_note(error)
        self._errors.append(error)
        number = self._stops
        self._stops += 1
        self.writer.add_text(
            text=note["error"],
            site=STOPPED,
            call=f"{STOPPED}[{number}]",
            ordinal=number,
            end="value",
            stage=stage,
            flags=schema.RAISED,
            note=json.dumps(note, separators=(",", ":")),
        )
        self.records += 1


def _is_constant(array: Array) -> bool:
    flat = array.reshape(-1)
    return bool((flat == flat[0]).all())
