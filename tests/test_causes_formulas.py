"""Short formulas of what is in hand: the one place is named in which the port's differs from the reference's."""

from __future__ import annotations

import numpy as np
import pytest

from tracediff.causes import formulas
from tracediff.causes.from_tensors import causes_of_scene
from tracediff.causes.in_hand import InHand
from tracediff.causes.scene import CulpritSide, Scene

RANDOM = np.random.default_rng(3)
X, H = RANDOM.standard_normal((2, 6, 9)), RANDOM.standard_normal((2, 12, 9))
STYLE = RANDOM.standard_normal((2, 12))
MASK = (RANDOM.random((2, 1, 9)) > 0.4).astype(float)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def scene(reference: np.ndarray, port: np.ndarray, **in_hand: np.ndarray) -> Scene:
    hand = [InHand(f"the output of {name}", "output", "", is_input=False, values=values) for name, values in in_hand.items()]
    return Scene("m", "input[0]", "caller", reference, port, 1e-6, hand, (CulpritSide("m"), CulpritSide("m")))


def best(made: Scene) -> tuple[str, str]:
    found = sorted(causes_of_scene(made), key=lambda one: (-one.confirmed, -one.confidence))
    assert found, "cause unknown"
    return found[0].kind, found[0].evidence


SCALE, SHIFT = STYLE[:, :6, None], STYLE[:, 6:, None]


def test_a_modulation_without_its_one_plus_is_told_as_such() -> None:
    found = next(iter(formulas.detect(scene(X * (1 + SCALE) + SHIFT, X * SCALE + SHIFT, norm=X, style=STYLE))))
    style = "the first half of the output of style"
    assert found.kind == "scale"
    assert found.evidence == f"the reference multiplies the output of norm by 1 + {style}, the port by {style} alone"


def test_scale_and_shift_that_change_places_are_roles() -> None:
    assert best(scene(X * (1 + SCALE) + SHIFT, X * (1 + SHIFT) + SCALE, norm=X, style=STYLE))[0] == "order.roles"


@pytest.mark.parametrize(
    ("port", "kind"),
    [
        (np.tanh(H[:, 6:]) * sigmoid(H[:, :6]), "order.roles"),
        (H[:, :6] * sigmoid(H[:, 6:]), "activation"),
        (np.tanh(H[:, :6]), "branch.missing"),
        (np.tanh(H[:, :6]) * np.tanh(H[:, 6:]), "activation"),
    ],
)
def test_a_gate_and_its_value(port: np.ndarray, kind: str) -> None:
    assert best(scene(np.tanh(H[:, :6]) * sigmoid(H[:, 6:]), port, conv=H))[0] == kind


def test_a_mask_that_is_not_applied_is_a_missing_mask() -> None:
    assert best(scene(X * MASK, X, x=X, mask=MASK))[0] == "mask.missing"


def test_another_reduction_and_another_place_are_told_apart() -> None:
    assert best(scene(H.mean(2), H.max(2), conv=H))[0] == "transform"
    assert best(scene(H[:, :, -1], H[:, :, 0], conv=H))[0] == "position.offset"


def test_nearest_for_linear_and_edges_for_zeros() -> None:
    ends = np.concatenate([X[..., :1], X, X[..., -1:]], 2)
    linear = np.stack([0.25 * ends[..., :-2] + 0.75 * X, 0.75 * X + 0.25 * ends[..., 2:]], 3).reshape(2, 6, 18)
    kind, told = best(scene(np.repeat(X, 2, 2), linear, x=X))
    assert (kind, "each value repeated" in told) == ("transform", True)
    kind, _ = best(scene(np.pad(X, ((0, 0), (0, 0), (2, 0))), np.pad(X, ((0, 0), (0, 0), (2, 0)), mode="edge"), x=X))
    assert kind == "padding.mode"


def test_a_standard_deviation_that_forgot_its_half() -> None:
    noise = RANDOM.standard_normal((2, 6, 9))
    mean, log = H[:, :6], H[:, 6:]
    kind, told = best(scene(mean + np.exp(0.5 * log) * noise, mean + np.exp(log) * noise, moments=H, normal=noise))
    assert (kind, "exp of half" in told) == ("scale", True)


def test_nothing_is_stated_of_what_no_formula_gives() -> None:
    assert not list(formulas.detect(scene(RANDOM.standard_normal((2, 6, 9)), RANDOM.standard_normal((2, 6, 9)), x=X, h=H, style=STYLE)))


def test_written_out_attention_over_the_wrong_axis() -> None:
    q, k, v = (RANDOM.standard_normal((2, 7, 8)) for _ in range(3))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(8)

    def softmax(axis: int) -> np.ndarray:
        raised = np.exp(scores)
        return raised / raised.sum(axis, keepdims=True) @ v

    assert best(scene(softmax(-1), softmax(-2), q=q, k=k, v=v))[0] == "heads.layout"
