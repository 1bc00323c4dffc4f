"""What parameters say: which of the port's are the reference's, transposed, rounded, fused, merged or rearranged.

Only sketches are read. Two parameters are equal where their axis vectors agree within a tolerance: these follow their axes through a
permutation. A parameter that many sites share (tied, constant) is weak evidence, and one that was not loaded is none. Both leave the
decision to structure and order.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.alignment.axes import Part
from tracediff.alignment.structure import Side
from tracediff.alignment.thresholds import THRESHOLDS
from tracediff.tensors.weight_norm import has_norm_of, is_merged
from tracediff.trace import schema
from tracediff.trace.fingerprint import Fingerprinted, Sketch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Key = tuple[int, ...]
SIDES = ("reference", "port")


@dataclass(slots=True)
class Evidence:
    """What the parameters of two sites say about their being one: ``share`` of what they own agrees, and how.

    ``is_addend``: one of them is the other on some of its inputs, so that what several such sites return adds up to what it returns.
    ``is_step``: one of them is a step of what the other does as a whole, as a layer of a recurrent stack is; they are no pair.
    """

    share: float = 0.0
    how: list[str] = field(default_factory=list)
    part: Part | None = None
    whole: str = ""  # which side holds the fused whole: "reference", "port" or "" where nothing is fused
    is_addend: bool = False
    is_step: bool = False

    @property
    def text(self) -> str:
        return ", ".join(dict.fromkeys(self.how))


@dataclass(frozen=True, slots=True)
class Shared:
    """One parameter of each side that hold the same values."""

    reference: int
    port: int
    how: str
    weight: float
    part: Part | None = None
    whole: str = ""


def evidence(reference: Side, port: Side) -> dict[tuple[int, int], Evidence]:
    """What the parameters say of each pair of sites that share one: (reference site, port site) -> Evidence."""
    forms = [[_Form(param) for param in side.params] for side in (reference, port)]
    shared = list(_shared(*forms))
    owners = [_owners(side) for side in (reference, port)]
    worth = [_worth(side, known) for side, known in zip((reference, port), forms, strict=True)]
    found: dict[tuple[int, int], Evidence] = defaultdict(Evidence)
    for one in shared:
        a, b = owners[0].get(one.reference), owners[1].get(one.port)
        if a is None or b is None:
            continue
        entry = found[a, b]
        smaller = min(worth[0][a], worth[1][b]) or 1.0
        entry.share = min(1.0, entry.share + one.weight / smaller)
        entry.how.append(one.how)
        if one.part is not None and _is_over_inputs((reference, port), (a, b), one.part, one.whole):
            entry.is_addend = True
        elif one.part is not None and (entry.part is None or one.part.groups > 1):
            entry.part, entry.whole = one.part, one.whole
    for side in (0, 1):
        _tell_steps(found, side, (reference, port))
        _gather(found, side, (reference, port), worth)
        _gather_addends(found, side, (reference, port))
    within = [
        pair for pair, one in found.items() if one.part is not None and not _is_of_output((reference, port), pair, one.part, one.whole)
    ]
    found.update((pair, Evidence(is_step=True)) for pair in within)
    return dict(found)


def _is_over_inputs(sides: tuple[Side, Side], pair: tuple[int, int], part: Part, whole: str) -> bool:
    """Whether a site is another one on some of its inputs: it takes in a part of what that one takes in, and returns as much."""
    number = 1 if whole == "port" else 0
    large, small = (sorted(_boundary(sides[side], pair[side], 0)) for side in (number, 1 - number))
    returned = [sorted(_boundary(side, site, 1)) for side, site in zip(sides, pair, strict=True)]
    length = (part.stop - part.start) * part.groups
    if length not in small or returned[0] != returned[1]:
        return False
    small.remove(length)
    return any(sorted((*small, size)) == large for size in set(large) if size > length)


def _is_of_output(sides: tuple[Side, Side], pair: tuple[int, int], part: Part, whole: str) -> bool:
    """Whether what a site returns may be a part of what another one does, by how many numbers they hold; where that is known.

    A part of a parameter else does a part of a step: so with the projection inside an attention.
    """
    number = 1 if whole == "port" else 0
    large, small = (_boundary(sides[side], pair[side], 1) for side in (number, 1 - number))
    length = (part.stop - part.start) * part.groups
    return not large or not small or any(size >= length and math.prod(small) * size == math.prod(large) * length for size in large)


def _boundary(side: Side, site: int, end: int) -> Key:
    """The shape of the first tensor that a site's first call takes in (``end`` 0) or returns (1), axes of length 1 left out.

    Empty where there is none, and where the call raised.
    """
    call = int(side.first_call[site])
    rows = [row for row in side.ends_of(call)[end] if not side.index["flags"][row] & schema.RAISED] if call >= 0 else []
    return tuple(size for size in side.shapes[rows[0]] if size != 1) if rows else ()


def _gather_addends(found: dict[tuple[int, int], Evidence], side: int, sides: tuple[Side, Side]) -> None:
    """Pairs a site whose work several sites of the other side do on a part of the inputs each with the module that holds just these.

    It is none of them. Where their caller adds up what they return, nothing is its partner.
    """
    addends: dict[int, list[int]] = defaultdict(list)
    for pair, entry in found.items():
        if entry.is_addend and _elements(sides[side], [pair[side]]) > _elements(sides[1 - side], [pair[1 - side]]):
            addends[pair[side]].append(pair[1 - side])
    for site, parts in addends.items():
        pairs = [(site, part) if side == 0 else (part, site) for part in parts]
        entries = [found.pop(pair) for pair in pairs]
        holder = _holder(sides[1 - side], parts)
        if holder is None or _elements(sides[1 - side], _held(sides[1 - side], holder)) != _elements(sides[side], [site]):
            continue
        whole = found[(site, holder) if side == 0 else (holder, site)]
        whole.share = min(1.0, sum(entry.share for entry in entries))
        whole.how = [how for entry in entries for how in entry.how]


def _held(side: Side, holder: int) -> list[int]:
    """A module, and all that it holds in the module tree."""
    return [site for site in range(len(side)) if site == holder or holder in side.holders(site)]


def _elements(side: Side, sites: Iterable[int]) -> int:
    """How many numbers the matrices of some sites hold."""
    return sum(math.prod(shape) for site in sites for shape in matrices(side, site))


def _tell_steps(found: dict[tuple[int, int], Evidence], side: int, sides: tuple[Side, Side]) -> None:
    """Marks the sites that own one of the matrices, or a block of one, of a site that owns several: each is a step of what that one does.

    Experts own all their projections in two tensors on one side, and call one module for each on the other.
    """
    steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for pair in found:
        steps[pair[side]].append(pair)
    for site, pairs in steps.items():
        held = [len(matrices(sides[1 - side], pair[1 - side])) for pair in pairs]
        is_divided = any(found[pair].part is not None and found[pair].whole == SIDES[side] for pair in pairs)
        if is_divided and len(pairs) > 1 and len(matrices(sides[side], site)) > 1 and max(held) == 1:
            found.update((pair, Evidence(is_step=True)) for pair in pairs)


def matrices(side: Side, site: int) -> list[tuple[int, ...]]:
    """The shapes of the matrices, and kernels, that a site owns."""
    shapes = (side.params[param].shape for param in side.owned[site])
    return [shape for shape in shapes if sum(size > 1 for size in shape) > 1]


def _gather(found: dict[tuple[int, int], Evidence], side: int, sides: tuple[Side, Side], worth: Sequence[Sequence[float]]) -> None:
    """Pairs a site whose parameters several smaller sites of the other side own with the module that holds those sites.

    A stack of recurrent layers is one module in one framework and a list of layers in another; it is none of the layers. A port that
    is written as functions over a tree of arrays has one module: it is the whole model, and none of its layers.
    """
    own, other = sides[side], sides[1 - side]
    owners: dict[int, list[int]] = defaultdict(list)
    for pair, entry in found.items():
        if entry.part is None and worth[1 - side][pair[1 - side]] < worth[side][pair[side]]:
            owners[pair[side]].append(pair[1 - side])
    for site, parts in owners.items():
        is_outermost = int(own.parent[site]) < 0
        holder = _holder(other, parts, is_outermost=is_outermost) if len(parts) > 1 else None
        if holder is None or worth[1 - side][holder]:
            continue
        pairs = [(site, part) if side == 0 else (part, site) for part in parts]
        entries = [found.pop(pair) for pair in pairs]
        whole = found[(site, holder) if side == 0 else (holder, site)]
        whole.share = sum(entry.share for entry in entries) / len(entries)
        whole.how = [how for entry in entries for how in entry.how]
        found.update((pair, Evidence(is_step=True)) for pair in pairs)


def _holder(side: Side, sites: Sequence[int], *, is_outermost: bool = False) -> int | None:
    """The nearest module whose path begins those of all these sites; None where it is no site.

    ``is_outermost``: whether the run itself calls what owns it all on the other side. Only then the root is such a holder.
    """
    paths = [side.path[site].split(".") for site in sites]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    for length in range(shared, -1 if is_outermost else 0, -1):
        holder = side.number.get(".".join(paths[0][:length]))
        if holder is not None:
            return holder
    return None


def shared_parameters(reference: Sequence[Fingerprinted], port: Sequence[Fingerprinted]) -> Iterator[Shared]:
    """Every two parameters, one of each side, that hold the same values in some form; the surest form first."""
    return _shared([_Form(param) for param in reference], [_Form(param) for param in port])


def _shared(a: Sequence[_Form], b: Sequence[_Form]) -> Iterator[Shared]:
    classes_a, classes_b = _classes(a), _classes(b)
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    for how in (_identical, _permuted, _rearranged, _merged, _signs):
        left_a = {key: members for key, members in classes_a.items() if members[0] not in taken_a}
        left_b = {key: members for key, members in classes_b.items() if members[0] not in taken_b}
        for one, other, text in how(a, b, left_a, left_b):
            members_a, members_b = left_a[one], left_b[other]
            taken_a.update(members_a)
            taken_b.update(members_b)
            yield from _members(a, members_a, members_b, text)
    yield from _fused(a, b, taken_a, taken_b)


def _members(forms: Sequence[_Form], members_a: Sequence[int], members_b: Sequence[int], how: str) -> Iterator[Shared]:
    """The pairs of two classes of equal parameters: each worth less the more there are."""
    crowd = max(len(members_a), len(members_b))
    if crowd > THRESHOLDS.parameter_crowd or forms[members_a[0]].is_constant:
        return
    text = how if crowd == 1 else f"{how}, as are {crowd - 1} more"
    for i, j in product(members_a, members_b):
        yield Shared(i, j, f"{_last(forms[i].param.name)} {text}", 1.0 / crowd)


class _Form:
    """One parameter made comparable: its axes longer than 1 by length, and their vectors centred and scaled to spread 1."""

    __slots__ = ("_blocks", "_sketch", "digest", "is_constant", "key", "param", "roundoff", "size")

    def __init__(self, param: Fingerprinted) -> None:
        self.param = param
        self.digest = param.digest
        self.roundoff = param.roundoff
        shape = param.shape
        self.key: Key = tuple(sorted(size for size in shape if size != 1))
        stats = param.stats
        self.size = stats.count
        self.is_constant = stats.count < 2 or stats.std <= THRESHOLDS.constant_spread * max(abs(stats.mean), 1e-30)
        self._blocks: tuple[Floats, ...] | None = None
        self._sketch: Sketch | None = None

    @property
    def sketch(self) -> Sketch:
        """The parameter's sketch, read once."""
        if self._sketch is None:
            self._sketch = self.param.sketch
        return self._sketch

    @property
    def blocks(self) -> tuple[Floats, ...]:
        """For each axis length the vectors that no permutation of the axes changes; none where all values are equal."""
        if self._blocks is None:
            self._blocks = () if self.is_constant else tuple(_blocks(self.param, self.sketch))
        return self._blocks


