"""Causes in code that gates, modulates, reduces, picks, pads and enlarges: a short formula of what is in hand, changed in one place.

The reference is written as a multiple of one *view* of a tensor in hand, or of a product of two, each after a function of single values,
plus at most two further views. The port is then looked for among the formulas that differ from that one in as little as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tracediff.causes.detectors.pointwise import FUNCTIONS
from tracediff.causes.scene import InHand, Scene, Suspect
from tracediff.causes.tensor_views import ONE, View, views
from tracediff.dtype import Array

_MOST_CHECKED = 40
_TOLD = 20.0  # so many times what a formula may leave must two tensors differ for two formulas to tell why
_FEWEST = 8  # values that a formula is told from
_SAMPLE = 96  # half of the values that formulas are tried on
_MOST_PLAIN = 12  # views that may be added
_MOST_VIEWS, _MOST_FACTORS = 48, 20
_FIRST = (
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
_SECOND = ("identity", "sigmoid", "tanh", "square", "SiLU")


@dataclass(frozen=True, slots=True)
class _Factor:
    """A function of one view."""

    function: str
    view: View

    @property
    def text(self) -> str:
        return self.view.text if self.function == "identity" else f"{self.function} of {self.view.text}"


@dataclass(frozen=True, slots=True)
class _Formula:
    """``gain`` times the product of one or two factors, plus each of ``added`` times its coefficient."""

    factors: tuple[_Factor, ...]
    gain: float
    added: tuple[tuple[View, float], ...] = ()

    def text(self) -> str:
        terms = [(self.gain, " times ".join(one.text for one in self.factors)), *((c, view.text) for view, c in self.added)]
        return " + ".join(f"{c:.5g}" if name == ONE else name if abs(c - 1) < 1e-4 else f"{c:.5g} * {name}" for c, name in terms)


def detect(scene: Scene) -> Iterable[Suspect]:
    """The one place in which the port's formula differs from the reference's."""
    if not scene.is_numeric:
        return
    reference, port = scene.tensors()
    if reference.size < _FEWEST:
        return
    search = _Search(scene, reference, port)
    ours = search.best(search.y, search.tolerance) if search.is_told else None
    if ours is None:
        return
    theirs = search.nearest(ours)
    if theirs is not None:
        kind, told = _difference(scene, ours, theirs)
        yield Suspect(kind, 0.9, True, told or f"the reference is {ours.text()}, the port {theirs.text()}")


class _Search:
    """Formulas for one divergence, tried on a sample of its values."""

    def __init__(self, scene: Scene, reference: Array, port: Array) -> None:
        chosen = np.random.default_rng(0).permutation(reference.size)[: 2 * _SAMPLE]
        spot = np.unravel_index(chosen, reference.shape)
        self.views = list(views(scene.in_hand, reference.shape))[:_MOST_VIEWS]
        self.values = {id(view): view.values[spot].astype(np.float64) for view in self.views}
        self.y, self.p = reference[spot], port[spot]
        made = float(np.linalg.norm(self.p - self.y)) / max(float(np.linalg.norm(self.p)), 1e-300)
        self.tolerance = max(min(1e-4, made / _TOLD), 10 * scene.limit)
        self.is_told = made > _TOLD * self.tolerance * (1 - 1e-9)
        self.loose = max(self.tolerance, min(0.02 * made, 0.01))
        self._atoms = [_Factor(name, view) for view in self.views[:_MOST_FACTORS] for name in _FIRST]
        self._seconds = [_Factor(name, view) for view in self.views[:_MOST_FACTORS] for name in _SECOND]
        self._rows: dict[tuple[str, int], Array] = {}
        one = View(InHand(ONE, "", "", is_input=True, values=np.ones(1)), "", np.ones(1), "constant")
        self.values[id(one)] = np.ones(len(chosen))
        self.plain = [*self.views[: _MOST_PLAIN - 1], one]
        self._singles: list[tuple[_Factor, ...]] = [(_Factor(name, view),) for view in self.views for name in FUNCTIONS]
        self._single_rows = np.stack([self.row(one[0]) for one in self._singles]) if self._singles else np.empty((0, len(self.y)))
        self._products: tuple[list[tuple[_Factor, ...]], Array] | None = None

    def row(self, factor: _Factor) -> Array:
        """The sampled values of a factor; NaN where the function is not defined there."""
        key = factor.function, id(factor.view)
        if key not in self._rows:
            with np.errstate(all="ignore"):
                self._rows[key] = np.asarray(FUNCTIONS[factor.function](self.values[id(factor.view)]), np.float64)
        return self._rows[key]

    def best(self, y: Array, tolerance: float) -> _Formula | None:
        """The plainest formula that gives some values; one that says no more than what returned them only where there is no other."""
        plain: _Formula | None = None
        for formula in self.fits(y, tolerance):
            if not _is_trivial(formula):
                return formula
            plain = plain or formula
        return plain

    def fits(self, y: Array, tolerance: float) -> Iterator[_Formula]:
        """Formulas that give some values, the plainest first: one factor, a product, and each with one or two views added."""
        singles, single_rows = self._singles, self._single_rows
        yield from self._fitting(y, singles, single_rows, (), tolerance)
        products, rows = self._pool()
        yield from self._fitting(y, products, rows, (), tolerance)
        for view in self.plain:
            yield from self._fitting(y, singles, single_rows, (view,), tolerance)
            yield from self._fitting(y, products, rows, (view,), tolerance)
        plain = [place for place, one in enumerate(products) if all(factor.function == "identity" for factor in one)]
        if plain:
            few, few_rows = [products[place] for place in plain], rows[plain]
            for pair in combinations(self.plain, 2):
                yield from self._fitting(y, few, few_rows, pair, tolerance)

    def _pool(self) -> tuple[list[tuple[_Factor, ...]], Array]:
        """All products of two factors of different views, with their values."""
        if self._products is None:
            pairs: list[tuple[_Factor, ...]] = []
            for one in self._atoms:
                for other in self._seconds:
                    is_twice = other.function == one.function and id(other.view) < id(one.view)
                    if one.view is not other.view and not is_twice:
                        pairs.append((one, other))
            rows = np.empty((len(pairs), len(self.y)))
            for place, (one, other) in enumerate(pairs):
                np.multiply(self.row(one), self.row(other), out=rows[place])
            self._products = pairs, rows
        return self._products

    def _fitting(
        self, y: Array, factors: Sequence[tuple[_Factor, ...]], rows: Array, added: Sequence[View], tolerance: float
    ) -> Iterator[_Formula]:
        """The formulas of some products and given views that give ``y``, told from half of the sample and checked on all."""
        if not len(rows):
            return
        half = min(_SAMPLE, len(y))
        columns = np.stack([self.values[id(view)][:half] for view in added], 1) if added else np.empty((half, 0))
        basis = np.linalg.qr(columns)[0] if added else columns
        target = y[:half] - basis @ (basis.T @ y[:half])
        with np.errstate(all="ignore"):
            part = rows[:, :half]
            inside = part @ basis
            norms = np.einsum("ij,ij->i", part, part) - np.einsum("ij,ij->i", inside, inside)
            along = part @ target
            left = float(target @ target) - along**2 / np.where(norms > 1e-12 * np.maximum(float(target @ target), 1e-300), norms, np.inf)
        size = float(y[:half] @ y[:half])
        for place in np.argsort(left, kind="stable")[: int((left <= tolerance**2 * size).sum())][:_MOST_CHECKED].tolist():
            found = self._checked(y, factors[place], rows[place], added, tolerance)
            if found is not None:
                yield found

    def _checked(self, y: Array, factors: tuple[_Factor, ...], row: Array, added: Sequence[View], tolerance: float) -> _Formula | None:
        matrix = np.stack([row, *(self.values[id(view)] for view in added)], 1)
        if not np.isfinite(matrix).all():
            return None
        scales = np.linalg.norm(matrix, axis=0)
        if not scales.all():
            return None
        found, _, rank, singular = np.linalg.lstsq(matrix / scales, y, rcond=None)
        weights = found / scales
        if (
            rank < matrix.shape[1]
            or singular[-1] < 1e-3 * singular[0]
            or np.linalg.norm(matrix @ weights - y) > tolerance * np.linalg.norm(y)
        ):
            return None
        if any(abs(c) * np.linalg.norm(matrix[:, i]) < 1e-3 * np.linalg.norm(y) for i, c in enumerate(weights)):
            return None
        return _Formula(factors, float(weights[0]), tuple((view, float(c)) for view, c in zip(added, weights[1:], strict=True)))

    def nearest(self, ours: _Formula) -> _Formula | None:
        """The formula for the port that differs least from the reference's: as much is added, then less, then more."""
        views_ = tuple(view for view, _ in ours.added)
        stages: list[list[tuple[View, ...]]] = [[views_]]
        if views_:
            stages.append([*((one,) for one in views_ if len(views_) > 1), ()])
        others = [view for view in self.plain if view not in views_]
        stages.append([(*views_[:place], view, *views_[place + 1 :]) for place in range(len(views_)) for view in others])
        if len(views_) < 2:
            stages.append([(*views_, view) for view in self.plain if view not in views_])
        products, rows = self._pool()
        for stage in stages:
            found = [
                formula
                for added in stage
                for factors, values in ((self._singles, self._single_rows), (products, rows))
                for formula in self._fitting(self.p, factors, values, added, self.loose)
            ]
            best = min(found, key=lambda formula: _distance(ours, formula), default=None)
            if best is not None:
                return best
        return None


