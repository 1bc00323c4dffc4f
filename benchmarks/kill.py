"""Kills a process that records a trace at random moments, and counts what could be read afterwards.

    python benchmarks/kill.py --kills 100
    python benchmarks/kill.py --kills 10000 --seconds 600

Each child writes the same records (large, small, repeated, texts, parameters), says after each `flush` how many it was promised, and
is killed with SIGKILL somewhere between opening the file and closing it. Then the trace is opened and every record in it compared
with what was written; every other one is recovered to an ordinary file first. Exit status 1 if a promised record was lost or wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracediff.errors import TraceFileError
from tracediff.trace import Trace, TraceWriter, open_trace, recover

RECORDS = 400
FLUSH_EVERY = 7


def values(row: int) -> NDArray[np.float32]:
    """What the child records in this row: mostly small, some large, every tenth what a row before it was."""
    row -= row % 10 == 9
    size = 20_000 if row % 5 == 0 else 50
    return np.arange(row, row + 3 * size, dtype=np.float32).reshape(size, 3) * np.float32(row + 0.5)


def write(path: Path, said: int) -> None:
    """The child: records, and says through a pipe what is promised."""
    with TraceWriter(path, meta={"impl": "numpy"}) as writer:
        writer.add_param("enc.weight", values(0), path="enc", kind="parameter", store=True)
        for row in range(RECORDS):
            if row % 50 == 25:
                writer.add_text(text=f"text {row}", site="enc#text", call=f"enc[{row}]", ordinal=row, end="value")
            else:
                writer.add(site=f"enc.{row % 13}", call=f"enc[{row}]", ordinal=row, end="output", values=values(row))
            if row % FLUSH_EVERY == 0:
                writer.flush()
                os.write(said, (row + 1).to_bytes(4, "little"))
    os.write(said, b"done")


def kill_after(path: Path, delay: float) -> tuple[int, bool]:
    """Starts a child and kills it after so many seconds; how many records it was promised, and whether it had ended by itself."""
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hears)
        write(path, says)
        os._exit(0)
    os.close(says)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(hears, "rb") as pipe:
        heard = pipe.read()
    done = heard.endswith(b"done")
    counts = np.frombuffer(heard[: len(heard) - len(heard) % 4 - 4 * done], "<u4")
    return (RECORDS if done else int(counts[-1]) if counts.size else 0), done


class LostError(Exception):
    """A promised record is not there, or not what was written."""


def verify(trace: Trace, promised: int) -> None:
    """Compares every record in a trace with what was written."""
    if len(trace.records) < promised:
        raise LostError(f"{promised} records were promised, {len(trace.records)} are there")
    for row, record in enumerate(trace.records):
        is_text = row % 50 == 25
        same = record.text() == f"text {row}" if is_text else np.array_equal(record.read(), values(row))
        if not same or record.call != f"enc[{row}]":
            raise LostError(f"row {row} is not what was written: {record!r}")
    if len(trace.records) and not np.array_equal(trace.params["enc.weight"].read(), values(0)):
        raise LostError("the parameter is not what was written")


def judge(path: Path, promised: int, done: bool, *, make_permanent: bool) -> str:
    """What became of one trace; LostError where a promised record was lost or is wrong."""
    try:
        if make_permanent:
            recover(path)
        with open_trace(path) as trace:
            verify(trace, promised)
            if done and not trace.complete:
                raise LostError("the run had come to its end, and the trace does not say so")
            return "recovered" if make_permanent and not done else "read through its journal" if trace.was_killed else "closed"
    except TraceFileError as error:
        if promised:
            raise LostError(f"{promised} records were promised: {error}") from error
        return "no record yet"


def lasting(path: Path) -> float:
    """Seconds that an undisturbed child needs."""
    started = time.perf_counter()
    hears, says = os.pipe()
    child = os.fork()
    if child == 0:
        write(path, says)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(hears)
    os.close(says)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further child is started")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    outcomes: Counter[str] = Counter()
    records = []
    with tempfile.TemporaryDirectory() as folder:
        whole = min(lasting(Path(folder) / name) for name in ("first.h5", "second.h5"))
        until = time.monotonic() + arguments.seconds
        for number in range(arguments.kills):
            if time.monotonic() > until:
                break
            path = Path(folder) / f"{number}.h5"
            promised, done = kill_after(path, chance.uniform(0, whole))
            records.append(promised)
            try:
                outcomes[judge(path, promised, done, make_permanent=number % 2 == 1)] += 1
            except LostError as error:
                outcomes["LOST"] += 1
                print(f"kill {number}: {error}", file=sys.stderr)
            for left in Path(folder).glob(f"{number}.h5*"):
                left.unlink()
    print(f"{len(records)} kills within {whole:.2f} s; records promised when killed: median {np.median(records):.0f}, of {RECORDS}")
    for outcome, count in outcomes.most_common():
        print(f"{count:5d}  {outcome}")
    return 1 if outcomes["LOST"] else 0


if __name__ == "__main__":
    sys.exit(main())
