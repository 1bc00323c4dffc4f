"""How fast large traces are aligned: CPU seconds for synthetic stacks of blocks, before and after in one interleaved run.

    python -m benchmarks.align                                # 20,000 sites, and 10,000 whose weights all differ
    python -m benchmarks.align --layers 400 --against HEAD~5  # and those of an earlier revision, taking turns

A stack has 12 sites a layer. Each measurement is a process of its own that aligns once; its CPU time (not wall time) counts, without
imports and without opening the traces. With ``--against`` the two revisions take turns and the ratio is that of the smallest times.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks import results

from synthetic import stack  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
SITES_A_LAYER = 12

_ONCE = """
import sys, time
import numpy as np, scipy.optimize, scipy.spatial
from tracediff import align
from tracediff.trace import open_trace
with open_trace(sys.argv[1]) as a, open_trace(sys.argv[2]) as b:
    started = time.process_time()
    pairs = align(a, b).paired
    print(time.process_time() - started, len(pairs))
"""


def once(tree: Path, folder: Path) -> tuple[float, int]:
    """CPU seconds that one alignment takes by the code of a source tree, and how many sites it paired."""
    command = [sys.executable, "-c", _ONCE, str(folder / "reference.h5"), str(folder / "port.h5")]
    ran = subprocess.run(
        command, cwd=tree, env={"PYTHONPATH": str(tree), "PATH": "", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    seconds, paired = ran.stdout.split()
    return float(seconds), int(paired)


def checked_out(revision: str, folder: Path) -> Path:
    """The source tree of a revision."""
    packed = subprocess.run(["git", "archive", revision, "tracediff"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1667, help="layers of 12 sites each; half as many where all weights differ")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="REVISION", help="an earlier revision to measure in turn")
    results.add_option(parser)
    arguments = parser.parse_args()
    rows: list[results.Row] = []
    with tempfile.TemporaryDirectory() as place:
        trees = {"now": ROOT}
        if arguments.against:
            trees[arguments.against] = checked_out(arguments.against, Path(place) / "before")
        print(
            f"{'':24s}{'sites':>8s}{'paired':>8s}"
            + "".join(f"{name + ', cpu-s':>18s}" for name in trees)
            + ("   ratio" if arguments.against else "")
        )
        for name, layers, different in (("equal weights", arguments.layers, False), ("all weights different", arguments.layers // 2, True)):
            folder = Path(place) / name
            folder.mkdir()
            stack(folder, layers, different=different)
            seconds: dict[str, list[float]] = {tree: [] for tree in trees}
            paired = 0
            for _ in range(arguments.rounds):
                for tree, path in trees.items():
                    spent, paired = once(path, folder)
                    seconds[tree].append(spent)
            best = [min(spent) for spent in seconds.values()]
            rows.append(
                {"stack": name, "sites": SITES_A_LAYER * layers + 1, "paired": paired, "cpu seconds": dict(zip(trees, best, strict=True))}
            )
            ratio = f"{best[1] / best[0]:8.2f}" if arguments.against else ""
            print(f"{name:24s}{SITES_A_LAYER * layers + 1:8d}{paired:8d}" + "".join(f"{spent:18.2f}" for spent in best) + ratio, flush=True)
    results.record("align", rows, arguments)


if __name__ == "__main__":
    main()
