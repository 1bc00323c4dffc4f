"""Pairs whose tensors are square: as many frames as channels, as heads, as sequences in the batch. Shapes then say nothing about axes.

    python -m benchmarks.squares                           # all pairs, clean and with one fault at a time
    python -m benchmarks.squares unet-cube --traces FOLDER # one pair; its traces are kept, and used again where they are there
    python -m benchmarks.squares --groups held-back        # the pairs that the layouts were not tuned on

For each run it counts: records that are read in another layout than the truth (*wrong*), divergences that do not name the planted module
(*alarms*), and whether the first divergence names it (*place*). The truth of a layout is what the values of the clean free run say: every
layout of the two shapes in which they agree. A faulty run's records are held against the same pair of ends and calls of the clean one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.held_inputs import found_in, held_arrays

AGREES = 1e-3
"""Relative error below which the values of two clean runs in float32 agree in a layout."""
FAULTS = 6


@dataclass(frozen=True)
class Square:
    """How a pair of the benchmark becomes square: its module's constants, its keyword arguments, and how many sequences a batch has."""

    pair: str
    batch: int
    constants: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    lengths: Mapping[int, int] = field(default_factory=dict)  # axes of the inputs, but the first, that become so long
    held_back: bool = False


SQUARES = {
    "unet-frames": Square("unet", 2, options={"length": 16}),
    "unet-cube": Square("unet", 16, options={"length": 16}),
    "conv-cube": Square("conv", 16, options={"length": 16}),
    "gpt-heads": Square("gpt", 4, options={"length": 8}),
    "gpt-frames": Square("gpt", 4, options={"length": 32}),
    "vae-cube": Square("vae", 8, {"SIDE": 8}),
    "flow-cube": Square("flow", 8, lengths={10: 16}),
    "vision-frames": Square("vision", 10),
    "conformer-cube": Square("conformer", 4, {"FRAMES": 67}, held_back=True),
    "wavenet-cube": Square("wavenet", 12, {"CHANNELS": 12, "FRAMES": 12}, held_back=True),
    "codec-cube": Square("codec", 8, {"CHANNELS": (8, 16, 8)}, lengths={48: 32}, held_back=True),
    "recurrent-cube": Square("recurrent", 8, options={"length": 8}, held_back=True),
    "encoder-decoder-heads": Square("encoder-decoder", 4, options={"length": 4}, held_back=True),
    "effnet-cube": Square("effnet", 8, {"SIDE": 16}, held_back=True),
    "mixer-cube": Square("mixer", 16, held_back=True),
    "detector-heads": Square("detector", 3, held_back=True),
}


def made(name: str, seed: int = 0) -> Any:
    """A square pair."""
    import pairs

    square = SQUARES[name]
    pair = pairs.PAIRS[square.pair](seed, **square.options) if square.pair in pairs.PAIRS else _copy_of(square, name).make(seed)
    resize(pair, square)
    return pair


