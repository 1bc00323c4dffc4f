"""How often a stated cause is right: `python -m benchmarks.confidence`.

    python -m benchmarks.confidence --traces FOLDER               # all pairs; their traces are kept, and used again where they are there
    python -m benchmarks.confidence --json FILE                   # and every stated cause goes to a file
    python -m benchmarks.confidence --table FILE --write docs/performance.md     # the table of such a file, written into the page

Faults are planted into known pairs, as for the golden answers; the catalogue of faults knows which kinds of cause are right for each. A
stated cause is *right* where its kind is one of them, and it is stated of the planted module or of one a call away. Detectors are mended
by the pairs that are not held out, so their causes are right too often: the confidences of `tracediff.causes.thresholds` are fitted to
the pairs that are held out (``--fit`` prints them). In the table each pair has the confidences that the other pairs alone give.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import results
from tracediff.causes.confidence import family, share_right
from tracediff.causes.thresholds import CONFIDENCE

BINS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
UNKNOWN = "unknown"
"""Stands for a divergence of which no cause is stated."""
START, END = "<!-- confidence -->", "<!-- end of confidence -->"


@dataclass(frozen=True, slots=True)
class Stated:
    """One cause that a report states of a divergence, and whether it is right. ``place`` counts divergences, ``rank`` their causes."""

    pair: str
    held_out: bool
    fault: str
    kinds: tuple[str, ...]
    run: str
    culprit: str
    is_there: bool
    place: int
    rank: int
    kind: str
    confidence: float
    confirmed: bool
    evidence: str
    is_right: bool

    @property
    def is_first_line(self) -> bool:
        return self.place == self.rank == 0

    @property
    def family(self) -> str:
        return family(self.kind, confirmed=self.confirmed)


# -- what is stated ------------------------------------------------------------------------------------------------------------------------


AS_IT_IS = ((0.0, 0.0), (1.0, 1.0))
"""The table that leaves a likelihood as it is."""


def of_pair(name: str, seed: int, folder: Path) -> list[Stated]:
    """Every cause that is stated of the planted faults of one pair, with its likelihood as confidence; none where it cannot be built."""
    with patch.dict(CONFIDENCE, dict.fromkeys(CONFIDENCE, AS_IT_IS)):
        return _of_pair(name, seed, folder)


def _of_pair(name: str, seed: int, folder: Path) -> list[Stated]:
    import torch

    import tracediff as td
    from benchmarks.faults.measure import Truth
    from benchmarks.faults.pairs import known
    from benchmarks.golden import cases

    torch.set_num_threads(1)
    try:
        source = cases.models(name, seed)
    except ImportError:
        return []
    runs = list(cases.recorded(f"models/{name}", source, folder / "models" / name))
    states = [port for port in source.ports for _ in port.modes]
    held_out = name.startswith("heldout-") or known()[name].held_out
    reference = runs[0][1]
    with td.open_trace(reference) as ours, td.open_trace(runs[1][2]) as clean:
        truth = Truth(source.pair, ours, clean)
    found: list[Stated] = []
    for (text, _, made, _), port in zip(runs, states, strict=True):
        if port.wrong is not None and not isinstance(made, str):
            report = td.bisect(reference, made)
            found += _stated((name, held_out, text), report, truth, port.wrong)
    return found


def _stated(of: tuple[str, bool, str], report: Any, truth: Any, fault: Any) -> Iterator[Stated]:
    planted = truth.of(fault)
    every = (planted, *planted.others)
    for place, one in enumerate(report.divergences):
        culprit = one.culprit.reference, one.culprit.port
        is_there = any(other.is_named_by(culprit) or other.is_near(culprit, truth.called) for other in every)
        told = [(cause.kind, cause.confidence, cause.confirmed, cause.evidence) for cause in one.causes] or [(UNKNOWN, 0.0, False, "")]
        for rank, cause in enumerate(told):
            is_right = is_there and cause[0] in planted.kinds
            yield Stated(*of[:2], fault.text, planted.kinds, of[2], " | ".join(culprit), is_there, place, rank, *cause, is_right)


def of_pairs(names: Sequence[str], seed: int, folder: Path, jobs: int) -> list[Stated]:
    """As `of_pair`, of many pairs side by side."""
    found: list[Stated] = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(of_pair, name, seed, folder): name for name in names}
        for number, done in enumerate(as_completed(running), 1):
            print(f"{number}/{len(running)} {running[done]}: {len(done.result())} causes", file=sys.stderr, flush=True)
        for one in running:
            found += one.result()
    return found


# -- how confidences are fitted ----------------------------------------------------------------------------------------------------------


def held_out(stated: Iterable[Stated]) -> list[Stated]:
    return [one for one in stated if one.held_out]


def as_others_say(stated: Sequence[Stated]) -> list[Stated]:
    """What is stated, with the confidences that are fitted to all other pairs."""
    found = []
    for pair in dict.fromkeys(one.pair for one in stated):
        tables = fitted(one for one in stated if one.pair != pair)
        own = (one for one in stated if one.pair == pair)
        found += [replace(one, confidence=_looked_up(tables, one)) if one.kind != UNKNOWN else one for one in own]
    return found


def _looked_up(tables: dict[str, list[tuple[float, float, int]]], one: Stated) -> float:
    table = tuple((level, share) for level, share, _ in tables[one.family])
    return share_right(table, one.confidence)


def fitted(stated: Iterable[Stated]) -> dict[str, list[tuple[float, float, int]]]:
    """For each family (what was stated, what share of it is right, of how many): a rising table, by isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    groups: dict[str, list[Stated]] = defaultdict(list)
    for one in stated:
        if one.kind != UNKNOWN:
            groups[one.family].append(one)
    tables = {}
    for title, members in groups.items():
        counts: dict[float, list[bool]] = defaultdict(list)
        for one in members:
            counts[round(one.confidence, 2)].append(one.is_right)
        levels = sorted(counts)
        shares = [(sum(counts[level]) + 0.5) / (len(counts[level]) + 1) for level in levels]
        sizes = [len(counts[level]) for level in levels]
        rising = IsotonicRegression().fit_transform(levels, shares, sample_weight=sizes)
        tables[title] = [(level, round(float(share), 2), size) for level, share, size in zip(levels, rising, sizes, strict=True)]
    return tables


