"""How fast two traces are compared: tracediff, a naive NumPy loop with the same metrics, and h5diff where it is installed.

    python benchmarks/diff.py [--mb 256] [--rounds 5]

All three read the same two files, in turns within one run; the table gives the median of the rounds. The values are float32 with the
noise of another order of summation, once in large tensors and once in small ones; then with additive masks; then equal throughout.
On a machine that does other work the processor's seconds tell more than the clock's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: BLAS threads that wait for each other measure the machine's other work

import argparse
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tracediff.metrics import compare
from tracediff.trace import Trace, TraceWriter, open_trace

LARGE, SMALL = 4_000_000, 20_000  # elements a tensor
RTOL = 1e-4


def naive_metrics(r: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """What `tracediff.metrics` measures, by whole-array NumPy in float64."""
    a, b = r.astype(np.float64), p.astype(np.float64)
    a, b = np.maximum(a, -1e4), np.maximum(b, -1e4)
    nan_a, nan_b = np.isnan(a), np.isnan(b)
    lone = (np.isinf(a) | np.isinf(b)) & (a != b) | (nan_a != nan_b)
    difference = np.where(lone | nan_a, 0.0, b - a)
    error = np.abs(difference)
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    steps_a, steps_b = (x.view(np.int32).astype(np.int64) for x in (r, p))
    steps_a, steps_b = (np.where(x < 0, -(x & 0x7FFFFFFF), x) for x in (steps_a, steps_b))
    return {
        "max_abs": error.max(),
        "argmax": np.unravel_index(error.argmax(), error.shape),
        "mean_abs": error.mean(),
        "rms": np.sqrt((difference**2).mean()),
        "rel_l2": np.linalg.norm(difference) / norm_a,
        "cosine": (a * b).sum() / (norm_a * norm_b),
        "max_ulp": np.abs(steps_a - steps_b).max(),
        "mismatched": np.count_nonzero(error > RTOL * (np.abs(a) + np.sqrt((a * a).mean()))),
        "nan": (nan_a.sum(), nan_b.sum(), lone.sum()),
    }


def naive(reference: Trace, port: Trace) -> float:
    """The worst relative L2, by a loop over the datasets of both files."""
    worst = 0.0
    with h5py.File(reference.path) as one, h5py.File(port.path) as other:
        for left, right in zip(reference.records, port.records, strict=True):
            r, p = (_values(file, record) for file, record in ((one, left), (other, right)))
            worst = max(worst, float(naive_metrics(r, p)["rel_l2"]))
    return worst


def _values(file: h5py.File, record: Any) -> np.ndarray:
    """A record's values by plain h5py; a small one is a slice of a shared segment."""
    segment = file[f"tensors/t{int(record._cell('segment')):06d}"]
    if segment.dtype == np.float32:
        return np.asarray(segment[...]).reshape(record.shape)
    start = int(record._cell("offset"))
    return np.asarray(segment[start : start + record.nbytes]).view(np.float32).reshape(record.shape)


def ours(reference: Trace, port: Trace) -> float:
    """The worst relative L2, by tracediff."""
    return max(compare(left, right).rel_l2 for left, right in zip(reference.records, port.records, strict=True))


def h5diff(reference: Trace, port: Trace) -> float:
    subprocess.run(["h5diff", f"--delta={RTOL}", str(reference.path), str(port.path), "/tensors"], stdout=subprocess.DEVNULL, check=False)
    return 0.0


def write_pair(
    folder: Path, *, megabytes: int, size: int, change: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[Trace, Trace]:
    """Two traces of so many tensors, which ``change`` makes of random ones."""
    generator = np.random.default_rng(0)
    count = max(1, megabytes * 1_000_000 // (4 * size))
    paths = [folder / f"{side}.h5" for side in ("reference", "port")]
    with TraceWriter(paths[0], force=True) as left, TraceWriter(paths[1], force=True) as right:
        for number in range(count):
            pair = change(generator.standard_normal(size, np.float32))
            for writer, values in zip((left, right), pair, strict=True):
                writer.add(site=f"layers.{number}", call=f"layers.{number}[0]", ordinal=0, end="output", values=values)
    return open_trace(paths[0]), open_trace(paths[1])


def noisy(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noise = np.random.default_rng(1).standard_normal(values.size, np.float32)
    return values, (values * (1 + np.float32(3e-7) * noise)).astype(np.float32)


def masked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r, p = noisy(values)
    r[::3], p[::3] = -np.inf, -1e10
    return r, p


def equal(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values, values.copy()


Taken = tuple[float, float]  # seconds on the clock, and of the processor


def measure(contestants: dict[str, Callable[[Trace, Trace], float]], pair: tuple[Trace, Trace], rounds: int) -> dict[str, Taken]:
    """The median time of each, taken in turns; a first round warms the page cache and is not counted."""
    taken: dict[str, list[Taken]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start, busy = time.perf_counter(), _processor()
            run(*pair)
            if turn:
                taken[name].append((time.perf_counter() - start, _processor() - busy))
    return {name: (statistics.median(one for one, _ in times), statistics.median(one for _, one in times)) for name, times in taken.items()}


def _processor() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=256, help="megabytes a side")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    contestants: dict[str, Callable[[Trace, Trace], float]] = {"naive NumPy": naive, "tracediff": ours}
    if shutil.which("h5diff"):
        contestants["h5diff"] = h5diff
    cases = {
        f"noise, {LARGE:,} values a tensor": (LARGE, noisy),
        f"noise, {SMALL:,} values a tensor": (SMALL, noisy),
        f"masks, {LARGE:,} values a tensor": (LARGE, masked),
        "equal bits": (LARGE, equal),
    }
    print(f"{options.mb} MB a side, median of {options.rounds} rounds\n")
    print(f"{'case':<34}{'':<14}{'seconds':>9}{'cpu-s':>9}{'MB/s a side':>13}{'x naive':>9}{'in cpu-s':>10}")
    for case, (size, change) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            pair = write_pair(Path(folder), megabytes=options.mb, size=size, change=change)
            taken = measure(contestants, pair, options.rounds)
            naive_seconds, naive_busy = taken["naive NumPy"]
            for place, (name, (seconds, busy)) in enumerate(taken.items()):
                ratios = f"{naive_seconds / seconds:>9.1f}{naive_busy / max(busy, 1e-6):>10.1f}"
                print(f"{case if not place else '':<34}{name:<14}{seconds:>9.3f}{busy:>9.3f}{options.mb / seconds:>13.0f}{ratios}")


if __name__ == "__main__":
    main()
