"""Which of the port's weights are not the reference's, and why: never loaded, missing, exchanged, transposed, rounded, merged wrongly.

No model is run. `weights` compares two sources of weights (`checkpoint.open_weights`) and returns a `WeightsReport`; a third, the
checkpoint that both should hold, tells which side is wrong.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tracediff.errors import WeightsError
from tracediff.explain.checkpoint import Source, Weight, Weights, open_weights
from tracediff.explain.judging import Kind, Side, WeightFinding, is_bias, judged, numbers_of
from tracediff.explain.matching import ALIKE, MERGE_TOLERANCE, SKETCH_TOLERANCE, Held, has_rows_of
from tracediff.explain.origins import Origin, ways
from tracediff.explain.pairing import Pairing, Placed, pair
from tracediff.explain.placement import Layouts, Placement, move, placement
from tracediff.explain.renames import grouped, parent, pattern
from tracediff.explain.resemblance import identical
from tracediff.site import is_below

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "tracediff.weights/1"

Category = Literal["different", "missing", "unexpected"]

_NAMED = {
    "exact": ("of the same name", 1.0),
    "renamed": ("by the renaming of its siblings", 0.98),
    "likeness": ("by likeness of names", 0.75),
}


@dataclass(frozen=True, slots=True)
class WeightPair:
    """One tensor of the port and what it is made from. ``by`` says what it rests on: digest, values, sketch or name."""

    reference: tuple[str, ...]
    port: str
    layout: str
    by: str
    equal: bool
    origin: Origin = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compared:
    """One side of a comparison: what it was, how many tensors and values it has, and what was not compared of it."""

    source: str
    kind: str
    tensors: int
    values: int
    readable: bool
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Findings alike: of one kind and one pattern of names. ``port`` is the pattern of the port's names."""

    category: Category
    kind: Kind | None
    pattern: str
    port: str
    label: str
    findings: tuple[WeightFinding, ...]

    @property
    def count(self) -> int:
        return len(self.findings)


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Everything that two sets of weights say about each other.

    ``equal`` counts the port's tensors that hold what they should (some of them known by sketch alone: ``by_sketch``; some after
    rounding to the port's own dtype: ``rounded``), of ``compared``, of ``total`` that the port has. ``different`` are those that do
    not; ``missing`` the reference's tensors without a place in the port; ``unexpected`` the port's for which the reference has nothing.
    """

    reference: Compared
    port: Compared
    checkpoint: Compared | None
    pairs: tuple[WeightPair, ...]
    equal: int
    by_sketch: int
    rounded: int
    compared: int
    total: int
    different: tuple[WeightFinding, ...]
    missing: tuple[WeightFinding, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    notes: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False, default_factory=dict)

    @property
    def findings(self) -> tuple[WeightFinding, ...]:
        """All findings: what differs, then what is missing."""
        return (*self.different, *self.missing)

    @property
    def verdict(self) -> Literal["same", "different"] | None:
        """ "different" where anything differs that is no choice of the port's, "same" where everything was compared, else None."""
        if any(not finding.expected for finding in self.findings):
            return "different"
        return "same" if self.compared and not self.uncompared else None

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Tensors that could not be compared at all."""
        return (*self.reference.skipped, *self.port.skipped)

    @property
    def swaps(self) -> tuple[WeightFinding, ...]:
        return tuple(finding for finding in self.different if finding.kind == "weights.swapped")

    @property
    def transposes(self) -> tuple[WeightFinding, ...]:
        return tuple(finding for finding in self.different if finding.kind == "weights.layout")

    @property
    def groups(self) -> tuple[FindingGroup, ...]:
        """The findings grouped by kind and pattern of names, the gravest and largest first."""
        return tuple(_groups(self))

    def summary(self) -> dict[str, Any]:
        """The "weights" entry of a report: equal, different, missing, unexpected."""
        return {
            "equal": self.equal,
            "different": [finding.to_dict() for finding in self.different],
            "missing": [finding.to_dict() for finding in self.missing],
            "unexpected": list(self.unexpected),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without NaN or infinity."""
        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "reference": _side_dict(self.reference),
            "port": _side_dict(self.port),
            "checkpoint": _side_dict(self.checkpoint) if self.checkpoint else None,
            "compared": self.compared,
            "total": self.total,
            "by_sketch": self.by_sketch,
            "rounded": self.rounded,
            "tolerance": {"sketch": SKETCH_TOLERANCE, "merge": MERGE_TOLERANCE},
            **self.summary(),
            "tied": dict(self.tied),
            "groups": [
                {"category": g.category, "kind": g.kind, "count": g.count, "pattern": g.pattern, "port": g.port, "label": g.label}
                for g in self.groups
            ],
            "layouts": dict(Counter(pair.layout for pair in self.pairs if pair.equal)),
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_frame(self) -> DataFrame:
        """One row a tensor: reference, port, kind ("equal", a cause, "missing", "unexpected"), layout, by, confidence, evidence."""
        from pandas import DataFrame

        said = {finding.port: finding for finding in self.different}
        rows: list[tuple[Any, ...]] = []
        for one in self.pairs:
            finding = said.get(one.port)
            kind, confidence, evidence = ("equal", 1.0, "") if finding is None else (finding.kind, finding.confidence, finding.evidence)
            rows.append((" + ".join(one.reference), one.port, kind, one.layout, one.by, confidence, evidence))
        rows += [(finding.reference, None, "missing", None, None, finding.confidence, finding.evidence) for finding in self.missing]
        rows += [(None, name, "unexpected", None, None, None, "") for name in self.unexpected]
        return DataFrame(rows, columns=["reference", "port", "kind", "layout", "by", "confidence", "evidence"])

    def headline(self) -> str:
        """The answer in one line."""
        counts = f"{self.equal:,} of {self.total:,} tensors of the port are equal"
        if self.verdict == "same":
            return f"same: {counts}"
        wrong = [group for group in self.groups if not all(finding.expected for finding in group.findings)]
        if self.verdict is None or not wrong:
            return f"no verdict: {counts}, {len(self.uncompared)} could not be compared"
        first = wrong[0]
        return f"different: {first.count} x {first.pattern} {first.label}; {counts}"

    def _repr_html_(self) -> str:
        from html import escape

        from pandas import DataFrame

        rows = [(g.count, g.pattern, g.kind or g.category, g.label, g.findings[0].evidence if g.findings else "") for g in self.groups]
        table = DataFrame(rows, columns=["count", "pattern", "kind", "what", "evidence"]).to_html(index=False) if rows else ""
        return f"<div><p><b>{escape(self.headline())}</b></p>{table}</div>"

    def write_rules(self, path: str | Path) -> Path:
        """Writes a Python file whose ``sanitize(weights)`` turns the reference's weights into the ones that the port should hold."""
        from tracediff.explain.rules import write

        return write(self, path)


