"""Real PyTorch and MLX models written in different schemes are paired rightly, also in disguise and with faults."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

import pairs
from disguises import measure

EASY = ("natural", "anonymous", "shuffled", "early fault", "unloaded")


@pytest.mark.parametrize("name", pairs.PAIRS)
@pytest.mark.parametrize("condition", EASY)
def test_sites_are_paired_rightly(name, condition, tmp_path):
    score = measure(pairs.PAIRS[name], condition, 7, tmp_path)
    assert score.true > 4
    assert score.right >= 0.98 * max(score.true, score.stated), score.wrong


@pytest.mark.parametrize("name", ["gpt", "conv", "recurrent"])
def test_sites_are_paired_by_structure_and_order_where_every_weight_differs(name, tmp_path):
    score = measure(pairs.PAIRS[name], "all different", 7, tmp_path)
    assert score.right >= 0.95 * max(score.true, score.stated), score.wrong
