"""The runs whose answers are frozen: for each pair the port as it is, and with a few planted faults, forced and free.

A *source* yields for one pair its name, its reference and its ports; `recorded` makes their traces, or finds them in a folder.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tracediff as td

MODES = ("forced", "free")
FAULTS = 8
"""So many single faults are planted into each pair of models, spread over the ways in which it can go wrong."""
CHATTERBOX_FAULTS = 2
"""So many into each stage of Chatterbox."""


class NotBuiltError(ImportError):
    """What a pair is left out for."""


@dataclass(frozen=True)
class Port:
    """One state of a pair's port: how to record it to a file, fed by the reference's trace or on its draws; ``wrong``: what is planted."""

    fault: str
    record: Callable[[Path, Path, str], Any]
    modes: tuple[str, ...] = MODES
    wrong: Any = None


@dataclass(frozen=True)
class Source:
    """One pair: how to record its reference to a file, the states of its port, and the pair itself where it is one of models."""

    record: Callable[[Path], Any]
    ports: list[Port] = field(default_factory=list)
    pair: Any = None


def recorded(name: str, source: Source, folder: Path) -> Iterator[tuple[str, Path, Path | str, bool]]:
    """For each run (its name, the reference's trace, the port's or why there is none, whether the port is as it is and free).

    Traces that the folder holds already are not made again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reference = _made(folder / "reference.h5", source.record)
    for number, port in enumerate(source.ports):
        for mode in port.modes:
            made: Path | str
            try:
                made = _made(folder / f"{number}_{mode}.h5", lambda to, port=port, mode=mode: port.record(reference, to, mode))
            except Exception as error:  # noqa: BLE001 - a port that raises is frozen as such
                made = f"{type(error).__name__}: {error}".replace(str(folder), "FOLDER").splitlines()[0]
            yield f"{name}: {port.fault or 'clean'}: {mode}", reference, made, not port.fault and mode == port.modes[-1]


def _made(path: Path, record: Callable[[Path], Any]) -> Path:
    if not path.is_file():
        unfinished = path.with_name(f"unfinished_{path.name}")
        made = record(unfinished)
        if isinstance(made, td.Trace):
            made.close()
        unfinished.rename(path)
    return path


# -- pairs of models -----------------------------------------------------------------------------------------------------------------------


def models(name: str, seed: int = 0) -> Source:
    """A pair of the fault benchmark, with a few faults drawn by the seed. Raises ImportError where its packages are not installed."""
    import heldout

    from benchmarks.faults.pairs import known

    make = known()[name].make if name in known() else heldout.PAIRS[name.removeprefix("heldout-")]
    return of_models(make(seed), FAULTS, seed)


