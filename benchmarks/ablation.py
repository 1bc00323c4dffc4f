"""What each number and each pass of tracediff is worth: how many golden answers change when it is another one, or is left out.

    python -m benchmarks.ablation gpt unet --traces FOLDER --estimate              # how long all of it would take on these pairs
    python -m benchmarks.ablation gpt unet --traces FOLDER --only alignment.worth_pairing
    python -m benchmarks.ablation --traces FOLDER --only alignment causes --json ablation.json

Numbers are the fields of each ``tracediff.PACKAGE.thresholds.THRESHOLDS``. Each is tried as 0, as infinity (a float), halved and doubled.
Passes are the elements of `PASSES`; each is left out by itself. Traces are recorded once (`python -m benchmarks.golden`), then every
variant answers the same pairs in worker processes. A number that a pair's answers never read is not tried there. It only reports.

*verdict, divergences, causes, weights, pairs* count the answers that change so; *error* those that fail or take ten times as long.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import tracediff
from benchmarks import results
from benchmarks.golden.__main__ import GROUPS, chosen
from benchmarks.golden.answers import Answer, answer
from benchmarks.golden.measure import runs_of
from tracediff.thresholds import changed

PASSES = (
    ("tracediff.alignment.voices", "VOICES"),
    ("tracediff.alignment.records", "PASSES"),
    ("tracediff.alignment.layouts", "CASCADE"),
    ("tracediff.alignment.layout_evidence", "SOURCES"),
    ("tracediff.alignment.layout_ties", "SOURCES"),
    ("tracediff.alignment.arguments", "INPUT_PASSES"),
    ("tracediff.alignment.functions", "EVIDENCE"),
    ("tracediff.alignment.functions", "TERMS"),
    ("tracediff.parameters.pairing", "STEPS"),
    ("tracediff.parameters.findings", "DETECTORS"),
    ("tracediff.causes.from_tensors", "DETECTORS"),
)
"""Tuples of passes, each looked up when it runs: a module and a name in it."""
KINDS = ("verdict", "divergences", "causes", "weights", "pairs", "error")
PAIRS = ["gpt", "unet", "conformer"]
LONGER, LEAST_LIMIT = 10, 30.0
"""An answer may take so many times as long as without a change, or so many seconds, before it counts as an error."""
Pair = tuple[str, str, Path | None]


@dataclass(frozen=True)
class Variant:
    """One thing that is otherwise: a number of a table with another ``value``, or a pass of a tuple left out (``index``)."""

    target: str
    what: str
    module: str
    name: str
    value: float | None = None
    index: int | None = None

    @contextmanager
    def made(self) -> Iterator[None]:
        """It is otherwise inside the block, and afterwards what it was, whatever happened."""
        module = importlib.import_module(self.module)
        if self.index is None:
            with changed(module.THRESHOLDS, self.name, self.value):
                yield
        else:
            with left_out(module, self.name, self.index):
                yield


@contextmanager
def left_out(module: Any, name: str, index: int) -> Iterator[None]:
    """One pass of the tuple of this name is not there, in the module and wherever the tuple was imported to."""
    passes = getattr(module, name)
    holders = [one for one in list(sys.modules.values()) if getattr(one, "__dict__", {}).get(name) is passes]
    try:
        for one in holders:
            setattr(one, name, passes[:index] + passes[index + 1 :])
        yield
    finally:
        for one in holders:
            setattr(one, name, passes)


# -- what there is to try ------------------------------------------------------------------------------------------------------------------


def variants(only: Sequence[str] = ()) -> Iterator[Variant]:
    """Every variant whose target is one of these names, or begins with one and a dot; all of them without. Says what is left out."""
    found = [*(one for table in tables() for one in of_table(*table)), *of_passes()]
    yield from (one for one in found if not only or any(f"{one.target}.".startswith(f"{name}.") for name in only))


def tables() -> Iterator[tuple[str, str, Any]]:
    """The tables of thresholds: the package's name, its module, the table."""
    for package in pkgutil.iter_modules(tracediff.__path__):
        name = f"tracediff.{package.name}.thresholds"
        if package.ispkg and importlib.util.find_spec(name):
            yield package.name, name, importlib.import_module(name).THRESHOLDS


