"""Square pairs of both frameworks: a correct port is the same, forced and free, and a fault is named where it is, with nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")

import tracediff as td  # noqa: E402
from benchmarks.squares import made, truth_of_layouts, wrong_layouts  # noqa: E402

FAULTS = {"wavenet-cube": ("stack.1.causal.conv", "layers.1.filter_gate"), "recurrent-cube": ("fc.0", "inner")}


@pytest.mark.parametrize("name", FAULTS)
def test_square_tensors_are_read_rightly_in_a_correct_port_and_behind_a_fault(tmp_path: Path, name: str) -> None:
    pair = made(name)
    path, culprit = FAULTS[name]
    with torch.no_grad():
        td.capture(pair.reference, pair.run_reference, to=tmp_path / "ref.h5", repeat=False).close()
    with td.open_trace(tmp_path / "ref.h5") as reference:
        known = None
        for fault in (False, True):
            if fault:
                module = dict(pair.port.named_modules())[path]
                module.weight = mx.array(np.array(module.weight) * 1.4)
            for fed in ({}, {"feed": tmp_path / "ref.h5"}):
                with td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", force=True, repeat=False, **fed) as port:
                    known = known or truth_of_layouts(reference, port)
                    assert wrong_layouts(td.align(reference, port), reference, port, known)[0] == []
                    found = td.bisect(reference, port).divergences
                    assert {one.culprit.reference for one in found[:1]} == ({culprit} if fault else set())
                    assert len(found) == (1 if fault else 0) or not fed
