"""Each detector names its cause from the tensors alone, and none names one for an error that it does not explain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cause_scenes import B, C, D, H, T, attend, branch, causal, draw, given, k, kinds, layer_norm, other, q, returned, rope, scene, v, x

from tracediff.causes.cause import Cause, one_of_each_kind
from tracediff.causes.from_tensors import causes_of_scene
from tracediff.causes.in_hand import InHand
from tracediff.causes.scene import CulpritSide, Scene
from tracediff.replay.functions import FUNCTIONS


def first(made: Scene) -> str:
    found = kinds(made)
    return found[0] if found else "unknown"


def best(made: Scene) -> Cause:
    return one_of_each_kind(causes_of_scene(made))[0]


# -- code that adds -------------------------------------------------------------------------------------


def test_positions_that_were_not_added_are_missing() -> None:
    positions = draw(1, T, C, seed=3)
    assert first(scene(x + positions, x, returned(x, "tokens"), returned(positions, "positions", "Embedding"))) == "position.missing"


def test_another_factor_of_a_branch_is_a_scale() -> None:
    assert first(scene(x + 0.5 * branch, x + 0.7 * branch, given(x), returned(branch, "mlp"))) == "scale"


def test_guidance_inside_a_step_is_still_guidance() -> None:
    velocities = draw(2 * B, T, C, seed=4)
    conditional, free = np.split(velocities, 2)
    ours, theirs = (x + 0.1 * (c * conditional - (c - 1) * free) for c in (1.7, 0.7))
    assert first(scene(ours, theirs, given(x), returned(velocities, "estimator"))) == "cfg.formula"


@pytest.mark.parametrize(("step", "kind"), [(-0.1, "ode.sign"), (0.2, "ode.schedule"), (0.05, "ode.schedule")])
def test_a_step_of_another_size_or_sign(step: float, kind: str) -> None:
    assert first(scene(x + 0.1 * branch, x + step * branch, given(x), returned(branch, "estimator", calls=10))) == kind


# -- functions of single values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"), [("GELU (exact)", "SiLU"), ("SiLU", "ReLU"), ("leaky ReLU (0.1)", "leaky ReLU (0.01)"), ("ReLU", "GELU (tanh)")]
)
def test_another_activation(ours: str, theirs: str) -> None:
    found = best(scene(FUNCTIONS[ours](x), FUNCTIONS[theirs](x), returned(x, "up")))
    assert found.kind == "activation"
    assert found.confirmed
    assert ours in found.evidence
    assert theirs in found.evidence


def test_another_activation_of_a_gate() -> None:
    silu, gelu = FUNCTIONS["SiLU"], FUNCTIONS["GELU (exact)"]
    assert first(scene(silu(x) * branch, gelu(x) * branch, returned(x, "gate"), returned(branch, "up"))) == "activation"


def test_a_gate_and_its_value_exchanged_in_one_tensor() -> None:
    both = np.concatenate([x, branch], -1)
    silu = FUNCTIONS["SiLU"]
    assert first(scene(silu(x) * branch, FUNCTIONS["sigmoid"](x) * branch, returned(both, "gated"))) == "activation"


def test_a_slope_that_is_in_no_list() -> None:
    leaky = np.where(x > 0, x, 0.37 * x)
    found = best(scene(FUNCTIONS["leaky ReLU (0.1)"](x), leaky, returned(x, "up")))
    assert found.kind == "activation"
    assert "0.37" in found.evidence


def test_a_clamp_of_what_is_added_is_told_too() -> None:
    assert first(scene(x + branch, x + np.clip(branch, -1, 1), given(x), returned(branch, "mlp"))) == "clamp"


# -- values that moved ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda v: v[:, ::-1], "order.reversed"),
        (lambda v: np.concatenate(np.split(v, 2, -1)[::-1], -1), "order.concat"),
        (lambda v: v[..., np.random.default_rng(1).permutation(C)], "order.channels"),
        (lambda v: np.concatenate([np.zeros((B, 1, C)), v[:, :-1]], 1), "padding.shift"),
    ],
)
def test_values_that_stand_elsewhere(change: Callable[[np.ndarray], np.ndarray], kind: str) -> None:
    assert first(scene(x, change(x))) == kind


# -- normalisation ----------------------------------------------------------------------------------------


def rms_norm(values: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    return values / np.sqrt((values**2).mean(-1, keepdims=True) + eps) * (1 + 0.2 * draw(C, seed=7))


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_another_eps_is_found_without_being_told(norm: Callable[..., np.ndarray]) -> None:
    sides = (CulpritSide("norm", "Norm"), CulpritSide("norm", "Norm"))
    found = best(scene(norm(x), norm(x, 1e-2), given(x), blame="module", sides=sides))
    assert found.kind == "norm.eps"
    assert found.confirmed
    assert "1.0e-02" in found.evidence


def test_eps_is_told_by_the_attributes_too() -> None:
    sides = (CulpritSide("n", "LayerNorm", attributes={"eps": 1e-5}), CulpritSide("n", "LayerNorm", attributes={"variance_epsilon": 1e-6}))
    assert first(scene(x, x + 0.1 * branch * other, blame="module", sides=sides)) == "norm.eps"


# -- attention and rotation -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("ours", [T, 4])
def test_a_window_that_the_reference_does_not_have_is_found_with_its_width(ours: int, width: int) -> None:
    far = np.arange(T)[:, None] - np.arange(T)[None]
    masks = [causal + np.where(far < keys, 0.0, -1e9) for keys in (ours, width)]
    ends = [InHand(name, f"input[{name}]", "", True, values) for name, values in (("q", q), ("k", k), ("v", v), ("mask", masks[0]))]
    found = best(scene(attend(q, k, v, masks[0]), attend(q, k, v, masks[1]), *ends, blame="module", site="attn!attention"))
    assert (found.kind, found.confirmed) == ("mask.wrong", True)
    assert f"a causal window of {width} keys" in found.evidence


@pytest.mark.parametrize(("port", "kind"), [(attend(q, k, v), "mask.missing"), (attend(q, k, v, causal, 1.0), "scale")])
def test_an_attention_call_is_computed_again_under_single_edits(port: np.ndarray, kind: str) -> None:
    ends = [InHand(name, f"input[{name}]", "", True, values) for name, values in (("q", q), ("k", k), ("v", v), ("mask", causal))]
    assert first(scene(attend(q, k, v, causal), port, *ends, blame="module", site="attn!attention")) == kind


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (q, "rope.missing"),
        (rope(q, in_turn=True), "rope.variant"),
        (rope(q, base=500000.0), "rope.variant"),
        (rope(q, offset=1), "position.offset"),
    ],
)
def test_rotations_are_told_from_what_was_turned(port: np.ndarray, kind: str) -> None:
    merged = q.swapaxes(1, 2).reshape(B, T, H * D)
    assert first(scene(rope(q), port, returned(merged, "q_proj"), end="input[q]", site="attn!attention")) == kind


@pytest.mark.parametrize("in_turn", [False, True])
@pytest.mark.parametrize("heads_in_front", [True, False])
def test_a_rotation_that_only_the_port_applies_is_told(heads_in_front: bool, in_turn: bool) -> None:
    merged = returned(q.swapaxes(1, 2).reshape(B, T, H * D), "q_proj")
    sides = [one if heads_in_front else one.swapaxes(1, 2) for one in (q, rope(q, in_turn=in_turn))]
    found = best(scene(*sides, merged, end="input[0]", site="attn.q_norm"))
    assert (found.kind, found.confirmed) == ("rope.variant", True)
    assert f"turned here in pairs of {'neighbours' if in_turn else 'halves'}" in found.evidence


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_rotation_of_only_some_channels_is_told_with_their_number(in_turn: bool) -> None:
    def partly(values: np.ndarray) -> np.ndarray:
        half = values.shape[-1] // 2
        return np.concatenate([rope(values[..., :half], in_turn=in_turn), values[..., half:]], axis=-1)

    for left, right, counts in ((partly(q), rope(q, in_turn=in_turn), (1, 2)), (rope(q, in_turn=in_turn), partly(q), (2, 1))):
        merged = q.swapaxes(1, 2).reshape(B, T, H * D)
        found = best(scene(left, right, returned(merged, "q_proj"), end="input[q]", site="attn!attention"))
        numbers = [count * q.shape[-1] // 2 for count in counts]
        assert found.kind == "rope.variant"
        assert f"the reference turns {numbers[0]} of {q.shape[-1]} channels of a head, the port {numbers[1]}" in found.evidence


# -- times, identifiers, numbers --------------------------------------------------------------------------


def test_a_mask_that_was_inverted() -> None:
    mask = np.tri(T, dtype=bool)
    assert first(scene(mask, ~mask)) == "mask.wrong"


def test_a_mask_that_lets_everything_through() -> None:
    assert first(scene(np.tri(T, dtype=bool), np.ones((T, T), bool))) == "mask.missing"


SCORES = np.where(np.arange(T) < 9, draw(B, H, T, T), -1e10)


def test_scores_that_differ_where_they_are_shown_are_not_clamped_by_what_hides() -> None:
    shown = np.arange(T) < 9
    port = np.where(shown, draw(B, H, T, T, seed=8), -1e9)
    assert "clamp" not in kinds(scene(np.where(shown, draw(B, H, T, T), -3.4e38), port))


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (np.where(np.arange(T) < 9, draw(B, H, T, T), -np.inf) + np.where(np.arange(T) == 8, -1e10, 0), "mask.wrong"),
        (np.where(np.arange(T) < 9, -1e10, draw(B, H, T, T)), "mask.wrong"),
        (draw(B, H, T, T), "mask.missing"),
        (np.where(np.arange(T) < 9, 1.7 * SCORES, -1e10), "scale"),
    ],
)
def test_scores_tell_of_their_mask_whatever_number_hides(port: np.ndarray, kind: str) -> None:
    assert first(scene(SCORES, port)) == kind


def test_scores_that_differ_elsewhere_too_are_not_said_to_agree() -> None:
    told = [
        one
        for one in causes_of_scene(scene(SCORES, np.where(np.arange(T) < 8, draw(B, H, T, T, seed=9), -1e10)))
        if one.kind == "mask.wrong"
    ]
    assert not any(one.confirmed for one in told)


def test_tokens_that_were_joined_in_the_other_order() -> None:
    tokens = np.array([[5, 9, 2, 7, 7, 1]])
    assert first(scene(tokens, np.roll(tokens, 2, -1))) == "order.concat"
    assert "order.concat" not in kinds(scene(tokens, np.array([[9, 5, 2, 7, 7, 1]])))


def test_guidance_of_one_token_is_told_through_its_axis_of_one() -> None:
    both = draw(2, 1, 40, seed=5)
    given_, free = both[0], both[1]
    assert first(scene(1.5 * given_ - 0.5 * free, 0.5 * given_ + 0.5 * free, returned(both, "head"))) == "cfg.formula"


def test_a_last_step_of_another_size_is_no_other_guidance() -> None:
    both, state = draw(2, T, C, seed=5), draw(1, T, C, seed=6)
    ours, theirs = (kept * state + step * (5 * both[:1] - 4 * both[1:]) for kept, step in ((1.0004, 0.01), (1.0009, 0.04)))
    handed = given(np.concatenate([state, state]), "state", is_input=False)
    assert first(scene(ours, theirs, handed, returned(both, "noise", calls=4))) == "ode.schedule"


def test_a_half_of_a_batch_that_should_have_run_without_its_condition() -> None:
    condition = draw(1, T, C, seed=7)
    found = kinds(scene(np.concatenate([condition, 0 * condition]), np.concatenate([condition, condition])))
    assert found[0] == "cfg.formula"
    assert "padding.shift" not in found


def test_a_velocity_that_is_taken_off_is_a_sign_even_with_guidance() -> None:
    state, both = draw(1, 4, C, seed=8), draw(2, 4, C, seed=8)
    step = 0.1 * (1.7 * both[:1] - 0.7 * both[1:])
    handed = given(np.concatenate([state, state]), "state", is_input=False)
    assert first(scene(state + step, state - step, handed, returned(both, "velocity", calls=4))) == "ode.sign"


def test_one_number_is_not_called_a_sum() -> None:
    found = kinds(scene(np.array([0.3, 0.3]), np.array([0.1, 0.1]), returned(np.array([0.2, 0.2]), "earlier")))
    assert not {"branch.missing", "residual.missing", "branch.extra"} & set(found)


# -- calls ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        (("b.norm", "b.attn"), ("b.attn",), "norm.missing"),
        (("b.norm", "b.attn"), ("b.norm",), "branch.missing"),
        (("b.norm", "b.mlp"), ("b.mlp", "b.norm"), "norm.placement"),
        (("b.mlp",), ("b.mlp", "b.mlp"), "branch.extra"),
    ],
)
def test_calls_that_only_one_side_makes(ours: tuple[str, ...], theirs: tuple[str, ...], kind: str) -> None:
    types = {"b.norm": "LayerNorm", "b.attn": "Attention", "b.mlp": "Mlp"}
    sides = (CulpritSide("b", calls=ours), CulpritSide("b", calls=theirs))
    every = frozenset(types)
    chained = frozenset(pairwise(ours))
    assert first(scene(x, x + branch * other, sides=sides, types=types, paired=every, altered=every, chained=chained)) == kind


def test_another_order_of_calls_that_all_agree_explains_nothing() -> None:
    types = {"b.experts": "Experts", "b.shared": "Mlp"}
    sides = (CulpritSide("b", calls=("b.shared", "b.experts")), CulpritSide("b", calls=("b.experts", "b.shared")))
    shown = scene(x, x + branch * other, sides=sides, types=types, paired=frozenset(types), chained=frozenset({("b.shared", "b.experts")}))
    assert not kinds(shown)
    assert kinds(replace(shown, altered=frozenset({"b.experts"}))) == ["order.roles"]


def test_another_order_of_calls_that_are_not_handed_what_another_returned_explains_nothing() -> None:
    types = {"b.q": "Linear", "b.k": "Linear", "b.out": "Linear"}
    sides = (CulpritSide("b", calls=("b.q", "b.k", "b.out")), CulpritSide("b", calls=("b.k", "b.q", "b.out")))
    shown = scene(x, x + branch * other, sides=sides, types=types, paired=frozenset(types), altered=frozenset(types))
    assert not kinds(shown)
    assert kinds(replace(shown, chained=frozenset({("b.q", "b.k")}))) == ["order.roles"]


def test_a_call_that_is_lacking_behind_the_divergence_explains_nothing() -> None:
    types = {"b.head": "Linear"}
    sides = tuple(CulpritSide("b", calls=("b.head",) * count, before=("b.head",)) for count in (9, 8))
    assert not kinds(scene(x, x + branch * other, sides=sides, types=types, paired=frozenset(types)))


# -- honesty ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("blame", ["module", "caller"])
def test_an_error_that_nothing_explains_has_no_confirmed_cause(size: float, blame: str) -> None:
    noise = size * draw(B, T, C, seed=11)
    for reference in (x, x + branch, layer_norm(x), FUNCTIONS["SiLU"](x)):
        found = list(causes_of_scene(scene(reference, reference + noise, given(x), returned(branch, "mlp"), blame=blame)))
        assert not [cause for cause in found if cause.confirmed]


def test_tensors_that_cannot_be_laid_side_by_side_are_no_trouble() -> None:
    assert kinds(Scene("a", "output", "module", None, None, 0.0, (given(x),), (CulpritSide("a"), CulpritSide("a")))) == []


def test_values_that_are_not_finite_are_no_trouble() -> None:
    assert kinds(scene(np.array([1.0, np.inf, np.nan]), np.array([1.0, 2.0, 3.0]))) == []


def test_empty_and_single_values_are_no_trouble() -> None:
    assert kinds(scene(np.zeros((0, 3)), np.zeros((0, 3)))) == []
    assert set(kinds(scene(np.array(2.0), np.array(3.0)))) <= {"scale", "time.scale"}


def test_times_that_run_otherwise_are_another_schedule() -> None:
    share = np.linspace(0, 1, 11)
    found = best(scene(1 - np.cos(0.5 * np.pi * share), share))
    assert found.kind == "ode.schedule"
    assert "linearly" in found.evidence


def test_a_state_carried_by_a_loop_shows_guidance_in_its_next_turn() -> None:
    velocities = draw(2, T, C, seed=4)
    conditional, free = np.split(velocities, 2)
    state = draw(1, T, C, seed=5)
    ours, theirs = (np.concatenate([state + 0.1 * ((1 + w) * conditional - w * free)] * 2) for w in (0.7, 0.0))
    carried = given(np.concatenate([state, state]), "the state before")
    assert first(scene(ours, theirs, carried, returned(velocities, "estimator", calls=4))) == "cfg.formula"


def test_dropout_in_a_module_that_was_left_in_training_mode_says_so() -> None:
    kept = np.random.default_rng(3).random(x.shape) > 0.1
    sides = (CulpritSide("m"), CulpritSide("m", is_training=True))
    assert first(scene(x, x * kept / 0.9, sides=sides)) == "mode.train"


def test_a_module_that_is_called_in_the_place_of_another_of_its_class_is_another_role() -> None:
    from dataclasses import replace

    made, kinds_of = scene(x, branch), {"b.ln_1": "LayerNorm", "b.ln_2": "LayerNorm", "b.attn": "Attention"}
    sides = replace(made.sides[0], calls=("b.ln_1", "b.attn")), replace(made.sides[1], calls=("b.ln_2", "b.attn"))
    moved = replace(made, sides=sides, paired=frozenset(kinds_of), types=kinds_of)
    assert first(moved) == "order.roles"
    assert {"norm.missing", "branch.extra"} <= set(kinds(replace(moved, types={**kinds_of, "b.ln_2": "Dropout"})))