def of_models(pair: Any, most: int, seed: int = 0) -> Source:
    """A pair of models with so many of its faults at most, drawn by the seed."""
    import torch

    from benchmarks.faults.catalogue import all_faults, chosen
    from benchmarks.faults.plant import planted

    with torch.no_grad():
        faults = chosen(all_faults(pair), seed, 1)
    spread = faults[:: max(1, -(-len(faults) // most))]

    def reference(to: Path) -> Any:
        torch.manual_seed(seed)  # of the pairs whose reference draws random numbers
        with torch.no_grad():
            return td.capture(pair.reference, pair.run_reference, to=to, force=True)

    def port(*wrong: Any) -> Callable[[Path, Path, str], Any]:
        return lambda ours, to, mode: _port(pair.port, pair.run_port, ours, to, mode, state=planted(pair.port, *wrong))

    ports = [Port("", port()), *(Port(f"{one.kind}, {one.text}", port(one), wrong=one) for one in spread)]
    return Source(reference, ports, pair)


def _port(
    model: Any, run: Any, reference: Path, to: Path, mode: str, *, state: AbstractContextManager[Any] | None = None, **more: Any
) -> Any:
    with state or nullcontext():
        return td.capture(model, run, to=to, force=True, repeat=False, **{"feed" if mode == "forced" else "random": reference}, **more)


def model_names() -> list[str]:
    """The pairs of models: those of the fault benchmark and those of the tests."""
    import heldout

    from benchmarks.faults.pairs import known

    return [*known(), *(f"heldout-{name}" for name in heldout.PAIRS)]


# -- a folder of cases ---------------------------------------------------------------------------------------------------------------------


def report(folder: Path, name: str) -> Source:
    """A rebuilt bug report: a module with ``build(fault)``, or ``files(folder, fault)`` for a port that arrives as arrays."""
    sys.path[:0] = [one for one in (str(folder),) if one not in sys.path]
    case = importlib.import_module(name)
    clean = case.build(fault=False) if hasattr(case, "build") else None
    options = {**({"functions": case.FUNCTIONS} if hasattr(case, "FUNCTIONS") else {}), **getattr(case, "CAPTURE", {})}
    if clean is None:
        return _of_files(case, options)
    theirs = {"functions": case.MLX_FUNCTIONS} if hasattr(case, "MLX_FUNCTIONS") else {}

    def faulty(reference: Path, to: Path, mode: str) -> Any:
        _, _, model, run = case.build(fault=True)
        return _port(model, run, reference, to, mode, **theirs)

    return Source(
        lambda to: td.capture(clean[0], clean[1], to=to, force=True, **options),
        [Port("", lambda reference, to, mode: _port(clean[2], clean[3], reference, to, mode, **theirs)), Port("its fault", faulty)],
    )


def _of_files(case: Any, options: dict[str, Any]) -> Source:
    naming = ("own names", "named") if "named" in inspect.signature(case.files).parameters else ("own names",)

    def written(to: Path, fault: bool, how: str) -> Any:
        return case.files(str(to.with_suffix(f".{how.replace(' ', '_')}.dump")), fault, **({"named": True} if how == "named" else {}))

    def reference(to: Path) -> Any:
        made = written(to, False, "own names")
        if not (isinstance(made, tuple) and len(made) == 3):
            raise NotBuiltError("it writes weight files and no trace")
        model, run, _ = made
        return td.capture(model, run, to=to, force=True, **options)

    def port(fault: bool) -> Callable[[Path, Path, str], Any]:
        return lambda _, to, how: td.convert(written(to, fault, how)[2], to, impl=getattr(case, "IMPL", "cpp"), force=True)

    return Source(reference, [Port("", port(False), naming), Port("its fault", port(True), naming)])


def report_names(folder: Path) -> list[str]:
    """The cases of a folder that make traces."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("[a-z]*.py"))}
    return [name for name, text in texts.items() if "SOURCE" in text and name != "run"]


# -- Chatterbox ----------------------------------------------------------------------------------------------------------------------------


def chatterbox(stage: str) -> Source:
    """A stage of the shipped Chatterbox pair as it is, and with faults planted into it."""
    from benchmarks.recipe_runs import hooks, run_port
    from tracediff.observe.recipe import run_recipe
    from tracediff.runs.captured import captured

    planting = hooks("chatterbox_faults")
    names = [name for name, fault in planting.FAULTS.items() if fault.stage == stage]
    names = names[:: max(1, -(-len(names) // CHATTERBOX_FAULTS))]

    def port(*wrong: str) -> Callable[[Path, Path, str], Any]:
        changes = [lambda models: planting.planted(models, *wrong)] if wrong else []
        return lambda reference, to, mode: run_port(to, [stage], reference, *changes, is_fed=mode == "forced")

    return Source(
        lambda to: run_recipe("torch", "chatterbox", output=to, stages=[stage], job=captured, force=True),
        [Port("", port()), *(Port(name, port(name), ("forced",)) for name in names)],
    )


def chatterbox_stages() -> list[str]:
    """The stages of the real pair. Raises ImportError where its packages are not installed."""
    import chatterbox  # noqa: F401 - the real package, not the recipe

    from benchmarks.recipe_runs import hooks

    return list(hooks("chatterbox_shared").STAGES)
