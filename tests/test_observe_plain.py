"""Runs without a model, and containers by themselves: no framework is needed."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_observe_replace import Answers
from test_observe_sites import seen

import tracediff as td
from tracediff.errors import CaptureError, MissingDependencyError
from tracediff.observe import observe, record
from tracediff.observe.adapters.registry import named
from tracediff.observe.containers import Nest, built
from tracediff.observe.provenance import command_line, git_revision
from tracediff.trace import open_trace

NEST = Nest(lambda value: isinstance(value, np.ndarray), lambda value: False)


def test_plain_code_is_recorded_without_any_framework(tmp_path: Path) -> None:
    code = """
import sys, numpy as np
import tracediff as td
with td.record(None, "x.h5"):
    for step in range(2):
        with td.scope("step", step), td.stage("dsp"):
            td.tap("mel", np.arange(3.0) + step)
            td.tap("text", "hello")
trace = td.open_trace("x.h5")
print([(r.site, r.call, r.stage) for r in trace.records], trace.meta["impl"])
assert trace.records[2].read().tolist() == [1, 2, 3]
assert not {"torch", "mlx"} & set(sys.modules), sorted(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[('#mel', '@step=0/#mel[0]', 'dsp'), ('#text', '@step=0/#text[0]', 'dsp'), ('#mel', '@step=1/#mel[1]'")
    assert done.stdout.rstrip().endswith("numpy")


def test_tensors_of_any_framework_are_taken_without_a_model(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    with record(None, tmp_path / "x.h5"):
        td.tap("a", {"tensor": x, "array": np.ones(2)})
    values = {r.end: r.read() for r in open_trace(tmp_path / "x.h5").records}
    assert (values["value.tensor"] == side.numpy(x)).all()
    assert (values["value.array"] == 1).all()


def test_values_handed_back_are_of_the_kind_that_was_there(side: SimpleNamespace, x: Any) -> None:
    answer = Answers(lambda b: {"value.a": np.ones((2, 4)), "value.b": np.ones(2)})
    out = observe(None, lambda: td.tap("t", {"a": x, "b": np.zeros(2, np.int8)}), [answer], impl="numpy")
    assert type(out["a"]) is type(x)
    assert (side.numpy(out["a"]) == 1).all()
    assert (out["b"].dtype, out["b"].tolist()) == (np.int8, [1, 1])


def test_the_generators_of_python_and_numpy_are_put_back_too(side: SimpleNamespace) -> None:
    for adapter in (named(side.name), named("plain")):
        state = adapter.rng_state()
        drawn = random.random(), np.random.rand(), side.numpy(side.normal(2)).tolist()
        adapter.set_rng_state(state)
        assert (random.random(), np.random.rand(), side.numpy(side.normal(2)).tolist()) == drawn


def test_an_unknown_or_missing_framework_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureError, match="No adapter 'jax'"):
        named("jax")
    monkeypatch.setitem(sys.modules, "tracediff.observe.adapters.mlx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[mlx\]'"):
        named("mlx")


Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Box:
    value: Any
    other: Any = None


@dataclasses.dataclass(frozen=True)
class Locked:
    value: Any


A, B = np.zeros(2), np.ones(2)


@pytest.mark.parametrize(
    ("value", "ends"),
    [
        (A, ["output"]),
        ((A, [B, {"k.e/y": A}]), ["output[0]", "output[1][0]", "output[1][1].k%2Ee%2Fy"]),
        ({1: A, "1": B}, ["output[1]", "output.1"]),
        (Point(A, (B,)), ["output.x", "output.y[0]"]),
        (Box(A, Locked(B)), ["output.value", "output.other.value"]),
        ([1, 2.5, True], ["output"]),
        ([1, A], ["output[0]", "output[1]"]),
        ([], []),
        ("text", ["output"]),
        (None, []),
        (np.float32(2), ["output"]),
        (np.array(["no numbers"]), []),
        (object(), []),
        (Box, []),
        (np.longdouble(1), []) if np.dtype(np.longdouble).itemsize > 16 else (np.float64(1), ["output"]),
    ],
)
def test_containers_are_flattened(value: Any, ends: list[str]) -> None:
    assert [end for end, _ in NEST.values(value, "output")] == ends


def test_a_container_that_holds_itself_ends() -> None:
    loop: list[Any] = [A]
    loop.append(loop)
    assert len(NEST.values(loop, "output")) < 100


def test_replacing_keeps_what_can_be_kept() -> None:
    box, items, table = Box(A), [A], {"k": A}
    value = (box, items, table, Locked(A), Point(A, A), A)
    new = {f"output{end}": B for end in ("[0].value", "[1][0]", "[2].k", "[3].value", "[4].y", "[5]")}
    out = NEST.replace(value, "output", new)
    assert (out[0] is box, out[1] is items, out[2] is table) == (True, True, True)
    assert all(part is B for part in (box.value, items[0], table["k"], out[3].value, out[4].y, out[5]))
    assert (out[4].x is A, value[5] is A, type(out[4])) == (True, True, Point)


def test_nothing_to_replace_is_the_same_object() -> None:
    value = (A, [A])
    assert NEST.replace(value, "output", {"output[7]": B}) is value


def test_outputs_are_built_from_their_ends() -> None:
    assert built({"output": A}) is A
    assert built({"output[0]": 1, "output[1].a": 2, "output[1].b[0]": 3}) == (1, {"a": 2, "b": (3,)})


def test_long_rows_of_numbers_are_arrays_and_short_ones_notes() -> None:
    leaves, scalars = NEST.inputs(([1, 2], list(range(1000)), 2**70), {"p": 0.5})
    assert scalars == {"input[0]": [1, 2], "input[2]": 2**70, "input[p]": 0.5}
    assert [(end, value.shape) for end, value in leaves] == [("input[1]", (1000,))]


def test_integers_that_no_array_holds_are_floats() -> None:
    assert NEST.values([2**70, 1], "value")[0][1].dtype == np.float64


def test_the_source_file_is_given_below_the_folder_it_is_imported_from(side: SimpleNamespace, x: Any) -> None:
    found = seen(None, lambda: td.tap("x", x))
    assert found.all[0].file == "test_observe_plain.py"


def test_the_command_line_tells_no_folders_and_git_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/tracediff/__main__.py", "capture", "-o", "a b.h5"])
    assert command_line() == "python -m tracediff capture -o 'a b.h5'"
    assert git_revision(tmp_path) == ""


def test_each_adapter_has_exactly_the_methods_of_its_protocol(side: SimpleNamespace) -> None:
    from tracediff.observe.adapters.base import FrameworkAdapter
    from tracediff.observe.types import Adapter

    def methods(cls: type) -> set[str]:
        return {name for name in dir(cls) if callable(getattr(cls, name)) and not name.startswith("_")}

    assert methods(type(named("plain"))) == methods(Adapter)
    assert methods(type(named(side.name))) - {"tensor_type", "module_type"} == methods(FrameworkAdapter)
    assert methods(Adapter) <= methods(FrameworkAdapter)