# -- the table --------------------------------------------------------------------------------------------------------------------------


def table(stated: Sequence[Stated]) -> Iterator[str]:
    """How often causes are right by the confidence that was stated: all, first lines, and each family by itself."""
    yield "| stated | all: right / stated | first lines | confirmed | of weights | likely |"
    yield "|---|---|---|---|---|---|"
    causes = [one for one in stated if one.kind != UNKNOWN]
    for low, high in pairwise(BINS):
        inside = [one for one in causes if low < one.confidence <= high or (one.confidence == 0 == low)]
        if inside:
            families = [[one for one in inside if one.family == title] for title in CONFIDENCE]
            cells = [_share(part) for part in (inside, [one for one in inside if one.is_first_line], *families)]
            yield f"| {low:g} to {high:g} | {' | '.join(cells)} |"


def _share(stated: Sequence[Stated]) -> str:
    right = sum(one.is_right for one in stated)
    return f"{right} / {len(stated)} ({right / len(stated):.0%})" if stated else "-"


def summary(stated: Sequence[Stated]) -> Iterator[str]:
    """The first lines that are right, wrong, and without a cause; and how many of what is confirmed is wrong."""
    for title, is_held_out in (("mended by", False), ("held out", True)):
        part = [one for one in stated if one.held_out is is_held_out]
        first = [one for one in part if one.is_first_line]
        unknown = sum(one.kind == UNKNOWN for one in first)
        right = sum(one.is_right and one.kind != UNKNOWN for one in first)
        confirmed = [one for one in part if one.confirmed]
        wrong = sum(not one.is_right for one in confirmed)
        yield (
            f"{title}: {len(first)} first lines, of them {right} right, {len(first) - right - unknown} wrong, {unknown} unknown; "
            f"{len(confirmed)} causes confirmed, of them {wrong} wrong"
        )


def written_into(page: str, lines: Iterable[str]) -> str:
    """A page with the table in the place that its two marks hold."""
    before, rest = page.split(START)
    return "\n".join([f"{before}{START}", "", *lines, "", f"{END}{rest.split(END)[1]}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pairs; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the models, and of which faults are drawn [0: those of the golden answers]")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep the traces there, and use again those that are there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every stated cause to this file")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="the table of such files, and nothing else")
    parser.add_argument("--fit", action="store_true", help="print the fitted tables")
    parser.add_argument("--wrong", action="store_true", help="list what is confirmed and wrong, but for pairs held out")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into a page")
    results.add_option(parser)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stated = read(options.table) if options.table else measured(options)
    report(stated, options)
    return 0


def measured(options: argparse.Namespace) -> list[Stated]:
    from benchmarks.golden.cases import model_names

    with tempfile.TemporaryDirectory() as temporary:
        stated = of_pairs(options.names or model_names(), options.seed, options.traces or Path(temporary), options.jobs)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in stated], indent=0))
    return stated


def read(files: Iterable[Path]) -> list[Stated]:
    return [Stated(**{**one, "kinds": tuple(one["kinds"])}) for file in files for one in json.loads(file.read_text())]


def report(stated: Sequence[Stated], options: argparse.Namespace) -> None:
    """Prints, and writes where asked."""
    lines = list(table(as_others_say(held_out(stated))))
    print("\n".join([*summary(stated), "", *lines]))
    if options.fit:
        for title, levels in fitted(held_out(stated)).items():
            print(f"\n{title}", *(f"    {level:.2f} -> {share:.2f}  ({size})" for level, share, size in levels), sep="\n")
    if options.wrong:
        for one in stated:
            if one.confirmed and not one.is_right and not one.held_out:
                print(f"{one.run}\n    planted {one.kinds}; at {one.culprit}: {one.kind} {one.confidence}: {one.evidence}")
    if options.write:
        options.write.write_text(written_into(options.write.read_text(encoding="utf-8"), lines), encoding="utf-8")
    results.record("confidence", [{"line": line} for line in [*summary(stated), *lines]], options)


if __name__ == "__main__":
    sys.exit(main())
