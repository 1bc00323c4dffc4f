"""What the values say: which tensors of the reference each tensor of the port holds, whatever its name and layout.

First by digest (also after rounding to the other side's dtype), then by the sketches of what is left: permuted, merged, joined and cut
tensors. Sketches only propose; where values can be read, they decide. Nothing compares every tensor with every other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tracediff import dtype as dtypes
from tracediff.alignment.axes import Join, Layout, Part, Shape
from tracediff.alignment.parameters import Shared, shared_parameters
from tracediff.dtype import Array, DType
from tracediff.parameters.layout_rules import (
    MergedWeight,
    Origin,
    axis_order,
    axis_vectors,
    fitting_layouts,
    is_float,
    merges,
    norm_pairs,
    origin_of,
    right_merge,
)
from tracediff.parameters.resemblance import Resemblance, compare_arrays, compare_vectors, identical
from tracediff.parameters.sources import Weight, Weights
from tracediff.parameters.thresholds import THRESHOLDS
from tracediff.tensors.weight_norm import has_norm_of, is_merged
from tracediff.trace import fingerprint
from tracediff.trace.fingerprint import Floats

By = Literal["digest", "values", "sketch"]

_WIDENS = {
    ("bfloat16", "float32"), ("bfloat16", "float64"), ("float16", "float32"), ("float16", "float64"), ("float32", "float64"),
    ("float8_e4m3fn", "float32"), ("float8_e5m2", "float32"), ("float8_e4m3fn", "float16"), ("float8_e5m2", "float16"),
    ("float8_e4m3fn", "bfloat16"), ("float8_e5m2", "bfloat16"), ("float8_e4m3fn", "float64"), ("float8_e5m2", "float64"),
}  # fmt: skip
"""(narrow, wide) dtypes of which the wide one holds every value of the narrow one: no rounding."""


@dataclass(frozen=True, slots=True)
class ValuePair:
    """A tensor of the port and the origin whose values it has, equal or alike; ``by`` says how that is known.

    ``resemblance`` is None where the values are equal; ``rounded`` names the dtype to which the reference's were rounded.
    ``reshaped`` is set where only the bytes agree: no layout reconciles the two shapes.
    """

    port: str
    origin: Origin
    by: By
    resemblance: Resemblance | None = None
    rounded: str = ""
    reshaped: bool = False

    @property
    def is_equal(self) -> bool:
        return self.resemblance is None and not self.reshaped


@dataclass(slots=True)
class Matches:
    """The pairs that values tell, by the port's name. ``twins`` are tensors of equal values, which only names can tell apart."""

    held: dict[str, ValuePair] = field(default_factory=dict)
    twins: list[tuple[list[str], list[str]]] = field(default_factory=list)


def match(reference: Weights, port: Weights) -> Matches:
    """The pairs of tensors that values alone decide."""
    matches = Matches()
    _by_digest(reference, port, matches)
    in_twins = {name for _, members in matches.twins for name in members}
    taken = {name for held in matches.held.values() for name in held.origin.names} | {name for names, _ in matches.twins for name in names}
    free_sources = [weight for name, weight in reference.items() if name not in taken and _varies(weight)]
    free_targets = [weight for name, weight in port.items() if name not in matches.held and name not in in_twins and _varies(weight)]
    if any(map(_is_telling, free_sources)) and any(map(_is_telling, free_targets)):
        _by_sketch(free_sources, free_targets, matches)
    return matches


def _varies(weight: Weight) -> bool:
    return not weight.dtype.is_complex and not weight.is_constant


def _is_telling(weight: Weight) -> bool:
    """Whether a weight has so many values that they tell what it is, beside nothing else."""
    return weight.count >= THRESHOLDS.least_telling


# -- by digest ---------------------------------------------------------------------------------------------------------


Key = tuple[str, int, bytes]


