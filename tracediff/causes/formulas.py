"""Causes in code that gates, modulates, reduces, picks, pads and enlarges: a short formula of what is in hand, changed in one place.

The reference is written as a multiple of one *view* of a tensor in hand, or of a product of two, each after a function of single values,
plus at most two further views. The port is then looked for among the formulas that differ from the reference's in as little as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product

import numpy as np

from tracediff.causes.in_hand import InHand
from tracediff.causes.proof import Claim, Edit
from tracediff.causes.scene import NOT_ZERO, Scene
from tracediff.causes.tensor_views import ONE, View, views
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.dtype import Array
from tracediff.replay.functions import FUNCTIONS

_FIRST_FUNCTIONS = (
    "identity",
    "sigmoid",
    "tanh",
    "SiLU",
    "GELU (exact)",
    "GELU (tanh)",
    "ReLU",
    "softplus",
    "exp",
    "exp of half",
    "sine",
    "square",
    "square root",
)
_SECOND_FUNCTIONS = ("identity", "sigmoid", "tanh", "square", "SiLU")
"""Functions of the first and of the second factor of a product."""
_ROUNDING = 1e-9
"""What a quotient times its divisor may lack of the dividend."""
_DEPENDENT = 1e8
"""Condition above which float64 no longer tells what is added apart."""


@dataclass(frozen=True, slots=True)
class _Factor:
    """A function of one view."""

    function: str
    view: View

    @property
    def text(self) -> str:
        return self.view.text if self.function == "identity" else f"{self.function} of {self.view.text}"


Product = tuple[_Factor, ...]
"""One factor, or two that are multiplied."""


@dataclass(frozen=True, slots=True)
class _Formula:
    """``gain`` times the product of one or two factors, plus each of ``added`` times its coefficient."""

    factors: Product
    gain: float
    added: tuple[tuple[View, float], ...] = ()

    @property
    def text(self) -> str:
        factors = " times ".join(factor.text for factor in self.factors)
        return " + ".join([_term_text(self.gain, factors), *(_term_text(factor, view.text) for view, factor in self.added)])

    def values(self, shape: tuple[int, ...]) -> Array:
        """What the formula gives, in the shape that its views have."""
        with np.errstate(all="ignore"):
            made = np.full(shape, self.gain)
            for factor in self.factors:
                made = made * FUNCTIONS[factor.function](factor.view.values)
            for view, coefficient in self.added:
                made = made + coefficient * view.values
        return made

    @property
    def is_trivial(self) -> bool:
        """Whether the formula says no more than that a tensor is handed on."""
        factor = self.factors[0]
        is_alone = len(self.factors) == 1 and not self.added and abs(self.gain - 1) < THRESHOLDS.gain_is_one
        return is_alone and factor.view.is_whole and not factor.view.source.is_input


def _term_text(factor: float, name: str) -> str:
    if name == ONE:
        return f"{factor:.5g}"
    return name if abs(factor - 1) < THRESHOLDS.gain_is_one else f"{factor:.5g} * {name}"


def detect(scene: Scene) -> Iterable[Claim]:
    """The one place in which the port's formula differs from the reference's."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if reference.size < THRESHOLDS.fewest_in_formula:
        return
    search = _Search(scene, reference, port)
    ours = search.of_reference() if search.is_told_apart else None
    theirs = search.of_port(ours) if ours is not None else None
    if ours is not None and theirs is not None:
        kind, evidence = _difference(ours, theirs)
        evidence = evidence or f"the reference is {ours.text}, the port {theirs.text}"
        yield Claim(kind, THRESHOLDS.sure_formula, evidence, Edit(theirs.values(port.shape), ours.values(port.shape)))


@dataclass(frozen=True)
class _Pool:
    """Products, and their values (products, sample)."""

    products: Sequence[Product]
    rows: Array
    _along: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def along(self, vector: Array) -> Array:
        """The products of `half` and a vector (products,); those of one vector are worked out once."""
        if id(vector) not in self._along:
            self._along[id(vector)] = vector, self.half @ vector[: self.half.shape[1]]
        return self._along[id(vector)][1]

    @cached_property
    def half(self) -> Array:
        """The values on the half of the sample from which formulas are told (products, half of the sample)."""
        return self.rows[:, : min(THRESHOLDS.half_sample, self.rows.shape[1])]

    @cached_property
    def squares(self) -> Array:
        """The squared norms of `half` (products,)."""
        return np.asarray(np.einsum("ij,ij->i", self.half, self.half))


