"""What a run returns: recorded whatever its container, compared, never forced; and what is said of a run by it."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from models import SIDES

import tracediff as td
from tracediff.cli import main
from tracediff.site import RETURNED
from tracediff.testing import assert_traces_close
from tracediff.trace.amend import amend

Two = namedtuple("Two", "a b")


@dataclasses.dataclass
class Data:
    a: Any
    b: Any


class Plain:
    """A result of a class of its own."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b
        self.seconds, self.path, self.model = 0.5, "somewhere", None


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda a, b: {"a": a, "b": b},
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "named tuple": Two,
    "dataclass": Data,
    "object": Plain,
    "object with slots": Slotted,
    "nested": lambda a, b: {"x": [{"a": a}, (None, {"b": b})]},
}


@pytest.fixture(params=["plain", *SIDES])
def framework(request: pytest.FixtureRequest) -> SimpleNamespace:
    """What makes arrays of PyTorch, of MLX, or of no framework."""
    if request.param == "plain":
        return SimpleNamespace(name="numpy", array=np.array, numpy=np.asarray)
    return SIDES[request.param]()


def two(framework: SimpleNamespace) -> tuple[Any, Any]:
    return framework.array(np.arange(6, dtype=np.float32).reshape(2, 3)), framework.array(np.arange(4, dtype=np.float32) - 1.5)


def captured(run: Any, to: Path, *, model: Any = None, impl: str | None = "numpy", **options: Any) -> td.Trace:
    return td.capture(model, run, to=to, impl=impl, force=True, floor=False, **options)


# -- what is recorded ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_a_run_returns_is_a_reserved_tap_whatever_its_container(framework: SimpleNamespace, container: str, tmp_path: Path) -> None:
    a, b = two(framework)
    with captured(lambda: CONTAINERS[container](a, b), tmp_path / "x.h5", impl=framework.name) as trace:
        found = [trace.records[row] for row in trace.returned or ()]
        assert [record.site for record in found] == [RETURNED, RETURNED]
        assert [record.read().tolist() for record in found] == [framework.numpy(value).tolist() for value in (a, b)]
        assert trace.meta["repeats"] is True


def test_an_array_a_number_and_a_text_are_returned_too(tmp_path: Path) -> None:
    for value, expected in ((np.ones(3), [1, 1, 1]), (2.5, 2.5), (7, 7)):
        with captured(lambda value=value: value, tmp_path / "x.h5") as trace:
            assert [trace.records[row].read().tolist() for row in trace.returned or ()] == [expected]
    with captured(lambda: "spoken", tmp_path / "x.h5") as trace:
        assert [trace.records[row].text() for row in trace.returned or ()] == ["spoken"]


def test_a_generator_is_not_consumed(framework: SimpleNamespace, tmp_path: Path) -> None:
    taken = []

    def values() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    with captured(values, tmp_path / "x.h5", impl=framework.name) as trace:
        assert (taken, trace.returned) == ([], ())
        assert any("what the run returned (generator)" in line for line in trace.meta["not_seen"])


@pytest.mark.parametrize("made", [lambda: None, object, lambda: {}, lambda: [None]], ids=["None", "object", "empty", "of None"])
def test_a_run_that_returns_no_tensor_is_recorded_all_the_same(made: Callable[[], Any], tmp_path: Path) -> None:
    def run() -> Any:
        td.tap("x", np.ones(3))
        return made()

    with captured(run, tmp_path / "x.h5") as trace:
        assert trace.returned == ()
        assert [record.site for record in trace.records] == ["#x"]


