"""Parameters: equal ones are recognised however they were rearranged, and none where nothing is equal."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tracediff.alignment.axes import Part
from tracediff.alignment.parameters import shared_parameters
from tracediff.trace import TraceWriter, open_trace

RANDOM = np.random.default_rng(3)


def drawn(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


@pytest.fixture
def shared(tmp_path):
    """Writes two sets of parameters to traces and gives back what is found to be shared, as {reference: (port, Shared)}."""

    def find(reference, port):
        traces = []
        for name, params in (("reference", reference), ("port", port)):
            with TraceWriter(tmp_path / f"{name}.h5") as writer:
                for param, values in params.items():
                    writer.add_param(param, values, path=param.rpartition(".")[0], kind="parameter")
            traces.append(list(open_trace(tmp_path / f"{name}.h5").params.values()))
        found = {}
        for one in shared_parameters(*traces):
            found.setdefault(traces[0][one.reference].name, []).append((traces[1][one.port].name, one))
        return found

    return find


def only(found, name):
    ((port, one),) = found[name]
    return port, one


def test_a_transposed_weight_is_recognised_among_others_of_its_shape(shared):
    weights = {f"l.{i}.weight": drawn(12, 8, 3) for i in range(6)}
    found = shared(weights, {f"m.{5 - i}.w": weights[f"l.{i}.weight"].transpose(0, 2, 1) for i in range(6)})
    assert {name: only(found, name)[0] for name in weights} == {f"l.{i}.weight": f"m.{5 - i}.w" for i in range(6)}
    assert "transposed" in only(found, "l.0.weight")[1].how


def test_square_weights_are_recognised_through_a_transpose(shared):
    weights = {f"l.{i}.weight": drawn(16, 16) for i in range(4)}
    found = shared(weights, {f"m.{i}.w": weights[f"l.{i}.weight"].T for i in range(4)})
    assert [only(found, f"l.{i}.weight")[0] for i in range(4)] == [f"m.{i}.w" for i in range(4)]


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_rounding_hides_no_parameter(shared, kind):
    weights = {f"l.{i}.weight": drawn(24, 16) for i in range(5)} | {f"l.{i}.bias": 1 + 0.1 * drawn(24) for i in range(5)}
    found = shared(weights, {name: values.astype(kind) for name, values in weights.items()})
    assert {name: only(found, name)[0] for name in weights} == {name: name for name in weights}


def test_fused_projections_are_matched_by_blocks(shared):
    q, k, v = drawn(16, 16), drawn(8, 16), drawn(8, 16)
    found = shared({"q.weight": q, "k.weight": k, "v.weight": v}, {"qkv.weight": np.concatenate([q, k, v])})
    assert {name: only(found, name)[1].part for name in found} == {
        "q.weight": Part(0, 0, 16),
        "k.weight": Part(0, 16, 24),
        "v.weight": Part(0, 24, 32),
    }


def test_a_fused_reference_is_matched_by_the_ports_parts(shared):
    q, k = drawn(16, 12), drawn(16, 12)
    found = shared({"qk.weight": np.concatenate([q, k])}, {"q.w": q, "k.w": k})
    assert {(port, one.part, one.whole) for port, one in found["qk.weight"]} == {
        ("q.w", Part(0, 0, 16), "reference"),
        ("k.w", Part(0, 16, 32), "reference"),
    }


def test_projections_fused_head_by_head_are_matched_in_runs(shared):
    heads = {name: drawn(4, 8, 32) for name in "qkv"}
    fused = np.stack(list(heads.values()), 1).reshape(96, 32)
    found = shared({f"{name}.weight": value.reshape(32, 32) for name, value in heads.items()}, {"qkv.weight": fused})
    assert only(found, "k.weight")[1].part == Part(0, 8, 16, groups=4)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_rounding_hides_no_block(shared, kind):
    fused = {"qkv.weight": drawn(48, 16)} | {f"l.{i}.weight": drawn(48, 16) for i in range(40)}
    parts = {f"{name}.weight": fused["qkv.weight"][16 * i : 16 * (i + 1)].astype(kind) for i, name in enumerate("qkv")}
    found = shared(fused, parts)
    assert {port: one.part for port, one in found["qkv.weight"]} == {
        f"{name}.weight": Part(0, 16 * i, 16 * i + 16) for i, name in enumerate("qkv")
    }
    assert list(found) == ["qkv.weight"]


def _in_bfloat16(params):
    return {name: values.astype(ml_dtypes.bfloat16) for name, values in params.items()}


def test_few_rows_in_half_precision_are_a_block_together_with_their_bias(shared):
    whole = {"conv.weight": drawn(8, 3, 8), "conv.bias": drawn(8)}
    found = shared(whole, _in_bfloat16({"half.weight": whole["conv.weight"][4:], "half.bias": whole["conv.bias"][4:]}))
    assert {only(found, name)[1].part for name in whole} == {Part(0, 4, 8)}


def test_a_block_of_few_rows_is_told_where_few_others_were_tried(shared):
    whole = {"conv.weight": drawn(8, 3, 8), "conv.bias": drawn(8)}
    found = shared(whole, _in_bfloat16({"half.weight": whole["conv.weight"][4:], "half.bias": drawn(4)}))
    assert list(found) == ["conv.weight"]


def test_two_rows_in_half_precision_are_no_block_by_themselves(shared):
    whole = {"conv.weight": drawn(8, 3, 8), "conv.bias": drawn(8)}
    assert not shared(whole, _in_bfloat16({"two.weight": whole["conv.weight"][6:], "two.bias": drawn(2)}))


def test_no_chance_agreement_of_few_rows_among_many_is_a_block(shared):
    wholes = {f"conv.{i}.weight": drawn(64, 3, 8) for i in range(100)}
    assert not shared(wholes, _in_bfloat16({f"part.{i}.weight": drawn(4, 3, 8) for i in range(100)}))


def test_a_merged_weight_norm_is_recognised_by_the_signs_of_its_rows(shared):
    weights = {f"c.{i}.v": drawn(64, 8, 3) for i in range(4)}
    merged = {
        f"d.{i}.w": value * np.abs(drawn(64, 1, 1)) / np.linalg.norm(value, axis=(1, 2), keepdims=True)
        for i, value in enumerate(weights.values())
    }
    found = shared(weights, merged)
    assert [only(found, f"c.{i}.v")[0] for i in range(4)] == [f"d.{i}.w" for i in range(4)]


def test_rows_permuted_for_a_rotary_embedding_are_the_same_values(shared):
    weight = drawn(32, 16)
    permuted = weight.reshape(2, 8, 2, 16).swapaxes(1, 2).reshape(32, 16)
    assert "another order" in only(shared({"q.weight": weight}, {"q.weight": permuted}), "q.weight")[1].how


def test_weights_that_were_not_loaded_are_matched_with_nothing(shared):
    assert not shared({f"l.{i}.weight": drawn(32, 32) for i in range(8)}, {f"l.{i}.weight": drawn(32, 32) for i in range(8)})


def test_constants_say_nothing(shared):
    assert not shared({"a.weight": np.ones(16, np.float32)}, {"b.weight": np.ones(16, np.float32)})


def test_tied_weights_are_weaker_evidence_the_more_there_are(shared):
    weight = drawn(10, 6)
    found = shared({"emb.weight": weight, "head.weight": weight}, {"wte.w": weight, "out.w": weight})
    assert {one.weight for pairs in found.values() for _, one in pairs} == {0.5}
