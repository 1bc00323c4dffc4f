"""The causes of all divergences of two traces: from the pairs themselves, from the tensors around them, and from the weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from tracediff.alignment import Alignment
from tracediff.causes import from_pair, from_tensors, from_weights
from tracediff.causes.cause import Cause, in_order, one_of_each_kind
from tracediff.causes.confidence import calibrated
from tracediff.causes.from_tensors import Seen
from tracediff.causes.layers import LayerParameters
from tracediff.causes.scene_reader import SceneReader
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.errors import WeightsError
from tracediff.locate import Finding, Located
from tracediff.parameters.diagnosis import weights as compare_weights
from tracediff.parameters.result import WeightsReport
from tracediff.trace import Trace


@dataclass(frozen=True, slots=True)
class Explanation:
    """What two traces show of the causes of their divergences.

    ``located``: what `explain` was given, but where code uses wrong weights without calling their owner, the owner is the culprit, and what
    was borderline is a finding where its cause is proved.
    ``causes``: those of each finding of ``located``, best first. ``weights``: how the parameters differ; None where they were not compared.
    ``notes``: what was not looked for, as sentences.
    """

    located: Located
    causes: tuple[tuple[Cause, ...], ...]
    weights: WeightsReport | None
    notes: tuple[str, ...] = ()


def explain(located: Located, alignment: Alignment, reference: Trace, port: Trace) -> Explanation:
    """The causes of everything that was located between two aligned traces."""
    weights = _compared_weights(reference, port)
    reader = SceneReader(located, alignment, reference, port, partial(_wrong, weights))
    located, seen_in_tensors = _with_proved(located, reader)
    if weights is not None:
        located = from_weights.with_owners(located, weights.findings, reference, port)
    proved = {place for place, found in seen_in_tensors.causes.items() if any(cause.confirmed for cause in found)}
    of_weights = _of_weights(located, weights, reader, proved)
    causes = []
    findings = list(located.findings)
    for place, finding in enumerate(located.findings):
        of_pair = from_pair.causes(finding, located.comparisons[finding.place], reference, port)
        seen = one_of_each_kind([*of_pair, *seen_in_tensors.causes.get(place, ())])
        best = in_order([*of_weights[place], *seen])
        if best and finding.maker is None:  # the proven edit says in which module of the reference it lies
            findings[place] = replace(finding, maker=seen_in_tensors.changes.get(place, {}).get(best[0].evidence))
        causes.append(best)
    located, causes = _one_a_change(replace(located, findings=tuple(findings)), causes, seen_in_tensors.changes)
    told = tuple(tuple(map(calibrated, of_finding)) for of_finding in causes)
    return Explanation(located, told, weights, tuple(_notes(seen_in_tensors.unsearched)))


def _one_a_change(
    located: Located, causes: Sequence[list[Cause]], changes: Mapping[int, Collection[str]]
) -> tuple[Located, list[list[Cause]]]:
    """One finding for all that one proved change of the reference's operations explains, and the causes of each finding.

    So it is where a method of a module is called by the code outside as well, and where one variable shows at several places.
    """
    first: dict[tuple[str, str], int] = {}
    found: dict[int, Finding] = {}
    for place, finding in enumerate(located.findings):
        best = causes[place][0] if causes[place] else None
        key = (best.kind, best.evidence) if best is not None and best.evidence in changes.get(place, ()) else None
        into = place if key is None else first.setdefault(key, place)
        found[into] = finding if into == place else replace(found[into], places=found[into].places + finding.places)
    return replace(located, findings=tuple(found.values())), [causes[place] for place in found]


def _wrong(weights: WeightsReport | None, introduced: float) -> frozenset[str]:
    """The reference's parameters that the port lacks, or has with values so much others that they explain an error (relative L2)."""
    findings = () if weights is None else weights.findings
    wrong = (one for one in findings if not one.expected and one.reference and from_weights.explains(one, introduced))
    return frozenset(name for one in wrong for name in one.reference.split(" + "))


def _notes(unsearched: int) -> Iterator[str]:
    if unsearched:
        searched = THRESHOLDS.formulas_searched
        yield f"A formula was looked for at the first {searched} findings that nothing else explains, not at the other {unsearched:,}."


def _with_proved(located: Located, reader: SceneReader) -> tuple[Located, Seen]:
    """What was located and what the tensors show of its findings, borderline ones with a confirmed cause among them."""
    if not located.borderline:
        return located, from_tensors.causes(located, reader)
    every = sorted((*located.findings, *located.borderline), key=lambda finding: finding.place)
    seen = from_tensors.causes(replace(located, findings=tuple(every)), reader)
    clear = [i for i, one in enumerate(every) if one in located.findings or any(cause.confirmed for cause in seen.causes.get(i, ()))]
    faint = tuple(one for i, one in enumerate(every) if i not in clear)
    findings = tuple(every[i] for i in clear)
    introduced = {finding.place for finding in findings}
    comparisons = tuple(replace(one, effect="") if place in introduced else one for place, one in enumerate(located.comparisons))
    found = replace(located, findings=findings, borderline=faint, comparisons=comparisons)
    return found, replace(
        seen,
        causes={place: seen.causes[i] for place, i in enumerate(clear) if i in seen.causes},
        changes={place: seen.changes[i] for place, i in enumerate(clear) if i in seen.changes},
    )


def _of_weights(located: Located, weights: WeightsReport | None, reader: SceneReader, proved: Collection[int]) -> list[list[Cause]]:
    """The causes that wrong weights give for each finding, in the order of the findings.

    ``proved``: the findings of which an edit with the reference's weights gives the port's tensor. No weight is missing there, or a
    stranger, merely because the port has none that looks like it.
    """
    if weights is None:
        return [[] for _ in located.findings]
    reference, port = reader.traces
    _, seen = from_weights.compared_modules(located, reference, port)
    parameters = LayerParameters(weights, reference, port)
    may_be_proved = parameters.may_prove(weights.findings)
    found = []
    for place, finding in enumerate(located.findings):
        wrong = [one for one in weights.findings if place not in proved or one.port or one.kind != "weights.unloaded"]
        trains = reader.trains(1, finding.culprit[1])
        told = partial(from_weights.causes, wrong, finding.culprit[1], introduced=finding.introduced, seen=seen, trains=trains)
        causes = told()
        if causes and may_be_proved:
            causes = told(scene=reader.scene(finding), parameters=parameters)
        strangers = () if place in proved else from_weights.strangers(weights, finding.culprit, reference, port)
        found.append(causes or list(strangers))
    return found


def _compared_weights(reference: Trace, port: Trace) -> WeightsReport | None:
    """How the recorded parameters differ; None where a side has none, or where the two share nothing."""
    try:
        return compare_weights(reference, port) if reference.params and port.params else None
    except WeightsError:
        return None
