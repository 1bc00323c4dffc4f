"""What a default capture of a reference costs: CPU time and memory of captures beside the bare run.

    python benchmarks/floor.py                                # this version: four minutes on one core that is not idle
    python benchmarks/floor.py --against FOLDER --rounds 2    # another version, whose checkout lies there, in turn

The model is the Llama of `llama_torch.py`, 30 layers of width 576 (135 M parameters), 128 tokens, random weights. Each capture is made in
a process of its own, with one thread, after a capture of a small model, which loads what is loaded once. In that process the bare run
comes just before and just after; the ratio is to their mean. All ways take turns in every round. *Write* is the CPU time of writing the
file's bytes once more, at once: the goal is 6 times the bare run plus that. *Extra* is the process's peak above what it held before the
capture. Fingerprints of parameters are kept from run to run in a folder that is empty for each process, but for the way *default, again*.
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
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZES = {"vocabulary": 16384, "width": 576, "heads": 9, "inner": 1536, "layers": 30}
SMALL = {"vocabulary": 64, "width": 64, "heads": 4, "inner": 64, "layers": 1}
WAYS: dict[str, dict[str, Any]] = {
    "no floor, no repeat": {"floor": False, "repeat": False},
    "no floor": {"floor": False},
    "no repeat": {"repeat": False},
    "default": {},
    "default, again": {},
}
AGAIN = "default, again"
"""The way in which another process has captured the same weights before."""
RESET = Path("/proc/self/clear_refs")


def measured(way: str, layers: int) -> dict[str, Any]:
    """CPU seconds, and bytes at the peak, of one way in this process."""
    import torch
    from llama_torch import Side

    import tracediff as td

    torch.set_num_threads(1)
    small, side = Side(length=8, **SMALL), Side(length=128, **{**SIZES, "layers": layers})
    with tempfile.TemporaryDirectory() as folder:
        td.capture(small.model, small.forward, to=Path(folder) / "small.h5").close()
        side.forward()
        before, held = seconds(side.forward), peak(reset=True)
        to = Path(folder) / "a.h5"
        wall = time.perf_counter()
        taken = seconds(lambda: td.capture(side.model, side.forward, to=to, **WAYS[way]).close())
        wall = time.perf_counter() - wall
        extra = peak() - held
        after = seconds(side.forward)
        content = to.read_bytes()
        written = seconds(lambda: (Path(folder) / "again").write_bytes(content))
        with td.open_trace(to) as trace:
            methods = trace.meta.get("floor_methods") or []
    return {
        "bare": (before + after) / 2,
        "seconds": taken,
        "wall": wall,
        "extra": extra,
        "write": written,
        "bytes": len(content),
        "leaf": max(parameter.numel() for parameter in side.model.parameters()),
        "methods": Counter(str(row["noise"]) for row in methods for _ in row["sites"]),
    }


def seconds(job: Any) -> float:
    """The CPU seconds that a job takes, of all threads."""
    started = time.process_time()
    job()
    return time.process_time() - started


def peak(*, reset: bool = False) -> int:
    """The most bytes that this process has held, on Linux since the last reset; what it holds now where that is reset."""
    if not RESET.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if reset:
        RESET.write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def child(way: str, version: Path, layers: int) -> dict[str, Any]:
    """What a process with a version's package measures."""
    paths = os.pathsep.join((str(version), str(HERE)))
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRACEDIFF_CACHE": cache}
        for one in (["no floor, no repeat"] if way == AGAIN else []) + [way]:
            command = [sys.executable, __file__, "--way", one, "--layers", str(layers)]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="the checkout of another version")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=SIZES["layers"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to this file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measured(options.way, options.layers)))
        return
    versions = {"this version": HERE.parent, **({"the other": options.against.resolve()} if options.against else {})}
    every = [(name, way) for name in versions for way in options.ways]
    rounds = [{(name, way): child(way, versions[name], options.layers) for name, way in every} for _ in range(options.rounds)]
    if options.json:
        found = [{"version": name, "way": way, **one} for measures in rounds for (name, way), one in measures.items()]
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print("| version | way | bare, CPU s | CPU s | wall s | x bare: min / median / max | less the write, median | extra MB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, way in every:
        print(line(name, way, [one[name, way] for one in rounds]))
    last = rounds[-1]["this version", options.ways[-1]]
    sites = ", ".join(f"{count} by {method}" for method, count in last["methods"].items())
    print(f"\nThe file has {last['bytes'] / 1e6:.0f} MB. Sites by the method that measured local noise there: {sites or 'no floor'}.")
    print(f"64 MB and twice the largest parameter in float64 are {64 + 16 * last['leaf'] / 1e6:.0f} MB.")


def line(name: str, way: str, found: list[dict[str, Any]]) -> str:
    """A row of the table: one way of one version, in all rounds."""

    def median(key: str) -> float:
        return statistics.median(one[key] for one in found)

    ratios = [one["seconds"] / one["bare"] for one in found]
    spread = " / ".join(f"{value:.1f}" for value in (min(ratios), statistics.median(ratios), max(ratios)))
    less = statistics.median((one["seconds"] - one["write"]) / one["bare"] for one in found)
    cells = name, way, f"{median('bare'):.2f}", f"{median('seconds'):.2f}", f"{median('wall'):.2f}", spread, f"{less:.1f}"
    return f"| {' | '.join(cells)} | {median('extra') / 1e6:.0f} |"


if __name__ == "__main__":
    main()
