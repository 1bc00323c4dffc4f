"""Status: how far a port is, stage by stage, from a forced run, a free run, or both; plain frozen data made of their reports.

A forced run shows whether each part is right, a free one whether the parts work together. "Same" is said of a stage only where its pairs
were compared to its end, and of the whole only where every stage of the reference is the same in both.
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from tracediff.errors import TracediffError
from tracediff.report import (
    Cause,
    Coverage,
    Culprit,
    Divergence,
    Report,
    Stage,
    Weights,
    Where,
    plain_json,
    unseen_outputs,
)
from tracediff.site import RETURNED, is_in_stage, printable, stage_chain
from tracediff.storage_cost import StorageCost, storage_costs
from tracediff.trace import Trace
from tracediff.verdict import Verdict, few

SCHEMA = "tracediff.status/1"
Mode = Literal["forced", "free"]
MODES: tuple[Mode, ...] = ("forced", "free")
State = Literal["same", "repeatable", "different", "not run", "not recorded", "not compared", "unfinished"]
OF_A_PORT = ("impl", "dtype", "recipe", "weights", "seed")
"""What a forced and a free run of one port have in common."""
OF_THE_WHOLE = ("outputs", "port outputs", "modules", "weights")
"""What withholds a verdict on the whole, whatever the stages show."""
DEFAULT_RECIPE = "chatterbox"
LEAST_VALUES = 8
"""A tensor of fewer values may be the same in two stages by chance."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stage in one run of the port.

    ``state`` "repeatable": nothing differs, and the reference ran the port's own code, so that it shows no more; "not run": the port
    made no such stage; "not recorded": the reference recorded nothing in it; "not compared": nothing in it was paired, or values were not
    stored; "unfinished": what was compared agrees, but not its end. ``why`` says more where neither same nor different. ``worst`` is the
    largest relative L2, ``floor`` the noise floor there; None where what differs has no error to measure (another text, another shape).
    ``compared`` of ``total`` records of the reference. ``first`` is its first divergence; ``introduced`` how many errors were made in it
    (0 in a different stage: it was handed them). ``causes``: of the first one, best first.
    """

    state: State
    compared: int
    total: int
    worst: float | None = None
    floor: float | None = None
    first: Where | None = None
    culprit: Culprit | None = None
    introduced: int = 0
    causes: tuple[Cause, ...] = ()
    why: str = ""

    @property
    def verdict(self) -> Verdict:
        return self.state if self.state in ("same", "different") else None


@dataclass(frozen=True, slots=True)
class StageStatus:
    """A stage of the reference ("" is the run outside of any) with its outcome in each run; None where there was no such run.

    ``outer`` is the stage around it, ``depth`` how many stages are around it. ``storage``: what the port's stored weights cost it, None
    where that was not asked for.
    """

    stage: str
    outer: str
    depth: int
    forced: Outcome | None
    free: Outcome | None
    storage: StorageCost | None = None

    def outcome(self, mode: Mode) -> Outcome | None:
        return self.forced if mode == "forced" else self.free

    def state(self, mode: Mode) -> State | None:
        """The state of its outcome in the run of that mode; None where there was no such run."""
        outcome = self.outcome(mode)
        return outcome.state if outcome else None


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a trace says of its run; ``command`` is the command line that made it, ``start`` the trace that its stages started from."""

    path: str
    impl: str
    dtype: str
    device: str
    mode: str
    recipe: str
    weights: str
    seed: int | None
    created: str
    git: str
    command: str
    start: str
    wanted: tuple[str, ...]
    versions: Mapping[str, str]
    complete: bool
    repeats: bool | None


