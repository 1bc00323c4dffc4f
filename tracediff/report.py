"""Report: the whole result of a comparison as plain frozen data.

`tracediff.show` makes text, Markdown, HTML and plots of it; `tracediff.show.drawn.Report` is the same data with these views as methods.

The JSON has no NaN or Infinity literals: a number that is not finite is the text "NaN", "Infinity" or "-Infinity", and what is unknown
is null. Module paths and sites are the printed ones of `tracediff.site`; "" is the root.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from tracediff.alignment import Alignment, RecordPair
from tracediff.causes.cause import Cause as Cause
from tracediff.causes.cause import in_order
from tracediff.causes.from_pair import scalars
from tracediff.caveats import caveats
from tracediff.errors import TracediffError
from tracediff.locate import EXCUSED, Blame, Comparison, Effect, Finding, How, Length, Located, length_of
from tracediff.metrics import By, Metrics
from tracediff.site import RETURNED, is_returned, printable, stage_chain
from tracediff.trace import Record, Trace, schema
from tracediff.verdict import Decision, Outputs, Verdict, Withheld, decide, free_notes, name_of, not_compared

if TYPE_CHECKING:
    import pandas as pd

    from tracediff.parameters.result import WeightsReport

SCHEMA = "tracediff.report/1"


@dataclass(frozen=True, slots=True)
class Where:
    """A pair of records: the site on either side, and the reference's call, end and stage."""

    reference: str
    port: str
    call: str
    end: str
    stage: str


@dataclass(frozen=True, slots=True)
class Culprit:
    """The module paths of the code that introduced an error; "" is the root."""

    reference: str
    port: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics of a divergence, as `tracediff.metrics.Metrics` defines them."""

    max_abs: float
    mean_abs: float
    rms: float
    rel_l2: float
    cosine: float
    max_ulp: int | None
    mismatched: int
    count: int
    argmax: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Divergence:
    """An error that was introduced: where it is seen, and whose code made it.

    ``introduced`` and ``inherited`` are relative L2: of the pair itself, and the worst of what arrived there (None where unknown).
    ``metrics`` is None where the shapes differ or no values were stored. ``times``: how many times what is allowed the error is, None where
    none was measured or no limit on the relative L2 is set. ``last_same`` is the last pair before it that agrees.
    ``causes``: best first; none means that the cause is unknown. ``count``: at so many places the same fault shows, this one the first of
    them. ``length``: the length in which the shapes differ, if they do; ``introduced`` is then no number (infinite, null in JSON).
    """

    site: Where
    culprit: Culprit
    introduced: float
    inherited: float | None
    floor: float | None
    metrics: Measured | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    layout: str
    last_same: Where | None
    causes: tuple[Cause, ...] = ()
    times: float | None = None
    count: int = 1
    length: Length | None = None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much was compared. ``paired`` and ``compared`` count records of the reference; ``read`` pairs whose values were read.

    ``unseen_outputs``: what the reference's run, and the last calls of its stages, returned and nothing of the port was compared with.
    ``not_returned``: what the reference's run returned and the port's did not, also where the port computes it and it was compared there.
    """

    reference_records: int
    port_records: int
    paired: int
    compared: int
    read: int
    bytes_read: int
    unpaired_reference: tuple[str, ...] = ()
    unpaired_port: tuple[str, ...] = ()
    not_seen: tuple[str, ...] = ()
    unseen_outputs: tuple[str, ...] = ()
    not_returned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: ``worst`` is its largest relative L2 and ``floor`` the noise floor there; ``first`` its first divergence."""

    stage: str
    verdict: Verdict
    worst: float | None
    floor: float | None
    first: Where | None


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of both sides: how many are equal, one line for each finding among the others, and how many differ or are missing."""

    equal: int = 0
    different: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    unequal: int = 0


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A difference from which nothing follows, and the reference's site whose call returned numbers that agree ("" is the root)."""

    where: Where
    absorber: str


@dataclass(frozen=True, slots=True)
class Quantisation:
    """An output of a layer whose weights the port holds as codes, off by no more than these explain; ``introduced`` is a relative L2."""

    where: Where
    introduced: float


