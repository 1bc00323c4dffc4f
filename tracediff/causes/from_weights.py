"""Causes: what the findings on weights say about the culprits of divergences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from typing import Any

from tracediff.parameters.findings import WeightFinding, WrongSide
from tracediff.parameters.renames import parent
from tracediff.site import is_below


def causes_for(findings: Iterable[WeightFinding], module_paths: Iterable[str], *, side: WrongSide = "port") -> list[dict[str, Any]]:
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


def owner(findings: Iterable[WeightFinding], culprit: tuple[str, str], seen: tuple[Set[str], Set[str]]) -> tuple[str, str] | None:
    """The one module inside a culprit whose weights are wrong and whose calls could not be compared; None where there is no such one.

    Code may use a layer's weights without calling the layer, on either side: an error of theirs then shows in what that code hands on.
    Module paths are (reference, port); ``seen``: those of the sites that were paired, by side.
    """
    wrong = [finding for finding in findings if not finding.expected and finding.reference and finding.port]
    owners = {(parent(finding.reference.split(" + ")[0]), parent(finding.port)) for finding in wrong}
    inside = {pair for pair in owners if all(is_below(*paths) for paths in zip(pair, culprit, strict=True))}
    hidden = {pair for pair in inside if pair != culprit and not all(path in known for path, known in zip(pair, seen, strict=True))}
    return hidden.pop() if len(hidden) == 1 and culprit not in inside else None


def _names(finding: WeightFinding, side: WrongSide) -> list[str]:
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
