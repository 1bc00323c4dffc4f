"""What parameters say: which of the port's are the reference's, transposed, rounded, fused, merged or rearranged.

Nothing but the sketches is read. Equality is by tolerance on the axis vectors, which follow their axes through a permutation: sorted
values alone are only a prefilter. A parameter that many share (tied, constant) is weak evidence, and one that is not loaded is none:
both leave the decision to structure and order.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracediff.align.axes import Part
from tracediff.align.structure import Side
from tracediff.trace import Param

Floats = NDArray[np.float64]
Key = tuple[int, ...]

EQUAL = 1e-4  # error of the axis vectors, relative to their spread, below which two parameters hold the same values
_ENTRIES = 256  # of each axis vector that are compared
_CORNER = 4  # entries of each axis vector in the search tree
_CROWD = 64  # a class with more members than this says nothing about any two of them
_RUN = 4  # entries that must agree before a block of a fused parameter is looked at closely


@dataclass(slots=True)
class Evidence:
    """What the parameters of two sites say about their being one: ``share`` of what they own agrees, and how."""

    share: float = 0.0
    how: list[str] = field(default_factory=list)
    part: Part | None = None
    whole: str = ""  # which side holds the fused whole: "reference", "port" or "" where nothing is fused

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
        if one.part is not None and (entry.part is None or one.part.groups > 1):
            entry.part, entry.whole = one.part, one.whole
    for side in (0, 1):
        _gather(found, side, (reference, port)[1 - side], worth)
    return dict(found)


def _gather(found: dict[tuple[int, int], Evidence], side: int, other: Side, worth: Sequence[Sequence[float]]) -> None:
    """Gives a site whose parameters several smaller sites of the other side own, each some, to the module that holds those.

    A stack of recurrent layers is one module in one framework and a list of layers in another: it is none of the layers.
    """
    owners: dict[int, list[int]] = defaultdict(list)
    for pair, entry in found.items():
        if entry.part is None and worth[1 - side][pair[1 - side]] < worth[side][pair[side]]:
            owners[pair[side]].append(pair[1 - side])
    for site, parts in owners.items():
        holder = _holder(other, parts) if len(parts) > 1 else None
        if holder is None or worth[1 - side][holder]:
            continue
        pairs = [(site, part) if side == 0 else (part, site) for part in parts]
        entries = [found.pop(pair) for pair in pairs]
        whole = found[(site, holder) if side == 0 else (holder, site)]
        whole.share = sum(entry.share for entry in entries) / len(entries)
        whole.how = [how for entry in entries for how in entry.how]


def _holder(side: Side, sites: Sequence[int]) -> int | None:
    """The nearest module whose path begins those of all these sites; None where it is the root or no site."""
    paths = [side.path[site].split(".") for site in sites]
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    for length in range(shared, 0, -1):
        holder = side.number.get(".".join(paths[0][:length]))
        if holder is not None:
            return holder
    return None


def shared_parameters(reference: Sequence[Param], port: Sequence[Param]) -> Iterator[Shared]:
    """Every two parameters, one of each side, that hold the same values in some form; the surest form first."""
    return _shared([_Form(param) for param in reference], [_Form(param) for param in port])


def _shared(a: Sequence[_Form], b: Sequence[_Form]) -> Iterator[Shared]:
    classes_a, classes_b = _classes(a), _classes(b)
    taken_a: set[int] = set()
    taken_b: set[int] = set()
    for how in (_identical, _permuted, _rearranged, _signs):
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
    if crowd > _CROWD or forms[members_a[0]].is_constant:
        return
    text = how if crowd == 1 else f"{how}, as are {crowd - 1} more"
    for i, j in product(members_a, members_b):
        yield Shared(i, j, f"{_last(forms[i].param.name)} {text}", 1.0 / crowd)


class _Form:
    """One parameter made comparable: its axes longer than 1 by length, and their vectors centred and scaled to spread 1."""

    __slots__ = ("_blocks", "digest", "is_constant", "key", "param", "size")

    def __init__(self, param: Param) -> None:
        self.param = param
        self.digest = param.digest
        shape = param.shape
        self.key: Key = tuple(sorted(size for size in shape if size != 1))
        stats = param.stats
        self.size = stats.count
        self.is_constant = stats.count < 2 or stats.std <= 1e-6 * max(abs(stats.mean), 1e-30)
        self._blocks: tuple[Floats, ...] | None = None

    @property
    def blocks(self) -> tuple[Floats, ...]:
        """For each axis length a vector that no permutation of the axes changes; none where all values are one."""
        if self._blocks is None:
            self._blocks = () if self.is_constant else tuple(_blocks(self.param))
        return self._blocks

    @property
    def corner(self) -> Floats:
        """The first entries of each block: a point in the search tree. Short blocks are padded, alike for alike keys."""
        return np.concatenate([_padded(_standard(block), _CORNER) for block in self.blocks])

    @property
    def entries(self) -> int:
        return sum(block.size for block in self.blocks)


def _blocks(param: Param) -> Iterator[Floats]:
    """For each axis length, one vector that no permutation of the axes changes: the axis vector, or symmetric sums of several."""
    by_length: dict[int, list[Floats]] = defaultdict(list)
    for size, vector in zip(param.shape, param.sketch.axes, strict=True):
        if size != 1 and vector.size:
            by_length[size].append(np.asarray(vector[:_ENTRIES], np.float64))
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
    for one, other, error in _nearest(a, b, left_a, left_b, lambda form: form.corner, _distance, 0.35):
        how = "equal" if error < EQUAL else f"equal to {error:.0e} of its spread"
        i, j = a[left_a[one][0]].param.shape, b[left_b[other][0]].param.shape
        yield one, other, how if i == j else f"{how}, transposed" if sorted(i) == sorted(j) and len(i) > 1 else f"{how}, reshaped"


def _distance(a: _Form, b: _Form) -> float:
    """The worst relative distance of the blocks; infinite where it is not small enough for so few entries to prove anything."""
    if a.key != b.key or len(a.blocks) != len(b.blocks):
        return np.inf
    worst = max(_apart(x, y) for x, y in zip(a.blocks, b.blocks, strict=True))
    entries = a.entries
    limit = 0.3 if entries >= 24 else 0.1 if entries >= 8 else 1e-3
    return worst if worst < limit else np.inf


def _apart(x: Floats, y: Floats) -> float:
    spread = float(np.linalg.norm(x - x.mean())) or float(np.linalg.norm(x)) or 1e-300
    return float(np.linalg.norm(y - x)) / spread


def _rearranged(a: Sequence[_Form], b: Sequence[_Form], left_a: Classes, left_b: Classes) -> Found:
    """The same values in another order altogether (rows permuted for a rotary embedding, axes merged): all quantiles agree."""

    def corner(form: _Form) -> Floats:
        return _padded(_standard(_profile(form)[1:]), 12)

    def distance(x: _Form, y: _Form) -> float:
        error = float(np.abs(_profile(x) - _profile(y)).max())
        return error if x.size == y.size and x.size >= 16 and error < 1e-6 else np.inf

    for one, other, _ in _nearest(a, b, left_a, left_b, corner, distance, 1e-4, by_shape=False):
        yield one, other, "the same values in another order"


def _profile(form: _Form) -> Floats:
    stats = form.param.stats
    scale = stats.l2 / max(stats.count, 1) ** 0.5 or 1.0
    return np.concatenate([[stats.l2 / scale, stats.absmean / scale, np.cbrt(stats.cube) / scale], form.param.sketch.quantiles / scale])


def _nearest(
    a: Sequence[_Form],
    b: Sequence[_Form],
    left_a: Classes,
    left_b: Classes,
    corner: Any,
    distance: Any,
    radius: float,
    by_shape: bool = True,
) -> Iterator[tuple[tuple[bytes, Key], tuple[bytes, Key], float]]:
    """Classes of the two sides that are each other's nearest by ``distance``, found in a tree over their corners."""
    from scipy.spatial import cKDTree

    def grouped(forms: Sequence[_Form], left: Classes) -> dict[Any, list[tuple[bytes, Key]]]:
        groups: dict[Any, list[tuple[bytes, Key]]] = defaultdict(list)
        for key, members in left.items():
            form = forms[members[0]]
            if form.blocks:
                groups[form.key if by_shape else form.size].append(key)
        return groups

    groups_a, groups_b = grouped(a, left_a), grouped(b, left_b)
    for group in groups_a.keys() & groups_b.keys():
        keys_a, keys_b = groups_a[group], groups_b[group]
        forms_a, forms_b = [a[left_a[key][0]] for key in keys_a], [b[left_b[key][0]] for key in keys_b]
        tree_a, tree_b = cKDTree(np.stack([corner(f) for f in forms_a])), cKDTree(np.stack([corner(f) for f in forms_b]))
        near = tree_a.query_ball_tree(tree_b, radius, p=np.inf)
        errors = {(i, j): distance(forms_a[i], forms_b[j]) for i, others in enumerate(near) for j in others[:_CROWD]}
        for i, j in _mutual(errors):
            yield keys_a[i], keys_b[j], errors[i, j]


