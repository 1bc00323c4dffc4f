"""The comparison of weights: what is equal whatever its name and layout, and what each planted fault is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from weights_pairs import HIDDEN, LAYERS, SCHEMES, WIDTH, Named, mlx_names, port, transformer, values

from tracediff.causes import from_weights
from tracediff.dtype import Array
from tracediff.errors import WeightsError
from tracediff.parameters.diagnosis import WeightsReport, weights
from tracediff.show import weight_findings as shown
from tracediff.trace.writer import TraceWriter

Q, K, V = (f"blocks_2.attn.{part}_proj.weight" for part in ("query", "key", "value"))


def kinds(report: WeightsReport) -> dict[str, str]:
    """Kind by the port's name (the reference's where the port has none)."""
    return {finding.port or finding.reference: finding.kind for finding in report.findings if not finding.expected}


def evidence(report: WeightsReport, name: str) -> str:
    return next(finding.evidence for finding in report.findings if name in (finding.port, finding.reference))


# -- what is the same ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_converted_model_is_the_same_whatever_its_names(scheme: str) -> None:
    reference = transformer()
    report = weights(reference, port(reference, SCHEMES[scheme]))
    assert report.verdict == "same"
    assert report.equal == report.compared == report.total == len(reference)
    assert not report.findings
    assert not report.unexpected
    moved = {one.reference[0]: one.layout for one in report.pairs if one.layout != "same"}
    assert moved == {f"layers.{layer}.conv.weight": "(0, 2, 1)" for layer in range(LAYERS)}


@pytest.mark.parametrize("seed", range(3))
def test_names_without_meaning_in_any_order_are_paired_by_values_alone(seed: int) -> None:
    reference = transformer()
    names = list(port(reference))
    order = np.random.default_rng(seed).permutation(len(names))
    anonymous = {f"t{place}": port(reference)[names[index]] for place, index in enumerate(order)}
    report = weights(reference, anonymous)
    assert report.verdict == "same"
    assert all(mlx_names(one.reference[0]) == names[order[int(one.port[1:])]] for one in report.pairs)


def test_fused_projections_are_seen_on_either_side() -> None:
    apart = {f"{n}.{p}.weight": values(f"{n}{p}", WIDTH, WIDTH) for n in range(3) for p in "qkv"}
    fused = {f"{n}.qkv": np.concatenate([apart[f"{n}.{p}.weight"] for p in "qkv"]) for n in range(3)}
    joined, cut = weights(apart, fused), weights(fused, apart)
    assert joined.verdict == cut.verdict == "same"
    assert joined.pairs[1].reference == ("1.q.weight", "1.k.weight", "1.v.weight")
    assert [one.layout for one in cut.pairs[:3]] == [f"{a}:{a + WIDTH} of axis 0" for a in (0, WIDTH, 2 * WIDTH)]


def test_a_vector_of_few_values_is_told_as_a_part_beside_its_matrix(tmp_path: Path) -> None:
    whole = {f"{name}.weight": values(name, size, 16) for name, size in (("inner", 16), ("outer", 7))}
    whole |= {f"{name}.bias": values(name + "b", size) for name, size in (("inner", 16), ("outer", 7))}
    rows = {"inner": (slice(0, 8), slice(8, 16)), "outer": (slice(0, 3), slice(3, 7))}
    parts = {
        f"fc.{place}.parts.{part}.{kind}": whole[f"{name}.{kind}"][of]
        for place, name in enumerate(rows)
        for part, of in enumerate(rows[name])
        for kind in ("weight", "bias")
    }
    assert weights(*as_traces(tmp_path, whole, parts)).verdict == "same"
    (tmp_path / "wrong").mkdir()
    wrong = parts | {"fc.1.parts.0.bias": values("other", 3)}
    assert weights(*as_traces(tmp_path / "wrong", whole, wrong)).verdict == "different"


def test_a_fused_projection_with_one_part_that_never_loaded_is_not_the_same() -> None:
    apart = {f"{n}.{p}.weight": values(f"{n}{p}", WIDTH, WIDTH) for n in range(3) for p in "qkv"}
    fused = {f"{n}.qkv.weight": np.concatenate([apart[f"{n}.{p}.weight"] for p in "qkv"]) for n in range(3)}
    fused["1.qkv.weight"][WIDTH : 2 * WIDTH] = values("fresh", WIDTH, WIDTH)
    report = weights(apart, fused)
    assert report.verdict == "different"
    assert "rows 24:48 of 72 differ" in evidence(report, "1.qkv.weight")


def test_a_block_of_a_fused_projection_that_was_never_loaded_is_named() -> None:
    fused = {f"{n}.in_proj_weight": values(f"{n}", 3 * WIDTH, WIDTH) for n in range(3)}
    apart = {
        f"{n}.{p}_proj.weight": fused[f"{n}.in_proj_weight"][i * WIDTH : (i + 1) * WIDTH] for n in range(3) for i, p in enumerate("qkv")
    }
    assert weights(fused, apart).verdict == "same"
    report = weights(fused, apart | {"1.k_proj.weight": fresh((WIDTH, WIDTH))})
    assert kinds(report) == {"1.k_proj.weight": "weights.unloaded"}


@pytest.mark.parametrize("stored", [True, False], ids=["by values", "by fingerprints"])
@pytest.mark.parametrize("shape", [(24, 16), (6,)], ids=["experts", "vectors"])
def test_tensors_stacked_on_a_new_axis_are_the_same(shape: tuple[int, ...], stored: bool, tmp_path: Path) -> None:
    experts = {f"moe.experts.{n}.w1.weight": values(str(n), *shape) for n in range(12)}
    stacked = {"moe.switch.w1.weight": np.stack(list(experts.values()))}
    report = weights(experts, stacked) if stored else weights(*as_traces(tmp_path, experts, stacked))
    assert report.verdict == "same"
    assert report.pairs[0].reference == tuple(experts)


@pytest.mark.parametrize("stored", [True, False], ids=["by values", "by fingerprints"])
def test_a_stack_of_which_a_part_is_another_tensor_is_not_the_same(stored: bool, tmp_path: Path) -> None:
    router = {"moe.router.weight": values("router", 4, WIDTH)}
    experts = router | {f"moe.experts.{n}.w1.weight": values(str(n), HIDDEN, WIDTH) for n in range(4)}
    wrong = router | {"moe.switch.w1.weight": np.stack([*list(experts.values())[1:4], values("other", HIDDEN, WIDTH)])}
    assert (weights(experts, wrong) if stored else weights(*as_traces(tmp_path, experts, wrong))).verdict != "same"


def weight_norm(shape: tuple[int, ...], axis: int, name: str) -> tuple[Array, Array]:
    sizes = [size if place == axis else 1 for place, size in enumerate(shape)]
    return np.abs(values(name + "g", *sizes)) + np.float32(0.5), values(name + "v", *shape)


def normed(g: Array, v: Array, axes: tuple[int, ...]) -> Array:
    merged: Array = (g * v / np.sqrt(np.square(v).sum(axes, keepdims=True))).astype(np.float32)
    return merged


@pytest.mark.parametrize(
    ("gain", "direction"), [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")]
)
def test_a_merged_weight_norm_is_the_same_and_one_merged_over_other_axes_is_named(gain: str, direction: str) -> None:
    reference: Named = {}
    merged: Named = {}
    for layer in range(4):
        g, v = weight_norm((12, 9, 5), 0, str(layer))
        reference |= {f"convs.{layer}.{gain}": g, f"convs.{layer}.{direction}": v, f"convs.{layer}.bias": values(f"b{layer}", 12)}
        merged |= {f"convs.{layer}.weight": normed(g, v, (1, 2)).transpose(0, 2, 1), f"convs.{layer}.bias": values(f"b{layer}", 12)}
    assert weights(reference, merged).verdict == "same"
    g, v = reference[f"convs.2.{gain}"], reference[f"convs.2.{direction}"]
    for wrong, said in {
        "axes": (normed(g, v, (1,)), "over axes (1,) instead of (1, 2)"),
        "gain": (normed(np.ones_like(g), v, (1, 2)), "without its gain"),
        "norm": (g * v, "without its norm"),
        "raw": (v, "direction stands for the weight"),
    }.values():
        report = weights(reference, merged | {"convs.2.weight": wrong.transpose(0, 2, 1)})
        assert kinds(report) == {"convs.2.weight": "weights.value"}, said
        assert said in evidence(report, "convs.2.weight")
        assert report.different[0].confirmed


HALF = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WRONG_MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "over axes (1,) instead of (1, 2)": lambda g, v: normed(g, v, (1,)),
    "over axes (0, 1, 2) instead of (1, 2)": lambda g, v: normed(g, v, (0, 1, 2)),
    "without its gain": lambda g, v: normed(np.ones_like(g), v, (1, 2)),
    "without its norm": lambda g, v: g * v,
    "direction stands for the weight": lambda g, v: v,
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("near", [False, True], ids=["any gain", "a gain near the norm"])
@pytest.mark.parametrize("reference_too", [False, True], ids=["from float32", "from half"])
@pytest.mark.parametrize("said", WRONG_MERGES)
def test_a_wrong_merge_in_half_precision_is_never_the_same(dtype: str, near: bool, reference_too: bool, said: str) -> None:
    reference: Named = {}
    merged: Named = {}
    for layer in range(4):
        g, v = weight_norm((12, 9, 5), 0, str(layer))
        g = np.sqrt(np.square(v).sum((1, 2), keepdims=True)) * (1 + np.float32(0.01) * g) if near else g
        held = {f"convs.{layer}.weight_g": g, f"convs.{layer}.weight_v": v}
        held = {name: value.astype(HALF[dtype] if reference_too else np.float32) for name, value in held.items()}
        reference |= held
        g, v = (value.astype(np.float32) for value in held.values())
        merged[f"convs.{layer}.weight"] = normed(g, v, (1, 2)).transpose(0, 2, 1).astype(HALF[dtype])
    assert weights(reference, merged).verdict == "same"
    g, v = (reference[f"convs.2.weight_{part}"].astype(np.float32) for part in "gv")
    report = weights(reference, merged | {"convs.2.weight": WRONG_MERGES[said](g, v).transpose(0, 2, 1).astype(HALF[dtype])})
    assert kinds(report) == {"convs.2.weight": "weights.value"}
    assert said in evidence(report, "convs.2.weight")


def test_the_two_biases_of_an_lstm_may_be_one_sum() -> None:
    reference: Named = {}
    merged: Named = {}
    for layer in range(3):
        one, other = values(f"ih{layer}", 64), values(f"hh{layer}", 64)
        reference |= {
            f"lstm.bias_ih_l{layer}": one,
            f"lstm.bias_hh_l{layer}": other,
            f"lstm.weight_ih_l{layer}": values(f"w{layer}", 64, 16),
        }
        merged |= {f"lstm.layers.{layer}.bias": one + other, f"lstm.layers.{layer}.Wx": values(f"w{layer}", 64, 16)}
    report = weights(reference, merged)
    assert report.verdict == "same"
    assert report.pairs[0].layout == "sum"


def test_tied_tensors_and_those_without_values_are_not_missing() -> None:
    reference = transformer()
    reference["head.weight"] = reference["embed.weight"]
    reference["norm.num_batches_tracked"] = np.array(7)
    tied = port(transformer())
    del tied["head.weight"]
    report = weights(reference, tied)
    assert report.verdict == "same"
    assert report.tied == {"head.weight": "embed.weight"}
    assert [finding.expected for finding in report.missing] == [True]


def test_the_ports_own_constants_are_unexpected_but_no_fault() -> None:
    report = weights(transformer(), port(transformer()) | {"rand_noise": values("noise", 1, 80, 30), "pe": values("pe", 1, 90, 12)})
    assert report.verdict == "same"
    assert report.unexpected == ("rand_noise", "pe")


# -- what is wrong ----------------------------------------------------------------------------------------------------


def fresh(shape: tuple[int, ...]) -> Array:
    """A framework's default initialisation."""
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(shape[-1]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("layers.2.attn1.to_q.weight", lambda v: fresh(v.shape), "weights.unloaded"),
        ("layers.1.ff.net.2.weight", np.zeros_like, "weights.unloaded"),
        ("layers.0.norm1.weight", np.ones_like, "weights.unloaded"),
        ("layers.3.attn1.to_out.0.bias", np.zeros_like, "weights.missing_bias"),
        ("layers.3.attn1.to_out.0.weight", lambda v: v.T.copy(), "weights.layout"),
        ("layers.2.conv.weight", lambda v: v.transpose(0, 2, 1).reshape(v.shape).copy(), "weights.layout"),
        ("layers.2.attn1.to_k.weight", lambda v: v.reshape(3, 2, 4, -1).transpose(0, 2, 1, 3).reshape(v.shape), "weights.layout"),
        ("layers.2.attn1.to_k.weight", lambda v: v[::-1].copy(), "weights.layout"),
        ("layers.1.norm2.bias", lambda v: v.astype(np.float16).astype(np.float32), "weights.precision"),
        ("layers.1.conv.weight", lambda v: v.astype(ml_dtypes.bfloat16).astype(np.float32), "weights.precision"),
        ("layers.1.attn1.to_v.weight", lambda v: (v.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32), "weights.precision"),
        ("layers.0.ff.net.2.weight", lambda v: np.round(v * 4) / np.float32(4), "weights.precision"),
        ("layers.0.attn1.to_q.weight", lambda v: v * np.float32(WIDTH**-0.5), "weights.value"),
        ("layers.0.norm1.weight", lambda v: v - np.float32(1), "weights.value"),
        ("layers.0.conv.weight", lambda v: v + np.float32(1e-3) * fresh(v.shape), "weights.value"),
        ("embed.weight", lambda v: np.concatenate([v[:40], fresh((10, WIDTH))]), "weights.value"),
    ],
)
def test_one_fault_in_one_tensor_is_called_by_its_kind_and_nothing_else_is(
    scheme: str, name: str, make: Callable[[Array], Array], kind: str
) -> None:
    reference = transformer()
    faulty = port(reference, SCHEMES[scheme])
    place = SCHEMES[scheme](name)
    faulty[place] = make(faulty[place]).astype(np.float32)
    report = weights(reference, faulty)
    assert report.verdict == "different"
    assert kinds(report) == {place: kind}
    assert report.different[0].reference == name
    assert report.equal == report.total - 1


