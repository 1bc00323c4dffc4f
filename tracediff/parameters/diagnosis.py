"""Which of the port's weights are not the reference's, and why: never loaded, missing, exchanged, transposed, rounded, merged wrongly.

No model is run. `weights` compares two sources of weights (`sources.open_weights`) and returns a `WeightsReport`; a third, the
checkpoint that both should hold, tells which side is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tracediff.errors import WeightsError
from tracediff.parameters.findings import Difference, Kind, WeightFinding, WrongSide, fault_of, is_bias, numbers_of
from tracediff.parameters.layout_rules import Origin, fitting_layouts
from tracediff.parameters.matching import ValuePair, has_rows_of, is_rounding, rounding_limit
from tracediff.parameters.pairing import Named, NamePair, Pairing, pair
from tracediff.parameters.placement import Conventions, Placement, move_text, placement
from tracediff.parameters.renames import parent
from tracediff.parameters.resemblance import identical
from tracediff.parameters.result import Compared, FindingGroup, WeightPair, WeightsReport, modules_of
from tracediff.parameters.sources import Source, Weight, Weights, open_weights
from tracediff.parameters.thresholds import THRESHOLDS

__all__ = ["Compared", "FindingGroup", "WeightFinding", "WeightPair", "WeightsReport", "weights"]

_NAMED = {"exact": "of the same name", "renamed": "by the renaming of its siblings", "likeness": "by likeness of names"}


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
    different = _with_siblings([*placed.findings, *_value_findings(pairing)])
    different = _ordered(_expected_dtypes(different, pairing), pairing)
    wanted = {name for origin in placed.right.values() for name in origin.names}
    return _report(pairing, placed, different, _missing(pairing, wanted))


def _report(pairing: Pairing, placed: Placement, different: Sequence[WeightFinding], missing: Sequence[WeightFinding]) -> WeightsReport:
    reference, port = pairing.reference, pairing.port
    wrong = {finding.port for finding in different if not finding.expected}
    pairs = tuple(_pairs(pairing, placed, wrong))
    equal = [match for match in pairs if match.equal]
    shapes = {name: weight.shape for name, weight in reference.items()}
    return WeightsReport(
        reference=_side(reference),
        port=_side(port),
        checkpoint=None,
        pairs=pairs,
        equal=len(equal),
        by_sketch=sum(match.by == "sketch" for match in equal),
        rounded=sum(held.rounded != "" for name, held in pairing.held.items() if name not in wrong),
        compared=len(pairs),
        total=len(port) + len(port.skipped),
        different=tuple(different),
        missing=tuple(missing),
        unexpected=tuple(pairing.unexpected),
        tied=dict(pairing.tied),
        notes=tuple(_notes(pairing, equal)),
        shapes=shapes,
        nearly=len(_nearly_equal(pairing)),
    )


def _pairs(pairing: Pairing, placed: Placement, wrong: set[str]) -> Iterable[WeightPair]:
    conventions = Conventions(pairing)
    for name in pairing.port:
        held, by_name = pairing.held.get(name), pairing.placed.get(name)
        origin = placed.right.get(name)
        if held is not None:
            origin = origin or held.origin
            yield WeightPair(origin.names, name, origin.text, held.by, name not in wrong, origin)
        elif by_name is not None:
            origin = _named_origin(conventions, by_name)
            yield WeightPair(origin.names, name, origin.text, "name", _is_nearly_equal(pairing, by_name), origin)


def _named_origin(conventions: Conventions, placed: NamePair) -> Origin:
    """The origin of a tensor that a name places: in the layout of its family, unless it is made from several."""
    if placed.held is not None and not placed.held.origin.is_copy:
        return placed.held.origin
    return conventions.right(placed.names[0], placed.port)


def _side(weights: Weights) -> Compared:
    return Compared(weights.source, weights.kind, len(weights), weights.count, weights.is_readable, weights.skipped)


# -- findings ----------------------------------------------------------------------------------------------------------


def _value_findings(pairing: Pairing) -> Iterable[WeightFinding]:
    conventions = Conventions(pairing)
    for placed in pairing.placed.values():
        if not _is_nearly_equal(pairing, placed):
            yield _placed_finding(pairing, placed, conventions)
    for name, held in pairing.held.items():
        if _is_wrong_merge(pairing, held):
            yield _wrong_merge(pairing, held)
        elif held.rounded:
            label = f"rounded to {held.rounded}"
            yield WeightFinding("weights.precision", held.origin.names[0], name, label, {}, THRESHOLDS.sure_rounded, True, label=label)


def _is_nearly_equal(pairing: Pairing, placed: NamePair) -> bool:
    """Whether a tensor that a name places is what belongs there, but for rounding."""
    held = placed.held
    if held is None or held.resemblance is None or held.resemblance.constant_b is not None:
        return False
    return is_rounding(held.resemblance, pairing.reference[held.origin.key].dtype, pairing.port[placed.port].dtype)


def _nearly_equal(pairing: Pairing) -> dict[str, float]:
    """The relative L2 of each of the port's tensors that is equal but for rounding, by name."""
    found = ((name, placed.held) for name, placed in pairing.placed.items() if _is_nearly_equal(pairing, placed))
    return {name: held.resemblance.rel_l2 for name, held in found if held is not None and held.resemblance is not None}


