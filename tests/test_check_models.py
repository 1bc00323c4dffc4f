"""check on real frameworks: a recipe's two sides, and a bfloat16 port against a thin reference with the noise floor of its dtype."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracediff import api, checking

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")

pytestmark = pytest.mark.slow

RECIPES = """
[cases.whole]
recipe = "my_model"
keep = "full"

[cases.head]
recipe = "my_model"
stages = ["head"]
"""
HALF = """
[cases.half]
reference = "cases.py:reference"
port = "cases.py:port"
dtype = "bfloat16"
"""
CODE = """
import numpy as np
import mlx.core as mx
import torch
from mlx import nn as mnn
from torch import nn

X = np.random.default_rng(0).standard_normal((4, 9, 16)).astype(np.float32)
EPS = 1e-5

class Port(mnn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = mnn.LayerNorm(16, eps=EPS), mnn.Linear(16, 64), mnn.Linear(64, 16)

    def __call__(self, x):
        return x + self.down(mnn.gelu(self.up(self.norm(x))))

class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

def reference():
    return Reference().eval(), {"x": X}

def port():
    made = Port()
    made.load_weights([(name, mx.array(value.detach().numpy())) for name, value in Reference().state_dict().items()])
    made.set_dtype(mx.bfloat16)
    return made, {"x": mx.array(X).astype(mx.bfloat16)}
"""


def states(root: Path) -> dict[str, tuple[str, list[str]]]:
    found = checking.check(config=root / "tracediff.toml")
    return {case.case: (case.state, [fault.site for fault in case.faults if fault.state != "fixed"]) for case in found.cases}


def test_a_recipe_is_checked_as_a_whole_and_a_stage_alone(tmp_path: Path) -> None:
    (tmp_path / "tracediff.toml").write_text(RECIPES)
    api.write_recipes("my_model", tmp_path / "hooks")
    checking.update(config=tmp_path / "tracediff.toml")
    assert states(tmp_path) == {"whole": ("same", []), "head": ("same", [])}
    port = tmp_path / "hooks" / "my_model_mlx.py"
    right = port.read_text(encoding="utf-8")
    port.write_text(right.replace("nn.LayerNorm(24)", "nn.LayerNorm(24, eps=1e-2)"), encoding="utf-8")
    assert states(tmp_path) == {"whole": ("different", ["model.norm"]), "head": ("same", [])}
    port.write_text(right, encoding="utf-8")
    assert states(tmp_path) == {"whole": ("same", []), "head": ("same", [])}


def test_a_port_in_half_precision_is_judged_by_its_noise_and_a_fault_in_it_is_found(tmp_path: Path) -> None:
    (tmp_path / "tracediff.toml").write_text(HALF)
    (tmp_path / "cases.py").write_text(CODE)
    checking.update(config=tmp_path / "tracediff.toml")
    assert states(tmp_path) == {"half": ("same", [])}
    (tmp_path / "cases.py").write_text(CODE.replace("EPS = 1e-5", "EPS = 3.0"))
    assert states(tmp_path) == {"half": ("different", ["norm"])}
