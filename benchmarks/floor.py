"""What the noise floor of a reference costs: the CPU time and peak memory of captures, beside the bare run.

    python benchmarks/floor.py                                # this version
    python benchmarks/floor.py --against FOLDER --rounds 3    # another version, whose checkout lies there, in turn

The model is the Llama of `llama_torch.py`, 30 layers of width 576, 128 tokens. Each measurement is a process of its own, with one thread:
the bare run, a capture without floor, one with it. All ways take turns in every round, and each ratio is of two times of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZES = {"vocabulary": 16384, "width": 576, "heads": 9, "inner": 1536, "layers": 30}
WAYS = ("bare", "without floor", "default")


def measured(way: str, layers: int) -> dict[str, float]:
    """CPU seconds and bytes at the peak of one way, in this process; the model has run once before."""
    import torch
    from llama_torch import Side

    import tracediff as td

    torch.set_num_threads(1)
    side = Side(length=128, **{**SIZES, "layers": layers})
    side.forward()
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        if way == "bare":
            side.forward()
        else:
            td.capture(side.model, side.forward, to=Path(folder) / "a.h5", floor=way == "default").close()
        taken = time.process_time() - started
    return {"seconds": taken, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


def child(way: str, version: Path, layers: int) -> dict[str, Any]:
    """What a process with another version's package measures."""
    paths = os.pathsep.join((str(version), str(HERE)))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--way", way, "--layers", str(layers)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="the checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SIZES["layers"])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options.layers)))
        return
    versions = {"this version": HERE.parent, **({"the other": options.against.resolve()} if options.against else {})}
    every = [(name, way) for name in versions for way in WAYS]
    rounds = [{(name, way): child(way, versions[name], options.layers) for name, way in every} for _ in range(options.rounds)]
    print("| version | way | CPU s | x bare: min / median / max | peak MB |\n| --- | --- | ---: | ---: | ---: |")
    for name in versions:
        for way in WAYS:
            seconds = [one[name, way]["seconds"] for one in rounds]
            ratios = [one[name, way]["seconds"] / one[name, "bare"]["seconds"] for one in rounds]
            peak = statistics.median(one[name, way]["peak"] for one in rounds) / 1e6
            spread = " / ".join(f"{value:.1f}" for value in (min(ratios), statistics.median(ratios), max(ratios)))
            print(f"| {name} | {way} | {statistics.median(seconds):.2f} | {spread} | {peak:.0f} |")


if __name__ == "__main__":
    main()
