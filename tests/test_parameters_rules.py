"""Rules: the Python file that is written turns the reference's weights into those that the port should hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weights_pairs import SCHEMES, Named, port, transformer, values

from tracediff.errors import WeightsError
from tracediff.parameters.diagnosis import weights
from tracediff.parameters.edits import edits
from tracediff.parameters.renames import Renames, grouped


def sanitized(reference: Any, wrong: Any, path: Path, given_weights: Any = None) -> dict[str, Any]:
    """What the rules written for a pair make of the reference's weights."""
    written = weights(reference, wrong).write_rules(path / "rules.py")
    names: dict[str, Any] = {}
    exec(compile(written.read_text(), str(written), "exec"), names)
    made: dict[str, Any] = names["sanitize"](dict(given_weights or reference))
    return made


def assert_equal(made: dict[str, Any], wanted: Named, tolerance: float = 0.0) -> None:
    assert sorted(made) == sorted(wanted)
    for name, value in wanted.items():
        assert tuple(made[name].shape) == value.shape, name
        assert np.allclose(np.array(made[name]), value, rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_rules_reproduce_the_port(tmp_path: Path, scheme: str) -> None:
    reference = transformer()
    wanted = port(reference, SCHEMES[scheme])
    assert_equal(sanitized(reference, wanted, tmp_path), wanted)


def test_the_rules_are_a_few_general_lines(tmp_path: Path) -> None:
    reference = transformer()
    text = weights(reference, port(reference)).write_rules(tmp_path / "rules.py").read_text()
    assert r'(r"\.to_q\.", ".query_proj.")' in text or r'(r"\.attn1\.to_q\.", ".attn.query_proj.")' in text
    assert r'r"blocks_\1."' in text
    assert '(r"", 3, (0, 2, 1)),' in text
    assert len(re.findall(r'^    \(r"', text, re.MULTILINE)) <= 9
    assert max(map(len, text.splitlines())) <= 140
    assert "layers.2" not in text


def test_the_rules_put_right_what_the_port_has_wrong(tmp_path: Path) -> None:
    reference = transformer()
    wanted = port(reference)
    wrong = {name: value.copy() for name, value in wanted.items()}
    one, other = (f"blocks_1.attn.{part}_proj.weight" for part in ("query", "key"))
    wrong[one], wrong[other] = wrong[other], wrong[one]
    wrong["blocks_0.attn.out_proj.weight"] = wrong["blocks_0.attn.out_proj.weight"].T.copy()
    wrong["blocks_2.conv.weight"] = np.random.default_rng(0).standard_normal((24, 5, 40)).astype(np.float32)
    wrong["blocks_3.conv.weight"] = reference["layers.3.conv.weight"].reshape(24, 5, 40)
    wrong["blocks_2.ff.layers.1.weight"] *= 3
    assert_equal(sanitized(reference, wrong, tmp_path), wanted)


def test_the_rules_merge_join_cut_stack_add_and_drop(tmp_path: Path) -> None:
    reference: Named = {"step": np.array(4)}
    wanted: Named = {}
    for n in range(3):
        g, v = np.abs(values(f"g{n}", 12, 1, 1)) + np.float32(0.5), values(f"v{n}", 12, 9, 5)
        reference |= {f"conv.{n}.weight_g": g, f"conv.{n}.weight_v": v}
        wanted[f"convs_{n}.weight"] = (g * v / np.sqrt(np.square(v).sum((1, 2), keepdims=True))).transpose(0, 2, 1)
        parts = {p: values(f"{p}{n}", 16, 16) for p in "qkv"}
        reference |= {f"attn.{n}.{p}.weight": part for p, part in parts.items()}
        wanted[f"attention.{n}.qkv.weight"] = np.concatenate(list(parts.values()))
        whole = values(f"in{n}", 30, 16)
        reference[f"cross.{n}.kv_weight"] = whole
        wanted |= {f"cross.{n}.key.weight": whole[:15], f"cross.{n}.value.weight": whole[15:]}
        reference |= {f"lstm.bias_ih_l{n}": values(f"ih{n}", 20), f"lstm.bias_hh_l{n}": values(f"hh{n}", 20)}
        wanted[f"lstm.{n}.bias"] = reference[f"lstm.bias_ih_l{n}"] + reference[f"lstm.bias_hh_l{n}"]
        experts = {f"moe.{n}.experts.{e}.w1.weight": values(f"e{n}{e}", 7, 6) for e in range(11)}
        reference |= experts
        wanted[f"moe.{n}.switch.w1.weight"] = np.stack(list(experts.values()))
        reference[f"point.{n}.weight"] = values(f"p{n}", 14, 11)
        wanted[f"point.{n}.weight"] = reference[f"point.{n}.weight"].reshape(14, 1, 11)
    assert_equal(sanitized(reference, wanted, tmp_path), wanted, 1e-6)


def test_the_rules_work_on_mlx_arrays(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    reference = {f"attn.{n}.{p}.weight": values(f"{p}{n}", 16, 16) for p in "qkv" for n in range(2)} | {"conv.weight": values("c", 8, 6, 3)}
    wanted = {f"attn.{n}.qkv.weight": np.concatenate([reference[f"attn.{n}.{p}.weight"] for p in "qkv"]) for n in range(2)}
    wanted["conv.weight"] = reference["conv.weight"].transpose(0, 2, 1)
    arrays = {name: mx.array(value) for name, value in reference.items()}
    made = sanitized(reference, wanted, tmp_path, arrays)
    assert all(isinstance(value, mx.array) for value in made.values())
    assert_equal(made, wanted)


def test_no_rules_are_written_where_nothing_came_from_the_reference(tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        weights({"a": values("a", 3, 5, 7)}, {"b": values("b", 11, 13)}).write_rules(tmp_path / "rules.py")


# -- names -------------------------------------------------------------------------------------------------------------


words = st.sampled_from(["attn", "mlp", "norm", "conv", "q", "proj", "enc"])
paths = st.lists(st.one_of(words, st.integers(0, 12).map(str)), min_size=1, max_size=5).map(".".join)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(paths, paths, min_size=1, max_size=12))
def test_edits_lead_every_name_to_its_goal(pairs: dict[str, str]) -> None:
    found = edits(pairs)
    assert {name: found(name) for name in pairs} == pairs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=3, max_size=9, unique=True), st.integers(1, 3), st.integers(0, 5))
def test_renumbering_in_order_is_learnt_and_continued(layers: list[int], step: int, shift: int) -> None:
    renames = Renames([(f"h.{step * n}.w", f"layer_{n + shift}.weight") for n in layers])
    assert all(renames(f"h.{step * n}.w") == f"layer_{n + shift}.weight" for n in layers)
    assert renames(f"h.{step * (max(layers) + 1)}.w") == f"layer_{max(layers) + 1 + shift}.weight"


def test_patterns_put_the_count_on_what_varies() -> None:
    names = [f"down.0.1.{n}.attn1.to_out.0.bias" for n in range(4)] + [
        f"mid.{m}.1.{n}.attn1.to_out.0.bias" for m in range(3) for n in range(4)
    ]
    assert [(text, len(found)) for text, found in grouped(names)] == [("*.attn1.to_out.0.bias", 16)]