def test_exchanged_siblings_are_named_on_both_places() -> None:
    reference = transformer()
    faulty = port(reference)
    faulty[Q], faulty[K] = faulty[K], faulty[Q]
    report = weights(reference, faulty)
    assert kinds(report) == {Q: "weights.swapped", K: "weights.swapped"}
    assert "'layers.2.attn1.to_k.weight'" in evidence(report, Q)
    assert "exchanged" in evidence(report, Q)


def test_norms_exchanged_in_every_layer_are_seen_by_their_numbers() -> None:
    reference = transformer()
    faulty = port(reference)
    for layer in range(LAYERS):
        one, other = (f"blocks_{layer}.norm{n}.weight" for n in (1, 2))
        faulty[one], faulty[other] = faulty[other], faulty[one]
    report = weights(reference, faulty)
    assert [finding.kind for finding in report.findings] == 2 * LAYERS * ["weights.swapped"]
    assert [group.pattern for group in report.groups] == ["layers.*.norm*.weight"]


def test_keys_and_queries_exchanged_in_every_layer_are_seen_by_their_words() -> None:
    reference = transformer()
    faulty = port(reference)
    for layer in range(LAYERS):
        one, other = (f"blocks_{layer}.attn.{part}_proj.weight" for part in ("query", "key"))
        faulty[one], faulty[other] = faulty[other], faulty[one]
    report = weights(reference, faulty)
    assert [finding.kind for finding in report.findings] == 2 * LAYERS * ["weights.swapped"]
    assert all(finding.confidence < 0.9 for finding in report.findings)


