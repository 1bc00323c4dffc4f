"""Causes among the reference's own operations: these are computed again with one of them changed until they give the port's tensor."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from tracediff.causes.chosen_sets import order_of_set
from tracediff.causes.operation_edits.base import Change, Dial
from tracediff.causes.operation_edits.every import changes
from tracediff.causes.operation_edits.numbers import EPS_TRIED, FACTORS_TRIED, dial_change, dials
from tracediff.causes.program import Replay
from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.computed import CannotComputeError

_HIDES = -1e9
"""What hides is as good as this, whatever number hides."""


def detect(scene: Scene) -> Iterable[Claim]:
    """The first change of the recorded operations that gives the port's tensor."""
    if scene.program is None or scene.reference is None or scene.port is None or scene.sides[0].is_training:
        return
    if scene.port.shape != scene.reference.shape:
        return
    try:
        ours = scene.program.replay.values[scene.program.target]
    except CannotComputeError:
        return
    if isinstance(ours, np.ndarray) and _without_ones(ours) == _without_ones(scene.reference) and ours.dtype.kind in "fbiu":
        search = _Search(scene, scene.program.replay, ours.reshape(scene.reference.shape))
        if search.is_reference():
            yield from search.claims()


class _Search:
    """The changes of one program, tried on one scene. What a change gives at a few places is kept for the next scene with this program."""

    def __init__(self, scene: Scene, replay: Replay, ours: Array) -> None:
        self._scene, self._replay = scene, replay
        self._port = _hidden(scene.port)
        self._order = order_of_set(replay, self._port)
        if self._order is not None and self._reproduces(self._order.arranged(ours)):
            self._order = None  # nothing but the order differs
        self._ours = self._arranged(ours)
        own = order_of_set(replay, _hidden(scene.reference))
        self._unchanged = ours if own is None else own.arranged(ours)
        error = np.asarray(self._port, np.float64) - np.asarray(_hidden(self._ours), np.float64)
        chance = np.random.default_rng(0)
        self._places = chance.permutation(ours.size)[: THRESHOLDS.glance]
        self._glance = error.reshape(-1)[self._places]

    def is_reference(self) -> bool:
        """Whether the operations, computed again, give the reference's tensor."""
        scene = self._scene
        if scene.is_numeric:
            return scene.is_reference(self._unchanged)
        return _is_close(self._unchanged, scene.reference)

    def _arranged(self, values: Array) -> Array:
        """A tensor in the port's order, where it lists a set."""
        return values if self._order is None else self._order.arranged(values)

    def claims(self) -> Iterator[Claim]:
        for place, change in enumerate(self._changes()):
            theirs = self._given(place, change)
            if theirs is not None and self._reproduces(theirs) and (self._scene.is_numeric or self._moves(theirs)):
                if self._is_of_weights(change.lost):
                    return
                yield Claim(
                    change.kind, THRESHOLDS.sure_operation_changed, self._said(change), Edit(theirs, self._unchanged), tuple(change.at)
                )
                return
        if self._scene.is_numeric:
            yield from self._dialled()

    def _is_of_weights(self, *groups: Sequence[int]) -> bool:
        """Whether one of the groups of nodes has parameters, all of which the port has not got right: then the weights say it already."""
        names = ({name for node in group if (name := self._replay.program.parameter(node))} for group in groups)
        return any(own and own <= self._scene.wrong_weights for own in names)

    def _said(self, change: Change) -> str:
        """A change in words, with the line of the reference's code."""
        lines = sorted({line for node in change.at if (line := self._replay.program.line(node))})
        return f"{change.text} ({lines[0]})" if len(lines) == 1 else change.text

    def _changes(self) -> Iterator[Change]:
        """The changes of the program, made once."""
        tried = self._replay.tried
        if "changes" not in tried:
            tried["changes"], tried["source"] = [], changes(self._replay)
        made = tried["changes"]
        place = 0
        while True:
            if place == len(made):
                try:
                    made.append(next(tried["source"]))
                except (StopIteration, CannotComputeError):
                    return
            yield made[place]
            place += 1

    def _key(self, key: Hashable) -> Hashable:
        """A key of what is kept for scenes with this program, of another order another."""
        return key if self._order is None else (key, self._order.key)

    def _given(self, key: Hashable, change: Change) -> Array | None:
        """What the target is under a change; None where it has another shape, or a glance shows that it is not the port's."""
        tried, key = self._replay.tried, self._key(key)
        if key in tried and (tried[key] is None or not self._may_be(tried[key])):
            return None
        theirs = self._changed(change)
        if key not in tried:
            tried[key] = None if theirs is None else self._glanced(theirs)
        return theirs

    def _changed(self, change: Change) -> Array | None:
        """What the target is under a change, in the port's order; None where it cannot be computed or has another shape."""
        try:
            made = self._replay.changed(change.at)
        except CannotComputeError:
            return None
        is_alike = isinstance(made, np.ndarray) and _without_ones(made) == _without_ones(self._ours)
        return self._arranged(made.reshape(self._ours.shape)) if is_alike else None

    def _glanced(self, theirs: Array) -> Array:
        """What a change changes, at a few places."""
        moved = np.asarray(_hidden(theirs), np.float64) - np.asarray(_hidden(self._ours), np.float64)
        return np.asarray(moved.reshape(-1)[self._places], np.float64)

    def _may_be(self, glanced: Array) -> bool:
        size = float(np.linalg.norm(self._glance))
        return not size or float(np.linalg.norm(glanced - self._glance)) <= THRESHOLDS.glance_leaves * size

    def _reproduces(self, theirs: Array) -> bool:
        scene = self._scene
        if scene.is_numeric:
            return bool(np.isfinite(theirs).all()) and scene.reproduces(theirs)
        return _is_close(theirs, scene.port)

    def _moves(self, theirs: Array) -> bool:
        """Whether anything differs from what the operations give unchanged."""
        return not np.array_equal(_hidden(theirs), _hidden(self._ours))

    def _dialled(self) -> Iterator[Claim]:
        """The first number that, fitted to the port's tensor, gives it."""
        tried = self._replay.tried
        if "dials" not in tried:
            tried["dials"] = list(dials(self._replay))
        for place, dial in enumerate(tried["dials"]):
            value = self._fitted(place, dial)
            theirs = None if value is None else self._changed(dial_change(dial, value))
            if value is not None and theirs is not None and self._reproduces(theirs):
                program = self._replay.program
                given = () if dial.node in program.leaves else program.nodes[dial.node].refs
                if dial.start == 1 and self._is_of_weights((dial.node,), given):
                    return
                change = dial_change(dial, value)
                kind = "branch.missing" if dial.start == 1 and abs(value) < THRESHOLDS.least_coefficient else change.kind
                yield Claim(
                    kind,
                    THRESHOLDS.sure_number_changed,
                    self._said(change),
                    Edit(theirs, self._unchanged, is_fitted=True),
                    tuple(change.at),
                )
                return

    def _fitted(self, place: int, dial: Dial) -> float | None:
        """The number with which the target comes closest to the port, at a few places: Gauss-Newton steps from the best of a few."""
        error = self._glance

        def left(value: float) -> float:
            made = self._turned(place, dial, value)
            return float("inf") if made is None or not np.isfinite(made).all() else float(np.linalg.norm(made - error))

        best = min(_tries(dial), key=left)
        least = left(best)
        for _ in range(THRESHOLDS.dial_rounds):
            step = THRESHOLDS.dial_step * (abs(best) or 1.0)
            here, there = self._turned(place, dial, best), self._turned(place, dial, best + step)
            if here is None or there is None:
                break
            slope = (there - here) / step
            size = float(np.vdot(slope, slope))
            if not np.isfinite(size) or not size:
                break
            along = float(np.vdot(slope, error - here))
            if along**2 < THRESHOLDS.glance_leaves**2 * size * least**2 and least > THRESHOLDS.glance_leaves * float(np.linalg.norm(error)):
                break  # no step along this number explains much
            new = min((best + along / size * share for share in (1.0, 0.5, 0.25)), key=left)
            if not (found := left(new)) < least:
                break
            best, least = new, found
        return (
            best if np.isfinite(least) and best != dial.start and least <= THRESHOLDS.glance_leaves * float(np.linalg.norm(error)) else None
        )

    def _turned(self, place: int, dial: Dial, value: float) -> Array | None:
        """What a dial turned to a value changes, at a few places."""
        key = self._key((place, "dial", value))
        tried = self._replay.tried
        if key not in tried:
            theirs = self._changed(dial_change(dial, value))
            tried[key] = None if theirs is None else self._glanced(theirs)
        found: Array | None = tried[key]
        return found


