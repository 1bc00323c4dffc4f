"""The result of comparing two sets of weights: plain frozen data, its findings grouped, and its JSON and table."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tracediff import dtype as dtypes
from tracediff.outputs import write_output
from tracediff.parameters.findings import GRAVITY, Kind, WeightFinding
from tracediff.parameters.layout_rules import Origin
from tracediff.parameters.matching import rounding_limit
from tracediff.parameters.renames import grouped, pattern
from tracediff.parameters.rules import rules_text
from tracediff.parameters.thresholds import THRESHOLDS

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "tracediff.weights/1"

Category = Literal["different", "missing", "unexpected"]


@dataclass(frozen=True, slots=True)
class WeightPair:
    """One tensor of the port and those that it is made from. ``by`` says how that is known: digest, values, sketch or name."""

    reference: tuple[str, ...]
    port: str
    layout: str
    by: str
    equal: bool
    origin: Origin = field(repr=False)


@dataclass(frozen=True, slots=True)
class Compared:
    """One side of a comparison: its source, how many tensors and values it has, and the tensors that were not compared."""

    source: str
    kind: str
    tensors: int
    values: int
    readable: bool
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """Findings of one kind and one pattern of names. ``port`` is the pattern of the port's names."""

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
    ``nearly`` counts those of the equal ones that differ by no more than rounding.
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
    nearly: int = 0

    @property
    def findings(self) -> tuple[WeightFinding, ...]:
        """All findings: what differs, then what is missing."""
        return (*self.different, *self.missing)

    @property
    def verdict(self) -> Literal["same", "different"] | None:
        """ "different" where anything differs that the port did not choose, else "same" where everything was compared, else None."""
        if any(not finding.expected for finding in self.findings):
            return "different"
        return "same" if self.compared and not self.uncompared else None

    @property
    def uncompared(self) -> tuple[str, ...]:
        """Tensors that could not be compared at all."""
        return (*self.reference.skipped, *self.port.skipped)

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
            "nearly": self.nearly,
            "tolerance": {"sketch": THRESHOLDS.sketch_tolerance, "merge": rounding_limit(dtypes.named("float32"), dtypes.named("float32"))},
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

        findings = {finding.port: finding for finding in self.different}
        rows: list[tuple[Any, ...]] = []
        for pair in self.pairs:
            finding = findings.get(pair.port)
            kind, confidence, evidence = ("equal", 1.0, "") if finding is None else (finding.kind, finding.confidence, finding.evidence)
            rows.append((" + ".join(pair.reference), pair.port, kind, pair.layout, pair.by, confidence, evidence))
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

    def write_rules(self, path: str | Path, *, force: bool = False) -> Path:
        """Writes a Python file whose ``sanitize(weights)`` turns the reference's weights into the ones that the port should hold.

        Raises TraceExistsError where the file exists, unless ``force``.
        """
        origins = {pair.port: pair.origin for pair in self.pairs}
        return write_output(path, rules_text(origins, self.shapes, self._title()), force=force)

    def _title(self) -> str:
        return f"Weights of {_bare(self.reference.source)} for {_bare(self.port.source)}: {len(self.pairs)} of {self.total} tensors."


def _bare(source: str) -> str:
    """A source's name without its folder, as it may stand in a docstring."""
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2].replace('"', "'")


def _side_dict(side: Compared) -> dict[str, Any]:
    return {
        "source": side.source,
        "kind": side.kind,
        "tensors": side.tensors,
        "values": side.values,
        "readable": side.readable,
        "skipped": list(side.skipped),
    }


# -- groups ------------------------------------------------------------------------------------------------------------


_NOT_LOADED = ("weights.unloaded", "weights.missing_bias")


def _groups(report: WeightsReport) -> Iterable[FindingGroup]:
    totals = Counter(module for name in _all_names(report) for module in modules_of(name))
    found: list[FindingGroup] = []
    for category, findings in _by_category(report):
        lost = [finding for finding in findings if finding.kind in _NOT_LOADED and not finding.expected]
        whole, _ = _whole_modules(category, lost, totals, "never loaded" if category == "different" else "missing in the port")
        in_modules = {id(finding) for group in whole for finding in group.findings}
        found += whole
        for alike in _alike([finding for finding in findings if id(finding) not in in_modules]):
            if alike[0].expected and len(alike) > THRESHOLDS.most_lines:
                found.append(_group(category, pattern([_name(finding) for finding in alike]), alike))
                continue
            whole, rest = _whole_modules(category, alike, totals, alike[0].label)
            found += [*whole, *_by_pattern(category, rest)]
    found.sort(key=lambda group: (group.findings[0].expected, GRAVITY[group.kind or ""], -group.count))
    yield from found
    for text, names in grouped(report.unexpected):
        nothing = tuple(WeightFinding("weights.value", "", name, "", expected=True) for name in names)
        yield FindingGroup("unexpected", None, text, text, "not in the reference", nothing)


def _by_category(report: WeightsReport) -> Iterable[tuple[Category, tuple[WeightFinding, ...]]]:
    yield "different", report.different
    yield "missing", report.missing


def _all_names(report: WeightsReport) -> Iterable[str]:
    """The names of the reference's tensors; tensors that are merged to one have one name together."""
    yield from (" + ".join(pair.reference) for pair in report.pairs)
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
    """The findings on modules of which every tensor has one, in a group for each kind of module; and the findings that are left."""
    counts = Counter(module for finding in findings for module in modules_of(_name(finding)))
    full = {module for module, count in counts.items() if count == totals[module] and count >= THRESHOLDS.least_module}
    outermost: dict[str, list[WeightFinding]] = defaultdict(list)
    rest: list[WeightFinding] = []
    for finding in findings:
        module = next((module for module in modules_of(_name(finding)) if module in full), None)
        (rest if module is None else outermost[module]).append(finding)
    groups = []
    for text, modules in grouped(list(outermost)):
        members = tuple(finding for module in modules for finding in outermost[module])
        kind = min((finding.kind for finding in members), key=GRAVITY.__getitem__)
        groups.append(FindingGroup(category, kind, f"{text}.**", "", f"{label}: the whole module", members))
    return groups, rest


def _by_pattern(category: Category, findings: Sequence[WeightFinding]) -> Iterable[FindingGroup]:
    by_name: dict[str, list[WeightFinding]] = defaultdict(list)
    for finding in findings:
        by_name[_name(finding)].append(finding)
    for text, names in grouped(list(by_name)):
        yield _group(category, text, [finding for name in names for finding in by_name[name]])


def _group(category: Category, text: str, findings: Sequence[WeightFinding]) -> FindingGroup:
    labels = {finding.label for finding in findings}
    ports = grouped([finding.port for finding in findings if finding.port])
    label = labels.pop() if len(labels) == 1 else _general(findings[0].label)
    return FindingGroup(category, findings[0].kind, text, ports[0][0] if len(ports) == 1 else "", label, tuple(findings))


def modules_of(name: str) -> list[str]:
    """The modules that a tensor lies in, the outermost first."""
    parts = name.partition(" + ")[0].split(".")[:-1]
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def _general(label: str) -> str:
    """A label without the numbers that differ from tensor to tensor; a label that names a dtype stays as it is."""
    return label if "float" in label else re.sub(r"-?\d[\d.e+-]*", "*", label)