def test_layers_exchanged_as_a_whole_are_seen() -> None:
    reference = transformer()
    faulty = port(reference)
    for name in list(faulty):
        if name.startswith("blocks_1."):
            other = name.replace("blocks_1.", "blocks_3.")
            faulty[name], faulty[other] = faulty[other], faulty[name]
    report = weights(reference, faulty)
    assert {finding.kind for finding in report.findings} == {"weights.swapped"}
    assert {finding.port.split(".")[0] for finding in report.findings} == {"blocks_1", "blocks_3"}


def test_a_tensor_loaded_twice_names_the_one_that_is_nowhere() -> None:
    reference = transformer()
    faulty = port(reference)
    faulty[V] = faulty[K].copy()
    report = weights(reference, faulty)
    assert kinds(report) == {V: "weights.swapped"}
    assert "nothing holds those of 'layers.2.attn1.to_v.weight'" in evidence(report, V)


def test_renumbered_modules_are_no_exchange() -> None:
    reference = {
        f"net.{2 * n}.{leaf}": values(f"{n}{leaf}", 8, *([8] if leaf == "weight" else [])) for n in range(5) for leaf in ("weight", "bias")
    }
    renumbered = {f"net.{n}.{leaf}": reference[f"net.{2 * n}.{leaf}"] for n in range(5) for leaf in ("weight", "bias")}
    report = weights(reference, renumbered)
    assert report.verdict == "same"
    assert {one.port: one.reference[0] for one in report.pairs}["net.3.weight"] == "net.6.weight"


