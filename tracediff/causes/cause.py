"""Cause: one likely reason of a divergence, and the order in which several are told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from tracediff.causes.catalogue import CATALOGUE, Gravity


@dataclass(frozen=True, slots=True)
class Cause:
    """A possible cause of a divergence.

    ``kind``: a name of the catalogue. ``confidence``: how likely the cause is, 0 to 1. ``confirmed``: whether the edit that it names,
    applied to the reference's values, gave the port's. ``evidence``: what speaks for the cause, as a sentence.

    Raises ValueError for a kind that the catalogue lacks.
    """

    kind: str
    confidence: float
    confirmed: bool
    evidence: str

    def __post_init__(self) -> None:
        if self.kind not in CATALOGUE:
            raise ValueError(f"The catalogue of causes has no kind {self.kind!r}; add a row to tracediff/causes/catalogue.py.")

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """The cause that a report's JSON holds. Its kind is not looked up, since a later version may have written it."""
        made = object.__new__(cls)
        for name in ("kind", "confidence", "confirmed", "evidence"):
            object.__setattr__(made, name, data[name])
        return made


def in_order(causes: Iterable[Cause]) -> list[Cause]:
    """Causes best first: kinds that speak before all others, then confirmed ones, then the more likely; equals stay as they stand."""
    return sorted(causes, key=_place)


def one_of_each_kind(causes: Iterable[Cause]) -> list[Cause]:
    """Causes best first, of each kind only the best."""
    best: dict[str, Cause] = {}
    for cause in in_order(causes):
        best.setdefault(cause.kind, cause)
    return list(best.values())


def _place(cause: Cause) -> tuple[bool, bool, float]:
    kind = CATALOGUE.get(cause.kind)
    is_first = kind is not None and kind.gravity is Gravity.BEFORE_ALL
    return not is_first, not cause.confirmed, -cause.confidence
