"""Makes the variants and prints what tracediff says of them: `python -m benchmarks.variants --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import results


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Clean pairs said in another way must stay the same, and planted faults stay where they are."
    )
    parser.add_argument("pairs", nargs="*", help="names of pairs; all that are not held out by default")
    parser.add_argument("--groups", nargs="+", choices=("own", "real", "held-out"), default=["own", "real"])
    parser.add_argument("--transformations", nargs="+", default=[], metavar="NAME", help="some of them; all by default")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "float16", "bfloat16"), default=["float32", "float16", "bfloat16"])
    parser.add_argument("--every-dtype", action="store_true", help="every variant in every dtype; else each in one, taken in turn")
    parser.add_argument("--modes", nargs="+", choices=("forced", "free"), default=["forced", "free"])
    parser.add_argument("--seed", default="0", help="of weights, inputs and places; 'today' for the day's number [0]")
    parser.add_argument("--draws", type=int, default=1, help="how often each transformation draws its places in a pair [1]")
    parser.add_argument("--share", type=int, default=1, help="one in so many transformations for each pair, taken in turn [1]")
    parser.add_argument("--faults", type=int, default=0, help="planted faults a pair, each tried in its share of the transformations [0]")
    parser.add_argument("--list", action="store_true", help="list the transformations, and stop")
    parser.add_argument("--most-alarms", type=float, help="exit status 1 if more than so many per cent of the clean variants alarm")
    parser.add_argument("--json", metavar="FILE", help="write every case to this file, after each pair")
    results.add_option(parser)
    options = parser.parse_args()
    options.seed = int(f"{datetime.now(UTC):%Y%m%d}") if options.seed == "today" else int(options.seed)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.variants.catalogue import EVERY

    if options.list:
        print("\n".join(one.name for one in EVERY))
        return 0
    return run(options)


def run(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.faults.pairs import known, selected
    from benchmarks.variants import catalogue
    from benchmarks.variants.measure import Bench, Case
    from benchmarks.variants.table import alarms, rate, rows, table

    torch.set_num_threads(1)
    transformations, cases, started = catalogue.selected(options.transformations), list[Case](), time.monotonic()
    places = {name: place for place, name in enumerate(known())}
    for name, entry in selected(options.pairs, options.groups).items():
        place = places[name]
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, entry.make, options.seed, Path(folder), options.dtypes, options.modes)
            try:
                bench.fresh()
            except ImportError as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
            own = transformations[place % options.share :: options.share]
            for number, transformation in enumerate([None, *own]):
                turn = (place + number + options.seed) % len(options.dtypes)
                dtypes = options.dtypes if options.every_dtype or transformation is None else options.dtypes[turn : turn + 1]
                for draw in range(options.draws if transformation else 1):
                    cases += shown(bench.clean(transformation, dtypes, draw), started)
            cases += shown(bench.faulty(own, options.faults), started)
        if options.json:
            Path(options.json).write_text(
                json.dumps({"schema": "tracediff.variants/1", "cases": [asdict(case) for case in cases]}, indent=1)
            )
    print("\n".join([*alarms(cases), *table(cases)]))
    results.record("variants", rows(cases), options)
    print(f"{len(cases)} runs in {time.monotonic() - started:.0f} s")
    return int(options.most_alarms is not None and rate(cases) > options.most_alarms)


def shown(found: Iterable[Any], started: float) -> Iterator[Any]:
    """The cases, each told as it comes."""
    for case in found:
        is_wrong = case.is_alarm or case.is_lost
        text = f"{time.monotonic() - started:6.0f} s  {case.pair} | {case.transformation} | {case.dtype} {case.mode}: "
        text += case.outcome or case.verdict
        print(text + (f"  <-- {case.where}: {case.first}" if is_wrong else ""), file=sys.stderr, flush=True)
        yield case


if __name__ == "__main__":
    sys.exit(main())
