"""Kills a process that writes a trace at random moments, and counts what could be read afterwards.

    python benchmarks/kill.py --kills 100
    TMPDIR=/dev/shm python benchmarks/kill.py --kills 10000 --seconds 1800

The deeds take turns:

- *record*: a run of records (large, small, repeated, texts, a parameter) is written, and says after each `flush` how many are promised;
- *measure*: the noise floor and an item of meta are added to a closed trace, as a capture does after its run;
- *recover*: the trace of a killed writer is made an ordinary file, in its place;
- *convert*: a trace is made arrays, and arrays a trace.

A process forked from this one is killed with SIGKILL somewhere between the beginning and the end of its deed. Then the trace is opened
and every record in it compared with what was written; every other one that was killed is recovered to an ordinary file first. Of a
conversion the new file is there whole or not at all. Exit status 1 if a promised record was lost or wrong, or a file is torn.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tracediff.errors import TraceFileError
from tracediff.trace import Trace, TraceWriter, conversion, open_trace, recover, schema
from tracediff.trace.amend import amend
from tracediff.trace.journal import journal_of

RECORDS = 40
FLUSH_EVERY = 7
TEXT_EVERY, TEXT_AT = 50, 25
BLIND = 5
"""Of so many first tries the shortest says how long a deed takes."""


class LostError(Exception):
    """A promised record is not there, or not what was written."""


@cache
def values(row: int) -> NDArray[np.float32]:
    """What is recorded in this row: mostly small, some large, every tenth what a row before it was."""
    row -= row % 10 == 9
    size = 6_000 if row % 5 == 0 else 50
    return np.arange(row, row + 3 * size, dtype=np.float32).reshape(size, 3) * np.float32(row + 0.5)


def write(path: Path, told: Callable[[int], object], *, leave: bool = False) -> None:
    """Records, and tells how many are promised; ``leave``: as a killed writer leaves them."""
    writer = TraceWriter(path, meta={"impl": "numpy"})
    writer.add_param("enc.weight", values(0), path="enc", kind="parameter", store=True)
    for row in range(RECORDS):
        if row % TEXT_EVERY == TEXT_AT:
            writer.add_text(text=f"text {row}", site="enc#text", call=f"enc[{row}]", ordinal=row, end="value")
        else:
            writer.add(site=f"enc.{row % 13}", call=f"enc[{row}]", ordinal=row, end="output", values=values(row))
        if row % FLUSH_EVERY == 0:
            writer.flush()
            told(row + 1)
    if leave:
        writer.flush()
        writer._abandon()
    else:
        writer.close()


def floor() -> NDArray[np.void]:
    """The noise floor that is added."""
    table = np.zeros(RECORDS, schema.FLOOR)
    table["noise"] = np.arange(RECORDS)
    return table


@dataclass(frozen=True)
class Deed:
    """What is killed: ``do`` works on copies of the corpus's files ``source``; ``judge`` says what became of them."""

    source: tuple[str, ...]
    do: Callable[[Path, Callable[[int], object]], object]
    judge: Callable[[Path, int, bool, bool], str]


def corpus(folder: Path) -> None:
    """The files that deeds begin with."""
    write(folder / "closed.h5", lambda _: None)
    write(folder / "killed.h5", lambda _: None, leave=True)
    np.savez(folder / "arrays.npz", **{f"enc.{row}": values(row) for row in range(0, RECORDS, 4)})


def verify(trace: Trace, promised: int) -> None:
    """Compares every record in a trace with what was written."""
    if len(trace.records) < promised:
        raise LostError(f"{promised} records were promised, {len(trace.records)} are there")
    for row, record in enumerate(trace.records):
        is_text = row % TEXT_EVERY == TEXT_AT
        same = record.text() == f"text {row}" if is_text else np.array_equal(record.read(), values(row))
        if not same or record.call != f"enc[{row}]":
            raise LostError(f"row {row} is not what was written: {record!r}")
    if len(trace.records) and not np.array_equal(trace.params["enc.weight"].read(), values(0)):
        raise LostError("the parameter is not what was written")


def judge_trace(path: Path, promised: int, done: bool, make_permanent: bool) -> str:
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


def judge_measured(path: Path, promised: int, done: bool, make_permanent: bool) -> str:
    """The trace is as before, or has its floor and its meta, both."""
    state = judge_trace(path, RECORDS, True, make_permanent)
    with open_trace(path) as trace:
        parts = trace.floor is not None, "repeats" in trace.meta
        if len(set(parts)) > 1 or (done and not all(parts)) or (all(parts) and not np.array_equal(trace.floor, floor())):
            raise LostError(f"the floor is there: {parts[0]}; the meta: {parts[1]}; all was said to be done: {done}")
    return f"{state}, with the floor" if all(parts) else f"{state}, as before"


