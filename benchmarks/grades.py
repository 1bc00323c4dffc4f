"""How clear weak faults are, and how unclear the noise of clean runs: what the thresholds of borderline findings were chosen by.

    python -m benchmarks.grades [PAIR ...] --json grades.json

Into each pair of the fault benchmark weak faults are planted: another epsilon of a norm, a slope, scale or weight off by little, a
variance for an epsilon that matters. For each the place with the largest share of what is allowed inside the planted module is listed,
with the structure of its error; beside them stand the largest shares of clean runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

import tracediff as td
from benchmarks import results
from benchmarks.casting import in_dtype
from benchmarks.faults.pairs import known, selected
from benchmarks.faults.plant import around, edited, planted
from tracediff.alignment import align
from tracediff.locate import Located, locate
from tracediff.locate.grades import times_allowed
from tracediff.locate.pairs import Pairs
from tracediff.locate.structure import left_by_affine
from tracediff.locate.thresholds import THRESHOLDS
from tracediff.runs.floor_limits import floor_limits
from tracediff.runs.planting import Assign, Fault

MODES = ("forced", "free")
BINS = (1.0, 1.5, 2.0, 3.0, 5.0, 10.0, math.inf)
NEAREST = 6
"""So many clean errors nearest to what is allowed are listed a run."""


@dataclass(frozen=True)
class Measured:
    """One place: what was planted ("" where nothing was), how many times what is allowed, and the share of its error without structure."""

    pair: str
    dtype: str
    mode: str
    fault: str
    path: str
    site: str
    times: float | None
    left: float | None
    siblings: int


def weak_faults(port: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, path, change) of each weak fault that applies to a port's modules."""

    def off(factor: float) -> Callable[[Any], Any]:
        return lambda old: old * factor

    for path, module in port.named_modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                for factor in (10.0, 0.1):
                    yield f"{name} x {factor:g}", path, Assign(path, name, lambda models, module, old, factor=factor: old * factor)
        for name in ("scale", "negative_slope", "softmax_scale", "scaling"):
            if isinstance(getattr(module, name, None), float):
                for part in (1e-6, 3e-6, 1e-5):
                    yield f"{name} off by {part:g}", path, Assign(path, name, lambda models, module, old, part=part: old * (1 + part))
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.LayerNorm | nn.RMSNorm) and "weight" in module:
            for part in (3e-6, 1e-5):
                yield f"weight off by {part:g}", path, edited(path, "weight", off(1 + part))
            if "bias" in module:
                yield "bias plus 3e-6", path, edited(path, "bias", lambda old: old + 3e-6)
        if not list(module.children()) and path and not any(isinstance(value, nn.Module) for value in module.values()):
            yield "output off by 2e-6", path, around(path, _scaled)


def _scaled(call: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    """What a module returns, off by a factor."""
    made = call(*args, **kwargs)
    return made * (1 + 2e-6) if isinstance(made, mx.array) and made.dtype == mx.float32 else made


class Bench:
    """One pair in one dtype of the port, with its reference's trace in a folder."""

    def __init__(self, name: str, pair: Any, dtype: str, folder: Path) -> None:
        self.name, self.pair, self.dtype, self.folder = name, pair, dtype, folder

    def measured(self, most: int) -> Iterator[Measured]:
        """The clean port, then a fair choice of at most so many weak faults, each forced and free."""
        import torch

        floors = ("float64", *(dtype for dtype in (self.dtype,) if dtype != "float32"))
        with torch.no_grad():
            td.capture(self.pair.reference, self.pair.run_reference, to=self.folder / "ref.h5", force=True, floor_dtypes=floors).close()
        with in_dtype(self.pair, self.dtype):
            yield from self._state("", "")
            known = list(weak_faults(self.pair.port))
            for name, path, change in known[:: max(1, -(-len(known) // most))]:
                with planted(self.pair.port, Fault(name, "weak", path, change)):
                    yield from self._state(name, path)

    def _state(self, fault: str, path: str) -> Iterator[Measured]:
        for mode in MODES:
            given: dict[str, Any] = {"feed" if mode == "forced" else "random": self.folder / "ref.h5"}
            with (
                td.open_trace(self.folder / "ref.h5") as reference,
                td.capture(self.pair.port, self.pair.run_port, to=self.folder / "port.h5", force=True, repeat=False, **given) as port,
            ):
                alignment = align(reference, port)
                floors = floor_limits(reference, port, alignment.records)
                located = locate(alignment, reference, port, scan=True, floors=floors, strict=True)
                pairs = Pairs([one.pair for one in located.comparisons], alignment, reference, port)
                chosen = [finding.place for finding in located.findings] if fault else _nearest(located)
                yield from (self._place(located, pairs, i, fault, path) for i in chosen)

    def _place(self, located: Located, pairs: Pairs, i: int, fault: str, path: str) -> Measured:
        record = pairs.records(i)[1]
        siblings = next((finding.shared_by - 1 for finding in located.findings if finding.place == i), 0)
        times = times_allowed(located.comparisons[i])
        return Measured(
            self.name, self.dtype, located.mode, fault, path, f"{record.site} {record.end}", times, left_by_affine(pairs, i), siblings
        )


def _nearest(located: Located) -> list[int]:
    """The places of the largest errors that are allowed."""
    times = {i: known for i, one in enumerate(located.comparisons) if not one.diverged and (known := times_allowed(one)) is not None}
    return sorted(times, key=lambda i: -times[i])[:NEAREST]


def summary(found: list[Measured]) -> Iterator[str]:
    """How many weak faults stay clear, by times what is allowed; and how many of the largest clean errors look like noise."""
    measured = [one for one in found if one.times is not None and one.left is not None]
    for dtype, mode in itertools.product(dict.fromkeys(one.dtype for one in measured), MODES):
        of_mode = [one for one in measured if (one.dtype, one.mode) == (dtype, mode)]
        clean = [one for one in of_mode if not one.fault]
        like_noise = sum(one.left > THRESHOLDS.left_of_structure for one in clean)
        worst = max((one.times for one in clean), default=0.0)
        yield f"{dtype} {mode}: {len(clean)} clean errors, up to {worst:.2f} times what is allowed: {like_noise} like noise"
        for low, high in itertools.pairwise(BINS):
            inside = [one for one in of_mode if one.fault and low < one.times <= high]
            clear = sum(one.times > THRESHOLDS.borderline or one.left <= THRESHOLDS.left_of_structure for one in inside)
            yield f"    weak faults {low:g} to {high:g} times: {clear} of {len(inside)} clear"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", help="by default all that the fault benchmark has")
    parser.add_argument("--most", type=int, default=8, help="weak faults a pair")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--json", metavar="FILE", help="write every place to this file, after each pair")
    results.add_option(parser)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: list[Measured] = []
    for name, entry in selected(options.pairs or known(), ()).items():
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found += Bench(name, entry.make(0), dtype, Path(folder)).measured(options.most)
                except ImportError as error:
                    print(f"{name}: left out, {error}", file=sys.stderr)
                    break
            print(f"{name} {dtype}: {len(found)} places so far", file=sys.stderr, flush=True)
            if options.json:
                Path(options.json).write_text(json.dumps([asdict(one) for one in found], indent=0))
    lines = list(summary(found))
    print("\n".join(lines))
    results.record("grades", [{"line": line} for line in lines], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