class _Terms:
    """What formulas are made of: the views of what is in hand, their functions and products, all on a sample of their values."""

    def __init__(self, in_hand: Sequence[InHand], shape: tuple[int, ...], spot: tuple[Array, ...]) -> None:
        self._size = len(spot[0])
        self._views = list(views(in_hand, shape))[: THRESHOLDS.most_views]
        self._values = {id(view): view.values[spot].astype(np.float64) for view in self._views}
        one = View(InHand(ONE, "", "", is_input=True, values=np.ones(1)), "", np.ones(1), "constant")
        self._values[id(one)] = np.ones(self._size)
        self._rows: dict[tuple[str, int], Array] = {}
        self.addends = [*self._views[: THRESHOLDS.most_added - 1], one]

    def values(self, view: View) -> Array:
        """The values of a view (sample,)."""
        return self._values[id(view)]

    def columns(self, added: Sequence[View]) -> Array:
        """The values of views (sample, views)."""
        return np.stack([self._values[id(view)] for view in added], 1) if added else np.empty((self._size, 0))

    @cached_property
    def singles(self) -> _Pool:
        """All functions of one view, with their values (factors, sample)."""
        singles: list[Product] = [(_Factor(name, view),) for view in self._views for name in FUNCTIONS]
        rows = np.stack([self._row(single[0]) for single in singles]) if singles else np.empty((0, self._size))
        return _Pool(singles, rows)

    @cached_property
    def plain(self) -> _Pool:
        """The products of two views as they are."""
        products, rows = self.products.products, self.products.rows
        plain = [place for place, factors in enumerate(products) if factors[0].function == factors[1].function == "identity"]
        return _Pool([products[place] for place in plain], rows[plain])

    @cached_property
    def products(self) -> _Pool:
        """All products of two factors of different views, with their values (products, sample)."""
        factors = list(enumerate(self._views[: THRESHOLDS.most_factors]))
        firsts = [(place, _Factor(name, view)) for (place, view), name in product(factors, _FIRST_FUNCTIONS)]
        seconds = [(place, _Factor(name, view)) for (place, view), name in product(factors, _SECOND_FUNCTIONS)]
        pairs: list[Product] = []
        chosen: list[tuple[int, int]] = []
        for (one, (place, first)), (other, (other_place, second)) in product(enumerate(firsts), enumerate(seconds)):
            is_twice = second.function == first.function and other_place < place
            if place != other_place and not is_twice:
                pairs.append((first, second))
                chosen.append((one, other))
        if not pairs:
            return _Pool([], np.empty((0, self._size)))
        ones, others = np.array(chosen).T
        rows, other_rows = (np.stack([self._row(factor) for _, factor in side]) for side in (firsts, seconds))
        with np.errstate(all="ignore"):
            return _Pool(pairs, rows[ones] * other_rows[others])

    def _row(self, factor: _Factor) -> Array:
        """The values of a factor (sample,); NaN where the function is not defined there."""
        key = factor.function, id(factor.view)
        if key not in self._rows:
            with np.errstate(all="ignore"):
                self._rows[key] = np.asarray(FUNCTIONS[factor.function](self._values[id(factor.view)]), np.float64)
        return self._rows[key]


