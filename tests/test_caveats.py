"""A run in training mode, or one that does not repeat itself, is said at its capture and in the first lines of every verdict."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import tracediff as td
from tracediff.runs.two_ways import way_of
from tracediff.show import answer, brief
from tracediff.show.words import plain

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
TRAINS = "The reference is in training mode, in which '1' (Dropout) works otherwise."


def model(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(p), nn.Linear(8, 8))


def captured(given: nn.Module, to: Path, run: object = X, **options: object) -> list[str]:
    """What a capture warned of."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        td.capture(given, run, to=to, **options).close()
    return [str(one.message).removeprefix(f"{to}: ") for one in told if str(one.message).startswith(str(to))]


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    reference, port = tmp_path / "ref.h5", tmp_path / "port.h5"
    captured(model().train(), reference)
    captured(model().train(), port, random=reference)
    return reference, port


def test_a_reference_in_training_mode_is_told_at_capture(tmp_path: Path) -> None:
    assert captured(model().train(), tmp_path / "train.h5") == [TRAINS]
    assert captured(model(0.0).train(), tmp_path / "idle.h5") == [
        "The reference is in training mode: call eval() before it runs, since training may compute something else."
    ]
    assert captured(model().eval(), tmp_path / "eval.h5") == []


def test_of_a_run_that_is_no_reference_only_what_works_otherwise_is_told(tmp_path: Path) -> None:
    assert captured(model(0.0).train(), tmp_path / "x.h5", floor=False) == []


def test_a_run_that_does_not_repeat_is_told_at_capture_with_the_first_place(tmp_path: Path) -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return x + Counting.calls

    assert captured(nn.Sequential(Counting()).eval(), tmp_path / "x.h5") == [
        "The run does not repeat itself: two runs of it differ, first at '0' output ([0]/0[0])."
    ]


def test_every_view_of_a_verdict_says_it_right_after_the_answer(pair: tuple[Path, Path]) -> None:
    report = td.bisect(*pair)
    assert report.caveats == (TRAINS, TRAINS.replace("reference", "port"))
    assert str(report).splitlines()[1] == TRAINS
    assert str(td.diff(*pair)).splitlines()[1] == TRAINS
    assert json.loads(report.to_json())["caveats"] == list(report.caveats)
    assert td.Report.from_json(report.to_json()).caveats == report.caveats
    pages = {kind: report.save(pair[0].with_suffix(kind)).read_text() for kind in (".md", ".html")}
    assert "is in training mode" in pages[".md"].splitlines()[2]
    assert pages[".html"].index("is in training mode") < pages[".html"].index("</header>")


def test_a_status_says_it_too(pair: tuple[Path, Path]) -> None:
    assert str(td.status(*pair)).splitlines()[1] == TRAINS


# -- a script that enters a module past its own code


class Net(nn.Module):
    """Embeddings with positions, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(16, 8), nn.Embedding(6, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.rest(self.emb(ids) + self.pos.weight)

    def rest(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Holder(nn.Module):
    """A model that holds the net and runs it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Net()
        for parameter in self.parameters():
            parameter.data = torch.randn_like(parameter) / 3

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.net(ids)


