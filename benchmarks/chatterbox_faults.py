"""Plants faults into the real Chatterbox port and lets tracediff look for them, forced.

    python benchmarks/chatterbox_faults.py [--stages flow vocoder] [--couples 12] [--json FILE] [NAME ...]

The reference is captured once a stage, with its noise floor (`reference_STAGE.h5`, used again where it is there). The port is fed by it:
first without a fault, its known divergences mended (`hooks/chatterbox_mends.py`), which must give no alarm; then with each fault of
`hooks/chatterbox_faults.py`; then with two of one stage at once, in different modules. On Linux put `LD_PRELOAD=libopenblas.so.0
OMP_NUM_THREADS=1` before it. Cases in the JSON file are kept unless they are run anew; `--table` prints that file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import tracediff as td
from benchmarks import results
from benchmarks.faults.score import OUTCOMES, caller, cause_of
from benchmarks.recipe_runs import hooks, reference_of, run_port
from tracediff.site import is_below

HOOKS = hooks("chatterbox_faults")
FAULTS: dict[str, Any] = HOOKS.FAULTS
CAUSES = ("first", "any", "wrong", "none")


@dataclass
class Case:
    """No fault, one, or two at once, and what was found.

    ``outcome``: of the first divergence, whether its culprit is the planted module, its caller or callee ("near"), or another.
    ``named``: how many of the faults are named by any divergence. ``flagged``: how many divergences there are; ``extra``: those whose
    culprit is none of the modules that the faults are in. ``cause``: whether the best cause stated there is right ("first"), one of
    them is ("any"), none is ("wrong"), or none is stated ("none").
    """

    stage: str
    faults: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    outcome: str = ""
    named: int = 0
    flagged: int = 0
    extra: int = 0
    cause: str = ""
    stated: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    compared: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass
class Bench:
    """The traces of the stages, and what ran."""

    folder: Path
    cases: dict[str, Case] = field(default_factory=dict)
    json: Path | None = None

    def run(self, stage: str, *names: str) -> Case:
        """One forced run of the port with these faults, judged."""
        case = Case(stage, names, tuple(FAULTS[name].kind for name in names))
        reference, port = reference_of(stage, self.folder), self.folder / "faults_port.h5"
        started = time.perf_counter()
        mends = HOOKS.chatterbox_mends.mends_of(stage)
        changes = [lambda models: HOOKS.mended(models, *mends)] if mends else []
        try:
            run_port(port, [stage], reference, *changes, lambda models: HOOKS.planted(models, *names))
            with td.open_trace(port) as trace:
                called = {record.module for record in trace.records}
            judge(case, td.bisect(reference, port), called)
        except Exception as error:  # noqa: BLE001 - a failure of the tool is a result
            case.error = f"{type(error).__name__}: {error}"
        case.seconds = round(time.perf_counter() - started, 1)
        self.keep(case)
        return case

    def keep(self, case: Case) -> None:
        self.cases[" + ".join((case.stage, *case.faults))] = case
        print(described(case), file=sys.stderr, flush=True)
        if self.json is not None:
            self.json.write_text(
                json.dumps({"schema": "tracediff.chatterbox_faults/1", "cases": [asdict(one) for one in self.cases.values()]})
            )

    def read(self) -> None:
        """The cases of the JSON file, where there is one."""
        if self.json is not None and self.json.is_file():
            for plain in json.loads(self.json.read_text())["cases"]:
                case = Case(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})
                self.cases[" + ".join((case.stage, *case.faults))] = case


# -- judging


def judge(case: Case, report: Any, called: set[str]) -> None:
    """Fills in what a report says of the case's faults."""
    faults = [FAULTS[name] for name in case.faults]
    case.compared, case.flagged = report.coverage.compared, len(report.divergences)
    case.found = tuple(
        f"{one.culprit.port or 'root'} | {one.culprit.reference or 'root'} @ {one.site.reference} {one.site.end} "
        f"{one.introduced if one.introduced is None else format(one.introduced, '.1e')} {[cause.kind for cause in one.causes]}"
        for one in report.divergences
    )
    case.named = sum(any(is_named(fault, one) for one in report.divergences) for fault in faults)
    case.extra = sum(not any(is_of(fault, one) for fault in faults) for one in report.divergences)
    if faults:
        case.outcome = outcome(report.first, faults, called)
    if len(faults) == 1:
        own = next((one for one in report.divergences if is_named(faults[0], one)), report.first)
        case.stated = () if own is None else tuple(cause.kind for cause in own.causes)
        case.cause = cause_of(case.stated, faults[0].kinds)


def is_culprit(fault: Any, divergence: Any) -> bool:
    """Whether a divergence's culprit is the fault's, on either side."""
    return bool(divergence.culprit.port == fault.port or divergence.culprit.reference == fault.reference)


def is_named(fault: Any, divergence: Any) -> bool:
    """Whether the culprit is the fault's, and the site the one that the fault names, where it names one."""
    return is_culprit(fault, divergence) and fault.site in ("", divergence.site.reference)


def is_of(fault: Any, divergence: Any) -> bool:
    """Whether a divergence is at a module that the fault is in: the root counts only at the fault's own site."""
    is_spread = fault.spread is not None and is_below(divergence.culprit.port, fault.spread)
    return is_named(fault, divergence) or is_spread or (bool(fault.port) and is_culprit(fault, divergence))


def outcome(first: Any, faults: Sequence[Any], called: set[str]) -> str:
    """Of the first divergence."""
    if first is None:
        return "missed"
    if any(is_named(fault, first) for fault in faults):
        return "exact"
    found = first.culprit.port
    near = any(found == fault.port or caller(found, called) == fault.port or caller(fault.port, called) == found for fault in faults)
    return "near" if near else "wrong"