def judge_recovered(path: Path, promised: int, done: bool, make_permanent: bool) -> str:
    """Nothing is lost, and what is done is closed."""
    state = judge_trace(path, RECORDS, False, make_permanent)
    if done and journal_of(path).exists():
        raise LostError("its journal is still there")
    return state


def convert(path: Path, told: Callable[[int], object]) -> None:
    """A trace to arrays, and arrays to a trace."""
    conversion.convert(path, path.with_suffix(".npz"))
    told(1)
    conversion.convert(path.parent / "arrays.npz", path.with_name(f"{path.stem}-made.h5"))


def judge_converted(path: Path, promised: int, done: bool, make_permanent: bool) -> str:
    """Each new file is there whole, or not at all."""
    judge_trace(path, RECORDS, True, False)
    arrays, made = path.with_suffix(".npz"), path.with_name(f"{path.stem}-made.h5")
    if arrays.exists() < bool(promised) or made.exists() < done:
        raise LostError("a file that was made is not there")
    if arrays.exists():
        with np.load(arrays) as found:
            if not all(np.array_equal(found[f"enc.{row % 13}/{f'{row}/' * bool(row)}output"], values(row)) for row in range(0, RECORDS, 4)):
                raise LostError(f"{arrays.name} is not what the trace holds")
    if made.exists():
        with open_trace(made) as trace:
            if not all(np.array_equal(record.read(), values(4 * row)) for row, record in enumerate(trace.records)):
                raise LostError(f"{made.name} is not what the arrays hold")
    return f"{arrays.exists() + made.exists()} of 2 files made"


DEEDS = {
    "record": Deed((), write, judge_trace),
    "measure": Deed(
        ("closed.h5",),
        lambda path, _: amend(path, meta={"repeats": True}, **{schema.FLOOR_TABLE: floor()}),
        judge_measured,
    ),
    "recover": Deed(("killed.h5", "killed.h5.journal"), lambda path, _: recover(path), judge_recovered),
    "convert": Deed(("closed.h5",), convert, judge_converted),
}
"""What is killed, by name."""


def killed(deed: Deed, path: Path, delay: float) -> tuple[int, bool, float]:
    """Does a deed in a process that is killed after so many seconds.

    Returns how many records it promised, whether it came to its end, and its seconds.
    """
    hears, says = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.close(hears)
            deed.do(path, lambda promised: os.write(says, promised.to_bytes(4, "little")))
            os.write(says, b"done")
        except BaseException:  # noqa: BLE001 - the process ends here
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(says)
    if delay < float("inf"):
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seconds = time.perf_counter() - began
    with os.fdopen(hears, "rb") as pipe:
        heard = pipe.read()
    done = heard.endswith(b"done")
    counts = np.frombuffer(heard[: len(heard) - len(heard) % 4 - 4 * done], "<u4")
    return int(counts[-1]) if counts.size else 0, done, seconds


def tried(deed: Deed, folder: Path, number: int, delay: float) -> tuple[str, float]:
    """How one kill ended, and the seconds until then."""
    path = folder / f"{number}.h5"
    for name in deed.source:
        shutil.copy(folder / name, folder / f"{number}{name[name.index('.') :]}")
    try:
        promised, done, seconds = killed(deed, path, delay)
        try:
            return deed.judge(path, promised, done, number % 2 == 1) + (", to its end" if done else ""), seconds
        except LostError as error:
            print(f"kill {number}: {error}", file=sys.stderr)
            return "LOST", seconds
    finally:
        for left in (*folder.glob(f"{number}.*"), *folder.glob(f"{number}-*"), *folder.glob(f".{number}*")):
            left.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deeds", nargs="+", choices=DEEDS, default=list(DEEDS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further child is started")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as text, suppress(KeyboardInterrupt):
        folder = Path(text)
        corpus(folder)
        for name in arguments.deeds:
            for number in range(BLIND):
                assert tried(DEEDS[name], folder, number, float("inf"))[0] != "LOST"
        lasting = {name: min(tried(DEEDS[name], folder, number, float("inf"))[1] for number in range(BLIND)) for name in arguments.deeds}
        until = time.monotonic() + arguments.seconds
        for number in range(arguments.kills):
            if time.monotonic() > until:
                break
            name = chance.choice(arguments.deeds)
            # Half of the kills within the shortest time, half within three times that: a busy machine is slower.
            most = lasting[name] * chance.choice((1, 3))
            outcomes[name, tried(DEEDS[name], folder, number, chance.uniform(0, most))[0]] += 1
    print(f"{outcomes.total():,} kills; undisturbed " + ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in lasting.items()))
    for (name, outcome), count in sorted(outcomes.items()):
        print(f"{count:7,}  {name}: {outcome}")
    return 1 if any(outcome == "LOST" for _, outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
