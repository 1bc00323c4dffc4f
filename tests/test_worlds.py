"""What is captured finds its world again: buffers, gradients, counters and caches are as after one bare run, whatever else was run."""

from __future__ import annotations

import collections
import itertools
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
from tracediff.observe import reachable, world

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


# -- state outside of modules --------------------------------------------------------------------------------------------------------------


class Cache:
    """A cache of one's own: an object that is neither a module nor a list or a dict."""

    def __init__(self, framework: Any) -> None:
        self.framework, self.kept, self.length = framework, None, 0

    def update(self, new: Any) -> Any:
        join = torch.cat if self.framework is torch else mx.concatenate
        self.kept = new if self.kept is None else join([self.kept, new])
        self.length += 1
        return self.kept


class SlottedCache(Cache):
    __slots__ = ("framework", "kept", "length")


class InPlaceCache(Cache):
    """A cache of fixed size, written in place."""

    def update(self, new: Any) -> Any:
        if self.kept is None:
            self.kept = self.framework.zeros((12, 8))
        self.kept[3 * self.length : 3 * self.length + 3] = new
        self.length += 1
        return self.kept


class Holding(torch.nn.Module):
    def __init__(self, cache: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.cache = torch.nn.Linear(8, 8), cache

    def forward(self, x: Any, cache: Any = None) -> Any:
        return (cache or self.cache).update(self.layer(x).detach()).sum(0)


class MlxHolding(mnn.Module):
    def __init__(self, cache: Any = None) -> None:
        super().__init__()
        mx.random.seed(0)
        self.layer, self.cache = mnn.Linear(8, 8), cache

    def __call__(self, x: Any, cache: Any = None) -> Any:
        return (cache or self.cache).update(self.layer(x)).sum(0)


GLOBAL: dict[str, Any] = {"cache": None, "calls": 0}
CALLS = 0


def held_in_attribute(model: Any, cache: Any, x: Any) -> Callable[[], Any]:
    model.cache = cache
    return lambda: model(x)


def held_in_closure(model: Any, cache: Any, x: Any) -> Callable[[], Any]:
    calls = 0

    def run() -> Any:
        nonlocal calls
        calls += 1
        return model(x * calls, cache)

    return run


def held_in_default(model: Any, cache: Any, x: Any) -> Callable[[], Any]:
    numbers = collections.deque([1], 3)

    def run(kept: Any = cache, seen: Any = numbers) -> Any:
        seen.append(seen[-1] + 1)
        return model(x * seen[-1], kept)

    return run


def held_in_global(model: Any, cache: Any, x: Any) -> Callable[[], Any]:
    GLOBAL["cache"] = cache

    def run() -> Any:
        global CALLS  # noqa: PLW0603
        CALLS += 1
        return model(x * CALLS, GLOBAL["cache"])

    return run


def held_in_method(model: Any, cache: Any, x: Any) -> Callable[[], Any]:
    class Loop:
        def __init__(self) -> None:
            self.steps, self.random = 0, np.random.default_rng(0)

        def run(self) -> Any:
            self.steps += 1
            return model(x * self.steps * float(self.random.standard_normal()), cache)

    return Loop().run


HELD = (held_in_attribute, held_in_closure, held_in_default, held_in_global, held_in_method)


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize("kind", [Cache, SlottedCache, InPlaceCache])
@pytest.mark.parametrize("hold", HELD)
def test_a_cache_in_an_object_is_put_back_wherever_the_run_holds_it(hold: Any, kind: type, framework: str, tmp_path: Path) -> None:
    global CALLS  # noqa: PLW0603
    make, of, own = (Holding, torch.tensor, torch) if framework == "torch" else (MlxHolding, mx.array, mx)
    caches, outputs = [], []
    for is_observed in (False, True):
        CALLS = 0
        model, cache = make(), kind(own)
        run = hold(model, cache, of(X))
        run()
        if is_observed:
            with td.capture(model, run, to=tmp_path / "a.h5", floor=framework == "torch") as trace:
                assert trace.meta["repeats"] is True
                assert (trace.floor is not None) == (framework == "torch")
        else:
            run()
        caches.append((cache.length, np.array(cache.kept)))
        outputs.append(np.array(run().detach() if framework == "torch" else run()))
    assert [length for length, _ in caches] == [2, 2]
    assert np.array_equal(caches[0][1], caches[1][1])
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("cache", ["DynamicCache", "StaticCache"])
def test_a_cache_of_transformers_that_is_kept_across_runs_is_put_back(cache: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64}
    lengths, outputs = [], []
    for is_observed in (False, True):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=2)).eval()
        more = {"config": model.config, "max_cache_len": 32} if cache == "StaticCache" else {}
        kept = getattr(transformers, cache)(**more)

        def run(model: Any = model, kept: Any = kept) -> Any:
            with torch.no_grad():
                return model(torch.arange(4)[None], past_key_values=kept).logits

        run()
        if is_observed:
            with td.capture(model, run, to=tmp_path / "a.h5") as trace:
                assert trace.meta["repeats"] is True
                assert trace.floor is not None
        else:
            run()
        lengths.append(int(kept.get_seq_length()))
        outputs.append(run().numpy())
    assert lengths == [8, 8]
    assert np.array_equal(*outputs)


