"""Clean pairs, which must raise no alarm: how many do with default settings, by pair, dtype of the port and mode.

    python benchmarks/clean.py                                     # the project's small pairs
    python benchmarks/clean.py --real                              # mlx-lm and mlx-whisper against transformers (to be installed)
    python benchmarks/clean.py --chatterbox --seeds 1              # the shipped pair at small size, stage by stage
    python benchmarks/clean.py --threads 1 2 --preload libopenblas.so.0 --reductions plain permuted split

The reference is a PyTorch model in float32 with its noise floor; the port the same model in MLX, in each dtype, forced and free. An
alarm is an introduced divergence in a scan of all pairs. Whatever may change rounding and nothing else is varied: weights and inputs
(``--seeds``), the input's length, the number of threads, the BLAS (``--preload`` runs everything once more with that library), the
order in which sums are taken (``--reductions``: linear layers and convolutions add their terms in another order, or in two halves).

`cells`: alarms / runs (largest error of the runs, in parts of what is allowed there). Where the shipped Chatterbox port is not clean, its
known differences (`hooks/chatterbox_mends.py`) are mended first. ``--folder`` keeps its references, and uses again those that are there.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks import results
from benchmarks.casting import in_dtype
from benchmarks.pairing import builders
from benchmarks.recipe_runs import hooks, kept, run_port

DTYPES = ("float32", "float16", "bfloat16")
MODES = ("forced", "free")
REDUCTIONS = ("plain", "permuted", "split")
IN_FLOAT32 = ("voice.resample", "voice.mel", "voice.tokenizer", "voice.trim", "voice.encoder", "text", "vocoder", "vocoder.decode")
"""Stages of Chatterbox that have no other dtype: what is computed there is float32 on both sides whatever the models are put into."""


@dataclass
class Cell:
    """One comparison: how many pairs were judged, the largest error in parts of what is allowed, and the alarms."""

    pair: str
    dtype: str
    mode: str
    setting: str
    compared: int
    share: float
    where: str
    alarms: list[str] = field(default_factory=list)


# -- one pair ------------------------------------------------------------------------------------------------------------------------------


def cells_of(name: str, build: Callable[..., Any], seed: int, options: argparse.Namespace, folder: Path) -> Iterator[Cell]:
    """A pair of models: the reference once, the port in every dtype, order of summation and mode."""
    import torch

    import tracediff as td

    for length in options.lengths or [None]:
        make = functools.partial(build, seed, **({} if length is None else {"length": length}))
        pair = make()
        with torch.no_grad():
            half = tuple(dtype for dtype in options.dtypes if dtype != "float32")
            td.capture(pair.reference, pair.run_reference, to=folder / "ref.h5", force=True, floor_dtypes=("float64", *half)).close()
        for dtype in options.dtypes:
            for order in options.reductions:
                port = make()
                setting = f"seed {seed}, {order}" + (f", length {length}" if length else "")
                with in_dtype(port, dtype), reordered(order):
                    for mode in options.modes:
                        feed = folder / "ref.h5" if mode == "forced" else None
                        try:
                            td.capture(port.port, port.run_port, to=folder / "port.h5", feed=feed, force=True, repeat=False).close()
                        except Exception as error:  # noqa: BLE001 - a port that does not run in a dtype is a line of the table
                            yield Cell(name, dtype, mode, setting, 0, math.inf, "", [f"does not run: {type(error).__name__}: {error}"])
                        else:
                            yield judged(name, dtype, mode, setting, folder / "ref.h5", folder / "port.h5")


def chatterbox_cells(seed: int, options: argparse.Namespace, folder: Path) -> Iterator[Cell]:
    """The shipped pair without its known differences, every stage apart."""
    for stage in options.pairs or hooks("chatterbox_shared").STAGES:
        reference = chatterbox_reference(stage, seed, options)
        for dtype in options.dtypes:
            if dtype != "float32" and stage in IN_FLOAT32:
                continue
            for order in options.reductions:
                for mode in options.modes:
                    setting = f"seed {seed}, {order}"
                    try:
                        with reordered(order):
                            chatterbox_port(stage, seed, dtype, reference, folder / "port.h5", is_fed=mode == "forced")
                    except Exception as error:  # noqa: BLE001 - a stage that does not run in a dtype is a line of the table
                        yield Cell(stage, dtype, mode, setting, 0, math.inf, "", [f"does not run: {type(error).__name__}: {error}"])
                    else:
                        yield judged(stage, dtype, mode, setting, reference, folder / "port.h5")


def chatterbox_reference(stage: str, seed: int, options: argparse.Namespace) -> Path:
    """The reference's trace of a stage with the noise floor of every dtype that is asked for, captured unless it is there already."""
    from tracediff import api

    half = () if stage in IN_FLOAT32 else tuple(dtype for dtype in options.dtypes if dtype != "float32")
    given = {"recipe": "chatterbox", "stages": [stage], "seed": seed, "force": True, "floor_dtypes": ("float64", *half)}
    path: Path = options.folder / f"clean_{stage}_{seed}.h5"
    return kept(path, lambda to: api.capture_recipe(impl="torch", output=to, **given).close())