def weights(reference: Source, port: Source, *, checkpoint: Source | None = None) -> WeightsReport:
    """How the port's weights differ from the reference's, or from the checkpoint that it should have loaded.

    Each source is a trace, a live torch or MLX model, a mapping of arrays, a .safetensors, .npz or .pt file, or a folder of them. With
    ``checkpoint``, both sides are compared with it too, and each finding says which side departs from it. Raises WeightsError where a
    source cannot be read, or where the two share nothing.

    >>> import numpy as np
    >>> a = {"proj.weight": np.arange(6.0).reshape(2, 3), "proj.bias": np.array([1.0, 2.0])}
    >>> weights(a, {"linear.weight": a["proj.weight"], "linear.bias": np.zeros(2)}).different[0].kind
    'weights.missing_bias'
    """
    a, b = open_weights(reference), open_weights(port)
    report = _compare(a, b)
    return report if checkpoint is None else _with_checkpoint(report, a, b, open_weights(checkpoint))


def _compare(reference: Weights, port: Weights) -> WeightsReport:
    pairing = pair(reference, port)
    if not pairing.held and not pairing.placed:
        raise WeightsError(
            f"{reference.source!r} ({len(reference)} tensors) and {port.source!r} ({len(port)} tensors) share no name, no value and no "
            "fitting shape: they are weights of different models, or of different parts of one."
        )
    placed = placement(pairing)
    different = _with_siblings([*placed.findings, *_judged(pairing)])
    different = _ordered(_expected_dtypes(different, pairing), pairing)
    wanted = {name for origin in placed.right.values() for name in origin.names}
    return _report(pairing, placed, different, _missing(pairing, wanted))


