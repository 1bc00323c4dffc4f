"""What capturing costs, beside the bare forward, a raw write of the same bytes, naive h5py, and TorchLens where it is installed.

    python benchmarks/capture.py                             # PyTorch and MLX, those that are installed
    python benchmarks/capture.py torch --threads 1
    LD_PRELOAD=libopenblas.so.0 python benchmarks/capture.py mlx

Times are taken in one process, all ways in turn in every round, and each ratio is of two times of the same round. Peak memory is taken
in a process of its own for each way and round, above that of a process that runs the bare model. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tracediff.observe.options import CaptureOptions
from tracediff.observe.recording import record_run
from tracediff.trace import open_trace
from tracediff.trace.writer import TraceWriter

SIZES = {"length": 256, "vocabulary": 4096, "width": 512, "heads": 8, "inner": 1376, "layers": 12}
RATIO_TARGET, MEMORY_TARGET, MEMORY_LEAST = 1.25, 0.3, 64e6
MB = 1e6

Way = Callable[[Any, Path], None]


# -- the ways


def bare(side: Any, folder: Path) -> None:
    side.forward()


def _raw(side: Any, folder: Path, ends: Sequence[str]) -> None:
    with (folder / "raw.bin").open("wb", buffering=0) as file:

        def write(site: str, end: str, tensor: Any) -> None:
            if end in ends:
                file.write(side.snapshot(tensor).reshape(-1).view(np.uint8))

        with side.hooks(write):
            side.forward()


def raw_outputs(side: Any, folder: Path) -> None:
    _raw(side, folder, ("output",))


def raw(side: Any, folder: Path) -> None:
    _raw(side, folder, ("input", "output"))


def naive_h5py(side: Any, folder: Path) -> None:
    with h5py.File(folder / "naive.h5", "w") as file:
        number = 0

        def write(site: str, end: str, tensor: Any) -> None:
            nonlocal number
            file.create_dataset(f"{number:06d} {site or 'root'} {end}", data=side.snapshot(tensor))
            number += 1

        with side.hooks(write):
            side.forward()


def capture(side: Any, folder: Path) -> None:
    record_run(side.model, side.forward, folder / "trace.h5", options=CaptureOptions(repeat=False))


def capture_stats(side: Any, folder: Path) -> None:
    record_run(side.model, side.forward, folder / "trace.h5", options=CaptureOptions(repeat=False, save="stats"))


def parameters(side: Any, folder: Path) -> None:
    with TraceWriter(folder / "parameters.h5") as writer:
        for name, values in side.parameters():
            writer.add_param(name, values, path=name.rpartition(".")[0], kind="parameter")


def torchlens_trace(side: Any, folder: Path) -> None:
    import torch
    import torchlens

    with torch.no_grad():
        torchlens.trace(side.model, side.ids)


def torchlens_save(side: Any, folder: Path) -> None:
    import torch
    import torchlens

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchlens.trace(side.model, side.ids).save(folder / "torchlens")


WAYS: dict[str, tuple[str, Way]] = {
    "bare": ("bare forward", bare),
    "raw_outputs": ("hooks + one raw write, outputs only", raw_outputs),
    "raw": ("hooks + one raw write", raw),
    "naive_h5py": ("hooks + naive h5py", naive_h5py),
    "capture": ("tracediff", capture),
    "capture_stats": ("tracediff, save=stats", capture_stats),
    "parameters": ("parameters alone", parameters),
}
LENS: dict[str, tuple[str, Way]] = {
    "torchlens_trace": ("TorchLens, in memory", torchlens_trace),
    "torchlens_save": ("TorchLens, saved", torchlens_save),
}
WITHOUT = "without_parameters"
LABELS = {key: label for key, (label, _) in {**WAYS, **LENS}.items()} | {WITHOUT: "tracediff, parameters taken off"}


# -- what a process measures


def side_of(framework: str) -> Any:
    return importlib.import_module(f"llama_{framework}").Side(**SIZES)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A new folder for one run's files, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)


def timed(way: Way, side: Any, folder: Path) -> tuple[float, float]:
    """Seconds by the clock and of all processors; removing the files is not in them."""
    with emptied(folder) as inner:
        started, used = time.perf_counter(), time.process_time()
        way(side, inner)
        return time.perf_counter() - started, time.process_time() - used


def measure_time(framework: str, rounds: int, folder: Path) -> dict[str, Any]:
    side = side_of(framework)
    times: dict[str, list[tuple[float, float]]] = {key: [] for key in WAYS}
    order = list(WAYS)
    for turn in range(rounds + 1):
        for key in order:
            taken = timed(WAYS[key][1], side, folder)
            if turn:  # the first round warms up
                times[key].append(taken)
        order = [*order[1:], order[0]]
    if framework == "torch" and importlib.util.find_spec("torchlens"):  # last: it patches torch for good
        for key, (_, way) in LENS.items():
            times[key] = [timed(way, side, folder) for _ in range(4)][1:]
    return {"times": times, **facts(side, folder)}


def facts(side: Any, folder: Path) -> dict[str, Any]:
    """The payload, and what the trace holds of it."""
    payload = {"input": 0, "output": 0}

    def count(site: str, end: str, tensor: Any) -> None:
        payload[end] += tensor.nbytes

    with side.hooks(count):
        side.forward()
    with emptied(folder) as inner:
        capture(side, inner)
        with open_trace(inner / "trace.h5") as trace:
            rows = len(trace.records)
        stored = (inner / "trace.h5").stat().st_size
    held = sum(values.nbytes for _, values in side.parameters())
    return {
        **payload,
        "records": rows,
        "stored": stored,
        "parameters": held,
        "modules": side.count_modules(),
        "versions": side.versions,
        "threads": side.threads,
    }


def measure_memory(framework: str, key: str, folder: Path) -> dict[str, Any]:
    """The peak of this process, which does nothing else: the model twice, the second time in the given way."""
    side = side_of(framework)
    way = {**WAYS, **LENS}[key][1]
    with emptied(folder) as inner:
        side.forward()
        built = peak()
        way(side, inner)
    return {"built": built, "peak": peak()}


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# -- the tables


def child(arguments: Sequence[str], threads: int | None) -> dict[str, Any]:
    """What another process of this script measured."""
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Least, median, most."""
    return " / ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def ratios(times: dict[str, list[tuple[float, float]]], key: str, by: str, clock: int) -> list[float]:
    """The ratios of the same rounds; where the two were not run in turn, to the median."""
    above, below = [pair[clock] for pair in times[key]], [pair[clock] for pair in times[by]]
    if len(above) != len(below):
        below = [statistics.median(below)] * len(above)
    return [a / b for a, b in zip(above, below, strict=True)]