def _by_digest(reference: Weights, port: Weights, matches: Matches) -> None:
    wanted: dict[int, set[str]] = defaultdict(set)
    for weight in port.values():
        if is_float(weight):
            wanted[weight.count].add(weight.dtype.name)
    keys: dict[Key, list[tuple[str, str]]] = defaultdict(list)
    for name, weight in reference.items():
        for key, rounded in _keys(weight, wanted[weight.count]):
            keys[key].append((name, rounded))
    groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
    for name, weight in port.items():
        found = keys.get((weight.dtype.name, weight.count, weight.digest))
        if found and not weight.is_constant:
            groups[tuple(found)].append(name)
    for sources, names in groups.items():
        if len(sources) == len(names) == 1:
            matches.held[names[0]] = same_bits(reference[sources[0][0]], port[names[0]], sources[0][1])
        else:
            matches.twins.append(([name for name, _ in sources], names))


def _keys(weight: Weight, wanted: Iterable[str]) -> Iterator[tuple[Key, str]]:
    """The keys that the port may hold a tensor of the reference under: its own bits, and its values in each dtype of ``wanted``."""
    yield (weight.dtype.name, weight.count, weight.digest), ""
    if weight.is_readable and is_float(weight):
        for name in wanted:
            if name != weight.dtype.name:
                rounded = "" if (weight.dtype.name, name) in _WIDENS else name
                yield (name, weight.count, weight.digest_as(dtypes.named(name))), rounded


def same_bits(source: Weight, target: Weight, rounded: str = "") -> ValuePair:
    """The pair of two tensors whose values are the same in the same order."""
    plain = next((layout for layout in fitting_layouts(source.shape, target.shape) if layout.is_same), None)
    layout = plain or Layout(target.shape)
    return ValuePair(target.name, Origin((source.name,), layout), "digest", rounded=rounded, reshaped=plain is None)


# -- by sketch ---------------------------------------------------------------------------------------------------------


def _by_sketch(free_sources: list[Weight], free_targets: list[Weight], matches: Matches) -> None:
    """Pairs permuted, stacked, merged, joined and cut tensors. Each step takes the tensors that it explains; the next ones see the rest.

    Those of few values are only parts of others.
    """
    free_sources, free_targets = [w for w in free_sources if is_float(w)], [w for w in free_targets if is_float(w)]
    near = _propose(free_sources, free_targets, matches)
    free_sources, free_targets = list(filter(_is_telling, free_sources)), list(filter(_is_telling, free_targets))
    for held in _stacked(_unclaimed(free_sources, matches), _unheld(free_targets, matches)):
        matches.held[held.port] = held
    for wrong in (False, True):
        if _unheld(free_targets, matches):
            _propose(list(merges(_unclaimed(free_sources, matches), wrong=wrong)), free_targets, matches)
    for held in merged_unseen(_unclaimed(free_sources, matches), _unheld(free_targets, matches)):
        matches.held[held.port] = held
    for held in near:
        if _is_convincing(held) and _is_better(held, matches.held.get(held.port)):
            matches.held[held.port] = held


def _unclaimed(weights: Iterable[Weight], matches: Matches) -> list[Weight]:
    taken = {name for held in matches.held.values() for name in held.origin.names}
    return [weight for weight in weights if weight.name not in taken]


def _unheld(weights: Iterable[Weight], matches: Matches) -> list[Weight]:
    return [weight for weight in weights if weight.name not in matches.held]


def _propose(sources: Sequence[Weight], targets: Sequence[Weight], matches: Matches) -> list[ValuePair]:
    """Pairs what sketches propose where values confirm it; returns the proposals whose values are only alike."""
    targets = _unheld(targets, matches)
    near: list[ValuePair] = []
    if not sources or not targets:
        return near
    blocks: dict[tuple[str, int], list[tuple[Weight, Weight, Shared]]] = defaultdict(list)
    for shared in shared_parameters(sources, targets):
        source, target = sources[shared.reference], targets[shared.port]
        if shared.part is not None:
            whole = (shared.whole, shared.port if shared.whole == "port" else shared.reference)
            blocks[whole].append((source, target, shared))
            continue
        held = compared(source, target) if _is_telling(source) and _is_telling(target) else None
        if held is not None:
            _accept(held, matches, near)
    for (side, _), members in blocks.items():
        for held in _joined(members) if side == "port" else _cut(members):
            _accept(held, matches, near)
    return near