def chatterbox_port(stage: str, seed: int, dtype: str, reference: Path, to: Path, *, is_fed: bool) -> None:
    """The port of a stage, mended, fed by the reference or free."""
    mends = hooks("chatterbox_mends")
    names = mends.mends_of(stage)
    changes = [lambda models: mends.mended(models, *names)] if names else []
    run_port(to, [stage], reference, *changes, is_fed=is_fed, seed=seed, dtype=None if dtype == "float32" else dtype)


def judged(name: str, dtype: str, mode: str, setting: str, reference: Path, port: Path) -> Cell:
    """Two traces compared, all pairs read."""
    import tracediff as td

    report = td.diff(reference, port)
    shares = [(row.rel_l2 / row.limit, row.where) for row in report.rows if row.rel_l2 is not None and row.limit and not row.effect]
    share, where = max(shares, key=lambda pair: pair[0], default=(0.0, None))
    alarms = [
        f"{one.site.reference} {one.site.end} [{one.site.call}]: {one.introduced:.2e}, floor "
        + (f"{one.floor:.2e}" if one.floor is not None else "unknown")
        + f", culprit {one.culprit.reference or 'the root'}"
        for one in report.divergences
    ]
    place = f"{where.reference} {where.end}" if where is not None else ""
    return Cell(name, dtype, mode, setting, report.coverage.compared, share, place, alarms)


# -- what may change rounding --------------------------------------------------------------------------------------------------------------


@contextmanager
def reordered(order: str) -> Iterator[None]:
    """Linear layers and convolutions of MLX add up their terms in another order, or in two halves."""
    if order == "plain":
        yield
        return
    import mlx.core as mx
    from mlx import nn

    def linear(self: Any, x: mx.array) -> mx.array:
        made = summed(x, self["weight"], lambda part, weight: part @ weight.T, order)
        return made + self["bias"] if "bias" in self else made

    def convolution(self: Any, x: mx.array) -> mx.array:
        if self.groups != 1:
            return plain(self, x)
        given = (self.stride, self.padding, self.dilation)
        made = summed(x, self["weight"], lambda part, weight: mx.conv1d(part, weight, *given), order)
        return made + self["bias"] if "bias" in self else made

    plain = nn.Conv1d.__call__
    with patch.object(nn.Linear, "__call__", linear), patch.object(nn.Conv1d, "__call__", convolution):
        yield


def summed(x: Any, weight: Any, product: Callable[[Any, Any], Any], order: str) -> Any:
    """A product that sums over the last axis of both, taken in another order, or in two halves."""
    import mlx.core as mx
    import numpy as np

    width = x.shape[-1]
    if order == "permuted":
        places = mx.array(np.random.default_rng(width).permutation(width))
        return product(mx.take(x, places, -1), mx.take(weight, places, -1))
    half = width // 2
    if not half:
        return product(x, weight)
    return product(x[..., :half], weight[..., :half]) + product(x[..., half:], weight[..., half:])


# -- all of it -----------------------------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> list[Cell]:
    """Everything that can be measured in this process."""
    import torch

    torch.set_num_threads(options.threads[0])
    found: list[Cell] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.folder = options.folder or folder
        options.folder.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            if options.chatterbox:
                found += progress(chatterbox_cells(seed, options, folder))
                continue
            for pair, build in builders(options.pairs, options.real).items():
                found += progress(cells_of(pair, build, seed, options, folder))
    return found


