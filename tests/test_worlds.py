"""What is captured finds its world again: buffers, gradients, counters and caches are as after one bare run, whatever else was run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.errors import CaptureError, TraceFileError
from tracediff.observe import world

torch = pytest.importorskip("torch")
mx = pytest.importorskip("mlx.core")
mnn = pytest.importorskip("mlx.nn")

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)


class Counts(torch.nn.Module):
    """Keeps everything that a module can keep between runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))
        self.number, self.seen, self.cache, self.table = 0, [], None, {"sum": torch.zeros(8)}

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.number += 1
        self.seen.append(self.number)
        made = self.norm(self.layer(x)) + self.number
        self.cache = made.detach() if self.cache is None else torch.cat([self.cache, made.detach()])
        self.table["sum"] += made.detach().sum(0)
        return made

    def kept(self) -> dict[str, Any]:
        state = {name: value.clone() for name, value in self.state_dict().items()}
        grads = {name: None if value.grad is None else value.grad.clone() for name, value in self.named_parameters()}
        return {**state, **grads, "number": self.number, "seen": list(self.seen), "cache": self.cache, "sum": self.table["sum"].clone()}


class MlxCounts(mnn.Module):
    def __init__(self) -> None:
        super().__init__()
        mx.random.seed(0)
        self.layer, self.norm = mnn.Linear(8, 8), mnn.BatchNorm(8)
        self.calls, self.number, self.seen, self.cache = mx.zeros(()), 0, [], None

    def __iter__(self) -> Any:  # as a list of layers would, although it is a dict
        return iter([self.layer, self.norm])

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        self.number += 1
        self.seen.append(self.number)
        made = self.norm(self.layer(x)) + self.number
        self.cache = made if self.cache is None else mx.concatenate([self.cache, made])
        return made

    def kept(self) -> dict[str, Any]:
        arrays = {"calls": self.calls, "mean": self.norm.running_mean, "var": self.norm.running_var, "cache": self.cache}
        return {**{name: np.array(value) for name, value in arrays.items()}, "number": self.number, "seen": list(self.seen)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(np.array(one[name]), np.array(other[name])) for name in one)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"repeat": False, "floor": False},
    "repeat": {"repeat": True, "floor": False},
    "floor": {"repeat": True, "floor": True, "floor_dtypes": ("float64", "bfloat16")},
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_capture_leaves_what_one_run_leaves(options: str, backward: bool, tmp_path: Path) -> None:
    bare, model = Counts(), Counts()

    def run(of: Counts) -> Callable[[], Any]:
        return lambda: of(torch.tensor(X)).sum().backward() if backward else of(torch.tensor(X))

    for _ in range(2):  # what was there before a capture stays, too
        run(bare)()
    run(model)()
    with td.capture(model, run(model), to=tmp_path / "ref.h5", **OPTIONS[options]) as trace:
        assert trace.meta["repeats"] is (None if options == "plain" else True)
        assert (trace.floor is not None) == (options == "floor")
    assert same(model.kept(), bare.kept())


@pytest.mark.parametrize("feed", [False, True])
def test_an_mlx_capture_leaves_what_one_run_leaves(feed: bool, tmp_path: Path) -> None:
    bare, model = MlxCounts(), MlxCounts()
    bare(mx.array(X))
    given: dict[str, Any] = {}
    if feed:
        td.capture(Counts(), (torch.tensor(X),), to=tmp_path / "ref.h5").close()
        given = {"feed": tmp_path / "ref.h5"}
    td.capture(model, (mx.array(X),), to=tmp_path / "port.h5", **given).close()
    assert same(model.kept(), bare.kept())


def test_a_step_of_training_is_put_back_before_each_further_run(tmp_path: Path) -> None:
    bare, model = Counts(), Counts()

    def step(of: Counts) -> Callable[[], None]:
        optimiser = torch.optim.SGD(of.parameters(), lr=0.1)

        def run() -> None:
            optimiser.zero_grad()
            of(torch.tensor(X)).square().sum().backward()
            optimiser.step()

        return run

    step(bare)()
    with td.capture(model, step(model), to=tmp_path / "ref.h5", floor=False) as trace:
        assert trace.meta["repeats"] is True
    assert same(model.kept(), bare.kept())


def test_weights_too_large_to_copy_that_a_run_changes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "MOST_COPIED", 100)
    model = torch.nn.Linear(8, 8).eval()

    def run() -> Any:
        with torch.no_grad():
            model.weight += 1
        return model(torch.tensor(X))

    with td.capture(model, run, to=tmp_path / "ref.h5") as trace:
        assert trace.floor is None
        assert trace.meta["repeats"] is None
        assert "repeat and noise floor: a run changes weight, so that none can be as the first was" in trace.meta["not_seen"]