def _accept(held: ValuePair, matches: Matches, near: list[ValuePair]) -> None:
    if not held.is_equal:
        near.append(held)
    elif held.port not in matches.held:
        matches.held[held.port] = held


def _is_convincing(held: ValuePair) -> bool:
    """Whether values alone prove a pair, whatever the names."""
    seen = held.resemblance
    return seen is None or (seen.correlation > THRESHOLDS.alike and seen.significance > THRESHOLDS.convincing)


def _is_better(held: ValuePair, other: ValuePair | None) -> bool:
    if other is None or other.resemblance is None:
        return other is None
    return held.resemblance is None or held.resemblance.rel_l2 < other.resemblance.rel_l2


def compared(source: Weight, target: Weight) -> ValuePair | None:
    """The pair of a tensor of the reference (or a merged one) and one of the port, in the best layout; None where no layout fits."""
    layouts = fitting_layouts(source.shape, target.shape)
    if not layouts:
        return None
    if source.is_readable and target.is_readable:
        return _compared_values(source, target, layouts)
    return _compared_sketches(source, target, layouts)


def _compared_values(source: Weight, target: Weight, layouts: Sequence[Layout]) -> ValuePair:
    values, port = source.read(), target.read()
    layout = _best_layout(values, port, layouts)
    origin = origin_of(source, layout)
    seen = Origin((source.name,), layout).values(lambda name: values)
    resemblance, rounded = measured(seen, port)
    is_merge = isinstance(source, MergedWeight) and is_rounding(resemblance, source.dtype, target.dtype)
    if resemblance is not None and is_merge and not _is_merged_otherwise(source, port, layout, resemblance.rel_l2):
        resemblance = None
    return ValuePair(target.name, origin, "values", resemblance, rounded)


def is_rounding(resemblance: Resemblance | None, reference: DType, port: DType) -> bool:
    """Whether a difference is no larger than the rounding of what computes a tensor, and of the coarser dtype that it is stored in."""
    if resemblance is None or resemblance.lone:
        return resemblance is None
    return resemblance.rel_l2 <= rounding_limit(reference, port)


def rounding_limit(reference: DType, port: DType) -> float:
    """The relative L2 up to which two tensors of these dtypes are equal but for rounding."""
    single, coarse = dtypes.named("float32").roundoff, dtypes.coarser(reference, port).roundoff
    return THRESHOLDS.arithmetic_roundoffs * single + THRESHOLDS.storage_roundoffs * (coarse if coarse > single else 0.0)


def _is_merged_otherwise(source: Weight, port: Array, layout: Layout, error: float) -> bool:
    """Whether a wrong merge of the same tensors gives the port's values clearly better than the right one, whose error is given."""
    if not isinstance(source, MergedWeight) or source.merge.kind != "weight_norm" or len(source.parts) != 2:
        return False
    for other in merges(source.parts, wrong=True):
        found, _ = measured(Origin(("",), layout).values(lambda _, other=other: other.read()), port)  # type: ignore[misc]
        if source.merge != other.merge and (found is None or found.rel_l2 < THRESHOLDS.clearly_another_merge * error):
            return True
    return False


def measured(reference: Array, port: Array) -> tuple[Resemblance | None, str]:
    """How two arrays of one shape differ (None: not at all), and the dtype to which the reference's values were rounded ("" for none)."""
    if identical(reference, port):
        return None, ""
    rounded = rounding(reference, port)
    if rounded and port.dtype.name == rounded:
        return None, rounded
    return compare_arrays(reference, port), rounded


def rounding(reference: Array, port: Array) -> str:
    """The coarser dtype to which the reference's values were rounded to give exactly the port's; "" where there is none."""
    own, theirs = dtypes.of(reference), dtypes.of(port)
    if own.is_exact or theirs.is_exact or own.is_complex or theirs.is_complex:
        return ""
    if reference.flags.c_contiguous:
        sample, beside = (array.reshape(-1)[: THRESHOLDS.sampled] for array in (reference, port))
    else:
        sample, beside = (array[: THRESHOLDS.sampled_rows] for array in (reference, port))
    for name in dict.fromkeys((theirs.name, "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float32")):
        coarse = dtypes.named(name)
        is_coarser = coarse.roundoff > own.roundoff or (coarse.name != own.name and coarse.roundoff == own.roundoff)
        if is_coarser and _gives_rounded(sample, coarse, beside) and _gives_rounded(reference, coarse, port):
            return name
    return ""