def _blocks(param: Fingerprinted, sketch: Sketch) -> Iterator[Floats]:
    """For each axis length the vectors that no permutation of the axes changes: the axis vector, or symmetric sums of several.

    Each is as long as its axis, or `THRESHOLDS.parameter_entries` where the axis is longer.
    """
    by_length: dict[int, list[Floats]] = defaultdict(list)
    for size, vector in zip(param.shape, sketch.axes, strict=True):
        if size != 1 and vector.size:
            by_length[size].append(np.asarray(vector[: THRESHOLDS.parameter_entries], np.float64))
    for _, vectors in sorted(by_length.items()):
        if len(vectors) == 1:
            yield vectors[0]
        else:
            yield np.sum(vectors, axis=0)
            yield np.sum(np.square(vectors), axis=0) / max(param.stats.l2, 1e-300)


def _classes(forms: Sequence[_Form]) -> dict[tuple[bytes, Key], list[int]]:
    """The parameters of one side that hold equal bits (tied weights, constants), by digest and shape."""
    classes: dict[tuple[bytes, Key], list[int]] = defaultdict(list)
    for number, form in enumerate(forms):
        classes[form.digest, form.key].append(number)
    return classes


Classes = dict[tuple[bytes, Key], list[int]]
Found = Iterator[tuple[tuple[bytes, Key], tuple[bytes, Key], str]]


