"""Memory and bytes of a record in long runs: what the writer holds, and what the file has besides the values.

    python benchmarks/long_runs.py --records 100000 1000000
    python benchmarks/long_runs.py --records 100000 --model          # a token loop of a small PyTorch model instead of the writer alone

Each number of records has a process of its own. Memory is the resident set's growth from 10,000 records on, a record, while the run
goes on, and its peak with the close. The file's overhead is its size without the values.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tracediff.trace import TraceWriter, open_trace, schema

WARM = 10_000


def memory(key: str = "VmRSS") -> int:
    """Bytes of this process that lie in memory now, or (``VmHWM``) lay there at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def written(path: Path, records: int, seen: Callable[[int], None]) -> None:
    """Records as a token loop makes them: each token three calls, each call an input (the output before) and a new output."""
    values, row = np.zeros(4, np.float32), -1
    with TraceWriter(path) as writer:
        for number in range(records // 2):
            token, layer = divmod(number, 3)
            call = f"model[{token}]/layers.{layer}[0]"
            if row >= 0:
                writer.add_again(
                    row, site=f"layers.{layer}", call=call, ordinal=token, end="input[x]", scope=f"token={token}", producer=row
                )
            values = np.full(4, number, np.float32)
            row = writer.add(values=values, site=f"layers.{layer}", call=call, ordinal=token, end="output", scope=f"token={token}")
            if layer == 2:
                writer.flush()
            seen(2 * number)


def observed(path: Path, records: int, seen: Callable[[int], None]) -> None:
    """A small model that is called token by token, each call of which has ten records."""
    import torch

    import tracediff as td

    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4))).eval()
    with torch.no_grad(), td.record(model, path):
        for number in range(records // 10):
            with td.scope("token", number):
                model(torch.full((1, 4), float(number)))
            seen(10 * number)


def measured(make: Callable[[Path, int, Callable[[int], None]], None], records: int, told: Any) -> None:
    """One run's figures."""
    start: list[int] = []
    latest = 0

    def seen(number: int) -> None:
        nonlocal latest
        if number >= WARM and not start:
            start.append(memory())
        if number % 5000 == 0:
            latest = memory()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.h5"
        began = time.perf_counter()
        make(path, records, seen)
        seconds = time.perf_counter() - began
        size, most = path.stat().st_size, memory("VmHWM")
        with open_trace(path) as trace:
            assert len(trace.records) > 0.9 * records
            stored = trace.index[trace.index["segment"] >= 0]
            values = int(np.unique(stored[["segment", "offset", "nbytes"]])["nbytes"].sum())
            told.put((len(trace.records), latest - start[0], most - start[0], size - values, seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000])
    parser.add_argument("--model", action="store_true", help="a token loop of a small PyTorch model")
    arguments = parser.parse_args()
    print(f"a row of the index: {schema.INDEX.itemsize} bytes")
    for records in arguments.records:
        context = multiprocessing.get_context("spawn")
        told = context.SimpleQueue()
        process = context.Process(target=measured, args=(observed if arguments.model else written, records, told))
        process.start()
        number, grown, peak, overhead, seconds = told.get()
        process.join()
        print(
            f"{number:,} records: {grown / (number - WARM):.0f} bytes of memory a record, {peak / (number - WARM):.0f} at most with the "
            f"close; {overhead / number:.0f} bytes of the file; {1e6 * seconds / number:.0f} us",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
