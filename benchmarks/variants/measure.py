"""Makes variants of one pair and lets tracediff judge them, all in this process.

The reference is captured once for a pair, with its noise floor in every dtype, and once more for each variant that changes its run. A
variant then costs a free and a forced capture of the port and a bisection of either.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import tracediff as td
from benchmarks.casting import in_dtype
from benchmarks.faults.catalogue import all_faults, chosen
from benchmarks.faults.measure import Effects, Truth
from benchmarks.faults.plant import Fault
from benchmarks.faults.score import Planted, outcome
from benchmarks.variants.variant import Made, Transformation, in_force
from tracediff.runs.planting import planted
from tracediff.site import is_below
from tracediff.trace import Trace

DTYPES = ("float32", "float16", "bfloat16")
MODES = ("forced", "free")
UNCHANGED = "as it is"
DRAWS = 6
"""How often places are drawn until one is at the planted fault."""


@dataclass
class Case:
    """One variant of one pair in one dtype, judged in one mode.

    ``verdict``: what the report says; "raised" where tracediff raised, "does not run" where the port by itself does not in that dtype.
    ``first``: the first line of its text, or of the error. ``fault`` and ``outcome``: what was planted, and where the first finding is.
    """

    pair: str
    transformation: str
    dtype: str
    mode: str
    seed: int
    where: str
    verdict: str = ""
    first: str = ""
    findings: tuple[str, ...] = ()
    fault: str = ""
    outcome: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """What tells variants of one transformation apart: the modes of one are the same variant."""
        return self.pair, self.dtype, self.where, str(self.seed)

    @property
    def is_alarm(self) -> bool:
        """Whether a clean variant was not called the same."""
        return not self.fault and self.verdict not in ("same", "does not run")

    @property
    def is_lost(self) -> bool:
        """Whether a planted fault was not found at its place."""
        return bool(self.fault) and self.outcome != "exact"


@dataclass
class Bench:
    """One pair at one seed, and the traces of its reference."""

    name: str
    make: Callable[[int], Any]
    seed: int
    folder: Path
    dtypes: Sequence[str] = DTYPES
    modes: Sequence[str] = MODES
    references: dict[str, Path] = field(default_factory=dict)

    def fresh(self) -> Any:
        """The pair, made anew: equal to the last one bit for bit."""
        torch.manual_seed(self.seed)
        return self.make(self.seed)

    def reference(self, pair: Any, made: Made) -> Path:
        """The trace of the reference, captured unless it is there: of the plain run, or of a variant's own."""
        if made.reference not in self.references:
            path = self.folder / f"reference{len(self.references)}.h5"
            half = tuple(dtype for dtype in DTYPES[1:] if dtype in self.dtypes)
            with torch.no_grad(), made.around_reference() if made.around_reference else nullcontext():
                td.capture(pair.reference, pair.run_reference, to=path, force=True, floor_dtypes=("float64", *half)).close()
            self.references[made.reference] = path
        return self.references[made.reference]

    def clean(self, transformation: Transformation | None, dtypes: Sequence[str], number: int = 0) -> Iterator[Case]:
        """What tracediff says of a variant in each dtype and mode; nothing where the transformation fits nowhere in the pair."""
        name = transformation.name if transformation else UNCHANGED
        for dtype in dtypes:
            pair = self.fresh()
            made = transformation.make(pair, self._chance(name, number)) if transformation else Made("")
            if made is None:
                return
            pair = made.pair or pair
            reference = self.reference(pair, made)
            for mode in self.modes:
                started = time.perf_counter()
                case = Case(self.name, name, dtype, mode, self.seed, made.text)
                self._judge(case, pair, made, reference)
                case.seconds = round(time.perf_counter() - started, 2)
                yield case

    def _chance(self, name: str, number: int) -> random.Random:
        return random.Random(f"{self.seed} {self.name} {name} {number}")

    def _judge(self, case: Case, pair: Any, made: Made, reference: Path, truth: Planted | None = None) -> None:
        try:
            report = self.report(pair, made, reference, case.dtype, case.mode)
        except Exception as error:  # noqa: BLE001 - a failure of the tool, or of a port in a dtype, is a result
            case.verdict = "raised" if self._runs(pair, made, case.dtype) else "does not run"
            case.first = f"{type(error).__name__}: {error}".splitlines()[0]
            return
        case.verdict, case.first = report.verdict or "none", str(report).splitlines()[0]
        if truth is None and case.is_alarm and not self._runs(pair, made, case.dtype):
            case.verdict = "does not run"  # a forced run goes on where a call of the port raises
            return
        case.findings = tuple(
            f"{one.site.reference} {one.site.end} [{one.site.call}] {one.introduced:.1e}, floor "
            + (f"{one.floor:.1e}" if one.floor is not None else "unknown")
            + f", culprit {one.culprit.reference or 'the root'} | {one.culprit.port or 'the root'}: "
            + ", ".join(cause.kind for cause in one.causes)
            for one in report.divergences[:4]
        )
        if truth is not None:
            culprits = [(one.culprit.reference, one.culprit.port) for one in report.divergences]
            case.outcome = outcome(culprits, [truth], self.truth.called)

    def _runs(self, pair: Any, made: Made, dtype: str) -> bool:
        """Whether a variant's port runs by itself in a dtype."""
        try:
            with in_dtype(pair, dtype), in_force(made):
                pair.run_port()
        except Exception:  # noqa: BLE001 - whatever a port raises in a dtype that it was not written for
            return False
        return True

    def report(self, pair: Any, made: Made, reference: Path, dtype: str, mode: str) -> Any:
        """The report on a variant's port."""
        given: dict[str, Any] = {"feed": reference} if mode == "forced" else {"random": reference}
        port = self.folder / f"{mode}.h5"
        with in_dtype(pair, dtype), in_force(made):
            td.capture(pair.port, pair.run_port, to=port, force=True, repeat=False, **given).close()
        return td.bisect(reference, port)

    # -- with a fault

    def faulty(self, transformations: Sequence[Transformation], most: int) -> Iterator[Case]:
        """Planted faults that are found exactly in the pair as it is, each in variants whose place for it is known."""
        found = 0
        for fault in self._drawn_faults():
            if found == most:
                return
            if self._is_found(fault):
                found += 1
                for transformation in transformations[found - 1 :: most]:
                    yield from self._planted(fault, transformation)

    def _drawn_faults(self) -> list[Fault]:
        faults = [one for one in chosen(all_faults(self.fresh()), self.seed, 1) if one.port and one.kind != "raised" and not one.others]
        random.Random(self.seed).shuffle(faults)
        return faults

    def _is_found(self, fault: Fault) -> bool:
        """Whether a fault shows in the pair as it is, and is found exactly in both modes."""
        pair = self.fresh()
        with planted(pair.port, fault):
            try:
                reports = [self.report(pair, Made(""), self.reference(pair, Made("")), "float32", mode) for mode in self.modes]
                with td.open_trace(self.folder / "free.h5") as free:
                    shows = self._effects.of(fault.port, free) > 1
            except Exception:  # noqa: BLE001 - whatever a wrong port raises
                return False
        truth = self._truth_of(fault, Made(""))
        culprits = [[(one.culprit.reference, one.culprit.port) for one in report.divergences] for report in reports]
        return shows and all(outcome(one, [truth], self.truth.called) == "exact" for one in culprits)

    def _planted(self, fault: Fault, transformation: Transformation) -> Iterator[Case]:
        """A variant of the faulty port: of several draws the first that touches the faulty module, else the last."""
        for number in range(DRAWS):
            pair = self.fresh()
            with planted(pair.port, fault):
                made = transformation.make(pair, self._chance(transformation.name, number))
                if made is None or made.reference or any(is_below(path, fault.port) for path in made.mixed):
                    return
                if touches(made, fault.port) or number + 1 == DRAWS:
                    yield from self._judged_faulty(pair, made, fault, transformation.name)
                    return

    def _judged_faulty(self, pair: Any, made: Made, fault: Fault, name: str) -> Iterator[Case]:
        truth = self._truth_of(fault, made)
        for mode in self.modes:
            started = time.perf_counter()
            case = Case(self.name, name, "float32", mode, self.seed, made.text, fault=f"{fault.kind}: {fault.text}")
            self._judge(case, made.pair or pair, made, self.reference(pair, Made("")), truth)
            case.seconds = round(time.perf_counter() - started, 2)
            yield case

    def _truth_of(self, fault: Fault, made: Made) -> Planted:
        """The reference's modules that correspond to the culprit, and the port's where the variant has it."""
        references = self.truth.of(fault).references
        return Planted(moved(made, fault.port), references, fault.kinds, (Planted(fault.port, references, fault.kinds),))

    @cached_property
    def truth(self) -> Truth:
        """Which modules correspond in the pair as it is."""
        self._measured()
        return self._clean_truth

    @cached_property
    def _effects(self) -> Effects:
        self._measured()
        return self._clean_effects

    def _measured(self) -> None:
        pair = self.fresh()
        reference = self.reference(pair, Made(""))
        traces: dict[str, Trace] = {}
        for mode, given in (("forced", {"feed": reference}), ("free", {"random": reference})):
            traces[mode] = td.capture(pair.port, pair.run_port, to=self.folder / f"clean_{mode}.h5", force=True, repeat=False, **given)
        opened = td.open_trace(reference)
        self._clean_truth = Truth(pair, opened, traces["free"])
        self._clean_effects = Effects(opened, traces["free"], traces["forced"])


def touches(made: Made, path: str) -> bool:
    """Whether a variant changed a module, what it lies in or what lies in it."""
    return any(is_below(path, old.rstrip(".")) or is_below(old, path) for old in made.moved)


def moved(made: Made, path: str) -> str:
    """Where a module of the port is in the variant: under the longest known path at or above it."""
    for old in sorted(made.moved, key=len, reverse=True):
        if path == old:
            return made.moved[old]
        stem = old if old.endswith(".") or not old else f"{old}."
        if path.startswith(stem):
            new = made.moved[old]
            return f"{new}{path[len(stem) :]}" if old.endswith(".") else f"{new}.{path[len(stem) :]}" if new else path[len(stem) :]
    return path
