"""Answers many pairs side by side, each pair in one of a few processes."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks.golden import cases
from benchmarks.golden.answers import Answer, answer

Run = tuple[str, Path, Path | str, bool]
"""A run's name, the reference's trace, the port's or why there is none, and whether its pairs are listed."""


def answered(pairs: Sequence[tuple[str, str, Path | None]], folder: Path, jobs: int) -> Iterator[tuple[str, Answer]]:
    """The answers of all pairs, in their order, each pair in one of so many processes; what cannot be built is said and left out."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(of_pair, *pair, folder): pair for pair in pairs}
        for number, done in enumerate(as_completed(running), 1):
            answers, seconds, missing = done.result()
            state = f"left out: {missing}" if missing else f"{len(answers)} answers, {seconds:.0f} s"
            print(f"{number}/{len(running)} {running[done][1]}: {state}", file=sys.stderr, flush=True)
        for one in running:
            yield from one.result()[0].items()


def of_pair(group: str, name: str, cases_folder: Path | None, folder: Path) -> tuple[dict[str, Answer], float, str]:
    """The answers of one pair by name of the run; the seconds they took; what is missing where the pair cannot be built here."""
    started = time.monotonic()
    try:
        runs = runs_of(group, name, cases_folder, folder)
    except ImportError as error:
        return {}, 0.0, str(error)
    return {run: answer(*given, lists_pairs=lists_pairs) for run, *given, lists_pairs in runs}, time.monotonic() - started, ""


@functools.cache
def runs_of(group: str, name: str, cases_folder: Path | None, folder: Path) -> list[Run]:
    """The runs of one pair, their traces recorded unless the folder has them. Raises ImportError where the pair cannot be built here."""
    import torch

    torch.set_num_threads(1)
    make = {"models": cases.models, "chatterbox": cases.chatterbox}.get(group) or partial(cases.report, cases_folder)
    return list(cases.recorded(f"{group}/{name}", make(name), folder / group / name))