def _report(pairing: Pairing, placed: Placement, different: Sequence[WeightFinding], missing: Sequence[WeightFinding]) -> WeightsReport:
    reference, port = pairing.reference, pairing.port
    wrong = {finding.port for finding in different if not finding.expected}
    pairs = tuple(_pairs(pairing, placed, wrong))
    equal = [one for one in pairs if one.equal]
    shapes = {name: weight.shape for name, weight in reference.items()}
    return WeightsReport(
        reference=_side(reference),
        port=_side(port),
        checkpoint=None,
        pairs=pairs,
        equal=len(equal),
        by_sketch=sum(one.by == "sketch" for one in equal),
        rounded=sum(held.rounded != "" for name, held in pairing.held.items() if name not in wrong),
        compared=len(pairs),
        total=len(port) + len(port.skipped),
        different=tuple(different),
        missing=tuple(missing),
        unexpected=tuple(pairing.unexpected),
        tied=dict(pairing.tied),
        notes=tuple(_notes(pairing, equal)),
        shapes=shapes,
    )


def _pairs(pairing: Pairing, placed: Placement, wrong: set[str]) -> Iterable[WeightPair]:
    layouts = Layouts(pairing)
    for name in pairing.port:
        held, by_name = pairing.held.get(name), pairing.placed.get(name)
        origin = placed.right.get(name)
        if held is not None:
            origin = origin or held.origin
            yield WeightPair(origin.names, name, origin.text, held.by, name not in wrong, origin)
        elif by_name is not None:
            origin = _named_origin(layouts, by_name)
            yield WeightPair(origin.names, name, origin.text, "name", False, origin)


def _named_origin(layouts: Layouts, placed: Placed) -> Origin:
    """The origin of a tensor whose values do not tell: in the layout of its family."""
    if placed.held is not None and not placed.held.origin.is_copy:
        return placed.held.origin
    return layouts.right(placed.names[0], placed.port)


def _side(weights: Weights) -> Compared:
    return Compared(weights.source, weights.kind, len(weights), weights.count, weights.is_readable, weights.skipped)


def _side_dict(side: Compared) -> dict[str, Any]:
    return {
        "source": side.source,
        "kind": side.kind,
        "tensors": side.tensors,
        "values": side.values,
        "readable": side.readable,
        "skipped": list(side.skipped),
    }


# -- findings ----------------------------------------------------------------------------------------------------------


def _judged(pairing: Pairing) -> Iterable[WeightFinding]:
    layouts = Layouts(pairing)
    for placed in pairing.placed.values():
        yield _placed_finding(pairing, placed, layouts)
    for name, held in pairing.held.items():
        if held.rounded:
            label = f"rounded to {held.rounded}"
            yield WeightFinding("weights.precision", held.origin.names[0], name, label, {}, 0.99, True, label=label)
        elif _is_wrong_merge(pairing, held):
            yield _wrong_merge(pairing, held)


def _with_siblings(findings: Sequence[WeightFinding]) -> list[WeightFinding]:
    """Tensors too small to tell by themselves go with those of their module: never loaded where those were not."""
    lost = {module for finding in findings if finding.kind == "weights.unloaded" for module in _modules(finding.port)[-2:]}

    def judged_anew(finding: WeightFinding) -> WeightFinding:
        small = finding.kind == "weights.value" and finding.label == "other values" and finding.numbers.get("count", 0) < 16
        if not small or finding.numbers.get("correlation", 0) > 0.9 or not lost.intersection(_modules(finding.port)[-2:]):
            return finding
        evidence = f"{finding.evidence}; its siblings were not loaded"
        return replace(finding, kind="weights.unloaded", label="never loaded", evidence=evidence, confidence=0.8)

    return [judged_anew(finding) for finding in findings]