class _Search:
    """Formulas for one divergence, tried on a sample of its values: ``y`` (sample,) of the reference, ``p`` (sample,) of the port."""

    def __init__(self, scene: Scene, reference: Array, port: Array) -> None:
        chosen = np.random.default_rng(0).permutation(reference.size)[: 2 * THRESHOLDS.half_sample]
        spot = np.unravel_index(chosen, reference.shape)
        self._terms = _Terms(scene.in_hand, reference.shape, spot)
        self.y, self.p = reference[spot], port[spot]
        made = float(np.linalg.norm(self.p - self.y)) / max(float(np.linalg.norm(self.p)), NOT_ZERO)
        self.tolerance = max(min(THRESHOLDS.formula_fit, made / THRESHOLDS.told_apart), THRESHOLDS.formula_noise * scene.limit)
        self.is_told_apart = made > THRESHOLDS.told_apart * self.tolerance * (1 - _ROUNDING)
        self.port_tolerance = max(self.tolerance, min(THRESHOLDS.reproduced * made, THRESHOLDS.port_fit_at_most))

    def of_reference(self) -> _Formula | None:
        """The plainest formula that gives the reference; a trivial one only where there is no other."""
        trivial: _Formula | None = None
        for formula in self._plainest_first():
            if not formula.is_trivial:
                return formula
            trivial = trivial or formula
        return trivial

    def of_port(self, ours: _Formula) -> _Formula | None:
        """The formula for the port that differs least from the reference's: as much is added, then less, then another view, then more."""
        for tolerance in dict.fromkeys((self.tolerance, self.port_tolerance)):  # what fits as well as the reference's own comes first
            for stage in self._addends_near(tuple(view for view, _ in ours.added)):
                found = [
                    formula
                    for added in stage
                    for pool in (self._terms.singles, self._terms.products)
                    for formula in self._fitting(self.p, pool, added, tolerance)
                ]
                best = min(found, key=lambda formula: _distance(ours, formula), default=None)
                if best is not None:
                    return best
        return None

    def _plainest_first(self) -> Iterator[_Formula]:
        """Formulas that give the reference: one factor, a product, and each with one or two views added."""
        for pool in (self._terms.singles, self._terms.products):
            yield from self._fitting(self.y, pool, (), self.tolerance)
        for view in self._terms.addends:
            for pool in (self._terms.singles, self._terms.products):
                yield from self._fitting(self.y, pool, (view,), self.tolerance)
        for pair in combinations(self._terms.addends, 2):
            yield from self._fitting(self.y, self._terms.plain, pair, self.tolerance)

    def _addends_near(self, added: tuple[View, ...]) -> Iterator[list[tuple[View, ...]]]:
        """What the port may add where the reference adds ``added``, stage by stage."""
        yield [added]
        if added:
            yield [*((view,) for view in added if len(added) > 1), ()]
        others = [view for view in self._terms.addends if view not in added]
        yield [(*added[:place], view, *added[place + 1 :]) for place in range(len(added)) for view in others]
        if len(added) < 2:
            yield [(*added, view) for view in others]

    def _fitting(self, y: Array, pool: _Pool, added: Sequence[View], tolerance: float) -> Iterator[_Formula]:
        """The formulas of some products and given views that give ``y``, told from half of the sample and checked on all."""
        if not pool.products:
            return
        half = pool.half.shape[1]
        basis, upper = np.linalg.qr(self._terms.columns(added)[:half])
        if added and not np.linalg.cond(upper) < _DEPENDENT:
            return  # what is added is the same thing twice, or nothing
        along = basis.T @ y[:half]
        target = y[:half] - basis @ along
        with np.errstate(all="ignore"):
            columns = [pool.along(self._terms.values(view)) for view in added]
            inside = np.stack(columns, 1) @ np.linalg.inv(upper) if added else np.zeros((len(pool.products), 0))
            norms = pool.squares - np.einsum("ij,ij->i", inside, inside)
            least = THRESHOLDS.independent * np.maximum(float(target @ target), NOT_ZERO)
            left = float(target @ target) - (pool.along(y) - inside @ along) ** 2 / np.where(norms > least, norms, np.inf)
        size = float(y[:half] @ y[:half])
        fitting = np.flatnonzero(left <= tolerance**2 * size)
        best = fitting[np.argsort(left[fitting], kind="stable")]
        for place in best[: THRESHOLDS.most_checked].tolist():
            formula = self._checked(y, pool.products[place], pool.rows[place], added, tolerance)
            if formula is not None:
                yield formula

    def _checked(self, y: Array, factors: Product, row: Array, added: Sequence[View], tolerance: float) -> _Formula | None:
        """The formula with its coefficients, fitted to the whole sample; None where it does not give ``y`` or a term makes up nothing."""
        matrix = np.column_stack([row, self._terms.columns(added)])
        scales = np.linalg.norm(matrix, axis=0)
        if not np.isfinite(matrix).all() or not scales.all():
            return None
        found, _, rank, singular = np.linalg.lstsq(matrix / scales, y, rcond=None)
        if rank < matrix.shape[1] or singular[-1] < THRESHOLDS.least_condition * singular[0]:
            return None
        weights = found / scales
        size = np.linalg.norm(y)
        if np.linalg.norm(matrix @ weights - y) > tolerance * size:
            return None
        if (np.abs(weights) * scales < THRESHOLDS.least_term * size).any():
            return None
        return _Formula(factors, float(weights[0]), tuple((view, float(c)) for view, c in zip(added, weights[1:], strict=True)))