def test_a_live_bisection_begins_each_run_alike_and_leaves_what_one_run_leaves() -> None:
    bare, sides = Counts(), (Counts(), Counts())
    bare(torch.tensor(X))
    report = td.bisect_live(sides[0], (torch.tensor(X),), sides[1], (torch.tensor(X),))
    assert report.verdict == "same"
    assert [same(side.kept(), bare.kept()) for side in sides] == [True, True]


# -- odd models ----------------------------------------------------------------------------------------------------------------------------


def captured(model: Any, run: Any, to: Path, **options: Any) -> Any:
    with td.capture(model, run, to=to, **options) as trace:
        return [record.site for record in trace.records], trace.meta["not_seen"]


def test_what_torch_jit_made_is_seen_from_outside(tmp_path: Path) -> None:
    made = (torch.jit.script(torch.nn.ReLU()), torch.jit.trace(torch.nn.Linear(8, 8).eval(), torch.tensor(X)))
    for number, part in enumerate(made):
        sites, _ = captured(torch.nn.Sequential(torch.nn.Linear(8, 8), part).eval(), (torch.tensor(X),), tmp_path / f"{number}.h5")
        assert "1" in sites


def test_a_lazy_layer_is_captured_and_its_weights_are_said_not_to_be_there_yet(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.ReLU()).eval()
    with pytest.warns(UserWarning, match="repeat"):
        sites, not_seen = captured(model, (torch.tensor(X),), tmp_path / "a.h5", floor=False)
    assert {"0", "1"} <= set(sites)
    assert "parameter '0.weight': it has no shape before its first call" in not_seen


def test_a_foreign_hook_that_may_change_an_output_is_said(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()).eval()
    model[0].register_forward_hook(lambda module, given, made: made * 2)
    _, not_seen = captured(model, (torch.tensor(X),), tmp_path / "a.h5")
    assert any("hook" in text and "'0'" in text for text in not_seen)


class Deep(torch.nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.inner = Deep(depth - 1) if depth else None

    def forward(self, x: Any) -> Any:
        x = self.layer(x)
        return x if self.inner is None else self.inner(x)


def test_recursion_under_capture_reaches_as_deep_as_without(tmp_path: Path) -> None:
    limit, model = sys.getrecursionlimit(), Deep(230).eval()
    x = torch.ones(1, 2)
    model(x)
    sites, _ = captured(model, (x,), tmp_path / "a.h5", floor=False)
    assert len(set(sites)) > 230
    assert sys.getrecursionlimit() == limit


def test_functions_whose_attributes_need_a_device_are_passed_over(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval()
    captured(model, (torch.tensor(X),), tmp_path / "a.h5", functions=["torch.nn.functional.*"], floor=False)


def test_a_forked_child_neither_hangs_nor_writes(tmp_path: Path) -> None:
    model = torch.nn.Linear(8, 8).eval()

    def run() -> Any:
        child = os.fork()
        if not child:
            model(torch.tensor(X))
            os._exit(7)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 7
                return model(torch.tensor(X))
            time.sleep(0.01)
        os.kill(child, 9)
        raise AssertionError("the child hangs")

    sites, _ = captured(model, run, tmp_path / "a.h5", floor=False, repeat=False)
    assert sites == ["", ""]


def test_a_model_that_another_thread_captures_is_refused(tmp_path: Path) -> None:
    model, entered, leave = torch.nn.Linear(8, 8).eval(), threading.Event(), threading.Event()
    found: list[int] = []

    def first() -> None:
        def run() -> Any:
            entered.set()
            leave.wait(60)
            return model(torch.tensor(X))

        with td.capture(model, run, to=tmp_path / "first.h5", floor=False, repeat=False) as trace:
            found.append(len(trace.records))

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    with pytest.raises(CaptureError, match="being captured in another thread"):
        td.capture(model, (torch.tensor(X),), to=tmp_path / "second.h5")
    leave.set()
    thread.join(60)
    assert found == [2]
    td.capture(model, (torch.tensor(X),), to=tmp_path / "second.h5").close()


def test_two_models_are_captured_in_two_threads(tmp_path: Path) -> None:
    found: dict[int, int] = {}

    def one(number: int) -> None:
        model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(5))).eval()
        with td.capture(model, (torch.tensor(X),), to=tmp_path / f"{number}.h5", floor=False) as trace:
            found[number] = len(trace.records)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {0: 12, 1: 12}


def test_a_name_that_no_file_can_have_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="cannot be written"):
        td.capture(torch.nn.Linear(8, 8), (torch.tensor(X),), to=tmp_path / ("a" * 300 + ".h5"))