def _mutual(errors: dict[tuple[int, int], float]) -> Iterator[tuple[int, int]]:
    best_a: dict[int, tuple[float, int]] = {}
    best_b: dict[int, tuple[float, int]] = {}
    for (i, j), error in errors.items():
        if error < best_a.get(i, (np.inf, -1))[0]:
            best_a[i] = error, j
        if error < best_b.get(j, (np.inf, -1))[0]:
            best_b[j] = error, i
    yield from ((i, j) for i, (_, j) in best_a.items() if best_b[j][1] == i)


# -- weight norm merged on one side ----------------------------------------------------------------------


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
    for vector in form.param.sketch.axes:
        if vector.size >= 28 and 0.2 < np.mean(vector > 0) < 0.8:
            yield vector


def _pattern(vector: Floats) -> bytes:
    return np.packbits(vector[:32] > 0).tobytes()


def _alike_signs(x: Floats, y: Floats) -> bool:
    return bool(np.mean((x > 0) == (y > 0)) > 0.97)


# -- fused projections -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Strip:
    """One axis vector of a parameter, along which it may be a fused whole or a part of one."""

    number: int
    axis: int
    vector: Floats


def _fused(a: Sequence[_Form], b: Sequence[_Form], taken_a: set[int], taken_b: set[int]) -> Iterator[Shared]:
    """Parameters that are blocks of a larger one on the other side."""
    strips_a, strips_b = _strips(a, taken_a), _strips(b, taken_b)
    for others in strips_a.keys() & strips_b.keys():
        for part, whole, where in _blocks_within(strips_a[others], strips_b[others]):
            yield Shared(part.number, whole.number, _block_text(a[part.number], b[whole.number], where), 1.0, where, "port")
        for part, whole, where in _blocks_within(strips_b[others], strips_a[others]):
            yield Shared(whole.number, part.number, _block_text(b[part.number], a[whole.number], where), 1.0, where, "reference")


