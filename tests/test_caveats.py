"""A run in training mode, or one that does not repeat itself, is said at its capture and in the first lines of every verdict."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

import tracediff as td

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
TRAINS = "The reference is in training mode, in which '1' (Dropout) works otherwise."


def model(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(p), nn.Linear(8, 8))


def captured(given: nn.Module, to: Path, **options: object) -> list[str]:
    """What a capture warned of."""
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        td.capture(given, X, to=to, **options).close()
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
