"""Layouts of square tensors, whose shapes say nothing of axes: decided by what they come from and go to, not by each for itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_alignment_records import Stored

from tracediff.alignment import Alignment, align
from tracediff.trace import TraceWriter, open_trace

N = 6
W = [np.random.default_rng(seed).standard_normal((N, N)).astype(np.float32) for seed in range(8)]
X = np.random.default_rng(9).standard_normal((N, N, N)).astype(np.float32)
Array = np.ndarray


def turned(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(1, 2))


class Net:
    """Blocks that take in and return (B, C, T) on the reference's side, (B, T, C) on the port's; what is inside is (B, T, C) on both.

    ``faults``: what a module's output is replaced by. A block of the reference turns its input for the layer inside and turns what that
    returns back; its sum is code of its own. ``turning``: the reference's blocks hand the turned tensor to their caller.
    """

    def __init__(self, side: int, **faults: Callable[[Array], Array]) -> None:
        self.side, self.faults = side, faults

    def own(self, x: Array) -> Array:
        """A (B, T, C) tensor in the order that this side's blocks hand on."""
        return x if self.side else turned(x)

    def leaf(self, run: Any, path: str, x: Array, weight: Array) -> Array:
        y = np.tanh(x @ weight).astype(np.float32)
        return run.call(path, np.ascontiguousarray(self.faults.get(path.replace(".", "_"), lambda y: y)(y)), _0=x)

    def block(self, run: Any, path: str, x: Array, weight: Array) -> Array:
        """``x`` is (B, T, C), and so is what is returned."""
        entered = run.enter(path, {"0": self.own(x)})
        y = x + self.leaf(run, f"{path}.inner", x, weight)
        y = np.ascontiguousarray(self.faults.get(path.replace(".", "_"), lambda y: y)(y))
        run.leave(entered, {"output": self.own(y)})
        return y

    def __call__(self, run: Any) -> None:
        run.module("", "Net")
        x = X
        for number in range(4):
            run.module(f"b{number}", "Block")
            run.module(f"b{number}.inner", "Linear", {"weight": W[number]})
            x = self.block(run, f"b{number}", x, W[number])
        run.module("head", "Linear", {"weight": W[4]})
        self.leaf(run, "head", x, W[4])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The layouts by the reference's site and end, of the correct reference and a port with faults."""

    def aligned(**faults: Callable[[Array], Array]) -> dict[str, str]:
        alignment, traces = both(tmp_path, **faults)
        rows = [(traces[0].records[pair.reference[0]], pair) for pair in alignment.records]
        return {f"{record.site} {record.end}": str(pair.layout) for record, pair in rows}

    return aligned


def both(folder: Path, **faults: Callable[[Array], Array]) -> tuple[Alignment, list[Any]]:
    traces = []
    for side, planted in enumerate(({}, faults)):
        with TraceWriter(folder / f"{side}.h5", force=True, meta={"impl": ("torch", "mlx")[side]}) as writer:
            run = Stored(writer)
            Net(side, **planted)(run)
            writer.set_meta(modules=run.modules)
        traces.append(open_trace(folder / f"{side}.h5"))
    return align(*traces), traces


RIGHT = {
    **{f"b{number} {end}": "(0, 2, 1)" for number in range(4) for end in ("input[0]", "output")},
    **{f"b{number}.inner {end}": "same" for number in range(4) for end in ("input[0]", "output")},
    **{f"head {end}": "same" for end in ("input[0]", "output")},
}


def noise(y: Array) -> Array:
    return np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)


def test_what_code_turns_between_calls_is_read_in_its_order_on_either_side_of_the_turn(read):
    assert read() == RIGHT


@pytest.mark.parametrize("where", ["b0_inner", "b0", "b1_inner", "b2"])
def test_after_a_fault_the_layouts_follow_from_what_the_run_itself_turned(read, where):
    assert read(**{where: noise}) == RIGHT


@pytest.mark.parametrize("where", ["b3_inner", "head"])
def test_a_fault_later_in_the_run_does_not_change_how_an_earlier_tensor_is_read(read, where):
    assert read(**{where: noise}) == RIGHT


@pytest.mark.parametrize("where", ["b1_inner", "b2_inner", "b3_inner"])
def test_an_output_that_a_fault_turned_is_not_excused_by_a_layout(read, where):
    assert read(**{where: turned}) == RIGHT


def test_the_account_of_a_layout_names_its_rival_and_who_speaks_for_it(tmp_path):
    alignment, traces = both(tmp_path, b0_inner=noise)
    (pair,) = (
        one for one in alignment.records if traces[0].records[one.reference[0]].row == one.reference[0] and _is(traces[0], one, "b2")
    )
    assert pair.account is not None
    assert pair.account.rival == "same"
    assert pair.account.probability > 0.5
    assert any(chosen > other for _, chosen, other in pair.account.voices)
    assert str(pair.layout) == "(0, 2, 1)"


def _is(trace: Any, pair: Any, site: str) -> bool:
    record = trace.records[pair.reference[0]]
    return record.site == site and record.end == "output"