def _identical(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    for key in left_a:
        if key in left_b:
            yield key, key, "equal"


def _permuted(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    """Classes whose axis vectors agree within a tolerance, mutually nearest."""
    for one, other, error in _nearest(a, b, left_a, left_b, _Stacked, THRESHOLDS.parameter_radius):
        how = "equal" if error < THRESHOLDS.parameter_error else f"equal to {error:.0e} of its spread"
        i, j = a[left_a[one][0]].param.shape, b[left_b[other][0]].param.shape
        yield one, other, how if i == j else f"{how}, transposed" if sorted(i) == sorted(j) and len(i) > 1 else f"{how}, reshaped"


class _Stacked:
    """Parameters of one shape, by their axis vectors: where each stands in the search tree, and how far two of them are apart.

    ``blocks``: for each vector of `_Form.blocks` an array (parameters, entries).
    """

    def __init__(self, forms: Sequence[_Form]) -> None:
        self.blocks = [np.stack(blocks) for blocks in zip(*(form.blocks for form in forms), strict=True)]

    @property
    def corners(self) -> Floats:
        """The first entries of each block, centred and scaled, short blocks padded: (parameters, blocks * corner)."""
        return np.hstack([_padded(_standard(block), THRESHOLDS.parameter_corner) for block in self.blocks])

    def apart(self, other: _Stacked, i: Ints, j: Ints) -> Floats:
        """The worst relative distance of the blocks of ours ``i`` and theirs ``j``: (pairs,).

        Infinite where it is too large for so few entries to prove anything.
        """
        worst = np.zeros(len(i))
        for ours, theirs in zip(self.blocks, other.blocks, strict=True):
            spread, norm = np.linalg.norm(ours - ours.mean(1, keepdims=True), axis=1), np.linalg.norm(ours, axis=1)
            spread = np.where(spread > 0, spread, np.where(norm > 0, norm, 1e-300))
            np.maximum(worst, np.linalg.norm(theirs[j] - ours[i], axis=1) / spread[i], out=worst)
        entries = sum(block.shape[1] for block in self.blocks)
        return np.where(worst < _error_allowed(entries), worst, np.inf)


def _error_allowed(entries: int) -> float:
    """The relative error up to which so many entries may differ and still prove that two parameters are equal."""
    if entries >= THRESHOLDS.many_entries:
        return THRESHOLDS.many_entries_error
    return THRESHOLDS.some_entries_error if entries >= THRESHOLDS.some_entries else THRESHOLDS.few_entries_error


def _rearranged(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    """The same values in another order altogether (rows permuted for a rotary embedding, axes merged): all quantiles agree."""
    for one, other, _ in _nearest(a, b, left_a, left_b, _Profiles, THRESHOLDS.profile_radius, by_shape=False):
        yield one, other, "the same values in another order"


class _Profiles:
    """Parameters of one size by what no order of their values changes, (parameters, numbers): otherwise as `_Stacked`."""

    def __init__(self, forms: Sequence[_Form]) -> None:
        self.size = forms[0].size
        stats = [form.param.stats for form in forms]
        scale = np.array([one.l2 / max(one.count, 1) ** 0.5 or 1.0 for one in stats])
        moments = np.array([[one.l2, one.absmean] for one in stats]) / scale[:, None]
        cubes = np.cbrt([one.cube for one in stats]) / scale
        quantiles = np.stack([form.sketch.quantiles for form in forms]) / scale[:, None]
        self.values = np.column_stack([moments, cubes, quantiles])

    @property
    def corners(self) -> Floats:
        return _padded(_standard(self.values[:, 1:]), THRESHOLDS.profile_corner)

    def apart(self, other: _Profiles, i: Ints, j: Ints) -> Floats:
        """The largest difference of ours ``i`` and theirs ``j``: (pairs,).

        Infinite where it is more than rounding, or the values are too few to mean anything.
        """
        errors = np.abs(self.values[i] - other.values[j]).max(1)
        return np.where((errors < THRESHOLDS.profile_error) & (self.size >= THRESHOLDS.profile_elements), errors, np.inf)


def _nearest(
    a: Sequence[_Form],
    b: Sequence[_Form],
    left_a: Classes,
    left_b: Classes,
    kind: type[_Stacked] | type[_Profiles],
    radius: float,
    by_shape: bool = True,
) -> Iterator[tuple[tuple[bytes, Key], tuple[bytes, Key], float]]:
    """Classes of the two sides that are each other's nearest, found in a tree over their corners."""
    from scipy.spatial import cKDTree

    def grouped(forms: Sequence[_Form], left: Classes) -> dict[Any, list[tuple[bytes, Key]]]:
        groups: dict[Any, list[tuple[bytes, Key]]] = defaultdict(list)
        for key, members in left.items():
            form = forms[members[0]]
            if form.blocks:
                groups[(form.key, len(form.blocks)) if by_shape else form.size].append(key)
        return groups

    groups_a, groups_b = grouped(a, left_a), grouped(b, left_b)
    for group in groups_a.keys() & groups_b.keys():
        keys_a, keys_b = groups_a[group], groups_b[group]
        ours, theirs = kind([a[left_a[key][0]] for key in keys_a]), kind([b[left_b[key][0]] for key in keys_b])
        near = cKDTree(ours.corners).query_ball_tree(cKDTree(theirs.corners), radius, p=np.inf)
        i = np.repeat(np.arange(len(near)), [min(len(others), THRESHOLDS.parameter_crowd) for others in near])
        j = np.array([other for others in near for other in others[: THRESHOLDS.parameter_crowd]], np.int64)
        errors = ours.apart(theirs, i, j)  # type: ignore[arg-type]
        pairs = zip(i.tolist(), j.tolist(), strict=True)
        for (one, other), error in _mutual(dict(zip(pairs, errors.tolist(), strict=True))):
            yield keys_a[one], keys_b[other], error


def _mutual(errors: dict[tuple[int, int], float]) -> Iterator[tuple[tuple[int, int], float]]:
    """The pairs that are each other's best, with their errors; infinite ones are none."""
    best_a: dict[int, tuple[float, int]] = {}
    best_b: dict[int, tuple[float, int]] = {}
    for (i, j), error in errors.items():
        if error < best_a.get(i, (np.inf, -1))[0]:
            best_a[i] = error, j
        if error < best_b.get(j, (np.inf, -1))[0]:
            best_b[j] = error, i
    yield from (((i, j), error) for i, (error, j) in best_a.items() if best_b[j][1] == i)


# -- weight norm merged on one side ----------------------------------------------------------------------


def _merged(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    """Each row of one has the norm that the other's gain says (a weight norm merged), which tells the smallest matrices too."""
    for forms, others, left, left_others in ((a, b, left_a, left_b), (b, a, left_b, left_a)):
        norms: dict[Key, list[tuple[float, tuple[bytes, Key]]]] = defaultdict(list)
        for key, members in left_others.items():
            form = others[members[0]]
            if len(form.key) > 1 and not form.is_constant:
                norms[form.key].append((form.param.stats.l2, key))
        found = []
        for direction, gain in _weight_norms(forms, left):
            wanted = gain.param.stats.l2
            fits = [key for norm, key in norms.get(direction[1], ()) if has_norm_of(wanted, norm)]
            fits = [key for key in fits if _is_merged(forms[left[direction][0]].param, gain.param, others[left_others[key][0]].param)]
            if len(fits) == 1:
                found.append((direction, fits[0]))
        times = Counter(key for _, key in found)
        for one, other in found:
            if times[other] == 1:
                yield (one, other, "the weight norm merged") if forms is a else (other, one, "the weight norm merged")


def _weight_norms(forms: Sequence[_Form], left: Classes) -> Iterator[tuple[tuple[bytes, Key], _Form]]:
    """The directions among what is left, each with its gain: one number a row, of the same module."""
    owned: dict[str, list[tuple[tuple[bytes, Key], _Form]]] = defaultdict(list)
    for key, members in left.items():
        if len(members) == 1:
            owned[_module(forms[members[0]].param.name)].append((key, forms[members[0]]))
    for ones in owned.values():
        for key, direction in ones:
            axes = len(direction.param.shape)
            gains = [
                one for _, one in ones if axes > 1 and len(one.param.shape) == axes and 1 < one.size < direction.size and len(one.key) == 1
            ]
            gains = [one for one in gains if one.size in direction.param.shape]
            if len(gains) == 1 and len(direction.key) > 1 and not direction.is_constant:
                yield key, gains[0]


def _is_merged(direction: Fingerprinted, gain: Fingerprinted, merged: Fingerprinted) -> bool:
    """Whether along some axis the rows of a parameter are the direction's by the gain."""
    rows = gain.stats.count
    scale = next(vector for size, vector in zip(gain.shape, gain.sketch.axes, strict=True) if size == rows)
    ours, theirs = (
        [vector for size, vector in zip(one.shape, one.sketch.axes, strict=True) if size == rows] for one in (direction, merged)
    )
    return any(is_merged(scale, one, other, direction.stats.l2) for one in ours for other in theirs)


def _signs(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    """Each row of one is the other's times a positive number: a weight norm merged, a batch norm folded in."""
    by_signs: dict[Any, list[tuple[tuple[bytes, Key], Floats]]] = defaultdict(list)
    for key, members in left_b.items():
        for vector in _signed(b[members[0]]):
            by_signs[b[members[0]].key, vector.size, _pattern(vector)].append((key, vector))
    for key, members in left_a.items():
        form = a[members[0]]
        for vector in _signed(form):
            fits = [other for other, theirs in by_signs.get((form.key, vector.size, _pattern(vector)), ()) if _alike_signs(vector, theirs)]
            if len(set(fits)) == 1:
                yield key, fits[0], "the same rows up to their scale (merged weight norm?)"
                break


def _signed(form: _Form) -> Iterator[Floats]:
    """The axis vectors whose signs are many and mixed enough to mean something."""
    if len(form.key) < 2 or form.is_constant:
        return
    for vector in form.sketch.axes:
        share = THRESHOLDS.sign_share
        if vector.size >= THRESHOLDS.sign_rows and share < np.mean(vector > 0) < 1 - share:
            yield vector


def _pattern(vector: Floats) -> bytes:
    return np.packbits(vector[: THRESHOLDS.sign_pattern] > 0).tobytes()


def _alike_signs(x: Floats, y: Floats) -> bool:
    return bool(np.mean((x > 0) == (y > 0)) > THRESHOLDS.sign_agreement)


# -- fused projections -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Strip:
    """One axis vector of a parameter, along which it may be a fused whole or a part of one; ``roundoff`` is its dtype's."""

    number: int
    axis: int
    vector: Floats
    roundoff: float


@dataclass(frozen=True, slots=True)
class _Block:
    """A strip that stands inside a longer one of the other side, and how surprising that would be by chance, in nats."""

    part: _Strip
    whole: _Strip
    where: Part
    surprise: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """What parameters of one module have in common that are the same part of the parameters of another: ``size`` is the whole's length."""

    part: str
    whole: str
    start: int
    stop: int
    groups: int
    size: int

    @classmethod
    def of(cls, block: _Block, parts: Sequence[_Form], wholes: Sequence[_Form]) -> _Piece:
        part, whole = _module(parts[block.part.number].param.name), _module(wholes[block.whole.number].param.name)
        return cls(part, whole, block.where.start, block.where.stop, block.where.groups, block.whole.vector.size)


def _fused(a: Sequence[_Form], b: Sequence[_Form], taken_a: set[int], taken_b: set[int]) -> Iterator[Shared]:
    """Parameters that are blocks of a larger one on the other side."""
    strips_a, strips_b = _strips(a, taken_a), _strips(b, taken_b)
    rests = strips_a.keys() & strips_b.keys()
    for block in _proved([(strips_a[rest], strips_b[rest]) for rest in rests], a, b):
        i, j = block.part.number, block.whole.number
        yield Shared(i, j, _block_text(a[i], b[j], block.where), 1.0, block.where, "port")
    for block in _proved([(strips_b[rest], strips_a[rest]) for rest in rests], b, a):
        i, j = block.whole.number, block.part.number
        yield Shared(i, j, _block_text(b[j], a[i], block.where), 1.0, block.where, "reference")


def _proved(
    strips: Sequence[tuple[Sequence[_Strip], Sequence[_Strip]]], parts: Sequence[_Form], wholes: Sequence[_Form]
) -> Iterator[_Block]:
    """Of each part the block that is no chance among all that were tried: by itself, or with others that stand or fall with it.

    So do the other parameters of its module that are the same part of the same module: a matrix of few rows tells little in half precision,
    and its bias as much again. So do the modules beside it whose parts make up the whole with it, end to end.
    """
    tried = sum(len(shorter) * sum(whole.vector.size for whole in longer) for shorter, longer in strips)
    needed = math.log(max(tried, 1) / THRESHOLDS.block_by_chance)
    found = [(block, _Piece.of(block, parts, wholes)) for pair in strips for block in _blocks_within(*pair)]
    together: dict[_Piece, dict[int, float]] = defaultdict(dict)
    for block, piece in found:
        together[piece][block.part.number] = block.surprise
    surprises = {piece: sum(same.values()) for piece, same in together.items()}
    done: set[int] = set()
    for row in _end_to_end(surprises):
        surprises.update(dict.fromkeys(row, sum(surprises[piece] for piece in row)))
    for block, piece in sorted(found, key=lambda one: -surprises[one[1]]):
        if block.part.number not in done and surprises[piece] >= needed:
            done.add(block.part.number)
            yield block


def _end_to_end(surprises: Mapping[_Piece, float]) -> Iterator[list[_Piece]]:
    """The rows of pieces by modules beside each other that make up a whole, one behind the other; of two at one place the surer."""
    wholes: dict[tuple[object, ...], dict[int, _Piece]] = defaultdict(dict)
    for piece in sorted(surprises, key=surprises.__getitem__):
        if piece.groups == 1:
            wholes[_module(piece.part), piece.whole, piece.size][piece.start] = piece
    for (_, _, size), starting in wholes.items():
        row, end = [], 0
        while end in starting:
            row.append(starting[end])
            end = row[-1].stop
        if end == size and len({piece.part for piece in row}) == len(row):
            yield row


def _block_text(part: _Form, whole: _Form, where: Part) -> str:
    runs = f" in each of {where.groups} runs" if where.groups > 1 else ""
    return f"{_last(part.param.name)} is {where.start}:{where.stop}{runs} of {_last(whole.param.name)}"


def _strips(forms: Sequence[_Form], taken: set[int]) -> dict[Key, list[_Strip]]:
    """The axis vectors of the parameters not yet found on the other side, by the lengths of the remaining axes."""
    strips: dict[Key, list[_Strip]] = defaultdict(list)
    for number, form in enumerate(forms):
        if number in taken or form.is_constant:
            continue
        for axis, (size, vector) in enumerate(zip(form.param.shape, form.sketch.axes, strict=True)):
            if size > 1 and vector.size:
                rest = list(form.key)
                rest.remove(size)
                strips[tuple(rest)].append(_Strip(number, axis, vector, form.roundoff))
    return strips


def _blocks_within(parts: Sequence[_Strip], wholes: Sequence[_Strip]) -> Iterator[_Block]:
    """Where each strip stands inside a longer one."""
    parts = [part for part in parts if part.vector.size > 1]
    sizes = np.array([strip.vector.size for strip in wholes])
    owner, offsets = np.repeat(np.arange(len(wholes)), sizes), np.cumsum([0, *sizes])
    values = np.concatenate([strip.vector for strip in wholes])
    following = np.append(values[1:], np.nan)
    following[offsets[1:] - 1] = np.nan
    order = np.argsort(values)
    coarsest = max((whole.roundoff for whole in wholes), default=0.0)
    for start in range(0, len(parts), THRESHOLDS.blocks_at_once):
        some = parts[start : start + THRESHOLDS.blocks_at_once]
        slack, spread = _slacks(some, coarsest)
        which, places = _begun(some, slack, values[order], order, following)
        longer = sizes[owner[places]] > np.array([part.vector.size for part in some])[which]
        for number, place in zip(which[longer].tolist(), places[longer].tolist(), strict=True):
            part, whole = some[number].vector, wholes[owner[place]]
            where = _where(part, whole, place - int(offsets[owner[place]]), float(slack[number]))
            if where is not None:
                apart = float(np.abs(replace(where, axis=0)(whole.vector) - part).max()) / float(spread[number])
                yield _Block(some[number], whole, where, -part.size * math.log(min(max(apart, THRESHOLDS.block_slack), 1.0)))


def _slacks(parts: Sequence[_Strip], coarsest: float) -> tuple[Floats, Floats]:
    """By how much each part's entries may differ from a whole's of that roundoff, and by how much from each other they do."""
    sizes = np.array([part.vector.size for part in parts])
    values, starts = np.concatenate([part.vector for part in parts]), np.cumsum(sizes) - sizes
    apart = values - np.repeat(np.add.reduceat(values, starts) / sizes, sizes)
    spread, scale = (np.sqrt(np.add.reduceat(one * one, starts) / sizes) for one in (apart, values))
    spread = np.where(spread > 0, spread, 1.0)
    roundoff = np.array([max(part.roundoff, coarsest) for part in parts])
    slack: Floats = np.maximum(THRESHOLDS.block_slack * spread, THRESHOLDS.block_roundings * roundoff * scale)
    return slack, spread


def _begun(parts: Sequence[_Strip], slack: Floats, ordered: Floats, order: Ints, following: Floats) -> tuple[Ints, Ints]:
    """Where two neighbouring values are the first two of a part: the number of the part, and the place, for each."""
    first, second = (np.array([part.vector[place] for part in parts]) for place in (0, 1))
    low, high = np.searchsorted(ordered, first - slack), np.searchsorted(ordered, first + slack)
    counts = high - low
    which = np.repeat(np.arange(len(parts)), counts)
    places = order[np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - low, counts)]
    fits = np.abs(following[places] - second[which]) <= slack[which]
    return which[fits], places[fits]


def _where(part: Floats, whole: _Strip, start: int, slack: float) -> Part | None:
    """The block of ``whole`` that starts at ``start`` and holds ``part``: contiguous, or in equal runs."""
    near = np.abs(whole.vector[start : start + part.size] - part[: whole.vector.size - start]) <= slack
    longest = int(near.argmin()) if not near.all() else near.size
    if longest == part.size:
        return Part(whole.axis, start, start + longest)
    for run in range(longest, 1, -1):  # what follows a run may be like what follows it in the part, within the slack
        groups = part.size // run
        stride = whole.vector.size // groups
        if part.size % run or whole.vector.size % groups or start + run > stride:
            continue
        inside = whole.vector.reshape(groups, stride)[:, start : start + run].ravel()
        if np.all(np.abs(inside - part) <= slack):
            return Part(whole.axis, start, start + run, groups)
    return None


# -- small pieces ----------------------------------------------------------------------------------------


def _owners(side: Side) -> dict[int, int]:
    return {param: site for site, params in enumerate(side.owned) for param in params}


def _worth(side: Side, forms: Sequence[_Form]) -> list[float]:
    """How many telling parameters each site owns."""
    return [float(sum(not forms[param].is_constant for param in params)) for params in side.owned]


def _standard(rows: Floats) -> Floats:
    """Each row centred and scaled to spread 1."""
    spread = rows.std(1, keepdims=True)
    scaled: Floats = (rows - rows.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    return scaled


def _padded(rows: Floats, length: int) -> Floats:
    return np.pad(rows[:, :length], ((0, 0), (0, max(0, length - rows.shape[1]))))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def largest(params: Iterable[Fingerprinted]) -> Key:
    """The lengths of the largest parameter's axes, sorted, ones left out: what layout, bias and weight norm do not change."""
    return max((_free(param.shape) for param in params), default=(0, ()))[1]


@lru_cache(maxsize=1 << 14)
def _free(shape: tuple[int, ...]) -> tuple[int, Key]:
    """How many elements a shape has, and its axes longer than 1, sorted."""
    return math.prod(shape), tuple(sorted(size for size in shape if size != 1))
