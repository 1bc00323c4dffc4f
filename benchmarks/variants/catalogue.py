"""All transformations, by name."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.variants import code, factors, formulas, inputs, joints, masks, names, roots, structure, weights
from benchmarks.variants.variant import Transformation

EVERY: tuple[Transformation, ...] = tuple(
    one for family in (names, structure, joints, code, weights, factors, formulas, masks, inputs, roots) for one in family.TRANSFORMATIONS
)


def selected(wanted: Iterable[str]) -> list[Transformation]:
    """The transformations of these names, all where none is given. Raises SystemExit for a name that is not known."""
    known = {one.name: one for one in EVERY}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"No transformation {unknown[0]!r}; there are {', '.join(known)}.")
    return [known[name] for name in wanted] or list(EVERY)