def progress(cells: Iterator[Cell]) -> Iterator[Cell]:
    started = time.monotonic()
    for cell in cells:
        text = f"{cell.pair:18s} {cell.dtype:9s} {cell.mode:7s} {cell.setting}: {len(cell.alarms)} alarms of {cell.compared}"
        print(f"{text}, {cell.share:.2f} at {cell.where} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
        for alarm in cell.alarms:
            print(f"      {alarm}", file=sys.stderr, flush=True)
        yield cell


def in_own_process(arguments: Sequence[str], threads: int, preload: str) -> list[Cell]:
    """The same in a process of its own, since a BLAS and its threads are chosen when a process starts."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    if preload:
        environment["LD_PRELOAD"] = preload
    command = [sys.executable, "-m", "benchmarks.clean", *arguments, "--threads", str(threads), "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    setting = f"{threads} threads" + (f", {preload}" if preload else "")
    return [Cell(**{**cell, "setting": f"{cell['setting']}, {setting}"}) for cell in json.loads(done.stdout)]


def table(cells: Sequence[Cell], options: argparse.Namespace) -> Iterator[str]:
    """Alarms of runs, with the largest error in parts of what is allowed, by pair, dtype and mode; then every alarm."""
    by_key: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_key[cell.pair, cell.dtype, cell.mode].append(cell)
    columns = [(dtype, mode) for dtype in options.dtypes for mode in options.modes]
    yield f"{'alarms/runs (of allowed)':26s}" + "".join(f"{f'{dtype} {mode}':>18s}" for dtype, mode in columns)
    for pair in dict.fromkeys(cell.pair for cell in cells):
        yield f"{pair:26s}" + "".join(f"{alarms_text(by_key[pair, *column]):>18s}" for column in columns)
    every = {column: [cell for cell in cells if (cell.dtype, cell.mode) == column] for column in columns}
    yield f"{'all':26s}" + "".join(f"{alarms_text(every[column]):>18s}" for column in columns)
    yield f"{sum(cell.compared for cell in cells):,} pairs of tensors judged in {len(cells)} comparisons"
    for cell in cells:
        for alarm in cell.alarms:
            yield f"  {cell.pair}, {cell.dtype} {cell.mode}, {cell.setting}: {alarm}"


def figures(cells: Sequence[Cell]) -> Iterator[results.Row]:
    """A row for each pair, dtype and mode: runs, alarms, and the largest error in parts of what is allowed (None where a run failed)."""
    for key in dict.fromkeys((cell.pair, cell.dtype, cell.mode) for cell in cells):
        own = [cell for cell in cells if (cell.pair, cell.dtype, cell.mode) == key]
        share = max(cell.share for cell in own)
        yield {
            **dict(zip(("pair", "dtype", "mode"), key, strict=True)),
            "runs": len(own),
            "compared": sum(cell.compared for cell in own),
            "alarms": sum(len(cell.alarms) for cell in own),
            "largest share": round(share, 3) if math.isfinite(share) else None,
        }


def alarms_text(cells: Sequence[Cell]) -> str:
    return f"{sum(map(len, (cell.alarms for cell in cells)))}/{len(cells)} ({max(cell.share for cell in cells):.2f})" if cells else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", help="names of pairs, or of stages with --chatterbox; all by default")
    parser.add_argument("--real", action="store_true", help="pairs from packages: mlx-lm and mlx-whisper against transformers")
    parser.add_argument("--chatterbox", action="store_true", help="the stages of the shipped Chatterbox pair, its known differences mended")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights and inputs")
    parser.add_argument("--lengths", type=int, nargs="+", help="of the inputs [each pair's own]")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--reductions", nargs="+", choices=REDUCTIONS, default=["plain"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of PyTorch and BLAS")
    parser.add_argument("--preload", default="", help="once more with this library preloaded, such as libopenblas.so.0")
    parser.add_argument("--folder", type=Path, help="where Chatterbox's references are kept, and used again")
    parser.add_argument("--json", action="store_true", help="print every comparison as JSON; one number of threads, nothing preloaded")
    results.add_option(parser)
    options = parser.parse_args()
    if options.json:
        print(json.dumps([asdict(cell) for cell in measure(options)]))
        return
    given = [*options.pairs, *(flag for flag in ("--real", "--chatterbox") if getattr(options, flag[2:]))]
    for name in ("seeds", "lengths", "dtypes", "modes", "reductions"):
        given += [f"--{name}", *map(str, getattr(options, name))] if getattr(options, name) else []
    given += ["--folder", os.fspath(options.folder)] if options.folder else []
    preloads = ["", options.preload] if options.preload else [""]
    cells = [cell for threads in options.threads for preload in preloads for cell in in_own_process(given, threads, preload)]
    print("\n".join(table(cells, options)))
    results.record("clean", figures(cells), options)


if __name__ == "__main__":
    main()