def test_square_matrices_transposed_in_every_layer_stand_against_those_whose_shape_leaves_no_choice() -> None:
    reference = transformer()
    faulty = port(reference)
    for layer in range(LAYERS):
        faulty[f"blocks_{layer}.attn.query_proj.weight"] = faulty[f"blocks_{layer}.attn.query_proj.weight"].T.copy()
    report = weights(reference, faulty)
    assert [finding.kind for finding in report.findings] == LAYERS * ["weights.layout"]
    assert "tensors whose shapes leave no choice are not permuted" in report.findings[0].evidence


def test_a_port_that_transposes_all_its_matrices_has_a_convention_and_no_fault() -> None:
    reference = transformer()
    transposed = {
        name: value.T.copy() if value.ndim == 2 and "embed" not in name and "head" not in name else value
        for name, value in port(reference).items()
    }
    assert weights(reference, transposed).verdict == "same"


def test_a_convolution_as_wide_as_its_kernel_that_was_not_transposed_is_seen() -> None:
    reference = {f"convs.{n}.weight": values(str(n), 16, 5 if n == 2 else 8, 5) for n in range(5)}
    faulty = {name: value if value.shape[1] == 5 else value.transpose(0, 2, 1) for name, value in reference.items()}
    report = weights(reference, faulty)
    assert kinds(report) == {"convs.2.weight": "weights.layout"}
    assert "as it is" in evidence(report, "convs.2.weight")