def test_a_returned_view_of_an_input_and_one_tensor_twice_are_each_recorded(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()

    def run() -> Any:
        y = model(x)
        return x[:1], y, y

    with captured(run, tmp_path / "x.h5", model=model, impl=None) as trace:
        values = [trace.records[row].read() for row in trace.returned or ()]
        assert [value.shape for value in values] == [(1, 4), (2, 4), (2, 4)]
        assert (values[0] == side.numpy(x)[:1]).all()
        assert (values[1] == values[2]).all()
        ends = {record.end: record for record in trace.records if record.site == RETURNED}
        assert trace.records[ends["value[1]"].producer].site == ""


def test_what_the_root_returned_is_not_recorded_again(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    for run in ((x,), lambda: model(x)):
        with captured(run, tmp_path / "x.h5", model=model, impl=None) as trace:
            assert RETURNED not in trace.sites
            assert [(trace.records[row].site, trace.records[row].end) for row in trace.returned or ()] == [("", "output")]
    with captured(lambda: {"y": model(x)}, tmp_path / "x.h5", model=model, impl=None) as trace:
        (tap,), output = trace.returned or (), trace.find("", end="output")[0].row
        assert trace.index["segment"][tap] == trace.index["segment"][output]
        assert trace.index["offset"][tap] == trace.index["offset"][output]


def test_no_tap_of_a_user_is_taken_for_it(tmp_path: Path) -> None:
    def run() -> Any:
        for name in ("returned", "#returned", "##returned"):
            td.tap(name, np.ones(3))
        return np.zeros(3)

    with captured(run, tmp_path / "x.h5") as trace:
        assert [record.read()[0] for record in trace.find(RETURNED)] == [0]
        assert len(trace.sites) == 4


def test_an_observer_never_replaces_what_a_run_returns(side: SimpleNamespace, x: Any) -> None:
    class Zeros(td.observe.Observer):
        def see(self, boundary: Any) -> Any:
            return {end: np.zeros((2, 4), np.float32) for end, _ in boundary.leaves} if boundary.moment == "return" else None

    model = side.Net()
    given = td.observe.observe(model, lambda: {"y": model(x)}, [Zeros()])
    assert side.numpy(given["y"]).any()


def test_the_tap_survives_a_conversion(tmp_path: Path) -> None:
    captured(lambda: {"a": np.arange(3.0), "b": np.ones(2)}, tmp_path / "x.h5").close()
    td.convert(tmp_path / "x.h5", tmp_path / "x.npz")
    td.convert(tmp_path / "x.npz", tmp_path / "y.h5")
    with td.open_trace(tmp_path / "y.h5") as trace:
        assert [trace.records[row].read().tolist() for row in trace.returned or ()] == [[0, 1, 2], [1, 1]]


# -- what is compared ----------------------------------------------------------------------------------------------------------------------


def judged(ours: Any, theirs: Any, folder: Path, **options: Any) -> td.Report:
    """The report on two plain runs, which `bisect`, `diff`, JSON, the exit status and the assertion give alike."""
    for name, run in (("ref", ours), ("port", theirs)):
        captured(run, folder / f"{name}.h5", **options).close()
    return told(folder)


def told(folder: Path) -> td.Report:
    paths = folder / "ref.h5", folder / "port.h5"
    report = td.bisect(*paths)
    scanned = td.diff(*paths)
    assert (report.verdict, report.withheld, report.outputs) == (scanned.verdict, scanned.withheld, scanned.outputs)
    for command in ("bisect", "diff"):
        done = CliRunner().invoke(main, [command, *map(str, paths), "--json"])
        written = json.loads(done.stdout)
        assert (written["verdict"], written["outputs"]) == (report.verdict, report.outputs)
        assert (written["withheld"] or {}).get("text") == (report.withheld.text if report.withheld else None)
        assert done.exit_code == {"same": 0, "different": 1, None: 2}[report.verdict]
    assert td.Report.from_json(report.to_json()).withheld == report.withheld
    if report.verdict == "same":
        assert_traces_close(*paths)
    else:
        with pytest.raises(AssertionError):
            assert_traces_close(*paths)
    return report


def first_line(report: td.Report) -> str:
    from tracediff.show.text import headline

    return headline(report)


A, B = np.arange(24, dtype=np.float32).reshape(4, 6) / 7, np.linspace(-1, 1, 10, dtype=np.float32)


@pytest.mark.parametrize("container", CONTAINERS)
def test_returned_tensors_are_paired_across_containers(container: str, tmp_path: Path) -> None:
    report = judged(lambda: CONTAINERS[container](A, B), lambda: (A, B), tmp_path)
    assert (report.verdict, report.coverage.compared, report.outputs) == ("same", 2, "compared")


def test_returned_tensors_in_another_layout_are_paired(tmp_path: Path) -> None:
    assert judged(lambda: {"a": A, "b": B}, lambda: {"a": A.T.copy(), "b": B}, tmp_path).verdict == "same"


def test_a_returned_tensor_that_differs_blames_the_code_of_the_run(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    for mode in ("random", "feed"):
        with captured(lambda: {"p": model(x) * 2.0}, tmp_path / "ref.h5", model=model, impl=None):
            pass
        given = {mode: tmp_path / "ref.h5"}
        captured(lambda: {"p": model(x) * 2.5}, tmp_path / "port.h5", model=model, impl=None, **given).close()
        report = told(tmp_path)
        assert first_line(report).startswith("First divergence: the run's own code, what the run returned (p): introduced 2.5e-01")
        assert "the code around the models' calls: all that they returned agrees" in str(report)
        assert report.certificate["judged"][0]["blame"] == "run"
        assert "test_returned.py" in report.certificate["judged"][0]["source"]["port"]


def test_what_a_call_returned_is_compared_with_what_the_other_run_made_of_it(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    for factor, verdict in ((1.0, "same"), (1.5, "different")):
        for runs in (
            (lambda: model(x), lambda factor=factor: model(x) * factor),
            (lambda factor=factor: model(x) * factor, lambda: model(x)),
        ):
            for name, run in zip(("ref", "port"), runs, strict=True):
                captured(run, tmp_path / f"{name}.h5", model=model, impl=None).close()
            report = told(tmp_path)
            assert report.verdict == verdict
            assert not report.first or report.certificate["judged"][0]["blame"] == "run"
            assert len(report.divergences) == (verdict == "different")


def test_a_forced_run_records_what_the_port_itself_returned(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    reference, port = side.nn.Linear(4, 4), side.nn.Linear(4, 4)
    for name, run, model in (("ref", lambda: {"y": reference(x)}, reference), ("port", lambda: {"y": port(x)}, port)):
        feed = {} if name == "ref" else {"feed": tmp_path / "ref.h5"}
        captured(run, tmp_path / f"{name}.h5", model=model, impl=None, **feed).close()
    with td.open_trace(tmp_path / "port.h5") as trace:
        returned = trace.find(RETURNED)[0]
        assert returned.digest == trace.find("", end="output")[0].digest
        assert not returned.flags
        with td.open_trace(tmp_path / "ref.h5") as other:
            assert returned.digest != other.find(RETURNED)[0].digest
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert [one.site.reference for one in report.divergences] == [""]  # the call that made it, not the tap
    assert {row.where.reference: row.diverged for row in report.rows}[RETURNED] is True


# -- what is said of the whole -------------------------------------------------------------------------------------------------------------


def test_a_tensor_that_only_the_port_returned_leaves_no_verdict(tmp_path: Path) -> None:
    report = judged(lambda: {"a": A}, lambda: {"a": A, "extra": B}, tmp_path)
    assert (report.verdict, report.withheld.code, report.withheld.names) == (None, "port outputs", ("returned.extra",))
    assert first_line(report).startswith("No verdict: of what the port returned returned.extra was not compared; 1 record compared agrees")


def test_equal_contents_elsewhere_count_as_compared(tmp_path: Path) -> None:
    def run(**more: Any) -> Any:
        td.tap("b", B)
        return {"a": A, **more}

    assert judged(run, lambda: run(again=B), tmp_path).verdict == "same"


def test_what_only_the_reference_returned_is_named_in_the_first_line(tmp_path: Path) -> None:
    report = judged(lambda: {"a": A, "extra": B}, lambda: {"a": A}, tmp_path)
    assert (report.verdict, report.outputs) == ("same", "in part")
    assert first_line(report).startswith("Same as far as compared: returned.extra was not; 1 of 2 records")


def test_what_the_port_computes_and_does_not_return_is_named_in_the_first_line(tmp_path: Path) -> None:
    def run(**more: Any) -> Any:
        td.tap("logits", B)
        return {"a": A, **more}

    report = judged(lambda: run(logits=B), run, tmp_path)
    assert (report.verdict, report.outputs, report.coverage.not_returned) == ("same", "compared", ("returned.logits",))
    assert first_line(report).startswith("Same: the port does not return returned.logits; 2 of 3 records")


def test_what_the_port_returns_in_another_container_counts_as_returned(tmp_path: Path) -> None:
    report = judged(lambda: {"a": A, "logits": B}, lambda: (A, B), tmp_path)
    assert report.coverage.not_returned == ()


def test_where_nothing_returned_was_compared_there_is_no_verdict(tmp_path: Path) -> None:
    def run(value: Any) -> Any:
        td.tap("a", A)
        return value

    report = judged(lambda: run({"x": np.array([1, 2, 3])}), lambda: run({"y": "a text"}), tmp_path)
    assert report.verdict is None
    assert report.withheld.code == "outputs"
    report = judged(lambda: run(one for one in "abc"), lambda: run(one for one in "abc"), tmp_path)
    assert "nothing that the reference's run returned could be recorded (its type is 'generator')" in first_line(report)


def test_a_run_that_returns_nothing_is_the_same_and_says_that_outputs_were_not_recorded(tmp_path: Path) -> None:
    def run() -> None:
        td.tap("a", A)

    assert first_line(judged(run, run, tmp_path)).startswith("Same, outputs not recorded: 1 of 1 record")


def test_a_block_and_a_selection_are_the_same_and_say_that_outputs_were_not_recorded(side: SimpleNamespace, x: Any, tmp_path: Path) -> None:
    model = side.Net()
    for name in ("ref", "port"):
        with td.record(model, tmp_path / f"{name}.h5", force=True):
            model(x)
    assert first_line(told(tmp_path)).startswith("Same, outputs not recorded: ")
    for name in ("ref", "port"):
        captured(lambda: {"y": model(x)}, tmp_path / f"{name}.h5", model=model, impl=None, include=["first*"]).close()
    report = told(tmp_path)
    assert (report.verdict, report.outputs) == ("same", "not recorded")
    assert first_line(report).startswith("Same, outputs not recorded: ")


def test_some_stages_alone_say_that_outputs_were_not_recorded(tmp_path: Path) -> None:
    def run(late: float) -> Any:
        with td.stage("early"):
            td.tap("a", A)
        with td.stage("late"):
            return {"b": td.tap("b", B * late)}

    for name, late in (("ref", 1.0), ("port", 2.0)):
        captured(lambda late=late: run(late), tmp_path / f"{name}.h5").close()
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5", stages=["early"])
    assert (report.verdict, report.outputs) == ("same", "not recorded")
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "different"


def test_a_trace_that_does_not_say_what_was_returned_is_judged_by_its_outermost_calls(tmp_path: Path) -> None:
    def run(value: Any) -> Any:
        td.tap("a", A)
        return value

    judged(lambda: run(None), lambda: run({"extra": B}), tmp_path)
    for name in ("ref", "port"):
        amend(tmp_path / f"{name}.h5", meta={"returned": None})
    report = told(tmp_path)
    assert (report.verdict, report.outputs) == ("same", "compared")


def test_the_reserved_tap_makes_no_stage_of_its_own(tmp_path: Path) -> None:
    def run() -> Any:
        with td.stage("one"):
            return {"a": td.tap("a", A)}

    report = judged(run, run, tmp_path)
    assert [(stage.stage, stage.verdict) for stage in report.stages] == [("one", "same")]
    assert [stage.stage for stage in td.status(tmp_path / "ref.h5", tmp_path / "port.h5").stages] == ["one"]
