"""Runs the benchmark and prints its table: `python -m benchmarks.faults --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import results
from benchmarks.faults.score import Case, as_json
from benchmarks.faults.table import failures, table


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants faults into ports of known models and measures how well they are located.")
    parser.add_argument("pairs", nargs="*", help="names of pairs; all by default")
    parser.add_argument("--list", action="store_true", help="list the pairs and what can be planted, and stop")
    parser.add_argument("--groups", nargs="+", choices=("own", "real", "held-out"), default=["own", "real", "held-out"])
    parser.add_argument("--kinds", nargs="+", default=[], help="kinds of cause, or their first words, such as weights or norm.eps")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--modes", nargs="+", default=["forced", "free"], choices=("forced", "free"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--per-kind", type=int, default=1, help="modules drawn for each way to go wrong in each pair [1]")
    parser.add_argument("--couples", type=int, default=4, help="two faults at once, for each pair [4]")
    parser.add_argument("--everywhere", type=int, default=0, help="one fault at all modules of a role, for so many roles of each pair [0]")
    parser.add_argument("--most", type=int, help="at most so many single faults a pair")
    parser.add_argument("--budget", type=float, help="keep this share of the values of reference and ports, as capture --budget does [all]")
    parser.add_argument("--quick", action="store_true", help="six faults and one couple for each pair")
    parser.add_argument("--names", action="store_true", help="precision and recall of pairing too, with natural and disguised names")
    parser.add_argument("--failures", action="store_true", help="list every case that went wrong")
    parser.add_argument("--json", metavar="FILE", help="write every case to this file, after each pair")
    parser.add_argument("--table", metavar="FILE", help="print the table of such a file, and stop")
    results.add_option(parser)
    options = parser.parse_args()
    if options.quick:
        options.most, options.couples = 6, 1
    if options.table:
        return print_table(options)
    return print_faults(options) if options.list else run(options)


def print_table(options: argparse.Namespace) -> int:
    """Prints the table of the cases in a file."""
    written = json.loads(Path(options.table).read_text())
    cases = [Case(**case) for case in written["cases"]]
    print("\n".join([*table(cases, written["no_effect"]), *(failures(cases) if options.failures else ())]))
    return 0


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from benchmarks.faults.measure import Bench, Options
    from benchmarks.faults.pairs import selected

    wanted = Options(
        options.dtypes, options.modes, options.seeds, options.kinds, options.per_kind, options.couples, options.everywhere, options.most,
        budget=options.budget, progress=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    cases: list[Case] = []
    dropped: Counter[str] = Counter()
    started = time.monotonic()
    known = selected(options.pairs, options.groups)
    for name, entry in known.items():
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    bench = Bench(name, entry.make(seed), seed, Path(folder), wanted, held_out=entry.held_out)
                except ImportError as error:
                    print(f"{name}: left out, {error}", file=sys.stderr)
                    break
                cases += bench.run()
                dropped += bench.dropped
            if options.json:  # after every pair, so that a run which is stopped keeps what it has
                Path(options.json).write_text(json.dumps(as_json(cases, dropped), indent=1))
    print("\n".join(table(cases, dropped)))
    results.record("faults", [*as_json(cases, dropped)["table"], {"no_effect": dict(dropped)}], options)
    print(f"{len(cases)} cases in {time.monotonic() - started:.0f} s")
    if options.failures:
        print("\n".join(failures(cases)))
    if options.names:
        print_pairing(options, known)
    return 0


def print_pairing(options: argparse.Namespace, known: dict[str, object]) -> None:
    """Prints precision and recall of pairing under the conditions of `benchmarks/pairing.py`."""
    from disguises import CONDITIONS, Score

    from benchmarks import pairing

    totals = {condition: Score() for condition in CONDITIONS}
    for entry in known.values():
        for condition in CONDITIONS:
            totals[condition].add(pairing.total(lambda seed, entry=entry: entry.make(seed), condition, len(options.seeds)))  # type: ignore[attr-defined]
    print("pairing, precision/recall in %: " + ", ".join(f"{condition} {score.text.strip()}" for condition, score in totals.items()))


def print_faults(options: argparse.Namespace) -> int:
    from benchmarks.faults.catalogue import all_faults
    from benchmarks.faults.pairs import selected

    for name, entry in selected(options.pairs, options.groups).items():
        faults = all_faults(entry.make(0))
        print(f"{name}{' (held out)' if entry.held_out else ''}: {len(faults)} faults in {len({fault.port for fault in faults})} modules")
        for kind, count in sorted(Counter(fault.kind for fault in faults).items()):
            print(f"    {count:5d}  {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