def test_an_optimiser_with_state_is_put_back(tmp_path: Path) -> None:
    found = []
    for is_observed in (False, True):
        model = Counts()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.1)

        def run(model: Any = model, optimiser: Any = optimiser) -> None:
            optimiser.zero_grad()
            model(torch.tensor(X)).square().sum().backward()
            optimiser.step()

        run()
        if is_observed:
            with td.capture(model, run, to=tmp_path / "a.h5", floor=False) as trace:
                assert trace.meta["repeats"] is True
        else:
            run()
        found.append({**model.kept(), "moments": [state["exp_avg"].clone() for state in optimiser.state.values()]})
    moments = [one.pop("moments") for one in found]
    assert same(*found)
    assert all(torch.equal(*pair) for pair in zip(*moments, strict=True))


def test_state_that_cannot_be_put_back_does_not_repeat_and_has_no_floor(tmp_path: Path) -> None:
    model, numbers = torch.nn.Linear(8, 8).eval(), itertools.count(1)
    with pytest.warns(UserWarning, match="does not repeat"):
        trace = td.capture(model, lambda: model(torch.tensor(X) * next(numbers)), to=tmp_path / "a.h5")
    with trace:
        assert trace.meta["repeats"] is False
        assert trace.floor is None
        assert "noise floor: not measured, since the run does not repeat itself" in trace.meta["not_seen"]


def test_a_thread_that_a_run_starts_and_a_file_that_it_writes_are_left_alone(tmp_path: Path) -> None:
    model, threads = torch.nn.Linear(8, 8).eval(), list[Any]()

    class Worker(threading.Thread):
        def run(self) -> None:
            self.made = 1

    with (tmp_path / "log").open("w") as log:

        def run() -> Any:
            worker = Worker()
            threads.append(worker)
            worker.start()
            worker.join()
            log.write("x")
            return model(torch.tensor(X))

        td.capture(model, run, to=tmp_path / "a.h5").close()
    assert len(threads) == 1
    assert not threads[0].is_alive()
    assert set((tmp_path / "log").read_text()) == {"x"}


def test_more_than_is_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachable, "MOST_HOLDERS", 50)
    model, many = torch.nn.Linear(8, 8).eval(), [[number] for number in range(100)]

    def run() -> Any:
        many[-1][0] += 1
        return model(torch.tensor(X))

    with td.capture(model, run, to=tmp_path / "a.h5") as trace:
        assert trace.floor is None
        assert trace.meta["repeats"] is None
        expected = "repeat and noise floor: a run can reach more than 50 lists, dicts and objects, whose contents are not put back"
        assert expected in trace.meta["not_seen"]


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


class Hooked(torch.nn.Module):
    """Hooks its layer at its first call and marks that it did, as models of transformers do to collect hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.is_hooked, self.made = False, 0

    def forward(self, x: Any) -> Any:
        if not self.is_hooked:
            self.layer.register_forward_hook(self.count)
            self.is_hooked = True
        self.made = 0
        return self.layer(x) + self.made

    def count(self, *_: Any) -> None:
        self.made += 1


def test_hooks_that_a_run_adds_are_put_back_with_the_mark_that_says_so(tmp_path: Path) -> None:
    model = Hooked().eval()
    with torch.no_grad():
        trace = td.capture(model, torch.ones(1, 8), to=tmp_path / "x.h5")
    assert trace.meta["repeats"] is True
    assert trace.floor is not None
    assert len(model.layer._forward_hooks) == 1, "as one run leaves it"