def _gives_rounded(reference: Array, coarse: DType, port: Array) -> bool:
    """Whether the reference's values, rounded to a dtype and seen in the port's, are the port's."""
    with np.errstate(over="ignore", invalid="ignore"):
        return identical(reference.astype(coarse.view).astype(port.dtype), port)


def _best_layout(source: Array, target: Array, layouts: Sequence[Layout]) -> Layout:
    """The layout in which sampled values correlate best; the plainest of several that are equally good."""
    if len(layouts) == 1:
        return layouts[0]
    places = tuple(_spread(size, step, min(THRESHOLDS.sampled, target.size)) for step, size in enumerate(target.shape))
    wanted = np.nan_to_num(target[places].astype(np.float64))
    best, best_score = layouts[0], (-1.0, -np.inf)
    for layout in layouts:
        seen = np.nan_to_num(Origin(("",), layout).values(lambda _: source)[places].astype(np.float64))
        score = round(_squared_correlation(seen, wanted), 9), -float(np.abs(seen - wanted).sum())
        if score > best_score:
            best, best_score = layout, score
    return best


def _squared_correlation(a: Array, b: Array) -> float:
    """The square of the correlation of two samples, 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(a @ a) * float(b @ b)
    return float(a @ b) ** 2 / scale if scale else 0.0


def _spread(size: int, axis: int, count: int) -> Array:
    """Seeded random places along one axis: (count,) int64."""
    return np.random.default_rng((axis, size)).integers(0, max(size, 1), count)


def _compared_sketches(source: Weight, target: Weight, layouts: Sequence[Layout]) -> ValuePair | None:
    best: ValuePair | None = None
    wanted = axis_vectors(target.sketch, target.shape)
    for layout in layouts:
        seen = axis_vectors(source.sketch, source.shape, layout)
        if seen is None or wanted is None or [v.size for v in seen] != [v.size for v in wanted]:
            continue
        if not seen:
            seen, wanted = [np.array([source.stats.mean])], [np.array([target.stats.mean])]
        constant = target.stats.min if target.is_constant else None
        found = compare_vectors(seen, wanted, count=target.count, constant_b=constant)
        equal = found.rel_l2 <= THRESHOLDS.sketch_tolerance and like_statistics(source, target)
        rounded = target.dtype.name if target.dtype.roundoff > max(source.dtype.roundoff, found.rel_l2) and not equal else ""
        held = ValuePair(target.name, origin_of(source, layout), "sketch", None if equal or rounded else found, rounded)
        if best is None or _is_better(held, best):
            best = held
    return best


def like_statistics(source: Weight, target: Weight) -> bool:
    """Whether the statistics of two tensors, which no order of the values changes, are equal but for float64 rounding."""
    a, b = source.stats, target.stats

    def near(x: float, y: float) -> bool:
        return abs(x - y) <= THRESHOLDS.sketch_tolerance * max(abs(x), abs(y), a.l2)

    return near(a.min, b.min) and near(a.max, b.max) and near(a.l2, b.l2) and (a.nan, a.inf) == (b.nan, b.inf)


# -- weight norms whose values were not stored ----------------------------------------------------------------------


def merged_unseen(free_sources: Sequence[Weight], free_targets: Sequence[Weight]) -> Iterator[ValuePair]:
    """The pairs of the port's tensors and weight norms whose direction is known by its sketch alone (see `tensors.weight_norm`)."""
    by_axes: dict[tuple[int, ...], list[Weight]] = defaultdict(list)
    for weight in free_targets:
        by_axes[tuple(sorted(weight.shape))].append(weight)
    for gain, direction, axis in norm_pairs(free_sources):
        if direction.is_readable:
            continue
        for target in by_axes.get(tuple(sorted(direction.shape)), ()):
            layout = norm_layout(gain, direction, axis, target)
            if layout is not None:
                origin = Origin((gain.name, direction.name), layout, right_merge(direction, axis))
                yield ValuePair(target.name, origin, "sketch")