@dataclass(frozen=True, slots=True)
class Row:
    """One pair of records in the table of all pairs; what was not compared has ``how`` "" and ``diverged`` None.

    ``at_least`` is a lower bound of the relative L2 that statistics prove where values were not read. ``effect`` says why a pair that
    differs is no divergence. ``length``: the length in which the shapes differ, if they do.
    """

    where: Where
    how: How
    rel_l2: float | None
    max_abs: float | None
    at_least: float
    limit: float | None
    by: By | None
    floor: float | None
    diverged: bool | None
    introduced: bool
    effect: Effect
    layout: str
    pair: RecordPair = field(repr=False)
    length: Length | None = None


@dataclass(frozen=True)
class Report:
    """What comparing two traces gave.

    ``verdict`` is "same" only where pairs were compared and none diverged; None where nothing could be told, and ``withheld`` says why.
    ``outputs`` says how much of what the runs returned was compared. ``divergences`` are those introduced, in execution order; a bisection
    names the first only. ``equivalent`` are differences that are none, since nothing follows from them; ``borderline`` those that are
    little more than noise in size and like noise in kind; ``quantised`` those that the codes of a port's weights explain. ``caveats``:
    sentences that make the verdict doubtful (a run in training mode, or that does not repeat itself). ``rows`` holds every pair (empty in
    a report read from JSON).
    """

    verdict: Verdict
    mode: Literal["forced", "free"]
    method: Literal["bisect", "scan", "live"]
    reference: Mapping[str, Any]
    port: Mapping[str, Any]
    coverage: Coverage
    divergences: tuple[Divergence, ...]
    stages: tuple[Stage, ...]
    weights: Weights
    certificate: Mapping[str, Any]
    equivalent: tuple[Equivalent, ...] = ()
    borderline: tuple[Divergence, ...] = ()
    quantised: tuple[Quantisation, ...] = ()
    caveats: tuple[str, ...] = ()
    withheld: Withheld | None = None
    outputs: Outputs = "compared"
    rows: tuple[Row, ...] = field(default=(), repr=False, compare=False)

    @property
    def first(self) -> Divergence | None:
        """The first divergence."""
        return self.divergences[0] if self.divergences else None

    @property
    def has_stages(self) -> bool:
        """Whether any part of the run had a stage's name."""
        return any(stage.stage for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """The report as one JSON object."""
        plain = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "mode": self.mode,
            "method": self.method,
            "reference": dict(self.reference),
            "port": dict(self.port),
            "coverage": asdict(self.coverage),
            "first": _divergence_dict(self.first) if self.first else None,
            "divergences": [_divergence_dict(divergence) for divergence in self.divergences],
            "stages": [asdict(stage) for stage in self.stages],
            "weights": asdict(self.weights),
            "certificate": dict(self.certificate),
            "equivalent": [asdict(form) for form in self.equivalent],
            "borderline": [_divergence_dict(divergence) for divergence in self.borderline],
            "caveats": list(self.caveats),
            "withheld": asdict(self.withheld) if self.withheld else None,
            "outputs": self.outputs,
            "quantised": [asdict(one) for one in self.quantised],
        }
        written: dict[str, Any] = plain_json(plain)
        return written

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON text without NaN literals."""
        return printable(json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that `to_json` wrote, without the table of all pairs. Raises TracediffError where the text is none."""
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise TracediffError(f"The report's schema is {data['schema']!r}; this version of tracediff reads {SCHEMA!r}.")
            return cls(**_of_json(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TracediffError(f"This is no report of tracediff ({type(error).__name__}: {error}).") from error

    def to_frame(self) -> pd.DataFrame:
        """One row a compared pair, in execution order."""
        import pandas as pd

        columns: dict[str, Callable[[Row], Any]] = {
            "reference": lambda row: row.where.reference,
            "port": lambda row: row.where.port,
            "call": lambda row: row.where.call,
            "end": lambda row: row.where.end,
            "stage": lambda row: row.where.stage,
            "rel_l2": lambda row: row.rel_l2,
            "max_abs": lambda row: row.max_abs,
            "limit": lambda row: row.limit,
            "floor": lambda row: row.floor,
            "diverged": lambda row: row.diverged,
            "introduced": lambda row: row.introduced,
            "effect": lambda row: row.effect,
            "layout": lambda row: row.layout,
            "reference_length": lambda row: row.length.reference if row.length else None,
            "port_length": lambda row: row.length.port if row.length else None,
        }
        kept = [row for row in self.rows if row.diverged is not None]
        frame = pd.DataFrame({name: [of(row) for row in kept] for name, of in columns.items()})
        numbers = ["rel_l2", "max_abs", "limit", "floor", "reference_length", "port_length"]
        return frame.astype(dict.fromkeys(numbers, float) | dict.fromkeys(["diverged", "introduced"], bool))

    def pairs_to_dict(self) -> list[dict[str, Any]]:
        """All pairs for JSON, in execution order, those that were not compared too."""
        return [plain_json(_row_dict(row)) for row in self.rows]

    def with_causes(self, causes: Mapping[str, Iterable[Cause]]) -> Self:
        """The report with these causes, by the reference's module path of the culprit, put before those it has; best first."""

        def caused(divergence: Divergence) -> Divergence:
            further = in_order(causes.get(divergence.culprit.reference, ()))
            return replace(divergence, causes=(*further, *divergence.causes))

        return replace(self, divergences=tuple(map(caused, self.divergences)))


# ------------------------------------------------------------------------------------------------------------ to and from JSON


def plain_json(value: Any) -> Any:
    """A value that JSON holds: what is not finite as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _source(blame: Blame, culprit: str, record: Record, trace: Trace) -> str:
    """Where to look in the code: the class of a module, and the line that made the call."""
    line = f"{record.file}:{record.line}" if record.file else ""
    modules: Iterable[Mapping[str, Any]] = trace.meta.get("modules") or ()
    module = next((module for module in modules if module["path"] == culprit), None)
    if blame != "module" or module is None:
        return line
    kind = f"{module.get('type', '')} in {module['file']}" if module.get("file") else str(module.get("type", ""))
    return f"{kind}, called at {line}" if line and kind else kind or line


def _divergence_dict(divergence: Divergence) -> dict[str, Any]:
    """A divergence for JSON: without an error where there is none to measure, since shapes differ or a call raised."""
    has_no_error = divergence.metrics is None and math.isinf(divergence.introduced)
    return {**asdict(divergence), **({"introduced": None} if has_no_error else {})}


def _row_dict(row: Row) -> dict[str, Any]:
    known = {
        name: getattr(row, name) for name in ("how", "rel_l2", "max_abs", "at_least", "limit", "by", "floor", "diverged", "introduced")
    }
    return {**asdict(row.where), **known, "effect": row.effect, "layout": row.layout, "length": asdict(row.length) if row.length else None}


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _of_json(data: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: data[name] for name in ("verdict", "mode", "method", "reference", "port", "certificate")}
    return {
        **plain,
        "coverage": _made(Coverage, data["coverage"]),
        "divergences": tuple(_divergence(part) for part in data["divergences"]),
        "stages": tuple(_made(Stage, {**part, "first": _where(part["first"])}) for part in data["stages"]),
        "weights": _made(Weights, data["weights"]),
        "equivalent": tuple(Equivalent(_made(Where, form["where"]), form["absorber"]) for form in data.get("equivalent", ())),
        "borderline": tuple(_divergence(part) for part in data.get("borderline", ())),
        "quantised": tuple(Quantisation(_made(Where, one["where"]), one["introduced"]) for one in data.get("quantised", ())),
        "caveats": tuple(data.get("caveats", ())),
        "withheld": _made(Withheld, data["withheld"]) if data.get("withheld") else None,
        "outputs": data.get("outputs", "compared"),
    }


def _divergence(data: Mapping[str, Any]) -> Divergence:
    parts = {
        "site": _where(data["site"]),
        "culprit": _made(Culprit, data["culprit"]),
        "metrics": _made(Measured, data["metrics"]) if data["metrics"] else None,
        "last_same": _where(data["last_same"]),
        "shapes": {side: tuple(shape) for side, shape in data["shapes"].items()},
        "causes": tuple(Cause.read(cause) for cause in data["causes"]),
        "introduced": math.inf if data["introduced"] is None else data["introduced"],
        "length": _made(Length, data["length"]) if data.get("length") else None,
    }
    made: Divergence = _made(Divergence, {**data, **parts})
    return made


def _where(data: Mapping[str, Any] | None) -> Where | None:
    return _made(Where, data) if data else None


def _made(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """A frozen dataclass from JSON: lists as tuples, spelled-out numbers as numbers, later versions' further keys left out."""
    known = {one.name for one in fields(kind)}
    return kind(**{key: tuple(value) if isinstance(value, list) else _number(value) for key, value in data.items() if key in known})


# ------------------------------------------------------------------------------------------------------------------- assembly


def build(
    located: Located,
    alignment: Alignment,
    reference: Trace,
    port: Trace,
    *,
    weights: WeightsReport | None = None,
    causes: Sequence[Sequence[Cause]] = (),
    notes: Iterable[str] = (),
) -> Report:
    """The report of what was located, with what is known of causes.

    ``weights``: how the parameters differ. ``causes``: those of each finding, best first; empty where none were looked for. ``notes``: what
    else is to be said of how it was judged.
    """
    rows = tuple(_rows(located, reference, port))
    explained = zip(located.findings, causes or [()] * len(located.findings), strict=True)
    divergences = tuple(_of_finding(finding, of_it, located, rows, reference, port) for finding, of_it in explained)
    stages = _stages(rows, divergences, reference)
    compared = {row for comparison in located.comparisons if comparison.diverged is not None for row in comparison.pair.reference}
    decision = decide(located, alignment, reference, port, weights)
    return Report(
        verdict=decision.verdict,
        mode=located.mode,
        method=located.method,
        reference=_side(reference),
        port=_side(port),
        coverage=_coverage(located, alignment, reference, port, compared, decision),
        divergences=divergences,
        stages=stages,
        weights=Weights() if weights is None else _weight_lines(weights),
        certificate={**_certificate(located, decision, rows, reference, port), "notes": [*notes, *free_notes(located, port)]},
        equivalent=tuple(Equivalent(rows[place].where, absorber) for place, absorber in located.equivalent),
        borderline=tuple(_of_finding(finding, (), located, rows, reference, port) for finding in located.borderline),
        quantised=tuple(Quantisation(row.where, row.rel_l2 or 0.0) for row in rows if row.effect == "quantised"),
        caveats=(*caveats(reference, "reference"), *caveats(port, "port")),
        withheld=decision.withheld,
        outputs=decision.outputs,
        rows=rows,
    )


def _weight_lines(weights: WeightsReport) -> Weights:
    """The findings on weights as counted patterns of names, without what a port need not have: counters, masks, tables."""
    groups = [group for group in weights.groups if not (group.category == "missing" and group.findings[0].expected)]

    def lines(category: str) -> tuple[str, ...]:
        own = (group for group in groups if group.category == category)
        return tuple(f"{group.count} x {group.pattern}" + (f" ({group.label})" if group.label else "") for group in own)

    unequal = sum(group.count for group in groups if group.category != "unexpected")
    return Weights(weights.equal, lines("different"), lines("missing"), lines("unexpected"), unequal)


def _rows(located: Located, reference: Trace, port: Trace) -> Iterable[Row]:
    introduced = {finding.place for finding in located.findings}
    for place, comparison in enumerate(located.comparisons):
        metrics, judgement = comparison.metrics, comparison.judgement
        yield Row(
            where=_where_of(comparison, reference, port),
            how=comparison.how,
            rel_l2=metrics.rel_l2 if metrics is not None else None,
            max_abs=metrics.max_abs if metrics is not None else None,
            at_least=comparison.at_least,
            limit=judgement.limit if judgement is not None else None,
            by=judgement.by if judgement is not None else None,
            floor=comparison.floor,
            diverged=comparison.diverged,
            introduced=place in introduced,
            effect=comparison.effect,
            layout="no layout" if comparison.pair.layout is None else str(comparison.pair.layout),
            pair=comparison.pair,
            length=_length(comparison, reference, port),
        )


def _length(comparison: Comparison, reference: Trace, port: Trace) -> Length | None:
    """The length in which the shapes of a pair differ that no layout reconciles."""
    if comparison.how != "shape":
        return None
    return length_of(reference.records[comparison.pair.reference[0]].shape, port.records[comparison.pair.port[0]].shape)


def _where_of(comparison: Comparison, reference: Trace, port: Trace) -> Where:
    left, right = reference.records[comparison.pair.reference[0]], port.records[comparison.pair.port[0]]
    return Where(left.site, right.site, left.call, left.end, left.stage)


def _of_finding(
    finding: Finding, causes: Sequence[Cause], located: Located, rows: Sequence[Row], reference: Trace, port: Trace
) -> Divergence:
    comparison = located.comparisons[finding.place]
    left, right = reference.records[comparison.pair.reference[0]], port.records[comparison.pair.port[0]]
    return Divergence(
        site=rows[finding.place].where,
        culprit=Culprit(finding.culprit[0] if finding.maker is None else finding.maker, finding.culprit[1]),
        introduced=finding.introduced,
        inherited=finding.inherited,
        floor=comparison.floor,
        metrics=_measured(comparison.metrics),
        shapes={"reference": _shape(left), "port": _shape(right)},
        dtypes={"reference": left.dtype, "port": right.dtype},
        layout=rows[finding.place].layout,
        last_same=rows[finding.last_same].where if finding.last_same is not None else None,
        causes=tuple(causes),
        times=finding.times,
        count=finding.places,
        length=finding.length,
    )


def _shape(record: Record) -> tuple[int, ...]:
    """A record's shape; that of a call that raised is empty, whatever the length of the message."""
    return () if record.flags & schema.RAISED else record.shape


def _measured(metrics: Metrics | None) -> Measured | None:
    return None if metrics is None else Measured(**{one.name: getattr(metrics, one.name) for one in fields(Measured)})


def _side(trace: Trace) -> dict[str, Any]:
    """What a report says of one side."""
    known = {name: trace.meta.get(name) for name in ("impl", "dtype", "device", "mode", "seed", "created", "recipe")}
    found = {"complete": trace.complete, "repeats": trace.meta.get("repeats"), "damaged": list(trace.damaged.values())}
    return {"path": str(trace.path), **known, **found}


def _coverage(located: Located, alignment: Alignment, reference: Trace, port: Trace, compared: Set[int], decision: Decision) -> Coverage:
    not_seen = [(side, text) for side, trace in (("reference", reference), ("port", port)) for text in trace.meta.get("not_seen") or ()]
    not_seen += _blind_spots(reference, port)
    return Coverage(
        reference_records=len(reference.records),
        port_records=len(port.records),
        paired=len({row for comparison in located.comparisons for row in comparison.pair.reference}),
        compared=len(compared),
        read=located.read,
        bytes_read=located.bytes_read,
        unpaired_reference=tuple(_names(reference, alignment.unpaired_reference, set(alignment.port_of))),
        unpaired_port=tuple(_names(port, alignment.unpaired_port, set(alignment.reference_of))),
        not_seen=tuple(f"{side}: {text}" for side, text in not_seen),
        unseen_outputs=tuple(
            dict.fromkeys((*decision.unseen, *(name for names in unseen_outputs(reference, compared).values() for name in names)))
        ),
        not_returned=decision.not_returned,
    )


def _blind_spots(reference: Trace, port: Trace) -> list[tuple[str, str]]:
    """What neither run could have shown, by side: all blind spots of the reference, and the port's of other kinds."""
    ours = list(reference.meta.get("blind_spots") or ())
    kinds = {text.partition(":")[0] for text in ours}
    theirs = [text for text in port.meta.get("blind_spots") or () if text.partition(":")[0] not in kinds]
    return [("reference", text) for text in ours] + [("port", text) for text in theirs]


def _names(trace: Trace, rows: Iterable[int], paired: set[str]) -> dict[str, None]:
    """The names of what has no partner, in order: the site, and for a paired site the boundary too."""
    records = (trace.records[row] for row in rows)
    return dict.fromkeys(name_of(record) if record.site in paired else record.site for record in records)


def unseen_outputs(reference: Trace, compared: Set[int]) -> dict[str, tuple[str, ...]]:
    """By stage, the names of what its last call returned and nothing of the port was compared with; ``compared``: rows.

    An output counts as compared too where the same values were compared elsewhere. Stages all of whose outputs were compared are left
    out, and so are stages in which no call returned anything.
    """
    missed = {stage: not_compared(reference, rows, compared) for stage, rows in _last_outputs(reference).items()}
    return {stage: tuple(_names(reference, rows, set(reference.sites))) for stage, rows in missed.items() if rows}


def _last_outputs(trace: Trace) -> dict[str, list[int]]:
    """By stage, the rows of what the last call in it returned, or the last tap in it was given."""
    texts, index = trace.strings, trace.index
    outputs = {code for code in np.unique(index["end"]).tolist() if is_returned(texts[code]) or texts[code].startswith("value")}
    last_call: dict[int, tuple[int, int]] = {}
    rows: dict[int, list[int]] = {}
    columns = (index[name].tolist() for name in ("stage", "end", "site", "call"))
    for row, (stage, end, site, call) in enumerate(zip(*columns, strict=True)):
        if end not in outputs:
            continue
        if last_call.get(stage) != (site, call):
            last_call[stage], rows[stage] = (site, call), []
        rows[stage].append(row)
    last = {texts[stage]: found for stage, found in rows.items()}
    if trace.returned:  # outside of all stages it is known what counts
        last[""] = [row for row in trace.returned if not trace.records[row].stage]
    return last


def _certificate(located: Located, decision: Decision, rows: Sequence[Row], reference: Trace, port: Trace) -> dict[str, Any]:
    """What the answer rests on, and for each divergence the limit it was judged by and where to look."""
    certificate = asdict(located.certificate)
    for name in ("moved", "without_effect", "sensitive"):
        certificate[name] = [asdict(rows[place].where) for place in certificate[name]]
    certificate["cannot_tell"] = [asdict(row.where) for row in rows if row.by == "cannot tell"]
    certificate["cannot_tell_returned"] = [asdict(rows[place].where) for place in decision.untold]
    return {**certificate, "judged": [_judged(finding, rows[finding.place], reference, port) for finding in located.findings]}


def _judged(finding: Finding, row: Row, reference: Trace, port: Trace) -> dict[str, Any]:
    left, right = reference.records[row.pair.reference[0]], port.records[row.pair.port[0]]
    return {
        "limit": row.limit,
        "by": row.by,
        "blame": finding.blame,
        "arrives": finding.arrives,
        "record": list(finding.record),
        "source": {
            "reference": _source(finding.blame, finding.culprit[0], left, reference),
            "port": _source(finding.blame, finding.culprit[1], right, port),
        },
        "values": scalars(left, right),
        "suspects": [{"side": side, "site": text} for side, text in finding.suspects],
        "calls": finding.calls,
        "shared_by": finding.shared_by,
        "siblings": finding.siblings,
        "pattern": finding.pattern,
    }


# --------------------------------------------------------------------------------------------------------------------- stages


def _stages(rows: Sequence[Row], divergences: Sequence[Divergence], reference: Trace) -> tuple[Stage, ...]:
    """The stages in execution order, each outer one before its inner ones; an outer stage is as bad as the worst inside it."""
    around: Mapping[str, str] = reference.meta.get("stages") or {}
    seen = dict.fromkeys(row.where.stage for row in rows if row.where.reference != RETURNED) | dict.fromkeys(around)
    ordered = dict.fromkeys(stage for inner in seen for stage in reversed(stage_chain(inner, around)))
    return tuple(_stage(stage, [row for row in rows if stage in stage_chain(row.where.stage, around)], divergences) for stage in ordered)


def _stage(stage: str, rows: Sequence[Row], divergences: Sequence[Divergence]) -> Stage:
    counted = [row for row in rows if row.effect not in EXCUSED]
    diverged = [row for row in counted if row.diverged and row.effect != "unchecked"]
    measured = [row for row in counted if row.rel_l2 is not None and row.by not in ("rounding", "sensitive")]
    worst = max(measured, key=lambda row: row.rel_l2 or 0.0, default=None)
    places = {row.where for row in rows}
    introduced = (divergence.site for divergence in divergences if divergence.site in places)
    first = next(introduced, diverged[0].where if diverged else None)
    is_judged = all(row.diverged is not None and row.effect != "noise" for row in rows)
    verdict: Verdict = "different" if diverged else "same" if rows and is_judged else None
    return Stage(stage, verdict, worst.rel_l2 if worst else None, worst.floor if worst else None, first)