@pytest.mark.parametrize("thin", [(32, 1, 3, 3), (3, 8, 1, 3), (5, 1, 1, 5), (32, 1, 5, 3)], ids=str)
@pytest.mark.parametrize("others", [{}, {"c": (8, 4, 3, 3), "d": (6, 8, 5, 5), "e": (9, 7, 3, 3)}], ids=["1d only", "2d too"])
def test_axes_of_length_one_leave_nothing_to_transpose(thin: tuple[int, ...], others: dict[str, tuple[int, ...]]) -> None:
    """The OIHW kernel of one input channel and its OHWI form have the same bytes, whatever longer kernels go through."""
    long = {f"conv{n}.weight": values(f"1d{n}", 6 + n, 4, 3) for n in range(4)}
    wide = {f"{name}.weight": values(name, *shape) for name, shape in others.items()}
    first = {"first.weight": values("first", *thin)}
    target = {name: value.transpose(0, 2, 1) for name, value in long.items()}
    target |= {name: value.transpose(0, 2, 3, 1) for name, value in (wide | first).items()}
    report = weights(long | wide | first, target)
    assert not report.findings
    assert report.verdict == "same"


def test_a_kernel_with_one_row_that_was_not_transposed_is_seen_among_its_kind() -> None:
    reference = {f"{n}.weight": values(f"{n}", 8 + n, 4, 1, 3) for n in range(4)} | {"odd.weight": values("odd", 8, 3, 1, 3)}
    target = {name: value.transpose(0, 2, 3, 1) for name, value in reference.items()}
    target["odd.weight"] = np.ascontiguousarray(reference["odd.weight"]).reshape(8, 1, 3, 3)
    assert kinds(weights(reference, target)) == {"odd.weight": "weights.layout"}


