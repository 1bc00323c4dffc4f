"""What is said of two runs as a whole: only what was compared is said to agree, and what was not withholds the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_returned import first_line, told  # noqa: E402
from torch.nn import Embedding, LayerNorm, Linear, Module, ModuleList  # noqa: E402

import tracediff as td  # noqa: E402

X = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)


def pair(folder: Path, reference: Module, port: Module, inputs: Any = X, *, mode: str = "random", **options: Any) -> td.Report:
    """The report on two models of one framework, which every way to ask gives alike."""
    with torch.no_grad():
        for name, model in (("ref", reference), ("port", port)):
            given = {mode: folder / "ref.h5"} if name == "port" else {}
            td.capture(model, (inputs,), to=folder / f"{name}.h5", force=True, floor=False, **given, **options).close()
    return told(folder)


class Heads(Module):
    """A trunk, a head, and an auxiliary head that is returned, dropped, or not there."""

    def __init__(self, aux: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = Linear(6, 6), Linear(6, 4)
        self.kind = aux
        if aux != "absent":
            self.aux = Linear(6, 5)

    def forward(self, x: Any) -> Any:
        hidden = torch.tanh(self.trunk(x))
        out = self.head(hidden)
        other = self.aux(hidden) if self.kind != "absent" else None
        return (out, other) if self.kind == "returned" else (out,)


@pytest.mark.parametrize("mode", ["random", "feed"])
def test_a_module_on_which_nothing_compared_depends_leaves_no_verdict(mode: str, tmp_path: Path) -> None:
    report = pair(tmp_path, Heads("returned"), Heads("absent"), mode=mode)
    assert (report.verdict, report.withheld.code, report.withheld.names) == (None, "modules", ("aux",))
    why = "nothing that was compared depends on aux, which the reference has parameters for; "
    assert first_line(report).startswith(f"No verdict: the port does not return output[1]; {why}")
    report = pair(tmp_path, Heads("absent"), Heads("dropped"), mode=mode)
    assert (report.verdict, report.withheld.code, report.withheld.names) == (None, "modules", ("aux",))
    assert "which the port has parameters for" in first_line(report)


def test_a_module_that_only_one_side_has_is_covered_by_what_its_caller_returns(tmp_path: Path) -> None:
    class Attends(Module):
        def __init__(self, *, fused: bool) -> None:
            super().__init__()
            torch.manual_seed(1)
            parts = [Linear(6, 6) for _ in range(3)]
            self.out = Linear(6, 6)
            self.fused = fused
            if fused:
                self.project = Linear(6, 18)
                self.project.weight.data = torch.cat([part.weight.data for part in parts])
                self.project.bias.data = torch.cat([part.bias.data for part in parts])
            else:
                self.parts = ModuleList(parts)

        def forward(self, x: Any) -> Any:
            q, k, v = self.project(x).split(6, -1) if self.fused else [part(x) for part in self.parts]
            return self.out(torch.sigmoid(q * k) * v)

    assert pair(tmp_path, Attends(fused=False), Attends(fused=True)).verdict == "same"


# -- weights that differ -------------------------------------------------------------------------------------------------------------------


class Looks(Module):
    def __init__(self, *, spoilt: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.table, self.out = Embedding(40, 6), Linear(6, 6)
        if spoilt:
            self.table.weight.data[30:] += 1.0

    def forward(self, ids: Any) -> Any:
        return self.out(self.table(ids))


def test_rows_of_a_table_that_were_not_looked_up_and_differ_leave_no_verdict(tmp_path: Path) -> None:
    ids = np.arange(12).reshape(2, 6)
    assert pair(tmp_path, Looks(), Looks(), ids).verdict == "same"
    report = pair(tmp_path, Looks(), Looks(spoilt=True), ids)
    assert (report.verdict, report.withheld.code, report.withheld.names) == (None, "weights", ("table.weight",))
    assert "weights of the port differ (table.weight), and nothing that was compared tells that this has no effect" in first_line(report)


def test_a_table_that_holds_a_factor_of_the_code_is_the_same(tmp_path: Path) -> None:
    class Gained(Looks):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.table.weight.data *= 2.0 / gain
            self.gain = gain

        def forward(self, ids: Any) -> Any:
            return self.out(self.table(ids) * self.gain)

    report = pair(tmp_path, Gained(2.0), Gained(1.0), np.arange(12).reshape(2, 6))
    assert (report.verdict, report.weights.different) == ("same", ("1 x table.weight (scaled by 2)",))


class Idle(Module):
    """A layer whose weights the run uses, or has but does not use."""

    def __init__(self, gain: float, *, is_used: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.spare = Linear(6, 6), Linear(6, 6)
        self.spare.weight.data[:, 0] *= gain
        self.is_used = is_used

    def forward(self, x: Any) -> Any:
        hidden = self.first(x)
        return self.spare(hidden * torch.tensor([0.0, 1, 1, 1, 1, 1])) if self.is_used else hidden


def test_weights_that_differ_leave_no_verdict_where_no_call_used_them(tmp_path: Path) -> None:
    report = pair(tmp_path, Idle(1.0, is_used=False), Idle(3.0, is_used=False))
    assert (report.verdict, report.withheld.code, report.withheld.names) == (None, "weights", ("spare.weight",))


def test_weights_that_differ_are_no_reason_where_their_module_returned_what_agrees(tmp_path: Path) -> None:
    report = pair(tmp_path, Idle(1.0, is_used=True), Idle(3.0, is_used=True))
    assert report.verdict == "same"
    assert any("spare.weight" in line for line in report.weights.different)


# -- only what was compared is said to agree -----------------------------------------------------------------------------------------------


class Stack(Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers, self.norm, self.factor = ModuleList(Linear(6, 6) for _ in range(5)), LayerNorm(6), factor

    def forward(self, x: Any) -> Any:
        for number, layer in enumerate(self.layers):
            x = torch.tanh(layer(x)) * (self.factor if number == 2 else 1.0)
        return self.norm(x)


def test_a_selection_blames_the_stretch_since_the_last_same_site_and_says_what_to_record(tmp_path: Path) -> None:
    report = pair(tmp_path, Stack(), Stack(1.1), include=["layers.0", "layers.4"])
    assert first_line(report).startswith("First divergence: between layers.0 output and layers.4 input[0]: they differ by ")
    (judged,) = report.certificate["judged"]
    assert (judged["arrives"], judged["record"]) == ("not recorded", ["layers.1", "layers.2", "layers.3"])
    shown = str(report)
    assert "all that happens since layers.0 output, the last that agrees" in shown
    assert "record layers.1, layers.2, layers.3" in shown
    assert "agrees, what" not in shown


def test_a_selection_that_begins_late_does_not_blame_the_inputs_of_the_run(tmp_path: Path) -> None:
    report = pair(tmp_path, Stack(), Stack(1.1), include=["norm"])
    assert first_line(report).startswith("First divergence: between the start and norm input[0]: they differ by ")
    assert "different inputs" not in str(report)


def test_a_module_whose_inputs_were_compared_is_blamed_itself_in_a_selection_too(tmp_path: Path) -> None:
    port = Stack()
    port.layers[3].bias.data += 0.5
    report = pair(tmp_path, Stack(), port, include=["layers.3"])
    assert first_line(report).startswith("First divergence: layers.3 (reference layers.3) at call 0, output")
    assert "the module itself: all that arrives there agrees" in str(report)


def test_arrays_without_inputs_blame_the_stretch_between_two_of_them(tmp_path: Path) -> None:
    for name, error in (("ref", 0.0), ("port", 0.2)):
        hidden, arrays = np.arange(24.0).reshape(4, 6) / 9, {}
        for number in range(4):
            hidden = np.tanh(hidden * 1.3 - (error if number == 2 else 0.0))
            arrays[f"encoder.{number}"] = hidden.astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        td.convert(tmp_path / f"{name}.npz", tmp_path / f"{name}.h5")
    report = told(tmp_path)
    assert first_line(report).startswith("First divergence: between encoder.1 output and encoder.2 output: they differ by ")
    assert "record the inputs of encoder.2 too" in str(report)


def test_a_forced_different_beside_a_free_same_is_explained(tmp_path: Path) -> None:
    class Small(Module):
        """Three layers, each a little off: by less than two free runs are allowed."""

        def __init__(self, error: float) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.layers, self.error = ModuleList(Linear(6, 6) for _ in range(3)), error

        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                x = torch.tanh(layer(x)) * (1 + self.error)
            return x

    with torch.no_grad():
        td.capture(Small(0.0), (X,), to=tmp_path / "ref.h5").close()
    by_mode = {}
    for error in np.geomspace(1e-7, 1e-5, 24):
        with torch.no_grad():
            for mode in ("feed", "random"):
                to = tmp_path / f"{mode}.h5"
                td.capture(Small(float(error)), (X,), to=to, force=True, **{mode: tmp_path / "ref.h5"}).close()
                by_mode[mode] = td.diff(tmp_path / "ref.h5", to)
        if (by_mode["feed"].verdict, by_mode["random"].verdict) == ("different", "same"):
            break
    assert (by_mode["feed"].verdict, by_mode["random"].verdict) == ("different", "same")
    said = "Free, the port agrees: when it was captured it first ran without being fed, and of "
    assert any(note.startswith(said) for note in by_mode["feed"].certificate["notes"])
    assert said in " ".join(str(by_mode["feed"]).split())
    assert not any("Free, the port" in note for note in by_mode["random"].certificate["notes"])
    status = td.status(tmp_path / "ref.h5", tmp_path / "feed.h5", tmp_path / "random.h5")
    assert any("Free, the port agrees" in note for note in status.notes)
