"""Alignment: which sites of two traces correspond, which of their records, in which layout, and on what evidence. Plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tracediff.alignment.axes import Layout, Part
from tracediff.alignment.names import nearest
from tracediff.dtype import named
from tracediff.errors import SiteError
from tracediff.outputs import write_output
from tracediff.site import module_of

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["module", "method", "function", "tap"]


def as_kind(text: str) -> Kind:
    """The kind of a site, as its text."""
    kind: Kind = text  # type: ignore[assignment]
    return kind


@dataclass(frozen=True, slots=True)
class SitePair:
    """A site of the reference and the port's site that corresponds to it; one of them is None where there is none.

    ``confidence`` is 0 to 1 (0 where unpaired). ``ambiguous`` holds the next candidates: for a pair the rivals that only order rules out,
    for an unpaired site the nearest. ``part`` says which part of a fused site is meant, ``whole`` which side holds the fused site.
    ``rival`` is the nearest other pair of either site; ``voices``: (source, what it says for the pair, what for the rival), in one unit.
    """

    reference: str | None
    port: str | None
    kind: Kind
    evidence: str
    confidence: float
    ambiguous: tuple[str, ...] = ()
    part: Part | None = None
    whole: Literal["", "reference", "port"] = ""
    rival: tuple[str, str] | None = field(default=None, repr=False, compare=False)
    voices: tuple[tuple[str, float, float], ...] = field(default=(), repr=False, compare=False)

    @property
    def is_paired(self) -> bool:
        return self.reference is not None and self.port is not None


@dataclass(frozen=True, slots=True)
class Account:
    """Why the tensors of two boundaries (``ends``) are read in a layout where shapes leave a choice: the ``rival``, and who says what.

    ``rival``: the next best layout. ``probability``: of the layout rather than the rival, 0 to 1. ``voices``: (source, what it says for the
    layout, what for the rival), in natural logarithms of odds; what speaks most for the layout first.
    """

    ends: tuple[str, str]
    rival: str
    probability: float
    voices: tuple[tuple[str, float, float], ...]

    def to_json(self, layout: str) -> dict[str, Any]:
        """The account of a layout as one JSON object."""
        voices = [{"source": source, "layout": round(chosen, 3), "rival": round(rival, 3)} for source, chosen, rival in self.voices]
        return {
            "reference": self.ends[0],
            "port": self.ends[1],
            "layout": layout,
            "rival": self.rival,
            "probability": round(self.probability, 4),
            "voices": voices,
        }


@dataclass(frozen=True, slots=True)
class Why:
    """All that is known of why a site is paired as it is: its pairs, and the accounts of the layouts that shapes leave open, with them."""

    pairs: tuple[SitePair, ...]
    layouts: tuple[tuple[str, Account], ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        pairs = [
            {
                "reference": pair.reference,
                "port": pair.port,
                "evidence": pair.evidence,
                "confidence": pair.confidence,
                "candidates": list(pair.ambiguous),
                "rival": list(pair.rival) if pair.rival else None,
                "voices": [{"source": source, "pair": ours, "rival": theirs} for source, ours, theirs in pair.voices],
            }
            for pair in self.pairs
        ]
        return {"schema": "tracediff.why/1", "pairs": pairs, "layouts": [account.to_json(layout) for layout, account in self.layouts]}


@dataclass(frozen=True, slots=True)
class RecordPair:
    """Rows of the reference and the port's rows that hold the same tensor: mostly one each, several where calls are split or stacked.

    ``layout`` reads the port's rows as the reference's; it is None where no layout reconciles the shapes. ``sites`` is the place of
    their pair of sites in `Alignment.pairs`. ``account`` says more of a layout that shapes alone do not give.
    """

    reference: tuple[int, ...]
    port: tuple[int, ...]
    layout: Layout | None
    evidence: str
    confidence: float
    sites: int
    account: Account | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """The rows of each side that have no partner, in execution order."""

    reference: tuple[int, ...]
    port: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """The half precision in which a port's arrays were stored, and what is known of its run.

    ``all``: whether all real arrays were, whatever dtype their records have; else those whose records have that dtype. ``in_float32``:
    the run was in float32, so that each number stands for all that round to it; else it was in half precision, or that is not known.
    """

    dtype: str
    all: bool = False
    in_float32: bool = True

    def holds(self, dtype: str) -> bool:
        """Whether a record of a dtype was stored so."""
        return dtype == self.dtype or (self.all and not named(dtype).is_exact)


@dataclass(frozen=True)
class Alignment:
    """What corresponds in two traces.

    ``pairs``: sites in the reference's execution order, unpaired ones too, the port's unpaired sites last. ``records``: pairs of records
    in the reference's execution order. ``unpaired_reference`` and ``unpaired_port``: the rows without partner. ``stored``: in which half
    precision a file of arrays is, None where it is in none. ``names``: of a
    port that is a file of arrays, for each pair of ``records``, how a mapping names the two.
    """

    pairs: tuple[SitePair, ...]
    records: tuple[RecordPair, ...]
    unpaired_reference: tuple[int, ...]
    unpaired_port: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    stored: Stored | None = None
    names: tuple[tuple[str, str], ...] = ()
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def port_of(self) -> dict[str, str]:
        """The port's site by the reference's; of a fused site's parts the first."""
        found: dict[str, str] = {}
        for pair in self.pairs:
            if pair.reference is not None and pair.port is not None:
                found.setdefault(pair.reference, pair.port)
        return found

    @cached_property
    def reference_of(self) -> dict[str, str]:
        """The reference's site by the port's; of a fused site's parts the first."""
        found: dict[str, str] = {}
        for pair in self.pairs:
            if pair.reference is not None and pair.port is not None:
                found.setdefault(pair.port, pair.reference)
        return found

    def nearest_paired(self, site: str, side: Literal["reference", "port"] = "reference") -> str | None:
        """The innermost paired module at or above a site: an error at an unpaired site is charged to that module."""
        known = self.port_of if side == "reference" else self.reference_of
        if site in known:
            return site
        path: str | None = module_of(site)
        while path is not None:
            if path in known:
                return path
            path = path.rpartition(".")[0] if path else None
        return None

    @property
    def paired(self) -> tuple[SitePair, ...]:
        """The pairs with a site of either side."""
        return tuple(pair for pair in self.pairs if pair.is_paired)

    @property
    def unpaired(self) -> tuple[SitePair, ...]:
        """The sites without partner, each with its nearest candidates."""
        return tuple(pair for pair in self.pairs if not pair.is_paired)

    @property
    def ambiguous(self) -> tuple[SitePair, ...]:
        """The pairs whose rivals only order rules out."""
        return tuple(pair for pair in self.pairs if pair.is_paired and pair.ambiguous)

    def why(self, site: str) -> Why:
        """Why a site of either side is paired as it is, and its tensors are read as they are. Raises SiteError where no side has it."""
        places = {place for place, pair in enumerate(self.pairs) if site in (pair.reference, pair.port)}
        if not places:
            known = [name for pair in self.pairs for name in (pair.reference, pair.port) if name is not None]
            close = ", ".join(map(repr, nearest(site, dict.fromkeys(known))))
            raise SiteError(f"No site {site!r} in either trace; nearest: {close or 'none'}. List them with: tracediff align REFERENCE PORT")
        accounts = ((str(pair.layout), pair.account) for pair in self.records if pair.sites in places)
        told = dict.fromkeys((layout, account) for layout, account in accounts if account is not None)
        return Why(tuple(self.pairs[place] for place in sorted(places)), tuple(told))

    def layout_of(self, place: int) -> str:
        """The layout of a pair of sites in a word: the first that is not plain, else "same"; "" where the pair has no records."""
        if "layouts" not in self._cache:
            self._cache["layouts"] = _layouts(self.records)
        text: str = self._cache["layouts"].get(place, "")
        return text

    def to_frame(self) -> pd.DataFrame:
        """The pairs as a table with the columns reference, port, layout, evidence, confidence."""
        import pandas as pd

        rows = [(pair.reference, pair.port, self.layout_of(place), pair.evidence, pair.confidence) for place, pair in enumerate(self.pairs)]
        return pd.DataFrame(rows, columns=["reference", "port", "layout", "evidence", "confidence"])

    def to_json(self) -> dict[str, Any]:
        """The whole alignment as one JSON object."""
        return {
            "schema": "tracediff.alignment/1",
            "pairs": [
                {
                    "reference": pair.reference,
                    "port": pair.port,
                    "kind": pair.kind,
                    "layout": self.layout_of(place),
                    "evidence": pair.evidence,
                    "confidence": pair.confidence,
                    "candidates": list(pair.ambiguous),
                }
                for place, pair in enumerate(self.pairs)
            ],
            "records": len(self.records),
            "unpaired_reference": len(self.unpaired_reference),
            "unpaired_port": len(self.unpaired_port),
            "warnings": list(self.warnings),
        }

    def write_map(self, path: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Writes the pairs as a mapping file that can be edited and given back to `align`; returns its path.

        Raises TraceExistsError where the file exists, unless ``force``.
        """
        return write_output(path, json.dumps(self.to_map(), indent=2, ensure_ascii=False) + "\n", force=force)

    def to_map(self) -> dict[str, Any]:
        """The pairs as a mapping: what `align` takes as ``mapping``. Sites without partner are listed too, for whoever edits it."""
        if self.names:
            entries = [self._named_entry(*names, pair) for names, pair in zip(self.names, self.records, strict=True)]
        else:
            entries = [self._entry(place, pair) for place, pair in enumerate(self.pairs) if pair.is_paired]
        return {
            "pairs": entries,
            "ignore": {"reference": [], "port": []},
            "unpaired": {
                "reference": {pair.reference: list(pair.ambiguous) for pair in self.unpaired if pair.reference is not None},
                "port": {pair.port: list(pair.ambiguous) for pair in self.unpaired if pair.port is not None},
            },
        }

    def _named_entry(self, reference: str, port: str, pair: RecordPair) -> dict[str, Any]:
        """The entry of two arrays: their names, and how the port's axes are read where that is a permutation."""
        sites = self.pairs[pair.sites]
        order = pair.layout.permutation if pair.layout is not None and pair.layout.split is None else None
        layout = str(order) if order is not None else "same"
        return {"reference": reference, "port": port, "layout": layout, "evidence": sites.evidence, "confidence": sites.confidence}

    def _entry(self, place: int, pair: SitePair) -> dict[str, Any]:
        layout = self.layout_of(place)
        entry: dict[str, Any] = {"reference": pair.reference, "port": pair.port, "layout": layout if layout.startswith("(") else "same"}
        if pair.part is not None:
            entry["part"] = {
                "of": pair.whole,
                "axis": pair.part.axis,
                "start": pair.part.start,
                "stop": pair.part.stop,
                "groups": pair.part.groups,
            }
        return {**entry, "evidence": pair.evidence, "confidence": pair.confidence}

    def _repr_html_(self) -> str:
        html: str = self.to_frame().to_html(max_rows=60, na_rep="")
        return html


def _layouts(records: Sequence[RecordPair]) -> dict[int, str]:
    """Of each pair of sites its most telling layout: the first that is not plain, else "same"."""
    found: dict[int, str] = {}
    for pair in records:
        text = "no layout" if pair.layout is None else str(pair.layout)
        if found.get(pair.sites, "same") == "same":
            found[pair.sites] = text
    return found