# -- which


def couples(names: Sequence[str], number: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of faults of one stage in modules of which neither is in the other, drawn by the seed, from every stage in turn."""
    drawn, left = [], list(combinations(names, 2))
    random.Random(seed).shuffle(left)
    apart = [pair for pair in left if are_apart(*(FAULTS[name] for name in pair))]
    stages = sorted({FAULTS[first].stage for first, _ in apart})
    while apart and len(drawn) < number:
        for stage in stages:
            pair = next((pair for pair in apart if FAULTS[pair[0]].stage == stage), None)
            if pair is not None and len(drawn) < number:
                apart.remove(pair)
                drawn.append(pair)
    return drawn


def are_apart(first: Any, second: Any) -> bool:
    """Whether two faults are of one stage and of different modules, neither of which lies in the other; the root counts as apart."""
    places = [fault.port if fault.spread is None else fault.spread for fault in (first, second)]
    if first.stage != second.stage or places[0] == places[1]:
        return False
    return "" in places or not (is_below(*places) or is_below(*reversed(places)))


# -- the table


def described(case: Case) -> str:
    """One case in a line."""
    what = " + ".join(case.faults) or "clean"
    if case.error:
        return f"{case.stage}: {what}: {case.error}"
    named = f", {case.named} of {len(case.faults)} named" if len(case.faults) > 1 else ""
    text = f"{case.stage}: {what}: {case.outcome or 'clean'}{named}, {case.flagged} flagged, cause {case.cause or '-'} {list(case.stated)}"
    is_plain = case.outcome == "exact" and not case.extra and case.named == len(case.faults)
    return text if is_plain or not (case.faults or case.flagged) else "\n      ".join([text, *case.found[:6]])


def table(cases: Sequence[Case]) -> Iterator[str]:
    """Markdown: a line for each stage, and for all; then the pairs of faults."""
    titles = ("stage", "clean: compared, flagged", "faults", *OUTCOMES, *(f"cause {name}" for name in CAUSES), "flagged a fault", "extra")
    yield "| " + " | ".join(titles) + " |"
    yield "|---|---|" + "---:|" * (len(titles) - 2)
    order = list(HOOKS.chatterbox_shared.STAGES)
    stages = sorted({case.stage for case in cases}, key=order.index)
    for stage in stages:
        yield row(f"`{stage}`", [case for case in cases if case.stage == stage])
    yield row("all", cases)
    pairs = [case for case in cases if len(case.faults) == 2 and not case.error]
    if pairs:
        both = sum(case.named == 2 for case in pairs)
        first = sum(case.outcome == "exact" for case in pairs)
        yield ""
        yield (
            f"Two at once: {len(pairs)} pairs; both named in {both}, the first divergence is one of the two in {first}, "
            f"{sum(case.extra for case in pairs) / len(pairs):.2f} extra a run."
        )
    for case in cases:
        if case.error:
            yield f"failed: {described(case)}"


def row(title: str, cases: Sequence[Case]) -> str:
    singles = [case for case in cases if len(case.faults) == 1 and not case.error]
    clean = [case for case in cases if not case.faults and not case.error]
    cells: list[Any] = [f"{sum(case.compared for case in clean)}, {sum(case.flagged for case in clean)}", len(singles)]
    cells += [sum(case.outcome == name for case in singles) for name in OUTCOMES]
    cells += [sum(case.cause == name for case in singles) for name in CAUSES]
    each = len(singles) or 1
    cells += [f"{sum(getattr(case, name) for case in singles) / each:.2f}" for name in ("flagged", "extra")]
    return f"| {title} | " + " | ".join(str(cell) for cell in cells) + " |"


def figures(cases: Sequence[Case]) -> Iterator[results.Row]:
    """A row for each case: what was planted, and how it was found."""
    for case in cases:
        yield {
            name: getattr(case, name) for name in ("stage", "faults", "outcome", "cause", "named", "flagged", "extra", "compared", "error")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="faults; all by default")
    parser.add_argument("--stages", nargs="+", default=[], help="stages, or their first words, such as t3 or flow.ode")
    parser.add_argument("--couples", type=int, default=0, help="how many pairs of faults, besides [0]")
    parser.add_argument("--no-singles", action="store_true", help="neither clean runs nor single faults")
    parser.add_argument("--seed", type=int, default=0, help="which pairs are drawn [0]")
    parser.add_argument("--folder", type=Path, default=Path("traces"), help="where the traces are written")
    parser.add_argument("--json", type=Path, help="keep every case in this file, after each one")
    parser.add_argument("--table", action="store_true", help="print the table of that file, and run nothing")
    results.add_option(parser)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.folder, json=options.json)
    bench.read()
    if not options.table:
        measured(bench, options)
    cases = list(bench.cases.values())
    print("\n".join(table(cases)))
    results.record("chatterbox_faults", figures(cases), options)


def measured(bench: Bench, options: argparse.Namespace) -> None:
    """Runs what was asked for."""
    unknown = [name for name in options.names if name not in FAULTS]
    if unknown:
        raise SystemExit(f"No fault {unknown[0]!r}. They are: {', '.join(FAULTS)}")
    wanted = [name for name in options.names or FAULTS if not options.stages or FAULTS[name].stage.startswith(tuple(options.stages))]
    if not options.no_singles:
        for stage in dict.fromkeys(FAULTS[name].stage for name in wanted):
            if not options.names:
                bench.run(stage)
            for name in wanted:
                if FAULTS[name].stage == stage:
                    bench.run(stage, name)
    for pair in couples(wanted, options.couples, options.seed):
        bench.run(FAULTS[pair[0]].stage, *pair)


if __name__ == "__main__":
    main()
