"""Proves what is said of the second port: each difference at its sites, and gone with the one change that mends it.

    tracediff capture --impl torch -o ref.h5                                   # where chatterbox-tts is installed
    PYTHONPATH=. PATH_OF_THE_OTHER/bin/python benchmarks/mends_second_port.py ref.h5 [--folder traces] [NAME ...]

The second one runs where chatterbox-mlx is installed, since a change is made in the models, which cannot be done from another Python. The
port is fed by the reference: once as it ships, and once for each mend of `hooks/chatterbox-mlx_mends.py`. Prints a Markdown table: where
the port differs, error before, error allowed, error after. `--free` compares two free runs instead: as shipped, and with every mend.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import tracediff as td
from benchmarks.recipe_runs import errors, hooks, run_port
from tracediff.observe.recipe import load_recipe

NAME = "chatterbox-mlx"
MENDS = hooks(f"{NAME}_mends", NAME)


def captured(to: Path, stages: list[str], *mends: str, feed: Path, is_forced: bool = True) -> Path:
    """The port captured to a new trace: fed by the reference, or free on its inputs and draws; with ``mends`` without those."""
    changes = [lambda models: MENDS.mended(models, *mends)] if mends else []
    return run_port(to, stages, feed, *changes, is_fed=is_forced, recipe=NAME, **({} if is_forced else {"floor": False}))


def table(reference: Path, names: list[str], folder: Path) -> Iterator[str]:
    """The lines of the table; as shipped all stages are run that the reference has, with a mend those that it shows in."""
    with td.open_trace(reference) as opened:
        stages = [stage for stage in load_recipe(NAME, "mlx").stages if stage in opened.meta["stages"]]
    shipped = errors(reference, captured(folder / "second_shipped.h5", stages, feed=reference), stages)
    yield "| mend | kind | port | stage, site | shipped | allowed | mended |"
    yield "|---|---|---|---|---|---|---|"
    for name in names:
        mend = MENDS.MENDS[name]
        places = [place for place in mend.sites if place[0] in stages]
        shown = [stage for stage in stages if any(stage == place[0] for place in places)]
        after = errors(reference, captured(folder / "second_mended.h5", shown, name, feed=reference), shown) if shown else {}
        for place in places:
            left, limit = after[place]
            before, limit = shipped.get(place, (math.inf, limit))  # of another shape there, or not called at all
            yield f"| {name} | {mend.kind} | `{mend.port}` | {place[0]}, `{place[1]}` | {before:.1e} | {limit:.1e} | {left:.1e} |"


def free(reference: Path, folder: Path) -> Iterator[str]:
    """The lines of another table: the verdict and the worst error of each stage of a free run, as shipped and with every mend."""
    with td.open_trace(reference) as opened:
        stages = [stage for stage in load_recipe(NAME, "mlx").stages if stage in opened.meta["stages"]]
    shipped, whole = folder / "second_free.h5", folder / "second_free_mended.h5"
    with suppress(ValueError):  # flow.block raises; what lies behind it is run all the same
        captured(shipped, stages, feed=reference, is_forced=False)
    captured(whole, stages, *MENDS.MENDS, feed=reference, is_forced=False)
    verdicts = [{stage.stage: stage for stage in td.bisect(reference, port, scan=True).stages} for port in (shipped, whole)]
    yield "| stage | shipped | mended |"
    yield "|---|---|---|"
    for stage in verdicts[1]:
        cells = [f"{found[stage].verdict} {found[stage].worst:.1e}" for found in verdicts]
        yield f"| {stage} | {cells[0]} | {cells[1]} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("reference", type=Path, help="the reference's trace, with its noise floor")
    parser.add_argument("names", nargs="*", help="mends; all by default")
    parser.add_argument("--folder", type=Path, default=Path("traces"), help="where the traces are written")
    parser.add_argument("--free", action="store_true", help="two free runs: as shipped, and with every mend")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    names = arguments.names or list(MENDS.MENDS)
    lines = free(arguments.reference, arguments.folder) if arguments.free else table(arguments.reference, names, arguments.folder)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
