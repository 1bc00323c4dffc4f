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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import tracediff as td
from tracediff.observe.recipe import find_recipe, load_file, load_recipe, run_recipe
from tracediff.runs.captured import captured as record

NAME = "chatterbox-mlx"
MENDS = load_file(find_recipe(NAME, "mlx").with_name(f"{NAME}_mends.py"))
Errors = dict[tuple[str, str], tuple[float, float]]


def captured(to: Path, stages: list[str], *mends: str, feed: Path, is_forced: bool = True) -> Path:
    """The port captured to a new trace: fed by the reference, or free on its inputs and draws; with ``mends`` without those."""
    given: dict[str, Any] = {"feed": str(feed)} if is_forced else {"floor": False}
    with ExitStack() as stack:

        def change(models: Any) -> None:
            stack.enter_context(MENDS.mended(models, *mends))

        return run_recipe(
            "mlx",
            NAME,
            output=to,
            stages=stages,
            random=feed,
            force=True,
            repeat=False,
            change=change if mends else None,
            job=record,
            **given,
        )


def errors(reference: Path, port: Path, stages: list[str]) -> Errors:
    """The relative L2 and what is allowed, by stage and the reference's site: of each site the record that is furthest beyond."""
    found: Errors = {}
    for row in td.diff(reference, port, stages=stages).rows:
        place = row.where.stage, row.where.reference
        error, limit = row.at_least if row.rel_l2 is None else row.rel_l2, row.limit or 0.0
        if place not in found or error - limit > found[place][0] - found[place][1]:
            found[place] = error, limit
    return found


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
