"""What observers hand back takes the place of the run's own values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_observe_inert import Sites

import tracediff as td
from tracediff.errors import CaptureError
from tracediff.observe import Observer, observe
from tracediff.observe.observer import Boundary

ONES = np.ones((2, 4), np.float32)


class Answers(Observer):
    """Hands back what a function says."""

    def __init__(self, answer: Callable[[Boundary], Mapping[str, Any] | None]) -> None:
        self.answer = answer

    def see(self, boundary: Boundary) -> Mapping[str, Any] | None:
        return self.answer(boundary)


def at(site: str, moment: str, **ends: Any) -> Answers:
    new = {end.replace("__", "[").replace("_", "]") if "__" in end else end: value for end, value in ends.items()}
    return Answers(lambda boundary: new if (boundary.site, boundary.moment) == (site, moment) else None)


def test_an_input_is_replaced_by_an_array_in_the_dtype_of_the_run(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Net(), Sites()
    out = observe(model, lambda: model(x), [at("second", "enter", input__gain_=ONES.astype(np.float64) * 0), sites])
    assert (side.numpy(out) == sites.values["[0]/second[0]", "input[0]"]).all()
    assert side.numpy(out).dtype == np.float32


def test_an_output_is_replaced_by_a_tensor_itself(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()
    mine = side.array(ONES)
    got = []
    out = observe(model, lambda: model(x), [at("", "leave", output=mine), Answers(lambda b: got.append(b.replaced) or None)])
    assert out is mine
    assert got[-1] == {"output": mine}


def test_a_tap_returns_what_was_handed_back(side: SimpleNamespace, x: Any) -> None:
    out = observe(side.Net(), lambda: td.tap("a", {"x": [x], "y": x}), [Answers(lambda b: {"value.x[0]": ONES})])
    assert (side.numpy(out["x"][0]) == 1).all()
    assert out["y"] is x


def test_leaves_of_lists_dicts_and_dataclasses_are_assigned_in_place_and_tuples_rebuilt(side: SimpleNamespace, x: Any) -> None:
    model = side.Middle()
    kept: dict[str, Any] = {}

    def answer(boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.site == "inner" and boundary.moment == "enter":
            return {"input[0][0]": ONES * 0, "input[1].bias[0]": ONES * 2}
        if boundary.site == "inner" and boundary.moment == "leave":
            kept.update(boundary.leaves)
            return {"output.extras.pair.first": ONES * 3, "output.hidden": ONES * 5, "output.extras.frozen.hidden": ONES}
        return None

    out = side.numpy(observe(model, lambda: model(x), [Answers(answer)]))
    # bias was assigned in the caller's own dict: 5 + 3 + 2
    assert (out == 10).all()
    lin = model.inner.lin
    assert np.allclose(side.numpy(kept["output.hidden"]), side.numpy(lin(x * 0)) + 2)


def test_a_failed_call_goes_on_with_the_output_that_was_handed_back(side: SimpleNamespace, x: Any) -> None:
    model = side.Failing()
    seen = []

    def answer(boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment == "raise":
            seen.append((boundary.site, boundary.note["error"], [end for end, _ in boundary.leaves], type(boundary.error)))
            return {"output": side.array(ONES)}
        return None

    assert (side.numpy(observe(model, lambda: model(x), [Answers(answer)])) == 1).all()
    assert seen == [("broken", "ValueError: no such axis", ["input[0]"], ValueError)]


def test_the_outputs_of_a_failed_call_may_be_nested(side: SimpleNamespace, x: Any) -> None:
    model = side.Broken if hasattr(side, "Broken") else side.Failing()
    answer = Answers(lambda b: {"output[0]": 1, "output[1].key": 2} if b.moment == "raise" and b.site == "broken" else None)
    assert observe(model, lambda: model(x), [answer]) == (1, {"key": 2})


def test_what_a_call_does_to_a_replaced_input_happens_to_the_callers(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Changed(), Sites()
    observe(model, lambda: model(x), [at("changes", "enter", input__0_=ONES * 2), sites])
    after = sites.values["[0]/after[0]", "input[0]"]
    assert (after[0] == 7).all()
    assert (after[1] == 3).all()


def test_a_changed_input_can_be_replaced_as_the_call_leaves_it(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Changed(), Sites()
    answer = Answers(lambda b: {"output.input[0]": ONES} if b.site == "changes" and b.moment == "leave" else None)
    observe(model, lambda: model(x), [answer, sites])
    assert (sites.values["[0]/after[0]", "input[0]"] == 1).all()


def test_a_draw_is_replaced_and_the_generator_moves_on_as_ever(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Draws(), Sites()
    side.seed(3)
    model(x)
    after = side.numpy(side.normal(3))

    def answer(boundary: Boundary) -> Mapping[str, Any] | None:
        if boundary.moment != "draw":
            return None
        shape = boundary.leaves[0][1].shape
        return {"draw": np.full(int(np.prod(shape)), 1, np.float64)}  # flat, and of another dtype

    side.seed(3)
    y, token = observe(model, lambda: model(x), [Answers(answer), sites])
    assert np.allclose(side.numpy(y), side.numpy(model.lin(x)) + 2)
    assert (side.numpy(token) == 1).all()
    assert side.numpy(token).dtype.kind in "iu"
    side.seed(3)
    observe(model, lambda: model(x), [Answers(answer)])
    assert side.numpy(side.normal(3)).tobytes() == after.tobytes()


def test_a_dropout_mask_is_replaced(side: SimpleNamespace, x: Any) -> None:
    model, sites = side.Dropping(), Sites()
    model.train()
    mask = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], bool)
    observe(model, lambda: model(x), [Answers(lambda b: {"draw": mask} if b.moment == "draw" else None), sites])
    assert np.allclose(sites.values["[0]/drop[0]", "output"], side.numpy(x) * mask * 2)


def test_a_draw_of_another_size_is_refused(side: SimpleNamespace, x: Any) -> None:
    model = side.Draws()
    with pytest.raises(CaptureError, match=r"random\.normal.*\(2, 4\).*\(3,\)"):
        observe(model, lambda: model(x), [Answers(lambda b: {"draw": np.zeros(3)} if b.moment == "draw" else None)])


def test_an_end_that_is_not_there_is_refused(side: SimpleNamespace, x: Any) -> None:
    model = side.Net()
    with pytest.raises(CaptureError, match=r"'output\[7\]' at the leave of '\[0\]/first\[0\]/.lin\[0\]'.*only: output"):
        observe(model, lambda: model(x), [Answers(lambda b: {"output[7]": ONES} if b.moment == "leave" else None)])
