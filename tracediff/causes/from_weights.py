"""Causes that wrong weights show: what the findings on weights say about the culprits of divergences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from tracediff.causes.cause import Cause, in_order
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.locate import Located
from tracediff.parameters.findings import WeightFinding
from tracediff.parameters.renames import parent
from tracediff.site import is_below
from tracediff.trace import Trace


def causes(findings: Iterable[WeightFinding], path: str) -> list[Cause]:
    """The causes that findings on weights give for the port's module at ``path``, best first.

    A finding concerns a module that owns the parameter. It counts for less where a child owns the parameter, and for nothing where a
    deeper module does, since that module is a culprit of its own. Findings of one kind and label become one cause.
    """
    concerned: dict[tuple[str, str], list[WeightFinding]] = defaultdict(list)
    for finding in findings:
        near = _nearness(path, finding.port or finding.place)
        if near and not finding.expected:
            concerned[finding.kind, finding.label].append(replace(finding, confidence=finding.confidence * near))
    return in_order(_cause(kind, members) for (kind, _), members in concerned.items())


def with_owners(located: Located, findings: Iterable[WeightFinding], reference: Trace, port: Trace) -> Located:
    """What was located, with the owner of wrong weights as the culprit where code uses the weights without calling their owner."""
    pairs = [comparison.pair for comparison in located.comparisons if comparison.pair.layout is not None]
    seen = {reference.records[pair.reference[0]].module for pair in pairs}, {port.records[pair.port[0]].module for pair in pairs}
    wrong = list(findings)
    changed = []
    for finding in located.findings:
        other = owner(wrong, finding.culprit, seen) if finding.blame in ("module", "caller") else None
        changed.append(finding if other is None else replace(finding, culprit=other, blame="weights"))
    return replace(located, findings=tuple(changed))


def owner(findings: Iterable[WeightFinding], culprit: tuple[str, str], seen: tuple[Set[str], Set[str]]) -> tuple[str, str] | None:
    """The one module inside a culprit whose weights are wrong and whose calls could not be compared; None where none or several are such.

    Code may use a layer's weights without calling the layer. The error then shows in the tensor that this code returns.
    Module paths are (reference, port). ``seen`` holds the module paths of the paired sites by side.
    """
    wrong = [finding for finding in findings if not finding.expected and finding.reference and finding.port]
    owners = {(parent(finding.reference.split(" + ")[0]), parent(finding.port)) for finding in wrong}
    inside = {pair for pair in owners if all(is_below(*paths) for paths in zip(pair, culprit, strict=True))}
    hidden = {pair for pair in inside if pair != culprit and not all(path in known for path, known in zip(pair, seen, strict=True))}
    return hidden.pop() if len(hidden) == 1 and culprit not in inside else None


def _nearness(path: str, name: str) -> float:
    """How much a tensor concerns a module: 1 where the module owns the tensor, less where a child does, 0 elsewhere."""
    module = parent(name)
    if not name or not is_below(module, path):
        return 0.0
    below = module[len(path) :].strip(".")
    if not below or "parametrizations" in below.split("."):
        return 1.0
    return THRESHOLDS.nearness_of_child if "." not in below and path else 0.0


def _cause(kind: str, members: Sequence[WeightFinding]) -> Cause:
    """The cause that several findings of one kind and label give together."""
    first = max(members, key=lambda finding: finding.confidence)
    more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
    evidence = f"{first.port or first.reference}{more}: {first.evidence}"
    return Cause(kind, round(first.confidence, 3), all(finding.confirmed for finding in members), evidence)
