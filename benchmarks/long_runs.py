"""Memory and bytes of a record in long runs: what the writer holds, and what the file has besides the values.

    python benchmarks/long_runs.py --records 100000 1000000
    python benchmarks/long_runs.py --records 1000000 --pair          # and a second trace: both opened, and bisected
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


def written(path: Path, records: int, seen: Callable[[int], None], *, wrong_from: float = 1.0) -> None:
    """Records as a token loop makes them: each token three calls, each call an input (the output before) and a new output.

    The outputs differ from a share of the run on, ``wrong_from``.
    """
    values, row = np.zeros(4, np.float32), -1
    with TraceWriter(path) as writer:
        for number in range(records // 2):
            token, layer = divmod(number, 3)
            call = f"model[{token}]/layers.{layer}[0]"
            if row >= 0:
                writer.add_again(
                    row, site=f"layers.{layer}", call=call, ordinal=token, end="input[x]", scope=f"token={token}", producer=row
                )
            values = np.full(4, number * (1.5 if 2 * number >= wrong_from * records else 1.0), np.float32)
            row = writer.add(values=values, site=f"layers.{layer}", call=call, ordinal=token, end="output", scope=f"token={token}")
            if layer == 2:
                writer.flush()
            seen(2 * number)


def faulty(path: Path, records: int, seen: Callable[[int], None]) -> None:
    """As `written`, with other outputs from three quarters of the run on."""
    written(path, records, seen, wrong_from=0.75)


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


def measured(make: Callable[[Path, int, Callable[[int], None]], None], records: int, path: Path, told: Any) -> None:
    """One run's figures: memory a record while it goes on and at most, bytes of the file a record besides the values, microseconds."""
    start: list[int] = []
    latest = 0

    def seen(number: int) -> None:
        nonlocal latest
        if number >= WARM and not start:
            start.append(memory())
        if number % 5000 == 0:
            latest = memory()

    began, worked = time.perf_counter(), time.process_time()
    make(path, records, seen)
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    size, most = path.stat().st_size, memory("VmHWM")
    with open_trace(path) as trace:
        number = len(trace.records)
        assert number > 0.9 * records
        stored = trace.index[trace.index["segment"] >= 0]
        values = int(np.unique(stored[["segment", "offset", "nbytes"]])["nbytes"].sum())
    more = number - WARM
    told.put(
        f"{(latest - start[0]) / more:.0f} bytes of memory a record, {(most - start[0]) / more:.0f} at most with the close; "
        f"{(size - values) / number:.0f} bytes of the file; {1e6 * seconds / number:.0f} us, {1e6 * worked / number:.0f} of CPU"
    )


def read(what: Callable[[Path, Path], str], records: int, reference: Path, port: Path, told: Any) -> None:
    """Memory and CPU time a record of what is done with finished traces."""
    import tracediff.api  # noqa: F401 - loaded before

    before, worked = memory(), time.process_time()
    said = what(reference, port)
    worked = time.process_time() - worked
    told.put(f"{said}: {(memory('VmHWM') - before) / records:.0f} bytes of memory a record at most, {1e6 * worked / records:.0f} us of CPU")


def opened(reference: Path, port: Path) -> str:
    with open_trace(reference) as trace:
        return f"opened, {len(trace.records):,} records"


def bisected(reference: Path, port: Path) -> str:
    import tracediff as td

    report = td.bisect(reference, port)
    return f"bisected: {report.verdict}, first {report.first.site if report.first else None}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100_000])
    parser.add_argument("--model", action="store_true", help="a token loop of a small PyTorch model")
    parser.add_argument("--pair", action="store_true", help="besides: the trace opened, and bisected with a second one")
    arguments = parser.parse_args()
    print(f"a row of the index: {schema.INDEX.itemsize} bytes")
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            reference, port = Path(folder) / "reference.h5", Path(folder) / "port.h5"
            print(f"{records:,} records: {alone(measured, observed if arguments.model else written, records, reference)}", flush=True)
            if arguments.pair:
                alone(measured, observed if arguments.model else faulty, records, port)
                for what in (opened, bisected):
                    print(f"  {alone(read, what, records, reference, port)}", flush=True)
    return 0


def alone(do: Callable[..., None], *given: Any) -> str:
    """What a function tells in a process of its own."""
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=do, args=(*given, told))
    process.start()
    process.join()
    return str(told.get())


if __name__ == "__main__":
    sys.exit(main())