def _block_text(part: _Form, whole: _Form, where: Part) -> str:
    runs = f" in each of {where.groups} runs" if where.groups > 1 else ""
    return f"{_last(part.param.name)} is {where.start}:{where.stop}{runs} of {_last(whole.param.name)}"


def _strips(forms: Sequence[_Form], taken: set[int]) -> dict[Key, list[_Strip]]:
    """The axis vectors of the parameters not yet found on the other side, by the lengths of the remaining axes."""
    strips: dict[Key, list[_Strip]] = defaultdict(list)
    for number, form in enumerate(forms):
        if number in taken or form.is_constant:
            continue
        for axis, (size, vector) in enumerate(zip(form.param.shape, form.param.sketch.axes, strict=True)):
            if size > 1 and vector.size:
                rest = list(form.key)
                rest.remove(size)
                strips[tuple(rest)].append(_Strip(number, axis, vector))
    return strips


def _blocks_within(parts: Sequence[_Strip], wholes: Sequence[_Strip]) -> Iterator[tuple[_Strip, _Strip, Part]]:
    """The (part, whole, where) of each strip that stands inside a longer one."""
    owner = np.repeat(np.arange(len(wholes)), [strip.vector.size for strip in wholes])
    offsets = np.cumsum([0, *(strip.vector.size for strip in wholes)])
    values = np.concatenate([strip.vector for strip in wholes])
    order = np.argsort(values)
    ordered = values[order]
    for part in parts:
        slack = 1e-3 * float(part.vector.std() or 1.0)
        low, high = np.searchsorted(ordered, (part.vector[0] - slack, part.vector[0] + slack))
        for place in order[low:high]:
            whole = wholes[owner[place]]
            where = _where(part.vector, whole, int(place - offsets[owner[place]]), slack) if whole.vector.size > part.vector.size else None
            if where is not None:
                yield part, whole, where
                break


def _where(part: Floats, whole: _Strip, start: int, slack: float) -> Part | None:
    """The block of ``whole`` that starts at ``start`` and holds ``part``: contiguous, or in equal runs."""
    near = np.abs(whole.vector[start : start + part.size] - part[: whole.vector.size - start]) <= slack
    run = int(near.argmin()) if not near.all() else near.size
    if run == part.size >= _RUN:
        return Part(whole.axis, start, start + run)
    if run < 2 or part.size % run or whole.vector.size % (part.size // run):
        return None
    groups = part.size // run
    stride = whole.vector.size // groups
    if start + run > stride:
        return None
    inside = whole.vector.reshape(groups, stride)[:, start : start + run].ravel()
    return Part(whole.axis, start, start + run, groups) if np.all(np.abs(inside - part) <= slack) else None


# -- small pieces ----------------------------------------------------------------------------------------


def _owners(side: Side) -> dict[int, int]:
    return {param: site for site, params in enumerate(side.owned) for param in params}


def _worth(side: Side, forms: Sequence[_Form]) -> list[float]:
    """How many telling parameters each site owns."""
    return [float(sum(not forms[param].is_constant for param in params)) for params in side.owned]


def _standard(vector: Floats) -> Floats:
    spread = float(vector.std())
    scaled: Floats = (vector - vector.mean()) / (spread or 1.0)
    return scaled


def _padded(vector: Floats, length: int) -> Floats:
    return np.concatenate([vector[:length], np.zeros(max(0, length - vector.size))])


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def largest(params: Iterable[Param]) -> Key:
    """The lengths of the largest parameter's axes, sorted, ones left out: what layout, bias and weight norm do not change."""
    return max((_free(param.shape) for param in params), default=(0, ()))[1]


@lru_cache(maxsize=1 << 14)
def _free(shape: tuple[int, ...]) -> tuple[int, Key]:
    """How many elements a shape has, and its axes longer than 1, sorted."""
    return math.prod(shape), tuple(sorted(size for size in shape if size != 1))