def fastest(times: dict[str, list[tuple[float, float]]], key: str) -> float:
    """The ratio to a raw write of the fastest runs of both, which a busy machine disturbs least."""
    return min(pair[0] for pair in times[key]) / min(pair[0] for pair in times["raw"])


def time_table(times: dict[str, list[tuple[float, float]]]) -> Iterator[str]:
    yield row("way", "fastest ms", "CPU ms", "x bare: min / median / max", "x raw write", "fastest x raw write", "x raw write, CPU")
    yield row("---", *["---:"] * 6)
    for key, taken in times.items():
        yield row(
            LABELS[key],
            *(f"{min(pair[clock] for pair in taken) * 1e3:.0f}" for clock in (0, 1)),
            spread(ratios(times, key, "bare", 0)),
            spread(ratios(times, key, "raw", 0)),
            f"{fastest(times, key):.2f}",
            spread(ratios(times, key, "raw", 1)),
        )


def memory_table(peaks: dict[str, list[int]], payload: int) -> Iterator[str]:
    yield row("way", "extra peak MB: min / median / max", "x outputs")
    yield row("---", "---:", "---:")
    for key in peaks:
        if key != "bare":
            extra = extra_peaks(peaks, key)
            yield row(LABELS[key], spread([value / MB for value in extra], ".0f"), spread([value / payload for value in extra]))


def extra_peaks(peaks: dict[str, list[int]], key: str) -> list[int]:
    return [own - base for own, base in zip(peaks[key], peaks["bare"], strict=True)]