def _is_trivial(formula: _Formula) -> bool:
    """Whether a formula says no more than that a tensor is handed on."""
    one = formula.factors[0]
    is_alone = len(formula.factors) == 1 and not formula.added and abs(formula.gain - 1) < 1e-4
    return is_alone and one.view.is_whole and not one.view.source.is_input


def _distance(ours: _Formula, theirs: _Formula) -> float:
    """How much was changed: functions, views, coefficients, and what is added."""
    best = math.inf
    orders = [theirs.factors, theirs.factors[::-1]] if len(theirs.factors) > 1 else [theirs.factors]
    for factors in orders:
        change = 0.7 * abs(len(ours.factors) - len(factors))
        for one, other in zip(ours.factors, factors, strict=False):
            is_kin = one.view.source is other.view.source
            change += 1.0 * (one.function != other.function) + (0.0 if one.view is other.view else 0.8 if is_kin else 2.0)
        best = min(best, change)
    added = {id(view) for view, _ in ours.added} ^ {id(view) for view, _ in theirs.added}
    return best + 1.5 * len(added) + 0.5 * (abs(ours.gain - theirs.gain) > 1e-3 * abs(ours.gain))


def _difference(scene: Scene, ours: _Formula, theirs: _Formula) -> tuple[str, str]:
    """The kind of the cause, and a sentence where the two formulas alone do not say it plainly."""
    gone = [view for view, _ in ours.added if all(view is not other for other, _ in theirs.added)]
    same_factors = _same(ours.factors, theirs.factors)
    if same_factors and gone and len(ours.factors) == 2 and any(factor.view is gone[0] for factor in ours.factors):
        other = next((factor for factor in ours.factors if factor.view is not gone[0]), ours.factors[0])
        return "scale", f"the reference multiplies {gone[0].text} by 1 + {other.text}, the port by {other.text} alone"
    if same_factors:
        if gone and gone[0].source.name != ONE:
            return _missing(scene, gone[0].source), ""
        return ("branch.extra" if len(theirs.added) > len(ours.added) else "scale"), ""
    if len(theirs.factors) < len(ours.factors):
        lost = [one for one in ours.factors if all(one.view is not other.view for other in theirs.factors)]
        if lost and lost[0].view.is_mask:
            return "mask.missing", f"the reference multiplies by {lost[0].text}, which is 0 or 1; the port does not"
        return "branch.missing", ""
    if len(theirs.factors) > len(ours.factors):
        is_kept = any(one.view is other.view for one in ours.factors for other in theirs.factors)
        return ("branch.extra" if is_kept else "order.roles"), ""
    pairs = _beside(ours.factors, theirs.factors)
    if len(pairs) == 2 and _names(ours) == _names(theirs) and pairs[0][0].function != pairs[0][1].function:
        return "order.roles", ""
    if all(one.view is other.view for one, other in pairs):
        names = {name for one, other in pairs if one.function != other.function for name in (one.function, other.function)}
        if names == {"exp", "exp of half"}:
            return "scale", ""
        return ("units.log" if names & {"log", "exp"} else "activation"), ""
    if {id(one.view) for one in ours.factors} == {id(one.view) for one in theirs.factors}:
        return "order.roles", ""
    one, other = next((one, other) for one, other in pairs if one.view is not other.view)
    return (one.view.kind_against(other.view) if one.view.source is other.view.source else "order.roles"), ""


def _names(formula: _Formula) -> list[str]:
    return sorted(factor.function for factor in formula.factors)


def _same(ours: Sequence[_Factor], theirs: Sequence[_Factor]) -> bool:
    return len(ours) == len(theirs) and (tuple(ours) == tuple(theirs) or tuple(ours) == tuple(reversed(theirs)))


def _beside(ours: Sequence[_Factor], theirs: Sequence[_Factor]) -> list[tuple[_Factor, _Factor]]:
    """The factors of two formulas, in the order in which most are of one view."""
    orders = [list(zip(ours, order, strict=False)) for order in (tuple(theirs), tuple(reversed(theirs)))]
    return max(
        orders,
        key=lambda pairs: sum(one.view is other.view for one, other in pairs) + 0.1 * sum(a.function == b.function for a, b in pairs),
    )


def _missing(scene: Scene, source: InHand) -> str:
    words = (source.type + source.name).lower()
    if "embed" in words or "posit" in words:
        return "position.missing"
    return "residual.missing" if source.is_input else "branch.missing"
