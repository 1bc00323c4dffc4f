"""Random graphs of layers, built on both sides: a right port is the same, a wrong one is wrong where the fault was planted."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import mlx.core as mx
import torch
from generated import Steps, generated, leaves, sequences
from mlx import nn
from pairs import Pair

import tracediff as td
from benchmarks.faults.plant import Fault, around, edited, planted

EXAMPLES = int(os.environ.get("TRACEDIFF_EXAMPLES", "6"))
drawn = settings(
    max_examples=EXAMPLES, derandomize="TRACEDIFF_EXAMPLES" not in os.environ, deadline=None, suppress_health_check=list(HealthCheck)
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 8), st.sampled_from((4, 6, 8)))


def reports(pair: Pair, folder: Path, reference: Path | None = None) -> dict[str, Any]:
    """The reports on a pair's port, forced and free."""
    if reference is None:
        reference = folder / "ref.h5"
        with torch.no_grad():
            td.capture(pair.reference, pair.run_reference, to=reference, force=True).close()
    for mode, given_ in (("forced", {"feed": reference}), ("free", {"random": reference})):
        td.capture(pair.port, pair.run_port, to=folder / f"{mode}.h5", force=True, repeat=False, **given_).close()
    return {mode: td.bisect(reference, folder / f"{mode}.h5") for mode in ("forced", "free")}


@drawn
@given(sequences(), shapes, st.integers(0, 99))
def test_a_right_port_of_any_graph_is_the_same(steps: Steps, shape: tuple[int, int, int], seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for mode, report in reports(generated(steps, shape, seed), Path(folder)).items():
            assert (mode, report.verdict, [str(one.site.reference) for one in report.divergences]) == (mode, "same", [])


# -- one fault -----------------------------------------------------------------------------------------------------------------------------


def on_output(change: Callable[[mx.array], mx.array]) -> Callable[[str], Any]:
    return lambda path: around(path, lambda call, module, *args: change(call(*args)))


def on_weight(change: Callable[[mx.array], mx.array]) -> Callable[[str], Any]:
    return lambda path: edited(path, "weight", change)


FAULTS: dict[str, tuple[Callable[[nn.Module], bool], Callable[[str], Any]]] = {
    "larger by a third": (lambda module: True, on_output(lambda y: 1.3 * y)),
    "shifted": (lambda module: True, on_output(lambda y: y + 0.3)),
    "channels backwards": (lambda module: True, on_output(lambda y: y[..., ::-1])),
    "weight of other rows": (lambda module: "weight" in module and module["weight"].ndim > 1, on_weight(lambda w: w[::-1])),
    "one row wrong": (lambda module: "weight" in module, on_weight(lambda w: mx.concatenate([w[:1] * 2 + 0.5, w[1:]]))),
    "left out": (lambda module: "weight" not in module, lambda path: around(path, lambda call, module, x: x)),
}


def outputs(pair: Pair, path: str) -> np.ndarray:
    """What a module of the port returns in a plain run."""
    kept: list[np.ndarray] = []

    def keep(call: Any, module: nn.Module, *args: Any) -> Any:
        made = call(*args)
        kept.append(np.array(made))
        return made

    with planted(pair.port, Fault("", "", path, around(path, keep))):
        pair.run_port()
    return kept[0]


def effect(pair: Pair, fault: Fault) -> float:
    """By how much a fault changes what its own module returns, and by how much the model's: the less of the two, relative."""
    changes = []
    for path in (fault.port, ""):
        before = outputs(pair, path)
        with planted(pair.port, fault):
            changes.append(float(np.linalg.norm(outputs(pair, path) - before) / max(np.linalg.norm(before), 1e-9)))
    return min(changes)


@drawn
@given(sequences(), shapes, st.integers(0, 99), st.data())
def test_a_planted_fault_is_found_where_it_is(steps: Steps, shape: tuple[int, int, int], seed: int, data: st.DataObject) -> None:
    pair = generated(steps, shape, seed)
    path, module = data.draw(st.sampled_from(sorted(leaves(pair.port), key=lambda one: one[0])), "layer")
    name = data.draw(st.sampled_from([name for name, (fits, _) in FAULTS.items() if fits(module)]), "fault")
    fault = Fault(name, "", path, FAULTS[name][1](path))
    assume(effect(pair, fault) > 1e-2)
    with tempfile.TemporaryDirectory() as folder, planted(pair.port, fault):
        for mode, report in reports(pair, Path(folder)).items():
            assert (mode, report.verdict) == (mode, "different")
            assert is_near(report.first.culprit.port, path), (mode, report.first.culprit.port, path, str(report))


def is_near(culprit: str, path: str) -> bool:
    """Whether a culprit is the planted module, or calls it."""
    above = path.rpartition(".")[0]
    return culprit in (path, above, above.rpartition(".")[0])