def test_dropped_biases_are_one_line_with_their_count() -> None:
    reference = transformer()
    faulty = {name: value for name, value in port(reference).items() if not name.endswith("out_proj.bias")}
    report = weights(reference, faulty)
    assert report.verdict == "different"
    assert [(g.category, g.count, g.pattern, g.kind) for g in report.groups] == [
        ("missing", LAYERS, "layers.*.attn1.to_out.0.bias", "weights.missing_bias")
    ]
    assert report.headline().startswith(f"different: {LAYERS} x layers.*.attn1.to_out.0.bias missing in the port")


def test_a_module_that_never_loaded_is_one_line() -> None:
    reference = transformer()
    faulty = port(reference)
    for name in faulty:
        if name.startswith("blocks_2."):
            faulty[name] = fresh(faulty[name].shape) if faulty[name].ndim > 1 else np.full_like(faulty[name], name.endswith("weight"))
    report = weights(reference, faulty)
    assert [(group.pattern, group.kind) for group in report.groups] == [("layers.2.**", "weights.unloaded")]
    assert report.groups[0].count == sum(name.startswith("layers.2.") for name in reference)


def test_a_table_of_another_length_says_what_both_have() -> None:
    reference = transformer()
    faulty = port(reference)
    faulty["embed.weight"] = faulty["embed.weight"][:44]
    report = weights(reference, faulty)
    assert kinds(report) == {"embed.weight": "weights.value"}
    assert "the first 44 x 24 are equal" in evidence(report, "embed.weight")


def test_a_lone_nan_is_a_difference() -> None:
    reference = transformer()
    faulty = port(reference)
    faulty[Q][3, 4] = np.nan
    assert kinds(weights(reference, faulty)) == {Q: "weights.value"}
    spoilt = reference | {"layers.2.attn1.to_q.weight": faulty[Q]}
    assert weights(spoilt, faulty).verdict == "same"


# -- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn])
def test_a_port_in_a_coarser_dtype_is_the_same_after_rounding(dtype: type) -> None:
    reference = transformer()
    report = weights(reference, {name: value.astype(dtype) for name, value in port(reference).items()})
    assert report.verdict == "same"
    assert report.rounded == report.equal == len(reference)
    assert {finding.kind for finding in report.different} == {"weights.precision"}
    assert all(finding.expected and "own dtype" in finding.evidence for finding in report.different)


def test_a_half_precision_checkpoint_widened_by_the_port_is_equal() -> None:
    reference = {name: value.astype(ml_dtypes.bfloat16) for name, value in transformer().items()}
    widened = {name: value.astype(np.float32) for name, value in port(transformer()).items()}
    report = weights(reference, {name: value.astype(ml_dtypes.bfloat16).astype(np.float32) for name, value in widened.items()})
    assert report.verdict == "same"
    assert not report.different


def test_one_tensor_in_a_coarser_dtype_than_the_rest_is_a_finding() -> None:
    reference = transformer()
    faulty = port(reference)
    faulty[Q] = faulty[Q].astype(np.float16)
    assert kinds(weights(reference, faulty)) == {Q: "weights.precision"}


def test_what_rounding_moved_is_equal_and_said_in_one_line() -> None:
    reference = transformer() | {"window": np.hanning(64).astype(np.float32), "table": np.sin(np.arange(600.0)).astype(np.float32)}
    port_ = port(reference) | {"window": reference["window"] - np.float32(5e-10)}
    port_["table"] = (reference["table"] * (1 + 1e-6 * np.random.default_rng(0).standard_normal(600))).astype(np.float32)
    report = weights(reference, port_)
    assert report.verdict == "same"
    assert report.equal == report.total
    assert not report.findings
    assert report.nearly == report.to_dict()["nearly"] == 2
    assert "2 equal up to rounding (relative L2 at most 1e-06)" in shown.text(report)


@pytest.mark.parametrize("change", [lambda v: v * np.float32(1 + 1e-4), lambda v: v + np.float32(1e-5), lambda v: v[::-1].copy()])
def test_what_rounding_does_not_explain_is_a_finding(change: Callable[[Array], Array]) -> None:
    faulty = port(transformer())
    faulty[Q] = change(faulty[Q])
    report = weights(transformer(), faulty)
    assert report.nearly == 0
    assert kinds(report).keys() == {Q}


def test_a_small_difference_of_any_kind_is_no_shift() -> None:
    faulty = port(transformer())
    faulty[Q] = faulty[Q] + np.float32(3e-6) * fresh(faulty[Q].shape)
    assert not any("shifted" in finding.label for finding in weights(transformer(), faulty).findings)


