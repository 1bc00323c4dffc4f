"""The weights of the real pair at small size: chatterbox-tts's against those that mlx-audio's port holds after its own conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracediff.dtype import Array
from tracediff.parameters.diagnosis import weights
from tracediff.show import weight_findings as shown

pytestmark = pytest.mark.real

Named = dict[str, Array]


@pytest.fixture(scope="module")
def sides() -> tuple[Named, Mapping[str, Any]]:
    """The reference's seeded weights, and the port that loaded them through its own conversion."""
    pytest.importorskip("mlx_audio")
    from tracediff.observe.context import Context
    from tracediff.observe.recipe import load_recipe

    recipe, context = load_recipe("chatterbox", "mlx"), Context(stages=("t3.transformer", "s3gen.encoder", "vocoder"))
    models = recipe.load(context)
    listed = {f"{root}.{name}": value for root in models for name, value in recipe.module.shared.reference_weights(context, root)}
    return listed, models


@pytest.fixture
def reference(sides: tuple[Named, Mapping[str, Any]]) -> Named:
    return dict(sides[0])


@pytest.fixture
def port(sides: tuple[Named, Mapping[str, Any]]) -> Named:
    from mlx.utils import tree_flatten

    found = {f"{root}.{name}": array for root, model in sides[1].items() for name, array in tree_flatten(model.parameters())}
    return {name: np.array(array) for name, array in found.items()}


def test_the_shipped_conversion_loads_everything(sides: tuple[Named, Mapping[str, Any]]) -> None:
    report = weights(*sides)
    assert report.verdict == "same", shown.text(report)
    assert report.equal == report.compared >= 600
    assert not [name for name in report.unexpected if name.endswith((".weight", ".bias")) and "lm_head" not in name]
    norm = "weight norm merged over axes (1, 2)"
    assert {"same", "(0, 2, 1)", f"{norm}; (0, 2, 1)", f"{norm}; (1, 2, 0)"} <= {one.layout for one in report.pairs}


def test_the_written_rules_reproduce_the_port(reference: Named, port: Named, tmp_path: Path) -> None:
    report = weights(reference, port)
    text = report.write_rules(tmp_path / "rules.py").read_text()
    names: dict[str, Any] = {}
    exec(compile(text, "rules.py", "exec"), names)
    made = names["sanitize"](dict(reference))
    assert sorted(made) == sorted(name for name in port if name not in report.unexpected)
    assert all(np.allclose(value, port[name], rtol=1e-5, atol=1e-7) for name, value in made.items())
    assert r'(r"\.attn1\.to_q\.", ".attn.query_proj.")' in text
    assert "int(m[1]) // 2" in text


def dropped_biases(port: Named) -> None:
    """The fault of a published conversion: the output projections' biases keep what their constructor gave them."""
    for name in port:
        if name.endswith("attn.out_proj.bias"):
            port[name] = np.random.default_rng(0).uniform(-0.1, 0.1, port[name].shape).astype(np.float32)


def undotted_blocks(port: Named) -> None:
    """An earlier release's fault: the conformer's blocks never found their names and kept their initialisation."""
    for name in port:
        if ".encoders_" in name:
            port[name] = np.random.default_rng(1).uniform(-0.1, 0.1, port[name].shape).astype(np.float32)


def swapped_norms(port: Named) -> None:
    names = [name for name in port if name.startswith("t3.") and "input_layernorm" in name]
    for name in names:
        other = name.replace("input_layernorm", "post_attention_layernorm")
        port[name], port[other] = port[other], port[name]


def transposed_projection(port: Named) -> None:
    name = "t3.tfmr.model.layers.1.self_attn.o_proj.weight"
    port[name] = port[name].T.copy()


@pytest.mark.parametrize(
    ("plant", "pattern", "kind"),
    [
        (dropped_biases, "*.attn1.to_out.0.bias", "weights.unloaded"),
        (undotted_blocks, "s3gen.flow.encoder.encoders.**", "weights.unloaded"),
        (swapped_norms, "t3.tfmr.layers.*.input_layernorm.weight", "weights.swapped"),
        (transposed_projection, "t3.tfmr.layers.1.self_attn.o_proj.weight", "weights.layout"),
    ],
)
def test_a_fault_of_the_port_is_named_before_any_run(
    reference: Named, port: Named, plant: Callable[[Named], None], pattern: str, kind: str
) -> None:
    whole = {name: value.copy() for name, value in port.items()}
    plant(port)
    planted = {name for name in port if not np.array_equal(port[name], whole[name])}
    report = weights(reference, port)
    assert {finding.port for finding in report.findings} == planted
    assert {group.kind for group in report.groups if group.kind} == {kind}
    assert pattern in [group.pattern for group in report.groups]
