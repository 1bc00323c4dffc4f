"""Confirmed is what was proven: each claim beside a look-alike that must not be confirmed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cause_scenes import (
    B,
    D,
    H,
    T,
    applied,
    branch,
    draw,
    given,
    layer_norm,
    normalised,
    other,
    q,
    returned,
    rope,
    rotated,
    scene,
    summed,
    x,
)
from judging import Run, aligned, inputs
from judging import weights as layer_weights

from tracediff.causes import from_pair, from_weights
from tracediff.causes.cause import Cause
from tracediff.causes.explanation import explain
from tracediff.causes.from_tensors import causes_of_scene
from tracediff.causes.in_hand import InHand
from tracediff.causes.proof import Claim, Edit, controls, judged
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.dtype import Array
from tracediff.locate import locate
from tracediff.parameters.diagnosis import weights as compare_weights
from tracediff.replay.functions import FUNCTIONS
from tracediff.trace.operations import KEY, packed


def confirmed(made: Scene) -> list[str]:
    return [cause.kind for cause in causes_of_scene(made) if cause.confirmed]


def told(made: Scene) -> list[str]:
    return [cause.kind for cause in causes_of_scene(made)]


def of(claim: Claim) -> Any:
    return lambda _: [claim]


def judged_alone(made: Scene, edit: Edit | None) -> bool:
    (cause,) = judged(made, of(Claim("scale", 0.9, "", edit)))
    return cause.confirmed


# -- the three conditions -------------------------------------------------------------------------------------------------------------


def test_an_edit_that_gives_the_port_is_proven() -> None:
    assert judged_alone(scene(x, 2 * x), Edit(2 * x, x))


def test_an_edit_of_a_form_that_is_not_the_references_proves_nothing() -> None:
    assert not judged_alone(scene(x, 2 * x), Edit(2 * x, x + 0.01 * branch))


def test_an_edit_that_leaves_a_tenth_of_the_difference_proves_nothing() -> None:
    assert not judged_alone(scene(x, 2 * x), Edit(2 * x + 0.1 * branch, x))


def test_a_claim_without_a_prediction_is_a_likelihood() -> None:
    assert not judged_alone(scene(x, 2 * x), None)


def test_a_search_that_explains_any_error_proves_nothing() -> None:
    def anything(shown: Scene) -> list[Claim]:
        _, port = shown.tensors()
        return [Claim("scale", 0.9, "", Edit(port))]

    assert not any(cause.confirmed for cause in judged(scene(x, x + 0.1 * branch), anything))


@pytest.mark.parametrize("size", [1, 2])
def test_one_or_two_numbers_are_a_multiple_of_anything(size: int) -> None:
    values = np.array([0.3, -0.7])[:size]
    assert "scale" not in confirmed(scene(values[:1], 1.7 * values[:1]))
    assert confirmed(scene(draw(40), 1.7 * draw(40))) == ["scale"]


def test_controls_err_as_much_as_the_port_and_otherwise() -> None:
    made = scene(x, x + 0.1 * np.roll(x, 1, -1))
    error = made.tensors()[1] - x
    for control in controls(made):
        assert control.port is not None
        own = control.port - x
        assert np.linalg.norm(own) == pytest.approx(np.linalg.norm(error), rel=1e-6)
        assert abs(np.vdot(own, error)) < 0.5 * np.vdot(error, error)


# -- look-alikes of each family -----------------------------------------------------------------------------------------------------


def spoiled(values: Array, share: float) -> Array:
    """Values with an error besides, so large a part of what they differ by from ``x``."""
    error = draw(*values.shape, seed=77)
    return values + share * np.linalg.norm(values - x) / np.linalg.norm(error) * error


PROVEN: dict[str, tuple[Scene, Scene]] = {
    "scale": (scene(x, 4.0 * x), scene(x, spoiled(4.0 * x, 0.1))),
    "norm.eps": (normalised(layer_norm(x, 1e-2)), normalised(layer_norm(x, 1e-2) + 3e-4 * branch)),
    "branch.missing": (summed(x), summed(spoiled(x + 0.1 * branch, 0.2))),
    "activation": (applied("GELU (exact)", FUNCTIONS["SiLU"](x)), applied("GELU (exact)", spoiled(FUNCTIONS["SiLU"](x), 0.1))),
    "order.reversed": (scene(x, x[:, ::-1]), scene(x, spoiled(x[:, ::-1], 0.1))),
    "rope.variant": (rotated(rope(q, in_turn=True)), rotated(rope(q, in_turn=True) + 0.1 * draw(B, H, T, D, seed=5))),
}


@pytest.mark.parametrize("kind", PROVEN)
def test_what_one_edit_gives_is_confirmed_and_with_an_error_besides_it_is_not(kind: str) -> None:
    exact, alike = PROVEN[kind]
    assert kind in confirmed(exact)
    assert kind not in confirmed(alike)


def test_what_a_reference_clipped_is_not_in_hand_to_predict_the_port() -> None:
    named = [cause for cause in causes_of_scene(scene(np.clip(x, -1, 1), x)) if cause.kind == "clamp"]
    assert named
    assert not named[0].confirmed
    assert "clamp" in confirmed(scene(x, np.clip(x, -1, 1)))


# -- what is no cause ---------------------------------------------------------------------------------------------------------------


def test_zeros_beside_values_that_are_no_larger_are_no_dropout() -> None:
    kept = np.random.default_rng(3).random(x.shape)
    assert "dropout" in confirmed(scene(x, x * (kept > 0.1) / 0.9))
    for share in (0.1, 0.2, 0.3):
        assert "dropout" not in told(scene(x, x * (kept > share)))
    assert "dropout" not in told(scene(x, x * (kept > 0.1) / 0.7)), "the factor of another rate"


def test_channels_that_are_dropped_together_are_dropout() -> None:
    wide = draw(4, 200, 6)
    kept = np.random.default_rng(3).random((4, 200, 1)) > 0.2
    assert "dropout" in confirmed(scene(wide, wide * kept / 0.8))


NAMES = {"b.norm": "LayerNorm", "b.attn": "Attention", "b.mlp": "Mlp"}


def calling(ours: tuple[str, ...], theirs: tuple[str, ...], **more: Any) -> Scene:
    sides = (CulpritSide("b", calls=ours), CulpritSide("b", calls=theirs))
    return scene(x, x + 0.3 * branch * other, sides=sides, types=NAMES, paired=frozenset(NAMES), **more)


def test_calls_are_not_counted_in_calls_that_do_not_correspond() -> None:
    assert told(calling(("b.norm", "b.attn"), ("b.attn",))) == ["norm.missing"]
    assert told(calling(("b.norm", "b.attn"), ("b.attn",), has_frames=False)) == []


def test_a_loop_of_another_length_lacks_no_call() -> None:
    turn = ("b.norm", "b.attn", "b.mlp")
    assert told(calling(turn * 4, turn * 2)) == []
    assert told(calling(("b.mlp",) * 4, ("b.mlp",) * 3)) == []


def test_no_function_is_read_into_a_reference_in_training_mode() -> None:
    made = applied("GELU (exact)", FUNCTIONS["SiLU"](x))
    assert told(made) == ["activation"]
    trains = (CulpritSide("up", is_training=True, trains="up.dropout"), CulpritSide("up"))
    assert told(scene(*made.tensors(), returned(x, "up"), sides=trains)) == []


def of_runs(folder: Path, run: Any) -> list[Cause]:
    traces = []
    for is_port in (False, True):
        recorder = Run(folder / f"{is_port}.h5")
        run(recorder, is_port)
        traces.append(recorder.close())
    located = locate(aligned(*traces, without=("!filter",)), *traces, scan=True)
    assert located.first is not None
    return list(from_pair.causes(located.first, located.comparisons[located.first.place], *traces))


def test_inputs_are_blamed_only_where_nothing_was_computed_before(tmp_path: Path) -> None:
    def run(recorder: Run, is_port: bool, *, filters: bool) -> None:
        values = inputs()[::-1].copy() if is_port else inputs()
        if filters:
            with recorder("!filter", x=values) as leave:
                values = leave(0.5 * values)
        recorder.layer("enc", values, layer_weights(1)[0])

    (tmp_path / "plain").mkdir()
    plain = of_runs(tmp_path / "plain", lambda recorder, is_port: run(recorder, is_port, filters=False))
    assert [(cause.kind, cause.confirmed) for cause in plain] == [("input", True)]
    (tmp_path / "filtered").mkdir()
    filtered = of_runs(tmp_path / "filtered", lambda recorder, is_port: run(recorder, is_port, filters=True))
    assert [cause.kind for cause in filtered] == []


# -- weights ------------------------------------------------------------------------------------------------------------------------

FC = layer_weights(1)[0].T


def linear(folder: Path, wrong: Array, *, output: Any = None, stored: bool = True) -> tuple[Cause, ...]:
    """The causes of a port whose layer has other weights, and whose output ``output`` changes besides."""
    traces = []
    for is_port in (False, True):
        meta = {"modules": [{"path": "fc", "type": "Linear", "attrs": {}}]}
        recorder = Run(folder / f"{is_port}.h5", **meta)
        weight = wrong if is_port else FC
        for name, values in {"fc.weight": weight, "fc.bias": np.arange(16, dtype=np.float32)}.items():
            recorder.writer.add_param(name, values.astype(np.float32), path="fc", kind="parameter", store=stored)
        with recorder("fc", x=inputs()) as leave:
            made = inputs() @ weight.T + np.arange(16)
            leave((made if output is None or not is_port else output(made)).astype(np.float32))
        traces.append(recorder.close())
    alignment = aligned(*traces)
    located = locate(alignment, *traces, scan=True)
    (causes,) = explain(located, alignment, *traces).causes
    return causes


@pytest.mark.parametrize("wrong", [0.5 * FC, FC[::-1].copy(), np.roll(FC, 3, 0)], ids=["scaled", "reversed", "rolled"])
def test_a_wrong_weight_is_confirmed_where_its_layer_computed_again_gives_the_port(tmp_path: Path, wrong: Array) -> None:
    first = linear(tmp_path, wrong)[0]
    assert first.kind.startswith("weights.")
    assert first.confirmed


def test_a_wrong_weight_beside_another_error_is_not_confirmed(tmp_path: Path) -> None:
    first = linear(tmp_path, 0.5 * FC, output=lambda made: np.roll(made, 1, 0))[0]
    assert first.kind == "weights.value"
    assert not first.confirmed


def test_a_weight_whose_values_were_not_stored_is_not_confirmed(tmp_path: Path) -> None:
    first = linear(tmp_path, 0.5 * FC, stored=False)[0]
    assert first.kind == "weights.value"
    assert not first.confirmed


def test_a_weight_that_is_slightly_off_does_not_explain_an_error_of_a_half(tmp_path: Path) -> None:
    slightly = (FC * (1 + 2e-3)).astype(np.float32)
    assert any(cause.kind == "weights.value" for cause in linear(tmp_path, slightly))
    (tmp_path / "wrong").mkdir()
    causes = linear(tmp_path / "wrong", slightly, output=lambda made: made + 0.5 * np.roll(made, 1, -1))
    assert not any(cause.kind.startswith("weights.") for cause in causes)


def test_a_childs_weight_is_no_cause_where_the_childs_own_calls_are_compared() -> None:
    reference = {"block.fc.weight": draw(16, 16), "block.out.weight": draw(16, 16, seed=2)}
    found = compare_weights(reference, reference | {"block.fc.weight": 0.5 * reference["block.fc.weight"]}).findings
    assert [cause.kind for cause in from_weights.causes(found, "block")] == ["weights.value"]
    assert from_weights.causes(found, "block", seen={"block.fc"}) == []


# -- several edits that give the same tensor ------------------------------------------------------------------------------------------


def test_a_factor_that_is_left_out_is_no_exchange_of_tensors() -> None:
    made = returned(x, "embed")
    assert told(scene(4.0 * x, x, made)) == ["scale"]
    assert "order.roles" in told(scene(branch, x, made))


def test_of_edits_that_give_the_same_tensor_the_likeliest_is_confirmed_alone() -> None:
    assert confirmed(scene(x + branch, x, returned(x, "embed"), returned(branch, "mlp"))) == ["branch.missing"]


def test_what_a_later_call_took_is_the_stream_and_what_none_took_the_branch() -> None:
    handed = returned(x, "attn")
    taken = InHand("attn", "output", "Linear", False, x, is_taken=True)
    assert told(scene(x + branch, branch, handed, returned(branch, "mlp"))) == ["branch.missing"]
    assert told(scene(x + branch, branch, taken, returned(branch, "mlp"))) == ["residual.missing"]


def test_parts_that_were_stacked_the_other_way_round_are_joined_in_another_order() -> None:
    turned = x.reshape(*x.shape[:-1], -1, 2)[..., ::-1].reshape(x.shape)
    assert confirmed(scene(x, turned)) == ["order.concat"]


def test_the_output_of_a_layer_is_not_drawn_however_normal_it_is() -> None:
    ours, theirs = draw(2, 400), draw(2, 400, seed=9)
    assert told(scene(ours, theirs)) == ["random"]
    assert told(scene(ours, theirs, given(draw(2, 400, seed=3)), blame="module")) == []


def test_a_module_that_the_port_calls_elsewhere_is_not_lacking() -> None:
    made = calling(("b.norm", "b.attn"), ("b.attn",), balanced=frozenset({"b.norm"}))
    assert told(made) == []


def test_running_statistics_of_a_port_in_training_mode_are_no_wrong_weights() -> None:
    reference = {f"bn.{name}": draw(16, seed=seed) for seed, name in enumerate(("weight", "running_mean"))}
    found = compare_weights(reference, reference | {"bn.running_mean": reference["bn.running_mean"] + 0.3 * draw(16, seed=9)}).findings
    assert [cause.kind for cause in from_weights.causes(found, "bn")] == ["weights.value"]
    assert from_weights.causes(found, "bn", trains=True) == []


@pytest.mark.parametrize("is_known", [False, True])
def test_where_a_proven_edit_gives_the_port_s_tensor_no_parameter_is_missing_by_its_name_alone(tmp_path: Path, is_known: bool) -> None:
    """The port has the weight packed as nobody knows, and returns twice what the reference does; its operations are known or not."""
    order = np.random.default_rng(5).permutation(256)
    kept = ["<f4", list(FC.shape), base64.b64encode(FC.tobytes()).decode()]
    nodes = [["@seen"], ["@param", "fc.weight", kept], ["mm", [{"n": 0}, {"n": 1}], {}, -1]]
    graph = {"nodes": nodes, "names": [[0, [["fc", 0, "input[x]"]]], [2, [["fc", 0, "output"]]]], "lines": []}
    traces = []
    for is_port in (False, True):
        meta = {} if is_port or not is_known else {KEY: packed(graph)}
        recorder = Run(tmp_path / f"{is_port}.h5", modules=[{"path": "fc", "type": "Mixed", "attrs": {}}], **meta)
        parts = {"fc.packed": FC.reshape(-1)[order][:240].reshape(3, 5, 16)} if is_port else {"fc.weight": FC}
        for name, values in {**parts, "fc.out": layer_weights(4)[3]}.items():
            recorder.writer.add_param(name, values, path="fc", kind="parameter", store=True)
        with recorder("fc", x=inputs()) as leave:
            leave((inputs() @ FC * (2 if is_port else 1)).astype(np.float32))
        traces.append(recorder.close())
    alignment = aligned(*traces)
    (causes,) = explain(locate(alignment, *traces, scan=True), alignment, *traces).causes
    assert [cause.kind for cause in causes if cause.confirmed] == ["scale"]
    assert not any(cause.kind.startswith("weights.") for cause in causes)