@dataclass(frozen=True)
class Status:
    """How far a port is.

    ``verdict`` is "same" only where every stage is the same both forced and free, and both runs are of one port. ``why`` says what keeps
    it from that, ``next`` what to run next, ``notes`` what else has to be known to read it rightly, ``caveats`` what makes it doubtful (a
    run in training mode, or that does not repeat itself). ``coverage`` and ``weights`` are
    those of the reports of the runs, by mode.
    """

    verdict: Verdict
    why: tuple[str, ...]
    next: tuple[str, ...]
    notes: tuple[str, ...]
    reference: RunInfo
    forced: RunInfo | None
    free: RunInfo | None
    stages: tuple[StageStatus, ...]
    coverage: Mapping[Mode, Coverage]
    weights: Weights
    caveats: tuple[str, ...] = ()
    reports: Mapping[Mode, Report] = field(default_factory=dict, repr=False, compare=False)

    @property
    def has_stages(self) -> bool:
        """Whether any part of the reference's run had a stage's name."""
        return any(stage.stage for stage in self.stages)

    def side(self, mode: Mode) -> RunInfo | None:
        """The port's run of that mode."""
        return self.forced if mode == "forced" else self.free

    def to_dict(self) -> dict[str, Any]:
        """The status as one JSON object without NaN literals."""
        sides: dict[str, RunInfo | None] = {mode: self.side(mode) for mode in MODES}
        plain: dict[str, Any] = {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "why": list(self.why),
            "next": list(self.next),
            "notes": list(self.notes),
            "reference": asdict(self.reference),
            **{mode: asdict(run) if run else None for mode, run in sides.items()},
            "stages": [_stage_dict(stage) for stage in self.stages],
            "coverage": {mode: asdict(self.coverage[mode]) if mode in self.coverage else None for mode in MODES},
            "weights": asdict(self.weights),
            "caveats": list(self.caveats),
        }
        written: dict[str, Any] = plain_json(plain)
        return written

    def to_json(self, *, indent: int | None = 2) -> str:
        """The status as JSON text without NaN literals."""
        return printable(json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False))


def _stage_dict(stage: StageStatus) -> dict[str, Any]:
    outcomes: dict[str, Any] = {}
    for mode in MODES:
        outcome = stage.outcome(mode)
        outcomes[mode] = {"verdict": outcome.verdict, **asdict(outcome)} if outcome else None
    cost = asdict(stage.storage) if stage.storage else None
    return {"stage": stage.stage, "outer": stage.outer, "depth": stage.depth, **outcomes, "storage": cost}


# ------------------------------------------------------------------------------------------------------------------- assembly


def build(reference: Trace, runs: Sequence[tuple[Trace, Report]], *, stages: Sequence[str] = (), full: Trace | None = None) -> Status:
    """The status of a port from the reports of its runs, at most one forced and one free; of some stages, where they are named.

    ``full``: the reference's run with its own weights, where ``reference`` ran with the port's.

    A report must hold every pair (a scan). Raises TracediffError for two runs of one mode, or a reference that is a forced run.
    """
    modes_of(port for port, _ in runs)
    by_mode: dict[Mode, tuple[Trace, Report]] = {mode_of(port): (port, report) for port, report in runs}
    by_mode = {mode: by_mode[mode] for mode in MODES if mode in by_mode}
    rows = {mode: _StageRecords(reference, port, report) for mode, (port, report) in by_mode.items()}
    tree = _StageTree(reference)
    shown = tuple(_stage_status(stage, tree, rows) for stage in tree.ordered if tree.is_wanted(stage, stages))
    if full is not None:
        costs = storage_costs(full, reference)
        shown = tuple(replace(stage, storage=costs.get(stage.stage)) for stage in shown)
    sides = {mode: run_info(port) for mode, (port, _) in by_mode.items()}
    why = tuple(_lacking(reference, shown, by_mode, sides))
    return Status(
        verdict=_verdict(shown, by_mode, why),
        why=why,
        next=tuple(_next(reference, sides)),
        notes=tuple(_notes(reference, tree, by_mode)),
        caveats=tuple(dict.fromkeys(line for report in (report for _, report in by_mode.values()) for line in report.caveats)),
        reference=run_info(reference),
        forced=sides.get("forced"),
        free=sides.get("free"),
        stages=shown,
        coverage={mode: report.coverage for mode, (_, report) in by_mode.items()},
        weights=next((report.weights for _, report in by_mode.values()), Weights()),
        reports={mode: report for mode, (_, report) in by_mode.items()},
    )


def mode_of(trace: Trace) -> Mode:
    """Whether a run was fed the reference's tensors."""
    return "forced" if trace.meta.get("mode_run") == "forced" else "free"


def modes_of(ports: Iterable[Trace]) -> dict[Mode, Trace]:
    """The runs of a port by their modes; TracediffError where there is none, or two of one mode."""
    found: dict[Mode, Trace] = {}
    for port in ports:
        mode = mode_of(port)
        if mode in found:
            other = str(found[mode].path)
            raise TracediffError(f"{other!r} and {str(port.path)!r} are both {mode} runs; a status takes one forced and one free run.")
        found[mode] = port
    if not found:
        raise TracediffError("A status needs at least one trace of the port, beside the reference's.")
    return found