def _copy_of(square: Square, name: str) -> Any:
    """A pair's module with other constants, beside the module itself: its functions go on reading them when they run."""
    found = importlib.util.find_spec(f"benchmarks.faults.pairs.{square.pair}")
    assert found is not None
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location(f"benchmarks.faults.pairs.{name.replace('-', '_')}", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    vars(module).update(square.constants)
    return module


def resize(pair: Any, square: Square) -> None:
    """Gives the inputs that a pair's runs hold their sizes, all rows different, the same on both sides."""
    random = np.random.default_rng(0)
    ours, theirs = held_arrays(pair.run_reference), held_arrays(pair.run_port)
    before = [one.value for one in ours]
    rows = max((len(value) for value in before if value.ndim), default=0)
    changed = []
    for value in before:
        for axis in range(1, value.ndim):
            value = _as_long(value, axis, square.lengths.get(value.shape[axis], value.shape[axis]), random)
        changed.append(_as_long(value, 0, square.batch, random) if value.ndim and len(value) == rows else value)
    found = [_known(one.value, before) for one in theirs]
    for one, value in zip(ours, changed, strict=True):
        one.set(value)
    for one, place in zip(theirs, found, strict=True):
        if place is not None:
            one.set(np.ascontiguousarray(changed[place[0]].transpose(place[1])))


def _known(value: np.ndarray, inputs: list[np.ndarray]) -> tuple[int, tuple[int, ...]] | None:
    """Which of the reference's inputs an array is, and in which order of axes; None for an array of the port's own."""
    try:
        return found_in(value, inputs)
    except LookupError:
        return None


def _as_long(value: np.ndarray, axis: int, length: int, random: np.random.Generator) -> np.ndarray:
    """So many places along an axis: the own ones first, then some with their entries in another order along every axis."""
    have = value.shape[axis]
    own = [value.take(place % have, axis) for place in range(length)]
    return np.stack([one if place < have else _shuffled(one, random) for place, one in enumerate(own)], axis)


def _shuffled(row: np.ndarray, random: np.random.Generator) -> np.ndarray:
    for axis in range(np.ndim(row)):
        row = random.permutation(row, axis=axis)
    return row


# -- what is measured ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What was read and said of one run."""

    run: str
    records: int
    ambiguous: int
    wrong: list[str]
    alarms: list[str]
    place: str
    seconds: float


Key = tuple[object, ...]


class Bench:
    """The runs of one square pair, recorded to a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        from benchmarks.golden.cases import of_models, recorded

        self.name = name
        self.pair = made(name)
        source = of_models(self.pair, FAULTS)
        self.faults = [port.wrong for port in source.ports if port.wrong is not None]
        self.runs = list(recorded(name, source, folder))

    def outcomes(self) -> Iterator[Outcome]:
        import tracediff as td
        from benchmarks.faults.measure import Truth
        from benchmarks.faults.score import Case, judge

        with td.open_trace(self.runs[0][1]) as reference:
            clean_path = next(port for run, _, port, _ in self.runs if run.endswith("clean: free"))
            with td.open_trace(clean_path) as clean:
                accepted = truth_of_layouts(reference, clean)
                sites = Truth(self.pair, reference, clean)
            for number, (run, _, path, _) in enumerate(self.runs):
                if isinstance(path, str):
                    continue
                faults = [self.faults[number // 2 - 1]] if number >= 2 else []
                with td.open_trace(path) as port:
                    started = time.process_time()
                    alignment = td.align(reference, port)
                    spent = time.process_time() - started
                    wrong, seen, open_ = wrong_layouts(alignment, reference, port, accepted)
                    case = Case(
                        self.name, "float32", run.rpartition(" ")[2], 0, tuple(f.text for f in faults), tuple(f.kind for f in faults)
                    )
                    planted = [sites.of(fault) for fault in faults]
                    report = judge(case, td.bisect(reference, port, scan=True), planted, sites.called)
                    names = {name for fault in planted for one in (fault, *fault.others) for name in (one.port, *one.references)}
                    alarms = [
                        one for one in report.culprits if not names.intersection(one.split(" @ ")[0].replace("root", "").split(" | "))
                    ]
                    yield Outcome(run, seen, open_, wrong, alarms, case.outcome or "clean", spent)


def _key(reference: Any, port: Any, pair: Any) -> Key:
    a, b = reference.records[pair.reference[0]], port.records[pair.port[0]]
    return a.site, a.ordinal, a.end, a.shape, b.site, b.ordinal, b.end, b.shape


def truth_of_layouts(reference: Any, clean: Any) -> dict[Key, frozenset[str]]:
    """The layouts in which the values of a clean run agree, as texts, by what is paired; only records whose shapes leave a choice.

    Where values agree in no layout, or in several, none of those is wrong.
    """
    import tracediff as td
    from tracediff.alignment import axes

    found = {}
    for pair in td.align(reference, clean).records:
        if len(pair.reference) != 1 or len(pair.port) != 1:
            continue
        a, b = reference.records[pair.reference[0]], clean.records[pair.port[0]]
        candidates = [one for one in axes.layouts(a.shape, b.shape) if one.window is None and not one.repeat]
        if len(candidates) < 2 or a.dtype == "text":
            continue
        ours, theirs = a.read(), b.read()
        agree = [str(one) for one in candidates if axes.relative_error(ours.reshape(one.shape), axes.apply(theirs, one)) < AGREES]
        if agree:
            found[_key(reference, clean, pair)] = frozenset(agree)
    return found


def wrong_layouts(alignment: Any, reference: Any, port: Any, accepted: Mapping[Key, frozenset[str]]) -> tuple[list[str], int, int]:
    """The records that are read otherwise than the truth says, how many were paired, and of how many the truth is known."""
    from tracediff.alignment.record_plans import RAISED

    wrong, known = [], 0
    for pair in alignment.records:
        if len(pair.reference) != 1 or len(pair.port) != 1 or pair.evidence == RAISED:
            continue
        right = accepted.get(_key(reference, port, pair))
        known += right is not None
        if right is not None and str(pair.layout) not in right:
            a = reference.records[pair.reference[0]]
            wrong.append(f"{a.site}[{a.ordinal}] {a.end} {a.shape}: {pair.layout}, not {' or '.join(sorted(right))}; {pair.evidence}")
    return wrong, len(alignment.records), known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pairs; all of the groups by default")
    parser.add_argument("--groups", nargs="+", choices=("tuned", "held-back"), default=["tuned", "held-back"])
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep the traces there, and use again those that are there")
    parser.add_argument("--list", action="store_true", help="print every wrong layout and alarm")
    results.add_option(parser)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    wanted = options.names or [one for one, square in SQUARES.items() if ("held-back" if square.held_back else "tuned") in options.groups]
    rows: list[results.Row] = []
    total: Counter[str] = Counter()
    print(f"{'pair':24s}{'runs':>6s}{'records':>9s}{'known':>8s}{'wrong':>7s}{'clean alarms':>14s}{'alarms':>8s}  places")
    with tempfile.TemporaryDirectory() as temporary:
        for name in wanted:
            row: Counter[str] = Counter()
            for one in Bench(name, (options.traces or Path(temporary)) / name).outcomes():
                alarms = "clean alarms" if one.place == "clean" else "alarms"
                row.update({"runs": 1, "records": one.records, "known": one.ambiguous, "wrong": len(one.wrong), alarms: len(one.alarms)})
                row[f"place {one.place}"] += 1
                if options.list:
                    for line in (*(f"wrong: {text}" for text in one.wrong), *(f"alarm: {text}" for text in one.alarms)):
                        print(f"    {one.run}: {line}")
            total.update(row)
            rows.append({"pair": name, **row})
            print(_line(name, row), flush=True)
    print(_line("all", total))
    results.record("squares", rows, options)


def _line(name: str, row: Mapping[str, int]) -> str:
    places = ", ".join(f"{row[f'place {one}']} {one}" for one in ("exact", "near", "wrong", "missed") if row.get(f"place {one}"))
    numbers = [row.get(one, 0) for one in ("runs", "records", "known", "wrong", "clean alarms", "alarms")]
    return (
        f"{name:24s}" + "".join(f"{number:>{width}d}" for number, width in zip(numbers, (6, 9, 8, 7, 14, 8), strict=True)) + f"  {places}"
    )


if __name__ == "__main__":
    main()