def as_traces(folder: Path, reference: Named, other: Named) -> tuple[Path, Path]:
    """Two traces that hold no values, only fingerprints."""
    paths = folder / "reference.h5", folder / "port.h5"
    for path, named in zip(paths, (reference, other), strict=True):
        with TraceWriter(path) as writer:
            for name, value in named.items():
                writer.add_param(name, value, path=name.rpartition(".")[0], kind="parameter")
    return paths


REORDERED: dict[str, Callable[[Array], Array]] = {
    "axis 0 in another order: reversed": lambda v: v[::-1].copy(),
    "axis 1 in another order: reversed": lambda v: v[:, ::-1].copy(),
    "axis 0 in another order: halves interleaved": lambda v: v.reshape(2, -1, WIDTH).transpose(1, 0, 2).reshape(v.shape),
    "axis 0 in another order: 24 of 24 moved": lambda v: v[np.random.default_rng(0).permutation(WIDTH)],
}


@pytest.mark.parametrize("stored", [True, False], ids=["by values", "by fingerprints"])
@pytest.mark.parametrize("said", REORDERED)
def test_rows_in_another_order_are_the_same_values_and_the_order_is_said(tmp_path: Path, stored: bool, said: str) -> None:
    faulty = port(transformer())
    faulty[Q] = REORDERED[said](faulty[Q])
    report = weights(transformer(), faulty) if stored else weights(*as_traces(tmp_path, transformer(), faulty))
    assert kinds(report) == {Q: "weights.layout"}
    assert said in evidence(report, Q)


def test_values_in_any_order_are_known_by_their_statistics_and_fresh_ones_are_not(tmp_path: Path) -> None:
    shuffled, never = port(transformer()), port(transformer())
    shuffled[Q] = np.random.default_rng(0).permutation(shuffled[Q].reshape(-1)).reshape(WIDTH, WIDTH)
    never[Q] = fresh((WIDTH, WIDTH))
    assert kinds(weights(*as_traces(tmp_path, transformer(), shuffled))) == {Q: "weights.layout"}
    (tmp_path / "never").mkdir()
    assert kinds(weights(*as_traces(tmp_path / "never", transformer(), never))) == {Q: "weights.unloaded"}


def test_fused_tensors_that_never_loaded_are_one_finding_each() -> None:
    apart = {f"{n}.{p}.weight": values(f"{n}{p}", WIDTH, WIDTH) for n in range(3) for p in (*"qkv", "out")}
    fused = {f"{n}.qkv.weight": fresh((3 * WIDTH, WIDTH)) for n in range(3)} | {
        f"{n}.out.weight": apart[f"{n}.out.weight"] for n in range(3)
    }
    report = weights(apart, fused)
    assert {(one.kind, one.reference, one.port) for one in report.findings} == {
        ("weights.unloaded", f"{n}.q.weight + {n}.k.weight + {n}.v.weight", f"{n}.qkv.weight") for n in range(3)
    }
    assert not report.unexpected
    back = weights(fused, apart)
    assert {(one.kind, one.reference, one.port) for one in back.findings} == {
        ("weights.unloaded", f"{n}.qkv.weight", f"{n}.{p}.weight") for n in range(3) for p in "qkv"
    }
    assert [group.count for group in back.groups] == [9]


@pytest.mark.parametrize(
    ("change", "said"), [(lambda v: v, None), (lambda v: v * 2, "scaled by 2"), (lambda v: fresh(v.shape), "never loaded")]
)
def test_a_missing_tensor_is_looked_at_beside_the_leftover_one_of_its_shape(change: Callable[[Array], Array], said: str | None) -> None:
    other = port(transformer())
    other["blocks_1.zeta"] = change(other.pop("blocks_1.ff.layers.1.weight"))
    report = weights(transformer(), other)
    assert [(one.port, one.label) for one in report.findings] == ([] if said is None else [("blocks_1.zeta", said)])
    assert not report.unexpected