def _with_siblings(findings: Sequence[WeightFinding]) -> list[WeightFinding]:
    """Calls tensors with too few values to tell never loaded, where other tensors of their module were never loaded."""
    lost = {module for finding in findings if finding.kind == "weights.unloaded" for module in modules_of(finding.port)[-2:]}

    def with_module(finding: WeightFinding) -> WeightFinding:
        count, correlation = finding.numbers.get("count", 0), finding.numbers.get("correlation", 0)
        is_small = finding.kind == "weights.value" and finding.label == "other values" and count < THRESHOLDS.few_values
        if not is_small or correlation > THRESHOLDS.alike or not lost.intersection(modules_of(finding.port)[-2:]):
            return finding
        evidence = f"{finding.evidence}; its siblings were not loaded"
        sure = THRESHOLDS.sure_with_siblings
        return replace(finding, kind="weights.unloaded", label="never loaded", evidence=evidence, confidence=sure)

    return [with_module(finding) for finding in findings]


def _placed_finding(pairing: Pairing, placed: NamePair, conventions: Conventions) -> WeightFinding:
    target = pairing.port[placed.port]
    sure = _sureness_of_place(placed.named)
    held = placed.held
    if held is None or held.resemblance is None:
        return _other_shape(pairing, placed, sure)
    if held.by == "sketch" and held.origin.merge is not None and has_rows_of(pairing.reference[held.origin.key], target, held.origin):
        return _rows_scaled(held, sure)
    reference = port = None
    if held.by == "values":
        reference, port = held.origin.values(lambda name: pairing.reference[name].read()), target.read()
    source = pairing.reference[held.origin.key] if len(held.origin.names) == 1 and held.origin.is_copy else None
    fault = fault_of(Difference(held.resemblance, held.rounded, reference, port, target, source))
    evidence = f"{fault.evidence} (found {_NAMED['likeness']})" if placed.named == "likeness" else fault.evidence
    evidence += _layout_besides(conventions, pairing, held)
    other = pairing.elsewhere.get(placed.port)
    if other is not None and fault.kind == "weights.unloaded":
        evidence += f"; it is nearer to {other.origin.names[0]!r}"
    return WeightFinding(
        fault.kind,
        " + ".join(held.origin.names),
        placed.port,
        evidence,
        numbers_of(held.resemblance),
        fault.confidence * sure,
        fault.confirmed,
        label=fault.label,
    )


def _sureness_of_place(named: Named) -> float:
    """How sure it is that a tensor belongs where names place it."""
    return {"exact": THRESHOLDS.sure_name, "renamed": THRESHOLDS.sure_rename, "likeness": THRESHOLDS.sure_likeness}[named]


def _layout_besides(conventions: Conventions, pairing: Pairing, held: ValuePair) -> str:
    """What is wrong with the layout of a tensor whose values are the reference's, changed; "" for nothing."""
    found = held.resemblance
    if found is None or abs(found.correlation) < THRESHOLDS.alike or not held.origin.is_copy or found.count < THRESHOLDS.few_values:
        return ""
    shape = pairing.reference[held.origin.key].shape
    if len(fitting_layouts(shape, pairing.port[held.port].shape)) < 2:
        return ""
    reason = conventions.against(move_text(shape, held.origin.layout), held.port, shape)
    return f"; besides, {reason[1]}" if reason is not None else ""