def _tries(dial: Dial) -> Sequence[float]:
    """The numbers that are tried before one is fitted."""
    start = dial.start
    if dial.tries:
        more = dial.tries
    elif dial.kind == "norm.eps":
        more = EPS_TRIED
    elif start == 1:
        more = FACTORS_TRIED
    else:
        more = (
            start,
            0.0,
            1.0,
            -start,
            2 * start,
            start / 2,
            start * start,
            abs(start) ** 0.5,
            *((1 / start,) if start else (0.5, -0.5, -1.0)),
        )
    return tuple(dict.fromkeys((start, *more)))


def _without_ones(values: Array) -> tuple[int, ...]:
    return tuple(size for size in values.shape if size != 1)


def _hidden(values: Array | None) -> Array:
    assert values is not None
    return np.maximum(values, _HIDES) if values.dtype.kind == "f" else values


def _is_close(one: Array, other: Array | None) -> bool:
    """Whether two tensors of ids, truth values, or numbers of which some hide, are one."""
    ours, theirs = _hidden(one), _hidden(other)
    if theirs.dtype.kind != "f" or ours.dtype.kind != "f":
        return bool(np.array_equal(ours, theirs))
    lost = ~(np.isfinite(ours) & np.isfinite(theirs))  # of which no error tells anything
    if not np.array_equal(ours > _HIDES, theirs > _HIDES) or not np.array_equal(ours[lost], theirs[lost]):
        return False
    seen = (ours > _HIDES) & ~lost
    size = float(np.linalg.norm(theirs[seen]))
    return float(np.linalg.norm(ours[seen] - theirs[seen])) <= THRESHOLDS.same_form * size