def is_own_code(reference: Trace, port: Trace) -> bool:
    """Whether two runs are of the same classes, from files of the same content, under the same versions."""
    ours, theirs = (
        {(one.get("package"), one.get("type"), one.get("file")) for one in trace.meta.get("modules") or ()} for trace in (reference, port)
    )
    files = reference.meta.get("sources") or {}
    is_known = bool(ours) and all(file in files for _, _, file in ours)
    return is_known and ours == theirs and all(reference.meta.get(name) == port.meta.get(name) for name in ("sources", "versions"))


def run_info(trace: Trace) -> RunInfo:
    """What a trace says of its run."""
    meta = trace.meta
    texts = {
        name: str(meta.get(name) or "") for name in ("impl", "dtype", "device", "mode", "recipe", "weights", "created", "git", "command")
    }
    return RunInfo(
        path=os.fspath(trace.path),
        **texts,
        seed=meta.get("seed"),
        start=str(meta.get("from") or ""),
        wanted=tuple(map(str, meta.get("wanted") or ())),
        versions={str(name): str(version) for name, version in (meta.get("versions") or {}).items()},
        complete=trace.complete,
        repeats=meta.get("repeats"),
    )


class _StageTree:
    """The stages of the reference's run in execution order, each outer one before its inner ones."""

    def __init__(self, reference: Trace) -> None:
        self.around: Mapping[str, str] = reference.meta.get("stages") or {}
        stages = reference.index["stage"][reference.index["site"] != reference.sites.get(RETURNED, -1)]
        recorded = dict.fromkeys(reference.strings[number] for number in stages.tolist())
        self.ordered = tuple(
            dict.fromkeys(stage for inner in (recorded | dict.fromkeys(self.around)) for stage in reversed(self.chain(inner)))
        )

    def chain(self, stage: str) -> list[str]:
        """A stage and those around it, innermost first."""
        return stage_chain(stage, self.around)

    def inside(self, stage: str) -> list[str]:
        """A stage and those inside it, in execution order."""
        return [inner for inner in self.ordered if stage in self.chain(inner)]

    def is_wanted(self, stage: str, wanted: Sequence[str]) -> bool:
        """Whether a stage is one of those named, inside one, or has one as the first part of its dotted name."""
        return not wanted or any(is_in_stage(stage, asked, self.around) for asked in wanted)


class _StageRecords:
    """What one run of the port shows of each stage's own records: counts by stage, and what keeps a stage from being the same."""

    def __init__(self, reference: Trace, port: Trace, report: Report) -> None:
        self.report = report
        self.complete = port.complete
        self.is_of_own_code = is_own_code(reference, port)
        self.stages: dict[str, Stage] = {stage.stage: stage for stage in report.stages}
        names = [reference.strings[number] for number in reference.index["stage"].tolist()]
        self.total = Counter(names)
        compared = {number for row in report.rows if row.diverged is not None for number in row.pair.reference}
        self.compared = Counter(names[number] for number in compared)
        self.without_values = Counter(names[number] for row in report.rows if row.diverged is None for number in row.pair.reference)
        ran: set[str] = {port.strings[number] for number in port.index["stage"].tolist()}
        self.ran = ran | set(map(str, port.meta.get("stages") or {}))
        self.unseen = unseen_outputs(reference, compared)

    def lack(self, stage: str) -> tuple[State, str]:
        """What keeps a stage's own records from being the same, where nothing in them diverged."""
        if not self.total[stage]:
            return "not recorded", "the reference recorded nothing in it"
        if not self.compared[stage] and stage not in self.ran:
            return "not run", "the port did not run it" + ("" if self.complete else ": its run did not come to its end")
        if not self.compared[stage]:
            return "not compared", "only statistics were stored" if self.without_values[stage] else "nothing in it could be paired"
        if self.without_values[stage]:
            return "not compared", f"{self.without_values[stage]:,} of its records were stored without their values"
        if stage in self.unseen:
            return "unfinished", f"of what it gave at its end {few(self.unseen[stage])} not compared"
        return "same", ""