def _rows_scaled(held: ValuePair, sure: float) -> WeightFinding:
    """A weight norm whose rows are the direction's with a wrong scale."""
    what = "weight norm merged otherwise than over the right axes"
    evidence = "the rows have the direction's signs, but not the norm that the gain says: merged over other axes, or not at all"
    return WeightFinding(
        "weights.value", " + ".join(held.origin.names), held.port, evidence, {}, THRESHOLDS.sure_wrong_rows * sure, label=what
    )


def _other_shape(pairing: Pairing, placed: NamePair, sure: float) -> WeightFinding:
    source, target = pairing.reference[placed.names[0]], pairing.port[placed.port]
    common = _common_block(source, target)
    evidence = f"shape {source.shape} in the reference, {target.shape} in the port{common}"
    return WeightFinding("weights.value", source.name, placed.port, evidence, {}, THRESHOLDS.sure_other_shape * sure, label="another shape")


def _common_block(source: Weight, target: Weight) -> str:
    """Whether the block that two tensors of different lengths have in common is equal, in words; "" where it is not."""
    if len(source.shape) != len(target.shape) or not (source.is_readable and target.is_readable):
        return ""
    block = tuple(slice(0, min(a, b)) for a, b in zip(source.shape, target.shape, strict=True))
    lengths = " x ".join(str(part.stop) for part in block)
    return f"; the first {lengths} are equal" if identical(source.read()[block], target.read()[block]) else ""


def _is_wrong_merge(pairing: Pairing, held: ValuePair) -> bool:
    merge = held.origin.merge
    if merge is None or merge.kind == "sum":
        return False
    return merge.kind != "weight_norm" or merge.axes != _right_axes(pairing.reference[held.origin.names[0]].shape)


def _right_axes(gain: tuple[int, ...]) -> tuple[int, ...]:
    """The axes over which a weight norm is rightly merged: those along which its gain does not vary."""
    return tuple(axis for axis, size in enumerate(gain) if size == 1)


def _wrong_merge(pairing: Pairing, held: ValuePair) -> WeightFinding:
    merge = held.origin.merge
    assert merge is not None
    right = _right_axes(pairing.reference[held.origin.names[0]].shape)
    what = {
        "weight_norm": f"weight norm merged over axes {merge.axes} instead of {right}",
        "unit": "weight norm merged without its gain",
        "gain": "weight norm merged without its norm",
        "raw": "weight norm not merged: the direction stands for the weight",
    }[merge.kind]
    limit = rounding_limit(pairing.reference[held.origin.key].dtype, pairing.port[held.port].dtype)
    evidence = f"{what}: that gives the port's values within {limit:.1g}"
    return WeightFinding(
        "weights.value", " + ".join(held.origin.names), held.port, evidence, {}, THRESHOLDS.sure_wrong_merge, True, label=what
    )


def _missing(pairing: Pairing, wanted: set[str]) -> list[WeightFinding]:
    """Findings on the reference's tensors without a place, but for those whose place holds another tensor (``wanted``)."""
    findings = []
    trained = {parent(name) for name, weight in pairing.reference.items() if weight.kind == "parameter"}
    for name in pairing.missing:
        if name in wanted:
            continue
        weight = pairing.reference[name]
        bias = is_bias(name, weight.shape)
        kind: Kind = "weights.missing_bias" if bias else "weights.unloaded"
        evidence = f"shape {weight.shape}, no place for it in the port"
        zero = weight.count and weight.stats.l2 == 0
        expected = _is_bookkeeping(weight) or bool(bias and zero) or (weight.kind == "buffer" and parent(name) not in trained)
        if expected:
            evidence += "; all zero, so nothing is lost" if zero else "; a counter, a mask or a table that code computes, not a parameter"
        place = pairing.renames(name)
        sure, label = THRESHOLDS.sure_missing, "missing in the port"
        findings.append(WeightFinding(kind, name, "", evidence, {}, sure, expected=expected, label=label, place=place))
    return findings


