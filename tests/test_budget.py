"""A capture with a budget: the file is within it, what repeats gives way first, and what is sampled is still compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tracediff as td
from tracediff.alignment.axes import Layout, places_in_port, places_in_reference
from tracediff.cli import main
from tracediff.errors import CaptureError, TracediffError
from tracediff.observe import record
from tracediff.trace import TraceWriter, open_trace
from tracediff.trace.budget import KEY, budget_note, fit, size_of

STEPS, WIDTH = 40, 3000


def loop(to: Path, *, wrong_from: int = STEPS, by: float = 1e-2, **options: Any) -> td.Trace:
    """A loop of taps, each computed from the one before; from one step on the second tap is off."""
    chance = np.random.default_rng(0)
    with record(None, to, force=True, **options):
        x = td.tap("x", chance.standard_normal(WIDTH).astype("f4"))
        for step in range(STEPS):
            with td.scope("step", step):
                x = td.tap("turned", np.roll(np.tanh(x * np.float32(1.5)), 1))
                off = np.float32(1 + by * (step >= wrong_from))
                x = td.tap("scaled", np.sin(3 * x) * off)
        return_ = td.tap("end", x[:10].copy())
    assert len(return_) == 10
    return open_trace(to)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loop(tmp_path_factory.mktemp("budget") / "whole.h5").path


def found(reference: Path, port: Path) -> tuple[str | None, str, set[str]]:
    """The verdict, the call of the first divergence, and how the pairs behind it were compared."""
    report = td.diff(reference, port)
    where = report.first.site.call if report.first else ""
    calls = [row.where.call for row in report.rows]
    return report.verdict, where, {row.how for row in report.rows[calls.index(where) if where else 0 :]}


# -- sizes


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 MiB", 3 * 2**19), ("100k", 10**5), (70000, 70000), ("70000", 70000), ("1tb", 10**12)]
)
def test_a_size_is_a_number_of_bytes_or_has_a_unit(text: int | str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-2GB", "2 GBit", "1e9", "0x100000", None, True, 1e9, "2GB 1"])
def test_what_is_no_size_is_refused_with_what_to_write(text: Any) -> None:
    with pytest.raises(ValueError, match="is no size; write for instance 500MB"):
        size_of(text)


@pytest.mark.parametrize("text", [0, "10", "63KiB"])
def test_a_size_in_which_no_trace_fits_is_refused_before_anything_runs(text: Any, tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="too small for any trace; the smallest budget is 65,536"):
        td.capture(None, lambda: pytest.fail("it ran"), to=tmp_path / "x.h5", budget=text)
    assert not (tmp_path / "x.h5").exists()


def test_the_command_line_refuses_what_is_no_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["capture", "--impl", "torch", "--budget", "much", "-o", str(tmp_path / "x.h5")])
    assert caught.value.code == 2
    assert "A budget is a size, and 'much' is no size; write for instance 500MB" in capsys.readouterr().err


# -- what is kept


@pytest.mark.parametrize("budget", [150_000, 300_000, 600_000, 900_000, 10**7])
def test_the_file_takes_no_more_than_its_budget(tmp_path: Path, whole: Path, budget: int) -> None:
    trace = loop(tmp_path / "x.h5", budget=budget)
    size, needed = trace.path.stat().st_size, whole.stat().st_size
    assert size <= budget
    assert size > 0.8 * min(budget, needed)
    assert trace.verify() == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.h5"]
    assert (KEY in trace.meta) == (needed > budget)


def test_what_repeats_gives_way_first_and_the_run_is_given_and_returns_whole(tmp_path: Path) -> None:
    trace = loop(tmp_path / "x.h5", budget=300_000)
    stored = {site: [one.ordinal for one in trace.find(site) if one.stored] for site in trace.sites}
    assert stored["#x"] == stored["#end"] == [0]
    assert stored["#turned"] == list(range(len(stored["#turned"])))
    assert 0 < len(stored["#turned"]) < STEPS
    last = trace.find("#turned")[-1]
    assert trace.samples is not None
    assert trace.samples["count"][last.row] == 32
    assert trace.samples["count"][0] == 0


def test_of_alike_layers_the_first_is_kept_before_the_second_and_before_second_calls(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    with TraceWriter(tmp_path / "x.h5") as writer:
        for call in range(4):
            for site in ("layers.0", "layers.1", "layers.2", "head"):
                values = chance.standard_normal(10_000).astype("f4")
                writer.add(site=site, call=f"{site}[{call}]", ordinal=call, end="output", values=values)
    kept = []
    for budget in (290_000, 250_000, 210_000, 170_000, 130_000, 90_000):
        fit(tmp_path / "x.h5", budget)
        with open_trace(tmp_path / "x.h5") as trace:
            kept.append({(one.site, one.ordinal) for one in trace.records if one.stored})
    assert {("layers.0", 0), ("head", 0)} == kept[-2]
    assert {("layers.0", 0), ("layers.1", 0), ("head", 0)} == kept[-3]
    assert {("layers.0", 0), ("layers.1", 0), ("layers.2", 0), ("head", 0), ("layers.0", 1)} < kept[0]


def test_a_budget_that_the_rows_alone_exceed_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    def many(**options: Any) -> None:
        with record(None, tmp_path / "x.h5", **options):
            for step in range(1000):
                td.tap("x", np.float32(step))

    with pytest.raises(TracediffError, match=r"does not fit in a budget of 70,000 bytes: without any values its 1,000 records take \d"):
        many(budget=70_000)
    with open_trace(tmp_path / "x.h5") as trace:
        assert [float(one.read()) for one in trace.records[:3]] == [0, 1, 2]


def test_a_run_that_raises_is_kept_within_its_budget_too(tmp_path: Path) -> None:
    def failing() -> None:
        with record(None, tmp_path / "x.h5", budget=200_000):
            for step in range(50):
                td.tap("x", np.arange(step, step + 2000, dtype="f4"))
            raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError):
        failing()
    with open_trace(tmp_path / "x.h5") as trace:
        assert not trace.complete
        assert len(trace.find("#x")) == 50
        assert trace.path.stat().st_size <= 200_000


def test_a_trace_that_was_there_before_is_not_touched_by_a_capture_that_is_refused(tmp_path: Path) -> None:
    before = loop(tmp_path / "x.h5").path.read_bytes()
    with pytest.raises(TracediffError, match="exists already"), record(None, tmp_path / "x.h5", budget=100_000):
        pytest.fail("it ran")
    assert (tmp_path / "x.h5").read_bytes() == before


def test_parameters_that_were_asked_for_are_kept_before_calls(tmp_path: Path) -> None:
    weight = np.arange(20_000, dtype="f4").reshape(100, 200)
    with TraceWriter(tmp_path / "x.h5") as writer:
        writer.add_param("w", weight, path="", kind="parameter", store=True)
        for step in range(20):
            writer.add(site="a", call=f"a[{step}]", ordinal=step, end="output", values=np.arange(step, step + 5000, dtype="f4"))
    fit(tmp_path / "x.h5", 200_000)
    with open_trace(tmp_path / "x.h5") as trace:
        assert np.array_equal(trace.params["w"].read(), weight)
        assert 0 < sum(one.stored for one in trace.records) < 20


# -- what is compared


def test_a_fault_in_calls_that_were_sampled_is_found_at_its_place(tmp_path: Path, whole: Path) -> None:
    port = loop(tmp_path / "port.h5", wrong_from=30).path
    expected = found(whole, port)
    assert expected == ("different", "@step=30/#scaled[30]", {"read"})
    small_reference = loop(tmp_path / "ref.h5", budget=300_000).path
    small_port = loop(tmp_path / "small.h5", wrong_from=30, budget=300_000).path
    for reference, other in ((small_reference, port), (whole, small_port), (small_reference, small_port)):
        assert found(reference, other)[:2] == expected[:2]
        assert td.bisect(reference, other).first.site.call == expected[1]
        assert "samples" in found(reference, other)[2]


def test_a_clean_port_is_the_same_and_the_report_says_what_was_only_sampled(tmp_path: Path, whole: Path) -> None:
    small = loop(tmp_path / "ref.h5", budget=300_000)
    report = td.diff(small, whole)
    assert report.verdict == "same"
    notes = " ".join(report.certificate["notes"])
    assert "The reference was kept within 300,000 bytes: it holds all values of " in notes
    assert "There the verdict is weaker" in notes
    assert any(line.startswith("free: The reference was kept within") for line in td.status(small, whole).notes)
    assert budget_note(open_trace(whole), "port") == ""


def test_a_permuted_tensor_is_compared_at_the_places_that_the_port_kept(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 60)).astype("f4")
    for name, made in (("ref", values), ("port", values.T), ("wrong", 1.001 * values.T)):
        with TraceWriter(tmp_path / f"{name}.h5", meta={"impl": name}) as writer:
            for step in range(30):
                writer.add(
                    site="a", call=f"a[{step}]", ordinal=step, end="output", values=np.ascontiguousarray(made * np.float32(step + 1))
                )
    for name in ("port", "wrong"):
        fit(tmp_path / f"{name}.h5", 100_000)
    mapping = {"pairs": [{"reference": "a", "port": "a", "layout": "(1, 0)"}]}
    clean = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5", mapping=mapping)
    assert clean.verdict == "same"
    assert {row.how for row in clean.rows} == {"read", "samples"}
    wrong = td.diff(tmp_path / "ref.h5", tmp_path / "wrong.h5", mapping=mapping)
    assert wrong.verdict == "different"


@pytest.mark.parametrize(
    "layout", [Layout((6, 4)), Layout((4, 6), permutation=(1, 0)), Layout((3, 8, 1), split=(8, 3, 1), permutation=(1, 0, 2))]
)
def test_places_in_the_reference_are_the_inverse_of_places_in_the_port(layout: Layout) -> None:
    places = np.arange(24)
    assert np.array_equal(places_in_reference(places_in_port(places, layout, (6, 4)), layout, (6, 4)), places)


def test_where_only_values_tell_which_part_of_a_tensor_the_other_side_has_nothing_is_called_wrong(tmp_path: Path) -> None:
    every = np.random.default_rng(0).standard_normal((2, 6, 30_000)).astype("f4")
    for name, wanted in (("ref", slice(5, 6)), ("port", slice(0, 6))):
        with TraceWriter(tmp_path / f"{name}.h5", meta={"impl": name}) as writer:
            values = np.ascontiguousarray(every[:, wanted])
            writer.add(site="norm", call="norm[0]", ordinal=0, end="input[0]", values=values)
            writer.add(site="norm", call="norm[0]", ordinal=0, end="output", values=2 * values)
            writer.add(site="head", call="head[0]", ordinal=0, end="output", values=every[0, 0, :50])
    assert td.diff(tmp_path / "ref.h5", tmp_path / "port.h5").verdict == "same"
    fit(tmp_path / "port.h5", 150_000)
    report = td.diff(tmp_path / "ref.h5", tmp_path / "port.h5")
    assert report.divergences == ()
    assert [row.diverged for row in report.rows] == [None, None, False]


def test_a_trace_of_a_budget_has_no_floor_added_later(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model, x = torch.nn.Linear(200, 200).eval(), np.zeros((100, 200), "f4")
    td.capture(model, (x,), to=tmp_path / "x.h5", floor=False, budget=100_000)
    with pytest.raises(CaptureError, match="was kept within a budget"):
        td.calibrate(model, (x,), tmp_path / "x.h5")


def test_a_captured_model_keeps_the_floor_of_what_it_sampled(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(300, 300) for _ in range(8))).eval()
    x = np.random.default_rng(0).standard_normal((50, 300)).astype("f4")
    whole = td.capture(model, (x,), to=tmp_path / "whole.h5")
    small = td.capture(model, (x,), to=tmp_path / "small.h5", budget=400_000)
    assert small.path.stat().st_size <= 400_000 < whole.path.stat().st_size
    assert 0 < sum(one.stored for one in small.records) < len(small.records)
    for column in ("noise", "free", "float64"):
        assert np.array_equal(small.floor[column], whole.floor[column], equal_nan=True)
    assert small.meta["repeats"] is True


def test_two_ways_are_both_kept_within_the_budget(tmp_path: Path) -> None:
    def way() -> Any:
        for step in range(60):
            td.tap("x", np.arange(step, step + 2000, dtype="f4"))

    report = td.compare(None, way, way, to=tmp_path / "ways", budget=200_000)
    assert report.verdict == "same"
    assert all(path.stat().st_size <= 200_000 for path in (tmp_path / "ways").iterdir())
