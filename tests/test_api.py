"""The Python calls as a notebook makes them."""

import itertools
from pathlib import Path

import numpy as np
import pytest

import tracediff as td


def test_record_keeps_what_a_block_of_code_taps(tmp_path: Path) -> None:
    with td.record(None, tmp_path / "x.h5"):
        for step in range(3):
            with td.scope("step", step), td.stage("loop"):
                td.tap("x", np.full(4, step, "f4"))
    with td.open_trace(tmp_path / "x.h5") as trace:
        assert [(record.site, record.scope, record.stage) for record in trace.records] == [("#x", f"step={n}", "loop") for n in range(3)]
        assert trace.records[2].read().tolist() == [2.0] * 4


def test_a_function_keeps_its_name_though_a_folder_has_it_too() -> None:
    import tracediff.alignment.axes
    import tracediff.observe.recorder  # noqa: F401

    assert callable(td.capture)
    assert callable(td.align)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        td.no_such_thing  # noqa: B018


def test_a_forced_run_shows_both_faults_and_nothing_else(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    def model() -> object:
        torch.manual_seed(0)
        return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(4))).eval()

    reference, port = model(), model()
    with torch.no_grad():
        port[1].bias.zero_()  # type: ignore[index]
        port[3].weight.copy_(port[3].weight.T.clone())  # type: ignore[index]
    x = np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    with td.capture(reference, x, to=tmp_path / "ref.h5") as trace:
        assert trace.meta["repeats"] is True
        assert trace.floor is not None
    td.capture(port, x, to=tmp_path / "port.h5", feed=tmp_path / "ref.h5").close()
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.mode == "forced"
    assert [divergence.culprit.port for divergence in report.divergences] == ["1", "3"]


def test_a_reference_that_does_not_repeat_is_told_so_and_gets_no_floor(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    calls = itertools.count(1)  # an iterator cannot be put back

    def run() -> object:
        return linear(torch.full((1, 4), float(next(calls))))

    linear = torch.nn.Linear(4, 4)
    with td.capture(linear, run, to=tmp_path / "ref.h5") as trace:
        assert trace.meta["repeats"] is False
        assert trace.floor is None
        assert "noise floor: not measured, since the run does not repeat itself" in trace.meta["not_seen"]


def test_a_run_of_which_nothing_returned_was_compared_has_no_verdict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Whole(torch.nn.Module):
        def __init__(self, *, is_finished: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
            self.is_finished = is_finished

        def forward(self, x: object) -> object:
            hidden = self.first(x)
            return self.last(hidden) if self.is_finished else None

    for name, is_finished in (("ref", True), ("port", False)):
        td.capture(Whole(is_finished=is_finished), (np.ones((2, 4), "f4"),), to=tmp_path / f"{name}.h5").close()
    report = td.bisect(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.verdict is None
    assert str(report).startswith("No verdict: nothing that the run returned was compared (output)")
