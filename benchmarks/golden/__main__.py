"""Whether tracediff still answers what it answered when the golden answers were frozen: `python -m benchmarks.golden`.

    python -m benchmarks.golden                                     # all pairs of models: a few minutes on two cores
    python -m benchmarks.golden gpt llama --traces FOLDER           # two pairs; their traces are kept, and used again where they are there
    python -m benchmarks.golden --groups chatterbox                 # the shipped Chatterbox pair, stage by stage
    python -m benchmarks.golden --groups cases --cases FOLDER       # rebuilt bug reports: modules with build(fault) or files(folder, fault)
    python -m benchmarks.golden ... --freeze                        # writes what is answered now as golden

Frozen are verdict, divergences (site, culprit, layout, kinds of causes), lines on weights, and all pairs of sites: no error sizes and no
confidences. `answers.json` changes only by commits that name each case that changed, and why. Exit status 1 where an answer differs.

It needs the extra `chatterbox` and the group `bench`: `uv run --extra chatterbox --group bench python -m benchmarks.golden`. On Linux put
`LD_PRELOAD=libopenblas.so.0` before it: MLX's own BLAS is ten times slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.golden import cases
from benchmarks.golden.answers import Answer, differences
from benchmarks.golden.measure import answered

FROZEN = Path(__file__).with_name("answers.json")
GROUPS = ("models", "chatterbox", "cases")
SCHEMA = "tracediff.golden/1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pairs, stages or cases; all of the groups by default")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=["models"])
    parser.add_argument("--cases", type=Path, metavar="FOLDER", help="the folder of the group cases")
    parser.add_argument("--traces", type=Path, metavar="FOLDER", help="keep the traces there, and use again those that are there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--freeze", action="store_true", help="write the answers of now as golden, in the place of those of the same cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers of now to this file")
    options = parser.parse_args()
    if "cases" in options.groups and options.cases is None:
        parser.error("the group cases needs --cases FOLDER")
    for name, value in {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}.items():
        os.environ.setdefault(name, value)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        now = dict(answered(chosen(options), options.traces or Path(temporary), options.jobs))
    if not now:
        parser.error("no such pair")
    if options.json:
        write(options.json, now)
    kept = read(FROZEN)
    if options.freeze:
        write(FROZEN, {**kept, **now})
    changed = {} if options.freeze else differences(kept, now)
    for name, lines in changed.items():
        print(name, *(f"    {line}" for line in lines), sep="\n")
    new = sum(name not in kept for name in now)
    print(f"{len(now) - len(changed) - new} answers as frozen, {len(changed)} changed, {new} new, in {time.monotonic() - started:.0f} s")
    return int(bool(changed))


def chosen(options: argparse.Namespace) -> list[tuple[str, str, Path | None]]:
    """(group, name, folder) of each pair that is asked for."""
    names: dict[str, Callable[[], list[str]]] = {
        "models": cases.model_names,
        "chatterbox": cases.chatterbox_stages,
        "cases": partial(cases.report_names, options.cases),
    }
    found = [(group, name, options.cases if group == "cases" else None) for group in options.groups for name in names[group]()]
    return [one for one in found if not options.names or one[1] in options.names]


def read(path: Path) -> dict[str, Answer]:
    """The frozen answers, by name of the run."""
    answers: dict[str, Answer] = json.loads(path.read_text(encoding="utf-8"))["answers"] if path.is_file() else {}
    return answers


def write(path: Path, answers: dict[str, Answer]) -> None:
    """Writes answers a line each, so that a change of one is a change of one line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(answers[name], ensure_ascii=False)}" for name in sorted(answers))
    path.write_text(f'{{"schema": "{SCHEMA}", "answers": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