def _placed_finding(pairing: Pairing, placed: Placed, layouts: Layouts) -> WeightFinding:
    target = pairing.port[placed.port]
    how, sure = _NAMED[placed.named]
    held = placed.held
    if held is None or held.resemblance is None:
        return _other_shape(pairing, placed, sure)
    if held.by == "sketch" and held.origin.merge is not None and has_rows_of(pairing.reference[held.origin.key], target, held.origin):
        return _rows_scaled(held, sure)
    reference = port = None
    if held.by == "values":
        reference, port = held.origin.values(lambda name: pairing.reference[name].read()), target.read()
    found = judged(held.resemblance, held.rounded, reference, port, target)
    evidence = f"{found.evidence} (found {how})" if placed.named == "likeness" else found.evidence
    evidence += _layout_besides(layouts, pairing, held)
    other = pairing.elsewhere.get(placed.port)
    if other is not None and found.kind == "weights.unloaded":
        evidence += f"; it is nearer to {other.origin.names[0]!r}"
    return WeightFinding(
        found.kind,
        " + ".join(held.origin.names),
        placed.port,
        evidence,
        numbers_of(held.resemblance),
        found.confidence * sure,
        found.confirmed,
        label=found.label,
    )


def _layout_besides(layouts: Layouts, pairing: Pairing, held: Held) -> str:
    """What is to be said of the layout of a tensor whose values differ, but are those of the reference."""
    found = held.resemblance
    if found is None or abs(found.correlation) < ALIKE or not held.origin.is_copy or found.count < 16:
        return ""
    shape = pairing.reference[held.origin.key].shape
    if len(ways(shape, pairing.port[held.port].shape)) < 2:
        return ""
    reason = layouts.against(move(shape, held.origin.layout), held.port, shape)
    return f"; besides, {reason[1]}" if reason is not None else ""


def _rows_scaled(held: Held, sure: float) -> WeightFinding:
    """A weight norm whose rows are the direction's up to their scale, though not to the right one."""
    what = "weight norm merged otherwise than over the right axes"
    evidence = "the rows have the direction's signs, but not the norm that the gain says: merged over other axes, or not at all"
    return WeightFinding("weights.value", " + ".join(held.origin.names), held.port, evidence, {}, 0.85 * sure, label=what)


def _other_shape(pairing: Pairing, placed: Placed, sure: float) -> WeightFinding:
    source, target = pairing.reference[placed.names[0]], pairing.port[placed.port]
    common = _common_block(source, target)
    evidence = f"shape {source.shape} in the reference, {target.shape} in the port{common}"
    return WeightFinding("weights.value", source.name, placed.port, evidence, {}, 0.95 * sure, label="another shape")


def _common_block(source: Weight, target: Weight) -> str:
    """What the block that two tensors of different lengths have in common says."""
    if len(source.shape) != len(target.shape) or not (source.is_readable and target.is_readable):
        return ""
    block = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    lengths = " x ".join(str(part.stop) for part in block)
    return f"; the first {lengths} are equal" if identical(source.read()[block], target.read()[block]) else ""


def _is_wrong_merge(pairing: Pairing, held: Held) -> bool:
    merge = held.origin.merge
    if merge is None or merge.how == "sum":
        return False
    return merge.how != "weight_norm" or merge.axes != _right_axes(pairing.reference[held.origin.names[0]].shape)


def _right_axes(gain: tuple[int, ...]) -> tuple[int, ...]:
    """The axes over which a weight norm is merged: those along which its gain does not vary."""
    return tuple(axis for axis, size in enumerate(gain) if size == 1)


def _wrong_merge(pairing: Pairing, held: Held) -> WeightFinding:
    merge = held.origin.merge
    assert merge is not None
    right = _right_axes(pairing.reference[held.origin.names[0]].shape)
    what = {
        "weight_norm": f"weight norm merged over axes {merge.axes} instead of {right}",
        "unit": "weight norm merged without its gain",
        "gain": "weight norm merged without its norm",
        "raw": "weight norm not merged: the direction stands for the weight",
    }[merge.how]
    evidence = f"{what}: that gives the port's values within {MERGE_TOLERANCE:g}"
    return WeightFinding("weights.value", " + ".join(held.origin.names), held.port, evidence, {}, 0.97, True, label=what)