def of_table(package: str, module: str, table: Any) -> Iterator[Variant]:
    """The variants of every number of a table."""
    for field in fields(table):
        value = getattr(table, field.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            note(f"{package}.{field.name} is no number, and is left out")
            continue
        for what, other in alternatives(value):
            yield Variant(f"{package}.{field.name}", what, module, field.name, value=other)


def alternatives(value: float) -> Iterator[tuple[str, float]]:
    """Zero, infinity (of a float), half and double of a number, as far as they differ from it."""
    is_whole = isinstance(value, int)
    tried = {"zero": 0 if is_whole else 0.0, "halved": value // 2 if is_whole else value / 2, "doubled": value * 2}
    if not is_whole:
        tried["infinite"] = float("inf")
    seen = {value}
    for what, other in tried.items():
        if other not in seen:
            seen.add(other)
            yield what, other


def of_passes() -> Iterator[Variant]:
    """Each pass of each tuple, left out."""
    for module, name in PASSES:
        try:
            passes = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            note(f"{module}.{name} is not there, and is left out")
            continue
        labels = [label(one) for one in passes]
        for index, text in enumerate(labels):
            unique = text if labels.count(text) == 1 else f"{text}_{labels[: index + 1].count(text)}"
            yield Variant(f"{module.removeprefix('tracediff.')}.{unique}", "left out", module, name, index=index)


def label(one: Any) -> str:
    """What a pass is called: its own name, or of a function its name, after its module where that says no more than what it does."""
    text = str(getattr(one, "name", "") or getattr(one, "__name__", one)).replace(" ", "_")
    return str(one.__module__).rpartition(".")[2] if text == "detect" else text


# -- answering -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Baseline:
    """The answers of one pair as things are, the seconds of each, and the numbers that were read, as (module, name)."""

    answers: Mapping[str, Answer]
    seconds: Mapping[str, float]
    read: frozenset[tuple[str, str]]


def baseline(pair: Pair, folder: Path) -> Baseline:
    """The answers of a pair without a change; its traces are recorded first, unless the folder has them."""
    answers, seconds, read = {}, {}, set()
    runs = runs_of(*pair, folder)
    with ExitStack() as stack:
        for _, module, table in tables():
            stack.enter_context(noting(table, module, read))
        for name, reference, port, lists_pairs in runs:
            started = time.monotonic()
            answers[name] = answer(reference, port, lists_pairs=lists_pairs)
            seconds[name] = time.monotonic() - started
    return Baseline(answers, seconds, frozenset(read))


@contextmanager
def noting(table: Any, module: str, read: set[tuple[str, str]]) -> Iterator[None]:
    """What is read of a table inside the block is added, as (module, name)."""
    kind, names = type(table), {field.name for field in fields(table)}

    def look(self: Any, name: str) -> Any:
        if name in names:
            read.add((module, name))
        return object.__getattribute__(self, name)

    object.__setattr__(table, "__class__", type(kind.__name__, (kind,), {"__slots__": (), "__getattribute__": look}))
    try:
        yield
    finally:
        object.__setattr__(table, "__class__", kind)


def changes(pair: Pair, tried: Sequence[Variant], folder: Path, before: Baseline) -> dict[Variant, dict[str, list[str]]]:
    """For each variant the runs of a pair whose answers change, by kind of change. Numbers that nothing reads are not tried."""
    found: dict[Variant, dict[str, list[str]]] = {}
    runs = runs_of(*pair, folder)
    for variant in tried:
        found[variant] = defaultdict(list)
        if variant.index is None and (variant.module, variant.name) not in before.read:
            continue
        with variant.made():
            for name, reference, port, lists_pairs in runs:
                with limited(max(LEAST_LIMIT, LONGER * before.seconds[name])):
                    now = answer(reference, port, lists_pairs=lists_pairs)
                for kind in kinds(before.answers[name], now):
                    found[variant][kind].append(name)
    return found


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Python code inside the block that takes longer is stopped by TimeoutError. In a main thread only."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"It takes more than {seconds:.0f} s.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kinds(was: Answer, now: Answer) -> list[str]:
    """In what ways an answer is another one."""
    if "error" in was or "error" in now:
        return [] if was == now else ["error"]
    found = [name for name in ("verdict", "weights", "pairs") if was[name] != now[name]]
    places = [[{**one, "causes": ()} for one in answer["divergences"]] for answer in (was, now)]
    causes = [{one["site"]: one["causes"] for one in answer["divergences"]} for answer in (was, now)]
    if places[0] != places[1]:
        found.append("divergences")
    if any(causes[0][site] != causes[1][site] for site in causes[0].keys() & causes[1].keys()):
        found.append("causes")
    return [kind for kind in KINDS if kind in found]


# -- all of it -----------------------------------------------------------------------------------------------------------------------------


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gathered(tasks: Mapping[Pair, Future[Any]]) -> dict[Pair, Any]:
    """What the tasks of all pairs give, told as they end; the pairs that cannot be built here are left out."""
    names = {task: pair for pair, task in tasks.items()}
    done: dict[Pair, Any] = {}
    for number, task in enumerate(as_completed(names), 1):
        pair = names[task]
        try:
            done[pair] = task.result()
        except ImportError as error:
            note(f"{pair[1]}: left out, {error}")
            continue
        note(f"{number}/{len(names)} {pair[1]}")
    return {pair: done[pair] for pair in tasks if pair in done}


def rows(found: Sequence[Mapping[Variant, Mapping[str, list[str]]]], tried: Sequence[Variant], total: int) -> Iterator[dict[str, Any]]:
    """A row for each variant: how many answers change, by kind and in all, and which."""
    for variant in tried:
        by_kind = {kind: [name for one in found for name in one[variant].get(kind, ())] for kind in KINDS}
        changed = sorted({name for names in by_kind.values() for name in names})
        value = None if variant.value is None else str(variant.value)
        counts = {kind: len(names) for kind, names in by_kind.items()}
        yield {
            "target": variant.target,
            "what": variant.what,
            "value": value,
            "answers": total,
            "changed": len(changed),
            **counts,
            "which": changed,
        }


def lines(table: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as text: what changes most answers first, and a count of what changes none."""
    yield f"{'':56s}{'':>10s}" + "".join(f"{name:>12s}" for name in ("changed", *KINDS))
    for row in sorted(table, key=lambda row: -row["changed"]):
        if row["changed"]:
            yield f"{row['target']:56s}{row['what']:>10s}" + "".join(f"{row[name]:12d}" for name in ("changed", *KINDS))
    targets = {row["target"] for row in table}
    idle = targets - {row["target"] for row in table if row["changed"]}
    yield f"{len(idle)} of {len(targets)} change no answer: {', '.join(sorted(idle)) or 'none'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"pairs, stages or cases; of models {', '.join(PAIRS)} by default")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["models"])
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="the folder of the group cases")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep the traces there, and use again those that are there")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="packages, numbers or passes: alignment, alignment.worth_pairing"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--estimate", action="store_true", help="say how long it would take, and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    results.add_option(parser)
    options = parser.parse_args()
    if options.groups == ["models"] and not options.names:
        options.names = PAIRS
    tried = list(variants(options.only))
    pairs = chosen(options)
    if not tried or not pairs:
        parser.error("no such pair" if tried else "no such number or pass")
    for name, value in {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as temporary, ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        folder = options.traces or Path(temporary)
        before = gathered({pair: pool.submit(baseline, pair, folder) for pair in pairs})
        note(estimate(list(before.values()), tried, options.jobs))
        if options.estimate:
            return 0
        found = gathered({pair: pool.submit(changes, pair, tried, folder, before[pair]) for pair in before})
    table = list(rows(list(found.values()), tried, sum(len(one.answers) for one in before.values())))
    print("\n".join(lines(table)))
    if options.json:
        options.json.write_text(json.dumps(results.result("ablation", table, options), indent=1) + "\n", encoding="utf-8")
    results.record("ablation", table, options)
    return 0


def estimate(before: Sequence[Baseline], tried: Sequence[Variant], jobs: int) -> str:
    """How long the variants take, by the seconds of the answers without a change and the numbers that they read."""
    work = sum(
        sum(one.seconds.values()) * sum(variant.index is not None or (variant.module, variant.name) in one.read for variant in tried)
        for one in before
    )
    slots = max(1, min(jobs, len(before)))
    answers = sum(len(one.answers) for one in before)
    return f"{len(tried)} variants on {answers} answers: about {work / slots / 60:.1f} minutes with {slots} processes"


if __name__ == "__main__":
    sys.exit(main())