def _stage_status(stage: str, tree: _StageTree, rows: Mapping[Mode, _StageRecords]) -> StageStatus:
    chain = tree.chain(stage)
    outcomes = {mode: _outcome(stage, tree.inside(stage), found) for mode, found in rows.items()}
    return StageStatus(stage, chain[1] if len(chain) > 1 else "", len(chain) - 1, outcomes.get("forced"), outcomes.get("free"))


def _outcome(stage: str, inside: Sequence[str], run: _StageRecords) -> Outcome:
    """The outcome of a stage in one run, from its own records and those of the stages inside it.

    A stage is as bad as the worst in it: different, then what cannot be told, then same.
    """
    known = run.stages.get(stage)
    outcome = Outcome(
        state="repeatable" if run.is_of_own_code else "same",
        compared=sum(run.compared[inner] for inner in inside),
        total=sum(run.total[inner] for inner in inside),
        worst=known.worst if known else None,
        floor=known.floor if known else None,
    )
    if known is not None and known.verdict == "different":
        return _different(outcome, known, inside, run.report)
    state, why = _doubt(stage, inside, run)
    return outcome if state == "same" else replace(outcome, state=state, why=why)


def _different(outcome: Outcome, known: Stage, inside: Sequence[str], report: Report) -> Outcome:
    """The outcome of a stage in which something diverged: where first, whose code made it, and why."""
    if not any(row.diverged and row.rel_l2 is not None and row.where.stage in inside for row in report.rows):
        outcome = replace(outcome, worst=None, floor=None)
    made_inside = [divergence for divergence in report.divergences if divergence.site.stage in inside]
    first = _first_divergence(known.first, made_inside, report)
    return replace(
        outcome,
        state="different",
        first=known.first,
        culprit=first.culprit if first else None,
        introduced=max(len(made_inside), int(first is not None)),
        causes=first.causes if first else (),
    )


def _first_divergence(where: Where | None, made_inside: Sequence[Divergence], report: Report) -> Divergence | None:
    """The divergence that shows at ``where``; None where the stage was given its error.

    A forced run may show one divergence in several stages alike. The report lists it once, in the first of them, and the other stages
    have it from there.
    """
    if where is None:
        return None
    here = next((divergence for divergence in made_inside if divergence.site == where), None)
    if here is not None or report.mode != "forced":
        return here
    return next((divergence for divergence in report.divergences if _place(divergence.site) == _place(where)), None)


def _doubt(stage: str, inside: Sequence[str], run: _StageRecords) -> tuple[State, str]:
    """What keeps a stage in which nothing diverged from being the same, and why; "same" where nothing does."""
    holding = [inner for inner in inside if run.total[inner] or inner != stage or len(inside) == 1]
    lacking = {inner: run.lack(inner) for inner in holding}
    doubtful = {inner: (state, why) for inner, (state, why) in lacking.items() if state != "same"}
    if not doubtful:
        return "same", ""
    first, _ = next(iter(doubtful.values()))
    state: State = first if len(doubtful) == len(lacking) else "unfinished"
    return state, "; ".join(why if inner == stage else f"{inner}: {why}" for inner, (_, why) in doubtful.items())


def _place(where: Where) -> tuple[str, str, str]:
    return where.reference, where.port, where.end


# ------------------------------------------------------------------------------------------------------------------ the whole


def _verdict(stages: Sequence[StageStatus], runs: Mapping[Mode, tuple[Trace, Report]], why: Sequence[str]) -> Verdict:
    states = {stage.state(mode) for stage in stages for mode in MODES} - {None}
    if "different" in states or any(report.verdict == "different" for _, report in runs.values()):
        return "different"
    return None if why or not states else "same"


def _lacking(
    reference: Trace, stages: Sequence[StageStatus], runs: Mapping[Mode, tuple[Trace, Report]], sides: Mapping[Mode, RunInfo]
) -> Iterable[str]:
    """What keeps the whole from being the same, besides what differs."""
    for mode in MODES:
        if mode in runs:
            yield from _doubts(stages, mode)
            withheld = runs[mode][1].withheld
            if withheld is not None and withheld.code in OF_THE_WHOLE:
                yield f"{mode}: {withheld.text}"
        else:
            yield f"no {mode} run was given"
    if any(is_own_code(reference, port) for port, _ in runs.values()):
        yield "the reference ran the port's own code, file by file: that it gives the same shows that it repeats, not that it is right"
    for name, trace in (("reference", reference), *((f"{mode} run", port) for mode, (port, _) in runs.items())):
        if not trace.complete:
            yield f"the {name} did not come to its end"
    if "free" in sides and sides["free"].start:
        yield f"the free run started its stages from {sides['free'].start} (--from), so that they did not feed each other"
    if len(sides) == 2:
        yield from _not_one_port(sides)