def _missing(pairing: Pairing, wanted: set[str]) -> list[WeightFinding]:
    """The reference's tensors without a place, but for those whose place holds another one."""
    findings = []
    for name in pairing.missing:
        if name in wanted:
            continue
        weight = pairing.reference[name]
        bias = is_bias(name, weight.shape)
        kind: Kind = "weights.missing_bias" if bias else "weights.unloaded"
        evidence = f"shape {weight.shape}, no place for it in the port"
        zero = weight.count and weight.stats.l2 == 0
        expected = _is_bookkeeping(weight) or bool(bias and zero)
        if expected:
            evidence += "; all zero, so nothing is lost" if zero else "; a counter, a mask or a computed table, not a parameter"
        place = pairing.renames(name)
        findings.append(WeightFinding(kind, name, "", evidence, {}, 0.9, expected=expected, label="missing in the port", place=place))
    return findings


def _is_bookkeeping(weight: Weight) -> bool:
    """Whether a tensor is no parameter: a counter, a mask of zeros and ones, a table in even steps that code computes anew."""
    if weight.kind == "parameter" or weight.dtype.is_complex:
        return False
    if weight.dtype.is_exact:
        return weight.dtype.name not in ("uint8", "int8", "uint32")  # these hold quantised weights
    stats = weight.stats
    ones = stats.count - stats.zero
    is_mask = stats.count > 1 and (stats.min, stats.max) == (0.0, 1.0) and abs(stats.mean * stats.count - ones) < 0.5
    return (is_mask and abs(stats.l2**2 - ones) < 0.5) or _is_even(weight)


def _is_even(weight: Weight) -> bool:
    """Whether a vector goes in equal steps or equal ratios: positions, the frequencies of a rotary embedding."""
    if len(weight.shape) != 1 or not 4 <= weight.count <= _LONGEST_TABLE or not weight.is_readable:
        return False
    vector = weight.read().astype(np.float64)
    steps = np.diff(vector)
    if not steps.all() or not np.isfinite(vector).all():
        return False
    ratios = vector[1:] / vector[:-1] if vector.all() else steps
    return any(np.ptp(found) <= 1e-4 * abs(found).max() for found in (steps, ratios))


def _expected_dtypes(findings: Sequence[WeightFinding], pairing: Pairing) -> list[WeightFinding]:
    """Marks roundings to the dtype that most of the port's values have: the port's choice."""
    sizes: Counter[str] = Counter()
    for weight in pairing.port.values():
        if not weight.dtype.is_exact:
            sizes[weight.dtype.name] += weight.count
    main = sizes.most_common(1)[0][0] if sizes else ""
    chosen = []
    for finding in findings:
        held = pairing.held.get(finding.port)
        own = finding.kind == "weights.precision" and held is not None and held.rounded == pairing.port[finding.port].dtype.name == main
        if own:
            finding = replace(finding, expected=True, evidence=f"{finding.evidence}, the port's own dtype")
        chosen.append(finding)
    return chosen


def _ordered(findings: Iterable[WeightFinding], pairing: Pairing) -> list[WeightFinding]:
    order = {name: place for place, name in enumerate(pairing.port)}
    return sorted(findings, key=lambda finding: order[finding.port])


def _notes(pairing: Pairing, equal: Sequence[WeightPair]) -> Iterable[str]:
    sketches = sum(one.by == "sketch" for one in equal)
    if sketches:
        within = f"within {SKETCH_TOLERANCE:g} relative L2: their values were not stored"
        yield f"{sketches:,} tensors are called equal by their sketches, {within}"
    merged = sum(one.origin.merge is not None for one in equal)
    if merged:
        yield f"{merged:,} merged tensors (weight norm, sum) are called equal within {MERGE_TOLERANCE:g} relative L2"
    constant = sum(1 for one in equal if pairing.port[one.port].is_constant and pairing.port[one.port].count > 1)
    if constant:
        yield f"{constant:,} equal tensors are constant (zeros or ones) on both sides: a mistake in placing them would not show"
    for side in (pairing.reference, pairing.port):
        if side.skipped:
            yield f"{len(side.skipped):,} tensors of {side.source!r} have a dtype that is not known and were not compared"


