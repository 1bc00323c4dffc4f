"""Causes that wrong weights show: what the findings on weights say about the culprits of divergences.

A wrong parameter may be the cause of what its module, or code around it, computed with it, and only where the parameter's difference is
large enough to make the error. It is confirmed where the module's function, computed again with the port's parameter, gives the port's
output; that takes a layer whose function is known, its input, and the stored parameters of both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace

from tracediff.causes.cause import Cause, in_order
from tracediff.causes.layers import LayerParameters
from tracediff.causes.proof import Claim, Edit, judged
from tracediff.causes.scene import Scene
from tracediff.causes.thresholds import THRESHOLDS
from tracediff.locate import Located
from tracediff.parameters.findings import WeightFinding
from tracediff.parameters.renames import parent
from tracediff.parameters.result import WeightsReport
from tracediff.site import is_below
from tracediff.trace import Trace
from tracediff.trace.fingerprint import Fingerprinted

Seen = tuple[Set[str], Set[str]]
"""The module paths of the paired sites by side: what they compute is compared by itself."""


def causes(
    findings: Iterable[WeightFinding],
    path: str,
    *,
    introduced: float = 0.0,
    seen: Set[str] = frozenset(),
    trains: bool = False,
    scene: Scene | None = None,
    parameters: LayerParameters | None = None,
) -> list[Cause]:
    """The causes that findings on weights give for the port's module at ``path``, best first.

    A finding concerns the module that owns the parameter. Where a child owns it, it counts for less, and for nothing where the child's
    calls are compared by themselves (``seen``). It also counts for nothing where it is too small for the error ``introduced``, a relative
    L2. Where the port's module is in training mode (``trains``), its running statistics differ for that reason alone. Findings of one kind
    and label become one cause. ``scene`` and ``parameters`` are what a cause is proven with.
    """
    concerned: dict[tuple[str, str], list[WeightFinding]] = defaultdict(list)
    for finding in findings:
        name = finding.port or finding.place
        near = 0.0 if trains and "running_" in name.rpartition(".")[2] else _nearness(path, name, seen)
        if near and not finding.expected and explains(finding, introduced):
            concerned[finding.kind, finding.label].append(replace(finding, confidence=finding.confidence * near))

    def claims(shown: Scene) -> Iterator[Claim]:
        for members in concerned.values():
            yield _claim(members, None if parameters is None else parameters.edit(shown, members))

    if scene is None:
        return in_order(Cause(one.kind, one.likelihood, False, one.evidence) for one in map(_claim, concerned.values()))
    return in_order(judged(scene, claims))


def strangers(weights: WeightsReport, culprit: tuple[str, str], reference: Trace, port: Trace) -> Iterator[Cause]:
    """The cause where all that the port's module owns is unlike anything of the reference, and all that the reference's owns is unused.

    So it is where fused weights were never loaded: they have no single partner, whatever the names say. Tensors that may be each
    other plus a number are no strangers. ``culprit``: module paths of reference and port.
    """
    owned = (
        [name for name, param in trace.params.items() if param.path == path] for trace, path in zip((reference, port), culprit, strict=True)
    )
    ours, theirs = owned
    used = {name for pair in weights.pairs if pair.equal for name in pair.reference}
    are_strangers = used.isdisjoint(ours) and set(theirs) <= set(weights.unexpected)
    if are_strangers and ours and theirs and not any(_are_alike(reference.params[a], port.params[b]) for a in ours for b in theirs):
        more = f" (and {len(theirs) - 1} more)" if len(theirs) > 1 else ""
        evidence = f"{theirs[0]}{more}: holds nothing of the reference, and nothing of the port holds {ours[0]}: never loaded"
        yield Cause("weights.unloaded", THRESHOLDS.sure_stranger, False, evidence)


def _are_alike(ours: Fingerprinted, theirs: Fingerprinted) -> bool:
    """Whether a parameter may be another one plus a number: both are spread alike, or one of them is of one value throughout."""
    spread = max(ours.stats.std, theirs.stats.std)
    if min(ours.stats.std, theirs.stats.std) <= THRESHOLDS.same_spread * spread:
        return True
    return ours.shape == theirs.shape and abs(ours.stats.std - theirs.stats.std) <= THRESHOLDS.same_spread * spread


def explains(finding: WeightFinding, introduced: float) -> bool:
    """Whether a parameter differs by enough to make an error of a relative L2: by no less than a part of it that no layer makes up for."""
    size = finding.numbers.get("rel_l2")
    return size is None or size * THRESHOLDS.amplification >= min(introduced, 1.0)


def with_owners(located: Located, findings: Iterable[WeightFinding], reference: Trace, port: Trace) -> Located:
    """What was located, with the owner of wrong weights as the culprit where code uses the weights without calling their owner."""
    seen, wrong = compared_modules(located, reference, port), list(findings)
    roots = tuple({str(module["path"]) for module in trace.meta.get("modules") or ()} for trace in (reference, port))
    changed = []
    for finding in located.findings:
        is_code = finding.blame in ("module", "caller") and all(path in known for path, known in zip(finding.culprit, roots, strict=True))
        large = [one for one in wrong if explains(one, finding.introduced)] if is_code else []
        other = owner(large, finding.culprit, seen)
        changed.append(finding if other is None else replace(finding, culprit=other, blame="weights"))
    return replace(located, findings=tuple(changed))


def compared_modules(located: Located, reference: Trace, port: Trace) -> Seen:
    """The module paths of the sites of which something was paired and can be compared."""
    pairs = [comparison.pair for comparison in located.comparisons if comparison.pair.layout is not None]
    return {reference.records[pair.reference[0]].module for pair in pairs}, {port.records[pair.port[0]].module for pair in pairs}


def owner(findings: Iterable[WeightFinding], culprit: tuple[str, str], seen: Seen) -> tuple[str, str] | None:
    """The one module inside a culprit whose weights are wrong and whose calls could not be compared; None where none or several are such.

    Code may use a layer's weights without calling the layer. The error then shows in the tensor that this code returns.
    Module paths are (reference, port).
    """
    wrong = [finding for finding in findings if not finding.expected and finding.reference and finding.port]
    owners = {(parent(finding.reference.split(" + ")[0]), parent(finding.port)) for finding in wrong}
    inside = {pair for pair in owners if all(is_below(*paths) for paths in zip(pair, culprit, strict=True))}
    hidden = {pair for pair in inside if pair != culprit and not all(path in known for path, known in zip(pair, seen, strict=True))}
    return hidden.pop() if len(hidden) == 1 and culprit not in inside else None


def _nearness(path: str, name: str, seen: Set[str]) -> float:
    """How much a tensor concerns a module: 1 where the module owns the tensor, less where a child does, 0 elsewhere."""
    module = parent(name)
    if not name or not is_below(module, path):
        return 0.0
    below = module[len(path) :].strip(".")
    if not below or "parametrizations" in below.split("."):
        return 1.0
    return THRESHOLDS.nearness_of_child if "." not in below and path and module not in seen else 0.0


def _claim(members: Sequence[WeightFinding], edit: Edit | None = None) -> Claim:
    """What several findings of one kind and label say together."""
    first = max(members, key=lambda finding: finding.confidence)
    more = f" (and {len(members) - 1} more)" if len(members) > 1 else ""
    evidence = f"{first.port or first.reference}{more}: {first.evidence}"
    return Claim(first.kind, round(first.confidence, 3), evidence, edit)