def _doubts(stages: Sequence[StageStatus], mode: Mode) -> Iterable[str]:
    """What keeps stages from being the same in a run, besides what differs; an outer stage would repeat what its inner stages lack."""
    doubtful = {stage.stage: outcome.why for stage in stages if (outcome := stage.outcome(mode)) and outcome.verdict is None}
    around = {stage.outer for stage in stages if stage.stage in doubtful}
    for name, why in doubtful.items():
        if why and (not name or name not in around):
            yield f"{mode}, {name or 'outside of any stage'}: {why}"


def _not_one_port(sides: Mapping[Mode, RunInfo]) -> Iterable[str]:
    for name in OF_A_PORT:
        forced, free = (getattr(sides[mode], name) for mode in MODES)
        if forced != free:
            yield f"the two runs are not of one port: {name} {forced or 'unknown'} in the forced run, {free or 'unknown'} in the free one"


def _next(reference: Trace, sides: Mapping[Mode, RunInfo]) -> Iterable[str]:
    """The command of each run that is lacking; none where the traces do not come from a recipe."""
    given = next(iter(sides.values()))
    for mode in MODES:
        if mode in sides and not (mode == "free" and sides[mode].start):
            continue
        option = "--feed" if mode == "forced" else "--random"
        if not given.recipe:
            name = "feed" if mode == "forced" else "random"
            yield f"td.capture(model, run, to={mode + '.h5'!r}, {name}={os.fspath(reference.path)!r})"
            continue
        words = ["tracediff", "capture", "--impl", given.impl]
        words += ["--recipe", given.recipe] if given.recipe != DEFAULT_RECIPE else []
        words += [word for stage in given.wanted for word in ("--stage", stage)]
        words += ["--weights", given.weights] if given.weights not in ("", "seeded") else []
        words += ["--seed", str(given.seed)] if given.seed else []
        words += ["--dtype", given.dtype] if given.dtype in ("float16", "bfloat16") and given.dtype != reference.meta.get("dtype") else []
        words += [option, os.fspath(reference.path), "-o", f"{mode}.h5"]
        yield shlex.join(words)


def _notes(reference: Trace, tree: _StageTree, runs: Mapping[Mode, tuple[Trace, Report]]) -> Iterable[str]:
    """What a reader of the verdict has to know besides."""
    around = set(tree.around.values())
    if len([stage for stage in tree.ordered if stage and stage not in around]) > 1 and not _feeds(reference, tree):
        yield "no stage took what another gave: each was run on inputs of its own, so how they are put together is not shown"
    if reference.floor is None:
        yield "the reference's noise floor was not measured, so errors are judged by fixed tolerances"
    for mode, (_, report) in runs.items():
        yield from (f"{mode}: {note}" for note in report.certificate.get("notes") or ())
        if sensitive := len(report.certificate.get("sensitive") or ()):
            yield f"{mode}: {sensitive} records of ids differ where noise changes them in the reference too; that is no divergence"
    for mode, (port, _) in runs.items():
        more = [stage for stage in map(str, port.meta.get("stages") or {}) if stage not in tree.ordered]
        if more:
            yield f"the {mode} run made stages that the reference did not: {', '.join(more)}"


def _feeds(reference: Trace, tree: _StageTree) -> bool:
    """Whether anything that one stage gave is seen again in a stage that is neither inside nor around it."""
    index, texts = reference.index, reference.strings
    given: dict[tuple[int, ...], str] = {}
    telling = (index["count"] >= LEAST_VALUES) & (index["std"] > 0)
    columns = (index[name].tolist() for name in ("digest", "stage", "end"))
    for is_telling, digest, number, end in zip(telling.tolist(), *columns, strict=True):
        stage, key = texts[number], tuple(digest)
        if not is_telling or not stage:
            continue
        source = given.get(key)
        if source is not None and source not in tree.chain(stage) and stage not in tree.chain(source):
            return True
        if texts[end].startswith("output"):
            given.setdefault(key, stage)
    return False