# -- groups ------------------------------------------------------------------------------------------------------------


_NOT_LOADED = ("weights.unloaded", "weights.missing_bias")
_LEAST_MODULE = 3  # tensors that a module must have to be told of as a whole
_MOST_LINES = 3  # findings that are no fault are told one by one up to so many
_LONGEST_TABLE = 1 << 16
_GRAVITY = {
    "weights.unloaded": 0,
    "weights.missing_bias": 1,
    "weights.swapped": 2,
    "weights.layout": 3,
    "weights.value": 4,
    "weights.precision": 5,
}


def _groups(report: WeightsReport) -> Iterable[FindingGroup]:
    totals = Counter(module for name in _all_names(report) for module in _modules(name))
    found: list[FindingGroup] = []
    for category, findings in _by_category(report):
        lost = [finding for finding in findings if finding.kind in _NOT_LOADED and not finding.expected]
        whole, _ = _whole_modules(category, lost, totals, "never loaded" if category == "different" else "missing in the port")
        told = {id(finding) for group in whole for finding in group.findings}
        found += whole
        for alike in _alike([finding for finding in findings if id(finding) not in told]):
            if alike[0].expected and len(alike) > _MOST_LINES:
                found.append(_group(category, pattern([_name(finding) for finding in alike]), alike))
                continue
            whole, rest = _whole_modules(category, alike, totals, alike[0].label)
            found += [*whole, *_by_pattern(category, rest)]
    found.sort(key=lambda group: (group.findings[0].expected, _GRAVITY[group.kind or ""], -group.count))
    yield from found
    for text, names in grouped(report.unexpected):
        nothing = tuple(WeightFinding("weights.value", "", name, "", expected=True) for name in names)
        yield FindingGroup("unexpected", None, text, text, "not in the reference", nothing)


def _by_category(report: WeightsReport) -> Iterable[tuple[Category, tuple[WeightFinding, ...]]]:
    yield "different", report.different
    yield "missing", report.missing


def _all_names(report: WeightsReport) -> Iterable[str]:
    """The reference's tensors, those that are merged to one as one."""
    yield from (" + ".join(one.reference) for one in report.pairs)
    yield from (finding.reference for finding in report.missing)


def _name(finding: WeightFinding) -> str:
    return finding.reference or finding.port


