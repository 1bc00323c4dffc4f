"""Real PyTorch and MLX models written in different schemes are paired rightly, also in disguise and with faults."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import pairs
from disguises import capture, measure

from tracediff.alignment import align

EASY = ("natural", "anonymous", "shuffled", "early fault", "unloaded")


@pytest.mark.parametrize("name", pairs.PAIRS)
@pytest.mark.parametrize("condition", EASY)
def test_sites_are_paired_rightly(name, condition, tmp_path):
    score = measure(pairs.PAIRS[name], condition, 7, tmp_path)
    assert score.true > 4
    assert score.right >= 0.98 * max(score.true, score.stated), score.wrong


def test_the_part_of_a_fused_projection_that_was_not_loaded_is_still_known(tmp_path):
    pair = pairs.unloaded(pairs.gpt(layers=2), r"^layers\.1\.self_attn\.key_proj\.")
    alignment = align(*capture(pair, tmp_path))
    parts = {one.port: (one.reference, one.part.start, one.part.stop) for one in alignment.paired if one.part is not None}
    assert parts["layers.1.self_attn.key_proj"] == ("h.1.attn.c_attn", 32, 64)
    assert len(parts) == 6


@pytest.mark.parametrize("name", ["gpt", "conv", "recurrent"])
def test_sites_are_paired_by_structure_and_order_where_every_weight_differs(name, tmp_path):
    score = measure(pairs.PAIRS[name], "all different", 7, tmp_path)
    assert score.right >= 0.95 * max(score.true, score.stated), score.wrong
