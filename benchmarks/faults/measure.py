"""Plants faults into one pair and lets tracediff look for them, all in this process.

The reference is captured once for each seed, with its noise floor in every dtype; each fault then costs a free and a forced capture of the
port, a bisection of either and a scan. A fault is *of no effect* where the output of its own module, in a free run, changes by no more
than noise explains there; it is then counted and left out.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pairs import matched

import tracediff as td
from benchmarks.casting import in_dtype
from benchmarks.faults.catalogue import all_faults, chosen, couples, everywhere
from benchmarks.faults.plant import Fault, planted
from benchmarks.faults.score import Case, Planted, caller, judge
from tracediff import dtype as dtypes
from tracediff.metrics import compare
from tracediff.trace import Trace
from tracediff.trace.budget import fit
from tracediff.trace.thinning import thin

HALF = ("float16", "bfloat16")


@dataclass
class Options:
    """What to measure."""

    dtypes: Sequence[str] = ("float32",)
    modes: Sequence[str] = ("forced", "free")
    seeds: Sequence[int] = (0,)
    kinds: Sequence[str] = ()
    per_kind: int = 1
    couples: int = 4
    everywhere: int = 0
    most: int | None = None
    budget: float | None = None
    """The share of their values that reference and ports may keep whole, as a capture with that budget does; None: all."""
    progress: Callable[[str], None] = lambda _: None


@dataclass
class Bench:
    """One pair at one seed: its reference's trace, and the clean port's in the dtype that is being measured."""

    name: str
    pair: Any
    seed: int
    folder: Path
    options: Options
    held_out: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    found: list[Case] = field(default_factory=list)

    def run(self) -> list[Case]:
        """Every case of the pair; what each gave is in ``found``, faults without effect are counted in ``dropped``."""
        import torch

        half = tuple(dtype for dtype in self.options.dtypes if dtype in HALF)
        with torch.no_grad():
            made = td.capture(
                self.pair.reference, self.pair.run_reference, to=self.folder / "ref.h5", force=True, floor_dtypes=("float64", *half)
            )
        made.close()
        known = all_faults(self.pair)
        singles = chosen(known, self.seed, self.options.per_kind, self.options.kinds)
        if self.options.most is not None:
            singles = singles[:: max(1, math.ceil(len(singles) / self.options.most))]
        singles += everywhere(chosen(known, self.seed, len(known), self.options.kinds), self.seed, self.options.everywhere)
        for dtype in self.options.dtypes:
            with in_dtype(self.pair, dtype), td.open_trace(self.folder / "ref.h5") as reference:
                self._measure(
                    reference, dtype, singles, couples(chosen(known, self.seed + 7, 1, self.options.kinds), self.seed, self.options.couples)
                )
        return self.found

    def _measure(self, reference: Trace, dtype: str, singles: Sequence[Fault], doubles: Sequence[tuple[Fault, Fault]]) -> None:
        self._judged = self._within_budget(self.folder / "ref.h5", self.folder / "small.h5")
        self._clean = clean = self._captured("clean", None)
        with clean:
            with self._captured("forced", self.folder / "ref.h5") as forced:
                self._effects = Effects(reference, clean, forced)
            self._truth = Truth(self.pair, reference, clean)
            self._cases(reference, dtype, (), [])
            for fault in singles:
                self._planted(reference, dtype, (fault,))
            for couple in doubles:
                self._planted(reference, dtype, couple)

    def _planted(self, reference: Trace, dtype: str, faults: tuple[Fault, ...]) -> None:
        """One choice of faults, unless one of them, planted alone, is of no effect."""
        effects = [self._effect(fault) for fault in faults] if len(faults) > 1 else []
        if min(effects, default=math.inf) <= 1:
            self.dropped[f"{self.name} {dtype}"] += 1
            return
        with planted(self.pair.port, *faults):
            self._cases(reference, dtype, faults, effects)

    def _effect(self, fault: Fault) -> float:
        try:
            with planted(self.pair.port, fault), self._captured("alone", None) as free:
                return self._effects.of(fault.port, free)
        except Exception:  # noqa: BLE001 - whatever a wrong port raises
            return math.inf

    def _cases(self, reference: Trace, dtype: str, faults: tuple[Fault, ...], effects: Sequence[float]) -> None:
        """Both modes of one choice of faults; a single one of no effect is dropped."""
        started = time.perf_counter()
        case = Case(
            self.name,
            dtype,
            "",
            self.seed,
            tuple(fault.text for fault in faults),
            tuple(fault.kind for fault in faults),
            held_out=self.held_out,
        )
        truth = [self._truth.of(fault) for fault in faults]
        error = ""
        try:
            free = self._captured("free", None)
        except Exception as raised:  # noqa: BLE001 - whatever a wrong port raises
            free, error = None, f"{type(raised).__name__}: {raised}"
        if free is not None and faults:
            case.effect = min(effects, default=0.0) or self._effects.of(faults[0].port, free)
            if case.effect <= 1:
                self.dropped[f"{self.name} {dtype}"] += 1
                return
        for mode in self.options.modes:
            judged = Case(**{**vars(case), "mode": mode})
            try:
                self._located(judged, reference, free, truth, error)
            except Exception as raised:  # noqa: BLE001 - a failure of the tool is a result
                judged.error = f"{type(raised).__name__}: {raised}"
            judged.seconds = round(time.perf_counter() - started, 2)
            self.found.append(judged)
            self._report(judged)

    def _located(self, case: Case, reference: Trace, free: Trace | None, truth: Sequence[Planted], error: str) -> None:
        if case.mode == "free" and free is None:
            case.error = f"does not run: {error}"
        elif case.mode == "free":
            small = self._within_budget(self.folder / "free.h5", self.folder / "small_free.h5")
            bisected, scanned = (td.bisect(self._judged, small, scan=scan) for scan in (False, True))
            judge(case, scanned, truth, self._truth.called)
            firsts = [
                None if report.first is None else (report.first.site.reference, report.first.site.call, report.first.site.end)
                for report in (bisected, scanned)
            ]
            case.is_scans = firsts[0] == firsts[1]
            case.read, case.read_scan, case.compared = bisected.coverage.read, scanned.coverage.read, scanned.coverage.compared
            if not case.is_scans:
                case.stated += (f"bisect says {firsts[0]}, scan {firsts[1]}",)
        else:
            self._captured("forced", self._judged).close()
            small = self._within_budget(self.folder / "forced.h5", self.folder / "small_forced.h5")
            judge(case, td.bisect(self._judged, small), truth, self._truth.called)

    def _captured(self, name: str, feed: Path | None) -> Trace:
        given: dict[str, Any] = {"feed": feed} if feed else {"random": self.folder / "ref.h5"}
        return td.capture(self.pair.port, self.pair.run_port, to=self.folder / f"{name}.h5", force=True, repeat=False, **given)

    def _within_budget(self, whole: Path, to: Path) -> Path:
        """The trace as a capture within the budget leaves it; the whole one where none was asked for."""
        if self.options.budget is None:
            return whole
        shutil.copy(whole, to)
        least = thin(whole, self.folder / "thin.h5", force=True).stat().st_size
        fit(to, int(least + self.options.budget * (whole.stat().st_size - least)))
        return to

    def _report(self, case: Case) -> None:
        if self.held_out:
            return
        what = " + ".join(case.faults) or "clean"
        result = case.error or (case.outcome or "clean") + (f", {case.named} of {len(case.kinds)} named" if len(case.kinds) > 1 else "")
        self.options.progress(
            f"{case.pair} {case.dtype} {case.mode}: {what}: {result}, {case.extra} extra, cause {case.cause or '-'} {list(case.stated)}"
        )
        if case.outcome in ("near", "wrong", "missed") or case.extra:
            self.options.progress(f"      planted {case.planted}, effect {case.effect:.1f}; found {case.culprits}")


class Effects:
    """How much a fault changes the output of its own module, in parts of what is allowed there in a forced run."""

    def __init__(self, reference: Trace, clean: Trace, forced: Trace) -> None:
        self.clean = clean
        report = td.diff(reference, forced)
        rows = [(forced.records[row.pair.port[0]], row.limit) for row in report.rows if row.limit is not None]
        self.limits = {(record.site, record.ordinal, record.end): limit for record, limit in rows}
        self.outputs: dict[str, list[int]] = {}
        for row, record in enumerate(clean.records):
            if record.end.startswith("output"):
                self.outputs.setdefault(record.site, []).append(row)

    def of(self, path: str, faulty: Trace) -> float:
        """The largest change over what is allowed; infinite where calls or shapes differ, or numbers are lost."""
        theirs = {(record.site, record.ordinal, record.end): record for record in faulty.records if record.site == path}
        worst = 0.0
        for row in self.outputs.get(path, ()):
            record = self.clean.records[row]
            other = theirs.get((record.site, record.ordinal, record.end))
            if other is None or other.shape != record.shape:
                return math.inf
            worst = max(worst, self._change(record, other))
        return worst

    def _change(self, record: Any, other: Any) -> float:
        if record.digest == other.digest:
            return 0.0
        metrics = compare(record, other)
        if metrics.exact or metrics.lone_nonfinite:
            return math.inf
        return metrics.rel_l2 / (self.limits.get((record.site, record.ordinal, record.end)) or dtypes.named(record.dtype).rtol)


class Truth:
    """Which modules of the reference are the partners of a module of the port, by the pair's own table.

    Only modules that run count: what the reference's own code does with a layer's weights, without calling it, is part of that code.
    """

    def __init__(self, pair: Any, reference: Trace, clean: Trace) -> None:
        theirs = [str(module["path"]) for module in reference.meta["modules"]]
        ours = [str(module["path"]) for module in clean.meta["modules"]]
        self.called = {record.module for record in clean.records}
        ran = {record.module for record in reference.records}
        self.references: dict[str, list[str]] = {}
        for reference_path, port_path in pair.expected(theirs, ours).items():
            if reference_path in ran:
                self.references.setdefault(port_path, []).append(reference_path)
        for reference_path in ran.intersection(theirs):
            for pattern, target in pair.fused.items():
                if (found := matched({pattern: target}, reference_path)) is not None:
                    for port_path in ours:
                        if re.fullmatch(found.replace(".", r"\."), port_path):
                            self.references.setdefault(port_path, []).append(reference_path)

    def of(self, fault: Fault) -> Planted:
        others = tuple(Planted(path, self._of(path), fault.kinds) for path in fault.others)
        return Planted(fault.port, self._of(fault.port), fault.kinds, others)

    def _of(self, path: str) -> tuple[str, ...]:
        """The partners of a module of the port.

        A module without partners has those of the only called module inside it, else those of the nearest module around it.
        """
        if path in self.references:
            return tuple(self.references[path])
        inside = [known for known in self.references if known.startswith(f"{path}.") and known in self.called]
        if len(inside) == 1:
            return tuple(self.references[inside[0]])
        above = caller(path, self.references)
        return tuple(self.references.get(above or "", ()))
