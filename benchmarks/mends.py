"""Proves what is said of the shipped Chatterbox port: each difference at its sites, and gone with the one change that mends it.

    python benchmarks/mends.py [--folder traces] [NAME ...]

The reference is captured once with its noise floor (`mends_torch.h5`, used again where it is there), the port is fed by it: once as it
ships, and once for each mend of `hooks/chatterbox_mends.py`. Prints a Markdown table: error before, error allowed, error after.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tracediff as td
from tracediff.capture.recipe import find_recipe, load_file, run_recipe

MENDS = load_file(find_recipe("chatterbox", "mlx").with_name("chatterbox_mends.py"))
Errors = dict[tuple[str, str], tuple[float, float]]


def captured(impl: str, to: Path, stages: list[str], *mends: str, feed: Path | None = None) -> Path:
    """A side captured to a new trace; with ``feed`` as a forced run, with ``mends`` without those differences."""
    given: dict[str, Any] = {} if feed is None else {"random": feed, "feed": str(feed)}
    with ExitStack() as stack:

        def change(models: Any) -> None:
            stack.enter_context(MENDS.mended(models, *mends))

        return run_recipe(
            impl,
            "chatterbox",
            output=to,
            stages=stages,
            force=True,
            repeat=feed is None,
            change=change if mends else None,
            how="tracediff.capturing:captured",
            **given,
        )


def errors(reference: Path, port: Path, stages: list[str]) -> Errors:
    """The relative L2 and what is allowed, by stage and the reference's site: of each site the record that is furthest beyond."""
    found: Errors = {}
    for row in td.diff(reference, port, stages=stages).rows:
        place = row.where.stage, row.where.reference
        limit = row.limit or 0.0
        error = row.at_least if row.rel_l2 is None else row.rel_l2
        if place not in found or error - limit > found[place][0] - found[place][1]:
            found[place] = error, limit
    return found


def table(names: list[str], folder: Path) -> Iterator[str]:
    """The lines of the table."""
    stages = sorted({stage for name in names for stage, _ in MENDS.MENDS[name].sites})
    reference = folder / "mends_torch.h5"
    if not reference.is_file():
        captured("torch", reference, stages)
    shipped = errors(reference, captured("mlx", folder / "mends_shipped.h5", stages, feed=reference), stages)
    yield "| mend | kind | reference | port | stage, site | shipped | allowed | mended |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in names:
        mend = MENDS.MENDS[name]
        own = sorted({stage for stage, _ in mend.sites})
        if not own:
            yield f"| {name} | {mend.kind} | `{mend.reference}` | `{mend.port}` | not run by a stage | | | |"
            continue
        after = errors(reference, captured("mlx", folder / "mends_mended.h5", own, name, feed=reference), own)
        for place in mend.sites:
            (before, limit), (left, _) = shipped[place], after[place]
            where = f"{place[0]}, `{place[1]}`"
            yield f"| {name} | {mend.kind} | `{mend.reference}` | `{mend.port}` | {where} | {before:.1e} | {limit:.1e} | {left:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="mends; all by default")
    parser.add_argument("--folder", type=Path, default=Path("traces"), help="where the traces are written")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for line in table(arguments.names or list(MENDS.MENDS), arguments.folder):
        print(line, flush=True)


if __name__ == "__main__":
    main()