def norm_layout(gain: Weight, direction: Weight, axis: int, target: Weight, known: Layout | None = None) -> Layout | None:
    """The layout in which a tensor is a merged weight norm, by its sketch; None where it is none.

    ``known``: the layout in which the tensor is the direction itself. A sketch tells the rows, not the order of the other axes.
    """
    if not has_norm_of(gain.stats.l2, target.stats.l2):
        return None
    if axis < 0:
        return known
    scale, rows = gain.read().reshape(-1).astype(np.float64), direction.sketch.axes[axis]
    first: tuple[Layout, ...] = () if known is None else (known,)
    for layout in (*first, *fitting_layouts(direction.shape, target.shape)):
        order = axis_order(layout)
        if layout.split not in (None, direction.shape) or len(order) != len(target.shape):
            continue
        if is_merged(scale, rows, target.sketch.axes[order.index(axis)], direction.stats.l2):
            return layout
    return None


def has_rows_of(direction: Weight, target: Weight, origin: Origin) -> bool:
    """Whether the rows of a tensor have the signs of a weight norm's direction, by sketch; False for few rows, which tell nothing."""
    merge, layout = origin.merge, origin.layout
    if merge is None or layout.split not in (None, direction.shape) or len(target.shape) != len(direction.shape):
        return False
    axis = next((axis for axis in range(len(direction.shape)) if axis not in merge.axes), None)
    order = axis_order(layout)
    if axis is None or direction.shape[axis] < THRESHOLDS.telling_rows:
        return False
    rows, merged = direction.sketch.axes[axis], target.sketch.axes[order.index(axis)]
    return rows.size == merged.size and abs(float(np.mean(np.sign(rows) * np.sign(merged)))) > THRESHOLDS.same_signs


# -- joined, cut, stacked ----------------------------------------------------------------------------------------------


def _joined(members: Sequence[tuple[Weight, Weight, Shared]]) -> Iterator[ValuePair]:
    """The pair of a tensor of the port and the reference's tensors that fill it end to end; none where they leave a gap."""
    target = members[0][1]
    placed = sorted(((_part(shared), source) for source, _, shared in members), key=lambda item: item[0].start)
    part = placed[0][0]
    stop = target.shape[part.axis] // part.groups
    ends = [0, *(place.stop for place, _ in placed)]
    if any(place.start != end for (place, _), end in zip(placed, ends, strict=False)) or ends[-1] != stop:
        return
    if any(place.axis != part.axis or place.groups != part.groups for place, _ in placed):
        return
    sources = [source for _, source in placed]
    transposed = _is_transposed(sources[0], placed[0][0], target)
    join = Join(1 - part.axis if transposed else part.axis, groups=part.groups)
    layout = Layout(target.shape, join=join, permutation=(1, 0) if transposed else None)
    # Where values cannot be read, the sketches have said that they are equal.
    yield compared_origin(Origin(tuple(source.name for source in sources), layout), sources, target)


def _is_transposed(source: Weight, part: Part, target: Weight) -> bool:
    """Whether a matrix is transposed in the whole of which it is a block: its other axis then has the vector of the joined axis."""
    if len(source.shape) != 2 or len(target.shape) != 2:
        return False
    block = _block(target.sketch.axes[part.axis], part)
    gaps = [float(np.abs(v - block).sum()) if v.size == block.size else np.inf for v in source.sketch.axes]
    return gaps[1 - part.axis] < gaps[part.axis]


def _block(vector: Floats, part: Part) -> Floats:
    """A part of an axis vector."""
    return vector.reshape(part.groups, -1)[:, part.start : part.stop].ravel()