def _alike(findings: Sequence[WeightFinding]) -> Iterable[list[WeightFinding]]:
    """Findings by kind and label."""
    kinds: dict[tuple[str, str, bool], list[WeightFinding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind, _general(finding.label), finding.expected].append(finding)
    yield from kinds.values()


def _whole_modules(
    category: Category, findings: Sequence[WeightFinding], totals: Mapping[str, int], label: str
) -> tuple[list[FindingGroup], list[WeightFinding]]:
    """Modules of which each tensor has one of these findings, as one group each kind of module; and the findings that are left."""
    counts = Counter(module for finding in findings for module in _modules(_name(finding)))
    full = {module for module, count in counts.items() if count == totals[module] and count >= _LEAST_MODULE}
    outermost: dict[str, list[WeightFinding]] = defaultdict(list)
    rest: list[WeightFinding] = []
    for finding in findings:
        module = next((module for module in _modules(_name(finding)) if module in full), None)
        (rest if module is None else outermost[module]).append(finding)
    groups = []
    for text, modules in grouped(list(outermost)):
        members = tuple(finding for module in modules for finding in outermost[module])
        kind = min((finding.kind for finding in members), key=_GRAVITY.__getitem__)
        groups.append(FindingGroup(category, kind, f"{text}.**", "", f"{label}: the whole module", members))
    return groups, rest


def _by_pattern(category: Category, findings: Sequence[WeightFinding]) -> Iterable[FindingGroup]:
    by_name = {_name(finding): finding for finding in findings}
    for text, names in grouped(list(by_name)):
        yield _group(category, text, [by_name[name] for name in names])


def _group(category: Category, text: str, findings: Sequence[WeightFinding]) -> FindingGroup:
    labels = {finding.label for finding in findings}
    ports = grouped([finding.port for finding in findings if finding.port])
    label = labels.pop() if len(labels) == 1 else _general(findings[0].label)
    return FindingGroup(category, findings[0].kind, text, ports[0][0] if len(ports) == 1 else "", label, tuple(findings))


def _modules(name: str) -> list[str]:
    """The modules that a tensor lies in, the outermost first."""
    parts = name.partition(" + ")[0].split(".")[:-1]
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _general(label: str) -> str:
    """A label without the numbers that differ from tensor to tensor; dtypes stay what they are."""
    return label if "float" in label else re.sub(r"-?\d[\d.e+-]*", "*", label)


# -- a third file ------------------------------------------------------------------------------------------------------


def _with_checkpoint(report: WeightsReport, a: Weights, b: Weights, c: Weights) -> WeightsReport:
    """The same report, each finding with the side that departs from the checkpoint."""
    wrong_a, wrong_b = _departures(_compare(c, a)), _departures(_compare(c, b))
    sources = {one.port: one.reference for one in report.pairs}

    def marked(finding: WeightFinding) -> WeightFinding:
        names_a = sources.get(finding.port) or tuple(finding.reference.split(" + "))
        in_a, in_b = bool(wrong_a.intersection(names_a)), finding.port in wrong_b or not finding.port
        side: Side | None = "both" if in_a and in_b else "reference" if in_a else "port" if in_b else None
        return replace(finding, wrong_side=side, confidence=min(0.99, finding.confidence + 0.02) if side else finding.confidence)

    different, missing = tuple(map(marked, report.different)), tuple(map(marked, report.missing))
    return replace(report, different=different, missing=missing, checkpoint=_side(c))


def _departures(report: WeightsReport) -> set[str]:
    """The tensors of a report's port that are not as in its reference."""
    return {finding.port for finding in report.different if not finding.expected} | set(report.unexpected)


# -- causes ------------------------------------------------------------------------------------------------------------


def causes_for(findings: Iterable[WeightFinding], module_paths: Iterable[str], *, side: Side = "port") -> list[dict[str, Any]]:
    """The causes that findings give for culprits: those about a parameter that one of the modules owns.

    Each is ``{"kind", "confidence", "confirmed", "evidence"}``, the surest first; findings of one kind and label become one cause.
    What a module's children own counts for less, what lies deeper for nothing: the deeper culprit is reported by itself.
    ``side`` says whose module paths are given; "both" looks on both.
    """
    paths = list(module_paths)
    concerned: dict[tuple[str, str], list[WeightFinding]] = defaultdict(list)
    for finding in findings:
        near = max((_nearness(path, name) for path in paths for name in _names(finding, side)), default=0.0)
        if near and not finding.expected:
            concerned[finding.kind, finding.label].append(replace(finding, confidence=finding.confidence * near))
    causes = [_cause(kind, members) for (kind, _), members in concerned.items()]
    return sorted(causes, key=lambda cause: (-cause["confidence"], not cause["confirmed"]))


def _names(finding: WeightFinding, side: Side) -> list[str]:
    names = [finding.port or finding.place] if side != "reference" else []
    if side != "port":
        names += finding.reference.split(" + ")
    return [name for name in names if name]


def _nearness(path: str, name: str) -> float:
    """How much a tensor concerns a module: 1 where the module owns it, less where a child does, 0 elsewhere."""
    owner = parent(name)
    if not is_below(owner, path):
        return 0.0
    below = owner[len(path) :].strip(".")
    if not below or "parametrizations" in below.split("."):
        return 1.0
    return 0.5 if "." not in below and path else 0.0


def _cause(kind: str, members: Sequence[WeightFinding]) -> dict[str, Any]:
    first = max(members, key=lambda finding: finding.confidence)
    more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
    evidence = f"{first.port or first.reference}{more}: {first.evidence}"
    return {"kind": kind, "confidence": round(first.confidence, 3), "confirmed": all(f.confirmed for f in members), "evidence": evidence}
