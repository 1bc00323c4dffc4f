"""Live bisection: nothing is stored, and the answer is the scan's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.alignment import align
from tracediff.errors import CaptureError
from tracediff.locate import locate

torch = pytest.importorskip("torch")
nn = torch.nn


class Mix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Any) -> Any:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Deep(nn.Module):
    """Blocks in groups in a body, called in a loop."""

    def __init__(self, groups: int = 2, blocks: int = 3) -> None:
        super().__init__()
        self.bodies = nn.ModuleList([nn.Sequential(*[Mix() for _ in range(blocks)]) for _ in range(groups)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any, steps: int = 3) -> Any:
        for _ in range(steps):
            for body in self.bodies:
                x = torch.tanh(body(x))
        return self.head(x)


def deep() -> Any:
    torch.manual_seed(0)
    return Deep().eval()


X = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)


def zeroed(model: Any, path: str) -> Any:
    with torch.no_grad():
        model.get_submodule(path).bias.add_(0.3)
    return model


def scanned(folder: Path, reference: Any, port: Any) -> Any:
    """The finding of a scan of stored traces, as (site, end, call) and culprit."""
    for name, model in (("ref", reference), ("port", port)):
        td.capture(model, X, to=folder / f"{name}.h5", floor=False, repeat=False).close()
    return told(td.diff(folder / "ref.h5", folder / "port.h5"))


def told(report: Any) -> Any:
    first = report.first
    return None if first is None else (first.site.reference, first.site.end, first.site.call, first.culprit.reference, first.culprit.port)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("path", ["bodies.0.0.up", "bodies.0.2.norm", "bodies.1.1.down", "head"])
def test_the_answer_is_the_scans_in_as_many_rounds_as_calls_are_nested(tmp_path, path):
    port = zeroed(deep(), path)
    report = td.bisect_live(deep(), X, port, X)
    assert told(report) == scanned(tmp_path, deep(), port)
    assert told(report)[3] == path
    assert report.method == "live"
    assert report.verdict == "different"
    assert 1 <= report.certificate["rounds"] <= 6  # one for each level from the top to the leaf's caller; one of probes, one of siblings


def test_a_correct_port_is_the_same_and_everything_was_compared():
    report = td.bisect_live(deep(), X, deep(), X)
    assert report.verdict == "same"
    assert report.coverage.compared == report.coverage.reference_records
    noisy = deep()
    for parameter in noisy.parameters():
        parameter.mul_(1 + 1e-7)
    report = td.bisect_live(deep(), X, noisy, X)
    assert report.verdict == "same"
    assert report.coverage.compared == report.coverage.reference_records


def test_no_more_is_held_than_one_frame_needs():
    port = zeroed(deep(), "bodies.1.1.down")
    report = td.bisect_live(deep(), X, port, X, most=1)
    total = 2 * X.nbytes * report.coverage.reference_records
    assert told(report)[3] == "bodies.1.1.down"
    assert 0 < report.certificate["bytes_held"] < total / 4


def test_the_report_says_what_it_took_and_reads_back():
    report = td.bisect_live(deep(), X, zeroed(deep(), "bodies.0.1.up"), X)
    again = type(report).from_json(report.to_json())
    assert again.method == "live"
    assert {"rounds", "proof", "recorded", "bytes_held", "bytes_of_index", "probes", "predecessors"} <= set(again.certificate)
    assert set(report.to_dict()) == set(td.bisect_live(deep(), X, deep(), X).to_dict())


def test_draws_are_the_same_on_both_sides_where_a_seed_is_given():
    class Noisy(Deep):
        def forward(self, x: Any) -> Any:
            return super().forward(x + torch.randn(x.shape))

    def noisy() -> Any:
        torch.manual_seed(0)
        return Noisy().eval()

    assert td.bisect_live(noisy(), X, noisy(), X, seed=3).verdict == "same"
    assert told(td.bisect_live(noisy(), X, zeroed(noisy(), "bodies.0.0.down"), X, seed=3))[3] == "bodies.0.0.down"


@pytest.mark.parametrize("side", ["reference", "port"])
def test_a_side_that_does_not_repeat_itself_is_refused_with_what_to_do(side):
    count = itertools.count()

    class Drifting(Deep):
        def forward(self, x: Any) -> Any:
            return super().forward(x + next(count))

    models = {"reference": deep(), "port": deep(), side: Drifting().eval()}
    with pytest.raises(CaptureError, match=rf"The {side} does not repeat itself.*input\[0\].*--seed"):
        td.bisect_live(models["reference"], X, models["port"], X)


def test_a_side_that_begins_to_drift_after_the_proof_is_refused_too():
    count = itertools.count()

    class Late(Deep):
        def forward(self, x: Any) -> Any:
            return super().forward(x + max(0, next(count) - 1))

    with pytest.raises(CaptureError, match="The port does not repeat itself"):
        td.bisect_live(deep(), X, Late().eval(), X)


def test_a_port_that_raises_is_told_and_a_reference_that_raises_is_refused():
    class Broken(nn.Linear):
        def forward(self, x: Any) -> Any:
            raise ValueError("no such kernel")

    broken = deep()
    broken.bodies[1][0].down = Broken(16, 8)
    report = td.bisect_live(deep(), X, broken, X)
    assert report.verdict != "same"
    assert report.port["complete"] is False
    with pytest.raises(CaptureError, match="The reference's run raised ValueError: no such kernel"):
        td.bisect_live(broken, X, deep(), X)


def test_the_generators_are_left_as_one_run_leaves_them():
    model, port = deep(), deep()
    torch.manual_seed(5)
    td.bisect_live(model, lambda: model(torch.tensor(X)) + torch.rand(1), port, X)
    left = torch.rand(1)
    torch.manual_seed(5)
    torch.rand(1)
    assert torch.equal(left, torch.rand(1))


def test_values_read_after_the_search_are_fetched_again():
    from tracediff.runs.live import of_model
    from tracediff.runs.live_search import searched

    sides = of_model("reference", deep(), X), of_model("port", zeroed(deep(), "head"), X)
    with searched(*sides) as found:
        before = found.rounds.runs_afterwards
        values = found.reference.records[3].read()
        assert values.shape == found.reference.records[3].shape
        assert found.rounds.runs_afterwards == before + 1
        assert found.located.first is not None


def test_a_square_layout_is_told_by_values_that_are_fetched_for_it(tmp_path):
    """Channels last beside channels first, with as many channels as steps: shapes leave it open."""

    class Turned(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            torch.manual_seed(2)
            self.a, self.b, self.last = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 6, 1), last
            self.join = Join(last)

        def forward(self, x: Any) -> Any:
            return self.b(self.join(self.a(x)).transpose(1, 2) if self.last else self.join(self.a(x)))

    class Join(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.scale, self.last = nn.Parameter(torch.full((1,), 1.5)), last

        def forward(self, x: Any) -> Any:
            return self.scale * (x.transpose(1, 2) if self.last else x)

    x = np.random.default_rng(0).standard_normal((1, 6, 6)).astype(np.float32)
    assert td.bisect_live(Turned(False).eval(), x, Turned(True).eval(), x).verdict == "same"


def test_real_pairs_of_both_frameworks_give_the_scans_answer(tmp_path):
    pytest.importorskip("mlx.core")
    import pairs

    from tracediff.observe import record

    for name in ("encoder-decoder", "conv"):
        pair = pairs.PAIRS[name]()
        names = [name for name, value in pairs.mlx_flat(pair.port.parameters()) if value.ndim > 1]
        pairs.unloaded(pair, "^" + names[len(names) // 2].replace(".", r"\.") + "$")
        with record(pair.reference, tmp_path / "ref.h5", force=True):
            pair.run_reference()
        with record(pair.port, tmp_path / "port.h5", force=True):
            pair.run_port()
        with td.open_trace(tmp_path / "ref.h5") as reference, td.open_trace(tmp_path / "port.h5") as port:
            scan = locate(align(reference, port), reference, port, scan=True)
            place = scan.comparisons[scan.first.place].pair.reference[0]
            record_ = reference.records[place]
            report = td.bisect_live(pair.reference, pair.run_reference, pair.port, pair.run_port)
            assert (report.first.site.reference, report.first.site.end) == (record_.site, record_.end)
            assert (report.first.culprit.reference, report.first.culprit.port) == scan.first.culprit


RECIPE = '''"""A small model."""
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import tracediff as td

IMPL = "mlx"
STAGES = {{"all": "Everything"}}


def load(context):
    mx.random.seed(context.seed)
    model = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4)))
    {fault}
    return {{"model": model}}


def run(models, context):
    with td.stage("all"):
        return models["model"](mx.array(context.array("all", "x", lambda draw: draw.standard_normal((2, 6), dtype=np.float32))))
'''


def test_a_side_of_a_recipe_runs_in_another_python_as_it_does_here(tmp_path, monkeypatch):
    pytest.importorskip("mlx.core")
    from tracediff.runs.live import of_recipe
    from tracediff.runs.live_search import searched

    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks").mkdir()
    for name, fault in (("small", "pass"), ("wrong", "model.layers[1].layers[1].bias += 1")):
        (tmp_path / "hooks" / f"{name}_mlx.py").write_text(RECIPE.format(fault=fault))
    answers = []
    for python in (None, sys.executable):
        sides = of_recipe("reference", "mlx", "small"), of_recipe("port", "mlx", "wrong", python=python)
        with searched(*sides) as found:
            assert found.located.first is not None
            answers.append((found.located.first.culprit, found.rounds.count))
    assert answers[0] == answers[1]
    assert answers[0][0] == ("model.layers.1.layers.1", "model.layers.1.layers.1")


def test_the_command_line_refuses_what_does_not_go_together():
    from click.testing import CliRunner

    from tracediff.cli import main

    for given, told_ in (
        (["bisect", "--live", "ref.h5", "port.h5"], "leave out REFERENCE"),
        (["bisect", "ref.h5"], "Give two traces"),
        (["bisect", "--live", "--python", "env/bin/python"], "which side"),
    ):
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 2
        assert told_ in result.output
