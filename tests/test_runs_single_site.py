"""Work in pieces: one module tried on its recorded inputs, and stubs that serve what is not written yet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_runs_forcing import X, culprits, fill, linear, net, raising, scaled

import tracediff as td
from tracediff.errors import CaptureError, SiteError, TraceFileError


def block(side: SimpleNamespace) -> Any:
    """A module with two layers inside, called with a tensor and a gain."""

    class Block(side.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = linear(side), linear(side)

        def forward(self, x: Any, gain: Any = None, scale: float = 1.0) -> Any:
            y = self.down(side.tanh(self.up(x))) * scale
            return x + (y if gain is None else y * gain)

    return Block()


def whole(side: SimpleNamespace) -> Any:
    """A model that calls one block three times, with other numbers each time."""

    def forward(self: Any, x: Any) -> Any:
        for step in range(3):
            x = self.block(side.tanh(x), gain=x, scale=0.5 + step)
        return self.last(x)

    return fill(side, net(side, forward, block=block(side), last=linear(side)))


@pytest.fixture
def reference(side: SimpleNamespace, tmp_path: Path) -> Path:
    td.capture(whole(side), X, to=tmp_path / "ref.h5", floor=False, repeat=False).close()
    return tmp_path / "ref.h5"


def test_a_right_module_is_the_same_at_every_recorded_call(side: SimpleNamespace, reference: Path) -> None:
    report = td.try_site(reference, "block", whole(side).block)
    assert (report.verdict, report.mode) == ("same", "forced")
    assert [row.where.end for row in report.rows if row.where.reference == "block"].count("output") == 3
    assert report.coverage.compared == report.coverage.reference_records == 3 * 7
    one = td.try_site(reference, "block", whole(side).block, calls=[1])
    assert (one.verdict, one.coverage.reference_records) == ("same", 7)


def test_a_fault_inside_the_module_is_named_with_its_site(side: SimpleNamespace, reference: Path) -> None:
    module = whole(side).block
    scaled(side, module.down)
    report = td.try_site(reference, "block", module)
    assert report.verdict == "different"
    assert culprits(report) == [("block.down", "block.down")]


def test_a_fault_in_the_modules_own_code_is_named(side: SimpleNamespace, reference: Path) -> None:
    made = whole(side).block
    other = net(side, lambda self, x, gain=None, scale=1.0: x + self.down(side.tanh(self.up(x))) * scale, up=made.up, down=made.down)
    assert culprits(td.try_site(reference, "block", other)) == [("block", "block")]


def test_a_module_that_raises_is_a_finding(side: SimpleNamespace, reference: Path) -> None:
    report = td.try_site(reference, "last", raising(side, whole(side).last))
    assert report.verdict == "different"
    assert "raised" in [cause.kind for cause in report.divergences[0].causes]


def test_arguments_of_other_names_go_by_order_and_where_that_does_not_do_by_what_is_stated(side: SimpleNamespace, reference: Path) -> None:
    made = whole(side).block

    class Renamed(side.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.block = made

        def forward(self, hidden: Any, modulation: Any, strength: float) -> Any:
            return self.block(hidden, gain=modulation, scale=strength)

    class Swapped(Renamed):
        def forward(self, modulation: Any, hidden: Any, strength: float) -> Any:
            return self.block(hidden, gain=modulation, scale=strength)

    for cls in (Renamed, Swapped):
        setattr(cls, side.call_name, cls.forward)
    own = "x" if side.name == "torch" else "0"  # the toy models' own calls in MLX name no positions
    assert td.try_site(reference, "block", Renamed()).verdict == "same"
    assert td.try_site(reference, "block", Swapped()).verdict == "different"
    assert td.try_site(reference, "block", Swapped(), arguments={own: "hidden", "gain": "modulation"}).verdict == "same"


def test_inputs_that_cannot_be_bound_name_both_signatures(side: SimpleNamespace, reference: Path) -> None:
    class Narrow(side.Module):  # type: ignore[misc, name-defined]
        def forward(self, hidden: Any) -> Any:
            return hidden

    class Wide(side.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, gain: Any, scale: float, speaker: Any) -> Any:
            return x

    if side.name == "torch":
        with pytest.raises(CaptureError, match=r"nothing takes the reference's 'gain'.*x: \(3, 8\) float32.*\(hidden: .*--arg"):
            td.try_site(reference, "block", Narrow())
        with pytest.raises(CaptureError, match="nothing is left for 'speaker'"):
            td.try_site(reference, "block", Wide())
    with pytest.raises(CaptureError, match="there is no argument 'nonsense'"):
        td.try_site(reference, "block", whole(side).block, arguments={"nonsense": "x"})
    with pytest.raises(CaptureError, match="cannot be called"):
        td.try_site(reference, "block", "no module")


def test_unknown_sites_and_calls_are_refused_with_what_there_is(side: SimpleNamespace, reference: Path) -> None:
    with pytest.raises(SiteError, match="nearest: 'block'"):
        td.try_site(reference, "blok", whole(side).block)
    with pytest.raises(SiteError, match=r"'block' has 3 calls .* no call 3"):
        td.try_site(reference, "block", whole(side).block, calls=[3])


@pytest.mark.parametrize("options", [{"save": "stats"}, {"exclude": ["block"]}], ids=["statistics", "left out"])
def test_a_trace_without_the_inputs_says_so(side: SimpleNamespace, tmp_path: Path, options: dict[str, Any]) -> None:
    td.capture(whole(side), X, to=tmp_path / "ref.h5", floor=False, repeat=False, **options).close()
    with pytest.raises((TraceFileError, SiteError), match=r"--save full|No site"):
        td.try_site(tmp_path / "ref.h5", "block", whole(side).block)


def test_a_function_or_a_method_can_be_tried_too(side: SimpleNamespace, reference: Path) -> None:
    made = whole(side).block

    def as_function(x: Any, gain: Any, scale: float) -> Any:
        return made.forward(x, gain, scale)

    assert td.try_site(reference, "block", as_function, impl=side.name).verdict == "same"
    assert td.try_site(reference, "block", made.forward).verdict == "same"
    assert td.try_site(reference, "block", lambda x, gain, scale: x, impl=side.name).verdict == "different"


def test_a_module_of_another_framework_is_tried_in_its_own_layout_and_by_the_floor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    mx = pytest.importorskip("mlx.core")
    nn = pytest.importorskip("mlx.nn")
    torch.manual_seed(0)
    conv = torch.nn.Sequential(torch.nn.Conv1d(6, 6, 3, padding=1), torch.nn.Tanh()).eval()
    x = np.random.default_rng(0).standard_normal((2, 6, 11)).astype(np.float32)
    td.capture(conv, x, to=tmp_path / "ref.h5").close()
    port = nn.Conv1d(6, 6, 3, padding=1)
    port.weight = mx.array(conv[0].weight.detach().numpy().transpose(0, 2, 1))
    port.bias = mx.array(conv[0].bias.detach().numpy())
    report = td.try_site(tmp_path / "ref.h5", "0", port, to=tmp_path / "tried.h5")
    assert report.verdict == "same"
    assert {row.by for row in report.rows if row.how == "read"} == {"floor"}
    with td.open_trace(tmp_path / "tried.h5") as trace:
        assert trace.meta["axes"] == [[0, 2, 1]]
    port.bias = port.bias + 0.01
    assert td.try_site(tmp_path / "ref.h5", "0", port).verdict == "different"


# ------------------------------------------------------------------------------------------------------ unusual calls


class Memory:
    """A cache as no container is: an object of its own kind."""

    held: Any = None


def unusual(side: SimpleNamespace, other: bool = False) -> Any:
    """A model whose parts are called by name only, with a mask at some calls, with lists, dicts, None and objects, and return them.

    With ``other`` the parameters of the part that takes lists are named otherwise.
    """

    def mixed(self: Any, xs: Any, nothing: Any, *more: Any, **given: Any) -> Any:
        y = self.inner(xs[0]) + xs[-1] + sum(more) + given["flags"]["gain"] * given["flags"]["times"]
        return y, [y * 2, (None, y * 3)], None

    def renamed(self: Any, tensors: Any, absent: Any, *more: Any, **given: Any) -> Any:
        return mixed(self, tensors, absent, *more, **given)

    def named(self: Any, *, query: Any, mask: Any = None, scale: float = 1.0) -> Any:
        y = self.inner(query) * scale
        return {"out": y if mask is None else y * mask, "weights": None}

    def remembering(self: Any, x: Any, memory: Any) -> Any:
        memory.held = x if memory.held is None else memory.held + x
        return self.inner(memory.held), memory

    def forward(self: Any, x: Any) -> Any:
        memory = Memory()
        a = self.named(query=x, scale=0.5)["out"]
        b = self.named(query=a, mask=x)["out"]
        c, memory = self.remembering(b, memory)
        d, memory = self.remembering(c, memory)
        e, _, _ = self.mixed([x, d], None, a, b, flags={"gain": x, "times": 3})
        return self.mixed([e], None, flags={"gain": x, "times": 2})[1][1][1]

    calls = {"named": named, "remembering": remembering, "mixed": renamed if other else mixed}
    return fill(side, net(side, forward, **{name: net(side, call, inner=linear(side)) for name, call in calls.items()}))


@pytest.fixture
def odd(side: SimpleNamespace, tmp_path: Path) -> Path:
    td.capture(unusual(side), X, to=tmp_path / "odd.h5", floor=False, repeat=False).close()
    return tmp_path / "odd.h5"


def test_calls_that_are_handed_other_arguments_than_the_first_are_each_bound_by_themselves(side: SimpleNamespace, odd: Path) -> None:
    report = td.try_site(odd, "named", unusual(side).named)
    assert (report.verdict, report.coverage.compared) == ("same", report.coverage.reference_records)
    assert td.try_site(odd, "named", unusual(side).named, arguments={"mask": "mask"}).verdict == "same"


@pytest.mark.parametrize("other", [False, True], ids=["own names", "other names"])
def test_lists_dicts_and_none_are_handed_over_by_place_and_the_rest_by_name(side: SimpleNamespace, odd: Path, other: bool) -> None:
    assert td.try_site(odd, "mixed", unusual(side, other).mixed).verdict == "same"


def test_an_argument_of_which_a_trace_holds_nothing_is_told_as_such(odd: Path) -> None:
    torch = pytest.importorskip("torch")

    class Remembering(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, memory: Any) -> Any:
            return x

    with pytest.raises(CaptureError, match="nothing is left for 'memory'"):
        td.try_site(odd, "remembering", Remembering())


def test_a_function_of_a_trace_can_be_tried(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Rotated(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return turned(x, by=x.cos()) + turned(x * 2, by=x.sin())

    with torch.no_grad():
        td.capture(Rotated(), X, to=tmp_path / "ref.h5", floor=False, repeat=False, functions=[f"{__name__}.turned"]).close()
    with td.open_trace(tmp_path / "ref.h5") as trace:
        site = next(site for site in trace.sites if "turned" in site)
    report = td.try_site(tmp_path / "ref.h5", site, lambda x, by: x * by + torch.flip(x, [-1]), impl="torch")
    assert (report.verdict, report.coverage.compared) == ("same", 6)
    assert td.try_site(tmp_path / "ref.h5", site, lambda x, by: x * by, impl="torch").verdict == "different"


def turned(x: Any, *, by: Any) -> Any:
    import torch

    return x * by + torch.flip(x, [-1])


def test_a_stub_returns_none_where_the_reference_did_and_the_cache_that_it_was_handed(side: SimpleNamespace, odd: Path) -> None:
    port = unusual(side)
    whole_of = side.numpy(port(side.array(X)))
    for name in ("named", "remembering", "mixed"):
        setattr(port, name, td.stub(name, trace=odd, impl=side.name))
    assert np.allclose(side.numpy(port(side.array(X))), whole_of, atol=1e-6)
    handed = Memory()
    assert td.stub("remembering", trace=odd, impl=side.name)(side.array(X), handed)[1] is handed
    first, (_, (missing, _)), last = td.stub("mixed", trace=odd, impl=side.name)([side.array(X)], None)
    assert (missing, last) == (None, None)
    assert dict(td.stub("named", trace=odd, impl=side.name)(query=first))["weights"] is None


# ------------------------------------------------------------------------------------------------------ on the command line

PORT = {
    "torch": "import torch\nfrom torch import nn\n\nclass Last(nn.Linear):\n    def __init__(self):\n        super().__init__(8, 8)\n",
    "mlx": "import mlx.nn as nn\n\nclass Last(nn.Linear):\n    def __init__(self):\n        super().__init__(8, 8)\n",
}


def run(*arguments: str) -> tuple[int, str, str]:
    from click.testing import CliRunner

    from tracediff.cli import main

    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_command_tries_a_class_of_a_file_with_weights(side: SimpleNamespace, reference: Path, tmp_path: Path) -> None:
    last = whole(side).last
    np.savez(tmp_path / "last.npz", weight=side.numpy(last.weight), bias=side.numpy(last.bias))
    (tmp_path / "port.py").write_text(PORT[side.name], encoding="utf-8")
    name = f"{tmp_path / 'port.py'}:Last"
    status, out, _ = run("try", str(reference), "last", name, "--weights", str(tmp_path / "last.npz"), "--json")
    assert (status, json.loads(out)["verdict"]) == (0, "same")
    status, out, _ = run("try", str(reference), "last", name)
    assert status == 1
    assert out.startswith("Different: 1 fault at 1 place, in last")
    status, _, err = run("try", str(reference), "lost", name)
    assert (status, "nearest: 'last'" in err) == (2, True)
    status, _, err = run("try", str(reference), "last", f"{tmp_path / 'port.py'}:Lost")
    assert (status, "nearest: 'Last'" in err) == (2, True)


def test_the_command_finds_the_module_of_a_recipe_by_its_parameters(reference: Path, side: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / f"toy_{side.name}.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import models, test_runs_single_site\nIMPL = {side.name!r}\nSTAGES = {{'all': 'all'}}\n"
        f"def load(context):\n    side = models.SIDES[{side.name!r}]()\n    whole = test_runs_single_site.whole(side)\n"
        "    return {'core': test_runs_single_site.renamed(side, whole)}\n"
        "def run(models, context): pass\n",
        encoding="utf-8",
    )
    arguments = ("try", str(reference), "block", "--impl", side.name, "--recipe", str(tmp_path / f"toy_{side.name}.py"))
    status, _, err = run(*arguments)
    assert (status, "the port's module: core.body" in err) == (0, True)
    status, _, err = run(*arguments, "--module", "core.bod")
    assert (status, "nearest: 'core.body'" in err) == (2, True)


def renamed(side: SimpleNamespace, made: Any) -> Any:
    return net(side, lambda self, x: x, body=made.block, end=made.last)


# ------------------------------------------------------------------------------------------------------------------- stubs


def unfinished(side: SimpleNamespace, make: Callable[[], Any]) -> Any:
    """The port of `whole` in which the block is not written yet."""
    made = whole(side)

    class Port(side.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.block, self.last = make(), made.last

        def forward(self, x: Any) -> Any:
            for step in range(3):
                x = self.block(side.tanh(x), gain=x, scale=0.5 + step)
            return self.last(x)

    return Port()


def test_an_unfinished_port_runs_to_its_end_and_what_was_served_is_not_compared(
    side: SimpleNamespace, reference: Path, tmp_path: Path
) -> None:
    port = unfinished(side, lambda: td.stub("block"))
    td.capture(port, X, to=tmp_path / "port.h5", feed=reference).close()
    report = td.bisect(reference, tmp_path / "port.h5")
    served = [row for row in report.rows if row.how == "served"]
    assert [(row.where.reference, row.where.end, row.diverged) for row in served] == [("block", "output", None)] * 3
    assert report.verdict is None
    assert "block was served from a trace" in str(report).splitlines()[0]
    assert any("block: served from a trace, not computed and not compared" in text for text in report.coverage.not_seen)
    assert report.stages[0].verdict is None
    scaled(side, port.last)
    td.capture(port, X, to=tmp_path / "port.h5", feed=reference, force=True).close()
    report = td.bisect(reference, tmp_path / "port.h5")
    assert (report.verdict, culprits(report)) == ("different", [("last", "last")])


def test_a_stub_serves_a_named_trace_in_a_run_that_nothing_feeds(side: SimpleNamespace, reference: Path, tmp_path: Path) -> None:
    port = unfinished(side, lambda: td.stub("block", trace=reference))
    with td.open_trace(reference) as trace:
        expected = trace.records[-1].read()
    assert np.allclose(side.numpy(port(side.array(X))), expected, atol=1e-6)
    td.capture(port, X, to=tmp_path / "free.h5", repeat=True, floor=False).close()
    report = td.bisect(reference, tmp_path / "free.h5")
    assert (report.mode, report.verdict) == ("free", None)


def test_a_call_that_the_reference_did_not_make_is_refused(side: SimpleNamespace, reference: Path) -> None:
    port = unfinished(side, lambda: td.stub("block", trace=reference))
    port(side.array(X))
    with pytest.raises(CaptureError, match=r"called for the 4\. time, but .* holds 3 calls"):
        port(side.array(X))


def test_a_stub_without_a_trace_or_a_site_says_what_to_do(side: SimpleNamespace, reference: Path) -> None:
    with pytest.raises(CaptureError, match=r"knows no trace.*feed='ref.h5'.*trace='ref.h5'"):
        unfinished(side, lambda: td.stub("block"))(side.array(X))
    with pytest.raises(SiteError, match="nearest: 'block'"):
        unfinished(side, lambda: td.stub("blok", trace=reference))(side.array(X))


def test_a_stub_takes_the_place_of_a_module_and_moves_axes_and_dtype(side: SimpleNamespace, reference: Path) -> None:
    port = whole(side)
    port.block = td.stub("block", trace=reference, axes=(1, 0), impl=side.name)
    half = side.array(X.astype(np.float16))
    with td.open_trace(reference) as trace:
        expected = trace.find("block", end="output")[0].read()
    served = side.numpy(port.block(half, gain=None))
    assert served.dtype == np.float16
    assert np.allclose(served, expected.T, atol=1e-2)


def test_a_stub_of_a_trace_of_statistics_is_refused(side: SimpleNamespace, tmp_path: Path) -> None:
    td.capture(whole(side), X, to=tmp_path / "stats.h5", floor=False, repeat=False, save="stats").close()
    stub = td.stub("block", trace=tmp_path / "stats.h5", impl=side.name)
    with pytest.raises(TraceFileError, match="--save full"):
        stub(side.array(X))
