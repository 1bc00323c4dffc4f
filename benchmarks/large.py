"""Two large traces, made and not run: compared in this process, by workers and by h5diff, and bisected. Memory and bytes are counted.

    python benchmarks/large.py [--gb 2] [--jobs 2] [--keep FOLDER]

Each way is a process of its own, so that its peak of memory is its own. The two traces are chains of layers, float32 with the noise of
another order of summation; from one layer on the port is off by a thousandth.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tracediff as td
from tracediff.engines import of_processes
from tracediff.trace import TraceWriter

ELEMENTS = 2_000_000
"""Values of a tensor: 8 MB."""


def write(path: Path, tensors: int, *, noise: float, wrong_from: int) -> None:
    """A chain of layers, each with its input and its output."""
    base = np.random.default_rng(0).standard_normal(ELEMENTS).astype("f4")
    noisy = np.random.default_rng(1).standard_normal(ELEMENTS).astype("f4") * np.float32(noise)
    with TraceWriter(path, force=True, meta={"impl": path.stem}) as writer:
        made = -1
        for layer in range(tensors):
            row: dict[str, Any] = {"site": f"layers.{layer}", "call": f"layers.{layer}[0]", "ordinal": 0}
            if made >= 0:
                writer.add_again(made, end="input[0]", producer=made, producer_how=1, **row)
            scale = np.float32((1 + layer / 7) * (1.001 if layer >= wrong_from else 1))
            made = writer.add(end="output", values=np.roll(base, 1009 * layer) * (1 + np.roll(noisy, 31 * layer)) * scale, **row)


def way(name: str, folder: Path, jobs: int) -> None:
    """One way, in this process: prints what it took as JSON."""
    files = [folder / "ref.h5", folder / "port.h5"]
    started, found = time.perf_counter(), {}
    if name == "h5diff":
        subprocess.run(["h5diff", "-q", "-c", "--use-system-epsilon", *map(str, files), "/tensors"], check=False, stdout=subprocess.DEVNULL)
    else:
        executor = of_processes(jobs) if name == f"diff, {jobs} processes" else None
        report = (td.bisect if name == "bisect" else td.diff)(*files, executor=executor)
        total = sum(file.stat().st_size for file in files)
        found = {"first": report.first.site.call if report.first else "", "read": report.coverage.bytes_read / total}
    seconds = time.perf_counter() - started
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in spent)
    peak = max(one.ru_maxrss for one in spent) / 1024
    print(json.dumps({"way": name, "seconds": seconds, "cpu": cpu, "peak_mb": peak, **found}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0, help="bytes of each trace, in GB [2]")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the parallel diff [2]")
    parser.add_argument("--keep", type=Path, help="a folder for the two traces, which are used again if they are there")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way(options.way, options.keep, options.jobs)
        return 0
    folder = options.keep or Path(tempfile.mkdtemp(prefix="large-"))
    folder.mkdir(exist_ok=True)
    tensors = max(2, int(options.gb * 1e9 / (4 * ELEMENTS)))
    for name, noise in (("ref", 0.0), ("port", 1e-7)):
        if not (folder / f"{name}.h5").exists():
            write(folder / f"{name}.h5", tensors, noise=noise, wrong_from=tensors if name == "ref" else 2 * tensors // 3)
    size = (folder / "ref.h5").stat().st_size
    print(f"{size / 1e9:.2f} GB a side, {tensors} tensors\n")
    ways = ["diff, 1 process", f"diff, {options.jobs} processes", "bisect", *(["h5diff"] if shutil.which("h5diff") else [])]
    print(f"{'way':20s} {'seconds':>8s} {'cpu-s':>8s} {'peak MB':>8s} {'bytes read':>10s}  first divergence")
    for name in ways:
        command = [sys.executable, "-W", "ignore", __file__, "--way", name, "--keep", str(folder), "--jobs", str(options.jobs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        one = json.loads(done.stdout.splitlines()[-1])
        read = f"{100 * one['read']:.2f} %" if "read" in one else ""
        print(f"{name:20s} {one['seconds']:8.1f} {one['cpu']:8.1f} {one['peak_mb']:8.0f} {read:>10s}  {one.get('first', '')}", flush=True)
    if options.keep is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