def _cut(members: Sequence[tuple[Weight, Weight, Shared]]) -> Iterator[ValuePair]:
    """The pairs of a tensor of the reference and the port's tensors that are blocks of it. A single block is a shorter table."""
    if len({target.name for _, target, _ in members}) < 2:
        return
    for source, target, shared in members:
        part = _part(shared)
        cut = [*source.shape]
        cut[part.axis] = (part.stop - part.start) * part.groups
        for layout in fitting_layouts(tuple(cut), target.shape)[: THRESHOLDS.cut_layouts]:
            if not _keeps_block(source, part, layout, target):
                continue
            held = compared_origin(Origin((source.name,), replace(layout, part=part)), [source], target)
            if held.is_equal:
                yield held
                break


def _keeps_block(source: Weight, part: Part, layout: Layout, target: Weight) -> bool:
    """Whether a layout puts the axis of a cut where the port has it. Only a layout that permutes can be asked."""
    if layout.split is not None or len(source.shape) != len(target.shape):
        return True
    order = axis_order(layout)
    block, own = _block(source.sketch.axes[part.axis], part), target.sketch.axes[order.index(part.axis)]
    return own.size == block.size and float(np.abs(own - block).sum()) < THRESHOLDS.cut_axis_error * float(np.abs(block).sum())


def _part(shared: Shared) -> Part:
    assert shared.part is not None
    return shared.part


def compared_origin(origin: Origin, sources: Sequence[Weight], target: Weight, unseen: Resemblance | None = None) -> ValuePair:
    """The pair of an origin and a tensor of the port, by values; ``unseen`` is the resemblance where values cannot be read."""
    if not target.is_readable or not all(source.is_readable for source in sources):
        return ValuePair(target.name, origin, "sketch", unseen)
    by_name = {source.name: source for source in sources}
    resemblance, rounded = measured(origin.values(lambda name: by_name[name].read()), target.read())
    return ValuePair(target.name, origin, "values", resemblance, rounded)


def _stacked(free_sources: Sequence[Weight], free_targets: Sequence[Weight]) -> Iterator[ValuePair]:
    """The pairs of the port's tensors and those of the reference that are stacked on a new first axis (experts, parts of a vector).

    The vector of the first axis holds each slice's contraction, and that of any other axis the sum of the slices' own, each times its
    share: so sketches tell of stacks.
    """
    by_shape: dict[Shape, list[Weight]] = defaultdict(list)
    for weight in free_sources:
        if weight.sketch.axes and weight.sketch.axes[0].size:
            by_shape[weight.shape].append(weight)
    totals = {shape: np.array([_contraction(weight) for weight in weights]) for shape, weights in by_shape.items()}
    for target in free_targets:
        shape = target.shape[1:]
        if len(by_shape.get(shape, ())) < 2 or not 1 < target.shape[0] <= THRESHOLDS.most_stacked:
            continue
        lead = target.sketch.axes[0]
        sources = [by_shape[shape][int(place)] for place in np.abs(totals[shape][None] - lead[:, None]).argmin(1)]
        names = tuple(source.name for source in sources)
        if len(set(names)) == len(names) and all(source.dtype == target.dtype for source in sources) and _is_stack(sources, target):
            held = compared_origin(Origin(names, Layout(target.shape, join=Join(0, "stack"))), sources, target)
            if held.is_equal:
                yield held


def _is_stack(sources: Sequence[Weight], target: Weight) -> bool:
    """Whether the sketch of a tensor is that of a stack of others."""
    shares = fingerprint.probe(len(sources))
    axes = zip(*(source.sketch.axes for source in sources), strict=True)
    made = [np.array(list(map(_contraction, sources))), *(shares @ np.array(vectors) for vectors in axes)]
    return all(_are_near(one, other) for one, other in zip(made, target.sketch.axes, strict=True))


def _contraction(weight: Weight) -> float:
    """A tensor contracted along all of its axes."""
    first = weight.sketch.axes[0]
    return float(first @ fingerprint.probe(first.size))


def _are_near(one: Floats, other: Floats) -> bool:
    """Whether two vectors of sketches are equal but for the order of sums."""
    gap = float(np.linalg.norm(one - other)) if one.size == other.size else np.inf
    return gap <= THRESHOLDS.sketch_tolerance * float(np.linalg.norm(other))
