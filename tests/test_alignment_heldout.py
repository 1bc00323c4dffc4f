"""Pairs of other architectures are paired rightly under every condition, and what stands elsewhere in the port is no divergence."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import heldout
import mlx.core as mx
import torch
from disguises import CONDITIONS, capture, measure

import tracediff as td
from tracediff.alignment import align
from tracediff.locate import locate

LEAST = {"natural": 0.99, "anonymous": 0.97, "shuffled": 0.97, "early fault": 0.97, "unloaded": 0.97, "all different": 0.95}


@pytest.mark.parametrize("name", heldout.PAIRS)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_sites_are_paired_rightly_under_every_condition(name, condition, tmp_path):
    score = measure(heldout.PAIRS[name], condition, 1, tmp_path)
    assert score.right >= LEAST[condition] * max(score.stated, score.true), score.wrong


@pytest.mark.parametrize("name", heldout.PAIRS)
def test_a_scale_or_position_applied_elsewhere_is_no_divergence_in_a_free_run(name, tmp_path):
    reference, port = capture(heldout.PAIRS[name](), tmp_path)
    located = locate(align(reference, port), reference, port, scan=True)
    assert located.findings == ()


FAULTS = {"mixer": ("layers.1.within.w2", "stages.1.channel_out"), "shared": ("rec.o", "block.recurrence.out_proj")}


@pytest.mark.parametrize("name", heldout.PAIRS)
def test_behind_a_moved_boundary_a_forced_run_names_the_fault_and_nothing_else(name, tmp_path):
    pair = heldout.PAIRS[name]()
    with torch.no_grad():
        td.capture(pair.reference, pair.run_reference, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    path, culprit = FAULTS[name]
    for fault in (False, True):
        if fault:
            module = dict(pair.port.named_modules())[path]
            module.weight = mx.array(np.array(module.weight) * 1.4)
        port = td.capture(pair.port, pair.run_port, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5", force=True)
        with td.open_trace(tmp_path / "ref.h5") as reference, port:
            found = locate(align(reference, port), reference, port).findings
        assert [finding.culprit for finding in found] == ([(culprit, path)] if fault else [])