def verdicts(times: dict[str, list[tuple[float, float]]], peaks: dict[str, list[int]], payload: int) -> Iterator[str]:
    for key in (WITHOUT, "capture"):
        median, best = statistics.median(ratios(times, key, "raw", 0)), fastest(times, key)
        is_met, is_either = max(median, best) <= RATIO_TARGET, min(median, best) <= RATIO_TARGET
        yield (
            f"{LABELS[key]}: {median:.2f} x hooks + one raw write in the median, {best:.2f} x in the fastest runs (target {RATIO_TARGET}): "
            f"{_met(is_met) if is_met == is_either else 'unclear, the machine was too busy'}"
        )
    if peaks:
        extra, limit = statistics.median(extra_peaks(peaks, "capture")), max(MEMORY_TARGET * payload, MEMORY_LEAST)
        yield f"extra peak memory: {extra / MB:.0f} MB (target {limit / MB:.0f}): {_met(extra <= limit)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"


def report(framework: str, rounds: int, memory_rounds: int, threads: int | None, folder: Path) -> None:
    found = child(["--measure", "time", framework, "--rounds", str(rounds), "--folder", str(folder)], threads)
    found["threads"] = threads or found["threads"] or os.environ.get("OMP_NUM_THREADS", "the framework's choice")
    times = {key: [tuple(pair) for pair in taken] for key, taken in found["times"].items()}
    times[WITHOUT] = [tuple(a - b for a, b in zip(*pair, strict=True)) for pair in zip(times["capture"], times["parameters"], strict=True)]
    keys = ["bare", "raw", "naive_h5py", "capture", "capture_stats"]
    keys += [key for key in LENS if key in times]
    peaks: dict[str, list[int]] = {}
    for _ in range(memory_rounds):
        for key in keys:
            one = child(["--measure", key, framework, "--folder", str(folder)], threads)
            peaks.setdefault(key, []).append(one["peak"])
    for line in lines(framework, found, times, peaks, rounds):
        print(line)


def lines(framework: str, found: dict[str, Any], times: dict[str, Any], peaks: dict[str, list[int]], rounds: int) -> Iterator[str]:
    yield f"\n### {framework}\n"
    yield (
        f"{found['versions']}, h5py {h5py.__version__}, numpy {np.__version__}, xxhash {version('xxhash')}, "
        f"Python {platform.python_version()}; {platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"threads: {found['threads']}; {rounds} rounds.  "
    )
    yield (
        f"{found['modules']} modules; outputs {found['output'] / MB:.0f} MB, inputs {found['input'] / MB:.0f} MB; "
        f"the trace: {found['records']} records, {found['stored'] / MB:.0f} MB.  "
    )
    once = min(pair[0] for pair in times["parameters"]) * 1e3
    rate = once / found["parameters"] * 1e9
    yield f"Parameters, fingerprinted before the run: {found['parameters'] / MB:.0f} MB in {once:.0f} ms, {rate:.0f} ms a GB (fastest).\n"
    yield from time_table(times)
    if peaks:
        yield ""
        yield from memory_table(peaks, found["output"])
    yield ""
    yield from (f"- {line}" for line in verdicts(times, peaks, found["output"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", nargs="*", choices=["torch", "mlx"], help="both where installed, unless named")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of times (11)")
    parser.add_argument("--memory-rounds", type=int, default=5, help="rounds of peaks, 0 for none (5)")
    parser.add_argument("--threads", type=int, help="threads of the framework (its own choice)")
    parser.add_argument("--folder", type=Path, help="where files are written; a local disk (the system's temporary folder)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="capture-"))
    try:
        for framework in options.framework or ["torch", "mlx"]:
            if options.measure == "time":
                print(json.dumps(measure_time(framework, options.rounds, folder)))
            elif options.measure:
                print(json.dumps(measure_memory(framework, options.measure, folder)))
            elif importlib.util.find_spec(framework):
                report(framework, options.rounds, options.memory_rounds, options.threads, folder)
            else:
                print(f"{framework} is not installed: left out", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
