"""How well sites are paired: precision and recall of `tracediff.align` on pairs of models whose truth is known, under six conditions.

    python benchmarks/pairing.py                    # the project's small pairs
    python benchmarks/pairing.py gpt unet --seeds 3

Conditions: *natural* names; *anonymous* (every path segment, list index and composite type replaced, modules and parameters listed in
random order); *shuffled* (anonymous, and independent siblings called in another order); *early fault* (anonymous, the port's first leaf
returns wrong values); *unloaded* (anonymous, one leaf's weights in the port drawn anew); *all different* (anonymous, every weight of
the port drawn anew, so that neither parameters nor values say anything).

The truth is written down beside each pair and holds by construction: the port's weights were converted by it. Precision counts the pairs
that touch a site of the truth, recall the truth's pairs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import results

from disguises import CONDITIONS, Score, measure  # isort: skip - only now can it be found


def builders(wanted: list[str], real: bool) -> dict[str, Callable[..., Any]]:
    """The pairs to measure, by name."""
    import pairs

    known = dict(pairs.PAIRS)
    if real:
        from benchmarks import real_pairs

        known = dict(real_pairs.PAIRS)
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise SystemExit(f"No pair {unknown[0]!r}; there are {', '.join(known)}.")
    return {name: known[name] for name in wanted or known}


def total(build: Callable[..., Any], condition: str, seeds: int) -> Score:
    """One pair under one condition, over several seeds."""
    found = Score()
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.add(measure(build, condition, seed, Path(folder)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", help="all by default")
    parser.add_argument("--real", action="store_true", help="language models of transformers against mlx-lm (both must be installed)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds of each")
    parser.add_argument("--conditions", default=",".join(CONDITIONS))
    parser.add_argument("--wrong", action="store_true", help="print every wrong pair")
    results.add_option(parser)
    arguments = parser.parse_args()
    conditions = arguments.conditions.split(",")
    totals = {condition: Score() for condition in conditions}
    rows: list[results.Row] = []
    print(f"{'precision/recall in %':24s}" + "".join(f"{condition:>15s}" for condition in conditions))
    for name, build in builders(arguments.pairs, arguments.real).items():
        cells = [total(build, condition, arguments.seeds) for condition in conditions]
        for condition, cell in zip(conditions, cells, strict=True):
            totals[condition].add(cell)
            rows.append({"pair": name, "condition": condition, "right": cell.right, "stated": cell.stated, "true": cell.true})
        print(f"{name:24s}" + "".join(f"{cell.text:>15s}" for cell in cells), flush=True)
        for condition, cell in zip(conditions, cells, strict=True):
            for line in cell.wrong if arguments.wrong else ():
                print(f"    {condition}: {line}")
    print(f"{'all':24s}" + "".join(f"{totals[condition].text:>15s}" for condition in conditions))
    print(f"{'true pairs':24s}" + "".join(f"{totals[condition].true:15d}" for condition in conditions))
    spent = [1000 * totals[condition].seconds / max(1, totals[condition].sites) for condition in conditions]
    print(f"{'seconds per 1000 sites':24s}" + "".join(f"{seconds:15.2f}" for seconds in spent))
    results.record("pairing", rows, arguments)


if __name__ == "__main__":
    main()