IDS = torch.arange(6)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A script that leaves the positions out, and the model itself."""
    folder, whole = tmp_path_factory.mktemp("script"), Holder().eval()

    def by_hand() -> torch.Tensor:
        net = whole.net
        return net.second(torch.relu(net.first(net.emb(IDS))))

    captured(whole, folder / "script.h5", run=by_hand, floor=True)
    captured(whole, folder / "model.h5", run=lambda: whole(IDS), floor=False)
    return folder / "script.h5", folder / "model.h5"


def test_what_a_script_leaves_out_of_a_module_that_it_enters_past_its_code_is_in_the_first_lines_of_every_verdict(
    script: tuple[Path, Path],
) -> None:
    report = td.bisect(*script)
    (told,) = report.caveats
    assert re.fullmatch(
        r"test_caveats\.py:\d+ \(.*by_hand\) calls 'net\.emb' of the reference past 'net', and never reads 'net\.pos\.weight': "
        r"is that what 'net' computes\?",
        told.replace("tests/", ""),
    )
    assert "test_caveats.py" in plain(answer.render(report), width=80).splitlines()[1]
    assert "'net.pos.weight'" in "".join(plain(answer.render(report), width=120).splitlines()[1:3])
    for view in (td.diff(*script), td.status(*script)):
        assert "past 'net'" in str(view).splitlines()[1]
    assert f"Doubtful: {told}" in brief.of_report(report)


def test_nothing_is_left_out_where_the_models_own_code_calls_or_where_most_is_left_by_intent(tmp_path: Path) -> None:
    whole = Holder().eval()
    assert captured(whole, tmp_path / "a.h5", run=lambda: whole.net.rest(whole.net.emb(IDS) + whole.net.pos.weight), floor=True) == []
    assert captured(whole, tmp_path / "b.h5", run=lambda: whole.net.first(torch.zeros(1, 8)), floor=True) == []


def test_nothing_is_left_out_where_the_models_own_code_enters_a_module_so_too(tmp_path: Path) -> None:
    class Inside(Holder):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.net.second(torch.relu(self.net.first(self.net.emb(ids))))

    whole = Inside().eval()

    def by_hand() -> torch.Tensor:
        return whole.net.second(torch.relu(whole.net.first(whole.net.emb(IDS)))) + whole(IDS)

    assert captured(whole, tmp_path / "a.h5", run=by_hand, floor=True) == []


# -- parameters that no file gave

PARTS = """
import torch
from torch import nn

def port():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "1.bias":
                parameter.copy_(torch.linspace(-0.3, 0.4, parameter.numel()).reshape(parameter.shape))
    return model.eval(), lambda: model(torch.ones(2, 8))
"""


def test_a_parameter_that_another_seed_changes_came_from_no_file_and_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    state = torch.get_rng_state()
    model, run, told = way_of(f"{tmp_path / 'parts.py'}:port")
    assert told == {"drawn": ["1.bias"]}
    again, *_ = way_of(f"{tmp_path / 'parts.py'}:port", repeat=False)
    assert torch.equal(model[1].bias, again[1].bias), "the model that is run is the one that its own seed gives"
    torch.set_rng_state(state)
    with torch.no_grad():
        reference = td.capture(model.train(), run, to=tmp_path / "x.h5", meta=told, floor=False)
        port = td.capture(model.eval(), run, to=tmp_path / "y.h5", meta=told, floor=False)
    first, *_, last = td.bisect(reference, port).caveats
    assert first == "1 parameter of the reference came from no file: another seed gives other values of '1.bias'."
    assert last == first.replace("reference", "port")


def test_a_model_of_random_numbers_alone_is_taken_for_none_that_has_a_file(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text(PARTS.replace('if name != "1.bias":', "if False:"))
    assert way_of(f"{tmp_path / 'random.py'}:port")[2] == {"drawn": []}


def test_one_layer_as_it_was_initialised_among_others_is_doubted_and_a_model_that_is_all_so_is_not(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = [nn.Linear(32, 32) for _ in range(4)]
    fresh = nn.Sequential(*layers).eval()
    x = torch.ones(1, 32)
    assert captured(fresh, tmp_path / "fresh.h5", run=lambda: fresh(x), floor=False) == []
    for layer in layers[1:]:
        layer.weight.data = torch.randn(32, 32) / 6
    assert captured(fresh, tmp_path / "one.h5", run=lambda: fresh(x), floor=False) == [
        "1 parameter of the run may have been loaded from nowhere: '0.weight' look freshly initialised."
    ]


# -- a reference of the port's own code


def test_a_reference_of_the_ports_own_code_makes_a_status_repeatable_and_never_same(script: tuple[Path, Path], tmp_path: Path) -> None:
    whole = Holder().eval()
    captured(whole, tmp_path / "forced.h5", run=lambda: whole(IDS), feed=script[1])
    captured(whole, tmp_path / "free.h5", run=lambda: whole(IDS), random=script[1], floor=False)
    told = td.status(script[1], tmp_path / "forced.h5", tmp_path / "free.h5")
    assert {stage.state(mode) for stage in told.stages for mode in ("forced", "free")} == {"repeatable"}
    assert told.verdict is None
    assert str(told).splitlines()[0].startswith("Cannot tell: the port repeats itself; its reference ran the same code")