def _is_bookkeeping(weight: Weight) -> bool:
    """Whether a tensor is no parameter: a counter, a mask of zeros and ones, a table in even steps that code computes anew."""
    if weight.kind == "parameter" or weight.dtype.is_complex:
        return False
    if weight.dtype.is_exact:
        return weight.dtype.name not in ("uint8", "int8", "uint32")  # these hold quantised weights
    stats = weight.stats
    ones = stats.count - stats.zero
    is_mask = stats.count > 1 and (stats.min, stats.max) == (0.0, 1.0) and abs(stats.mean * stats.count - ones) < THRESHOLDS.mask_error
    return (is_mask and abs(stats.l2**2 - ones) < THRESHOLDS.mask_error) or _is_even(weight)


def _is_even(weight: Weight) -> bool:
    """Whether a vector goes in equal steps or equal ratios: positions, the frequencies of a rotary embedding."""
    if len(weight.shape) != 1 or not THRESHOLDS.shortest_table <= weight.count <= THRESHOLDS.longest_table or not weight.is_readable:
        return False
    vector = weight.read().astype(np.float64)
    steps = np.diff(vector)
    if not steps.all() or not np.isfinite(vector).all():
        return False
    ratios = vector[1:] / vector[:-1] if vector.all() else steps
    return any(np.ptp(found) <= THRESHOLDS.even_steps * abs(found).max() for found in (steps, ratios))


def _expected_dtypes(findings: Sequence[WeightFinding], pairing: Pairing) -> list[WeightFinding]:
    """Marks roundings to the dtype that most of the port's values have as expected: that dtype is the port's choice."""
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
    sketches = sum(match.by == "sketch" for match in equal)
    if sketches:
        within = f"within {THRESHOLDS.sketch_tolerance:g} relative L2: their values were not stored"
        yield f"{sketches:,} tensors are called equal by their sketches, {within}"
    merged = [match for match in equal if match.origin.merge is not None]
    if merged:
        limit = max(rounding_limit(pairing.reference[match.origin.key].dtype, pairing.port[match.port].dtype) for match in merged)
        yield f"{len(merged):,} merged tensors (weight norm, sum) are called equal within {limit:.1g} relative L2"
    nearly = _nearly_equal(pairing)
    if nearly:
        yield f"{len(nearly):,} equal up to rounding (relative L2 at most {max(nearly.values()):.1g})"
    constant = sum(1 for match in equal if pairing.port[match.port].is_constant and pairing.port[match.port].count > 1)
    if constant:
        yield f"{constant:,} equal tensors are constant (zeros or ones) on both sides: a mistake in placing them would not show"
    for side in (pairing.reference, pairing.port):
        if side.skipped:
            yield f"{len(side.skipped):,} tensors of {side.source!r} have a dtype that is not known and were not compared"


# -- a third file ------------------------------------------------------------------------------------------------------


def _with_checkpoint(report: WeightsReport, a: Weights, b: Weights, c: Weights) -> WeightsReport:
    """The same report, each finding with the side that departs from the checkpoint."""
    wrong_a, wrong_b = _departures(_compare(c, a)), _departures(_compare(c, b))
    sources = {match.port: match.reference for match in report.pairs}

    def marked(finding: WeightFinding) -> WeightFinding:
        names_a = sources.get(finding.port) or tuple(finding.reference.split(" + "))
        in_a, in_b = bool(wrong_a.intersection(names_a)), finding.port in wrong_b or not finding.port
        side: WrongSide | None = "both" if in_a and in_b else "reference" if in_a else "port" if in_b else None
        surer = min(THRESHOLDS.surest, finding.confidence + THRESHOLDS.surer_by_checkpoint)
        return replace(finding, wrong_side=side, confidence=surer if side else finding.confidence)

    different, missing = tuple(map(marked, report.different)), tuple(map(marked, report.missing))
    return replace(report, different=different, missing=missing, checkpoint=_side(c))


def _departures(report: WeightsReport) -> set[str]:
    """The names of the port's tensors that differ from the reference's, or that it does not have."""
    return {finding.port for finding in report.different if not finding.expected} | set(report.unexpected)