def _distance(ours: _Formula, theirs: _Formula) -> float:
    """How much was changed: functions, views, coefficients, and what is added."""
    orders = {theirs.factors, theirs.factors[::-1]}
    change = min(_distance_of_products(ours.factors, order) for order in orders)
    added = {id(view) for view, _ in ours.added} ^ {id(view) for view, _ in theirs.added}
    is_other_gain = abs(ours.gain - theirs.gain) > THRESHOLDS.gain_differs * abs(ours.gain)
    return change + THRESHOLDS.cost_added * len(added) + THRESHOLDS.cost_gain * is_other_gain


def _distance_of_products(ours: Product, theirs: Product) -> float:
    """The part of `_distance` that lies in the factors, compared in their order."""
    change = THRESHOLDS.cost_factor_count * abs(len(ours) - len(theirs))
    for one, other in zip(ours, theirs, strict=False):
        change += _distance_of_factors(one, other)
    return change


def _distance_of_factors(one: _Factor, other: _Factor) -> float:
    cost = 0.0 if one.function == other.function else THRESHOLDS.cost_function
    if one.view is other.view:
        return cost
    return cost + (THRESHOLDS.cost_other_view if one.view.source is other.view.source else THRESHOLDS.cost_other_tensor)


def _difference(ours: _Formula, theirs: _Formula) -> tuple[str, str]:
    """The kind of the cause, and a sentence where the two formulas alone do not say it plainly."""
    if theirs.factors in (ours.factors, ours.factors[::-1]):
        return _difference_of_addends(ours, theirs)
    if len(theirs.factors) < len(ours.factors):
        return _factor_lost(ours.factors, theirs.factors)
    if len(theirs.factors) > len(ours.factors):
        is_kept = any(one.view is other.view for one in ours.factors for other in theirs.factors)
        return ("branch.extra" if is_kept else "order.roles"), ""
    return _kind_of_products(ours.factors, theirs.factors), ""


def _difference_of_addends(ours: _Formula, theirs: _Formula) -> tuple[str, str]:
    """As `_difference`, for formulas of the same factors: what is added differs, or the coefficients do."""
    gone = next((view for view, _ in ours.added if all(view is not other for other, _ in theirs.added)), None)
    if gone is not None and len(ours.factors) == 2 and any(factor.view is gone for factor in ours.factors):
        modulation = next((factor for factor in ours.factors if factor.view is not gone), ours.factors[0])
        return "scale", f"the reference multiplies {gone.text} by 1 + {modulation.text}, the port by {modulation.text} alone"
    if gone is not None and gone.source.name != ONE:
        return gone.source.kind_if_left_out(is_stream=gone.source.is_stream), ""
    return ("branch.extra" if len(theirs.added) > len(ours.added) else "scale"), ""


def _factor_lost(ours: Product, theirs: Product) -> tuple[str, str]:
    """As `_difference`, for a port that multiplies by less."""
    lost = next((one for one in ours if all(one.view is not other.view for other in theirs)), None)
    if lost is not None and lost.view.is_mask:
        return "mask.missing", f"the reference multiplies by {lost.text}, which is 0 or 1; the port does not"
    return "branch.missing", ""


def _kind_of_products(ours: Product, theirs: Product) -> str:
    """The kind of cause where both sides have as many factors, in which a function or a view differs."""
    pairs = _paired(ours, theirs)
    has_same_functions = sorted(factor.function for factor in ours) == sorted(factor.function for factor in theirs)
    if len(pairs) == 2 and has_same_functions and pairs[0][0].function != pairs[0][1].function:
        return "order.roles"
    if all(one.view is other.view for one, other in pairs):
        return _kind_of_functions({factor.function for pair in pairs if pair[0].function != pair[1].function for factor in pair})
    if {id(one.view) for one in ours} == {id(one.view) for one in theirs}:
        return "order.roles"
    one, other = next((one, other) for one, other in pairs if one.view is not other.view)
    return one.view.kind_against(other.view) if one.view.source is other.view.source else "order.roles"


def _kind_of_functions(names: set[str]) -> str:
    """The kind of cause that it is to apply one of these functions in the place of another."""
    if names == {"exp", "exp of half"}:
        return "scale"
    return "units.log" if names & {"log", "exp"} else "activation"


def _paired(ours: Product, theirs: Product) -> list[tuple[_Factor, _Factor]]:
    """The factors of two products, in the order in which most are of one view."""

    def worth(pairs: list[tuple[_Factor, _Factor]]) -> float:
        views_shared = sum(one.view is other.view for one, other in pairs)
        return views_shared + THRESHOLDS.worth_of_function * sum(one.function == other.function for one, other in pairs)

    return max((list(zip(ours, order, strict=False)) for order in (theirs, theirs[::-1])), key=worth)