def test_a_missing_tensor_beside_two_leftover_ones_of_its_shape_is_missing() -> None:
    other = port(transformer())
    shape = other.pop("blocks_1.ff.layers.1.weight").shape
    report = weights(transformer(), other | {"alpha": fresh(shape), "beta": 2 * fresh(shape)})
    assert [one.port for one in report.findings] == [""]
    assert set(report.unexpected) == {"alpha", "beta"}


# -- which side is wrong ------------------------------------------------------------------------------------------------


def test_the_checkpoint_tells_which_side_departs_from_it() -> None:
    checkpoint = transformer()
    reference, faulty = transformer(), port(checkpoint)
    faulty[Q] = fresh(faulty[Q].shape)
    reference["layers.1.ff.net.2.weight"] = fresh((WIDTH, HIDDEN))
    faulty["head.weight"] = faulty["head.weight"] * 2
    reference["head.weight"] = reference["head.weight"] * 3
    report = weights(reference, faulty, checkpoint=checkpoint)
    sides = {finding.reference: finding.wrong_side for finding in report.findings}
    assert sides == {
        "layers.2.attn1.to_q.weight": "port",
        "layers.1.ff.net.2.weight": "reference",
        "head.weight": "both",
    }


# -- the report ---------------------------------------------------------------------------------------------------------


def faulty_pair() -> WeightsReport:
    reference = transformer()
    faulty = port(reference) | {"pe": values("pe", 30, 8)}
    faulty[Q], faulty[K] = faulty[K], faulty[Q]
    faulty["blocks_1.attn.out_proj.bias"] = np.zeros(WIDTH, np.float32)
    del faulty["blocks_0.attn.out_proj.bias"]
    return weights(reference, faulty)


def test_the_report_is_one_json_object_and_a_table() -> None:
    report = faulty_pair()
    told = json.loads(report.to_json())
    assert told["schema"] == "tracediff.weights/1"
    assert told["verdict"] == "different"
    assert told["compared"] == report.compared
    assert told["total"] == len(transformer()) == 62
    assert {"equal", "different", "missing", "unexpected"} <= told.keys()
    assert told["missing"][0]["reference"] == "layers.0.attn1.to_out.0.bias"
    frame = report.to_frame()
    assert list(frame.columns) == ["reference", "port", "kind", "layout", "by", "confidence", "evidence"]
    assert sorted(frame["kind"].unique()) == ["equal", "missing", "unexpected", "weights.missing_bias", "weights.swapped"]


def test_the_text_begins_with_the_answer_and_counts_what_was_compared() -> None:
    text = shown.text(faulty_pair())
    assert text.startswith("Different: 1 x layers.1.attn1.to_out.0.bias all zero in the port; 58 of 62 tensors of the port are equal")
    assert "1 x layers.0.attn1.to_out.0.bias  missing in the port  weights.missing_bias" in text
    assert "Not in the reference (1): pe" in text
    assert "Compared: 61 of 62 tensors of the port." in text


def test_causes_go_to_the_module_that_owns_the_parameter() -> None:
    found = faulty_pair().findings
    (cause,) = from_weights.causes(found, "blocks_1.attn.out_proj")
    assert cause.kind == "weights.missing_bias"
    assert not cause.confirmed  # nothing was computed again with it
    assert cause.confidence > 0.9
    (cause,) = from_weights.causes(found, "blocks_0.attn.out_proj")
    assert cause.kind == "weights.missing_bias"
    assert "layers.0" in cause.evidence
    assert from_weights.causes(found, "blocks_2.norm1") == [] == from_weights.causes(found, "")


def test_weights_that_share_nothing_are_an_error_and_no_verdict() -> None:
    with pytest.raises(WeightsError, match="share no name, no value and no fitting shape"):
        weights(transformer(), {"backbone.stem.kernel": values("other", 7, 7, 3, 11)})
    with pytest.raises(WeightsError, match="holds no tensor"):
        weights(transformer(), {})


def test_rounding_is_named_from_fingerprints_alone(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    paths = tmp_path / "reference.h5", tmp_path / "port.h5"
    for path, held in zip(paths, (values, values.astype(ml_dtypes.bfloat16).astype(np.float32)), strict=True):
        with TraceWriter(path) as writer:
            writer.add_param("down.weight", held, path="down", kind="parameter")
    found = weights(*paths).findings
    assert [(one.kind, one.label) for one in found] == [("weights.precision", "rounded to bfloat16")]
